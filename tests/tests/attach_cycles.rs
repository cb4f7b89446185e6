//! Attached to and detached from again and again, a busy program is as it was: nothing of its memory map, descriptors and threads is more.
//!
//! `HOUND_CYCLES` says how often, `HOUND_CYCLES_SECONDS` for how long at most; `cargo xtask torture --cycles 1000` is the long version and shows
//! the figures.

use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

use hound_tests::attach::{self, Footprint};
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, EndOf, Running};
use hound_tests::requirement;
use hound_tests::scene::Scene;
use nix::sys::signal::{Signal, kill};

const THREADS: u32 = 32;
/// Without the variables: what a test may take. A slow machine comes to fewer cycles, and to no less than [`FEWEST`].
const CYCLES: u32 = 30;
const SECONDS: u32 = 45;
const FEWEST: u32 = 3;
/// Seconds of the program's own counting, for its throughput.
const WINDOW: usize = 6;
/// glibc's arenas beside the first consist of heaps at multiples of this.
const ARENA_HEAP: u64 = 64 << 20;

// One piece, though long: what is measured before, on the way and after belongs together.
#[test]
fn cycle_after_cycle_leaves_no_mapping_no_descriptor_and_no_thread() {
    if !requirement::root() {
        return;
    }
    let (wanted, limit) = extent();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (threads, seconds) = (THREADS.to_string(), (600 + wanted * 60).to_string());
    // It gives way to hound: its 32 threads would let each visit wait for its turns, and a thousand of them take a day.
    let mut command = Command::new("nice");
    command.args(["-n", "10"]).arg(Program::new("attach_torture.cpp", Build::Optimised).path());
    let running = process::start(command.args(["--threads", &threads, "--seconds", &seconds, "--only", "memory"]));
    let _end = EndOf(running.pid);
    running.wait_for_output("ready\n");
    let pid = running.pid.as_raw();

    let before_rate = rate(&running);
    let before = resting(&running);
    let (mut stalled, mut events, mut unloaded, mut gave_up, mut cycles) = (Vec::new(), 0, 0, 0, 0);
    let first = Instant::now();
    let mut last = false;
    while !last {
        let cycle = cycles;
        cycles += 1;
        last = cycles == wanted || (cycles >= FEWEST && limit.is_some_and(|limit| first.elapsed() > limit));
        let file = dir.path().join("capture.hound");
        let (session, tries) = attach::attach_patiently(pid, &file);
        gave_up += tries;
        assert!(gave_up < 10 + wanted / 10, "hound gave up {gave_up} times");
        // Not in place of a condition: visits are of many lengths.
        std::thread::sleep(Duration::from_millis(u64::from(cycle * 37 % 60)));
        let unload = cycle % 10 == 9 || last;
        unloaded += u32::from(unload);
        let (capture, said) = session.detach_and_hear(if unload { &["--unload"] } else { &[] });
        assert!(!said.contains("stays in process"), "cycle {cycle}: not unloaded: {said}");
        stalled.extend(attach::stalls(&said));
        if cycle % 20 == 0 {
            let check = capture.check();
            assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
            events += capture.report().totals.allocations;
        }
        let _ = std::fs::remove_file(&file); // large, and no longer needed
        assert!(!running.has_ended(), "the program ended in cycle {cycle}: {}", running.said());
    }
    let seconds = first.elapsed().as_secs();
    let after = resting(&running);
    let after_rate = rate(&running);

    kill(running.pid, Signal::SIGTERM).expect("it runs");
    let outcome = running.finish_within(Duration::from_secs(u64::from(wanted) * 60 + 600));
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    assert!(!stalled.is_empty(), "no stall was told");
    stalled.sort_by(f64::total_cmp);
    println!(
        "cycles: {cycles} of {wanted} in {seconds} s ({unloaded} unloaded, {gave_up} attempts given up), {THREADS} threads; {} stalls, median {:.2} ms, \
         longest {:.2} ms; allocations a ms of processor time: {before_rate:.0} before, {after_rate:.0} after ({:.3}); mappings {} before, {} after; \
         descriptors {}, {}; threads {}, {}",
        stalled.len(),
        stalled[stalled.len() / 2],
        stalled[stalled.len() - 1],
        after_rate / before_rate,
        before.maps.len(),
        after.maps.len(),
        before.footprint.descriptors.len(),
        after.footprint.descriptors.len(),
        before.footprint.threads,
        after.footprint.threads,
    );
    assert!(events > 0, "nothing was recorded");
    assert!(stalled[stalled.len() - 1] > 0.0, "no stall has a length");
    after.footprint.must_be_as(&before.footprint, "after all cycles");
    let appeared = appeared(&before.maps, &after.maps);
    assert!(appeared.is_empty(), "mappings that were not there before:\n{}", appeared.join("\n"));
    let told = outcome.out().lines().last().unwrap_or("").to_owned();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"));
    assert_eq!((&told["failures"], &told["eintr_foreign"]), (&0.into(), &0.into()), "{}", outcome.err());
}

