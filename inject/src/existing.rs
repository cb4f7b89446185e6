//! What an earlier hound left in a target.

use core::mem::offset_of;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hound_common::attach;
use hound_common::ring::{self, Control};

use crate::error::{Error, Refusal};
use crate::journal::Journal;
use crate::look::{Target, look};
use crate::memory::Memory;
use crate::place::mappings;
use crate::site::{Inside, Site, is_launched, left_open, own_rings, ring_mapping};
use crate::thunk::Row;

/// How long a heartbeat may stand still: hound reads rounds far more often.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// In which state it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Mapped, nothing patched.
    Dormant,
    /// Functions are patched.
    Armed {
        /// Process id of the hound that drains, as it sees itself; 0 when none does.
        drainer: u32,
    },
    /// A hound died while it mapped it.
    HalfBuilt,
    /// Another version of hound left it; armed or not, it can only be taken away by that one.
    OtherVersion,
}

/// A ring found in a target, and the library that belongs to it.
#[derive(Debug)]
pub struct Existing {
    pub(crate) site: Site,
    ring: Option<OwnedFd>,
    state: State,
    version: (u32, u32),
}

/// Looks for what an earlier hound left in a process. Reads only.
///
/// # Errors
/// As [`look`], and when the process cannot be read.
pub fn find(pid: i32) -> Result<Option<Existing>, Error> {
    let maps = match mappings(pid) {
        Ok(maps) => maps,
        // What is no program, or not hound's to look at, has a better reason.
        Err(error) => return look(pid).and(Err(error)),
    };
    if ring_mapping(&maps).is_none() && !is_launched(&maps) && left_open(pid).is_empty() {
        return Ok(None);
    }
    Existing::of(look(pid)?)
}

impl Existing {
    pub(crate) fn of(target: Target) -> Result<Option<Self>, Error> {
        let Some(site) = Site::find(target)? else { return Ok(None) };
        let version = site.version()?;
        let state = if version.0 != 0 && version.0 != ring::VERSION {
            State::OtherVersion
        } else if version.0 == 0 || site.attachment()? == 0 {
            State::HalfBuilt
        } else if version.1 != attach::VERSION {
            State::OtherVersion
        } else if site.rows()?.iter().any(|row| site.is_patched(row)) {
            // A child's journal is its parent's.
            let maps = if site.inherited { mappings(site.target.pid)? } else { Vec::new() };
            let ring = own_rings(&maps).next().map_or(site.ring, |own| own.start);
            let is_own = !site.inherited || ring != site.ring;
            State::Armed { drainer: if is_own { Journal::at(&site.memory, ring).half(offset_of!(Control, drainer))? } else { 0 } }
        } else {
            State::Dormant
        };
        Ok(Some(Self { ring: open_ring(&site).map(OwnedFd::from), site, state, version }))
    }

    /// In which state it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Versions of the ring and of the attachment block (0: there is none yet).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The ring's memfd; `None` where hound may not open it (that takes a capability in the initial user namespace).
    pub fn ring(&self) -> Option<BorrowedFd<'_>> {
        self.ring.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn into_parts(self) -> (Site, Option<OwnedFd>) {
        (self.site, self.ring)
    }

    /// Whether a living hound drains the ring, or is about to: it holds the ring (also one that is stopped does), or its heartbeat
    /// moves (one whose process cannot be looked into). Waits for at most a quarter of a second.
    ///
    /// # Errors
    /// When the process cannot be read.
    pub fn is_drained(&self) -> Result<bool, Error> {
        if self.version.0 != ring::VERSION {
            return Ok(false);
        }
        let rings = match self.site.inherited {
            false => vec![self.site.ring],
            // What a child inherits is its parent's. One that is recorded with its parent has a ring of its own as well, and maybe others that
            // its parents had.
            true => own_rings(&mappings(self.site.target.pid)?).map(|own| own.start).collect(),
        };
        let all =
            |offset: usize| rings.iter().map(|ring| Journal::at(&self.site.memory, *ring).half(offset)).collect::<Result<Vec<u32>, _>>();
        let beat = || all(offset_of!(Control, heartbeat));
        match all(offset_of!(Control, drainer))?.into_iter().find(|drainer| *drainer != 0) {
            None => return Ok(false),
            Some(drainer) if !self.site.inherited && self.is_held_by(drainer) => return Ok(true),
            Some(_) => {}
        }
        let (before, until) = (beat()?, Instant::now() + HEARTBEAT);
        while Instant::now() < until {
            if beat()? != before {
                return Ok(true);
            }
            sleep(Duration::from_millis(2));
        }
        Ok(false)
    }

