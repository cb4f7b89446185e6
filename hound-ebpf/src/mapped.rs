//! System calls of the targets that change what is mapped: mmap, munmap, mremap, brk.
//!
//! They are seen where they return to the program, by the tracepoint of each: what they were asked is in the registers still. Any such
//! tracepoint sends every system call of every process on the machine through a longer way, on which the kernel looks by the call's number
//! whether somebody is interested: 33 ns a call (a call that does nothing: 133 ns before, 167 then). So there is no program that looks at
//! every call itself, and none where calls begin: that would be another such way for everybody, to learn a little more. Programs at the
//! kernel's functions for these calls (fentry) would cost nobody else anything; where tracing of functions is forbidden they do not load.

use crate::calls::{TID_BITS, current, now, own_tid};
use crate::kernel::*;
use crate::life::is_target;
use crate::maps::{count, settings};
use crate::record::{Head, send_call};
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::macros::{map, tracepoint};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TracePointContext;

/// System calls, by their numbers.
const MMAP: u32 = 9;
const MUNMAP: u32 = 11;
const BRK: u32 = 12;
const MREMAP: u32 = 25;

const PROT_EXEC: u64 = 4;
const MAP_ANONYMOUS: u64 = 0x20;
/// What a system call returns is an error from here on.
const ERRORS: u64 = -4095i64 as u64;
/// Where a tracepoint `syscalls:sys_exit_…` has what the call returns.
const RESULT: usize = 16;

/// When the present span began, and how much was told in it.
#[map]
static MAPPED: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

#[inline(always)]
fn returned(ctx: &TracePointContext, number: u32) -> Option<()> {
    let (pid, tid) = current();
    if !is_target(pid) {
        return None;
    }
    let settings = settings()?;
    // SAFETY: the tracepoint's own field.
    let result: u64 = unsafe { ctx.read_at(RESULT) }.ok()?;
    if result >= ERRORS {
        return None;
    }
    // SAFETY: asks for the task that runs.
    let task = unsafe { bpf_get_current_task_btf() };
    // SAFETY: what it had on entering the kernel, which the verifier knows as what it is.
    let regs = unsafe { &*(bpf_task_pt_regs(task) as *const pt_regs) };
    let is_code = number == MMAP && regs.rdx & PROT_EXEC != 0 && regs.r10 & MAP_ANONYMOUS == 0;
    if !is_code {
        if settings.flags & SETTING_MAPPED == 0 {
            return None;
        }
        if is_too_many(settings) {
            count(COUNT_TOO_MANY_MAPPED);
            return None;
        }
    }
    let time_ns = now();
    let mut head = Head {
        message: MESSAGE_MAPPED,
        flags: CALL_BY_KERNEL | if is_code { CALL_AT_ONCE } else { 0 },
        id: time_ns << TID_BITS | tid as u64,
        time_ns,
        pid,
        tid,
        size: result,
        detail: number,
        own_tid: own_tid(pid),
        ..Head::default()
    };
    let class = if number == BRK { 0 } else { settings.stack_class };
    count(if send_call(&mut head, regs, settings, class) { COUNT_MAPPED } else { COUNT_LOST_MAPPED });
    None
}

/// Whether this CPU has told as much as it may in this span.
#[inline(always)]
fn is_too_many(settings: &Settings) -> bool {
    let time_ns = now();
    let Some(span) = MAPPED.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own. Where a program is preempted by another one, a few more are told than should be.
    let [began, told] = unsafe { *span };
    let (began, told) = if time_ns - began >= MAPPED_SPAN { (time_ns, 0) } else { (began, told) };
    // SAFETY: as above.
    unsafe { *span = [began, told + 1] };
    settings.mapped_most != 0 && told >= settings.mapped_most
}

/// syscalls:sys_exit_mmap
#[tracepoint]
fn mmap_returned(ctx: TracePointContext) -> u32 {
    returned(&ctx, MMAP);
    0
}

/// syscalls:sys_exit_munmap
#[tracepoint]
fn munmap_returned(ctx: TracePointContext) -> u32 {
    returned(&ctx, MUNMAP);
    0
}

/// syscalls:sys_exit_mremap
#[tracepoint]
fn mremap_returned(ctx: TracePointContext) -> u32 {
    returned(&ctx, MREMAP);
    0
}

/// syscalls:sys_exit_brk
#[tracepoint]
fn brk_returned(ctx: TracePointContext) -> u32 {
    returned(&ctx, BRK);
    0
}
