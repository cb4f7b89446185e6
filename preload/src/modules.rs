//! Which module a code address is in, and where that module's call frame information lies.
//!
//! The loader's `_dl_find_object` answers without locks. Each module met is kept in a table that only grows while modules come; when one
//! goes, its entry is marked gone. Frames registered at run time (`__register_frame`, JIT compilers) are kept beside.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hound_unwind::{EndReason, Sections};

use crate::elf::{self, LinkMap};
use crate::sys;

/// Most modules that a process may have met; more are looked up anew at each miss.
const MODULES: usize = 1024;

/// A module's place and its frame information.
#[derive(Clone, Copy)]
pub struct Module {
    /// First avma.
    pub start: u64,
    /// End avma.
    pub end: u64,
    /// An address in it that the loader knows: the start of the segment it was asked about.
    code: u64,
    /// avma of `.eh_frame_hdr`, 0 if there is none.
    pub eh_frame_hdr: u64,
    /// The loader's entry.
    pub link_map: *const LinkMap,
}

struct Slot {
    /// 0 = not filled in (yet), else the start; the end is 0 while the module is gone.
    start: AtomicU64,
    end: AtomicU64,
    code: AtomicU64,
    eh_frame_hdr: AtomicU64,
    link_map: AtomicUsize,
}

static SLOTS: [Slot; MODULES] = [const {
    Slot {
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
        code: AtomicU64::new(0),
        eh_frame_hdr: AtomicU64::new(0),
        link_map: AtomicUsize::new(0),
    }
}; MODULES];
static USED: AtomicU32 = AtomicU32::new(0);

/// glibc's `struct dl_find_object` (x86-64: no `dlfo_eh_dbase`).
#[repr(C)]
#[derive(Default)]
struct DlFindObject {
    flags: u64,
    map_start: u64,
    map_end: u64,
    link_map: usize,
    eh_frame: u64,
    reserved: [u64; 7],
}

/// Asks the loader which module holds `avma`.
pub fn ask_loader(avma: u64) -> Option<Module> {
    let address = elf::dl_find_object_address();
    if address == 0 {
        return None;
    }
    // SAFETY: glibc's function of that name, with this signature since 2.35; async-signal-safe by its documentation.
    let find = unsafe { core::mem::transmute::<usize, extern "C" fn(u64, *mut DlFindObject) -> i32>(address) };
    let mut found = DlFindObject::default();
    if find(avma, &mut found) != 0 {
        return None;
    }
    let link_map = found.link_map as *const LinkMap;
    // The loader may answer with one segment only (executables that are not position-independent): the headers know the whole module.
    let (bias, headers) = image(found.map_start, link_map);
    let loads = || headers.iter().filter(|h| h.kind == elf::PT_LOAD);
    let start = loads().map(|h| bias.wrapping_add(h.svma) & !4095).min().unwrap_or(found.map_start);
    let end = loads().map(|h| bias.wrapping_add(h.svma + h.memory_size)).max().unwrap_or(found.map_end);
    let holds = avma >= start && avma < end;
    let (start, end) = if holds { (start, end) } else { (found.map_start, found.map_end) };
    Some(Module { start, end, code: found.map_start, eh_frame_hdr: found.eh_frame, link_map })
}

/// A module's bias and program headers.
fn image(start: u64, link_map: *const LinkMap) -> (u64, &'static [elf::Phdr]) {
    // SAFETY: the loader's entry lives as long as the module, and an address of the module's code is on the stack.
    let Some(map) = (unsafe { link_map.as_ref() }) else { return (start, &[]) };
    if map.name().is_empty() {
        return (map.bias, elf::executable_headers());
    }
    // SAFETY: a library's first page, its ELF header, is mapped at its bias (its first svma is 0), or else where the loader says.
    let header = if map.bias != 0 && map.bias <= start { map.bias } else { start };
    // SAFETY: as above.
    (map.bias, unsafe { elf::program_headers(header) })
}

fn used() -> &'static [Slot] {
    SLOTS.get(..USED.load(Ordering::Acquire) as usize).unwrap_or(&SLOTS)
}

impl Slot {
    fn read(&self) -> Module {
        Module {
            start: self.start.load(Ordering::Acquire),
            end: self.end.load(Ordering::Relaxed),
            code: self.code.load(Ordering::Relaxed),
            eh_frame_hdr: self.eh_frame_hdr.load(Ordering::Relaxed),
            link_map: self.link_map.load(Ordering::Relaxed) as *const LinkMap,
        }
    }
}

/// The known module that holds `avma`.
pub fn known(avma: u64) -> Option<Module> {
    used().iter().map(Slot::read).find(|m| m.start != 0 && avma >= m.start && avma < m.end)
}

/// Remembers a module. True if it was new: the caller then tells hound.
pub fn remember(module: Module) -> bool {
    if known(module.start).is_some() {
        return false;
    }
    let index = USED.fetch_add(1, Ordering::AcqRel) as usize;
    let Some(slot) = SLOTS.get(index) else {
        USED.store(MODULES as u32, Ordering::Release);
        return false;
    };
    slot.end.store(module.end, Ordering::Relaxed);
    slot.code.store(module.code, Ordering::Relaxed);
    slot.eh_frame_hdr.store(module.eh_frame_hdr, Ordering::Relaxed);
    slot.link_map.store(module.link_map as usize, Ordering::Relaxed);
    slot.start.store(module.start, Ordering::Release); // pairs with `read`
    true
}

