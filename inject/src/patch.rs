//! Patching while all threads stand still. All that can be prepared is prepared before.

use core::mem::offset_of;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hound_common::attach::{Attachment, Inlined, SHAPES, STUBS_SYMBOL};
use hound_common::hook::Kind;

use crate::code::{self, JUMP};
use crate::enter::map;
use crate::error::Error;
use crate::freeze::Frozen;
use crate::journal::Written;
use crate::place::{PAGE, Space, mappings};
use crate::plan::{Plan, Planned};
use crate::remote::Borrowed;
use crate::site::{MAX_ROWS, Site};
use crate::thunk::{self, ENTRY, MOST_INLINED, Row, SLOT};

/// Between two attempts while a thread is where a patch goes.
const PAUSE: Duration = Duration::from_micros(500);

/// What patching did.
#[derive(Clone, Copy, Debug)]
pub struct Patched {
    /// How long the target stood still.
    pub stall: Duration,
    /// How many threads it had.
    pub threads: usize,
    /// How many functions were patched.
    pub entries: usize,
}

/// Entries that can be patched at once: their thunks are made. Nothing leads there yet.
#[derive(Debug)]
pub struct Staged {
    attachment: u64,
    /// The library's table of stubs.
    stubs: u64,
    table: u64,
    /// How many entries there were before.
    known: u64,
    rows: Vec<Row>,
    areas: Vec<Written>,
}

impl Staged {
    /// Prepares thunks and entries: those of an earlier patch, or new ones.
    pub(crate) fn make(site: &Site, plan: &Plan, stalls: &mut Vec<Duration>, deadline: Instant) -> Result<Self, Error> {
        let mut staged = Staged::of(site, plan)?;
        match staged.prepare(site, plan, stalls, deadline) {
            Ok(()) => Ok(staged),
            Err(error) => {
                staged.undo(site, deadline);
                Err(error)
            }
        }
    }

    /// Stops all threads, patches, lets them go.
    pub(crate) fn go(self, site: &Site, stalls: &mut Vec<Duration>, deadline: Instant) -> Result<Patched, Error> {
        let result = self.patch(site, deadline);
        if result.is_err() {
            self.undo(site, deadline);
        }
        let patched = result?;
        stalls.push(patched.stall);
        Ok(patched)
    }

    fn of(site: &Site, plan: &Plan) -> Result<Self, Error> {
        let attachment = site.attachment()?;
        let table = site.word(attachment, offset_of!(Attachment, entries))?;
        let known = site.word(attachment, offset_of!(Attachment, entry_count))?;
        if known + plan.planned.len() as u64 > MAX_ROWS {
            return Err(Error::Unfit { what: "the table of patched functions is full: detach with --unload first".into() });
        }
        Ok(Self { attachment, stubs: stubs(site, attachment)?, table, known, rows: Vec::new(), areas: Vec::new() })
    }

    /// Finds each planned function its entry and its thunk: those of an earlier patch that say the same, or new ones.
    fn prepare(&mut self, site: &Site, plan: &Plan, stalls: &mut Vec<Duration>, deadline: Instant) -> Result<(), Error> {
        let old = site.rows()?;
        let mut slots: Vec<Option<&Row>> = Vec::new();
        for planned in &plan.planned {
            slots.push(old.iter().find(|row| row.serves(&planned.row)));
        }
        let new = slots.iter().filter(|slot| slot.is_none()).count() as u64;
        let (mut places, mut borrowed) = match new {
            0 => (Vec::new(), None),
            _ => self.map_areas(site, plan, &slots, deadline).map(|(places, borrowed)| (places, Some(borrowed)))?,
        };
        places.reverse();
        let mut fresh = 0;
        for (planned, slot) in plan.planned.iter().zip(&slots) {
            let row = match slot {
                Some(row) => (*row).clone(),
                None => {
                    let Some(thunk) = places.pop() else { return Err(Error::Unfit { what: "too few places for thunks".into() }) };
                    fresh += 1;
                    self.new_row(site, planned, thunk)?
                }
            };
            self.rows.push(row);
        }
        self.set_helpers(plan);
        if let Some(borrowed) = &mut borrowed {
            self.write(site, plan, &slots, borrowed)?;
        }
        stalls.extend(borrowed.map(Borrowed::release));
        debug_assert_eq!(fresh, new);
        site.memory.write(self.attachment + offset_of!(Attachment, entry_count) as u64, &(self.known + new).to_le_bytes())
    }

