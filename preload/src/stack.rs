//! Which part of the current stack is known to be mapped, so that unwinding never reads what is not there.
//!
//! The window starts as the page under the stack pointer and grows upwards page by page, each page tested once before it is read. A
//! thread that changes stacks (fibers, alternate signal stacks) gets a new window; the last few are kept.

use crate::sys;

const PAGE: u64 = 4096;
/// A read farther than this above the window is refused: no frame is that large, the register that led here is garbage.
const REACH: u64 = 16 << 20;
/// Below the window by no more than this, a stack pointer is taken for the same stack grown deeper (each page is tested all the same).
const GROWTH: u64 = 1 << 20;
const REMEMBERED: usize = 3;

/// Mapped stack addresses `lo..hi`, and other stacks of the same thread.
#[repr(C)]
#[derive(Default)]
pub struct Window {
    lo: u64,
    hi: u64,
    others: [(u64, u64); REMEMBERED],
}

impl Window {
    /// Whether the word at `addr` may be read.
    #[inline(always)]
    pub fn holds(&self, addr: u64) -> bool {
        addr.wrapping_sub(self.lo) < self.hi.wrapping_sub(self.lo)
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
        if page < self.lo && self.lo - page <= GROWTH && (page + PAGE..self.lo).step_by(PAGE as usize).all(sys::is_readable) {
            self.lo = page;
            return;
        }
        let leaving = (self.lo, self.hi);
        let found = self.others.iter().position(|(lo, hi)| sp >= *lo && sp < *hi);
        let slot = found.unwrap_or(REMEMBERED - 1);
        if let Some(place) = self.others.get_mut(slot) {
            let entering = if found.is_some() { *place } else { (page, page + PAGE) };
            *place = leaving;
            (self.lo, self.hi) = entering;
        }
        // Most recently left first.
        if let Some(upto) = self.others.get_mut(..=slot) {
            upto.rotate_right(1);
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

    /// A mapping was taken away: nothing in it is known any more.
    pub fn forget(&mut self, start: u64, end: u64) {
        for (lo, hi) in self.others.iter_mut() {
            if *lo < end && start < *hi {
                (*lo, *hi) = (0, 0);
            }
        }
        if self.lo < end && start < self.hi {
            (self.lo, self.hi) = (0, 0);
        }
    }
}
