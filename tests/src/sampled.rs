//! Compares a sample with what the program noted: each recorded event is one that was noted, in its thread's order; the releases are those
//! of the recorded blocks, all of them; and the numbers are those that the law of sampling allows.

use std::collections::BTreeMap;

use crate::capture::{Capture, Event};
use crate::compare::{Rules, Step, captured_steps, noted_steps, same};
use crate::oracle::{Call, Oracle};
use crate::replay::replay;

/// How many standard deviations an estimate may be off. A right one is farther off once in 500 million.
const SIGMAS: f64 = 6.0;
/// A block of so many intervals is sampled for certain (but for one of 10^17).
const CERTAIN: u64 = 40;

/// The probability that a block is sampled.
pub fn probability(size: u64, interval: u64) -> f64 {
    -(-(size.max(1) as f64) / interval as f64).exp_m1()
}

/// All differences, as text.
pub fn differences(capture: &Capture, oracle: &Oracle, events: &[Event], interval: u64, rules: &Rules) -> Vec<String> {
    let mut found = Vec::new();
    let check = capture.check();
    if !check.status.success() {
        found.push(format!("hound check: {}{}", check.out(), check.err()));
    }
    found.extend(events.iter().filter(|e| e.event == "lost").map(|lost| format!("events were lost: {lost:?}")));
    found.extend(unsaid_rates(events, interval));
    let replayed = replay(events);
    found.extend(replayed.illegal);
    if replayed.totals.unknown_frees != 0 {
        found.push(format!("{} releases of blocks that were not recorded", replayed.totals.unknown_frees));
    }
    let mut captured = captured_steps(oracle, events);
    for (tid, notes) in oracle.by_thread() {
        let got = captured.remove(&tid).unwrap_or_default();
        let noted = noted_steps(&notes);
        let (mut rest, mut at) = (noted.iter(), 0);
        for made in &got {
            if !rest.any(|noted| is_same(noted.step, made.step, rules)) {
                found.push(format!("thread {tid}: step {at} of {} is not noted after the steps before: {}", got.len(), made.step));
                break;
            }
            at += 1;
        }
        let certain = |step: Step<'_>| matches!(step, Step::Alloc { size, .. } if size >= CERTAIN * interval);
        let count = |steps: &[crate::compare::Made<'_>]| steps.iter().filter(|made| certain(made.step)).count();
        if count(&got) != count(&noted) {
            found.push(format!("thread {tid}: {} blocks too large to be missed were noted, {} recorded", count(&noted), count(&got)));
        }
    }
    found.extend(captured.keys().map(|tid| format!("thread {tid} noted nothing, but events of it were recorded")));
    let balance = balances(oracle);
    let dead = replayed.live.keys().filter(|addr| balance.get(addr).is_some_and(|(balance, _)| *balance == 0));
    found.extend(dead.map(|addr| format!("the release of {addr:#x} was not recorded")));
    found
}

/// By address: 1 if a block is alive there at the end, else 0, and the size of the last one made there. An address is alive if it was handed
/// out once more than taken back, in whatever order threads did so; or as often, if there was a block before the notes begin.
fn balances(oracle: &Oracle) -> BTreeMap<u64, (i64, u64)> {
    let mut balances = BTreeMap::new();
    for made in oracle.notes.iter().flat_map(|note| noted_steps(&[note])) {
        match made.step {
            Step::Alloc { addr, size, .. } => {
                let block = balances.entry(addr).or_insert((0, 0));
                *block = (block.0 + 1, size);
            }
            Step::Free { addr } => balances.entry(addr).or_insert((1, 0)).0 -= 1,
            Step::Marker { .. } => {}
        }
    }
    balances
}

/// A resize of which one half is sampled is recorded as that half alone.
fn is_same(noted: Step<'_>, captured: Step<'_>, rules: &Rules) -> bool {
    match (noted, captured) {
        (Step::Alloc { kind, addr, size, usable, .. }, Step::Alloc { prev: 0, .. }) => {
            same(Step::Alloc { kind, addr, size, usable, prev: 0 }, captured, rules)
        }
        _ => same(noted, captured, rules),
    }
}

/// Blocks recorded before their stream has said the interval.
fn unsaid_rates(events: &[Event], interval: u64) -> Option<String> {
    let mut said = BTreeMap::<u32, u64>::new();
    // In a dump the streams of one thread are one.
    let unsaid = events.iter().filter(|e| match e.event.as_str() {
        "rate" => said.insert(e.tid, e.mean).is_some_and(|before| before != e.mean),
        "alloc" => said.get(&e.tid) != Some(&interval),
        _ => false,
    });
    let count = unsaid.count();
    (count != 0).then(|| format!("{count} blocks or changes of another interval than {interval}"))
}

/// The estimates made of a sample are as near to what was noted as the law of sampling says: count and bytes, of all blocks, of the small, the
/// middle and the large ones; and of those alive at the end.
///
/// # Panics
/// If not.
pub fn must_estimate(oracle: &Oracle, events: &[Event], interval: u64) {
    let made = |steps: BTreeMap<u32, Vec<crate::compare::Made<'_>>>| -> Vec<u64> {
        let sizes =
            steps.into_values().flatten().filter_map(|made| if let Step::Alloc { size, .. } = made.step { Some(size) } else { None });
        sizes.collect()
    };
    let noted = made(oracle.by_thread().into_iter().map(|(tid, notes)| (tid, noted_steps(&notes))).collect());
    let sampled = made(captured_steps(oracle, events));
    assert!(sampled.len() > 100 && sampled.len() < noted.len(), "{} of {} blocks sampled", sampled.len(), noted.len());
    for (what, range) in
        [("all", 0..u64::MAX), ("small", 0..interval / 16), ("middle", interval / 16..interval), ("large", interval..u64::MAX)]
    {
        within(what, &noted, &sampled, interval, |size| range.contains(&size));
    }
    let known = balances(oracle);
    let sampled: Vec<u64> = replay(events).live.into_iter().filter(|(addr, _)| known.contains_key(addr)).map(|(_, size)| size).collect();
    let noted: Vec<u64> = known.into_values().filter(|(balance, size)| *balance == 1 && *size != 0).map(|(_, size)| size).collect();
    within("alive", &noted, &sampled, interval, |_| true);
}

