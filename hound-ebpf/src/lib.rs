//! Kernel-side programs.
#![no_std]
