//! What lived at each of many moments, by group.
//!
//! The second of two passes over a capture. The first one ([`Tally`](super::Tally)) says what there is, so that names are known and each
//! block's row is decided by its [`Key`] alone; this one adds each block to the moments at which it lived. Neither keeps a block.

use super::estimate::{Estimate, Living, Scale};
use super::filter::BlockFilter;
use super::group::{Table, row_key, select};
use super::sites::Sites;
use super::suppress::Suppressions;
use super::tally::{Entry, Key, key_of};
use super::{Query, Split};
use crate::capture::StreamInfo;
use crate::capture::model::{Culled, StreamId};
use crate::heap::{Block, Drawn, End, Ending, Sampling, Weight};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Which row a block is of.
pub struct Grouping {
    filter: BlockFilter,
    split: Split,
    remappings: Vec<u64>,
    /// Only of what passes all filters.
    row_of: HashMap<Key, usize>,
    /// How many there are.
    rows: usize,
}

impl Grouping {
    /// The rows of `table`: the answer to this query without a limit. `entries` are those `sites` was made of, `remappings` those of the tally.
    /// Rows that the table has left out for their figure are one row more, the last.
    pub fn new(query: &Query, sites: &Sites<'_>, streams: &[StreamInfo], table: &Table, entries: &[Entry], remappings: Vec<u64>) -> Self {
        let numbers: HashMap<_, usize> = table.rows.iter().enumerate().map(|(number, row)| (&row.key, number)).collect();
        let others = table.rows.len();
        // What is suppressed is suppressed for being a leak; here it is counted as what it is: memory.
        let selected = select(query, sites, streams, &Suppressions::none());
        let number = |node, part| numbers.get(&row_key(query.group, sites, streams, node, part)).copied().unwrap_or(others);
        let of_part: HashMap<_, usize> = selected.sums.iter().map(|(node, part, _)| ((*node, *part), number(*node, part))).collect();
        let with_path = entries.iter().zip(sites.of_entries());
        let row_of = with_path.filter_map(|(entry, node)| Some((entry.key, *of_part.get(&(*node, entry.key.part))?))).collect();
        Grouping { filter: query.blocks.clone(), split: query.split(), remappings, row_of, rows: others + 1 }
    }

    /// Which row a block is of; none if the filters leave it out.
    pub(super) fn row(&self, block: &Block, sampling: Option<&Sampling>) -> Option<usize> {
        self.row_of.get(&key_of(block, self.split, &self.remappings, sampling)).copied()
    }

    /// Whether the block is asked for.
    pub fn has(&self, block: &Block, ending: &Ending) -> bool {
        self.lets(block, ending) && self.row(block, None).is_some()
    }

    /// How many rows there are, that of no name included.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the filter of single blocks lets it through.
    pub(super) fn lets(&self, block: &Block, ending: &Ending) -> bool {
        self.filter.lets(block, ending)
    }
}

/// What is added up of one row. Most blocks live across no moment at all, and most rows have blocks at few: only what is there is kept.
#[derive(Clone, Default)]
struct Line {
    /// What more lives at a moment than at the one before: bytes of blocks that stand for themselves.
    changes: BTreeMap<usize, i128>,
    /// What samples stand for that live at a moment. Added up for each, not as changes: sums of fractions do not cancel.
    standing: BTreeMap<usize, f64>,
    /// The same of samples in windows that are not known to live.
    doubtful: BTreeMap<usize, Doubtful>,
    /// Blocks allocated between a moment and the next.
    allocations: BTreeMap<usize, f64>,
}

/// Bytes, as in [`Living`].
#[derive(Clone, Copy, Default)]
struct Doubtful {
    survived: f64,
    ended: f64,
    doubted: f64,
}

/// All samples at one moment.
#[derive(Clone, Default)]
struct Moment {
    known: Estimate,
    survived: Estimate,
    ended: Estimate,
    doubted: Estimate,
}

