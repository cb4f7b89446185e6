//! The target's modules: mapped ELF files, their symbols and the bytes of their code.

use core::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use memchr::memmem;
use object::elf;
use object::read::ReadCache;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{LittleEndian as LE, Object, ObjectSection};

use crate::error::Error;
use crate::memory::Memory;
use crate::place::{Mapping, PAGE, mappings};
use crate::scan::{self, Place};

/// Most symbols believed in a table that is read from the target's memory.
const MAX_SYMBOLS: u64 = 1 << 20;

/// Most bytes of a table that is read from a file.
const MAX_TABLE: u64 = 1 << 30;
/// So many bytes of a file are looked through at a time.
const CHUNK: usize = 256 << 10;

/// A symbol table as it stands in a file or in memory: read in one go, for there are hundreds of thousands of symbols.
struct Table {
    symbols: Vec<u8>,
    strings: Vec<u8>,
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// As linked.
    pub svma: u64,
    /// In memory.
    pub bytes: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Of them from the file.
    pub in_file: u64,
    /// Code.
    pub executable: bool,
}

/// A mapped ELF file.
pub struct Module {
    /// Its path as the target's mappings name it.
    pub path: String,
    /// First avma.
    pub start: u64,
    /// End avma.
    pub end: u64,
    /// avma minus svma.
    pub bias: u64,
    /// The program itself, not a library.
    pub is_executable: bool,
    /// The dynamic loader (which for musl is libc, too).
    pub is_loader: bool,
    /// Asks for a dynamic loader (meaningful for the executable).
    pub has_interpreter: bool,
    /// avma of `.eh_frame_hdr`, 0 if there is none.
    pub eh_frame_hdr: u64,
    /// avma of the program headers.
    pub headers: u64,
    /// How many.
    pub header_count: u64,
    /// What is loaded.
    pub segments: Vec<Segment>,
    dynamic: Option<(u64, u64)>,
    /// What is made read-only when it is linked: an svma.
    relro: Option<u64>,
    file: Option<File>,
    places: OnceCell<Vec<(elf::SectionType, Place)>>,
    tables: OnceCell<Vec<Table>>,
}

impl core::fmt::Debug for Module {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {:#x}..{:#x}", self.path, self.start, self.end)
    }
}

/// Tells a file, and what it held at one time, from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// Device, inode, size.
    file: [u64; 3],
    /// When its bytes were last written, in seconds and nanoseconds.
    written: [i64; 2],
    /// Likewise what is said of it.
    changed: [i64; 2],
}

/// A function's symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name, without a version.
    pub name: &'a str,
    /// Where it is in the target.
    pub address: u64,
    /// How long; 0 where the table does not say.
    pub size: u64,
}

/// What the kernel told the program at its start.
#[derive(Clone, Copy, Debug, Default)]
struct Auxiliary {
    headers: u64,
    loader: u64,
}

fn auxiliary(pid: i32) -> Auxiliary {
    let words = std::fs::read(format!("/proc/{pid}/auxv")).unwrap_or_default();
    let mut aux = Auxiliary::default();
    for pair in words.as_chunks::<16>().0 {
        let (key, value) = pair.split_at(8);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        match word(key) {
            libc::AT_PHDR => aux.headers = word(value),
            libc::AT_BASE => aux.loader = word(value),
            _ => {}
        }
    }
    aux
}

