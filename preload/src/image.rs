//! What kind of file a process is about to execute: whether anything can be preloaded into it. Looked at only where the programs that a process begins
//! are recorded with it, and never behind a seccomp filter that was seen to come ([`crate::filters`]).

use core::ffi::{CStr, c_char};

use crate::elf;
use crate::sys::{self, syscall};

/// Where a function of the exec family has the program from.
#[derive(Clone, Copy)]
pub enum File {
    /// A path.
    Path(*const c_char),
    /// A name that is looked for in `PATH` if it has no slash.
    Searched(*const c_char),
    /// A descriptor.
    Descriptor(i32),
    /// A path that begins at a directory; the directory itself if it is empty.
    At(i32, *const c_char),
}

const PREAD: usize = 17;
const OPENAT: usize = 257;
const FSTAT: usize = 5;
const FGETXATTR: usize = 193;
const AT_FDCWD: i32 = -100;
/// Most of a file's head that is looked at, and the longest path that is.
const HEAD: usize = 512;
/// Scripts whose interpreters are scripts: so many the kernel allows.
const LEVELS: usize = 4;
const PROGRAM_HEADER: usize = 56;
const PT_INTERP: u32 = 3;

/// Whether the program has no loader, which is to say that it is a static one, or a loader itself. False where that is not known, and of
/// programs that change user: those would not, where somebody watches them.
pub fn has_no_loader(file: File) -> bool {
    let mut head = [0u8; HEAD];
    let Some(mut fd) = open(file, &mut head) else { return false };
    for _ in 0..LEVELS {
        let answer = look(fd, &mut head);
        sys::close(fd);
        match answer {
            Answer::Interpreter(start) => {
                let Some(next) = head.get(start..).and_then(|path| open_at(AT_FDCWD, path.as_ptr().cast())) else { return false };
                fd = next;
            }
            Answer::NoLoader => return true,
            Answer::Other => return false,
        }
    }
    sys::close(fd);
    false
}

enum Answer {
    /// A script; its interpreter's terminated path begins there.
    Interpreter(usize),
    NoLoader,
    Other,
}

fn open(file: File, room: &mut [u8; HEAD]) -> Option<i32> {
    match file {
        File::Path(path) => open_at(AT_FDCWD, path),
        // A copy: it is closed like the others.
        File::Descriptor(fd) => duplicate(fd),
        // SAFETY: a terminated string, as the function demands.
        File::At(fd, path) if path.is_null() || unsafe { path.read() } == 0 => duplicate(fd),
        File::At(fd, path) => open_at(fd, path),
        File::Searched(name) if name.is_null() => None,
        // SAFETY: a terminated string, as the function demands.
        File::Searched(name) => search(unsafe { CStr::from_ptr(name) }.to_bytes(), name, room),
    }
}

/// As the C libraries do: the first that can be executed.
fn search(name: &[u8], pointer: *const c_char, room: &mut [u8; HEAD]) -> Option<i32> {
    if name.contains(&b'/') {
        return open_at(AT_FDCWD, pointer);
    }
    let path = variable(b"PATH=").unwrap_or(b"/bin:/usr/bin");
    for folder in path.split(|byte| *byte == b':') {
        let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        if !hound_common::family::write(room, &[folder, slash, name]) {
            continue;
        }
        if sys::is_executable(room)
            && let Some(fd) = open_at(AT_FDCWD, room.as_ptr().cast())
        {
            return Some(fd);
        }
    }
    None
}

/// In the environment that the process has now.
fn variable(name: &[u8]) -> Option<&'static [u8]> {
    // SAFETY: null, or the C library's variable.
    let entries = *unsafe { elf::environ().as_ref() }?;
    if entries.is_null() {
        return None;
    }
    let entry = |index: usize| {
        // SAFETY: asked for in order, up to the null that ends an environment.
        let entry = unsafe { entries.wrapping_add(index).read() };
        // SAFETY: terminated strings, as an environment has.
        (!entry.is_null()).then(|| unsafe { CStr::from_ptr(entry) }.to_bytes())
    };
    (0..).map_while(entry).find_map(|text| text.strip_prefix(name))
}

