//! A capture without the blocks that lived a short time.
//!
//! Two passes. The first one replays, and notes of every allocation and release whether it is left out: a bit each, which is all the memory it
//! takes beside what lives. The second one shows the same events in the same order, and encodes what is kept as it was recorded. How much was
//! left out is written in its place, so that nothing is taken for temporary that is not, and every report says so.
//!
//! A chain of reallocs is one block here: it is left out if all of it lived a short time. Samples are kept, whatever they lived: each
//! stands for others.

use crate::capture::model::{Alloc, Event, Free, StackId, StackTree, Stamped, StreamId, ThreadEvent};
use crate::capture::{
    Anomaly, Capture, CaptureWriter, Compressor, End, Raw, Rewriter, Section, StreamEncoder, StreamInfo, StreamMeta, Visitor,
};
use crate::heap::{Block, Drawn, Ending, Heaps, Peak, Processes, Sampling, Sink};
use hound_common::event::{self, tag};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// What was kept and what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Blocks left out.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Allocations and releases that were kept.
    pub events: u64,
    /// Bytes written.
    pub file_bytes: u64,
}

/// One bit for each allocation and release, in the order in which they are shown.
#[derive(Default)]
struct Verdicts(Vec<u64>);

impl Verdicts {
    fn leave_out(&mut self, number: u32) {
        let word = number as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    fn is_left_out(&self, number: u64) -> bool {
        self.0.get((number / 64) as usize).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }
}

/// A chain of reallocs that may go on.
struct Chain {
    since_ns: u64,
    /// The numbers of its allocations and releases.
    events: Vec<[u32; 2]>,
}

/// Decides.
struct Judge {
    threshold_ns: u64,
    /// When processes forked: what lived then has copies, whose releases are recorded.
    forks: Vec<u64>,
    verdicts: Verdicts,
    /// By heap and by the ordinal of the first block. Those that have lived long enough have no events.
    chains: HashMap<(u8, u64), Chain>,
    /// Heap and address of blocks whose end is known by the next block there alone: that one is kept.
    heirs: HashSet<(u8, u64)>,
}

impl Judge {
    fn is_short(&self, since_ns: u64, until_ns: u64) -> bool {
        let fork = self.forks.partition_point(|&fork| fork < since_ns);
        until_ns.saturating_sub(since_ns) < self.threshold_ns && self.forks.get(fork).is_none_or(|&fork| fork > until_ns)
    }

    /// `block.stack` and the death's stack are the numbers of the events.
    fn ended(&mut self, heap: u8, block: &Block, ending: &Ending, is_exact: bool) {
        let key = (heap, block.chain);
        let is_heir = self.heirs.remove(&(heap, block.addr));
        if matches!(ending, Ending::Replaced { .. } | Ending::Gone { .. }) {
            self.heirs.insert((heap, block.addr));
        }
        let chain = self.chains.remove(&key);
        let goes_on = matches!(ending, Ending::Freed(death) if death.realloc);
        let mut chain = match (chain, block.chain_length) {
            (Some(chain), _) => chain,
            (None, 0) => Chain { since_ns: block.alloc_ns, events: Vec::new() },
            // One before it was kept.
            (None, _) => return,
        };
        let Ending::Freed(death) = ending else { return };
        let Some(released) = death.stack.filter(|_| is_exact && !is_heir && self.is_short(chain.since_ns, death.time_ns)) else { return };
        chain.events.push([block.stack.0, released.0]);
        if goes_on {
            self.chains.insert(key, chain);
        } else {
            self.leave_out(chain);
        }
    }

    fn leave_out(&mut self, chain: Chain) {
        chain.events.iter().flatten().for_each(|&number| self.verdicts.leave_out(number));
    }

    /// Chains whose last block was released by a realloc that made no new one.
    fn finish(&mut self) -> Verdicts {
        let chains = std::mem::take(&mut self.chains);
        chains.into_values().for_each(|chain| self.leave_out(chain));
        std::mem::take(&mut self.verdicts)
    }
}

/// Gives each allocation and release its number, in the place of its stack: the replay hands stacks through and does not look at them.
struct Numbered<'a, V> {
    inner: V,
    next: u64,
    progress: &'a dyn Fn(u64),
}

impl<V> Numbered<'_, V> {
    fn number(&mut self) -> StackId {
        self.next += 1;
        if self.next.is_multiple_of(1 << 18) {
            (self.progress)(self.next);
        }
        StackId((self.next - 1) as u32)
    }
}

