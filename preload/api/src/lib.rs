//! Steers hound from inside the program that it records.
//!
//! Each function finds libhound.so in the process, if it is there (`hound run`, `LD_PRELOAD=libhound.so`), and does nothing where it is not: a
//! program that uses it needs no hound to be built or run. One call costs a few nanoseconds more than libhound's own function.
//!
//! ```no_run
//! hound_api::stop();
//! load_what_is_not_of_interest();
//! hound_api::start();
//! hound_api::set_marker(1); // `hound script`: allocations().only_with_marker(1)
//! # fn load_what_is_not_of_interest() {}
//! ```
#![no_std]
#![expect(unsafe_code, reason = "calls functions that the dynamic loader finds by name")]

use core::ffi::{CStr, c_char, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

unsafe extern "C" {
    safe fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// `RTLD_DEFAULT`: all that the program has loaded, in the order of the search.
const ALL: *mut c_void = null_mut();

/// A function of libhound's, looked up once.
struct Function {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

/// Stands for a function that was looked for and is not there: no function lies there.
const NOT_THERE: *mut c_void = core::ptr::dangling_mut::<u64>().cast();

impl Function {
    const fn named(name: &'static CStr) -> Self {
        Function { name, found: AtomicPtr::new(null_mut()) }
    }

    fn get(&self) -> Option<*mut c_void> {
        let mut found = self.found.load(Ordering::Relaxed);
        if found.is_null() {
            found = dlsym(ALL, self.name.as_ptr());
            if found.is_null() {
                found = NOT_THERE;
            }
            self.found.store(found, Ordering::Relaxed);
        }
        (found != NOT_THERE).then_some(found)
    }

    fn call(&self) {
        if let Some(function) = self.get() {
            // SAFETY: libhound's functions of these names take nothing and return nothing (preload/src/api.rs).
            let function: extern "C" fn() = unsafe { core::mem::transmute(function) };
            function();
        }
    }
}

static START: Function = Function::named(c"memory_profiler_start");
static STOP: Function = Function::named(c"memory_profiler_stop");
static SYNC: Function = Function::named(c"memory_profiler_sync");
static SET_MARKER: Function = Function::named(c"memory_profiler_set_marker");
static OVERRIDE: Function = Function::named(c"memory_profiler_override_next_timestamp");

/// Whether libhound.so is in this process.
pub fn is_there() -> bool {
    START.get().is_some()
}

/// Starts recording, or resumes it. Nothing if it goes on already.
pub fn start() {
    START.call();
}

/// Stops recording. What is allocated or released meanwhile is not seen, and what lives through it is counted apart: nobody knows what
/// became of it.
pub fn stop() {
    STOP.call();
}

/// What was recorded so far is hound's to write. It is so at any time; this is for programs that were written for other profilers.
pub fn sync() {
    SYNC.call();
}

/// Marks this moment with a number.
pub fn set_marker(value: u32) {
    if let Some(function) = SET_MARKER.get() {
        // SAFETY: libhound's function of this name takes a number and returns nothing (preload/src/api.rs).
        let function: extern "C" fn(u32) = unsafe { core::mem::transmute(function) };
        function(value);
    }
}

/// Gives the next event of the calling thread this time, in ticks of the capture's clock: for tests, and for programs that replay others.
pub fn override_next_timestamp(ticks: u64) {
    if let Some(function) = OVERRIDE.get() {
        // SAFETY: libhound's function of this name takes a number and returns nothing (preload/src/api.rs).
        let function: extern "C" fn(u64) = unsafe { core::mem::transmute(function) };
        function(ticks);
    }
}
