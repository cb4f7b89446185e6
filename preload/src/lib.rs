//! libhound.so: records every allocation from inside the target.
//!
//! Promises to the target: sizes, addresses and contents of blocks unchanged; errno preserved; no lock held while the real allocator runs;
//! nothing opened and no thread started after start-up, and no kind of system call the allocator would not make; never abort, panic or
//! exit the process; bow out completely when told to or when in doubt.
//!
//! It needs no other library: system calls are its own, and what it uses of the target's libc is looked up where the loader has mapped it.
//!
//! A call's way: `hooks` (the exported functions) → `record` (one function per event) → `walk` and `path` (the stack, by comparing it with
//! the previous one) → `producer` (the ring). Rarely: `rows`, `modules`, `full` (unwind rules), `process`, `environment`, `collector`
//! (start-up).
#![no_std]

mod api;
mod attached;
mod bodies;
mod clock;
mod collector;
mod directory;
mod elf;
mod environment;
mod exec;
mod exit;
mod family;
mod filters;
mod full;
mod guard;
mod hooks;
mod image;
mod inlined;
mod lean;
mod modules;
mod nesting;
mod own;
mod passing;
mod path;
mod pools;
mod probes;
mod process;
mod producer;
mod real;
mod record;
mod rows;
mod samples;
mod signals;
mod stack;
mod stubs;
mod sys;
mod thread;
mod usual;
mod walk;

/// Starts the library when the loader runs constructors, if no allocation came before.
extern "C" fn constructor() {
    process::ready();
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

/// When the program has called `exit`, or returned from `main`, and has run what it registered with `atexit`.
#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = exit::destructor;