impl<V: Visitor> Visitor for Numbered<'_, V> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        let stack = self.number();
        self.inner.alloc(time_ns, stream, &Alloc { stack, ..*alloc });
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        let stack = Some(self.number());
        self.inner.free(time_ns, stream, &Free { stack, ..*free });
    }

    fn other(&mut self, event: &Stamped) {
        self.inner.other(event);
    }
}

/// Writes to `file` what this capture holds, without blocks that lived shorter than `threshold_ns`. `progress` hears of how many allocations and
/// frees are done, of twice those of [`Capture::counts`].
///
/// # Errors
/// If it cannot be written, or holds more than 2^32 allocations and releases.
pub fn strip(capture: &mut Capture, file: File, threshold_ns: u64, progress: &dyn Fn(u64)) -> io::Result<Kept> {
    let events = capture.counts().heap;
    if events > u64::from(u32::MAX) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 4,294,967,295 allocations and releases"));
    }
    let (verdicts, missing) = judge(capture, threshold_ns, progress);
    let mut session = capture.session().clone();
    session.options.push(format!("strip={threshold_ns}ns"));
    let mut writer = CaptureWriter::over(file, &session)?;
    let pairs = capture.calibration().to_vec();
    let mut compressor = Compressor::new()?;
    let mut out = |section: Section| section.compress(&mut compressor).and_then(|chunk| writer.write(&chunk)).map(|_| ());
    let mut kept = copy(capture, verdicts, threshold_ns, false, &|done| progress(events + done), &mut out)?;
    if !pairs.is_empty() {
        writer.write_calibration(&pairs)?;
    }
    if let Some(reach) = capture.reach() {
        writer.write_reach(&reach)?;
    }
    if let Some(symbols) = capture.symbols() {
        writer.write_symbols(&symbols)?;
    }
    kept.file_bytes = writer.bytes();
    // What the file had lost stays lost; a capture that was cut has no end, and none is made up.
    if let Some(end) = capture.end() {
        writer.finish(End { lost_on_disk: end.lost_on_disk + missing, ..end.clone() })?;
    }
    Ok(kept)
}

/// What the next of several captures begins with, where this one ends: what lives, as it was allocated, and what is needed to make sense of it
/// and of what comes. How much there was besides is told as `STRIPPED`.
///
/// # Errors
/// Those of `out`, and as [`strip`].
pub fn carry(capture: &mut Capture, out: &mut dyn FnMut(Section) -> io::Result<()>) -> io::Result<Kept> {
    if capture.counts().heap > u64::from(u32::MAX) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 4,294,967,295 allocations and releases"));
    }
    let (verdicts, _) = judge(capture, u64::MAX, &|_| ());
    copy(capture, verdicts, event::STRIPPED_BEFORE, true, &|_| (), out)
}

fn copy(
    capture: &mut Capture,
    verdicts: Verdicts,
    threshold_ns: u64,
    carries: bool,
    progress: &dyn Fn(u64),
    out: &mut dyn FnMut(Section) -> io::Result<()>,
) -> io::Result<Kept> {
    capture.in_ticks();
    let shift = capture.time_shift();
    let streams = capture.streams().to_vec();
    let mut copy = Copy {
        verdicts,
        threshold_ns,
        next: 0,
        progress,
        shift,
        streams: &streams,
        copies: BTreeMap::new(),
        stacks: capture.stacks().clone(),
        sections: Vec::new(),
        out,
        carries,
        failure: None,
        kept: Kept::default(),
    };
    let _ = capture.visit(&mut copy); // what is wrong was told by the first pass
    copy.finish()
}

/// What is left out; and how many events the file had lost.
fn judge(capture: &mut Capture, threshold_ns: u64, progress: &dyn Fn(u64)) -> (Verdicts, u64) {
    let began = capture.processes().iter().filter(|info| info.began == event::PROCESS_FORKED);
    let mut forks: Vec<u64> = began.map(|info| info.from_ns).collect();
    forks.sort_unstable();
    let judge = RefCell::new(Judge { threshold_ns, forks, verdicts: Verdicts::default(), chains: HashMap::new(), heirs: HashSet::new() });
    let sampling = Sampling::of(capture.sampling()).map(Arc::new);
    let is_exact = |block: &Block| sampling.as_ref().is_none_or(|sampling| sampling.drawn(block) == Drawn::Exact);
    let (shared, is_exact) = (&judge, &is_exact);
    let sink =
        move |heap: u8| move |block: &Block, ending: &Ending, _: &Peak| shared.borrow_mut().ended(heap, block, ending, is_exact(block));
    let processes = Processes::of(capture.streams(), &[]);
    let sink_of = move |pool| -> Sink<'_> { Box::new(sink(pool)) };
    let heaps = Heaps::new(sink(0), sink_of).of_capture(sampling.clone(), processes);
    let mut numbered = Numbered { inner: heaps, next: 0, progress };
    let anomalies = capture.visit(&mut numbered);
    numbered.inner.finish();
    let missing = |anomaly: &Anomaly| if let Anomaly::Damaged { events, .. } = anomaly { *events } else { 0 };
    let missing = anomalies.0.iter().map(missing).sum();
    let verdicts = judge.borrow_mut().finish();
    (verdicts, missing)
}

