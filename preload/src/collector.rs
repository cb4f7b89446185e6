//! Starting `hound collect` for a target that was started with plain `LD_PRELOAD=libhound.so`.
//!
//! The collector must not be a child that the target can wait for. Normally the target's child forks the collector and ends, so that the
//! collector becomes a child of the system. Where the target itself adopts orphans (process 1 of a container, a subreaper) that would make
//! it the target's child after all: there the child stays as the collector's parent. It has no exit signal, so an ordinary wait does not
//! see it.

use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering;

use hound_common::ring::{Control, LIBRARY_OUT};

use crate::elf;
use crate::environment::Environment;
use crate::sys::{self, syscall};

const CLONE: usize = 56;
const EXECVE: usize = 59;
const FCNTL: usize = 72;
const EXIT: usize = 60;
const WAIT4: usize = 61;
const SETSID: usize = 112;
const PRCTL: usize = 157;
const DUP2: usize = 33;
const OPEN: usize = 2;
const CLOSE_RANGE: usize = 436;
const RT_SIGPROCMASK: usize = 14;

const PATH_BYTES: usize = 4096;
/// The descriptor under which the collector finds the ring.
const RING_FD: usize = 3;

/// Starts the collector beside this library and hands it the ring. False if there is none to start.
pub fn start(fd: i32, control: &Control, pid: u32, environment: &mut Environment, own_dynamic: u64) -> bool {
    let mut path = [0u8; PATH_BYTES];
    if !collector_path(own_dynamic, &mut path) {
        return false;
    }
    // A short program may be gone before the collector can ask what it was.
    let mut program = [0u8; PATH_BYTES];
    if let Some(place) = program.get_mut(..PATH_BYTES - 1) {
        sys::executable(place);
    }
    let mut digits = [0u8; 12];
    decimal(pid, &mut digits);
    let adopts = pid == 1 || is_subreaper();
    // SAFETY: a plain fork without exit signal; the child only makes system calls on memory prepared before.
    let child = unsafe { syscall(CLONE, [0; 6]) };
    if child == 0 {
        in_child(fd, control, [&path, &program], &digits, environment, adopts);
    }
    if child < 0 {
        return false;
    }
    if !adopts {
        const WALL: usize = 0x4000_0000;
        // SAFETY: our own child, which ends at once.
        unsafe { syscall(WAIT4, [child as usize, 0, WALL, 0, 0, 0]) };
    }
    true
}

fn in_child(
    fd: i32,
    control: &Control,
    [path, program]: [&[u8; PATH_BYTES]; 2],
    pid: &[u8; 12],
    environment: &mut Environment,
    stay: bool,
) -> ! {
    // In this process' memory alone.
    environment.hide_preload();
    // SAFETY: system calls of a process of our own; all pointers are to live memory.
    unsafe { syscall(SETSID, [0; 6]) };
    let unblocked = 0u64;
    const SIG_SETMASK: usize = 2;
    // SAFETY: as above. The collector must not inherit a blocked SIGTERM.
    unsafe { syscall(RT_SIGPROCMASK, [SIG_SETMASK, &raw const unblocked as usize, 0, 8, 0, 0]) };
    // SAFETY: as above. The ring moves to a descriptor that is not the target's standard streams.
    unsafe { syscall(DUP2, [fd as usize, RING_FD, 0, 0, 0, 0]) };
    const F_SETFD: usize = 2;
    // SAFETY: as above. Where the ring had that number already, it would still be closed at exec.
    unsafe { syscall(FCNTL, [RING_FD, F_SETFD, 0, 0, 0, 0]) };
    // SAFETY: as above. Descriptors held open here would keep the target's pipes from ending.
    unsafe { syscall(CLOSE_RANGE, [RING_FD + 1, usize::MAX & 0xffff_ffff, 0, 0, 0, 0]) };
    for standard in 0..RING_FD {
        const O_RDWR: usize = 2;
        // SAFETY: as above.
        let null = unsafe { syscall(OPEN, [c"/dev/null".as_ptr() as usize, O_RDWR, 0, 0, 0, 0]) };
        if null >= 0 && null as usize != standard {
            // SAFETY: as above.
            unsafe { syscall(DUP2, [null as usize, standard, 0, 0, 0, 0]) };
            // SAFETY: as above.
            unsafe { syscall(sys::CLOSE, [null as usize, 0, 0, 0, 0, 0]) };
        }
    }
    // SAFETY: a fork, as in `start`.
    let collector = unsafe { syscall(CLONE, [0; 6]) };
    if collector == 0 {
        let arguments: [*const c_char; 9] = [
            path.as_ptr().cast(),
            c"collect".as_ptr(),
            c"--ring-fd".as_ptr(),
            c"3".as_ptr(),
            c"--pid".as_ptr(),
            pid.as_ptr().cast(),
            c"--program".as_ptr(),
            program.as_ptr().cast(),
            core::ptr::null(),
        ];
        // SAFETY: terminated arrays of terminated strings.
        unsafe { syscall(EXECVE, [path.as_ptr() as usize, arguments.as_ptr() as usize, environment.pointer() as usize, 0, 0, 0]) };
        // There is no collector, so there will be no capture: the target must not wait for one.
        control.library.store(LIBRARY_OUT, Ordering::Release);
        control.change(false);
    } else if stay && collector > 0 {
        const WALL: usize = 0x4000_0000;
        // SAFETY: our own descriptor and child.
        unsafe { syscall(CLOSE_RANGE, [0, usize::MAX & 0xffff_ffff, 0, 0, 0, 0]) };
        // SAFETY: as above.
        unsafe { syscall(WAIT4, [collector as usize, 0, WALL, 0, 0, 0]) };
    }
    loop {
        // SAFETY: ends this child.
        unsafe { syscall(EXIT, [0; 6]) };
    }
}

fn is_subreaper() -> bool {
    const PR_GET_CHILD_SUBREAPER: usize = 37;
    let mut answer = 0i32;
    // SAFETY: the kernel stores an int there.
    unsafe { syscall(PRCTL, [PR_GET_CHILD_SUBREAPER, &raw mut answer as usize, 0, 0, 0, 0]) };
    answer != 0
}

/// `hound` in the folder of this library.
fn collector_path(own_dynamic: u64, path: &mut [u8; PATH_BYTES]) -> bool {
    let Some(own) = elf::modules().find(|m| m.dynamic_avma() == own_dynamic) else { return false };
    let name = own.name();
    let folder = name.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let Some(folder) = name.get(..folder) else { return false };
    // Side by side as built, or installed as lib/hound/libhound.so and bin/hound.
    [c"hound", c"../../bin/hound"].into_iter().any(|tool| place_path(folder, tool, path) && sys::is_executable(path))
}

fn place_path(folder: &[u8], tool: &CStr, path: &mut [u8; PATH_BYTES]) -> bool {
    let Some(target) = path.get_mut(..folder.len() + tool.to_bytes_with_nul().len()) else { return false };
    for (place, byte) in target.iter_mut().zip(folder.iter().chain(tool.to_bytes_with_nul())) {
        *place = *byte;
    }
    true
}

fn decimal(mut number: u32, text: &mut [u8; 12]) {
    let mut digits = [0u8; 10];
    let mut count = 0;
    for digit in digits.iter_mut() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        count += 1;
        if number == 0 {
            break;
        }
    }
    let written = digits.get(..count).unwrap_or(&[]);
    for (place, digit) in text.iter_mut().zip(written.iter().rev()) {
        *place = *digit;
    }
}
