//! Noticing that the process replaces itself by another program: what that one does is not recorded, and the capture must say so.
//!
//! The hooks note the attempt and jump on with every argument where it was, so one body serves all of the family, variadic ones too. A
//! child of vfork runs in this memory but is another process: its exec is none of ours.

use core::arch::naked_asm;

use hound_common::event::{PROCESS_EXEC, tag};
use hound_common::hook::Kind;

use crate::{clock, process, real, record, sys};

macro_rules! exec_hooks {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name() {
                naked_asm!(
                    "mov r11, rsp",
                    "push rax", "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9",
                    "mov rdi, r11", "mov rsi, rbp",
                    "call {note}",
                    "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi", "pop rax",
                    "mov r11, qword ptr [rip + {real}]",
                    "test r11, r11",
                    "jz 2f",
                    "jmp r11",
                    "2:",
                    "mov eax, -1", // a libc without the function: only a program that asks for it by name gets here
                    "ret",
                    note = sym note,
                    real = sym real::$name::ADDRESS,
                )
            }
        )*
    };
}

exec_hooks! {
    /// Hook of `execve`.
    execve;
    /// Hook of `execv`.
    execv;
    /// Hook of `execvp`.
    execvp;
    /// Hook of `execvpe`.
    execvpe;
    /// Hook of `execl`.
    execl;
    /// Hook of `execlp`.
    execlp;
    /// Hook of `execle`.
    execle;
    /// Hook of `fexecve`.
    fexecve;
    /// Hook of `execveat`.
    execveat;
}

extern "C" fn note(slot: u64, bp: u64) {
    if process::ready() && process::control().target_pid.load(core::sync::atomic::Ordering::Relaxed) == sys::getpid() {
        record::process(record::Caller { slot, bp }, Kind::Malloc, tag::PROCESS, PROCESS_EXEC, clock::now());
    }
}
