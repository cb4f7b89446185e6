//! Which blocks a program still has pointers to: a conservative mark over a copy of its memory (Boehm and Weiser 1988).
//!
//! Whatever looks like an address inside a block is taken for a pointer to it. Roots are all words of the copy but those of heap pages: what
//! lies there is followed from block to block, so that a pointer in a released block, or in an unreachable one, reaches nothing.
//!
//! It can err on both sides: a number may look like an address, and a pointer may be hidden (packed with other bits, or in another process).

use super::block::{Block, Ending, Peak};
use super::replay::Hears;
use std::collections::HashSet;
use std::ops::Range;

const PAGE: u64 = 4096;
const WORD: u64 = 8;
/// glibc maps larger blocks by themselves at first, so that what they leave behind is no heap.
const MOST_IN_HEAP: u64 = 128 << 10;
/// Pages that were met last, by their lowest bits.
const RECENT: usize = 1024;

/// Of a program's memory, the words that may be pointers, by their addresses, in order. That is what a copy of it is needed for, and is mostly
/// a small part of it.
#[derive(Debug, Default)]
pub struct Memory {
    at: Vec<u64>,
    words: Vec<u64>,
    bytes: u64,
    /// The program's memory lies in these, between which is most of the address space: what is a pointer has a value in one of them.
    spans: [Range<u64>; 2],
}

impl Memory {
    /// Nothing yet, of memory that lies here: ranges in order.
    pub fn within(ranges: &[Range<u64>]) -> Self {
        let (first, last) = (ranges.first().map_or(0, |range| range.start), ranges.last().map_or(0, |range| range.end));
        let gap = ranges.windows(2).max_by_key(|two| two[1].start - two[0].end);
        let (low, high) = gap.map_or((last, last), |two| (two[0].end, two[1].start));
        Memory { spans: [first..low, high..last], ..Memory::default() }
    }

    /// Adds what lies at a whole word behind all that was added.
    pub fn push(&mut self, start: u64, bytes: &[u8]) {
        debug_assert!(start.is_multiple_of(WORD) && self.at.last().is_none_or(|last| *last < start));
        let [low, high] = self.spans.clone();
        for (number, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            if low.contains(&word) || high.contains(&word) {
                self.at.push(start + number as u64 * WORD);
                self.words.push(word);
            }
        }
        self.bytes += bytes.len() as u64;
    }

    /// Bytes that were added.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that this takes.
    pub fn taken(&self) -> u64 {
        (self.at.len() + self.words.len()) as u64 * WORD
    }

    /// The words of a part of it, as far as they were added.
    fn words(&self, from: u64, to: u64, mut each: impl FnMut(u64)) {
        let first = self.at.partition_point(|at| *at < from);
        let part = self.at[first..].iter().zip(&self.words[first..]);
        part.take_while(|(at, _)| **at + WORD <= to).for_each(|(_, word)| each(*word));
    }
}

/// What a replay tells of a heap: the blocks that live at its end, and the pages where any ever were.
#[derive(Debug)]
pub struct Held {
    /// Address and size.
    blocks: Vec<(u64, u64)>,
    pages: HashSet<u64>,
    recent: Box<[u64; RECENT]>,
}

impl Default for Held {
    fn default() -> Self {
        Held { blocks: Vec::new(), pages: HashSet::new(), recent: Box::new([u64::MAX; RECENT]) }
    }
}

impl Hears for &mut Held {
    fn born(&mut self, block: &Block) {
        if block.size <= MOST_IN_HEAP {
            self.touch(block.addr, block.size);
        }
    }

    fn ended(&mut self, block: &Block, ending: &Ending, _: &Peak) {
        if ending.is_live() {
            self.blocks.push((block.addr, block.size.max(1)));
        }
    }
}

impl Held {
    fn touch(&mut self, addr: u64, size: u64) {
        for page in addr / PAGE..=addr.saturating_add(size.max(1) - 1) / PAGE {
            let recent = &mut self.recent[page as usize % RECENT];
            if *recent != page {
                *recent = page;
                self.pages.insert(page);
            }
        }
    }

    /// Blocks, and their bytes.
    pub fn sums(&self) -> (u64, u64) {
        (self.blocks.len() as u64, self.blocks.iter().map(|(_, size)| size).sum())
    }

