//! Page faults, and what happens to processes and threads; of the targets only.

use crate::calls::{TID_BITS, current, now, own_tid, random};
use crate::kernel::*;
use crate::maps::{TARGETS, count, settings};
use crate::record::{Head, send, send_call};
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_probe_read_kernel, bpf_probe_read_kernel_str_bytes};
use aya_ebpf::programs::RawTracePointContext;

const PAGE: u64 = 4096;
/// Of the processor's error code: the page was there, and was touched in a way that is not allowed (or is copied on write).
const PRESENT: u64 = 1;
/// Addresses below are the process'.
const USER_END: u64 = 1 << 47;

pub fn is_target(pid: u32) -> bool {
    // SAFETY: only whether it is there counts.
    unsafe { TARGETS.get(pid) }.is_some()
}

/// `page_fault_user(address, regs, error_code)` and `page_fault_kernel` of the same.
#[inline(always)]
pub fn fault(ctx: &RawTracePointContext, by_kernel: bool) -> Option<()> {
    let (pid, tid) = current();
    if !is_target(pid) {
        return None;
    }
    let settings = settings()?;
    let (address, error): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    if settings.flags & SETTING_FAULTS == 0 || error & PRESENT != 0 || address >= USER_END {
        return None;
    }
    let mut regs: *const pt_regs = ctx.arg(1);
    if by_kernel {
        // SAFETY: asks for the task that runs; as a number, since the verifier allows no computing with the pointer.
        let task = unsafe { bpf_get_current_task() };
        // Code that may not sleep reads the target with faults disabled (hound's own reading of stacks does): nothing is mapped by that.
        let disabled: u32 = field(task as *const u8, settings.task_pagefault_disabled)?;
        // Reading it disables them once.
        if disabled > 1 {
            return None;
        }
        // SAFETY: the task that runs.
        let task = unsafe { bpf_get_current_task_btf() };
        // SAFETY: what it had on entering the kernel.
        regs = unsafe { bpf_task_pt_regs(task) } as *const pt_regs;
    }
    count(COUNT_FAULTS);
    if random() as u64 >= settings.fault_threshold {
        return None;
    }
    // SAFETY: the kernel's memory; a bad address gives an error.
    let regs = unsafe { bpf_probe_read_kernel(regs) }.ok()?;
    let time_ns = now();
    let mut head = Head {
        message: MESSAGE_FAULT,
        flags: CALL_SAMPLED | if by_kernel { CALL_BY_KERNEL } else { 0 },
        id: time_ns << TID_BITS | tid as u64,
        time_ns,
        pid,
        tid,
        size: PAGE,
        pointer: address,
        interval: settings.fault_interval,
        detail: error as u32,
        own_tid: own_tid(pid),
        ..Head::default()
    };
    if !send_call(&mut head, &regs, settings, settings.stack_class) {
        count(COUNT_LOST_FAULTS);
    }
    Some(())
}

/// `sched_process_fork(parent, child)`.
#[inline(always)]
pub fn fork(ctx: &RawTracePointContext) -> Option<()> {
    let (pid, _) = current();
    // SAFETY: three words, copied at once; hound writes them anew only for a process that it comes to know better.
    let target = unsafe { TARGETS.get(pid) }.copied()?;
    let settings = settings()?;
    let child: u32 = field(ctx.arg(1), settings.task_tgid)?;
    // Else it is a thread.
    if child == pid {
        return None;
    }
    // Here, before the child has run: what it does is told from its first moment on, whenever hound hears of it.
    if target.follow != 0 {
        let _ = TARGETS.insert(child, target, 0);
    }
    tell(MESSAGE_FORK, child, bpf_get_current_comm().unwrap_or_default())
}

/// Something happened to the process or thread that runs.
#[inline(always)]
pub fn happened(message: u32) -> Option<()> {
    if is_target(current().0) { tell(message, 0, bpf_get_current_comm().unwrap_or_default()) } else { None }
}

/// `task_rename(task, comm)`. A thread may be renamed by another.
#[inline(always)]
pub fn renamed(ctx: &RawTracePointContext) -> Option<()> {
    let settings = settings()?;
    let task: *const u8 = ctx.arg(0);
    let pid: u32 = field(task, settings.task_tgid)?;
    if !is_target(pid) {
        return None;
    }
    let tid: u32 = field(task, settings.task_pid)?;
    let mut name = [0; 16];
    // SAFETY: the kernel's memory; a bad address gives an error.
    let _ = unsafe { bpf_probe_read_kernel_str_bytes(ctx.arg(1), &mut name) };
    tell_of(MESSAGE_NAME, pid, tid, 0, name)
}

/// `mark_victim(task, uid)`; before Linux 6.9 `mark_victim(pid)`.
#[inline(always)]
pub fn chosen(ctx: &RawTracePointContext) -> Option<()> {
    let settings = settings()?;
    let argument: u64 = ctx.arg(0);
    let pid = if argument >> 32 == 0 { argument as u32 } else { field(argument as *const u8, settings.task_tgid)? };
    if is_target(pid) { tell_of(MESSAGE_OOM, pid, pid, 0, [0; 16]) } else { None }
}

#[inline(always)]
fn tell(message: u32, other: u32, name: [u8; 16]) -> Option<()> {
    let (pid, tid) = current();
    tell_of(message, pid, tid, other, name)
}

#[inline(always)]
fn tell_of(message: u32, pid: u32, tid: u32, other: u32, name: [u8; 16]) -> Option<()> {
    if !send(&Lifecycle { message, other, time_ns: now(), pid, tid, name }, settings()?) {
        count(COUNT_LOST_LIFECYCLE);
    }
    Some(())
}

/// A field of a structure of the kernel's, whose place hound has looked up.
#[inline(always)]
pub fn field<T>(of: *const u8, offset: u64) -> Option<T> {
    if offset == 0 {
        return None;
    }
    // SAFETY: computes an address only; a bad one gives an error on reading.
    let at = of.wrapping_add(offset as usize);
    // SAFETY: the kernel's memory; a bad address gives an error.
    unsafe { bpf_probe_read_kernel(at.cast()) }.ok()
}
