//! Signals that switch the recording on and off, where that was asked for: SIGUSR1 and SIGUSR2.
//!
//! A program that has its own handler, or ignores the signal, keeps that; one that sets a handler later takes ours away.

use core::arch::naked_asm;

use crate::{api, sys};

pub const SIGUSR1: i32 = 10;
pub const SIGUSR2: i32 = 12;

const SA_RESTORER: u64 = 0x0400_0000;
const SA_ONSTACK: u64 = 0x0800_0000;
const SA_RESTART: u64 = 0x1000_0000;
const DEFAULT: usize = 0;

/// The kernel's struct sigaction.
#[repr(C)]
pub struct Action {
    pub handler: usize,
    pub flags: u64,
    pub restorer: usize,
    pub mask: u64,
}

extern "C" fn switched(_signal: i32) {
    api::toggle();
}

/// Where a handler returns to (rt_sigreturn(2)).
#[unsafe(naked)]
extern "C" fn restorer() {
    naked_asm!("mov eax, 15", "syscall", "ud2")
}

/// Takes a signal that nobody has taken.
pub fn take(signal: i32) {
    let ours = Action {
        handler: switched as *const () as usize,
        flags: SA_RESTORER | SA_ONSTACK | SA_RESTART,
        restorer: restorer as *const () as usize,
        mask: 0,
    };
    if sys::signal_action(signal, None).is_some_and(|before| before.handler == DEFAULT) {
        sys::signal_action(signal, Some(&ours));
    }
}
