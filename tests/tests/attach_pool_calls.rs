//! A hooked pool's function and its callers see every register and every argument as without a hook.

use std::process::Command;

use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::compile::{Build, Program};
use hound_tests::requirement;

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