impl Moment {
    fn living(&self) -> Living<'_> {
        Living { known: &self.known, survived: &self.survived, ended: &self.ended, doubted: &self.doubted }
    }
}

impl Line {
    fn merge(&mut self, other: &Line) {
        other.changes.iter().for_each(|(&at, change)| *self.changes.entry(at).or_default() += change);
        other.standing.iter().for_each(|(&at, samples)| *self.standing.entry(at).or_default() += samples);
        for (&at, more) in &other.doubtful {
            let sum = self.doubtful.entry(at).or_default();
            sum.survived += more.survived;
            sum.ended += more.ended;
            sum.doubted += more.doubted;
        }
        other.allocations.iter().for_each(|(&at, blocks)| *self.allocations.entry(at).or_default() += blocks);
    }

    /// What lives at each of so many moments.
    fn live(&self, moments: usize) -> Vec<f64> {
        let mut live = vec![0.0; moments];
        let (mut exact, mut from) = (0i128, 0);
        for (&at, &change) in self.changes.iter().chain([(&moments, &0)]) {
            live[from..at].fill(exact as f64);
            (exact, from) = (exact + change, at);
        }
        self.standing.iter().for_each(|(&at, samples)| live[at] += samples);
        self.doubtful.iter().for_each(|(&at, of)| live[at] += (of.survived - of.ended).clamp(0.0, of.doubted));
        live
    }

    fn allocations(&self, moments: usize) -> Vec<f64> {
        let mut allocations = vec![0.0; moments];
        self.allocations.iter().for_each(|(&at, &blocks)| allocations[at] = blocks);
        allocations
    }
}

/// Adds blocks up by the moments at which they lived.
pub struct Timeline {
    grouping: Grouping,
    sampling: Option<Arc<Sampling>>,
    /// Ascending.
    moments: Vec<u64>,
    /// By row.
    lines: Vec<Line>,
    /// Samples at each moment, of all rows.
    whole: Vec<Moment>,
    /// Of streams whose process ended: from which moment on it was over.
    over: HashMap<StreamId, usize>,
}

/// What rows are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// The most bytes that lived at any one moment.
    Live,
    /// How many blocks were allocated.
    Allocations,
}

/// What lived when, and what was allocated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// Nanoseconds of the capture, ascending.
    pub moments: Vec<u64>,
    /// The rows that were chosen, the largest first: places in the table.
    pub rows: Vec<usize>,
    /// How many others there are that have anything.
    pub others: usize,
    /// Bytes that lived at each moment: of each row chosen, then of all others.
    pub live: Vec<Vec<f64>>,
    /// All of them, in the interval that holds the truth with 95 %, where there are samples.
    pub intervals: Option<Vec<(u64, u64)>>,
    /// Blocks allocated from each moment to the next (at the last one: from then on), by series as `live`.
    pub allocations: Vec<Vec<f64>>,
}

impl Timeline {
    /// For these moments, ascending.
    pub fn new(grouping: Grouping, moments: Vec<u64>, sampling: Option<Arc<Sampling>>) -> Self {
        let whole = vec![Moment::default(); if sampling.is_some() { moments.len() } else { 0 }];
        Timeline { lines: vec![Line::default(); grouping.rows], grouping, sampling, moments, whole, over: HashMap::new() }
    }

    /// The same where the processes of these streams ended then: what lived in them is gone.
    pub fn with_ends(mut self, ends: &[(StreamId, u64)]) -> Self {
        let from = |end_ns: u64| self.moments.partition_point(|&moment| moment < end_ns);
        self.over = ends.iter().map(|(stream, end_ns)| (*stream, from(*end_ns))).collect();
        self
    }

