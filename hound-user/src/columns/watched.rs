//! A replay that says how far it is, and knows what comes.
//!
//! A large heap lies in no cache: where an event looks is asked for some events before its turn, and has come by then.

use crate::capture::Visitor;
use crate::capture::model::{Alloc, Free, Stamped, StreamId};
use crate::heap::{Heaps, Hears, Outcome};

/// Events between two words about progress.
const STEP: u64 = 1 << 18;
/// Events that wait. A fetch takes as long as one or two events.
const LINE: usize = 16;

/// A replay that tells `progress` how many events it has seen.
pub(crate) struct Watched<'a, S> {
    heaps: Heaps<'a, S>,
    progress: &'a dyn Fn(u64),
    done: u64,
    /// The last allocations and frees, the oldest at `first` once it is full.
    line: Vec<Coming>,
    first: usize,
}

#[derive(Clone, Copy)]
struct Coming {
    time_ns: u64,
    stream: StreamId,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Alloc(Alloc),
    Free(Free),
}

impl Coming {
    fn addr(&self) -> u64 {
        match &self.what {
            What::Alloc(alloc) => alloc.addr,
            What::Free(free) => free.addr,
        }
    }

    #[inline(always)]
    fn comes_to<S: Hears>(&self, heaps: &mut Heaps<'_, S>) {
        match &self.what {
            What::Alloc(alloc) => heaps.alloc(self.time_ns, self.stream, alloc),
            What::Free(free) => heaps.free(self.time_ns, self.stream, free),
        }
    }
}

impl<'a, S: Hears> Watched<'a, S> {
    pub(crate) fn new(heaps: Heaps<'a, S>, progress: &'a dyn Fn(u64)) -> Self {
        Watched { heaps, progress, done: 0, line: Vec::with_capacity(LINE), first: 0 }
    }

    /// As [`Heaps::finish`].
    pub(crate) fn finish(mut self) -> (Outcome, Vec<(u8, Outcome)>) {
        self.let_all_in();
        self.heaps.finish()
    }

    #[inline(always)]
    fn queue(&mut self, coming: Coming) {
        self.done += 1;
        if self.done.is_multiple_of(STEP) {
            (self.progress)(self.done);
        }
        self.heaps.comes(coming.addr());
        if self.line.len() < LINE {
            self.line.push(coming);
            return;
        }
        self.heaps.comes_next(self.line[(self.first + LINE / 2) % LINE].addr());
        let place = &mut self.line[self.first % LINE];
        place.comes_to(&mut self.heaps);
        *place = coming;
        self.first = (self.first + 1) % LINE;
    }

    fn let_all_in(&mut self) {
        let (later, sooner) = self.line.split_at(self.first);
        sooner.iter().chain(later).for_each(|coming| coming.comes_to(&mut self.heaps));
        self.line.clear();
        self.first = 0;
    }
}

impl<S: Hears> Visitor for Watched<'_, S> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        self.queue(Coming { time_ns, stream, what: What::Alloc(*alloc) });
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        self.queue(Coming { time_ns, stream, what: What::Free(*free) });
    }

    fn other(&mut self, event: &Stamped) {
        self.let_all_in();
        self.heaps.other(event);
    }
}
