//! Whether 95 % intervals hold what they claim: programs with known totals are sampled and replayed many times, with fixed seeds, and the
//! share of intervals that hold the truth must not be below 95 % by more than chance explains.
//!
//! A program is drawn anew each time, sampled by points on the line of its allocated bytes (as both engines do it), observed all the time
//! or in windows with random pauses, and its events go through replay, tally and query as a capture's do. What was sampled in a window and
//! outlives it is in doubt; an end is seen only in a window, or, where there are looks, mostly found soon after; and an address that is
//! given out again outside of windows, or without being sampled, still counts as the block's that was sampled there.

use super::*;
use crate::capture::Visitor;
use crate::capture::model::{Alloc, Event, Free, StackId, Stamped, StreamId};
use crate::heap::{Block, Ending, Peak, Replay, Sampling};
use hound_common::event::{LIVENESS_GONE, LIVENESS_UNKNOWN, MODE_SAMPLED};
use hound_common::hook::Kind;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A small generator of numbers: the same every time.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Numbers((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.unit() * bound as f64).ceil() as u64 - 1
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }
}

/// One allocation.
struct Made {
    time_ns: u64,
    size: u64,
    /// Until when it lives, if not for good.
    until: Option<u64>,
    /// Where it is, if others are there before or after.
    place: Option<u64>,
}

/// Allocations of one program.
type Program = Vec<Made>;

const SECOND: u64 = 1_000_000_000;
/// How long a program runs.
const RUN: u64 = 60 * SECOND;
const INTERVAL: u64 = 64 * 1024;

/// `rate` allocations a second on the whole, at random moments.
fn steady(numbers: &mut Numbers, rate: f64, size: impl FnMut(&mut Numbers) -> u64) -> Program {
    let always = [(0, RUN)];
    during(numbers, &always, rate, size)
}

/// `rate` allocations a second in these spans. A third of the blocks lives for good.
fn during(numbers: &mut Numbers, spans: &[(u64, u64)], rate: f64, mut size: impl FnMut(&mut Numbers) -> u64) -> Program {
    let mut program = Program::new();
    for &(from, to) in spans {
        let mut now = from as f64;
        loop {
            now += numbers.exponential(SECOND as f64 / rate);
            if now >= to as f64 {
                break;
            }
            let life = numbers.exponential(2.0 * SECOND as f64) as u64;
            let until = (numbers.below(3) > 0).then_some(now as u64 + life + 10_000).filter(|&until| until < RUN);
            program.push(Made { time_ns: now as u64, size: size(numbers), until, place: None });
        }
    }
    program
}

fn heavy_tailed(numbers: &mut Numbers) -> u64 {
    // Pareto with exponent 1.2: a hundredth of the blocks has half of the bytes.
    ((32.0 * numbers.unit().powf(-1.0 / 1.2)) as u64).min(4 << 20)
}

/// A cache of this many blocks: the oldest makes room for the next one, which gets its place.
fn cache(numbers: &mut Numbers, rate: f64, places: usize, size: u64) -> Program {
    let mut program = Program::new();
    let mut now = 0.0;
    loop {
        now += numbers.exponential(SECOND as f64 / rate);
        if now >= RUN as f64 {
            return program;
        }
        let (index, time_ns) = (program.len(), now as u64);
        if let Some(oldest) = index.checked_sub(places) {
            program[oldest].until = Some(time_ns.max(program[oldest].time_ns + 1));
        }
        program.push(Made { time_ns: time_ns + 1, size, until: None, place: Some((index % places) as u64) });
    }
}

/// Two programs at one site.
fn both(mut one: Program, other: Program) -> Program {
    one.extend(other);
    one
}

struct Class {
    name: &'static str,
    program: fn(&mut Numbers) -> Program,
}

