//! What hound's programs in the kernel and hound say to each other: how a probe's cookie tells the function, and the messages in the
//! BPF ring buffer.
//!
//! A call that is sampled makes a [`Call`] when it begins, with the registers and the top of the stack as the caller left them, and an
//! [`Outcome`] when it returns. Both carry the same `id`. A release of a block whose allocation was sampled makes a [`Call`] only.
//!
//! What is under observation is decided by the kernel's table of live sampled blocks, not by the messages: a message that was lost takes
//! no block out of it and puts none in, so the table can be read to find out what a full ring has swallowed.

use crate::draw::Draw;

/// [`Call::message`]: an allocating function was called and sampled; an [`Outcome`] follows unless the call never returns.
pub const MESSAGE_ALLOC: u32 = 1;
/// [`Call::message`]: a sampled block is about to be released. Nothing follows.
pub const MESSAGE_FREE: u32 = 2;
/// [`Call::message`]: a sampled block is about to be resized; an [`Outcome`] follows. If [`CALL_SAMPLED`] is not set, the new block is not
/// sampled.
pub const MESSAGE_REALLOC: u32 = 3;
/// [`Call::message`]: a page that was not there was touched; `pointer` is the address, `detail` the processor's error code.
pub const MESSAGE_FAULT: u32 = 4;
/// [`Call::message`]: a system call that changes mappings has returned `size`, and has not failed; `detail` is its number, the registers
/// hold what it was asked. brk has no stack, and may have changed nothing.
pub const MESSAGE_MAPPED: u32 = 5;
/// [`Outcome::message`].
pub const MESSAGE_OUTCOME: u32 = 16;
/// [`Outcome::message`]: an address was handed out by a call that is not sampled, while the block of call `id` was still held to be there:
/// its release was not seen. Only with [`SETTING_WITNESS`].
pub const MESSAGE_REUSED: u32 = 17;
/// [`Lifecycle::message`]: the process forked; `other` is the child.
pub const MESSAGE_FORK: u32 = 32;
/// [`Lifecycle::message`]: the process replaced itself by another program.
pub const MESSAGE_EXEC: u32 = 33;
/// [`Lifecycle::message`]: a thread ended.
pub const MESSAGE_EXIT: u32 = 34;
/// [`Lifecycle::message`]: a thread has a new name.
pub const MESSAGE_NAME: u32 = 35;
/// [`Lifecycle::message`]: the kernel has chosen the process to be killed for want of memory.
pub const MESSAGE_OOM: u32 = 36;

/// [`Call::flags`]: the new block of this call is sampled.
pub const CALL_SAMPLED: u32 = 1;
/// [`Call::flags`]: `pointer` is a block that was sampled.
pub const CALL_KNOWN: u32 = 2;
/// [`Call::flags`] of a fault: the kernel touched the page for the process, in a system call; the registers are those of the call.
pub const CALL_BY_KERNEL: u32 = 4;
/// [`Call::flags`]: less of the stack could be read than was asked for.
pub const CALL_STACK_CUT: u32 = 8;
/// [`Call::flags`]: hound was woken for this one: code was mapped.
pub const CALL_AT_ONCE: u32 = 16;

/// [`Outcome::flags`]: the table of live sampled blocks is full; the release of this one will not be seen.
pub const OUTCOME_NOT_FOLLOWED: u32 = 1;
/// [`Outcome::flags`]: the call failed, and the old block is where it was.
pub const OUTCOME_OLD_STAYS: u32 = 2;

/// Registers travel by their DWARF numbers (System V ABI, AMD64 supplement, figure 3.36): 0 to 15, and 16 is the return address column: here `rip`.
pub const REGISTERS: usize = 17;