/// The ELF files from which the process runs code.
///
/// # Errors
/// When the target is gone. A module that cannot be understood is left out.
pub fn modules(pid: i32, memory: &Memory, maps: &[Mapping]) -> Result<Vec<Module>, Error> {
    let aux = auxiliary(pid);
    let mut found = Vec::new();
    for (at, first) in maps.iter().enumerate() {
        if first.inode == 0 || first.offset != 0 {
            continue;
        }
        let mine = |m: &&Mapping| m.inode == first.inode && m.device == first.device;
        // Up to where the same file is mapped once more from its beginning.
        let again =
            maps[at + 1..].iter().position(|m| mine(&m) && m.offset == 0 && m.start != first.end).map_or(maps.len(), |n| at + 1 + n);
        if !maps[at..again].iter().filter(mine).any(Mapping::is_executable) {
            continue;
        }
        match Module::read(Some(pid), memory, first, aux) {
            Ok(Some(module)) => found.push(module),
            Ok(None) => {}
            Err(Error::Gone) => return Err(Error::Gone),
            Err(_) => {} // the file is mapped, but its beginning cannot be read: nothing to be known about it
        }
    }
    found.dedup_by_key(|m| m.start);
    Ok(found)
}

fn open(pid: i32, map: &Mapping) -> Option<File> {
    // By the mapping: right even where the path now names another file, or none. Needs a capability in the initial user namespace.
    if let Ok(file) = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", map.start, map.end)) {
        return Some(file);
    }
    let file = File::open(format!("/proc/{pid}/root{}", map.path)).ok()?;
    (file.metadata().ok()?.ino() == map.inode).then_some(file)
}

/// What a process runs code from now: its ELF files and the kernel's own library.
///
/// # Errors
/// When the target is gone, or may not be read.
pub fn loaded(pid: i32, memory: &Memory) -> Result<Vec<Module>, Error> {
    let maps = mappings(pid)?;
    let mut found = modules(pid, memory, &maps)?;
    found.extend(vdso(memory, &maps).map(|module| Module { path: "[vdso]".into(), ..module }));
    Ok(found)
}

/// The kernel's own library in the process.
pub(crate) fn vdso(memory: &Memory, maps: &[Mapping]) -> Option<Module> {
    let map = maps.iter().find(|m| m.path == "[vdso]")?;
    Module::at(memory, map.start).ok().flatten()
}

fn nameless(start: u64) -> Mapping {
    Mapping { start, end: start, protection: *b"r-xp", offset: 0, device: String::new(), inode: 0, path: String::new() }
}

impl Module {
    /// A module that is in memory only: the kernel's, or libhound.so as hound has mapped it.
    pub(crate) fn at(memory: &Memory, start: u64) -> Result<Option<Self>, Error> {
        Self::read(None, memory, &nameless(start), Auxiliary::default())
    }

    /// An executable that is mapped nowhere: its addresses are as linked. Nothing if it is no ELF file.
    pub(crate) fn of_file(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let mut head = vec![0; (PAGE as usize).min(file.metadata().ok()?.len() as usize)];
        file.read_exact_at(&mut head, 0).ok()?;
        let map = Mapping { path: path.to_string_lossy().into_owned(), ..nameless(0) };
        let module = Self::parse(&head, Some(file), &map, Auxiliary::default())?;
        Some(Self { bias: 0, is_executable: true, ..module })
    }

    fn read(pid: Option<i32>, memory: &Memory, first: &Mapping, aux: Auxiliary) -> Result<Option<Self>, Error> {
        let mut head = vec![0; PAGE as usize];
        memory.read(first.start, &mut head)?;
        let file = pid.and_then(|pid| open(pid, first));
        Ok(Self::parse(&head, file, first, aux))
    }

