//! At the end of a program that was launched: a look at its memory, to find which blocks it still reaches.
//!
//! The library holds the thread that ends the program (`preload/src/exit.rs`) for as long as was allowed beforehand; then it goes on, and
//! nothing is known. The words that may be pointers are kept, and followed when the program has ended.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use hound_common::event::MODE_FULL;
use hound_common::ring::{EXIT_GOES_ON, EXIT_LOOKED_AT, EXIT_WAITS};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process, VmFlags};
use procfs::{Current, Meminfo};

use super::before;
use super::ring::Ring;
use crate::capture::model::Event;
use crate::capture::{Capture, Reach};
use crate::heap::{Block, Ending, Heaps, Held, Memory, Peak};

/// How long a program's exit may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Not at all.
    Never,
    /// A twentieth of the time that it ran, and nothing in the first ten seconds.
    Twentieth,
    /// Up to this long.
    UpTo(Duration),
}

impl Hold {
    fn after(self, ran: Duration) -> Duration {
        match self {
            Hold::Never => Duration::ZERO,
            Hold::Twentieth if ran < Duration::from_secs(10) => Duration::ZERO,
            Hold::Twentieth => (ran / 20).min(LONGEST),
            Hold::UpTo(most) => most,
        }
    }

    /// Allows it, to a program that has run for so long.
    pub fn allow(self, ring: &Ring, ran: Duration) -> Duration {
        let most = self.after(ran);
        ring.control().exit_ms.store(u32::try_from(most.as_millis()).unwrap_or(u32::MAX), Ordering::Relaxed);
        most
    }
}

/// However long it ran.
const LONGEST: Duration = Duration::from_secs(10);
/// Between two looks whether the program has come to its end.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Of the time allowed: the library's clock runs on while hound's last bytes are on their way.
const IN_TIME: f64 = 0.9;
/// Of the memory that is left, one part in so many may be taken.
const SHARE_OF_MEMORY: u64 = 2;
const PAGE: u64 = 4096;
/// Below the stack pointer, and a function's that calls none (System V ABI, 3.2.2).
const RED_ZONE: u64 = 128;
/// Bytes read at once: they stay in the cache until they were looked at.
const PIECE: usize = 256 << 10;
/// Pages asked about at once.
const ASKED: usize = 1 << 14;
/// Of an entry in pagemap: the page is there, or swapped out (proc_pid_pagemap(5)).
const THERE: u64 = 3 << 62;

/// What was copied.
#[derive(Debug)]
pub struct Copy {
    memory: Memory,
    /// How long the program was held.
    held: Duration,
}

/// Waits for a program's end.
#[derive(Debug)]
pub struct Watch {
    thread: JoinHandle<Option<anyhow::Result<Copy>>>,
    over: Arc<AtomicBool>,
}

