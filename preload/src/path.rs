//! The verified shadow stack.
//!
//! Each thread keeps the call path of its previous event: per frame the slot its return address was read from and the value found there,
//! and the slot and value of a saved frame pointer where an older frame's rule needs it. The next event unwinds new frames only until it
//! meets a recorded slot with the recorded content; from there the older frames follow from words already compared (CFA = sp or bp plus
//! a constant), so comparing memory, leaf to root, *is* unwinding: exact, also for a path that was popped and pushed again.
//!
//! ```text
//! index   0 … (root)                    len            hi
//!         |--- path of the last event ---|--- stale ---|     slots descend with the index
//! ```
//!
//! Frames behind the path (popped, maybe pushed again) stay as candidates. A frame whose link to the next older one does not follow from
//! words is marked [`STOP`]: there one row is applied and the walk meets the recorded frames again. When one frame near the root differs,
//! only that one is unwound (a splice); the leaf side stays as it is.

use hound_common::event::MAX_FRAMES;

use crate::own;

/// The frame's return address leads to a rule that uses bp.
pub const USES_BP: u64 = 1;
/// bp as it is after this frame is used by an older frame's rule.
pub const NEEDS_BP: u64 = 2;
/// The next older frame does not follow from compared words: apply the rule.
pub const STOP: u64 = 4;

/// `Meta::bp` is right although nobody needed it before (the frame was unwound just now).
pub const BP_KNOWN: u64 = 8;

/// A stack word and what it held.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Word {
    /// Where.
    pub addr: u64,
    /// What.
    pub value: u64,
}

/// What else is known of a frame.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Meta {
    /// bp in the caller; kept up to date only where [`NEEDS_BP`].
    pub bp: u64,
    /// Where bp was read from, 0 if the step left it.
    pub bp_slot: u64,
    /// Flags.
    pub flags: u64,
}

/// A frame just unwound.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Fresh {
    /// Slot of the return address.
    pub slot: u64,
    /// The return address.
    pub ra: u64,
    /// bp in the caller.
    pub bp: u64,
    /// Where bp was read from, 0 if the step left it.
    pub bp_slot: u64,
    /// Flags.
    pub flags: u64,
}

/// The recorded path of one thread.
#[repr(C)]
pub struct Path {
    /// Before the first word lies one whose address is above all others: a search towards the root ends there.
    ra: *mut Word,
    meta: *mut Meta,
    fresh: *mut Fresh,
    capacity: usize,
    /// Frames in the path of the last event.
    pub len: usize,
    /// Frames recorded, stale ones included.
    pub hi: usize,
    /// The frames from `len` up to this index are gone: their slots are 0.
    pub gap: usize,
    /// No frame at or above this index has a saved bp to compare.
    pub bp_top: usize,
    /// Of the first [`MAPPED`] frames, stale ones included: which have a saved bp to compare.
    compared: u64,
    /// No frame of the path at or above this index has [`STOP`].
    pub stop_top: usize,
    /// Why the path ended, as an unwind end reason's number.
    pub end: u8,
    /// Whether some frame of the path was found through frame pointers.
    pub frame_pointers: bool,
    grown_bytes: usize,
}

const _: () = assert!(core::mem::offset_of!(Meta, bp) == 0, "a frame whose bp is not compared is compared with itself");
const FRAME_BYTES: usize = size_of::<Word>() + size_of::<Meta>() + size_of::<Fresh>();
/// How many frames `Path::compared` has a bit for.
const MAPPED: usize = u64::BITS as usize;
/// Capacity after the first growth: 50 KiB of address space, touched as deep as the stack goes.
const FIRST_GROWTH: usize = 512;

/// A search through recorded frames towards the root, which ends at the word before the first one.
#[derive(Clone, Copy)]
pub struct Search(*const Word);

impl Search {
    /// Goes on to the youngest frame that lies at `slot` or above it.
    #[inline(always)]
    pub fn up_to(&mut self, slot: u64) -> Word {
        loop {
            // SAFETY: inside the array, or the word before it, at which the search ends.
            let word = unsafe { *self.0 };
            if word.addr >= slot {
                return word;
            }
            self.0 = self.0.wrapping_sub(1);
        }
    }
}

