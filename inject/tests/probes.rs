//! Uprobes where the plan says, in real programs: the kernel takes them, each call hits once, and the program lives. Runs as root.

#[expect(dead_code, reason = "other tests need more of it")]
mod common;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::compile;
use hound_common::kernel::DOES_FREE;
use hound_inject::{CustomHook, Error, How, Memory, ProbePlan, ProbeSite, Refusal};
use hound_tests::requirement;
use iced_x86::{Decoder, DecoderOptions};

/// A program that calls what it is told.
struct Probed {
    child: Child,
}

impl Probed {
    fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut probed = Probed { child };
        probed.answers(b'r');
        probed
    }

    fn answers(&mut self, wanted: u8) {
        let mut byte = [0];
        self.child.stdout.as_mut().expect("piped").read_exact(&mut byte).expect("the program lives");
        assert_eq!(byte[0], wanted);
    }

    fn does(&mut self, what: char, count: u64) {
        // In one piece, as the program reads it.
        let order = format!("{what} {count}");
        self.child.stdin.as_mut().expect("piped").write_all(order.as_bytes()).expect("the program listens");
        self.answers(b'y');
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn plan(&self, hooks: &[CustomHook]) -> ProbePlan {
        let plan = ProbePlan::of(self.pid(), hooks).expect("an allocator");
        for site in plan.sites() {
            let how = if site.how == How::Emulated { "emulated" } else { "stepped" };
            println!(
                "{:24} {:28} +{:<3} {how}{}",
                site.family,
                site.function,
                site.address - site.entry,
                if site.skips_null { ", not for null" } else { "" }
            );
        }
        for passing in plan.passes_on() {
            println!("{:24} passes on to {}", passing.function, passing.to.join(", "));
        }
        println!("not covered: {:?}", plan.not_covered());
        plan
    }

    fn has_stepped(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/maps", self.pid())).expect("it lives").contains("[uprobes]")
    }

    fn ends_well(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("it is ours").success());
    }
}

impl Drop for Probed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A uprobe that counts.
struct Counter(File);

impl Counter {
    fn open(site: &ProbeSite, pid: i32) -> Counter {
        const CLOSE_ON_EXEC: libc::c_ulong = 8;
        const CONFIG1: usize = 56;
        const CONFIG2: usize = 64;
        let kind = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").expect("the kernel has uprobes");
        let path = CString::new(site.path()).expect("no zeroes");
        let mut about = [0_u8; 128];
        about[..4].copy_from_slice(&kind.trim().parse::<u32>().expect("a number").to_le_bytes());
        about[4..8].copy_from_slice(&128_u32.to_le_bytes());
        about[CONFIG1..CONFIG1 + 8].copy_from_slice(&(path.as_ptr() as u64).to_le_bytes());
        about[CONFIG2..CONFIG2 + 8].copy_from_slice(&site.offset.to_le_bytes());
        // SAFETY: the attributes and the path live until the call returns; the kernel only reads them.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, about.as_ptr(), pid, -1, -1, CLOSE_ON_EXEC) };
        assert!(fd >= 0, "{} of {} at {:#x}: {}", site.function, site.module, site.offset, std::io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
        Counter(unsafe { File::from_raw_fd(fd as i32) })
    }

    fn hits(&self) -> u64 {
        let mut count = [0; 8];
        (&self.0).read_exact(&mut count).expect("a counter");
        u64::from_le_bytes(count)
    }
}

/// The sites that calls of a function come to, one of them each.
fn seen_as<'a>(plan: &'a ProbePlan, family: &str, function: &str) -> Vec<&'a ProbeSite> {
    // Two allocators may have it: libc's own may pass on to the one that is used.
    let found = |names: &[String]| -> Vec<&'a ProbeSite> {
        let named = |site: &&ProbeSite| names.iter().any(|name| site.function == *name || site.aliases.contains(name));
        plan.sites().iter().filter(|site| site.family == family).filter(named).collect()
    };
    let of_family = |module: &str| plan.sites().iter().any(|site| site.family == family && site.module == module);
    let mut passing: Vec<_> = plan.passes_on().iter().filter(|passing| passing.function == function).collect();
    passing.sort_by_key(|passing| !of_family(&passing.module));
    let own = found(&[function.to_owned()]);
    let through = passing.iter().map(|passing| found(&passing.to)).find(|sites| !sites.is_empty()).unwrap_or_default();
    let sites = if own.is_empty() { through } else { own };
    assert!(!sites.is_empty(), "{function} is neither probed nor passed on: {:?}", plan.not_covered());
    sites
}

