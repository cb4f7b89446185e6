//! That remembered stacks work at all: how many frames were verified, stepped and evaluated is bounded from both sides. A library that
//! unwound every stack anew would pass every other test.

use hound_tests::compile::Build;
use hound_tests::record::{Target, Way};

/// What `same_path.c` allocates.
const TIMES: u64 = 100_000;

/// Builds whose functions have names in a report.
const NAMED: [Build; 3] = [Build::Plain, Build::Optimised, Build::FramePointers];

struct Bounds {
    verified_at_least: u64,
    stepped_below: u64,
}

fn bounded(mode: &str, build: Build, bounds: &Bounds) {
    let recording = Target::new("same_path.c", build).args(&[mode]).record(Way::RunWithoutFreeStacks);
    recording.must_be_unharmed();
    let report = recording.capture.report();
    let pairs: u64 = report.sites.iter().filter(|s| s.passes("pair")).map(|s| s.allocations).sum();
    assert_eq!((pairs, report.totals.lost_events), (TIMES, 0), "{mode}");
    let ways = recording.capture.unwinding();
    let count = |way: &str| *ways.get(way).unwrap_or_else(|| panic!("hound info counts no {way:?} frames: {ways:?}"));
    assert!(count("verified") >= bounds.verified_at_least, "{mode} {build:?}: {ways:?}");
    assert!(count("stepped") < bounds.stepped_below, "{mode} {build:?}: {ways:?}");
    // The walk for the usual case does nearly all of these; the other one comes to the same, slowly.
    assert!(count("general") < 5_000, "{mode} {build:?}: {ways:?}");
    assert!(count("evaluated") < 2_000, "{mode} {build:?}: {ways:?}");
}

#[test]
fn the_same_path_is_verified_not_unwound() {
    for build in NAMED {
        bounded("same", build, &Bounds { verified_at_least: 25 * TIMES, stepped_below: 10_000 });
    }
}

#[test]
fn alternating_leaves_unwind_only_the_leaf() {
    for build in NAMED {
        bounded("leaves", build, &Bounds { verified_at_least: 25 * TIMES, stepped_below: 3 * TIMES + 10_000 });
    }
}

#[test]
fn one_frame_near_the_root_does_not_cost_the_rest() {
    for build in NAMED {
        bounded("root", build, &Bounds { verified_at_least: 25 * TIMES, stepped_below: 3 * TIMES + 10_000 });
    }
}

#[test]
fn a_path_popped_and_pushed_anew_is_verified() {
    for build in NAMED {
        bounded("pushed", build, &Bounds { verified_at_least: 25 * TIMES, stepped_below: 10_000 });
    }
}