    fn new_row(&self, site: &Site, planned: &Planned, slot: u64) -> Result<Row, Error> {
        let Some(jump) = code::jump(planned.row.address, slot) else {
            return Err(Error::Unfit { what: format!("no place for a thunk is in reach of {:#x}", planned.row.address) });
        };
        // Only the jump is written. What is left of the last displaced instruction is never reached.
        let mut patched = planned.row.original.clone();
        patched[..JUMP].copy_from_slice(&jump);
        let real = thunk::real(slot, self.inlined(site, &planned.row)?.len());
        let stub = site.memory.read_u64(self.stubs + u64::from(planned.row.shape) * 8)?;
        Ok(Row { thunk: slot, real, attachment: self.attachment, stub, patched, ..planned.row.clone() })
    }

    /// What of an entry's stub goes before the function's instructions.
    fn inlined(&self, site: &Site, row: &Row) -> Result<Vec<u8>, Error> {
        let at = site.memory.read_u64(self.stubs + (SHAPES as u64 + u64::from(row.shape)) * 8)?;
        if at == 0 {
            return Ok(Vec::new());
        }
        let half = |offset: usize| -> Result<u32, Error> {
            let mut bytes = [0; 4];
            site.memory.read(at + offset as u64, &mut bytes)?;
            Ok(u32::from_le_bytes(bytes))
        };
        let (bytes, flags) = (half(offset_of!(Inlined, bytes))? as usize, half(offset_of!(Inlined, flags))?);
        if u32::from(row.flags) & flags != flags || bytes > MOST_INLINED {
            return Ok(Vec::new());
        }
        let mut code = vec![0; bytes];
        site.memory.read(at + size_of::<Inlined>() as u64, &mut code)?;
        Ok(code)
    }

    /// A throwing operator's entry names the unpatched one that does not throw.
    fn set_helpers(&mut self, plan: &Plan) {
        for (at, planned) in plan.planned.iter().enumerate() {
            let Some(nothrow) = planned.nothrow else { continue };
            let other = plan.planned.iter().position(|other| other.entry == nothrow && Kind::from_u8(other.row.kind).is_some());
            self.rows[at].helper = other.map_or(nothrow, |other| self.rows[other].real);
        }
    }

    /// Maps room for the new thunks, one area for all modules that it is in reach of. Returns a place for each, in the plan's order, and
    /// the thread that is held.
    fn map_areas(&mut self, site: &Site, plan: &Plan, slots: &[Option<&Row>], deadline: Instant) -> Result<(Vec<u64>, Borrowed), Error> {
        let mut space = Space::of(&mappings(site.target.pid)?);
        let wanted: Vec<&Planned> = plan.planned.iter().zip(slots).filter(|(_, slot)| slot.is_none()).map(|(planned, _)| planned).collect();
        let (mut areas, mut places): (Vec<(u64, u64, u64)>, Vec<u64>) = (Vec::new(), Vec::new());
        for (n, planned) in wanted.iter().enumerate() {
            let (start, end) = planned.module;
            let reaches = |area: &&mut (u64, u64, u64)| {
                let (from, to, used) = **area;
                used + SLOT <= to && [start, end].iter().all(|at| code::jump(*at, from).is_some() && code::jump(*at, to).is_some())
            };
            if let Some(area) = areas.iter_mut().find(reaches) {
                places.push(area.2);
                area.2 += SLOT;
                continue;
            }
            let bytes = ((wanted.len() - n) as u64 * SLOT).next_multiple_of(PAGE);
            let Some(at) = space.near(start, end, bytes) else {
                return Err(Error::Unfit { what: format!("no free memory is in reach of the code at {start:#x}") });
            };
            areas.push((at, at + bytes, at + SLOT));
            places.push(at);
        }
        let mut borrowed = Borrowed::any(&site.target, &site.memory, deadline)?;
        for (start, end, _) in areas {
            let written = site.journal().announce(start, end - start)?;
            self.areas.push(written);
            map(&mut borrowed, start, end - start, libc::PROT_READ | libc::PROT_EXEC)?;
            site.journal().confirm(written)?;
        }
        Ok((places, borrowed))
    }