const CLASSES: &[Class] = &[
    Class { name: "small, many samples", program: |n| steady(n, 300.0, |_| 1120) },
    Class { name: "small, few samples", program: |n| steady(n, 60.0, |_| 96) },
    Class { name: "large", program: |n| steady(n, 2.0, |_| 100_000) },
    Class { name: "64 B and 1 MiB at one site", program: |n| steady(n, 300.0, |n| if n.below(150) == 0 { 1 << 20 } else { 64 }) },
    Class { name: "64 B and 1 MiB, rarely a small sample", program: |n| steady(n, 20.0, |n| if n.below(10) == 0 { 1 << 20 } else { 64 }) },
    Class { name: "heavy-tailed", program: |n| steady(n, 300.0, heavy_tailed) },
    Class {
        name: "bursts",
        program: |n| {
            let mut span = |_| {
                let from = n.below(RUN - 2 * SECOND);
                (from, from + n.below(2 * SECOND) + 1)
            };
            let spans: Vec<(u64, u64)> = (0..30).map(&mut span).collect();
            during(n, &spans, 400.0, |_| 800)
        },
    },
    Class {
        name: "short bursts of many samples",
        program: |n| {
            let spans: Vec<(u64, u64)> = (0..200).map(|_| n.below(RUN - SECOND)).map(|from| (from, from + SECOND / 50)).collect();
            during(n, &spans, 5000.0, |_| 8192)
        },
    },
    Class {
        name: "growing",
        program: |n| {
            let spans: Vec<(u64, u64)> = (0..60).map(|second| (second * SECOND, (second + 1) * SECOND)).collect();
            spans.iter().flat_map(|&span| during(n, &[span], 10.0 + (span.0 / SECOND) as f64 * 6.0, |_| 1400)).collect()
        },
    },
    Class { name: "a bounded cache", program: |n| cache(n, 500.0, 800, 2000) },
    Class { name: "a cache that turns round in a tenth of a second", program: |n| cache(n, 1000.0, 100, 2000) },
    Class { name: "a leak beside a cache", program: |n| both(cache(n, 300.0, 300, 1000), steady(n, 100.0, |_| 1000)) },
];

/// How a program is watched.
#[derive(Clone, Copy, Debug)]
enum Watch {
    /// All the time.
    Always,
    /// In about so many windows, so much of the time.
    Windows(u64, f64),
    /// The same, with looks at what is in doubt.
    AndLooks(u64, f64),
}

/// Of ends that no window sees, so many in a hundred are found by looks, unless another block comes to the place.
const FOUND: u64 = 85;

/// The windows: from, opened, closed, to. One only, that is no window, if all is observed.
fn windows(watch: Watch, numbers: &mut Numbers) -> Vec<[u64; 4]> {
    let (Watch::Windows(periods, share) | Watch::AndLooks(periods, share)) = watch else { return vec![[0, 0, RUN, RUN]] };
    let open = (RUN as f64 / periods as f64 * share) as u64;
    let pause = RUN as f64 / periods as f64 - open as f64;
    let mut windows: Vec<[u64; 4]> = Vec::new();
    let (mut from, mut before) = (0, (numbers.exponential(pause) / 2.0) as u64);
    loop {
        let opened = from + before;
        let after = (numbers.exponential(pause) / 2.0) as u64;
        if opened + open > RUN {
            break;
        }
        windows.push([from, opened, opened + open, opened + open + after]);
        (from, before) = (opened + open + after, after);
    }
    match windows.last_mut() {
        Some(last) => last[3] = RUN,
        None => windows.push([0, 0, open, RUN]),
    }
    windows
}

/// Samples a program, and gives its events: as a capture would hold them. In one piece, for each step changes what the next one sees.
fn events(program: &Program, watch: Watch, numbers: &mut Numbers) -> Vec<Stamped> {
    let stamped = |time_ns, event| Stamped { time_ns, stream: StreamId(0), event };
    let mut events = vec![stamped(0, Event::Mode { mode: MODE_SAMPLED }), stamped(0, Event::Rate(INTERVAL))];
    let windows = windows(watch, numbers);
    let is_always = matches!(watch, Watch::Always);
    // In order of time: 0 ends, 1 births, 2 a window closes.
    let ends = program.iter().enumerate().filter_map(|(index, made)| Some((made.until?, 0, index)));
    let births = program.iter().enumerate().map(|(index, made)| (made.time_ns, 1, index));
    let closing = windows.iter().enumerate().filter(|_| !is_always).map(|(index, window)| (window[2], 2, index));
    let mut steps: Vec<(u64, u8, usize)> = ends.chain(births).chain(closing).collect();
    steps.sort_unstable();
    let address = |index: usize| 0x1000 * (1 + program[index].place.unwrap_or(1 << 20 | index as u64));
    let mut left = numbers.exponential(INTERVAL as f64);
    let (mut followed, mut fresh) = (BTreeSet::new(), Vec::new());
    for (time_ns, step, index) in steps {
        let after = windows.partition_point(|window| window[1] <= time_ns);
        let is_seen = after > 0 && time_ns < windows[after - 1][2];
        let addr = if step == 2 { 0 } else { address(index) };
        match step {
            0 if is_seen && followed.remove(&addr) => {
                let free = Free { addr, kind: Kind::Free, pool: 0, realloc: false, stack: None };
                events.push(stamped(time_ns, Event::Free(free)));
            }
            0 if !is_seen => {
                let is_looked_for = matches!(watch, Watch::AndLooks(..)) && program[index].place.is_none();
                if is_looked_for && numbers.below(100) < FOUND && followed.remove(&addr) {
                    events.push(stamped(time_ns, Event::Liveness { state: LIVENESS_GONE, addr, pool: 0 }));
                }
            }
            1 if is_seen => {
                let size = program[index].size;
                left -= size as f64;
                if left > 0.0 {
                    continue;
                }
                while left <= 0.0 {
                    left += numbers.exponential(INTERVAL as f64);
                }
                let (kind, stack) = (Kind::Malloc, StackId(0));
                let alloc = Alloc { addr, size, usable: None, kind, flags: 0, pool: 0, previous: None, stack };
                events.push(stamped(time_ns, Event::Alloc(alloc)));
                followed.insert(addr);
                fresh.push(addr);
            }
            2 => {
                for addr in fresh.drain(..).filter(|addr| followed.contains(addr)) {
                    events.push(stamped(time_ns, Event::Liveness { state: LIVENESS_UNKNOWN, addr, pool: 0 }));
                }
                let [from_ns, opened_ns, closed_ns, to_ns] = windows[index];
                events.push(stamped(to_ns, Event::Window { opened_ns, closed_ns, from_ns, to_ns }));
            }
            _ => {}
        }
    }
    events.sort_by_key(|event| event.time_ns);
    events
}