/// Of a recording that was switched between full mode and intervals: blocks by their weights are as many as were noted; what a thread
/// recorded in full is a stretch of its notes without a gap; and sampled blocks that seem alive are.
///
/// # Panics
/// If not.
pub fn must_estimate_switched(oracle: &Oracle, events: &[Event]) {
    assert!(!events.iter().any(|e| e.event == "lost"), "events were lost");
    let (mut rates, mut weighted, mut variance) = (BTreeMap::<u32, u64>::new(), 0.0, 0.0);
    let (mut sampled_alive, mut exact) = (BTreeMap::<u64, u64>::new(), 0_u64);
    let own = captured_steps(oracle, events);
    let threads: std::collections::BTreeSet<u32> = oracle.notes.iter().map(|note| note.tid).collect();
    let mut addresses = std::collections::BTreeSet::new();
    for made in own.values().flatten() {
        if let Step::Alloc { addr, .. } = made.step {
            addresses.insert(addr);
        }
    }
    for e in events {
        let rate = rates.get(&e.tid).copied().unwrap_or(0);
        match e.event.as_str() {
            "rate" => _ = rates.insert(e.tid, e.mean),
            "alloc" if addresses.contains(&e.addr) && threads.contains(&e.tid) => {
                let p = if rate == 0 { 1.0 } else { probability(e.size, rate) };
                weighted += 1.0 / p;
                variance += (1.0 - p) / (p * p);
                exact += u64::from(rate == 0);
                sampled_alive.remove(&e.addr);
                if rate != 0 {
                    sampled_alive.insert(e.addr, e.size);
                }
            }
            "free" => _ = sampled_alive.remove(&e.addr),
            _ => {}
        }
    }
    runs_must_be_whole(oracle, events);
    let noted: usize = oracle.notes.iter().filter(|note| matches!(note.call, Call::Alloc(_) | Call::Realloc(_))).count();
    assert!(exact > 1000 && (exact as usize) < noted, "{exact} of {noted} blocks recorded in full");
    // What was under way at a switch belongs to neither part: a block a thread and switch.
    let off = (weighted - noted as f64).abs() - 100.0;
    assert!(off < SIGMAS * f64::sqrt(variance), "{weighted:.0} blocks by their weights, {noted} noted");
    assert!(sampled_alive.is_empty(), "the releases of these were not recorded: {sampled_alive:x?}");
}

