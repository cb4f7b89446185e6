//! What the kernel tells: totals, and the mappings.

use std::path::PathBuf;

use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

use super::Before;

/// What a mapping is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Grown with brk.
    Heap,
    /// Private, writable, of no file.
    Anonymous,
    /// Private, writable, of a file: a module's data.
    Data,
    /// Executable code of a file.
    Code(PathBuf),
    Other,
}

/// A mapping of the target.
#[derive(Clone, Debug)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    pub what: What,
    /// Bytes of it that are swapped out.
    pub swapped: u64,
}

impl Area {
    pub fn holds(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// Resident and swapped bytes, those of the heap and of other anonymous memory, and the mappings.
pub fn look(pid: u32) -> anyhow::Result<(Before, Vec<Area>)> {
    let process = Process::new(i32::try_from(pid)?)?;
    let maps = process.smaps()?;
    let sum = |key: &str| maps.iter().map(|map| of(map, key)).sum();
    let areas: Vec<Area> = maps.iter().map(area).collect();
    let resident_in = |what: What| maps.iter().zip(&areas).filter(|(_, area)| area.what == what).map(|(map, _)| of(map, "Rss")).sum();
    // Anonymous: glibc's arenas, large blocks, and all other allocators' memory.
    let (heap, anonymous) = (resident_in(What::Heap), resident_in(What::Anonymous));
    let mut memory = Before { resident: sum("Rss"), swapped: sum("Swap"), heap, anonymous, ..Before::default() };
    // The sum over all mappings is torn if they change while they are listed; the kernel's own sum is not.
    if let Some(rollup) = process.smaps_rollup().ok().and_then(|rollup| rollup.memory_map_rollup.0.into_iter().next()) {
        (memory.resident, memory.swapped) = (of(&rollup, "Rss"), of(&rollup, "Swap"));
    }
    Ok((memory, areas))
}

/// The mappings alone, which cost the target less; what is swapped out is not known.
pub fn areas(pid: u32) -> anyhow::Result<Vec<Area>> {
    Ok(Process::new(i32::try_from(pid)?)?.maps()?.iter().map(area).collect())
}

fn of(map: &MemoryMap, key: &str) -> u64 {
    map.extension.map.get(key).copied().unwrap_or(0)
}

fn area(map: &MemoryMap) -> Area {
    let ours = map.perms.contains(MMPermissions::READ | MMPermissions::WRITE | MMPermissions::PRIVATE);
    let what = match &map.pathname {
        MMapPath::Heap if ours => What::Heap,
        MMapPath::Anonymous if ours => What::Anonymous,
        // Named with PR_SET_VMA_ANON_NAME: glibc does it where a tunable asks for it.
        MMapPath::Other(name) if ours && name.starts_with("anon:") => What::Anonymous,
        MMapPath::Path(_) if ours => What::Data,
        MMapPath::Path(path) if map.perms.contains(MMPermissions::EXECUTE) => What::Code(path.clone()),
        _ => What::Other,
    };
    Area { start: map.address.0, end: map.address.1, what, swapped: of(map, "Swap") }
}
