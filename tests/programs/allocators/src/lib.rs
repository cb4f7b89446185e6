//! The C part of these programs: it calls the linked allocator by its own names, and notes each block.

unsafe extern "C" {
    fn attach_family_main() -> i32;
}

/// Does what standard input says until it says to end; returns the exit status.
pub fn serve() -> i32 {
    // SAFETY: a C function without preconditions.
    unsafe { attach_family_main() }
}
