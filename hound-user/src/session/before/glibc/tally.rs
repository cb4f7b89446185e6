//! Counting blocks by size.

use super::super::{Class, Count};

/// One class for each power of two below the highest address.
const CLASSES: usize = 48;
/// What the header of a chunk takes from its block.
const HEADER: u64 = 8;

#[derive(Clone, Debug)]
pub struct Tally {
    classes: [Count; CLASSES],
    pub free: u64,
    pub overhead: u64,
    /// Blocks that may be the table of a thread's cache.
    pub tables: Vec<u64>,
    /// Blocks counted first and taken back later.
    pub taken_back: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally { classes: [Count::default(); CLASSES], free: 0, overhead: 0, tables: Vec::new(), taken_back: 0 }
    }
}

/// A tally without its list, cheap to put back.
#[derive(Clone)]
pub struct Mark {
    classes: [Count; CLASSES],
    free: u64,
    overhead: u64,
    tables: usize,
}

impl Tally {
    /// A chunk of an arena.
    pub fn chunk(&mut self, size: u64) {
        self.block(size, size - HEADER);
    }

    /// A block that has `usable` of `size` bytes.
    pub fn block(&mut self, size: u64, usable: u64) {
        let class = &mut self.classes[class(usable)];
        class.count += 1;
        class.bytes += usable;
        self.overhead += size - usable;
    }

    /// Undoes the counting of a chunk. Returns the usable bytes: 0 if none of that class is left.
    pub fn take_back(&mut self, size: u64) -> u64 {
        let usable = size - HEADER;
        let class = &mut self.classes[class(usable)];
        if class.count == 0 || class.bytes < usable {
            return 0;
        }
        class.count -= 1;
        class.bytes -= usable;
        self.taken_back += 1;
        usable
    }

    pub fn add(&mut self, other: Tally) {
        for (ours, theirs) in self.classes.iter_mut().zip(other.classes) {
            ours.count += theirs.count;
            ours.bytes += theirs.bytes;
        }
        self.free += other.free;
        self.overhead += other.overhead;
        self.tables.extend(other.tables);
    }

    pub fn mark(&self) -> Mark {
        Mark { classes: self.classes, free: self.free, overhead: self.overhead, tables: self.tables.len() }
    }

    pub fn back_to(&mut self, mark: &Mark) {
        (self.classes, self.free, self.overhead) = (mark.classes, mark.free, mark.overhead);
        self.tables.truncate(mark.tables);
    }

    pub fn classes(&self) -> Vec<Class> {
        let classes = self.classes.iter().enumerate().filter(|(_, blocks)| blocks.count > 0);
        classes.map(|(index, &blocks)| Class { from: 1 << index, blocks }).collect()
    }
}

fn class(usable: u64) -> usize {
    (usable.max(1).ilog2() as usize).min(CLASSES - 1)
}
