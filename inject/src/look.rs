//! A first look at a target, which changes nothing.
use crate::error::Error;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A process that hound can get into.
#[derive(Debug)]
pub struct Target {
    /// Its number, as hound sees it.
    pub pid: i32,
    /// Its number in its own pid namespace.
    pub pid_in_namespace: u32,
    /// Its name (`comm`), as far as it is UTF-8.
    pub name: String,
    /// When it started, in clock ticks since boot: tells a process from a later one with the same number.
    pub started: u64,
    pub(crate) pidfd: OwnedFd,
}

impl AsFd for Target {
    /// A pidfd of the process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Looks whether hound can get into a process.
///
/// # Errors
/// [`Error::Refused`] with the cause and the cure.
pub fn look(pid: i32) -> Result<Target, Error> {
    Err(crate::error::Refusal::NoProcess { pid }.into())
}
