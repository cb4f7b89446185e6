//! hound's programs in the kernel. What they and hound say to each other is in `kernel`, a module of hound-common. It is taken in as a file:
//! a crate from outside this workspace would put its path's hash into the object, which is to be the same wherever it is built.
//!
//! A program's name and section are how hound finds and loads it. Nothing here fails: a program that cannot do its work counts that.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod calls;
#[allow(dead_code, reason = "hound uses the rest")]
#[path = "../../common/src/draw.rs"]
mod draw;
#[allow(dead_code, reason = "hound uses the rest")]
#[path = "../../common/src/kernel.rs"]
mod kernel;
mod kmem;
mod life;
mod mapped;
mod maps;
mod record;

use crate::kernel::{MESSAGE_EXEC, MESSAGE_EXIT};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::bpf_get_func_ip;
use aya_ebpf::macros::{raw_tracepoint, uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext, RetProbeContext};

/// For the session link of functions that allocate: called at entry and return. No `#[uprobe]`, which would drop the answer.
#[unsafe(no_mangle)]
#[unsafe(link_section = "uprobe")]
fn alloc(regs: *mut pt_regs) -> u64 {
    /// Of the answer at entry: the return needs no probe.
    const SKIP_RETURN: u64 = 1;
    let ctx = ProbeContext { regs };
    // SAFETY: the kernel passes the registers.
    let ip = unsafe { &*regs }.rip;
    // SAFETY: asks where the probe is. At the return the registers are the caller's.
    if unsafe { bpf_get_func_ip(regs.cast()) } != ip {
        calls::returned(&ctx);
        return 0;
    }
    if calls::entered(&ctx) { 0 } else { SKIP_RETURN }
}

/// As `alloc`, for kernels without sessions.
#[uprobe]
fn alloc_entry(ctx: ProbeContext) -> u32 {
    calls::entered(&ctx);
    0
}

/// The other half of `alloc_entry`.
#[uretprobe]
fn alloc_return(ctx: RetProbeContext) -> u32 {
    calls::returned(&ProbeContext::new(ctx.as_ptr()));
    0
}

/// Functions that release.
#[uprobe]
fn release(ctx: ProbeContext) -> u32 {
    calls::released(&ctx);
    0
}

/// exceptions:page_fault_user
#[raw_tracepoint]
fn fault_user(ctx: RawTracePointContext) -> i32 {
    life::fault(&ctx, false);
    0
}

/// exceptions:page_fault_kernel
#[raw_tracepoint]
fn fault_kernel(ctx: RawTracePointContext) -> i32 {
    life::fault(&ctx, true);
    0
}

/// sched:sched_process_fork
#[raw_tracepoint]
fn process_fork(ctx: RawTracePointContext) -> i32 {
    life::fork(&ctx);
    0
}

/// sched:sched_process_exec
#[raw_tracepoint]
fn process_exec(_: RawTracePointContext) -> i32 {
    life::happened(MESSAGE_EXEC);
    0
}

/// sched:sched_process_exit
#[raw_tracepoint]
fn process_exit(_: RawTracePointContext) -> i32 {
    life::happened(MESSAGE_EXIT);
    0
}

/// task:task_rename
#[raw_tracepoint]
fn task_rename(ctx: RawTracePointContext) -> i32 {
    life::renamed(&ctx);
    0
}

/// oom:mark_victim
#[raw_tracepoint]
fn mark_victim(ctx: RawTracePointContext) -> i32 {
    life::chosen(&ctx);
    0
}

/// The functions that parts of these programs may call need it: the licence is asked for by the kernel, which lets only programs under the
/// GPL read its memory and the target's.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
