//! What replay says: blocks, how they ended, and the sums over all of them.

use crate::capture::model::{StackId, StreamId};
use hound_common::hook::Kind;

/// One allocation. 56 bytes a live block, plus 11 to 21 in the address table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address.
    pub addr: u64,
    /// Bytes asked for.
    pub size: u64,
    /// When it came to be, in nanoseconds of the capture.
    pub alloc_ns: u64,
    /// Its number among all allocations, from 1, in the order of replay.
    pub ordinal: u64,
    /// Ordinal of the first block of its chain; its own if it continues none.
    pub chain: u64,
    /// Where it was allocated.
    pub stack: StackId,
    /// By whom.
    pub stream: StreamId,
    /// How many reallocs led to it.
    pub chain_length: u32,
    /// By which function.
    pub kind: Kind,
    /// `hound_common::event::ALLOC_…` bits.
    pub flags: u8,
    /// At which mean interval between samples it was drawn: see [`Sampling::interval`]; 0 = its thread recorded every block.
    ///
    /// [`Sampling::interval`]: super::Sampling::interval
    pub rate: u16,
}

const _: () = assert!(size_of::<Block>() == 56, "a live block is less than a cache line");

/// The release of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// When, in nanoseconds of the capture.
    pub time_ns: u64,
    /// Who released it.
    pub stream: StreamId,
    /// By which function.
    pub kind: Kind,
    /// It was the release half of a realloc.
    pub realloc: bool,
    /// Where, if stacks of frees were recorded.
    pub stack: Option<StackId>,
    /// The thread that allocated the block released it, and allocated nothing in between (heaptrack's "temporary").
    pub temporary: bool,
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was released.
    Freed(Death),
    /// Its address was given out again though no release was recorded: it ended by then.
    Replaced {
        /// When its address was given out again.
        time_ns: u64,
    },
    /// It was found to be gone, or its address was given out again, after a time in which nobody watched.
    Gone {
        /// It had ended by then.
        time_ns: u64,
        /// Until then it is known to have lived.
        known_ns: u64,
    },
    /// It is a sample, and whether it lives is not known at the end: nobody watched.
    Uncertain {
        /// Until then it is known to have lived.
        time_ns: u64,
    },
    /// It lived when the recording ended.
    Alive {
        /// When that was: the last event.
        time_ns: u64,
    },
    /// It lived when the recording was switched off, or from all blocks to samples; what became of it afterwards was not recorded.
    Censored {
        /// When the recording ended, or was switched to samples.
        time_ns: u64,
    },
}

impl Ending {
    /// When the block ended, or had ended by; for one that has not, up to when it is known to have lived. Nanoseconds of the capture.
    pub fn time_ns(&self) -> u64 {
        match *self {
            Ending::Freed(Death { time_ns, .. })
            | Ending::Replaced { time_ns }
            | Ending::Gone { time_ns, .. }
            | Ending::Uncertain { time_ns }
            | Ending::Alive { time_ns }
            | Ending::Censored { time_ns } => time_ns,
        }
    }

    /// Up to when the block is known to have lived, in nanoseconds of the capture.
    pub fn known_ns(&self) -> u64 {
        if let Ending::Gone { known_ns, .. } = *self { known_ns } else { self.time_ns() }
    }

    /// Whether the block was still there at the end, for all that is known.
    pub fn is_live(&self) -> bool {
        matches!(self, Ending::Alive { .. } | Ending::Censored { .. })
    }
}

/// The moment at which most bytes lived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Peak {
    /// Live bytes (as asked for) then; where there are samples, what those stand for that were not known to have ended.
    pub bytes: u64,
    /// When, in nanoseconds of the capture.
    pub time_ns: u64,
    /// Ordinal of the allocation that reached it; 0 = no allocation yet. A block lived at the peak if its ordinal is not larger and
    /// it ended after: in whatever order endings are told, that is decided by the peak as it stands then (see [`Replay`]).
    ///
    /// [`Replay`]: super::Replay
    pub ordinal: u64,
}

/// Sums over a whole capture, of what was recorded: a sample counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Blocks allocated; a realloc counts as one release and one allocation.
    pub allocations: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Blocks released.
    pub frees: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Blocks whose address was given out again without a recorded release.
    pub replaced: u64,
    /// Their bytes.
    pub replaced_bytes: u64,
    /// Blocks that ended unseen, while nobody watched.
    pub gone: u64,
    /// Their bytes.
    pub gone_bytes: u64,
    /// Blocks of which it is not known at the end whether they live.
    pub uncertain_blocks: u64,
    /// Their bytes.
    pub uncertain_bytes: u64,
    /// Blocks that live.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Of `live_blocks`, those that lived when recording was switched off, or from all blocks to samples.
    pub censored_blocks: u64,
    /// Their bytes.
    pub censored_bytes: u64,
    /// Blocks released with no other allocation of their thread between.
    pub temporary: u64,
    /// Releases, by a process, of blocks that it had from before its fork.
    pub inherited_frees: u64,
    /// Releases of blocks whose allocation was not recorded: they are from before the recording, or were lost.
    pub unknown_frees: u64,
}

/// What cannot be right, or needed repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Anomalies {
    /// An allocation returned an address that was alive: a release is missing.
    pub allocated_alive: u64,
    /// Events that had to wait for one stamped later, because processors may read the clock early. No fault.
    pub reordered: u64,
}

/// All that replay knows at the end, besides the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Sums.
    pub totals: Totals,
    /// The peak.
    pub peak: Peak,
    /// What was not right.
    pub anomalies: Anomalies,
    /// Time of the last event, in nanoseconds of the capture.
    pub end_ns: u64,
}
