//! Histories made by hand and by chance, and what must come out of them.

use super::*;
use crate::capture::Visitor;
use crate::capture::model::{Alloc, Event, Free, StackId, Stamped, StreamId};
use hound_common::event::{LIVENESS_ALIVE, LIVENESS_GONE, LIVENESS_UNKNOWN, MODE_FULL, MODE_OFF, MODE_SAMPLED};
use hound_common::hook::Kind;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// An event at an address. `previous` makes an allocation the second half of a realloc.
#[derive(Clone, Copy, Debug)]
enum What {
    Alloc { size: u64, previous: Option<u64> },
    Free { realloc: bool },
}

#[derive(Clone, Copy, Debug)]
struct Step {
    time_ns: u64,
    stream: u32,
    addr: u64,
    what: What,
}

fn alloc(time_ns: u64, stream: u32, addr: u64, size: u64) -> Step {
    Step { time_ns, stream, addr, what: What::Alloc { size, previous: None } }
}

fn free(time_ns: u64, stream: u32, addr: u64) -> Step {
    Step { time_ns, stream, addr, what: What::Free { realloc: false } }
}

fn realloc(time_ns: u64, stream: u32, from: u64, to: u64, size: u64) -> [Step; 2] {
    [
        Step { time_ns, stream, addr: from, what: What::Free { realloc: true } },
        Step { time_ns: time_ns + 10, stream, addr: to, what: What::Alloc { size, previous: Some(from) } },
    ]
}

fn feed<S: Hears>(replay: &mut Replay<S>, step: &Step) {
    let stream = StreamId(step.stream);
    match step.what {
        What::Alloc { size, previous } => {
            let kind = Kind::Malloc;
            let stack = StackId(step.stream);
            let alloc = Alloc { addr: step.addr, size, usable: None, kind, flags: 0, pool: 0, previous, stack };
            replay.alloc(step.time_ns, stream, &alloc);
        }
        What::Free { realloc } => {
            let free = Free { addr: step.addr, kind: Kind::Free, pool: 0, realloc, stack: None };
            replay.free(step.time_ns, stream, &free);
        }
    }
}

fn replay(steps: &[Step]) -> (Outcome, Vec<(Block, Ending)>) {
    let mut blocks = Vec::new();
    let mut replay = Replay::new(|block: &Block, ending: &Ending, _: &Peak| blocks.push((*block, *ending)));
    steps.iter().for_each(|step| feed(&mut replay, step));
    let outcome = replay.finish();
    blocks.sort_by_key(|(block, _)| block.ordinal);
    (outcome, blocks)
}

/// Orders events as a capture's visit does: by stamp, and within a stream as recorded.
fn merged(mut steps: Vec<Step>) -> Vec<Step> {
    steps.sort_by_key(|step| step.time_ns);
    steps
}

#[test]
fn a_freed_block_is_not_live_and_an_unfreed_one_is() {
    let (outcome, blocks) = replay(&[alloc(10, 0, 16, 100), alloc(20, 0, 32, 50), free(9000, 0, 16)]);
    assert_eq!((outcome.totals.live_blocks, outcome.totals.live_bytes), (1, 50));
    assert_eq!((outcome.totals.allocations, outcome.totals.frees, outcome.totals.unknown_frees), (2, 1, 0));
    assert!(matches!(blocks[0].1, Ending::Freed(death) if death.time_ns == 9000 && !death.temporary));
    assert_eq!(blocks[1].1, Ending::Alive { time_ns: 9000 });
}

#[test]
fn a_block_is_temporary_if_its_thread_allocated_nothing_between() {
    let (outcome, _) =
        replay(&[alloc(10, 0, 16, 1), alloc(20, 1, 32, 1), free(30, 0, 16), alloc(40, 1, 48, 1), free(50, 1, 32), free(60, 0, 48)]);
    // The first is, whatever other threads did; the second's thread allocated again; the third was freed by another thread.
    assert_eq!(outcome.totals.temporary, 1);
}

#[test]
fn the_peak_is_the_most_that_lived_at_once() {
    let (outcome, _) =
        replay(&[alloc(1, 0, 16, 100), free(2, 0, 16), alloc(3, 0, 32, 60), alloc(4, 0, 48, 60), free(5, 0, 48), alloc(6, 0, 64, 50)]);
    assert_eq!(outcome.peak, Peak { bytes: 120, time_ns: 4, ordinal: 3 });
}