    /// From its first page.
    fn parse(head: &[u8], file: Option<File>, first: &Mapping, aux: Auxiliary) -> Option<Self> {
        let header = elf::FileHeader64::<LE>::parse(head).ok()?;
        // What was laid out anew after it was linked (by BOLT) has them at its end.
        let cache = file.as_ref().map(ReadCache::new);
        let near = header.program_headers(LE, head).ok();
        let programs = near.or_else(|| header.program_headers(LE, cache.as_ref()?).ok())?;
        let mut segments = Vec::new();
        let (mut dynamic, mut relro, mut eh_frame_hdr, mut has_interpreter) = (None, None, 0, false);
        for p in programs {
            match p.p_type(LE) {
                elf::PT_LOAD => segments.push(Segment {
                    svma: p.p_vaddr(LE),
                    bytes: p.p_memsz(LE),
                    offset: p.p_offset(LE),
                    in_file: p.p_filesz(LE),
                    executable: p.p_flags(LE).0 & elf::PF_X.0 != 0,
                }),
                elf::PT_DYNAMIC => dynamic = Some((p.p_vaddr(LE), p.p_memsz(LE))),
                elf::PT_GNU_RELRO => relro = Some(p.p_vaddr(LE)),
                elf::PT_GNU_EH_FRAME => eh_frame_hdr = p.p_vaddr(LE),
                elf::PT_INTERP => has_interpreter = true,
                _ => {}
            }
        }
        let lowest = segments.iter().min_by_key(|s| s.svma).copied()?;
        // The mapping begins at the file's offset 0, which the first segment maps at svma - offset.
        let bias = first.start.wrapping_sub(lowest.svma.wrapping_sub(lowest.offset) & !(PAGE - 1));
        let end = segments.iter().map(|s| bias.wrapping_add(s.svma + s.bytes)).max().unwrap_or(first.end);
        let range = first.start..end;
        let at = header.e_phoff.get(LE);
        let holder = segments.iter().find(|s| s.offset <= at && at < s.offset + s.in_file);
        let headers = holder.map_or(0, |s| bias.wrapping_add(s.svma + (at - s.offset)));
        let header_count = if headers == 0 { 0 } else { programs.len() as u64 };
        drop(cache);
        Some(Self {
            path: first.path.trim_end_matches(" (deleted)").to_owned(),
            start: range.start,
            end: end.next_multiple_of(PAGE),
            bias,
            is_executable: range.contains(&aux.headers),
            is_loader: aux.loader != 0 && range.contains(&aux.loader),
            has_interpreter,
            eh_frame_hdr: if eh_frame_hdr == 0 { 0 } else { bias.wrapping_add(eh_frame_hdr) },
            headers,
            header_count,
            segments,
            dynamic,
            relro,
            file,
            places: OnceCell::new(),
            tables: OnceCell::new(),
        })
    }

    /// Where its code is: starts and ends.
    pub fn code(&self) -> Vec<(u64, u64)> {
        let of = |segment: &Segment| {
            let start = self.bias.wrapping_add(segment.svma);
            (start, start + segment.bytes)
        };
        self.segments.iter().filter(|segment| segment.executable).map(of).collect()
    }

    /// Whether these mappings hold all of it, and its loader is done with it, as far as that can be seen.
    pub(crate) fn is_linked(&self, maps: &[Mapping]) -> bool {
        let at = |avma: u64| maps.iter().find(|map| (map.start..map.end).contains(&avma));
        let is_there = |segment: &Segment| {
            let avma = self.bias.wrapping_add(segment.svma);
            segment.in_file == 0 || at(avma).is_some_and(|map| map.offset + (avma - map.start) == segment.offset)
        };
        let is_done = |relro: u64| at(self.bias.wrapping_add(relro)).is_some_and(|map| map.protection[1] != b'w');
        self.segments.iter().all(is_there) && self.relro.is_none_or(is_done)
    }

    /// Its file's name.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// avma of the dynamic section and its length.
    pub fn dynamic(&self) -> Option<(u64, u64)> {
        self.dynamic.map(|(svma, bytes)| (self.bias.wrapping_add(svma), bytes))
    }

    /// The executable segment around an avma: its avma and length.
    pub fn code_around(&self, avma: u64) -> Option<(u64, u64)> {
        let svma = avma.wrapping_sub(self.bias);
        let segment = self.segments.iter().find(|s| s.executable && s.svma <= svma && svma < s.svma + s.bytes)?;
        Some((self.bias.wrapping_add(segment.svma), segment.bytes))
    }

