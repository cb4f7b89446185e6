//! The shared memory between a target and hound: control page, streams, segments.
//!
//! ```text
//! [Control: 1 page][Stream × streams][Segment × segments][segment data × segments]
//! ```
//!
//! It is a memfd that hound holds too, so what a killed target wrote before its death is not lost. Each thread owns one stream (and one
//! more per nesting level of signal handlers), and a stream owns at most a few segments at a time, taken from one pool: idle threads cost
//! a page. A segment has one producer (the thread) and one consumer (hound); there are no locks.
//!
//! Life of a segment: `FREE` → (thread: compare-and-swap) `OWNED` → (thread, when full) `SEALED` → (hound, when read) `FREE`.
//! `committed` counts the bytes of complete records; the thread stores it with release after writing them, hound loads it with acquire.
//!
//! The memory is the target's to scribble on: hound validates copies of what it reads and trusts no field.

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::attach::{PIECES, Piece};

/// Places in [`Control::forked`].
pub const FORKED: usize = 64;

/// How many reasons [`Control::lost`] has room for.
pub const LOST_REASONS: usize = 16;

/// First word of a control page: "HOUNDRNG" in ASCII.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HOUNDRNG");
/// Changes with every incompatible change of this file or of `event`.
pub const VERSION: u32 = 5;

/// Bytes of data in a segment. Small enough that an idle thread's is cheap, large enough that taking one (about 100 ns) is nothing
/// beside filling it (some 800 allocate/free pairs).
pub const SEGMENT_BYTES: usize = 32 * 1024;
/// Streams in a ring: threads alive at once, plus nested signal handlers.
pub const STREAMS: usize = 4096;
/// Segments in a ring. Address space only: what is touched is bounded by [`Control::segment_limit`] plus one a stream.
pub const SEGMENTS: usize = 5120;
/// Default of [`Control::segment_limit`]: 6 MiB in flight cover about 4 ms of the fastest single producer.
pub const SEGMENT_LIMIT: u32 = 192;

const PAGE: usize = 4096;
/// Offset of the streams.
pub const STREAMS_OFFSET: usize = PAGE;
/// Offset of the segment table.
pub const SEGMENTS_OFFSET: usize = STREAMS_OFFSET + STREAMS * size_of::<Stream>();
/// Offset of the segments' data.
pub const DATA_OFFSET: usize = (SEGMENTS_OFFSET + SEGMENTS * size_of::<Segment>()).next_multiple_of(PAGE);
/// Length of the whole mapping.
pub const RING_BYTES: usize = DATA_OFFSET + SEGMENTS * SEGMENT_BYTES;

/// `state`: set while events are recorded. The other bits count changes (see [`Control::change`]).
pub const STATE_RECORDING: u64 = 1;
/// `state`: set with [`STATE_RECORDING`] while [`Control::interval`] says which allocations are recorded, and only their releases are.
pub const STATE_SAMPLED: u64 = 2;
/// `state`: the lowest bit of the count of changes.
pub const STATE_CHANGE: u64 = 4;

/// `options`: record the stacks of frees.
pub const OPTION_FREE_STACKS: u32 = 1;
/// `options`: reuse verified frames (the shadow stack). Off only for debugging.
pub const OPTION_SHADOW_STACK: u32 = 2;
/// `options`: record mmap, munmap and mremap.
pub const OPTION_MAPS: u32 = 4;
/// `options`: a full ring drops (and counts) at once instead of waiting.
pub const OPTION_DROP: u32 = 8;

/// `clock`: stamps are TSC ticks.
pub const CLOCK_TSC: u32 = 1;
/// `clock`: stamps are nanoseconds of CLOCK_MONOTONIC.
pub const CLOCK_MONOTONIC: u32 = 2;

/// Name of a ring's memfd where the library comes into a process at its start, that is not by an attach (`attach::RING_NAME`).
pub const LAUNCH_NAME: &CStr = c"hound-launch";

