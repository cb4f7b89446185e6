//! Sampled mode by the library: what is recorded is a true part of what happens, and by the law.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::process::Command;

use hound_common::ring::{Control, STATE_CHANGE, STATE_RECORDING, STATE_SAMPLED};
use hound_tests::capture::{Capture, Event};
use hound_tests::compile::{Build, Program};
use hound_tests::oracle::Oracle;
use hound_tests::process::{self, wait_until};
use hound_tests::record::{Target, Way};
use hound_tests::replay::replay;
use hound_tests::sampled::{must_estimate, must_estimate_switched, probability};
use hound_tests::{binaries, requirement};

const BOTH_WAYS: [Way; 2] = [Way::Run, Way::Preload];

#[test]
fn at_an_interval_of_one_byte_every_block_of_forty_is_there() {
    for source in ["entry_points.c", "threads.c", "fork.c", "signals.c", "longjmp.c", "fibers.c", "before_main.c"] {
        let recording = Target::new(source, Build::Optimised).sampled(1).record(Way::Run);
        recording.must_be_unharmed().must_be_a_sample();
    }
}

#[test]
fn samples_are_true_whatever_the_program_does() {
    let programs = ["entry_points.c", "cpp_new.cpp", "threads.c", "tls_dtor.cpp", "signals.c", "fork.c", "exceptions.cpp"];
    for source in programs {
        for interval in [64, 4096, 512 << 10] {
            for way in BOTH_WAYS {
                let recording = Target::new(source, Build::Optimised).sampled(interval).record(way);
                recording.must_be_unharmed().must_be_a_sample();
            }
        }
    }
}

#[test]
fn estimates_of_eight_threads_that_resize_blocks_are_within_what_the_law_allows() {
    for interval in [300, 3000] {
        let recording = Target::new("threads.c", Build::Optimised).sampled(interval).record(Way::Run);
        let (oracle, events) = recording.must_be_a_sample();
        must_estimate(&oracle, &events, interval);
    }
}

/// What one thread frees at once comes back from the next malloc of another: each sampled block's release is told apart from those of its
/// successors at that address.
#[test]
fn estimates_of_blocks_that_change_hands_at_full_speed_are_within_what_the_law_allows() {
    let target = Target::new("handoff.c", Build::Optimised).args(&["300000", "2"]);
    let target = target.env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1");
    for interval in [100, 3000] {
        let recording = target.clone().sampled(interval).record(Way::Run);
        let (oracle, events) = recording.must_be_unharmed().must_be_a_sample();
        assert!(oracle.facts[0] > 20_000, "only {} addresses came back at once", oracle.facts[0]);
        must_estimate(&oracle, &events, interval);
    }
}

#[test]
fn samples_that_the_table_has_no_place_for_are_not_taken_and_counted() {
    let recording = Target::new("many_alive.c", Build::Optimised).sampled(1).record(Way::Run);
    recording.must_be_unharmed();
    let (blocks, events) = (recording.oracle().facts[0], recording.capture.events());
    let is_full = |e: &&Event| e.event == "lost" && e.reason.as_str().is_some_and(|why| why.contains("sampled blocks"));
    let lost: u64 = events.iter().filter(is_full).map(|e| e.count).sum();
    let is_one = |size: u64| size == 57;
    let replayed = replay(&events);
    let taken = events.iter().filter(|e| e.event == "alloc" && is_one(e.size)).count() as u64;
    assert!(lost > 100_000, "only {lost} of {blocks} found no place");
    assert_eq!(taken + lost, blocks, "taken and lost");
    assert!(replayed.illegal.is_empty(), "{}", replayed.illegal[0]);
    let alive = replayed.live.values().filter(|size| is_one(**size)).count();
    assert_eq!((replayed.totals.unknown_frees, alive), (0, 0), "each release of what was taken is recorded, and no other");
}

/// Probes of perf's, taken away at the end: they are the whole system's.
struct Probes;

