//! What libhound.so, the kernel side and the tool must agree on: the events and their bytes, the rings they travel in, the control
//! page, the list of hooked functions, and the arithmetic of sampling.
//!
//! Invariant: no dependencies, no allocation, no I/O. Everything here may be used inside `malloc` of a foreign process.
#![no_std]
#![forbid(unsafe_code)]

pub mod attach;
pub mod draw;
pub mod event;
pub mod family;
pub mod hook;
pub mod kernel;
pub mod ring;
pub mod sampling;
