//! What became of what was allocated when: per row, a table of births by deaths.
//!
//! The capture's time is cut into [`SEGMENTS`] of equal length. What was allocated in one of them is a generation. Of each it is known how
//! much of it had ended by the end of each later one, and what never did. From this follow what lived when, how long things live, and which
//! generations have survivors: a leak leaves some of each, a cache that is full only young ones, start-up only the first.
//!
//! Samples stand for others, and so do their ends where not all of the time was observed: what survives of a generation is then what
//! outlived the windows less the ends that those seen stand for (see `Living`), and may be below zero by chance.
//!
//! What a realloc keeps is as old as it was, and only what it adds is new: a block that grows and grows leaves some of each generation. That
//! is so for blocks that stand for themselves, where the realloc is of the same row.
//!
//! What lived when recording was over has survived, whether the program ended then or runs on. Two kinds of blocks are neither survivors nor
//! leaks: what a process held that ended while others were recorded, for its end has given it back; and what lived when recording paused, for
//! nobody knows what became of it.

use super::timeline::Grouping;
use crate::heap::{Block, Drawn, End, Ending, Sampling};
use hound_common::event::MODE_OFF;
use std::collections::HashMap;
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
    /// Of these, those that the program had no pointer to when it ended; 0 where nobody looked.
    pub unreachable: [u64; SEGMENTS],
    /// Whether somebody looked.
    pub looked: bool,
}

impl Default for Generations {
    fn default() -> Self {
        let none = [0.0; SEGMENTS];
        Generations {
            born: none,
            born_blocks: none,
            ended: Box::new([none; SEGMENTS]),
            ended_blocks: none,
            seen: [0; SEGMENTS],
            unreachable: [0; SEGMENTS],
            looked: false,
        }
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

/// What a chain of reallocs has of each generation: the oldest first.
#[derive(Clone, Debug, Default)]
struct Layers {
    row: usize,
    layers: Vec<Layer>,
    /// The segment in which the last of them ended so far.
    ended: usize,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    generation: usize,
    bytes: u64,
    /// Calls that added to it.
    pieces: u64,
}

impl Layers {
    fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes).sum()
    }

    fn add(&mut self, of: &mut Generations, generation: usize, bytes: u64) {
        of.born[generation] += bytes as f64;
        of.born_blocks[generation] += 1.0;
        match self.layers.last_mut() {
            Some(last) if last.generation == generation => {
                last.bytes += bytes;
                last.pieces += 1;
            }
            _ => self.layers.push(Layer { generation, bytes, pieces: 1 }),
        }
    }

    /// Ends the youngest of it, down to so many bytes.
    fn shrink(&mut self, of: &mut Generations, to: u64, segment: usize) {
        let mut over = self.bytes().saturating_sub(to);
        while let (Some(last), true) = (self.layers.last_mut(), over > 0) {
            let ends = last.bytes.min(over);
            of.ended[last.generation][segment] += ends as f64;
            over -= ends;
            last.bytes -= ends;
            if last.bytes == 0 {
                of.ended_blocks[last.generation] += last.pieces as f64;
                self.layers.pop();
            }
        }
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
    /// Addresses of the blocks that the program had no pointer to when it ended, in order; none where nobody looked.
    unreachable: Option<Vec<u64>>,
    /// By row; none for rows of which nothing lives.
    rows: Vec<Option<Generations>>,
    /// By the first block of the chain: what a realloc has kept for a block that was not told yet.
    kept: HashMap<u64, Layers>,
}

impl Births {
    /// From one moment to another, in nanoseconds of the capture, of which the last event was at `last_ns`. `wanted`: of each row, whether
    /// anything of it lives at the end.
    pub fn new(grouping: Grouping, sampling: Option<Arc<Sampling>>, (from_ns, to_ns): (u64, u64), last_ns: u64, wanted: &[bool]) -> Self {
        let parts = sampling.iter().flat_map(|sampling| sampling.parts());
        let watched_ns = parts.filter(|part| part.mode != MODE_OFF).map(|part| part.to_ns).max().unwrap_or(u64::MAX).min(last_ns);
        let segment_ns = (to_ns.saturating_sub(from_ns) / SEGMENTS as u64 + 1).max(1);
        let rows = wanted.iter().map(|&wanted| wanted.then(Generations::default)).collect();
        Births { grouping, sampling, last_ns, watched_ns, from_ns, segment_ns, unreachable: None, rows, kept: HashMap::new() }
    }

    /// The same, of a capture that tells which blocks the program had no pointer to when it ended, by their addresses in order.
    pub fn looked_at(mut self, unreachable: Option<Vec<u64>>) -> Self {
        self.rows.iter_mut().flatten().for_each(|of| of.looked = unreachable.is_some());
        Births { unreachable, ..self }
    }

    fn segment(&self, time_ns: u64) -> usize {
        ((time_ns.saturating_sub(self.from_ns) / self.segment_ns) as usize).min(SEGMENTS - 1)
    }

