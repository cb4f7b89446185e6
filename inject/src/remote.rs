//! One stopped thread, and the system calls hound makes in it.
use crate::{error::Error, look::Target, memory::Memory};
use std::time::{Duration, Instant};

/// One thread of the target, stopped; all others run on. Released when dropped, as it was.
#[derive(Debug)]
pub struct Borrowed {}

impl Borrowed {
    /// Stops one thread that can be borrowed.
    ///
    /// # Errors
    /// [`Error::Refused`] when none can be, [`Error::Deadline`] when none could in time; nothing is changed then.
    pub fn any(target: &Target, memory: &Memory, deadline: Instant) -> Result<Borrowed, Error> {
        let _ = (target, memory, deadline);
        Err(Error::Gone)
    }
    /// The thread.
    pub fn tid(&self) -> i32 {
        0
    }
    /// Makes a system call in the target's thread and returns its result.
    ///
    /// # Errors
    /// [`Error::Os`] with the call's name when it failed there, [`Error::Refused`] when a seccomp filter forbids it (it is not made then).
    pub fn syscall(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, Error> {
        let _ = (number, arguments);
        Err(Error::Gone)
    }
    /// From the next call on, the frame lies in these bytes of the target (writable, 16 KiB at least, not shared with anything that
    /// moves), no longer below the thread's stack pointer.
    ///
    /// # Errors
    /// Where it is too small, or cannot be written.
    pub fn use_scratch(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        let _ = (address, bytes);
        Ok(())
    }
    /// Lets it run on as it was. Returns how long it stood still.
    pub fn release(self) -> Duration {
        Duration::ZERO
    }
}
