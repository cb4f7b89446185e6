//! Sampled mode by the library in a running program: true samples of what every kind of program allocates, and nothing of the visit is left.

use std::path::PathBuf;
use std::process::Command;

use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::compare::Rules;
use hound_tests::compile::{Build, Program};
use hound_tests::{requirement, sampled};

fn target(flags: &[&str]) -> Program {
    Program::new("attach_target.c", Build::Optimised).with(flags)
}

fn subject(program: &Program) -> Subject {
    let mut subject = Subject::start(&mut Command::new(program.path()));
    subject.rules = Rules { function_starts: program.function_starts(), ..subject.rules };
    subject
}

/// Visits at several intervals, one after the other. At the last, one byte, whatever is large enough to be sampled for certain is there.
fn visited(mut subject: Subject) {
    let pid = subject.pid();
    subject.order("quiet");
    let before = Footprint::of(pid);
    let mut phase = 0;
    for interval in [300, 5000, 512 << 10, 1] {
        let file = subject.file(&format!("{interval}.hound"));
        let session = attach::attach_sampled(pid, &file, interval);
        assert!(Footprint::of(pid).is_patched_beside(&before), "nothing is patched: this is not the library");
        let orders: &[&str] = if phase == 0 { &["noted", "threads", "old"] } else { &["threads", "noted"] };
        let first = phase;
        orders.iter().for_each(|order| subject.order(order));
        phase += orders.len();
        let capture = session.detach(&[]);
        Footprint::of(pid).must_be_as(&before, "after detaching");
        subject.order("quiet"); // must be in no capture
        let mut oracle = subject.oracle();
        // Phases that follow each other are one stretch of notes.
        oracle.facts[3 + 2 * first] = oracle.facts[3 + 2 * (phase - 1)];
        let (oracle, events) = (oracle.phase(first), capture.events());
        let differences = sampled::differences(&capture, &oracle, &events, interval, &subject.comparing());
        assert!(differences.is_empty(), "at {interval}: {}", differences.join("\n"));
        if interval <= 5000 && interval > 1 {
            sampled::must_estimate(&oracle, &events, interval);
        }
    }
    subject.end();
}

#[test]
fn a_dynamic_glibc_program_is_sampled() {
    if requirement::root() {
        visited(subject(&target(&[])));
    }
}

#[test]
fn a_static_glibc_program_is_sampled() {
    if requirement::root() {
        visited(subject(&target(&["-static", "-DSTATIC"])));
    }
}

#[test]
fn a_musl_program_is_sampled() {
    if requirement::root() && requirement::program("musl-gcc") {
        visited(subject(&target(&[]).by("musl-gcc")));
        visited(subject(&target(&["-static", "-DSTATIC"]).by("musl-gcc")));
    }
}

#[test]
fn jemalloc_and_tcmalloc_and_mimalloc_are_sampled() {
    for library in ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2.0"] {
        let path = PathBuf::from("/usr/lib/x86_64-linux-gnu").join(library);
        if !requirement::root() || !requirement::fulfilled(library, path.exists()) {
            continue;
        }
        let program = target(&["-DNO_REALLOCARRAY", "-DSECTIONED"]);
        let mut subject = Subject::start(Command::new(program.path()).env("LD_PRELOAD", &path));
        assert!(attach::maps(subject.pid()).iter().any(|line| line.contains(library)), "{library} is not loaded");
        subject.rules.usable_unknown = true;
        visited(subject);
    }
}