impl Probes {
    const EVENTS: [&str; 2] = ["sdt_otel_memory:alloc", "sdt_otel_memory:free"];

    fn set() -> Probes {
        Self::remove();
        // perf keeps the probes of each file it has seen, and takes those of another copy of the library for the same: it has seen none here.
        let seen = tempfile::tempdir().expect("a folder");
        for event in Self::EVENTS {
            let outcome = process::run(
                Command::new("perf").arg("--buildid-dir").arg(seen.path()).args(["probe", "-x"]).arg(binaries::libhound()).arg(event),
            );
            assert!(outcome.status.success(), "perf found no probe in the library: {}{}", outcome.out(), outcome.err());
        }
        Probes
    }

    fn remove() {
        Self::EVENTS.iter().for_each(|event| _ = process::run(Command::new("perf").args(["probe", "-d", event])));
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        Self::remove();
    }
}

/// perf sees each sampled block and its release as the capture has it, by the notes in libhound.so alone.
#[test]
fn another_tracer_reads_the_probes() {
    const INTERVAL: u64 = 3000;
    if !requirement::root() || !requirement::program("perf") {
        return;
    }
    let _probes = Probes::set();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (data, capture) = (dir.path().join("perf.data"), Capture { path: dir.path().join("capture.hound") });
    let program = Program::new("threads.c", Build::Optimised).path();
    let mut perf = Command::new("perf");
    // Of the whole system, and told apart by process: perf that follows threads misses some of what new ones do on a busy machine.
    perf.args(["record", "-q", "-a", "-m", "16M", "-e", &Probes::EVENTS.join(","), "-o"]).arg(&data).arg(binaries::hound()).args([
        "run",
        "--quiet",
        "--mode",
        "sampled",
        "--interval",
        &INTERVAL.to_string(),
        "-o",
    ]);
    let outcome = process::run(perf.arg(&capture.path).arg("--").arg(program).env("ORACLE_FILE", dir.path().join("oracle")));
    assert!(outcome.status.success(), "{}", outcome.err());
    let script = process::run(Command::new("perf").args(["script", "-F", "pid,event,trace", "-i"]).arg(&data)).out();
    let number = |line: &str, name: &str| -> Option<u64> { line.split_once(name)?.1.split_whitespace().next()?.parse().ok() };
    let (mut allocs, mut frees) = (Vec::new(), Vec::new());
    let pid = Oracle::read(&dir.path().join("oracle")).pid.to_string();
    for line in script.lines().filter_map(|line| line.trim_start().strip_prefix(&pid)) {
        match (number(line, "arg1="), number(line, "arg2="), number(line, "arg3=")) {
            (Some(addr), Some(size), Some(weighted)) => {
                let expected = size as f64 / probability(size, INTERVAL);
                assert!((weighted as f64 - expected).abs() <= 1.0, "{size} bytes stand for {expected}, not for {weighted}");
                allocs.push((addr, size));
            }
            (Some(addr), ..) => frees.push(addr),
            _ => {}
        }
    }
    let events = capture.events();
    let of = |what: &'static str| events.iter().filter(move |e| e.event == what);
    let (mut recorded, mut released): (Vec<_>, Vec<_>) =
        (of("alloc").map(|e| (e.addr, e.size)).collect(), of("free").map(|e| e.addr).collect());
    assert!(recorded.len() > 1000, "only {} blocks were sampled", recorded.len());
    [&mut allocs, &mut recorded].into_iter().for_each(|list| list.sort_unstable());
    [&mut frees, &mut released].into_iter().for_each(|list| list.sort_unstable());
    assert!(
        allocs == recorded && frees == released,
        "perf saw {} and {}, hound recorded {} and {}",
        allocs.len(),
        frees.len(),
        recorded.len(),
        released.len()
    );
}