/// `library`: not loaded yet.
pub const LIBRARY_ABSENT: u32 = 0;
/// `library`: loaded and recording.
pub const LIBRARY_READY: u32 = 1;
/// `library`: bowed out; [`Control::bow_out`] says why.
pub const LIBRARY_OUT: u32 = 2;

/// `bow_out`: hound stopped answering (its heartbeat stood still while a thread waited for it).
pub const OUT_NO_HEARTBEAT: u32 = 1;
/// `bow_out`: the real allocator's functions were not found.
pub const OUT_NO_ALLOCATOR: u32 = 2;
/// `bow_out`: no memory for the library's own state.
pub const OUT_NO_MEMORY: u32 = 3;
/// `bow_out`: the attachment lacks the place of the thread id, or the clock.
pub const OUT_NOT_PREPARED: u32 = 4;
/// `bow_out`: the program is built with a sanitizer, whose allocator cannot be called before it has prepared itself.
pub const OUT_SANITIZED: u32 = 5;
/// `bow_out`: the C library is musl's, whose own calls of its allocator a preloaded library does not see.
pub const OUT_OTHER_LIBC: u32 = 6;
/// `bow_out`: a thread of the program forbade itself the time stamp counter, by `prctl(PR_SET_TSC)` or strict seccomp.
pub const OUT_NO_CLOCK: u32 = 7;

/// `exit_state`: the program is not at its end.
pub const EXIT_NOT_YET: u32 = 0;
/// `exit_state`: it is, and waits for hound to have looked at its memory.
pub const EXIT_WAITS: u32 = 1;
/// `exit_state`: hound has looked.
pub const EXIT_LOOKED_AT: u32 = 2;
/// `exit_state`: it has waited for long enough, and goes on.
pub const EXIT_GOES_ON: u32 = 3;

/// `Stream::state`: nobody's.
pub const STREAM_FREE: u32 = 0;
/// `Stream::state`: a thread records into it.
pub const STREAM_OWNED: u32 = 1;

/// `Segment::state`: nobody's.
pub const SEGMENT_FREE: u32 = 0;
/// `Segment::state`: its stream writes to it.
pub const SEGMENT_OWNED: u32 = 1;
/// `Segment::state`: being taken; its other fields are not valid yet.
pub const SEGMENT_CLAIMED: u32 = 3;
/// `Segment::state`: full; hound frees it when it has read `committed` bytes.
pub const SEGMENT_SEALED: u32 = 2;

