//! Into a target: the ring and libhound.so.

use core::mem::offset_of;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hound_common::attach::{Attachment, KnownModule, RING_NAME, SAMPLES_BYTES, STATE_BYTES, THREAD_SLOTS};
use hound_common::family;
use hound_common::ring::{self, Control, LIBRARY_ABSENT, RING_BYTES, STREAMS};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};

use crate::error::{Error, Refusal};
use crate::existing::{Existing, State};
use crate::frames::Frames;
use crate::image::Image;
use crate::look::Target;
use crate::memory::Memory;
use crate::patch::{Patched, Staged};
use crate::place::{PAGE, Space, mappings};
use crate::plan::Plan;
use crate::remote::Borrowed;
use crate::site::{Inside, MAX_ROWS, Site};
use crate::step::{moment, step};
use crate::surroundings::{MAX_MODULES, Surroundings};
use crate::tasks;
use crate::thunk::ENTRY;

/// `MAP_FIXED_NOREPLACE`: kernels before 4.17 take the address for a hint, which the result shows.
const FIXED: i32 = libc::MAP_FIXED_NOREPLACE | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
/// `Control::patience_ms` of a target that hound did not start: it must not wait long for a hound that has died.
const PATIENCE_MS: u32 = 250;
/// How long undoing may take.
const UNDO_PATIENCE: Duration = Duration::from_secs(2);
/// How far below the borrowed thread's stack pointer the ring's name is put: below the frame of a remote call, within what is mapped.
const NAME_BELOW: u64 = Borrowed::SCRATCH - 256;

/// Maps libhound.so (`library`: the file's bytes) and its ring into a target, or takes over what a hound before left dormant there.
/// Nothing is patched yet, recording is off.
///
/// # Errors
/// Refusals, and failures on the way; what was begun is undone then.
pub fn enter(target: &Target, library: &[u8], deadline: Instant) -> Result<Entered, Error> {
    let image = Image::parse(library).map_err(|what| Error::Unfit { what })?;
    let mut stalls = Vec::new();
    if let Some(existing) = Existing::of(target.duplicate()?)?
        && let Some(entered) = reuse(existing, &image, &mut stalls, deadline)?
    {
        return Ok(entered);
    }
    Building::of(target, &image, deadline)?.build(&image, stalls, deadline)
}

/// Takes over what is there if it is the same build of the library, or takes it out.
fn reuse(mut existing: Existing, image: &Image, stalls: &mut Vec<Duration>, deadline: Instant) -> Result<Option<Entered>, Error> {
    let stall = existing.unpatch(deadline)?;
    if stall > Duration::ZERO {
        stalls.push(stall);
    }
    let state = existing.state();
    let (site, ring) = existing.into_parts();
    let is_same = state == State::Dormant && site.word(site.attachment()?, offset_of!(Attachment, image))? == image.id();
    let (true, Some(ring), false) = (is_same, ring, site.inherited) else {
        return match site.unload(deadline) {
            Ok(()) => Ok(None),
            Err(Error::Deadline { what }) => Err(Refusal::LeftBehind { why: what }.into()),
            Err(error) => Err(error),
        };
    };
    site.unmap_unused(deadline)?;
    let journal = site.journal();
    journal.set_half(offset_of!(Control, drainer), std::process::id())?;
    journal.set_word(
        offset_of!(Control, state),
        ring::STATE_CHANGE.wrapping_add(journal.word(offset_of!(Control, state))?) & !(ring::STATE_RECORDING | ring::STATE_SAMPLED),
    )?;
    journal.set_half(offset_of!(Control, library), LIBRARY_ABSENT)?;
    journal.set_half(offset_of!(Control, bow_out), 0)?;
    journal.set_half(offset_of!(Control, patience_ms), PATIENCE_MS)?;
    // What earlier recordings have lost is not the next one's.
    for reason in 0..ring::LOST_REASONS {
        journal.set_word(offset_of!(Control, lost) + reason * 8, 0)?;
    }
    journal.set_word(offset_of!(Control, waited_ticks), 0)?;
    let mut surroundings = Surroundings::of(&site.target, &site.memory)?;
    surroundings.take_over(&site, site.attachment()?)?;
    surroundings.write(&site, site.attachment()?)?;
    Ok(Some(Entered { site, ring, stalls: core::mem::take(stalls), fresh: false, inside: Vec::new() }))
}

