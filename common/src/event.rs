//! The records that travel in a ring and are what a capture stores.
//!
//! A record is a sequence of little-endian 8-byte words. Its first word is the header:
//!
//! ```text
//!  bits  0..8    tag      what it is
//!  bits  8..16   words    length of the record in words, header included (1..=255): unknown tags are skipped by it
//!  bits 16..24   a        tag-specific (kind of function, …)
//!  bits 24..32   b        tag-specific (flags)
//!  bits 32..64   dt       ticks since the previous record of the same stream
//! ```
//!
//! Time: each stream keeps a clock in ticks (TSC, or nanoseconds of CLOCK_MONOTONIC where the TSC cannot be trusted; the control page and
//! the capture's session record say which). `dt` adds to it; a [`tag::TIME`] record sets it. A stream starts with `TIME`, and so does
//! what cannot be said as a delta (more than 2^32 ticks of silence, or a step back).
//!
//! Stacks are deltas: each stream keeps the array of return addresses of its previous stack, **root first**, and a path length; a
//! [`tag::STACK`] record edits it (see [`StackEdit`]), and `ALLOC`, `MAP` and (if flagged) `FREE` records after it use the result.
//!
//! `FREE` carries the time *before* the real call, `ALLOC` the time *after* it, so for every address alloc ≤ free ≤ next alloc across
//! threads, up to the reordering of the time-stamp reads inside one core (well under [`REORDER_NS`]); readers repair that by legality.

use crate::hook::Kind;

/// Record tags. Never renumber; a new meaning gets a new tag.
pub mod tag {
    /// Padding: skip. `words` long.
    pub const PAD: u8 = 0;
    /// `[header][ticks]`: sets the stream's clock.
    pub const TIME: u8 = 1;
    /// `[header: a = end reason, b = STACK_… flags][StackEdit][ips…]`: edits the stream's stack. More than one may precede a user.
    pub const STACK: u8 = 2;
    /// `[header: a = Kind, b = ALLOC_… flags][addr][size:48 | slack:16][usable]?[previous addr]?`. Uses the current stack.
    pub const ALLOC: u8 = 3;
    /// `[header: a = Kind, b = FREE_… flags][addr]`. Uses the current stack if flagged so.
    pub const FREE: u8 = 4;
    /// `[header: a = Kind][addr][length][prot:32 | flags:32][fd (i64)][offset]`. Uses the current stack.
    pub const MAP: u8 = 5;
    /// `[header: a = Kind][addr][length]`. Uses the current stack.
    pub const UNMAP: u8 = 6;
    /// `[header: a = Kind][old addr][old length][new addr][new length][flags]`. Uses the current stack.
    pub const REMAP: u8 = 7;
    /// `[header][old break][new break]`.
    pub const BRK: u8 = 8;
    /// `[header][addr][length][prot]`.
    pub const PROTECT: u8 = 9;
    /// `[header: a = FAULT_… kind, b = FAULT_… flags][addr][mean bytes between samples][bytes mapped]`: a page that was not there was
    /// touched. Uses the current stack, whose first ip is where it was touched, plus one. Without the last two words: `[header][addr]`.
    pub const FAULT: u8 = 10;
    /// `[header][bias][start][end][eh_frame_hdr avma or 0][build-id length:32 | path length:32][build-id bytes, padded][path bytes, padded]`.
    pub const MODULE: u8 = 11;
    /// `[header][start][end]`: the module mapped there is gone.
    pub const MODULE_GONE: u8 = 12;
    /// `[header: a = THREAD_…][tid][name length][name bytes, padded]`.
    pub const THREAD: u8 = 13;
    /// `[header: a = PROCESS_…][pid][parent pid]`, and of what begins a process in a capture
    /// `[number of the process it comes from, plus 1; 0 = none][command's length][its words, a zero byte between, padded]`.
    pub const PROCESS: u8 = 14;
    /// `[header][mean bytes between samples; 0 = exact]`: holds from here on in this stream, which begins exact.
    pub const RATE: u8 = 15;
    /// `[header: a = MODE_…][reason]`: recording was switched.
    pub const MODE: u8 = 16;
    /// `[header: a = METRIC_…][value]…`.
    pub const METRIC: u8 = 17;
    /// `[header: a = 0 or MARKER_TEXT][value]…`: the program, or somebody with `hound mark`, set a marker.
    pub const MARKER: u8 = 18;
    /// `[header: a = LOST_… reason][count]`: events known to be missing.
    pub const LOST: u8 = 19;
    /// `[header: a = END_… reason][value]`: nothing follows in this stream.
    pub const END: u8 = 20;
    /// `[header][opened][closed][period start][period end]` (ticks), in hound's own stream, when the window is closed: of this period, what
    /// was called between the two first was observed, and nothing else. The window's place in the period was drawn at random before.
    pub const WINDOW: u8 = 21;
    /// `[header: a = LIVENESS_…][addr | pool << 56]`, in hound's own stream: what is known now of a sampled block whose release may not have
    /// been seen.
    pub const LIVENESS: u8 = 22;
    /// `[header][blocks][bytes][ns]`: since the last such record of this stream, so many of its blocks were left out of the capture, with their
    /// releases, for they lived shorter than this; where it is 0, for they were released before the capture was begun (`--rotate`).
    pub const STRIPPED: u8 = 23;
    /// What `--cull` has left out of a second: words are two times, blocks, bytes, a threshold, how much came late, how often too much waited;
    /// then two words for each place of a scale.
    pub const CULLED: u8 = 24;
}

