//! One condition on a block, made ready to be asked of every row.

use super::dataset::Dataset;
use super::paths::PathId;
use hound_common::event::{ALLOC_MMAPPED, ALLOC_NON_MAIN_ARENA};
use std::sync::Arc;

/// A number that a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Bytes asked for.
    Size,
    /// Its address.
    Address,
    /// When it was allocated.
    Allocated,
    /// When it was released; blocks that were not have none.
    Deallocated,
    /// How long it lived, up to the end of the recording.
    Lifetime,
    /// How many frames its backtrace has.
    BacktraceLength,
    /// Bytes of the first block of its chain.
    FirstSize,
    /// Bytes of the last block of its chain.
    LastSize,
    /// How many blocks its chain has.
    ChainLength,
    /// How many blocks of its chain were before it.
    PositionInChain,
    /// How long its chain lived.
    ChainLifetime,
    /// How many blocks come from its backtrace.
    SiteAllocations,
    /// How many of those were never released.
    SiteLeaked,
    /// From the first of those to the last.
    SiteInterval,
    /// When most bytes of those lived, for the first time.
    SitePeak,
}

/// How a number is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// `>=`
    AtLeast,
    /// `<=`
    AtMost,
    /// `>`
    Above,
    /// `<`
    Below,
}

impl Test {
    /// Whether it holds.
    pub fn holds(self, value: i128, threshold: i128) -> bool {
        match self {
            Test::AtLeast => value >= threshold,
            Test::AtMost => value <= threshold,
            Test::Above => value > threshold,
            Test::Below => value < threshold,
        }
    }
}

/// What is asked of a block.
#[derive(Clone, Debug)]
pub enum Condition {
    /// A number, and what it is compared with.
    Number(Field, Test, i64),
    /// How many blocks of its backtrace were never released, as a share of how many there are.
    SiteLeakedShare(Test, f64),
    /// Never released.
    Leaked,
    /// Released.
    Temporary,
    /// Nobody knows whether it lives.
    Uncertain,
    /// The last block of its chain was never released.
    ChainLeaked,
    /// Never released, or not before then.
    LeakedOrDeallocatedAfter(i64),
    /// It lived at each of these moments.
    AliveAt(Arc<[i64]>),
    /// Its backtrace is among those that are set, or is not.
    Path(Arc<[bool]>, bool),
    /// It comes from this backtrace.
    AtPath(PathId),
    /// It was released at a backtrace that is among those set, or was not.
    ReleasePath(Arc<[bool]>, bool),
    /// By jemalloc, or not.
    Jemalloc(bool),
    /// By glibc, through mmap or not.
    Mmapped(bool),
    /// By glibc, on its main arena or not.
    MainArena(bool),
    /// While this marker was set.
    Marker(u32),
    /// From these addresses while they were mapped: start, end, from when, until when; ascending and apart, of each moment.
    Places(Arc<[(u64, u64, u64, u64)]>),
    /// By streams that are set.
    Streams(Arc<[bool]>),
    /// Allocated in one of these spans of time: from, to.
    Spans(Arc<[(u64, u64)]>),
    /// Recorded because all were (`true`), or as samples.
    Exact(bool),
}

type Asked<'d> = Box<dyn Fn(u32) -> bool + Sync + 'd>;