/// Where each piece goes.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    ring: u64,
    image: u64,
    states: u64,
    mark: u64,
    threads: u64,
    samples: u64,
    entries: u64,
    modules: u64,
    family: u64,
}

const STATES_BYTES: u64 = (STREAMS * STATE_BYTES) as u64;
const THREADS_BYTES: u64 = THREAD_SLOTS as u64 * 16;
const ENTRIES_BYTES: u64 = (MAX_ROWS * ENTRY as u64).next_multiple_of(PAGE);
const MODULES_BYTES: u64 = (MAX_MODULES * size_of::<KnownModule>() as u64).next_multiple_of(PAGE);
/// What forks wipe, then what they copy: two pieces, as each system call keeps the borrowed thread, or all, waiting.
const WIPED_BYTES: u64 = STATES_BYTES + PAGE + THREADS_BYTES + SAMPLES_BYTES as u64;
const FAMILY_BYTES: u64 = (size_of::<family::Entries>() as u64).next_multiple_of(PAGE);
const COPIED_BYTES: u64 = ENTRIES_BYTES + MODULES_BYTES + FAMILY_BYTES;

impl Pieces {
    fn place(space: &mut Space, image: &Image) -> Option<Self> {
        let (ring, image) = (space.anywhere(RING_BYTES as u64)?, space.anywhere(image.bytes())?);
        let (states, entries) = (space.anywhere(WIPED_BYTES)?, space.anywhere(COPIED_BYTES)?);
        let mark = states + STATES_BYTES;
        let threads = mark + PAGE;
        let (samples, modules) = (threads + THREADS_BYTES, entries + ENTRIES_BYTES);
        let family = modules + MODULES_BYTES;
        Some(Self { ring, image, states, mark, threads, samples, entries, modules, family })
    }
}

/// Maps at an address, or fails.
pub(crate) fn map(borrowed: &mut Borrowed, at: u64, bytes: u64, protection: i32) -> Result<(), Error> {
    let got = borrowed.syscall(libc::SYS_mmap, [at, bytes, protection as u64, FIXED as u64, u64::MAX, 0])?;
    if got != at {
        borrowed.syscall(libc::SYS_munmap, [got, bytes, 0, 0, 0, 0])?;
        return Err(Error::Os { what: "mmap in the target at a place of hound's choice".into(), errno: libc::EEXIST });
    }
    Ok(())
}

/// A thread borrowed to build with.
struct Building {
    site: Site,
    borrowed: Borrowed,
    pieces: Pieces,
    surroundings: Surroundings,
    /// The header made for the executable, which goes to `surroundings.made_header`.
    header: Vec<u8>,
}

impl Building {
    fn of(target: &Target, image: &Image, deadline: Instant) -> Result<Self, Error> {
        let memory = Memory::open(target.pid)?;
        let mut surroundings = Surroundings::of(target, &memory)?;
        let mut space = Space::of(&mappings(target.pid)?);
        let no_room = || Error::Unfit { what: "the target's address space has no room left".into() };
        let pieces = Pieces::place(&mut space, image).ok_or_else(no_room)?;
        // Without it stacks are followed by frame pointers only.
        let made = surroundings.executable().and_then(|module| {
            let frames = Frames::of(module)?;
            let at = space.near(module.start, module.end, frames.bytes().next_multiple_of(PAGE))?;
            Some((at, frames.placed(at)?))
        });
        let (at, header) = made.unwrap_or_default();
        surroundings.made_header = at;
        let target = target.duplicate()?;
        let borrowed = Borrowed::any(&target, &memory, deadline)?;
        let site = Site { target, memory, ring: pieces.ring, inherited: false };
        Ok(Self { site, borrowed, pieces, surroundings, header })
    }

    fn build(mut self, image: &Image, mut stalls: Vec<Duration>, deadline: Instant) -> Result<Entered, Error> {
        let ring = match self.make_ring().and_then(|ring| self.fill(image).map(|()| ring)) {
            Ok(ring) => ring,
            Err(error) => return Err(self.undo(error)),
        };
        if Instant::now() > deadline {
            return Err(self.undo(Error::Deadline { what: "mapping the library took too long".into() }));
        }
        stalls.push(self.borrowed.release());
        Ok(Entered { site: self.site, ring, stalls, fresh: true, inside: Vec::new() })
    }

