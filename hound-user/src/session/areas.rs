//! What lies where a target touched a page: its mappings, read when an address is met that was in none before, and how large the page is.
#![expect(unsafe_code, reason = "PAGEMAP_SCAN has no safe wrapper")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use hound_common::event::{FAULT_ANONYMOUS, FAULT_COPY, FAULT_FILE, FAULT_HEAP, FAULT_SHARED, FAULT_STACK, FAULT_UNKNOWN, tag};
use procfs::process::{MMPermissions, MMapPath, Process};

use super::clock;
use super::streams::Changed;
use crate::capture::Clock;

/// The mappings are read again for an unknown address when so many times as long has passed as reading takes: a target with very many
/// is not held up by being looked at.
const READING_PART: u32 = 20;
/// What is mapped where may have changed without any address becoming an unknown one.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// How far below the stack pointer a thread's stack may be touched: frames of signals are written there before the pointer moves.
const BELOW: u64 = 16 << 10;
/// What may lie above the first frame and be the stack's still: what the thread's start has put there.
const ABOVE: u64 = 64 << 10;
/// A page fault that is older is over, and what it has mapped is gone. A huge page may have to be made free first.
const LONGEST: Duration = Duration::from_millis(50);
/// A page, and a huge page.
const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;
/// So many mappings are remembered from what the kernel tells of them, at most.
const MOST_TOLD: usize = 16 << 10;

/// What a mapping is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Heap,
    Stack,
    Anonymous,
    /// Of the process alone, or shared with whoever maps the file.
    File {
        private: bool,
    },
    Shared {
        private: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Area {
    start: u64,
    end: u64,
    class: Class,
}

/// A touch to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// The address.
    pub address: u64,
    /// It was written to.
    pub write: bool,
    /// The thread's stack pointer.
    pub sp: u64,
    /// When, in nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Where the thread's first frame ends, if the stack was followed so far.
    pub top: Option<u64>,
}

/// The mappings of one process.
#[derive(Debug)]
pub struct Areas {
    pid: u32,
    /// As they were when they were read.
    areas: Vec<Area>,
    /// As the kernel has told of them, in the order of touches: what the target has mapped and unmapped before it could be read is there.
    told: Told,
    read: Option<(Instant, Duration)>,
    /// Something was mapped or unmapped since.
    changed: bool,
    pages: Option<File>,
}

impl Areas {
    /// Of this process. Nothing is read yet.
    pub fn of(pid: u32) -> Self {
        Areas { pid, areas: Vec::new(), told: Told::default(), read: None, changed: false, pages: None }
    }

    /// What lies there (`FAULT_…`), and how many bytes the touch has mapped.
    pub fn place(&mut self, touch: &Touch) -> (u8, u64) {
        if self.read.is_none_or(|(at, _)| at.elapsed() >= STALE_AFTER) {
            self.look();
        }
        let mut area = self.at(touch.address);
        let may_look = self.read.is_none_or(|(at, took)| at.elapsed() >= took * READING_PART);
        if (area.is_none() || self.changed) && may_look {
            self.look();
            area = self.at(touch.address);
        }
        let Some(area) = area.or_else(|| self.told.at(touch.address)) else { return (FAULT_UNKNOWN, PAGE) };
        let kind = match area.class {
            Class::Stack => FAULT_STACK,
            Class::Heap => FAULT_HEAP,
            Class::Anonymous if area.is_stack_of(touch) => FAULT_STACK,
            Class::Anonymous => FAULT_ANONYMOUS,
            Class::File { private: true } | Class::Shared { private: true } if touch.write => FAULT_COPY,
            Class::File { .. } => FAULT_FILE,
            Class::Shared { .. } => FAULT_SHARED,
        };
        let start = touch.address & !(HUGE - 1);
        let may_be_huge = area.start <= start && start + HUGE <= area.end && matches!(kind, FAULT_HEAP | FAULT_ANONYMOUS | FAULT_SHARED);
        (kind, if may_be_huge && self.becomes_huge(touch) { HUGE } else { PAGE })
    }

    /// Something was mapped or unmapped: what, if the kernel has told.
    pub fn have_changed(&mut self, change: Option<&Changed>) {
        self.changed = true;
        if let Some(change) = change {
            self.told.change(change);
        }
    }

    /// Where the heap that grows by brk ends, if there is one.
    pub fn heap_end(&mut self) -> Option<u64> {
        self.look();
        self.areas.iter().rfind(|area| area.class == Class::Heap).map(|area| area.end)
    }

    fn at(&self, address: u64) -> Option<Area> {
        let behind = self.areas.partition_point(|area| area.start <= address);
        self.areas[..behind].last().copied().filter(|area| address < area.end)
    }

    /// Reads the mappings. Of a process that is gone, what was known stays known.
    fn look(&mut self) {
        let began = Instant::now();
        let maps = i32::try_from(self.pid).ok().and_then(|pid| Process::new(pid).ok()).and_then(|process| process.maps().ok());
        if let Some(maps) = maps.filter(|maps| maps.iter().next().is_some()) {
            let area = |map: &procfs::process::MemoryMap| Area {
                start: map.address.0,
                end: map.address.1,
                class: class(&map.pathname, map.perms.contains(MMPermissions::PRIVATE)),
            };
            self.areas = maps.iter().map(area).collect();
        }
        let now = Instant::now();
        self.changed = false;
        self.read = Some((now, now - began));
    }