    /// Blocks that were left out while it was recorded, of no row that has a name: allocated evenly between two times.
    pub fn add_culled(&mut self, of: &Culled) {
        let (Some(line), span) = (self.lines.last_mut(), of.to_ns.saturating_sub(of.from_ns).max(1)) else { return };
        for (at, from) in self.moments.iter().enumerate() {
            let to = self.moments.get(at + 1).copied().unwrap_or(u64::MAX);
            let common = of.to_ns.min(to).saturating_sub(of.from_ns.max(*from));
            if common > 0 {
                *line.allocations.entry(at).or_default() += of.blocks as f64 * common as f64 / span as f64;
            }
        }
    }

    /// A block ended, or lives at the end.
    pub fn add(&mut self, block: &Block, ending: &Ending) {
        let lets = self.grouping.lets(block, ending);
        if !lets && !self.would_let(block, ending) {
            return;
        }
        let Some(row) = self.grouping.row(block, self.sampling.as_deref()) else { return };
        let line = &mut self.lines[row];
        let from = self.moments.partition_point(|&moment| moment < block.alloc_ns);
        // What was not known to live is not said to.
        let until = match ending {
            Ending::Alive { .. } | Ending::Censored { .. } => self.moments.len(),
            _ => from + self.moments[from..].partition_point(|&moment| moment < ending.known_ns()),
        };
        let over = if self.over.is_empty() { None } else { self.over.get(&block.stream).copied() };
        let until = over.map_or(until, |over| until.min(over.max(from)));
        let drawn = self.sampling.as_ref().map_or(Drawn::Exact, |sampling| sampling.drawn(block));
        let stands_for = match drawn {
            Drawn::Exact => {
                if from < until {
                    *line.changes.entry(from).or_default() += i128::from(block.size);
                }
                if from < until && until < self.moments.len() {
                    *line.changes.entry(until).or_default() -= i128::from(block.size);
                }
                1.0
            }
            Drawn::Sampled(weight) => {
                let blocks = weight.scale / weight.probability;
                if weight.cluster.is_some() && !ending.is_live() {
                    self.add_in_doubt(row, block, ending, from..over.unwrap_or(self.moments.len()), &weight);
                } else if lets {
                    for moment in from..until {
                        *line.standing.entry(moment).or_default() += block.size as f64 * blocks;
                        self.whole[moment].known.add(block.size, &weight);
                    }
                }
                blocks
            }
            Drawn::Unknown => return,
        };
        // What is allocated at a moment is live there already, and counts to what follows.
        let at_once = self.moments.get(from) == Some(&block.alloc_ns);
        if let Some(period) = (from + usize::from(at_once)).checked_sub(1).filter(|_| lets) {
            *self.lines[row].allocations.entry(period).or_default() += stands_for;
        }
    }

    /// Whether the filter would let the sample through if it lived: its end stands for ends of others.
    fn would_let(&self, block: &Block, ending: &Ending) -> bool {
        self.sampling.as_ref().is_some_and(|sampling| {
            let lived = Ending::Alive { time_ns: sampling.ended_ns().max(ending.time_ns()) };
            !sampling.is_exact(block) && self.grouping.lets(block, &lived)
        })
    }

    /// A sample of a window that is not known to live at the end. At each moment it counts as it would in a report of a capture that ends
    /// there: until its end was seen it may live, and then it stands for others that ended.
    fn add_in_doubt(&mut self, row: usize, block: &Block, ending: &Ending, within: Range<usize>, weight: &Weight) {
        let from = within.start;
        let end = self.sampling.as_ref().map_or(End::Unseen, |sampling| sampling.end_of(block, ending));
        let until = match ending {
            Ending::Uncertain { .. } => self.moments.len(),
            _ => from + self.moments[from..].partition_point(|&moment| moment < ending.time_ns()),
        };
        let bytes = block.size as f64 / weight.probability;
        for (at, moment) in self.whole.iter_mut().enumerate().take(within.end).skip(from) {
            let of = self.lines[row].doubtful.entry(at).or_default();
            let factor = match end {
                _ if at < until => {
                    of.doubted += bytes * weight.scale;
                    moment.doubted.add(block.size, weight);
                    1.0
                }
                End::Watched => continue,
                End::Within { factor } => factor,
                End::Unseen => 1.0,
                End::Later { factor, cluster } => {
                    of.ended += bytes * factor;
                    moment.ended.add_ends(block.size, weight, factor, cluster);
                    1.0
                }
            };
            of.survived += bytes * weight.scale * factor;
            moment.survived.add_part(block.size, weight, factor);
        }
    }

