//! The program's end: hound may look at its memory before that is gone, to find which blocks are still reached.
//!
//! The thread that ends the program waits for it, for as long as hound has allowed beforehand ([`Control::exit_ms`]), and makes no system call
//! but futex. If hound has gone it waits that long and no longer.
//!
//! [`Control::exit_ms`]: hound_common::ring::Control::exit_ms

use core::arch::asm;
use core::sync::atomic::Ordering;

use hound_common::ring::{EXIT_GOES_ON, EXIT_NOT_YET, EXIT_WAITS};

use crate::{process, sys};

/// Registers that a function leaves to its caller as they were: what the program has in them is nowhere else, unless somebody saved it.
const KEPT: usize = 6;

pub extern "C" fn destructor() {
    let control = process::control();
    let most_ms = control.exit_ms.load(Ordering::Relaxed);
    if most_ms == 0 || !process::is_target() {
        return;
    }
    let mut kept = [0_u64; KEPT];
    // SAFETY: stores six registers into an array of six words.
    unsafe {
        asm!(
            "mov [{to}], rbx",
            "mov [{to} + 8], rbp",
            "mov [{to} + 16], r12",
            "mov [{to} + 24], r13",
            "mov [{to} + 32], r14",
            "mov [{to} + 40], r15",
            to = in(reg) kept.as_mut_ptr(),
            options(nostack, preserves_flags),
        );
    }
    // Release: pairs with hound's acquire load.
    if control.exit_state.compare_exchange(EXIT_NOT_YET, EXIT_WAITS, Ordering::Release, Ordering::Relaxed).is_err() {
        return;
    }
    for _ in 0..most_ms {
        sys::futex_wait_1ms(&control.exit_state, EXIT_WAITS);
        if control.exit_state.load(Ordering::Relaxed) != EXIT_WAITS {
            return;
        }
    }
    // They are on the stack while hound looks.
    core::hint::black_box(&kept);
    let _ = control.exit_state.compare_exchange(EXIT_WAITS, EXIT_GOES_ON, Ordering::Relaxed, Ordering::Relaxed);
}
