//! Finding the arenas, and the stretches of memory that belong to each.

use std::collections::HashSet;
use std::fmt;

use super::super::Bound;
use super::super::memory::{Area, What};
use super::super::source::{Source, Stop};
use super::{End, FLAGS, HIGHEST, PAGE, PREVIOUS_IN_USE, Stretch, area_of};

/// Bins of an arena: pairs of pointers to the first and the last chunk.
const BINS: usize = 127;
const BINS_BYTES: u64 = BINS as u64 * 16;
/// After the bins: their map (16 bytes), then `next`, `next_free`, `attached_threads`, `system_mem`, `max_system_mem`.
const NEXT: u64 = BINS_BYTES + 16;
const SYSTEM: u64 = NEXT + 24;
const STATE_END: u64 = NEXT + 40;
/// Before them: `top`, `last_remainder`; and before these the fast bins, in versions that have them.
const TOP: u64 = 16;
const FAST_BINS: usize = 10;
const FAST_BINS_BYTES: u64 = FAST_BINS as u64 * 8;
/// A lock and two flags at least stand at the start of an arena.
const SMALLEST_START: u64 = 24;
const LARGEST_START: u64 = 160;
/// Data of modules that is searched for a main arena: 0.1 ms per MiB.
const DATA_AT_MOST: u64 = 16 << 20;
const ARENAS_AT_MOST: usize = 1 << 14;
/// Chance finds that are looked into before a module is given up.
const SEEDS_AT_MOST: usize = 1 << 12;

/// Why an arena was given up.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Stop(Stop),
    Broken(&'static str),
}

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        Fault::Stop(stop)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Stop(Stop::Unreadable) => f.write_str("a part of the arena is not readable"),
            Fault::Stop(Stop::Bound(_)) => f.write_str("the time was over"),
            Fault::Broken(why) => f.write_str(why),
        }
    }
}

/// One libc's arenas.
#[derive(Debug)]
pub struct Arenas {
    /// The main arena first.
    pub at: Vec<u64>,
    /// Where an arena's bins are, from its start: differs between versions.
    bins: u64,
    /// The module data that the main arena lies in.
    pub data: (u64, u64),
}

impl Arenas {
    /// The arenas of each libc in the address space: more than one if there is a dlmopen.
    pub fn find_all(source: &mut Source, areas: &[Area]) -> Result<Vec<Arenas>, Bound> {
        let mut found = Vec::new();
        for area in areas.iter().filter(|area| area.what == What::Data) {
            let mut bytes = vec![0; usize::try_from((area.end - area.start).min(DATA_AT_MOST)).unwrap_or(0)];
            match source.fill(area.start, &mut bytes) {
                Ok(()) => {}
                Err(Stop::Unreadable) => continue,
                Err(Stop::Bound(bound)) => return Err(bound),
            }
            let words: Vec<u64> = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes"))).collect();
            if let Some(arenas) = find(source, area, &words)? {
                found.push(arenas);
            }
        }
        Ok(found)
    }
}

impl Arenas {
    /// Follows the ring again: arenas are added as threads come.
    pub fn refresh(&mut self, source: &mut Source) {
        let Some(&main) = self.at.first() else { return };
        if let Ok(next) = source.word(main + self.bins + NEXT)
            && let Ok(at) = ring(source, main, self.bins, next)
        {
            self.at = at;
        }
    }
}

/// The main arena in a module's data: found by an empty bin, and proved by all its bins and by the ring of arenas.
fn find(source: &mut Source, area: &Area, words: &[u64]) -> Result<Option<Arenas>, Bound> {
    let address = |index: usize| area.start + index as u64 * 8;
    let is_empty = |index: usize| words[index] == address(index).wrapping_sub(16) && words[index] == words[index + 1];
    let (mut index, mut seeds) = (0, 0);
    while index + 1 < words.len() {
        if !is_empty(index) {
            index += 1;
            continue;
        }
        for base in (0..BINS).filter_map(|before| index.checked_sub(2 * before)).filter(|&base| base >= 3) {
            let Some(next) = words.get(base + 2 * BINS + 2).copied() else { continue };
            let is_bin = |bin: usize| {
                let (first, last) = (words[base + 2 * bin], words[base + 2 * bin + 1]);
                is_empty(base + 2 * bin) || [first, last].iter().all(|&at| at % 16 == 0 && at != 0 && at < HIGHEST)
            };
            if next == 0 || next >= HIGHEST || !(0..BINS).all(is_bin) {
                continue;
            }
            for start in (SMALLEST_START..=LARGEST_START).step_by(8) {
                match ring(source, address(base).wrapping_sub(start), start, next) {
                    Ok(at) => return Ok(Some(Arenas { at, bins: start, data: (area.start, area.end) })),
                    Err(Fault::Stop(Stop::Bound(bound))) => return Err(bound),
                    Err(_) => {}
                }
            }
        }
        seeds += 1;
        if seeds == SEEDS_AT_MOST {
            return Ok(None);
        }
        index += 2;
    }
    Ok(None)
}

