//! All threads of a target at a standstill.
use crate::{error::Error, look::Target};
use std::time::{Duration, Instant};

/// One thread of a frozen target.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// The thread, as hound sees its number.
    pub tid: i32,
    /// Its registers as they were when it stopped (`rax` may be one of the kernel's restart codes).
    pub regs: libc::user_regs_struct,
}

/// All threads of a target, stopped. Released when dropped.
#[derive(Debug)]
pub struct Frozen {}

impl Frozen {
    /// Stops all threads, new ones included.
    ///
    /// # Errors
    /// [`Error::Deadline`] when a thread did not stop in time (uninterruptible sleep, vfork); all run on then.
    pub fn all(target: &Target, deadline: Instant) -> Result<Frozen, Error> {
        let _ = (target, deadline);
        Err(Error::Gone)
    }
    /// The threads.
    pub fn threads(&self) -> &[Stopped] {
        &[]
    }
    /// Lets all run on. Returns how long they stood still: from the first stop asked for to the last thread's release.
    pub fn release(self) -> Duration {
        Duration::ZERO
    }
}