/// One stream, being written anew.
struct StreamCopy {
    encoder: StreamEncoder,
    records: Rewriter,
    /// The stack that the encoder has.
    stack: Option<StackId>,
    /// By pool (0: the heap), where there are any: blocks left out since this was last told, and their bytes.
    left_out: BTreeMap<u8, (u64, u64)>,
    /// Ticks of the last record that was left out: the recording goes on until then.
    until: u64,
    /// There is more to it than that its thread came and went.
    counts: bool,
}

struct Copy<'a> {
    verdicts: Verdicts,
    threshold_ns: u64,
    next: u64,
    progress: &'a dyn Fn(u64),
    shift: u8,
    streams: &'a [StreamInfo],
    copies: BTreeMap<StreamId, StreamCopy>,
    /// All that the first pass has met.
    stacks: StackTree,
    sections: Vec<Section>,
    /// Takes what is written.
    out: &'a mut dyn FnMut(Section) -> io::Result<()>,
    /// Only what the next of several captures needs to know is written.
    carries: bool,
    failure: Option<io::Error>,
    kept: Kept,
}

impl StreamCopy {
    fn new(info: Option<&StreamInfo>, id: StreamId, time_shift: u8) -> Self {
        let (tid, level, process) = info.map_or_else(Default::default, |info| (info.tid, info.level, info.process));
        let encoder = StreamEncoder::new(StreamMeta { id, tid, level, process, time_shift });
        StreamCopy { encoder, records: Rewriter::default(), stack: None, left_out: BTreeMap::new(), until: 0, counts: false }
    }

    fn push(&mut self, ticks: u64, (tag, a, b): (u8, u8, u8), words: &[u64], out: &mut Vec<Section>) {
        let fits = self.records.push(ticks, (tag, a, b), words);
        self.encoder.push(&self.records.take(), out);
        if !fits {
            // Longer than what fits a ring's record: hound noted it itself.
            self.encoder.note(ticks, tag, a, words, out);
        }
    }

    /// Sees to it that the encoder's stack is this one.
    fn set_stack(&mut self, ticks: u64, stacks: &StackTree, stack: StackId) {
        if self.stack == Some(stack) {
            return;
        }
        let mut path: Vec<u64> = stacks.ips(stack).collect();
        path.reverse();
        let root = stacks.root_of(stack).unwrap_or_default();
        let flags = if root.frame_pointers { event::STACK_FRAME_POINTER } else { 0 };
        self.records.set_stack(ticks, &path, (root.reason, flags));
        self.stack = Some(stack);
    }

    /// Tells of what was left out.
    fn tell(&mut self, ticks: u64, threshold_ns: u64, out: &mut Vec<Section>) {
        for (pool, (blocks, bytes)) in std::mem::take(&mut self.left_out) {
            self.push(ticks, (tag::STRIPPED, pool, 0), &[blocks, bytes, threshold_ns], out);
        }
    }
}

