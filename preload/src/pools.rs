//! Functions of custom pools: any function of the program's, which may keep to more than the calling convention asks, and less.
//!
//! A compiler that sees a function and its callers lets the callers keep values in registers that the function is known to leave alone. So
//! these stubs leave everything but rax as it was: every register is saved, and given back both to the function and to its caller. (The
//! thunk before them has pushed r11, in which it hands over the [`Entry`].) And arguments may lie on the stack: as many words of it as
//! eight arguments take are handed on.
//!
//! What cannot pass here is a C++ exception: hound refuses such functions unless it is told that they throw none.

use core::arch::naked_asm;
use core::mem::offset_of;

use hound_common::attach::{Attachment, Entry, NO_ARGUMENT};
use hound_common::ring::{Control, STATE_RECORDING};

use crate::attached::hound_attachment;
use crate::bodies::{self, Frame};
use crate::nesting::{self, Call, Entered};
use crate::record::Caller;
use crate::sys;

/// Words of the caller's stack, above the return address, that a pool's function is called with.
const STACK_WORDS: usize = 8;
const PAGE: u64 = 4096;

/// What a stub saves.
#[repr(C, align(16))]
pub struct Saved {
    frame: Frame,
    /// xmm0 to xmm15. Nothing in this library touches more of the vector registers than these.
    xmm: [u128; 16],
    /// Filled in by the body: what lies above the return address.
    stack: [u64; STACK_WORDS],
}

const _: () = assert!(offset_of!(Saved, frame) == 0, "the stubs save arguments and all else at the stack pointer");
const _: () = assert!(size_of::<Saved>().is_multiple_of(16), "vectors are saved aligned");

/// Saves all registers, hands the body a [`Saved`], gives them back but for rax, and goes on as `$after` says, which finds r10 and r11
/// pushed, the latter first. On entry: r11 = entry, and the caller's r11 pushed.
macro_rules! stub {
    ($name:ident => $body:path, before_leaving: [$($before:literal),*], after: [$($after:literal),*]) => {
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                ".cfi_def_cfa_offset 16",
                "push r10",
                ".cfi_adjust_cfa_offset 8",
                "mov r10, qword ptr [rip + {attachment} + {ring}]",
                "test byte ptr [r10 + {state}], {recording}",
                "jnz 8f",
                // Nothing is recorded. The word below is inside the red zone when the jump reads it: no signal handler overwrites it.
                ".cfi_remember_state",
                "mov r10, qword ptr [r11 + {real}]",
                "mov qword ptr [rsp - 8], r10",
                "pop r10",
                ".cfi_adjust_cfa_offset -8",
                "pop r11",
                ".cfi_adjust_cfa_offset -8",
                "jmp qword ptr [rsp - 24]",
                ".cfi_restore_state",
                "8:",
                "push rbp",
                ".cfi_def_cfa_offset 32", // said whole: the assembler's own sum does not come back with the state
                ".cfi_rel_offset rbp, 0",
                "mov rbp, rsp",
                ".cfi_def_cfa_register rbp",
                "sub rsp, {saved}",
                "and rsp, -16",
                "mov qword ptr [rsp], rdi",
                "mov qword ptr [rsp + 8], rsi",
                "mov qword ptr [rsp + 16], rdx",
                "mov qword ptr [rsp + 24], rcx",
                "mov qword ptr [rsp + 32], r8",
                "mov qword ptr [rsp + 40], r9",
                "mov qword ptr [rsp + {entry}], r11",
                "lea r10, [rbp + 24]",
                "mov qword ptr [rsp + {slot}], r10",
                "mov r10, qword ptr [rbp]",
                "mov qword ptr [rsp + {bp}], r10",
                "mov qword ptr [rsp + {ax}], rax",
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "movaps xmmword ptr [rsp + {xmm} + 16 * \\n], xmm\\n",
                ".endr",
                "mov rdi, rsp",
                "call {body}",
                $($before,)*
                ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "movaps xmm\\n, xmmword ptr [rsp + {xmm} + 16 * \\n]",
                ".endr",
                "mov rdi, qword ptr [rsp]",
                "mov rsi, qword ptr [rsp + 8]",
                "mov rdx, qword ptr [rsp + 16]",
                "mov rcx, qword ptr [rsp + 24]",
                "mov r8, qword ptr [rsp + 32]",
                "mov r9, qword ptr [rsp + 40]",
                "mov r11, qword ptr [rsp + {entry}]",
                "leave",
                ".cfi_def_cfa rsp, 24",
                $($after,)*
                ".cfi_endproc",
                "/* {real} */",
                attachment = sym hound_attachment, ring = const offset_of!(Attachment, ring), state = const offset_of!(Control, state),
                recording = const STATE_RECORDING, real = const offset_of!(Entry, real), body = sym $body,
                saved = const size_of::<Saved>(), entry = const offset_of!(Frame, entry), slot = const offset_of!(Frame, slot),
                bp = const offset_of!(Frame, bp), ax = const offset_of!(Frame, ax), xmm = const offset_of!(Saved, xmm),
            )
        }
    };
    // Returns what the body returns.
    (call $name:ident => $body:path) => {
        stub!($name => $body, before_leaving: [], after: [
            "pop r10", ".cfi_adjust_cfa_offset -8", "pop r11", ".cfi_adjust_cfa_offset -8", "ret"
        ]);
    };
    // Jumps to the real function when the body has returned, as if nothing had been.
    (jump $name:ident => $body:path) => {
        stub!($name => $body, before_leaving: ["mov rax, qword ptr [rsp + {ax}]"], after: [
            "mov r11, qword ptr [r11 + {real}]", "mov qword ptr [rsp - 8], r11",
            "pop r10", ".cfi_adjust_cfa_offset -8", "pop r11", ".cfi_adjust_cfa_offset -8", "jmp qword ptr [rsp - 24]"
        ]);
    };
}

