//! The C part of these programs: it calls the linked allocator by its own names, and notes each block.

unsafe extern "C" {
    fn attach_family_main() -> i32;
    fn switching_main() -> i32;
}

/// Does what standard input says until it says to end; returns the exit status.
pub fn serve() -> i32 {
    // SAFETY: a C function without preconditions.
    unsafe { attach_family_main() }
}

/// Keeps, resizes and drops blocks as standard input says, while two threads churn; returns the exit status.
pub fn keep_and_drop() -> i32 {
    // SAFETY: a C function without preconditions.
    unsafe { switching_main() }
}