impl Copy<'_> {
    /// The number of the next allocation or release: whether it is left out.
    fn is_left_out(&mut self) -> bool {
        self.next += 1;
        if self.next.is_multiple_of(1 << 18) {
            (self.progress)(self.next);
        }
        let left_out = self.verdicts.is_left_out(self.next - 1);
        self.kept.events += u64::from(!left_out);
        left_out
    }

    fn of(&mut self, stream: StreamId) -> &mut StreamCopy {
        let (streams, shift) = (self.streams, self.shift);
        let info = || streams.binary_search_by_key(&stream, |info| info.id).ok().map(|at| &streams[at]);
        self.copies.entry(stream).or_insert_with(|| StreamCopy::new(info(), stream, shift))
    }

    /// Writes one kept record of a stream, with its stack if it has one.
    fn put(&mut self, ticks: u64, stream: StreamId, stack: Option<StackId>, head: (u8, u8, u8), words: &[u64]) {
        let (mut sections, threshold_ns) = (std::mem::take(&mut self.sections), self.threshold_ns);
        let (stacks, in_place) = (std::mem::take(&mut self.stacks), !self.carries);
        let copy = self.of(stream);
        // All of what is carried on was before.
        if in_place {
            copy.tell(ticks, threshold_ns, &mut sections);
        }
        if let Some(stack) = stack {
            copy.set_stack(ticks, &stacks, stack);
        }
        copy.push(ticks, head, words, &mut sections);
        copy.counts |= head.0 != tag::THREAD;
        (self.stacks, self.sections) = (stacks, sections);
        self.write();
    }

    /// Whether the next capture can do without this. Of what was left out it is told once.
    fn is_history(&mut self, event: &Stamped, tag: u8) -> bool {
        match event.event {
            Event::Stripped { pool, blocks, bytes, .. } => {
                let left_out = self.of(event.stream).left_out.entry(pool).or_default();
                (left_out.0, left_out.1) = (left_out.0 + blocks, left_out.1.saturating_add(bytes));
                true
            }
            Event::Thread(ThreadEvent::Exit) if !self.of(event.stream).counts => {
                let gone = self.copies.remove(&event.stream);
                let own = self.of(StreamId(0));
                for (pool, (blocks, bytes)) in gone.into_iter().flat_map(|gone| gone.left_out) {
                    let left_out = own.left_out.entry(pool).or_default();
                    (left_out.0, left_out.1) = (left_out.0 + blocks, left_out.1.saturating_add(bytes));
                }
                true
            }
            _ => matches!(tag, tag::METRIC | tag::MARKER | tag::CULLED | tag::FAULT),
        }
    }

    fn write(&mut self) {
        for section in self.sections.drain(..) {
            if let Err(error) = (self.out)(section) {
                self.failure.get_or_insert(error);
            }
        }
    }

    fn finish(mut self) -> io::Result<Kept> {
        let threshold_ns = self.threshold_ns;
        for (_, mut copy) in std::mem::take(&mut self.copies) {
            let ticks = copy.until.max(copy.records.clock());
            copy.tell(ticks, threshold_ns, &mut self.sections);
            if ticks > copy.records.clock() {
                copy.push(ticks, (tag::STRIPPED, 0, 0), &[0, 0, threshold_ns], &mut self.sections);
            }
            self.sections.extend(copy.encoder.flush());
            self.write();
        }
        self.failure.map_or(Ok(self.kept), Err)
    }
}

impl Visitor for Copy<'_> {
    fn alloc(&mut self, ticks: u64, stream: StreamId, alloc: &Alloc) {
        if self.is_left_out() {
            let copy = self.of(stream);
            copy.until = ticks;
            let (blocks, bytes) = copy.left_out.entry(alloc.pool).or_default();
            (*blocks, *bytes) = (*blocks + 1, bytes.saturating_add(alloc.size));
            (self.kept.blocks, self.kept.bytes) = (self.kept.blocks + 1, self.kept.bytes.saturating_add(alloc.size));
            return;
        }
        let slack = alloc.usable.map(|usable| usable.saturating_sub(alloc.size));
        let narrow = slack.map_or(Some(event::SLACK_UNKNOWN), |slack| u16::try_from(slack).ok().filter(|&s| s != event::SLACK_UNKNOWN));
        let mut words = vec![alloc.addr, event::size_word(alloc.size, narrow.unwrap_or(0))];
        let pool = alloc.pool << event::POOL_SHIFT;
        let mut flags = alloc.flags | pool;
        if narrow.is_none() {
            flags |= event::ALLOC_WIDE;
            words.extend(alloc.usable);
        }
        words.extend(alloc.previous);
        self.put(ticks, stream, Some(alloc.stack), (tag::ALLOC, alloc.kind as u8, flags), &words);
    }

    fn free(&mut self, ticks: u64, stream: StreamId, free: &Free) {
        if self.is_left_out() {
            self.of(stream).until = ticks;
            return;
        }
        let mut flags = free.pool << event::POOL_SHIFT;
        flags |= if free.realloc { event::FREE_REALLOC } else { 0 };
        flags |= if free.stack.is_some() { event::FREE_HAS_STACK } else { 0 };
        self.put(ticks, stream, free.stack, (tag::FREE, free.kind as u8, flags), &[free.addr]);
    }

    fn other(&mut self, _: &Stamped) {}

    fn record(&mut self, event: &Stamped, raw: Raw<'_>) {
        if self.carries && self.is_history(event, raw.tag) {
            return;
        }
        let stack = match &event.event {
            Event::Map { stack, .. } | Event::Unmap { stack, .. } | Event::Remap { stack, .. } => Some(*stack),
            Event::Fault(fault) => Some(fault.stack),
            _ => None,
        };
        self.put(event.time_ns, event.stream, stack, (raw.tag, raw.ab.0, raw.ab.1), raw.words);
    }

    fn wants_more(&self) -> bool {
        self.failure.is_none()
    }
}

#[cfg(test)]
mod tests;
