//! Pages that live blocks lie on: how many each group holds alone, and for how little.
//!
//! A page is given back to the kernel only if nothing lives on it. A group that has a small block on each of many pages holds all of
//! these.

use super::timeline::Grouping;
use crate::heap::{Block, Ending};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The group of blocks that the filters leave out.
const NOBODY: u32 = u32::MAX;

/// A block that lives.
#[derive(Clone, Copy)]
struct Held {
    addr: u64,
    size: u64,
    row: u32,
}

/// What one group holds, or several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Pages on which nothing else lives.
    pub pages: u64,
    /// Its bytes on them.
    pub bytes: u64,
    /// Its blocks that begin on them.
    pub blocks: u64,
}

impl Pinned {
    /// Bytes that are held and not used.
    pub fn idle(&self) -> u64 {
        (self.pages * PAGE).saturating_sub(self.bytes)
    }

    fn add(&mut self, other: &Pinned) {
        self.pages += other.pages;
        self.bytes += other.bytes;
        self.blocks += other.blocks;
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragmentation {
    /// Groups, those that hold most without using it first: places in the table.
    pub rows: Vec<(usize, Pinned)>,
    /// How many other groups hold pages alone, and what they hold together.
    pub others: (usize, Pinned),
    /// Pages that live blocks lie on.
    pub pages: u64,
    /// Live bytes on them, and blocks.
    pub live: (u64, u64),
    /// Pages on which several groups have blocks.
    pub shared: u64,
}

/// Finds the pages that blocks hold at a moment.
pub struct Pages {
    grouping: Grouping,
    at_ns: u64,
    held: Vec<Held>,
}

/// A page being looked at.
#[derive(Default)]
struct Page {
    number: Option<u64>,
    /// Whose blocks lie on it, if they are of one group.
    row: Option<u32>,
    on: Pinned,
}

impl Pages {
    /// At this moment, in nanoseconds of the capture.
    pub fn new(grouping: Grouping, at_ns: u64) -> Self {
        Pages { grouping, at_ns, held: Vec::new() }
    }

    /// A block ended, or lives at the end.
    pub fn add(&mut self, block: &Block, ending: &Ending) {
        if block.alloc_ns > self.at_ns || !(ending.is_live() || ending.known_ns() > self.at_ns) {
            return;
        }
        // Everything that lives holds its pages, whether it is asked for or not.
        let row = self.grouping.row(block, None).filter(|_| self.grouping.lets(block, ending));
        self.held.push(Held { addr: block.addr, size: block.size.max(1), row: row.map_or(NOBODY, |row| row as u32) });
    }

    /// What was found: the `most` groups that hold most.
    pub fn finish(mut self, most: usize) -> Fragmentation {
        self.held.sort_unstable_by_key(|held| held.addr);
        let mut pinned = vec![Pinned::default(); self.grouping.rows()];
        let (mut found, mut page) = (Fragmentation::default(), Page::default());
        for held in &self.held {
            let end = held.addr.saturating_add(held.size - 1);
            let (first, last) = (held.addr / PAGE, end / PAGE);
            found.live.0 = found.live.0.saturating_add(held.size);
            found.live.1 += 1;
            // In a damaged capture blocks may overlap: a page is left once.
            let from = first.max(page.number.unwrap_or(0)).min(last.max(page.number.unwrap_or(0)));
            page.turn(from, &mut found, &mut pinned);
            page.put(
                held,
                Pinned {
                    pages: 0,
                    bytes: end.min(from * PAGE + (PAGE - 1)).saturating_add(1).saturating_sub(held.addr.max(from * PAGE)),
                    blocks: 1,
                },
            );
            if last > from {
                let between = last - from - 1;
                if between > 0 {
                    page.turn(from + 1, &mut found, &mut pinned);
                    page.put(held, Pinned { pages: between - 1, bytes: between * PAGE, blocks: 0 });
                }
                page.turn(last, &mut found, &mut pinned);
                page.put(held, Pinned { pages: 0, bytes: end - last * PAGE + 1, blocks: 0 });
            }
        }
        page.turn(u64::MAX, &mut found, &mut pinned);
        let mut ranked: Vec<(usize, Pinned)> = pinned.into_iter().enumerate().filter(|(_, pinned)| pinned.pages > 0).collect();
        ranked.sort_by_key(|(row, pinned)| (std::cmp::Reverse((pinned.idle(), pinned.pages)), *row));
        let nameless = self.grouping.rows() - 1;
        for (row, pinned) in ranked {
            if found.rows.len() < most && row != nameless {
                found.rows.push((row, pinned));
            } else {
                found.others.0 += 1;
                found.others.1.add(&pinned);
            }
        }
        found
    }
}

impl Page {
    /// Goes on to the page with this number; what lies on the one before is known then.
    fn turn(&mut self, number: u64, found: &mut Fragmentation, pinned: &mut [Pinned]) {
        if self.number == Some(number) {
            return;
        }
        if self.number.is_some() {
            let pages = self.on.pages + 1;
            found.pages += pages;
            match self.row {
                None => found.shared += pages,
                Some(row) => {
                    if let Some(of) = pinned.get_mut(row as usize) {
                        of.add(&Pinned { pages, ..self.on });
                    }
                }
            }
        }
        *self = Page { number: Some(number), row: None, on: Pinned::default() };
    }

    /// A part of a block lies on it. `part.pages`: on so many pages more.
    fn put(&mut self, held: &Held, part: Pinned) {
        let is_first = self.on == Pinned::default();
        self.row = if is_first { Some(held.row) } else { self.row.filter(|row| *row == held.row) };
        self.on.add(&part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::Peak;
    use crate::query::tests::Heap;
    use crate::query::{BlockFilter, Measure, Query, Suppressions, Table, ask};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const PATHS: [&[u64]; 3] = [&[0x1010, 0x1020], &[0x1010, 0x1020, 0x1030], &[0x1010, 0x2020, 0x2010]];

    fn fragmentation(heap: &Heap, blocks: BlockFilter, at_ns: u64, most: usize) -> (Fragmentation, Table) {
        let query = Query { measure: Measure::Allocated, keep_zero: true, blocks, ..Query::default() };
        let entries = heap.entries(&query).0;
        let sites = heap.sites(&query);
        let table = ask(&query, &sites, &heap.streams, &Suppressions::none(), None);
        let mut pages = Pages::new(Grouping::new(&query, &sites, &heap.streams, &table, &entries, Vec::new()), at_ns);
        heap.replay(|block: &Block, ending: &Ending, _: &Peak| pages.add(block, ending));
        (pages.finish(most), table)
    }

    fn pinned(pages: u64, bytes: u64, blocks: u64) -> Pinned {
        Pinned { pages, bytes, blocks }
    }

    /// Three pages with 16 B of the first group each; one page of both; two and a half pages in one block of the second.
    fn known() -> Heap {
        let mut heap = Heap::new();
        for page in 1..4 {
            heap.alloc(page, 0, page * PAGE + 100, 16, PATHS[0]);
        }
        heap.alloc(10, 0, 5 * PAGE, 32, PATHS[0]).alloc(11, 0, 5 * PAGE + 64, 8, PATHS[1]);
        heap.alloc(20, 0, 7 * PAGE + 2048, 3 * PAGE, PATHS[1]);
        heap.alloc(30, 0, 3 * PAGE + 500, 500, PATHS[2]).free(40, 0, 3 * PAGE + 500);
        heap
    }

    #[test]
    fn pages_of_one_group_are_told_from_those_of_several() {
        let (found, _) = fragmentation(&known(), BlockFilter::default(), 50, 9);
        let rows: Vec<Pinned> = found.rows.iter().map(|(_, pinned)| *pinned).collect();
        assert_eq!(rows, [pinned(3, 48, 3), pinned(4, 3 * PAGE, 1)]);
        assert_eq!((found.pages, found.shared, found.live), (8, 1, (48 + 32 + 8 + 3 * PAGE, 6)));
        let (found, _) = fragmentation(&known(), BlockFilter::default(), 50, 1);
        assert_eq!((found.rows.len(), found.others), (1, (1, pinned(4, 3 * PAGE, 1))));
    }

    #[test]
    fn a_moment_has_what_lived_then() {
        let (found, _) = fragmentation(&known(), BlockFilter::default(), 30, 9);
        assert_eq!((found.rows[0].1, found.shared), (pinned(2, 32, 2), 2), "on the third page lay another's block");
        let (found, _) = fragmentation(&known(), BlockFilter::default(), 2, 9);
        assert_eq!((found.rows.len(), found.pages), (1, 2));
    }

    #[test]
    fn what_is_filtered_out_holds_its_pages_all_the_same() {
        let (found, _) = fragmentation(&known(), BlockFilter { min_size: Some(9), ..BlockFilter::default() }, 50, 9);
        assert_eq!(found.shared, 1, "8 B of another group lie on it");
        let (found, _) = fragmentation(&known(), BlockFilter { max_size: Some(31), ..BlockFilter::default() }, 50, 9);
        assert_eq!((found.rows.len(), found.pages), (1, 8));
    }

    proptest! {
        /// Every page is looked at by hand. Blocks do not overlap.
        #[test]
        fn pages_are_counted_as_by_hand(blocks in prop::collection::vec((0u64..5000, 1u64..20_000, 0usize..3, any::<bool>()), 1..40)) {
            let (mut heap, mut addr) = (Heap::new(), 0x10_0000);
            let mut on: BTreeMap<u64, (BTreeSet<usize>, u64)> = BTreeMap::new();
            for (number, &(gap, size, path, freed)) in blocks.iter().enumerate() {
                addr += gap;
                heap.alloc(number as u64, 0, addr, size, PATHS[path]);
                if freed {
                    heap.free(number as u64, 0, addr);
                } else {
                    for byte in addr..addr + size {
                        let page = on.entry(byte / PAGE).or_default();
                        page.0.insert(path);
                        page.1 += 1;
                    }
                }
                addr += size;
            }
            let (found, _) = fragmentation(&heap, BlockFilter::default(), 1000, 9);
            let alone = |path: usize| on.values().filter(move |(paths, _)| paths.len() == 1 && paths.contains(&path));
            let mut expected: Vec<(u64, u64)> = (0..3).map(|path| (alone(path).count() as u64, alone(path).map(|page| page.1).sum())).collect();
            expected.retain(|(pages, _)| *pages > 0);
            expected.sort_unstable();
            let mut rows: Vec<(u64, u64)> = found.rows.iter().map(|(_, pinned)| (pinned.pages, pinned.bytes)).collect();
            prop_assert!(found.rows.windows(2).all(|pair| pair[0].1.idle() >= pair[1].1.idle()));
            rows.sort_unstable();
            prop_assert_eq!(rows, expected);
            prop_assert_eq!(found.pages, on.len() as u64);
            prop_assert_eq!(found.shared, on.values().filter(|(paths, _)| paths.len() > 1).count() as u64);
        }
    }
}
