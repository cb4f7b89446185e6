//! What hound has seen of a target from outside, as the streams of its threads: the same records that the library writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hound_common::event::{
    ALLOC_REALLOC, FAULT_BY_KERNEL, FAULT_WRITE, FREE_HAS_STACK, FREE_REALLOC, Header, MAX_FRAMES, MAX_STACK_RECORD_IPS, POOL_SHIFT,
    SLACK_UNKNOWN, STACK_FRAME_POINTER, STACK_MORE, StackEdit, size_word, tag,
};

use super::drain::Parcel;
use super::stacks::Ended;
use crate::capture::model::StreamId;

/// Gives streams of one capture their numbers, whoever writes them.
#[derive(Clone, Debug)]
pub struct Numbers(Arc<AtomicU32>);

impl Numbers {
    /// The first is given next.
    pub fn from(first: u32) -> Self {
        Numbers(Arc::new(AtomicU32::new(first)))
    }

    /// One that nobody has.
    pub fn next(&self) -> StreamId {
        StreamId(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// A stack: return addresses, innermost first, and how it ended.
#[derive(Clone, Copy, Debug)]
pub struct Stack<'a> {
    /// Return addresses, innermost first.
    pub ips: &'a [u64],
    /// How it ended.
    pub ended: Ended,
}

/// A block that came to be.
#[derive(Clone, Copy, Debug)]
pub struct Born {
    /// `hook::Kind`'s number.
    pub kind: u8,
    /// The pool, 0 for the heap.
    pub pool: u8,
    /// Where it is.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Mean interval by which it was sampled; 0: every one is.
    pub interval: u64,
    /// The block that it continues.
    pub previous: Option<u64>,
}

/// A block that is released.
#[derive(Clone, Copy, Debug)]
pub struct Died {
    /// `hook::Kind`'s number.
    pub kind: u8,
    /// The pool, 0 for the heap.
    pub pool: u8,
    /// Where it was.
    pub address: u64,
    /// It is continued by the next allocation.
    pub realloc: bool,
}

/// A page that was touched.
#[derive(Clone, Copy, Debug)]
pub struct Touched {
    /// Where.
    pub address: u64,
    /// Mean interval by which it was sampled; 0: every one is.
    pub interval: u64,
    /// Bytes that were mapped.
    pub bytes: u64,
    /// `event::FAULT_…`.
    pub kind: u8,
    /// By the kernel, in a system call.
    pub by_kernel: bool,
    /// It was written to.
    pub write: bool,
}

/// A mapping that was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// `event::tag::MAP`, `UNMAP`, `REMAP` or `BRK`.
    pub tag: u8,
    /// `hook::Kind`'s number; of `BRK` 0.
    pub kind: u8,
    /// The record's words, as many as it has.
    pub words: [u64; 5],
    /// How many.
    pub count: usize,
}

/// One thread's stream.
#[derive(Debug)]
struct Stream {
    id: StreamId,
    words: Vec<u64>,
    clock: Option<u64>,
    /// The path of the last stack, root first.
    path: Vec<u64>,
    interval: u64,
}

/// The streams of a target's threads.
#[derive(Debug)]
pub struct Streams {
    numbers: Numbers,
    threads: HashMap<u32, Stream>,
    /// What threads call themselves, where that is another number than hound sees.
    own: HashMap<u32, u32>,
    parcels: Vec<Parcel>,
}

impl Streams {
    /// None so far.
    pub fn new(numbers: Numbers) -> Self {
        Streams { numbers, threads: HashMap::new(), own: HashMap::new(), parcels: Vec::new() }
    }

    /// An allocation of a thread. Times are ticks of the capture's clock.
    pub fn born(&mut self, tid: u32, ticks: u64, stack: Stack<'_>, block: &Born) {
        let stream = self.stream(tid);
        if stream.interval != block.interval {
            stream.interval = block.interval;
            stream.record(ticks, tag::RATE, 0, 0, &[block.interval]);
        }
        stream.stack(stack);
        let flags = if block.previous.is_some() { ALLOC_REALLOC } else { 0 } | block.pool << POOL_SHIFT;
        let words = [block.address, size_word(block.size, SLACK_UNKNOWN), block.previous.unwrap_or(0)];
        let words = if block.previous.is_some() { &words[..] } else { &words[..2] };
        stream.record(ticks, tag::ALLOC, block.kind, flags, words);
    }

    /// A release by a thread.
    pub fn died(&mut self, tid: u32, ticks: u64, stack: Option<Stack<'_>>, block: &Died) {
        let stream = self.stream(tid);
        let mut flags = if block.realloc { FREE_REALLOC } else { 0 } | block.pool << POOL_SHIFT;
        if let Some(stack) = stack {
            stream.stack(stack);
            flags |= FREE_HAS_STACK;
        }
        stream.record(ticks, tag::FREE, block.kind, flags, &[block.address]);
    }