    /// The addresses of those blocks that no word of this memory leads to, in order.
    pub fn unreachable(mut self, memory: &Memory) -> Vec<u64> {
        self.blocks.sort_unstable();
        self.blocks.dedup_by_key(|(addr, _)| *addr);
        for at in 0..self.blocks.len() {
            let (addr, size) = self.blocks[at];
            self.touch(addr, size);
        }
        let Held { blocks, pages, .. } = self;
        let ends = blocks.first().map_or(0..0, |(first, _)| *first..blocks.last().map_or(0, |(last, size)| last.saturating_add(*size)));
        let mut reached = vec![false; blocks.len()];
        let mut next = Vec::new();
        let mut look = |word: u64, next: &mut Vec<usize>| {
            if !ends.contains(&word) {
                return;
            }
            let at = blocks.partition_point(|(addr, _)| *addr <= word) - 1;
            if word - blocks[at].0 < blocks[at].1 && !reached[at] {
                reached[at] = true;
                next.push(at);
            }
        };
        let mut last = (u64::MAX, false);
        for (at, word) in memory.at.iter().zip(&memory.words) {
            if last.0 != at / PAGE {
                last = (at / PAGE, pages.contains(&(at / PAGE)));
            }
            if !last.1 {
                look(*word, &mut next);
            }
        }
        while let Some(at) = next.pop() {
            let (addr, size) = blocks[at];
            memory.words(addr, addr.saturating_add(size), |word| look(word, &mut next));
        }
        blocks.iter().zip(reached).filter(|(_, reached)| !reached).map(|((addr, _), _)| *addr).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAP: u64 = 0x10_0000;
    const DATA: u64 = 0x80_0000;

    /// Memory of two pages of heap and one of data, with these words in it.
    fn memory(words: &[(u64, u64)]) -> Memory {
        let mut runs = [(HEAP, vec![0; 2 * PAGE as usize]), (DATA, vec![0; PAGE as usize])];
        for (at, word) in words {
            let (start, bytes) = runs.iter_mut().rfind(|(start, _)| start <= at).unwrap();
            bytes[(at - *start) as usize..][..8].copy_from_slice(&word.to_le_bytes());
        }
        let mut memory = Memory::within(&[HEAP..HEAP + 2 * PAGE, DATA..DATA + PAGE]);
        runs.iter().for_each(|(start, bytes)| memory.push(*start, bytes));
        assert!(memory.bytes() == 3 * PAGE && memory.taken() <= 16 * words.len() as u64);
        memory
    }

    fn unreachable(blocks: &[(u64, u64)], words: &[(u64, u64)]) -> Vec<u64> {
        let mut held = Held { blocks: blocks.to_vec(), ..Held::default() };
        held.touch(HEAP, 2 * PAGE);
        held.unreachable(&memory(words))
    }

    #[test]
    fn what_a_root_leads_to_is_reached_through_other_blocks_and_from_inside() {
        let blocks = [(HEAP, 32), (HEAP + 0x40, 32), (HEAP + 0x80, 0), (HEAP + 0x1000, 64)];
        // A root to the first, which has the second, which points into the middle of the last.
        let words = [(DATA + 8, HEAP), (HEAP + 24, HEAP + 0x40), (HEAP + 0x40, HEAP + 0x1000 + 63)];
        assert_eq!(unreachable(&blocks[..2], &words), [0; 0]);
        assert_eq!(unreachable(&[blocks[0], blocks[1], blocks[3]], &words), [0; 0]);
        assert_eq!(unreachable(&[blocks[3], blocks[1], blocks[0], (HEAP + 0x100, 16)], &words), [HEAP + 0x100], "in any order");
    }

    #[test]
    fn what_only_the_lost_or_the_released_point_to_is_lost() {
        // A ring of two, and a released block that still has the address of a third.
        let blocks = [(HEAP, 16), (HEAP + 0x40, 16), (HEAP + 0x80, 16)];
        let words = [(HEAP, HEAP + 0x40), (HEAP + 0x40, HEAP), (HEAP + 0x200, HEAP + 0x80)];
        assert_eq!(unreachable(&blocks, &words), [HEAP, HEAP + 0x40, HEAP + 0x80]);
    }

    #[test]
    fn behind_a_block_is_not_in_it() {
        let block = [(HEAP, 16)];
        assert_eq!(unreachable(&block, &[(DATA, HEAP + 16)]), [HEAP]);
        assert_eq!(unreachable(&block, &[(DATA, HEAP - 1)]), [HEAP]);
        assert_eq!(unreachable(&block, &[(DATA, HEAP + 15)]), [0; 0]);
        assert_eq!(unreachable(&[], &[(DATA, HEAP)]), [0; 0]);
    }

    #[test]
    fn a_block_may_reach_beyond_what_was_copied() {
        let mut held = Held { blocks: vec![(DATA, 3 * PAGE), (HEAP, 16)], ..Held::default() };
        held.touch(HEAP, PAGE);
        // Of the block only the last page was copied, which points to the other one; a root points to it.
        let mut copy = Memory::within(&[HEAP..HEAP + PAGE, DATA..DATA + 9 * PAGE]);
        let mut last = vec![0; PAGE as usize];
        last[16..24].copy_from_slice(&HEAP.to_le_bytes());
        copy.push(DATA + 2 * PAGE, &last);
        copy.push(DATA + 8 * PAGE, &(DATA + 100).to_le_bytes());
        assert_eq!((copy.bytes(), held.unreachable(&copy)), (PAGE + 8, vec![]));
    }
}
