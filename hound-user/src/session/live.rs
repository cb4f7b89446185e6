//! Counts what is alive while it is recorded, for the status line.
//!
//! Beside the recording, on a thread of its own that gives way to others, and only as long as that keeps up: the queue is short, and the
//! first parcel that finds it full ends the counting for good (a count with a hole is none). The capture loses nothing by it.
//!
//! Parcels of different threads come out of time order, so an address may be heard freed before it is heard allocated; stamps decide,
//! as in `heap`, but without its care for stamps that are off by less than a microsecond. Exact figures come from the capture.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use hound_common::event::{Header, pool_of, size_and_slack, tag};

use crate::capture::AddressHasher;
use crate::capture::model::StreamId;

/// Parcels under way: at most 8 MiB.
const PARCELS: usize = 256;
/// Blocks known at once: some 600 MB of table. Beyond, counting ends.
const BLOCKS: usize = 16 << 20;
/// Frees remembered that came before their allocation, or belong to blocks from before the attach.
const EARLY: usize = 64 * 1024;

/// The figures.
#[derive(Debug, Default)]
pub struct Live {
    bytes: AtomicI64,
    blocks: AtomicI64,
    on: AtomicBool,
}

impl Live {
    /// Bytes and blocks alive; `None` if they are not counted (any more).
    pub fn figures(&self) -> Option<(u64, u64)> {
        let figure = |cell: &AtomicI64| u64::try_from(cell.load(Ordering::Relaxed)).unwrap_or(0);
        self.on.load(Ordering::Relaxed).then(|| (figure(&self.bytes), figure(&self.blocks)))
    }
}

impl Live {
    /// Counts no more.
    pub fn stop(&self) {
        self.on.store(false, Ordering::Relaxed);
    }
}

/// Where parcels are copied to.
#[derive(Debug)]
pub struct LiveFeed {
    queue: Option<SyncSender<(StreamId, Vec<u8>)>>,
    live: Arc<Live>,
}

impl LiveFeed {
    /// Hands on a copy, unless counting is over.
    pub fn take(&mut self, stream: StreamId, bytes: &[u8]) {
        let Some(queue) = &self.queue else { return };
        if !self.live.on.load(Ordering::Relaxed) || queue.try_send((stream, bytes.to_vec())).is_err() {
            self.live.on.store(false, Ordering::Relaxed);
            self.queue = None;
        }
    }
}

/// Starts the counting thread. It ends with its feed.
pub fn start(live: Arc<Live>) -> io::Result<LiveFeed> {
    let (queue, parcels) = sync_channel(PARCELS);
    live.on.store(true, Ordering::Relaxed);
    let counted = Arc::clone(&live);
    std::thread::Builder::new().name("hound-live".into()).spawn(move || count(&parcels, &counted))?;
    Ok(LiveFeed { queue: Some(queue), live })
}

fn count(parcels: &Receiver<(StreamId, Vec<u8>)>, live: &Live) {
    yield_to_others();
    let mut table = Table::default();
    for (stream, bytes) in parcels {
        table.take(stream, &bytes);
        live.bytes.store(table.bytes, Ordering::Relaxed);
        live.blocks.store(table.blocks, Ordering::Relaxed);
        if table.known.len() > BLOCKS {
            live.on.store(false, Ordering::Relaxed);
            return;
        }
    }
}

