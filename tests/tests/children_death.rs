//! hound dies, or fails, at a step of what it does to a static program below a recorded one: the program begins all the same.
//!
//! A file of its own: each of many hounds at a time is in a hurry, and keeps others from their processors.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::{binaries, requirement};
use tempfile::TempDir;

/// The static program that a shell begins, under a hound that dies, or fails, at a step; and the shell's word of how it ended.
fn stepping(program: &Path, variable: &str, value: &str) -> (TempDir, Outcome) {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let mut command = Command::new(binaries::hound_death());
    command.args(["run", "--children", "--quiet", "-o"]).arg(dir.path().join("c.hound"));
    command.args(["--", "/bin/sh", "-c", "\"$1\" 0; echo $? >ended", "sh"]).arg(program).current_dir(dir.path());
    let outcome = process::run(command.env(variable, value));
    (dir, outcome)
}

/// It begins and runs to its end, and so does who has begun it: late by the time for which it would have waited, at most.
#[test]
fn hound_dies_or_fails_at_a_step_and_the_program_runs_to_its_end() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("sleeps.c", Build::Optimised).with(&["-static"]).path();
    let list = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    let (_dir, whole) = stepping(&program, "HOUND_STEPS", list.path().to_str().expect("a plain name"));
    assert_eq!(whole.shell_status(), 0, "{}", whole.err());
    let text = std::fs::read_to_string(&list).expect("hound has written it");
    assert!(text.contains("awaited.rs"), "it was not watched: {text}");
    // All of the way to where it waits and from there, and some of what is done meanwhile.
    let own: Vec<usize> = text.lines().enumerate().filter(|(_, line)| line.contains("awaited.rs")).map(|(at, _)| at + 1).collect();
    let steps = text.lines().count();
    let every = if std::env::var_os("HOUND_DEATH_ALL").is_some() { 1 } else { 5 };
    let chosen: Vec<usize> = own.into_iter().step_by(every).chain((1..=steps).step_by(6 * every)).collect();
    let next = AtomicUsize::new(0);
    let one = |step: usize| {
        for variable in ["HOUND_DIE_AFTER", "HOUND_FAIL_AT"] {
            let (dir, outcome) = stepping(&program, variable, &step.to_string());
            let ended = || std::fs::read_to_string(dir.path().join("ended")).unwrap_or_default();
            assert!(process::wait_until(|| !ended().is_empty()), "{variable}={step} of {steps}: it has not ended: {}", outcome.err());
            assert_eq!(ended(), "0\n", "{variable}={step} of {steps}: {}", outcome.err());
            if variable == "HOUND_FAIL_AT" {
                assert_eq!(outcome.shell_status(), 0, "step {step}: {}", outcome.err());
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(step) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    one(*step);
                }
            });
        }
    });
    println!("{} of {steps} steps", chosen.len());
}