/// The beginning of a message about a call. `stack_bytes` bytes follow it: the stack from `registers[7]` (rsp) on; what comes after them
/// in the message means nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// One of `MESSAGE_…`.
    pub message: u32,
    /// Bits of `CALL_…`.
    pub flags: u32,
    /// Tells it from all others of the last hour; never 0.
    pub id: u64,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Process (thread group), as the machine's first PID namespace numbers it.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Which function: see [`Cookie`].
    pub cookie: u64,
    /// `id` of the call that made the block `pointer`, with [`CALL_KNOWN`]; else 0.
    pub made_by: u64,
    /// Bytes asked for; [`u64::MAX`] where a product is larger.
    pub size: u64,
    /// The block that is released or resized, or the address that was touched; else 0.
    pub pointer: u64,
    /// The mean interval between samples when this one was drawn, in bytes; 0: every call.
    pub interval: u64,
    /// The stack's bytes that follow.
    pub stack_bytes: u32,
    /// See [`MESSAGE_FAULT`] and [`MESSAGE_MAPPED`]; else 0.
    pub detail: u32,
    /// Thread, as its own PID namespace numbers it; 0: not known.
    pub own_tid: u32,
    /// Pages of the stack that were not in memory, and are missing in the copy: bit 0 is the page in which it begins.
    pub holes: u32,
    /// The registers as the function's first instruction found them, but for those it may change freely. `rip` is the address of the
    /// probe; the caller goes on at the address that is the stack's first word. Of a fault: the registers as they were.
    pub registers: [u64; REGISTERS],
}

/// What came of a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// [`MESSAGE_OUTCOME`] or [`MESSAGE_REUSED`].
    pub message: u32,
    /// Bits of `OUTCOME_…`.
    pub flags: u32,
    /// The call's.
    pub id: u64,
    /// CLOCK_MONOTONIC, after the call.
    pub time_ns: u64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// The block; 0: there is none, the call failed.
    pub address: u64,
    /// What the function returned: with [`DOES_RESIZE`] the block's size. Of [`MESSAGE_REUSED`]: the function's [`Cookie`].
    pub result: u64,
}

/// What happened to a process or a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// One of `MESSAGE_…`.
    pub message: u32,
    /// The child, with [`MESSAGE_FORK`].
    pub other: u32,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// The thread's name, with [`MESSAGE_NAME`] and [`MESSAGE_FORK`]; padded with zeroes.
    pub name: [u8; 16],
}

const _: () = assert!(size_of::<Call>() == 88 + 8 * REGISTERS && size_of::<Outcome>() == 48 && size_of::<Lifecycle>() == 40);

/// How the programs work; may be changed while they run. Field by field: 64 bits each, so that there is no padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which calls are sampled.
    pub draw: Draw,
    /// Bits of `SETTING_…`.
    pub flags: u64,
    /// How much of the stack: [`stack_class`].
    pub stack_class: u64,
    /// Mean bytes between sampled faults; 0: every one. Told in the messages only.
    pub fault_interval: u64,
    /// A fault is sampled if a random number of 32 bits is below this.
    pub fault_threshold: u64,
    /// The consumer is woken each time the ring has filled by this much; a power of two.
    pub wake_bytes: u64,
    /// Where the kernel's `task_struct` has `pid`; 0: not known.
    pub task_pid: u64,
    /// Where it has `tgid`.
    pub task_tgid: u64,
    /// Where it has `pagefault_disabled`.
    pub task_pagefault_disabled: u64,
    /// Most changes of mappings that one CPU tells in [`MAPPED_SPAN`], but for code, which is always told; 0: all.
    pub mapped_most: u64,
}

/// [`Settings::flags`]: releases carry the stack.
pub const SETTING_FREE_STACKS: u64 = 1;
/// [`Settings::flags`]: page faults are sampled.
pub const SETTING_FAULTS: u64 = 2;
/// [`Settings::flags`]: every call's return is looked at, to find addresses whose release was not seen. Costs every call a return probe.
pub const SETTING_WITNESS: u64 = 4;

/// [`Settings::flags`]: every change of a mapping is told, not only what is mapped as code.
pub const SETTING_MAPPED: u64 = 8;
/// See [`Settings::mapped_most`]; in nanoseconds.
pub const MAPPED_SPAN: u64 = 1_000_000_000;