/// Every site is at the boundary of an instruction, as decoding from its function's beginning shows.
fn instructions_are_whole(plan: &ProbePlan, pid: i32) {
    let memory = Memory::open(pid).expect("it lives");
    for site in plan.sites() {
        let mut code = vec![0; (site.address - site.entry) as usize + 16];
        memory.read(site.entry, &mut code).expect("code is readable");
        let mut decoder = Decoder::with_ip(64, &code, site.entry, DecoderOptions::NONE);
        assert!(decoder.iter().any(|instruction| instruction.ip() == site.address), "{site:?}");
    }
}

/// What each letter of `probed.c` calls.
const CALLS: [(char, &str); 8] = [
    ('m', "malloc"),
    ('r', "realloc"),
    ('f', "free"),
    ('c', "calloc"),
    ('A', "reallocarray"),
    ('f', "free"),
    ('a', "aligned_alloc"),
    ('p', "posix_memalign"),
];
const TIMES: u64 = 300;

/// Sets all probes, and holds their counts to the calls made.
fn each_call_hits_once(program: &mut Probed, plan: &ProbePlan, family: &str, calls: &[(char, &str)], prefix: &str) {
    instructions_are_whole(plan, program.pid());
    let counters: Vec<(&ProbeSite, Counter)> = plan.sites().iter().map(|site| (site, Counter::open(site, program.pid()))).collect();
    let hits = |site: &ProbeSite| counters.iter().find(|(of, _)| of.address == site.address).map_or(0, |(_, counter)| counter.hits());
    let all_hits = |sites: &[&ProbeSite]| sites.iter().map(|site| hits(site)).sum::<u64>();
    for (letter, function) in calls {
        let sites = seen_as(plan, family, &format!("{prefix}{function}"));
        let before = all_hits(&sites);
        program.does(*letter, TIMES);
        assert_eq!(all_hits(&sites) - before, TIMES, "{function}, seen as {sites:?}");
    }
    if calls.iter().any(|(_, function)| *function == "free") {
        let free = seen_as(plan, family, &format!("{prefix}free"));
        let before = all_hits(&free);
        program.does('0', TIMES);
        assert_eq!(all_hits(&free) - before, if free[0].skips_null { 0 } else { TIMES });
    }
    // The kernel maps a page to step in when it first steps.
    let stepped = plan.sites().iter().any(|site| site.how == How::Stepped && hits(site) > 0);
    assert_eq!(program.has_stepped(), stepped);
    drop(counters);
    program.does('m', TIMES);
    program.does('f', TIMES);
}

fn all_of(mut program: Probed, family: &str, calls: &[(char, &str)], prefix: &str) -> ProbePlan {
    let plan = program.plan(&[]);
    assert!(plan.sites().iter().any(|site| site.family == family), "no {family}");
    each_call_hits_once(&mut program, &plan, family, calls, prefix);
    program.ends_well();
    plan
}

fn preloaded(library: &str, family: &str) -> ProbePlan {
    let library = Path::new("/usr/lib/x86_64-linux-gnu").join(library);
    assert!(library.exists(), "{} is not installed", library.display());
    let file = compile("probed.c", "cc", &[]);
    all_of(Probed::start(Command::new(file).env("LD_PRELOAD", library)), family, &CALLS, "")
}

fn site<'a>(plan: &'a ProbePlan, function: &str) -> &'a ProbeSite {
    plan.sites().iter().find(|site| site.function == function).unwrap_or_else(|| panic!("no site of {function}"))
}

#[test]
fn glibc() {
    let plan = all_of(Probed::start(&mut Command::new(compile("probed.c", "cc", &[]))), "glibc", &CALLS, "");
    for function in ["malloc", "calloc", "realloc", "free"] {
        assert_eq!(site(&plan, function).how, How::Emulated, "{function}");
    }
    assert!(plan.passes_on().iter().any(|passing| passing.function == "reallocarray" && passing.to == ["realloc"]));
    assert!(plan.sites().iter().all(|site| site.returns == (site.cookie.does != DOES_FREE)));
}