#[test]
fn a_sum_that_restarts_with_the_peak_holds_what_lived_at_it() {
    let mut steps = Vec::new();
    for wave in 0..5u64 {
        let blocks = [3, 9, 4, 12, 7][wave as usize];
        steps.extend((0..blocks).map(|i| alloc(wave * 1000 + i, 0, wave * 1600 + i * 16, 10 + wave)));
        steps.extend((0..blocks - 1).map(|i| free(wave * 1000 + 500 + i, 0, wave * 1600 + i * 16)));
    }
    let (mut sum, mut at) = (0, 0);
    let mut replay = Replay::new(|block: &Block, _: &Ending, peak: &Peak| {
        if at != peak.ordinal {
            (at, sum) = (peak.ordinal, 0);
        }
        if block.ordinal <= peak.ordinal {
            sum += block.size;
        }
    });
    steps.iter().for_each(|step| feed(&mut replay, step));
    let peak = replay.finish().peak;
    assert_eq!(peak.bytes, 12 * 13 + 10 + 11 + 12);
    assert_eq!((sum, at), (peak.bytes, peak.ordinal));
}

#[test]
fn reallocs_are_joined_in_a_chain() {
    let mut steps = vec![alloc(10, 0, 16, 100)];
    steps.extend(realloc(20, 0, 16, 32, 200));
    steps.extend(realloc(40, 0, 32, 32, 400));
    let (outcome, blocks) = replay(&steps);
    assert_eq!((outcome.totals.allocations, outcome.totals.frees, outcome.totals.live_bytes), (3, 2, 400));
    let last = blocks[2].0;
    assert_eq!((last.chain, last.chain_length, last.addr), (1, 2, 32));
}

#[test]
fn a_free_of_a_block_from_before_the_recording_is_counted_as_unknown() {
    let (outcome, _) = replay(&[free(10, 0, 16), alloc(20, 0, 16, 8), alloc(90_000, 0, 32, 8)]);
    assert_eq!((outcome.totals.unknown_frees, outcome.totals.live_blocks), (1, 2));
    assert_eq!(outcome.anomalies.allocated_alive, 0);
}

#[test]
fn an_allocation_at_a_live_address_replaces_the_block_and_is_an_anomaly() {
    let (outcome, blocks) = replay(&[alloc(10, 0, 16, 100), alloc(50_000, 0, 16, 8), free(50_001, 0, 16), alloc(90_000, 0, 48, 1)]);
    assert_eq!(outcome.anomalies.allocated_alive, 1);
    assert_eq!((outcome.totals.replaced, outcome.totals.frees, outcome.totals.live_blocks), (1, 1, 1));
    assert_eq!(blocks[0].1, Ending::Replaced { time_ns: 50_000 });
    assert!(matches!(blocks[1].1, Ending::Freed(_)));
}

#[test]
fn a_free_stamped_before_its_alloc_by_another_thread_belongs_to_it() {
    let (outcome, blocks) = replay(&[free(1000, 1, 16), alloc(1900, 0, 16, 8), alloc(90_000, 0, 32, 8)]);
    assert_eq!((outcome.totals.unknown_frees, outcome.totals.frees, outcome.totals.live_blocks), (0, 1, 1));
    assert!(matches!(blocks[0].1, Ending::Freed(_)));
    assert_eq!(outcome.anomalies, Anomalies { allocated_alive: 0, reordered: 1 });
}

#[test]
fn an_alloc_stamped_before_the_free_by_another_thread_waits_for_it() {
    let (outcome, blocks) = replay(&[alloc(10, 0, 16, 8), alloc(5000, 1, 16, 9), free(5600, 0, 16)]);
    assert_eq!((outcome.totals.live_bytes, outcome.anomalies.allocated_alive), (9, 0));
    assert!(matches!(blocks[0].1, Ending::Freed(_)));
    assert_eq!((blocks[1].0.stream, blocks[1].1), (StreamId(1), Ending::Alive { time_ns: 5600 }));
}

#[test]
fn an_address_handed_on_twice_within_the_window_comes_out_right() {
    // Truth: free 0, alloc 0, free 1; the last is stamped first.
    let (outcome, _) = replay(&[alloc(10, 0, 16, 8), free(9000, 1, 16), free(9300, 0, 16), alloc(9400, 0, 16, 8), alloc(90_000, 0, 64, 1)]);
    assert_eq!((outcome.totals.live_blocks, outcome.totals.unknown_frees), (1, 0));
    // Truth: alloc 0, free 0, alloc 1; the last is stamped first.
    let (outcome, blocks) = replay(&[alloc(9000, 1, 16, 8), alloc(9300, 0, 16, 7), free(9400, 0, 16), alloc(90_000, 0, 64, 1)]);
    assert_eq!((outcome.totals.live_bytes, outcome.anomalies.allocated_alive), (9, 0));
    assert!(matches!(blocks[0], (Block { stream: StreamId(1), .. }, Ending::Alive { .. })));
}

