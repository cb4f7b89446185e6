//! Single blocks that live at the end, or may, instead of their sums.

use super::Query;
use super::filter::BlockFilter;
use crate::capture::model::{StackId, StackTree, StreamId};
use crate::capture::{MAPPED_LIBRARY, StreamInfo};
use crate::heap::{Block, Drawn, Ending, Sampling};
use crate::symbols::{Frame, SymbolTable};
use hound_common::hook::Kind;

/// Collects live blocks while a capture is replayed. 56 bytes each.
#[derive(Debug)]
pub struct Listing {
    filter: BlockFilter,
    blocks: Vec<Kept>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    address: u64,
    size: u64,
    alloc_ns: u64,
    age_ns: u64,
    stack: StackId,
    stream: StreamId,
    kind: Kind,
    probability: Option<f64>,
    in_doubt: bool,
}

/// A block that lives at the end, or may.
#[derive(Clone, Debug)]
pub struct Listed<'a> {
    /// Where it is.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// When it was allocated, in nanoseconds of the capture.
    pub alloc_ns: u64,
    /// How long it has lived at the end, in nanoseconds.
    pub age_ns: u64,
    /// What allocated it.
    pub kind: Kind,
    /// The thread that allocated it; 0 if not known.
    pub tid: u32,
    /// That thread's last name; empty if not known.
    pub thread: &'a str,
    /// Of a sample: how likely a block of its size was to be sampled.
    pub probability: Option<f64>,
    /// It was not watched all the time, and may have ended.
    pub in_doubt: bool,
    /// Where it was allocated, innermost first.
    pub frames: Vec<Frame<'a>>,
}

/// Single blocks, as asked for.
#[derive(Clone, Debug, Default)]
pub struct Blocks<'a> {
    /// The largest first, of those of one size the oldest.
    pub rows: Vec<Listed<'a>>,
    /// How many there are beyond the limit.
    pub omitted: u64,
}

impl Listing {
    /// Of nothing so far.
    pub fn new(filter: BlockFilter) -> Self {
        Listing { filter, blocks: Vec::new() }
    }

    /// A block ended, or lives at the end.
    pub fn add(&mut self, block: &Block, ending: &Ending, sampling: Option<&Sampling>) {
        let in_doubt = matches!(ending, Ending::Uncertain { .. });
        let ending = match sampling {
            Some(sampling) if in_doubt => Ending::Alive { time_ns: sampling.ended_ns().max(ending.time_ns()) },
            _ => *ending,
        };
        if !ending.is_live() || !self.filter.lets(block, &ending) {
            return;
        }
        let probability = match sampling.map(|sampling| sampling.drawn(block)) {
            Some(Drawn::Sampled(weight)) => Some(weight.probability),
            _ => None,
        };
        self.blocks.push(Kept {
            address: block.addr,
            size: block.size,
            alloc_ns: block.alloc_ns,
            age_ns: ending.time_ns().saturating_sub(block.alloc_ns),
            stack: block.stack,
            stream: block.stream,
            kind: block.kind,
            probability,
            in_doubt,
        });
    }