/// The promises of full mode, each by its program.
#[test]
fn sampled_programs_are_unharmed_by_what_harms_easily() {
    for interval in [64, 512 << 10] {
        for way in BOTH_WAYS {
            let target = |source: &'static str| Target::new(source, Build::Optimised).sampled(interval);
            for target in [
                target("seccomp.c"),
                target("closefds.c"),
                target("children.c").args(&["wait"]),
                target("children.c").args(&["reaper"]),
                target("maps.c"),
                target("realigned.c"),
                target("fiber_unmapped.c"),
                target("alternate_stack.c"),
                target("exec.c").args(&["vfork"]),
            ] {
                target.record(way).must_be_unharmed();
            }
        }
    }
}

/// The control page of a recording's ring, as hound has it.
struct Page(File);

impl Page {
    /// Of the hound with this process id.
    fn of(hound: i32) -> Option<Page> {
        let is_ring = |entry: &fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains("hound-launch"));
        let found = fs::read_dir(format!("/proc/{hound}/fd")).ok()?.flatten().find(is_ring)?;
        File::options().read(true).write(true).open(found.path()).ok().map(Page)
    }

    fn word(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, offset as u64).expect("the page is there");
        u64::from_le_bytes(bytes)
    }

    /// As `Control::change` does between two modes.
    fn switch(&self, interval: u64) {
        let set = |offset: usize, value: u64| self.0.write_all_at(&value.to_le_bytes(), offset as u64).expect("the page is there");
        set(offset_of!(Control, interval), interval);
        let sampled = if interval == 0 { 0 } else { STATE_SAMPLED };
        let state = self.word(offset_of!(Control, state));
        set(offset_of!(Control, state), ((state & !STATE_SAMPLED) | sampled | STATE_RECORDING) + STATE_CHANGE);
    }

    fn heartbeat(&self) -> u32 {
        self.word(offset_of!(Control, heartbeat)) as u32
    }
}

/// Ten switches while four threads hand blocks to each other: what was sampled is weighted, what was recorded in full is whole, nothing
/// twice, and the release of what was sampled is seen in both.
#[test]
fn switched_ten_times_under_load_every_part_is_what_it_says() {
    const HANDOFFS: u64 = 220_000;
    let target = Target::new("handoff.c", Build::Optimised).args(&["220000", "2", "10"]).sampled(1000);
    let started = target.start(Way::Run);
    let hound = started.running.pid.as_raw();
    let mut page = None;
    assert!(wait_until(|| {
        page = Page::of(hound).filter(|page| page.heartbeat() > 0);
        page.is_some() && started.oracle_file().exists()
    }));
    let page = page.expect("waited for");
    // The notes are in a file that is the program's memory: its facts are seen in it, and set.
    let facts = File::options().read(true).write(true).open(started.oracle_file()).expect("the program has begun to note");
    let fact = |number: usize| {
        let mut bytes = [0; 8];
        facts.read_exact_at(&mut bytes, Oracle::fact_offset(number)).map_or(0, |()| u64::from_le_bytes(bytes))
    };
    for gate in 1..=10 {
        // No maker was past the gate before this one when it was opened, behind the last switch: each sees every switch by itself.
        let far = (gate - 1) * (HANDOFFS / 11 + 1) + 4000;
        let are_far = || (0..2).all(|maker| fact(3 + maker) >= far);
        assert!(
            wait_until(|| are_far() || started.running.has_ended()),
            "a maker stands at {} and {} before gate {gate}",
            fact(3),
            fact(4)
        );
        page.switch(if gate % 2 == 1 { 0 } else { 1000 });
        facts.write_all_at(&gate.to_le_bytes(), Oracle::fact_offset(2)).expect("the notes are there");
    }
    let recording = started.finish();
    recording.must_be_unharmed();
    let (oracle, events) = (recording.oracle(), recording.capture.events());
    let mut rates = BTreeMap::<u32, Vec<u64>>::new();
    events.iter().filter(|e| e.event == "rate").for_each(|e| rates.entry(e.tid).or_default().push(e.mean));
    assert!(rates.values().any(|rates| rates.len() >= 10), "no thread took over all of the switches: {rates:?}");
    must_estimate_switched(&oracle, &events);
}