#[test]
fn blocks_that_lived_through_a_pause_are_censored() {
    let endings = |steps: &[Result<Step, (u64, u8)>]| {
        let mut endings = Vec::new();
        let mut replay = Replay::new(|block: &Block, ending: &Ending, _: &Peak| endings.push((block.addr, *ending)));
        steps.iter().for_each(|step| match *step {
            Ok(ref step) => feed(&mut replay, step),
            Err((time_ns, mode)) => replay.other(&Stamped { time_ns, stream: StreamId(0), event: Event::Mode { mode } }),
        });
        let outcome = replay.finish();
        endings.sort_by_key(|(addr, _)| *addr);
        (endings, outcome.anomalies.allocated_alive, outcome.totals.censored_bytes)
    };
    let (censored, replaced) = (|time_ns| Ending::Censored { time_ns }, Ending::Replaced { time_ns: 50_000 });
    let to_the_end = [Ok(alloc(10, 0, 16, 8)), Ok(alloc(11, 0, 32, 8)), Err((20, MODE_OFF)), Ok(alloc(50_000, 0, 16, 8))];
    // Also what a thread at work still recorded.
    assert_eq!(endings(&to_the_end), (vec![(16, replaced), (16, censored(50_000)), (32, censored(50_000))], 0, 16));
    let for_a_while = [Err((20, MODE_OFF)), Ok(alloc(25, 1, 32, 8)), Err((30, MODE_FULL)), Ok(alloc(40, 0, 48, 8))];
    let for_a_while = [&[Ok(alloc(10, 0, 16, 8))][..], &for_a_while].concat();
    assert_eq!(endings(&for_a_while), (vec![(16, censored(20)), (32, censored(25)), (48, Ending::Alive { time_ns: 40 })], 0, 16));
}

/// Blocks that ended, with the heap (0) or pool they were of.
type Heard = Vec<(u8, Block, Ending)>;

/// Feeds steps to the heap (0) and to pools.
fn replay_pools(steps: &[(u8, Step)]) -> (Outcome, Vec<(u8, Outcome)>, Heard) {
    let blocks = std::cell::RefCell::new(Vec::new());
    let (heard, shared) = (|block: &Block, ending: &Ending, _: &Peak| blocks.borrow_mut().push((0, *block, *ending)), &blocks);
    let mut heaps = Heaps::new(heard, |pool| -> Sink<'_> {
        Box::new(move |block: &Block, ending: &Ending, _: &Peak| shared.borrow_mut().push((pool, *block, *ending)))
    });
    for &(pool, Step { time_ns, stream, addr, what }) in steps {
        let stream = StreamId(stream);
        match what {
            What::Alloc { size, previous } => {
                let kind = if pool == 0 { Kind::Malloc } else { Kind::PoolAlloc };
                heaps.alloc(time_ns, stream, &Alloc { addr, size, usable: None, kind, flags: 0, pool, previous, stack: StackId(0) });
            }
            What::Free { realloc } => {
                let kind = if pool == 0 { Kind::Free } else { Kind::PoolFree };
                heaps.free(time_ns, stream, &Free { addr, kind, pool, realloc, stack: None });
            }
        }
    }
    let (outcome, pools) = heaps.finish();
    (outcome, pools, blocks.take())
}

#[test]
fn a_pool_is_counted_beside_the_heap_also_at_the_address_of_its_chunk() {
    let mut steps = vec![
        (0, alloc(10, 0, 0x1000, 4096)), // the chunk
        (1, alloc(20, 0, 0x1000, 100)),  // cut from its beginning
        (1, alloc(30, 0, 0x1080, 50)),
        (2, alloc(40, 0, 0x1000, 7)), // a pool in the pool
        (1, free(50, 0, 0x1080)),
        (2, free(60, 0, 0x1000)),
        (1, free(65, 0, 0x9000)), // from before
    ];
    steps.extend(realloc(70, 0, 0x1000, 0x1100, 300).map(|step| (1, step)));
    steps.push((0, free(90, 0, 0x1000)));
    let (heap, pools, blocks) = replay_pools(&steps);
    let figures = |outcome: &Outcome| {
        let Totals { allocations, frees, unknown_frees, live_blocks, live_bytes, temporary, .. } = outcome.totals;
        (allocations, frees, unknown_frees, live_blocks, live_bytes, temporary, outcome.peak.bytes)
    };
    // Temporary: nothing else of the heap was allocated between, whatever the pools did.
    assert_eq!(figures(&heap), (1, 1, 0, 0, 0, 1, 4096));
    let [(1, one), (2, two)] = &pools[..] else { panic!("{pools:?}") };
    assert_eq!(figures(one), (3, 2, 1, 1, 300, 1, 300));
    assert_eq!(figures(two), (1, 1, 0, 0, 0, 1, 7));
    assert_eq!([heap.anomalies, one.anomalies, two.anomalies], [Anomalies::default(); 3]);
    let alive: Vec<_> = blocks.iter().filter(|(_, _, ending)| ending.is_live()).collect();
    let [(1, block, Ending::Alive { time_ns: 90 })] = alive[..] else { panic!("not alive until the end of all: {alive:?}") };
    assert_eq!((block.addr, block.chain, block.chain_length), (0x1100, 1, 1));
}

