//! Page faults added up: who touched memory first, of which kind, and when.
//!
//! A touch counts where an allocation of a page would (`Figure::Allocations`, `Figure::AllocatedBytes`), so paths, filters, groups,
//! estimates and their intervals are those of allocations. Kind, half of the time and who touched are told apart as [`Part::class`], and
//! the same question is asked of each.

use super::estimate::Scale;
use super::group::{Branch, Row, RowKey, Table, ask, tree};
use super::sites::Sites;
use super::sums::Sums;
use super::suppress::Suppressions;
use super::tally::{Entry, Key, Part};
use super::{Group, Query};
use crate::capture::StreamInfo;
use crate::capture::model::{Fault, StreamId};
use crate::heap::{FaultKind, PAGE, fault_drawn};
use hound_common::event::FAULT_BY_KERNEL;
use hound_common::sampling::probability;
use std::collections::HashMap;

const LATER: u32 = 1 << 8;
const BY_KERNEL: u32 = 1 << 9;
const HUGE: u32 = 1 << 10;

/// Adds page faults up.
#[derive(Debug)]
pub struct FaultTally {
    query: Query,
    moments: Vec<u64>,
    middle_ns: u64,
    entries: Vec<Entry>,
    index: HashMap<Key, usize>,
    intervals: Option<(u64, u64)>,
    samples: u64,
    recorded: u64,
    bytes: u64,
}

/// What there is to ask questions of.
#[derive(Debug)]
pub struct Faults {
    /// By stack and part.
    pub entries: Vec<Entry>,
    /// Smallest and largest interval that samples were drawn at; 0: every touch.
    pub intervals: Option<(u64, u64)>,
    /// Samples among them.
    pub samples: u64,
    /// Touches recorded, samples among them.
    pub recorded: u64,
    /// What intervals of sums need; none if there are no samples.
    pub scale: Option<Scale>,
}

/// What is told of one row beside its sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultRow {
    /// Bytes by kind, most first, none that is 0.
    pub kinds: Vec<(FaultKind, Sums)>,
    /// What was touched in the first half of the time, and in the second.
    pub halves: [Sums; 2],
}

/// The answer.
pub struct FaultTable {
    /// Rows and their sums.
    pub table: Table,
    /// Branches, if a tree was asked for.
    pub branches: Vec<Branch>,
    /// Of each row.
    pub rows: Vec<FaultRow>,
    /// Of all rows.
    pub total: FaultRow,
    /// What the kernel touched, in system calls.
    pub by_kernel: Sums,
    /// What is in huge pages.
    pub huge: Sums,
}

impl FaultTally {
    /// For this question: its time and what it splits by count here. `moments` are the symbol table's remappings; the second half begins
    /// at `middle_ns`.
    pub fn new(query: &Query, moments: Vec<u64>, middle_ns: u64) -> Self {
        FaultTally {
            query: query.clone(),
            moments,
            middle_ns,
            entries: Vec::new(),
            index: HashMap::new(),
            intervals: None,
            samples: 0,
            recorded: 0,
            bytes: 0,
        }
    }

    /// A page was touched.
    pub fn add(&mut self, time_ns: u64, stream: StreamId, fault: &Fault) {
        let blocks = &self.query.blocks;
        if blocks.from_ns.is_some_and(|from| time_ns < from) || blocks.to_ns.is_some_and(|to| time_ns >= to) {
            return;
        }
        let kind = FaultKind::of(fault.kind);
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let class = FaultKind::ALL.iter().position(|known| *known == kind).unwrap_or(0) as u32
            | flag(time_ns >= self.middle_ns, LATER)
            | flag(fault.flags & FAULT_BY_KERNEL != 0, BY_KERNEL)
            | flag(fault.bytes > PAGE, HUGE);
        let stream = if self.query.split().stream { stream.0 } else { 0 };
        let era = self.moments.partition_point(|&moment| moment <= time_ns) as u32;
        let key = Key { stack: fault.stack, era, part: Part { stream, size_bits: 0, class, sampled: false } };
        let next = self.entries.len();
        let at = *self.index.entry(key).or_insert(next);
        if at == next {
            self.entries.push(Entry::new(key));
        }
        self.entries[at].sums.add_touch(fault.bytes, &fault_drawn(fault));
        let (least, most) = self.intervals.unwrap_or((fault.interval, fault.interval));
        self.intervals = Some((least.min(fault.interval), most.max(fault.interval)));
        self.samples += u64::from(fault.interval > 0);
        self.recorded += 1;
        self.bytes = self.bytes.saturating_add(fault.bytes);
    }

