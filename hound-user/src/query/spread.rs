//! How sizes and lifetimes are spread: blocks and bytes by size, or by how long blocks lived, by group.
//!
//! As [`Timeline`](super::Timeline) the second of two passes over a capture. A sample counts as what it stands for.

use super::estimate::{Estimate, Scale};
use super::timeline::Grouping;
use crate::capture::Scale as Places;
use crate::capture::model::Culled;
use crate::heap::{Block, Drawn, Ending, Sampling};
use hound_common::sampling::probability;
use std::sync::Arc;

/// Over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Bytes asked for: places are powers of two.
    Sizes,
    /// Time from allocation to release: places are 1, 2 and 5 times a power of ten.
    Lifetimes,
}

/// What is on no scale of lifetimes.
const APART: usize = 2;
/// What is seen with this probability is not missed.
const CERTAIN: f64 = 0.9999;

/// One place of a scale.
#[derive(Clone, Debug, PartialEq)]
pub enum Bucket {
    /// From this value on, and below that one; nothing: no end.
    Values(u64, Option<u64>),
    /// It lives at the end.
    NeverReleased,
    /// Its release may have been missed, or the recording was switched off while it lived.
    NotKnown,
}

/// Blocks and bytes.
pub type Both = [f64; 2];

/// What was added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// From the first place with anything to the last, and what is on no scale.
    pub buckets: Vec<Bucket>,
    /// The rows that were chosen, those with the most bytes first: places in the table.
    pub rows: Vec<usize>,
    /// How many others there are that have anything.
    pub others: usize,
    /// By row chosen, then of all others: by bucket.
    pub values: Vec<Vec<Both>>,
    /// Where there are samples: the range that holds the truth with 95 %, by bucket.
    pub intervals: Option<Vec<[(u64, u64); 2]>>,
}

/// Adds blocks up by size or lifetime.
pub struct Spread {
    grouping: Grouping,
    sampling: Option<Arc<Sampling>>,
    over: Over,
    /// When recording was over.
    watched_ns: u64,
    /// Where each place of the scale begins.
    from: Vec<u64>,
    /// By row, by place; empty where a row has nothing.
    rows: Vec<Vec<Both>>,
    /// Of all rows, by place: blocks, bytes.
    whole: Vec<[Estimate; 2]>,
}

impl Spread {
    /// Of nothing. `watched_ns`: when recording was over, if it was before the capture's end.
    pub fn new(grouping: Grouping, over: Over, sampling: Option<Arc<Sampling>>, watched_ns: Option<u64>) -> Self {
        let from = match over {
            Over::Sizes => Places::Sizes.places(),
            Over::Lifetimes => Places::Lifetimes.places(),
        };
        let places = from.len() + APART;
        let whole = vec![<[Estimate; 2]>::default(); if sampling.is_some() { places } else { 0 }];
        let watched_ns = watched_ns.unwrap_or(u64::MAX);
        Spread { rows: vec![Vec::new(); grouping.rows()], grouping, sampling, over, watched_ns, from, whole }
    }

    /// Blocks that were left out while it was recorded, of no row that has a name.
    pub fn add_culled(&mut self, of: &Culled) {
        let places = self.from.len() + APART;
        let Some(row) = self.rows.last_mut() else { return };
        row.resize(places, Both::default());
        for &(place, blocks, bytes) in if self.over == Over::Sizes { &of.sizes } else { &of.lifetimes } {
            let Some(both) = row[..places - APART].get_mut(usize::from(place)) else { continue };
            (both[0], both[1]) = (both[0] + blocks as f64, both[1] + bytes as f64);
        }
    }

