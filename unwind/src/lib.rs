//! Stack unwinding from call frame information.
#![no_std]
#![forbid(unsafe_code)]
