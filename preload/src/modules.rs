//! Which module a code address is in, and where that module's call frame information lies.
//!
//! glibc's `_dl_find_object` answers without locks; where hound has mapped the library into a target that has none, hound's own list
//! serves for what stays, and the loader's for the rest. Each module met is kept in a table that only grows while modules come; when one
//! goes, its entry is marked gone. Frames registered at run time (`__register_frame`, JIT compilers) are kept beside.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use hound_common::attach::KnownModule;
use hound_unwind::{EndReason, Sections};

use crate::elf::{self, LinkMap};
use crate::{attached, process, sys};

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
    /// It was there from the start: no loader takes it away.
    pub stays: bool,
    /// Where its program headers are and what to add to their addresses, if not to be found through the loader's entry.
    image: Option<(u64, &'static [elf::Phdr])>,
}

struct Slot {
    /// 0 = not filled in (yet), else the start; the end is 0 while the module is gone.
    start: AtomicU64,
    end: AtomicU64,
    code: AtomicU64,
    eh_frame_hdr: AtomicU64,
    link_map: AtomicUsize,
    stays: AtomicBool,
    /// [`Module::image`]; all 0 for `None`.
    bias: AtomicU64,
    headers: AtomicUsize,
    header_count: AtomicUsize,
}

static SLOTS: [Slot; MODULES] = [const {
    Slot {
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
        code: AtomicU64::new(0),
        eh_frame_hdr: AtomicU64::new(0),
        link_map: AtomicUsize::new(0),
        stays: AtomicBool::new(false),
        bias: AtomicU64::new(0),
        headers: AtomicUsize::new(0),
        header_count: AtomicUsize::new(0),
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

/// Asks the loader which module holds `avma`. If that is not `sure` to be the address of a frame of this thread, another thread may be
/// unloading the module: then it is found only if it stays, for what has gone must not be read.
pub fn ask_loader(avma: u64, sure: bool) -> Option<Module> {
    if attached::is_mapped() {
        if let Some(module) = own(avma) {
            return Some(module);
        }
        if elf::dl_find_object_address() == 0 {
            // Of hound's list only what stays: the rest is as it was when hound looked, and another library may lie there now.
            return known_to_hound(avma).filter(|module| module.stays).or_else(|| listed(avma, sure));
        }
    }
    let found = find(avma)?;
    let link_map = found.link_map as *const LinkMap;
    let stays = elf::is_of_the_start(|map| core::ptr::eq(map, link_map));
    if !sure && !stays {
        return None;
    }
    // The loader may answer with one segment only (executables that are not position-independent): the headers know the whole module.
    let (bias, headers) = image(found.map_start, link_map);
    let loads = || headers.iter().filter(|h| h.kind == elf::PT_LOAD);
    let start = loads().map(|h| bias.wrapping_add(h.svma) & !4095).min().unwrap_or(found.map_start);
    let end = loads().map(|h| bias.wrapping_add(h.svma + h.memory_size)).max().unwrap_or(found.map_end);
    let holds = avma >= start && avma < end;
    let (start, end) = if holds { (start, end) } else { (found.map_start, found.map_end) };
    let image = (!headers.is_empty()).then_some((bias, headers));
    Some(Module { start, end, code: found.map_start, eh_frame_hdr: found.eh_frame, link_map, stays, image })
}

/// What the loader says of an address, without a look at the module itself.
fn find(avma: u64) -> Option<DlFindObject> {
    let address = elf::dl_find_object_address();
    if address == 0 {
        return None;
    }
    // SAFETY: glibc's function of that name, with this signature since 2.35; async-signal-safe by its documentation.
    let find = unsafe { core::mem::transmute::<usize, extern "C" fn(u64, *mut DlFindObject) -> i32>(address) };
    let mut found = DlFindObject::default();
    (find(avma, &mut found) == 0).then_some(found)
}

/// This library, which no loader knows.
fn own(avma: u64) -> Option<Module> {
    let attachment = attached::attachment();
    let (start, end) = (attachment.image_start.load(Ordering::Relaxed), attachment.image_end.load(Ordering::Relaxed));
    if avma.wrapping_sub(start) >= end.wrapping_sub(start) {
        return None;
    }
    // SAFETY: hound has mapped the image with its header.
    let headers = unsafe { elf::program_headers(start) };
    Some(Module { stays: true, ..made_of(start, headers, start, end, core::ptr::null()) })
}

/// hound's list of modules.
fn hounds_modules() -> &'static [KnownModule] {
    let attachment = attached::attachment();
    let count = attachment.module_count.load(Ordering::Acquire) as usize;
    let first = attachment.modules.load(Ordering::Relaxed) as *const KnownModule;
    if first.is_null() {
        return &[];
    }
    // SAFETY: hound has written so many there.
    unsafe { core::slice::from_raw_parts(first, count) }
}

/// A module that hound has seen from outside.
fn known_to_hound(avma: u64) -> Option<Module> {
    let holds = |m: &&KnownModule| avma >= m.start.load(Ordering::Relaxed) && avma < m.end.load(Ordering::Acquire);
    let found = hounds_modules().iter().find(holds)?;
    let (at, header_count) = (found.headers.load(Ordering::Relaxed), found.header_count.load(Ordering::Relaxed) as usize);
    let headers = match at {
        0 => &[][..],
        // SAFETY: hound's word for where they are mapped.
        start => unsafe { core::slice::from_raw_parts(start as *const elf::Phdr, header_count) },
    };
    let bias = found.bias.load(Ordering::Relaxed);
    // A program without a loader unloads nothing, and none unloads itself, also while its loader's list is still empty.
    let has_loader = attached::attachment().r_debug.load(Ordering::Relaxed) != 0;
    let is_executable = at != 0 && at == attached::attachment().executable_headers.load(Ordering::Relaxed);
    Some(Module {
        start: found.start.load(Ordering::Relaxed),
        end: found.end.load(Ordering::Relaxed),
        code: avma,
        eh_frame_hdr: found.eh_frame_hdr.load(Ordering::Relaxed),
        link_map: core::ptr::null(),
        stays: !has_loader || is_executable || elf::is_of_the_start(|map| map.bias == bias),
        image: Some((bias, headers)),
    })
}

/// A module of the loader's list that hound did not see: loaded since.
fn listed(avma: u64, sure: bool) -> Option<Module> {
    if !sure {
        return None;
    }
    // Modules do not overlap: only the nearest one below can hold it. The others are not looked at, they may be going.
    let nearest = core::cell::Cell::new(None::<&'static LinkMap>);
    elf::modules_carefully(|map| {
        if map.bias != 0 && map.bias <= avma && nearest.get().is_none_or(|found| map.bias > found.bias) {
            nearest.set(Some(map));
        }
        None::<()>
    });
    let map = nearest.get().filter(|map| sys::is_readable(map.bias))?;
    // SAFETY: a library's first page, just found to be there; only its beginning is looked at if it is not an ELF header.
    let headers = unsafe { elf::program_headers(map.bias) };
    let end = headers.iter().filter(|h| h.kind == elf::PT_LOAD).map(|h| map.bias.wrapping_add(h.svma + h.memory_size)).max()?;
    (avma < end).then(|| made_of(map.bias, headers, map.bias, end, &raw const *map))
}

/// A library with these program headers.
fn made_of(bias: u64, headers: &'static [elf::Phdr], start: u64, end: u64, link_map: *const LinkMap) -> Module {
    let eh_frame_hdr = headers.iter().find(|h| h.kind == elf::PT_GNU_EH_FRAME).map_or(0, |h| bias.wrapping_add(h.svma));
    Module { start, end, code: start, eh_frame_hdr, link_map, stays: false, image: Some((bias, headers)) }
}

/// A module's bias and program headers.
fn image_of(module: &Module) -> (u64, &'static [elf::Phdr]) {
    module.image.unwrap_or_else(|| image(module.start, module.link_map))
}

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
    fn image(&self) -> Option<(u64, &'static [elf::Phdr])> {
        let headers = self.headers.load(Ordering::Relaxed) as *const elf::Phdr;
        if headers.is_null() {
            return None;
        }
        // SAFETY: put there as a whole by `fill`, from a slice.
        let headers = unsafe { core::slice::from_raw_parts(headers, self.header_count.load(Ordering::Relaxed)) };
        Some((self.bias.load(Ordering::Relaxed), headers))
    }

    /// Stores all of a module but its start and its end.
    fn fill(&self, module: &Module) {
        let (bias, headers) = module.image.unwrap_or((0, &[]));
        self.code.store(module.code, Ordering::Relaxed);
        self.eh_frame_hdr.store(module.eh_frame_hdr, Ordering::Relaxed);
        self.link_map.store(module.link_map as usize, Ordering::Relaxed);
        self.stays.store(module.stays, Ordering::Relaxed);
        self.bias.store(bias, Ordering::Relaxed);
        self.header_count.store(headers.len(), Ordering::Relaxed);
        let headers = if headers.is_empty() { core::ptr::null() } else { headers.as_ptr() };
        self.headers.store(headers as usize, Ordering::Release);
    }

    fn read(&self) -> Module {
        Module {
            start: self.start.load(Ordering::Acquire),
            end: self.end.load(Ordering::Acquire),
            code: self.code.load(Ordering::Relaxed),
            eh_frame_hdr: self.eh_frame_hdr.load(Ordering::Relaxed),
            link_map: self.link_map.load(Ordering::Relaxed) as *const LinkMap,
            stays: self.stays.load(Ordering::Relaxed),
            image: self.image(),
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
    // A place that was filled with the same module in an earlier session, or before it was unloaded.
    if let Some(slot) = used().iter().find(|s| s.start.load(Ordering::Acquire) == module.start && s.end.load(Ordering::Acquire) == 0) {
        slot.fill(&module);
        slot.end.store(module.end, Ordering::Release); // pairs with `read`
        return true;
    }
    let index = USED.fetch_add(1, Ordering::AcqRel) as usize;
    let Some(slot) = SLOTS.get(index) else {
        USED.store(MODULES as u32, Ordering::Release);
        return false;
    };
    slot.end.store(module.end, Ordering::Relaxed);
    slot.fill(&module);
    slot.start.store(module.start, Ordering::Release); // pairs with `read`
    true
}

/// Every known module.
pub fn each(mut tell: impl FnMut(Module)) {
    used().iter().map(Slot::read).filter(|module| module.start != 0 && module.end != 0).for_each(&mut tell);
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
        if !is_still_there(&module) {
            slot.end.store(0, Ordering::Relaxed);
            gone(module);
        }
    }
}

/// Whether the loader still has a module. Nothing of the module itself is read: the loader's own frees are also those of threads that end
/// or make room for thread-local storage, which do not hold its lock while another thread unloads the module.
fn is_still_there(module: &Module) -> bool {
    if module.stays {
        return true;
    }
    if elf::dl_find_object_address() != 0 {
        return find(module.code).is_some_and(|now| now.link_map == module.link_map as usize && now.map_start == module.code);
    }
    let Some((bias, _)) = module.image else { return true };
    // Where the list is being changed just now, it is not known; then the next free tells.
    if elf::is_listed(bias) != Some(false) {
        return true;
    }
    for known in hounds_modules().iter().filter(|known| known.start.load(Ordering::Relaxed) == module.start) {
        known.end.store(0, Ordering::Release);
    }
    false
}

/// The call frame information of a module.
pub fn sections(module: &Module) -> Result<Sections<'static>, EndReason> {
    if module.eh_frame_hdr == 0 {
        return made_sections(module);
    }
    let (start, bytes) = segment(module, module.eh_frame_hdr).ok_or(EndReason::BadSection)?;
    Sections::from_eh_frame_hdr(bytes, start, module.eh_frame_hdr)
}

/// The loaded segment that holds `avma`, and where it is. `avma` is one of unwind tables.
fn segment(module: &Module, avma: u64) -> Option<(u64, &'static [u8])> {
    let (bias, headers) = image_of(module);
    let holds = |h: &&elf::Phdr| avma.wrapping_sub(bias.wrapping_add(h.svma)) < h.memory_size;
    let segment = headers.iter().filter(|h| h.kind == elf::PT_LOAD).find(holds)?;
    let start = bias.wrapping_add(segment.svma);
    // SAFETY: one loaded segment, mapped readable (unwind tables are), and it stays as said above.
    Some((start, unsafe { core::slice::from_raw_parts(start as *const u8, segment.memory_size as usize) }))
}

/// Of a module that was linked without `.eh_frame_hdr` (static programs are), by the header that hound has made for it.
fn made_sections(module: &Module) -> Result<Sections<'static>, EndReason> {
    let made = |known: &&KnownModule| known.made_header.load(Ordering::Acquire);
    let is_it = |known: &&KnownModule| known.start.load(Ordering::Relaxed) == module.start && made(known) != 0;
    let Some(header) = hounds_modules().iter().find(is_it).map(|known| made(&known)) else { return Err(EndReason::NoRow) };
    // SAFETY: hound has written a whole header there, aligned to a page.
    let [_, frames, count] = unsafe { (header as *const [i32; 3]).read() };
    let frames = (header + 4).wrapping_add_signed(i64::from(frames));
    let bytes = 12 + 8 * count.cast_unsigned() as usize;
    // SAFETY: as above; it stays until the library goes.
    let table = unsafe { core::slice::from_raw_parts(header as *const u8, bytes) };
    let (start, segment) = segment(module, frames).ok_or(EndReason::BadSection)?;
    Sections::from_header_apart(table, header, segment.get((frames - start) as usize..).unwrap_or(&[]), frames)
}

/// What a `MODULE` record says beyond the module itself: (bias, build-id, path).
pub fn describe(module: &Module) -> (u64, &'static [u8], &'static [u8]) {
    let (bias, headers) = image_of(module);
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
    if REGISTERED.iter().any(|slot| slot.compare_exchange(0, table, Ordering::AcqRel, Ordering::Relaxed).is_ok()) {
        code_changes();
    }
}

/// Other code may lie where there was some, and a recorded path lead through it as through the one before: all threads look closer at their
/// next event.
fn code_changes() {
    if !core::ptr::eq(process::control(), process::no_ring()) {
        process::control().renew();
    }
}

/// A program took it back.
pub fn deregister_frames(table: u64) {
    let mut any = false;
    for slot in &REGISTERED {
        any |= slot.compare_exchange(table, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    }
    if any {
        code_changes();
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
