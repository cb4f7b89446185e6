//! Rows from sums.

use super::estimate::Scale;
use super::filter::FrameFilter;
use super::sites::{NodeId, Sites};
use super::sums::Sums;
use super::suppress::{Suppressed, Suppressions};
use super::tally::Part;
use super::trim::site_start;
use super::{Group, Measure, Query};
use crate::capture::StreamInfo;
use crate::capture::model::StreamId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

/// What a row is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowKey {
    /// A call path.
    Site(NodeId),
    /// A function, and its module.
    Function(String, String),
    /// A module.
    Module(String),
    /// A thread: tid (0 = not known) and last name.
    Thread(u32, String),
    /// Sizes under 2^bits and not under half of it.
    Size(u32),
    /// Whether figures are estimated from samples, or every block was recorded.
    Mode {
        /// Samples.
        sampled: bool,
    },
    /// A process, by its number in the capture.
    Process(u32),
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is about.
    pub key: RowKey,
    /// What it itself allocated.
    pub sums: Sums,
    /// For a function: what it and everything it called allocated.
    pub with_callees: Option<Sums>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Rows, largest figure first.
    pub rows: Vec<Row>,
    /// Rows past the limit.
    pub omitted_rows: usize,
    /// Their sums.
    pub omitted: Sums,
    /// Sums of all rows, omitted ones included.
    pub total: Sums,
    /// What was suppressed, most bytes first.
    pub left_out: Vec<(Suppressed, Sums)>,
}

/// A branch of the call tree, with everything allocated in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    /// The call path up to here.
    pub node: NodeId,
    /// How many forks lie before it: only calls have no fork.
    pub depth: usize,
    /// What was allocated at this node and below.
    pub sums: Sums,
}

/// What passes the filters over names and threads and is not suppressed.
pub(super) struct Selected {
    pub(super) sums: Vec<(NodeId, Part, Sums)>,
    pub(super) left_out: Vec<(Suppressed, Sums)>,
}

/// Answers a query that has rows ([`Group::Tree`] is answered as [`Group::Site`]; see [`tree`]). `scale` is that of the [`Whole`], for a
/// capture that has samples.
///
/// [`Whole`]: super::Whole
pub fn ask(query: &Query, sites: &Sites<'_>, streams: &[StreamInfo], suppressions: &Suppressions, scale: Option<&Scale>) -> Table {
    let selected = select(query, sites, streams, suppressions);
    let mut callees: HashMap<RowKey, Sums> = HashMap::new();
    if query.group == Group::Function {
        callees = with_callees(sites, &selected.sums);
    }
    let rows = added(&selected.sums, |node, part| row_key(query.group, sites, streams, node, part));
    let mut table = Table { left_out: selected.left_out, ..Table::default() };
    rows.values().for_each(|sums| table.total.add(sums));
    let mut rows: Vec<Row> = rows.into_iter().map(|(key, sums)| Row { with_callees: callees.remove(&key), key, sums }).collect();
    if query.group == Group::Function {
        let only_callers = callees.into_iter().map(|(key, sums)| Row { key, sums: Sums::default(), with_callees: Some(sums) });
        rows.extend(only_callers);
    }
    rows.iter_mut().for_each(|row| row.sums.round());
    let figure = |row: &Row| query.measure.of(&row.sums);
    // What is in doubt may live, whatever the estimate is.
    let may_live = |row: &Row| query.measure == Measure::Live && row.sums.is_doubtful();
    rows.retain(|row| query.keep_zero || figure(row) > 0 || may_live(row));
    // Ties in an order that does not depend on hashing: more, more bytes, then the key. Of samples only what is surely there ranks a row:
    // one sample that happens to stand for much is not the first place to look at.
    rows.sort_by_cached_key(|row| {
        let surely = row.sums.least(query.measure.figure(), figure(row), scale);
        (Reverse(surely), Reverse(figure(row)), Reverse(row.sums.allocated_bytes), row.key.clone())
    });
    let omitted = rows.split_off(query.limit.unwrap_or(rows.len()).min(rows.len()));
    table.omitted_rows = omitted.len();
    omitted.iter().for_each(|row| table.omitted.add(&row.sums));
    table.rows = rows;
    table.settle(scale);
    table
}

impl Table {
    /// Finds the intervals of all figures.
    fn settle(&mut self, scale: Option<&Scale>) {
        for row in &mut self.rows {
            row.sums.settle(scale);
            row.with_callees.iter_mut().for_each(|sums| sums.settle(scale));
        }
        self.total.settle(scale);
        self.omitted.settle(scale);
        self.left_out.iter_mut().for_each(|(_, sums)| sums.settle(scale));
    }
}

