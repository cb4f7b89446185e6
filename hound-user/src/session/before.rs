//! How much memory was there before hound attached: what the kernel tells of it, and the blocks that the allocator's own metadata tells of.
//!
//! Everything is read from outside while the target runs; nothing is called, stopped or written in it. The metadata change while they are
//! read, so every step along them is checked against what the allocator guarantees; what does not hold together is read again, and given
//! up, with the reason, if it never does. Reading memory that is swapped out would bring it back: such stretches are left alone.

mod caution;
mod figures;
mod glibc;
mod memory;
mod others;
mod source;
mod text;

#[cfg(test)]
mod tests;

use std::io::{self, IoSliceMut};

use anyhow::Context;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub use figures::before;
pub use source::Limits;
use source::Source;

/// What was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// What the kernel tells.
    pub memory: Memory,
    /// What the allocators' metadata tell, one entry for each allocator found.
    pub heaps: Vec<Heap>,
}

/// The kernel's figures of a process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// In memory now.
    pub resident: u64,
    /// Of these, not backed by a file.
    pub anonymous: u64,
    /// Swapped out.
    pub swapped: u64,
    /// Length of the mapping grown with brk, resident or not.
    pub heap: u64,
}

/// What is known of one allocator's blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Heap {
    /// Its metadata were read.
    Walked(Box<Blocks>),
    /// They cannot be read so that the result could be trusted.
    NotSound {
        /// Its name.
        allocator: String,
        /// Why not.
        why: String,
    },
}

/// A number of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// How many.
    pub count: u64,
    /// Their bytes, as the allocator rounded them: up to 15 more than were asked for (up to a page more in a mapping of their own).
    pub bytes: u64,
}

/// Blocks of `from` to `2 * from - 1` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// The class's smallest size, a power of two.
    pub from: u64,
    /// The blocks in it.
    #[serde(flatten)]
    pub blocks: Count,
}

/// What a walk along glibc's metadata found. `in_use` + `cached` + `free` + `overhead` = `covered`, all in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocks {
    /// The blocks in use, by size: the classes that have any, smallest first.
    pub classes: Vec<Class>,
    /// All of them. A few are libc's own: buffers of streams, tables of threads.
    pub in_use: Count,
    /// Of these, the ones with a mapping of their own.
    pub own_mapping: Count,
    /// How many of those libc says there are, and the bytes of their mappings; none if its count was not found.
    pub own_mapping_told: Option<Count>,
    /// Freed, but kept in a thread's cache or a fast bin for the next request of that size. Not in `in_use`.
    pub cached: Count,
    /// Bytes free for any request.
    pub free: u64,
    /// Bytes for the allocator's own purposes: headers, arenas.
    pub overhead: u64,
    /// Bytes walked over.
    pub covered: u64,
    /// Bytes the allocator has from the kernel, by its own count.
    pub mapped: u64,
    /// Arenas found.
    pub arenas: u32,
    /// How often a stretch did not hold together and was read again.
    pub retried: u32,
    /// Lists of cached blocks that never held together: so some more of the small blocks may be cached ones.
    pub unread_lists: u32,
    /// What was not walked.
    pub left_out: Vec<LeftOut>,
    /// The bound at which the walk was ended before it was complete.
    pub cut: Option<Bound>,
    /// No thread ran from the first look to the last: the figures are exact. Otherwise they are a snapshot of a moving target, in which
    /// blocks allocated or freed meanwhile may be counted or not.
    pub stood_still: bool,
    /// Bytes read.
    pub read: u64,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// A stretch of memory that was not walked, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Its address.
    pub start: u64,
    /// Its length in bytes, as far as known.
    pub bytes: u64,
    /// Why.
    pub why: String,
}

/// What a walk may cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Time.
    Time,
    /// Bytes read.
    Bytes,
}

impl Before {
    /// A few lines for the head of a report, each without its line end.
    pub fn lines(&self) -> Vec<String> {
        text::lines(self)
    }
}

/// Looks at a running process. `read` fills a buffer from an address of it, or fails; [`reader`] gives one.
///
/// # Errors
/// The process is gone, or its `smaps` may not be read. What cannot be read of its heaps is told in the result instead.
pub fn look(pid: u32, read: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> anyhow::Result<Before> {
    look_within(pid, Limits::default(), read)
}

/// As [`look`], with other bounds.
///
/// # Errors
/// As [`look`].
pub fn look_within(pid: u32, limits: Limits, mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> anyhow::Result<Before> {
    let before = caution::at_rest(pid);
    let (memory, areas) = memory::look(pid).context("cannot read what the kernel tells of the target's memory")?;
    let mut heaps = others::look(pid, &areas);
    let mut source = Source::new(&mut read, limits);
    match glibc::walk(&mut source, &areas) {
        Some(mut blocks) => {
            blocks.stood_still = before.is_some() && caution::at_rest(pid) == before;
            heaps.insert(0, Heap::Walked(Box::new(blocks)));
        }
        None if heaps.is_empty() => heaps.push(Heap::NotSound {
            allocator: "unknown".into(),
            why: "no main arena of glibc that holds together, and no other allocator known by name".into(),
        }),
        None => {}
    }
    Ok(Before { memory, heaps })
}

/// Reads a process's memory with process_vm_readv(2).
pub fn reader(pid: u32) -> impl FnMut(u64, &mut [u8]) -> io::Result<()> {
    move |address, into| {
        let length = into.len();
        let remote = RemoteIoVec { base: usize::try_from(address).map_err(io::Error::other)?, len: length };
        let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
        let read = process_vm_readv(pid, &mut [IoSliceMut::new(into)], &[remote])?;
        if read == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
