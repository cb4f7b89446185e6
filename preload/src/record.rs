//! One function per event: from what a hook knows to records in the ring.
//!
//! Every function here runs between `begin` and `end`, which keep signal handlers out of the state in use.

use core::ffi::c_void;

use hound_common::event::{
    ALLOC_MMAPPED, ALLOC_NON_MAIN_ARENA, ALLOC_REALLOC, ALLOC_WIDE, ALLOC_ZEROED, FREE_HAS_STACK, FREE_REALLOC, LOST_NESTED,
    LOST_NO_STREAM, POOL_SHIFT, SLACK_UNKNOWN, size_word, tag,
};
use hound_common::hook::Kind;
use hound_common::ring::{OPTION_FREE_STACKS, OPTION_MAPS, STATE_RECORDING};

use crate::modules::{self, Module};
use crate::thread::{self, Thread};
use crate::{attached, clock, directory, process, real, walk};

/// The function that an event is of: one that this library exports (a [`Kind`]), or one that hound has patched.
pub trait Function: Copy {
    /// Number of its kind.
    fn kind(self) -> u8;
    /// Number of its pool, 0 if it is of the heap.
    fn pool(self) -> u8;
    /// Whether a call is the allocator calling itself.
    fn is_inside(self, caller: Caller) -> bool;
    /// What is known of a block it returned just now: (usable bytes, `ALLOC_…` flags).
    fn usable(self, addr: u64) -> Option<(u64, u8)>;
    /// The calling thread's state, null before its first event.
    fn thread(self) -> *mut Thread;
}

impl Function for Kind {
    #[inline(always)]
    fn kind(self) -> u8 {
        self as u8
    }

    #[inline(always)]
    fn pool(self) -> u8 {
        0
    }

    #[inline(always)]
    fn is_inside(self, caller: Caller) -> bool {
        real::is_allocator_inside(caller.ra())
    }

    #[inline(always)]
    fn usable(self, addr: u64) -> Option<(u64, u8)> {
        if real::is_glibc() {
            return Some(chunk(addr));
        }
        let malloc_usable_size = real::malloc_usable_size::get()?;
        // SAFETY: the block was returned by the same allocator just now.
        Some((unsafe { malloc_usable_size(addr as *mut c_void) } as u64, 0))
    }

    #[inline(always)]
    fn thread(self) -> *mut Thread {
        thread::local()
    }
}

/// Where a hook was called from.
#[derive(Clone, Copy)]
pub struct Caller {
    /// Address of the return address.
    pub slot: u64,
    /// bp at the call.
    pub bp: u64,
}

impl Caller {
    /// The return address.
    #[inline(always)]
    pub fn ra(self) -> u64 {
        // SAFETY: the slot of the running hook's own return address.
        unsafe { (self.slot as *const u64).read_volatile() }
    }
}

/// The state to record the current event with, marked busy; `None` if nothing is to be recorded.
#[inline(always)]
pub fn begin(function: impl Function, caller: Caller) -> Option<&'static mut Thread> {
    let thread = function.thread();
    // SAFETY: null or this thread's state, which is never freed. Signal handlers that interrupt its use find it busy and leave it alone.
    let Some(state) = (unsafe { thread.as_mut() }) else { return first(caller) };
    if state.state == process::control().state.load(core::sync::atomic::Ordering::Acquire) && state.busy == 0 {
        if state.state & STATE_RECORDING == 0 {
            return None;
        }
        take(state, caller);
        return Some(state);
    }
    unusual(state, caller)
}

#[inline(always)]
fn take(state: &mut Thread, caller: Caller) {
    state.busy_ra = caller.ra();
    state.busy = caller.slot;
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst); // a handler on this thread sees busy before any change
}

/// Whether the hook that marked the state busy is gone: it was left by longjmp. While a hook runs, its return address stays in its slot
/// and no other call has that slot; so this is never said of one that is only interrupted, on whatever stack the handler runs.
fn was_left(state: &mut Thread, caller: Caller) -> bool {
    let (busy, busy_ra) = (state.busy, state.busy_ra);
    caller.slot == busy || (state.window.holds(busy) && state.window.read(busy) != Some(busy_ra))
}

/// The event is written (or lost).
#[inline(always)]
pub fn end(thread: &mut Thread) {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    thread.busy = 0;
}

#[cold]
#[inline(never)]
fn first(caller: Caller) -> Option<&'static mut Thread> {
    // SAFETY: made just now for this thread.
    unusual(unsafe { &mut *make_state()? }, caller)
}

/// Makes the calling thread's state. `None` if there is nothing to record, or no room for one more thread.
#[cold]
#[inline(never)]
pub fn make_state() -> Option<*mut Thread> {
    if !process::ready() {
        return None;
    }
    let state = thread::enter();
    if state.is_none() {
        process::lose(LOST_NO_STREAM);
    }
    state.map(|state| &raw mut *state)
}

