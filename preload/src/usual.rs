//! The way that most events of the C library's functions take: everything is recorded, the clock is the TSC, and `malloc` is glibc's. Nothing
//! is done before all of that is known; what is not as usual goes the general way (`record`).
//!
//! It is a way of its own for what it leaves out: a release then calls nothing and needs no register kept, and goes on to the real function
//! by a jump.

use core::ffi::c_void;
use core::sync::atomic::Ordering;

use hound_common::event::{ALLOC_MMAPPED, ALLOC_NON_MAIN_ARENA, SLACK_UNKNOWN, size_word, tag};
use hound_common::hook::Kind;
use hound_common::ring::OPTION_FREE_STACKS;

use crate::record::{self, Caller};
use crate::thread::{self, Thread};
use crate::{clock, process, real, samples, walk};

/// In the word before a block: it has a mapping of its own (malloc/malloc.c, struct `malloc_chunk`).
const IS_MMAPPED: u64 = 2;
/// Likewise: it is not of the main arena.
const NON_MAIN_ARENA: u64 = 4;
const _: () = assert!(ALLOC_MMAPPED as u64 == IS_MMAPPED << 1 && ALLOC_NON_MAIN_ARENA as u64 == NON_MAIN_ARENA << 1, "flags by one shift");

/// The calling thread's state, if all is as usual and it is not in use.
#[inline(always)]
fn state() -> Option<&'static mut Thread> {
    // SAFETY: null or this thread's state, which is never freed; no other reference to it is in use unless it is busy, which is asked first.
    let thread = unsafe { thread::local().as_mut() }?;
    let is_usual = thread.is_usual_in(process::control().state.load(Ordering::Acquire)) && thread.busy == 0 && real::is_glibc();
    is_usual.then_some(thread)
}

/// What glibc's chunk header says of a block: (usable bytes, `ALLOC_…` flags).
#[inline(always)]
pub fn chunk(addr: u64) -> (u64, u8) {
    // SAFETY: glibc keeps a block's size and flags in the word before it.
    let head = unsafe { ((addr - 8) as *const u64).read() };
    let overhead = 8 + ((head & IS_MMAPPED) << 2);
    ((head & !7).wrapping_sub(overhead), ((head & (IS_MMAPPED | NON_MAIN_ARENA)) << 1) as u8)
}

/// Records a block that was allocated. False if nothing was done.
#[inline(always)]
pub fn alloc(caller: Caller, kind: Kind, block: *mut c_void, size: usize) -> bool {
    if block.is_null() {
        return false;
    }
    let Some(thread) = state() else { return false };
    record::take(thread, caller);
    let now = clock::ticks();
    thread.event_time = now;
    let (addr, size) = (block as u64, size as u64);
    let (usable, flags) = chunk(addr);
    let slack = usable.wrapping_sub(size);
    if !walk::update(thread, caller.slot, caller.bp) || !thread.producer.reserve(2 + 5) {
        thread.path.clear();
    } else if slack < u64::from(SLACK_UNKNOWN) {
        let flags = flags | record::zeroed(kind as u8);
        thread.producer.put_event(now, tag::ALLOC, kind as u8, flags, [addr, size_word(size, slack as u16)]);
    } else {
        record::put_alloc(thread, kind, addr, size, now, None);
    }
    record::end(thread);
    true
}

/// Records that a block is about to be released. False if nothing was done.
#[inline(always)]
pub fn free(caller: Caller, kind: Kind, block: *mut c_void) -> bool {
    if block.is_null() || process::options() & OPTION_FREE_STACKS != 0 || samples::are_any() || process::is_loader(caller.ra()) {
        return false;
    }
    let Some(thread) = state() else { return false };
    let now = clock::ticks();
    let is_mapping = chunk(block as u64).1 & ALLOC_MMAPPED != 0;
    if is_mapping || !thread.producer.has_room(2 + 2) || !thread.producer.is_soon(now) {
        return false;
    }
    record::take(thread, caller);
    thread.producer.put_event(now, tag::FREE, kind as u8, 0, [block as u64]);
    record::end(thread);
    true
}
