//! A target that has hound's memory in it, whoever of hound's put it there: what is patched, how to restore it, how to take all of it out.

use core::mem::offset_of;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hound_common::attach::{self, Attachment, ENVIRONMENT_BYTES, OWN_HEAD, RING_NAME, own_bytes, own_mark};
use hound_common::ring::{self, Control};
use libc::user_regs_struct;

use crate::code::JUMP;
use crate::error::Error;
use crate::freeze::{Frozen, Stopped};
use crate::journal::{Journal, Written};
use crate::look::Target;
use crate::memory::Memory;
use crate::modules::Module;
use crate::place::{Mapping, mappings};
use crate::remote::Borrowed;
use crate::surroundings::made_header;
use crate::tasks;
use crate::thunk::{ENTRY, Row, SLOT};

/// Entries that the table has room for.
pub(crate) const MAX_ROWS: u64 = 1024;
/// Most of a thread's stack that is looked at: what is deeper is older than the patch by far, or the thread has run away.
const SCANNED: u64 = 1 << 20;
/// Between two attempts while a thread is where it must not be.
const PAUSE: Duration = Duration::from_millis(1);
/// The longest of these, which grow: each look lets the thread stand still.
const MOST_PAUSE: Duration = Duration::from_millis(50);

/// The ring's mapping in a process, if it has one.
pub(crate) fn ring_mapping(maps: &[Mapping]) -> Option<&Mapping> {
    maps.iter().find(|m| m.offset == 0 && is_named(&m.path, RING_NAME))
}

/// Whether the library was put into the process at its start, and has a ring of its own there.
pub(crate) fn is_launched(maps: &[Mapping]) -> bool {
    ring_mapping(maps).is_none() && own_rings(maps).next().is_some()
}