/// `ALLOC`: the block continues another one; `previous addr` follows. The stream's preceding `FREE` with [`FREE_REALLOC`] is its other half.
pub const ALLOC_REALLOC: u8 = 1;
/// `ALLOC`: slack does not fit 16 bits; the usable size follows as a word of its own.
pub const ALLOC_WIDE: u8 = 2;
/// `ALLOC`: glibc took the block from mmap (chunk flag `IS_MMAPPED`).
pub const ALLOC_MMAPPED: u8 = 4;
/// `ALLOC`: glibc took the block from an arena that is not the main one (chunk flag `NON_MAIN_ARENA`).
pub const ALLOC_NON_MAIN_ARENA: u8 = 8;
/// `ALLOC`: memory is known to be zeroed by the call.
pub const ALLOC_ZEROED: u8 = 16;
/// `ALLOC` and `FREE` of the pool kinds: bits 2 to 7 hold the pool's number (1 to 63) in the place of the flags there, which say nothing
/// of a pool's block.
pub const POOL_SHIFT: u8 = 2;
/// Number of the pool (1 to 63) that an `ALLOC` or `FREE` of this kind with this `b` is of; 0: it is of the heap.
#[inline(always)]
pub const fn pool_of(kind: u8, b: u8) -> u8 {
    match kind == Kind::PoolAlloc as u8 || kind == Kind::PoolRealloc as u8 || kind == Kind::PoolFree as u8 {
        // None is numbered 0: a record that says so is damaged, and still no event of the heap.
        true if b >> POOL_SHIFT == 0 => 1,
        true => b >> POOL_SHIFT,
        false => 0,
    }
}

/// The flags in this `b`: what is left of it without the number of a pool.
#[inline(always)]
pub const fn flags_of(kind: u8, b: u8) -> u8 {
    if pool_of(kind, b) == 0 { b } else { b & ((1 << POOL_SHIFT) - 1) }
}

/// `slack` value: the usable size is not known.
pub const SLACK_UNKNOWN: u16 = 0xFFFF;

/// `FREE`: this is the release half of a realloc that succeeded.
pub const FREE_REALLOC: u8 = 1;
/// `FREE`: the current stack is where it was called.
pub const FREE_HAS_STACK: u8 = 2;

/// `STACK`: the edit is not finished, another `STACK` record follows before any user (more ips than one record holds).
pub const STACK_MORE: u8 = 1;
/// `STACK`: at least one frame was found through frame pointers, because no call frame information covered it.
pub const STACK_FRAME_POINTER: u8 = 2;

/// `THREAD`: the stream belongs to this thread from here on.
pub const THREAD_START: u8 = 1;
/// `THREAD`: the thread's name.
pub const THREAD_NAME: u8 = 2;
/// `THREAD`: the thread is gone.
pub const THREAD_EXIT: u8 = 3;

/// `PROCESS`: the process is about to replace itself by another program (exec). If events of it follow, the attempt failed.
pub const PROCESS_EXEC: u8 = 1;

/// `PROCESS`: the stream's process is recorded from here on. What it holds from before is not known.
pub const PROCESS_JOINED: u8 = 2;
/// `PROCESS`: the same, from its fork on: it holds a copy of what the process that it comes from holds at this moment.
pub const PROCESS_FORKED: u8 = 3;
/// `PROCESS`: the same, from its exec on: the process that it comes from is over, and nothing of it is left.
pub const PROCESS_NEW_PROGRAM: u8 = 4;
/// `PROCESS`: the process forks, or tries to: what it holds is its child's as well, which may be recorded from then on.
pub const PROCESS_FORKS: u8 = 5;

/// `MARKER`: somebody outside the program set it, with a text: `[value: 0][text length][text bytes, padded]`.
pub const MARKER_TEXT: u8 = 1;

/// `STRIPPED`, in the place of a lifetime: these blocks were released before the capture was begun (`hound run --rotate`).
pub const STRIPPED_BEFORE: u64 = 0;