impl Condition {
    /// Ready to be asked.
    pub fn asked<'d>(&'d self, data: &'d Dataset) -> Asked<'d> {
        let view = data.view();
        match self {
            Condition::Number(field, test, threshold) => number(data, *field, *test, i128::from(*threshold)),
            Condition::SiteLeakedShare(test, share) => {
                let (test, sites) = (*test, data.sites());
                // In millionths of the whole, so that all is compared in one way.
                let passes: Vec<bool> = sites
                    .iter()
                    .map(|site| test.holds((site.leaked * 1e6).round() as i128, (site.allocations * share * 1e6).round() as i128))
                    .collect();
                Box::new(move |row| passes[data.path_of(row) as usize])
            }
            Condition::Leaked => Box::new(move |row| data.is_leaked(row)),
            Condition::Temporary => Box::new(move |row| data.has_ended(row)),
            Condition::Uncertain => Box::new(move |row| !data.has_ended(row) && !data.is_leaked(row)),
            Condition::ChainLeaked => Box::new(move |row| data.is_leaked(data.chain(row).1)),
            Condition::LeakedOrDeallocatedAfter(after) => {
                let after = *after;
                Box::new(move |row| data.is_leaked(row) || data.has_ended(row) && signed(view.end_ns[row as usize]) >= after)
            }
            Condition::AliveAt(moments) => Box::new(move |row| {
                let (from, to) = (signed(view.alloc_ns[row as usize]), signed(view.end_ns[row as usize]));
                moments.iter().all(|&moment| from <= moment && (!data.has_ended(row) || moment < to))
            }),
            Condition::Path(set, wanted) => Box::new(move |row| is_set(set, data.path_of(row)) == *wanted),
            Condition::AtPath(path) => Box::new(move |row| data.path_of(row) == *path),
            Condition::ReleasePath(set, wanted) => {
                Box::new(move |row| data.release_path_of(row).is_some_and(|path| is_set(set, path)) == *wanted)
            }
            Condition::Jemalloc(wanted) => Box::new(move |row| data.is_jemalloc(row) == *wanted),
            Condition::Mmapped(wanted) => {
                Box::new(move |row| data.is_ptmalloc(row) && (view.flags[row as usize] & ALLOC_MMAPPED != 0) == *wanted)
            }
            Condition::MainArena(wanted) => {
                Box::new(move |row| data.is_ptmalloc(row) && (view.flags[row as usize] & ALLOC_NON_MAIN_ARENA == 0) == *wanted)
            }
            Condition::Marker(number) => Box::new(move |row| data.marker_at(view.alloc_ns[row as usize]) == *number),
            Condition::Places(places) => Box::new(move |row| {
                let (addr, now) = (data.addr(row), view.alloc_ns[row as usize]);
                let before = places.partition_point(|(start, ..)| *start <= addr);
                places[..before].iter().rev().any(|(_, end, from, to)| addr < *end && *from <= now && now < *to)
            }),
            Condition::Streams(streams) => Box::new(move |row| is_set(streams, view.stream[row as usize])),
            Condition::Spans(spans) => Box::new(move |row| {
                let now = view.alloc_ns[row as usize];
                spans.iter().any(|(from, to)| *from <= now && now < *to)
            }),
            Condition::Exact(wanted) => Box::new(move |row| is_exact(data, row) == *wanted),
        }
    }
}

fn is_exact(data: &Dataset, row: u32) -> bool {
    let drawn = |sampling: &crate::heap::Sampling| sampling.drawn(&data.view().block(row as usize));
    data.sampling().is_none_or(|sampling| drawn(sampling) == crate::heap::Drawn::Exact)
}

fn is_set(set: &[bool], number: PathId) -> bool {
    set.get(number as usize).copied().unwrap_or(false)
}

fn signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

fn number<'d>(data: &'d Dataset, field: Field, test: Test, threshold: i128) -> Asked<'d> {
    let view = data.view();
    let compare = move |value: u64| test.holds(i128::from(value), threshold);
    let by_path = move |of: &dyn Fn(usize) -> u64| -> Asked<'d> {
        let passes: Vec<bool> = (0..data.paths().len()).map(|path| compare(of(path))).collect();
        Box::new(move |row| passes[data.path_of(row) as usize])
    };
    match field {
        Field::Size => Box::new(move |row| compare(view.size[row as usize])),
        Field::Address => Box::new(move |row| compare(data.addr(row))),
        Field::Allocated => Box::new(move |row| compare(view.alloc_ns[row as usize])),
        Field::Deallocated => Box::new(move |row| data.has_ended(row) && compare(view.end_ns[row as usize])),
        Field::Lifetime => Box::new(move |row| compare(view.end_ns[row as usize].saturating_sub(view.alloc_ns[row as usize]))),
        Field::BacktraceLength => by_path(&|path| u64::from(data.paths().depth(path as PathId))),
        Field::FirstSize => Box::new(move |row| compare(view.size[data.chain(row).0 as usize])),
        Field::LastSize => Box::new(move |row| compare(view.size[data.chain(row).1 as usize])),
        Field::ChainLength => Box::new(move |row| {
            let (_, last) = data.chain(row);
            compare(u64::from(view.chain_length[last as usize]) + 1)
        }),
        Field::PositionInChain => Box::new(move |row| compare(u64::from(view.chain_length[row as usize]))),
        Field::ChainLifetime => Box::new(move |row| {
            let (first, last) = data.chain(row);
            compare(view.end_ns[last as usize].saturating_sub(view.alloc_ns[first as usize]))
        }),
        Field::SiteAllocations => by_path(&|path| data.sites()[path].allocations.round() as u64),
        Field::SiteLeaked => by_path(&|path| data.sites()[path].leaked.round() as u64),
        Field::SiteInterval => by_path(&|path| data.sites()[path].last_ns - data.sites()[path].first_ns),
        Field::SitePeak => by_path(&|path| data.sites()[path].peak_ns),
    }
}