    /// A thread touched a page.
    pub fn touched(&mut self, tid: u32, ticks: u64, stack: Stack<'_>, page: &Touched) {
        let stream = self.stream(tid);
        stream.stack(stack);
        let flags = if page.by_kernel { FAULT_BY_KERNEL } else { 0 } | if page.write { FAULT_WRITE } else { 0 };
        stream.record(ticks, tag::FAULT, page.kind, flags, &[page.address, page.interval, page.bytes]);
    }

    /// A thread has changed what is mapped. Where the heap ends is told without a stack.
    pub fn changed(&mut self, tid: u32, ticks: u64, stack: Option<Stack<'_>>, change: &Changed) {
        let stream = self.stream(tid);
        stack.into_iter().for_each(|stack| stream.stack(stack));
        stream.record(ticks, change.tag, change.kind, 0, &change.words[..change.count]);
    }

    /// The thread calls itself by this number, in a PID namespace of its own. 0: that is not known.
    pub fn name(&mut self, tid: u32, own: u32) {
        if own != 0 && own != tid {
            self.own.insert(tid, own);
        }
    }

    /// The thread of a stream that has not ended, as hound sees it.
    pub fn thread(&self, id: StreamId) -> Option<u32> {
        self.threads.iter().find(|(_, stream)| stream.id == id).map(|(tid, _)| *tid)
    }

    /// The thread has ended. A later one may have its number.
    pub fn ended(&mut self, tid: u32) {
        self.own.remove(&tid);
        if let Some(mut stream) = self.threads.remove(&tid) {
            self.parcels.extend(stream.parcel());
            self.parcels.push(Parcel::End { stream: stream.id, counters: Default::default(), lost: Vec::new() });
        }
    }

    /// All its threads have ended.
    pub fn all_ended(&mut self) {
        let tids: Vec<u32> = self.threads.keys().copied().collect();
        tids.into_iter().for_each(|tid| self.ended(tid));
    }

    /// The stream of a thread that has one.
    pub fn id(&self, tid: u32) -> Option<StreamId> {
        self.threads.get(&tid).map(|stream| stream.id)
    }

    /// All that was recorded since the last call, in each stream's order.
    pub fn take(&mut self) -> Vec<Parcel> {
        self.parcels.extend(self.threads.values_mut().filter_map(Stream::parcel));
        std::mem::take(&mut self.parcels)
    }

    fn stream(&mut self, tid: u32) -> &mut Stream {
        let Streams { numbers, threads, own, parcels } = self;
        threads.entry(tid).or_insert_with(|| {
            let id = numbers.next();
            let tid = own.get(&tid).copied().unwrap_or(tid);
            parcels.push(Parcel::Start { stream: id, tid, level: 0 });
            Stream { id, words: Vec::new(), clock: None, path: Vec::new(), interval: 0 }
        })
    }
}

impl Stream {
    fn parcel(&mut self) -> Option<Parcel> {
        let bytes: Vec<u8> = self.words.drain(..).flat_map(u64::to_le_bytes).collect();
        (!bytes.is_empty()).then_some(Parcel::Bytes { stream: self.id, bytes })
    }

    fn record(&mut self, ticks: u64, tag: u8, a: u8, b: u8, words: &[u64]) {
        let dt = self.clock.and_then(|clock| u32::try_from(ticks.checked_sub(clock)?).ok());
        if dt.is_none() {
            self.words.extend([Header { tag: tag::TIME, words: 2, ..Header::default() }.to_word(), ticks]);
        }
        self.clock = Some(ticks);
        let length = 1 + words.len() as u8;
        self.words.push(Header { tag, words: length, a, b, dt: dt.unwrap_or(0) }.to_word());
        self.words.extend(words);
    }

