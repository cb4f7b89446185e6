//! Adding blocks up while a capture is replayed.

use super::estimate::Scale;
use super::filter::BlockFilter;
use super::sums::{Figure, Sums};
use crate::capture::model::{ProcessId, StackId, StreamId};
use crate::heap::{Block, Drawn, End, Ending, Peak, Processes, Sampling};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// What blocks are told apart by, besides their stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Split {
    /// By the allocating stream.
    pub stream: bool,
    /// By the power of two the size is under.
    pub size: bool,
    /// By whether it is a sample.
    pub mode: bool,
}

/// A part of what was allocated at one place, as split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Part {
    /// The stream's number, 0 if not split by it.
    pub stream: u32,
    /// How many bits the size has: it is under 2^bits; 0 if not split by it (or if the size is 0).
    pub size_bits: u32,
    /// Of page faults: which of them ([`FaultTally`](super::FaultTally)); else 0.
    pub class: u32,
    /// It is a sample; false if not split by it.
    pub sampled: bool,
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

/// What a block is added to. `moments` are those from which addresses may mean something else.
#[inline(always)]
pub(super) fn key_of(block: &Block, split: Split, moments: &[u64], sampling: Option<&Sampling>) -> Key {
    let stream = if split.stream { block.stream.0 } else { 0 };
    let size_bits = if split.size { u64::BITS - block.size.leading_zeros() } else { 0 };
    let era = moments.partition_point(|&moment| moment <= block.alloc_ns) as u32;
    let sampled = split.mode && sampling.is_some_and(|sampling| !sampling.is_exact(block));
    Key { stack: block.stack, era, part: Part { stream, size_bits, class: 0, sampled } }
}

/// What was known of a block's end at an earlier moment; nothing, if it was not there yet.
fn as_of(now_ns: u64, block: &Block, ending: &Ending, sampling: Option<&Sampling>) -> Option<Ending> {
    if block.alloc_ns > now_ns {
        return None;
    }
    if ending.time_ns() <= now_ns {
        return Some(*ending);
    }
    let in_window = || matches!(sampling.map(|sampling| sampling.drawn(block)), Some(Drawn::Sampled(weight)) if weight.cluster.is_some());
    // Until its end was seen, a sample of a window might have lived or not: it stands for those whose end was not seen.
    let is_known = ending.known_ns() > now_ns && (ending.is_live() || !in_window());
    Some(if is_known { Ending::Alive { time_ns: now_ns } } else { Ending::Uncertain { time_ns: block.alloc_ns } })
}

/// Sums of one key.
#[derive(Clone, Debug)]
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

impl Entry {
    pub(super) fn new(key: Key) -> Self {
        Entry { key, sums: Sums::default(), peak: 0 }
    }

    /// A block of a capture that has samples, all but what it says of what lives.
    fn add(&mut self, block: &Block, ending: &Ending, peak: &Peak, lived: bool, drawn: &Drawn) {
        self.sums.add_block(block.size, ending, drawn);
        self.keep_peak(peak);
        // What was in doubt then counts, unless it was found to have ended before.
        let doubted = matches!(ending, Ending::Uncertain { .. });
        if lived && (doubted || ending.time_ns() >= peak.time_ns) {
            self.sums.add_at_peak(block.size, drawn);
        }
    }

    /// See `heap::Replay`: what lived at an older peak does not count when there is a higher one.
    fn keep_peak(&mut self, peak: &Peak) {
        if self.peak != peak.ordinal {
            self.peak = peak.ordinal;
            self.sums.forget_peak();
        }
    }
}

/// Of a capture that has samples: everything in it, whatever was asked for.
#[derive(Clone, Debug)]
pub struct Whole {
    /// What was allocated in each of [`Sampling::parts`], with intervals.
    pub parts: Vec<Sums>,
    /// Their sum, with intervals.
    pub total: Sums,
    /// Samples that are in no figure, for the capture ends before it says what they stand for.
    pub unknown: u64,
    /// What is needed for the intervals of other sums.
    pub scale: Scale,
}

/// What a tally adds up where there are samples.
struct Sampled {
    sampling: Arc<Sampling>,
    parts: Vec<Entry>,
    unknown: u64,
    /// The smallest sample, bytes.
    smallest: u64,
}

/// Blocks as small as this are expected everywhere, whatever was sampled.
const SMALL: u64 = 64;