    /// Whether the touch has brought a huge page. It is told of when it begins: what is not there yet is waited for.
    fn becomes_huge(&mut self, touch: &Touch) -> bool {
        if self.pages.is_none() {
            self.pages = File::open(format!("/proc/{}/pagemap", self.pid)).ok();
        }
        let Some(pages) = &self.pages else { return false };
        let page = touch.address & !(PAGE - 1);
        let over = Duration::from_nanos(touch.time_ns) + LONGEST;
        loop {
            match mapped(pages, page) {
                Mapped::Huge => return true,
                Mapped::Small => return false,
                Mapped::Nothing if Duration::from_nanos(clock::ticks(Clock::Monotonic)) < over => std::thread::sleep(LONGEST / 50),
                Mapped::Nothing => return false,
            }
        }
    }
}

/// Mappings that the kernel has told of and not yet told the end of.
#[derive(Debug, Default)]
struct Told {
    /// By where they start. None overlaps another.
    areas: BTreeMap<u64, Area>,
}

impl Told {
    fn at(&self, address: u64) -> Option<Area> {
        self.areas.range(..=address).next_back().map(|(_, area)| *area).filter(|area| address < area.end)
    }

    fn change(&mut self, change: &Changed) {
        let [first, second, third, fourth, _] = change.words;
        let (end, whole) = (first.saturating_add(second), |bytes: u64| bytes.checked_next_multiple_of(PAGE).unwrap_or(bytes));
        match change.tag {
            tag::MAP => self.add(Area { start: first, end: first.saturating_add(whole(second)), class: class_told(third >> 32, fourth) }),
            tag::UNMAP => self.remove(first, end),
            tag::REMAP => {
                let class = self.at(first).map_or(Class::Anonymous, |area| area.class);
                self.remove(first, end);
                self.add(Area { start: third, end: third.saturating_add(whole(fourth)), class });
            }
            tag::BRK if second > first => self.add(Area { start: first, end: second, class: Class::Heap }),
            tag::BRK => self.remove(second, first),
            _ => {}
        }
    }

    fn add(&mut self, area: Area) {
        self.remove(area.start, area.end);
        if self.areas.len() >= MOST_TOLD {
            self.areas.clear(); // then they are known from reading alone
        }
        self.areas.insert(area.start, area);
    }

    /// Nothing lies there any more; of what reaches beyond, the rest remains.
    fn remove(&mut self, start: u64, end: u64) {
        while let Some((&at, &area)) = self.areas.range(..end).next_back().filter(|(_, area)| area.end > start) {
            self.areas.remove(&at);
            if area.end > end {
                self.areas.insert(end, Area { start: end, ..area });
            }
            if at < start {
                self.areas.insert(at, Area { end: start, ..area });
            }
        }
    }
}

/// By the flags of a call of mmap, and its file.
fn class_told(flags: u64, file: u64) -> Class {
    let private = flags & libc::MAP_TYPE as u64 == libc::MAP_PRIVATE as u64;
    match flags & libc::MAP_ANONYMOUS as u64 != 0 || file == u64::MAX {
        true if private => Class::Anonymous,
        true => Class::Shared { private },
        false => Class::File { private },
    }
}

impl Area {
    fn is_stack_of(&self, touch: &Touch) -> bool {
        let end = touch.top.map_or(self.end, |top| top.saturating_add(ABOVE)).min(self.end);
        (self.start..self.end).contains(&touch.sp) && (touch.sp.saturating_sub(BELOW)..end).contains(&touch.address)
    }
}

fn class(path: &MMapPath, private: bool) -> Class {
    match path {
        MMapPath::Heap => Class::Heap,
        MMapPath::Stack | MMapPath::TStack(_) => Class::Stack,
        MMapPath::Path(path) => {
            let path = path.to_string_lossy();
            let shared = ["/memfd:", "/dev/shm/", "/SYSV", "/dev/zero"].iter().any(|start| path.starts_with(start));
            match shared {
                true if private && path.starts_with("/dev/zero") => Class::Anonymous,
                true => Class::Shared { private },
                false => Class::File { private },
            }
        }
        MMapPath::Vsys(_) => Class::Shared { private },
        _ => Class::Anonymous,
    }
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    most_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    told: u64,
}

/// `PAGE_IS_PRESENT` and `PAGE_IS_HUGE`.
const IS_PRESENT: u64 = 1 << 3;
const IS_HUGE: u64 = 1 << 6;
const _: () = assert!(size_of::<Scan>() == 96);

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, Scan);

/// What is mapped at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapped {
    /// Nothing: not yet, or no longer.
    Nothing,
    Small,
    Huge,
}