impl Watch {
    /// Begins with the program. Nothing, if it is never to be held or no thread can be had.
    pub fn begin(ring: &Arc<Ring>, pid: u32, hold: Hold) -> Option<Self> {
        if hold == Hold::Never {
            return None;
        }
        let (ring, over, began) = (Arc::clone(ring), Arc::new(AtomicBool::new(false)), Instant::now());
        let told = Arc::clone(&over);
        let body = move || {
            let control = ring.control();
            loop {
                let over = told.load(Ordering::Acquire);
                let most = hold.allow(&ring, began.elapsed());
                let held_for = || format!("its exit was held for {} ms, which was not enough", most.as_millis());
                // Acquire: pairs with the library's release.
                let state = control.exit_state.load(Ordering::Acquire);
                if state == EXIT_GOES_ON {
                    return Some(Err(anyhow!(held_for())));
                }
                if state == EXIT_WAITS {
                    let since = Instant::now();
                    let library = control.library_start.load(Ordering::Relaxed)..control.library_end.load(Ordering::Relaxed);
                    let memory = copy(pid, library.start, library.end, since + most.mul_f64(IN_TIME));
                    let waited =
                        control.exit_state.compare_exchange(EXIT_WAITS, EXIT_LOOKED_AT, Ordering::Relaxed, Ordering::Relaxed).is_ok();
                    let held = since.elapsed();
                    return Some(memory.and_then(|memory| {
                        ensure!(waited, held_for());
                        Ok(Copy { memory, held })
                    }));
                }
                if over {
                    return None;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        };
        let thread = std::thread::Builder::new().name("hound-reach".into()).spawn(body).ok()?;
        Some(Watch { thread, over })
    }

    /// The program has ended. Nothing where it was not held: it ended by a signal, or too soon.
    pub fn end(self) -> Option<anyhow::Result<Copy>> {
        self.over.store(true, Ordering::Release);
        self.thread.join().ok().flatten()
    }
}

/// Copies what may hold pointers.
fn copy(pid: u32, library_start: u64, library_end: u64, deadline: Instant) -> anyhow::Result<Memory> {
    let process = Process::new(i32::try_from(pid)?)?;
    let maps = process.smaps().context("cannot read its mappings")?.0;
    let pointers = stack_pointers(pid);
    let pages = File::open(format!("/proc/{pid}/pagemap")).ok();
    let mut parts: Vec<(u64, u64)> = Vec::new();
    let mut ranges = Vec::new();
    for (number, map) in maps.iter().enumerate() {
        let (start, end) = map.address;
        let is_library = start < library_end && library_start < end;
        if is_library || !holds_pointers(map) {
            continue;
        }
        ranges.push(start..end);
        let is_stack = map.pathname == MMapPath::Stack || number > 0 && is_guard_of(&maps[number - 1], start);
        let used = pointers.iter().filter(|sp| is_stack && (start..end).contains(*sp)).min();
        let from = used.map_or(start, |sp| sp.saturating_sub(RED_ZONE).max(start) & !7);
        match &pages {
            Some(pages) => there(pages, from, end, &mut parts),
            None => parts.push((from, end)),
        }
    }
    let bytes: u64 = parts.iter().map(|(from, to)| to - from).sum();
    let left = Meminfo::current().ok().and_then(|memory| memory.mem_available).unwrap_or(u64::MAX);
    let mut read = before::reader(pid);
    let mut memory = Memory::within(&ranges);
    let mut piece = vec![0; PIECE];
    for (from, to) in parts {
        for at in (from..to).step_by(PIECE) {
            if Instant::now() > deadline {
                bail!("there was no time to look at all of its memory ({} MiB) while its exit was held", bytes >> 20);
            }
            ensure!(
                memory.taken() <= left / SHARE_OF_MEMORY,
                "its pointers (in {} MiB) would take more than half of the memory left",
                bytes >> 20
            );
            let piece = &mut piece[..((to - at) as usize).min(PIECE)];
            // What another thread has unmapped meanwhile is not there.
            if read(at, piece).is_ok() {
                memory.push(at, piece);
            }
        }
    }
    Ok(memory)
}

/// Private memory that the program can read and has written to: what is mapped from a file and was never writable holds no pointer to a block.
/// The library's own is wiped in a fork.
fn holds_pointers(map: &MemoryMap) -> bool {
    let is_file = matches!(map.pathname, MMapPath::Path(_));
    let is_kernels = matches!(map.pathname, MMapPath::Vdso | MMapPath::Vvar | MMapPath::Vsyscall);
    map.perms.contains(MMPermissions::READ | MMPermissions::PRIVATE)
        && (map.perms.contains(MMPermissions::WRITE) || !is_file && !is_kernels)
        && !map.extension.vm_flags.contains(VmFlags::WF)
}

/// Whether this mapping keeps a stack that begins here from growing into what lies before it.
fn is_guard_of(map: &MemoryMap, start: u64) -> bool {
    map.address.1 == start && !map.perms.intersects(MMPermissions::READ | MMPermissions::WRITE | MMPermissions::EXECUTE)
}

/// Of all threads that sleep. Of one that runs it is not known, and all of its stack counts.
fn stack_pointers(pid: u32) -> Vec<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    // The last word but one (proc_pid_syscall(5)).
    let of = |text: String| u64::from_str_radix(text.split_whitespace().rev().nth(1)?.strip_prefix("0x")?, 16).ok();
    threads.filter_map(|thread| of(fs::read_to_string(thread.path().join("syscall")).ok()?)).collect()
}

/// The parts of a mapping that have pages: to read the others would make some.
fn there(pages: &File, from: u64, end: u64, parts: &mut Vec<(u64, u64)>) {
    let mut entries = vec![0; ASKED * 8];
    let mut first = from / PAGE;
    while first * PAGE < end {
        let asked = ((end.div_ceil(PAGE) - first) as usize).min(ASKED);
        if pages.read_exact_at(&mut entries[..asked * 8], first * 8).is_err() {
            return parts.push((from.max(first * PAGE), end));
        }
        for (number, entry) in entries[..asked * 8].as_chunks::<8>().0.iter().enumerate() {
            if u64::from_le_bytes(*entry) & THERE == 0 {
                continue;
            }
            let page = (first + number as u64) * PAGE;
            let (start, to) = (page.max(from), (page + PAGE).min(end));
            match parts.last_mut() {
                Some((_, last)) if *last == start => *last = to,
                _ => parts.push((start, to)),
            }
        }
        first += asked as u64;
    }
}

/// Which of the blocks in the capture it reaches, of whose target this is a copy.
pub fn find(path: &Path, copy: &Copy) -> anyhow::Result<Reach> {
    let mut capture = Capture::open(path)?;
    let is_other_mode = |event: &Event| matches!(event, Event::Mode { mode } if *mode != MODE_FULL);
    let is_whole = capture.losses().is_empty() && !capture.rare().iter().any(|(_, event)| is_other_mode(&event.event));
    ensure!(is_whole, "not every block was recorded all of the time");
    let mut held = Held::default();
    let mut heaps = Heaps::new(&mut held, |_| Box::new(|_: &Block, _: &Ending, _: &Peak| ()));
    capture.visit(&mut heaps);
    heaps.finish();
    let (blocks, bytes) = held.sums();
    let mut before = 0;
    let unreachable = held.unreachable(&copy.memory).into_iter().map(|addr| addr - std::mem::replace(&mut before, addr)).collect();
    let held_ns = u64::try_from(copy.held.as_nanos()).unwrap_or(u64::MAX);
    Ok(Reach { held_ns, memory_bytes: copy.memory.bytes(), blocks, bytes, unreachable })
}