/// A step of a random history: which thread does what to which address, and how long after the step before.
fn moves(addresses: u64, gap: std::ops::Range<u64>) -> impl Strategy<Value = Vec<(u32, u64, u64, u64)>> {
    prop::collection::vec((0u32..5, 0..addresses, gap, 0u64..1000), 0..120)
}

/// A legal history from random moves (each flips its address), in true order, and the stamps' errors.
fn history(moves: &[(u32, u64, u64, u64)], size: impl Fn(u64, u64) -> u64) -> Vec<(Step, u64)> {
    let (mut now, mut alive) = (1_000_000, HashMap::new());
    let step = |&(stream, number, gap, error): &(u32, u64, u64, u64)| {
        now += gap;
        let addr = 4096 + number * 16;
        let alive = alive.entry(addr).or_insert(false);
        *alive = !*alive;
        (if *alive { alloc(now, stream, addr, size(addr, now)) } else { free(now, stream, addr) }, error)
    };
    moves.iter().map(step).collect()
}

/// The history as a capture would show it: stamps off by less than a microsecond, each stream's order kept.
fn perturbed(history: &[(Step, u64)]) -> Vec<Step> {
    let mut last = HashMap::new();
    let stamp = |(step, error): &(Step, u64)| {
        let last = last.entry(step.stream).or_insert(0);
        *last = (step.time_ns + error).max(*last);
        Step { time_ns: *last, ..*step }
    };
    merged(history.iter().map(stamp).collect())
}

