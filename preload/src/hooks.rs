//! The hooks: the exported functions in the place of the allocator's.
//!
//! Each export is a few instructions that hand its body two more arguments, where the return address lies and bp, and jump there: the
//! body returns straight to the caller. No lock is held and nothing is changed while the real function runs.

use core::arch::naked_asm;
use core::ffi::c_void;

use hound_common::event::tag;
use hound_common::hook::Kind;
use hound_common::ring::STATE_RECORDING;

use crate::record::{self, Caller, Draw, Glance, Resize};
use crate::{api, clock, family, modules, process, real, rows, samples, stack, thread, usual};

/// The real function; found now if this is the first call of all.
macro_rules! real {
    ($name:ident) => {
        match real::$name::get() {
            Some(function) => Some(function),
            None => {
                process::ready();
                real::$name::get()
            }
        }
    };
}

/// Exports `$name` as a jump to `$body` with the caller's slot and bp as arguments `$slot` and `$bp`.
macro_rules! export {
    ($(#[$doc:meta])* $name:ident => $body:path, $slot:literal, $bp:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                concat!("mov ", $slot, ", rsp"),
                concat!("mov ", $bp, ", rbp"),
                "test spl, 8",
                "jz 2f",
                "jmp {body}",
                // The caller's stack is misaligned. The allocator itself would not mind; compiled Rust would, and must not be what breaks.
                "2:",
                ".cfi_startproc",
                "call {body}", // one more return address on the stack aligns it
                "ret",
                ".cfi_endproc",
                body = sym $body
            )
        }
    };
}

export!(/** Hook of `malloc`. */ malloc => malloc_body, "rsi", "rdx");
export!(/** Hook of `calloc`. */ calloc => calloc_body, "rdx", "rcx");
export!(/** Hook of `realloc`. */ realloc => realloc_body, "rdx", "rcx");
export!(/** Hook of `reallocarray`. */ reallocarray => reallocarray_body, "rcx", "r8");
export!(/** Hook of `posix_memalign`. */ posix_memalign => posix_memalign_body, "rcx", "r8");
export!(/** Hook of `memalign`. */ memalign => memalign_body, "rdx", "rcx");
export!(/** Hook of `fork`. */ fork => fork_body, "rdi", "rsi");
export!(/** Hook of `aligned_alloc`. */ aligned_alloc => aligned_alloc_body, "rdx", "rcx");
export!(/** Hook of `valloc`. */ valloc => valloc_body, "rsi", "rdx");
export!(/** Hook of `pvalloc`. */ pvalloc => pvalloc_body, "rsi", "rdx");
export!(/** Hook of `free`. */ free => free_body, "rsi", "rdx");
export!(/** Hook of `free_sized`. */ free_sized => free_sized_body, "rdx", "rcx");
export!(/** Hook of `free_aligned_sized`. */ free_aligned_sized => free_aligned_sized_body, "rcx", "r8");
export!(/** Hook of `cfree`. */ cfree => cfree_body, "rsi", "rdx");
export!(/** Hook of `munmap`. */ munmap => munmap_body, "rdx", "rcx");
export!(/** Sets a marker in the capture. */ memory_profiler_set_marker => api::set_marker, "rsi", "rdx");

/// Exports a function of five or six arguments: the two more go over the stack, as a C call has them.
macro_rules! export_wide {
    ($(#[$doc:meta])* $name:ident => $body:path) => {
        $(#[$doc])*
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc", "mov rax, rsp", "sub rsp, 8", ".cfi_adjust_cfa_offset 8", "push rbp", ".cfi_adjust_cfa_offset 8", "push rax",
                ".cfi_adjust_cfa_offset 8", "call {body}", "add rsp, 24", ".cfi_adjust_cfa_offset -24", "ret", ".cfi_endproc",
                body = sym $body
            )
        }
    };
}

export_wide!(/** Hook of `mmap`. */ mmap => mmap_body);
export_wide!(/** Hook of `mmap64`. */ mmap64 => mmap_body);
export_wide!(/** Hook of `mremap`. */ mremap => mremap_body);

