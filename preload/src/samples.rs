//! Which blocks were sampled: a table of their addresses, so that of all releases only theirs are recorded.
//!
//! A filter of counters stands before it: a release of a block that was not sampled, which is nearly every one, reads one byte of 64 KiB.
//! Blocks side by side share a line of it, so that it takes a sixteenth of the cache that the blocks themselves take.
//!
//! The table is two lines of eight places for each address, and no more: a look into it ends there, and nothing has to be moved or marked
//! when a block leaves. A counter is raised before its block is entered and lowered after it was taken out, so that it is never 0 while
//! the block is there. No address is entered twice, for no two blocks have it at once: an entry is made after the real allocation and taken out
//! before the real release.
//!
//! Entries of an earlier part of the recording ([`Control::part`](hound_common::ring::Control)) mean nothing: nobody watched since. They
//! are overwritten where their place is wanted.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};

use hound_common::attach::{SAMPLE_FILTER, SAMPLE_SLOTS, SAMPLES_BYTES};

use crate::{process, sys};

/// Filter and table; nothing is asked of them before they are there.
pub static SAMPLES: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

const SLOTS_A_LINE: usize = 8;
const LINES: usize = SAMPLE_SLOTS / SLOTS_A_LINE;

// An entry: bits 0 to 46 the address (the user's half of the address space), then `HELD`, 6 bits of pool, 10 bits of part.
const ADDRESS: u64 = (1 << 47) - 1;
/// The block is being resized: it is not found, and its place is kept.
const HELD: u64 = 1 << 47;
const POOL_SHIFT: u32 = 48;
const PART_SHIFT: u32 = 54;
const _: () = assert!(SAMPLE_FILTER == 1 << 16 && LINES == 1 << 15, "the hashes below make that many");

/// Whether any block was ever entered.
static ANY: AtomicBool = AtomicBool::new(false);

/// Whether a sample may be held at all. Who knows a block that was sampled knows that.
#[inline(always)]
pub fn are_any() -> bool {
    ANY.load(Ordering::Relaxed)
}

/// Reserves the memory. Once, at start-up. False if there is none.
pub fn reserve() -> bool {
    let Some(memory) = sys::map_private(SAMPLES_BYTES, true) else { return false };
    use_reserved(memory as u64);
    true
}

/// Uses memory that hound has reserved.
pub fn use_reserved(memory: u64) {
    SAMPLES.store(memory as *mut u8, Ordering::Release);
}

/// The counter of an address. Addresses next to each other have counters next to each other.
#[inline(always)]
fn counter(addr: u64) -> &'static AtomicU8 {
    let place = (addr >> 4 ^ addr >> 20) as u16;
    let base = SAMPLES.load(Ordering::Relaxed);
    // SAFETY: reserved before anything could be recorded, as many bytes as there are values of `place`; never unmapped.
    unsafe { &*base.wrapping_add(usize::from(place)).cast::<AtomicU8>() }
}

/// Whether a block at this address may be in the table; else it is not. Only when samples are or were taken.
#[inline(always)]
pub fn may_hold(addr: u64) -> bool {
    counter(addr).load(Ordering::Relaxed) != 0
}

fn raise(counter: &AtomicU8) {
    // Where it has come to its end it stays: then it says "may be" for ever.
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1));
}

fn lower(counter: &AtomicU8) {
    let less = |count: u8| if count == u8::MAX { None } else { count.checked_sub(1) };
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// The places that a block may have.
fn places(addr: u64) -> impl Iterator<Item = &'static AtomicU64> {
    let table = SAMPLES.load(Ordering::Relaxed).wrapping_add(SAMPLE_FILTER).cast::<AtomicU64>();
    let line = ((addr >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - LINES.trailing_zeros())) as usize;
    (0..2 * SLOTS_A_LINE).map(move |i| {
        let place = (line * SLOTS_A_LINE + i) % SAMPLE_SLOTS;
        // SAFETY: as in `counter`; the table has so many places behind the filter.
        unsafe { &*table.wrapping_add(place) }
    })
}

fn part() -> u64 {
    process::control().part.load(Ordering::Relaxed) << PART_SHIFT
}

fn entry(addr: u64, pool: u8) -> u64 {
    addr & ADDRESS | u64::from(pool & 63) << POOL_SHIFT | part()
}

/// Enters a block that was allocated just now. False if there is no place for it.
#[cold]
pub fn insert(addr: u64, pool: u8) -> bool {
    let entry = entry(addr, pool);
    // Still there if its last release was by a way that is not seen (a whole heap at once): it is the same address, and the block is this.
    if places(addr).any(|place| place.load(Ordering::Relaxed) == entry) {
        return true;
    }
    ANY.store(true, Ordering::Relaxed);
    raise(counter(addr));
    for place in places(addr) {
        let old = place.load(Ordering::Relaxed);
        let is_stale = old != 0 && (old ^ entry) >> PART_SHIFT != 0;
        if (old == 0 || is_stale) && place.compare_exchange(old, entry, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            if is_stale {
                lower(counter(old & ADDRESS));
            }
            return true;
        }
    }
    lower(counter(addr));
    false
}

/// Takes a block out that is about to be released. Whether it was there.
#[inline(always)]
pub fn take(addr: u64, pool: u8) -> bool {
    are_any() && may_hold(addr) && take_out(addr, pool)
}

#[cold]
#[inline(never)]
fn take_out(addr: u64, pool: u8) -> bool {
    let entry = entry(addr, pool);
    let found = places(addr).find(|place| place.compare_exchange(entry, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    if found.is_some() {
        lower(counter(addr));
    }
    found.is_some()
}

/// A sampled block that is being resized: as if taken out, but it can be put back, as its address may not be anybody's meanwhile or may be
/// another thread's already.
pub struct Held {
    place: &'static AtomicU64,
    entry: u64,
}

/// Holds a block that is about to be resized. `None` if it is not in the table.
#[inline(always)]
pub fn hold(addr: u64, pool: u8) -> Option<Held> {
    if are_any() && may_hold(addr) { hold_entry(addr, pool) } else { None }
}

#[cold]
#[inline(never)]
fn hold_entry(addr: u64, pool: u8) -> Option<Held> {
    let entry = entry(addr, pool);
    let hold = |place: &&AtomicU64| place.compare_exchange(entry, entry | HELD, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    places(addr).find(hold).map(|place| Held { place, entry })
}

impl Held {
    /// Nothing was done to the block: it is in the table as before.
    #[cold]
    pub fn put_back(self) {
        // If it is not there any more, a part of the recording has ended meanwhile.
        let _ = self.place.compare_exchange(self.entry | HELD, self.entry, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The block is gone.
    #[cold]
    pub fn let_go(self) {
        if self.place.compare_exchange(self.entry | HELD, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            lower(counter(self.entry & ADDRESS));
        }
    }
}
