//! Per-thread state, found through one word of thread-local storage.
//!
//! The state lies in memory that a fork wipes, and holds a copy of the ring's state word: one comparison at each event tells whether all
//! is as it was. A signal handler that interrupts a hook at work finds the state busy and records into the next level's stream.

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hound_common::attach;
use hound_common::ring::{Counter, STATE_RECORDING, STATE_SAMPLED, STREAM_FREE, STREAM_OWNED, STREAMS, Stream};
use hound_common::sampling;

use crate::nesting::{Inside, Released};
use crate::path::Path;
use crate::producer::{Patience, Producer, may_wait};
use crate::stack::Window;
use crate::{attached, clock, directory, process, sys};

/// Levels of nested signal handlers that are recorded; deeper ones are counted as lost.
pub const LEVELS: u32 = 4;

/// What a thread (or one nesting level of its signal handlers) needs to record.
#[repr(C)]
pub struct Thread {
    /// Copy of the ring's state word; 0 before the first use and after a fork.
    pub state: u64,
    /// Stack pointer at the entry of the hook that is at work, 0 if none is.
    pub busy: u64,
    /// The return address in the slot that `busy` names: gone from there when the hook is.
    pub busy_ra: u64,
    /// The complement of the ring's state word while all is as `usual` has it, else 0 or of one that the ring's is not.
    usual: u64,
    /// The ring's state word while the thread samples by it; else one that the ring's is not, or 0.
    pub sampling: u64,
    /// Bytes to allocate up to the next sample point.
    pub countdown: i64,
    /// Where records go.
    pub producer: Producer,
    /// The part of the stack known to be mapped.
    pub window: Window,
    /// The verified shadow stack.
    pub path: Path,
    /// Mean bytes between sample points as `state` has it, 0 = everything is recorded.
    pub interval: u64,
    /// What the stream's records say of it so far.
    pub rate: u64,
    /// What its gaps are drawn from.
    random: u64,
    /// Time of the event at work.
    pub event_time: u64,
    /// Where a panic leads back to; see `guard`.
    pub anchor: u64,
    next: *mut Thread,
    level: u32,
    /// How many unmappings the thread has taken note of; see `stack`.
    pub unmappings: u32,
    /// A time stamp the program asked for the next event; 0 = none.
    timestamp_override: u64,
    /// Where hound has mapped the library: the thread pointer of the state's thread, see `directory`.
    pub pointer: u64,
    /// Likewise: the thread's kernel id, and above it the session the state was made in.
    pub owner: u64,
    /// Likewise: the patched functions at work, by `nesting::Nest`.
    pub inside: [Inside; 2],
    /// Likewise: the block released last, if nothing was recorded since.
    pub released: [Released; 2],
}

/// A thread's state has a page of its own; what `Thread` leaves of it holds the first frames of its path.
pub const THREAD_BYTES: usize = attach::STATE_BYTES;
const _: () = assert!(size_of::<Thread>() <= 512);
const _: () = assert!(offset_of!(Thread, busy) == attach::STATE_BUSY && offset_of!(Thread, busy_ra) == attach::STATE_BUSY_RA);

// One word of thread-local storage at a fixed distance from the thread pointer (initial-exec): reading it never calls `__tls_get_addr`,
// which may call malloc.
global_asm!(
    ".section .tbss.hound_thread, \"awT\", @nobits",
    ".p2align 3",
    ".hidden hound_thread",
    ".globl hound_thread",
    ".type hound_thread, @object",
    ".size hound_thread, 8",
    "hound_thread:",
    ".zero 8",
    ".text",
);

/// The calling thread's state, null before its first event.
pub fn current() -> *mut Thread {
    if attached::is_mapped() { directory::find() } else { local() }
}

/// The calling thread's state in a library that the loader has loaded, null before its first event.
#[inline(always)]
pub fn local() -> *mut Thread {
    let thread: *mut Thread;
    // SAFETY: reads our own word of thread-local storage, through its offset in the global offset table.
    unsafe {
        asm!("mov {0}, qword ptr [rip + hound_thread@GOTTPOFF]", "mov {0}, qword ptr fs:[{0}]", out(reg) thread,
            options(nostack, readonly, preserves_flags));
    }
    thread
}

