//! The heap, and beside it the pools that are cut from it: each is replayed on its own.

use super::block::{Block, Ending, Outcome, Peak};
use super::replay::Replay;
use crate::capture::Visitor;
use crate::capture::model::{Alloc, Free, Stamped, StreamId};

/// Hears of a pool's blocks, as the heap's sink does of the heap's.
pub type Sink<'a> = Box<dyn FnMut(&Block, &Ending, &Peak) + 'a>;

/// Replays the heap and every pool that is met.
///
/// Nothing is shared between them: neither addresses (a pool's block may lie where the heap's block lies that it was cut from), nor
/// totals and peaks, nor what makes a block temporary.
pub struct Heaps<'a, S> {
    heap: Replay<S>,
    /// By number. There are at most 63.
    pools: Vec<(u8, Replay<Sink<'a>>)>,
    sink_of: Box<dyn FnMut(u8) -> Sink<'a> + 'a>,
}

impl<'a, S: FnMut(&Block, &Ending, &Peak)> Heaps<'a, S> {
    /// `sink` hears of the heap's blocks; `sink_of` makes the sink of a pool when the pool is met.
    pub fn new(sink: S, sink_of: impl FnMut(u8) -> Sink<'a> + 'a) -> Self {
        Heaps { heap: Replay::new(sink), pools: Vec::new(), sink_of: Box::new(sink_of) }
    }

    /// The end of the recording, for the heap and for every pool that was met, by number.
    pub fn finish(mut self) -> (Outcome, Vec<(u8, Outcome)>) {
        // What lives, lives until the recording's end, wherever the last event was.
        let pools = self.pools.iter().map(|(_, pool)| pool.now_ns());
        let end_ns = pools.fold(self.heap.now_ns(), u64::max);
        self.heap.extend(end_ns);
        let finish = |(number, mut pool): (u8, Replay<Sink<'a>>)| {
            pool.extend(end_ns);
            (number, pool.finish())
        };
        (self.heap.finish(), self.pools.into_iter().map(finish).collect())
    }

    #[cold]
    #[inline(never)]
    fn pool(&mut self, number: u8) -> &mut Replay<Sink<'a>> {
        let at = self.pools.binary_search_by_key(&number, |(number, _)| *number).unwrap_or_else(|at| {
            self.pools.insert(at, (number, Replay::new((self.sink_of)(number))));
            at
        });
        &mut self.pools[at].1
    }
}

impl<S: FnMut(&Block, &Ending, &Peak)> Visitor for Heaps<'_, S> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        match alloc.pool {
            0 => self.heap.alloc(time_ns, stream, alloc),
            pool => self.pool(pool).alloc(time_ns, stream, alloc),
        }
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        match free.pool {
            0 => self.heap.free(time_ns, stream, free),
            pool => self.pool(pool).free(time_ns, stream, free),
        }
    }

    fn other(&mut self, event: &Stamped) {
        self.heap.other(event);
        self.pools.iter_mut().for_each(|(_, pool)| pool.other(event));
    }
}