/// Rings that hound has given a process: one that the library was put into at its start, or the child of one that was attached to (and of its
/// parents, if those had some).
pub(crate) fn own_rings(maps: &[Mapping]) -> impl Iterator<Item = &Mapping> {
    maps.iter().filter(|m| m.offset == 0 && ring::LAUNCH_NAME.to_str().is_ok_and(|name| is_named(&m.path, name)))
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

/// Whether all of this is mapped, and without a file.
fn is_private(maps: &[Mapping], start: u64, bytes: u64) -> bool {
    let end = start + bytes;
    let overlapping = maps.iter().filter(|m| m.start < end && m.end > start);
    let covered: u64 = overlapping.clone().map(|m| m.end.min(end) - m.start.max(start)).sum();
    covered == bytes && overlapping.clone().all(|m| m.inode == 0 && m.path.is_empty())
}

/// Registers that have the arguments of a function, and of a system call.
fn arguments(regs: &user_regs_struct) -> [u64; 7] {
    [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9, regs.r10]
}

/// A thread that is inside the library, or was called from there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inside {
    pub tid: i32,
    /// It executes the library's own code just now.
    pub at_work: bool,
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

    /// Restores every function that memory shows patched by us. Returns how long the target stood still, and the threads that are inside
    /// a hook and may yet write to the ring.
    pub fn unpatch(&self, deadline: Instant) -> Result<(Duration, Vec<Inside>), Error> {
        let all = self.rows()?;
        let rows: Vec<&Row> = all.iter().filter(|row| self.is_patched(row)).collect();
        if rows.is_empty() {
            return Ok((Duration::ZERO, Vec::new()));
        }
        let ranges = self.code(&all)?;
        let mut frozen = Frozen::all(&self.target, deadline)?;
        // A module that is unloaded at this very moment cannot be: all threads stand still.
        let still = rows.into_iter().filter(|row| self.is_patched(row));
        let mut writes: Vec<(u64, Vec<u8>)> = still.map(|row| (row.address, row.original[..JUMP].to_vec())).collect();
        let mut result = Ok(());
        while !writes.is_empty() {
            let (done, written) = frozen.write(writes.clone());
            result = result.and(written);
            writes.drain(..(done + 1).min(writes.len())); // what cannot be restored keeps nobody from restoring the rest
        }
        let inside = mappings(self.target.pid).and_then(|maps| self.threads_inside(&maps, frozen.threads(), &ranges));
        let stall = frozen.release();
        result.and(inside).map(|inside| (stall, inside))
    }

    /// Waits until no thread of those that were inside when the code was restored can write to the ring any more. Recording must be off:
    /// then only a thread that has begun to write an event still does. Returns how many have not come to its end.
    pub fn wait_until_written(&self, mut inside: Vec<Inside>, deadline: Instant) -> Result<u64, Error> {
        let ranges = self.code(&self.rows()?)?;
        let mut pause = PAUSE;
        let mut unfinished = self.unfinished()?;
        // A thread may have seen that events are recorded, and not yet said that it writes one: its ip is in the library then.
        let at_work = |inside: &[Inside]| inside.iter().any(|thread| thread.at_work);
        for look in 0u32.. {
            if inside.is_empty() || (look > 0 && unfinished == 0 && !at_work(&inside)) || Instant::now() >= deadline {
                break;
            }
            sleep(pause);
            pause = (pause * 2).min(MOST_PAUSE);
            let tids: Vec<i32> = inside.iter().map(|thread| thread.tid).collect();
            match Frozen::some(&self.target, &tids, deadline) {
                Ok(frozen) => {
                    let maps = mappings(self.target.pid)?;
                    inside = self.threads_inside(&maps, frozen.threads(), &ranges)?;
                    frozen.release();
                }
                // They could not be looked at: what they are writing can.
                Err(Error::Deadline { .. } | Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
            unfinished = self.unfinished()?;
        }
        Ok(unfinished)
    }

    /// The library's code and the thunks, sorted. Not its data: what is left on stacks of pointers to those keeps nobody inside, and there
    /// are many.
    fn code(&self, rows: &[Row]) -> Result<Vec<(u64, u64)>, Error> {
        let mut ranges: Vec<(u64, u64)> = rows.iter().map(|row| (row.thunk, row.thunk + SLOT)).collect();
        let attachment = self.attachment()?;
        if self.version()?.1 != 0 {
            let image = self.word(attachment, offset_of!(Attachment, image_start))?;
            let whole = (image, self.word(attachment, offset_of!(Attachment, image_end))?);
            // By its header, as it is in the target: another build may have written it.
            let code = Module::at(&self.memory, image)?.map(|module| module.code()).unwrap_or_default();
            ranges.extend(if code.is_empty() { vec![whole] } else { code });
        }
        ranges.sort_unstable();
        Ok(ranges)
    }

    /// How many of the library's thread states are in the middle of an event.
    fn unfinished(&self) -> Result<u64, Error> {
        let attachment = self.attachment()?;
        let states = self.word(attachment, offset_of!(Attachment, states))?;
        let ring = match self.inherited {
            false => self.ring,
            // The one that it was given, if it was.
            true => self.word(attachment, offset_of!(Attachment, ring))?,
        };
        if self.inherited && !own_rings(&mappings(self.target.pid)?).any(|own| own.start == ring) {
            return Ok(0);
        }
        let control = Journal::at(&self.memory, ring);
        let streams = control.half(offset_of!(Control, streams_high))?.min(ring::STREAMS as u32) as usize;
        let mut unfinished = 0;
        for stream in 0..streams {
            let head = ring::STREAMS_OFFSET + stream * size_of::<ring::Stream>();
            if control.half(head + offset_of!(ring::Stream, state))? != ring::STREAM_OWNED {
                continue;
            }
            let state = states + (stream * attach::STATE_BYTES) as u64;
            let slot = self.word(state, attach::STATE_BUSY)?;
            // A hook that was left by longjmp is busy for ever: what it would return to is not in its slot any more.
            let is_there = slot != 0 && self.memory.read_u64(slot).ok() == Some(self.word(state, attach::STATE_BUSY_RA)?);
            unfinished += u64::from(is_there);
        }
        Ok(unfinished)
    }

    /// avma of the attachment, also while the library is being taken out; 0 where it is of no use any more.
    fn attachment_or_former(&self) -> Result<u64, Error> {
        if self.ring == 0 {
            return Ok(0);
        }
        let former = self.journal().word(offset_of!(Control, leaving))?;
        let attachment = match self.attachment()? {
            0 => former,
            attachment => attachment,
        };
        let word = |offset: usize| self.word(attachment, offset);
        // The library's image goes after what it has mapped: where it cannot be read, nothing is left of that.
        let is_whole = || {
            Ok::<_, Error>(
                word(offset_of!(Attachment, magic))? == attach::MAGIC && word(offset_of!(Attachment, version))? as u32 == attach::VERSION,
            )
        };
        Ok(if attachment != 0 && is_whole().unwrap_or(false) { attachment } else { 0 })
    }

    /// Memory that the library has mapped by itself: stacks' paths, tables.
    fn mapped_by_library(&self) -> Result<Vec<(u64, u64)>, Error> {
        let attachment = self.attachment_or_former()?;
        if attachment == 0 {
            return Ok(Vec::new());
        }
        let table = self.word(attachment, offset_of!(Attachment, own_pieces))?;
        let count = self.word(attachment, offset_of!(Attachment, own_piece_count))?.min(attach::OWN_PIECES as u64);
        let mut bytes = vec![0; count as usize * size_of::<attach::Piece>()];
        if table != 0 {
            self.memory.read(table, &mut bytes)?;
        }
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let pieces = bytes.as_chunks::<{ size_of::<attach::Piece>() }>().0.iter().map(|piece| (word(&piece[..8]), word(&piece[8..])));
        Ok(pieces.filter(|(start, bytes)| *start != 0 && *bytes != 0).collect())
    }

    /// Takes everything out, once no thread is inside. Nothing must be patched.
    pub fn unload(self, deadline: Instant) -> Result<(), Error> {
        let rows = self.rows()?;
        if rows.iter().any(|row| self.is_patched(row)) {
            return Err(Error::Unfit { what: "functions are still patched".into() });
        }
        let (ranges, attachment) = (self.code(&rows)?, self.attachment()?);
        // Environments for programs: a call of libc's that is given one has nothing else of ours.
        let environments = self.mapped_by_library()?.into_iter().filter(|(_, bytes)| *bytes == own_bytes(ENVIRONMENT_BYTES) as u64);
        let environments: Vec<u64> = environments.map(|(start, _)| start + OWN_HEAD as u64).collect();
        self.wait_until_outside(&ranges, &environments, attachment != 0, deadline)?;
        // Nobody is in there: what the library has mapped does not change any more.
        let own = self.mapped_by_library()?;
        let mut borrowed = Borrowed::any(&self.target, &self.memory, deadline)?;
        self.close_left_open(&mut borrowed)?;
        if self.ring != 0 {
            if !self.inherited && attachment != 0 {
                self.journal().set_word(offset_of!(Control, leaving), attachment)?;
                self.journal().set_word(offset_of!(Control, attachment), 0)?;
            }
            self.unmap_all(&mut borrowed, &own)?;
        }
        borrowed.release();
        Ok(())
    }

    /// All pieces, what the library has mapped by itself, and the ring.
    pub fn unmap_all(&self, borrowed: &mut Borrowed, own: &[(u64, u64)]) -> Result<(), Error> {
        let maps = mappings(self.target.pid)?;
        for &(start, bytes) in own {
            if is_private(&maps, start, bytes) && self.memory.read_u64(start).ok() == Some(own_mark(start)) {
                borrowed.syscall(libc::SYS_munmap, [start, bytes, 0, 0, 0, 0])?;
            }
        }
        for piece in self.journal().pieces()? {
            self.unmap(borrowed, piece, &maps)?;
        }
        for own in own_rings(&maps) {
            borrowed.syscall(libc::SYS_munmap, [own.start, ring::RING_BYTES as u64, 0, 0, 0, 0])?;
        }
        borrowed.syscall(libc::SYS_munmap, [self.ring, ring::RING_BYTES as u64, 0, 0, 0, 0])?;
        Ok(())
    }

    /// Unmaps a piece: one that is confirmed, or one that was announced and is there exactly so. In a process that inherited the journal
    /// it may name what was mapped after the fork: there it must be there, too.
    pub fn unmap(&self, borrowed: &mut Borrowed, piece: Written, maps: &[Mapping]) -> Result<(), Error> {
        let exact = maps.iter().any(|m| (m.start, m.end, m.inode) == (piece.start, piece.start + piece.bytes, 0));
        let known = piece.confirmed && (!self.inherited || is_private(maps, piece.start, piece.bytes));
        if !self.inherited && piece.confirmed {
            self.journal().doubt(piece)?;
        }
        if known || exact {
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
        let mut tables = tables.into_iter().map(|table| self.word(attachment, table)).collect::<Result<Vec<_>, _>>()?;
        tables.push(made_header(self, attachment)?); // the dormant library reads it as soon as it records again
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

    /// Waits until no thread's ip and no word on a stack lies in `ranges`, and no register is one of `environments`. As nothing is patched,
    /// nobody gets there again.
    fn wait_until_outside(&self, ranges: &[(u64, u64)], environments: &[u64], ever_ran: bool, deadline: Instant) -> Result<(), Error> {
        let (mut last, mut pause) = (None, PAUSE);
        while ever_ran && !ranges.is_empty() {
            let still = |tid| Error::Deadline {
                what: format!("thread {tid} is still inside the library, or what it left on its stack looks as if it were"),
            };
            let frozen = match (Frozen::all(&self.target, deadline), last) {
                (Err(Error::Deadline { .. }), Some(tid)) => return Err(still(tid)),
                (frozen, _) => frozen?,
            };
            let maps = mappings(self.target.pid)?;
            let begins = frozen.threads().iter().find(|thread| arguments(&thread.regs).iter().any(|word| environments.contains(word)));
            let begins = begins.map(|thread| thread.tid);
            let inside = begins.map_or_else(|| self.thread_inside(&maps, frozen.threads(), ranges), |tid| Ok(Some(tid)))?;
            frozen.release();
            let Some(tid) = inside else { break };
            if Instant::now() >= deadline {
                return Err(still(tid));
            }
            last = Some(tid);
            sleep(pause);
            pause = (pause * 2).min(MOST_PAUSE);
        }
        Ok(())
    }

    /// A thread whose ip, or a word on whose stack, lies in one of `ranges` (sorted, start included, end not).
    pub fn thread_inside(&self, maps: &[Mapping], threads: &[Stopped], ranges: &[(u64, u64)]) -> Result<Option<i32>, Error> {
        for thread in threads {
            if !self.threads_inside(maps, core::slice::from_ref(thread), ranges)?.is_empty() {
                return Ok(Some(thread.tid));
            }
        }
        Ok(None)
    }

    /// All threads of which [`Site::thread_inside`] holds.
    fn threads_inside(&self, maps: &[Mapping], threads: &[Stopped], ranges: &[(u64, u64)]) -> Result<Vec<Inside>, Error> {
        let inside = |word: u64| {
            let at = ranges.partition_point(|(_, end)| *end <= word);
            ranges.get(at).is_some_and(|(start, _)| *start <= word)
        };
        let (mut stack, mut found) = (Vec::new(), Vec::new());
        for Stopped { tid, regs } in threads {
            // A system call that is made again begins two bytes before: not inside a patch, which displaces no system call, and inside the
            // image together with its end.
            if inside(regs.rip) {
                found.push(Inside { tid: *tid, at_work: true });
                continue;
            }
            // Below the stack pointer lies what a function that calls nobody keeps, and what returned calls have left: no way back to us.
            let lowest = regs.rsp & !7;
            let Some(mapping) = maps.iter().find(|m| (m.start..m.end).contains(&regs.rsp)) else { continue };
            let lowest = lowest.max(mapping.start);
            stack.resize((mapping.end.min(lowest + SCANNED) - lowest) as usize, 0);
            self.memory.read(lowest, &mut stack)?;
            if stack.as_chunks::<8>().0.iter().any(|word| inside(u64::from_le_bytes(*word))) {
                found.push(Inside { tid: *tid, at_work: false });
            }
        }
        Ok(found)
    }
}
