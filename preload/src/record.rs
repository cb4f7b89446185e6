//! One function per event: from what a hook knows to records in the ring.
//!
//! Every function here runs between `begin` and `end`, which keep signal handlers out of the state in use.

use core::ffi::c_void;

use hound_common::event::{
    ALLOC_MMAPPED, ALLOC_REALLOC, ALLOC_WIDE, ALLOC_ZEROED, FREE_HAS_STACK, FREE_REALLOC, LOST_NESTED, LOST_NO_STREAM, LOST_SAMPLES_FULL,
    MODE_FULL, MODE_OFF, MODE_SAMPLED, POOL_SHIFT, SLACK_UNKNOWN, size_word, tag,
};
use hound_common::hook::Kind;
use hound_common::ring::{OPTION_FREE_STACKS, OPTION_MAPS, STATE_RECORDING, STATE_SAMPLED};

use crate::modules::{self, Module};
use crate::samples::{self, Held};
use crate::thread::{self, Thread};
use crate::usual::chunk;
use crate::{attached, clock, probes, process, real, walk};

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

/// Marks the state as in use.
#[inline(always)]
pub fn take(state: &mut Thread, caller: Caller) {
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
    if !attached::is_mapped() && !thread::local().is_null() {
        return Some(thread::local()); // made just now, by the child of a fork
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
    let mut state = still_own(state)?;
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
            state.take_over(now);
        }
        if now & STATE_RECORDING == 0 {
            return None;
        }
        take(state, caller);
        return Some(state);
    }
}

/// The calling thread's state as it is now, where it was found when the function was entered: the session may have changed since, or this be
/// the child of a fork.
#[cold]
fn still_own(state: &'static mut Thread) -> Option<&'static mut Thread> {
    let found = thread::current();
    if core::ptr::eq(found, state) {
        return Some(state);
    }
    let found = if found.is_null() { make_state()? } else { found };
    // SAFETY: this thread's own; `state` is not used any more.
    Some(unsafe { &mut *found })
}

/// Whether releasing this block unmaps memory.
#[inline(always)]
pub fn is_mapping(addr: *mut c_void) -> bool {
    real::is_glibc() && chunk(addr as u64).1 & ALLOC_MMAPPED != 0
}

/// What the countdown says of a block at first sight.
pub enum Glance {
    /// It was not asked: everything is recorded, or nothing, or the thread has to take over a change first.
    Open,
    /// The block is not sampled.
    Passed,
    /// It may be: [`reached`] tells. With the ring's state.
    Reached(u64),
}

/// What the countdown says of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// As [`Glance::Open`].
    Open,
    /// As [`Glance::Passed`].
    Passed,
    /// It is sampled, by the ring's state as it was then.
    Sampled(u64),
}

/// Asks the countdown of a thread (null: it has no state yet) for a block that is about to be allocated or was just now. Once for each.
#[inline(always)]
pub fn glance(thread: *mut Thread, size: usize) -> Glance {
    // SAFETY: null or this thread's state, which is never freed.
    let Some(state) = (unsafe { thread.as_mut() }) else { return Glance::Open };
    let now = process::control().state.load(core::sync::atomic::Ordering::Acquire);
    if state.sampling != now {
        Glance::Open
    } else if state.pass(size) {
        Glance::Reached(now)
    } else {
        Glance::Passed
    }
}

/// After [`Glance::Reached`], with what it said.
#[inline(always)]
pub fn reached(thread: *mut Thread, size: usize, state: u64) -> Draw {
    // SAFETY: as in `glance`, which found one.
    let Some(thread) = (unsafe { thread.as_mut() }) else { return Draw::Open };
    if thread.has_reached(size) { Draw::Sampled(state) } else { Draw::Passed }
}

/// [`glance`] and [`reached`].
#[inline(always)]
pub fn draw(thread: *mut Thread, size: usize) -> Draw {
    match glance(thread, size) {
        Glance::Open => Draw::Open,
        Glance::Passed => Draw::Passed,
        Glance::Reached(state) => reached(thread, size, state),
    }
}

