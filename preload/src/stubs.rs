//! The stubs: what patched functions jump to, with the [`Entry`] in r11 and everything else as at the call.
//!
//! Each looks at the ring's state first and jumps on if nothing is recorded. The others hand their body the function's arguments, the entry,
//! where the return address lies, and bp. A caller's misaligned stack is put right: the allocator itself would not mind, compiled Rust would.

use core::arch::naked_asm;
use core::mem::offset_of;

use hound_common::attach::{Attachment, Entry, SHAPES, STUB_WORDS, Shape};
use hound_common::ring::{Control, STATE_RECORDING};

use crate::attached::hound_attachment;
use crate::bodies::{self, Frame};
use crate::passing::{alloc, alloc_first, calloc, free, memalign, posix_memalign, rallocx, realloc, reallocarray};
use crate::pools;
use crate::{filters, inlined};

/// An entry point: takes its own function's arguments, whatever they are.
type Stub = unsafe extern "C" fn();

/// The stubs, by [`Shape`], and what of them can be inlined.
#[used]
#[unsafe(no_mangle)]
pub static hound_stubs: [Option<Stub>; STUB_WORDS] = {
    let mut stubs: [Option<Stub>; STUB_WORDS] = [None; STUB_WORDS];
    let list: [(Shape, Stub); SHAPES] = [
        (Shape::Alloc, alloc),
        (Shape::Calloc, calloc),
        (Shape::Realloc, realloc),
        (Shape::Reallocarray, reallocarray),
        (Shape::PosixMemalign, posix_memalign),
        (Shape::Memalign, memalign),
        (Shape::AllocFirst, alloc_first),
        (Shape::Rallocx, rallocx),
        (Shape::Xallocx, xallocx),
        (Shape::Free, free),
        (Shape::New, new),
        (Shape::Mmap, mmap),
        (Shape::Munmap, munmap),
        (Shape::Mremap, mremap),
        (Shape::Exec, exec),
        (Shape::PoolAlloc, pools::alloc_stub),
        (Shape::PoolFree, pools::free_stub),
        (Shape::PoolRealloc, pools::realloc_stub),
        (Shape::RegisterFrame, register_frame),
        (Shape::DeregisterFrame, deregister_frame),
        (Shape::Wide, wide),
        (Shape::WideRealloc, wide_realloc),
        (Shape::Text, text),
        (Shape::Reallocarr, reallocarr),
        (Shape::Fork, fork),
        (Shape::Prctl, prctl),
        (Shape::Syscall, syscall),
    ];
    let mut i = 0;
    while i < SHAPES {
        stubs[list[i].0 as usize] = Some(list[i].1);
        i += 1;
    }
    stubs[SHAPES + Shape::Alloc as usize] = Some(inlined::alloc);
    stubs[SHAPES + Shape::Calloc as usize] = Some(inlined::calloc);
    stubs[SHAPES + Shape::Free as usize] = Some(inlined::free);
    stubs
};

const RING: usize = offset_of!(Attachment, ring);
const STATE: usize = offset_of!(Control, state);
const REAL: usize = offset_of!(Entry, real);

/// A stub whose body takes up to three arguments of the function, then the entry, the slot and bp, in the registers named.
macro_rules! narrow {
    ($name:ident => $body:path, $entry:literal, $slot:literal, $bp:literal) => {
        narrow!($name => $body, $entry, $slot, $bp, gate: [
            "mov r10, qword ptr [rip + {attachment} + {ring}]", "test byte ptr [r10 + {state}], {recording}", "jz 9f"
        ]);
    };
    ($name:ident => $body:path, $entry:literal, $slot:literal, $bp:literal, gate: [$($gate:literal),*]) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                $($gate,)*
                concat!("mov ", $entry, ", r11"),
                concat!("mov ", $slot, ", rsp"),
                concat!("mov ", $bp, ", rbp"),
                "test spl, 8",
                "jz 2f",
                "jmp {body}",
                "2:",
                "call {body}", // one more return address on the stack aligns it
                "ret",
                "9:",
                "jmp qword ptr [r11 + {real}]",
                ".cfi_endproc",
                "/* {attachment} {ring} {state} {recording} */",
                attachment = sym hound_attachment, ring = const RING, state = const STATE, recording = const STATE_RECORDING,
                real = const REAL, body = sym $body,
            )
        }
    };
}

narrow!(reallocarr => bodies::reallocarr, "rcx", "r8", "r9");
narrow!(munmap => bodies::munmap, "rdx", "rcx", "r8");
// What a process begins is of interest also while nothing is recorded of it: it may go on later.
narrow!(fork => bodies::fork, "rdi", "rsi", "rdx", gate: []);

const FRAME: usize = size_of::<Frame>();
const ENTRY: usize = offset_of!(Frame, entry);
const SLOT: usize = offset_of!(Frame, slot);
const BP: usize = offset_of!(Frame, bp);
const AX: usize = offset_of!(Frame, ax);