/// `MODE`: recording off.
pub const MODE_OFF: u8 = 0;
/// `MODE`: every event recorded.
pub const MODE_FULL: u8 = 1;
/// `MODE`: sampled.
pub const MODE_SAMPLED: u8 = 2;
/// `MODE`: page faults alone.
pub const MODE_FAULTS: u8 = 3;

/// `FAULT`: what lies there is not known: it was unmapped before hound looked.
pub const FAULT_UNKNOWN: u8 = 0;
/// `FAULT`: the heap that grows by brk.
pub const FAULT_HEAP: u8 = 1;
/// `FAULT`: an anonymous mapping.
pub const FAULT_ANONYMOUS: u8 = 2;
/// `FAULT`: a page of a mapped file.
pub const FAULT_FILE: u8 = 3;
/// `FAULT`: a page of a file mapped for the process alone, which was written to: a copy of its own.
pub const FAULT_COPY: u8 = 4;
/// `FAULT`: the stack of the thread that touched it.
pub const FAULT_STACK: u8 = 5;
/// `FAULT`: memory shared with others that is no file on a disk.
pub const FAULT_SHARED: u8 = 6;
/// `FAULT` flag: the kernel touched it for the process, in a system call.
pub const FAULT_BY_KERNEL: u8 = 1;
/// `FAULT` flag: it was written to.
pub const FAULT_WRITE: u8 = 2;

const LIVENESS_ADDRESS: u64 = u64::MAX >> 8;

/// The word of a `LIVENESS` record: address, which has at most 56 bits, and pool.
pub const fn liveness_word(addr: u64, pool: u8) -> u64 {
    addr & LIVENESS_ADDRESS | (pool as u64) << 56
}

/// Address and pool of a [`liveness_word`].
pub const fn of_liveness_word(word: u64) -> (u64, u8) {
    (word & LIVENESS_ADDRESS, (word >> 56) as u8)
}

/// `LIVENESS`: nobody has watched since, so it may have been released.
pub const LIVENESS_UNKNOWN: u8 = 0;
/// `LIVENESS`: it lives.
pub const LIVENESS_ALIVE: u8 = 1;
/// `LIVENESS`: it was released, some time before.
pub const LIVENESS_GONE: u8 = 2;

/// `METRIC`: `[addr][length][resident bytes]`: resident part of a recorded map.
pub const METRIC_MAP_RSS: u8 = 1;
/// `METRIC`: `[resident bytes][proportional bytes or 0][swapped bytes]` of the process.
pub const METRIC_PROCESS_RSS: u8 = 2;
/// `METRIC`: `[verified][stepped][evaluated][full][spliced][frame-pointer steps][general walks]`: how the stream's frames were found,
/// totals so far.
pub const METRIC_UNWINDING: u8 = 3;
/// `METRIC`: `[address space][resident anonymous][resident of files][resident shared]` of the process, in bytes.
pub const METRIC_PROCESS_MEMORY: u8 = 4;
/// `METRIC`: `[bytes]`: the most that was resident of the process at any time since it began (VmHWM), as the kernel has kept it.
pub const METRIC_PROCESS_PEAK: u8 = 5;

/// `LOST`: the ring was full for longer than the target may be made to wait.
pub const LOST_RING_FULL: u8 = 1;
/// `LOST`: no stream was free for a thread.
pub const LOST_NO_STREAM: u8 = 2;
/// `LOST`: hooks nested deeper (signal handlers inside signal handlers) than streams are kept for.
pub const LOST_NESTED: u8 = 3;
/// `LOST`: the ring held bytes that are no record (the target scribbled over it).
pub const LOST_DAMAGED: u8 = 4;
/// `LOST`: the capture could not be written (disk full).
pub const LOST_DISK: u8 = 5;
/// `LOST`: the target had no memory left to record a deeper stack.
pub const LOST_NO_MEMORY: u8 = 6;
/// `LOST`: a thread did not come to an end with the event it was writing when hound detached.
pub const LOST_UNFINISHED: u8 = 7;
/// `LOST`: the table of sampled blocks had no place left; the sample was not taken.
pub const LOST_SAMPLES_FULL: u8 = 8;
/// Why events were lost: the table of sampled blocks was locked by what an interrupt had interrupted.
pub const LOST_BUSY: u8 = 9;
/// Why events were lost: an interrupt came while a program of hound's ran on that processor, and the kernel does not run it twice.
pub const LOST_INTERRUPTED: u8 = 10;
/// Why events were lost: there were more changes of mappings than the budget allows to tell.
pub const LOST_BUDGET: u8 = 11;

