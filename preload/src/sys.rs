//! System calls and the memory functions the compiler asks for, without libc.
//!
//! Only these system calls are made after start-up, all of them ones that an allocator makes too (a seccomp filter installed later must
//! not kill): `mmap`, `munmap` and `futex`; and `getpid` where the program itself calls an exec function. The others are for start-up, and where the
//! programs that it begins are recorded too, for its exec functions, unless a filter was seen to come.

use core::arch::{asm, global_asm};

use hound_common::ring::LAUNCH_NAME;

use crate::signals::Action;

const MMAP: usize = 9;
const MUNMAP: usize = 11;
/// Number of the `close` system call.
pub const CLOSE: usize = 3;
const MADVISE: usize = 28;
const GETPID: usize = 39;
const FCNTL: usize = 72;
const FTRUNCATE: usize = 77;
const RT_SIGACTION: usize = 13;
const FUTEX: usize = 202;
const MEMFD_CREATE: usize = 319;

/// Makes a system call with up to six arguments. Negative results are −errno; errno itself is untouched, it is libc's.
///
/// # Safety
/// As the call made.
#[inline(always)]
pub unsafe fn syscall(number: usize, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel's calling convention; what the call itself does is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE_ANONYMOUS_NORESERVE: usize = 0x4022;
const MADV_DONTDUMP: usize = 16;
const MADV_WIPEONFORK: usize = 18;

/// New zeroed private memory. With `wipe_on_fork`, it is zero again in the child of a fork: that is how a child is noticed.
pub fn map_private(bytes: usize, wipe_on_fork: bool) -> Option<*mut u8> {
    // SAFETY: an anonymous mapping at an address the kernel chooses touches nothing that exists.
    let result = unsafe { syscall(MMAP, [0, bytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_NORESERVE, usize::MAX, 0]) };
    if result < 0 {
        return None;
    }
    if wipe_on_fork {
        // SAFETY: advice about the mapping just made.
        let advised = unsafe { syscall(MADVISE, [result as usize, bytes, MADV_WIPEONFORK, 0, 0, 0]) };
        if advised < 0 {
            // Without it (before Linux 4.14) a forked child would write into its parent's ring.
            // SAFETY: nobody knows the mapping yet.
            unsafe { unmap(result as *mut u8, bytes) };
            return None;
        }
    }
    Some(result as *mut u8)
}

/// Maps `bytes` of the file behind `fd`, shared. Core dumps leave it out: they would touch all of it.
pub fn map_shared(fd: i32, bytes: usize) -> Option<*mut u8> {
    // SAFETY: a mapping at an address the kernel chooses touches nothing that exists.
    let result = unsafe { syscall(MMAP, [0, bytes, PROT_READ_WRITE, MAP_SHARED, fd as usize, 0]) };
    if result < 0 {
        return None;
    }
    // SAFETY: advice about the mapping just made; where it is not taken, dumps are larger.
    let _ = unsafe { syscall(MADVISE, [result as usize, bytes, MADV_DONTDUMP, 0, 0, 0]) };
    Some(result as *mut u8)
}

/// Takes a mapping away.
///
/// # Safety
/// Nobody may use it any more.
pub unsafe fn unmap(addr: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { syscall(MUNMAP, [addr as usize, bytes, 0, 0, 0, 0]) };
}

/// Closes a descriptor of ours.
pub fn close(fd: i32) {
    // SAFETY: closing touches no memory; the descriptor is ours.
    unsafe { syscall(CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// The process id.
pub fn getpid() -> u32 {
    // SAFETY: no arguments, no effects.
    unsafe { syscall(GETPID, [0; 6]) as u32 }
}

/// The calling thread's id.
pub fn gettid() -> u32 {
    const GETTID: usize = 186;
    // SAFETY: no arguments, no effects.
    unsafe { syscall(GETTID, [0; 6]) as u32 }
}

/// Whether the file at a terminated path can be executed.
pub fn is_executable(path: &[u8]) -> bool {
    const ACCESS: usize = 21;
    const X_OK: usize = 1;
    // SAFETY: the path is terminated inside its buffer, as the caller has made it.
    unsafe { syscall(ACCESS, [path.as_ptr() as usize, X_OK, 0, 0, 0, 0]) == 0 }
}

/// The executable's path, as much of it as fits.
pub fn executable(path: &mut [u8]) -> usize {
    const READLINK: usize = 89;
    // SAFETY: the kernel writes at most the buffer's length into it.
    let length = unsafe { syscall(READLINK, [c"/proc/self/exe".as_ptr() as usize, path.as_mut_ptr() as usize, path.len(), 0, 0, 0]) };
    usize::try_from(length).unwrap_or(0)
}

/// Whether a file may become as large as this: one that grows beyond what is allowed ends the process by SIGXFSZ.
fn may_grow_to(bytes: usize) -> bool {
    const PRLIMIT64: usize = 302;
    const RLIMIT_FSIZE: usize = 1;
    let mut limit = [0u64; 2];
    // SAFETY: the kernel writes two words, for this process.
    let got = unsafe { syscall(PRLIMIT64, [0, RLIMIT_FSIZE, 0, (&raw mut limit) as usize, 0, 0]) };
    got == 0 && limit[0] >= bytes as u64
}

/// A memfd of this size that nobody can resize.
pub fn sealed_memfd(bytes: usize) -> Option<i32> {
    if !may_grow_to(bytes) {
        return None;
    }
    const CLOEXEC_ALLOW_SEALING: usize = 3;
    const F_ADD_SEALS: usize = 1033;
    const SEAL_SHRINK_GROW_SEAL: usize = 2 | 4 | 1;
    // SAFETY: the name is a terminated string; the call makes a new descriptor.
    let fd = unsafe { syscall(MEMFD_CREATE, [LAUNCH_NAME.as_ptr() as usize, CLOEXEC_ALLOW_SEALING, 0, 0, 0, 0]) };
    if fd < 0 {
        return None;
    }
    // SAFETY: our own descriptor.
    let sized = unsafe { syscall(FTRUNCATE, [fd as usize, bytes, 0, 0, 0, 0]) };
    // SAFETY: our own descriptor.
    let sealed = unsafe { syscall(FCNTL, [fd as usize, F_ADD_SEALS, SEAL_SHRINK_GROW_SEAL, 0, 0, 0]) };
    if sized < 0 || sealed < 0 {
        close(fd as i32);
        return None;
    }
    Some(fd as i32)
}

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// What is done on a signal, and from now on; at the start only.
pub fn signal_action(signal: i32, new: Option<&Action>) -> Option<Action> {
    let mut old = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let new = new.map_or(0, |new| &raw const *new as usize);
    // SAFETY: the kernel reads one live object, and writes the other.
    let result = unsafe { syscall(RT_SIGACTION, [signal as usize, new, &raw mut old as usize, size_of::<u64>(), 0, 0]) };
    (result == 0).then_some(old)
}

const FUTEX_WAIT: usize = 0;
const FUTEX_WAIT_PRIVATE: usize = 128;

/// Waits until `word` is no longer `value` and somebody says so, or for a millisecond.
pub fn futex_wait_1ms(word: &core::sync::atomic::AtomicU32, value: u32) {
    let timeout = Timespec { seconds: 0, nanoseconds: 1_000_000 };
    // SAFETY: both pointers are to live objects; the kernel only reads them.
    unsafe { syscall(FUTEX, [word.as_ptr() as usize, FUTEX_WAIT, value as usize, &raw const timeout as usize, 0, 0]) };
}

/// Whether the four bytes at `addr` can be read, found out without reading them here: the kernel compares the word for a futex wait that
/// ends at once. Of the calls an allocator makes it is the only one that tells, and the only one without an effect.
pub fn is_readable(addr: u64) -> bool {
    const EFAULT: isize = -14;
    const EINTR: isize = -4;
    let timeout = Timespec { seconds: 0, nanoseconds: 0 };
    for _ in 0..8 {
        // SAFETY: a bad address is answered with EFAULT; the timeout is a live object.
        let result = unsafe { syscall(FUTEX, [addr as usize & !3, FUTEX_WAIT_PRIVATE, 0x5ca1_ab1e, &raw const timeout as usize, 0, 0]) };
        if result != EINTR {
            return result != EFAULT;
        }
    }
    false
}

/// The calling thread's thread pointer.
#[inline(always)]
pub fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: on x86-64 the thread control block starts with a pointer to itself (ELF TLS ABI, variant II).
    unsafe { asm!("mov {}, fs:[0]", out(reg) pointer, options(nostack, readonly, preserves_flags)) };
    pointer
}

// The compiler may call these for copies it does not expand. They are local to the library: exporting them would replace the target's.
// None is on the path of an event.
global_asm!(
    ".macro hound_local name",
    ".hidden \\name",
    ".globl \\name",
    ".type \\name, @function",
    "\\name:",
    ".endm",
    ".text",
    "hound_local memcpy",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "hound_local memmove",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2:",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "hound_local memset",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "hound_local bcmp",
    "hound_local memcmp",
    "xor ecx, ecx",
    "3:",
    "cmp rcx, rdx",
    "je 4f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "je 3b",
    "ret",
    "4:",
    "xor eax, eax",
    "ret",
    "hound_local strlen",
    "xor eax, eax",
    "5:",
    "cmp byte ptr [rdi + rax], 0",
    "je 6f",
    "inc rax",
    "jmp 5b",
    "6:",
    "ret",
);
