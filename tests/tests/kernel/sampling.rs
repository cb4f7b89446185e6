//! Sampling obeys its law: what is told lies within six standard deviations of what is expected, which chance misses once in 10^9 runs.

use hound_common::kernel::{COUNT_ALLOC_HITS, COUNT_RETURNS, COUNT_SAMPLES};
use hound_common::sampling::probability;
use hound_tests::requirement;
use hound_user::session::kernel::{Settings, Style};

use crate::target::{Target, all, load, open, read_all};

const CALLS: u64 = 200_000;

/// Whether so many of so many calls may have been sampled at this probability.
fn must_be_likely(sampled: u64, calls: u64, p: f64) {
    let (expected, deviation) = (calls as f64 * p, (calls as f64 * p * (1.0 - p)).sqrt());
    assert!(
        (sampled as f64 - expected).abs() <= 6.0 * deviation + 1.0,
        "{sampled} of {calls} were sampled, {expected} ± {deviation} expected"
    );
}

#[test]
fn as_many_calls_are_sampled_as_the_law_says() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load(Style::Sessions);
    let probes = open(&mut programs, &target);
    // Around the law's three branches: far below an interval, near it, above it.
    for (interval, size) in [(512 << 10, 3000), (4096, 4095), (4096, 4097), (1000, 1), (1000, 2500)] {
        programs.set(Settings { interval, stack_bytes: 0, ..Settings::default() }).expect("settings are taken");
        let before = programs.counters().expect("there are counters");
        let mut sampled = 0;
        for _ in 0..10 {
            target.subject.order(&format!("pairs {} {size}", CALLS / 10));
            let said = read_all(&mut programs);
            assert!(said.calls.iter().all(|(call, _)| call.interval == interval));
            assert_eq!(said.released().len(), said.outcomes.len(), "each block is released, and sampled blocks only are told");
            sampled += said.outcomes.len() as u64;
        }
        let after = programs.counters().expect("there are counters");
        let counted = |which| after.get(which) - before.get(which);
        assert_eq!(counted(COUNT_ALLOC_HITS), CALLS);
        assert_eq!((counted(COUNT_SAMPLES), counted(COUNT_RETURNS), after.lost()), (sampled, sampled, 0), "{after:?}");
        must_be_likely(sampled, CALLS, probability(size, interval));
    }
    probes.close().wait();
}

#[test]
fn an_interval_can_be_changed_while_calls_are_made() {
    if !requirement::root() {
        return;
    }
    let mut target = Target::start();
    let mut programs = load(Style::Sessions);
    let probes = open(&mut programs, &target);
    for round in 0..200u64 {
        programs
            .set(if round % 2 == 0 { all() } else { Settings { interval: 1 << 50, ..Settings::default() } })
            .expect("settings are taken");
        target.subject.order("pairs 3 100");
        assert_eq!(read_all(&mut programs).outcomes.len(), if round % 2 == 0 { 3 } else { 0 });
    }
    probes.close().wait();
}
