//! docs/coverage.md: which programs hound records exactly, in which builds, and what heaptrack makes of them.
//!
//! The table is made by `HOUND_BLESS=1 cargo test -p hound-tests --test coverage`, which runs each program under both; with a program's name in the place
//! of the 1, only its rows are, and the others stay. Otherwise it is only
//! compared with what there is: a hazard that is not in it is found, and so is a row that says less than exact. That each row is true is what
//! the other tests are for.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::binaries;
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program, sources};
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Target, Way};
use tempfile::TempDir;

/// Without rights.
const NOBODY: u32 = 65534;

/// What is run.
struct Row {
    what: &'static str,
    source: &'static str,
    args: &'static [&'static str],
    flags: &'static [&'static str],
    linked: Option<&'static str>,
    by: Option<&'static str>,
    /// In all builds, or in one.
    all_builds: bool,
}

const fn row(what: &'static str, source: &'static str) -> Row {
    Row { what, source, args: &[], flags: &[], linked: None, by: None, all_builds: true }
}

impl Row {
    const fn args(self, args: &'static [&'static str]) -> Row {
        Row { args, all_builds: false, ..self }
    }

    const fn flags(self, flags: &'static [&'static str]) -> Row {
        Row { flags, ..self }
    }

    const fn once(self) -> Row {
        Row { all_builds: false, ..self }
    }

    const fn linked(self, how: &'static str) -> Row {
        Row { linked: Some(how), all_builds: false, ..self }
    }

    const fn by(self, compiler: &'static str) -> Row {
        Row { by: Some(compiler), all_builds: false, ..self }
    }

    fn target(&self, build: Build) -> Target {
        let mut target = Target::new(self.source, build).with(self.flags).args(self.args);
        if let Some(how) = self.linked {
            target = target.linked(how);
        }
        if let Some(compiler) = self.by {
            target = target.by(compiler);
        }
        target
    }

    fn program(&self) -> PathBuf {
        let program = Program::new(self.source, Build::Optimised).with(self.flags);
        let program = if let Some(how) = self.linked { program.linked(how) } else { program };
        if let Some(compiler) = self.by { program.by(compiler).path() } else { program.path() }
    }
}