    /// Whether another process with this id has the ring open. The id alone may be a later process's.
    fn is_held_by(&self, pid: u32) -> bool {
        if [std::process::id(), self.site.target.pid.cast_unsigned()].contains(&pid) {
            return false;
        }
        let own = self.ring.as_ref().and_then(|ring| File::from(ring.try_clone().ok()?).metadata().ok());
        let own = own.map(|own| (own.dev(), own.ino()));
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        own.is_some() && open.filter_map(|fd| fs::metadata(fd.path()).ok()).any(|file| Some((file.dev(), file.ino())) == own)
    }

    /// Restores every patched function, for a hound that is gone.
    ///
    /// # Errors
    /// As [`crate::Entered::unpatch`]; [`Refusal::Occupied`] when a living hound records, [`Refusal::LeftBehind`] when another version's
    /// entries cannot be read.
    pub fn unpatch(&mut self, deadline: Instant) -> Result<Duration, Error> {
        self.refuse_what_is_not_ours()?;
        Ok(self.restore(deadline)?.0)
    }

    /// Restores every patched function for the hound that calls this and drains the ring meanwhile, and waits until no thread writes to it
    /// any more. Turn recording off before. Returns how many threads have not come to the end of an event: it is lost.
    ///
    /// # Errors
    /// As [`crate::Entered::unpatch`]; [`Refusal::LeftBehind`] when another version's entries cannot be read.
    pub fn settle(&mut self, deadline: Instant) -> Result<u64, Error> {
        self.refuse_other_versions()?;
        let (_, inside) = self.restore(deadline)?;
        self.site.wait_until_written(inside, deadline)
    }

    fn restore(&mut self, deadline: Instant) -> Result<(Duration, Vec<Inside>), Error> {
        let restored = self.site.unpatch(deadline)?;
        if matches!(self.state, State::Armed { .. }) {
            self.state = State::Dormant;
        }
        Ok(restored)
    }

    /// Takes everything out of the target.
    ///
    /// # Errors
    /// As [`crate::Entered::unload`] and [`Existing::unpatch`].
    pub fn unload(mut self, deadline: Instant) -> Result<(), Error> {
        self.unpatch(deadline)?;
        self.site.unload(deadline)
    }

    fn refuse_other_versions(&self) -> Result<(), Error> {
        if self.state == State::OtherVersion {
            let (ring, attachment) = self.version;
            let why = format!("its version ({ring}.{attachment}) is not this one's ({}.{})", ring::VERSION, attach::VERSION);
            return Err(Refusal::LeftBehind { why }.into());
        }
        Ok(())
    }

    fn refuse_what_is_not_ours(&self) -> Result<(), Error> {
        self.refuse_other_versions()?;
        if self.is_drained()? {
            return Err(Refusal::Occupied { by: self.site.journal().half(offset_of!(Control, drainer))? }.into());
        }
        Ok(())
    }
}

fn open_ring(site: &Site) -> Option<File> {
    let pid = site.target.pid;
    let maps = mappings(pid).ok()?;
    let mapping = ring_mapping(&maps)?;
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end);
    OpenOptions::new().read(true).write(true).open(path).ok()
}

/// Code of a process as it is without what hound has put over it: for plans, which are made of that.
#[derive(Clone, Debug, Default)]
pub struct Beneath(Vec<(u64, Vec<u8>)>);

impl Beneath {
    /// Pieces of code, each with its avma.
    pub(crate) fn of(pieces: impl Iterator<Item = (u64, Vec<u8>)>) -> Self {
        Self(pieces.collect())
    }

    /// What is beneath patches that are in a process now, whichever hound's they are.
    pub(crate) fn patches(pid: i32, memory: &Memory) -> Result<Self, Error> {
        let maps = mappings(pid)?;
        if ring_mapping(&maps).is_none() {
            return Ok(Self::default());
        }
        let rows = Site::find(look(pid)?)?.map_or_else(|| Ok(Vec::new()), |site| site.rows())?;
        let still = |row: &Row| {
            let mut now = vec![0; row.patched.len()];
            memory.read(row.address, &mut now).is_ok() && now == row.patched
        };
        Ok(Self::of(rows.into_iter().filter(still).map(|row| (row.address, row.original))))
    }

    /// Both.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// Puts it into a copy of memory.
    pub(crate) fn look_through(&self, address: u64, code: &mut [u8]) {
        for (start, original) in &self.0 {
            for (at, byte) in (*start..).zip(original) {
                if let Some(place) = at.checked_sub(address).and_then(|n| code.get_mut(n as usize)) {
                    *place = *byte;
                }
            }
        }
    }

    /// Whether nothing covers it any more.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn is_bare(&self, pid: i32) -> Result<bool, Error> {
        let memory = Memory::open(pid)?;
        let mut now = Vec::new();
        for (start, original) in &self.0 {
            now.resize(original.len(), 0);
            match memory.read(*start, &mut now) {
                Err(Error::Gone) => return Err(Error::Gone),
                Ok(()) if now != *original => return Ok(false),
                // A module that was unloaded covers nothing.
                _ => {}
            }
        }
        Ok(true)
    }
}
