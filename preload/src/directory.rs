//! Which state belongs to which thread, where there is no thread-local storage: in a target that hound has mapped the library into.
//!
//! An open-addressed table, keyed by the thread pointer. A thread pointer is used anew when its thread is gone (C libraries keep the
//! stacks with the control blocks in them), so an entry alone means nothing: it holds only if the state was made for the kernel thread id
//! that the control block names now, in the session that is on now.
//!
//! An entry is written by the thread whose pointer is its key, or by one that takes over an entry that cannot hold any more. Taking over
//! begins with a compare-and-swap of the state, so two never write to one entry; a signal handler that comes in between puts a second one.

use core::sync::atomic::{AtomicU64, Ordering};

use hound_common::attach::THREAD_SLOTS;
use hound_common::ring::STREAM_FREE;

use crate::attached::attachment;
use crate::sys;
use crate::thread::{self, Thread};

/// How far from its place an entry may lie. At most half of the entries can hold at once, so this many in a row never do in practice.
const PROBES: usize = 64;
/// `state` of an entry that is being taken over.
const CLAIMED: u64 = 1;

/// An entry of the table, which is laid out for one look-up to cost little: first all states, then all keys.
struct Slot {
    /// A thread pointer, 0 = never used.
    key: &'static AtomicU64,
    /// Its thread's state, 0 = not written yet, [`CLAIMED`].
    state: &'static AtomicU64,
}

#[inline(always)]
fn state_at(position: usize) -> &'static AtomicU64 {
    let states = attachment().threads.load(Ordering::Relaxed) as *const AtomicU64;
    // SAFETY: hound has mapped so many before it patched anything.
    unsafe { &*states.wrapping_add(position % THREAD_SLOTS) }
}

fn slot(position: usize) -> Slot {
    let state = state_at(position);
    // SAFETY: as many words follow the states.
    let key = unsafe { &*(&raw const *state).wrapping_add(THREAD_SLOTS) };
    Slot { key, state }
}

/// Spreads thread pointers over the table.
pub const MULTIPLIER: u32 = 0x9e37_79b1;

/// Multiplied in 32 bits: thread pointers differ in their lower half unless they are exactly 4 GiB apart.
#[inline(always)]
fn place(pointer: u64) -> usize {
    ((pointer as u32).wrapping_mul(MULTIPLIER) >> (u32::BITS - THREAD_SLOTS.trailing_zeros())) as usize
}

/// What a state must have as its owner to be that of the calling thread, whose thread pointer this is.
#[inline(always)]
pub fn owner(pointer: u64) -> u64 {
    let attachment = attachment();
    let tid = (pointer + attachment.tid_offset.load(Ordering::Relaxed)) as *const u32;
    // SAFETY: hound has found out that the C library keeps the thread id there.
    let tid = unsafe { tid.read_volatile() };
    u64::from(tid) | attachment.session.load(Ordering::Relaxed) << 32
}

/// Reads of a state that may be another thread's, or nobody's.
fn read(state: u64, field: impl FnOnce(*const Thread) -> *const u64) -> u64 {
    // SAFETY: states lie in memory that is reserved as a whole; entries hold only addresses of states.
    unsafe { field(state as *const Thread).read_volatile() }
}

fn owner_of(state: u64) -> u64 {
    read(state, |state| state.cast::<u8>().wrapping_add(core::mem::offset_of!(Thread, owner)).cast())
}

fn pointer_of(state: u64) -> u64 {
    read(state, |state| state.cast::<u8>().wrapping_add(core::mem::offset_of!(Thread, pointer)).cast())
}

/// The calling thread's state, null if it has none (yet, or in this session).
///
/// Of the first entry the key is not asked: the state's owner, an id that no other thread has while this one lives, says more.
#[inline(always)]
pub fn find() -> *mut Thread {
    let found = find_first();
    if found.is_null() { find_further(sys::thread_pointer()) } else { found }
}

/// As [`find`], without looking further than the first place.
#[inline(always)]
pub fn find_first() -> *mut Thread {
    let pointer = sys::thread_pointer();
    let state = state_at(place(pointer)).load(Ordering::Relaxed);
    let is_ours = state > CLAIMED && owner_of(state) == owner(pointer);
    if is_ours { state as *mut Thread } else { core::ptr::null_mut() }
}

#[cold]
#[inline(never)]
fn find_further(pointer: u64) -> *mut Thread {
    let owner = owner(pointer);
    for probe in 0..PROBES {
        let slot = slot(place(pointer).wrapping_add(probe));
        let key = slot.key.load(Ordering::Acquire);
        let state = slot.state.load(Ordering::Acquire);
        if key == pointer && state > CLAIMED && owner_of(state) == owner {
            return state as *mut Thread;
        }
        if key == 0 {
            break;
        }
    }
    core::ptr::null_mut()
}

/// Makes `state` the calling thread's. False if no entry is left for it.
#[cold]
pub fn put(state: *mut Thread) -> bool {
    let pointer = sys::thread_pointer();
    for probe in 0..PROBES {
        let slot = slot(place(pointer).wrapping_add(probe));
        let key = slot.key.load(Ordering::Acquire);
        if key == 0 && slot.key.compare_exchange(0, pointer, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            slot.state.store(state as u64, Ordering::Release);
            return true;
        }
        let old = slot.state.load(Ordering::Acquire);
        // A key of our own that has a state: left by a thread that had this pointer before, or by us in another session.
        if old > CLAIMED
            && (key == pointer || is_stale(key, old))
            && slot.state.compare_exchange(old, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            slot.key.store(pointer, Ordering::Relaxed);
            slot.state.store(state as u64, Ordering::Release);
            return true;
        }
    }
    false
}

/// Whether an entry cannot hold any more: its state is another thread's now, or nobody's, or of an earlier session.
fn is_stale(key: u64, state: u64) -> bool {
    let session = attachment().session.load(Ordering::Relaxed) as u32;
    let is_free = thread::stream_of(state as *const Thread).is_none_or(|stream| stream.state.load(Ordering::Acquire) == STREAM_FREE);
    is_free || pointer_of(state) != key || (owner_of(state) >> 32) as u32 != session
}