    /// What was added up.
    pub fn finish(self) -> Faults {
        let most = self.intervals.map_or(0, |(_, most)| most);
        let missed = 1.0 / probability(PAGE, most);
        // What may have been missed is of the mean size: were one huge page enough, all intervals would be about such as nobody has seen.
        let mean = (self.bytes as f64 / self.recorded.max(1) as f64).max(PAGE as f64);
        let scale = Scale { clusters: 0, lengths: [].into(), share: 1.0, bytes: missed * mean, blocks: missed };
        Faults {
            entries: self.entries,
            intervals: self.intervals,
            samples: self.samples,
            recorded: self.recorded,
            scale: (self.samples > 0).then_some(scale),
        }
    }
}

/// Answers a query about page faults.
pub fn ask_faults(query: &Query, sites: &Sites<'_>, streams: &[StreamInfo], scale: Option<&Scale>) -> FaultTable {
    let none = Suppressions::none();
    let (branches, table) = match query.group {
        // As for allocations: a branch under half a percent is noise.
        Group::Tree => tree(query, sites, streams, &none, if query.limit.is_some() { 200 } else { u64::MAX }, scale),
        _ => (Vec::new(), ask(query, sites, streams, &none, scale)),
    };
    let all = Query { limit: None, ..query.clone() };
    let part = |keep: &dyn Fn(u32) -> bool| ask(&all, &sites.only(|part| keep(part.class)), streams, &none, scale);
    let by_key = |table: &Table| -> HashMap<RowKey, Sums> { table.rows.iter().map(|row| (row.key.clone(), row.sums.clone())).collect() };
    let kinds: Vec<(FaultKind, Table)> =
        FaultKind::ALL.into_iter().enumerate().map(|(number, kind)| (kind, part(&|class| class & 0xFF == number as u32))).collect();
    let halves = [part(&|class| class & LATER == 0), part(&|class| class & LATER != 0)];
    let (kinds_by_key, halves_by_key) = (kinds.iter().map(|(_, table)| by_key(table)).collect::<Vec<_>>(), halves.each_ref().map(by_key));
    let row = |row: &Row| FaultRow {
        kinds: most_first(kinds.iter().zip(&kinds_by_key).filter_map(|((kind, _), of)| Some((*kind, of.get(&row.key)?.clone()))).collect()),
        halves: halves_by_key.each_ref().map(|of| of.get(&row.key).cloned().unwrap_or_default()),
    };
    FaultTable {
        rows: table.rows.iter().map(row).collect(),
        total: FaultRow {
            kinds: most_first(kinds.iter().map(|(kind, table)| (*kind, table.total.clone())).collect()),
            halves: halves.map(|table| table.total),
        },
        by_kernel: part(&|class| class & BY_KERNEL != 0).total,
        huge: part(&|class| class & HUGE != 0).total,
        table,
        branches,
    }
}

fn most_first(mut kinds: Vec<(FaultKind, Sums)>) -> Vec<(FaultKind, Sums)> {
    kinds.retain(|(_, sums)| sums.allocated_bytes > 0);
    kinds.sort_by_key(|(_, sums)| std::cmp::Reverse(sums.allocated_bytes));
    kinds
}