/// Takes everything out of the tables: what was met before is met anew.
pub fn forget_all() {
    for slot in used() {
        slot.end.store(0, Ordering::Relaxed);
    }
    for slot in &REGISTERED {
        slot.store(0, Ordering::Relaxed);
    }
}

/// Takes a module out of the table again.
pub fn forget(module: &Module) {
    for slot in used() {
        if slot.start.load(Ordering::Relaxed) == module.start {
            slot.end.store(0, Ordering::Relaxed);
        }
    }
}

/// Calls `gone` for every known module that the loader no longer has (or has something else in the place of), and forgets it.
pub fn forget_unloaded(mut gone: impl FnMut(Module)) {
    for slot in used() {
        let module = slot.read();
        if module.start == 0 || module.end == 0 {
            continue;
        }
        let still = ask_loader(module.code).is_some_and(|now| now.link_map == module.link_map && now.start == module.start);
        if !still {
            slot.end.store(0, Ordering::Relaxed);
            gone(module);
        }
    }
}

/// The call frame information of a module.
pub fn sections(module: &Module) -> Result<Sections<'static>, EndReason> {
    if module.eh_frame_hdr == 0 {
        return Err(EndReason::NoRow);
    }
    let (bias, headers) = image(module.start, module.link_map);
    let segment = headers.iter().filter(|h| h.kind == elf::PT_LOAD).find(|h| {
        let start = bias.wrapping_add(h.svma);
        module.eh_frame_hdr >= start && module.eh_frame_hdr < start + h.memory_size
    });
    let Some(segment) = segment else { return Err(EndReason::BadSection) };
    let start = bias.wrapping_add(segment.svma);
    // SAFETY: one loaded segment, mapped readable (unwind tables are), and it stays as said above.
    let bytes = unsafe { core::slice::from_raw_parts(start as *const u8, segment.memory_size as usize) };
    Sections::from_eh_frame_hdr(bytes, start, module.eh_frame_hdr)
}

/// What a `MODULE` record says beyond the module itself: (bias, build-id, path).
pub fn describe(module: &Module) -> (u64, &'static [u8], &'static [u8]) {
    let (bias, headers) = image(module.start, module.link_map);
    // SAFETY: as in `sections`.
    let id = unsafe { elf::build_id(headers, bias) };
    // SAFETY: the loader's entry lives as long as the module.
    let path = unsafe { module.link_map.as_ref() }.map_or(&[][..], LinkMap::name);
    // The loader has no name for the executable.
    (bias, id, if path.is_empty() { executable() } else { path })
}

const PATH_BYTES: usize = 1024;
/// The executable's path, found at start-up: later nothing may be opened or asked.
static EXECUTABLE: [AtomicU8; PATH_BYTES] = [const { AtomicU8::new(0) }; PATH_BYTES];
static EXECUTABLE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Learns the executable's path.
pub fn learn_executable() {
    let mut path = [0; PATH_BYTES];
    let length = sys::executable(&mut path).min(PATH_BYTES);
    for (place, byte) in EXECUTABLE.iter().zip(path) {
        place.store(byte, Ordering::Relaxed);
    }
    EXECUTABLE_BYTES.store(length, Ordering::Release);
}

fn executable() -> &'static [u8] {
    let length = EXECUTABLE_BYTES.load(Ordering::Acquire).min(PATH_BYTES);
    // SAFETY: `AtomicU8` has the layout of `u8`; written once at start-up, before the length.
    unsafe { core::slice::from_raw_parts((&raw const EXECUTABLE).cast::<u8>(), length) }
}

/// Frames registered at run time: start of an `.eh_frame`-shaped table. 0 = free.
static REGISTERED: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// A program registered call frame information (JIT compilers do).
pub fn register_frames(table: u64) {
    for slot in &REGISTERED {
        if slot.compare_exchange(0, table, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return;
        }
    }
}

/// A program took it back.
pub fn deregister_frames(table: u64) {
    for slot in &REGISTERED {
        let _ = slot.compare_exchange(table, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Whether any frames are registered at run time.
pub fn has_registered_frames() -> bool {
    REGISTERED.iter().any(|slot| slot.load(Ordering::Relaxed) != 0)
}

/// The run-time tables, one after the other.
pub fn registered_sections() -> impl Iterator<Item = Sections<'static>> {
    REGISTERED.iter().map(|slot| slot.load(Ordering::Acquire)).filter(|table| *table != 0).map(|table| {
        // SAFETY: libgcc reads the table under the same promise: it is valid until it is deregistered.
        let bytes = unsafe { table_bytes(table) };
        // SAFETY: as above, for its whole length.
        let bytes = unsafe { core::slice::from_raw_parts(table as *const u8, bytes) };
        Sections::from_eh_frame(bytes, table)
    })
}

/// Length of a table: entries carry their length, a zero length ends it.
///
/// # Safety
/// The table must be registered.
unsafe fn table_bytes(table: u64) -> usize {
    const LIMIT: usize = 64 << 20;
    let mut at = 0;
    while at < LIMIT {
        // SAFETY: the terminator has not been met, so another entry begins here.
        let length = unsafe { ((table as usize + at) as *const u32).read_unaligned() } as usize;
        at += 4;
        if length == 0 || length >= 0xffff_fff0 {
            break;
        }
        at += length;
    }
    at
}