impl Sampled {
    fn finish(mut self, filter: &BlockFilter, peak: &Peak) -> Whole {
        let mut total = Sums::default();
        for part in &mut self.parts {
            part.keep_peak(peak);
            total.add(&part.sums);
        }
        let sampled = total.sampled.get_or_insert_default();
        let mean = sampled.value(Figure::AllocatedBytes) / sampled.value(Figure::Allocations).max(1);
        let smallest = self.smallest.min(SMALL).max(filter.min_size.unwrap_or(0));
        let scale = Scale::new(&self.sampling, smallest, mean);
        total.settle(Some(&scale));
        let settled = |mut part: Entry| {
            part.sums.settle(Some(&scale));
            part.sums
        };
        Whole { parts: self.parts.into_iter().map(settled).collect(), total, unknown: self.unknown, scale }
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
    sampled: Option<Sampled>,
    /// Only where there are several processes: which one each stream is of, and what each adds up to.
    processes: Option<(Arc<Processes>, BTreeMap<ProcessId, Entry>)>,
    /// As if the capture ended there.
    until_ns: Option<u64>,
    /// Streams of processes that were over by then.
    over: Vec<StreamId>,
}

/// What a tally adds up to.
#[derive(Debug)]
pub struct Tallied {
    /// By what blocks are told apart by.
    pub entries: Vec<Entry>,
    /// Where there are samples: what all of it is.
    pub whole: Option<Whole>,
    /// Where there are several processes: what each of them is, whatever was asked for.
    pub processes: Vec<(ProcessId, Sums)>,
}

impl Tally {
    /// Sums of nothing. `moments` are the symbol table's remappings.
    pub fn new(filter: BlockFilter, split: Split, moments: Vec<u64>) -> Self {
        Tally {
            filter,
            split,
            moments,
            entries: Vec::new(),
            plain: Vec::new(),
            others: HashMap::default(),
            sampled: None,
            processes: None,
            until_ns: None,
            over: Vec::new(),
        }
    }

    /// The same for a capture that was sampled so.
    pub fn sampled(self, sampling: Arc<Sampling>) -> Self {
        let part = Entry::new(Key { stack: StackId(0), era: 0, part: Part::default() });
        let parts = vec![part; sampling.parts().len()];
        Tally { sampled: Some(Sampled { sampling, parts, unknown: 0, smallest: u64::MAX }), ..self }
    }

    /// The same for a capture of several processes.
    pub fn of_processes(self, processes: Arc<Processes>) -> Self {
        Tally { processes: Some((processes, BTreeMap::new())), ..self }
    }

    /// The same of what was there at this moment, as if the capture ended then.
    pub fn until(self, until_ns: Option<u64>) -> Self {
        Tally { until_ns, ..self }
    }

    /// The same without what was allocated by these streams: their processes were over then.
    pub fn without(self, over: &[StreamId]) -> Self {
        Tally { over: over.to_vec(), ..self }
    }

    /// What the block's process adds up to.
    #[inline(never)]
    fn process_of(&mut self, block: &Block) -> Option<&mut Entry> {
        let (processes, sums) = self.processes.as_mut()?;
        let process = processes.of_stream(block.stream)?;
        let key = Key { stack: StackId(0), era: 0, part: Part::default() };
        Some(sums.entry(process).or_insert_with(|| Entry::new(key)))
    }

    /// A block ended (or lives at the end). `peak` is the peak as it stands.
    pub fn add(&mut self, block: &Block, ending: &Ending, peak: &Peak) {
        self.add_as(block, ending, peak, block.ordinal <= peak.ordinal);
    }

    /// A block of which it is known whether it lived at this peak.
    #[inline]
    pub fn add_as(&mut self, block: &Block, ending: &Ending, peak: &Peak, lived: bool) {
        if let Some(until_ns) = self.until_ns {
            let sampling = self.sampled.as_ref().map(|sampled| &*sampled.sampling);
            if let Some(ending) = as_of(until_ns, block, ending, sampling).filter(|_| !self.over.contains(&block.stream)) {
                self.add_known(block, &ending, peak, lived);
            }
            return;
        }
        self.add_known(block, ending, peak, lived);
    }

    #[inline(always)]
    fn add_known(&mut self, block: &Block, ending: &Ending, peak: &Peak, lived: bool) {
        if self.sampled.is_some() {
            return self.add_sampled(block, ending, peak, lived);
        }
        if let Some(entry) = self.process_of(block) {
            entry.add(block, ending, peak, lived, &Drawn::Exact);
            entry.sums.add_life(block.size, ending, &Drawn::Exact, End::Watched);
        }
        if !self.filter.lets(block, ending) {
            return;
        }
        let index = self.index(key_of(block, self.split, &self.moments, None));
        let entry = &mut self.entries[index];
        let (sums, size) = (&mut entry.sums, block.size);
        sums.allocations += 1;
        sums.allocated_bytes = sums.allocated_bytes.wrapping_add(size);
        // See `heap::Replay`: what lived at an older peak does not count when there is a higher one.
        if entry.peak != peak.ordinal {
            entry.peak = peak.ordinal;
            (sums.peak_blocks, sums.peak_bytes) = (0, 0);
        }
        if lived {
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
            Ending::Freed(_) | Ending::Replaced { .. } | Ending::Gone { .. } | Ending::Uncertain { .. } => {}
        }
    }

