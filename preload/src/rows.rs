//! The row for a return address, computed once and cached for the whole process.
//!
//! The cache is a table of atomics that gains entries, and turns those of an unloaded module into tombstones, whose slots are used again: a
//! reader needs no lock, and a signal handler that interrupts a writer finds the slot being written and computes the row for itself.

use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hound_common::ring::Counter;
use hound_unwind::{EndReason, LONGEST_CALL, Row, Scratch, Sections, evaluate, is_signal_return, may_end_in_call};

use crate::modules::{self, Module};
use crate::thread::Thread;
use crate::{guard, own, record};

/// Slots of the first table; later ones are twice as large each. Rows are looked up at random, between the program's own accesses:
/// a table of just the size needed is a third of the cost of one with room to spare (fewer cache and TLB misses).
const FIRST_SLOTS: usize = 2048;
const PROBES: usize = 16;
const BUSY: u64 = 1;
const TOMBSTONE: u64 = 2;
const KEY_BITS: u32 = 48;
const KEY_MASK: u64 = (1 << KEY_BITS) - 1;

/// Marks a key as an ip that a signal interrupted: the instruction itself is looked up. A return address is looked up one byte before,
/// in the call: behind it another function may begin. (User addresses end below this bit.)
pub const EXACT: u64 = 1 << (KEY_BITS - 1);

/// A key and its row in 16 bytes.
struct Slot {
    /// Bits 0..48: the key; 0 = empty, [`BUSY`], [`TOMBSTONE`]. Bits 48..64: the row's CFA offset in words.
    key: AtomicU64,
    /// The row's first word.
    row: AtomicU64,
}

struct Table {
    slots: AtomicPtr<Slot>,
    mask: AtomicUsize,
    used: AtomicUsize,
}

#[expect(clippy::declare_interior_mutable_const, reason = "the initial value of each slot")]
const EMPTY: Slot = Slot { key: AtomicU64::new(0), row: AtomicU64::new(0) };
/// Slots behind a table's last home: a search never has to wrap around, and ends at the last one, which stays empty.
const BEHIND: usize = PROBES;
static FIRST: [Slot; FIRST_SLOTS + BEHIND] = [EMPTY; FIRST_SLOTS + BEHIND];
/// Tables are never freed: a reader may still be in the previous one. There are as many as the table has grown, which is a few.
static TABLES: [Table; 16] = {
    let mut tables =
        [const { Table { slots: AtomicPtr::new(core::ptr::null_mut()), mask: AtomicUsize::new(0), used: AtomicUsize::new(0) } }; 16];
    tables[0].slots = AtomicPtr::new((&raw const FIRST).cast_mut().cast());
    tables[0].mask = AtomicUsize::new(FIRST_SLOTS - 1);
    tables
};
/// The table in use.
static CURRENT: AtomicPtr<Table> = AtomicPtr::new((&raw const TABLES).cast::<Table>().cast_mut());
/// How many modules' rows were forgotten.
static FORGOTTEN: AtomicUsize = AtomicUsize::new(0);
static GROWING: AtomicBool = AtomicBool::new(false);

/// The address whose rules a key asks for.
fn lookup_ip(key: u64) -> u64 {
    if key & EXACT != 0 { key & !EXACT } else { key.wrapping_sub(1) }
}

