//! Programs in a process namespace of their own, where process ids mean something else than outside.

use std::path::Path;
use std::process::Command;

use hound_tests::capture::Capture;
use hound_tests::compare::{self, Rules};
use hound_tests::compile::{Build, Program};
use hound_tests::oracle::Oracle;
use hound_tests::{binaries, process, requirement};

/// Runs this shell command as PID 1 of a namespace, with `$HOUND`, `$LIBRARY`, `$PROGRAM`, `$CAPTURE` and `$ORACLE_FILE` set, and
/// holds the capture to what 2000 short-lived threads noted.
fn short_threads_are_complete(script: &str) {
    if !requirement::root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let (file, oracle) = (dir.path().join("capture.hound"), dir.path().join("oracle"));
    let program = Program::new("threads.c", Build::Optimised);
    let environment: [(&str, &Path); 5] = [
        ("HOUND", &binaries::hound()),
        ("LIBRARY", &binaries::libhound()),
        ("PROGRAM", &program.path()),
        ("CAPTURE", &file),
        ("ORACLE_FILE", &oracle),
    ];
    let outcome = process::run(Command::new("unshare").args(["--fork", "--pid", "sh", "-c", script]).envs(environment));
    assert_eq!(outcome.shell_status(), 0, "{script}: {}", outcome.err());
    let capture = Capture { path: file };
    let check = capture.check();
    assert!(check.status.success(), "{script}: {}{}", check.out(), check.err());
    let (oracle, events) = (Oracle::read(&oracle), capture.events());
    let differences =
        compare::differences(&oracle, &events, &Rules { function_starts: program.function_starts(), cut_tail: 0, ..Rules::default() });
    assert!(differences.is_empty(), "{script}: the capture differs from the oracle:\n{}", differences.join("\n"));
    assert_eq!(oracle.by_thread().len() as u64, oracle.facts[0], "every thread noted something");
    assert_eq!(capture.report().totals.lost_events, 0, "{script}");
}

#[test]
fn short_threads_in_a_namespace_are_complete_with_hound_as_its_init() {
    short_threads_are_complete(r#"exec "$HOUND" run --quiet -o "$CAPTURE" -- "$PROGRAM""#);
}

#[test]
fn short_threads_in_a_namespace_are_complete_under_hound_run() {
    short_threads_are_complete(r#""$HOUND" run --quiet -o "$CAPTURE" -- "$PROGRAM"; exit $?"#);
}

#[test]
fn short_threads_in_a_namespace_are_complete_if_preloaded() {
    // The namespace must outlive the program: with its init, the collector would be killed.
    short_threads_are_complete(
        r#"HOUND_OUTPUT="$CAPTURE" LD_PRELOAD="$LIBRARY" "$PROGRAM" || exit
        until "$HOUND" check "$CAPTURE"; do sleep 0.01; done"#,
    );
}