const ROWS: &[Row] = &[
    row("every allocation function, zero, failure, overflow", "entry_points.c"),
    row("every operator new", "cpp_new.cpp"),
    row("realloc, blocks from thread to thread, 2,000 short threads", "threads.c").once(),
    row("addresses that change hands within nanoseconds", "handoff.c").args(&["20000", "2"]),
    row("before main, after exit handlers", "before_main.c"),
    row("calls of libc before any initialiser", "early_calls.c").once(),
    row("destructors of thread-local storage", "tls_dtor.cpp").once(),
    row("frames of all shapes", "shapes.c"),
    row("alloca", "alloca.c"),
    row("frames realigned", "realigned.c"),
    row("a frame popped, and pushed elsewhere", "pushed_again.c"),
    row("10,000 frames deep", "deep.c"),
    row("about the deepest stack that is recorded", "deep_changed.c"),
    row("20,000 C++ exceptions", "exceptions.cpp"),
    row("20,000 longjmps", "longjmp.c"),
    row("cancellation, pthread_exit, an exception that meets noexcept", "forced_unwind.cpp"),
    row("ucontext fibers", "fibers.c"),
    row("a fiber's stack unmapped by another thread", "fiber_unmapped.c").once(),
    row("switches written by hand", "switches.c"),
    row("OpenMP", "openmp.c").flags(&["-fopenmp"]),
    row("signal handlers that allocate", "signals.c").once(),
    row("an alternate signal stack inside a frame", "alternate_stack.c").once(),
    row("2,000 threads at once on the smallest stacks", "small_stacks.c").once(),
    row("100,000 threads", "many_threads.c").once(),
    row("3.5 KiB of stack left, handlers on 8 KiB", "little_stacks.c").args(&["3584"]).flags(&["-Wl,-z,now"]),
    row("threads of 8 KiB of stack: musl", "little_stacks.c").args(&["3584"]).by("musl-gcc"),
    row("threads of 8 KiB of stack: musl, static", "little_stacks.c").args(&["3584"]).flags(&["-static", "-DSTATIC"]).by("musl-gcc"),
    row("io_uring: requests under way, registered buffers", "io_uring.c").once(),
    row("io_uring with a thread of the kernel's", "io_uring.c").args(&["poll"]),
    row("reads all that is told of itself", "looks_at_itself.c").once(),
    row("fork, both sides allocate", "fork.c").once(),
    row("vfork", "exec.c").args(&["vfork"]),
    row("posix_spawn", "exec.c").args(&["spawn"]),
    row("exec that fails", "exec.c").args(&["fail"]),
    row("exec", "exec.c").args(&["exec"]),
    row("replaces itself by itself: its first image", "replaces_itself.c").once(),
    row("_exit", "die.c").args(&["_exit"]),
    row("quick_exit", "die.c").args(&["quick_exit"]),
    row("abort", "die.c").args(&["abort"]),
    row("SIGKILL after leaking", "die.c").args(&["kill"]),
    row("SIGSEGV after leaking", "die.c").args(&["segv"]),
    row("a thread that ends the process", "die.c").args(&["thread"]),
    row("closes all descriptors", "closefds.c").once(),
    row("a seccomp filter set later, which kills", "seccomp.c").once(),
    row("Rust: collections, threads, caught panics", "collections.rs").once(),
    row("static", "shapes.c").linked("-static"),
    row("static: threads", "threads.c").linked("-static"),
    row("static-PIE", "shapes.c").linked("-static-pie"),
    row("musl, dynamic", "threads.c").by("musl-gcc"),
    row("musl, static", "threads.c").flags(&["-static", "-DSTATIC"]).by("musl-gcc"),
    row("gcc -O3", "shapes.c").flags(&["-O3"]).once(),
    row("gcc -flto", "shapes.c").flags(&["-flto"]).once(),
    row("_FORTIFY_SOURCE=3", "entry_points.c").flags(&["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"]).once(),
    row("clang -O2", "shapes.c").by("clang"),
    row("clang++ -O2: exceptions", "exceptions.cpp").by("clang++"),
];

/// Programs that other tests give what they need, and that are no hazards of launching.
const ELSEWHERE: &[(&str, &str)] = &[
    ("chroot.c", "promises.rs"),
    ("stuck_allocator.c", "promises.rs"),
    ("children.c", "promises.rs"),
    ("made_code.c", "promises.rs"),
    ("tree.c", "children.rs"),
    ("damaged.c", "promises.rs"),
    ("daemon.c", "lifecycle.rs"),
    ("dlopen_reuse.c", "lifecycle.rs"),
    ("endless.c", "lifecycle.rs"),
    ("leaves_at_exit.c", "lifecycle.rs"),
    ("unloading.c", "unloading.rs"),
    ("elsewhere.c", "unloading.rs"),
    ("same_path.c", "shadow_stack.rs"),
    ("many_alive.c", "sampled.rs"),
    ("maps.c", "promises.rs"),
    ("markers.c", "blocks.rs"),
    ("stopped.c", "blocks.rs"),
];

fn page() -> PathBuf {
    binaries::workspace().join("docs/coverage.md")
}

/// A cell of hound's: exact, or in what it is not.
fn cell(row: &Row, way: Way, builds: &[Build]) -> String {
    let exact = |build: &Build| {
        let check = || row.target(*build).record(way).must_be_unharmed().must_be_exact().0.notes.len();
        catch_unwind(AssertUnwindSafe(check)).is_ok_and(|noted| noted > 0)
    };
    let not: Vec<String> = builds.iter().filter(|build| !exact(build)).map(|build| format!("{build:?}")).collect();
    match (not.is_empty(), builds.len()) {
        (true, 1) => "exact".into(),
        (true, number) => format!("exact in {number} builds"),
        (false, _) => format!("DIFFERS in {}", not.join(", ")),
    }
}