/// What a stub does whose body gets a [`Frame`], up to the body's return.
macro_rules! framed {
    ($name:ident => $body:path, gate: [$($gate:literal),*], after: [$($after:literal),*]) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                $($gate,)*
                "mov r10, rsp",
                "push rbp",
                ".cfi_adjust_cfa_offset 8",
                ".cfi_rel_offset rbp, 0",
                "mov rbp, rsp",
                ".cfi_def_cfa_register rbp",
                "sub rsp, {frame}",
                "and rsp, -16",
                "mov qword ptr [rsp], rdi",
                "mov qword ptr [rsp + 8], rsi",
                "mov qword ptr [rsp + 16], rdx",
                "mov qword ptr [rsp + 24], rcx",
                "mov qword ptr [rsp + 32], r8",
                "mov qword ptr [rsp + 40], r9",
                "mov qword ptr [rsp + {entry}], r11",
                "mov qword ptr [rsp + {slot}], r10",
                "mov r10, qword ptr [rbp]",
                "mov qword ptr [rsp + {bp}], r10",
                "mov qword ptr [rsp + {ax}], rax",
                "mov rdi, rsp",
                "call {body}",
                $($after,)*
                ".cfi_endproc",
                "/* {attachment} {ring} {state} {recording} {real} */",
                attachment = sym hound_attachment, ring = const RING, state = const STATE, recording = const STATE_RECORDING,
                real = const REAL, body = sym $body, frame = const FRAME, entry = const ENTRY, slot = const SLOT, bp = const BP,
                ax = const AX,
            )
        }
    };
    // Returns what the body returns.
    (call $name:ident => $body:path) => {
        framed!($name => $body, gate: [
            "mov r10, qword ptr [rip + {attachment} + {ring}]", "test byte ptr [r10 + {state}], {recording}",
            "jnz 8f", "jmp qword ptr [r11 + {real}]", "8:"
        ], after: ["leave", ".cfi_def_cfa rsp, 8", "ret"]);
    };
    // Jumps to the real function when the body has returned, as if nothing had been. Whether anything is recorded or not.
    (jump $name:ident => $body:path) => {
        framed!($name => $body, gate: [], after: [
            "mov rdi, qword ptr [rsp]", "mov rsi, qword ptr [rsp + 8]", "mov rdx, qword ptr [rsp + 16]", "mov rcx, qword ptr [rsp + 24]",
            "mov r8, qword ptr [rsp + 32]", "mov r9, qword ptr [rsp + 40]", "mov r11, qword ptr [rsp + {entry}]",
            "mov rax, qword ptr [rsp + {ax}]", "leave", ".cfi_def_cfa rsp, 8", "jmp qword ptr [r11 + {real}]"
        ]);
    };
}

framed!(call mmap => bodies::mmap);
framed!(call mremap => bodies::mremap);
framed!(call xallocx => bodies::xallocx);
framed!(call wide => bodies::wide);
framed!(call wide_realloc => bodies::wide_realloc);
framed!(call text => bodies::text);
framed!(jump exec => bodies::exec);
// As the hooks in `filters`: what forbids nothing is jumped on with.
framed!(prctl => bodies::prctl, gate: [
    "cmp edi, 22", "je 8f", "cmp edi, 26", "je 8f", "jmp qword ptr [r11 + {real}]", "8:"
], after: ["leave", ".cfi_def_cfa rsp, 8", "ret"]);
framed!(syscall => bodies::syscall, gate: [
    "cmp edi, 317", "je 8f", "cmp edi, 157", "je 8f", "jmp qword ptr [r11 + {real}]", "8:"
], after: ["leave", ".cfi_def_cfa rsp, 8", "ret"]);
const _: () = assert!(
    filters::PR_SET_SECCOMP == 22 && filters::PR_SET_TSC == 26 && filters::PRCTL == 157 && filters::SECCOMP == 317,
    "what the two stubs compare with"
);

// The body has called the function that does not throw. Where that found no memory, this one is jumped to, and throws from its own frame.
framed!(new => bodies::new, gate: [
    "mov r10, qword ptr [rip + {attachment} + {ring}]", "test byte ptr [r10 + {state}], {recording}",
    "jnz 8f", "jmp qword ptr [r11 + {real}]", "8:"
], after: [
    "test rax, rax", "jz 2f",
    ".cfi_remember_state", "leave", ".cfi_def_cfa rsp, 8", "ret",
    "2:", ".cfi_restore_state",
    "mov rdi, qword ptr [rsp]", "mov rsi, qword ptr [rsp + 8]", "mov rdx, qword ptr [rsp + 16]", "mov rcx, qword ptr [rsp + 24]",
    "mov r8, qword ptr [rsp + 32]", "mov r9, qword ptr [rsp + 40]", "mov r11, qword ptr [rsp + {entry}]",
    "mov rax, qword ptr [rsp + {ax}]", "leave", ".cfi_def_cfa rsp, 8", "jmp qword ptr [r11 + {real}]"
]);

/// Notes the table whether anything is recorded or not, then jumps on.
macro_rules! frames_stub {
    ($name:ident => $body:path) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "push rbp",
                ".cfi_adjust_cfa_offset 8",
                ".cfi_rel_offset rbp, 0",
                "mov rbp, rsp",
                ".cfi_def_cfa_register rbp",
                "push rdi",
                "push r11",
                "and rsp, -16",
                "call {body}",
                "mov rdi, qword ptr [rbp - 8]",
                "mov r11, qword ptr [rbp - 16]",
                "leave",
                ".cfi_def_cfa rsp, 8",
                "jmp qword ptr [r11 + {real}]",
                ".cfi_endproc",
                body = sym $body, real = const REAL,
            )
        }
    };
}

frames_stub!(register_frame => bodies::register_frame);
frames_stub!(deregister_frame => bodies::deregister_frame);
