//! What is said at the end of the processes that a program has begun, and of a library that ended the recording by itself.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use hound_common::ring::{Control, LIBRARY_OUT, OUT_NO_ALLOCATOR, OUT_NO_CLOCK, OUT_NO_HEARTBEAT, OUT_OTHER_LIBC, OUT_SANITIZED};

/// Processes that a program has begun.
#[derive(Clone, Debug, Default)]
pub struct Relatives {
    /// Those that could not be recorded.
    pub unrecorded: u64,
    /// Those whose recording ended before they did, and why.
    pub ended_early: Vec<(u32, &'static str)>,
    /// Those that run on and whose code could not be restored, and why.
    pub not_left: Vec<(u32, hound_inject::Error)>,
}

impl Relatives {
    /// Of those that were not recorded to their ends, with so many more that were not at all.
    pub fn warnings(&self, more: u32) -> Vec<String> {
        let early = self.ended_early.first().map(|(pid, why)| match self.ended_early.len() {
            1 => format!("of process {pid} {why}"),
            many => format!("of {many} processes that the program began recording ended early; of process {pid} {why}"),
        });
        not_recorded(self.unrecorded + u64::from(more)).into_iter().chain(early).collect()
    }

    /// Of those that run on and could not be left as they were.
    pub fn not_left(&self) -> Option<String> {
        self.not_left.first().map(|(pid, error)| {
            format!(
                "process {pid} (one of {}) records nothing any more, but its code could not be restored: {error}; `hound detach -p {pid}` tries again",
                self.not_left.len()
            )
        })
    }
}

/// Of which processes the library ended the recording by itself, and why.
#[derive(Debug, Default)]
pub struct EndedEarly(Mutex<Vec<(u32, &'static str)>>);

impl EndedEarly {
    /// Notes it of a process that is no longer recorded, if it is so.
    pub fn note(&self, pid: u32, control: &Control) {
        if let Some(why) = ended_early(control) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push((pid, why));
        }
    }

    /// What was noted.
    pub fn take(&self) -> Vec<(u32, &'static str)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn not_recorded(unrecorded: u64) -> Option<String> {
    (unrecorded > 0).then(|| {
        format!(
            "{unrecorded} of the processes that the program began {} not recorded: no way to hound (a sandbox, or a network namespace of its own), \
             or a program that libhound.so was not loaded into",
            if unrecorded == 1 { "is" } else { "are" }
        )
    })
}

/// Why a library ended the recording by itself, or did not begin; nothing if it is not so.
pub fn bowed_out(control: &Control) -> Option<&'static str> {
    ended_early(control).or_else(|| match reason(control)? {
        OUT_SANITIZED => Some(
            "nothing was recorded: the program is built with a sanitizer, whose allocator cannot be called through a preloaded library; \
             `hound run --via patch` records it",
        ),
        OUT_OTHER_LIBC => Some("nothing was recorded: the program is one of musl's; `hound run --via patch` records it"),
        OUT_NO_ALLOCATOR => Some("nothing was recorded: the program's libraries have no malloc and free to be hooked"),
        _ => None,
    })
}

fn ended_early(control: &Control) -> Option<&'static str> {
    match reason(control)? {
        OUT_NO_HEARTBEAT => Some("recording ended early: it waited for hound and got no answer (was hound stopped?)"),
        OUT_NO_CLOCK => Some(
            "recording ended early: a thread forbade itself the time stamp counter (prctl PR_SET_TSC, or strict seccomp), without which \
             nothing can be recorded",
        ),
        OUT_SANITIZED | OUT_OTHER_LIBC | OUT_NO_ALLOCATOR => None,
        _ => Some("recording ended early: libhound.so had no memory for its own state"),
    }
}

/// One of `OUT_…`.
fn reason(control: &Control) -> Option<u32> {
    (control.library.load(Ordering::Acquire) == LIBRARY_OUT).then(|| control.bow_out.load(Ordering::Relaxed))
}
