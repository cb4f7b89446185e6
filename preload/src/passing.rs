//! The stubs of functions that allocate and release blocks, which pass over what is not sampled themselves.
//!
//! As those of `stubs`, but where samples are taken and the countdown passes over a call, no body is asked: the steps of
//! `directory::find_first`, `record::glance`, `nesting::Call::enter` and `record::is_passed_over` once more, in half the instructions and jumps.
//! Whatever is not as usual goes to the body, with nothing drawn yet; what the countdown ends at goes to the body of samples.

use core::arch::naked_asm;
use core::mem::offset_of;

use hound_common::attach::{Attachment, ENTRY_FLAT, Entry, THREAD_SLOTS};
use hound_common::ring::{Control, STATE_RECORDING, STATE_SAMPLED};

use crate::attached::hound_attachment;
use crate::thread::Thread;
use crate::{bodies, directory, nesting, process, samples};

const RING: usize = offset_of!(Attachment, ring);
const THREADS: usize = offset_of!(Attachment, threads);
const TID_OFFSET: usize = offset_of!(Attachment, tid_offset);
const SESSION: usize = offset_of!(Attachment, session);
const STATE: usize = offset_of!(Control, state);
const REAL: usize = offset_of!(Entry, real);
const FLAGS: usize = offset_of!(Entry, flags);
const INSIDE_START: usize = offset_of!(Entry, inside_start);
const INSIDE_END: usize = offset_of!(Entry, inside_end);
const OWNER: usize = offset_of!(Thread, owner);
const SAMPLING: usize = offset_of!(Thread, sampling);
const COUNTDOWN: usize = offset_of!(Thread, countdown);
const PLACE_SHIFT: u32 = u32::BITS - THREAD_SLOTS.trailing_zeros();

/// The calling thread's state to r9, if it is found at once and samples by the ring's state, which goes to r10; else on at 4. If nothing is
/// recorded, on at 9.
macro_rules! find_state {
    () => {
        "mov r10, qword ptr [rip + {attachment} + {ring}]
         test byte ptr [r10 + {state}], {recording}
         jz 9f
         mov r10, qword ptr [r10 + {state}]
         mov rax, qword ptr fs:[0]
         imul r9d, eax, {multiplier}
         shr r9d, {place_shift}
         shl r9d, 3
         add r9, qword ptr [rip + {attachment} + {threads}]
         mov r9, qword ptr [r9]
         cmp r9, 1
         jbe 4f
         add rax, qword ptr [rip + {attachment} + {tid_offset}]
         mov eax, dword ptr [rax]
         cmp eax, dword ptr [r9 + {owner}]
         jne 4f
         mov eax, dword ptr [rip + {attachment} + {session}]
         cmp eax, dword ptr [r9 + {owner} + 4]
         jne 4f
         cmp r10, qword ptr [r9 + {sampling}]
         jne 4f"
    };
}

/// Takes the r8 bytes of a block, one if it has none, from the countdown: on at 3 if that has come to its end.
macro_rules! count_down {
    () => {
        "mov rax, qword ptr [r9 + {countdown}]
         cmp r8, 1
         sbb rax, r8
         mov qword ptr [r9 + {countdown}], rax
         test rax, rax
         jle 3f"
    };
}

/// Calls the function as one at work, unless it is its allocator that calls.
macro_rules! mark_and_call {
    () => {
        "mov rax, qword ptr [rsp]
         cmp rax, qword ptr [r11 + {inside_start}]
         jb 6f
         cmp rax, qword ptr [r11 + {inside_end}]
         jb 9b
         6:
         mov qword ptr [r9 + {at_work_ra}], rax
         mov qword ptr [r9 + {at_work_nested}], 0
         mov qword ptr [r9 + {at_work_slot}], rsp
         push r9 /* and the stack is as far from aligned as it was */
         .cfi_adjust_cfa_offset 8
         call qword ptr [r11 + {real}]
         pop r9
         .cfi_adjust_cfa_offset -8
         cmp qword ptr [r9 + {at_work_slot}], rsp /* not so in the child of a fork, whose states were wiped */
         jne 7f
         mov qword ptr [r9 + {at_work_slot}], 0
         7:
         ret"
    };
}

/// Calls the body of samples: three arguments, entry, slot, bp, and the ring's state on the stack, which that aligns, or twice that.
macro_rules! call_sampled {
    () => {
        "mov rcx, r11
         mov r8, rsp
         mov r9, rbp
         test spl, 8
         jz 8f
         push r10
         .cfi_adjust_cfa_offset 8
         call {sampled}
         add rsp, 8
         .cfi_adjust_cfa_offset -8
         ret
         8:
         push r10
         .cfi_adjust_cfa_offset 8
         push r10
         .cfi_adjust_cfa_offset 8
         call {sampled}
         add rsp, 16
         .cfi_adjust_cfa_offset -16
         ret"
    };
}

/// The counter of the block in rdi (`samples::may_hold`): on at 4 if it may be a sample.
macro_rules! may_be_sampled {
    () => {
        "mov eax, edi
         shr eax, 4
         mov r8, rdi
         shr r8, 20
         xor eax, r8d
         movzx eax, ax
         mov r8, qword ptr [rip + {samples}]
         cmp byte ptr [r8 + rax], 0
         jne 4f"
    };
}

