//! Every stack, frame by frame: what remembered stacks must survive, in four builds each.

use hound_tests::compile::Build;
use hound_tests::record::{Target, Way, exact_in_all_builds};

#[test]
fn random_call_paths_with_frames_of_all_shapes_are_exact() {
    exact_in_all_builds("shapes.c");
}

#[test]
fn frames_that_grow_between_two_allocations_are_exact() {
    exact_in_all_builds("alloca.c");
}

#[test]
fn stacks_after_twenty_thousand_exceptions_are_exact() {
    exact_in_all_builds("exceptions.cpp");
}

#[test]
fn stacks_after_twenty_thousand_longjmps_are_exact() {
    exact_in_all_builds("longjmp.c");
}

#[test]
fn fibers_keep_their_own_stacks_and_dead_ones_are_never_read() {
    exact_in_all_builds("fibers.c");
}

#[test]
fn handlers_that_allocate_are_recorded_across_their_signal_frames() {
    for build in [Build::Plain, Build::Optimised] {
        let recording = Target::new("signals.c", build).record(Way::Run);
        let (oracle, _) = recording.must_be_unharmed().must_be_exact();
        assert!(oracle.facts[0] >= 2000 && oracle.facts[1] == 3000, "handlers ran: {:?}", &oracle.facts[..2]);
    }
}

#[test]
fn ten_thousand_frames_are_recorded_to_the_root() {
    for build in Build::ALL {
        let recording = Target::new("deep.c", build).record(Way::Run);
        let (_, events) = recording.must_be_unharmed().must_be_exact();
        let deepest = events.iter().filter_map(|e| e.stack.as_ref()).map(Vec::len).max();
        assert!(deepest > Some(10_000), "deepest: {deepest:?}");
    }
}
