//! Every block, exactly: all entry points, many threads, blocks handed from thread to thread, Rust's collections.

use hound_tests::compile::Build;
use hound_tests::record::{Target, Way, exact_in_all_builds};
use hound_tests::replay::replay;

/// One heap for all threads and no caches in between: what one thread frees is what the next malloc of another returns.
const ONE_HEAP: &str = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1";

#[test]
fn every_c_entry_point_is_recorded_with_its_kind_and_sizes() {
    exact_in_all_builds("entry_points.c");
}

#[test]
fn every_operator_new_is_one_block() {
    exact_in_all_builds("cpp_new.cpp");
}

#[test]
fn eight_hot_threads_and_two_thousand_short_ones_are_complete() {
    let recording = Target::new("threads.c", Build::Optimised).record(Way::Run);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    let threads = oracle.by_thread().len() as u64;
    assert_eq!(threads, oracle.facts[0], "every thread noted something");
}

#[test]
fn an_address_that_changes_hands_at_full_speed_is_never_alive_twice() {
    let target = Target::new("handoff.c", Build::Optimised).args(&["100000", "2"]).env("GLIBC_TUNABLES", ONE_HEAP);
    let recording = target.record(Way::Run);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    assert!(oracle.facts[0] > 20_000, "only {} addresses came back at once", oracle.facts[0]);
}

#[test]
fn millions_of_handoffs_lose_nothing_and_invert_nothing() {
    let target = Target::new("handoff.c", Build::Optimised).args(&["1000000", "2", "count"]).env("GLIBC_TUNABLES", ONE_HEAP);
    let recording = target.record(Way::RunWithoutFreeStacks);
    recording.must_be_unharmed();
    let report = recording.capture.report();
    let pairs = recording.oracle().facts[1];
    assert_eq!((report.totals.lost_events, report.totals.unknown_frees), (0, 0));
    // Both loops allocate at one site each, and everything that was made was freed.
    let made: u64 = report.sites.iter().filter(|s| s.passes("make")).map(|s| s.allocations).sum();
    let live: u64 = report.sites.iter().filter(|s| s.passes("make")).map(|s| s.live_blocks).sum();
    assert_eq!((made, live), (pairs, 0));
}

#[test]
fn without_free_stacks_the_blocks_are_the_same() {
    for source in ["entry_points.c", "shapes.c"] {
        let recording = Target::new(source, Build::Optimised).record(Way::RunWithoutFreeStacks);
        let (_, events) = recording.must_be_unharmed().must_be_exact();
        let stacked = events.iter().filter(|e| e.event == "free" && e.stack.as_ref().is_some_and(|s| !s.is_empty())).count();
        assert_eq!(stacked, 0, "free stacks were turned off");
    }
}

#[test]
fn free_stacks_are_on_by_default() {
    let recording = Target::new("entry_points.c", Build::Optimised).record(Way::Run);
    let (_, events) = recording.must_be_exact();
    let frees: Vec<_> = events.iter().filter(|e| e.event == "free" && !e.realloc).collect();
    assert!(!frees.is_empty() && frees.iter().all(|e| e.stack.as_ref().is_some_and(|s| !s.is_empty())));
}

#[test]
fn a_rust_program_with_collections_threads_and_a_caught_panic_is_complete() {
    let recording = Target::new("collections.rs", Build::Optimised).record(Way::Run);
    let (oracle, events) = recording.must_be_unharmed().must_be_exact();
    assert_eq!(oracle.facts[0], 200, "every panic was caught");
    assert!(replay(&events).live.values().any(|size| *size == 4321), "the forgotten vector is alive at the end");
}

#[test]
fn plain_preloading_records_the_same_as_hound_run() {
    for source in ["entry_points.c", "threads.c", "exceptions.cpp"] {
        let recording = Target::new(source, Build::Optimised).record(Way::Preload);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn what_happens_while_the_program_has_stopped_the_recording_is_absent_and_the_rest_is_exact() {
    for build in [Build::Plain, Build::Optimised] {
        let recording = Target::new("stopped.c", build).record(Way::Run);
        recording.must_be_unharmed();
        let (oracle, events) = recording.must_be_exact();
        assert_eq!(oracle.facts[0], 1, "the program found memory_profiler_stop");
        assert!(events.iter().all(|e| e.event != "alloc" || e.size < 3000 || e.size > 3333), "a block of a stopped part was recorded");
        assert_eq!(recording.capture.report().totals.unknown_frees, oracle.facts[1], "blocks made while stopped, freed while recording");
    }
}

#[test]
fn markers_reach_the_capture_in_order() {
    let recording = Target::new("markers.c", Build::Optimised).record(Way::Run);
    let (oracle, events) = recording.must_be_unharmed().must_be_exact();
    assert_eq!(oracle.facts[0], 1, "the program found memory_profiler_set_marker");
    let values: Vec<u64> = events.iter().filter(|e| e.event == "marker").map(|e| e.value).collect();
    assert_eq!(values, (1..=10).map(|i| i * 1000).collect::<Vec<_>>());
}
