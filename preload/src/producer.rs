//! Writing records into the thread's segments of the ring. The fast path is a bounds check, the stores, and one store that publishes.

use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use hound_common::event::{self, Header, tag};
use hound_common::ring::{
    OPTION_DROP, OUT_NO_HEARTBEAT, SEGMENT_BYTES, SEGMENT_CLAIMED, SEGMENT_FREE, SEGMENT_OWNED, SEGMENT_SEALED, Segment, Stream,
};

use crate::{clock, process, sys};

/// Waiting this long without seeing hound's heartbeat move, in milliseconds, means that hound is gone or stopped; unless the ring says
/// otherwise.
const PATIENCE_MS: u32 = 2000;

/// Whether a thread that has waited for so long already may wait for hound at all.
pub fn may_wait(waited_ms: u32) -> bool {
    let control = process::control();
    let dropping = control.options.load(Ordering::Relaxed) & OPTION_DROP != 0;
    !dropping && waited_ms < control.max_wait_ms.load(Ordering::Relaxed)
}

/// For how long a waiting thread goes on believing in hound.
pub struct Patience {
    beat: u32,
    still_ms: u32,
}

impl Patience {
    /// It does now.
    pub fn begin() -> Self {
        Patience { beat: process::control().heartbeat.load(Ordering::Relaxed), still_ms: 0 }
    }

    /// Waits until hound has freed something, a millisecond at most. False if hound is gone: the library has bowed out.
    pub fn wait(&mut self) -> bool {
        let control = process::control();
        let freed = control.freed.load(Ordering::Acquire); // pairs with hound's release after freeing
        let before = clock::now();
        control.waiters.fetch_add(1, Ordering::AcqRel);
        sys::futex_wait_1ms(&control.freed, freed);
        control.waiters.fetch_sub(1, Ordering::AcqRel);
        control.waited_ticks.fetch_add(clock::now().wrapping_sub(before), Ordering::Relaxed);
        let beat = control.heartbeat.load(Ordering::Relaxed);
        self.still_ms = if beat == self.beat { self.still_ms + 1 } else { 0 };
        self.beat = beat;
        let allowed_ms = match control.patience_ms.load(Ordering::Relaxed) {
            0 => PATIENCE_MS,
            given => given,
        };
        if self.still_ms > allowed_ms {
            process::bow_out(OUT_NO_HEARTBEAT);
            return false;
        }
        true
    }
}

/// The writing end of one stream.
#[repr(C)]
pub struct Producer {
    cursor: *mut u64,
    end: *mut u64,
    base: *mut u64,
    committed: *const AtomicU32,
    last: u64,
    stream: *const Stream,
    index: u32,
    sequence: u32,
    waited_ms: u32,
    segment: u32,
}

impl Producer {
    /// Begins with nothing written, for a stream just claimed.
    pub fn start(&mut self, stream: &'static Stream, index: u32) {
        self.stream = stream;
        self.index = index;
    }