/// Settings that the programs can hold; the one in force is named by an index beside them, so that none is ever seen half written.
pub const SETTINGS_SLOTS: u32 = 64;
/// Bytes of the smallest stack class; each further one is twice as large.
pub const STACK_SMALLEST: u64 = 2048;
/// The last stack class: 64 KiB.
pub const STACK_CLASSES: u64 = 6;

/// The stack class that holds so many bytes: 0 is no stack, 1 is [`STACK_SMALLEST`], at most [`STACK_CLASSES`].
pub const fn stack_class(bytes: u64) -> u64 {
    let mut class = 0;
    while class < STACK_CLASSES && class_bytes(class) < bytes {
        class += 1;
    }
    class
}

/// Bytes of a stack class.
pub const fn class_bytes(class: u64) -> u64 {
    if class == 0 { 0 } else { STACK_SMALLEST << (class - 1) }
}

/// Counters that the programs keep, one for each CPU: probes hit at functions that allocate.
pub const COUNT_ALLOC_HITS: u32 = 0;
/// Probes hit at functions that release.
pub const COUNT_FREE_HITS: u32 = 1;
/// Calls sampled.
pub const COUNT_SAMPLES: u32 = 2;
/// Returns of sampled calls seen.
pub const COUNT_RETURNS: u32 = 3;
/// Releases of sampled blocks seen.
pub const COUNT_RELEASES: u32 = 4;
/// Page faults of targets seen.
pub const COUNT_FAULTS: u32 = 5;
/// [`Call`]s that were lost because the ring was full.
pub const COUNT_LOST_CALLS: u32 = 6;
/// [`Outcome`]s lost so.
pub const COUNT_LOST_OUTCOMES: u32 = 7;
/// [`Call`]s of releases lost so.
pub const COUNT_LOST_RELEASES: u32 = 8;
/// Faults lost so.
pub const COUNT_LOST_FAULTS: u32 = 9;
/// [`Lifecycle`] messages lost so.
pub const COUNT_LOST_LIFECYCLE: u32 = 10;
/// Blocks not followed because the table of live sampled blocks is full.
pub const COUNT_LIVE_FULL: u32 = 11;
/// Samples lost because no note of a call under way could be made.
pub const COUNT_PENDING_FULL: u32 = 12;
/// Stacks of which nothing could be read.
pub const COUNT_STACK_UNREADABLE: u32 = 13;
/// Stacks that end before what was asked for, mostly because they are no longer.
pub const COUNT_STACK_CUT: u32 = 14;
/// Changes of mappings told.
pub const COUNT_MAPPED: u32 = 15;
/// Changes of mappings lost because the ring was full.
pub const COUNT_LOST_MAPPED: u32 = 16;
/// Changes of mappings not told because there were more than [`Settings::mapped_most`].
pub const COUNT_TOO_MANY_MAPPED: u32 = 17;
/// How many counters there are.
pub const COUNTERS: u32 = 18;

/// [`KernelBlock::message`]: the kernel has allocated; the stack follows.
pub const KERNEL_ALLOC: u32 = 48;
/// [`KernelBlock::message`]: a sampled block of the kernel's is about to be released. No stack follows.
pub const KERNEL_FREE: u32 = 49;
/// [`KernelBlock::message`]: the address of a sampled block was handed out again, in an allocation that is not sampled: its release was not
/// seen. No stack follows.
pub const KERNEL_REUSED: u32 = 50;

/// [`KernelBlock::kind`]: `kmalloc`.
pub const KERNEL_KMALLOC: u32 = 0;
/// [`KernelBlock::kind`]: an object of a slab cache.
pub const KERNEL_CACHE: u32 = 1;
/// [`KernelBlock::kind`]: memory of which each processor has its own.
pub const KERNEL_PERCPU: u32 = 2;
/// [`KernelBlock::kind`]: whole pages.
pub const KERNEL_PAGES: u32 = 3;

/// Most frames of a kernel stack that are taken, those of the tracing itself among them.
pub const KERNEL_FRAMES: usize = 64;