#[test]
fn a_library_left_asleep_needs_no_more_memory_the_more_often_it_is_woken() {
    if !requirement::root() {
        return;
    }
    let scene = Scene::start();
    let session = || {
        let hound = scene.attach(&[]);
        let detached = scene.ask("detach", &[]);
        assert!(detached.status.success(), "{}", detached.err());
        assert_eq!(hound.finish().shell_status(), 0);
        let others = |line: &String| !line.contains("[heap]") && !line.contains("[stack]");
        attach::maps(scene.pid()).into_iter().filter(others).collect::<Vec<_>>()
    };
    let first = session();
    for number in 2..=24 {
        let now = session();
        assert!(appeared(&first, &now).is_empty(), "after {number} sessions: {:?}", appeared(&first, &now));
    }
    let unloaded = scene.ask("detach", &["--unload"]);
    assert!(unloaded.status.success(), "{}", unloaded.err());
    scene.must_end_by_itself();
}

/// How many cycles, and for how long at most.
fn extent() -> (u32, Option<Duration>) {
    let told = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u32>().unwrap_or_else(|e| panic!("{name}: {e}")));
    let cycles = told("HOUND_CYCLES");
    let seconds = told("HOUND_CYCLES_SECONDS").or_else(|| cycles.is_none().then_some(SECONDS));
    (cycles.unwrap_or(CYCLES).max(1), seconds.map(|s| Duration::from_secs(s.into())))
}

/// A program that holds nothing, seen from outside.
struct Resting {
    maps: Vec<String>,
    footprint: Footprint,
}

fn resting(running: &Running) -> Resting {
    order(running, "resting\n");
    let pid = running.pid.as_raw();
    let resting = Resting { maps: attach::maps(pid), footprint: Footprint::of(pid) };
    order(running, "working\n");
    resting
}

fn order(running: &Running, answer: &str) {
    let said = || running.printed().matches(answer).count();
    let before = said();
    kill(running.pid, Signal::SIGHUP).expect("it runs");
    assert!(process::wait_until(|| said() > before), "not {answer}: {}", running.said());
}

/// Allocations in a millisecond of the program's processor time, from here on.
fn rate(running: &Running) -> f64 {
    let ticks = || -> Vec<(f64, f64)> {
        let printed = running.printed();
        let numbers = |line: &str| line.split(' ').map(|word| word.parse().ok()).collect::<Option<Vec<f64>>>();
        let lines = printed.lines().filter_map(|line| numbers(line.strip_prefix("tick ")?));
        lines.filter_map(|numbers| Some((*numbers.first()?, *numbers.get(1)?))).collect()
    };
    let before = ticks().len();
    assert!(process::wait_until(|| ticks().len() > before + WINDOW), "it tells nothing: {}", running.said());
    let ticks = ticks();
    let ((from_time, from), (to_time, to)) = (ticks[before], ticks[before + WINDOW]);
    (to - from) / (to_time - from_time)
}

/// Mappings that overlap none of before, but for the program's own arenas.
fn appeared<'a>(before: &[String], after: &'a [String]) -> Vec<&'a str> {
    let range = |line: &str| -> Range<u64> {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a map's line begins so");
        let number = |hex: &str| u64::from_str_radix(hex, 16).expect("addresses are hexadecimal");
        number(start)..number(end)
    };
    let old: Vec<_> = before.iter().map(|line| range(line)).collect();
    let new = after.iter().filter(|line| {
        let at = range(line);
        !old.iter().any(|old| old.start < at.end && at.start < old.end)
    });
    let heaps: Vec<u64> = after.iter().map(|line| range(line).start).filter(|start| start % ARENA_HEAP == 0).collect();
    let of_an_arena = |line: &str| line.split_whitespace().count() == 5 && heaps.contains(&(range(line).start / ARENA_HEAP * ARENA_HEAP));
    new.map(String::as_str).filter(|line| !of_an_arena(line)).collect()
}

#[test]
fn a_mapping_that_appears_is_noticed() {
    let line = |range: &str, name: &str| format!("{range} rw-p 00000000 00:00 0 {name}");
    let before = [line("1000-2000", ""), line("5000-6000", "/lib")];
    let mut after = before.to_vec();
    assert!(appeared(&before, &after).is_empty());
    after.extend([line("3000-4000", ""), line("7f0004000000-7f0004021000", ""), line("7f0004021000-7f0008000000", "")]);
    assert_eq!(appeared(&before, &after), [after[2].as_str()]);
}