/// The call tree: branches in depth-first order, the larger before the smaller, those under a share of `1 / smallest` left out.
/// `scale` as for [`ask`].
pub fn tree(
    query: &Query,
    sites: &Sites<'_>,
    streams: &[StreamInfo],
    suppressions: &Suppressions,
    smallest: u64,
    scale: Option<&Scale>,
) -> (Vec<Branch>, Table) {
    let selected = select(query, sites, streams, suppressions);
    let mut sums = vec![Sums::default(); sites.nodes()];
    selected.sums.iter().for_each(|(node, _, s)| sums[node.0 as usize].add(s));
    let mut children: Vec<Vec<NodeId>> = vec![Vec::new(); sites.nodes()];
    // Callees have larger numbers than their callers: going down the numbers, every branch is complete before it is added on.
    for index in (1..sites.nodes()).rev() {
        let node = NodeId(index as u32);
        if let Some(parent) = sites.parent(node) {
            let (callers, own) = sums.split_at_mut(index);
            callers[parent.0 as usize].add(&own[0]);
            children[parent.0 as usize].push(node);
        }
    }
    sums.iter_mut().for_each(Sums::round);
    let total = sums[0].clone();
    let figure = |node: &NodeId| query.measure.of(&sums[node.0 as usize]);
    let worth_showing =
        |node: &NodeId| figure(node) > 0 && u128::from(figure(node)) * u128::from(smallest) >= u128::from(query.measure.of(&total));
    let mut branches = Vec::new();
    let mut open = vec![(NodeId::ROOT, 0)];
    // A stack of its own: call paths are deeper than ours may be.
    while let Some((node, depth)) = open.pop() {
        if node != NodeId::ROOT {
            branches.push(Branch { node, depth, sums: sums[node.0 as usize].clone() });
        }
        let below = &mut children[node.0 as usize];
        below.retain(worth_showing);
        below.sort_by_key(|child| (figure(child), Reverse(*child)));
        let fork = usize::from(below.len() > 1);
        open.extend(below.iter().map(|&child| (child, depth + fork)));
    }
    let omitted_rows = branches.len().saturating_sub(query.limit.unwrap_or(usize::MAX));
    branches.truncate(query.limit.unwrap_or(usize::MAX));
    branches.iter_mut().for_each(|branch| branch.sums.settle(scale));
    let mut table = Table { total, left_out: selected.left_out, omitted_rows, ..Table::default() };
    table.settle(scale);
    (branches, table)
}

pub(super) fn select(query: &Query, sites: &Sites<'_>, streams: &[StreamInfo], suppressions: &Suppressions) -> Selected {
    let frames: &FrameFilter = &query.frames;
    let found = if frames.is_empty() { Vec::new() } else { sites.inherited(|list| frames.found(sites.table(), list)) };
    let wanted_stream: Option<HashSet<u32>> = query.thread.as_ref().map(|filter| {
        let ids = streams.iter().map(|info| info.id).filter(|&id: &StreamId| filter.lets(streams, id));
        ids.map(|id| id.0).collect()
    });
    let mut decided: HashMap<NodeId, Option<Suppressed>> = HashMap::new();
    let mut left_out: BTreeMap<Suppressed, Sums> = BTreeMap::new();
    let mut selected = Vec::new();
    for (node, part, sums) in sites.sums() {
        let (node, part) = (*node, *part);
        let named = frames.is_empty() || frames.lets(found[node.0 as usize]);
        if !named || wanted_stream.as_ref().is_some_and(|wanted| !wanted.contains(&part.stream)) {
            continue;
        }
        // Only what lives can be kept by design.
        let kept = query.measure == Measure::Live && sums.lives();
        let decision = if kept { decided.entry(node).or_insert_with(|| suppressions.decide(&sites.frames(node))).clone() } else { None };
        match decision {
            Some(why) => left_out.entry(why).or_default().add(sums),
            None => selected.push((node, part, sums.clone())),
        }
    }
    let mut left_out: Vec<_> = left_out.into_iter().collect();
    left_out.iter_mut().for_each(|(_, sums): &mut (_, Sums)| sums.round());
    left_out.sort_by_key(|(_, sums)| Reverse(sums.live_bytes));
    Selected { sums: selected, left_out }
}

fn added<K: Eq + Hash>(sums: &[(NodeId, Part, Sums)], key: impl Fn(NodeId, &Part) -> K) -> HashMap<K, Sums> {
    let mut rows: HashMap<K, Sums> = HashMap::new();
    sums.iter().for_each(|(node, part, sums)| rows.entry(key(*node, part)).or_default().add(sums));
    rows
}

/// The row that a part of a call path's sums is in.
pub(super) fn row_key(group: Group, sites: &Sites<'_>, streams: &[StreamInfo], node: NodeId, part: &Part) -> RowKey {
    let named = |key: fn(&str, &str) -> RowKey| {
        let frames = sites.frames(node);
        frames.get(site_start(&frames)).map_or_else(|| key("(no stack)", ""), |frame| key(frame.function, frame.module))
    };
    match group {
        Group::Site | Group::Tree => RowKey::Site(node),
        Group::Function => named(|function, module| RowKey::Function(function.to_owned(), module.to_owned())),
        Group::Module => named(|_, module| RowKey::Module(module.to_owned())),
        Group::Thread => thread(streams, part),
        Group::Size => RowKey::Size(part.size_bits),
        Group::Mode => RowKey::Mode { sampled: part.sampled },
        Group::Process => RowKey::Process(stream(streams, part).map_or(0, |info| info.process.0)),
    }
}

/// What each function and its callees allocated: a call path counts once for a function, however often that recurs in it.
fn with_callees(sites: &Sites<'_>, sums: &[(NodeId, Part, Sums)]) -> HashMap<RowKey, Sums> {
    let mut rows: HashMap<(&str, &str), Sums> = HashMap::new();
    let mut seen = HashSet::new();
    for (node, _, sums) in sums {
        seen.clear();
        let frames = sites.frames(*node);
        for frame in &frames[site_start(&frames)..] {
            if seen.insert((frame.function, frame.module)) {
                rows.entry((frame.function, frame.module)).or_default().add(sums);
            }
        }
    }
    rows.into_iter().map(|((function, module), sums)| (RowKey::Function(function.to_owned(), module.to_owned()), sums)).collect()
}

fn stream<'s>(streams: &'s [StreamInfo], part: &Part) -> Option<&'s StreamInfo> {
    streams.iter().find(|info| info.id.0 == part.stream)
}

fn thread(streams: &[StreamInfo], part: &Part) -> RowKey {
    let info = stream(streams, part);
    let name = info.and_then(|info| info.names.last()).cloned().unwrap_or_default();
    RowKey::Thread(info.map_or(0, |info| info.tid), name)
}
