//! A target that has hound's memory in it, whoever of hound's put it there: what is patched, how to restore it, how to take all of it out.

use core::mem::offset_of;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hound_common::attach::{self, Attachment, RING_NAME};
use hound_common::ring::{self, Control};

use crate::code::JUMP;
use crate::error::Error;
use crate::freeze::{Frozen, Stopped};
use crate::journal::{Journal, Written};
use crate::look::Target;
use crate::memory::Memory;
use crate::place::{Mapping, mappings};
use crate::remote::Borrowed;
use crate::tasks;
use crate::thunk::{ENTRY, Row, SLOT};

/// Entries that the table has room for.
pub(crate) const MAX_ROWS: u64 = 1024;
/// Most of a thread's stack that is looked at: what is deeper is older than the patch by far, or the thread has run away.
const SCANNED: u64 = 1 << 20;
/// Between two attempts while a thread is where it must not be.
const PAUSE: Duration = Duration::from_millis(1);
/// Below the stack pointer code may still keep words.
const RED_ZONE: u64 = 128;

/// The ring's mapping in a process, if it has one.
pub(crate) fn ring_mapping(maps: &[Mapping]) -> Option<&Mapping> {
    maps.iter().find(|m| m.offset == 0 && is_named(&m.path, RING_NAME))
}

/// Whether the library was put into the process at its start, and has a ring of its own there.
pub(crate) fn is_launched(maps: &[Mapping]) -> bool {
    ring::LAUNCH_NAME.to_str().is_ok_and(|name| maps.iter().any(|m| is_named(&m.path, name)))
}

fn is_named(path: &str, memfd: &str) -> bool {
    path.strip_prefix("/memfd:").and_then(|name| name.split(" (deleted)").next()) == Some(memfd)
}

/// Descriptors of a ring in the target: a hound has died between making and closing it.
pub(crate) fn left_open(pid: i32) -> Vec<u64> {
    let alive = tasks::threads(pid).unwrap_or_default().into_iter().find(|&tid| !tasks::has_ended(pid, tid));
    alive.map_or_else(Vec::new, |tid| left_open_by(pid, tid))
}

fn left_open_by(pid: i32, tid: i32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/task/{tid}/fd")).into_iter().flatten().flatten();
    let rings = entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| is_named(&to.to_string_lossy(), RING_NAME)));
    rings.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// hound's memory in a target.
#[derive(Debug)]
pub(crate) struct Site {
    pub target: Target,
    pub memory: Memory,
    /// avma of the ring.
    /// 0: a hound died before it had mapped the ring, which is left open.
    pub ring: u64,
    /// The ring is that of the process this one was forked from: not to be written to.
    pub inherited: bool,
}

impl Site {
    pub fn find(target: Target) -> Result<Option<Self>, Error> {
        let maps = mappings(target.pid)?;
        let ring = match ring_mapping(&maps) {
            Some(mapping) => mapping.start,
            None if left_open(target.pid).is_empty() => return Ok(None),
            None => 0,
        };
        let memory = Memory::open(target.pid)?;
        let mut site = Self { ring, memory, target, inherited: false };
        if ring == 0 {
            return Ok(Some(site));
        }
        let owner = site.journal().half(offset_of!(Control, target_pid))?;
        site.inherited = owner != 0 && owner != site.target.pid_in_namespace;
        Ok(Some(site))
    }

