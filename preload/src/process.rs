//! What is known of the process as a whole: the ring, its options, whether this is still the target.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use hound_common::ring::{
    self, CLOCK_MONOTONIC, Control, LIBRARY_OUT, LIBRARY_READY, OUT_NO_ALLOCATOR, OUT_NO_MEMORY, OUT_OTHER_LIBC, OUT_SANITIZED,
    SEGMENT_BYTES, SEGMENTS, STREAMS, Segment, Stream,
};

use crate::environment::{Environment, Ring, Stays};
use crate::{attached, clock, collector, elf, family, modules, real, record, samples, signals, sys, thread};

/// Stands in for the ring where there is none: never recording.
// SAFETY of the zeroed value: every field is an atomic integer.
static NO_RING: ZeroControl = ZeroControl([0; size_of::<Control>() / 8]);

#[repr(align(4096))]
struct ZeroControl(#[expect(dead_code, reason = "only its address is used")] [u64; size_of::<Control>() / 8]);

/// The ring's control page, or [`NO_RING`]: never null, so that no event has to ask.
pub static CONTROL: AtomicPtr<Control> = AtomicPtr::new((&raw const NO_RING).cast::<Control>().cast_mut());

const UNKNOWN: u32 = 0;
const STARTING: u32 = 1;
const READY: u32 = 2;
const OUT: u32 = 3;
static STATE: AtomicU32 = AtomicU32::new(UNKNOWN);

/// A word that a fork wipes: 1 in the process that was started, 0 in its children.
static FORK_MARK: AtomicPtr<u64> = AtomicPtr::new(core::ptr::null_mut());
pub static LOADER_START: AtomicU64 = AtomicU64::new(0);
pub static LOADER_BYTES: AtomicU64 = AtomicU64::new(0);

/// The ring's control page, or one that says not to record.
#[inline(always)]
pub fn control() -> &'static Control {
    // SAFETY: the mapped ring, which is never unmapped; or zeroes, aligned, of the same size: nothing is ever stored through that, since
    // it never lets an event begin.
    unsafe { &*CONTROL.load(Ordering::Relaxed) }
}

/// A control page that says not to record.
pub fn no_ring() -> *const Control {
    (&raw const NO_RING).cast()
}

/// Uses a ring that hound has mapped, or [`no_ring`].
pub fn use_ring(control: *const Control) {
    CONTROL.store(control.cast_mut(), Ordering::Release);
}

/// Takes hound's word for where the dynamic loader lies.
pub fn use_loader(start: u64, end: u64) {
    LOADER_BYTES.store(0, Ordering::Relaxed);
    LOADER_START.store(start, Ordering::Relaxed);
    LOADER_BYTES.store(end.wrapping_sub(start), Ordering::Relaxed);
}

/// The ring's option bits.
#[inline(always)]
pub fn options() -> u32 {
    control().options.load(Ordering::Relaxed)
}

fn ring_at<T>(offset: usize) -> *const T {
    CONTROL.load(Ordering::Relaxed).cast::<u8>().wrapping_add(offset).cast()
}

/// All streams. Only with a ring.
pub fn streams() -> &'static [Stream] {
    // SAFETY: the mapped ring has them at this offset; all fields are atomics.
    unsafe { core::slice::from_raw_parts(ring_at(ring::STREAMS_OFFSET), STREAMS) }
}

/// All segments' heads. Only with a ring.
pub fn segments() -> &'static [Segment] {
    // SAFETY: as in `streams`.
    unsafe { core::slice::from_raw_parts(ring_at(ring::SEGMENTS_OFFSET), SEGMENTS) }
}

/// Where a segment's data lies.
pub fn segment_data(index: u32) -> *mut u64 {
    ring_at::<u64>(ring::DATA_OFFSET + index as usize * SEGMENT_BYTES).cast_mut()
}

