//! What is left in a program that hound has been in: no memory, no event half written, nothing of its own; and into programs that have
//! little to offer.

#[expect(dead_code, reason = "other tests need more of it")]
mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::mem::offset_of;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{Program, compile, library, soon};
use hound_common::ring::{
    CLOCK_TSC, Control, SEGMENT_FREE, SEGMENTS_OFFSET, STATE_CHANGE, STATE_RECORDING, STREAM_FREE, STREAM_OWNED, STREAMS_OFFSET, Segment,
    Stream,
};
use hound_inject::{Entered, Plan, enter, look};

#[derive(Clone)]
struct Ring(Arc<File>);

impl Ring {
    fn of(entered: &Entered) -> Ring {
        let ring = Ring(Arc::new(entered.ring().as_fd().try_clone_to_owned().expect("descriptors are left").into()));
        ring.set(offset_of!(Control, clock), CLOCK_TSC);
        ring.set(offset_of!(Control, max_wait_ms), 60_000);
        ring.set(offset_of!(Control, patience_ms), 60_000); // the machine may be busy
        ring
    }

    fn half(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, offset as u64).expect("the ring is whole");
        u32::from_le_bytes(bytes)
    }

    fn set(&self, offset: usize, value: u32) {
        self.0.write_all_at(&value.to_le_bytes(), offset as u64).expect("the ring is writable");
    }

    /// As `Control::change`. Nobody else changes it meanwhile.
    fn record(&self, on: bool) {
        let offset = offset_of!(Control, state);
        let state = (self.half(offset) & !(STATE_RECORDING as u32)) + STATE_CHANGE as u32;
        self.set(offset, state | if on { STATE_RECORDING as u32 } else { 0 });
    }

    /// Streams in use.
    fn owned(&self) -> Vec<usize> {
        let high = self.half(offset_of!(Control, streams_high)) as usize;
        let heads = (0..high).map(|index| STREAMS_OFFSET + index * size_of::<Stream>());
        heads.filter(|head| self.half(head + offset_of!(Stream, state)) == STREAM_OWNED).collect()
    }

    /// Frees the streams of threads that have ended, as hound does.
    fn reap(&self, pid: i32) -> usize {
        let is_dead = |head: &usize| !PathBuf::from(format!("/proc/{pid}/task/{}", self.half(head + offset_of!(Stream, tid)))).exists();
        let dead: Vec<usize> = self.owned().into_iter().filter(is_dead).collect();
        if dead.is_empty() {
            return 0;
        }
        // Nobody drains this ring: what was recorded is not of interest.
        for index in 0..self.half(offset_of!(Control, segments_high)) as usize {
            let head = SEGMENTS_OFFSET + index * size_of::<Segment>();
            let owner = STREAMS_OFFSET + self.half(head + offset_of!(Segment, stream)) as usize * size_of::<Stream>();
            if dead.contains(&owner) {
                self.set(head + offset_of!(Segment, state), SEGMENT_FREE);
            }
        }
        self.set(offset_of!(Control, segments_in_use), 0);
        dead.iter().for_each(|head| self.set(head + offset_of!(Stream, state), STREAM_FREE));
        dead.len()
    }
}

/// Each kind is compiled once: a program that runs must not lose its file.
static COMPILED: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());

fn start(flags: &[&str], compiler: &str, what: &str) -> Program {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let file = compiled.entry(format!("{compiler} {flags:?}")).or_insert_with(|| compile("grown.c", compiler, flags)).clone();
    drop(compiled);
    Program::start(&file, &[("WHAT", what)])
}

fn into(program: &Program, library: &[u8]) -> Entered {
    let target = look(program.pid()).expect("may be traced");
    let plan = Plan::of(&target, &[]).expect("an allocator");
    let mut entered = enter(&target, library, soon()).expect("entered");
    entered.patch(&plan, soon()).expect("patched");
    entered
}

/// All mappings; the heap's and the stack's end are the program's own doing.
fn maps(program: &Program) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", program.pid())).expect("it runs");
    maps.lines().filter(|line| !line.ends_with("[heap]") && !line.ends_with("[stack]")).map(str::to_owned).collect()
}