    /// A block ended, or lives at the end: each after the one that a realloc made it of. What was lost sight of is left out: it is no survivor
    /// and no victim.
    pub fn add(&mut self, block: &Block, ending: &Ending) {
        let kept = if block.chain_length > 0 { self.kept.remove(&block.chain) } else { None };
        let drawn = self.sampling.as_ref().map_or(Drawn::Exact, |sampling| sampling.drawn(block));
        let survives = self.survives(ending);
        let row = survives.and_then(|_| self.row(block, ending)).filter(|_| drawn != Drawn::Unknown);
        let kept = match kept {
            Some(kept) if row == Some(kept.row) && drawn == Drawn::Exact => Some(kept),
            Some(kept) => {
                self.leave(kept, survives.is_some());
                None
            }
            None => None,
        };
        let (Some(row), Some(survives)) = (row, survives) else { return };
        let (generation, last) = (self.segment(block.alloc_ns), self.segment(ending.time_ns()));
        let lost = survives && self.unreachable.as_ref().is_some_and(|lost| lost.binary_search(&block.addr).is_ok());
        let Some(Some(of)) = self.rows.get_mut(row) else { return };
        let goes_on = matches!(ending, Ending::Freed(death) if death.realloc);
        if drawn == Drawn::Exact && (kept.is_some() || goes_on) {
            let mut layers = kept.unwrap_or(Layers { row, ..Layers::default() });
            layers.shrink(of, block.size, generation);
            let more = block.size.saturating_sub(layers.bytes());
            if more > 0 || layers.layers.is_empty() {
                layers.add(of, generation, more);
            }
            layers.ended = last;
            if survives {
                for layer in &layers.layers {
                    of.seen[layer.generation] += layer.pieces;
                    of.unreachable[layer.generation] += if lost { layer.pieces } else { 0 };
                }
            } else if goes_on {
                self.kept.insert(block.chain, layers);
            } else {
                self.leave(layers, true);
            }
            return;
        }
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
        of.unreachable[generation] += u64::from(lost);
        of.seen[generation] += u64::from(survives || matches!(ending, Ending::Uncertain { .. }));
    }

    /// Whether it counts as a survivor; none if it was lost sight of.
    fn survives(&self, ending: &Ending) -> Option<bool> {
        match *ending {
            Ending::Censored { time_ns } if self.segment(time_ns) < self.segment(self.watched_ns) => None,
            // A process that ends with the recording, or a moment before it, is no other's predecessor.
            Ending::Alive { time_ns } => Some(self.segment(time_ns) == self.segment(self.last_ns)),
            _ => Some(ending.is_live()),
        }
    }

    /// The row that it is of, if that has a table and the filters let it through.
    fn row(&self, block: &Block, ending: &Ending) -> Option<usize> {
        let lived = Ending::Alive { time_ns: ending.time_ns() };
        let row = if self.grouping.lets(block, &lived) { self.grouping.row(block, None) } else { None };
        row.filter(|row| matches!(self.rows.get(*row), Some(Some(_))))
    }

    /// What a chain has ended with its last block; or, if the one after that was lost sight of, never was.
    fn leave(&mut self, chain: Layers, ended: bool) {
        let Some(Some(of)) = self.rows.get_mut(chain.row) else { return };
        for Layer { generation, bytes, pieces } in chain.layers {
            let (bytes, blocks) = (bytes as f64, pieces as f64);
            if ended {
                of.ended[generation][chain.ended] += bytes;
                of.ended_blocks[generation] += blocks;
            } else {
                of.born[generation] -= bytes;
                of.born_blocks[generation] -= blocks;
            }
        }
    }

    /// The tables, by row.
    pub fn finish(mut self) -> Vec<Option<Generations>> {
        // What came of these is not known: they ended as reallocs do.
        std::mem::take(&mut self.kept).into_values().for_each(|chain| self.leave(chain, true));
        self.rows
    }

    /// How long a segment is, in nanoseconds.
    pub fn segment_ns(&self) -> u64 {
        self.segment_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_realloc_keeps_is_as_old_as_it_was() {
        let (mut of, mut chain) = (Generations::default(), Layers::default());
        chain.add(&mut of, 0, 100);
        for generation in [1, 1, 4] {
            chain.add(&mut of, generation, 10);
        }
        assert_eq!((chain.bytes(), of.born[0], of.born[1], of.born_blocks[1], of.born[4]), (130, 100.0, 20.0, 2.0, 10.0));
        chain.shrink(&mut of, 200, 5);
        assert_eq!(of.ended_blocks, [0.0; SEGMENTS], "it is not that large");
        // The youngest goes first.
        chain.shrink(&mut of, 115, 5);
        assert_eq!((chain.bytes(), of.ended[4][5], of.ended_blocks[4], of.ended[1][5], of.ended_blocks[1]), (115, 10.0, 1.0, 5.0, 0.0));
        chain.shrink(&mut of, 100, 6);
        assert_eq!((of.ended[1][6], of.ended_blocks[1], of.living(0, SEGMENTS - 1)), (15.0, 2.0, 100.0));
    }
}