/// `END`: the thread ended.
pub const END_THREAD: u8 = 1;
/// `END`: the process exited; value is its status.
pub const END_EXIT: u8 = 2;
/// `END`: a signal killed the process; value is the signal.
pub const END_SIGNAL: u8 = 3;
/// `END`: the process replaced itself by exec.
pub const END_EXEC: u8 = 4;
/// `END`: hound stopped watching; the target runs on.
pub const END_DETACH: u8 = 5;
/// `END`: the kernel has killed the process for want of memory; value is the signal.
pub const END_NO_MEMORY: u8 = 6;
/// `END`: the process is gone, and nobody knows how.
pub const END_UNKNOWN: u8 = 7;

/// Longest time two time stamps of ordered operations on different cores may come out inverted, in nanoseconds. `rdtsc` may be executed
/// before older loads have finished, but not before they are *retired*: the bound is what one reorder buffer can hold, about a
/// microsecond with misses in every cache and in the TLB.
pub const REORDER_NS: u64 = 2_000;

/// Longest stack that is recorded, in frames. What is deeper ends with a depth-limit reason.
pub const MAX_FRAMES: usize = 16_384;

/// Most ips that one `STACK` record carries.
pub const MAX_STACK_RECORD_IPS: usize = 250;

/// A record's header word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// One of [`tag`].
    pub tag: u8,
    /// Length of the record in 8-byte words, this header included.
    pub words: u8,
    /// Tag-specific.
    pub a: u8,
    /// Tag-specific.
    pub b: u8,
    /// Ticks since the previous record of the stream.
    pub dt: u32,
}

impl Header {
    /// The header as its word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.tag as u64 | (self.words as u64) << 8 | (self.a as u64) << 16 | (self.b as u64) << 24 | (self.dt as u64) << 32
    }

    /// The header in a word. Total: any word is some header.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Header { tag: word as u8, words: (word >> 8) as u8, a: (word >> 16) as u8, b: (word >> 24) as u8, dt: (word >> 32) as u32 }
    }
}

/// How a `STACK` record changes the stream's array of ips (root first):
///
/// ```text
/// new array = old[0 .. keep_root] ++ ips ++ old[leaf_from .. leaf_from + keep_leaf]
/// path      = the whole new array
/// ```
///
/// If `leaf_from == keep_root + new`, the part of the old array behind the path stays where it was (frames that were popped and may be
/// pushed again); else it is cut off at the path's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StackEdit {
    /// Frames kept at the root side.
    pub keep_root: u16,
    /// New frames: as many ips follow.
    pub new: u16,
    /// Where in the old array the kept leaf side starts.
    pub leaf_from: u16,
    /// Frames kept at the leaf side.
    pub keep_leaf: u16,
}

impl StackEdit {
    /// The edit as its word.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.keep_root as u64 | (self.new as u64) << 16 | (self.leaf_from as u64) << 32 | (self.keep_leaf as u64) << 48
    }

    /// The edit in a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        StackEdit { keep_root: word as u16, new: (word >> 16) as u16, leaf_from: (word >> 32) as u16, keep_leaf: (word >> 48) as u16 }
    }
}

/// Size and slack of an `ALLOC` as its third word. Sizes of 2^48 and more cannot be allocated on any supported machine.
#[inline(always)]
pub const fn size_word(size: u64, slack: u16) -> u64 {
    size & 0xFFFF_FFFF_FFFF | (slack as u64) << 48
}

/// The two halves of [`size_word`].
#[inline(always)]
pub const fn size_and_slack(word: u64) -> (u64, u16) {
    (word & 0xFFFF_FFFF_FFFF, (word >> 48) as u16)
}

const _: () = assert!(size_of::<u64>() * 3 == 24, "an ALLOC without extras is three words");
const _: () = assert!(MAX_STACK_RECORD_IPS + 2 <= u8::MAX as usize, "a full STACK record's length fits its header");
const _: () = assert!(MAX_FRAMES <= u16::MAX as usize, "frame counts fit a StackEdit");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pools_have_a_number_in_the_place_of_flags() {
        for kind in Kind::all() {
            let is_pool = matches!(kind, Kind::PoolAlloc | Kind::PoolRealloc | Kind::PoolFree);
            for b in 0..=u8::MAX {
                let (pool, flags) = (pool_of(kind as u8, b), flags_of(kind as u8, b));
                assert_eq!((pool != 0, flags), (is_pool, if is_pool { b & 3 } else { b }), "{kind:?} {b}");
                assert!(!is_pool || b < 4 || pool == b >> POOL_SHIFT, "{kind:?} {b}");
            }
        }
    }

    #[test]
    fn every_header_survives_its_word() {
        for word in [0, 1, u64::MAX, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210] {
            assert_eq!(Header::from_word(word).to_word(), word);
            assert_eq!(StackEdit::from_word(word).to_word(), word);
            let (size, slack) = size_and_slack(word);
            assert_eq!(size_word(size, slack), word);
        }
    }
}
