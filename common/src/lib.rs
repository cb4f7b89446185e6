//! Definitions shared by the target-side library, the kernel side and the tool.
#![no_std]
