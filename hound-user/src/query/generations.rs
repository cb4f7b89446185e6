//! What became of what was allocated when: per row, a table of births by deaths.
//!
//! The capture's time is cut into [`SEGMENTS`] of equal length. What was allocated in one of them is a generation. Of each it is known how
//! much of it had ended by the end of each later one, and what never did. From this follow what lived when, how long things live, and which
//! generations have survivors: a leak leaves some of each, a cache that is full only young ones, start-up only the first.
//!
//! Samples stand for others, and so do their ends where not all of the time was observed: what survives of a generation is then what
//! outlived the windows less the ends that those seen stand for (see `Living`), and may be below zero by chance.
//!
//! What lived when recording was over has survived, whether the program ended then or runs on. Two kinds of blocks are neither survivors nor
//! leaks: what a process held that ended while others were recorded, for its end has given it back; and what lived when recording paused, for
//! nobody knows what became of it.

use super::timeline::Grouping;
use crate::heap::{Block, Drawn, End, Ending, Sampling};
use hound_common::event::MODE_OFF;
use std::sync::Arc;

/// So many generations there are.
pub const SEGMENTS: usize = 32;

/// A row's table.
#[derive(Clone, Debug, PartialEq)]
pub struct Generations {
    /// Bytes allocated in each segment.
    pub born: [f64; SEGMENTS],
    /// Blocks allocated in each segment.
    pub born_blocks: [f64; SEGMENTS],
    /// Bytes of each generation (the first index) that ended in each segment.
    pub ended: Box<[[f64; SEGMENTS]; SEGMENTS]>,
    /// Blocks of each generation that ended.
    pub ended_blocks: [f64; SEGMENTS],
    /// Blocks of each generation that were seen and not seen to end, whatever they stand for.
    pub seen: [u64; SEGMENTS],
}

impl Default for Generations {
    fn default() -> Self {
        let none = [0.0; SEGMENTS];
        Generations { born: none, born_blocks: none, ended: Box::new([none; SEGMENTS]), ended_blocks: none, seen: [0; SEGMENTS] }
    }
}

impl Generations {
    /// Bytes of this generation that live at the end of this segment.
    pub fn living(&self, generation: usize, segment: usize) -> f64 {
        if generation > segment { 0.0 } else { self.born[generation] - self.ended[generation][..=segment].iter().sum::<f64>() }
    }

    /// Bytes of this generation that live at the end.
    pub fn survivors(&self, generation: usize) -> f64 {
        self.living(generation, SEGMENTS - 1)
    }

    /// Blocks of this generation that live at the end.
    pub fn surviving_blocks(&self, generation: usize) -> f64 {
        self.born_blocks[generation] - self.ended_blocks[generation]
    }

    /// Bytes that live at the end of this segment and were born so many segments before it, or earlier.
    pub fn aged(&self, segment: usize, age: usize) -> f64 {
        (0..=segment.saturating_sub(age)).map(|generation| self.living(generation, segment)).sum()
    }
}

/// Fills the tables of all rows that have anything at the end.
pub struct Births {
    grouping: Grouping,
    sampling: Option<Arc<Sampling>>,
    /// The last event: blocks of processes that ended before live until their end.
    last_ns: u64,
    /// Until when allocations were recorded.
    watched_ns: u64,
    from_ns: u64,
    segment_ns: u64,
    /// By row; none for rows of which nothing lives.
    rows: Vec<Option<Generations>>,
}

impl Births {
    /// From one moment to another, in nanoseconds of the capture, of which the last event was at `last_ns`. `wanted`: of each row, whether
    /// anything of it lives at the end.
    pub fn new(grouping: Grouping, sampling: Option<Arc<Sampling>>, (from_ns, to_ns): (u64, u64), last_ns: u64, wanted: &[bool]) -> Self {
        let parts = sampling.iter().flat_map(|sampling| sampling.parts());
        let watched_ns = parts.filter(|part| part.mode != MODE_OFF).map(|part| part.to_ns).max().unwrap_or(u64::MAX).min(last_ns);
        let segment_ns = (to_ns.saturating_sub(from_ns) / SEGMENTS as u64 + 1).max(1);
        let rows = wanted.iter().map(|&wanted| wanted.then(Generations::default)).collect();
        Births { grouping, sampling, last_ns, watched_ns, from_ns, segment_ns, rows }
    }

    fn segment(&self, time_ns: u64) -> usize {
        ((time_ns.saturating_sub(self.from_ns) / self.segment_ns) as usize).min(SEGMENTS - 1)
    }

    /// A block ended, or lives at the end. What was lost sight of is left out: it is no survivor and no victim.
    pub fn add(&mut self, block: &Block, ending: &Ending) {
        let drawn = self.sampling.as_ref().map_or(Drawn::Exact, |sampling| sampling.drawn(block));
        if drawn == Drawn::Unknown {
            return;
        }
        let survives = match *ending {
            Ending::Censored { time_ns } if self.segment(time_ns) < self.segment(self.watched_ns) => return,
            // A process that ends with the recording, or a moment before it, is no other's predecessor.
            Ending::Alive { time_ns } => self.segment(time_ns) == self.segment(self.last_ns),
            _ => ending.is_live(),
        };
        let (generation, last) = (self.segment(block.alloc_ns), self.segment(ending.time_ns()));
        let lived = Ending::Alive { time_ns: ending.time_ns() };
        if !self.grouping.lets(block, &lived) {
            return;
        }
        let Some(row) = self.grouping.row(block, None) else { return };
        let Some(Some(of)) = self.rows.get_mut(row) else { return };
        // Samples that all of the time was observed for, and blocks that stand for themselves, end when they are seen to.
        let (blocks, ends) = match drawn {
            Drawn::Sampled(weight) if weight.cluster.is_some() => {
                let blocks = weight.scale / weight.probability;
                let ends = match self.sampling.as_ref().map_or(End::Unseen, |sampling| sampling.end_of(block, ending)) {
                    _ if survives => 0.0,
                    _ if ending.is_live() => blocks,
                    End::Watched => blocks,
                    End::Within { factor } => blocks * (1.0 - factor),
                    End::Later { factor, .. } => factor / weight.probability,
                    End::Unseen => 0.0,
                };
                (blocks, ends)
            }
            drawn => {
                let blocks = if let Drawn::Sampled(weight) = drawn { weight.scale / weight.probability } else { 1.0 };
                (blocks, if survives { 0.0 } else { blocks })
            }
        };
        let size = block.size as f64;
        of.born[generation] += blocks * size;
        of.born_blocks[generation] += blocks;
        of.ended[generation][last] += ends * size;
        of.ended_blocks[generation] += ends;
        of.seen[generation] += u64::from(survives || matches!(ending, Ending::Uncertain { .. }));
    }

    /// The tables, by row.
    pub fn finish(self) -> Vec<Option<Generations>> {
        self.rows
    }

    /// How long a segment is, in nanoseconds.
    pub fn segment_ns(&self) -> u64 {
        self.segment_ns
    }
}
