//! A process that blocks in a system call is attached to and detached from: the call returns what it would have, when it would have.
//!
//! `HOUND_BLOCKED_SECONDS=35 cargo xtask test -- --test attach_blocked` is the long version.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hound_tests::attach;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Running};
use hound_tests::requirement;

/// How long each call blocks, in seconds; where a visit did not fall inside, for the machine is slow, the call is made again and blocks
/// [`LONGER`] times as long.
const SECONDS: u64 = 6;
const LONGER: u32 = 3;
const ATTEMPTS: u32 = 3;
/// How long it has blocked before anybody visits, as a part of its time: were it started anew then, it would end so much later.
const BEFORE: u32 = 3;
/// Visits to each call.
const VISITS: u32 = 2;
/// Calls of one mode at the same time.
const TOGETHER: usize = 9;
/// As /proc/PID/syscall shows it.
const RESTART_SYSCALL: &str = "219";

fn program() -> Program {
    Program::new("attach_blocked.c", Build::Optimised)
}

/// The kinds that have this mode.
fn kinds(mode: &str) -> Vec<String> {
    let list = process::run(Command::new(program().path()).arg("--list")).out();
    let of = |line: &str| line.split(' ').any(|word| word == mode).then(|| line.split(' ').next().map(String::from))?;
    list.lines().filter_map(of).collect()
}

/// Starts one and waits until the kernel says that it is in its call.
fn blocked(kind: &str, mode: &str, time: Duration) -> (Running, Instant) {
    let started = Instant::now();
    let running = process::start(Command::new(program().path()).args([kind, mode, &time.as_millis().to_string()]));
    running.wait_for_output("\n");
    let printed = running.printed();
    let number = printed.strip_prefix("ready ").and_then(|rest| rest.split('\n').next()).expect("it names its call").to_owned();
    let inside = process::wait_until(|| current_call(running.pid.as_raw()).as_ref() == Some(&number));
    assert!(inside, "{kind} is not in its call");
    (running, started)
}

/// Whether it is in this system call, or in the one by which the kernel goes on with it after a stop.
fn is_in(pid: i32, call: &str) -> bool {
    current_call(pid).is_some_and(|now| now == call || now == RESTART_SYSCALL)
}

/// The number of the system call it is in.
fn current_call(pid: i32) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?.split_whitespace().next().map(String::from)
}

/// Visited in its call, and right; or too late for its call, and right.
enum Visited {
    Inside,
    TooLate,
}

/// One call in its middle: attached to and detached from, and after that still in its call.
fn visited(kind: &str, mode: &str, time: Duration) -> Result<Visited, String> {
    let (running, started) = blocked(kind, mode, time);
    let pid = running.pid.as_raw();
    let number = current_call(pid).ok_or_else(|| format!("{kind} {mode}: has ended at once"))?;
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    // Not in place of a condition: the visit must come late in the call's time.
    std::thread::sleep((time / BEFORE).saturating_sub(started.elapsed()));
    let (mut first_at, mut left_at, mut inside) = (None, Duration::ZERO, true);
    for visit in 0..VISITS {
        let now = started.elapsed();
        if now > time * 2 / 3 && visit > 0 || !is_in(pid, &number) {
            break; // a slow machine: another would come too late
        }
        attach::attach(pid, &dir.path().join(format!("{visit}.hound")), &[]).detach(&[]);
        first_at.get_or_insert(now);
        left_at = started.elapsed();
        inside = is_in(pid, &number);
    }
    let outcome = running.finish_within(time * (VISITS + 1) + process::DEADLINE);
    let told = outcome.out().lines().last().unwrap_or("").to_owned();
    if outcome.shell_status() != 0 || !told.starts_with('{') {
        return Err(format!("{kind} {mode}: {told} {}", outcome.err())); // also one that is early
    }
    let Some(first_at) = first_at.filter(|_| inside) else { return Ok(Visited::TooLate) };
    let told: serde_json::Value = serde_json::from_str(&told).map_err(|e| format!("{kind} {mode}: {e}"))?;
    let ms = |what: &str| told[what].as_f64().unwrap_or(f64::MAX);
    let took = ms("elapsed_ms") - ms("starved_ms");
    // Started anew it would end at `time` and the moment of a visit; halfway there is far from both. The moment at which a peer or a child
    // acts is theirs.
    let latest = time + first_at / 2;
    match told["by_timer"] == true && took > latest.as_secs_f64() * 1e3 {
        true => Err(format!("{kind} {mode}: took {took} ms of {}, visited at {first_at:?}, left at {left_at:?}", time.as_millis())),
        false => Ok(Visited::Inside),
    }
}