/// What heaptrack makes of a command whose `alone` is known, and of which so many allocations are true.
fn heaptrack((command, args, within): (&Path, &[&str], &Path), dir: &Path, alone: &Outcome, truth: u64) -> String {
    let mut run = Command::new("timeout");
    run.args(["-k", "1", "20", "heaptrack", "-o"]).arg(dir.join("h")).arg(command).args(args);
    let ended = process::run(run.env("ORACLE_FILE", dir.join("oracle")).current_dir(within));
    counted_by_heaptrack(&ended, dir, alone, truth)
}

/// What it has left in a directory.
fn counted_by_heaptrack(ended: &Outcome, dir: &Path, alone: &Outcome, truth: u64) -> String {
    let status = ended.shell_status();
    if matches!(status, 124 | 137) && alone.shell_status() != status {
        return "hangs".into();
    }
    let file = ["h.zst", "h.gz"].map(|name| dir.join(name)).into_iter().find(|file| file.exists());
    let Some(file) = file else { return "no output".into() };
    let mut print = Command::new("timeout");
    let printed = process::run(print.args(["-k", "1", "60", "heaptrack_print", "-p0", "-a0", "-T0", "-f"]).arg(file)).out();
    let counted =
        printed.lines().find_map(|line| line.strip_prefix("calls to allocation functions: ")?.split(' ').next()?.parse::<u64>().ok());
    let told = |o: &Outcome| o.out().lines().filter(|line| !line.contains("heaptrack")).count();
    let changed = if told(ended) < told(alone) { "; the program's output is cut" } else { "" };
    match counted {
        None | Some(0) => format!("sees nothing{changed}"),
        Some(counted) if counted == truth => format!("all {truth}{changed}"),
        // Signals come when they come.
        Some(counted) if counted > truth + truth / 100 => format!("{counted} allocations in a run of its own{changed}"),
        Some(counted) => format!("{counted} of {truth} allocations{changed}"),
    }
}

/// Programs with others below them, and what gives them something to do (`programs/loads`).
const LOADS: &[(&str, &str)] = &[
    ("postgres, four clients of pgbench", "postgres.sh"),
    ("nginx, two workers", "nginx.sh"),
    ("git gc", "git_gc.sh"),
    ("make -j2, g++", "make.sh"),
];

/// As [`real`], each with all processes that it begins.
fn loads(out: &mut String) {
    let for_everybody = binaries::for_everybody();
    let hound = for_everybody.path().join("hound");
    // A directory of nobody's own: a database server refuses to run as root.
    let place = || {
        let dir = TempDir::new().expect("a temporary directory can be made");
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("the page is made by root");
        dir
    };
    for (name, script) in LOADS {
        let run = |dir: &Path, under: &str| {
            let mut command = Command::new("timeout");
            // The workspace may be where nobody else may read.
            let its = dir.join(script);
            fs::copy(sources().join("loads").join(script), &its).expect("the test's own directory");
            command.args(["-k", "1", "50", "sh"]).arg(its).env("UNDER", under);
            process::run(command.env("HOME", dir).current_dir(dir).uid(NOBODY).gid(NOBODY))
        };
        let (beside, within, apart) = (place(), place(), place());
        let alone = run(beside.path(), "");
        assert_eq!(alone.shell_status(), 0, "{script}: {}", alone.err());
        let file = within.path().join("c.hound");
        let recorded = run(within.path(), &format!("{} run --quiet --children -o {} --", hound.display(), file.display()));
        let same = recorded.shell_status() == alone.shell_status() && recorded.out() == alone.out();
        let capture = Capture { path: file };
        let (of, check) = (capture.report().totals, capture.check());
        let is_whole = same && check.status.success() && of.lost_events == 0 && of.unknown_frees == 0 && of.allocations > 0;
        let said = if is_whole { "whole".to_owned() } else { format!("NOT: same {same}, {of:?}, {}", recorded.err()) };
        let ended = run(apart.path(), &format!("heaptrack -o {}/h", apart.path().display()));
        let peer = counted_by_heaptrack(&ended, apart.path(), &alone, of.allocations);
        writeln!(out, "| {name} | {said} | {} | {peer} |", of.allocations).expect("memory");
    }
}

