//! The torture, in short: `cargo xtask torture` is the long version.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use hound_tests::attach;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, EndOf, Outcome};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};

fn program() -> Program {
    Program::new("attach_torture.cpp", Build::Optimised)
}

fn library() -> PathBuf {
    Program::new("attach_library.c", Build::Optimised).shared("torture").path()
}

fn command(threads: u32, seconds: u32) -> Command {
    let mut command = Command::new(program().path());
    command.args(["--threads", &threads.to_string(), "--seconds", &seconds.to_string(), "--library"]).arg(library());
    command.args(["--late-ms", &LATE_MS.to_string()]);
    command
}

/// How far behind its time a call may end, without the time its thread waits for a processor or is stopped: one of 5 s that were started anew
/// would be later. For a socket's own timeout, which begins anew where hound is killed (docs/safety.md), the program allows its time for each stop more.
const LATE_MS: f64 = 2500.0;

/// Nothing failed, and all was done that the program is for. `stall_ms` is the longest stall that hound told: a call that was to end
/// meanwhile ends after it, and one of 5 s may have seen three visits of two stalls each.
fn unharmed(outcome: &Outcome, stall_ms: f64) {
    assert_eq!(outcome.shell_status(), 0, "{}\n{}", outcome.err(), outcome.out());
    let told = outcome.out().lines().last().unwrap_or("").to_owned();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"));
    assert_eq!(told["failures"], 0, "{}", outcome.err());
    assert_eq!(told["eintr_foreign"], 0, "{}", outcome.err());
    let latest = told["latest_ms"].as_f64().unwrap_or(f64::MAX);
    println!("latest call: {latest} ms behind its time ({}), longest stall {stall_ms} ms", told["latest_in"]);
    assert!(latest <= LATE_MS + 6.0 * stall_ms, "late by {latest} ms, stalls of {stall_ms} ms: {}", outcome.err());
    let done = ["allocations", "thrown", "jumped", "forks", "vforks", "spawns", "dlopens", "threads", "signals_handled", "blocked_woken"];
    for what in done {
        assert!(told[what].as_u64().is_some_and(|n| n > 0), "no {what}: {told}");
    }
}

#[test]
fn the_program_passes_its_own_checks_without_a_visit() {
    unharmed(&process::run(&mut command(32, 5)), 0.0);
}

#[test]
fn the_program_notices_foreign_bytes_in_its_memory() {
    let running = process::start(command(4, 30).args(["--only", "region"]));
    running.wait_for_output("ready\n");
    let symbols = Command::new("nm").arg("-C").arg(program().path()).output().expect("nm is installed with the compiler");
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    let region = symbols.lines().find(|l| l.ends_with("torture::region")).expect("the program has its region");
    let offset = u64::from_str_radix(region.split(' ').next().unwrap_or(""), 16).expect("nm prints addresses");
    let base = &attach::maps(running.pid.as_raw())[0];
    let base = u64::from_str_radix(base.split('-').next().unwrap_or(""), 16).expect("a map's line begins with an address");
    let memory = std::fs::File::options().write(true).open(format!("/proc/{}/mem", running.pid)).expect("the test's own child");
    // Zero until the first round has filled it: written again until it is noticed.
    let noticed = process::wait_until(|| {
        std::os::unix::fs::FileExt::write_at(&memory, b"foreign!", base + offset + 800_000).is_ok_and(|n| n == 8)
            && running.said().contains("own data has changed")
    });
    assert!(noticed, "{}", running.said());
    kill(running.pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(running.finish().shell_status(), 1);
}

#[test]
fn attached_and_detached_again_and_again_the_program_is_unharmed() {
    if !requirement::root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    // Far longer than the visits take on a slow machine: it is told to end.
    let running = process::start(&mut command(32, 1000));
    let _end = EndOf(running.pid);
    running.wait_for_output("ready\n");
    let pid = running.pid.as_raw();
    let mut stall_ms = 0.0_f64;
    for cycle in 0..6 {
        let file = dir.path().join("capture.hound");
        let (session, _) = attach::attach_patiently(pid, &file);
        let said = if cycle == 3 {
            let said = session.running.said();
            kill(session.running.pid, Signal::SIGKILL).expect("hound runs");
            session.running.finish();
            said
        } else {
            let (capture, said) = session.detach_and_hear(if cycle % 2 == 1 { &["--unload"] } else { &[] });
            let check = capture.check();
            assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
            said
        };
        stall_ms = attach::stalls(&said).fold(stall_ms, f64::max);
        let _ = std::fs::remove_file(&file); // large, and no longer needed
    }
    assert!(!running.has_ended(), "the program ended before the last visit");
    kill(running.pid, Signal::SIGTERM).expect("it runs");
    unharmed(&running.finish_within(Duration::from_secs(900)), stall_ms);
}