/// Until a visit falls inside.
fn visited_inside(kind: &str, mode: &str) -> Result<(), String> {
    let seconds = std::env::var("HOUND_BLOCKED_SECONDS").map_or(SECONDS, |n| n.parse().expect("HOUND_BLOCKED_SECONDS is a number"));
    for attempt in 0..ATTEMPTS {
        let time = Duration::from_secs(seconds) * LONGER.pow(attempt);
        match visited(kind, mode, time)? {
            Visited::Inside => return Ok(()),
            Visited::TooLate => println!("{kind} {mode}: no visit fell inside {time:?}"),
        }
    }
    Err(format!("{kind} {mode}: no visit fell inside its call"))
}

/// All kinds, some at the same time.
fn all(mode: &str) {
    if !requirement::root() {
        return;
    }
    let kinds = kinds(mode);
    assert!(kinds.len() > 20, "{kinds:?}");
    let (wrong, next) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| {
                while let Some(kind) = kinds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(why) = visited_inside(kind, mode) {
                        wrong.lock().unwrap_or_else(PoisonError::into_inner).push(why);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_call_with_a_timeout_ends_at_its_time_and_as_it_must() {
    all("timeout");
}

#[test]
fn a_call_that_a_peer_ends_returns_what_the_peer_sent() {
    all("woken");
}

/// The process that hound has left behind to end this one's calls.
fn keeper(pid: i32) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let line = |process: i32| std::fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let is_it = |process: &i32| line(*process).starts_with(&format!("hound\0on-time\0{pid}:"));
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_it)
}

#[test]
fn what_hound_leaves_behind_to_end_a_call_goes_with_the_call() {
    if !requirement::root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    for mode in ["ends", "is killed"] {
        let (running, _) = blocked("recv", "timeout", Duration::from_secs(12));
        let pid = running.pid.as_raw();
        attach::attach(pid, &dir.path().join(format!("{mode}.hound")), &[]).detach(&[]);
        let keeper = keeper(pid).expect("hound has left nobody to end the call");
        // Its own three, and what it reads at this moment.
        let is_own = |file: &std::path::Path| file.starts_with("/dev/null") || file.starts_with("/proc");
        let open = || {
            std::fs::read_dir(format!("/proc/{keeper}/fd")).expect("it lives").filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        };
        assert!(process::wait_until(|| open().all(|file| is_own(&file))), "it holds {:?}", open().collect::<Vec<_>>());
        if mode == "is killed" {
            nix::sys::signal::kill(running.pid, nix::sys::signal::Signal::SIGKILL).expect("it lives");
            assert!(process::wait_until(|| running.has_ended()));
        } else {
            let outcome = running.finish();
            assert_eq!(outcome.shell_status(), 0, "{} {}", outcome.out(), outcome.err());
        }
        let gone = || std::fs::read_to_string(format!("/proc/{keeper}/cmdline")).unwrap_or_default().is_empty();
        assert!(process::wait_until(gone), "{mode}: it lives on");
    }
}

#[test]
fn every_call_is_right_without_a_visit() {
    for mode in ["timeout", "woken"] {
        for kind in kinds(mode) {
            let outcome = process::run(Command::new(program().path()).args([&kind, mode, "60"]));
            assert_eq!(outcome.shell_status(), 0, "{kind} {mode}: {} {}", outcome.out(), outcome.err());
        }
    }
}

#[test]
fn the_program_notices_a_careless_stop() {
    if !requirement::root() {
        return;
    }
    for kind in ["epoll_wait", "sigtimedwait", "recv", "semtimedop"] {
        let (running, _) = blocked(kind, "timeout", Duration::from_secs(30));
        let careless = Program::new("attach_careless.c", Build::Optimised).path();
        let stop = process::run(Command::new(careless).arg(running.pid.to_string()));
        assert_eq!(stop.shell_status(), 0, "it was not stopped");
        let outcome = running.finish();
        assert!(outcome.out().contains("\"errno\":4"), "{kind}: {}", outcome.out());
        assert_eq!(outcome.shell_status(), 1, "{kind}: {}", outcome.out());
    }
}
