//! The timeouts of sockets that threads sleep with: SO_RCVTIMEO and SO_SNDTIMEO. Read only: they belong to the program.
//!
//! To read one, hound has a descriptor of the socket for a few microseconds, while the target runs.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use libc::{c_int, timeval};
use nix::errno::Errno;

/// `kcmp` type: do two threads have the same descriptors?
const KCMP_FILES: libc::c_long = 2;

/// Which of a socket's two timeouts a call waits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// SO_RCVTIMEO.
    Receive,
    /// SO_SNDTIMEO.
    Send,
    /// SO_SNDTIMEO; the call makes a connection.
    Connect,
}

/// How long a call waits on a thread's descriptor, and with which errno it gives up; `None` if for ever, or hound cannot know.
pub(crate) fn timeout(pid: i32, tid: i32, descriptor: u64, which: Which) -> Option<(Duration, i32)> {
    let descriptor = descriptor as u32;
    let link = fs::read_link(format!("/proc/{pid}/task/{tid}/fd/{descriptor}")).ok()?;
    if !link.to_str()?.starts_with("socket:[") || !has_the_process_s_files(pid, tid) || !same_network_class(pid) {
        return None;
    }
    let own = duplicate(pid, descriptor)?;
    let option = if which == Which::Receive { libc::SO_RCVTIMEO } else { libc::SO_SNDTIMEO };
    let mut time = timeval { tv_sec: 0, tv_usec: 0 };
    // SAFETY: `time` is of the type this option has.
    unsafe { get(&own, option, &mut time) }?;
    let (seconds, micros) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_usec).ok()?);
    let time = Duration::new(seconds, micros.min(999_999) * 1000);
    let mut family: c_int = 0;
    // SAFETY: `family` is of the type this option has.
    unsafe { get(&own, libc::SO_DOMAIN, &mut family) }?;
    // connect(2): the connection is made on; a Unix socket has not begun any.
    let errno = if which == Which::Connect && family != libc::AF_UNIX { libc::EINPROGRESS } else { libc::EAGAIN };
    (time > Duration::ZERO).then_some((time, errno))
}

/// Reads an option.
///
/// # Safety
/// `T` must be the type of the option's value.
unsafe fn get<T>(socket: &OwnedFd, option: c_int, value: &mut T) -> Option<()> {
    let mut size = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` and `size` are live, and of the type and size this option has, as the caller promises.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_mut(value).cast(), &raw mut size) };
    (done == 0).then_some(())
}

/// Descriptors of a process are taken by its main thread's table.
fn has_the_process_s_files(pid: i32, tid: i32) -> bool {
    // SAFETY: kcmp with KCMP_FILES takes numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, libc::c_long::from(pid), libc::c_long::from(tid), KCMP_FILES, 0, 0) };
    Errno::result(order) == Ok(0)
}

/// A socket takes on the network class (control groups, version 1) of whoever is given a descriptor of it.
fn same_network_class(pid: i32) -> bool {
    let classes = |who: &str| -> Option<Vec<String>> {
        let text = fs::read_to_string(format!("/proc/{who}/cgroup")).ok()?;
        Some(text.lines().filter(|line| line.contains("net_cls") || line.contains("net_prio")).map(String::from).collect())
    };
    classes("self").is_some_and(|own| Some(own) == classes(&pid.to_string()))
}

fn duplicate(pid: i32, descriptor: u32) -> Option<OwnedFd> {
    // SAFETY: takes numbers only, and makes a new descriptor.
    let process = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).ok()?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    // SAFETY: takes numbers only, and makes a new descriptor.
    let own = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) }).ok()?;
    // SAFETY: as above.
    Some(unsafe { OwnedFd::from_raw_fd(own as i32) })
}
