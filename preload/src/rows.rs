//! The row for a return address, computed once and cached for the whole process.
//!
//! The cache is a table of atomics that only gains entries (and turns those of an unloaded module into tombstones): a reader needs no lock,
//! and a signal handler that interrupts a writer finds the slot being written and computes the row for itself.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use hound_common::ring::Counter;
use hound_unwind::{EndReason, Row, Scratch, Sections, evaluate, is_signal_return};

use crate::modules::{self, Module};
use crate::thread::Thread;
use crate::{guard, record};

const SLOTS: usize = 1 << 15;
const PROBES: usize = 16;
const BUSY: u64 = 1;
const TOMBSTONE: u64 = 2;

struct Slot {
    /// The return address; 0 = empty, [`BUSY`], [`TOMBSTONE`].
    key: AtomicU64,
    row: [AtomicU64; 2],
}

static CACHE: [Slot; SLOTS] = [const { Slot { key: AtomicU64::new(0), row: [AtomicU64::new(0), AtomicU64::new(0)] } }; SLOTS];

/// Marks a key as an ip that a signal interrupted: the instruction itself is looked up. A return address is looked up one byte before,
/// in the call: behind it another function may begin.
pub const EXACT: u64 = 1 << 63;

/// The address whose rules a key asks for.
fn lookup_ip(key: u64) -> u64 {
    if key & EXACT != 0 { key & !EXACT } else { key.wrapping_sub(1) }
}

#[inline(always)]
fn hash(ra: u64) -> usize {
    (ra.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.trailing_zeros())) as usize
}

/// The row for a return address, or for an ip marked [`EXACT`]. From the cache, or computed and cached.
#[inline(always)]
pub fn row(thread: &mut Thread, ra: u64) -> Row {
    let start = hash(ra);
    for probe in 0..PROBES {
        let Some(slot) = CACHE.get((start + probe) % SLOTS) else { break };
        let key = slot.key.load(Ordering::Acquire); // pairs with the release in `insert`
        if key == ra {
            return Row::from_bits([slot.row[0].load(Ordering::Relaxed), slot.row[1].load(Ordering::Relaxed)]);
        }
        if key == 0 {
            break;
        }
    }
    miss(thread, ra)
}

#[cold]
#[inline(never)]
fn miss(thread: &mut Thread, key: u64) -> Row {
    thread.count(Counter::Evaluated, 1);
    let ip = lookup_ip(key);
    let Some(module) = module_of(thread, ip) else {
        // Code made at run time: registered frames, else the frame pointer. Not cached: such code comes and goes.
        return registered(thread, ip).unwrap_or(Row::FRAME_POINTER);
    };
    let row = match modules::sections(&module) {
        Ok(sections) if key & EXACT == 0 && is_made_by_hand(&module, &sections, key) => Row::ROOT,
        Ok(sections) => compute(thread, &sections, ip),
        Err(reason) => Row::none(reason),
    };
    let row = if row == Row::none(EndReason::NoRow) { without_rules(ip) } else { row };
    insert(key, row);
    row
}

/// Whether a return address was put there by no call: it is the first instruction of a function, and no call instruction ends before it
/// (the last one of the function before may call something that does not return). `makecontext` starts a fiber's stack so; what is behind
/// is no frame, though glibc's rules for that function pretend it is.
fn is_made_by_hand(module: &Module, sections: &Sections<'_>, ra: u64) -> bool {
    const LONGEST_CALL: u64 = 7;
    const CALL_RELATIVE: u8 = 0xe8;
    const INDIRECT: u8 = 0xff;
    if ra < module.start + LONGEST_CALL || sections.fde_range(ra).map_or(true, |range| range.start != ra) {
        return false;
    }
    // SAFETY: code of a loaded module, which has an entry for `ra` and begins well before it.
    let before = unsafe { core::slice::from_raw_parts((ra - LONGEST_CALL) as *const u8, LONGEST_CALL as usize) };
    let is_relative = before.get(2) == Some(&CALL_RELATIVE);
    // `call r/m64` is FF /2, with two to seven bytes in all.
    let is_indirect = before.windows(2).any(|pair| matches!(pair, [INDIRECT, modrm] if modrm >> 3 & 7 == 2));
    !is_relative && !is_indirect
}

