//! Adding blocks up while a capture is replayed.

use super::filter::BlockFilter;
use crate::capture::model::StackId;
use crate::heap::{Block, Ending, Peak};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Sums over blocks. Bytes are as asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Blocks allocated.
    pub allocations: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Blocks that live at the end.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Blocks that lived when most bytes of the whole heap lived.
    pub peak_blocks: u64,
    /// Their bytes.
    pub peak_bytes: u64,
    /// Blocks released with no other allocation of their thread between.
    pub temporary: u64,
    /// Their bytes.
    pub temporary_bytes: u64,
}

impl Sums {
    /// Adds another group's sums. Wraps, as sizes may be anything in a damaged capture.
    pub fn add(&mut self, other: &Sums) {
        let pairs = [
            (&mut self.allocations, other.allocations),
            (&mut self.allocated_bytes, other.allocated_bytes),
            (&mut self.live_blocks, other.live_blocks),
            (&mut self.live_bytes, other.live_bytes),
            (&mut self.peak_blocks, other.peak_blocks),
            (&mut self.peak_bytes, other.peak_bytes),
            (&mut self.temporary, other.temporary),
            (&mut self.temporary_bytes, other.temporary_bytes),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum = sum.wrapping_add(more));
    }
}

/// What blocks are told apart by, besides their stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Split {
    /// By the allocating stream.
    pub stream: bool,
    /// By the power of two the size is under.
    pub size: bool,
}

/// A part of what was allocated at one place, as split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Part {
    /// The stream's number, 0 if not split by it.
    pub stream: u32,
    /// How many bits the size has: it is under 2^bits; 0 if not split by it (or if the size is 0).
    pub size_bits: u32,
}

/// What is added up together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Where it was allocated.
    pub stack: StackId,
    /// In which era of the address space: how many of the remapping moments were past.
    pub era: u32,
    /// By whom and how large.
    pub part: Part,
}

/// Sums of one key.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What for.
    pub key: Key,
    /// The sums.
    pub sums: Sums,
    /// Ordinal of the peak that `sums.peak_*` are about.
    peak: u64,
}

/// A multiplication: keys are small numbers, and a table that the target's addresses could attack is not at stake.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(u32::from(byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    }
}

/// Adds blocks up as they end.
pub struct Tally {
    filter: BlockFilter,
    split: Split,
    /// Moments from which addresses may mean something else.
    moments: Vec<u64>,
    entries: Vec<Entry>,
    /// Entry number plus one of the plain keys (no era, no part), by stack: nearly all there are, at an index and no hash.
    plain: Vec<u32>,
    others: HashMap<Key, u32, BuildHasherDefault<KeyHasher>>,
}

impl Tally {
    /// Sums of nothing. `moments` are the symbol table's remappings.
    pub fn new(filter: BlockFilter, split: Split, moments: Vec<u64>) -> Self {
        Tally { filter, split, moments, entries: Vec::new(), plain: Vec::new(), others: HashMap::default() }
    }

    /// A block ended (or lives at the end). `peak` is the peak as it stands.
    pub fn add(&mut self, block: &Block, ending: &Ending, peak: &Peak) {
        if !self.filter.lets(block, ending) {
            return;
        }
        let index = self.index(block);
        let entry = &mut self.entries[index];
        let (sums, size) = (&mut entry.sums, block.size);
        sums.allocations += 1;
        sums.allocated_bytes = sums.allocated_bytes.wrapping_add(size);
        // See `heap::Replay`: what lived at an older peak does not count when there is a higher one.
        if entry.peak != peak.ordinal {
            entry.peak = peak.ordinal;
            (sums.peak_blocks, sums.peak_bytes) = (0, 0);
        }
        if block.ordinal <= peak.ordinal {
            sums.peak_blocks += 1;
            sums.peak_bytes = sums.peak_bytes.wrapping_add(size);
        }
        match ending {
            Ending::Alive { .. } | Ending::Censored { .. } => {
                sums.live_blocks += 1;
                sums.live_bytes = sums.live_bytes.wrapping_add(size);
            }
            Ending::Freed(death) if death.temporary => {
                sums.temporary += 1;
                sums.temporary_bytes = sums.temporary_bytes.wrapping_add(size);
            }
            Ending::Freed(_) | Ending::Replaced { .. } => {}
        }
    }

    /// The sums, once the replay is finished and `peak` is the peak.
    pub fn finish(mut self, peak: &Peak) -> Vec<Entry> {
        for entry in self.entries.iter_mut().filter(|entry| entry.peak != peak.ordinal) {
            (entry.sums.peak_blocks, entry.sums.peak_bytes) = (0, 0);
        }
        self.entries
    }

    fn index(&mut self, block: &Block) -> usize {
        let stream = if self.split.stream { block.stream.0 } else { 0 };
        let size_bits = if self.split.size { u64::BITS - block.size.leading_zeros() } else { 0 };
        let part = Part { stream, size_bits };
        let era = self.moments.partition_point(|&moment| moment <= block.alloc_ns) as u32;
        let key = Key { stack: block.stack, era, part };
        if era != 0 || part != Part::default() {
            let next = self.entries.len() as u32;
            let index = *self.others.entry(key).or_insert(next);
            return self.entry(index as usize, key);
        }
        let stack = block.stack.0 as usize;
        // Stack ids are dense; one out of range (a damaged capture) may not make the table grow past sense.
        if stack >= self.plain.len() {
            if stack > self.plain.len() * 2 + (1 << 24) {
                let next = self.entries.len() as u32;
                let index = *self.others.entry(key).or_insert(next);
                return self.entry(index as usize, key);
            }
            self.plain.resize((stack + 1).next_power_of_two(), 0);
        }
        if self.plain[stack] == 0 {
            self.plain[stack] = self.entries.len() as u32 + 1;
        }
        self.entry(self.plain[stack] as usize - 1, key)
    }

    fn entry(&mut self, index: usize, key: Key) -> usize {
        if index == self.entries.len() {
            self.entries.push(Entry { key, sums: Sums::default(), peak: 0 });
        }
        index
    }
}
