//! Into a target: the ring and libhound.so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::look::Target;
use crate::patch::Patched;
use crate::plan::Plan;

/// Maps libhound.so (`library`: the file's bytes) and its ring into a target, or takes over what a hound before left dormant there.
/// Nothing is patched yet, recording is off.
///
/// # Errors
/// Refusals, and failures on the way; what was begun is undone then.
pub fn enter(target: &Target, library: &[u8], deadline: Instant) -> Result<Entered, Error> {
    let _ = (target, library, deadline);
    Err(Error::Gone)
}

/// A target with libhound.so in it.
#[derive(Debug)]
pub struct Entered {
    ring: OwnedFd,
    stalls: Vec<Duration>,
    fresh: bool,
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

    /// Patches all that the plan covers. Hooks record nothing until the control page says so.
    ///
    /// # Errors
    /// Failures on the way; nothing is patched then.
    pub fn patch(&mut self, plan: &Plan, deadline: Instant) -> Result<Patched, Error> {
        let _ = (plan, deadline);
        Err(Error::Gone)
    }

    /// Restores every patched function. Returns how long the target stood still. Turn recording off before.
    ///
    /// # Errors
    /// Failures on the way; all stays patched then, and may be tried again.
    pub fn unpatch(&mut self, deadline: Instant) -> Result<Duration, Error> {
        let _ = deadline;
        Err(Error::Gone)
    }

    /// Takes everything out of the target, as soon as no thread's stack touches it any more.
    ///
    /// # Errors
    /// [`Error::Deadline`] when a thread stays inside a hook (it sleeps in the allocator, say): all stays mapped, dormant.
    pub fn unload(self, deadline: Instant) -> Result<(), Error> {
        let _ = deadline;
        Err(Error::Gone)
    }
}