    /// Edits the stream's path to be this stack.
    fn stack(&mut self, stack: Stack<'_>) {
        let ips = &stack.ips[..stack.ips.len().min(MAX_FRAMES)];
        let kept = self.path.iter().zip(ips.iter().rev()).take_while(|(old, new)| old == new).count();
        self.path.truncate(kept);
        self.path.extend(ips.iter().rev().skip(kept));
        let fallback = if stack.ended.frame_pointers { STACK_FRAME_POINTER } else { 0 };
        let mut at = kept;
        loop {
            let now = (self.path.len() - at).min(MAX_STACK_RECORD_IPS);
            let to = at + now;
            let edit = StackEdit { keep_root: at as u16, new: now as u16, leaf_from: to as u16, keep_leaf: 0 };
            let more = if to < self.path.len() { STACK_MORE } else { 0 };
            let header = Header { tag: tag::STACK, words: 2 + now as u8, a: stack.ended.reason as u8, b: fallback | more, dt: 0 };
            self.words.extend([header.to_word(), edit.to_word()]);
            self.words.extend(&self.path[at..to]);
            at = to;
            if more == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::model::{Alloc, Event, Free, Stamped};
    use crate::capture::{Capture, CaptureWriter, Compressor, MemorySink, SessionInfo, StreamEncoder, StreamMeta, Visitor};
    use hound_common::hook::Kind;
    use hound_unwind::EndReason;

    fn stack(ips: &[u64]) -> Stack<'_> {
        Stack { ips, ended: Ended { reason: EndReason::Root, frame_pointers: false } }
    }

    fn born(address: u64, size: u64, interval: u64) -> Born {
        Born { kind: Kind::Malloc as u8, pool: 0, address, size, interval, previous: None }
    }

    #[derive(Default)]
    struct Seen {
        allocs: Vec<(u64, Alloc)>,
        frees: Vec<(u64, Free)>,
        rates: Vec<u64>,
    }

    impl Visitor for Seen {
        fn alloc(&mut self, time_ns: u64, _: StreamId, alloc: &Alloc) {
            self.allocs.push((time_ns, *alloc));
        }
        fn free(&mut self, time_ns: u64, _: StreamId, free: &Free) {
            self.frees.push((time_ns, *free));
        }
        fn other(&mut self, event: &Stamped) {
            if let Event::Rate(rate) = event.event {
                self.rates.push(rate);
            }
        }
    }

    #[test]
    fn what_goes_in_comes_out_of_the_capture() {
        let deep: Vec<u64> = (0..600).map(|n| 0x1000 + n * 16).collect();
        let other: Vec<u64> = [&[0x77_u64], &deep[100..]].concat();
        let mut streams = Streams::new(Numbers::from(1));
        streams.born(7, 1000, stack(&deep), &born(0xA0, 10, 512));
        streams.born(7, 2000, stack(&other), &born(0xB0, 20, 512));
        streams.died(7, 3000, None, &Died { kind: Kind::Free as u8, pool: 0, address: 0xA0, realloc: false });
        let place = [0x42];
        streams.died(7, 3500, Some(stack(&place)), &Died { kind: Kind::Realloc as u8, pool: 0, address: 0xB0, realloc: true });
        // A step back in time, as two clocks may show, and another interval.
        streams.born(7, 3400, stack(&[]), &Born { previous: Some(0xB0), ..born(0xC0, 30, 0) });
        let session = SessionInfo { clock: crate::capture::Clock::Monotonic, ticks_per_second: 1_000_000_000, ..SessionInfo::default() };
        let mut writer = CaptureWriter::over(MemorySink::default(), &session).unwrap();
        let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(1), 7, 0, &session));
        let mut sections = Vec::new();
        for parcel in streams.take() {
            if let Parcel::Bytes { bytes, .. } = parcel {
                encoder.push(&bytes, &mut sections);
            }
        }
        sections.extend(encoder.flush());
        let mut compressor = Compressor::new().unwrap();
        for section in &sections {
            assert!(writer.write(&section.compress(&mut compressor).unwrap()).unwrap());
        }
        let mut capture = Capture::from_bytes(writer.finish(Default::default()).unwrap().bytes).unwrap();
        let mut seen = Seen::default();
        capture.visit(&mut seen);
        let ips = |stack| capture.stacks().ips(stack).collect::<Vec<_>>();
        let [a, b, c] = &seen.allocs[..] else { panic!("{:?}", seen.allocs) };
        assert_eq!((a.1.addr, a.1.size, ips(a.1.stack)), (0xA0, 10, deep));
        assert_eq!((b.1.addr, b.1.usable, ips(b.1.stack)), (0xB0, None, other));
        assert_eq!((c.1.addr, c.1.previous, ips(c.1.stack)), (0xC0, Some(0xB0), vec![]));
        let [freed, moved] = &seen.frees[..] else { panic!("{:?}", seen.frees) };
        assert_eq!((freed.0, freed.1.addr, freed.1.stack), (3000, 0xA0, None));
        assert_eq!((moved.1.realloc, moved.1.stack.map(ips)), (true, Some(vec![0x42])));
        assert_eq!(seen.rates, [512, 0]);
        assert!(streams.take().is_empty());
        streams.ended(7);
        assert!(matches!(streams.take()[..], [Parcel::End { stream: StreamId(1), .. }]) && streams.id(7).is_none());
    }
}
