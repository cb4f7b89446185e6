//! Into a running program and out again: events come, code is restored byte for byte, the program's own checks hold.

mod common;

use std::fs::File;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{Program, compile, library, soon};
use hound_common::ring::{Control, SEGMENTS, SEGMENTS_OFFSET, STATE_CHANGE, STATE_RECORDING, Segment};
use hound_inject::{CustomHook, Entered, Plan, State, enter, find, look};

/// One program at a time: each has four busy threads.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Ring(File);

impl Ring {
    fn of(entered: &Entered) -> Self {
        Self(entered.ring().as_fd().try_clone_to_owned().expect("descriptors are left").into())
    }

    fn word(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, offset as u64).expect("the ring is whole");
        u64::from_le_bytes(bytes)
    }

    /// As `Control::change`. Nobody else changes it meanwhile.
    fn record(&self, on: bool) {
        let clock = hound_common::ring::CLOCK_TSC;
        self.0.write_all_at(&clock.to_le_bytes(), offset_of!(Control, clock) as u64).expect("the ring is writable");
        let state = (self.word(offset_of!(Control, state)) & !STATE_RECORDING) + STATE_CHANGE;
        let state = state | if on { STATE_RECORDING } else { 0 };
        self.0.write_all_at(&state.to_le_bytes(), offset_of!(Control, state) as u64).expect("the ring is writable");
    }

    fn committed(&self) -> u64 {
        let mut table = vec![0; SEGMENTS * size_of::<Segment>()];
        self.0.read_exact_at(&mut table, SEGMENTS_OFFSET as u64).expect("the ring is whole");
        let at = offset_of!(Segment, committed);
        let committed = |segment: &[u8]| u64::from(u32::from_le_bytes(segment[at..at + 4].try_into().expect("four bytes")));
        table.chunks(size_of::<Segment>()).map(committed).sum()
    }
}

fn events_come(ring: &Ring, program: &mut Program) {
    let until = soon();
    ring.record(true);
    while ring.committed() == 0 {
        assert!(std::time::Instant::now() < until, "no event; bow_out {}", ring.word(offset_of!(Control, library)));
        program.works();
    }
    ring.record(false);
}

/// Attaches, sees events, detaches; twice; unloads. The program must not be able to tell.
fn in_and_out(program: &mut Program) {
    let library = library();
    let target = look(program.pid()).expect("it can be looked at");
    let (text, files, descriptors) = (program.text(), program.file_mappings(), program.descriptors());
    let plan = Plan::of(&target, &[]).expect("it has an allocator");
    let mut entered = enter(&target, &library, soon()).expect("hound gets in");
    assert!(entered.is_fresh());
    assert_eq!(program.descriptors(), descriptors);
    for round in 0..2 {
        let patched = entered.patch(&plan, soon()).expect("it is patched");
        assert!(patched.threads >= 1 && patched.entries >= 4, "{patched:?}");
        assert_ne!(program.text(), text);
        program.works();
        let ring = Ring::of(&entered);
        if round == 0 {
            events_come(&ring, program);
        }
        entered.unpatch(soon()).expect("it is restored");
        assert_eq!(program.text(), text);
        program.works();
    }
    drop(entered);
    let left = find(program.pid()).expect("it is readable").expect("a library is left");
    assert_eq!(left.state(), State::Dormant);
    let mut entered = enter(&target, &library, soon()).expect("hound gets in again");
    assert!(!entered.is_fresh());
    entered.patch(&plan, soon()).expect("it is patched again");
    program.works();
    drop(entered); // a hound that dies: all stays patched
    let left = find(program.pid()).expect("it is readable").expect("a library is left");
    assert_eq!(left.state(), State::Armed { drainer: std::process::id() });
    assert!(!left.is_drained().expect("it is readable"), "this process has the number, and drains nothing");
    let again = Plan::of(&target, &[]).expect("a plan looks through what a dead hound has patched");
    assert_eq!(again.covered().len(), plan.covered().len());
    let entered = enter(&target, &library, soon()).expect("hound cleans up");
    assert_eq!(program.text(), text);
    entered.unload(soon()).expect("it is taken out");
    assert_eq!((program.text(), program.file_mappings(), program.descriptors()), (text, files, descriptors));
    assert!(find(program.pid()).expect("it is readable").is_none());
    program.works();
}

fn covers(program: &Program, family: &str) -> Vec<String> {
    let plan = Plan::of(&look(program.pid()).unwrap(), &[]).unwrap();
    let found = plan.covered().iter().find(|c| c.family == family);
    found.unwrap_or_else(|| panic!("no {family} in {:?}, not covered {:?}", plan.covered(), plan.not_covered())).functions.clone()
}

#[test]
fn glibc() {
    let _alone = alone();
    let mut program = Program::start(&compile("busy.c", "gcc", &[]), &[]);
    let functions = covers(&program, "glibc");
    for name in ["malloc", "calloc", "realloc", "free", "memalign", "posix_memalign"] {
        assert!(functions.iter().any(|f| f == name), "{name} in {functions:?}");
    }
    in_and_out(&mut program);
    program.ends_well();
}

#[test]
fn glibc_linked_statically() {
    let _alone = alone();
    let mut program = Program::start(&compile("busy.c", "gcc", &["-static"]), &[]);
    covers(&program, "glibc");
    in_and_out(&mut program);
    program.ends_well();
}

#[test]
fn musl() {
    let _alone = alone();
    let mut program = Program::start(&compile("busy.c", "musl-gcc", &[]), &[]);
    covers(&program, "musl");
    in_and_out(&mut program);
    program.ends_well();
}

