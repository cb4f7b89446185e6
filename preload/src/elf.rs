//! What the loader has mapped: the list of modules, symbols in them, program headers, build-ids. Without calling the loader.
//!
//! The symbols used are weak: where the loader does not have one, its address is null.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::attached;

global_asm!(
    ".weak _r_debug",
    ".weak _dl_debug_addr",
    ".weak __libc_stack_end",
    ".weak _dl_find_object",
    ".weak environ",
    ".weak __errno_location"
);

macro_rules! weak_address {
    ($name:literal) => {{
        let address: usize;
        // SAFETY: loads the symbol's slot in the global offset table, which the loader has filled with its address or null.
        unsafe { asm!(concat!("mov {}, qword ptr [rip + ", $name, "@GOTPCREL]"), out(reg) address, options(nostack, readonly, preserves_flags, pure)) };
        address
    }};
}

/// The loader's `_r_debug`, null where there is none.
fn loader_debug() -> *const RDebug {
    if attached::is_mapped() {
        return attached::attachment().r_debug.load(Ordering::Relaxed) as *const RDebug;
    }
    match weak_address!("_r_debug") {
        0 => musl_debug().map_or(core::ptr::null(), |debug| debug),
        debug => debug as *const RDebug,
    }
}

/// The same of musl's loader, which has it under no name, but a pointer to it.
fn musl_debug() -> Option<&'static RDebug> {
    let pointer = weak_address!("_dl_debug_addr") as *const *const RDebug;
    // SAFETY: null, or the loader's own variable.
    let debug = *unsafe { pointer.as_ref() }?;
    // SAFETY: its own structure, valid for the life of the process.
    unsafe { debug.as_ref() }
}

/// Whether the loader is musl's, which is its C library too. Calls inside that one pass every preloaded library by.
pub fn is_musl() -> bool {
    weak_address!("_r_debug") == 0 && musl_debug().is_some()
}

/// One loaded module, as `<link.h>` declares it.
#[repr(C)]
pub struct LinkMap {
    /// What to add to an svma to get the avma.
    pub bias: u64,
    name: *const c_char,
    dynamic: *const Dyn,
    next: *const LinkMap,
    previous: *const LinkMap,
}

#[repr(C)]
struct RDebug {
    version: i32,
    map: *const LinkMap,
    brk: u64,
    state: i32,
    loader: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Dyn {
    tag: i64,
    value: u64,
}

#[repr(C)]
struct Sym {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

/// A program header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Phdr {
    /// `PT_…`
    pub kind: u32,
    flags: u32,
    offset: u64,
    /// svma
    pub svma: u64,
    paddr: u64,
    file_size: u64,
    /// Bytes in memory.
    pub memory_size: u64,
    align: u64,
}

const PAGE: u64 = 4096;
/// `PT_LOAD`
pub const PT_LOAD: u32 = 1;
/// `PT_GNU_EH_FRAME`
pub const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
/// `PT_NOTE`
pub const PT_NOTE: u32 = 4;
/// `PT_PHDR`
const PT_PHDR: u32 = 6;

impl LinkMap {
    /// The module's path as the loader knows it; empty for the executable.
    pub fn name(&self) -> &[u8] {
        if self.name.is_null() {
            return &[];
        }
        // SAFETY: the loader keeps a terminated string as long as the module is loaded.
        unsafe { CStr::from_ptr(self.name) }.to_bytes()
    }

    /// Where this module's own dynamic section lies.
    pub fn dynamic_avma(&self) -> u64 {
        self.dynamic as u64
    }

    /// The address of a defined function of this name. Indirect functions and data are not looked for.
    pub fn function(&self, name: &CStr) -> Option<usize> {
        let table = SymbolTable::of(self)?;
        table.find(name, self.bias)
    }
}

/// The modules in the order in which the loader searches them, executable first. Empty where there is no dynamic loader.
pub fn modules() -> impl Iterator<Item = &'static LinkMap> {
    let debug = loader_debug();
    // SAFETY: `_r_debug` is the loader's own structure, valid for the life of the process.
    let mut next = unsafe { debug.as_ref() }.map_or(core::ptr::null(), |d| d.map);
    core::iter::from_fn(move || {
        // SAFETY: list nodes are freed only by dlclose. The list is walked while the library starts (nothing can be unloading then: the
        // loader's lock is held or there is one thread) and from inside the loader's own call to free.
        let module: &'static LinkMap = unsafe { next.as_ref() }?;
        next = module.next;
        Some(module)
    })
}

