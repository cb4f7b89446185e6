//! Going through all rows, on all cores.

use super::table::WIDTHS;
use super::{Damaged, Rows, Storage, View};
use crate::columns::layout::SEGMENT;
use crate::heap::{Block, Ending, Peak};
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Some rows that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    view: View<'a>,
    first: usize,
    peak: Peak,
}

impl Part<'_> {
    /// The columns of these rows alone.
    pub fn view(&self) -> &View<'_> {
        &self.view
    }

    /// How many rows come before.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Shows each block: how it ended, and whether it lived at the peak, for all that was recorded.
    #[inline(always)]
    pub fn each(&self, mut see: impl FnMut(&Block, &Ending, bool)) {
        for row in 0..self.view.len() {
            let lived = self.view.lived_from(self.first, row, &self.peak);
            see(&self.view.block_from(self.first, row), &self.view.ending_from(self.first, row), lived);
        }
    }
}

impl Rows {
    /// Folds all rows: `each` adds parts to what `make` made, one for each of at most `threads` threads (none = as many as there are cores).
    /// With one thread the parts come in order. Nothing is shown that has not been compared with its checksum.
    ///
    /// # Errors
    /// If the index does not hold what was written into it.
    pub fn fold<A: Send>(
        &self,
        threads: Option<usize>,
        make: impl Fn() -> A + Sync,
        each: impl Fn(&mut A, &Part<'_>) + Sync,
    ) -> Result<Vec<A>, Damaged> {
        let rows = self.view().len();
        let segments = rows.div_ceil(SEGMENT);
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = threads.unwrap_or_else(cores).clamp(1, segments.max(1));
        let (next, damaged) = (AtomicUsize::new(0), AtomicBool::new(false));
        let work = || {
            let (mut sum, view) = (make(), self.view());
            loop {
                let segment = next.fetch_add(1, Ordering::Relaxed);
                if segment >= segments || damaged.load(Ordering::Relaxed) {
                    return sum;
                }
                if !self.is_sound(segment) {
                    damaged.store(true, Ordering::Relaxed);
                    return sum;
                }
                let (first, to) = (segment * SEGMENT, rows.min((segment + 1) * SEGMENT));
                each(&mut sum, &Part { view: view.cut(first, to), first, peak: self.outcome.peak });
            }
        };
        let sums = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 1..threads {
                // Without a thread the others do its part.
                let _ = std::thread::Builder::new().name("hound-rows".into()).spawn_scoped(scope, || {
                    let sum = work();
                    sums.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(sum);
                });
            }
            let sum = work();
            sums.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(sum);
        });
        if damaged.into_inner() { Err(Damaged) } else { Ok(sums.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())) }
    }

    /// Shows each block, in order: as [`Part::each`].
    ///
    /// # Errors
    /// If the index does not hold what was written into it.
    pub fn each(&self, mut see: impl FnMut(&Block, &Ending, bool)) -> Result<(), Damaged> {
        let view = self.view();
        for first in (0..view.len()).step_by(SEGMENT) {
            if !self.is_sound(first / SEGMENT) {
                return Err(Damaged);
            }
            let view = view.cut(first, view.len().min(first + SEGMENT));
            Part { view, first, peak: self.outcome.peak }.each(&mut see);
        }
        Ok(())
    }

    /// Compares all that was not compared yet with its checksums: whoever looks at a [`View`] of an index asks this first.
    ///
    /// # Errors
    /// If the index does not hold what was written into it.
    pub fn check(&self) -> Result<(), Damaged> {
        self.fold(None, || (), |(), _| ()).map(|_| ())
    }

    fn is_sound(&self, segment: usize) -> bool {
        let Storage::Mapped(mapped) = &self.storage else { return true };
        if mapped.checked[segment].load(Ordering::Relaxed) {
            return true;
        }
        let (from, to) = (segment * SEGMENT, mapped.rows.min((segment + 1) * SEGMENT));
        let sound = (0..WIDTHS.len()).all(|column| {
            let expected = mapped.checksums.get(segment * WIDTHS.len() + column);
            let bytes = mapped.column(column).get(from * WIDTHS[column]..to * WIDTHS[column]);
            bytes.map(crc32fast::hash).as_ref() == expected
        });
        mapped.checked[segment].store(sound, Ordering::Relaxed);
        sound
    }
}
