//! Counts the steps that change a target, so that a test can let hound die before each of them.
//!
//! A step is a ptrace call or a write into the target. Without the feature `death` this is nothing at all.

/// Counts one step. With the feature `death`, the process kills itself (SIGKILL) before the N-th, N from `HOUND_DIE_AFTER`.
#[cfg(feature = "death")]
pub(crate) fn step() {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    static TAKEN: AtomicU64 = AtomicU64::new(0);

    let limit = *LIMIT.get_or_init(|| std::env::var("HOUND_DIE_AFTER").ok()?.parse().ok());
    let taken = TAKEN.fetch_add(1, Ordering::SeqCst) + 1;
    if Some(taken) == limit {
        let own = nix::unistd::getpid().as_raw();
        // SAFETY: kill takes no pointers.
        unsafe { libc::kill(own, libc::SIGKILL) };
    }
}

/// Counts one step: nothing without the feature `death`.
#[cfg(not(feature = "death"))]
#[inline(always)]
pub(crate) fn step() {}
