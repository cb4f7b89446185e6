//! What is put before the instructions of functions that allocate and release blocks: where the countdown passes over a call, or a block was not
//! sampled, they are come to without a jump to the library and back (half of the jumps that a patched function costs; they are most of it).
//!
//! The steps are those of `passing`, and whatever is not as usual goes there, with nothing changed: `passing` asks everything once more. Code that is
//! copied finds all it needs through the entry in r11.

use core::arch::naked_asm;
use core::mem::offset_of;

use hound_common::attach::{Attachment, ENTRY_FLAT, Entry, INLINED_EXIT, THREAD_SLOTS};
use hound_common::ring::{Control, STATE_RECORDING, STATE_SAMPLED};

use crate::directory;
use crate::thread::Thread;

const ATTACHMENT: usize = offset_of!(Entry, attachment);
const RING: usize = offset_of!(Attachment, ring);
const THREADS: usize = offset_of!(Attachment, threads);
const TID_OFFSET: usize = offset_of!(Attachment, tid_offset);
const SESSION: usize = offset_of!(Attachment, session);
const SAMPLES: usize = offset_of!(Attachment, samples);
const LOADER_START: usize = offset_of!(Attachment, loader_start);
const LOADER_END: usize = offset_of!(Attachment, loader_end);
const STATE: usize = offset_of!(Control, state);
const OWNER: usize = offset_of!(Thread, owner);
const SAMPLING: usize = offset_of!(Thread, sampling);
const COUNTDOWN: usize = offset_of!(Thread, countdown);
const PLACE_SHIFT: u32 = u32::BITS - THREAD_SLOTS.trailing_zeros();

/// Code that counts the block of a call down, and goes on to the function unless the countdown ends. `$size` brings the block's size to rcx. The
/// function must be known to call no other that is patched, or an inner call's block would have two chances.
macro_rules! counting {
    ($name:ident, $size:literal) => {
        /// Inlined code, and its head before it: never called.
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".long 3f - 2f",
                ".long {flat}",
                "2:",
                "mov r9, qword ptr [r11 + {attachment}]",
                "mov r10, qword ptr [r9 + {ring}]",
                "mov r10, qword ptr [r10 + {state}]",
                "test r10b, {recording}",
                "jz 2b + {exit}",
                "mov rax, qword ptr fs:[0]",
                "imul r8d, eax, {multiplier}",
                "shr r8d, {place_shift}",
                "mov rcx, qword ptr [r9 + {threads}]",
                "mov r8, qword ptr [rcx + r8 * 8]",
                "cmp r8, 1",
                "jbe 2b + {exit}",
                "add rax, qword ptr [r9 + {tid_offset}]",
                "mov eax, dword ptr [rax]",
                "cmp eax, dword ptr [r8 + {owner}]",
                "jne 2b + {exit}",
                "mov eax, dword ptr [r9 + {session}]",
                "cmp eax, dword ptr [r8 + {owner} + 4]",
                "jne 2b + {exit}",
                "cmp r10, qword ptr [r8 + {sampling}]",
                "jne 2b + {exit}",
                $size,
                "mov rax, qword ptr [r8 + {countdown}]",
                "cmp rcx, 1", // a block without bytes counts as one
                "sbb rax, rcx",
                "test rax, rax",
                "jle 2b + {exit}",
                "mov qword ptr [r8 + {countdown}], rax",
                "3:",
                flat = const ENTRY_FLAT, attachment = const ATTACHMENT, ring = const RING, state = const STATE,
                recording = const STATE_RECORDING, exit = const INLINED_EXIT, multiplier = const directory::MULTIPLIER as i32,
                place_shift = const PLACE_SHIFT, threads = const THREADS, tid_offset = const TID_OFFSET, owner = const OWNER,
                session = const SESSION, sampling = const SAMPLING, countdown = const COUNTDOWN,
            )
        }
    };
}

counting!(alloc, "mov rcx, rdi");
counting!(calloc, "mov rcx, rdi; imul rcx, rsi");

const SAMPLED: u64 = STATE_RECORDING | STATE_SAMPLED;

/// Code that goes on to a function that releases a block, unless that may be a sample or the loader releases it. Inlined code, and its head before
/// it: never called.
#[unsafe(naked)]
pub unsafe extern "C" fn free() {
    naked_asm!(
        ".long 3f - 2f",
        ".long 0",
        "2:",
        "mov r9, qword ptr [r11 + {attachment}]",
        "mov r10, qword ptr [r9 + {ring}]",
        "movzx r10d, byte ptr [r10 + {state}]",
        "and r10d, {sampled}",
        "cmp r10d, {sampled}",
        "jne 2b + {exit}",
        "mov r8d, edi",
        "shr r8d, 4",
        "mov r10, rdi",
        "shr r10, 20",
        "xor r10d, r8d",
        "movzx r10d, r10w",
        "add r10, qword ptr [r9 + {samples}]",
        "cmp byte ptr [r10], 0",
        "jne 2b + {exit}",
        "mov r10, qword ptr [rsp]",
        "mov r8, qword ptr [r9 + {loader_start}]",
        "sub r10, r8",
        "neg r8",
        "add r8, qword ptr [r9 + {loader_end}]",
        "cmp r10, r8",
        "jb 2b + {exit}",
        "3:",
        attachment = const ATTACHMENT, ring = const RING, state = const STATE, sampled = const SAMPLED, exit = const INLINED_EXIT,
        samples = const SAMPLES, loader_start = const LOADER_START, loader_end = const LOADER_END,
    )
}
