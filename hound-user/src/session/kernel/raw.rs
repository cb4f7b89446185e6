//! The two system calls that aya has no words for: loading a program for a link of many probes, and making such a link.
#![expect(unsafe_code, reason = "system calls that no crate has")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya_obj::generated::bpf_insn;

/// `BPF_PROG_LOAD`
const PROG_LOAD: libc::c_int = 5;
/// `BPF_LINK_CREATE`
const LINK_CREATE: libc::c_int = 28;
/// `BPF_PROG_TYPE_KPROBE`, which uprobes have, too.
const KPROBE: u32 = 2;
/// Bytes for what the verifier has to say.
const LOG_BYTES: usize = 1 << 20;

/// What a program is loaded for. The numbers are the kernel's `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Attach {
    /// `BPF_TRACE_UPROBE_MULTI`: at the sites only.
    Multi = 48,
    /// `BPF_TRACE_UPROBE_SESSION`: at the sites, and at the return where the program wants it.
    Session = 57,
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE` with `uprobe_multi`.
#[repr(C)]
#[derive(Default)]
struct Create {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    counters: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are of the size that is told, and what they point to lives as long as the call.
    let made = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made this descriptor for us alone; the kernel sets close-on-exec on it.
    Ok(unsafe { OwnedFd::from_raw_fd(made as i32) })
}

/// Tries again what a signal has disturbed: the verifier gives up with EAGAIN when one arrives.
pub fn undisturbed<T, E>(mut attempt: impl FnMut() -> Result<T, E>, number: impl Fn(&E) -> Option<i32>) -> Result<T, E> {
    /// libbpf tries five times; a process that gets more signals than this while it loads has other troubles.
    const ATTEMPTS: usize = 50;
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if number(&error) == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    attempt()
}

/// Loads a program.
///
/// # Errors
/// The kernel's, with the end of what its verifier said, if anything.
pub fn load(name: &str, instructions: &[bpf_insn], license: &CStr, attach: Attach) -> Result<OwnedFd, (io::Error, String)> {
    let mut attributes = Load {
        kind: KPROBE,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        attach: attach as u32,
        ..Load::default()
    };
    for (to, from) in attributes.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    let first = match undisturbed(|| bpf(PROG_LOAD, &mut attributes), io::Error::raw_os_error) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    if first.raw_os_error() == Some(libc::EPERM) {
        return Err((first, String::new()));
    }
    // Again, for the verifier's words.
    let mut log = vec![0u8; LOG_BYTES];
    (attributes.log_level, attributes.log_size, attributes.log) = (1, LOG_BYTES as u32, log.as_mut_ptr() as u64);
    match undisturbed(|| bpf(PROG_LOAD, &mut attributes), io::Error::raw_os_error) {
        Ok(program) => Ok(program),
        Err(error) => {
            let text = CStr::from_bytes_until_nul(&log).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            Err((error, lines[lines.len().saturating_sub(40)..].join("\n")))
        }
    }
}

/// Puts a program at these offsets of a file, for one process.
///
/// # Errors
/// The kernel's.
pub fn link(program: BorrowedFd<'_>, attach: Attach, file: &CStr, offsets: &[u64], cookies: &[u64], pid: u32) -> io::Result<OwnedFd> {
    assert_eq!(offsets.len(), cookies.len(), "each site has a cookie");
    bpf(
        LINK_CREATE,
        &mut Create {
            program: program.as_raw_fd() as u32,
            attach: attach as u32,
            path: file.as_ptr() as u64,
            offsets: offsets.as_ptr() as u64,
            cookies: cookies.as_ptr() as u64,
            count: offsets.len() as u32,
            pid,
            ..Create::default()
        },
    )
}

/// Whether the kernel has such links at all: with a path that is no file it gets as far as the path (EBADF), or not (EINVAL).
pub fn has(program: BorrowedFd<'_>, attach: Attach) -> bool {
    matches!(link(program, attach, c"/", &[0], &[0], 0), Err(error) if error.raw_os_error() == Some(libc::EBADF))
}