/// The first page: one cache line that is read at every event, then what changes often. All zero is a valid value; the creator calls [`Control::initialise`].
#[repr(C, align(4096))]
pub struct Control {
    /// [`MAGIC`], stored last by the creator.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU32,
    /// Bits of `OPTION_…`.
    pub options: AtomicU32,
    /// [`STATE_RECORDING`] and a count of changes. A thread compares this one word with its own copy at every event, and looks closer
    /// when they differ: recording was switched, a module was unloaded, or the thread is the child of a fork (whose copy was wiped).
    pub state: AtomicU64,
    /// One of `CLOCK_…`.
    pub clock: AtomicU32,
    /// The one process that may write here. 0: whoever maps it first.
    pub target_pid: AtomicU32,
    /// One of `LIBRARY_…`: written by the library.
    pub library: AtomicU32,
    /// One of `OUT_…`.
    pub bow_out: AtomicU32,
    _line: [AtomicU32; 6],
    /// Counts up with every round of hound's reading. A waiting thread that sees it stand still gives hound up.
    pub heartbeat: AtomicU32,
    /// Segments that are not free.
    pub segments_in_use: AtomicU32,
    /// How many segments may be in use before producers wait (beyond one a stream).
    pub segment_limit: AtomicU32,
    /// Futex: changes whenever hound freed segments while somebody waited.
    pub freed: AtomicU32,
    /// Threads waiting on `freed`.
    pub waiters: AtomicU32,
    /// Longest total time one thread may be made to wait for ring space, in milliseconds.
    pub max_wait_ms: AtomicU32,
    /// Streams ever claimed: the highest index in use is below it.
    pub streams_high: AtomicU32,
    /// Segments ever claimed: the highest index in use is below it.
    pub segments_high: AtomicU32,
    /// Events lost without a stream of their own to say so, by `LOST_…` reason.
    pub lost: [AtomicU64; LOST_REASONS],
    /// Total time threads waited for ring space, in ticks of the ring's clock.
    pub waited_ticks: AtomicU64,
    /// When a library that made its own ring did so, in ticks: before its first event. 0 in a ring that hound made.
    pub start_ticks: AtomicU64,
    /// `avma` of the library's image in the target, for hound to leave its frames out.
    pub library_start: AtomicU64,
    /// End of the library's image.
    pub library_end: AtomicU64,
    /// avma of the library's [`Attachment`](crate::attach::Attachment) in a target that hound attached to; 0 before, and in one it started.
    pub attachment: AtomicU64,
    /// avma of this ring in the target, likewise.
    pub ring_in_target: AtomicU64,
    /// How long a waiting thread believes in a hound whose heartbeat stands still, in milliseconds.
    pub patience_ms: AtomicU32,
    /// Process id of the hound that drains, as that hound sees it; 0 when none does.
    pub drainer: AtomicU32,
    /// Mean bytes between samples, 0 = every allocation: what the next [`Control::change`] switches on.
    pub interval: AtomicU64,
    /// Counts the times that recording was switched on: what was sampled before was not watched in between.
    pub part: AtomicU64,
    /// What hound has mapped into the target besides the ring.
    pub pieces: [Piece; PIECES],
    /// What `attachment` was, once the library is being taken out: it knows what it has mapped by itself.
    pub leaving: AtomicU64,
    /// Where processes that the target begins are recorded, too: the number of the target in the capture, plus 1. Else 0.
    pub member: AtomicU32,
    /// Children of forks that got no ring of their own, for hound could not be reached: they are not recorded. Written by them.
    pub unrecorded: AtomicU32,
    /// How many children `fork` has given to the target, and the last of them, by their number among all: hound has to know of one that has
    /// nothing to record as yet.
    pub forks: AtomicU32,
    /// See `forks`.
    pub forked: [AtomicU32; FORKED],
    /// For how many milliseconds the program's exit may be held for a look at its memory. 0: not at all.
    pub exit_ms: AtomicU32,
    /// Futex: one of `EXIT_…`.
    pub exit_state: AtomicU32,
    /// Threads that wait for a stream: those of threads that have ended are free when hound has looked for them, so it looks at once.
    pub seekers: AtomicU32,
    /// How often hound has looked which threads have ended, and given back their streams.
    pub looks: AtomicU32,
    /// 1 if at the last such look all streams were those of threads that live: nobody waits for one then.
    pub crowded: AtomicU32,
}

/// Counters of a stream, in the order of the `METRIC_UNWINDING` record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Frames found equal by comparing memory.
    Verified = 0,
    /// Frames found by applying a row.
    Stepped = 1,
    /// Rows computed from call frame information.
    Evaluated = 2,
    /// Stacks unwound with all callee-saved registers.
    Full = 3,
    /// Stacks in which a new middle part was put between kept frames.
    Spliced = 4,
    /// Frames found through frame pointers for want of a row.
    FramePointer = 5,
    /// Stacks that the walk for the usual case left to the one for all cases.
    General = 6,
}

/// How many [`Counter`]s there are.
pub const COUNTERS: usize = 7;