#[cold]
#[inline(never)]
fn unusual(state: &'static mut Thread, caller: Caller) -> Option<&'static mut Thread> {
    if !process::ready() {
        return None;
    }
    let mut state = if attached::is_mapped() { still_own(state)? } else { state };
    loop {
        if state.busy != 0 {
            if !was_left(state, caller) {
                match state.nested() {
                    Some(next) => state = next,
                    None => {
                        process::lose(LOST_NESTED);
                        return None;
                    }
                }
                continue;
            }
            state.busy = 0;
            state.producer.rewind();
            state.path.clear();
        }
        let now = process::control().state.load(core::sync::atomic::Ordering::Acquire);
        if state.state != now {
            // Recording was switched, or a module is gone: what is recorded of the stack may not hold any more.
            state.state = now;
            state.path.clear();
        }
        if now & STATE_RECORDING == 0 {
            return None;
        }
        take(state, caller);
        return Some(state);
    }
}

/// The calling thread's state as it is now, where it was found when the function was entered: the session may have changed since.
#[cold]
fn still_own(state: &'static mut Thread) -> Option<&'static mut Thread> {
    let found = directory::find();
    if core::ptr::eq(found, state) {
        return Some(state);
    }
    let found = if found.is_null() { make_state()? } else { found };
    // SAFETY: this thread's own; `state` is not used any more.
    Some(unsafe { &mut *found })
}

/// What glibc's chunk header says of a block: (usable bytes, `ALLOC_…` flags).
#[inline(always)]
pub fn chunk(addr: u64) -> (u64, u8) {
    const IS_MMAPPED: u64 = 2;
    const NON_MAIN_ARENA: u64 = 4;
    // SAFETY: glibc keeps a block's size and flags in the word before it (malloc/malloc.c, struct malloc_chunk).
    let head = unsafe { ((addr - 8) as *const u64).read() };
    let overhead = if head & IS_MMAPPED != 0 { 16 } else { 8 };
    let mmapped = if head & IS_MMAPPED != 0 { ALLOC_MMAPPED } else { 0 };
    let arena = if head & NON_MAIN_ARENA != 0 { ALLOC_NON_MAIN_ARENA } else { 0 };
    ((head & !7).wrapping_sub(overhead), mmapped | arena)
}

/// Whether releasing this block unmaps memory.
#[inline(always)]
pub fn is_mapping(addr: *mut c_void) -> bool {
    real::is_glibc() && chunk(addr as u64).1 & ALLOC_MMAPPED != 0
}

/// A block was allocated.
#[inline(always)]
pub fn alloc(caller: Caller, function: impl Function, addr: *mut c_void, size: usize) {
    if addr.is_null() || function.is_inside(caller) {
        return;
    }
    if let Some(thread) = begin(function, caller) {
        let now = thread_now(thread);
        write_alloc(thread, caller, function, addr as u64, size as u64, now, None);
        end(thread);
    }
}

#[inline(always)]
fn thread_now(thread: &mut Thread) -> u64 {
    if thread.timestamp_override == 0 { clock::now() } else { core::mem::take(&mut thread.timestamp_override) }
}

#[inline(always)]
fn write_alloc(thread: &mut Thread, caller: Caller, function: impl Function, addr: u64, size: u64, now: u64, previous: Option<u64>) {
    thread.event_time = now;
    if !walk::update(thread, caller.slot, caller.bp) || !thread.producer.reserve(2 + 5) {
        thread.path.clear();
        return;
    }
    let (usable, chunk_flags) = function.usable(addr).unwrap_or((u64::MAX, 0));
    let slack = usable.wrapping_sub(size);
    let known = usable != u64::MAX;
    let wide = known && slack >= u64::from(SLACK_UNKNOWN);
    let mut flags = chunk_flags;
    let mut words = 3;
    if wide {
        flags |= ALLOC_WIDE;
        words += 1;
    }
    if previous.is_some() {
        flags |= ALLOC_REALLOC;
        words += 1;
    }
    if function.kind() == Kind::Calloc as u8 {
        flags |= ALLOC_ZEROED;
    }
    flags |= function.pool() << POOL_SHIFT;
    let ring = &mut thread.producer;
    ring.put_header(now, tag::ALLOC, words, function.kind(), flags);
    ring.put(addr);
    ring.put(size_word(size, if known && !wide { slack as u16 } else { SLACK_UNKNOWN }));
    if wide {
        ring.put(usable);
    }
    if let Some(previous) = previous {
        ring.put(previous);
    }
    ring.commit();
}

/// A block is about to be released.
#[inline(always)]
pub fn free(caller: Caller, function: impl Function, addr: *mut c_void) {
    if function.is_inside(caller) {
        return;
    }
    if process::is_loader(caller.ra()) {
        loader_freed(function, caller);
    }
    if let Some(thread) = begin(function, caller) {
        let now = thread_now(thread);
        write_free(thread, caller, function, addr as u64, now, 0);
        end(thread);
    }
}

#[inline(always)]
fn write_free(thread: &mut Thread, caller: Caller, function: impl Function, addr: u64, now: u64, flags: u8) {
    let mut flags = flags | function.pool() << POOL_SHIFT;
    if process::options() & OPTION_FREE_STACKS != 0 {
        thread.event_time = now;
        if !walk::update(thread, caller.slot, caller.bp) {
            thread.path.clear();
            return;
        }
        flags |= FREE_HAS_STACK;
    }
    if !thread.producer.reserve(2 + 2) {
        thread.path.clear();
        return;
    }
    thread.producer.put_header(now, tag::FREE, 2, function.kind(), flags);
    thread.producer.put(addr);
    thread.producer.commit();
}

/// A block was moved or resized from `old` (released at `before`) to `new`.
#[inline(always)]
pub fn realloc(caller: Caller, function: impl Function, before: u64, old: *mut c_void, new: *mut c_void, size: usize) {
    if function.is_inside(caller) {
        return;
    }
    if let Some(thread) = begin(function, caller) {
        let now = thread_now(thread);
        if old.is_null() {
            write_alloc(thread, caller, function, new as u64, size as u64, now, None);
        } else if new.is_null() {
            write_free(thread, caller, function, old as u64, before, 0);
        } else {
            write_free(thread, caller, function, old as u64, before, FREE_REALLOC);
            write_alloc(thread, caller, function, new as u64, size as u64, now, Some(old as u64));
        }
        end(thread);
    }
}

/// The address space was changed: `words` are the record's.
pub fn map(caller: Caller, record: u8, function: impl Function, now: u64, words: &[u64]) {
    if process::options() & OPTION_MAPS == 0 {
        return;
    }
    if let Some(thread) = begin(function, caller) {
        thread.event_time = now;
        if walk::update(thread, caller.slot, caller.bp) && thread.producer.reserve(2 + 1 + words.len()) {
            thread.producer.put_header(now, record, words.len() as u8 + 1, function.kind(), 0);
            for word in words {
                thread.producer.put(*word);
            }
            thread.producer.commit();
        } else {
            thread.path.clear();
        }
        end(thread);
    }
}

/// The program set a marker.
pub fn marker(caller: Caller, value: u32) {
    if let Some(thread) = begin(Kind::Malloc, caller) {
        let now = thread_now(thread);
        if thread.producer.reserve(2 + 2) {
            thread.producer.put_header(now, tag::MARKER, 2, 0, 0);
            thread.producer.put(u64::from(value));
            thread.producer.commit();
        }
        end(thread);
    }
}

/// Something happened to the process as a whole: `[pid][0]`.
pub fn process(caller: Caller, function: impl Function, record: u8, what: u8, now: u64) {
    if let Some(thread) = begin(function, caller) {
        if thread.producer.reserve(2 + 3) {
            thread.producer.put_header(now, record, 3, what, 0);
            let pid = process::control().target_pid.load(core::sync::atomic::Ordering::Relaxed);
            thread.producer.put(u64::from(pid));
            thread.producer.put(0);
            thread.producer.commit();
        }
        end(thread);
    }
}

/// A module was met for the first time. Runs inside another event of the thread, before its record.
/// False if there was no room for the record.
pub fn module(thread: &mut Thread, module: &Module) -> bool {
    let (bias, id, path) = modules::describe(module);
    // One record holds 255 words; a path that is longer is cut at its front by hound, which knows the maps.
    let id = id.get(..id.len().min(64)).unwrap_or(&[]);
    let path = path.get(..path.len().min(1800)).unwrap_or(&[]);
    let words = 6 + id.len().div_ceil(8) + path.len().div_ceil(8);
    if !thread.producer.reserve(2 + words) {
        return false;
    }
    let now = thread.event_time;
    thread.producer.put_header(now, tag::MODULE, words as u8, 0, 0);
    for word in [bias, module.start, module.end, module.eh_frame_hdr, id.len() as u64 | (path.len() as u64) << 32] {
        thread.producer.put(word);
    }
    put_bytes(thread, id);
    put_bytes(thread, path);
    thread.producer.commit();
    true
}

fn put_bytes(thread: &mut Thread, bytes: &[u8]) {
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        for (target, byte) in word.iter_mut().zip(chunk) {
            *target = *byte;
        }
        thread.producer.put(u64::from_le_bytes(word));
    }
}

/// The loader freed something: it does so when a module is unloaded, after unmapping it and before any other can be loaded (it holds its
/// lock). What was known of modules that are gone is forgotten here.
#[cold]
#[inline(never)]
fn loader_freed(function: impl Function, caller: Caller) {
    let Some(thread) = begin(function, caller) else { return };
    let mut any = false;
    modules::forget_unloaded(|module| {
        any = true;
        crate::rows::forget(module.start, module.end);
        if thread.producer.reserve(2 + 3) {
            thread.producer.put_header(clock::now(), tag::MODULE_GONE, 3, 0, 0);
            thread.producer.put(module.start);
            thread.producer.put(module.end);
            thread.producer.commit();
        }
    });
    if any {
        // Every thread's recorded path may lead through the module: all look closer at their next event.
        process::control().change(true);
    }
    end(thread);
}
