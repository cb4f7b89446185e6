//! What an earlier hound left in a target.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::Error;

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
    /// Another version of hound left it; armed or not, it can only be taken away.
    OtherVersion,
}

/// A ring found in a target, and the library that belongs to it.
#[derive(Debug)]
pub struct Existing {
    ring: OwnedFd,
    state: State,
    version: (u32, u32),
}

/// Looks for what an earlier hound left in a process. Reads only.
///
/// # Errors
/// When the process cannot be read.
pub fn find(pid: i32) -> Result<Option<Existing>, Error> {
    let _ = pid;
    Ok(None)
}

impl Existing {
    /// In which state it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// Versions of the ring and of the attachment block (0: there is none yet).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The ring's memfd.
    pub fn ring(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Restores every patched function, for a hound that is gone.
    ///
    /// # Errors
    /// As [`crate::Entered::unpatch`].
    pub fn unpatch(&mut self, deadline: Instant) -> Result<Duration, Error> {
        let _ = deadline;
        Err(Error::Gone)
    }

    /// Takes everything out of the target.
    ///
    /// # Errors
    /// As [`crate::Entered::unload`].
    pub fn unload(self, deadline: Instant) -> Result<(), Error> {
        let _ = deadline;
        Err(Error::Gone)
    }
}