impl Path {
    /// Uses `bytes` bytes at `memory` for the first frames.
    ///
    /// # Safety
    /// The memory must be writable, aligned to 8, this path's alone, and stay.
    pub unsafe fn start(&mut self, memory: *mut u8, bytes: usize) {
        let capacity = (bytes - size_of::<Word>()) / FRAME_BYTES;
        // SAFETY: the caller's promise.
        unsafe { self.use_memory(memory, capacity) };
    }

    /// # Safety
    /// As `start`, for one word and `capacity` frames.
    unsafe fn use_memory(&mut self, memory: *mut u8, capacity: usize) {
        let sentinel: *mut Word = memory.cast();
        // SAFETY: the caller's promise.
        unsafe { sentinel.write(Word { addr: u64::MAX, value: 0 }) };
        // Each array follows the one before inside the memory promised.
        self.ra = sentinel.wrapping_add(1);
        self.meta = self.ra.wrapping_add(capacity).cast();
        self.fresh = self.meta.wrapping_add(capacity).cast();
        self.capacity = capacity;
    }

    /// How many frames fit without growing.
    #[inline(always)]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for more frames, keeping what is recorded. False at the limit or without memory.
    #[cold]
    pub fn grow(&mut self) -> bool {
        if self.capacity >= MAX_FRAMES {
            return false;
        }
        let capacity = (self.capacity * 8).clamp(FIRST_GROWTH, MAX_FRAMES);
        let bytes = capacity * FRAME_BYTES + size_of::<Word>();
        let Some(memory) = own::map(bytes) else { return false };
        let (old_ra, old_meta, old_fresh, old_capacity) = (self.ra, self.meta, self.fresh, self.capacity);
        // SAFETY: a fresh mapping of that size.
        unsafe { self.use_memory(memory, capacity) };
        // SAFETY: the old arrays have `old_capacity` elements and the new ones more; they do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(old_ra, self.ra, old_capacity) };
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(old_meta, self.meta, old_capacity) };
        // SAFETY: as above.
        unsafe { core::ptr::copy_nonoverlapping(old_fresh, self.fresh, old_capacity) };
        if self.grown_bytes != 0 {
            // SAFETY: the previous growth's mapping, no longer pointed to.
            unsafe { own::unmap(old_ra.wrapping_sub(1).cast(), self.grown_bytes) };
        }
        self.grown_bytes = bytes;
        true
    }

    /// Gives back what it has grown by, for a path that nobody follows any more: its thread is gone. It must be started anew.
    pub fn release(&mut self) {
        if self.grown_bytes != 0 {
            // SAFETY: the last growth's mapping, used by this path alone.
            unsafe { own::unmap(self.ra.wrapping_sub(1).cast(), self.grown_bytes) };
            self.grown_bytes = 0;
        }
    }

    /// Forgets everything recorded.
    pub fn clear(&mut self) {
        (self.len, self.hi, self.gap, self.bp_top, self.stop_top) = (0, 0, 0, 0, 0);
    }

    /// The return-address word of frame `i`, which must be below the capacity.
    #[inline(always)]
    pub fn ra(&mut self, i: usize) -> &mut Word {
        debug_assert!(i < self.capacity);
        // SAFETY: inside the array: callers stay below `hi` or have made sure of the capacity.
        unsafe { &mut *self.ra.wrapping_add(i) }
    }

    /// Begins a search towards the root at frame `below - 1`.
    #[inline(always)]
    pub fn search(&self, below: usize) -> Search {
        Search(self.ra.wrapping_add(below).wrapping_sub(1))
    }

    /// The index of the frame a search is at.
    #[inline(always)]
    pub fn found(&self, search: Search) -> usize {
        (search.0 as usize).wrapping_sub(self.ra as usize) / size_of::<Word>()
    }

    /// What else is known of frame `i`.
    #[inline(always)]
    pub fn meta(&mut self, i: usize) -> &mut Meta {
        debug_assert!(i < self.capacity);
        // SAFETY: as in `ra`.
        unsafe { &mut *self.meta.wrapping_add(i) }
    }

    /// The `i`-th frame unwound in this walk, leaf first.
    #[inline(always)]
    pub fn fresh(&mut self, i: usize) -> &mut Fresh {
        debug_assert!(i < self.capacity);
        // SAFETY: as in `ra`.
        unsafe { &mut *self.fresh.wrapping_add(i) }
    }

    /// The place of the `i`-th frame unwound in this walk, and of the next ones behind it; `i` is the capacity at most.
    #[inline(always)]
    pub fn fresh_from(&self, i: usize) -> *mut Fresh {
        self.fresh.wrapping_add(i)
    }

    /// How many frames unwound in this walk lie before this place.
    #[inline(always)]
    pub fn fresh_until(&self, place: *const Fresh) -> usize {
        (place as usize).wrapping_sub(self.fresh as usize) / size_of::<Fresh>()
    }

    /// One more than the highest index whose frame can lie at `slot` or above it (nearer the root). Looked for from the path's top: the
    /// next event is mostly near the last one.
    #[inline(always)]
    pub fn candidates(&mut self, slot: u64) -> usize {
        let mut below = self.len;
        if below > 0 && self.ra(below - 1).addr <= slot {
            return below; // not deeper: what is behind the path is
        }
        below = below.max(self.gap);
        // 0 is above all, less one.
        while below < self.hi && self.ra(below).addr.wrapping_sub(1) >= slot.wrapping_sub(1) {
            below += 1;
        }
        below
    }

    /// Moves frames `from..from + count` to `to`.
    pub fn shift(&mut self, from: usize, to: usize, count: usize) {
        debug_assert!(from + count <= self.capacity && to + count <= self.capacity);
        let (source, target) = (self.ra.wrapping_add(from), self.ra.wrapping_add(to));
        // SAFETY: as above; `copy` allows overlap.
        unsafe { core::ptr::copy(source, target, count) };
        let (source, target) = (self.meta.wrapping_add(from), self.meta.wrapping_add(to));
        // SAFETY: as above.
        unsafe { core::ptr::copy(source, target, count) };
    }

    /// Where the oldest of the frames `low..high` that read bp read it; 0 if none did.
    #[inline(always)]
    pub fn first_bp_slot(&self, low: usize, high: usize) -> u64 {
        let (mut meta, end) = (self.meta.wrapping_add(low), self.meta.wrapping_add(high));
        while meta < end {
            // SAFETY: below `hi`, as all frames of a run.
            let slot = unsafe { (*meta).bp_slot };
            if slot != 0 {
                return slot;
            }
            meta = meta.wrapping_add(1);
        }
        0
    }

    /// Recorded frame `k` was come to by a step that read bp at `bp_slot`: where bp comes from is the younger frame's doing, and that one
    /// may be another now.
    #[inline(always)]
    pub fn meet(&mut self, k: usize, bp_slot: u64) {
        let meta = self.meta(k);
        meta.bp_slot = bp_slot;
        if meta.flags & NEEDS_BP != 0 {
            if bp_slot != 0 {
                self.bp_top = self.bp_top.max(k + 1);
            }
            self.set_compared(k, bp_slot != 0);
        }
    }

    /// The lowest index down to which the frames below `k`, which has been met, are as recorded.
    #[inline(always)]
    pub fn verify_met(&mut self, k: usize) -> usize {
        if self.meta(k).flags & STOP != 0 { k } else { self.verify(k) }
    }

    /// Whether the saved bp of frame `i` is to be compared: to be said whenever its `bp_slot` or [`NEEDS_BP`] is set.
    #[inline(always)]
    pub fn set_compared(&mut self, i: usize, compared: bool) {
        if i < MAPPED {
            self.compared = self.compared & !(1 << i) | u64::from(compared) << i;
        }
    }

    /// Of frames `low..high` no saved bp is to be compared.
    #[inline(always)]
    pub fn compare_none(&mut self, low: usize, high: usize) {
        if self.compared != 0 {
            let below = |i: usize| u64::MAX.checked_shr((MAPPED - i.min(MAPPED)) as u32).unwrap_or(0);
            self.compared &= !(below(high) & !below(low));
        }
    }

    /// Compares the frames below `top` with memory, leaf to root, as far as each follows from the one before. Returns the lowest index
    /// that was found equal (`top` if not even `top - 1` was). All recorded slots must be mapped: they are those of the current stack.
    #[inline(always)]
    pub fn verify(&mut self, top: usize) -> usize {
        let low = if top <= self.len && self.stop_top == 0 { self.verify_words(top, 0) } else { self.verify_with_stops(top) };
        if self.compared == 0 && top <= MAPPED {
            return low;
        }
        // Of frames behind the path it is not known whether bp is compared anywhere.
        let bp_top = if top <= self.len { self.bp_top } else { top };
        if bp_top > low { self.verify_bp(low, top.min(bp_top)) } else { low }
    }

    /// The saved bp words of frames `low..top`. Returns the lowest index down to which they are equal.
    #[inline(always)]
    fn verify_bp(&self, low: usize, top: usize) -> usize {
        if top > MAPPED {
            let found = self.verify_bp_beyond(low.max(MAPPED), top);
            if found > low.max(MAPPED) {
                return found;
            }
        }
        let mapped = top.min(MAPPED);
        if low >= mapped {
            return low;
        }
        let mut left = self.compared & (u64::MAX >> (MAPPED - mapped)) & (u64::MAX << low);
        while left != 0 {
            let i = left.ilog2() as usize;
            // SAFETY: below `hi`, as all frames that are verified.
            let meta = unsafe { &*self.meta.wrapping_add(i) };
            // SAFETY: as in `is_equal`: the frame's return address has matched already. A bit is only set together with a slot.
            if meta.bp != unsafe { (meta.bp_slot as *const u64).read_volatile() } {
                return i + 1;
            }
            left ^= 1 << i;
        }
        low
    }

    /// Frames `floor..top`, which have no stops.
    #[inline(always)]
    fn verify_words(&self, top: usize, floor: usize) -> usize {
        let lowest = self.ra.wrapping_add(floor);
        let mut word = self.ra.wrapping_add(top);
        // Four at a time: the loop then costs about one cycle a frame.
        let last_four = lowest.wrapping_add(4);
        while word >= last_four && Path::are_four_equal(word.wrapping_sub(4)) {
            word = word.wrapping_sub(4);
        }
        // The rest together with some of those before it: how many are left is hard to guess.
        if word > lowest && word < last_four && top - floor >= 4 && Path::are_four_equal(lowest) {
            return floor;
        }
        while word > lowest && Path::is_equal(word.wrapping_sub(1)) {
            word = word.wrapping_sub(1);
        }
        (word as usize - self.ra as usize) / size_of::<Word>()
    }

    /// Four frames from `word` on, youngest first.
    #[inline(always)]
    fn are_four_equal(word: *const Word) -> bool {
        (0..4).rev().all(|i| Path::is_equal(word.wrapping_add(i)))
    }

    /// Whether memory is as `word`, of a frame below `hi`, says.
    #[inline(always)]
    fn is_equal(word: *const Word) -> bool {
        // SAFETY: below `hi`, as all frames that are verified.
        let word = unsafe { *word };
        // SAFETY: a slot of the current stack, found mapped when it was recorded; read only after the younger ones have matched.
        word.value == unsafe { (word.addr as *const u64).read_volatile() }
    }

    #[inline(never)]
    fn verify_with_stops(&mut self, top: usize) -> usize {
        let mut i = top;
        if top <= self.len && top > self.stop_top {
            i = self.verify_words(top, self.stop_top);
            if i > self.stop_top {
                return i;
            }
        }
        while i > 0 {
            if i < self.hi && i != top && self.meta(i).flags & STOP != 0 {
                break;
            }
            if self.ra(i - 1).addr == 0 || !Path::is_equal(self.ra.wrapping_add(i - 1)) {
                break;
            }
            i -= 1;
        }
        i
    }

    /// [`Path::verify_bp`] of frames that have no bit in `compared`.
    #[cold]
    #[inline(never)]
    fn verify_bp_beyond(&self, low: usize, top: usize) -> usize {
        let base = self.meta.wrapping_add(low);
        let mut meta = self.meta.wrapping_add(top);
        while meta > base {
            meta = meta.wrapping_sub(1);
            // SAFETY: below `hi`, as all frames that are verified.
            let Meta { bp, bp_slot, flags } = unsafe { *meta };
            // Which frames are compared cannot be guessed: the others are compared with themselves.
            let compared = (flags & NEEDS_BP != 0) & (bp_slot != 0);
            let slot = core::hint::select_unpredictable(compared, bp_slot, meta as u64);
            // SAFETY: as in `is_equal`, the frame's return address has matched already; or our own word (`bp` is the first of `Meta`).
            if bp != unsafe { (slot as *const u64).read_volatile() } {
                return (meta as usize - self.meta as usize) / size_of::<Meta>() + 1;
            }
        }
        low
    }
}
