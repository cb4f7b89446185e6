//! The target's address space: its mappings, and gaps among them.

use std::fs;

use crate::error::Error;

/// Pages are what mappings are made of.
pub(crate) const PAGE: u64 = 4096;
/// How far from a module its thunks may lie: half of what a `jmp rel32` reaches, so that a module of up to 1 GiB is in reach as a whole.
const NEAR: u64 = 1 << 30;
/// First address hound uses: above any usual `vm.mmap_min_addr`, below an executable linked at 4 MiB (whose heap takes what is above), and
/// where a null pointer with an offset of up to 1 MiB still faults.
const LOWEST: u64 = 1 << 20;
/// End of user space with four-level page tables.
const HIGHEST: u64 = (1 << 47) - (1 << 30);
/// Kept free on either side of our pieces: stacks and the heap grow, and guard gaps must not shrink.
const MARGIN: u64 = 1 << 20;
/// Below the main stack's mapping: what it may still grow by (the usual limit is 8 MiB; unlimited ones get this much too).
const STACK_MARGIN: u64 = 64 << 20;
/// Above the heap: what brk may still grow by without moving on to mmap. Growing is never refused because of us below that.
const HEAP_MARGIN: u64 = 16 << 30;

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// End address.
    pub end: u64,
    /// For example `r-xp`.
    pub protection: [u8; 4],
    /// Offset in the file.
    pub offset: u64,
    /// Device, as printed.
    pub device: String,
    /// Inode, 0 for none.
    pub inode: u64,
    /// Path or pseudo-path, may be empty.
    pub path: String,
}

impl Mapping {
    /// Whether code can run there.
    pub fn is_executable(&self) -> bool {
        self.protection[2] == b'x'
    }
}

/// The mappings of a process.
///
/// # Errors
/// When they cannot be read, or the process is gone.
pub fn mappings(pid: i32) -> Result<Vec<Mapping>, Error> {
    let text = fs::read(format!("/proc/{pid}/maps")).map_err(|e| Error::io("reading the target's mappings", &e))?;
    let maps: Vec<Mapping> = text.split(|b| *b == b'\n').filter_map(|line| parse(&String::from_utf8_lossy(line))).collect();
    if maps.is_empty() { Err(Error::Gone) } else { Ok(maps) }
}

fn parse(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let protection = words.next()?.as_bytes().try_into().ok()?;
    let offset = words.next()?;
    let device = words.next()?.to_owned();
    let inode = words.next()?.parse().ok()?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let path = words.next().unwrap_or("").trim_start().to_owned();
    Some(Mapping { start: hex(start)?, end: hex(end)?, protection, offset: hex(offset)?, device, inode, path })
}

/// Taken address ranges, sorted, with the room that their owners may still grow into.
#[derive(Debug)]
pub(crate) struct Space {
    taken: Vec<(u64, u64)>,
}

impl Space {
    pub(crate) fn of(maps: &[Mapping]) -> Self {
        let mut taken: Vec<(u64, u64)> = maps
            .iter()
            .map(|m| match m.path.as_str() {
                "[stack]" => (m.start.saturating_sub(STACK_MARGIN), m.end),
                "[heap]" => (m.start, m.end.saturating_add(HEAP_MARGIN)),
                _ => (m.start.saturating_sub(MARGIN), m.end.saturating_add(MARGIN)),
            })
            .collect();
        taken.sort_unstable();
        Self { taken }
    }

    /// Takes `bytes` somewhere. Away from what the program maps by itself, so that our pieces do not split its room: the middle of the
    /// largest gap.
    pub(crate) fn anywhere(&mut self, bytes: u64) -> Option<u64> {
        let (start, end) = self.gaps(LOWEST, HIGHEST).into_iter().max_by_key(|(start, end)| end - start)?;
        let place = (start + (end - start) / 2) & !(PAGE - 1);
        (place + bytes <= end).then(|| self.take(place, bytes))
    }

    /// Takes `bytes` such that a `jmp rel32` reaches from anywhere in `start..end` to anywhere in them: as close as there is room.
    pub(crate) fn near(&mut self, start: u64, end: u64, bytes: u64) -> Option<u64> {
        let lowest = end.saturating_sub(NEAR).max(LOWEST);
        let highest = start.saturating_add(NEAR).min(HIGHEST);
        let place = self
            .gaps(lowest, highest)
            .into_iter()
            .filter(|(from, to)| to - from >= bytes)
            .map(|(from, to)| if to <= start { (start - to, (to - bytes) & !(PAGE - 1)) } else { (from.saturating_sub(end), from) })
            .filter(|(_, place)| *place >= lowest && place + bytes <= highest)
            .min()?
            .1;
        Some(self.take(place, bytes))
    }

    /// Whether all of it is free, margins left aside.
    fn take(&mut self, place: u64, bytes: u64) -> u64 {
        let entry = (place, place + bytes);
        let at = self.taken.partition_point(|t| *t < entry);
        self.taken.insert(at, entry);
        place
    }

    /// Free ranges within `lowest..highest`, aligned to pages.
    fn gaps(&self, lowest: u64, highest: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut free = lowest;
        for (start, end) in self.taken.iter().copied().chain([(highest, u64::MAX)]) {
            let start = start.min(highest) & !(PAGE - 1);
            if start > free {
                gaps.push((free, start));
            }
            free = free.max(end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX));
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(start: u64, end: u64, path: &str) -> Mapping {
        Mapping { start, end, protection: *b"r-xp", offset: 0, device: String::new(), inode: 0, path: path.into() }
    }

    #[test]
    fn reads_lines_with_and_without_a_path() {
        let m = parse("7f00-7f10 r-xp 00001000 fd:00 42   /lib/with space.so (deleted)").unwrap();
        assert_eq!((m.start, m.end, m.offset, m.inode), (0x7f00, 0x7f10, 0x1000, 42));
        assert_eq!(m.path, "/lib/with space.so (deleted)");
        assert_eq!(parse("7f00-7f10 rw-p 00000000 00:00 0 ").unwrap().path, "");
    }

    #[test]
    fn a_near_place_is_in_reach_and_free() {
        let base = 0x7f00_0000_0000;
        let maps = [map(base, base + 0x20_0000, "libc"), map(base + 0x30_0000, base + 0x40_0000, "other")];
        let mut space = Space::of(&maps);
        for _ in 0..200 {
            let place = space.near(base, base + 0x20_0000, 0x10000).unwrap();
            assert!(place.abs_diff(base) < NEAR + 0x20_0000);
            assert!(maps.iter().all(|m| place + 0x10000 <= m.start || place >= m.end));
        }
        let mut places: Vec<u64> = space.taken.iter().map(|t| t.0).collect();
        places.dedup();
        assert_eq!(places.len(), 202, "no place is given twice");
    }

    #[test]
    fn a_low_executable_has_room_below() {
        // A static executable at 4 MiB whose heap begins right behind it.
        let maps = [map(0x40_0000, 0x50_0000, "/bin/static"), map(0x51_0000, 0x60_0000, "[heap]")];
        let place = Space::of(&maps).near(0x40_0000, 0x50_0000, 0x4000).unwrap();
        assert!((LOWEST..0x30_0000).contains(&place), "{place:#x}");
        assert_eq!(Space::of(&maps).near(0x40_0000, 0x50_0000, 0x40_0000), None, "above is the heap's own room");
    }
}