    /// The stream's shared head.
    #[inline(always)]
    pub fn stream(&self) -> &'static Stream {
        // SAFETY: set by `start` before any use; the ring is never unmapped.
        unsafe { &*self.stream }
    }

    /// Makes room for `words`. False if there is none: the event is lost and counted.
    #[inline(always)]
    pub fn reserve(&mut self, words: usize) -> bool {
        self.has_room(words) || self.next_segment()
    }

    /// Whether there is room for `words` in this segment.
    #[inline(always)]
    pub fn has_room(&self, words: usize) -> bool {
        (self.end as usize).wrapping_sub(self.cursor as usize) >= words * 8
    }

    /// Whether the time since the last event fits its header.
    #[inline(always)]
    pub fn is_soon(&self, ticks: u64) -> bool {
        ticks.wrapping_sub(self.last) <= u64::from(u32::MAX)
    }

    /// Stores a word. There must be room.
    #[inline(always)]
    pub fn put(&mut self, word: u64) {
        // SAFETY: `reserve` has made sure that the cursor stays before the segment's end.
        unsafe { self.cursor.write(word) };
        // SAFETY: at most one past the end.
        self.cursor = unsafe { self.cursor.add(1) };
    }

    /// Stores a few words. There must be room.
    #[inline(always)]
    pub fn put_all(&mut self, words: impl Iterator<Item = u64>) {
        let mut cursor = self.cursor;
        for word in words {
            // Volatile, or the compiler makes three loops of this one, whose ends cannot be guessed: there are mostly two or three words.
            // SAFETY: as in `put`.
            unsafe { cursor.write_volatile(word) };
            // SAFETY: as in `put`.
            cursor = unsafe { cursor.add(1) };
        }
        self.cursor = cursor;
    }

    /// Stores a header whose event happened at `ticks`, behind a `TIME` record where a delta cannot say it. Room for two more words.
    #[inline(always)]
    pub fn put_header(&mut self, ticks: u64, tag: u8, words: u8, a: u8, b: u8) {
        let mut dt = ticks.wrapping_sub(self.last);
        if !self.is_soon(ticks) {
            self.put(Header { tag: tag::TIME, words: 2, ..Header::default() }.to_word());
            self.put(ticks);
            dt = 0;
        }
        self.last = ticks;
        self.put(Header { tag, words, a, b, dt: dt as u32 }.to_word());
    }

    /// Stores the header of a record that has no time of its own.
    #[inline(always)]
    pub fn put_untimed(&mut self, tag: u8, words: u8, a: u8, b: u8) {
        self.put(Header { tag, words, a, b, dt: 0 }.to_word());
    }

    /// Stores an event of these words, and publishes everything put so far. Room for two words more than it has, and the header.
    #[inline(always)]
    pub fn put_event<const N: usize>(&mut self, ticks: u64, tag: u8, a: u8, b: u8, words: [u64; N]) {
        self.put_header(ticks, tag, 1 + N as u8, a, b);
        self.put_all(words.into_iter());
        self.commit();
    }

    /// Publishes everything put so far.
    #[inline(always)]
    pub fn commit(&mut self) {
        let bytes = (self.cursor as usize).wrapping_sub(self.base as usize);
        // SAFETY: points into the ring's segment table, set together with the cursor.
        let committed = unsafe { &*self.committed };
        committed.store(bytes as u32, Ordering::Release); // pairs with hound's acquire load
    }

    /// Takes back what was put since the last commit (a hook was left by longjmp in its middle).
    pub fn rewind(&mut self) {
        if self.base.is_null() {
            return;
        }
        // SAFETY: as in `commit`.
        let committed = unsafe { &*self.committed }.load(Ordering::Relaxed);
        // SAFETY: committed bytes lie inside the segment.
        self.cursor = unsafe { self.base.add((committed as usize / 8).min(SEGMENT_BYTES / 8)) };
        // What the lost records said of time is unknown: the next one says it anew.
        self.last = u64::MAX;
    }

    /// Counts an event that could not be recorded.
    #[cold]
    pub fn lose(&self, reason: u8) {
        if let Some(cell) = self.stream().lost.get(reason as usize) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    #[cold]
    #[inline(never)]
    fn next_segment(&mut self) -> bool {
        if !self.base.is_null() {
            self.commit();
            // Let go before sealing: a sealed segment may be another thread's at once, and a longjmp may come in between.
            self.base = core::ptr::null_mut();
            self.cursor = core::ptr::null_mut();
            self.end = core::ptr::null_mut();
            compiler_fence(Ordering::SeqCst);
            if let Some(segment) = process::segments().get(self.segment as usize) {
                segment.state.store(SEGMENT_SEALED, Ordering::Release); // pairs with hound's acquire load
            }
        }
        let Some((index, segment)) = self.acquire() else {
            self.lose(event::LOST_RING_FULL);
            return false;
        };
        self.base = process::segment_data(index);
        self.cursor = self.base;
        // SAFETY: one past the segment's data.
        self.end = unsafe { self.base.add(SEGMENT_BYTES / 8) };
        self.committed = &raw const segment.committed;
        self.segment = index;
        if self.sequence == 0 {
            self.last = u64::MAX; // the first record of a stream says its time in full
        }
        self.sequence = self.sequence.wrapping_add(1);
        true
    }

    fn acquire(&mut self) -> Option<(u32, &'static Segment)> {
        let control = process::control();
        let mut patience = Patience::begin();
        loop {
            let in_use = control.segments_in_use.load(Ordering::Relaxed);
            let allowed = control.segment_limit.load(Ordering::Relaxed).saturating_add(control.streams_high.load(Ordering::Relaxed));
            // A thread's first segment is always granted: an idle thread must not wait for busy ones.
            if (in_use < allowed || self.sequence == 0)
                && let Some(found) = self.claim()
            {
                return Some(found);
            }
            if !may_wait(self.waited_ms) {
                return None;
            }
            self.waited_ms = self.waited_ms.saturating_add(1);
            if !patience.wait() {
                return None;
            }
        }
    }

    fn claim(&self) -> Option<(u32, &'static Segment)> {
        let control = process::control();
        for (index, segment) in process::segments().iter().enumerate() {
            if segment.state.load(Ordering::Relaxed) == SEGMENT_FREE
                // Acquire pairs with hound's release: it has read the old content.
                && segment.state.compare_exchange(SEGMENT_FREE, SEGMENT_CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                control.segments_in_use.fetch_add(1, Ordering::Relaxed);
                segment.stream.store(self.index, Ordering::Relaxed);
                segment.generation.store(self.stream().generation.load(Ordering::Relaxed), Ordering::Relaxed);
                segment.sequence.store(self.sequence, Ordering::Relaxed);
                segment.committed.store(0, Ordering::Relaxed);
                control.segments_high.fetch_max(index as u32 + 1, Ordering::Relaxed);
                segment.state.store(SEGMENT_OWNED, Ordering::Release); // publishes the fields above
                return Some((index as u32, segment));
            }
        }
        None
    }
}