    /// What the file has for an avma; `None` if there is no file to be read, or it has nothing there.
    pub fn file_bytes(&self, avma: u64, bytes: &mut [u8]) -> Option<()> {
        let svma = avma.wrapping_sub(self.bias);
        let inside = |s: &&Segment| s.svma <= svma && svma + bytes.len() as u64 <= s.svma + s.in_file;
        let segment = self.segments.iter().find(inside)?;
        self.file.as_ref()?.read_exact_at(bytes, segment.offset + (svma - segment.svma)).ok()
    }

    /// Where in the file an avma's byte is; `None` where no byte of the file is loaded.
    pub fn file_offset(&self, avma: u64) -> Option<u64> {
        let svma = avma.wrapping_sub(self.bias);
        let segment = self.segments.iter().find(|s| s.svma <= svma && svma < s.svma + s.in_file)?;
        Some(segment.offset + (svma - segment.svma))
    }

    /// The file itself, as it is mapped; `None` where it cannot be opened.
    pub(crate) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Which of `needles` the file's loaded data contain: for allocators without symbols, which still have their messages. One pass, for
    /// files have a hundred megabytes.
    pub fn mentions<const N: usize>(&self, needles: [&[u8]; N]) -> [bool; N] {
        let mut found = [false; N];
        let Some(file) = &self.file else { return found };
        let finders = needles.map(memmem::Finder::new);
        let overlap = needles.iter().map(|needle| needle.len()).max().unwrap_or(0).saturating_sub(1) as u64;
        let mut bytes = vec![0; CHUNK];
        for segment in &self.segments {
            let (mut at, end) = (segment.offset, segment.offset + segment.in_file);
            while at < end && found.contains(&false) {
                let bytes = &mut bytes[..(end - at).min(CHUNK as u64) as usize];
                if file.read_exact_at(bytes, at).is_err() {
                    break;
                }
                for (found, finder) in found.iter_mut().zip(&finders) {
                    *found = *found || finder.find(bytes).is_some();
                }
                // One that lies across the end of this piece is whole in the next.
                at = if bytes.len() < CHUNK { end } else { at + CHUNK as u64 - overlap };
            }
        }
        found
    }

    /// Whether the file has a section of this name.
    pub fn has_section(&self, name: &str) -> bool {
        self.file.as_ref().is_some_and(|file| {
            let cache = ReadCache::new(file);
            ElfFile64::<LE, _>::parse(&cache).is_ok_and(|elf| elf.section_by_name(name).is_some())
        })
    }

    /// A loaded section of the file: its avma and its bytes.
    pub fn section(&self, name: &str) -> Option<(u64, Vec<u8>)> {
        let cache = ReadCache::new(self.file.as_ref()?);
        let elf = ElfFile64::<LE, _>::parse(&cache).ok()?;
        let section = elf.section_by_name(name)?;
        Some((self.bias.wrapping_add(section.address()), section.data().ok()?.to_vec()))
    }

    /// The file's GNU build-id; empty if it has none, or there is no file.
    pub fn build_id(&self) -> Vec<u8> {
        let Some(file) = &self.file else { return Vec::new() };
        let cache = ReadCache::new(file);
        let id = ElfFile64::<LE, _>::parse(&cache).ok().and_then(|elf| elf.build_id().ok().flatten().map(<[u8]>::to_vec));
        id.unwrap_or_default()
    }