/// Whether the release of a block is of no interest: samples are taken, and it was not one.
#[inline(always)]
pub fn is_passed_over(caller: Caller, addr: u64) -> bool {
    is_sampling() && !samples::may_hold(addr) && !process::is_loader(caller.ra())
}

/// Whether samples are taken.
#[inline(always)]
pub fn is_sampling() -> bool {
    process::control().state.load(core::sync::atomic::Ordering::Acquire) & STATE_SAMPLED != 0
}

/// Whether a block is to be recorded, by what was drawn for it. `thread` is the state in use, of whatever level.
#[inline(always)]
fn is_due(thread: &mut Thread, draw: Draw, size: usize) -> bool {
    match draw {
        _ if thread.interval == 0 => true,
        // Drawn by another interval than the one that holds by now: a moment lies between.
        Draw::Sampled(state) if state != thread.state => thread.pass(size) && thread.has_reached(size),
        Draw::Sampled(_) => true,
        Draw::Passed => false,
        Draw::Open => thread.pass(size) && thread.has_reached(size),
    }
}

/// A block was allocated, for which this was drawn.
#[inline(always)]
pub fn alloc(caller: Caller, function: impl Function, addr: *mut c_void, size: usize, draw: Draw) {
    if addr.is_null() || draw == Draw::Passed || function.is_inside(caller) {
        return;
    }
    if let Some(thread) = begin(function, caller) {
        if is_due(thread, draw, size) {
            let now = thread.now();
            new_block(thread, caller, function, addr as u64, size as u64, now, None);
        }
        end(thread);
    }
}

/// As [`alloc`], apart, where it is rare.
#[cold]
#[inline(never)]
pub fn sampled(caller: Caller, function: impl Function, addr: *mut c_void, size: usize, draw: Draw) {
    alloc(caller, function, addr, size, draw);
}

/// Records a block that is due.
#[inline(always)]
fn new_block(thread: &mut Thread, caller: Caller, function: impl Function, addr: u64, size: u64, now: u64, previous: Option<u64>) {
    if thread.interval == thread.rate && thread.interval == 0 {
        write_alloc(thread, caller, function, addr, size, now, previous);
    } else {
        new_sample(thread, caller, function, addr, size, now, previous);
    }
}

/// As [`new_block`], where samples are taken or were until now.
#[cold]
#[inline(never)]
fn new_sample(thread: &mut Thread, caller: Caller, function: impl Function, addr: u64, size: u64, now: u64, previous: Option<u64>) {
    let interval = thread.interval;
    if interval != 0 {
        if !samples::insert(addr, function.pool()) {
            process::lose(LOST_SAMPLES_FULL);
            return;
        }
        // Releases that are passed over are not asked whether they unmap anything.
        thread.window.doubt();
    }
    let is_written = write_rate(thread, now) && write_alloc(thread, caller, function, addr, size, now, previous);
    if interval != 0 {
        if is_written {
            probes::allocated(addr, size, interval);
        } else {
            samples::take(addr, function.pool());
        }
    }
}

/// Writes what the thread's interval is, unless its stream says so already.
fn write_rate(thread: &mut Thread, now: u64) -> bool {
    if thread.rate == thread.interval {
        return true;
    }
    if !thread.producer.reserve(2 + 2) {
        return false;
    }
    thread.producer.put_header(now, tag::RATE, 2, 0, 0);
    thread.producer.put(thread.interval);
    thread.producer.commit();
    thread.rate = thread.interval;
    thread.be_usual();
    true
}

#[inline(always)]
fn write_alloc(
    thread: &mut Thread,
    caller: Caller,
    function: impl Function,
    addr: u64,
    size: u64,
    now: u64,
    previous: Option<u64>,
) -> bool {
    thread.event_time = now;
    if !walk::update(thread, caller.slot, caller.bp) || !thread.producer.reserve(2 + 5) {
        thread.path.clear();
        return false;
    }
    put_alloc(thread, function, addr, size, now, previous);
    true
}

/// The flag of a block that its function has filled with zeros.
#[inline(always)]
pub fn zeroed(kind: u8) -> u8 {
    if kind == Kind::Calloc as u8 { ALLOC_ZEROED } else { 0 }
}

