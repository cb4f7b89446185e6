//! A program that hound has started and brought its library into, and that has yet to begin.
//!
//! It stands still, stopped by SIGSTOP, with a death signal of SIGKILL: should hound die now, nothing of it has run, and it ends.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::error::Error;
use crate::look::Target;
use crate::memory::Memory;
use crate::remote::Borrowed;

const PATIENCE: Duration = Duration::from_secs(5);

/// Lets it go on, as nobody's but its own: stopped no longer, and without a death signal. Returns where it was.
///
/// # Errors
/// [`Error::Gone`] when it was killed, and what else may come in its way. It has not begun then, or is about to end.
pub fn begin(target: &Target) -> Result<u64, Error> {
    let mut borrowed = Borrowed::any(target, &Memory::open(target.pid)?, Instant::now() + PATIENCE)?;
    let at = borrowed.regs().rip;
    // In this order: it stays where it is until it is given back, and in no moment would hound's death leave it stopped for ever.
    // SAFETY: the kernel takes a descriptor of ours, numbers, and no pointer but null.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, target.as_fd().as_raw_fd(), libc::SIGCONT, 0, 0) };
    Errno::result(sent).map_err(|errno| Error::os("letting the program go on", errno))?;
    borrowed.syscall(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0])?;
    borrowed.release();
    Ok(at)
}