fn live(blocks: &[(Block, Ending)]) -> BTreeMap<u64, u64> {
    blocks.iter().filter(|(_, ending)| ending.is_live()).map(|(block, _)| (block.addr, block.size)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_event_list_keeps_the_balance_and_never_panics(
        events in prop::collection::vec((0u64..200_000, 0u32..4, 0u64..6, any::<u16>(), 0u8..8), 0..300), in_order in any::<bool>()
    ) {
        let step = |&(time_ns, stream, number, size, what): &(u64, u32, u64, u16, u8)| {
            let (addr, size) = (number * 16, u64::from(size));
            let what = match what {
                0..3 => What::Alloc { size, previous: None },
                3 => What::Alloc { size, previous: Some(addr) },
                4..7 => What::Free { realloc: false },
                _ => What::Free { realloc: true },
            };
            Step { time_ns, stream, addr, what }
        };
        let steps: Vec<Step> = events.iter().map(step).collect();
        let steps = if in_order { merged(steps) } else { steps };
        let (Outcome { totals, peak, .. }, blocks) = replay(&steps);
        let allocated = steps.iter().filter_map(|step| match step.what { What::Alloc { size, .. } => Some(size), What::Free { .. } => None });
        prop_assert_eq!(totals.allocated_bytes, allocated.clone().sum::<u64>());
        prop_assert_eq!(totals.allocations, allocated.count() as u64);
        prop_assert_eq!(totals.allocated_bytes, totals.freed_bytes + totals.replaced_bytes + totals.live_bytes);
        prop_assert_eq!(totals.allocations, totals.frees + totals.replaced + totals.live_blocks);
        prop_assert_eq!(totals.frees + totals.unknown_frees + totals.allocations, steps.len() as u64);
        prop_assert_eq!(blocks.len() as u64, totals.allocations);
        prop_assert_eq!(live(&blocks).values().sum::<u64>(), totals.live_bytes);
        prop_assert!(peak.bytes >= totals.live_bytes);
    }

    #[test]
    fn the_heap_and_each_pool_are_what_they_are_alone(
        events in prop::collection::vec((0u64..3000, 0u32..3, 0u64..5, any::<u16>(), 0u8..6, 0u8..4), 0..300)
    ) {
        let mut now = 0;
        let steps: Vec<(u8, Step)> = events.iter().map(|&(gap, stream, number, size, what, pool)| {
            now += gap;
            let (addr, size) = (number * 16, u64::from(size));
            let what = match what {
                0..2 => What::Alloc { size, previous: None },
                2 => What::Alloc { size, previous: Some(addr) },
                3..5 => What::Free { realloc: false },
                _ => What::Free { realloc: true },
            };
            (pool, Step { time_ns: now, stream, addr, what })
        }).collect();
        let (heap, pools, blocks) = replay_pools(&steps);
        let all = std::iter::once((0, heap)).chain(pools);
        for (pool, outcome) in all {
            let own: Vec<Step> = steps.iter().filter(|(of, _)| *of == pool).map(|(_, step)| *step).collect();
            let (alone, mut blocks_alone) = replay(&own);
            prop_assert_eq!((outcome.totals, outcome.peak), (alone.totals, alone.peak), "pool {}", pool);
            prop_assert_eq!(outcome.anomalies.allocated_alive, alone.anomalies.allocated_alive);
            let mut together: Vec<(Block, Ending)> =
                blocks.iter().filter(|(of, ..)| *of == pool).map(|(_, block, ending)| (*block, *ending)).collect();
            together.sort_by_key(|(block, _)| block.ordinal);
            // Which function and which stack are the feeding's; what lives, lives until the end of all.
            for ((a, a_ending), (b, b_ending)) in blocks_alone.iter_mut().zip(&together) {
                (a.kind, a.stack) = (b.kind, b.stack);
                prop_assert_eq!((*a, a_ending.is_live()), (*b, b_ending.is_live()));
            }
            prop_assert_eq!(together.len(), blocks_alone.len());
        }
    }

    #[test]
    fn a_legal_history_with_perturbed_stamps_gives_the_same_live_set_and_totals(moves in moves(4, 0..700)) {
        // Blocks at one address have one size here: which of two threads' blocks came first within a microsecond cannot be told.
        let history = history(&moves, |addr, _| addr);
        let truth: Vec<Step> = history.iter().map(|(step, _)| *step).collect();
        let (expected, expected_blocks) = replay(&truth);
        let (outcome, blocks) = replay(&perturbed(&history));
        prop_assert_eq!(outcome.totals.unknown_frees, 0);
        prop_assert_eq!(outcome.anomalies.allocated_alive, 0);
        prop_assert_eq!(live(&blocks), live(&expected_blocks));
        let counts = |totals: &Totals| (totals.allocations, totals.allocated_bytes, totals.frees, totals.freed_bytes, totals.live_bytes);
        prop_assert_eq!(counts(&outcome.totals), counts(&expected.totals));
    }

    #[test]
    fn where_an_address_is_handed_on_once_in_a_window_every_pairing_is_exact(moves in moves(40, 0..700)) {
        // Spread each address' own events: no third one within the window.
        let mut times: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut late = 0;
        let mut history = history(&moves, |_, time| time);
        for (step, _) in &mut history {
            step.time_ns += late;
            let times = times.entry(step.addr).or_default();
            if times.len() >= 2 && times[times.len() - 2] + 4000 > step.time_ns {
                let wait = times[times.len() - 2] + 4000 - step.time_ns;
                late += wait;
                step.time_ns += wait;
            }
            times.push(step.time_ns);
        }
        let truth: Vec<Step> = history.iter().map(|(step, _)| *step).collect();
        let ended = |blocks: &[(Block, Ending)]| {
            let by = |ending: &Ending| match ending { Ending::Freed(death) => Some(death.stream), _ => None };
            let mut ended: Vec<_> = blocks.iter().map(|(block, ending)| (block.size, block.addr, block.stream, by(ending))).collect();
            ended.sort();
            ended
        };
        prop_assert_eq!(ended(&replay(&perturbed(&history)).1), ended(&replay(&truth).1));
    }
}

/// A step of a capture that has samples.
enum Do {
    Feed(Step),
    Say(u64, u32, Event),
}

use Do::{Feed, Say};

/// Feeds steps in their order to a replay that knows how they were sampled.
fn replay_sampled(steps: &[Do]) -> (Outcome, Vec<(Block, Ending)>, std::sync::Arc<Sampling>) {
    let said = |step: &Do| match step {
        Say(time_ns, stream, event) => Some(Stamped { time_ns: *time_ns, stream: StreamId(*stream), event: event.clone() }),
        Feed(_) => None,
    };
    let events: Vec<Stamped> = steps.iter().filter_map(said).collect();
    let sampling = std::sync::Arc::new(Sampling::of(&events).expect("there are samples"));
    let mut blocks = Vec::new();
    let mut replay = Replay::new(|block: &Block, ending: &Ending, _: &Peak| blocks.push((*block, *ending))).sampled(sampling.clone());
    for step in steps {
        match step {
            Feed(step) => feed(&mut replay, step),
            Say(..) => replay.other(&said(step).expect("an event")),
        }
    }
    let outcome = replay.finish();
    blocks.sort_by_key(|(block, _)| block.ordinal);
    (outcome, blocks, sampling)
}

fn mode(time_ns: u64, mode: u8) -> Do {
    Say(time_ns, 9, Event::Mode { mode })
}

fn liveness(time_ns: u64, addr: u64, state: u8) -> Do {
    Say(time_ns, 9, Event::Liveness { state, addr, pool: 0 })
}

fn window(time_ns: u64, opened_ns: u64, closed_ns: u64, from_ns: u64, to_ns: u64) -> Do {
    Say(time_ns, 9, Event::Window { opened_ns, closed_ns, from_ns, to_ns })
}

#[test]
fn a_capture_without_intervals_and_windows_is_not_sampled() {
    let stamped = |event| Stamped { time_ns: 5, stream: StreamId(0), event };
    assert_eq!(Sampling::of(&[]), None);
    assert_eq!(
        Sampling::of(&[stamped(Event::Mode { mode: MODE_FULL }), stamped(Event::Rate(0)), stamped(Event::Mode { mode: MODE_OFF })]),
        None
    );
}

#[test]
fn each_stream_has_its_own_interval_and_a_block_keeps_its() {
    let (_, blocks, sampling) = replay_sampled(&[
        mode(1, MODE_SAMPLED),
        Say(2, 0, Event::Rate(1000)),
        Feed(alloc(10, 0, 16, 100)),
        Feed(alloc(11, 1, 32, 100)),
        Say(20, 0, Event::Rate(50)),
        Say(20, 1, Event::Rate(1000)),
        Feed(alloc(30, 0, 48, 100)),
        Feed(alloc(31, 1, 64, 100)),
        Say(40, 0, Event::Rate(0)),
        Feed(alloc(50, 0, 80, 100)),
    ]);
    let intervals: Vec<u64> = blocks.iter().map(|(block, _)| sampling.interval(block)).collect();
    assert_eq!(intervals, [1000, 0, 50, 1000, 0]);
    assert_eq!(sampling.drawn(&blocks[1].0), Drawn::Exact);
    let probability = hound_common::sampling::probability(100, 50);
    assert_eq!(sampling.drawn(&blocks[2].0), Drawn::Sampled(Weight { probability, scale: 1.0, cluster: None }));
    assert_eq!(sampling.parts()[0].intervals, Some((50, 1000)));
}

#[test]
fn a_window_stands_for_its_period_and_one_that_is_not_told_for_nothing() {
    let (outcome, blocks, sampling) = replay_sampled(&[
        mode(0, MODE_SAMPLED),
        Say(0, 0, Event::Rate(50)),
        Feed(alloc(210, 0, 16, 100)),
        // It returned after the window was closed.
        Feed(alloc(305, 0, 32, 100)),
        window(300, 200, 300, 0, 1000),
        Feed(alloc(1500, 0, 48, 100)),
        window(1700, 1500, 1700, 1000, 2000),
        // The capture was cut before this window was closed.
        Feed(alloc(25_000, 0, 64, 100)),
    ]);
    let probability = hound_common::sampling::probability(100, 50);
    let drawn: Vec<Drawn> = blocks.iter().map(|(block, _)| sampling.drawn(block)).collect();
    let of = |scale, cluster| Drawn::Sampled(Weight { probability, scale, cluster: Some(cluster) });
    assert_eq!(drawn, [of(10.0, 0), of(10.0, 0), of(5.0, 1), Drawn::Unknown]);
    assert_eq!((sampling.share_observed(&sampling.parts()[0]), sampling.clusters()), (0.15, 2));
    let each = 100.0 / probability;
    assert_eq!(outcome.peak.bytes, [10.0, 10.0, 5.0].map(|scale| (each * scale).round() as u64).iter().sum::<u64>());
    assert_eq!(outcome.peak.ordinal, 3);
}

#[test]
fn damaged_windows_are_none() {
    let (_, _, sampling) = replay_sampled(&[
        mode(0, MODE_SAMPLED),
        Say(0, 0, Event::Rate(50)),
        window(1, 300, 300, 0, 1000),
        window(2, 300, 200, 0, 1000),
        window(3, 0, 2000, 0, 1000),
        window(4, 0, 10, 1000, 0),
    ]);
    assert!(sampling.windows().is_empty());
}

#[test]
fn more_windows_than_clusters_are_taken_together() {
    let windows = (0..1000u64).map(|n| window(n * 10 + 5, n * 10 + 1, n * 10 + 2, n * 10, n * 10 + 10));
    let steps: Vec<Do> =
        [mode(0, MODE_SAMPLED), Say(0, 0, Event::Rate(50))].into_iter().chain(windows).chain([Feed(alloc(9991, 0, 16, 1))]).collect();
    let (_, blocks, sampling) = replay_sampled(&steps);
    assert_eq!(sampling.clusters(), 250);
    assert!(matches!(sampling.drawn(&blocks[0].0), Drawn::Sampled(Weight { scale: 10.0, cluster: Some(249), .. })));
}

#[test]
fn a_doubted_block_is_neither_live_nor_leaked_until_it_is_seen_again() {
    let (outcome, blocks, _) = replay_sampled(&[
        mode(0, MODE_SAMPLED),
        Say(0, 0, Event::Rate(50)),
        Feed(alloc(10, 0, 16, 100)),
        Feed(alloc(11, 0, 32, 100)),
        Feed(alloc(12, 0, 48, 100)),
        Feed(alloc(13, 0, 64, 100)),
        Feed(alloc(14, 0, 80, 100)),
        liveness(50, 16, LIVENESS_UNKNOWN),
        liveness(51, 32, LIVENESS_UNKNOWN),
        liveness(52, 48, LIVENESS_UNKNOWN),
        liveness(53, 64, LIVENESS_UNKNOWN),
        liveness(60, 32, LIVENESS_ALIVE),
        liveness(61, 48, LIVENESS_GONE),
        liveness(62, 0x7777, LIVENESS_GONE),
        Feed(free(9000, 0, 64)),
        Feed(free(9001, 0, 80)),
    ]);
    let endings: Vec<Ending> = blocks.iter().map(|(_, ending)| *ending).collect();
    let [
        Ending::Uncertain { time_ns: 50 },
        Ending::Alive { .. },
        Ending::Gone { time_ns: 61, known_ns: 52 },
        Ending::Freed(_),
        Ending::Freed(_),
    ] = endings[..]
    else {
        panic!("{endings:?}")
    };
    let totals = outcome.totals;
    assert_eq!((totals.uncertain_blocks, totals.live_blocks, totals.gone, totals.frees), (1, 1, 1, 2));
    assert_eq!(totals.allocated_bytes, totals.freed_bytes + totals.gone_bytes + totals.live_bytes + totals.uncertain_bytes);
    assert_eq!(outcome.anomalies, Anomalies::default());
}

#[test]
fn a_doubt_is_about_the_block_of_one_pool_not_about_others_at_its_address() {
    let say = |time_ns: u64, event: Event| Stamped { time_ns, stream: StreamId(9), event };
    let doubt = |time_ns: u64, pool: u8| say(time_ns, Event::Liveness { state: LIVENESS_UNKNOWN, addr: 16, pool });
    for (doubted, wanted) in [(0, [1, 0]), (1, [0, 1])] {
        let events = [say(0, Event::Mode { mode: MODE_SAMPLED }), say(1, Event::Rate(50)), doubt(30, doubted)];
        let sampling = std::sync::Arc::new(Sampling::of(&events).expect("there are samples"));
        let mut heaps =
            Heaps::new(|_: &Block, _: &Ending, _: &Peak| {}, |_| -> Sink<'_> { Box::new(|_: &Block, _: &Ending, _: &Peak| {}) })
                .sampled(sampling);
        events[..2].iter().for_each(|event| heaps.other(event));
        for (pool, kind) in [(0, Kind::Malloc), (1, Kind::PoolAlloc)] {
            let block = Alloc { addr: 16, size: 100, usable: None, kind, flags: 0, pool, previous: None, stack: StackId(0) };
            heaps.alloc(10, StreamId(0), &block);
        }
        heaps.other(&events[2]);
        let (heap, pools) = heaps.finish();
        assert_eq!([heap.totals.uncertain_blocks, pools[0].1.totals.uncertain_blocks], wanted);
    }
}

#[test]
fn an_address_given_out_again_between_windows_is_no_anomaly() {
    let (outcome, blocks, _) = replay_sampled(&[
        mode(0, MODE_SAMPLED),
        Say(0, 0, Event::Rate(50)),
        Feed(alloc(10_000, 0, 16, 100)),
        window(20_000, 9_000, 11_000, 0, 20_000),
        Feed(alloc(30_000, 0, 16, 100)),
        window(40_000, 29_000, 31_000, 20_000, 40_000),
        Say(50_000, 0, Event::Marker(1)),
    ]);
    assert_eq!(outcome.anomalies.allocated_alive, 0);
    assert!(matches!(blocks[0].1, Ending::Gone { .. }) && matches!(blocks[1].1, Ending::Alive { .. }), "{blocks:?}");
    // Where all is observed, it is one: a release is missing.
    let (outcome, ..) = replay_sampled(&[
        mode(0, MODE_SAMPLED),
        Say(0, 0, Event::Rate(50)),
        Feed(alloc(10_000, 0, 16, 100)),
        Feed(alloc(30_000, 0, 16, 100)),
    ]);
    assert_eq!((outcome.anomalies.allocated_alive, outcome.totals.replaced), (1, 1));
}

/// Sampled, full, sampled, and off. Addresses below 100 are exact ones.
fn switched() -> Vec<Do> {
    vec![
        mode(0, MODE_SAMPLED),
        Say(0, 0, Event::Rate(50)),
        Feed(alloc(10, 0, 100, 7)),
        Feed(alloc(11, 0, 116, 7)),
        Feed(alloc(12, 0, 132, 7)),
        mode(10_000, MODE_FULL),
        Say(10_000, 0, Event::Rate(0)),
        Feed(alloc(10_100, 0, 16, 40)),
        Feed(alloc(10_200, 0, 32, 50)),
        Feed(alloc(10_300, 0, 48, 60)),
        Feed(alloc(10_400, 0, 64, 70)),
        // One sampled before, one exact, and one that was never sampled.
        Feed(free(11_000, 0, 100)),
        Feed(free(12_000, 0, 16)),
        Feed(free(13_000, 0, 0x9990)),
        mode(20_000, MODE_SAMPLED),
        Say(20_100, 0, Event::Rate(50)),
        // The release of an exact block that is seen all the same, and an address given out again after one that was not.
        Feed(free(25_000, 0, 32)),
        Feed(alloc(26_000, 0, 48, 7)),
        Feed(free(27_000, 0, 116)),
        mode(30_000, MODE_OFF),
    ]
}

#[test]
fn switching_between_modes_counts_no_block_twice_and_loses_none() {
    let (outcome, blocks, sampling) = replay_sampled(&switched());
    let endings: Vec<(u64, Ending)> = blocks.iter().map(|(block, ending)| (block.addr, *ending)).collect();
    let freed =
        |index: usize, at: u64| assert!(matches!(endings[index].1, Ending::Freed(death) if death.time_ns == at), "{:?}", endings[index]);
    assert_eq!(endings.iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [100, 116, 132, 16, 32, 48, 64, 48]);
    freed(0, 11_000);
    freed(1, 27_000);
    assert_eq!(endings[2].1, Ending::Censored { time_ns: 30_000 });
    freed(3, 12_000);
    freed(4, 25_000);
    assert_eq!(endings[5].1, Ending::Gone { time_ns: 26_000, known_ns: 20_000 });
    // Alive when only samples were watched from then on.
    assert_eq!(endings[6].1, Ending::Censored { time_ns: 20_000 });
    assert_eq!(endings[7].1, Ending::Censored { time_ns: 30_000 });
    assert_eq!((outcome.totals.unknown_frees, outcome.anomalies.allocated_alive), (1, 0));
    let exact: Vec<bool> = blocks.iter().map(|(block, _)| sampling.drawn(block) == Drawn::Exact).collect();
    assert_eq!(exact, [false, false, false, true, true, true, true, false]);
    let parts: Vec<_> = sampling.parts().iter().map(|part| (part.name(), part.from_ns, part.intervals)).collect();
    assert_eq!(parts, [("sampled", 0, Some((50, 50))), ("full", 10_000, None), ("sampled", 20_000, Some((50, 50))), ("off", 30_000, None)]);
}

#[test]
fn a_thread_that_notices_the_switch_late_is_exact_until_then() {
    let (_, blocks, sampling) = replay_sampled(&[
        mode(0, MODE_FULL),
        mode(100, MODE_SAMPLED),
        Feed(alloc(150, 0, 16, 8)),
        Say(200, 0, Event::Rate(50)),
        Feed(alloc(250, 0, 32, 8)),
    ]);
    assert_eq!(sampling.drawn(&blocks[0].0), Drawn::Exact);
    assert_eq!(blocks[0].1, Ending::Censored { time_ns: 150 });
    assert!(matches!(sampling.drawn(&blocks[1].0), Drawn::Sampled(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_sampled_event_list_keeps_the_balance_and_never_panics(
        events in prop::collection::vec((0u64..2000, 0u32..3, 0u64..6, 0u64..5000, 0u8..16), 0..200)
    ) {
        let mut now = 0;
        let mut steps = vec![Say(0, 0, Event::Rate(700))];
        steps.extend(events.iter().map(|&(gap, stream, number, size, what)| {
            now += gap;
            let addr = number * 16;
            match what {
                0..5 => Feed(alloc(now, stream, addr, size)),
                5..8 => Feed(free(now, stream, addr)),
                8 => mode(now, number as u8),
                9 => Say(now, stream, Event::Rate(size * (size % 2))),
                10..14 => liveness(now, addr, what - 10),
                _ => window(now, now.saturating_sub(gap), now, now.saturating_sub(gap * 2), now + size),
            }
        }));
        let (Outcome { totals, .. }, blocks, sampling) = replay_sampled(&steps);
        let allocated = steps.iter().filter(|step| matches!(step, Feed(Step { what: What::Alloc { .. }, .. }))).count();
        prop_assert_eq!(totals.allocations, allocated as u64);
        prop_assert_eq!(totals.allocations, totals.frees + totals.replaced + totals.gone + totals.live_blocks + totals.uncertain_blocks);
        let ended = totals.freed_bytes + totals.replaced_bytes + totals.gone_bytes;
        prop_assert_eq!(totals.allocated_bytes, ended + totals.live_bytes + totals.uncertain_bytes);
        prop_assert_eq!(blocks.len(), allocated);
        for (block, ending) in &blocks {
            prop_assert!(ending.known_ns() <= ending.time_ns());
            if let Drawn::Sampled(weight) = sampling.drawn(block) {
                prop_assert!(weight.scale >= 1.0 && weight.probability > 0.0 && weight.probability <= 1.0);
                prop_assert!(weight.cluster.is_none_or(|cluster| cluster < sampling.clusters()));
            }
        }
    }
}