/// Writes an `ALLOC`. There must be room for 7 words.
#[inline(always)]
pub fn put_alloc(thread: &mut Thread, function: impl Function, addr: u64, size: u64, now: u64, previous: Option<u64>) {
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
    flags |= zeroed(function.kind()) | function.pool() << POOL_SHIFT;
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
        let was_sampled = samples::take(addr as u64, function.pool());
        if was_sampled || thread.interval == 0 {
            let now = thread.now();
            write_free(thread, caller, function, addr as u64, now, 0);
        }
        if was_sampled {
            probes::released(addr as u64);
        }
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

/// What is known of a block that is resized, from before the real call.
pub struct Resize {
    before: u64,
    draw: Draw,
    held: Option<Held>,
}

impl Resize {
    /// A block (null: none yet) of a pool's or the heap's is about to be resized.
    #[inline(always)]
    pub fn begin(draw: Draw, old: *mut c_void, pool: u8) -> Self {
        let is_recording = process::control().state.load(core::sync::atomic::Ordering::Acquire) & STATE_RECORDING != 0;
        let held = if is_recording { samples::hold(old as u64, pool) } else { None };
        let before = if draw == Draw::Passed && held.is_none() { 0 } else { clock::now() };
        Self { before, draw, held }
    }

    /// Whether nothing is to be recorded of it, whatever comes.
    #[inline(always)]
    pub fn is_passed_over(&self) -> bool {
        self.draw == Draw::Passed && self.held.is_none()
    }

    /// Nothing was done.
    #[inline(always)]
    pub fn failed(self) {
        if let Some(held) = self.held {
            held.put_back();
        }
    }
}

/// A block was moved or resized from `old` to `new`, or released (`new` is null).
#[inline(always)]
pub fn realloc(caller: Caller, function: impl Function, resize: Resize, old: *mut c_void, new: *mut c_void, size: usize) {
    if resize.is_passed_over() {
        return;
    }
    let Resize { before, draw, held } = resize;
    let was_sampled = held.is_some();
    if let Some(held) = held {
        held.let_go();
    }
    if function.is_inside(caller) {
        return;
    }
    if let Some(thread) = begin(function, caller) {
        let now = thread.now();
        let is_gone = !old.is_null() && (was_sampled || thread.interval == 0);
        let is_due = !new.is_null() && is_due(thread, draw, size);
        if is_gone {
            // Two halves only where both are told.
            let half = if is_due { FREE_REALLOC } else { 0 };
            write_free(thread, caller, function, old as u64, before, half);
            if was_sampled {
                probes::released(old as u64);
            }
        }
        if is_due {
            new_block(thread, caller, function, new as u64, size as u64, now, is_gone.then_some(old as u64));
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
        let now = thread.now();
        if thread.producer.reserve(2 + 2) {
            thread.producer.put_header(now, tag::MARKER, 2, 0, 0);
            thread.producer.put(u64::from(value));
            thread.producer.commit();
        }
        end(thread);
    }
}

/// Switches recording on or off, and says so where the events are: no look from outside sees all of many changes.
///
/// A thread at work may still record what it began before the end, and no thread anything from before the beginning: the stamps are taken so
/// that nothing that happens while recording is on lies outside of them.
pub fn switch(on: bool) {
    let control = process::control();
    let token = 0_u64;
    // As a hook's return address is for its slot.
    let caller = Caller { slot: core::hint::black_box(&raw const token) as u64, bp: 0 };
    let mut now = clock::now();
    if on {
        control.change(true);
    }
    let thread = begin(Kind::Malloc, caller);
    if !on {
        control.change(false);
        now = clock::now();
    }
    let Some(thread) = thread else { return };
    let sampled = control.interval.load(core::sync::atomic::Ordering::Relaxed) != 0;
    let mode = match on {
        true if sampled => MODE_SAMPLED,
        true => MODE_FULL,
        false => MODE_OFF,
    };
    if thread.producer.reserve(2 + 2) {
        thread.producer.put_header(now, tag::MODE, 2, mode, 0);
        thread.producer.put(0);
        thread.producer.commit();
    }
    end(thread);
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
        process::control().renew();
    }
    end(thread);
}