/// Bodies for a function that returns a block. `$body` looks whether the block is passed over; nothing else is in it, and every way out of
/// it is a jump, so that it keeps nothing on the stack. `$every` calls the real function and records what it returned, `$sampled` does so
/// for a block that may be sampled.
macro_rules! alloc_body {
    ($body:ident, $every:ident, $sampled:ident, $name:ident, $kind:expr, ($($arg:ident),*), $size:expr) => {
        unsafe extern "C" fn $body($($arg: usize,)* slot: u64, bp: u64) -> *mut c_void {
            match record::glance(thread::local(), $size) {
                Glance::Passed if let Some(real) = real::$name::get() => {
                    // SAFETY: the caller's own call, passed on.
                    unsafe { real($($arg),*) }
                }
                Glance::Reached(state) => {
                    // SAFETY: as above.
                    unsafe { $sampled($($arg,)* slot, bp, state) }
                }
                _ => {
                    // SAFETY: as above.
                    unsafe { $every($($arg,)* slot, bp) }
                }
            }
        }

        #[inline(never)]
        unsafe extern "C" fn $every($($arg: usize,)* slot: u64, bp: u64) -> *mut c_void {
            let Some(real) = real!($name) else { return core::ptr::null_mut() };
            rows::prefetch(Caller { slot, bp }.ra());
            // SAFETY: the caller's own call, passed on.
            let block = unsafe { real($($arg),*) };
            if usual::alloc(Caller { slot, bp }, $kind, block, $size) {
                return block;
            }
            allocated(block, $size, slot, bp, $kind)
        }

        #[cold]
        #[inline(never)]
        unsafe extern "C" fn $sampled($($arg: usize,)* slot: u64, bp: u64, state: u64) -> *mut c_void {
            let draw = record::reached(thread::local(), $size, state);
            let Some(real) = real!($name) else { return core::ptr::null_mut() };
            // SAFETY: the caller's own call, passed on.
            let block = unsafe { real($($arg),*) };
            record::sampled(Caller { slot, bp }, $kind, block, $size, draw);
            block
        }
    };
}

alloc_body!(malloc_body, malloc_every, malloc_sampled, malloc, Kind::Malloc, (size), size);
alloc_body!(calloc_body, calloc_every, calloc_sampled, calloc, Kind::Calloc, (count, size), count.wrapping_mul(size));
alloc_body!(memalign_body, memalign_every, memalign_sampled, memalign, Kind::Memalign, (align, size), size);
alloc_body!(aligned_alloc_body, aligned_alloc_every, aligned_alloc_sampled, aligned_alloc, Kind::AlignedAlloc, (align, size), size);
alloc_body!(valloc_body, valloc_every, valloc_sampled, valloc, Kind::Valloc, (size), size);
alloc_body!(pvalloc_body, pvalloc_every, pvalloc_sampled, pvalloc, Kind::Pvalloc, (size), size);

unsafe extern "C" fn fork_body(slot: u64, bp: u64) -> i32 {
    let Some(real) = real!(fork) else { return -1 }; // no libc without it
    family::begin_fork(Caller { slot, bp }, Kind::Malloc);
    // SAFETY: the caller's own call, passed on.
    let child = unsafe { real() };
    family::end_fork(child);
    child
}

unsafe extern "C" fn posix_memalign_body(out: *mut *mut c_void, align: usize, size: usize, slot: u64, bp: u64) -> i32 {
    const ENOMEM: i32 = 12;
    let Some(real) = real!(posix_memalign) else { return ENOMEM };
    let draw = record::draw(thread::local(), size);
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(out, align, size) };
    if result == 0 {
        // SAFETY: on success the real function has stored the block there.
        record::alloc(Caller { slot, bp }, Kind::PosixMemalign, unsafe { out.read() }, size, draw);
    }
    result
}

/// Records a block by the general way, and returns it.
#[inline(never)]
extern "C" fn allocated(block: *mut c_void, size: usize, slot: u64, bp: u64, kind: Kind) -> *mut c_void {
    record::alloc(Caller { slot, bp }, kind, block, size, Draw::Open);
    block
}

