//! Looking for a few names in a file's symbol tables without keeping those: some libraries have twenty megabytes of names, and to have them all in memory
//! takes several times as long as to look through them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use memchr::{memchr, memchr_iter, memrchr};
use object::LittleEndian as LE;
use object::elf::Sym64;

/// Bytes read at once: they stay in the cache until they were looked at.
const PIECE: usize = 256 << 10;
const SYMBOL: usize = size_of::<Sym64<LE>>();
/// Bytes of strings that one bit of `Found::map` is of, as a power of two.
const GRAIN: u32 = 6;

/// Where a file has a symbol table and its strings: offset and bytes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub symbols: (u64, u64),
    pub strings: (u64, u64),
}

/// Ends of strings that may be wanted, in their order. A symbol's name may begin anywhere in a string.
struct Found {
    /// Offset behind the last byte, and the text.
    ends: Vec<(u64, Vec<u8>)>,
    /// Which parts of the strings have something of these.
    map: Vec<u64>,
}

impl Found {
    fn add(&mut self, end: u64, text: &[u8]) {
        for grain in (end - text.len() as u64) >> GRAIN..=end >> GRAIN {
            if let Some(word) = self.map.get_mut((grain / 64) as usize) {
                *word |= 1 << (grain % 64);
            }
        }
        self.ends.push((end, text.to_vec()));
    }

    /// The string from `at` to its end.
    fn name(&self, at: u64) -> Option<&[u8]> {
        let grain = at >> GRAIN;
        if self.map.get((grain / 64) as usize)? >> (grain % 64) & 1 == 0 {
            return None;
        }
        let (end, text) = self.ends.get(self.ends.partition_point(|(end, _)| *end < at))?;
        text.get((at + text.len() as u64).checked_sub(*end)? as usize..)
    }
}

/// Shows `see` every symbol whose name, without its version, is not longer than `longest`, and may be wanted: `is_wanted` is asked of ends of names, and
/// says whether they are the end of one that is. `None` if the file cannot be read.
pub fn each(
    file: &File,
    place: Place,
    longest: usize,
    is_wanted: impl Fn(&[u8]) -> bool,
    see: &mut dyn FnMut(&[u8], &Sym64<LE>),
) -> Option<()> {
    let found = strings(file, place.strings, longest, is_wanted)?;
    let mut piece = vec![0; PIECE / SYMBOL * SYMBOL];
    let (from, bytes) = place.symbols;
    for at in (0..bytes).step_by(piece.len()) {
        let piece = &mut piece[..((bytes - at) as usize).min(PIECE / SYMBOL * SYMBOL)];
        file.read_exact_at(piece, from + at).ok()?;
        let whole = piece.len() / SYMBOL;
        let (symbols, _) = object::pod::slice_from_bytes::<Sym64<LE>>(piece, whole).ok()?;
        for symbol in symbols {
            if let Some(name) = found.name(u64::from(symbol.st_name.get(LE)))
                && name.len() <= longest
            {
                see(name, symbol);
            }
        }
    }
    Some(())
}

fn strings(file: &File, (from, bytes): (u64, u64), longest: usize, is_wanted: impl Fn(&[u8]) -> bool) -> Option<Found> {
    let mut found = Found { ends: Vec::new(), map: vec![0; (bytes >> GRAIN) as usize / 64 + 1] };
    let mut piece = vec![0; PIECE];
    let (mut at, mut seen) = (0, 0);
    while seen < bytes {
        let piece = &mut piece[..((bytes - at) as usize).min(PIECE)];
        file.read_exact_at(piece, from + at).ok()?;
        for end in memchr_iter(0, piece).skip_while(|end| at + (*end as u64) < seen) {
            let tail = &piece[end.saturating_sub(longest + VERSION)..end];
            let tail = &tail[memrchr(0, tail).map_or(0, |before| before + 1)..];
            // In static tables a version is part of the name.
            let name = &tail[..memchr(b'@', tail).unwrap_or(tail.len())];
            let name_end = end - (tail.len() - name.len());
            let name = &name[name.len().saturating_sub(longest)..];
            if is_wanted(name) {
                found.add(at + name_end as u64, name);
            }
        }
        seen = at + piece.len() as u64;
        // A string that lies across the end of this piece is whole in the next, as far as it matters.
        at = seen.saturating_sub((longest + VERSION) as u64).max(at + 1);
    }
    Some(found)
}

/// Most bytes of a version behind a name.
const VERSION: usize = 40;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use object::read::elf::{ElfFile64, Sym};
    use object::{Object, ObjectSymbol};

    use super::*;

    const ENDS: [&str; 4] = ["alloc", "free", "main", "E"];

    fn is_wanted(name: &[u8]) -> bool {
        ENDS.iter().any(|end| name.ends_with(end.as_bytes()))
    }

    /// Tables of this very program, whose strings are many pieces, and of a library with versions.
    #[test]
    fn finds_what_is_in_the_tables() {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our maps");
        let libc = maps.split_whitespace().find(|word| word.contains("/libc.so")).expect("a C library").to_owned();
        let own = std::env::current_exe().expect("our own path").to_string_lossy().into_owned();
        for (path, longest) in [(&libc, 80), (&own, 80), (&own, 12), (&own, 300)] {
            let bytes = std::fs::read(path).expect("it can be read");
            let elf = ElfFile64::<LE>::parse(&*bytes).expect("an ELF file");
            let whole = |names: &[u8]| names.split(|byte| *byte == b'@').next().unwrap_or_default().to_vec();
            let all = elf.dynamic_symbols().chain(elf.symbols());
            let names = all.filter_map(|symbol| Some((whole(symbol.name_bytes().ok()?), symbol.address())));
            let expected: BTreeSet<(Vec<u8>, u64)> = names.filter(|(name, _)| name.len() <= longest && is_wanted(name)).collect();
            let mut found = BTreeSet::new();
            let sections = elf.elf_section_table();
            for kind in [object::elf::SHT_DYNSYM, object::elf::SHT_SYMTAB] {
                use object::read::elf::SectionHeader;
                let Some(symbols) = sections.iter().find(|section| section.sh_type(LE) == kind) else { continue };
                let strings = sections.section(object::SectionIndex(symbols.sh_link(LE) as usize)).expect("strings");
                let place =
                    Place { symbols: (symbols.sh_offset(LE), symbols.sh_size(LE)), strings: (strings.sh_offset(LE), strings.sh_size(LE)) };
                let file = File::open(path).expect("it can be read");
                each(&file, place, longest, is_wanted, &mut |name, symbol| {
                    if is_wanted(name) {
                        found.insert((name.to_vec(), symbol.st_value(LE)));
                    }
                })
                .expect("it can be read");
            }
            assert!(expected.len() > 3, "{path} {longest}: {}", expected.len());
            let missing: Vec<_> = expected.difference(&found).take(5).map(|(name, at)| (String::from_utf8_lossy(name), at)).collect();
            let invented: Vec<_> = found.difference(&expected).take(5).map(|(name, at)| (String::from_utf8_lossy(name), at)).collect();
            assert!(missing.is_empty() && invented.is_empty(), "{path} {longest}: missing {missing:?}, invented {invented:?}");
        }
    }
}
