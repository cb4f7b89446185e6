//! Which part of the current stack is known to be mapped, so that unwinding never reads what is not there.
//!
//! The window starts as the page under the stack pointer and grows upwards page by page, each page tested once before it is read. A
//! thread that changes stacks (fibers, alternate signal stacks) gets a new window each time.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::sys;

const PAGE: u64 = 4096;
/// A read farther than this above the window is refused: no frame is that large, the register that led here is garbage.
const REACH: u64 = 16 << 20;
/// Below the window by no more than this, a stack pointer is taken for the same stack grown deeper (each page is tested all the same).
const GROWTH: u64 = 1 << 20;

/// Counts unmappings that the library sees in the whole process: any of them may have taken away (part of) a stack that a thread is going
/// to come back to.
static UNMAPPINGS: AtomicU32 = AtomicU32::new(0);

/// Memory is being unmapped.
pub fn note_unmapping() {
    UNMAPPINGS.fetch_add(1, Ordering::Release);
}

/// How many unmappings there have been.
#[inline(always)]
pub fn unmappings() -> u32 {
    UNMAPPINGS.load(Ordering::Acquire)
}

/// Mapped stack addresses `lo..hi`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Window {
    lo: u64,
    hi: u64,
}

impl Window {
    /// Whether the word at `addr` may be read.
    #[inline(always)]
    pub fn holds(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.lo) < self.hi.wrapping_sub(self.lo)
    }

    /// Whether all words from `low` up to `high` may be read. False if `high` is below.
    #[inline(always)]
    pub fn spans(&self, low: u64, high: u64) -> bool {
        self.lo <= low && low <= high && high < self.hi
    }

    /// Makes the window hold the stack that `sp` points into.
    #[inline(always)]
    pub fn enter(&mut self, sp: u64) {
        if !self.holds(sp) {
            self.change(sp);
        }
    }

    /// The word at `addr` if it is on the current stack.
    #[inline(always)]
    pub fn read(&mut self, addr: u64) -> Option<u64> {
        if !self.holds(addr) && !self.extend(addr) {
            return None;
        }
        // SAFETY: inside the window, of which every page has been found mapped; words are aligned, so none crosses its end. The stack
        // below the current frame may be unmapped by another thread only if the program pulls its own stack away.
        Some(unsafe { (addr as *const u64).read_volatile() })
    }

    #[cold]
    fn change(&mut self, sp: u64) {
        let page = sp & !(PAGE - 1);
        let grown = page < self.lo && self.lo - page <= GROWTH;
        if grown && (page + PAGE..self.lo).step_by(PAGE as usize).all(sys::is_readable) {
            self.lo = page;
        } else {
            // Another stack. What is known of the one left is not kept: it may have been unmapped when the thread comes back to it.
            (self.lo, self.hi) = (page, page + PAGE);
        }
    }

    #[cold]
    fn extend(&mut self, addr: u64) -> bool {
        if addr < self.hi || addr - self.hi > REACH {
            return false;
        }
        while self.hi <= addr {
            if !sys::is_readable(self.hi) {
                return false;
            }
            self.hi += PAGE;
        }
        true
    }

    /// Something was unmapped: what is known is given up unless the far end of the current stack is still there. (A stack's mapping is
    /// taken away as a whole; what may lie there now instead is a smaller one.)
    #[cold]
    pub fn doubt(&mut self) {
        if self.hi != 0 && !sys::is_readable(self.hi - PAGE) {
            (self.lo, self.hi) = (0, 0);
        }
    }
}
