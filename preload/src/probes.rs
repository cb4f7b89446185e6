//! Probes that other tracers can listen to: the memory-profiling contract of the OpenTelemetry eBPF profiler.
//!
//! `otel_memory:alloc(user, size, weighted_bytes)` and `otel_memory:free(ptr)`, for sampled blocks only. Each is a note in the file
//! (SystemTap's SDT format, version 3), which tells tracers the place of a nop and of a counter of listeners. Nobody listens, mostly: then all
//! it costs is a look at the counter.
//!
//! The nop is the first instruction of a function of its own. Linux 6.18 turns five bytes of nop into a call when it is traced, which
//! pushes a word: into what would be somebody's red zone anywhere else.

use core::arch::{asm, global_asm};

use hound_common::sampling::probability;

/// A function with a probe at its entry, its counter, and the note of both.
macro_rules! probe {
    ($name:literal, $site:literal, $listeners:literal, $arguments:literal) => {
        global_asm!(
            ".pushsection .text.hound_probes, \"ax\", @progbits",
            concat!(".hidden ", $site),
            concat!(".globl ", $site),
            concat!(".type ", $site, ", @function"),
            ".p2align 4",
            concat!($site, ":"),
            ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00",
            "ret",
            concat!(".size ", $site, ", . - ", $site),
            ".popsection",
            ".pushsection .probes, \"aw\", @progbits",
            concat!(".hidden ", $listeners),
            concat!(".globl ", $listeners),
            concat!(".type ", $listeners, ", @object"),
            concat!(".size ", $listeners, ", 2"),
            ".balign 2",
            concat!($listeners, ":"),
            ".2byte 0",
            ".popsection",
            ".pushsection .note.stapsdt, \"\", @note",
            ".balign 4",
            ".4byte 82f - 81f, 84f - 83f, 3",
            "81:",
            ".asciz \"stapsdt\"",
            "82:",
            ".balign 4",
            "83:",
            concat!(".8byte ", $site),
            ".8byte 0", // where .stapsdt.base lies, by which tracers see what a prelink has moved: there is none
            concat!(".8byte ", $listeners),
            ".asciz \"otel_memory\"",
            concat!(".asciz \"", $name, "\""),
            concat!(".asciz \"", $arguments, "\""),
            "84:",
            ".balign 4",
            ".popsection",
        );
    };
}

probe!("alloc", "hound_probe_alloc", "hound_probe_alloc_listeners", "8@%rdi 8@%rsi 8@%rdx");
probe!("free", "hound_probe_free", "hound_probe_free_listeners", "8@%rdi");

unsafe extern "C" {
    fn hound_probe_alloc(user: u64, size: u64, weighted_bytes: u64);
    fn hound_probe_free(user: u64);
}

/// How many listen to a probe: the kernel counts them.
macro_rules! listeners {
    ($name:literal) => {{
        let count: u32;
        // SAFETY: reads our own counter.
        unsafe {
            asm!(concat!("movzx {0:e}, word ptr [rip + ", $name, "]"), out(reg) count, options(nostack, readonly, preserves_flags));
        }
        count
    }};
}

/// A block of `size` bytes was sampled at a mean interval of `interval`.
#[inline]
pub fn allocated(addr: u64, size: u64, interval: u64) {
    if listeners!("hound_probe_alloc_listeners") != 0 {
        let weighted = weighted_bytes(size, interval);
        // SAFETY: a nop and a return.
        unsafe { hound_probe_alloc(addr, size, weighted) };
    }
}

/// A sampled block is about to be released.
#[inline]
pub fn released(addr: u64) {
    if listeners!("hound_probe_free_listeners") != 0 {
        // SAFETY: a nop and a return.
        unsafe { hound_probe_free(addr) };
    }
}

/// How many allocated bytes a sample of `size` bytes stands for.
#[cold]
#[inline(never)]
fn weighted_bytes(size: u64, interval: u64) -> u64 {
    // The target may have asked for signals on inexact results, and may look at the flags: the control word is put aside meanwhile. The
    // numbers pass through both instructions, so that the compiler keeps the calculation between them.
    const ALL_MASKED: u32 = 0x1f80;
    let (mut theirs, ours, mut size, mut interval) = (0_u32, ALL_MASKED, size, interval);
    // SAFETY: stores to and loads from two words of ours.
    unsafe {
        asm!("stmxcsr [{}]", "ldmxcsr [{}]", in(reg) &raw mut theirs, in(reg) &raw const ours, inout("rdi") size, inout("rsi") interval,
            options(nostack, preserves_flags));
    }
    let mut weighted = (size as f64 / probability(size, interval)) as u64;
    // SAFETY: loads what was stored above.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const theirs, inout("rdi") weighted, options(nostack, preserves_flags)) };
    weighted
}