    /// Applies the filters over names and threads, sorts, and cuts at the limit.
    pub fn finish<'a>(mut self, query: &Query, stacks: &StackTree, names: &'a SymbolTable, streams: &'a [StreamInfo]) -> Blocks<'a> {
        self.blocks.sort_by_key(|block| (std::cmp::Reverse(block.size), block.alloc_ns, block.address));
        let limit = query.limit.unwrap_or(usize::MAX);
        let mut found = Blocks::default();
        for block in &self.blocks {
            if query.thread.as_ref().is_some_and(|thread| !thread.lets(streams, block.stream)) {
                continue;
            }
            let process = stacks.process_of(block.stack);
            let lists = || stacks.ips(block.stack).filter_map(|ip| names.list(process, ip, block.alloc_ns));
            if !query.frames.is_empty() && !query.frames.lets(lists().fold(0, |bits, list| bits | query.frames.found(names, list))) {
                continue;
            }
            if found.rows.len() >= limit {
                found.omitted += 1;
                continue;
            }
            let stream = streams.iter().find(|stream| stream.id == block.stream);
            found.rows.push(Listed {
                address: block.address,
                size: block.size,
                alloc_ns: block.alloc_ns,
                age_ns: block.age_ns,
                kind: block.kind,
                tid: stream.map_or(0, |stream| stream.tid),
                thread: stream.and_then(|stream| stream.names.last()).map_or("", String::as_str),
                probability: block.probability,
                in_doubt: block.in_doubt,
                // hound's own hooks are left out, as everywhere.
                frames: lists().flat_map(|list| names.frames(list)).filter(|frame| frame.module != MAPPED_LIBRARY).collect(),
            });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::model::{ProcessId, StackRoot};
    use crate::heap::Death;
    use crate::query::{FrameFilter, ThreadFilter};
    use regex::Regex;

    fn block(addr: u64, size: u64, alloc_ns: u64, stack: StackId, stream: u32) -> Block {
        let (ordinal, chain, stream) = (1, 1, StreamId(stream));
        Block { addr, size, alloc_ns, ordinal, chain, stack, stream, chain_length: 0, kind: Kind::Kmalloc, flags: 0, rate: 0 }
    }

    #[test]
    fn the_largest_and_of_those_the_oldest_come_first_and_filters_apply() {
        let mut stacks = StackTree::default();
        let root = stacks.root(StackRoot::default());
        let (one, two) = (stacks.child(root, 0x10), stacks.child(root, 0x20));
        let mut names = SymbolTable::new(&[]);
        for (ip, function) in [(0x10, "one"), (0x20, "two")] {
            names.name(ip, 0, &[Frame { function, location: None, module: "m", inlined: false }]);
        }
        let stream = |id: u32| StreamInfo {
            id: StreamId(id),
            tid: 70 + id,
            process: ProcessId::FIRST,
            level: 0,
            names: vec!["t".into()],
            from_ns: 0,
            to_ns: 0,
            events: 0,
        };
        let streams = [stream(1), stream(2)];
        let listing = || {
            let mut listing = Listing::new(BlockFilter { min_size: Some(5), ..BlockFilter::default() });
            let alive = Ending::Alive { time_ns: 100 };
            let death = Death { time_ns: 50, stream: StreamId(1), kind: Kind::Kfree, realloc: false, stack: None, temporary: false };
            listing.add(&block(0xA, 10, 30, one, 1), &alive, None);
            listing.add(&block(0xB, 10, 20, two, 2), &alive, None);
            listing.add(&block(0xC, 99, 10, two, 1), &Ending::Freed(death), None);
            listing.add(&block(0xD, 4, 10, two, 1), &alive, None);
            listing.add(&block(0xE, 11, 40, one, 2), &alive, None);
            listing
        };
        let ask = |query: Query| {
            let blocks = listing().finish(&query, &stacks, &names, &streams);
            (blocks.rows.iter().map(|row| row.address).collect::<Vec<_>>(), blocks.omitted)
        };
        assert_eq!(ask(Query::default()), (vec![0xE, 0xB, 0xA], 0));
        assert_eq!(ask(Query { limit: Some(1), ..Query::default() }), (vec![0xE], 2));
        let frames = FrameFilter { function: vec![Regex::new("^two$").expect("a pattern")], ..FrameFilter::default() };
        assert_eq!(ask(Query { frames, ..Query::default() }), (vec![0xB], 0));
        assert_eq!(ask(Query { thread: Some(ThreadFilter::Tid(71)), ..Query::default() }), (vec![0xA], 0));
        let all = listing().finish(&Query::default(), &stacks, &names, &streams);
        let [row, ..] = &all.rows[..] else { panic!("{all:?}") };
        assert_eq!((row.age_ns, row.tid, row.thread, row.frames[0].function), (60, 72, "t", "one"));
    }
}
