//! Counts the steps that change a target, so that a test can let hound die, or fail, at each of them.
//!
//! A step is a ptrace call, a write into the target or its ring, or a moment at which hound only waits. Without the feature `death` all of
//! this is nothing at all.

#[cfg(not(feature = "death"))]
use nix::errno::Errno;

#[cfg(feature = "death")]
pub use counted::report_steps;
#[cfg(feature = "death")]
pub(crate) use counted::{note, step};

/// A step that cannot fail: hound's death before it is all that can happen.
#[cfg(feature = "death")]
pub fn moment() {
    let _ = step();
}

/// A step that cannot fail: nothing without the feature `death`.
#[cfg(not(feature = "death"))]
#[inline(always)]
pub fn moment() {}

/// Counts one step: nothing without the feature `death`.
#[cfg(not(feature = "death"))]
#[inline(always)]
pub(crate) fn step() -> Result<(), Errno> {
    Ok(())
}

/// Names what this thread's next steps are for: nothing without the feature `death`.
#[cfg(not(feature = "death"))]
#[inline(always)]
pub(crate) fn note(_: impl FnOnce() -> String) {}

#[cfg(feature = "death")]
mod counted {
    use std::backtrace::Backtrace;
    use std::cell::RefCell;
    use std::fmt::Write;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    use nix::errno::Errno;

    /// What the environment asks for.
    struct Orders {
        /// `HOUND_DIE_AFTER`: kill this process (SIGKILL) before this step.
        die: Option<u64>,
        /// `HOUND_FAIL_AT`: this step fails instead of being made.
        fail: Option<u64>,
        /// `HOUND_STEPS`: write the list of all steps there at the end.
        list: Option<PathBuf>,
    }

    static ORDERS: OnceLock<Orders> = OnceLock::new();
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static LIST: Mutex<Vec<(u64, String, Backtrace)>> = Mutex::new(Vec::new());

    thread_local! {
        static NOTE: RefCell<String> = const { RefCell::new(String::new()) };
    }

    fn orders() -> &'static Orders {
        ORDERS.get_or_init(|| {
            let number = |name: &str| std::env::var(name).ok()?.parse().ok();
            let list = std::env::var_os("HOUND_STEPS").map(PathBuf::from);
            Orders { die: number("HOUND_DIE_AFTER"), fail: number("HOUND_FAIL_AT"), list }
        })
    }

    /// Counts one step: the process dies before it, or it fails, if it is the one that was ordered to.
    pub(crate) fn step() -> Result<(), Errno> {
        let orders = orders();
        let number = TAKEN.fetch_add(1, Ordering::SeqCst) + 1;
        if orders.list.is_some() {
            // Only the addresses are taken now: finding their names takes longer than a target may stand still.
            let entry = (number, NOTE.with_borrow(Clone::clone), Backtrace::force_capture());
            LIST.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        }
        if orders.die == Some(number) {
            let own = nix::unistd::getpid().as_raw();
            // SAFETY: kill takes no pointers.
            unsafe { libc::kill(own, libc::SIGKILL) };
        }
        // No call that hound makes gives this error by itself.
        if orders.fail == Some(number) { Err(Errno::ENOTRECOVERABLE) } else { Ok(()) }
    }

    /// Names what this thread's next steps are for.
    pub(crate) fn note(what: impl FnOnce() -> String) {
        NOTE.set(what());
    }

    /// Writes the list of steps, if one was asked for: a line each, its number and its kind, that is from where it was made.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn report_steps() -> std::io::Result<()> {
        let Some(path) = &orders().list else { return Ok(()) };
        let mut text = String::new();
        for (number, note, trace) in LIST.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "{number}\t{note} {}", kind(&trace.to_string())); // writing to a string cannot fail
        }
        std::fs::write(path, text)
    }

    /// The places of hound's own code on a stack, innermost first, without this file and what only passes on.
    fn kind(trace: &str) -> String {
        let places = trace.lines().filter_map(|line| line.trim().strip_prefix("at "));
        let own = places.filter(|place| place.contains("inject/src/") || place.contains("hound-user/src/session/"));
        let own = own.filter(|place| !place.contains("/step.rs"));
        let names = own.filter_map(|place| {
            let (file, line) = place.rsplit('/').next()?.split_once(':')?;
            Some(format!("{file}:{}", line.split(':').next()?))
        });
        names.collect::<Vec<_>>().join("<")
    }
}
