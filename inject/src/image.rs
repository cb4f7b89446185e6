//! Our own mapper for libhound.so: which memory it takes, and its bytes relocated for a place. It needs no loader and no other library.

use hound_common::attach::{ATTACHMENT_SYMBOL, MAGIC, STUB_WORDS, STUBS_SYMBOL, VERSION, image_id};
use object::read::elf::{ElfFile64, ProgramHeader, Rela};
use object::{LittleEndian as LE, Object, ObjectSymbol, elf};

use crate::place::PAGE;

/// Part of the image with one protection.
#[derive(Clone, Debug)]
pub struct Part {
    /// Offset from the image's start, on a page.
    pub offset: u64,
    /// Whole pages.
    pub bytes: u64,
    /// `PROT_…`
    pub protection: i32,
}

/// libhound.so, ready to be placed.
#[derive(Debug)]
pub struct Image {
    parts: Vec<Part>,
    memory: Vec<u8>,
    relative: Vec<(usize, u64)>,
    outside: Vec<(usize, String)>,
    attachment: u64,
    id: u64,
}

/// What is wrong with a library.
pub type Wrong = String;

fn wrong<E: core::fmt::Display>(error: E) -> Wrong {
    format!("libhound.so: {error}")
}

impl Image {
    /// Reads the library.
    ///
    /// # Errors
    /// When it is not a library that hound can map: no attachment block of this version, or a relocation of an unknown type.
    pub fn parse(library: &[u8]) -> Result<Self, Wrong> {
        let file = ElfFile64::<LE, _>::parse(library).map_err(wrong)?;
        let programs = file.elf_program_headers();
        let relro = programs.iter().find(|p| p.p_type(LE) == elf::PT_GNU_RELRO);
        let relro = relro.map_or(0..0, |p| p.p_vaddr(LE)..(p.p_vaddr(LE) + p.p_memsz(LE)).next_multiple_of(PAGE));
        let (mut parts, mut memory) = (Vec::<Part>::new(), Vec::new());
        for p in programs.iter().filter(|p| p.p_type(LE) == elf::PT_LOAD) {
            let (start, end) = (p.p_vaddr(LE), p.p_vaddr(LE) + p.p_memsz(LE));
            let bytes = p.data(LE, library).map_err(|()| wrong("a segment lies outside the file"))?;
            memory.resize((end.next_multiple_of(PAGE) as usize).max(memory.len()), 0);
            memory[start as usize..][..bytes.len()].copy_from_slice(bytes);
            let offset = start & !(PAGE - 1);
            if parts.last().is_some_and(|last| last.offset + last.bytes > offset) {
                return Err(wrong("two segments share a page"));
            }
            let flags = p.p_flags(LE).0;
            let is_relro = relro.contains(&start) && end <= relro.end;
            let mut protection = libc::PROT_READ;
            protection |= if flags & elf::PF_X.0 != 0 { libc::PROT_EXEC } else { 0 };
            protection |= if flags & elf::PF_W.0 != 0 && !is_relro { libc::PROT_WRITE } else { 0 };
            parts.push(Part { offset, bytes: end.next_multiple_of(PAGE) - offset, protection });
        }
        let symbol = |name: &str| {
            let found = file.dynamic_symbols().find(|s| s.is_definition() && s.name() == Ok(name));
            found.map(|s| (s.address(), s.size())).ok_or_else(|| wrong(format!("no symbol {name}")))
        };
        let (attachment, _) = symbol(ATTACHMENT_SYMBOL)?;
        let (_, stub_bytes) = symbol(STUBS_SYMBOL)?;
        let word = |at: u64| memory.get(at as usize..at as usize + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        if word(attachment) != MAGIC || word(attachment + 8) as u32 != VERSION || stub_bytes != STUB_WORDS as u64 * 8 {
            return Err(wrong("made for another version of hound"));
        }
        let mut image = Self { parts, memory, relative: Vec::new(), outside: Vec::new(), attachment, id: image_id(library) };
        image.read_relocations(&file)?;
        Ok(image)
    }

    fn read_relocations<'a>(&mut self, file: &ElfFile64<'a, LE, &'a [u8]>) -> Result<(), Wrong> {
        let symbols = file.elf_dynamic_symbol_table();
        let sections = file.elf_section_table();
        for section in sections.iter() {
            let Some((rows, _)) = object::read::elf::SectionHeader::rela(section, LE, file.data()).map_err(wrong)? else { continue };
            for row in rows {
                let at = row.r_offset(LE) as usize;
                if at + 8 > self.memory.len() {
                    return Err(wrong("a relocation lies outside"));
                }
                let addend = row.r_addend(LE);
                match row.r_type(LE, false) {
                    elf::R_X86_64_RELATIVE => self.relative.push((at, addend.cast_unsigned())),
                    elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_64 => {
                        let index = object::SymbolIndex(row.r_sym(LE, false) as usize);
                        let symbol = symbols.symbol(index).map_err(wrong)?;
                        let value = symbol_value(symbol);
                        let name = symbols.symbol_name(LE, symbol).map_err(wrong)?;
                        match value {
                            Some(value) => self.relative.push((at, value.wrapping_add_signed(addend))),
                            None => self.outside.push((at, String::from_utf8_lossy(name).into_owned())),
                        }
                    }
                    // Thread-local storage is of no use to a library that no loader knows; it goes without when it is mapped so.
                    elf::R_X86_64_TPOFF64 | elf::R_X86_64_NONE => {}
                    other => return Err(wrong(format!("relocation of type {other:?}"))),
                }
            }
        }
        // Packed relocations would be missed, and the library would run with addresses of its own unrelocated.
        let packed = file.elf_dynamic_table().is_ok_and(|d| d.iter().any(|d| [elf::DT_RELR, elf::DT_TEXTREL].contains(&d.tag)));
        if packed { Err(wrong("it has packed or text relocations")) } else { Ok(()) }
    }

    /// Whole length.
    pub fn bytes(&self) -> u64 {
        self.memory.len() as u64
    }

    /// What to map.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Offset of the attachment block.
    pub fn attachment(&self) -> u64 {
        self.attachment
    }

    /// Tells it from other builds.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its bytes for a place; `find` knows the target's own symbols, 0 for those that are not there (all are weak).
    pub fn placed(&self, start: u64, find: impl Fn(&str) -> u64) -> Vec<u8> {
        let mut memory = self.memory.clone();
        for (at, value) in &self.relative {
            memory[*at..at + 8].copy_from_slice(&start.wrapping_add(*value).to_le_bytes());
        }
        for (at, name) in &self.outside {
            memory[*at..at + 8].copy_from_slice(&find(name).to_le_bytes());
        }
        memory
    }
}

fn symbol_value(symbol: &elf::Sym64<LE>) -> Option<u64> {
    use object::read::elf::Sym;
    (!symbol.is_undefined(LE)).then(|| symbol.st_value(LE))
}