/// Code in a module, but without rules: a signal trampoline (musl's has none), else trust the frame pointer.
fn without_rules(ip: u64) -> Row {
    // SAFETY: mapped code of a module; 16 bytes behind it lie in the module's text or its padding.
    let code = unsafe { core::slice::from_raw_parts(ip as *const u8, 16) };
    if is_signal_return(code) { Row::SIGNAL } else { Row::FRAME_POINTER }
}

/// The module that holds `avma`; if it is met for the first time, hound is told.
pub fn module_of(thread: &mut Thread, avma: u64) -> Option<Module> {
    if let Some(module) = modules::known(avma) {
        return Some(module);
    }
    let module = modules::ask_loader(avma)?;
    if modules::remember(module) {
        record::module(thread, &module);
    }
    Some(module)
}

fn registered(thread: &mut Thread, ip: u64) -> Option<Row> {
    if !modules::has_registered_frames() {
        return None;
    }
    modules::registered_sections().map(|sections| compute(thread, &sections, ip)).find(|row| *row != Row::none(EndReason::NoRow))
}

/// Working memory for evaluation, shared by all threads: rows are computed rarely, and each takes well under a microsecond.
struct Bench {
    taken: AtomicBool,
    scratch: core::cell::UnsafeCell<core::mem::MaybeUninit<Scratch>>,
}

// SAFETY: `scratch` is touched only by who has set `taken`.
unsafe impl Sync for Bench {}

const BENCHES: usize = 16;
static POOL: [Bench; BENCHES] =
    [const { Bench { taken: AtomicBool::new(false), scratch: core::cell::UnsafeCell::new(core::mem::MaybeUninit::uninit()) } }; BENCHES];
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs `work` with working memory. `None` if all is taken, which needs as many threads (or nested handlers) evaluating at once.
pub fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
    let first = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
    for offset in 0..BENCHES {
        let Some(bench) = POOL.get((first + offset) % BENCHES) else { continue };
        if bench.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            // SAFETY: taken, so it is ours alone until it is given back.
            let place = unsafe { &mut *bench.scratch.get() };
            let result = work(place.write(Scratch::new()));
            bench.taken.store(false, Ordering::Release);
            return Some(result);
        }
    }
    None
}

fn compute(thread: &mut Thread, sections: &Sections<'_>, ip: u64) -> Row {
    let mut row = Row::none(EndReason::TooComplex);
    let mut body = || {
        if let Some(found) = with_scratch(|scratch| evaluate(sections, ip, scratch)) {
            row = found;
        }
    };
    if guard::protected(&mut thread.anchor, &mut body) { row } else { Row::none(EndReason::BadSection) }
}

fn insert(ra: u64, row: Row) {
    let start = hash(ra);
    for probe in 0..PROBES {
        let Some(slot) = CACHE.get((start + probe) % SLOTS) else { return };
        let key = slot.key.load(Ordering::Relaxed);
        if key == ra {
            return;
        }
        if (key == 0 || key == TOMBSTONE) && slot.key.compare_exchange(key, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            let bits = row.to_bits();
            slot.row[0].store(bits[0], Ordering::Relaxed);
            slot.row[1].store(bits[1], Ordering::Relaxed);
            slot.key.store(ra, Ordering::Release); // pairs with the acquire in `row`
            return;
        }
    }
}

/// Forgets all rows of the addresses `start..end`.
pub fn forget(start: u64, end: u64) {
    for slot in &CACHE {
        let key = slot.key.load(Ordering::Relaxed);
        let ip = lookup_ip(key);
        if key > TOMBSTONE && ip >= start && ip < end {
            let _ = slot.key.compare_exchange(key, TOMBSTONE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}