    /// Shows every defined function (and untyped label, as assembly has them) of the dynamic and the full symbol table to `see`.
    pub fn each_function(&self, memory: &Memory, see: &mut dyn FnMut(Symbol<'_>)) {
        self.each_function_named(memory, usize::MAX, see);
    }

    /// The same, without those with longer names: most names of C++ and Rust are long, and need not be read to their ends.
    pub(crate) fn each_function_named(&self, memory: &Memory, longest: usize, see: &mut dyn FnMut(Symbol<'_>)) {
        self.each_symbol(memory, longest, &mut |symbol, is_code| {
            if is_code {
                see(symbol);
            }
        });
    }

    /// The address of a symbol of any type.
    pub fn address_of(&self, memory: &Memory, name: &str) -> Option<u64> {
        let mut found = None;
        self.each_symbol(memory, name.len(), &mut |symbol, _| {
            if found.is_none() && symbol.name == name {
                found = Some(symbol.address);
            }
        });
        found
    }

    /// Which file it is, as long as nobody writes to that.
    pub(crate) fn identity(&self) -> Option<Identity> {
        let file = self.file.as_ref()?.metadata().ok()?;
        let (written, changed) = ([file.mtime(), file.mtime_nsec()], [file.ctime(), file.ctime_nsec()]);
        Some(Identity { file: [file.dev(), file.ino(), file.size()], written, changed })
    }

    /// Whether the file's own tables tell of its symbols, and not what is mapped of it.
    pub(crate) fn has_tables(&self) -> bool {
        !self.places().is_empty()
    }

    fn places(&self) -> &[(elf::SectionType, Place)] {
        self.places.get_or_init(|| self.file.as_ref().map(places).unwrap_or_default())
    }

    fn tables(&self) -> &[Table] {
        self.tables.get_or_init(|| self.file.as_ref().map(tables).unwrap_or_default())
    }

    /// Whether one of these names, imported or exported, is in the dynamic table of its file.
    pub(crate) fn has_dynamic_name(&self, names: &[&str]) -> bool {
        let Some(file) = &self.file else { return false };
        let is_wanted = |end: &[u8]| names.iter().any(|name| end.ends_with(name.as_bytes()));
        let mut has = false;
        for (_, place) in self.places().iter().filter(|(kind, _)| *kind == elf::SHT_DYNSYM) {
            let longest = names.iter().map(|name| name.len()).max().unwrap_or(0);
            let _ = scan::each(file, *place, longest, is_wanted, &mut |found, _| has |= names.iter().any(|name| found == name.as_bytes()));
        }
        has
    }

    /// Shows every defined function whose name has an end for which `is_wanted` holds, and maybe others, as far as the file's tables tell of them.
    pub(crate) fn each_wanted_of_file(&self, longest: usize, is_wanted: impl Fn(&[u8]) -> bool, see: &mut dyn FnMut(Symbol<'_>)) {
        let Some(file) = &self.file else { return };
        for (_, place) in self.places() {
            let _ = scan::each(file, *place, longest, &is_wanted, &mut |name, symbol| {
                self.symbol(name, symbol, &mut |symbol, is_code| {
                    if is_code {
                        see(symbol);
                    }
                });
            });
        }
    }

    /// The same, by what is mapped where the file has no tables.
    pub(crate) fn each_wanted(&self, memory: &Memory, longest: usize, is_wanted: impl Fn(&[u8]) -> bool, see: &mut dyn FnMut(Symbol<'_>)) {
        if self.has_tables() { self.each_wanted_of_file(longest, is_wanted, see) } else { self.each_function_named(memory, longest, see) }
    }

    fn each_symbol(&self, memory: &Memory, longest: usize, see: &mut dyn FnMut(Symbol<'_>, bool)) {
        if !self.symbols_of_file(longest, see) {
            self.symbols_of_memory(memory, see);
        }
    }

    /// False when there is no file, or it has no table that its section headers tell of.
    fn symbols_of_file(&self, longest: usize, see: &mut dyn FnMut(Symbol<'_>, bool)) -> bool {
        for table in self.tables() {
            self.symbols_of(table, longest, see);
        }
        !self.tables().is_empty()
    }

    fn symbols_of(&self, table: &Table, longest: usize, see: &mut dyn FnMut(Symbol<'_>, bool)) {
        let Ok(symbols) = object::pod::slice_from_all_bytes::<elf::Sym64<LE>>(&table.symbols) else { return };
        for symbol in symbols {
            let name = table.strings.get(symbol.st_name(LE) as usize..).unwrap_or_default();
            let name = &name[..name.len().min(longest.saturating_add(1))];
            let end = memchr::memchr2(0, b'@', name).unwrap_or(name.len());
            if end <= longest {
                self.symbol(&name[..end], symbol, see);
            }
        }
    }

    /// One symbol, and whether it is of code; nothing of those that are defined elsewhere, or none.
    fn symbol(&self, name: &[u8], symbol: &elf::Sym64<LE>, see: &mut dyn FnMut(Symbol<'_>, bool)) {
        let kind = symbol.st_type();
        if symbol.is_undefined(LE) || symbol.st_value(LE) == 0 || matches!(kind, elf::STT_GNU_IFUNC | elf::STT_SECTION | elf::STT_FILE) {
            return;
        }
        let Ok(name) = core::str::from_utf8(name) else { return };
        let address = self.bias.wrapping_add(symbol.st_value(LE));
        let is_code = matches!(kind, elf::STT_FUNC | elf::STT_NOTYPE) && self.is_code(symbol.st_value(LE));
        see(Symbol { name, address, size: symbol.st_size(LE) }, is_code);
    }

    fn is_code(&self, svma: u64) -> bool {
        self.segments.iter().any(|s| s.executable && s.svma <= svma && svma < s.svma + s.bytes)
    }

    /// The dynamic table as the loader sees it: for files without section headers, and for those that cannot be opened.
    fn symbols_of_memory(&self, memory: &Memory, see: &mut dyn FnMut(Symbol<'_>, bool)) {
        let Some(tables) = self.dynamic_tables(memory) else { return };
        let (symbols, strings) = (vec![0; (tables.count * 24) as usize], vec![0; tables.string_bytes as usize]);
        let mut table = Table { symbols, strings };
        if memory.read(tables.symbols, &mut table.symbols).and_then(|()| memory.read(tables.strings, &mut table.strings)).is_ok() {
            self.symbols_of(&table, usize::MAX, see);
        }
    }

    /// A word of the dynamic section in memory. Addresses are avmas with glibc, svmas with musl and in static executables.
    pub fn dynamic_entry(&self, memory: &Memory, wanted: u64) -> Option<u64> {
        let (at, bytes) = self.dynamic()?;
        let mut words = vec![0; bytes.min(1 << 16) as usize];
        memory.read(at, &mut words).ok()?;
        let word = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
        words
            .as_chunks::<16>()
            .0
            .iter()
            .map(|pair| (word(&pair[..8]), word(&pair[8..])))
            .find(|(tag, _)| *tag == wanted)
            .map(|(_, value)| value)
    }

    /// The name behind a slot of the table of imported functions (`.got.plt`) at `slot`, by its relocation: for what the loader has yet
    /// to look up.
    pub(crate) fn import(&self, memory: &Memory, slot: u64) -> Option<String> {
        const DT_PLTRELSZ: u64 = 2;
        const DT_JMPREL: u64 = 23;
        let at = self.dynamic_entry(memory, DT_JMPREL)?;
        let at = if (self.start..self.end).contains(&at) { at } else { self.bias.wrapping_add(at) };
        let mut rows = vec![0; self.dynamic_entry(memory, DT_PLTRELSZ)?.min(MAX_SYMBOLS) as usize];
        memory.read(at, &mut rows).ok()?;
        let word = |row: &[u8; 24], at: usize| row[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
        let row = rows.as_chunks::<24>().0.iter().find(|row| self.bias.wrapping_add(word(row, 0)) == slot)?;
        let tables = self.dynamic_tables(memory)?;
        let mut symbol = [0; 4];
        memory.read(tables.symbols + (word(row, 8) >> 32) * 24, &mut symbol).ok()?;
        let mut name = vec![0; tables.string_bytes.saturating_sub(u64::from(u32::from_le_bytes(symbol))).min(128) as usize];
        memory.read(tables.strings + u64::from(u32::from_le_bytes(symbol)), &mut name).ok()?;
        name.truncate(memchr::memchr(0, &name)?);
        String::from_utf8(name).ok()
    }

    fn dynamic_tables(&self, memory: &Memory) -> Option<DynamicTables> {
        let entry = |tag: u64| self.dynamic_entry(memory, tag);
        let address = |tag: u64| {
            let value = entry(tag)?;
            Some(if (self.start..self.end).contains(&value) { value } else { self.bias.wrapping_add(value) })
        };
        const DT_HASH: u64 = 4;
        const DT_STRTAB: u64 = 5;
        const DT_SYMTAB: u64 = 6;
        const DT_STRSZ: u64 = 10;
        const DT_GNU_HASH: u64 = 0x6fff_fef5;
        let count = match address(DT_HASH) {
            Some(hash) => memory.read_u64(hash).ok()? >> 32,
            None => gnu_hash_count(memory, address(DT_GNU_HASH)?)?,
        };
        let string_bytes = entry(DT_STRSZ)?.min(self.end - self.start);
        Some(DynamicTables { symbols: address(DT_SYMTAB)?, count: count.min(MAX_SYMBOLS), strings: address(DT_STRTAB)?, string_bytes })
    }
}

/// Where the symbol tables are that a file's section headers tell of, the dynamic one first.
fn places(file: &File) -> Vec<(elf::SectionType, Place)> {
    let cache = ReadCache::new(file);
    // Not `ElfFile64::parse`, which reads the symbols, too: of some libraries that is ten megabytes more.
    let Ok(header) = elf::FileHeader64::<LE>::parse(&cache) else { return Vec::new() };
    let Ok(sections) = header.sections(LE, &cache) else { return Vec::new() };
    let place = |header: &elf::SectionHeader64<LE>| (header.sh_offset(LE), header.sh_size(LE).min(MAX_TABLE));
    let table = |kind: elf::SectionType| {
        let symbols = sections.iter().find(|section| section.sh_type(LE) == kind)?;
        let strings = sections.section(object::SectionIndex(symbols.sh_link(LE) as usize)).ok()?;
        Some((kind, Place { symbols: place(symbols), strings: place(strings) }))
    };
    [elf::SHT_DYNSYM, elf::SHT_SYMTAB].into_iter().filter_map(table).collect()
}

/// What is there.
fn tables(file: &File) -> Vec<Table> {
    let read = |(offset, bytes): (u64, u64)| {
        let mut read = vec![0; bytes as usize];
        file.read_exact_at(&mut read, offset).ok().map(|()| read)
    };
    let table = |(_, place): (elf::SectionType, Place)| Some(Table { symbols: read(place.symbols)?, strings: read(place.strings)? });
    places(file).into_iter().filter_map(table).collect()
}

struct DynamicTables {
    symbols: u64,
    count: u64,
    strings: u64,
    string_bytes: u64,
}

/// A GNU hash table does not say how many symbols there are: the last chain's end does.
fn gnu_hash_count(memory: &Memory, table: u64) -> Option<u64> {
    let word = |at: u64| {
        let mut bytes = [0; 4];
        memory.read(at, &mut bytes).ok().map(|()| u64::from(u32::from_le_bytes(bytes)))
    };
    let (buckets, first, bloom) = (word(table)?, word(table + 4)?, word(table + 8)?);
    let chains = table + 16 + bloom * 8 + buckets * 4;
    let mut bucket_bytes = vec![0; (buckets.min(MAX_SYMBOLS) * 4) as usize];
    memory.read(table + 16 + bloom * 8, &mut bucket_bytes).ok()?;
    let last = bucket_bytes.as_chunks::<4>().0.iter().map(|b| u64::from(u32::from_le_bytes(*b))).max()?;
    if last < first {
        return Some(first);
    }
    let mut at = last;
    while at < MAX_SYMBOLS && word(chains + (at - first) * 4)? & 1 == 0 {
        at += 1;
    }
    Some(at + 1)
}