/// An allocation of the kernel's own, or a release. `frames` return addresses follow it, the innermost first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelBlock {
    /// One of `KERNEL_ALLOC`, `KERNEL_FREE`, `KERNEL_REUSED`.
    pub message: u32,
    /// One of `KERNEL_KMALLOC`, `KERNEL_CACHE`, `KERNEL_PERCPU`, `KERNEL_PAGES`: what allocates or releases.
    pub kind: u32,
    /// Tells the allocation from all others of the last hours; 0 of a release.
    pub id: u64,
    /// CLOCK_MONOTONIC; after an allocation, before a release.
    pub time_ns: u64,
    /// Process that ran, as the machine's first PID namespace numbers it. It need not be the one for which this is done.
    pub pid: u32,
    /// Thread that ran.
    pub tid: u32,
    /// The block. Of per-CPU memory the first processor's; of pages their `struct page`.
    pub address: u64,
    /// Bytes it takes up: the size that the allocator has for it; of per-CPU memory, of all possible processors together.
    pub size: u64,
    /// The mean interval between samples, in bytes; 0: every one.
    pub interval: u64,
    /// `id` of the allocation of the block that is released, or that was still held to be there at this address; else 0.
    pub made_by: u64,
    /// The cache (`struct kmem_cache`), of [`KERNEL_CACHE`]; else 0.
    pub cache: u64,
    /// Its name; padded with zeroes.
    pub cache_name: [u8; 32],
    /// The thread's name; padded with zeroes.
    pub thread: [u8; 16],
    /// Return addresses that follow.
    pub frames: u32,
    /// Nothing.
    pub padding: u32,
}

const _: () = assert!(size_of::<KernelBlock>() == 128);

/// How kernel memory is recorded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelSettings {
    /// Which allocations are sampled.
    pub draw: Draw,
    /// Only of this process' threads; 0: of all.
    pub pid: u64,
    /// hound's own process, of which nothing is recorded.
    pub hound: u64,
    /// The consumer is woken each time the ring has filled by this much; a power of two.
    pub wake_bytes: u64,
    /// Possible processors.
    pub cpus: u64,
    /// Where the kernel's `kmem_cache` has `size`.
    pub cache_size: u64,
    /// Where it has `name`; 0: not known.
    pub cache_name: u64,
}

/// Counters of the programs for kernel memory, one for each CPU: allocations seen, of those that are asked for.
pub const KMEM_ALLOC_HITS: u32 = 0;
/// Releases seen.
pub const KMEM_FREE_HITS: u32 = 1;
/// Allocations sampled.
pub const KMEM_SAMPLES: u32 = 2;
/// Releases of sampled blocks seen.
pub const KMEM_RELEASES: u32 = 3;
/// Addresses of sampled blocks that were handed out again, without a release that was seen.
pub const KMEM_REUSED: u32 = 4;
/// Samples lost because the ring was full.
pub const KMEM_LOST_ALLOCS: u32 = 5;
/// Releases that could not be told for the same reason.
pub const KMEM_LOST_FREES: u32 = 6;
/// Samples lost because the table of live sampled blocks was full.
pub const KMEM_LIVE_FULL: u32 = 7;
/// The table was locked by what was interrupted.
pub const KMEM_BUSY: u32 = 8;
/// Samples without a stack.
pub const KMEM_NO_STACK: u32 = 9;
/// Allocations seen of those that are not asked for: of other processes, of hound itself. They are not among [`KMEM_ALLOC_HITS`].
pub const KMEM_OTHERS: u32 = 10;
/// How many counters there are.
pub const KMEM_COUNTERS: u32 = 11;

/// A target's PID namespace, by which its threads know each other: device and inode of `/proc/PID/ns/pid`, the device as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
}

/// A process that is told of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Its PID namespace.
    pub namespace: Namespace,
    /// Whether the children that it forks are told of, too (else 0).
    pub follow: u64,
}

