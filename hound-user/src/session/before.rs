//! How much memory was there before hound attached: what the kernel tells of it, and the blocks that the allocator's own metadata tells of.
//!
//! Everything is read from outside while the target runs; nothing is called, stopped or written in it. The metadata change while they are
//! read, so every step along them is checked against what the allocator guarantees; what does not hold together is read again, and given
//! up, with the reason, if it never does. Reading memory that is swapped out would bring it back: such stretches are left alone.

mod caution;
mod glibc;
mod memory;
mod others;
mod source;

#[cfg(test)]
mod tests;

use std::io::{self, IoSliceMut};

use anyhow::Context;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use procfs::process::Process;

pub use glibc::evidence::{Evidence, Seen};
pub use source::Limits;
use source::Source;

use crate::capture::{Before, BlockClass as Class, BlockCount as Count, Blocks, Bound, HeapBefore as Heap, LeftOut};

/// What the kernel tells of a process by the way: costs some 50 µs, however large it is. The rest is [`look`]'s.
pub fn glance(pid: u32) -> Option<Before> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let status = process.status().ok()?;
    Some(Before {
        resident: status.vmrss.unwrap_or(0) * 1024,
        swapped: status.vmswap.unwrap_or(0) * 1024,
        threads: u32::try_from(status.threads).unwrap_or(u32::MAX),
        age_ns: age_ns(&process).unwrap_or(0),
        ..Before::default()
    })
}

fn age_ns(process: &Process) -> Option<u64> {
    let started = process.stat().ok()?.starttime as f64 / procfs::ticks_per_second() as f64;
    let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Some(((up - started).max(0.0) * 1e9) as u64)
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
    Ok(Before { heaps, ..memory })
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