/// Kernels before 6.7 cannot tell: then pages are small.
fn mapped(pages: &File, page: u64) -> Mapped {
    let mut region = [0_u64; 3];
    let mut scan = Scan {
        size: size_of::<Scan>() as u64,
        start: page,
        end: page + PAGE,
        regions: region.as_mut_ptr() as u64,
        regions_length: 1,
        all_of: IS_PRESENT,
        told: IS_PRESENT | IS_HUGE,
        ..Scan::default()
    };
    // SAFETY: the structure is the kernel's, and the one region that it may write has room.
    match unsafe { pagemap_scan(pages.as_raw_fd(), &raw mut scan) } {
        Ok(0) => Mapped::Nothing,
        Ok(_) if region[2] & IS_HUGE != 0 => Mapped::Huge,
        _ => Mapped::Small,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_has_mapped_is_told_apart() {
        let mut areas = Areas::of(std::process::id());
        let local = 0_u8;
        let here = &raw const local as u64;
        let touch = |address: u64, write: bool| Touch { address, write, sp: here, time_ns: 0, top: None };
        assert_eq!(areas.place(&touch(here, true)).0, FAULT_STACK, "a thread's");
        let block = vec![1_u8; 1 << 20];
        areas.read = None; // however long the first look took
        assert_eq!(areas.place(&touch(block.as_ptr() as u64 + 8192, true)).0, FAULT_ANONYMOUS);
        let code = what_this_process_has_mapped_is_told_apart as fn() as usize as u64;
        assert_eq!(areas.place(&touch(code, false)), (FAULT_FILE, PAGE));
        assert_eq!(areas.place(&touch(code, true)), (FAULT_COPY, PAGE));
        assert_eq!(areas.place(&touch(64, true)), (FAULT_UNKNOWN, PAGE));
        let first = here - ABOVE - 1;
        let above = Touch { sp: first, top: Some(first), ..touch(here, true) };
        assert_eq!(areas.place(&above).0, FAULT_ANONYMOUS, "beyond the first frame");
    }

    #[test]
    fn what_was_unmapped_before_it_could_be_read_is_known_from_what_the_kernel_told() {
        let mut areas = Areas::of(std::process::id());
        let kind = |areas: &mut Areas, address: u64, write: bool| areas.place(&Touch { address, write, sp: 8, time_ns: 0, top: None }).0;
        let changed = |tag: u8, words: [u64; 5]| Changed { tag, kind: 0, words, count: 5 };
        let (private, anonymous) = (libc::MAP_PRIVATE as u64, libc::MAP_ANONYMOUS as u64);
        let at = 0x1000_0000; // nothing of this process lies there
        areas.have_changed(Some(&changed(tag::MAP, [at, 4 * PAGE - 9, private << 32, 3, 0])));
        areas.have_changed(Some(&changed(tag::MAP, [at + PAGE, PAGE, (private | anonymous) << 32, u64::MAX, 0])));
        let kinds = [0, 1, 2, 3, 4].map(|page| kind(&mut areas, at + page * PAGE, true));
        assert_eq!(kinds, [FAULT_COPY, FAULT_ANONYMOUS, FAULT_COPY, FAULT_COPY, FAULT_UNKNOWN], "mapped over one another");
        areas.have_changed(Some(&changed(tag::REMAP, [at + 2 * PAGE, PAGE, at + 64 * PAGE, 2 * PAGE, 0])));
        assert_eq!(kind(&mut areas, at + 65 * PAGE, false), FAULT_FILE, "moved, and larger");
        areas.have_changed(Some(&changed(tag::UNMAP, [at, 2 * PAGE, 0, 0, 0])));
        let kinds = [0, 1, 2, 3].map(|page| kind(&mut areas, at + page * PAGE, true));
        assert_eq!(kinds, [FAULT_UNKNOWN, FAULT_UNKNOWN, FAULT_UNKNOWN, FAULT_COPY]);
        areas.have_changed(Some(&changed(tag::BRK, [at, at + PAGE, 0, 0, 0])));
        assert_eq!(kind(&mut areas, at, true), FAULT_HEAP);
        areas.have_changed(Some(&changed(tag::BRK, [at + PAGE, at, 0, 0, 0])));
        assert_eq!(kind(&mut areas, at, true), FAULT_UNKNOWN);
        for page in 0..2 * MOST_TOLD as u64 {
            areas.have_changed(Some(&changed(tag::MAP, [at + 2 * page * PAGE, PAGE, (private | anonymous) << 32, u64::MAX, 0])));
        }
        assert!(areas.told.areas.len() <= MOST_TOLD);
    }

    #[test]
    fn shared_memory_is_no_file() {
        let path = |text: &str| MMapPath::Path(text.into());
        assert_eq!(class(&path("/memfd:x (deleted)"), false), Class::Shared { private: false });
        assert_eq!(class(&path("/dev/zero (deleted)"), false), Class::Shared { private: false });
        assert_eq!(class(&path("/dev/zero"), true), Class::Anonymous);
        assert_eq!(class(&path("/lib/libc.so.6"), true), Class::File { private: true });
        assert_eq!((class(&MMapPath::Heap, true), class(&MMapPath::Other("anon:x".into()), true)), (Class::Heap, Class::Anonymous));
    }
}
