//! Filters: which blocks, by what they are, by where they came from, by whom.

use crate::capture::StreamInfo;
use crate::capture::model::StreamId;
use crate::heap::{Block, Ending};
use crate::symbols::{FrameList, SymbolTable};
use hound_common::hook::Kind;
use regex::Regex;

/// Which blocks by their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Only {
    /// All.
    #[default]
    Any,
    /// Those that live at the end.
    Live,
    /// Those that were released.
    Freed,
    /// Those released with no other allocation of their thread between.
    Temporary,
}

/// Filters that look at one block. The default lets all through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockFilter {
    /// Smallest size, bytes.
    pub min_size: Option<u64>,
    /// Largest size, bytes.
    pub max_size: Option<u64>,
    /// Shortest life, nanoseconds. A block that lives at the end has lived until then.
    pub min_lifetime_ns: Option<u64>,
    /// Longest life, nanoseconds. A block that lives at the end has no known lifetime: this leaves it out.
    pub max_lifetime_ns: Option<u64>,
    /// Allocated at or after this, nanoseconds of the capture.
    pub from_ns: Option<u64>,
    /// Allocated before this, nanoseconds of the capture.
    pub to_ns: Option<u64>,
    /// By one of these functions; empty = by any.
    pub kinds: Vec<Kind>,
    /// By their end.
    pub only: Only,
}

impl BlockFilter {
    /// Whether this block is asked for.
    pub fn lets(&self, block: &Block, ending: &Ending) -> bool {
        // The default must cost next to nothing: it is asked for every block of the capture.
        let lifetime = ending.time_ns().saturating_sub(block.alloc_ns);
        self.min_size.is_none_or(|min| block.size >= min)
            && self.max_size.is_none_or(|max| block.size <= max)
            && self.min_lifetime_ns.is_none_or(|min| lifetime >= min)
            && self.max_lifetime_ns.is_none_or(|max| lifetime <= max && !ending.is_live())
            && self.from_ns.is_none_or(|from| block.alloc_ns >= from)
            && self.to_ns.is_none_or(|to| block.alloc_ns < to)
            && (self.kinds.is_empty() || self.kinds.contains(&block.kind))
            && match self.only {
                Only::Any => true,
                Only::Live => ending.is_live(),
                Only::Freed => matches!(ending, Ending::Freed(_)),
                Only::Temporary => matches!(ending, Ending::Freed(death) if death.temporary),
            }
    }
}

/// Filters over the names in a call path: each included pattern must be found in some frame, no excluded one in any.
#[derive(Clone, Debug, Default)]
pub struct FrameFilter {
    /// Functions wanted.
    pub function: Vec<Regex>,
    /// Functions not wanted.
    pub exclude_function: Vec<Regex>,
    /// Source files wanted.
    pub source: Vec<Regex>,
    /// Source files not wanted.
    pub exclude_source: Vec<Regex>,
    /// Modules wanted.
    pub module: Vec<Regex>,
    /// Modules not wanted.
    pub exclude_module: Vec<Regex>,
}

impl FrameFilter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.patterns() == 0
    }

    /// How many patterns there are: the bits of [`Self::found`].
    fn patterns(&self) -> usize {
        self.included() + self.exclude_function.len() + self.exclude_source.len() + self.exclude_module.len()
    }

    fn included(&self) -> usize {
        self.function.len() + self.source.len() + self.module.len()
    }

    /// One bit a pattern, included ones first: is it found in one of these frames? Patterns past the 64th are never found.
    pub(super) fn found(&self, table: &SymbolTable, list: FrameList) -> u64 {
        let mut bits = 0;
        for frame in table.frames(list) {
            let function = |pattern: &Regex| pattern.is_match(frame.function);
            let source = |pattern: &Regex| frame.location.is_some_and(|at| pattern.is_match(at.file));
            let module = |pattern: &Regex| pattern.is_match(frame.module);
            let include = self.function.iter().map(function).chain(self.source.iter().map(source)).chain(self.module.iter().map(module));
            let exclude = self.exclude_function.iter().map(function).chain(self.exclude_source.iter().map(source));
            let exclude = exclude.chain(self.exclude_module.iter().map(module));
            for (bit, _) in include.chain(exclude).take(64).enumerate().filter(|(_, found)| *found) {
                bits |= 1 << bit;
            }
        }
        bits
    }

    /// Whether a path in which these patterns were found is asked for.
    pub(super) fn lets(&self, found: u64) -> bool {
        let wanted = (1u64 << self.included().min(63)) - 1;
        found & wanted == wanted && found & !wanted == 0
    }
}

/// A thread, by number or by name.
#[derive(Clone, Debug)]
pub enum ThreadFilter {
    /// Kernel thread id.
    Tid(u32),
    /// A name it had.
    Name(Regex),
}

impl ThreadFilter {
    /// Whether the stream is of that thread.
    pub fn lets(&self, streams: &[StreamInfo], stream: StreamId) -> bool {
        let info = streams.iter().find(|info| info.id == stream);
        info.is_some_and(|info| match self {
            ThreadFilter::Tid(tid) => info.tid == *tid,
            ThreadFilter::Name(pattern) => info.names.iter().any(|name| pattern.is_match(name)),
        })
    }
}