    /// The same where there are samples.
    fn add_sampled(&mut self, block: &Block, ending: &Ending, peak: &Peak, lived: bool) {
        let Some(sampled) = &mut self.sampled else { return };
        let sampling = sampled.sampling.clone();
        let drawn = sampled.sampling.drawn(block);
        if drawn == Drawn::Unknown {
            sampled.unknown += 1;
            return;
        }
        if drawn != Drawn::Exact {
            sampled.smallest = sampled.smallest.min(block.size);
        }
        let (part, end) = (sampled.sampling.part_at(block.alloc_ns), sampled.sampling.end_of(block, ending));
        sampled.parts[part].add(block, ending, peak, lived, &drawn);
        sampled.parts[part].sums.add_life(block.size, ending, &drawn, end);
        // The ends that were seen stand for others: they count wherever a block that lives would.
        let until_ns = sampled.sampling.ended_ns().max(ending.time_ns());
        if let Some(entry) = self.process_of(block) {
            entry.add(block, ending, peak, lived, &drawn);
            entry.sums.add_life(block.size, ending, &drawn, end);
        }
        let as_live = self.filter.lets(block, &if ending.is_live() { *ending } else { Ending::Alive { time_ns: until_ns } });
        // What is in doubt is among what lives, as far as anybody knows.
        let as_is = self.filter.lets(block, ending) || as_live && matches!(ending, Ending::Uncertain { .. });
        if as_is || as_live {
            let key = key_of(block, self.split, &self.moments, Some(&sampling));
            let index = self.index(key);
            if as_is {
                self.entries[index].add(block, ending, peak, lived, &drawn);
            }
            if as_live {
                self.entries[index].sums.add_life(block.size, ending, &drawn, end);
            }
        }
    }

    /// The sums, once the replay is finished and `peak` is the peak; and, where there are samples, what all adds up to.
    pub fn finish(mut self, peak: &Peak) -> Tallied {
        self.entries.iter_mut().for_each(|entry| entry.keep_peak(peak));
        // In whatever order the blocks came: paths are numbered by it, and rows with equal figures sorted.
        self.entries
            .sort_unstable_by_key(|Entry { key: Key { stack, era, part }, .. }| (*stack, *era, part.stream, part.size_bits, part.sampled));
        let whole = self.sampled.map(|sampled| sampled.finish(&self.filter, peak));
        let settled = |(process, mut entry): (ProcessId, Entry)| {
            entry.keep_peak(peak);
            entry.sums.settle(whole.as_ref().map(|whole| &whole.scale));
            (process, entry.sums)
        };
        let processes = self.processes.into_iter().flat_map(|(_, sums)| sums).map(settled).collect();
        Tallied { entries: self.entries, whole, processes }
    }

    /// Adds another tally of the same question and the same peak, of other blocks.
    pub fn merge(&mut self, other: Tally) {
        let merge = |entry: &mut Entry, more: &Entry| {
            entry.peak = more.peak;
            entry.sums.add(&more.sums);
        };
        for more in &other.entries {
            let index = self.index(more.key);
            merge(&mut self.entries[index], more);
        }
        if let (Some(sampled), Some(more)) = (&mut self.sampled, &other.sampled) {
            sampled.parts.iter_mut().zip(&more.parts).for_each(|(part, more)| merge(part, more));
            sampled.unknown += more.unknown;
            sampled.smallest = sampled.smallest.min(more.smallest);
        }
        if let (Some((_, sums)), Some((_, more))) = (&mut self.processes, &other.processes) {
            more.iter().for_each(|(process, more)| merge(sums.entry(*process).or_insert_with(|| Entry::new(more.key)), more));
        }
    }

    #[inline(always)]
    fn index(&mut self, key: Key) -> usize {
        let Key { era, part, .. } = key;
        if era != 0 || part != Part::default() {
            let next = self.entries.len() as u32;
            let index = *self.others.entry(key).or_insert(next);
            return self.entry(index as usize, key);
        }
        let stack = key.stack.0 as usize;
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
            self.entries.push(Entry::new(key));
        }
        index
    }
}