stub!(call alloc_stub => alloc);
stub!(call realloc_stub => realloc);
stub!(jump free_stub => free);

/// As `enter` of the bodies, for a pool's function.
macro_rules! enter {
    ($saved:ident, $again:ident) => {
        match Call::<true>::enter($saved.frame.entry, $saved.frame.caller()) {
            Entered::Outermost(call) => Some(call),
            Entered::Nested => None,
            Entered::Elsewhere => return nesting::elsewhere::<true, _>(move || $again($saved)),
        }
    };
}

/// `Shape::PoolAlloc`
extern "C" fn alloc(saved: &mut Saved) -> u64 {
    let call = enter!(saved, alloc);
    let block = saved.call_real();
    if let Some(call) = call {
        call.leave();
        bodies::allocated(&call, block as *mut _, bodies::placed_size(&saved.frame));
    }
    block
}

/// `Shape::PoolRealloc`
extern "C" fn realloc(saved: &mut Saved) -> u64 {
    let call = enter!(saved, realloc);
    let (old, size) = (saved.frame.argument(saved.frame.entry.block_argument) as *mut _, bodies::placed_size(&saved.frame));
    let resize = bodies::resizing(&call, old, size);
    let new = saved.call_real();
    if let (Some(call), Some(resize)) = (call, resize) {
        call.leave();
        bodies::resized(&call, resize, old, new as *mut _, size, false);
    }
    new
}

/// `Shape::PoolFree`
extern "C" fn free(saved: &mut Saved) {
    debug_assert!(saved.frame.entry.block_argument != NO_ARGUMENT);
    let block = saved.frame.argument(saved.frame.entry.block_argument);
    if block != 0 {
        bodies::release::<true>(saved.frame.entry, saved.frame.caller(), block);
    }
}

impl Saved {
    /// The function as if it were not patched, with all its arguments.
    fn call_real(&mut self) -> u64 {
        let Caller { slot, .. } = self.frame.caller();
        for (n, word) in self.stack.iter_mut().enumerate() {
            let at = slot + 8 * (n as u64 + 1);
            // The stack may end here: then so do the arguments.
            if (at + 7) / PAGE != slot / PAGE && !sys::is_readable(at + 7) {
                break;
            }
            // SAFETY: in the return address's page, or in one found mapped; nobody else writes to this part of our own stack.
            *word = unsafe { (at as *const u64).read_unaligned() };
        }
        // SAFETY: the caller's own call: every register and word of the stack that can hold an argument is as it was.
        unsafe { repeat(self) }
    }
}

#[unsafe(naked)]
unsafe extern "C" fn repeat(saved: &Saved) -> u64 {
    naked_asm!(
        ".cfi_startproc",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbp, 0",
        "mov rbp, rsp",
        ".cfi_def_cfa_register rbp",
        "mov r10, rdi",
        "mov ecx, {words}",
        "7:",
        "push qword ptr [r10 + 8 * rcx + {stack} - 8]",
        "dec ecx",
        "jnz 7b",
        ".irp n, 0,1,2,3,4,5,6,7",
        "movaps xmm\\n, xmmword ptr [r10 + {xmm} + 16 * \\n]",
        ".endr",
        "mov rdi, qword ptr [r10]",
        "mov rsi, qword ptr [r10 + 8]",
        "mov rdx, qword ptr [r10 + 16]",
        "mov rcx, qword ptr [r10 + 24]",
        "mov r8, qword ptr [r10 + 32]",
        "mov r9, qword ptr [r10 + 40]",
        "mov rax, qword ptr [r10 + {ax}]",
        "mov r11, qword ptr [r10 + {entry}]",
        "call qword ptr [r11 + {real}]",
        "leave",
        ".cfi_def_cfa rsp, 8",
        "ret",
        ".cfi_endproc",
        words = const STACK_WORDS, stack = const offset_of!(Saved, stack), xmm = const offset_of!(Saved, xmm),
        ax = const offset_of!(Frame, ax), entry = const offset_of!(Frame, entry), real = const offset_of!(Entry, real),
    )
}

const _: () = assert!(STACK_WORDS.is_multiple_of(2), "the stack stays aligned");