    /// What was added up: the `most` largest rows, and the sum of all others. `scale`: of the first pass, if there are samples.
    pub fn finish(self, most: usize, rank: Rank, scale: Option<&Scale>) -> Course {
        let moments = self.moments.len();
        let size = |line: &Line| match rank {
            Rank::Live => line.live(moments).into_iter().fold(0.0, f64::max),
            Rank::Allocations => line.allocations.values().sum(),
        };
        let mut ranked: Vec<(usize, f64)> = self.lines.iter().map(size).enumerate().filter(|(_, size)| *size > 0.0).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        // The table's last row is of no name.
        let nameless = self.lines.len() - 1;
        let rows: Vec<usize> = ranked.iter().map(|(row, _)| *row).filter(|row| *row != nameless).take(most).collect();
        let chosen: HashSet<usize> = rows.iter().copied().collect();
        let mut rest = Line::default();
        self.lines.iter().enumerate().filter(|(row, _)| !chosen.contains(row)).for_each(|(_, line)| rest.merge(line));
        let shown: Vec<&Line> = rows.iter().map(|&row| &self.lines[row]).chain([&rest]).collect();
        let mut whole = self.whole;
        if !whole.is_empty() {
            let mut exact = vec![0i128; moments + 1];
            self.lines.iter().flat_map(|line| &line.changes).for_each(|(&at, change)| exact[at] += change);
            let mut sum = 0;
            for (moment, change) in whole.iter_mut().zip(exact) {
                sum += change;
                moment.known.add_exact(sum.clamp(0, u64::MAX.into()) as u64);
            }
        }
        let mut live: Vec<Vec<f64>> = shown.iter().map(|line| line.live(moments)).collect();
        if let Some((others, chosen)) = live.split_last_mut() {
            // Estimates of parts do not add up to the estimate of the whole where each is kept within its bounds.
            for (at, moment) in whole.iter().enumerate() {
                let known = chosen.iter().map(|series| series[at]).sum::<f64>();
                others[at] = (moment.living().value() as f64 - known).max(0.0);
            }
        }
        Course {
            live,
            allocations: shown.iter().map(|line| line.allocations(moments)).collect(),
            intervals: scale.map(|scale| whole.iter().map(|moment| moment.living().interval(scale, false)).collect()),
            others: ranked.len() - rows.len(),
            rows,
            moments: self.moments,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::Peak;
    use crate::query::tests::{Heap, sampled_example};
    use crate::query::{Group, Measure, Tally, ask};
    use proptest::prelude::*;

    const PATHS: [&[u64]; 4] = [&[0x1010, 0x1020], &[0x1010, 0x1020, 0x1030], &[0x1010, 0x2020, 0x2010], &[0x1010]];

    fn course(heap: &Heap, query: &Query, most: usize, moments: Vec<u64>) -> (Course, Table) {
        let (entries, whole, _) = heap.entries(query);
        let sites = heap.sites(query);
        let scale = whole.as_ref().map(|whole| whole.scale.clone());
        let table = ask(query, &sites, &heap.streams, &Suppressions::none(), scale.as_ref());
        let grouping = Grouping::new(query, &sites, &heap.streams, &table, &entries, Vec::new());
        let mut timeline = Timeline::new(grouping, moments, heap.sampling.clone());
        heap.replay(|block: &Block, ending: &Ending, _: &Peak| timeline.add(block, ending));
        (timeline.finish(most, Rank::Live, scale.as_ref()), table)
    }

    proptest! {
        /// Every block is put on every moment by hand.
        #[test]
        fn each_moment_has_what_lived_then(
            blocks in prop::collection::vec((0u64..1000, 1u64..400, 0u64..5000, 0usize..4, 0u32..2), 1..60),
            mut moments in prop::collection::vec(0u64..1500, 1..12),
            limit in 1usize..4,
            group in prop::sample::select(vec![Group::Site, Group::Function, Group::Module, Group::Thread, Group::Size, Group::Process]),
        ) {
            moments.sort_unstable();
            moments.dedup();
            let mut steps: Vec<(u64, usize, bool)> = Vec::new();
            for (number, &(at, life, ..)) in blocks.iter().enumerate() {
                steps.push((at, number, true));
                // A tenth of them is never released.
                if number % 10 != 9 {
                    steps.push((at + life, number, false));
                }
            }
            steps.sort();
            let mut heap = Heap::new();
            for &(at, number, allocates) in &steps {
                let (_, _, size, path, stream) = blocks[number];
                let addr = 0x10_0000 + number as u64 * 0x1_0000;
                match allocates {
                    true => heap.alloc(at, stream, addr, size, PATHS[path]),
                    false => heap.free(at, stream, addr),
                };
            }
            let query = Query { group, measure: Measure::Peak, ..Query::default() };
            let (course, _) = course(&heap, &query, limit, moments.clone());
            prop_assert!(course.rows.len() <= limit && course.live.len() == course.rows.len() + 1);
            let highest = |series: &Vec<f64>| series.iter().copied().fold(0.0, f64::max);
            let heights: Vec<f64> = course.live[..course.rows.len()].iter().map(highest).collect();
            prop_assert!(heights.windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", heights);
            for (index, &moment) in moments.iter().enumerate() {
                let lives = |number: &usize| {
                    let (at, life, ..) = blocks[*number];
                    at <= moment && (number % 10 == 9 || moment < at + life)
                };
                let expected: u64 = (0..blocks.len()).filter(lives).map(|number| blocks[number].2).sum();
                let found: f64 = course.live.iter().map(|series| series[index]).sum();
                prop_assert_eq!(found, expected as f64, "at {}", moment);
                let mut tally = Tally::new(Default::default(), Split::default(), Vec::new()).until(Some(moment));
                let outcome = heap.replay(|block: &Block, ending: &Ending, peak: &Peak| tally.add(block, ending, peak));
                let alone: u64 = tally.finish(&outcome.peak).entries.iter().map(|entry| entry.sums.live_bytes).sum();
                prop_assert_eq!(alone, expected, "alone, at {}", moment);
            }
            let within = |at: u64| moments.first().is_some_and(|first| *first <= at);
            let all: f64 = course.allocations.iter().flatten().sum();
            prop_assert_eq!(all, blocks.iter().filter(|(at, ..)| within(*at)).count() as f64);
        }
    }

    #[test]
    fn rows_are_told_apart_and_the_peak_is_met() {
        let mut heap = Heap::new();
        heap.alloc(10, 0, 0x100, 1000, PATHS[0]).alloc(20, 0, 0x200, 500, PATHS[1]).free(30, 0, 0x200).alloc(40, 1, 0x300, 7, PATHS[2]);
        let query = Query { measure: Measure::Peak, ..Query::default() };
        let (course, table) = course(&heap, &query, 1, vec![0, 10, 20, 30, 40]);
        assert_eq!((table.rows[course.rows[0]].sums.peak_bytes, course.others), (1000, 2));
        assert_eq!(course.live, [vec![0.0, 1000.0, 1000.0, 1000.0, 1000.0], vec![0.0, 0.0, 500.0, 0.0, 7.0]]);
        assert_eq!(course.allocations, [vec![0.0, 1.0, 0.0, 0.0, 0.0], vec![0.0, 0.0, 1.0, 0.0, 1.0]]);
        let peak = heap.entries(&query).2.peak;
        assert_eq!((peak.time_ns, peak.bytes), (20, 1500));
    }

    /// A report of a moment has what the picture over time has there.
    #[test]
    fn a_moment_alone_has_the_same_estimate_and_interval() {
        let heap = sampled_example();
        let moments: Vec<u64> = (1..25).map(|tenth| tenth * 100_000_000).collect();
        let (course, _) = course(&heap, &Query::default(), 9, moments.clone());
        let intervals = course.intervals.unwrap();
        for (at, &moment) in moments.iter().enumerate() {
            let tally = Tally::new(Default::default(), Split::default(), Vec::new());
            let mut tally = tally.sampled(heap.sampling.clone().unwrap()).until(Some(moment));
            let outcome = heap.replay(|block: &Block, ending: &Ending, peak: &Peak| tally.add(block, ending, peak));
            let whole = tally.finish(&outcome.peak).whole.unwrap();
            let over_time: f64 = course.live.iter().map(|series| series[at]).sum();
            assert!((whole.total.live_bytes as f64 - over_time).abs() <= 1.0, "{moment}: {} {over_time}", whole.total.live_bytes);
            let (low, high) = whole.total.interval(crate::query::Figure::LiveBytes).unwrap();
            let near = |a: u64, b: u64| a.abs_diff(b) as f64 <= 1.0 + 0.02 * b as f64;
            assert!(near(low, intervals[at].0) && near(high, intervals[at].1), "{moment}: {low}–{high} {:?}", intervals[at]);
        }
    }

    #[test]
    fn what_lived_in_a_process_is_gone_with_it() {
        let mut heap = Heap::new();
        heap.alloc(10, 0, 0x100, 1000, PATHS[0]).alloc(20, 1, 0x200, 500, PATHS[1]);
        let query = Query { measure: Measure::Peak, ..Query::default() };
        let (entries, _, _) = heap.entries(&query);
        let sites = heap.sites(&query);
        let table = ask(&query, &sites, &heap.streams, &Suppressions::none(), None);
        let grouping = Grouping::new(&query, &sites, &heap.streams, &table, &entries, Vec::new());
        let mut timeline = Timeline::new(grouping, vec![5, 25, 30, 40], None).with_ends(&[(StreamId(1), 30)]);
        heap.replay(|block: &Block, ending: &Ending, _: &Peak| timeline.add(block, ending));
        let live = timeline.finish(9, Rank::Live, None).live;
        let whole: Vec<f64> = (0..4).map(|at| live.iter().map(|series| series[at]).sum()).collect();
        assert_eq!(whole, [0.0, 1500.0, 1000.0, 1000.0]);
        let alone = |over: &[StreamId]| {
            let tally = Tally::new(Default::default(), Split::default(), Vec::new()).until(Some(35)).without(over);
            let mut tally = tally;
            let outcome = heap.replay(|block: &Block, ending: &Ending, peak: &Peak| tally.add(block, ending, peak));
            tally.finish(&outcome.peak).entries.iter().map(|entry| entry.sums.live_bytes).sum::<u64>()
        };
        assert_eq!((alone(&[]), alone(&[StreamId(1)])), (1500, 1000));
    }

    #[test]
    fn samples_stand_for_what_reports_say_with_the_same_intervals() {
        let heap = sampled_example();
        let query = Query { measure: Measure::Live, ..Query::default() };
        let (entries, whole, outcome) = heap.entries(&query);
        assert!(!entries.is_empty());
        let (course, table) = course(&heap, &query, 9, vec![0, outcome.end_ns]);
        let last: f64 = course.live.iter().map(|series| series[1]).sum();
        assert!((last - table.total.live_bytes as f64).abs() < 1.0, "{last} and {}", table.total.live_bytes);
        let of_report = table.total.interval(crate::query::Figure::LiveBytes).unwrap();
        let (low, high) = course.intervals.unwrap()[1];
        assert!(low.abs_diff(of_report.0) <= 1 && high.abs_diff(of_report.1) <= 1, "{low}–{high} and {of_report:?}");
        assert!(whole.is_some());
    }
}
