//! Seccomp filters that come while the program runs. What asking hound takes may be forbidden by one, on pain of death; so nothing is asked
//! any more, and programs that are begun are not shown the way to hound, whose library would ask behind the filter that it is given as well.
//! (A filter that was there before is known to let it pass, for this program has asked.)

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::{elf, process, real, sys};

pub const PR_SET_SECCOMP: u32 = 22;
pub const SECCOMP: u32 = 317;
pub const PRCTL: u32 = 157;
/// Of the operations of `seccomp` up to this one set a filter; the others ask.
pub const LAST_TO_SET: u32 = 1;

/// How many came, or are just coming.
static FILTERS: AtomicU32 = AtomicU32::new(0);

/// Whether one came.
pub fn came() -> bool {
    FILTERS.load(Ordering::Relaxed) != 0
}

/// Makes a call that sets a filter. One that fails (-1) has set none. It counts from before it is there, for no thread that is under it may ask.
pub fn set(call: impl FnOnce() -> isize) -> isize {
    FILTERS.fetch_add(1, Ordering::SeqCst);
    let result = call();
    if result == -1 {
        FILTERS.fetch_sub(1, Ordering::SeqCst);
    }
    result
}

/// Hook of `prctl`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl() {
    naked_asm!(
        "cmp edi, {set_seccomp}",
        "jne 2f",
        "test rdx, rdx", // without a filter it is a question whether there may be one
        "jnz {sets}",
        "2:",
        "mov r11, qword ptr [rip + {real}]",
        "test r11, r11",
        "jz {prctl}",
        "jmp r11",
        set_seccomp = const PR_SET_SECCOMP,
        sets = sym sets_by_prctl,
        real = sym real::prctl::ADDRESS,
        prctl = sym prctl_early_or_not,
    )
}

/// Hook of `syscall`: libraries for filters make the calls by it.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    naked_asm!(
        "cmp edi, {seccomp}",
        "je 2f",
        "cmp edi, {prctl}",
        "jne 4f",
        "cmp esi, {set_seccomp}",
        "je 3f",
        "jmp 4f",
        "2:",
        "cmp esi, {last_to_set}",
        "ja 4f",
        "3:",
        "test rcx, rcx",
        "jnz {sets}",
        "4:",
        "mov r11, qword ptr [rip + {real}]",
        "test r11, r11",
        "jz {syscall}",
        "jmp r11",
        seccomp = const SECCOMP,
        prctl = const PRCTL,
        set_seccomp = const PR_SET_SECCOMP,
        last_to_set = const LAST_TO_SET,
        sets = sym sets_by_syscall,
        real = sym real::syscall::ADDRESS,
        syscall = sym syscall_early_or_not,
    )
}

#[cold]
extern "C" fn sets_by_prctl(option: i32, a: usize, b: usize, c: usize, d: usize) -> i32 {
    set(|| prctl_early_or_not(option, a, b, c, d) as isize) as i32
}

#[cold]
extern "C" fn sets_by_syscall(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    set(|| syscall_early_or_not(number, a, b, c, d, e, f))
}

/// A library whose initialiser runs before ours calls it before anything has started this one.
#[cold]
extern "C" fn prctl_early_or_not(option: i32, a: usize, b: usize, c: usize, d: usize) -> i32 {
    if real::prctl::get().is_none() {
        process::ready();
    }
    match real::prctl::get() {
        // SAFETY: the caller's own call, passed on.
        Some(real) => unsafe { real(option, a, b, c, d) },
        None => raw(PRCTL as usize, [option as usize, a, b, c, d, 0]) as i32,
    }
}

/// The same.
#[cold]
extern "C" fn syscall_early_or_not(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    if real::syscall::get().is_none() {
        process::ready();
    }
    match real::syscall::get() {
        // SAFETY: the caller's own call, passed on.
        Some(real) => unsafe { real(number, a, b, c, d, e, f) },
        None => raw(number, [a, b, c, d, e, f]),
    }
}

/// As a C library makes a system call.
fn raw(number: usize, arguments: [usize; 6]) -> isize {
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { sys::syscall(number, arguments) };
    if (-4095..0).contains(&result) {
        elf::set_errno(-result as i32);
        return -1;
    }
    result
}
