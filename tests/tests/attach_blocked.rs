//! A process that blocks in a system call is attached to and detached from: the call returns what it would have, when it would have.

use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hound_tests::attach;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Running};
use hound_tests::requirement;

/// How long each call blocks: so long that a busy machine has visited all that block at the same time.
const TIME: Duration = Duration::from_secs(35);
/// How long it has blocked before anybody visits: were it started anew then, it would end so much later.
const BEFORE: Duration = Duration::from_secs(2);
/// A visit begins no later than so long before a call ends.
const REST: Duration = Duration::from_secs(5);
/// Visits at the same time.
const VISITORS: usize = 3;

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
    let call = format!("/proc/{}/syscall", running.pid);
    let inside = process::wait_until(|| std::fs::read_to_string(&call).is_ok_and(|now| now.split(' ').next() == Some(&number)));
    assert!(inside, "{kind} is not in its call");
    (running, started)
}

/// One call in its middle: attached to and detached from, `visits` times.
fn visited(kind: &str, mode: &str, visitor: &Mutex<()>, visits: u32) -> Result<(), String> {
    let (running, started) = blocked(kind, mode, TIME);
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    // Not in place of a condition: the visit must come late in the call's time.
    std::thread::sleep(BEFORE.saturating_sub(started.elapsed()));
    let mut visited_at = None;
    for visit in 0..visits {
        // One that has panicked has let go of it all the same.
        let _turn = visitor.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if started.elapsed() > TIME - REST {
            break; // a slow machine: the rest would come too late
        }
        visited_at = Some(started.elapsed());
        attach::attach(running.pid.as_raw(), &dir.path().join(format!("{visit}.hound")), &[]).detach(&[]);
    }
    let visited_at = visited_at.ok_or_else(|| format!("{kind} {mode}: no visit came in time"))?;
    let outcome = running.finish();
    let told = outcome.out().lines().last().unwrap_or("").to_owned();
    if outcome.shell_status() != 0 || !told.starts_with('{') {
        return Err(format!("{kind} {mode}: {told} {}", outcome.err()));
    }
    let told: serde_json::Value = serde_json::from_str(&told).map_err(|e| format!("{kind} {mode}: {e}"))?;
    let ms = |what: &str| told[what].as_f64().unwrap_or(f64::MAX);
    let took = ms("elapsed_ms") - ms("starved_ms");
    // Started anew at the last visit it would end at `visited_at + TIME`; halfway there is far from both. The moment at which a peer or a
    // child acts is theirs.
    let latest = (TIME + visited_at / 2).as_secs_f64() * 1e3;
    let late = told["by_timer"] == true && took > latest;
    if late { Err(format!("{kind} {mode}: took {took} ms instead of {}", TIME.as_millis())) } else { Ok(()) }
}

/// All kinds at the same time, visited a few at a time.
fn all(mode: &str) {
    if !requirement::root() {
        return;
    }
    let kinds = kinds(mode);
    assert!(kinds.len() > 20, "{kinds:?}");
    let wrong = Mutex::new(Vec::new());
    let visitors = [const { Mutex::new(()) }; VISITORS];
    std::thread::scope(|scope| {
        for (n, kind) in kinds.iter().enumerate() {
            let (visitor, wrong) = (&visitors[n % VISITORS], &wrong);
            scope.spawn(move || {
                if let Err(why) = visited(kind, mode, visitor, 2) {
                    wrong.lock().expect("no panic while it is held").push(why);
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no panic while it is held");
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