/// Lets the calling thread run on what the target and the recording leave of the processors: where both cores of two were busy, this
/// thread took half as much again as all others of hound, and that from the target. Falling behind only ends the counting.
#[expect(unsafe_code, reason = "setpriority(2) has no safe wrapper here")]
pub(super) fn yield_to_others() {
    const NICE: i32 = 10;
    // SAFETY: names the calling thread; no memory is touched. Where it is refused, the thread runs as before.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

#[derive(Clone, Copy)]
enum Known {
    Alive {
        size: u64,
        since: u64,
    },
    /// Freed, last at this time, by so many events that were heard before their blocks' allocations, or of blocks never heard of.
    Freed {
        at: u64,
        times: u32,
    },
}

#[derive(Default)]
struct Table {
    known: HashMap<u64, Known, BuildHasherDefault<AddressHasher>>,
    early: VecDeque<(u64, u64)>,
    clocks: HashMap<StreamId, u64>,
    bytes: i64,
    blocks: i64,
}

impl Table {
    fn take(&mut self, stream: StreamId, bytes: &[u8]) {
        let mut clock = self.clocks.get(&stream).copied().unwrap_or(0);
        let (words, _) = bytes.as_chunks::<8>();
        let word = |record: &[[u8; 8]], index: usize| record.get(index).map_or(0, |word| u64::from_le_bytes(*word));
        let mut rest = words;
        while let Some(first) = rest.first() {
            let header = Header::from_word(u64::from_le_bytes(*first));
            // What is no record is the encoder's to count.
            let Some((record, behind)) = rest.split_at_checked(usize::from(header.words)).filter(|(record, _)| !record.is_empty()) else {
                break;
            };
            clock = clock.saturating_add(u64::from(header.dt));
            match header.tag {
                // Cut from blocks that are counted already, or from maps that are not counted.
                tag::ALLOC | tag::FREE if pool_of(header.a, header.b) != 0 => {}
                tag::TIME => clock = word(record, 1),
                tag::ALLOC => self.alloc(word(record, 1), size_and_slack(word(record, 2)).0, clock),
                tag::FREE => self.free(word(record, 1), clock),
                _ => {}
            }
            rest = behind;
        }
        self.clocks.insert(stream, clock);
    }

    fn alloc(&mut self, addr: u64, size: u64, since: u64) {
        match self.known.get(&addr) {
            Some(Known::Freed { at, times }) if *at >= since => {
                let (at, left) = (*at, times - 1); // it came and went
                if left == 0 {
                    self.known.remove(&addr);
                } else {
                    self.known.insert(addr, Known::Freed { at, times: left });
                }
                return;
            }
            Some(Known::Alive { since: newer, .. }) if *newer > since => return, // and an earlier block: its free was or will be ignored
            Some(Known::Alive { size, .. }) => self.add(-(*size as i64), -1),    // its free is still to be heard
            _ => {}
        }
        self.known.insert(addr, Known::Alive { size, since });
        self.add(size as i64, 1);
    }

    fn free(&mut self, addr: u64, at: u64) {
        match self.known.get(&addr) {
            Some(Known::Alive { since, .. }) if *since > at => {} // of the block before
            Some(Known::Alive { size, .. }) => {
                self.add(-(*size as i64), -1);
                self.known.remove(&addr);
            }
            before => {
                let (last, times) = if let Some(Known::Freed { at, times }) = before { (*at, *times) } else { (0, 0) };
                let at = at.max(last);
                self.known.insert(addr, Known::Freed { at, times: times.saturating_add(1) });
                self.early.push_back((addr, at));
                if self.early.len() > EARLY {
                    self.forget_earliest();
                }
            }
        }
    }

    fn forget_earliest(&mut self) {
        let Some((addr, at)) = self.early.pop_front() else { return };
        if matches!(self.known.get(&addr), Some(Known::Freed { at: same, .. }) if *same == at) {
            self.known.remove(&addr);
        }
    }

    fn add(&mut self, bytes: i64, blocks: i64) {
        self.bytes = self.bytes.wrapping_add(bytes);
        self.blocks += blocks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hound_common::event::{POOL_SHIFT, size_word};
    use hound_common::hook::Kind;

    fn record(out: &mut Vec<u8>, tag: u8, dt: u32, words: &[u64]) {
        let header = Header { tag, words: 1 + words.len() as u8, dt, ..Header::default() };
        out.extend(header.to_word().to_le_bytes());
        words.iter().for_each(|word| out.extend(word.to_le_bytes()));
    }

    fn parcel(records: &[(u8, u64, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, ticks, addr) in records {
            record(&mut out, tag::TIME, 0, &[*ticks]);
            if *tag == tag::ALLOC {
                record(&mut out, tag::ALLOC, 0, &[*addr, size_word(100, 4)]);
            } else {
                record(&mut out, tag::FREE, 0, &[*addr]);
            }
        }
        out
    }

    #[test]
    fn what_is_allocated_and_not_freed_lives() {
        let mut table = Table::default();
        table.take(StreamId(1), &parcel(&[(tag::ALLOC, 10, 0x10), (tag::ALLOC, 20, 0x20), (tag::FREE, 30, 0x10), (tag::FREE, 31, 0x99)]));
        assert_eq!((table.bytes, table.blocks), (100, 1));
    }

    #[test]
    fn what_a_pool_hands_out_is_not_added() {
        let mut bytes = parcel(&[(tag::ALLOC, 10, 0x10)]);
        let from_pool = |tag, kind: Kind| Header { tag, words: 3, a: kind as u8, b: 1 << POOL_SHIFT, dt: 1 }.to_word();
        for kind in [Kind::PoolAlloc, Kind::PoolRealloc] {
            bytes.extend([from_pool(tag::ALLOC, kind), 0x10, size_word(50, 0)].map(u64::to_le_bytes).as_flattened());
        }
        for kind in [Kind::PoolFree, Kind::PoolRealloc] {
            bytes.extend([from_pool(tag::FREE, kind), 0x10, 0].map(u64::to_le_bytes).as_flattened());
        }
        let mut table = Table::default();
        table.take(StreamId(1), &bytes);
        assert_eq!((table.bytes, table.blocks), (100, 1));
    }

    #[test]
    fn threads_heard_out_of_order_come_to_the_same() {
        // Thread 1 allocates at 10 and 30, thread 2 frees at 20 and 40.
        let (one, two) =
            (parcel(&[(tag::ALLOC, 10, 0x10), (tag::ALLOC, 30, 0x10)]), parcel(&[(tag::FREE, 20, 0x10), (tag::FREE, 40, 0x10)]));
        for order in [[(1, &one), (2, &two)], [(2, &two), (1, &one)]] {
            let mut table = Table::default();
            order.iter().for_each(|(stream, bytes)| table.take(StreamId(*stream), bytes));
            assert_eq!((table.bytes, table.blocks), (0, 0), "first {}", order[0].0);
        }
    }

    #[test]
    fn frees_of_old_blocks_do_not_pile_up() {
        let mut table = Table::default();
        for addr in 1..=2 * EARLY as u64 {
            table.free(addr * 16, addr);
        }
        assert_eq!((table.known.len(), table.bytes), (EARLY, 0));
    }

    #[test]
    fn counting_ends_when_it_cannot_keep_up_and_says_so() {
        let live = Arc::new(Live::default());
        assert_eq!(live.figures(), None);
        let (queue, _held) = sync_channel(0);
        live.on.store(true, Ordering::Relaxed);
        let mut feed = LiveFeed { queue: Some(queue), live: Arc::clone(&live) };
        assert_eq!(live.figures(), Some((0, 0)));
        feed.take(StreamId(1), &[]);
        assert_eq!(live.figures(), None);
    }
}
