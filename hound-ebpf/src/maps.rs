//! What the programs share with each other and with hound.

use crate::kernel::{COUNTERS, SETTINGS_SLOTS, Settings, Target};
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use core::arch::asm;

/// All messages. hound sets the size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(32 << 20, 0);

/// Live sampled blocks: process, address and pool (`live_key`) to the `id` of the call that made it. Not preallocated: it is sized for the worst,
/// and mostly nearly empty.
#[map]
pub static LIVE: HashMap<[u32; 3], u64> = HashMap::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);

/// Bits of a number of `FOLLOWED`.
const FOLLOWED_BITS: u32 = 16;

/// How many blocks of `LIVE` have an address of this number: nearly every release is of none, and is told so by one load instead of a hash of
/// twelve bytes. What hound itself takes out of `LIVE` stays counted: that costs time, and no block is missed.
#[map]
pub static FOLLOWED: Array<u32> = Array::with_max_entries(1 << FOLLOWED_BITS, 0);

/// Sampled calls under way, by stack pointer, thread and pool. The least recently used gives way: a thread that died or jumped out of a call
/// leaves its note behind.
#[map]
pub static PENDING: LruHashMap<[u64; 2], Pending> = LruHashMap::with_max_entries(1 << 14, 0);

/// Settings; see `CURRENT`.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(SETTINGS_SLOTS, 0);

/// Which of `SETTINGS` is in force.
#[map]
pub static CURRENT: Array<u32> = Array::with_max_entries(1, 0);

/// Counters (`COUNT_…`).
#[map]
pub static COUNTS: PerCpuArray<[u64; COUNTERS as usize]> = PerCpuArray::with_max_entries(1, 0);

/// Processes whose faults, mappings and life are told of.
#[map]
pub static TARGETS: HashMap<u32, Target> = HashMap::with_max_entries(1 << 12, BPF_F_NO_PREALLOC);

/// What is remembered of a call between its entry and its return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pending {
    pub id: u64,
    pub size: u64,
    /// The old block of a resizing call, and the `id` it was made by (0: it is not a sampled one).
    pub old: u64,
    pub made_by: u64,
    /// Where the address will be written, or 0.
    pub out: u64,
    /// Of the cookie.
    pub does: u32,
    /// Bits of `CALL_…`.
    pub flags: u32,
}

/// The settings in force. A writer fills another slot and then moves `CURRENT`: none is seen half written unless all slots go round while
/// one program runs.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(*CURRENT.get(0)? & (SETTINGS_SLOTS - 1))
}

/// Adds one to a counter. Atomic: these programs can be preempted by others on the same CPU.
#[inline(always)]
pub fn count(which: u32) {
    if let Some(counts) = COUNTS.get_ptr_mut(0)
        && which < COUNTERS
    {
        // SAFETY: `which` is inside the array that the map's value is.
        let counter = unsafe { counts.cast::<u64>().add(which as usize) };
        // The library has no atomics for this machine.
        // SAFETY: adds to the counter, which is aligned and is never taken away from a running program.
        unsafe { asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1u64) };
    }
}

/// Number in `FOLLOWED` (Fibonacci hashing: Knuth, TAOCP 3, 6.4).
#[inline(always)]
fn number(address: u64) -> u32 {
    ((address >> 4) as u32).wrapping_mul(0x9E37_79B1) >> (u32::BITS - FOLLOWED_BITS)
}

/// Whether a block at this address may be in `LIVE`.
#[inline(always)]
pub fn may_be_live(address: u64) -> bool {
    FOLLOWED.get(number(address)).is_none_or(|blocks| *blocks != 0)
}

/// A block at this address will be in `LIVE` (1), or is there no more (-1).
#[inline(always)]
pub fn follow(address: u64, blocks: i32) {
    if let Some(counter) = FOLLOWED.get_ptr_mut(number(address)) {
        // SAFETY: adds to a value of the map, which is aligned and is never taken away from a running program.
        unsafe { asm!("lock *(u32 *)({counter} + 0) += {blocks}", counter = in(reg) counter, blocks = in(reg) i64::from(blocks)) };
    }
}

/// What this CPU has counted.
#[inline(always)]
pub fn counted(which: u32) -> u64 {
    COUNTS.get(0).and_then(|counts| counts.get(which as usize)).copied().unwrap_or(0)
}
