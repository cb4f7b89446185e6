//! Questions to a heap: filter, group, measure, sort, limit. Pure.
//!
//! A [`Query`] is asked in two steps, because a capture is read once and may be larger than memory:
//!
//! 1. while it is replayed, [`Tally`] adds blocks up by (stack, module era, thread or size) as they end. Filters that look at one block
//!    ([`BlockFilter`]) are decided here;
//! 2. afterwards [`Sites`] gives the stacks their names, and [`ask`] applies the filters that look at names, leaves out what is
//!    suppressed, and groups what remains into a [`Table`].
//!
//! Every sum is additive over blocks, so the second step is exact. Where blocks are samples, what is additive is kept ([`Estimate`]), and
//! intervals are found at the end. Rows are then ranked by what is surely there.

mod estimate;
mod faults;
mod filter;
mod flame;
mod generations;
mod group;
mod listing;
mod pages;
mod sites;
mod spread;
mod sums;
mod suppress;
mod tally;
mod timeline;
mod trim;
mod verdict;

pub use estimate::{Estimate, Scale};
pub use faults::{FaultRow, FaultTable, FaultTally, Faults, ask_faults};
pub use filter::{BlockFilter, FrameFilter, Only, ThreadFilter};
pub use flame::{Flame, FlameBox, FlameFrame, FlameShape, FlameSide, FlameWhat, flame};
pub use generations::{Births, Generations, SEGMENTS};
pub use group::{Branch, Row, RowKey, Table, ask, tree};
pub use listing::{Blocks, Listed, Listing};
pub use pages::{Fragmentation, PAGE, Pages, Pinned};
pub use sites::{NodeId, Sites};
pub use spread::{Bucket, Histogram, Over, Spread};
pub use sums::{Figure, Sampled, Sums};
pub use suppress::{Pattern, Suppressed, Suppressions};
pub use tally::{Entry, Key, Part, Split, Tallied, Tally, Whole};
pub use timeline::{Course, Grouping, Rank, Timeline};
pub use trim::{site_end, site_start};
pub use verdict::{Evidence, GOES_ON, HAS_ENDED, Verdict, judge};

/// A question.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Which blocks.
    pub blocks: BlockFilter,
    /// Allocated from where.
    pub frames: FrameFilter,
    /// Allocated by whom.
    pub thread: Option<ThreadFilter>,
    /// By which processes; empty = by any. Totals and the peak are then those of these processes together.
    pub processes: Vec<u32>,
    /// What makes a row.
    pub group: Group,
    /// What rows are sorted by.
    pub measure: Measure,
    /// Most rows; none = all.
    pub limit: Option<usize>,
    /// Keep rows whose figure is zero.
    pub keep_zero: bool,
}

impl Query {
    /// What a tally must tell apart for this question.
    pub fn split(&self) -> Split {
        let stream = self.thread.is_some() || matches!(self.group, Group::Thread | Group::Process);
        Split { stream, size: self.group == Group::Size, mode: self.group == Group::Mode }
    }
}

/// What makes a row of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Group {
    /// A call path.
    #[default]
    Site,
    /// The function that allocates.
    Function,
    /// Call paths as a tree from the thread's first function.
    Tree,
    /// The module that allocates.
    Module,
    /// The thread that allocates.
    Thread,
    /// Sizes between two powers of two.
    Size,
    /// Whether every block was recorded, or samples.
    Mode,
    /// The process that allocates.
    Process,
}

/// What rows are sorted by, and what "share" is a share of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Measure {
    /// Bytes that live at the end.
    #[default]
    Live,
    /// Bytes that lived when most lived.
    Peak,
    /// Number of allocations.
    Allocations,
    /// Bytes allocated, whatever became of them.
    Allocated,
    /// Number of blocks released with no other allocation of their thread between.
    Temporary,
}

impl Measure {
    /// The figure.
    pub fn of(self, sums: &Sums) -> u64 {
        match self {
            Measure::Live => sums.live_bytes,
            Measure::Peak => sums.peak_bytes,
            Measure::Allocations => sums.allocations,
            Measure::Allocated => sums.allocated_bytes,
            Measure::Temporary => sums.temporary,
        }
    }

    /// Which figure that is.
    pub fn figure(self) -> Figure {
        match self {
            Measure::Live => Figure::LiveBytes,
            Measure::Peak => Figure::PeakBytes,
            Measure::Allocations => Figure::Allocations,
            Measure::Allocated => Figure::AllocatedBytes,
            Measure::Temporary => Figure::Temporary,
        }
    }

    /// Which figures are behind it: blocks, bytes.
    pub fn figures(self) -> (Figure, Figure) {
        match self {
            Measure::Live => (Figure::LiveBlocks, Figure::LiveBytes),
            Measure::Peak => (Figure::PeakBlocks, Figure::PeakBytes),
            Measure::Allocations | Measure::Allocated => (Figure::Allocations, Figure::AllocatedBytes),
            Measure::Temporary => (Figure::Temporary, Figure::TemporaryBytes),
        }
    }

    /// Blocks and bytes behind the figure.
    pub fn blocks_and_bytes(self, sums: &Sums) -> (u64, u64) {
        match self {
            Measure::Live => (sums.live_blocks, sums.live_bytes),
            Measure::Peak => (sums.peak_blocks, sums.peak_bytes),
            Measure::Allocations | Measure::Allocated => (sums.allocations, sums.allocated_bytes),
            Measure::Temporary => (sums.temporary, sums.temporary_bytes),
        }
    }
}

#[cfg(test)]
mod coverage;
#[cfg(test)]
pub(crate) mod tests;