/// The thread pointer of the thread that a fork has made the first of this process, and its id: where the fork was a system call of the program's
/// own, its C library has the parent's.
static FIRST_POINTER: AtomicU64 = AtomicU64::new(0);
static FIRST_TID: AtomicU32 = AtomicU32::new(0);

/// The calling thread is the first one of a fork's child.
pub fn be_first(pid: u32) {
    FIRST_TID.store(pid, Ordering::Relaxed);
    FIRST_POINTER.store(sys::thread_pointer(), Ordering::Relaxed);
}

/// The same, and it has no state any more: that was wiped.
pub fn leave(pid: u32) {
    be_first(pid);
    let _ = set_current(core::ptr::null_mut());
}

/// False if there is no place left to note it.
fn set_current(thread: *mut Thread) -> bool {
    if attached::is_mapped() {
        return directory::put(thread);
    }
    // SAFETY: writes our own word of thread-local storage.
    unsafe {
        asm!("mov {0}, qword ptr [rip + hound_thread@GOTTPOFF]", "mov qword ptr fs:[{0}], {1}", out(reg) _, in(reg) thread,
            options(nostack, preserves_flags));
    }
    true
}

/// The anchor of the protected call that the thread is in, 0 if none: for the panic handler.
pub fn current_anchor() -> u64 {
    let mut thread = current();
    let mut anchor = 0;
    // The deepest level in use is the one that panicked.
    // SAFETY: states are never freed while their thread lives.
    while let Some(state) = unsafe { thread.as_ref() } {
        if state.anchor != 0 {
            anchor = state.anchor;
        }
        thread = state.next;
    }
    anchor
}

/// States by stream index: 16 MiB of address space, a page of it touched for each thread alive at once.
static STATES: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Reserves the states' memory. Once, at start-up: no later call may need `madvise`. False if there is none.
pub fn reserve() -> bool {
    let Some(memory) = sys::map_private(STREAMS * THREAD_BYTES, true) else { return false };
    STATES.store(memory, Ordering::Release);
    true
}

/// Uses memory that hound has reserved, and hound's word for where the thread id lies.
pub fn use_reserved(states: u64, tid_offset: u64) {
    STATES.store(states as *mut u8, Ordering::Release);
    TID_OFFSET.store(tid_offset as usize, Ordering::Relaxed);
}

/// The stream of a state.
pub fn stream_of(state: *const Thread) -> Option<&'static Stream> {
    let offset = (state as usize).wrapping_sub(STATES.load(Ordering::Relaxed) as usize);
    process::streams().get(offset / THREAD_BYTES)
}

/// Where glibc keeps the kernel thread id, relative to the thread pointer; 0 = not found.
static TID_OFFSET: AtomicUsize = AtomicUsize::new(0);

/// Learns where the thread id lies: in the first thread it equals the process id. Both C libraries keep it in the thread's control block,
/// so later threads need no system call for it.
pub fn learn_tid_offset(pid: u32) {
    // glibc x86-64 (all versions since 2.4): 720; musl: 48 (1.2.x) or 56 (1.1.x).
    for offset in [720, 48, 56] {
        if tid_at(offset) == pid {
            TID_OFFSET.store(offset, Ordering::Relaxed);
            return;
        }
    }
}

fn tid_at(offset: usize) -> u32 {
    // SAFETY: both C libraries' control blocks are larger than 724 bytes, or end in the static TLS block's page that holds them; the
    // blocks lie at the end of a mapping only after at least a page (glibc: struct pthread is 0x900 bytes; musl: followed by the stack).
    unsafe { ((sys::thread_pointer() as usize + offset) as *const u32).read() }
}

fn tid() -> u32 {
    if FIRST_POINTER.load(Ordering::Relaxed) == sys::thread_pointer() {
        return FIRST_TID.load(Ordering::Relaxed);
    }
    match TID_OFFSET.load(Ordering::Relaxed) {
        0 => 0,
        offset => tid_at(offset),
    }
}