/// The ring of arenas, if it is one.
fn ring(source: &mut Source, main: u64, bins: u64, mut next: u64) -> Result<Vec<u64>, Fault> {
    let mut at = vec![main];
    let mut seen = HashSet::from([main]);
    while next != main {
        // A thread's arena lies behind the header of its first heap, which names it.
        let header = next % PAGE;
        if !(32..=128).contains(&header) || source.word(next - header)? != next {
            return Err(Fault::Broken("no arena where one should be"));
        }
        if !seen.insert(next) || at.len() == ARENAS_AT_MOST {
            return Err(Fault::Broken("the ring of arenas does not close"));
        }
        at.push(next);
        next = source.word(next + bins + NEXT)?;
    }
    Ok(at)
}

/// An arena as it was when it was read.
#[derive(Debug)]
pub struct Arena {
    at: u64,
    bins: u64,
    is_main: bool,
    top: u64,
    /// The first chunk of each fast bin.
    pub fast: Vec<u64>,
    /// Bytes it has from the kernel.
    pub system: u64,
}

impl Arena {
    pub fn read(source: &mut Source, arenas: &Arenas, at: u64, is_main: bool) -> Result<Self, Fault> {
        let bins = arenas.bins;
        let top = source.word(at + bins - TOP)?;
        let [system, most] = source.words(at + bins + SYSTEM)?;
        if system > most || system >= HIGHEST {
            return Err(Fault::Broken("it has more memory than it ever had"));
        }
        let fast = match bins.checked_sub(TOP + FAST_BINS_BYTES).filter(|&offset| offset >= 8) {
            Some(offset) => source.words::<FAST_BINS>(at + offset)?.to_vec(),
            None => Vec::new(),
        };
        Ok(Arena { at, bins, is_main, top, fast, system })
    }

    /// The stretches of chunks that belong to the arena.
    pub fn stretches(&self, source: &mut Source, areas: &[Area]) -> Result<Vec<Stretch>, Fault> {
        if self.top == self.at + self.bins - 16 {
            return Ok(Vec::new()); // nothing was ever taken from it
        }
        if !self.top.is_multiple_of(16) || self.top >= HIGHEST {
            return Err(Fault::Broken("its top is no chunk"));
        }
        let size = source.word(self.top + 8)?;
        let end = self.top.checked_add(size & !FLAGS).filter(|&end| end < HIGHEST);
        let end = end.filter(|_| size & FLAGS == PREVIOUS_IN_USE).ok_or(Fault::Broken("its top is no chunk"))?;
        if self.is_main { self.main(areas, end) } else { self.heaps(source, end) }
    }

    fn main(&self, areas: &[Area], end: u64) -> Result<Vec<Stretch>, Fault> {
        let area = area_of(areas, self.top).ok_or(Fault::Broken("its top lies in no mapping"))?;
        // As long as all its memory is one piece, its beginning follows from its length. A static program's heap begins with other things.
        let start =
            end.checked_sub(self.system).map(|start| start.next_multiple_of(16)).filter(|&start| area.holds(start) && start < self.top);
        let end = End::Top { pointer: self.at + self.bins - TOP, top: self.top };
        let top = Stretch { start: start.unwrap_or(area.start), limit: area.end, header: 0, is_main: true, end };
        if area.what == What::Heap {
            return Ok(vec![top]);
        }
        // brk could not grow: the arena goes on in a mapping.
        let before = areas.iter().filter(|area| area.what == What::Heap);
        Ok(before
            .map(|heap| Stretch { start: heap.start, limit: heap.end, header: 0, is_main: true, end: End::Fence })
            .chain([top])
            .collect())
    }

    /// A thread's arena: heaps of equal alignment, each but the last full, linked backwards.
    fn heaps(&self, source: &mut Source, end: u64) -> Result<Vec<Stretch>, Fault> {
        let header = self.at % PAGE;
        // 64 MiB, unless a tunable asks for huge pages.
        let mut starts = [26, 21, 22, 23, 24, 25, 27, 28, 29, 30, 31, 32, 33].iter().map(|bits| self.top & !((1u64 << bits) - 1));
        let mut heap =
            starts.find(|&heap| heap != 0 && source.word(heap) == Ok(self.at)).ok_or(Fault::Broken("its heap does not name it"))?;
        let (mut stretches, mut seen) = (Vec::new(), HashSet::new());
        loop {
            let [arena, previous, size] = source.words(heap)?;
            if arena != self.at || size % PAGE != 0 || size <= header || size > 1 << 33 || !seen.insert(heap) {
                return Err(Fault::Broken("a heap's header does not hold together"));
            }
            let is_first = heap == self.at - header;
            let start = if is_first { (self.at + self.bins + STATE_END).next_multiple_of(16) } else { heap + header };
            let (limit, mut stop) = (heap + size, End::Fence);
            if stretches.is_empty() {
                if end != limit || self.top < start {
                    return Err(Fault::Broken("its top does not end its heap"));
                }
                stop = End::Top { pointer: self.at + self.bins - TOP, top: self.top };
            }
            stretches.push(Stretch { start, limit, header: start - heap, is_main: false, end: stop });
            match previous {
                0 if is_first => return Ok(stretches),
                0 => return Err(Fault::Broken("its heaps do not lead to the first one")),
                _ => heap = previous,
            }
        }
    }
}