/// Programs as they are installed: the same output and status, no event lost, no release without its allocation, no address twice.
fn real(out: &mut String) {
    let rustc = process::run(Command::new("rustup").args(["which", "rustc"])).out().trim().to_owned();
    let dir = TempDir::new().expect("a temporary directory can be made");
    fs::write(dir.path().join("a.rs"), "fn main() { println!(\"{:?}\", (0..100).map(|i| i.to_string()).collect::<Vec<_>>()); }")
        .expect("room");
    fs::write(
        dir.path().join("a.cpp"),
        "#include <map>\n#include <regex>\n#include <iostream>\nint main(){std::map<int,std::regex> m;std::cout<<m.size();}",
    )
    .expect("room");
    let python = "import json, threading, subprocess\nt=[threading.Thread(target=lambda: json.loads(json.dumps(list(range(9999))))) for _ in range(8)]\n[x.start() for x in t]; [x.join() for x in t]; print(subprocess.check_output(['echo','hi']))";
    let node = "const m=new Map();for(let i=0;i<50000;i++)m.set('k'+i,{i});setTimeout(()=>console.log(m.size),20)";
    let commands: Vec<(&str, Vec<&str>)> = vec![
        ("rustc", vec![if rustc.is_empty() { "rustc" } else { &rustc }, "-O", "-o", "a", "a.rs"]),
        ("g++", vec!["/usr/bin/g++", "-O1", "-o", "b", "a.cpp"]),
        ("python3, threads and a subprocess", vec!["/usr/bin/python3", "-c", python]),
        ("node", vec!["/usr/bin/node", "-e", node]),
        (
            "sqlite3",
            vec![
                "sqlite3",
                ":memory:",
                "create table t(a,b);insert into t select value, hex(randomblob(9)) from generate_series(1,20000);select count(*) from t;",
            ],
        ),
        ("perl", vec!["/usr/bin/perl", "-e", "my %h; $h{$_} = \"v$_\" for 1..50000; print scalar keys %h"]),
        ("git", vec!["/usr/bin/git", "init", "-q", "repository"]),
        ("a JVM", vec!["/usr/bin/java", "-Xmx64m", "-version"]),
    ];
    for (name, words) in commands {
        let file = dir.path().join("c.hound");
        let run = |command: &mut Command| process::run(command.current_dir(dir.path()));
        let alone = run(Command::new(words[0]).args(&words[1..]));
        let recorded = run(Command::new(binaries::hound()).args(["run", "--quiet", "-o"]).arg(&file).arg("--").args(&words));
        let same = recorded.shell_status() == alone.shell_status() && recorded.out() == alone.out();
        let report = Capture { path: file }.report();
        let of = &report.totals;
        let has_ended = Capture { path: dir.path().join("c.hound") }.ask("report", &[]).out().contains("it exited with status");
        let is_whole = same && has_ended && of.lost_events == 0 && of.unknown_frees == 0 && of.allocations > 0;
        let said = if is_whole { "whole".to_owned() } else { format!("NOT: same {same}, {of:?}") };
        let place = TempDir::new().expect("a temporary directory can be made");
        let peer = heaptrack((Path::new(words[0]), &words[1..], dir.path()), place.path(), &alone, of.allocations);
        writeln!(out, "| {name} | {said} | {} | {peer} |", of.allocations).expect("memory");
    }
}

fn measured(row: &Row) -> String {
    let builds: &[Build] = if row.all_builds { &Build::ALL } else { &[Build::Optimised] };
    let launched = cell(row, Way::Run, builds);
    let patched = cell(row, Way::Patched, &[Build::Optimised]);
    let dir = TempDir::new().expect("a temporary directory can be made");
    let truth = row.target(Build::Optimised).record(Way::Run).capture.report().totals.allocations;
    let peer = heaptrack((&row.program(), row.args, dir.path()), dir.path(), &row.target(Build::Optimised).alone(), truth);
    let shown = [&[row.source], row.args].concat().join(" ");
    format!("| {} | `{shown}` | {launched} | {patched} | {peer} |\n", row.what)
}