#[test]
fn musl_linked_statically() {
    let _alone = alone();
    let mut program = Program::start(&compile("busy.c", "musl-gcc", &["-static", "-DHANDLES_SIGNALS"]), &[]);
    covers(&program, "musl");
    in_and_out(&mut program);
    program.ends_well();
}

#[test]
fn preloaded_allocators() {
    let _alone = alone();
    let path = compile("busy.c", "gcc", &[]);
    for (library, family) in [("libjemalloc.so.2", "jemalloc"), ("libtcmalloc_minimal.so.4", "tcmalloc"), ("libmimalloc.so.2", "mimalloc")]
    {
        let mut program = Program::start(&path, &[("LD_PRELOAD", library)]);
        covers(&program, family);
        in_and_out(&mut program);
        program.ends_well();
    }
}

#[test]
fn many_cycles() {
    let _alone = alone();
    let cycles = std::env::var("HOUND_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let library = library();
    let mut program = Program::start(&compile("busy.c", "gcc", &[]), &[]);
    let target = look(program.pid()).unwrap();
    let text = program.text();
    let plan = Plan::of(&target, &[]).unwrap();
    for cycle in 0..cycles {
        let mut entered = enter(&target, &library, soon()).unwrap();
        entered.patch(&plan, soon()).unwrap();
        entered.unpatch(soon()).unwrap();
        if cycle % 8 == 7 {
            entered.unload(soon()).unwrap();
        }
    }
    assert_eq!(program.text(), text);
    program.works();
    program.ends_well();
}

#[test]
fn a_pool_is_hooked_by_name() {
    let _alone = alone();
    let mut program = Program::start(&compile("busy.c", "gcc", &[]), &[]);
    let target = look(program.pid()).unwrap();
    let hooks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<CustomHook>>();
    let plan = Plan::of(&target, &hooks(&["alloc=pool_get(size=0)", "free=pool_put(ptr=0)"])).unwrap();
    assert_eq!(plan.covered().iter().filter(|c| c.family == "pool 1").count(), 2);
    let mut entered = enter(&target, &library(), soon()).unwrap();
    entered.patch(&plan, soon()).unwrap();
    program.works();
    events_come(&Ring::of(&entered), &mut program);
    entered.unpatch(soon()).unwrap();
    program.works();
    let error = Plan::of(&target, &hooks(&["alloc=pool_gte(size=0)"])).unwrap_err().to_string();
    assert!(error.contains("pool_get") && error.contains("no such function"), "{error}");
    drop(entered);
    program.ends_well();
}

#[test]
fn a_patch_that_fails_leaves_nothing_behind() {
    let _alone = alone();
    let mut program = Program::start(&compile("busy.c", "gcc", &[]), &[]);
    let target = look(program.pid()).unwrap();
    let hooks: Vec<CustomHook> = vec!["alloc=pool_spare(size=0)".parse().unwrap()];
    let plan = Plan::of(&target, &hooks).unwrap();
    let mut entered = enter(&target, &library(), soon()).unwrap();
    let anonymous = |program: &Program| {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
        maps.lines().filter(|line| line.contains(" r-xp ")).map(str::to_owned).collect::<Vec<_>>()
    };
    // Somebody else patches a function between the plan and the patch: one that nobody calls.
    let symbols = std::process::Command::new("nm").arg(format!("/proc/{}/exe", program.pid())).output().unwrap();
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    let svma = symbols.lines().find_map(|line| line.strip_suffix(" T pool_spare")).unwrap();
    let exe = std::fs::read_link(format!("/proc/{}/exe", program.pid())).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).unwrap();
    let base = maps.lines().find(|line| line.ends_with(exe.to_str().unwrap())).unwrap().split('-').next().unwrap();
    let at = u64::from_str_radix(base, 16).unwrap() + u64::from_str_radix(svma, 16).unwrap();
    let memory = hound_inject::Memory::open(program.pid()).unwrap();
    let mut before = [0; 8];
    memory.read(at, &mut before).unwrap();
    memory.write(at, &[0x90]).unwrap_or_else(|e| panic!("{e}"));
    let (text, maps) = (program.text(), anonymous(&program));
    let error = entered.patch(&plan, soon()).unwrap_err().to_string();
    assert!(error.contains("changed meanwhile"), "{error}");
    assert_eq!((program.text(), anonymous(&program)), (text, maps));
    memory.write(at, &before[..1]).unwrap();
    entered.patch(&plan, soon()).expect("now it can be");
    entered.unpatch(soon()).unwrap();
    entered.unload(soon()).unwrap();
    program.works();
    program.ends_well();
}

#[test]
fn a_stripped_static_program_is_refused_with_a_cure() {
    let _alone = alone();
    let program = Program::start(&compile("busy.c", "gcc", &["-static", "-s"]), &[]);
    let error = Plan::of(&look(program.pid()).unwrap(), &[]).unwrap_err().to_string();
    assert!(error.contains("stripped") && error.contains("build with symbols"), "{error}");
    program.ends_well();
}

#[test]
fn plans_for_an_interpreter() {
    let mut python = std::process::Command::new("python3")
        .args(["-c", "import sqlite3, sys; print('ready', flush=True); sys.stdin.read()"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3 is needed");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(python.stdout.take().unwrap()), &mut line).unwrap();
    let plan = Plan::of(&look(python.id().cast_signed()).unwrap(), &[]).unwrap();
    drop(python.stdin.take());
    python.wait().unwrap();
    assert!(plan.covered().iter().any(|c| c.family == "glibc"), "{plan:?}");
    // Nothing of CPython's own (PyMem_Malloc and the like) is taken for an allocator.
    assert!(plan.covered().iter().all(|c| c.family.starts_with("glibc") || c.family == "unwinder"), "{:?}", plan.covered());
}