/// What a report says of the events.
fn whole(events: &[Stamped]) -> Whole {
    let sampling = Arc::new(Sampling::of(events).expect("it was sampled"));
    let mut tally = Tally::new(BlockFilter::default(), Split::default(), Vec::new()).sampled(sampling.clone());
    let mut replay = Replay::new(|block: &Block, ending: &Ending, peak: &Peak| tally.add(block, ending, peak)).sampled(sampling);
    for event in events {
        match &event.event {
            Event::Alloc(alloc) => replay.alloc(event.time_ns, event.stream, alloc),
            Event::Free(free) => replay.free(event.time_ns, event.stream, free),
            _ => replay.other(event),
        }
    }
    let outcome = replay.finish();
    let whole = tally.finish(&outcome.peak).whole;
    whole.expect("it was sampled")
}

const FIGURES: [Figure; 3] = [Figure::AllocatedBytes, Figure::Allocations, Figure::LiveBytes];

fn truth(program: &Program, figure: Figure) -> u64 {
    let live = program.iter().filter(|made| made.until.is_none());
    match figure {
        Figure::Allocations => program.len() as u64,
        Figure::LiveBytes => live.map(|made| made.size).sum(),
        _ => program.iter().map(|made| made.size).sum(),
    }
}

/// What came out of many replays of one class.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    held: [u32; 3],
    below: [u32; 3],
    /// Sums of estimate over truth, and of the interval's width over truth.
    ratio: [f64; 3],
    width: [f64; 3],
}

fn replays(class: &Class, watch: Watch, count: u32) -> Held {
    let mut held = Held::default();
    for seed in 0..count {
        let mut numbers = Numbers::new(u64::from(seed) << 20 | class.name.len() as u64);
        let program = (class.program)(&mut numbers);
        let whole = whole(&events(&program, watch, &mut numbers));
        let sampled = whole.total.sampled.as_ref().expect("settled");
        for (index, figure) in FIGURES.into_iter().enumerate() {
            let truth = truth(&program, figure);
            let (low, high) = sampled.interval(figure).expect("settled");
            held.held[index] += u32::from((low..=high).contains(&truth));
            held.below[index] += u32::from(high < truth);
            held.ratio[index] += sampled.value(figure) as f64 / truth.max(1) as f64;
            held.width[index] += (high - low) as f64 / truth.max(1) as f64;
        }
    }
    held
}

/// The least number of `count` intervals that must hold, if each holds with 95 %, for a test at 1 %.
fn least_that_hold(count: u32) -> u32 {
    use statrs::distribution::{Binomial, DiscreteCDF};
    let binomial = Binomial::new(0.95, u64::from(count)).expect("a probability");
    (0..=count).find(|&held| binomial.cdf(u64::from(held)) > 0.01).expect("a quantile")
}

/// Replays of each class: of all classes together there are over 2,000.
const REPLAYS: u32 = 250;