#[test]
fn static_glibc() {
    all_of(Probed::start(&mut Command::new(compile("probed.c", "cc", &["-static", "-DSTATIC", "-w"]))), "glibc", &CALLS, "");
}

#[test]
fn musl_dynamic_and_static() {
    for flags in [&[][..], &["-static", "-DSTATIC"]] {
        all_of(Probed::start(&mut Command::new(compile("probed.c", "musl-gcc", flags))), "musl", &CALLS, "");
    }
}

#[test]
fn jemalloc() {
    preloaded("libjemalloc.so.2", "jemalloc");
}

#[test]
fn mimalloc() {
    preloaded("libmimalloc.so.2", "mimalloc");
}

#[test]
fn tcmalloc() {
    preloaded("libtcmalloc_minimal.so.4", "tcmalloc");
}

#[test]
fn tcmalloc_linked_into_the_program() {
    let file = compile("probed.c", "cc", &["-Wl,--whole-archive,-l:libtcmalloc_minimal.a,--no-whole-archive", "-lstdc++", "-lm", "-w"]);
    let plan = all_of(Probed::start(&mut Command::new(file)), "tcmalloc", &CALLS[..4], "");
    assert!(seen_as(&plan, "tcmalloc", "malloc")[0].module.contains("probed"));
}

/// jemalloc's archive, as the crate builds it.
fn archive() -> PathBuf {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("in a workspace").join("tests/programs/jemallocator");
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("inside target").join("jemallocator");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--quiet", "--locked", "--manifest-path"]).arg(project.join("Cargo.toml"));
    assert!(cargo.arg("--target-dir").arg(&made).env_remove("RUSTFLAGS").status().expect("cargo runs").success());
    let built = std::fs::read_dir(made.join("release/build")).expect("it was built");
    let found = built.flatten().map(|entry| entry.path().join("out/lib/libjemalloc_pic.a")).find(|path| path.exists());
    found.expect("the crate builds an archive")
}