/// Where a live sampled block is: process, address, and pool (a pool's block may lie where the block lies that it was cut from), in words of
/// 32 bits so that nothing is padded.
pub const fn live_key(pid: u32, address: u64, pool: u8) -> [u32; 3] {
    // User addresses have at most 56 bits.
    [address as u32, (address >> 32) as u32 & 0xFF_FFFF | (pool as u32) << 24, pid]
}

/// Process, address and pool of a [`live_key`].
pub const fn of_live_key([low, high, pid]: [u32; 3]) -> (u32, u64, u8) {
    (pid, (high as u64 & 0xFF_FFFF) << 32 | low as u64, (high >> 24) as u8)
}

/// What the kernel's program must know of the function that a probe stands on; it travels in the link's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// `hook::Kind`'s number.
    pub kind: u8,
    /// What it does: one of `DOES_…`.
    pub does: u8,
    /// Which argument (0 to 5) is the size; [`NOTHING`] if none is.
    pub size: u8,
    /// Which argument the size is multiplied with.
    pub count: u8,
    /// Which argument is the block that is released or resized.
    pub block: u8,
    /// Which argument points to where the new block's address is written (posix_memalign); [`NOTHING`]: it is returned.
    pub out: u8,
    /// Number of the pool that it is of; 0: of the heap.
    pub pool: u8,
    /// Words that the function has pushed before the probe: rsp has moved down by eight times this since the call. Must be 0 at a function
    /// whose return is probed: the kernel takes the word at rsp for the return address, and overwrites it.
    pub pushes: u8,
}

/// [`Cookie`]: no argument is that.
pub const NOTHING: u8 = 0xF;
/// [`Cookie::does`]: allocates.
pub const DOES_ALLOC: u8 = 0;
/// [`Cookie::does`]: releases.
pub const DOES_FREE: u8 = 1;
/// [`Cookie::does`]: resizes; the old block stays where the call fails.
pub const DOES_REALLOC: u8 = 2;
/// [`Cookie::does`]: resizes in place and returns the new size (xallocx).
pub const DOES_RESIZE: u8 = 3;

impl Cookie {
    /// As 64 bits.
    pub const fn to_bits(self) -> u64 {
        self.kind as u64
            | (self.does as u64 & 0xF) << 8
            | (self.size as u64 & 0xF) << 12
            | (self.count as u64 & 0xF) << 16
            | (self.block as u64 & 0xF) << 20
            | (self.out as u64 & 0xF) << 24
            | (self.pool as u64) << 32
            | (self.pushes as u64) << 40
    }

    /// From 64 bits.
    pub const fn from_bits(bits: u64) -> Self {
        Cookie {
            kind: bits as u8,
            does: (bits >> 8) as u8 & 0xF,
            size: (bits >> 12) as u8 & 0xF,
            count: (bits >> 16) as u8 & 0xF,
            block: (bits >> 20) as u8 & 0xF,
            out: (bits >> 24) as u8 & 0xF,
            pool: (bits >> 32) as u8,
            pushes: (bits >> 40) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_survives_its_bits() {
        let cookie = Cookie { kind: 200, does: DOES_REALLOC, size: 2, count: NOTHING, block: 0, out: NOTHING, pool: 63, pushes: 1 };
        assert_eq!(Cookie::from_bits(cookie.to_bits()), cookie);
    }

    #[test]
    fn a_live_block_is_told_from_the_one_that_it_was_cut_from() {
        for (pid, address, pool) in [(1, 0x7fff_ffff_fff0, 0), (u32::MAX >> 10, 0xff_ffff_ffff_fff0, 63), (7, 0, 1)] {
            assert_eq!(of_live_key(live_key(pid, address, pool)), (pid, address, pool));
            assert_ne!(live_key(pid, address, pool), live_key(pid, address, pool ^ 1));
        }
    }

    #[test]
    fn a_stack_class_holds_what_was_asked_for() {
        let asked = [0, 1, 2048, 2049, 16384, 65536, u64::MAX];
        assert_eq!(asked.map(|bytes| class_bytes(stack_class(bytes))), [0, 2048, 2048, 4096, 16384, 65536, 65536]);
    }
}