fn check(watches: &[Watch], count: u32) {
    let least = least_that_hold(count);
    let mut failures = Vec::new();
    for &watch in watches {
        let mut all = [0; 3];
        for class in CLASSES {
            let Held { held, below, ratio, width } = replays(class, watch, count);
            for (index, figure) in FIGURES.into_iter().enumerate() {
                let share = |of: f64| of / f64::from(count);
                let line = format!(
                    "{}, {watch:?}, {figure:?}: {} of {count} hold ({} are below the truth), estimate {:.3}, width {:.3}",
                    class.name,
                    held[index],
                    below[index],
                    share(ratio[index]),
                    share(width[index])
                );
                println!("{line}");
                all[index] += held[index];
                if held[index] < least {
                    failures.push(line);
                }
            }
        }
        let of = count * CLASSES.len() as u32;
        for (figure, held) in FIGURES.into_iter().zip(all) {
            let line = format!("all, {watch:?}, {figure:?}: {held} of {of} hold");
            println!("{line}");
            if held < least_that_hold(of) {
                failures.push(line);
            }
        }
    }
    assert!(failures.is_empty(), "fewer than {least} of {count} intervals (or too few of all) hold the truth:\n{}", failures.join("\n"));
}

#[test]
fn intervals_hold_the_truth_where_all_was_observed() {
    check(&[Watch::Always], REPLAYS);
}

#[test]
fn intervals_hold_the_truth_between_windows() {
    check(&[Watch::Windows(60, 0.2)], REPLAYS);
}

#[test]
fn intervals_hold_the_truth_where_looks_find_most_of_what_ended() {
    check(&[Watch::AndLooks(60, 0.2)], REPLAYS);
}

#[test]
fn intervals_hold_the_truth_between_many_short_windows() {
    check(&[Watch::Windows(300, 0.1)], REPLAYS);
}

#[test]
fn intervals_hold_the_truth_between_few_windows() {
    check(&[Watch::Windows(8, 0.5)], REPLAYS);
}

#[test]
fn the_check_notices_intervals_that_forget_the_windows() {
    let class = CLASSES.iter().find(|class| class.name == "short bursts of many samples").expect("the class");
    let held = (0..REPLAYS).filter(|&seed| {
        let mut numbers = Numbers::new(u64::from(seed));
        let program = (class.program)(&mut numbers);
        let Whole { mut total, scale, .. } = whole(&events(&program, Watch::Windows(60, 0.2), &mut numbers));
        // As if all had been observed: what is left is the sampling inside the windows.
        total.settle(Some(&Scale { share: 1.0, clusters: 0, ..scale }));
        let (low, high) = total.interval(Figure::AllocatedBytes).expect("settled");
        (low..=high).contains(&truth(&program, Figure::AllocatedBytes))
    });
    let held = held.count() as u32;
    assert!(held < least_that_hold(REPLAYS), "{held} of {REPLAYS} hold: the test would let such intervals pass");
}

/// What a leak of 100 blocks a second has at the low end of its interval, beside caches of the same traffic, after a minute.
#[test]
fn a_leak_is_told_from_caches_that_look_alike() {
    let watch = Watch::Windows(60, 0.2);
    let low = |seed: u64, of: fn(&mut Numbers) -> Program| {
        let mut numbers = Numbers::new(seed);
        let program = of(&mut numbers);
        let whole = whole(&events(&program, watch, &mut numbers));
        whole.total.sampled.as_ref().and_then(|sampled| sampled.interval(Figure::LiveBytes)).expect("settled").0
    };
    let leak = |n: &mut Numbers| {
        let leak = steady(n, 600.0, |_| 1000);
        leak.into_iter().map(|made| Made { until: None, ..made }).collect()
    };
    let first = (0..100).filter(|&seed| low(seed, leak) > low(seed + 1000, |n| cache(n, 600.0, 1200, 2000)));
    let first = first.count();
    assert!(first >= 95, "ranked first {first} times of 100");
}

#[test]
fn the_check_notices_doubt_that_is_held_for_life() {
    let class = CLASSES.iter().find(|class| class.name == "a bounded cache").expect("the class");
    let held = (0..REPLAYS).filter(|&seed| {
        let mut numbers = Numbers::new(u64::from(seed));
        let program = (class.program)(&mut numbers);
        let Whole { total, scale, .. } = whole(&events(&program, Watch::Windows(60, 0.2), &mut numbers));
        let mut alive = total.sampled.expect("settled");
        alive.hold_for_alive();
        let (low, high) = alive.bounds(Figure::LiveBytes, &scale);
        (low..=high).contains(&truth(&program, Figure::LiveBytes))
    });
    let held = held.count() as u32;
    assert!(held < least_that_hold(REPLAYS), "{held} of {REPLAYS} hold: the test would let such intervals pass");
}