#[test]
fn jemalloc_linked_into_the_program_behind_a_prefix() {
    let names = ["malloc", "calloc", "realloc", "free", "aligned_alloc", "posix_memalign"];
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("probed-rjem-{}", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/probed.c");
    let mut command = Command::new("cc");
    command.args(["-O2", "-w", "-pthread", "-DNO_REALLOCARRAY"]).args(names.map(|name| format!("-D{name}=_rjem_{name}")));
    command.arg("-o").arg(&file).arg(source).arg(archive()).args(["-ldl", "-lm"]);
    assert!(command.status().expect("the compiler runs").success(), "{command:?}");
    let calls: Vec<(char, &str)> = CALLS.iter().copied().filter(|(letter, _)| *letter != 'A').collect();
    all_of(Probed::start(&mut Command::new(file)), "jemalloc (_rjem_)", &calls, "_rjem_");
}

#[test]
fn pools_that_the_user_names() {
    let mut program = Probed::start(&mut Command::new(compile("probed.c", "cc", &["-DPOOLS"])));
    let hooks = ["alloc=pool_get(size=0)", "free=pool_put(ptr=0)"].map(|hook| hook.parse::<CustomHook>().expect("it is well written"));
    let plan = program.plan(&hooks);
    let get = site(&plan, "pool_get");
    assert_eq!((get.cookie.pool, get.cookie.size, get.family.as_str()), (1, 0, "pool 1"));
    each_call_hits_once(&mut program, &plan, "pool 1", &[('g', "pool_get"), ('q', "pool_put")], "");
    program.ends_well();
    let missing = ["alloc=pool_gets(size=0)".parse::<CustomHook>().expect("it is well written")];
    let program = Probed::start(&mut Command::new(compile("probed.c", "cc", &["-DPOOLS"])));
    let refused = ProbePlan::of(program.pid(), &missing).expect_err("there is no such function");
    assert!(refused.to_string().contains("pool_get"), "{refused}");
}

/// A copy of the C library, of which the program runs.
fn own_library(place: &str) -> (PathBuf, PathBuf) {
    let file = compile("probed.c", "cc", &[&format!("-DIN_{place}")]);
    let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{place}-{}-libjemalloc.so", std::process::id()));
    std::fs::copy("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", &library).expect("jemalloc is installed");
    (file, library)
}

#[test]
fn a_library_whose_file_is_deleted() {
    let (file, library) = own_library("deleted");
    let program = Probed::start(Command::new(file).env("LD_PRELOAD", &library));
    std::fs::remove_file(&library).expect("it was there");
    all_of(program, "jemalloc", &CALLS, "");
}

#[test]
fn a_library_that_only_the_programs_mount_namespace_has() {
    if !requirement::containers() {
        return;
    }
    let (file, library) = own_library("namespace");
    let hidden = library.with_extension("hidden");
    std::fs::create_dir_all(&hidden).expect("a directory can be made");
    let script = r#"mount -t tmpfs none "$0" && cp "$1" "$0/allocator.so" && LD_PRELOAD="$0/allocator.so" exec "$2""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&hidden).arg(&library).arg(file);
    let program = Probed::start(&mut command);
    assert!(!hidden.join("allocator.so").exists(), "it is to be seen from here, too");
    all_of(program, "jemalloc", &CALLS, "");
    std::fs::remove_file(&library).expect("it was there");
}

#[test]
fn a_module_loaded_later_gives_new_sites() {
    let mut program =
        Probed::start(Command::new(compile("probed.c", "cc", &["-DLATER"])).arg("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"));
    let mut plan = program.plan(&[]);
    let before = plan.sites().len();
    assert_eq!(plan.appeared(true).expect("it lives"), 0);
    program.does('l', 1);
    let new = plan.appeared(true).expect("it lives");
    assert!(new > 4 && plan.sites().len() == before + new, "{new}");
    assert!(plan.sites()[before..].iter().all(|site| site.family == "tcmalloc"));
    instructions_are_whole(&plan, program.pid());
    let counters: Vec<Counter> = plan.sites()[before..].iter().map(|site| Counter::open(site, program.pid())).collect();
    program.does('m', TIMES);
    assert!(counters.iter().all(|counter| counter.hits() == 0), "the program still uses glibc's");
    program.ends_well();
}

#[test]
fn a_function_that_another_tracer_holds_is_named() {
    let program = Probed::start(Command::new(compile("probed.c", "cc", &["-DHELD"])).arg0("held"));
    let plan = program.plan(&[]);
    let held = Counter::open(site(&plan, "malloc"), program.pid());
    let again = program.plan(&[]);
    assert!(again.sites().iter().all(|site| site.function != "malloc"));
    assert!(again.not_covered().iter().any(|not| not.what == "malloc" && not.why.contains("breakpoint or uprobe")));
    drop(held);
    let held = Counter::open(site(&plan, "free"), program.pid());
    let refused = ProbePlan::of(program.pid(), &[]).expect_err("without free all blocks would look leaked");
    assert!(matches!(&refused, Error::Refused(Refusal::Breakpoint { function, .. }) if function == "free"), "{refused}");
    drop(held);
    assert_eq!(program.plan(&[]).sites().len(), plan.sites().len());
    program.ends_well();
}

#[test]
fn calls_that_an_allocator_makes_itself_are_told() {
    let mut program = Probed::start(&mut Command::new(compile("probed.c", "cc", &["-DINSIDE"])));
    let plan = program.plan(&[]);
    for site in plan.sites().iter().filter(|site| site.family == "glibc") {
        assert!(plan.is_inside(site.entry + 1), "{} is not inside", site.function);
    }
    assert!(plan.inside().windows(2).all(|pair| pair[0].1 < pair[1].0));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).expect("it lives");
    let own = maps.lines().find(|line| line.contains("r-xp") && line.contains("probed")).expect("its code is mapped");
    let hex = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
    let (start, end) = own.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
    assert!((hex(start)..hex(end)).all(|ip| !plan.is_inside(ip)), "the program's own code");
    // realloc(0, n) jumps on to malloc, with the program's return address: its call instruction is realloc's.
    let memory = Memory::open(program.pid()).expect("it lives");
    let mut code = vec![0; (hex(end) - hex(start)) as usize];
    memory.read(hex(start), &mut code).expect("code is readable");
    program.does('R', 1); // the loader has looked realloc up, or binds at the start
    let malloc = site(&plan, "malloc").entry;
    let returns = (hex(start)..hex(end)).filter(|at| plan.comes_through(malloc, *at)).count();
    let glibc_jumps = plan.sites().iter().any(|site| site.function == "realloc");
    assert!(!glibc_jumps || returns > 0, "no call of realloc is told from one of malloc");
    program.ends_well();
}