    /// Writes the new thunks and entries. While a thread is held: some systems let only a tracer write to code.
    fn write(&self, site: &Site, plan: &Plan, slots: &[Option<&Row>], borrowed: &mut Borrowed) -> Result<(), Error> {
        let mut at = self.table + self.known * ENTRY as u64;
        let mut thunks = Vec::new();
        for ((planned, row), _) in plan.planned.iter().zip(&self.rows).zip(slots).filter(|(_, slot)| slot.is_none()) {
            let inlined = self.inlined(site, row)?;
            let unfit = |why| Error::Unfit { what: format!("the function at {:#x} cannot be patched: {why}", planned.entry) };
            thunks.push((row.thunk, thunk::slot(row.thunk, at, row.stub, row.shape, &inlined, &planned.displaced).map_err(unfit)?));
            site.memory.write(at, &row.to_bytes())?;
            at += ENTRY as u64;
        }
        borrowed.write(thunks)
    }

    fn patch(&self, site: &Site, deadline: Instant) -> Result<Patched, Error> {
        // Inside: the first byte excluded, where the jump will be.
        let mut ranges: Vec<(u64, u64)> = self.rows.iter().map(|row| (row.address + 1, row.address + row.original.len() as u64)).collect();
        ranges.sort_unstable();
        let session = site.word(self.attachment, offset_of!(Attachment, session))?;
        site.memory.write(self.attachment + offset_of!(Attachment, session) as u64, &(session + 1).to_le_bytes())?;
        loop {
            let mut frozen = Frozen::all(&site.target, deadline)?;
            let maps = mappings(site.target.pid)?;
            let Some(tid) = site.thread_inside(&maps, frozen.threads(), &ranges)? else {
                let threads = frozen.threads().len();
                let written = self.write_patches(site, &mut frozen);
                let stall = frozen.release();
                return written.map(|()| Patched { stall, threads, entries: self.rows.len() });
            };
            frozen.release();
            if Instant::now() >= deadline {
                return Err(Error::Deadline { what: format!("thread {tid} stays where a patch would go") });
            }
            sleep(PAUSE);
        }
    }

    /// All or none. Threads stand still.
    fn write_patches(&self, site: &Site, frozen: &mut Frozen) -> Result<(), Error> {
        for row in &self.rows {
            let mut now = vec![0; row.original.len()];
            site.memory.read(row.address, &mut now)?;
            if now != row.original {
                return Err(Error::Unfit { what: format!("the code at {:#x} has changed meanwhile", row.address) });
            }
        }
        let writes = self.rows.iter().map(|row| (row.address, row.patched[..JUMP].to_vec())).collect();
        let (done, written) = frozen.write(writes);
        if written.is_err() {
            let back = self.rows[..done].iter().map(|row| (row.address, row.original[..JUMP].to_vec())).collect();
            frozen.write(back).1?;
        }
        written
    }

    /// Takes back what was prepared for a patch that did not come about: nobody has been there.
    fn undo(&self, site: &Site, deadline: Instant) {
        // An entry that could not be written back leads to its thunk: all stays, and the next hound restores it.
        if self.rows.iter().any(|row| site.is_patched(row)) {
            return;
        }
        let _ = site.memory.write(self.attachment + offset_of!(Attachment, entry_count) as u64, &self.known.to_le_bytes());
        if self.areas.is_empty() {
            return;
        }
        let Ok(mut borrowed) = Borrowed::any(&site.target, &site.memory, deadline.max(Instant::now() + Duration::from_millis(200))) else {
            return;
        };
        let maps = mappings(site.target.pid).unwrap_or_default();
        for written in site.journal().pieces().unwrap_or_default() {
            if self.areas.iter().any(|area| area.start == written.start) {
                let _ = site.unmap(&mut borrowed, written, &maps);
            }
        }
        borrowed.release();
    }
}

/// Where the image's table of stubs is.
fn stubs(site: &Site, attachment: u64) -> Result<u64, Error> {
    let start = site.word(attachment, offset_of!(Attachment, image_start))?;
    let image = crate::modules::Module::at(&site.memory, start)?;
    let found = image.and_then(|image| image.address_of(&site.memory, STUBS_SYMBOL));
    found.ok_or_else(|| Error::Unfit { what: "the library in the target has no table of stubs".into() })
}