/// One thread's place. Two cache lines, written by the thread only, but for `state`.
#[repr(C, align(128))]
pub struct Stream {
    /// One of `STREAM_…`. The thread claims it, hound releases it when the thread is gone and its segments are read.
    pub state: AtomicU32,
    /// Kernel thread id; 0 where it could not be learnt without a system call.
    pub tid: AtomicU32,
    /// 0: the thread itself; n: its n-th level of nested signal handlers.
    pub level: AtomicU32,
    /// Counts claims, so that hound tells two threads apart that used the same stream.
    pub generation: AtomicU32,
    /// Events this stream could not record, by `LOST_…` reason.
    pub lost: [AtomicU64; 7],
    /// How frames were found: see [`Counter`].
    pub counters: [AtomicU64; COUNTERS],
}

/// One segment's head, on a cache line of its own: two producers must not share one.
#[repr(C, align(64))]
pub struct Segment {
    /// One of `SEGMENT_…`.
    pub state: AtomicU32,
    /// Index of the stream that owns it.
    pub stream: AtomicU32,
    /// Number of this segment among its stream's, from 0.
    pub sequence: AtomicU32,
    /// Bytes of complete records in its data.
    pub committed: AtomicU32,
    /// The owner's [`Stream::generation`].
    pub generation: AtomicU32,
}

const _: () = assert!(size_of::<Control>() == PAGE);
const _: () = assert!(size_of::<Stream>() == 128);
const _: () = assert!(size_of::<Segment>() == 64);
const _: () = assert!(SEGMENT_BYTES.is_multiple_of(PAGE) && SEGMENTS_OFFSET.is_multiple_of(128));
const _: () = assert!(SEGMENT_BYTES <= u32::MAX as usize);

impl Control {
    /// Fills in a control page that is zero but for `interval`. `magic` is stored last, with release: who reads it with acquire sees the
    /// rest.
    pub fn initialise(&self, target_pid: u32, options: u32, clock: u32, max_wait_ms: u32) {
        self.version.store(VERSION, Ordering::Relaxed);
        self.state.store(STATE_CHANGE | self.flags(true), Ordering::Relaxed);
        self.options.store(options, Ordering::Relaxed);
        self.clock.store(clock, Ordering::Relaxed);
        self.target_pid.store(target_pid, Ordering::Relaxed);
        self.segment_limit.store(SEGMENT_LIMIT, Ordering::Relaxed);
        self.max_wait_ms.store(max_wait_ms, Ordering::Relaxed);
        self.magic.store(MAGIC, Ordering::Release); // pairs with `is_valid`
    }

    fn flags(&self, recording: bool) -> u64 {
        match (recording, self.interval.load(Ordering::Relaxed)) {
            (false, _) => 0,
            (true, 0) => STATE_RECORDING,
            (true, _) => STATE_RECORDING | STATE_SAMPLED,
        }
    }

    /// Tells every thread to look closer at its next event, with recording on or off: exact, or sampled if `interval` says so. To switch
    /// between the two while recording, store the interval and call this with `true`.
    pub fn change(&self, recording: bool) {
        if recording && self.state.load(Ordering::Relaxed) & STATE_RECORDING == 0 {
            self.part.fetch_add(1, Ordering::Relaxed);
        }
        let flags = self.flags(recording);
        let next = |state: u64| Some((state & !(STATE_RECORDING | STATE_SAMPLED)).wrapping_add(STATE_CHANGE) | flags);
        // Release: what the change is about (an interval, an option) is stored before. Pairs with the hooks' acquire load.
        let _ = self.state.fetch_update(Ordering::Release, Ordering::Relaxed, next);
    }

    /// Tells every thread to look closer at its next event, whatever is recorded.
    pub fn renew(&self) {
        // Release: what it is about (a purged row) is stored before. Pairs with the hooks' acquire load.
        self.state.fetch_add(STATE_CHANGE, Ordering::Release);
    }

    /// Whether this is a control page of this version.
    pub fn is_valid(&self) -> bool {
        // Pairs with the release store in `initialise`.
        self.magic.load(Ordering::Acquire) == MAGIC && self.version.load(Ordering::Relaxed) == VERSION
    }
}
