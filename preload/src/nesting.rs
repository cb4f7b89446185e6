//! Counting the outermost call only, where entries are patched: the allocator's calls to itself come through the patches too.
//!
//! While the real function runs, the thread's state holds where its caller's return address lies and what it is. A call is nested if it is
//! made deeper on the same stack while that word is still there; so a function that was left by longjmp, or is on another stack (a fiber,
//! a signal handler's), stands in nobody's way. Functions of pools nest apart from those of the heap: what a pool takes from the heap is
//! a block of the heap.

use core::mem::offset_of;
use core::sync::atomic::{Ordering, compiler_fence};

use hound_common::attach::Entry;

use crate::attached::{self, Patched};
use crate::record::{self, Caller};
use crate::thread::Thread;
use crate::{directory, stack, sys};

/// No allocator takes more stack than this between two of its functions.
const REACH: u64 = 1 << 20;
/// So many calls inside one are believed. A word that stays where it was after a longjmp, in memory that nobody writes to, must not hide
/// more than this.
const MOST_NESTED: u64 = 1000;
const PAGE: u64 = 4096;

/// A function at work.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Inside {
    /// Where its return address lies, 0 = none is at work.
    slot: u64,
    /// The return address.
    ra: u64,
    /// Calls found nested in it.
    nested: u64,
}

/// Where the words of a heap's function at work are in a thread's state: for the stubs.
pub const AT_WORK_SLOT: usize = offset_of!(Thread, inside) + offset_of!(Inside, slot);
/// As [`AT_WORK_SLOT`].
pub const AT_WORK_RA: usize = offset_of!(Thread, inside) + offset_of!(Inside, ra);
/// As [`AT_WORK_SLOT`].
pub const AT_WORK_NESTED: usize = offset_of!(Thread, inside) + offset_of!(Inside, nested);

/// A function that releases blocks, which is not at work any more or will never be found to be: it is jumped to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Released {
    /// The block, 0 = something else was recorded since.
    block: u64,
    slot: u64,
    ra: u64,
    entry: u64,
}

/// An outermost call under way. `POOL`: of a pool's function.
pub struct Call<const POOL: bool> {
    /// What was called.
    pub function: Patched<POOL>,
    /// From where.
    pub caller: Caller,
}

/// What [`Call::enter`] has found.
pub enum Entered<const POOL: bool> {
    /// To be recorded when the real function has returned.
    Outermost(Call<POOL>),
    /// Not to be recorded.
    Nested,
    /// A function is at work on another stack, to which the thread comes back: this call is to be begun anew by way of [`elsewhere`].
    Elsewhere,
}

impl<const POOL: bool> Call<POOL> {
    /// Marks a call as at work.
    #[inline(always)]
    pub fn enter(entry: &'static Entry, caller: Caller) -> Entered<POOL> {
        let ra = caller.ra();
        let Some(function) = outermost::<POOL>(entry, ra) else { return Entered::Nested };
        // SAFETY: this thread's own state; signal handlers leave it as they have found it.
        let state = unsafe { &mut *function.state };
        let place = usize::from(POOL);
        if state.inside[place].slot != 0 {
            match outer(state, place, caller.slot) {
                Outer::AtWork => return Entered::Nested,
                Outer::Elsewhere => return Entered::Elsewhere,
                Outer::Gone => {}
            }
        }
        state.inside[place] = Inside { slot: caller.slot, ra, nested: 0 };
        compiler_fence(Ordering::SeqCst);
        Entered::Outermost(Self { function, caller })
    }

    /// The real function has returned.
    #[inline(always)]
    pub fn leave(&self) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: states stay mapped; after a fork this one is zero.
        let state = unsafe { &mut *self.function.state };
        let inside = &mut state.inside[usize::from(POOL)];
        if inside.slot == self.caller.slot {
            inside.slot = 0;
        }
    }
}