    pub fn journal(&self) -> Journal<'_> {
        Journal::at(&self.memory, self.ring)
    }

    /// Versions of the ring and of the attachment, 0 where there is none (yet).
    pub fn version(&self) -> Result<(u32, u32), Error> {
        if self.ring == 0 {
            return Ok((0, 0));
        }
        let journal = self.journal();
        let ring = if journal.word(offset_of!(Control, magic))? == ring::MAGIC { journal.half(offset_of!(Control, version))? } else { 0 };
        let attachment = self.attachment()?;
        let known = ring == ring::VERSION && attachment != 0 && self.word(attachment, offset_of!(Attachment, magic))? == attach::MAGIC;
        let version = if known { self.word(attachment, offset_of!(Attachment, version))? as u32 } else { 0 };
        Ok((ring, version))
    }

    /// avma of the attachment, 0 until all is mapped.
    pub fn attachment(&self) -> Result<u64, Error> {
        if self.ring == 0 { Ok(0) } else { self.journal().word(offset_of!(Control, attachment)) }
    }

    pub fn word(&self, block: u64, offset: usize) -> Result<u64, Error> {
        self.memory.read_u64(block + offset as u64)
    }

    /// The entries that are or were patched.
    pub fn rows(&self) -> Result<Vec<Row>, Error> {
        let attachment = self.attachment()?;
        if self.version()? != (ring::VERSION, attach::VERSION) {
            return Ok(Vec::new());
        }
        let table = self.word(attachment, offset_of!(Attachment, entries))?;
        let count = self.word(attachment, offset_of!(Attachment, entry_count))?.min(MAX_ROWS);
        let mut bytes = vec![0; count as usize * ENTRY];
        self.memory.read(table, &mut bytes)?;
        Ok(bytes.as_chunks::<ENTRY>().0.iter().filter_map(Row::from_bytes).collect())
    }

    /// Whether memory shows our patch.
    pub fn is_patched(&self, row: &Row) -> bool {
        let mut now = vec![0; row.patched.len()];
        row.patched != row.original && self.memory.read(row.address, &mut now).is_ok() && now == row.patched
    }

    /// Restores every function that memory shows patched by us. Returns how long the target stood still.
    pub fn unpatch(&self, deadline: Instant) -> Result<Duration, Error> {
        let rows: Vec<Row> = self.rows()?.into_iter().filter(|row| self.is_patched(row)).collect();
        if rows.is_empty() {
            return Ok(Duration::ZERO);
        }
        let frozen = Frozen::all(&self.target, deadline)?;
        let mut result = Ok(());
        for row in rows.iter().filter(|row| self.is_patched(row)) {
            // A module that is unloaded at this very moment cannot be: all threads stand still.
            result = result.and(self.memory.write(row.address, &row.original[..JUMP]));
        }
        let stall = frozen.release();
        result.map(|()| stall)
    }

    /// Takes everything out, once no thread is inside. Nothing must be patched.
    pub fn unload(self, deadline: Instant) -> Result<(), Error> {
        let rows = self.rows()?;
        if rows.iter().any(|row| self.is_patched(row)) {
            return Err(Error::Unfit { what: "functions are still patched".into() });
        }
        let mut ranges: Vec<(u64, u64)> = rows.iter().map(|row| (row.thunk, row.thunk + SLOT)).collect();
        let attachment = self.attachment()?;
        if self.version()?.1 != 0 {
            let image = self.word(attachment, offset_of!(Attachment, image_start))?;
            ranges.push((image, self.word(attachment, offset_of!(Attachment, image_end))?));
        }
        ranges.sort_unstable();
        self.wait_until_outside(&ranges, attachment != 0, deadline)?;
        let mut borrowed = Borrowed::any(&self.target, &self.memory, deadline)?;
        self.close_left_open(&mut borrowed)?;
        if self.ring != 0 {
            if !self.inherited {
                self.journal().set_word(offset_of!(Control, attachment), 0)?;
            }
            self.unmap_all(&mut borrowed)?;
        }
        borrowed.release();
        Ok(())
    }

    /// All pieces, and the ring.
    pub fn unmap_all(&self, borrowed: &mut Borrowed) -> Result<(), Error> {
        let maps = mappings(self.target.pid)?;
        for piece in self.journal().pieces()? {
            self.unmap(borrowed, piece, &maps)?;
        }
        borrowed.syscall(libc::SYS_munmap, [self.ring, ring::RING_BYTES as u64, 0, 0, 0, 0])?;
        Ok(())
    }

    /// Unmaps a piece: one that is confirmed, or one that was announced and is there exactly so.
    pub fn unmap(&self, borrowed: &mut Borrowed, piece: Written, maps: &[Mapping]) -> Result<(), Error> {
        let exact = maps.iter().any(|m| (m.start, m.end, m.inode) == (piece.start, piece.start + piece.bytes, 0));
        if !self.inherited && piece.confirmed {
            self.journal().doubt(piece)?;
        }
        if piece.confirmed || exact {
            borrowed.syscall(libc::SYS_munmap, [piece.start, piece.bytes, 0, 0, 0, 0])?;
        }
        if self.inherited { Ok(()) } else { self.journal().cross_out(piece) }
    }

    /// Closes the descriptors that a dead hound has left. Nobody but hound knows their numbers.
    pub fn close_left_open(&self, borrowed: &mut Borrowed) -> Result<(), Error> {
        for number in left_open_by(self.target.pid, borrowed.tid()) {
            borrowed.syscall(libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
        }
        Ok(())
    }

    /// Takes out areas of thunks that no entry leads to: a hound died, or gave up, before it had patched any of theirs.
    pub fn unmap_unused(&self, deadline: Instant) -> Result<(), Error> {
        let rows = self.rows()?;
        let attachment = self.attachment()?;
        let image =
            (self.word(attachment, offset_of!(Attachment, image_start))?, self.word(attachment, offset_of!(Attachment, image_end))?);
        let tables = [
            offset_of!(Attachment, states),
            offset_of!(Attachment, fork_mark),
            offset_of!(Attachment, threads),
            offset_of!(Attachment, entries),
            offset_of!(Attachment, modules),
        ];
        let tables = tables.into_iter().map(|table| self.word(attachment, table)).collect::<Result<Vec<_>, _>>()?;
        let mut unused = self.journal().pieces()?;
        unused.retain(|piece| {
            let holds = |at: u64| (piece.start..piece.start + piece.bytes).contains(&at);
            !((image.0..image.1).contains(&piece.start) || tables.contains(&piece.start) || rows.iter().any(|row| holds(row.thunk)))
        });
        if unused.is_empty() {
            return Ok(());
        }
        let mut borrowed = Borrowed::any(&self.target, &self.memory, deadline)?;
        let maps = mappings(self.target.pid)?;
        let done = unused.into_iter().try_for_each(|piece| self.unmap(&mut borrowed, piece, &maps));
        borrowed.release();
        done
    }

    /// Waits until no thread's ip and no word on a stack lies in `ranges`. As nothing is patched, nobody gets there again.
    fn wait_until_outside(&self, ranges: &[(u64, u64)], ever_ran: bool, deadline: Instant) -> Result<(), Error> {
        while ever_ran && !ranges.is_empty() {
            let frozen = Frozen::all(&self.target, deadline)?;
            let maps = mappings(self.target.pid)?;
            let inside = self.thread_inside(&maps, frozen.threads(), ranges)?;
            frozen.release();
            let Some(tid) = inside else { break };
            if Instant::now() >= deadline {
                return Err(Error::Deadline { what: format!("thread {tid} is still inside the library") });
            }
            sleep(PAUSE);
        }
        Ok(())
    }

    /// A thread whose ip, or a word on whose stack, lies in one of `ranges` (sorted, start included, end not).
    pub fn thread_inside(&self, maps: &[Mapping], threads: &[Stopped], ranges: &[(u64, u64)]) -> Result<Option<i32>, Error> {
        let inside = |word: u64| {
            let at = ranges.partition_point(|(_, end)| *end <= word);
            ranges.get(at).is_some_and(|(start, _)| *start <= word)
        };
        let mut stack = Vec::new();
        for Stopped { tid, regs } in threads {
            // A system call that is made again begins two bytes before: not inside a patch, which displaces no system call, and inside the
            // image together with its end.
            if inside(regs.rip) {
                return Ok(Some(*tid));
            }
            let lowest = regs.rsp.saturating_sub(RED_ZONE) & !7;
            let Some(mapping) = maps.iter().find(|m| (m.start..m.end).contains(&regs.rsp)) else { continue };
            let lowest = lowest.max(mapping.start);
            stack.resize((mapping.end.min(lowest + SCANNED) - lowest) as usize, 0);
            self.memory.read(lowest, &mut stack)?;
            if stack.as_chunks::<8>().0.iter().any(|word| inside(u64::from_le_bytes(*word))) {
                return Ok(Some(*tid));
            }
        }
        Ok(None)
    }
}