/// Counts an event lost before it had a stream.
#[cold]
pub fn lose(reason: u8) {
    if !core::ptr::eq(CONTROL.load(Ordering::Relaxed), no_ring())
        && let Some(cell) = control().lost.get(reason as usize)
    {
        cell.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts a process that this one has begun, and that cannot be recorded.
#[cold]
pub fn count_unrecorded() {
    if !core::ptr::eq(CONTROL.load(Ordering::Relaxed), no_ring()) {
        control().unrecorded.fetch_add(1, Ordering::Relaxed);
    }
}

/// Stops recording for good, and says why.
#[cold]
pub fn bow_out(reason: u32) {
    let control = control();
    control.bow_out.store(reason, Ordering::Relaxed);
    control.library.store(LIBRARY_OUT, Ordering::Release);
    control.change(false);
}

/// Whether a return address lies in the dynamic loader.
#[inline(always)]
pub fn is_loader(ra: u64) -> bool {
    ra.wrapping_sub(LOADER_START.load(Ordering::Relaxed)) < LOADER_BYTES.load(Ordering::Relaxed)
}

/// Whether events can be recorded in this process. Starts the library at its first call.
#[cold]
#[inline(never)]
pub fn ready() -> bool {
    if attached::is_mapped() {
        return attached::ready();
    }
    match STATE.load(Ordering::Acquire) {
        READY => {
            // SAFETY: mapped by `start` before the state became READY, never unmapped.
            let ours = unsafe { FORK_MARK.load(Ordering::Relaxed).read_volatile() } == 1;
            if !ours {
                return child();
            }
            true
        }
        UNKNOWN => start(),
        _ => false,
    }
}

/// Whether this is the process that the ring is for: not a child of its fork that has recorded nothing yet.
#[cold]
pub fn is_target() -> bool {
    // SAFETY: as in `ready`.
    STATE.load(Ordering::Acquire) == READY && unsafe { FORK_MARK.load(Ordering::Relaxed).read_volatile() } == 1
}

/// Never inlined: `ready` runs at the first event of each thread, and what the start needs of the stack (8 KiB) would be touched there too.
#[inline(never)]
fn start() -> bool {
    if STATE.compare_exchange(UNKNOWN, STARTING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    let started = connect();
    STATE.store(if started { READY } else { OUT }, Ordering::Release);
    started
}

fn connect() -> bool {
    let own_dynamic = own_dynamic();
    let resolved = real::resolve(own_dynamic);
    elf::learn_executable_headers();
    let Some(mut environment) = Environment::of_process() else { return false };
    let pid = sys::getpid();
    let tracks = environment.tracks_children();
    let is_of_family = environment.family().is_some_and(|value| family::learn(value, environment.preload().unwrap_or_default()));
    let stays = match environment.ring() {
        _ if is_of_family => Stays::Family,
        Ring::None if tracks => Stays::All,
        _ => Stays::Nothing,
    };
    // Their allocators abort when they are called, or asked for a block's size, before they have prepared themselves; and a race detector
    // would look at what we do.
    let is_sanitized = elf::modules().any(|module| {
        let name = module.name();
        let file = name.iter().rposition(|byte| *byte == b'/').and_then(|slash| name.get(slash + 1..)).unwrap_or(name);
        [&b"libasan."[..], b"libtsan.", b"liblsan.", b"libhwasan.", b"libclang_rt."].iter().any(|start| file.starts_with(start))
    });
    // What a C library allocates for the program it would not see there: hound patches such a program.
    let is_out = is_sanitized || elf::is_musl();
    let ring = match environment.ring() {
        Ring::Given(fd) => map(fd).filter(|control| is_ours(control, pid)),
        Ring::None if is_sanitized => {
            if is_of_family {
                family::is_not_recorded(pid);
            }
            None
        }
        Ring::None if is_of_family => family::ring_of_program(pid),
        Ring::None => {
            let options = environment.options();
            let begins_off = environment.begins_off();
            own_ring(options, environment.interval(), begins_off, pid)
                .filter(|(fd, control)| collector::start(*fd, control, pid, &mut environment, own_dynamic))
                .map(|(fd, control)| {
                    sys::close(fd);
                    control
                })
        }
    };
    // What the documented variables ask for breaks a promise: where hound has started the program, they must have been set to.
    let signals = environment.signals(matches!(environment.ring(), Ring::None) && !is_of_family);
    if environment.zeroes() {
        real::zero_memory();
    }
    environment.hide(stays);
    let Some(control) = ring else { return false };
    if is_out || !resolved {
        let why = match (is_sanitized, is_out) {
            (true, _) => OUT_SANITIZED,
            (_, true) => OUT_OTHER_LIBC,
            _ => OUT_NO_ALLOCATOR,
        };
        control.bow_out.store(why, Ordering::Relaxed);
        control.library.store(LIBRARY_OUT, Ordering::Release);
        return false;
    }
    let mark = if thread::reserve() && samples::reserve() { sys::map_private(4096, true) } else { None };
    let Some(mark) = mark else {
        control.bow_out.store(OUT_NO_MEMORY, Ordering::Relaxed);
        control.library.store(LIBRARY_OUT, Ordering::Release);
        return false;
    };
    // SAFETY: just mapped.
    unsafe { mark.cast::<u64>().write(1) };
    FORK_MARK.store(mark.cast(), Ordering::Relaxed);
    if control.clock.load(Ordering::Relaxed) == CLOCK_MONOTONIC && !clock::use_monotonic() {
        return false;
    }
    thread::learn_tid_offset(pid);
    modules::learn_executable();
    note_places(control);
    CONTROL.store((&raw const *control).cast_mut(), Ordering::Release);
    control.library.store(LIBRARY_READY, Ordering::Release); // pairs with hound's acquire load
    signals.iter().filter(|(_, wanted)| *wanted).for_each(|(signal, _)| signals::take(*signal));
    true
}

/// The child of a fork, at its first event: it must not write into its parent's ring. If children are recorded, it gets one of its own;
/// else it runs on unrecorded.
#[cold]
#[inline(never)]
fn child() -> bool {
    if STATE.compare_exchange(READY, STARTING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return false;
    }
    let parent = control();
    let pid = sys::getpid();
    let ring = if family::is_known() { family::ring_of_child(pid, parent) } else { None };
    let Some(ring) = ring else {
        if family::is_known() {
            count_unrecorded();
        }
        use_ring(no_ring());
        STATE.store(OUT, Ordering::Release);
        return false;
    };
    use_ring(ring);
    note_places(ring);
    // All threads' states were wiped with this word, and no thread but this one is there.
    // SAFETY: mapped by `connect`, never unmapped.
    unsafe { FORK_MARK.load(Ordering::Relaxed).write_volatile(1) };
    thread::leave(pid);
    ring.library.store(LIBRARY_READY, Ordering::Release); // pairs with hound's acquire load
    STATE.store(READY, Ordering::Release);
    tell_modules();
    true
}

/// In the child of a fork: what the parent's stream has said of modules nobody knows here.
pub fn tell_modules() {
    if let Some(state) = thread::enter() {
        state.event_time = clock::now();
        modules::each(|module| {
            record::module(state, &module);
        });
    } else {
        lose(hound_common::event::LOST_NO_STREAM);
    }
}

fn note_places(control: &Control) {
    let (start, end) = elf::loader();
    LOADER_START.store(start, Ordering::Relaxed);
    LOADER_BYTES.store(end - start, Ordering::Relaxed);
    if let Some(own) = modules::ask_loader(ready as *const () as u64, true) {
        control.library_start.store(own.start, Ordering::Relaxed);
        control.library_end.store(own.end, Ordering::Relaxed);
    }
}

/// The ring behind a descriptor, which is closed.
pub fn map(fd: i32) -> Option<&'static Control> {
    let memory = sys::map_shared(fd, ring::RING_BYTES);
    sys::close(fd);
    // SAFETY: a mapping of the whole ring, never unmapped; all fields of `Control` are atomics.
    let control = unsafe { &*memory?.cast::<Control>() };
    control.is_valid().then_some(control)
}

/// The ring belongs to the first process that takes it.
fn is_ours(control: &Control, pid: u32) -> bool {
    match control.target_pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => true,
        Err(owner) => owner == pid,
    }
}

/// A ring made here, for a target started with plain LD_PRELOAD. The descriptor stays open for the collector.
fn own_ring(options: u32, interval: u64, begins_off: bool, pid: u32) -> Option<(i32, &'static Control)> {
    const MAX_WAIT_MS: u32 = 10_000;
    let fd = sys::sealed_memfd(ring::RING_BYTES)?;
    let Some(memory) = sys::map_shared(fd, ring::RING_BYTES) else {
        sys::close(fd);
        return None;
    };
    // SAFETY: as in `map`.
    let control = unsafe { &*memory.cast::<Control>() };
    let clock = if clock::is_tsc_invariant() { ring::CLOCK_TSC } else { CLOCK_MONOTONIC };
    control.interval.store(interval, Ordering::Relaxed);
    control.initialise(pid, options, clock, MAX_WAIT_MS);
    if begins_off {
        control.change(false);
    }
    if clock == ring::CLOCK_TSC {
        control.start_ticks.store(clock::now(), Ordering::Relaxed);
    }
    Some((fd, control))
}

/// Address of this library's own dynamic section, by which it is told apart from the other modules.
fn own_dynamic() -> u64 {
    let dynamic: u64;
    // SAFETY: the linker's symbol for the section, relative to here.
    unsafe { core::arch::asm!("lea {}, [rip + _DYNAMIC]", out(reg) dynamic, options(nostack, nomem, preserves_flags)) };
    dynamic
}