/// A stub of a function that returns a block: `$size` brings the block's size to r8.
///
/// `$flat`: those of the entry's flags by which the function is known to call no other that is patched; then it is jumped to. Any other is
/// marked as at work and called, for an inner call must find it so, or its block would have two chances. (That a call which is itself inside
/// another passes over bytes does no harm: what is drawn for others depends on nothing before.)
macro_rules! passing {
    ($name:ident => $body:path, $sampled:path, $entry:literal, $slot:literal, $bp:literal, flat: $flat:expr, old: $old:expr, size: $size:literal) => {
        #[doc = concat!("Stub of `", stringify!($name), "`.")]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                find_state!(),
                $old,
                $size,
                "test byte ptr [r11 + {flags}], {flat}",
                "jz 5f",
                count_down!(),
                "9:",
                "jmp qword ptr [r11 + {real}]",
                "5:",
                "cmp qword ptr [r9 + {at_work_slot}], 0",
                "jne 4f",
                count_down!(),
                mark_and_call!(),
                "3:",
                call_sampled!(),
                "4:",
                concat!("mov ", $entry, ", r11"),
                concat!("mov ", $slot, ", rsp"),
                concat!("mov ", $bp, ", rbp"),
                "test spl, 8",
                "jz 2f",
                "jmp {body}",
                "2:",
                "call {body}", // one more return address on the stack aligns it
                "ret",
                ".cfi_endproc",
                "/* {samples} */",
                attachment = sym hound_attachment, ring = const RING, state = const STATE, recording = const STATE_RECORDING,
                multiplier = const directory::MULTIPLIER as i32, place_shift = const PLACE_SHIFT, threads = const THREADS,
                tid_offset = const TID_OFFSET, session = const SESSION, owner = const OWNER, sampling = const SAMPLING,
                countdown = const COUNTDOWN, flags = const FLAGS, flat = const $flat, real = const REAL,
                inside_start = const INSIDE_START, inside_end = const INSIDE_END, at_work_slot = const nesting::AT_WORK_SLOT,
                at_work_ra = const nesting::AT_WORK_RA, at_work_nested = const nesting::AT_WORK_NESTED,
                samples = sym samples::SAMPLES, sampled = sym $sampled, body = sym $body,
            )
        }
    };
}

passing!(alloc => bodies::alloc, bodies::alloc_sampled, "rsi", "rdx", "rcx", flat: ENTRY_FLAT, old: "", size: "mov r8, rdi");
passing!(calloc => bodies::calloc, bodies::calloc_sampled, "rdx", "rcx", "r8", flat: ENTRY_FLAT, old: "", size: "mov r8, rdi; imul r8, rsi");
// glibc's, asked for no more than any block has, call its malloc.
passing!(memalign => bodies::memalign, bodies::memalign_sampled, "rdx", "rcx", "r8", flat: ENTRY_FLAT, old: "",
    size: "mov r8, rsi; cmp rdi, 16; jbe 5f");
passing!(alloc_first => bodies::alloc_first, bodies::alloc_first_sampled, "rcx", "r8", "r9", flat: 0, old: "", size: "mov r8, rdi");
passing!(posix_memalign => bodies::posix_memalign, bodies::posix_memalign_sampled, "rcx", "r8", "r9", flat: ENTRY_FLAT, old: "",
    size: "mov r8, rdx; cmp rsi, 16; jbe 5f");
passing!(realloc => bodies::realloc, bodies::realloc_sampled, "rdx", "rcx", "r8", flat: 0, old: may_be_sampled!(), size: "mov r8, rsi");
passing!(rallocx => bodies::rallocx, bodies::rallocx_sampled, "rcx", "r8", "r9", flat: 0, old: may_be_sampled!(), size: "mov r8, rsi");
passing!(reallocarray => bodies::reallocarray, bodies::reallocarray_sampled, "rcx", "r8", "r9", flat: 0, old: may_be_sampled!(),
    size: "mov r8, rsi; imul r8, rdx; jo 4f");

/// Stub of functions that release a block.
#[unsafe(naked)]
pub unsafe extern "C" fn free() {
    naked_asm!(
        ".cfi_startproc",
        "mov r10, qword ptr [rip + {attachment} + {ring}]",
        "test byte ptr [r10 + {state}], {recording}",
        "jz 9f",
        "test byte ptr [r10 + {state}], {is_sampled}",
        "jz 4f",
        "cmp r10, qword ptr [rip + {control}]", // else nobody has taken over the session yet, and the table is not there
        "jne 4f",
        "mov r9d, edi",
        "shr r9d, 4",
        "mov r10, rdi",
        "shr r10, 20",
        "xor r10d, r9d",
        "movzx r10d, r10w",
        "add r10, qword ptr [rip + {samples}]",
        "cmp byte ptr [r10], 0",
        "jne 4f",
        "mov r10, qword ptr [rsp]",
        "sub r10, qword ptr [rip + {loader_start}]",
        "cmp r10, qword ptr [rip + {loader_bytes}]",
        "jb 4f",
        "9:",
        "jmp qword ptr [r11 + {real}]",
        "4:",
        "mov rcx, r11",
        "mov r8, rsp",
        "mov r9, rbp",
        "test spl, 8",
        "jz 2f",
        "jmp {body}",
        "2:",
        "call {body}",
        "ret",
        ".cfi_endproc",
        attachment = sym hound_attachment, ring = const RING, state = const STATE, recording = const STATE_RECORDING,
        is_sampled = const STATE_SAMPLED, control = sym process::CONTROL, samples = sym samples::SAMPLES,
        loader_start = sym process::LOADER_START, loader_bytes = sym process::LOADER_BYTES, real = const REAL, body = sym bodies::free,
    )
}
