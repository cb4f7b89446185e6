//! A way out of a panic that is not the process's end.
//!
//! Code that reads tables made by others runs under [`protected`]: a panic in it unwinds nothing and aborts nothing, it returns from
//! `protected` with `false`. Nothing that runs there holds a resource. Everything else in this library has no panicking operation.

use core::arch::naked_asm;
use core::ffi::c_void;

/// Calls `body(argument)`. Returns 0 when it has returned, 1 when it panicked. The place to come back to is kept in `*anchor`.
#[unsafe(naked)]
unsafe extern "C" fn call(body: extern "C" fn(*mut c_void), argument: *mut c_void, anchor: *mut u64) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "mov [rdx], rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "xor eax, eax",
        "pop rdx",
        "mov qword ptr [rdx], 0",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Leaves the innermost [`call`] whose anchor this is, with 1.
#[unsafe(naked)]
unsafe extern "C" fn leave(anchor: u64) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "mov eax, 1",
        "pop rdx",
        "mov qword ptr [rdx], 0",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Runs `body`; false if it panicked. `anchor` is this thread's and is not in use.
pub fn protected<F: FnMut()>(anchor: &mut u64, body: &mut F) -> bool {
    extern "C" fn run<F: FnMut()>(body: *mut c_void) {
        // SAFETY: the pointer made below, whose referent outlives the call.
        let body = unsafe { &mut *body.cast::<F>() };
        body();
    }
    let body: *mut F = body;
    // SAFETY: `run` takes what is passed; the anchor lives in the thread's state, which is never freed.
    unsafe { call(run::<F>, body.cast(), anchor) == 0 }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    let anchor = crate::thread::current_anchor();
    if anchor != 0 {
        // SAFETY: a non-zero anchor is the stack pointer of a `call` that has not returned; nothing between holds a resource.
        unsafe { leave(anchor) };
    }
    // Not reachable: no code outside `protected` can panic. Neither aborting nor returning is allowed, so the thread would rest here.
    loop {
        core::hint::spin_loop();
    }
}
