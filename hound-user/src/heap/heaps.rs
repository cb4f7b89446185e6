//! The heap, and beside it the pools that are cut from it: each is replayed on its own.

use super::block::{Block, Ending, Outcome, Peak};
use super::processes::{Processes, Tag};
use super::replay::{Hears, Replay};
use super::sampling::Sampling;
use crate::capture::Visitor;
use crate::capture::model::{Alloc, Event, Free, ProcessEvent, Stamped, StreamId};
use hound_common::event::{END_EXEC, END_EXIT, END_NO_MEMORY, END_SIGNAL, END_UNKNOWN, PROCESS_FORKED};
use std::sync::Arc;

/// Hears of a pool's blocks, as the heap's sink does of the heap's.
pub type Sink<'a> = Box<dyn Hears + 'a>;

impl Hears for Sink<'_> {
    fn born(&mut self, block: &Block) {
        self.as_mut().born(block);
    }

    fn ended(&mut self, block: &Block, ending: &Ending, peak: &Peak) {
        self.as_mut().ended(block, ending, peak);
    }
}

/// Replays the heap and every pool that is met.
///
/// Nothing is shared between them: neither addresses (a pool's block may lie where the heap's block lies that it was cut from), nor
/// totals and peaks, nor what makes a block temporary.
pub struct Heaps<'a, S> {
    heap: Replay<S>,
    /// By number. There are at most 63.
    pools: Vec<(u8, Replay<Sink<'a>>)>,
    sink_of: Box<dyn FnMut(u8) -> Sink<'a> + 'a>,
    sampling: Option<Arc<Sampling>>,
    /// Only where there are several.
    processes: Option<Processes>,
}

impl<'a, S: Hears> Heaps<'a, S> {
    /// `sink` hears of the heap's blocks; `sink_of` makes the sink of a pool when the pool is met.
    pub fn new(sink: S, sink_of: impl FnMut(u8) -> Sink<'a> + 'a) -> Self {
        Heaps { heap: Replay::new(sink), pools: Vec::new(), sink_of: Box::new(sink_of), sampling: None, processes: None }
    }

    /// The same for a capture that was sampled so.
    pub fn sampled(self, sampling: Arc<Sampling>) -> Self {
        Heaps { heap: self.heap.sampled(sampling.clone()), sampling: Some(sampling), ..self }
    }

    /// The same for a capture whose streams are of these processes. The blocks that sinks hear of have addresses then that are told apart
    /// by process: [`Processes::plain`] gives the process' own.
    pub fn of_processes(self, processes: Processes) -> Self {
        Heaps { processes: Some(processes), ..self }
    }

    /// The same for a capture with this sampling and these processes, if it has any.
    pub fn of_capture(mut self, sampling: Option<Arc<Sampling>>, processes: Option<Processes>) -> Self {
        if let Some(sampling) = sampling {
            self = self.sampled(sampling);
        }
        Heaps { processes, ..self }
    }

    /// An event of the heap comes soon, at this address of the only process.
    #[inline(always)]
    pub fn comes(&self, addr: u64) {
        self.heap.comes(addr);
    }

    /// It comes sooner.
    #[inline(always)]
    pub fn comes_next(&self, addr: u64) {
        self.heap.comes_next(addr);
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

    /// A pool that is met late has missed what set the streams' intervals: it takes them over.
    fn new_pool(&mut self, number: u8) -> Replay<Sink<'a>> {
        let replay = Replay::new((self.sink_of)(number));
        match &self.sampling {
            None => replay,
            Some(sampling) => replay.sampled(sampling.clone()).with_intervals_of(&self.heap),
        }
    }

    fn alloc_plain(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        match alloc.pool {
            0 => self.heap.alloc(time_ns, stream, alloc),
            pool => self.pool(pool).alloc(time_ns, stream, alloc),
        }
    }

    fn free_plain(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        match free.pool {
            0 => self.heap.free(time_ns, stream, free),
            pool => self.pool(pool).free(time_ns, stream, free),
        }
    }

    // Out of line: a capture of one process is replayed as fast as if there were no others.
    #[inline(never)]
    fn alloc_of(&mut self, tag: Option<Tag>, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        let Some(tag) = tag else { return };
        let tagged = Alloc { addr: tag.apply(alloc.addr), previous: alloc.previous.map(|addr| tag.apply(addr)), ..*alloc };
        self.alloc_plain(time_ns, stream, &tagged);
    }

    #[inline(never)]
    fn free_of(&mut self, tag: Option<Tag>, time_ns: u64, stream: StreamId, free: &Free) {
        let Some(tag) = tag else { return };
        self.free_plain(time_ns, stream, &Free { addr: tag.apply(free.addr), ..*free });
    }

    fn other_plain(&mut self, event: &Stamped) {
        // Of one block only, while others of the same address live in other pools; and what is left out of a pool was not made by the heap.
        if let Event::Liveness { pool, .. } | Event::Stripped { pool, .. } = event.event {
            return match pool {
                0 => self.heap.other(event),
                pool => self.pool(pool).other(event),
            };
        }
        self.every(event);
    }

    fn every(&mut self, event: &Stamped) {
        self.heap.other(event);
        self.pools.iter_mut().for_each(|(_, pool)| pool.other(event));
    }

    /// What is said of one process.
    fn other_of(&mut self, tag: Option<Tag>, event: &Stamped) {
        let Stamped { time_ns, stream, event: ref what } = *event;
        match (what, tag) {
            (Event::Liveness { state, addr, pool }, Some(tag)) => {
                let event = Event::Liveness { state: *state, addr: tag.apply(*addr), pool: *pool };
                self.other_plain(&Stamped { time_ns, stream, event });
            }
            (Event::Liveness { .. }, None) => {}
            (Event::Process(ProcessEvent { began: PROCESS_FORKED, from: Some(from), .. }), Some(tag)) => {
                let from = Tag::of(*from);
                self.heap.inherit(time_ns, from, tag);
                self.pools.iter_mut().for_each(|(_, pool)| pool.inherit(time_ns, from, tag));
            }
            (Event::End { reason: END_EXIT | END_SIGNAL | END_EXEC | END_NO_MEMORY | END_UNKNOWN, .. }, Some(tag)) => {
                self.heap.close(time_ns, tag);
                self.pools.iter_mut().for_each(|(_, pool)| pool.close(time_ns, tag));
            }
            _ => self.every(event),
        }
    }

    #[cold]
    #[inline(never)]
    fn pool(&mut self, number: u8) -> &mut Replay<Sink<'a>> {
        let at = match self.pools.binary_search_by_key(&number, |(number, _)| *number) {
            Ok(at) => at,
            Err(at) => {
                let pool = self.new_pool(number);
                self.pools.insert(at, (number, pool));
                at
            }
        };
        &mut self.pools[at].1
    }
}

impl<S: Hears> Visitor for Heaps<'_, S> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        match &self.processes {
            None => self.alloc_plain(time_ns, stream, alloc),
            Some(processes) => self.alloc_of(processes.tag(stream), time_ns, stream, alloc),
        }
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        match &self.processes {
            None => self.free_plain(time_ns, stream, free),
            Some(processes) => self.free_of(processes.tag(stream), time_ns, stream, free),
        }
    }

    fn other(&mut self, event: &Stamped) {
        match &self.processes {
            None => self.other_plain(event),
            Some(processes) => self.other_of(processes.tag(event.stream), event),
        }
    }
}
