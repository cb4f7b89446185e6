//! A hooked pool's function and its callers see every register and every argument as without a hook; one that may throw is not hooked.

use std::process::Command;

use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::compile::{Build, Program};
use hound_tests::{process, requirement};

const HOOKS: [&str; 8] =
    ["--hook", "alloc=bump(size=0)", "--hook", "alloc=wide_alloc(size=2)", "--hook", "alloc=echo(size=0)", "--hook", "free=unbump(ptr=0)"];

#[test]
fn callers_that_know_a_function_better_than_the_convention_are_unharmed() {
    if !requirement::root() {
        return;
    }
    let mut subject = Subject::start(&mut Command::new(Program::new("attach_pool_registers.c", Build::Optimised).path()));
    let before = Footprint::of(subject.pid());
    // More than once: between the patches and the recording the stubs take another way, and a thread is calling all the time.
    for visit in 0..5 {
        let session = attach::attach(subject.pid(), &subject.file(&format!("{visit}.hound")), &HOOKS);
        assert!(Footprint::of(subject.pid()).is_patched_beside(&before));
        subject.order("go");
        let capture = session.detach(&[]);
        let allocated = |size: u64| capture.events().iter().filter(|event| event.event == "alloc" && event.size == size).count();
        assert_eq!((allocated(24), allocated(40)), (1000, 1000));
        assert!(allocated(4096) > 0, "the thread was not recorded");
        Footprint::of(subject.pid()).must_be_as(&before, "after the visit");
    }
    subject.end();
}

#[test]
fn a_pool_that_may_throw_is_hooked_only_on_the_users_word() {
    if !requirement::root() {
        return;
    }
    let mut subject = Subject::start(&mut Command::new(Program::new("attach_pool_throws.cpp", Build::Optimised).path()));
    let file = subject.file("capture.hound");
    let refused = |hook: &str| process::run(&mut attach::attach_command(subject.pid(), &file, &["--hook", hook]));
    let outcome = refused("alloc=throwing_get(size=0)");
    let err = outcome.err();
    assert_eq!(outcome.status.code(), Some(2), "{err}");
    assert!(err.contains("throwing_get") && err.contains("exception") && err.contains("nothrow"), "{err}");
    assert!(!file.exists());
    // A release is jumped to: whatever it throws passes by the hook.
    let session = attach::attach(subject.pid(), &file, &["--hook", "free=throwing_put(ptr=0)"]);
    subject.order("go");
    let capture = session.detach(&["--unload"]);
    assert!(capture.events().iter().any(|event| event.event == "free" && event.kind.as_deref() == Some("pool free")));
    let session = attach::attach(subject.pid(), &file, &["--hook", "alloc=throwing_get(size=0,nothrow)"]);
    session.detach(&[]);
    subject.order("go");
    subject.end();
}