/// The first module that `look` finds something in, while other threads may be loading and unloading. glibc frees the entries of what is
/// unloaded (musl unloads nothing), so each is tested before it is read, and what was read of one that went meanwhile is tested in turn.
pub fn modules_carefully<R>(look: impl Fn(&'static LinkMap) -> Option<R>) -> Option<R> {
    const CONSISTENT: i32 = 0;
    const MOST: usize = 4096;
    let debug = loader_debug();
    // SAFETY: as in `modules`.
    let debug = unsafe { debug.as_ref() }?;
    let state = &raw const debug.state;
    // SAFETY: the loader changes it at any time.
    if unsafe { state.read_volatile() } != CONSISTENT {
        return None;
    }
    let mut next = debug.map;
    for _ in 0..MOST {
        let last = next.wrapping_add(1) as u64 - 8;
        if next.is_null() || !next.is_aligned() || !crate::sys::is_readable(next as u64) || !crate::sys::is_readable(last) {
            return None;
        }
        // SAFETY: readable, as just found.
        let module: &'static LinkMap = unsafe { &*next };
        if let Some(found) = look(module) {
            return Some(found);
        }
        next = module.next;
    }
    None
}

/// Whether `is_it` is true of a module that the process started with. Those come first in the list and end, at the latest, with what was
/// loaded later; the loader's own entry is taken for the last of them. They are never unloaded and their order never changes, so this may
/// be asked at any time.
pub fn is_of_the_start(is_it: impl Fn(&'static LinkMap) -> bool) -> bool {
    // SAFETY: `_r_debug` is the loader's own structure, valid for the life of the process.
    let Some(debug) = (unsafe { loader_debug().as_ref() }) else { return false };
    let mut next = debug.map;
    // SAFETY: an entry that is never freed: the first, or one that comes before the loader's own.
    while let Some(module) = unsafe { next.as_ref() } {
        if is_it(module) {
            return true;
        }
        if debug.loader == 0 || module.bias == debug.loader {
            return false;
        }
        next = module.next;
    }
    false
}

/// Whether a module of this bias is in the loader's list, while other threads may be loading and unloading; `None` if the list changed
/// under the eyes.
pub fn is_listed(bias: u64) -> Option<bool> {
    const MOST: usize = 4096;
    if is_of_the_start(|map| map.bias == bias) {
        return Some(true);
    }
    // SAFETY: `_r_debug` is the loader's own structure, valid for the life of the process.
    let debug = unsafe { loader_debug().as_ref() }?;
    let (mut next, mut before) = (debug.map, core::ptr::null());
    let mut stays = debug.loader != 0;
    for _ in 0..MOST {
        if next.is_null() {
            return Some(false);
        }
        let last = next.wrapping_add(1) as u64 - 8;
        if !stays && (!next.is_aligned() || !crate::sys::is_readable(next as u64) || !crate::sys::is_readable(last)) {
            return None;
        }
        // SAFETY: an entry that is never freed, or readable as just found.
        let map = unsafe { next.read_volatile() };
        if map.previous != before {
            return None; // freed, and something else is there
        }
        if map.bias == bias {
            return Some(true);
        }
        stays &= map.bias != debug.loader;
        (before, next) = (next, map.next);
    }
    None
}

/// First and end avma of the dynamic loader itself; both 0 where there is none.
pub fn loader() -> (u64, u64) {
    // SAFETY: `_r_debug` is the loader's own structure, valid for the life of the process.
    let Some(start) = (unsafe { loader_debug().as_ref() }).map(|d| d.loader).filter(|start| *start != 0) else { return (0, 0) };
    // SAFETY: the loader's image is mapped there and stays.
    let headers = unsafe { program_headers(start) };
    let end = headers.iter().filter(|h| h.kind == PT_LOAD).map(|h| start + h.svma + h.memory_size).max();
    (start, end.unwrap_or(start))
}

/// Where the program has its environment, null where that cannot be found.
pub fn environ() -> *mut *const *const c_char {
    weak_address!("environ") as *mut *const *const c_char
}

/// Sets the thread's errno, where there is one.
pub fn set_errno(errno: i32) {
    let location = weak_address!("__errno_location");
    // SAFETY: null, or both C libraries' function of this name, which has this type.
    let location = unsafe { core::mem::transmute::<usize, Option<extern "C" fn() -> *mut i32>>(location) };
    if let Some(location) = location {
        // SAFETY: the thread's own.
        unsafe { location().write(errno) };
    }
}

/// Address of glibc's `_dl_find_object` (since 2.35), 0 if it has none.
pub fn dl_find_object_address() -> usize {
    if attached::is_mapped() {
        return attached::attachment().dl_find_object.load(Ordering::Relaxed) as usize;
    }
    weak_address!("_dl_find_object")
}

/// Where the kernel put argc, argv, the environment and the auxiliary vector. Null where the loader does not say.
pub fn initial_stack() -> *const u64 {
    let address = weak_address!("__libc_stack_end") as *const *const u64;
    // SAFETY: the loader's own variable.
    unsafe { address.as_ref() }.map_or(core::ptr::null(), |p| *p)
}

/// An entry of the auxiliary vector, which lies behind the initial environment.
fn auxiliary(kind: u64) -> Option<u64> {
    let mut at = initial_stack();
    if at.is_null() {
        return None;
    }
    // SAFETY: argc, its pointers and a null.
    at = unsafe { at.wrapping_add(2 + at.read() as usize) };
    // SAFETY: the environment's pointers end with a null.
    while unsafe { at.read() } != 0 {
        at = at.wrapping_add(1);
    }
    loop {
        at = at.wrapping_add(1);
        // SAFETY: as above.
        let found = unsafe { at.read() };
        at = at.wrapping_add(1);
        if found == kind {
            // SAFETY: as above.
            return Some(unsafe { at.read() });
        }
        if found == 0 {
            return None;
        }
    }
}

/// Takes hound's word for where the executable's program headers are.
pub fn use_executable_headers(start: u64, count: u64) {
    EXECUTABLE_HEADERS.store(start as usize, Ordering::Relaxed);
    EXECUTABLE_HEADER_COUNT.store(count as usize, Ordering::Release);
}

static EXECUTABLE_HEADERS: AtomicUsize = AtomicUsize::new(0);
static EXECUTABLE_HEADER_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Learns where the executable's program headers are, from the kernel: an executable's header need not be where its first code is. Must
/// run before the environment is touched, behind which the kernel's word lies.
pub fn learn_executable_headers() {
    const AT_PHDR: u64 = 3;
    const AT_PHNUM: u64 = 5;
    EXECUTABLE_HEADERS.store(auxiliary(AT_PHDR).unwrap_or(0) as usize, Ordering::Relaxed);
    EXECUTABLE_HEADER_COUNT.store(auxiliary(AT_PHNUM).unwrap_or(0) as usize, Ordering::Release);
}

/// The executable's program headers; none before they were learnt.
pub fn executable_headers() -> &'static [Phdr] {
    let count = EXECUTABLE_HEADER_COUNT.load(Ordering::Acquire);
    let start = EXECUTABLE_HEADERS.load(Ordering::Relaxed);
    if start == 0 {
        return &[];
    }
    // SAFETY: the kernel's own word for where it has mapped them.
    unsafe { core::slice::from_raw_parts(start as *const Phdr, count) }
}

struct SymbolTable {
    symbols: *const Sym,
    strings: *const c_char,
    gnu_hash: *const u32,
}

impl SymbolTable {
    fn of(map: &LinkMap) -> Option<Self> {
        const DT_STRTAB: i64 = 5;
        const DT_SYMTAB: i64 = 6;
        const DT_GNU_HASH: i64 = 0x6fff_fef5;
        let (mut symbols, mut strings, mut gnu_hash) = (0, 0, 0);
        let mut entry = map.dynamic;
        if entry.is_null() {
            return None;
        }
        loop {
            // SAFETY: the dynamic section ends with a null tag.
            let Dyn { tag, value } = unsafe { *entry };
            // glibc has relocated these pointers, musl and the vDSO have not.
            let avma = if value < map.bias { value.wrapping_add(map.bias) } else { value };
            match tag {
                0 => break,
                DT_STRTAB => strings = avma,
                DT_SYMTAB => symbols = avma,
                DT_GNU_HASH => gnu_hash = avma,
                _ => {}
            }
            entry = entry.wrapping_add(1);
        }
        if symbols == 0 || strings == 0 || gnu_hash == 0 {
            return None;
        }
        Some(SymbolTable { symbols: symbols as *const Sym, strings: strings as *const c_char, gnu_hash: gnu_hash as *const u32 })
    }

    /// Looks a name up through the GNU hash table: `[buckets][first symbol][bloom words][shift][bloom…][buckets…][chain…]`.
    fn find(&self, name: &CStr, bias: u64) -> Option<usize> {
        let word = |index: usize| {
            // SAFETY: the loader has checked and uses this table; all indexes come from its own header.
            unsafe { *self.gnu_hash.wrapping_add(index) }
        };
        let hash = name.to_bytes().iter().fold(5381u32, |h, byte| h.wrapping_mul(33).wrapping_add(u32::from(*byte)));
        let (buckets, first, bloom_words) = (word(0) as usize, word(1), word(2) as usize);
        if buckets == 0 {
            return None;
        }
        let bucket_base = 4 + bloom_words * 2;
        let mut index = word(bucket_base + hash as usize % buckets);
        if index < first {
            return None;
        }
        loop {
            let chained = word(bucket_base + buckets + (index - first) as usize);
            if chained | 1 == hash | 1
                && let Some(address) = self.match_function(index, name, bias)
            {
                return Some(address);
            }
            if chained & 1 != 0 {
                return None;
            }
            index += 1;
        }
    }

    fn match_function(&self, index: u32, name: &CStr, bias: u64) -> Option<usize> {
        const STT_FUNC: u8 = 2;
        // SAFETY: the index is in the hash chain, so the symbol exists.
        let symbol = unsafe { &*self.symbols.wrapping_add(index as usize) };
        if symbol.section == 0 || symbol.info & 15 != STT_FUNC {
            return None;
        }
        let start = self.strings.wrapping_add(symbol.name as usize);
        // SAFETY: names are terminated.
        let found = unsafe { CStr::from_ptr(start) };
        (found == name).then(|| bias.wrapping_add(symbol.value) as usize)
    }
}

/// The program headers of the ELF image mapped at `start`.
///
/// # Safety
/// An ELF image's first page must be mapped there, and stay so while the result is used.
pub unsafe fn program_headers(start: u64) -> &'static [Phdr] {
    let header = start as *const u8;
    // SAFETY: the caller's promise; the ELF header is 64 bytes.
    let magic = unsafe { header.cast::<[u8; 4]>().read_unaligned() };
    // SAFETY: as above, e_phoff.
    let offset = unsafe { header.wrapping_add(32).cast::<u64>().read_unaligned() };
    // SAFETY: as above, e_phnum.
    let count = unsafe { header.wrapping_add(56).cast::<u16>().read_unaligned() };
    let bytes = u64::from(count) * size_of::<Phdr>() as u64;
    if magic != *b"\x7fELF" || count == 0 || bytes > PAGE || !offset.is_multiple_of(8) {
        return &[];
    }
    let table = start.wrapping_add(offset);
    if offset <= PAGE - bytes {
        // SAFETY: inside the first page, which is mapped.
        return unsafe { core::slice::from_raw_parts(table as *const Phdr, count as usize) };
    }
    // What was laid out anew after it was linked (by BOLT) has it at its end, in a segment of its own.
    if !crate::sys::is_readable(table) || !crate::sys::is_readable(table.wrapping_add(bytes - 4)) {
        return &[];
    }
    // SAFETY: two pages at most, both of which can be read.
    let headers = unsafe { core::slice::from_raw_parts(table as *const Phdr, count as usize) };
    let lowest = headers.iter().filter(|h| h.kind == PT_LOAD).map(|h| h.svma & !(PAGE - 1)).min().unwrap_or(0);
    let is_it = |h: &Phdr| h.kind == PT_PHDR && h.svma.wrapping_sub(lowest) == offset && h.memory_size == bytes;
    if headers.iter().any(is_it) { headers } else { &[] }
}

/// The GNU build-id of a mapped image, empty if it has none.
///
/// # Safety
/// As [`program_headers`], for all of the image.
pub unsafe fn build_id(headers: &[Phdr], bias: u64) -> &'static [u8] {
    for note in headers.iter().filter(|h| h.kind == PT_NOTE) {
        let start = bias.wrapping_add(note.svma) as *const u8;
        // SAFETY: the segment is part of the mapped image.
        let bytes: &'static [u8] = unsafe { core::slice::from_raw_parts(start, note.memory_size as usize) };
        if let Some(id) = build_id_note(bytes) {
            return id;
        }
    }
    &[]
}

fn build_id_note(mut notes: &'static [u8]) -> Option<&'static [u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let word = |at: usize| Some(u32::from_le_bytes(notes.get(at..at + 4)?.try_into().ok()?));
        let (name, description, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let body = 12 + name.next_multiple_of(4);
        if kind == NT_GNU_BUILD_ID && notes.get(12..16) == Some(b"GNU\0") {
            return notes.get(body..body + description);
        }
        notes = notes.get(body + description.next_multiple_of(4)..)?;
    }
}