/// Makes a call while nothing is said to be at work, and says it again. Apart, so that no other call has room to keep for it.
#[cold]
#[inline(never)]
pub fn elsewhere<const POOL: bool, R>(again: impl FnOnce() -> R) -> R {
    let thread = directory::find();
    // SAFETY: null or this thread's own state.
    let Some(state) = (unsafe { thread.as_mut() }) else { return again() };
    let before = core::mem::replace(&mut state.inside[usize::from(POOL)], NOTHING);
    let result = again();
    // SAFETY: states stay mapped; after a fork this one is zero, and nobody's.
    let state = unsafe { &mut *thread };
    let inside = &mut state.inside[usize::from(POOL)];
    if inside.slot == 0 && state.owner != 0 {
        *inside = before;
    }
    result
}

const NOTHING: Inside = Inside { slot: 0, ra: 0, nested: 0 };

/// What has become of a function that was at work.
#[derive(PartialEq)]
enum Outer {
    /// The call is made by it.
    AtWork,
    /// It is on another stack, to which the thread comes back.
    Elsewhere,
    /// It was left.
    Gone,
}

/// The function with the calling thread's state, made if need be. `None` if the call is the allocator's own, or nothing can be recorded.
#[inline(always)]
pub fn outermost<const POOL: bool>(entry: &'static Entry, ra: u64) -> Option<Patched<POOL>> {
    if attached::calls_itself(entry, ra) {
        return None;
    }
    let state = directory::find();
    let state = if state.is_null() { record::make_state()? } else { state };
    Some(Patched { entry, state })
}

/// What the function that is said to be at work is to a call from `slot`.
#[cold]
#[inline(never)]
fn outer(state: &mut Thread, place: usize, slot: u64) -> Outer {
    let inside = state.inside[place];
    if !is_near(inside.slot, slot) {
        return Outer::Elsewhere;
    }
    if inside.slot > slot && inside.nested < MOST_NESTED && word(state, inside.slot, slot) == Some(inside.ra) {
        state.inside[place].nested += 1;
        return Outer::AtWork;
    }
    Outer::Gone
}

fn is_near(a: u64, b: u64) -> bool {
    a.abs_diff(b) < REACH
}

/// The word at `addr`, if it is there. `slot` is on the stack in use.
fn word(state: &Thread, addr: u64, slot: u64) -> Option<u64> {
    let known = addr / PAGE == slot / PAGE || (state.unmappings == stack::unmappings() && state.window.holds(addr));
    if !known && !sys::is_readable(addr) {
        return None;
    }
    // SAFETY: mapped, as just found; the word is aligned.
    Some(unsafe { (addr as *const u64).read_volatile() })
}

/// Whether a call comes from a function of the heap at work.
pub fn is_in_heap(caller: Caller) -> bool {
    // SAFETY: null or this thread's own state.
    let Some(state) = (unsafe { directory::find().as_mut() }) else { return false };
    state.inside[0].slot != 0 && outer(state, 0, caller.slot) == Outer::AtWork
}

/// Whether the release of a block is to be recorded, by a function that will be jumped to.
#[inline(always)]
pub fn releases<const POOL: bool>(function: Patched<POOL>, caller: Caller, block: u64) -> bool {
    // SAFETY: this thread's own state.
    let state = unsafe { &mut *function.state };
    let place = usize::from(POOL);
    if state.inside[place].slot != 0 && outer(state, place, caller.slot) == Outer::AtWork {
        return false;
    }
    let last = state.released[place];
    if last.block != block {
        return true;
    }
    // One function that releases called another of them for the same block, or jumped to it.
    let deeper = caller.slot < last.slot && is_near(caller.slot, last.slot);
    let jumped = caller.slot == last.slot && &raw const *function.entry as u64 != last.entry;
    !((deeper || jumped) && word(state, last.slot, caller.slot) == Some(last.ra))
}

/// Notes that a block's release was recorded.
#[inline(always)]
pub fn released<const POOL: bool>(function: Patched<POOL>, caller: Caller, block: u64) {
    // SAFETY: this thread's own state.
    let state = unsafe { &mut *function.state };
    let entry = &raw const *function.entry as u64;
    state.released[usize::from(POOL)] = Released { block, slot: caller.slot, ra: caller.ra(), entry };
}

/// Notes that something else was recorded.
#[inline(always)]
pub fn recorded<const POOL: bool>(function: Patched<POOL>) {
    // SAFETY: this thread's own state, of an outermost call.
    let state = unsafe { &mut *function.state };
    state.released[usize::from(POOL)].block = 0;
}
