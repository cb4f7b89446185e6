//! What a program may call to steer its recording, under the names documented for it.

use core::sync::atomic::{AtomicBool, Ordering};

use hound_common::ring::STATE_RECORDING;

use crate::record::{self, Caller};
use crate::{process, thread};

/// Body of `memory_profiler_set_marker`.
pub unsafe extern "C" fn set_marker(value: u32, slot: u64, bp: u64) {
    record::marker(Caller { slot, bp }, value);
}

/// Starts (or resumes) recording.
#[unsafe(no_mangle)]
pub extern "C" fn memory_profiler_start() {
    switch(true);
}

/// Stops recording. What is allocated or freed meanwhile is not seen.
#[unsafe(no_mangle)]
pub extern "C" fn memory_profiler_stop() {
    switch(false);
}

/// Somebody is switching: who comes meanwhile (a signal handler that interrupts it, another thread) finds it done.
static SWITCHING: AtomicBool = AtomicBool::new(false);

fn is_on() -> bool {
    process::control().state.load(Ordering::Relaxed) & STATE_RECORDING != 0
}

fn switch(on: bool) {
    if !process::ready() || SWITCHING.swap(true, Ordering::Acquire) {
        return;
    }
    if is_on() != on {
        record::switch(on);
    }
    SWITCHING.store(false, Ordering::Release);
}

/// Stops recording if it goes on, and starts it if it does not. Not in the child of a fork that has recorded nothing yet: the ring is its
/// parent's.
pub fn toggle() {
    if process::is_target() {
        switch(!is_on());
    }
}

/// Events are visible to hound as they happen: nothing is held back that would have to be written out.
#[unsafe(no_mangle)]
pub extern "C" fn memory_profiler_sync() {}

/// Gives the calling thread's next event this time (in the ring's clock).
#[unsafe(no_mangle)]
pub extern "C" fn memory_profiler_override_next_timestamp(ticks: u64) {
    // SAFETY: null or this thread's own state.
    if let Some(state) = unsafe { thread::current().as_mut() } {
        state.override_time(ticks);
    }
}
