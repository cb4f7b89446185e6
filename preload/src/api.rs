//! What a program may call to steer its recording, under the names documented for it.

use core::sync::atomic::Ordering;

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

fn switch(on: bool) {
    let control = process::control();
    let is_on = control.state.load(Ordering::Relaxed) & STATE_RECORDING != 0;
    if process::ready() && is_on != on {
        control.change(on);
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
        state.timestamp_override = ticks;
    }
}