/// What a thread recorded in full, from one change of the interval to the next, it noted one after the other, with nothing between.
fn runs_must_be_whole(oracle: &Oracle, events: &[Event]) {
    for (tid, notes) in oracle.by_thread() {
        let noted: Vec<u64> = notes.iter().filter(|note| matches!(note.call, Call::Alloc(_))).map(|note| note.addr).collect();
        let theirs = || events.iter().filter(|e| e.tid == tid && matches!(e.event.as_str(), "rate" | "alloc"));
        if noted.is_empty() {
            continue;
        }
        let (mut rest, mut rate, mut run) = (noted.as_slice(), 0, Vec::new());
        let end = theirs().map(Some).chain([None]);
        for e in end {
            match e {
                Some(e) if e.event == "alloc" && rate == 0 => run.push(e.addr),
                Some(e) if e.event == "alloc" => {
                    let at = rest.iter().position(|addr| *addr == e.addr);
                    let at = at.unwrap_or_else(|| panic!("thread {tid}: the sample at {:#x} is not noted after those before", e.addr));
                    rest = &rest[at + 1..];
                }
                other => {
                    if !run.is_empty() {
                        let at = rest.windows(run.len()).position(|window| window == run);
                        let at = at.unwrap_or_else(|| panic!("thread {tid}: {} blocks recorded in full have gaps", run.len()));
                        rest = &rest[at + run.len()..];
                        run.clear();
                    }
                    rate = other.map_or(0, |e| e.mean);
                }
            }
        }
    }
}

fn within(what: &str, noted: &[u64], sampled: &[u64], interval: u64, is_meant: impl Fn(u64) -> bool) {
    for (unit, amount) in [("blocks", (|_| 1.0) as fn(u64) -> f64), ("bytes", |size| size as f64)] {
        let p = |size: u64| probability(size, interval);
        let of =
            |sizes: &[u64], each: &dyn Fn(u64) -> f64| sizes.iter().filter(|size| is_meant(**size)).map(|size| each(*size)).sum::<f64>();
        let spread = |is_meant: &dyn Fn(u64) -> bool| {
            of(noted, &|size| if is_meant(size) { amount(size).powi(2) * (1.0 - p(size)) / p(size) } else { 0.0 })
        };
        // One sample of a block of one byte at an interval of 5000 stands for 5000 blocks, which happens once in some hundred runs: what is
        // a good part of a deviation by itself does not follow the normal law, and is left out on both sides.
        let heaviest = spread(&|_| true).sqrt() / 4.0;
        let is_light = |size: u64| amount(size) * (1.0 - p(size)) / p(size) <= heaviest;
        let (truth, variance) = (of(noted, &|size| if is_light(size) { amount(size) } else { 0.0 }), spread(&is_light));
        let estimate = of(sampled, &|size| if is_light(size) { amount(size) / p(size) } else { 0.0 });
        let off = (estimate - truth) / variance.sqrt().max(1e-9);
        assert!(off.abs() < SIGMAS, "{what}: {estimate:.0} {unit} estimated, {truth:.0} made: {off:.1} standard deviations off");
    }
}