    /// Leaves the target as it was, and returns what went wrong: the error, or a worse one. The thread that was borrowed may be what
    /// failed, so another one (or the same anew) is.
    fn undo(self, error: Error) -> Error {
        self.borrowed.release();
        let deadline = Instant::now() + UNDO_PATIENCE;
        let undone = self.site.target.duplicate().and_then(Site::find).and_then(|left| left.map_or(Ok(()), |left| left.unload(deadline)));
        match undone {
            Ok(()) | Err(Error::Gone) => error,
            Err(worse) => Refusal::LeftBehind { why: format!("{error}; and it could not be undone: {worse}") }.into(),
        }
    }

    /// The memfd, mapped in the target and held by hound; the target keeps no descriptor.
    fn make_ring(&mut self) -> Result<OwnedFd, Error> {
        const MFD_NOEXEC_SEAL: u32 = 8; // kernels from 6.3, which may insist on it
        let name = self.borrowed.regs().rsp.saturating_sub(NAME_BELOW) & !15;
        self.site.memory.write(name, format!("{RING_NAME}\0").as_bytes())?;
        let mut create = |flags: u32| self.borrowed.syscall(libc::SYS_memfd_create, [name, u64::from(flags), 0, 0, 0, 0]);
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let number = match create(flags | MFD_NOEXEC_SEAL) {
            Err(Error::Os { errno: libc::EINVAL, .. }) => create(flags)?,
            other => other?,
        };
        let mapped = self.map_ring(number);
        let closed = self.borrowed.syscall(libc::SYS_close, [number, 0, 0, 0, 0, 0]);
        mapped.and_then(|ring| closed.map(|_| ring))
    }