/// As the bodies of `alloc_body`: passes on what is of no interest, by a jump.
unsafe extern "C" fn realloc_body(old: *mut c_void, size: usize, slot: u64, bp: u64) -> *mut c_void {
    let state = match record::glance(thread::local(), size) {
        Glance::Passed
            if !samples::may_hold(old as u64)
                && let Some(real) = real::realloc::get() =>
        {
            // SAFETY: the caller's own call, passed on.
            return unsafe { real(old, size) };
        }
        Glance::Open => OPEN,
        Glance::Passed => PASSED,
        Glance::Reached(state) => state,
    };
    // SAFETY: as above.
    unsafe { realloc_recorded(old, size, slot, bp, state) }
}

/// In the place of a state of the ring's, none of which has this value.
const OPEN: u64 = 0;
const PASSED: u64 = 1;
const _: () = assert!(PASSED & !STATE_RECORDING == 0, "a state that records has counted a change");

#[inline(never)]
unsafe extern "C" fn realloc_recorded(old: *mut c_void, size: usize, slot: u64, bp: u64, state: u64) -> *mut c_void {
    let Some(real) = real!(realloc) else { return core::ptr::null_mut() };
    let draw = match state {
        OPEN => Draw::Open,
        PASSED => Draw::Passed,
        state => record::reached(thread::local(), size, state),
    };
    let resize = Resize::begin(draw, old, 0);
    // SAFETY: the caller's own call, passed on.
    let new = unsafe { real(old, size) };
    resized(Caller { slot, bp }, Kind::Realloc, resize, old, new, size);
    new
}

unsafe extern "C" fn reallocarray_body(old: *mut c_void, count: usize, size: usize, slot: u64, bp: u64) -> *mut c_void {
    let Some(total) = count.checked_mul(size) else {
        // Fails and sets errno, as it should.
        let Some(real) = real!(reallocarray) else { return core::ptr::null_mut() };
        // SAFETY: the caller's own call, passed on.
        return unsafe { real(old, count, size) };
    };
    // Without overflow it is realloc. glibc's own would call realloc through this library again, and the block would count twice.
    let Some(real) = real!(realloc) else { return core::ptr::null_mut() };
    let resize = Resize::begin(record::draw(thread::local(), total), old, 0);
    // SAFETY: the caller's own call; the product did not overflow.
    let new = unsafe { real(old, total) };
    resized(Caller { slot, bp }, Kind::Reallocarray, resize, old, new, total);
    new
}

/// A realloc returned: with a block, or without one because it failed (nothing happened) or because size 0 released the old one.
#[inline(always)]
fn resized(caller: Caller, kind: Kind, resize: Resize, old: *mut c_void, new: *mut c_void, size: usize) {
    let released = new.is_null() && size == 0 && !old.is_null();
    if !new.is_null() || released {
        record::realloc(caller, kind, resize, old, new, size);
    } else {
        resize.failed();
    }
}

/// Bodies for a function that releases a block. `$body` looks whether it is passed over, as in `alloc_body`; `$every` records it as is usual;
/// `$recorded` does so in any case, then calls the real function (or `free`, where libc is older than the function).
macro_rules! free_body {
    ($body:ident, $every:ident, $recorded:ident, $name:ident, $kind:expr, ($($arg:ident),*)) => {
        unsafe extern "C" fn $body(block: *mut c_void, $($arg: usize,)* slot: u64, bp: u64) {
            if record::is_passed_over(Caller { slot, bp }, block as u64)
                && let Some(real) = real::$name::get()
            {
                // SAFETY: the caller's own call, passed on.
                unsafe { real(block, $($arg),*) }
            } else {
                // SAFETY: as above.
                unsafe { $every(block, $($arg,)* slot, bp) }
            }
        }

        #[inline(never)]
        unsafe extern "C" fn $every(block: *mut c_void, $($arg: usize,)* slot: u64, bp: u64) {
            if let Some(real) = real::$name::get()
                && usual::free(Caller { slot, bp }, $kind, block)
            {
                // SAFETY: the caller's own call, passed on.
                unsafe { real(block, $($arg),*) }
            } else {
                // SAFETY: as above.
                unsafe { $recorded(block, $($arg,)* slot, bp) }
            }
        }

        #[inline(never)]
        unsafe extern "C" fn $recorded(block: *mut c_void, $($arg: usize,)* slot: u64, bp: u64) {
            let unmaps = !block.is_null() && record::is_mapping(block);
            if !block.is_null() {
                record::free(Caller { slot, bp }, $kind, block);
            }
            if let Some(real) = real!($name) {
                // SAFETY: the caller's own call, passed on.
                unsafe { real(block, $($arg),*) };
            } else if let Some(free) = real!(free) {
                // SAFETY: C23 defines these functions as free for a block of that size.
                unsafe { free(block) };
            }
            if unmaps {
                stack::note_unmapping();
            }
        }
    };
}