/// The page that is there, with the rows of one program measured anew.
fn with_rows_of(source: &str) -> String {
    let page = fs::read_to_string(page()).expect("docs/coverage.md is there");
    let anew = |line: &str| match ROWS.iter().find(|row| row.source == source && line.starts_with(&format!("| {} |", row.what))) {
        Some(row) => measured(row),
        None => format!("{line}\n"),
    };
    page.lines().map(anew).collect()
}

fn made() -> String {
    let mut out = String::from(HEAD);
    for row in ROWS {
        out.push_str(&measured(row));
    }
    out.push_str(REAL);
    real(&mut out);
    loads(&mut out);
    out.push_str(TAIL);
    for (source, test) in ELSEWHERE {
        writeln!(out, "| `{source}` | `tests/tests/{test}` |").expect("memory");
    }
    out
}

const HEAD: &str = "\
# Which programs hound records exactly

Each program notes every allocation and release that it makes, with its stack; *exact* says that the capture has these, all of these and in this order, with the same stacks frame by frame, and that the program
could not tell: same output, errors, status, descriptors, signals, limits. Builds are `-O0`, `-O2`, `-O2` with frame pointers, and stripped, where all four are run. Beside it what heaptrack 1.4 counts of the same program at
`-O2`; it keeps no more of a stack than 64 frames. (Some of its figures lack a few allocations of the loader's, made before it begins, and of a small
program that is killed all may be in its buffer still.)

This page is made by `HOUND_BLESS=1 cargo test -p hound-tests --test coverage`; that its rows stay true is tested by all other tests, with every run of them.

| hazard | program | `hound run` | `--via patch` | heaptrack |
|---|---|---|---|---|
";

const REAL: &str = "
## Real programs

They note nothing themselves: *whole* says that output and status are the same, that no event was lost, and that no release lacks its allocation.
The last four are recorded with all processes that they begin (`--children`); their scripts are in `tests/programs/loads`.

| program | `hound run` | allocations | heaptrack |
|---|---|---|---|
";

const TAIL: &str = "
## Tested apart

| program | by |
|---|---|
";

#[test]
fn the_page_has_every_hazard_and_each_is_exact() {
    if let Ok(what) = std::env::var("HOUND_BLESS") {
        let made = if what == "1" { made() } else { with_rows_of(&what) };
        fs::write(page(), made).expect("the documents can be written");
    }
    let page = fs::read_to_string(page()).expect("docs/coverage.md is there");
    for row in ROWS {
        let line = page.lines().find(|line| line.starts_with(&format!("| {} |", row.what)));
        let line = line.unwrap_or_else(|| panic!("'{}' is not in docs/coverage.md: make it anew with HOUND_BLESS=1", row.what));
        let cells: Vec<&str> = line.split(" | ").collect();
        assert!(cells[2].starts_with("exact") && cells[3].starts_with("exact"), "{line}");
    }
    for (name, _) in LOADS {
        assert!(page.contains(&format!("| {name} | whole |")), "'{name}' is not in docs/coverage.md: make it anew with HOUND_BLESS=1");
    }
    assert!(!page.contains("DIFFERS") && !page.contains("NOT:"), "a row is not exact");
    let programs = fs::read_dir(sources())
        .expect("the programs are there")
        .flatten()
        .map(|entry| entry.file_name().into_string().expect("a plain name"));
    for name in programs.filter(|name| name.ends_with(".c") || name.ends_with(".cpp")) {
        let text = fs::read_to_string(sources().join(&name)).expect("it is there");
        let is_hazard = text.contains("\"oracle.h\"")
            && !name.starts_with("attach")
            && !name.starts_with("kernel")
            && name != "oracle_for_rust.c"
            && text.contains("o_malloc");
        let is_known = ROWS.iter().any(|row| row.source == name) || ELSEWHERE.iter().any(|(source, _)| *source == name);
        assert!(!is_hazard || is_known, "{name} is in no row of docs/coverage.md");
    }
}
