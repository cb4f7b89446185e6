//! Every stack, frame by frame: what remembered stacks must survive, in four builds each.

use std::time::Instant;

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
fn an_alternate_stack_inside_the_frame_of_main_costs_no_event() {
    for build in Build::ALL {
        let recording = Target::new("alternate_stack.c", build).record(Way::Run);
        let (oracle, events) = recording.must_be_unharmed().must_be_exact();
        for what in ["map", "unmap"] {
            let made = events.iter().filter(|e| e.event == what && e.length == 12288).count() as u64;
            assert_eq!(made, oracle.facts[0], "{what}s of the handler");
        }
    }
}

/// Half a million blocks in a second or so; with a stack thrown away at each signal it would be minutes.
#[test]
fn an_alternate_stack_inside_the_frame_of_main_costs_no_time() {
    let started = Instant::now();
    let recording = Target::new("alternate_stack.c", Build::Optimised).args(&["5000", "count"]).record(Way::Run);
    let took = started.elapsed();
    recording.must_be_unharmed();
    let (report, pairs) = (recording.capture.report(), recording.oracle().facts[1]);
    let made: u64 = report.sites.iter().filter(|s| s.passes("bulk")).map(|s| s.allocations).sum();
    assert_eq!((made, pairs, report.totals.lost_events, report.totals.unknown_frees), (500_000, 500_000, 0, 0));
    assert!(took.as_secs() < 15, "took {took:?}");
}

#[test]
fn a_fiber_below_a_hole_that_another_thread_made_is_unharmed() {
    for build in Build::ALL {
        for way in [Way::Run, Way::RunWithoutFreeStacks] {
            let recording = Target::new("fiber_unmapped.c", build).record(way);
            recording.must_be_unharmed().must_be_exact();
        }
    }
}

#[test]
fn stacks_about_the_longest_are_whole_or_cut_and_never_have_a_hole() {
    exact_in_all_builds("deep_changed.c");
}

#[test]
fn realigned_leaf_frames_that_move_are_exact() {
    exact_in_all_builds("realigned.c");
}

#[test]
fn a_frame_pointer_frame_popped_and_pushed_elsewhere_is_exact() {
    exact_in_all_builds("pushed_again.c");
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