fn open_at(folder: i32, path: *const c_char) -> Option<i32> {
    /// O_RDONLY, and not to wait for the other end of a pipe, become its terminal, or be had by what is begun.
    const FLAGS: usize = 0o4000 | 0o400 | 0o2_000_000;
    // SAFETY: the kernel reads a terminated string; a bad one is answered with EFAULT.
    let fd = unsafe { syscall(OPENAT, [folder as usize, path as usize, FLAGS, 0, 0, 0]) };
    (fd >= 0).then_some(fd as i32)
}

fn duplicate(fd: i32) -> Option<i32> {
    const FCNTL: usize = 72;
    const F_DUPFD_CLOEXEC: usize = 1030;
    // SAFETY: takes numbers, and makes a new descriptor.
    let copy = unsafe { syscall(FCNTL, [fd as usize, F_DUPFD_CLOEXEC, 0, 0, 0, 0]) };
    (copy >= 0).then_some(copy as i32)
}

fn look(fd: i32, head: &mut [u8; HEAD]) -> Answer {
    if !is_plain(fd) || read(fd, head, 0) < 4 {
        return Answer::Other;
    }
    if head.starts_with(b"#!") {
        let line = head.iter().position(|byte| *byte == b'\n').unwrap_or(HEAD - 1);
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
        let Some(start) = head.iter().take(line).skip(2).position(|byte| !is_space(byte)).map(|at| at + 2) else { return Answer::Other };
        let end = head.iter().take(line).skip(start).position(is_space).map_or(line, |length| start + length);
        if let Some(byte) = head.get_mut(end) {
            *byte = 0;
        }
        return Answer::Interpreter(start);
    }
    const X86_64: [u8; 2] = [62, 0];
    if !head.starts_with(b"\x7fELF\x02") || head.get(18..20) != Some(&X86_64) || number(head, 54, 2) != PROGRAM_HEADER {
        return Answer::Other;
    }
    let (table, count) = (number(head, 32, 8), number(head, 56, 2));
    for index in 0..count {
        let mut kind = [0; 4];
        if read(fd, &mut kind, table + index * PROGRAM_HEADER) != 4 || u32::from_le_bytes(kind) == PT_INTERP {
            return Answer::Other;
        }
    }
    if count == 0 { Answer::Other } else { Answer::NoLoader }
}

/// Whether it is a file whose execution changes neither user nor group nor rights.
fn is_plain(fd: i32) -> bool {
    const TYPE: u32 = 0o170_000;
    const REGULAR: u32 = 0o100_000;
    const SET_ID: u32 = 0o6000;
    /// `struct stat` has 144 bytes; its `st_mode` is there.
    const MODE: usize = 24;
    let mut status = [0u8; 144];
    // SAFETY: the kernel writes as much as there is room for.
    let known = unsafe { syscall(FSTAT, [fd as usize, status.as_mut_ptr() as usize, 0, 0, 0, 0]) } == 0;
    let mode = number(&status, MODE, 4) as u32;
    if !known || mode & TYPE != REGULAR || mode & SET_ID != 0 {
        return false;
    }
    // SAFETY: a terminated name; nothing is written, only the length is asked for.
    let rights = unsafe { syscall(FGETXATTR, [fd as usize, c"security.capability".as_ptr() as usize, 0, 0, 0, 0]) };
    rights < 0
}

fn read(fd: i32, to: &mut [u8], at: usize) -> usize {
    // SAFETY: the kernel writes as much as there is room for.
    let got = unsafe { syscall(PREAD, [fd as usize, to.as_mut_ptr() as usize, to.len(), at, 0, 0]) };
    usize::try_from(got).unwrap_or(0)
}

fn number(bytes: &[u8], at: usize, length: usize) -> usize {
    bytes.iter().skip(at).take(length).rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
}