    /// A block ended, or lives at the end.
    pub fn add(&mut self, block: &Block, ending: &Ending) {
        if !self.grouping.lets(block, ending) {
            return;
        }
        let Some(row) = self.grouping.row(block, self.sampling.as_deref()) else { return };
        let place = match (self.over, ending) {
            (Over::Sizes, _) => self.place(block.size),
            (Over::Lifetimes, Ending::Freed(death)) => self.place(death.time_ns.saturating_sub(block.alloc_ns)),
            (Over::Lifetimes, Ending::Alive { .. }) => self.from.len(),
            // What lived when recording was over was not released while it lasted; what lived when it paused may have been since.
            (Over::Lifetimes, Ending::Censored { time_ns }) if *time_ns >= self.watched_ns => self.from.len(),
            // It ended by some moment, or lived until one: neither is a lifetime.
            (Over::Lifetimes, Ending::Replaced { .. } | Ending::Gone { .. } | Ending::Uncertain { .. } | Ending::Censored { .. }) => {
                self.from.len() + 1
            }
        };
        let drawn = self.sampling.as_ref().map_or(Drawn::Exact, |sampling| sampling.drawn(block));
        let stands_for = match &drawn {
            Drawn::Exact => 1.0,
            Drawn::Sampled(weight) => weight.scale / weight.probability,
            Drawn::Unknown => return,
        };
        if let Some(whole) = self.whole.get_mut(place) {
            for (estimate, value) in whole.iter_mut().zip([1, block.size]) {
                match &drawn {
                    Drawn::Sampled(weight) => estimate.add(value, weight),
                    _ => estimate.add_exact(value),
                }
            }
        }
        let places = self.from.len() + APART;
        let row = &mut self.rows[row];
        if row.is_empty() {
            row.resize(places, Both::default());
        }
        row[place][0] += stands_for;
        row[place][1] += stands_for * block.size as f64;
    }

    fn place(&self, value: u64) -> usize {
        self.from.partition_point(|from| *from <= value) - 1
    }

    /// What the heaviest sample of this place stands for that may have been missed: of sizes, it is known how large it would have been.
    fn scale_of(&self, scale: &Scale, place: usize) -> Scale {
        let (Over::Sizes, Some(sampling), Some(&from)) = (self.over, &self.sampling, self.from.get(place)) else { return scale.clone() };
        let interval = sampling.largest_interval();
        let seen = if interval == 0 { scale.share } else { probability(from.max(1), interval) * scale.share };
        let (blocks, bytes) = if seen > CERTAIN { (0.0, 0.0) } else { (1.0 / seen, scale.bytes.max(from as f64 / scale.share)) };
        Scale { blocks, bytes, ..scale.clone() }
    }