impl Thread {
    /// Adds to one of the stream's counters, which only this thread writes.
    #[inline(always)]
    pub fn count(&self, counter: Counter, by: u64) {
        if let Some(cell) = self.producer.stream().counters.get(counter as usize) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        }
    }

    /// Takes over a new state word of the ring's.
    #[cold]
    pub fn take_over(&mut self, state: u64) {
        self.state = state;
        // Recording was switched, or a module is gone: what is recorded of the stack may not hold any more. And while samples were taken
        // nobody watched what else was unmapped.
        self.path.clear();
        self.window = Window::default();
        self.interval = match state & STATE_SAMPLED {
            0 => 0,
            _ => process::control().interval.load(Ordering::Relaxed).min(sampling::MAX_INTERVAL),
        };
        self.sampling = 0;
        if self.interval != 0 {
            self.draw_gap();
            self.sampling = state;
        }
        self.be_usual();
    }

    /// Finds out whether all is as `usual` has it: to be called when something of that has changed.
    #[cold]
    pub fn be_usual(&mut self) {
        let records_all = self.state & STATE_RECORDING != 0 && self.interval == 0 && self.rate == 0;
        self.usual = if records_all && self.timestamp_override == 0 && clock::is_tsc() { !self.state } else { 0 };
    }

    /// Whether it is, with this state word of the ring's.
    #[inline(always)]
    pub fn is_usual_in(&self, state: u64) -> bool {
        !self.usual == state // a state that a fork has wiped is none
    }

    /// Gives the next event this time, 0 for none of its own.
    #[cold]
    pub fn override_time(&mut self, ticks: u64) {
        self.timestamp_override = ticks;
        self.be_usual();
    }

    /// The time of the event at work.
    #[inline(always)]
    pub fn now(&mut self) -> u64 {
        if self.timestamp_override == 0 {
            return clock::now();
        }
        let now = self.timestamp_override;
        self.override_time(0);
        now
    }

    /// Draws where the next sample point lies, from here on.
    fn draw_gap(&mut self) {
        self.countdown = sampling::gap(sampling::random(&mut self.random), self.interval) as i64;
    }

    /// Goes on by a block in the line of allocated bytes. Whether a sample point may lie in it: ask [`Thread::has_reached`] then.
    #[inline(always)]
    pub fn pass(&mut self, size: usize) -> bool {
        self.countdown = self.countdown.wrapping_sub(line_bytes(size));
        self.countdown <= 0
    }

    /// Whether the block that has brought the countdown to its end is sampled. Draws the next gap.
    #[cold]
    #[inline(never)]
    pub fn has_reached(&mut self, size: usize) -> bool {
        if self.interval == 0 {
            return true; // the child of a fork, whose state was wiped: nothing will be recorded
        }
        let left = self.countdown;
        self.draw_gap();
        if left > 0 || left.wrapping_add(line_bytes(size)) > 0 {
            // Above 0 if a signal handler has come in since and drawn already. What is drawn anew depends on nothing before.
            return true;
        }
        // The block began behind the point: a handler has come in while a block with a point in it was looked at. Of this one it says nothing.
        let is_sampled = self.pass(size);
        if is_sampled {
            self.draw_gap();
        }
        is_sampled
    }

    /// The state to use by a signal handler that found this one busy; made if need be. `None` when nested too deeply.
    #[cold]
    pub fn nested(&mut self) -> Option<&'static mut Thread> {
        if self.next.is_null() {
            if self.level + 1 >= LEVELS {
                return None;
            }
            self.next = claim(self.level + 1)?;
        }
        // SAFETY: the next level's state, used by one handler at a time: it runs on this thread and is not busy, or would nest again.
        Some(unsafe { &mut *self.next })
    }
}

/// Makes the calling thread's state. `None` if no stream is free or there is no memory.
#[cold]
pub fn enter() -> Option<&'static mut Thread> {
    let thread = claim(0)?;
    if !set_current(thread) {
        // Not to be found again: nobody has written to it.
        if let Some(stream) = stream_of(thread) {
            stream.state.store(STREAM_FREE, Ordering::Release);
        }
        return None;
    }
    // SAFETY: made just now for this thread, or found again as its own.
    Some(unsafe { &mut *thread })
}

