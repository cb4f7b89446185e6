//! What a program forbids itself while it runs, on pain of death.
//!
//! A seccomp filter may forbid what asking hound takes; so nothing is asked any more, and programs that are begun are not shown the way to
//! hound, whose library would ask behind the filter that it is given as well. (A filter that was there before is known to let it pass, for
//! this program has asked.) Without the TSC, which strict seccomp takes away as well, nothing can be recorded: the library bows out.

use core::arch::naked_asm;
use core::sync::atomic::{AtomicU32, Ordering};

use hound_common::ring::OUT_NO_CLOCK;

use crate::{attached, clock, elf, family, process, real, sys};

pub const PR_SET_SECCOMP: u32 = 22;
pub const PR_SET_TSC: u32 = 26;
pub const SECCOMP: u32 = 317;
pub const PRCTL: u32 = 157;
const PR_TSC_SIGSEGV: u32 = 2;
const SECCOMP_MODE_STRICT: usize = 1;
const SECCOMP_SET_MODE_STRICT: usize = 0;
const SECCOMP_SET_MODE_FILTER: usize = 1;

/// What a call that may do so forbids.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Forbids {
    Nothing,
    /// A filter says what.
    Some,
    /// The TSC, too.
    Clock,
}

/// What `prctl` called so forbids.
pub fn by_prctl(option: usize, value: usize, filter: usize) -> Forbids {
    match option as u32 {
        PR_SET_TSC if value as u32 == PR_TSC_SIGSEGV => Forbids::Clock,
        PR_SET_SECCOMP if value == SECCOMP_MODE_STRICT => Forbids::Clock,
        PR_SET_SECCOMP if filter != 0 => Forbids::Some, // without one it is a question whether there may be one
        _ => Forbids::Nothing,
    }
}

/// What `syscall` called so forbids.
pub fn by_syscall(number: usize, first: usize, second: usize, third: usize) -> Forbids {
    match (number as u32, first) {
        (PRCTL, option) => by_prctl(option, second, third),
        (SECCOMP, SECCOMP_SET_MODE_STRICT) => Forbids::Clock,
        (SECCOMP, SECCOMP_SET_MODE_FILTER) if third != 0 => Forbids::Some,
        _ => Forbids::Nothing,
    }
}

/// How many calls forbade something, or are just about to.
static FILTERS: AtomicU32 = AtomicU32::new(0);

/// Whether one did.
pub fn came() -> bool {
    FILTERS.load(Ordering::Relaxed) != 0
}

/// Makes a call that forbids something. One that fails (-1) does not. It counts from before it is made, for no thread that is under a filter
/// may ask.
#[cold]
pub fn make(forbids: Forbids, call: impl FnOnce() -> isize) -> isize {
    if forbids == Forbids::Nothing {
        return call();
    }
    // The child of a fork that has recorded nothing does not begin with this; that of a vfork must not end its parent's recording. (What
    // forbids some calls already may forbid this question.)
    let is_recorded = if attached::is_mapped() { attached::is_target() && process::ready() } else { process::is_target() };
    let is_borrowed = is_recorded && !came() && process::control().target_pid.load(Ordering::Relaxed) != sys::getpid();
    FILTERS.fetch_add(1, Ordering::SeqCst);
    let result = call();
    if result == -1 {
        FILTERS.fetch_sub(1, Ordering::SeqCst);
        return result;
    }
    if forbids == Forbids::Some {
        // Libc's own functions begin programs, too. (Without the TSC none gets through its loader.)
        family::leave_environment();
    } else if !is_borrowed {
        clock::use_none();
        if is_recorded {
            process::bow_out(OUT_NO_CLOCK);
        }
    }
    result
}

/// Hook of `prctl`.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prctl() {
    naked_asm!(
        "cmp edi, {set_seccomp}",
        "je {sets}",
        "cmp edi, {set_tsc}",
        "je {sets}",
        "mov r11, qword ptr [rip + {real}]",
        "test r11, r11",
        "jz {prctl}",
        "jmp r11",
        set_seccomp = const PR_SET_SECCOMP,
        set_tsc = const PR_SET_TSC,
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
        "je {sets}",
        "cmp edi, {prctl}",
        "je {sets}",
        "mov r11, qword ptr [rip + {real}]",
        "test r11, r11",
        "jz {syscall}",
        "jmp r11",
        seccomp = const SECCOMP,
        prctl = const PRCTL,
        sets = sym sets_by_syscall,
        real = sym real::syscall::ADDRESS,
        syscall = sym syscall_early_or_not,
    )
}

#[cold]
extern "C" fn sets_by_prctl(option: i32, a: usize, b: usize, c: usize, d: usize) -> i32 {
    make(by_prctl(option as usize, a, b), || prctl_early_or_not(option, a, b, c, d) as isize) as i32
}

#[cold]
extern "C" fn sets_by_syscall(number: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    make(by_syscall(number, a, b, c), || syscall_early_or_not(number, a, b, c, d, e, f))
}

/// Functions of libc's that begin a program with the process' own environment, by no function that is hooked: that one is not recorded where
/// something is forbidden.
macro_rules! shells {
    ($($(#[$doc:meta])* $name:ident),*) => {
        $(
            $(#[$doc])*
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name() {
                naked_asm!(
                    "cmp dword ptr [rip + {filters}], 0",
                    "jne 2f",
                    "mov r11, qword ptr [rip + {real}]",
                    "test r11, r11",
                    "jz 2f",
                    "jmp r11",
                    "2:",
                    "push rdi", "push rsi", "sub rsp, 8",
                    "call {note}",
                    "add rsp, 8", "pop rsi", "pop rdi",
                    "mov r11, qword ptr [rip + {real}]",
                    "test r11, r11",
                    "jz 3f",
                    "jmp r11",
                    "3:",
                    "xor eax, eax", // a libc without the function: only a program that asks for it by name gets here
                    "ret",
                    filters = sym FILTERS,
                    real = sym real::$name::ADDRESS,
                    note = sym shell_begins,
                )
            }
        )*
    };
}

shells!(/** Hook of `system`. */ system, /** Hook of `popen`. */ popen);

/// Without a command `system` only tells whether there is a shell.
#[cold]
extern "C" fn shell_begins(command: *const core::ffi::c_char) {
    if process::ready() && came() && family::is_known() && !command.is_null() {
        process::count_unrecorded();
    }
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
