//! What `-gsplit-dwarf` has put apart: a file compiled so holds skeletons of its units, and files and lines, inlined functions and all else stand in
//! `.dwo` files, where the compiler left them. blazesym reads packages of those (`.dwp`) alone.

use addr2line::{Loader, gimli};
use object::{Object, ObjectSection, ReadCache};
use std::fs::File;
use std::path::Path;

/// A function at an address, or one inlined there; its file and line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// As the linker knows it, if it is known.
    pub function: Option<String>,
    /// Where in the source.
    pub file: String,
    /// 0: not known.
    pub line: u32,
}

/// A file with skeletons.
pub(super) struct Split(Loader);

impl Split {
    /// None if there are no skeletons in it, or it cannot be read.
    pub(super) fn of(path: &Path) -> Option<Split> {
        has_skeletons(path).then(|| Loader::new(path).ok().map(Split)).flatten()
    }

    /// What is at an address, innermost first; nothing where files or lines are not known.
    pub(super) fn places(&self, svma: u64) -> Vec<Place> {
        let mut places = Vec::new();
        let Ok(mut frames) = self.0.find_frames(svma) else { return places };
        while let Ok(Some(frame)) = frames.next() {
            let function = frame.function.and_then(|function| Some(function.raw_name().ok()?.into_owned()));
            let location = frame.location.and_then(|location| Some((location.file?.to_owned(), location.line.unwrap_or(0))));
            let Some((file, line)) = location else { return Vec::new() };
            places.push(Place { function, file, line });
        }
        places
    }
}

fn has_skeletons(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let cache = ReadCache::new(file);
    let Ok(object) = object::File::parse(&cache) else { return false };
    // Only they and a few whole units of DWARF 5 refer to a table of addresses: most files are done with here.
    if object.section_by_name(".debug_addr").is_none() {
        return false;
    }
    let section = |id: gimli::SectionId| object.section_by_name(id.name()).and_then(|section| section.uncompressed_data().ok());
    let Ok(sections) = gimli::DwarfSections::load(|id| Ok::<_, gimli::Error>(section(id).unwrap_or_default())) else { return false };
    let dwarf = sections.borrow(|bytes| gimli::EndianSlice::new(bytes, gimli::LittleEndian));
    let mut units = dwarf.units();
    while let Ok(Some(unit)) = units.next() {
        if dwarf.unit(unit).is_ok_and(|unit| unit.dwo_id.is_some()) {
            return true;
        }
    }
    false
}