/// How much of the line of allocated bytes a block takes. One of no bytes takes one, so that it is seen at all.
#[inline(always)]
pub fn line_bytes(size: usize) -> i64 {
    size.max(1) as i64
}

fn claim(level: u32) -> Option<*mut Thread> {
    let (index, stream) = claim_stream(tid(), level).or_else(|| await_stream(level))?;
    let place = place(index);
    // SAFETY: the stream is ours, so its state is nobody else's: all zero, or as the thread that had it before has left it.
    unsafe { (*place).path.release() };
    // SAFETY: as above; all zero is a valid `Thread`.
    unsafe { core::ptr::write_bytes(place.cast::<u8>(), 0, size_of::<Thread>()) };
    // SAFETY: zeroed above.
    let thread = unsafe { &mut *place };
    thread.level = level;
    if attached::is_mapped() {
        thread.pointer = sys::thread_pointer();
        thread.owner = directory::owner(thread.pointer);
    }
    // The ring's state is taken over at the first event, like any change of it. Two threads must not draw the same gaps, nor one thread those
    // of the last one in its place.
    thread.random = clock::now() ^ u64::from(index) << 48 ^ u64::from(stream.generation.load(Ordering::Relaxed)) << 32;
    thread.producer.start(stream, index);
    // SAFETY: behind the struct in the same page.
    let rest = unsafe { place.cast::<u8>().add(size_of::<Thread>()) };
    // SAFETY: the rest of the page belongs to this state and lives as long.
    unsafe { thread.path.start(rest, THREAD_BYTES - size_of::<Thread>()) };
    Some(place)
}

/// Waits for a stream where none is free. Most are those of threads that have ended then, which come and go faster than hound looks for them: it
/// gives them back when it does. `None` if all belong to threads that live, or if hound is not to be waited for.
#[cold]
#[inline(never)]
fn await_stream(level: u32) -> Option<(u32, &'static Stream)> {
    let control = process::control();
    // Of a look that is under way nothing is known.
    let enough = control.looks.load(Ordering::Acquire).wrapping_add(2);
    let mut patience = Patience::begin();
    let mut waited_ms = 0;
    control.seekers.fetch_add(1, Ordering::AcqRel);
    let found = loop {
        if let Some(found) = claim_stream(tid(), level) {
            break Some(found);
        }
        let recording = control.state.load(Ordering::Relaxed) & STATE_RECORDING != 0;
        // Acquire pairs with hound's release after a look: what that has freed was tried for above, or will be the next time.
        let looked = control.looks.load(Ordering::Acquire).wrapping_sub(enough) as i32 >= 0;
        let crowded = control.crowded.load(Ordering::Relaxed) != 0;
        if !recording || crowded && (looked || waited_ms == 0) || !may_wait(waited_ms) || !patience.wait() {
            break None;
        }
        waited_ms += 1;
    };
    control.seekers.fetch_sub(1, Ordering::AcqRel);
    found
}

fn claim_stream(tid: u32, level: u32) -> Option<(u32, &'static Stream)> {
    let streams = process::streams();
    for (index, stream) in streams.iter().enumerate() {
        if stream.state.load(Ordering::Relaxed) == STREAM_FREE
            // Acquire pairs with the release of whoever freed it.
            && stream.state.compare_exchange(STREAM_FREE, STREAM_OWNED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            for cell in stream.lost.iter().chain(&stream.counters) {
                cell.store(0, Ordering::Relaxed);
            }
            stream.level.store(level, Ordering::Relaxed);
            stream.tid.store(tid, Ordering::Relaxed);
            stream.generation.fetch_add(1, Ordering::Release);
            process::control().streams_high.fetch_max(index as u32 + 1, Ordering::Release);
            return Some((index as u32, stream));
        }
    }
    None
}

fn place(index: u32) -> *mut Thread {
    // Reserved before the process became ready; a stream's index is below STREAMS.
    STATES.load(Ordering::Acquire).wrapping_add(index as usize * THREAD_BYTES).cast()
}