    /// What was added up: the `most` largest rows, and the sum of all others. `scale`: of the first pass, if there are samples.
    pub fn finish(self, most: usize, scale: Option<&Scale>) -> Histogram {
        let bytes = |row: &Vec<Both>| row.iter().map(|both| both[1]).sum::<f64>();
        let mut ranked: Vec<(usize, f64)> =
            (0..self.rows.len()).filter(|at| !self.rows[*at].is_empty()).map(|at| (at, bytes(&self.rows[at]))).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        // The table's last row is of no name.
        let nameless = self.rows.len() - 1;
        let chosen: Vec<usize> = ranked.iter().map(|(row, _)| *row).filter(|row| *row != nameless).take(most).collect();
        let places = self.from.len() + APART;
        let mut rest = vec![Both::default(); places];
        for (row, _) in ranked.iter().filter(|(row, _)| !chosen.contains(row)) {
            rest.iter_mut().zip(&self.rows[*row]).for_each(|(rest, both)| (0..2).for_each(|which| rest[which] += both[which]));
        }
        let has = |place: usize| self.rows.iter().any(|row| row.get(place).is_some_and(|both| both[0] > 0.0));
        let scaled: Vec<usize> = (0..self.from.len()).filter(|place| has(*place)).collect();
        let shown = scaled.first().zip(scaled.last()).map_or(0..0, |(first, last)| *first..last + 1);
        let never = self.over == Over::Lifetimes;
        let shown: Vec<usize> = shown
            .chain(
                (self.from.len()..places).filter(|place| if *place == self.from.len() { never && !ranked.is_empty() } else { has(*place) }),
            )
            .collect();
        let bucket = |place: &usize| match place.checked_sub(self.from.len()) {
            None => Bucket::Values(self.from[*place], self.from.get(place + 1).copied()),
            Some(0) => Bucket::NeverReleased,
            Some(_) => Bucket::NotKnown,
        };
        let of = |row: &Vec<Both>| shown.iter().map(|place| row[*place]).collect();
        let interval = |scale: &Scale, place: usize| {
            let scale = self.scale_of(scale, place);
            [(0, true), (1, false)].map(|(which, counts)| self.whole[place][which].interval(&scale, counts))
        };
        Histogram {
            buckets: shown.iter().map(bucket).collect(),
            values: chosen.iter().map(|row| &self.rows[*row]).chain([&rest]).map(of).collect(),
            intervals: scale.filter(|_| !self.whole.is_empty()).map(|scale| shown.iter().map(|place| interval(scale, *place)).collect()),
            others: ranked.len() - chosen.len(),
            rows: chosen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::Peak;
    use crate::query::tests::{Heap, sampled_example};
    use crate::query::{Figure, Group, Measure, Query, Suppressions, Table, ask};
    use proptest::prelude::*;

    const PATHS: [&[u64]; 3] = [&[0x1010, 0x1020], &[0x1010, 0x1020, 0x1030], &[0x1010, 0x2020, 0x2010]];

    fn spread(heap: &Heap, query: &Query, over: Over, most: usize) -> (Histogram, Table) {
        let (entries, whole, _) = heap.entries(query);
        let sites = heap.sites(query);
        let scale = whole.as_ref().map(|whole| whole.scale.clone());
        let table = ask(query, &sites, &heap.streams, &Suppressions::none(), scale.as_ref());
        let grouping = Grouping::new(query, &sites, &heap.streams, &table, &entries, Vec::new());
        let mut spread = Spread::new(grouping, over, heap.sampling.clone(), None);
        heap.replay(|block: &Block, ending: &Ending, _: &Peak| spread.add(block, ending));
        (spread.finish(most, scale.as_ref()), table)
    }

    fn allocated() -> Query {
        Query { measure: Measure::Allocated, ..Query::default() }
    }

    /// 0 B and 1 B for no time, 100 B and 127 B for 5 µs and 9,999 ns, 128 B for 3 s, 4096 B for ever.
    fn known() -> Heap {
        let mut heap = Heap::new();
        heap.alloc(0, 0, 0x100, 0, PATHS[0]).free(0, 0, 0x100);
        heap.alloc(1, 0, 0x100, 1, PATHS[0]).free(1000, 0, 0x100);
        heap.alloc(2000, 0, 0x200, 100, PATHS[1]).alloc(2001, 0, 0x300, 127, PATHS[1]).free(7000, 0, 0x200).free(12_000, 0, 0x300);
        heap.alloc(20_000, 0, 0x400, 128, PATHS[2]).alloc(20_001, 0, 0x5000, 4096, PATHS[2]).free(3_000_020_000, 0, 0x400);
        heap
    }

    #[test]
    fn sizes_are_in_the_power_of_two_below() {
        let (found, _) = spread(&known(), &allocated(), Over::Sizes, 9);
        let places: Vec<(u64, f64, f64)> = (0..found.buckets.len())
            .filter_map(|at| match found.buckets[at] {
                Bucket::Values(from, below) => {
                    assert_eq!(below, Some((from * 2).max(1)));
                    let sum = |which: usize| found.values.iter().map(|row| row[at][which]).sum::<f64>();
                    (sum(0) > 0.0).then_some((from, sum(0), sum(1)))
                }
                _ => panic!("a size is always known"),
            })
            .collect();
        assert_eq!(places, [(0, 1.0, 0.0), (1, 1.0, 1.0), (64, 2.0, 227.0), (128, 1.0, 128.0), (4096, 1.0, 4096.0)]);
        assert_eq!((found.buckets.len(), found.intervals.is_none(), found.others), (14, true, 0));
    }

    #[test]
    fn lives_are_in_steps_of_1_2_and_5_and_what_was_never_released_apart() {
        let (found, _) = spread(&known(), &allocated(), Over::Lifetimes, 9);
        let sum = |bucket: &Bucket, which: usize| {
            let at = found.buckets.iter().position(|other| other == bucket).unwrap();
            found.values.iter().map(|row| row[at][which]).sum::<f64>()
        };
        let (micro, second) = (1000, 1_000_000_000);
        let bytes = [
            Bucket::Values(0, Some(100)),
            Bucket::Values(500, Some(micro)),
            Bucket::Values(5 * micro, Some(10 * micro)),
            Bucket::Values(2 * second, Some(5 * second)),
            Bucket::NeverReleased,
        ]
        .map(|bucket| (sum(&bucket, 0), sum(&bucket, 1)));
        assert_eq!(bytes, [(1.0, 0.0), (1.0, 1.0), (2.0, 227.0), (1.0, 128.0), (1.0, 4096.0)]);
        assert!(!found.buckets.contains(&Bucket::NotKnown), "all is known");
        let leaked = Query { blocks: crate::query::BlockFilter { min_size: Some(128), ..Default::default() }, ..allocated() };
        let (found, _) = spread(&known(), &leaked, Over::Lifetimes, 9);
        assert_eq!(found.buckets, [Bucket::Values(2 * second, Some(5 * second)), Bucket::NeverReleased]);
    }

    #[test]
    fn an_address_given_out_twice_ended_at_a_time_that_nobody_knows() {
        let mut heap = Heap::new();
        heap.alloc(0, 0, 0x100, 10, PATHS[0]).alloc(5000, 0, 0x100, 20, PATHS[0]);
        let (found, _) = spread(&heap, &allocated(), Over::Lifetimes, 9);
        assert_eq!(found.buckets, [Bucket::NeverReleased, Bucket::NotKnown]);
        assert_eq!(found.values[0], [[1.0, 20.0], [1.0, 10.0]]);
    }

    #[test]
    fn samples_stand_for_what_the_report_says() {
        let heap = sampled_example();
        for over in [Over::Sizes, Over::Lifetimes] {
            let (found, table) = spread(&heap, &allocated(), over, 1);
            let sum = |which: usize| found.values.iter().flatten().map(|both| both[which]).sum::<f64>();
            assert!((sum(0) - table.total.allocations as f64).abs() < 1.0 && (sum(1) - table.total.allocated_bytes as f64).abs() < 1.0);
            let intervals = found.intervals.unwrap();
            for (at, bounds) in intervals.iter().enumerate() {
                let of = |which: usize| found.values.iter().map(|row| row[at][which]).sum::<f64>();
                assert!((0..2).all(|which| bounds[which].0 as f64 <= of(which) + 1.0 && of(which) <= bounds[which].1 as f64 + 1.0));
            }
            if over == Over::Lifetimes {
                assert!(found.buckets.contains(&Bucket::NotKnown), "who was seen in a window only may have ended or not");
            } else {
                // All of what is in one place is the figure of that size alone, with its interval.
                let at = found.buckets.iter().position(|bucket| *bucket == Bucket::Values(4096, Some(8192))).unwrap();
                assert_eq!(intervals[at][1].0, 4096, "it was recorded in full");
            }
            assert!(table.total.interval(Figure::AllocatedBytes).is_some());
        }
    }

    proptest! {
        #[test]
        fn every_block_is_in_its_place(
            blocks in prop::collection::vec((0u64..100_000, 0u64..70_000, prop::option::of(0u64..3_000_000), 0usize..3), 1..60),
            limit in 1usize..3,
            group in prop::sample::select(vec![Group::Site, Group::Function, Group::Module]),
        ) {
            let mut steps: Vec<(u64, usize, bool)> = Vec::new();
            for (number, (at, _, life, _)) in blocks.iter().enumerate() {
                steps.push((*at, number, true));
                steps.extend(life.map(|life| (at + life, number, false)));
            }
            steps.sort_by_key(|(at, number, allocates)| (*at, *number, !allocates));
            let mut heap = Heap::new();
            for &(at, number, allocates) in &steps {
                let addr = 0x10_0000 + number as u64 * 0x10_0000;
                match allocates {
                    true => heap.alloc(at, 0, addr, blocks[number].1, PATHS[blocks[number].3]),
                    false => heap.free(at, 0, addr),
                };
            }
            let query = Query { group, ..allocated() };
            for over in [Over::Sizes, Over::Lifetimes] {
                let (found, _) = spread(&heap, &query, over, limit);
                prop_assert!(found.values.len() == found.rows.len() + 1 && found.rows.len() <= limit);
                for (at, bucket) in found.buckets.iter().enumerate() {
                    let is_in = |(_, size, life, _): &&(u64, u64, Option<u64>, usize)| match (over, bucket) {
                        (Over::Sizes, Bucket::Values(from, below)) => size >= from && below.is_none_or(|below| *size < below),
                        (_, Bucket::Values(from, below)) => life.is_some_and(|life| life >= *from && below.is_none_or(|below| life < below)),
                        (_, Bucket::NeverReleased) => life.is_none(),
                        _ => false,
                    };
                    let expected: Vec<_> = blocks.iter().filter(is_in).collect();
                    let sum = |which: usize| found.values.iter().map(|row| row[at][which]).sum::<f64>();
                    prop_assert_eq!(sum(0), expected.len() as f64);
                    prop_assert_eq!(sum(1), expected.iter().map(|block| block.1).sum::<u64>() as f64);
                }
                prop_assert_eq!(found.values.iter().flatten().map(|both| both[0]).sum::<f64>(), blocks.len() as f64);
            }
        }
    }
}