free_body!(free_body, free_every, free_recorded, free, Kind::Free, ());
free_body!(free_sized_body, free_sized_every, free_sized_recorded, free_sized, Kind::FreeSized, (size));
free_body!(
    free_aligned_sized_body,
    free_aligned_sized_every,
    free_aligned_sized_recorded,
    free_aligned_sized,
    Kind::FreeAlignedSized,
    (align, size)
);
free_body!(cfree_body, cfree_every, cfree_recorded, cfree, Kind::Cfree, ());

const FAILED: *mut c_void = usize::MAX as *mut c_void;

unsafe extern "C" fn mmap_body(
    addr: *mut c_void,
    length: usize,
    prot: i32,
    flags: i32,
    fd: i32,
    offset: i64,
    slot: u64,
    bp: u64,
) -> *mut c_void {
    let Some(real) = real!(mmap) else { return FAILED };
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(addr, length, prot, flags, fd, offset) };
    if result != FAILED {
        let protection = prot as u32 as u64 | (flags as u32 as u64) << 32;
        let words = [result as u64, length as u64, protection, fd as i64 as u64, offset as u64];
        record::map(Caller { slot, bp }, tag::MAP, Kind::Mmap, clock::now(), &words);
    }
    result
}

unsafe extern "C" fn munmap_body(addr: *mut c_void, length: usize, slot: u64, bp: u64) -> i32 {
    const EINVAL_RESULT: i32 = -1;
    let Some(real) = real!(munmap) else { return EINVAL_RESULT };
    let before = clock::now();
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(addr, length) };
    stack::note_unmapping();
    if result == 0 {
        record::map(Caller { slot, bp }, tag::UNMAP, Kind::Munmap, before, &[addr as u64, length as u64]);
    }
    result
}

unsafe extern "C" fn mremap_body(
    old: *mut c_void,
    old_length: usize,
    length: usize,
    flags: i32,
    new: *mut c_void,
    _unused: usize,
    slot: u64,
    bp: u64,
) -> *mut c_void {
    let Some(real) = real!(mremap) else { return FAILED };
    // SAFETY: the caller's own call, passed on; the fifth argument is read only if the flags say so.
    let result = unsafe { real(old, old_length, length, flags, new) };
    stack::note_unmapping();
    if result != FAILED {
        let words = [old as u64, old_length as u64, result as u64, length as u64, flags as u32 as u64];
        record::map(Caller { slot, bp }, tag::REMAP, Kind::Mremap, clock::now(), &words);
    }
    result
}

/// Passed on, and remembered: code made at run time (JIT) then unwinds by its own rules.
///
/// # Safety
/// As libgcc's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __register_frame(table: *mut c_void) {
    modules::register_frames(table as u64);
    if let Some(real) = real!(__register_frame).or_else(real::late_register_frame) {
        // SAFETY: the caller's own call, passed on.
        unsafe { real(table) };
    }
}

/// Passed on, and forgotten.
///
/// # Safety
/// As libgcc's function of that name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __deregister_frame(table: *mut c_void) {
    modules::deregister_frames(table as u64);
    if let Some(real) = real!(__deregister_frame).or_else(real::late_deregister_frame) {
        // SAFETY: the caller's own call, passed on.
        unsafe { real(table) };
    }
}
