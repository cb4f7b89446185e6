//! A replay that says how far it is.

use crate::capture::Visitor;
use crate::capture::model::{Alloc, Free, Stamped, StreamId};
use crate::heap::{Heaps, Hears};

/// Events between two words about progress.
const STEP: u64 = 1 << 18;

/// A replay that tells `progress` how many events it has seen.
pub(crate) struct Watched<'a, S> {
    pub heaps: Heaps<'a, S>,
    progress: &'a dyn Fn(u64),
    done: u64,
}

impl<'a, S> Watched<'a, S> {
    pub(crate) fn new(heaps: Heaps<'a, S>, progress: &'a dyn Fn(u64)) -> Self {
        Watched { heaps, progress, done: 0 }
    }

    #[inline(always)]
    fn count(&mut self) {
        self.done += 1;
        if self.done.is_multiple_of(STEP) {
            (self.progress)(self.done);
        }
    }
}

impl<S: Hears> Visitor for Watched<'_, S> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        self.count();
        self.heaps.alloc(time_ns, stream, alloc);
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        self.count();
        self.heaps.free(time_ns, stream, free);
    }

    fn other(&mut self, event: &Stamped) {
        self.heaps.other(event);
    }
}
