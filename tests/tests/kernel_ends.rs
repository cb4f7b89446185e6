//! Observed from the kernel, a program and a hound may end in any way: the capture is whole, and no breakpoint is left in the program.

use std::process::Command;

use hound_tests::attach::{self, Footprint, Session, Subject, changed_bytes};
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, wait_until};
use hound_tests::record::{Target, Way};
use hound_tests::requirement;
use hound_tests::scene::Scene;
use nix::sys::signal::{Signal, kill};

fn subject() -> Subject {
    let program = Program::new("attach_target.c", Build::Optimised);
    let mut subject = Subject::start(&mut Command::new(program.path()));
    subject.rules.function_starts = program.function_starts();
    subject.observed_from_the_kernel()
}

fn attach(subject: &Subject, name: &str) -> Session {
    let session = attach::attach_kernel(subject.pid(), &subject.file(name), &["--stack", "8Ki"]);
    assert!(changed_bytes(subject.pid()) > 0, "no breakpoint is in the text");
    session
}

fn no_breakpoint(pid: i32, when: &str) {
    // The kernel takes probes of an ended hound out soon after its end.
    assert!(wait_until(|| changed_bytes(pid) == 0), "{when}: {} bytes of the text differ from its files", changed_bytes(pid));
}

#[test]
fn every_end_of_a_program_leaves_a_capture_of_all_it_did() {
    if !requirement::uprobes() {
        return;
    }
    for (how, status) in [("exit", 20), ("_exit", 21), ("quick_exit", 22), ("syscall", 24), ("abort", 134), ("kill", 137), ("segv", 139)] {
        let recording = Target::new("die.c", Build::Optimised).args(&[how]).record(Way::Kernel);
        assert_eq!(recording.outcome.shell_status(), status, "{how}");
        recording.must_be_exact_but(1);
        assert!(recording.said.contains("recording is over"), "{how}: {}", recording.said);
    }
}

#[test]
fn a_program_that_replaces_itself_is_recorded_up_to_then() {
    if !requirement::uprobes() {
        return;
    }
    // What takes its place sleeps for a while, or has ended before hound looks.
    for order in ["x", "t"] {
        let mut scene = Scene::start();
        let session = attach::attach_kernel(scene.pid(), &scene.file(), &[]);
        assert!(changed_bytes(scene.pid()) > 0);
        scene.order(order);
        let (_, outcome) = session.finish();
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        assert_eq!(scene.target.take().expect("it was started").finish().shell_status(), 0, "the program that took its place");
        scene.must_end("exec");
        assert!(scene.report()["sites"].to_string().contains("churn_here"), "no names");
    }
}

#[test]
fn forks_are_unharmed_and_not_recorded() {
    if !requirement::uprobes() {
        return;
    }
    let recording = Target::new("fork.c", Build::Optimised).record(Way::Kernel);
    recording.must_be_unharmed().must_be_exact();
    let mut subject = subject();
    let session = attach(&subject, "capture.hound");
    subject.order("noted");
    // They check themselves, allocate by the thousand, and outlive the probes.
    subject.order("child lasting");
    subject.order("children");
    subject.order("threads");
    let capture = session.detach(&[]);
    no_breakpoint(subject.pid(), "after detaching");
    subject.order("child later");
    subject.order("children end");
    subject.must_be_exact_in(&capture, 0..2);
    subject.end();
}

#[test]
fn a_detached_interrupted_or_killed_hound_leaves_no_breakpoint_and_the_next_one_works() {
    if !requirement::uprobes() {
        return;
    }
    let mut subject = subject();
    let pid = subject.pid();
    subject.order("quiet");
    let before = Footprint::of(pid);
    assert_eq!(changed_bytes(pid), 0, "before any hound");
    let mut phase = 0;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let file = format!("{signal}.hound");
        let session = attach(&subject, &file);
        subject.order("noted");
        kill(session.running.pid, signal).expect("hound runs");
        let (capture, outcome) = session.finish();
        no_breakpoint(pid, signal.as_str());
        Footprint::of(pid).must_be_as(&before, signal.as_str());
        if signal == Signal::SIGKILL {
            assert_eq!(outcome.shell_status(), 137);
        } else {
            assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
            subject.must_be_exact(&capture, phase);
        }
        phase += 1;
        subject.order("quiet");
    }
    let session = attach(&subject, "last.hound");
    subject.order("noted");
    let capture = session.detach(&[]);
    subject.must_be_exact(&capture, phase);
    no_breakpoint(pid, "after detaching");
    subject.end();
}

#[test]
fn a_duration_ends_the_session() {
    if !requirement::uprobes() {
        return;
    }
    let scene = Scene::start();
    let outcome = process::run(&mut attach::kernel_command(scene.pid(), &scene.file(), &["--duration", "300ms"]));
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    no_breakpoint(scene.pid(), "after the duration");
    scene.must_end("detach");
    let capture = Capture { path: scene.file() };
    assert!(capture.report().totals.allocations > 0, "nothing was recorded");
    scene.must_end_by_itself();
}