fn virtual_kb(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("it has memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn unloading_leaves_nothing_also_of_what_the_library_has_mapped() {
    let mut program = start(&[], "cc", "deep");
    program.works();
    let (before, descriptors) = (maps(&program), program.descriptors());
    let entered = into(&program, &library());
    let fresh = maps(&program).len();
    let ring = Ring::of(&entered);
    ring.record(true);
    program.works();
    ring.record(false);
    assert!(maps(&program).len() > fresh, "the library has mapped nothing: the test has not come to its point");
    entered.unload(soon()).expect("taken out");
    assert_eq!(maps(&program), before);
    assert_eq!(program.descriptors(), descriptors);
    program.works();
    program.ends_well();
}

#[test]
fn dead_threads_with_deep_stacks_leave_no_memory() {
    let mut program = start(&[], "cc", "thread");
    program.works();
    let entered = into(&program, &library());
    let ring = Ring::of(&entered);
    ring.record(true);
    let mut first = 0;
    for round in 0..200 {
        program.works();
        let until = soon();
        while ring.reap(program.pid()) == 0 {
            assert!(Instant::now() < until, "no thread of round {round} has recorded anything and ended");
            std::thread::yield_now();
        }
        if round == 20 {
            first = virtual_kb(&program);
        }
    }
    ring.record(false);
    let grown = virtual_kb(&program) - first;
    assert!(grown < 2 * 1024, "180 threads have left {grown} KiB");
    entered.unload(soon()).expect("taken out");
    program.ends_well();
}

#[test]
fn an_event_that_is_not_finished_at_the_end_is_waited_for_and_counted() {
    let mut program = start(&[], "cc", "fill");
    let mut entered = into(&program, &library());
    let ring = Ring::of(&entered);
    ring.set(offset_of!(Control, segment_limit), 2);
    let beats = Arc::new(AtomicBool::new(true));
    let heart = std::thread::spawn({
        let (ring, beats) = (ring.clone(), Arc::clone(&beats));
        move || {
            for beat in 1.. {
                ring.set(offset_of!(Control, heartbeat), beat);
                std::thread::sleep(Duration::from_millis(1));
                if !beats.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
    ring.record(true);
    let until = soon();
    while ring.half(offset_of!(Control, waiters)) == 0 {
        assert!(Instant::now() < until, "the ring never became full");
        std::thread::yield_now(); // its thread makes no progress any more when it is
    }
    ring.record(false);
    entered.unpatch(soon()).expect("restored");
    let unfinished = entered.wait_until_written(Instant::now() + Duration::from_millis(200));
    assert_eq!(unfinished, Ok(1), "the thread waits for room, in the middle of its event");
    ring.set(offset_of!(Control, max_wait_ms), 0);
    while entered.wait_until_written(soon()).expect("it runs") > 0 {
        assert!(Instant::now() < until, "the event never ended");
    }
    beats.store(false, Ordering::Relaxed);
    heart.join().expect("it ends");
    entered.unload(soon()).expect("taken out");
    program.works();
    program.ends_well();
}

#[test]
fn another_build_of_the_library_is_not_reused() {
    let mut program = start(&[], "cc", "deep");
    let library = library();
    into(&program, &library).unpatch(soon()).expect("restored");
    let mut same = into(&program, &library);
    assert!(!same.is_fresh(), "the same build is used again");
    same.unpatch(soon()).expect("restored");
    let other = [&library[..], b"another build"].concat();
    let mut fresh = into(&program, &other);
    assert!(fresh.is_fresh(), "another build takes its place");
    fresh.unpatch(soon()).expect("restored");
    assert!(!into(&program, &other).is_fresh());
    program.works();
    program.ends_well();
}

#[test]
fn a_static_program_without_code_for_signal_returns_can_be_entered() {
    let mut program = start(&["-static", "-DALONE"], "musl-gcc", "deep");
    for restorer in [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05][..], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]] {
        let has = program.text().iter().any(|(_, code)| code.windows(restorer.len()).any(|window| window == restorer));
        assert!(!has, "the program has a restorer: the test does not come to its point");
    }
    program.works();
    let before = maps(&program);
    let entered = into(&program, &library());
    let ring = Ring::of(&entered);
    ring.record(true);
    program.works();
    ring.record(false);
    assert!(!ring.owned().is_empty(), "nothing was recorded");
    entered.unload(soon()).expect("taken out");
    assert_eq!(maps(&program), before);
    program.works();
    program.ends_well();
}