    fn map_ring(&mut self, number: u64) -> Result<OwnedFd, Error> {
        let failed = |what: &'static str| move |e: std::io::Error| Error::io(format!("{what} the ring"), &e);
        let file = self.descriptor(number).map_err(failed("opening"))?;
        moment();
        file.set_len(RING_BYTES as u64).map_err(failed("sizing"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|e| Error::os("sealing the ring", e))?;
        self.write_control(&file).map_err(failed("writing"))?;
        let (at, bytes) = (self.pieces.ring, RING_BYTES as u64);
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64;
        let got = self.borrowed.syscall(libc::SYS_mmap, [at, bytes, protection, flags, number, 0])?;
        if got != at {
            self.borrowed.syscall(libc::SYS_munmap, [got, bytes, 0, 0, 0, 0])?;
            return Err(Error::Os { what: "mmap of the ring in the target".into(), errno: libc::EEXIST });
        }
        // Else a core dump touches all of it and holds it: 161 MiB that the target never used.
        match self.borrowed.syscall(libc::SYS_madvise, [at, bytes, libc::MADV_DONTDUMP as u64, 0, 0, 0]) {
            Ok(_) | Err(Error::Os { errno: libc::EINVAL, .. } | Error::Refused(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(file.into())
    }

    /// A descriptor of the target's as one of hound's own: from the kernel, or where that (before 5.6) or a filter on hound refuses, by its
    /// path, which some systems of files forbid.
    fn descriptor(&self, number: u64) -> std::io::Result<File> {
        // SAFETY: takes numbers only, and makes a new descriptor.
        let own = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.site.target.as_fd().as_raw_fd(), number, 0) };
        match Errno::result(own) {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            Ok(own) => Ok(unsafe { OwnedFd::from_raw_fd(own as i32) }.into()),
            // Of the thread: a main thread that has ended has no descriptors any more.
            Err(_) => {
                let path = format!("/proc/{}/task/{}/fd/{number}", self.site.target.pid, self.borrowed.tid());
                OpenOptions::new().read(true).write(true).open(path)
            }
        }
    }

    /// As [`Control::initialise`], with recording off.
    fn write_control(&self, file: &File) -> std::io::Result<()> {
        let write = |offset: usize, bytes: &[u8]| step().map_err(Into::into).and_then(|()| file.write_all_at(bytes, offset as u64));
        let half = |offset: usize, value: u32| write(offset, &value.to_le_bytes());
        let word = |offset: usize, value: u64| write(offset, &value.to_le_bytes());
        half(offset_of!(Control, version), ring::VERSION)?;
        word(offset_of!(Control, state), ring::STATE_CHANGE)?;
        half(offset_of!(Control, target_pid), self.site.target.pid_in_namespace)?;
        half(offset_of!(Control, segment_limit), ring::SEGMENT_LIMIT)?;
        half(offset_of!(Control, patience_ms), PATIENCE_MS)?;
        half(offset_of!(Control, drainer), std::process::id())?;
        word(offset_of!(Control, ring_in_target), self.pieces.ring)?;
        word(offset_of!(Control, magic), ring::MAGIC)
    }

    fn piece(&mut self, at: u64, bytes: u64, protection: i32) -> Result<(), Error> {
        let journal = self.site.journal();
        let written = journal.announce(at, bytes)?;
        map(&mut self.borrowed, at, bytes, protection)?;
        journal.confirm(written)
    }

    fn data(&mut self, at: u64, bytes: u64, forks_wipe_it: bool) -> Result<(), Error> {
        self.piece(at, bytes, libc::PROT_READ | libc::PROT_WRITE)?;
        if forks_wipe_it {
            self.borrowed.syscall(libc::SYS_madvise, [at, bytes, libc::MADV_WIPEONFORK as u64, 0, 0, 0])?;
        }
        Ok(())
    }

    fn fill(&mut self, image: &Image) -> Result<(), Error> {
        let pieces = self.pieces;
        // Each part with its last protection at once: some systems forbid to make written memory executable. hound writes all the same.
        // And each a piece of its own: what is announced is there whole or not at all.
        for part in image.parts() {
            self.piece(pieces.image + part.offset, part.bytes, part.protection)?;
        }
        self.data(pieces.states, WIPED_BYTES, true)?;
        self.data(pieces.entries, COPIED_BYTES, false)?;
        if !self.header.is_empty() {
            self.data(self.surroundings.made_header, (self.header.len() as u64).next_multiple_of(PAGE), false)?;
            self.site.memory.write(self.surroundings.made_header, &self.header)?;
        }
        let bytes = image.placed(pieces.image, |name| self.surroundings.symbol(name));
        let mut writes = Vec::new();
        for part in image.parts() {
            let bytes = &bytes[part.offset as usize..(part.offset + part.bytes) as usize];
            // What is zero is so already, and most of the data is: its pages are the target's to touch.
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            writes.push((pieces.image + part.offset, bytes[..end].to_vec()));
        }
        self.borrowed.write(writes)?;
        self.site.memory.write(pieces.mark, &1_u64.to_le_bytes())?;
        let attachment = pieces.image + image.attachment();
        let set = |offset: usize, value: u64| self.site.memory.write(attachment + offset as u64, &value.to_le_bytes());
        set(offset_of!(Attachment, ring), pieces.ring)?;
        set(offset_of!(Attachment, states), pieces.states)?;
        set(offset_of!(Attachment, fork_mark), pieces.mark)?;
        set(offset_of!(Attachment, threads), pieces.threads)?;
        set(offset_of!(Attachment, samples), pieces.samples)?;
        set(offset_of!(Attachment, image_start), pieces.image)?;
        set(offset_of!(Attachment, image_end), pieces.image + image.bytes())?;
        set(offset_of!(Attachment, entries), pieces.entries)?;
        set(offset_of!(Attachment, modules), pieces.modules)?;
        set(offset_of!(Attachment, family), pieces.family)?;
        set(offset_of!(Attachment, image), image.id())?;
        let regs = self.borrowed.regs();
        set(offset_of!(Attachment, tid_offset), self.surroundings.tid_offset(&self.site, self.borrowed.tid(), regs.fs_base))?;
        self.surroundings.write(&self.site, attachment)?;
        self.site.memory.write(attachment + offset_of!(Attachment, mapped) as u64, &1_u32.to_le_bytes())?;
        let journal = self.site.journal();
        journal.set_word(offset_of!(Control, library_start), pieces.image)?;
        journal.set_word(offset_of!(Control, library_end), pieces.image + image.bytes())?;
        // Last: with it the library is whole. Where its stubs are is told by the word beside it, in the image's own table.
        journal.set_word(offset_of!(Control, attachment), attachment)
    }
}

/// A target with libhound.so in it.
#[derive(Debug)]
pub struct Entered {
    pub(crate) site: Site,
    ring: OwnedFd,
    pub(crate) stalls: Vec<Duration>,
    fresh: bool,
    /// Threads that were in the library when the code was restored.
    inside: Vec<Inside>,
}

impl Entered {
    /// The ring's memfd: of its full size, sealed, its control page filled in, recording off.
    pub fn ring(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Whether the library was mapped now; else a dormant one is used again.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// How long the target (or one thread of it) stood still, each time until now.
    pub fn stalls(&self) -> &[Duration] {
        &self.stalls
    }

    /// Says where the processes find hound that the target begins, or that they are to look for nobody. `entry`: the environment's, with its
    /// name; `library`: what their loader is to load, if it can. Before recording is switched on.
    ///
    /// # Errors
    /// [`Error::Unfit`] when one of them is too long, or when the target has seccomp filters: what asking hound takes may be forbidden, and end
    /// the child. [`Error::Os`] when the target cannot be written to.
    pub fn tell_of_family(&mut self, entry: Option<&str>, library: Option<&Path>) -> Result<(), Error> {
        let mut entries = family::Entries { family: [0; 256], preload: [0; family::PRELOAD_BYTES] };
        let mut fits = true;
        if let Some(entry) = entry {
            let pid = self.site.target.pid;
            if tasks::threads(pid)?.into_iter().any(|tid| tasks::filtered(pid, tid)) {
                return Err(Error::Unfit {
                    what: "it has seccomp filters, which may forbid its children to speak to hound, and end them for it".into(),
                });
            }
            fits = family::write(&mut entries.family, &[entry.as_bytes()]);
        }
        if let Some(library) = library {
            fits &= family::write(&mut entries.preload, &[b"LD_PRELOAD=", library.as_os_str().as_bytes()]);
        }
        if !fits {
            return Err(Error::Unfit { what: "the path of libhound.so is too long for its children's environment".into() });
        }
        let at = self.site.word(self.site.attachment()?, offset_of!(Attachment, family))?;
        self.site.memory.write(at, &[&entries.family[..], &entries.preload].concat())
    }

    /// Patches all that the plan covers. Hooks record nothing until the control page says so.
    ///
    /// # Errors
    /// Failures on the way; nothing is patched then.
    pub fn patch(&mut self, plan: &Plan, deadline: Instant) -> Result<Patched, Error> {
        let staged = self.stage(plan, deadline)?;
        self.patch_staged(staged, deadline)
    }

    /// The first half of [`Entered::patch`]: all that can be done before the threads are stopped. Whatever stands on the code to be patched
    /// may stay until the second.
    ///
    /// # Errors
    /// Failures on the way; what was begun is undone then.
    pub fn stage(&mut self, plan: &Plan, deadline: Instant) -> Result<Staged, Error> {
        Staged::make(&self.site, plan, &mut self.stalls, deadline)
    }

    /// The second half.
    ///
    /// # Errors
    /// As [`Entered::patch`].
    pub fn patch_staged(&mut self, staged: Staged, deadline: Instant) -> Result<Patched, Error> {
        staged.go(&self.site, &mut self.stalls, deadline)
    }

    /// Restores every patched function. Returns how long the target stood still. Turn recording off before.
    ///
    /// # Errors
    /// Failures on the way; all stays patched then, and may be tried again.
    pub fn unpatch(&mut self, deadline: Instant) -> Result<Duration, Error> {
        let (stall, inside) = self.site.unpatch(deadline)?;
        self.stalls.push(stall);
        self.inside.extend(inside);
        Ok(stall)
    }

    /// Waits, after [`Entered::unpatch`], until no thread writes to the ring any more; those that were writing an event finish it, as
    /// long as the ring is drained. Returns how many have not: their events are lost.
    ///
    /// # Errors
    /// As [`Entered::unpatch`].
    pub fn wait_until_written(&mut self, deadline: Instant) -> Result<u64, Error> {
        self.site.wait_until_written(core::mem::take(&mut self.inside), deadline)
    }

    /// Takes everything out of the target, as soon as no thread's stack touches it any more.
    ///
    /// # Errors
    /// [`Error::Deadline`] when a thread stays inside a hook (it sleeps in the allocator, say): all stays mapped, dormant.
    pub fn unload(self, deadline: Instant) -> Result<(), Error> {
        self.site.unpatch(deadline)?;
        self.site.unload(deadline)
    }
}