impl Table {
    #[inline(always)]
    fn current() -> &'static Table {
        // SAFETY: one of `TABLES`.
        unsafe { &*CURRENT.load(Ordering::Acquire) }
    }

    /// All slots but the last, which stays empty.
    #[inline(always)]
    fn slots(&self) -> &'static [Slot] {
        // SAFETY: a table in use has so many slots and is never freed.
        unsafe { core::slice::from_raw_parts(self.slots.load(Ordering::Relaxed), self.len() + BEHIND - 1) }
    }

    /// How many slots are a key's home.
    fn len(&self) -> usize {
        self.mask.load(Ordering::Relaxed) + 1
    }

    /// The slots where a key may be.
    fn neighbourhood(&self, key: u64) -> impl Iterator<Item = &'static Slot> {
        let home = hash(key) & self.mask.load(Ordering::Relaxed);
        self.slots().iter().skip(home).take(PROBES)
    }

    /// Puts a row in. False if its neighbourhood is full.
    fn insert(&self, key: u64, packed: (u64, u64)) -> bool {
        let mut chain = self.neighbourhood(key).map(|slot| slot.key.load(Ordering::Relaxed)).take_while(|found| *found != 0);
        if chain.any(|found| found & KEY_MASK == key) {
            return true;
        }
        for slot in self.neighbourhood(key) {
            let found = slot.key.load(Ordering::Relaxed);
            if found > TOMBSTONE || found == BUSY {
                continue;
            }
            if slot.key.compare_exchange(found, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                slot.row.store(packed.1, Ordering::Release); // pairs with the acquire of the row in `find`
                slot.key.store(packed.0, Ordering::Release); // pairs with the acquire of the key in `find`
                self.used.fetch_add(usize::from(found == 0), Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    /// Makes a larger table the current one, with all rows of this one.
    #[cold]
    fn grow(&self) {
        if GROWING.swap(true, Ordering::Acquire) {
            return;
        }
        let forgotten = FORGOTTEN.load(Ordering::Acquire);
        let next = TABLES.iter().position(|table| table.slots.load(Ordering::Relaxed).is_null());
        let slots = self.len() * 2;
        if let Some(table) = next.and_then(|next| TABLES.get(next))
            && let Some(memory) = own::map((slots + BEHIND) * size_of::<Slot>())
        {
            table.mask.store(slots - 1, Ordering::Relaxed);
            table.slots.store(memory.cast(), Ordering::Relaxed);
            for slot in self.slots() {
                let key = slot.key.load(Ordering::Acquire);
                if key & KEY_MASK > TOMBSTONE {
                    table.insert(key & KEY_MASK, (key, slot.row.load(Ordering::Relaxed)));
                }
            }
            // If a module was unloaded meanwhile, some of its rows may have been copied: this table is not used then.
            if FORGOTTEN.load(Ordering::Acquire) == forgotten {
                CURRENT.store((&raw const *table).cast_mut(), Ordering::Release); // pairs with `current`
            } else {
                table.slots.store(core::ptr::null_mut(), Ordering::Relaxed);
                // SAFETY: never was the current one.
                unsafe { own::unmap(memory, (slots + BEHIND) * size_of::<Slot>()) };
            }
        }
        GROWING.store(false, Ordering::Release);
    }
}

/// A key with its row as a slot holds them; `None` for a row that does not fit (frames of over 256 KiB), or whose CFA is sp or bp plus
/// nothing or less, which is none.
fn pack(key: u64, row: Row) -> Option<(u64, u64)> {
    let [word, _] = row.to_bits();
    let offset = row.cfa_offset();
    let is_above = offset > 0 || !(row.is_sp() || row.is_bp());
    let words = i16::try_from(offset / 8).ok().filter(|words| i32::from(*words) * 8 == offset && is_above)?;
    Some((key | u64::from(words as u16) << KEY_BITS, word))
}

/// A row as a slot holds it.
#[derive(Clone, Copy)]
pub struct Packed {
    key: u64,
    word: u64,
}

impl Packed {
    /// The constant in the CFA's formula, in bytes, of a row for sp or bp: there it is above 0.
    #[inline(always)]
    pub fn offset(self) -> u64 {
        (self.key >> KEY_BITS) * 8
    }

    /// All of it but that constant.
    #[inline(always)]
    pub fn rest(self) -> Row {
        Row::from_bits([self.word, 0])
    }

    /// All of it.
    #[inline(always)]
    fn row(self) -> Row {
        let offset = (self.key as i64 >> KEY_BITS) as i32 * 8;
        Row::from_bits([self.word, u64::from(offset as u32)])
    }
}

#[inline(always)]
fn hash(key: u64) -> usize {
    (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

/// Has the row of a return address on its way to the cache: it will be asked for when the real allocator has returned.
#[inline(always)]
pub fn prefetch(ra: u64) {
    let slot = View::now().home(ra);
    // SAFETY: a hint about an address; SSE is part of x86-64.
    unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(slot.cast()) };
}

/// The row for a return address, or for an ip marked [`EXACT`]. From the cache, or computed and cached. `sure`: as for [`module_of`].
#[inline(always)]
pub fn row(thread: &mut Thread, key: u64, sure: bool) -> Row {
    if let Some(row) = View::now().find(key) {
        return row.row();
    }
    miss(thread, key, sure)
}

/// The cache as it is now, for several look-ups in a row.
pub struct View {
    slots: *const Slot,
    mask: usize,
}

impl View {
    /// The table in use.
    #[inline(always)]
    pub fn now() -> View {
        let table = Table::current();
        View { slots: table.slots.load(Ordering::Relaxed), mask: table.mask.load(Ordering::Relaxed) }
    }

    /// Where the search for a key begins.
    #[inline(always)]
    fn home(&self, key: u64) -> *const Slot {
        self.slots.wrapping_add(hash(key) & self.mask)
    }

    /// The row of a key, if it is there; for 0 it may be one of no kind.
    #[inline(always)]
    pub fn find(&self, key: u64) -> Option<Packed> {
        let mut at = self.home(key);
        loop {
            // SAFETY: not behind the table's last slot, which is empty; it is never freed.
            let slot = unsafe { &*at };
            let found = slot.key.load(Ordering::Acquire); // pairs with the release in `insert`
            if (found ^ key) << (64 - KEY_BITS) == 0 {
                let word = slot.row.load(Ordering::Acquire);
                // Its module may be gone meanwhile, and another key have the slot. Pairs with the release of the row in `insert`.
                return (slot.key.load(Ordering::Relaxed) == found).then_some(Packed { key: found, word });
            }
            if found == 0 {
                return None;
            }
            at = at.wrapping_add(1);
        }
    }
}

#[cold]
#[inline(never)]
fn miss(thread: &mut Thread, key: u64, sure: bool) -> Row {
    thread.count(Counter::Evaluated, 1);
    let ip = lookup_ip(key);
    let Some(module) = module_of(thread, ip, sure) else {
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
    if ra < module.start + LONGEST_CALL as u64 || sections.fde_range(ra).map_or(true, |range| range.start != ra) {
        return false;
    }
    // SAFETY: code of a loaded module, which has an entry for `ra` and begins well before it.
    let before = unsafe { &*((ra - LONGEST_CALL as u64) as *const [u8; LONGEST_CALL]) };
    !may_end_in_call(before)
}

/// Code in a module, but without rules: a signal trampoline (musl's has none), else trust the frame pointer.
fn without_rules(ip: u64) -> Row {
    // SAFETY: mapped code of a module; 16 bytes behind it lie in the module's text or its padding.
    let code = unsafe { core::slice::from_raw_parts(ip as *const u8, 16) };
    if is_signal_return(code) { Row::SIGNAL } else { Row::FRAME_POINTER }
}

/// The module that holds `avma`; if it is met for the first time, hound is told.
///
/// `sure` says that rules led to `avma`, frame by frame: it is an address of a frame of this thread, so its module stays as long as that.
/// Behind a frame pointer that was taken on trust, it may be any old word, of a module that another thread is just unmapping: of those
/// only modules that are never unloaded are read.
pub fn module_of(thread: &mut Thread, avma: u64, sure: bool) -> Option<Module> {
    if let Some(module) = modules::known(avma) {
        return Some(module).filter(|module| sure || module.stays);
    }
    let module = modules::ask_loader(avma, sure)?;
    if modules::remember(module) && !record::module(thread, &module) {
        modules::forget(&module); // hound is told at the next miss
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

fn insert(key: u64, row: Row) {
    let table = Table::current();
    let Some(packed) = pack(key, row) else { return };
    if !table.insert(key, packed) || table.used.load(Ordering::Relaxed) * 8 > table.len() * 5 {
        table.grow();
    }
}

/// Forgets all rows of the addresses `start..end`.
pub fn forget(start: u64, end: u64) {
    FORGOTTEN.fetch_add(1, Ordering::AcqRel); // pairs with the check in `grow`
    let table = Table::current();
    for slot in table.slots() {
        let key = slot.key.load(Ordering::Relaxed);
        let ip = lookup_ip(key & KEY_MASK);
        if key & KEY_MASK > TOMBSTONE && ip >= start && ip < end {
            let _ = slot.key.compare_exchange(key, TOMBSTONE, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
    // A tombstone that nothing lies behind is none: else they would add up with every module and every session, and the table grow. A row
    // that is put in behind it at this moment is not found again, and computed anew.
    let mut is_last = true; // nothing is behind the last one
    for slot in table.slots().iter().rev() {
        let take = || slot.key.compare_exchange(TOMBSTONE, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_last && slot.key.load(Ordering::Relaxed) == TOMBSTONE && take() {
            slot.row.store(0, Ordering::Release); // who asks for 0 finds nothing
            slot.key.store(0, Ordering::Release);
            table.used.fetch_sub(1, Ordering::Relaxed);
        }
        is_last = slot.key.load(Ordering::Relaxed) == 0;
    }
}
