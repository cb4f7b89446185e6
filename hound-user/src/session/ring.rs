//! hound's side of the shared memory.
//!
//! Everything in it may be changed by the target at any moment, also by a target gone wrong: indexes are checked, contents copied before
//! they are looked at.
#![expect(unsafe_code, reason = "maps memory that another process writes")]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use hound_common::ring::{
    Control, DATA_OFFSET, LAUNCH_NAME, RING_BYTES, SEGMENT_BYTES, SEGMENT_LIMIT, SEGMENTS, SEGMENTS_OFFSET, STREAMS, STREAMS_OFFSET,
    Segment, Stream,
};
use nix::fcntl::{FcntlArg, FdFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// A mapped ring and the descriptor it can be handed on by.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the mapping belongs to no thread; all shared fields are atomics, and segment data is only copied.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    /// A new ring, sealed against resizing: a target that shrank it could kill hound by SIGBUS.
    pub fn create() -> io::Result<Self> {
        // Not close-on-exec: the one child started next inherits it. `keep` closes that door.
        let fd = memfd_create(LAUNCH_NAME, MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(fd.try_clone()?);
        file.set_len(RING_BYTES as u64).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => {
                let why = format!("it takes a file of {} MiB, and the limit on their sizes is lower: raise `ulimit -f`", RING_BYTES >> 20);
                io::Error::new(error.kind(), why)
            }
            _ => error,
        })?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ring::map(fd)
    }

    /// The ring behind a descriptor that the library made. Checked: right size, sealed, and a control page of this version.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let length = File::from(fd.try_clone()?).metadata()?.len();
        let seals = SealFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
        if length != RING_BYTES as u64 || !seals.contains(SealFlag::F_SEAL_SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the descriptor is not a hound ring of this version"));
        }
        let ring = Ring::map(fd)?;
        ring.keep()?;
        if !ring.control().is_valid() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ring was made by another version of libhound.so"));
        }
        Ok(ring)
    }

    fn map(fd: OwnedFd) -> io::Result<Self> {
        let length = NonZeroUsize::new(RING_BYTES).expect("invariant: the ring has a size");
        // SAFETY: a new mapping at an address the kernel chooses.
        let base = unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &fd, 0)? };
        Ok(Ring { fd, base: base.cast() })
    }

    /// No later child inherits the ring.
    pub fn keep(&self) -> io::Result<()> {
        fcntl(&self.fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(())
    }

    /// Touches the pages that will be used in any case, so that they are hound's in the eyes of a memory cgroup, not the target's.
    pub fn prefault(&self) {
        let bytes = DATA_OFFSET + SEGMENT_LIMIT as usize * SEGMENT_BYTES;
        // SAFETY: inside the mapping; populating changes no content. Older kernels refuse, which costs nothing but the accounting.
        let _ = unsafe { madvise(self.base.cast(), bytes, MmapAdvise::MADV_POPULATE_WRITE) };
    }

    /// The control page.
    pub fn control(&self) -> &Control {
        // SAFETY: the first page of the mapping; all fields are atomics, any bytes are valid.
        unsafe { self.base.cast::<Control>().as_ref() }
    }

    /// All streams.
    pub fn streams(&self) -> &[Stream] {
        // SAFETY: inside the mapping at an aligned offset; all fields are atomics.
        let first = unsafe { self.base.add(STREAMS_OFFSET) };
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(first.cast().as_ptr(), STREAMS) }
    }

    /// All segments' heads.
    pub fn segments(&self) -> &[Segment] {
        // SAFETY: as in `streams`.
        let first = unsafe { self.base.add(SEGMENTS_OFFSET) };
        // SAFETY: as in `streams`.
        unsafe { std::slice::from_raw_parts(first.cast().as_ptr(), SEGMENTS) }
    }

    /// Appends a copy of bytes `from..to` of a segment's data to `out`. Offsets beyond the segment are cut off.
    pub fn copy(&self, segment: usize, from: usize, to: usize, out: &mut Vec<u8>) {
        let to = to.min(SEGMENT_BYTES);
        if segment >= SEGMENTS || from >= to {
            return;
        }
        out.reserve(to - from);
        // SAFETY: inside the mapping, by the checks above.
        let source = unsafe { self.base.add(DATA_OFFSET + segment * SEGMENT_BYTES + from) };
        // SAFETY: inside the capacity just reserved.
        let target = unsafe { out.as_mut_ptr().add(out.len()) };
        // SAFETY: source and target do not overlap. The target may write these bytes at the same time if it has gone wrong: they are
        // then some bytes, checked like all others.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, to - from) };
        // SAFETY: so many bytes were initialised.
        unsafe { out.set_len(out.len() + to - from) };
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: nothing borrowed from the ring outlives it.
        let _ = unsafe { munmap(self.base.cast(), RING_BYTES) };
    }
}
