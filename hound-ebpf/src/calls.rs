//! Calls of allocating and releasing functions: which are sampled, what became of them, and which block is gone.
//!
//! No state is kept by CPU but counters: a program that a probe starts can be preempted. A block is in `LIVE` from the return of the call
//! that made it until the entry of the one that releases it. So its address is out of the table before the allocator can hand it to
//! another thread, and in it only after this call has it; the table never speaks of another thread's block.

use crate::kernel::*;
use crate::maps::{self, LIVE, PENDING, Pending, TARGETS, count, settings};
use crate::record::{Head, send, send_call, stack_pointer};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_pidns_info, pt_regs};
use aya_ebpf::helpers::generated::{bpf_get_attach_cookie, bpf_get_ns_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user};
use aya_ebpf::programs::ProbeContext;
use aya_log_ebpf::warn;

/// Thread numbers stay below this power of two (the kernel's PID_MAX_LIMIT).
pub const TID_BITS: u32 = 22;
const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;
const LOW: u64 = u32::MAX as u64;

/// Whether the call's return must be seen.
#[inline(always)]
pub fn entered(ctx: &ProbeContext) -> bool {
    count(COUNT_ALLOC_HITS);
    let Some(settings) = settings() else { return false };
    // SAFETY: the kernel passes a probe's program the registers.
    let regs = unsafe { &*ctx.regs };
    let arguments = Arguments::of(regs);
    let cookie = cookie_of(ctx);
    let size = size_of_call(&arguments, &cookie);
    let old = if cookie.does == DOES_REALLOC || cookie.does == DOES_RESIZE { arguments.get(cookie.block) } else { 0 };
    let made_by = if old == 0 { 0 } else { live(old, cookie.pool) };
    let sampled = settings.draw.sampled(size, random);
    if !sampled && made_by == 0 {
        return settings.flags & SETTING_WITNESS != 0;
    }
    let flags = if sampled { CALL_SAMPLED } else { 0 } | if made_by != 0 { CALL_KNOWN } else { 0 };
    let out = if cookie.out == NOTHING { 0 } else { arguments.get(cookie.out) };
    begin(regs, settings, &cookie, Begun { size, old, made_by, out, flags })
}

/// What a call asks for.
struct Begun {
    size: u64,
    old: u64,
    made_by: u64,
    out: u64,
    flags: u32,
}

#[inline(always)]
fn begin(regs: &pt_regs, settings: &Settings, cookie: &Cookie, begun: Begun) -> bool {
    let message = if begun.old == 0 { MESSAGE_ALLOC } else { MESSAGE_REALLOC };
    let mut head = head_of(cookie, message, settings);
    (head.size, head.pointer, head.made_by, head.flags) = (begun.size, begun.old, begun.made_by, begun.flags);
    let key = pending_key(stack_pointer(&head, regs), head.tid, cookie.pool);
    let mut pending = Pending {
        id: head.id,
        size: begun.size,
        old: begun.old,
        made_by: begun.made_by,
        out: begun.out,
        does: cookie.does as u32,
        flags: begun.flags,
    };
    // Before the message: a message whose outcome can never follow would be a call that never returned.
    if PENDING.insert(key, pending, BPF_ANY).is_err() {
        count(COUNT_PENDING_FULL);
        return false;
    }
    if begun.made_by != 0 {
        forget(head.pid, begun.old, cookie.pool);
    }
    if send_call(&mut head, regs, settings, settings.stack_class) {
        count(COUNT_SAMPLES);
        return true;
    }
    count(COUNT_LOST_CALLS);
    if begun.made_by == 0 {
        let _ = PENDING.remove(key);
        return false;
    }
    // Not sampled any more, but whether the old block stays must be seen.
    pending.flags &= !CALL_SAMPLED;
    PENDING.insert(key, pending, BPF_ANY).is_ok()
}

/// A call has returned whose return was to be seen.
#[inline(always)]
pub fn returned(ctx: &ProbeContext) {
    // SAFETY: the kernel passes a probe's program the registers.
    let regs = unsafe { &*ctx.regs };
    let Some(settings) = settings() else { return };
    let ((pid, tid), cookie) = (current(), cookie_of(ctx));
    // The return has popped the return address.
    let key = pending_key(regs.rsp - 8, tid, cookie.pool);
    // SAFETY: the entry is this thread's own, and copied at once.
    let Some(pending) = (unsafe { PENDING.get(key) }).copied() else {
        return if settings.flags & SETTING_WITNESS != 0 {
            unsampled(regs, &cookie, settings, pid, tid)
        };
    };
    let _ = PENDING.remove(key);
    count(COUNT_RETURNS);
    let mut outcome =
        Outcome { message: MESSAGE_OUTCOME, flags: 0, id: pending.id, time_ns: now(), pid, tid, address: 0, result: regs.rax };
    outcome.address = match pending.does as u8 {
        DOES_RESIZE => pending.old,
        _ if pending.out == 0 => regs.rax,
        // SAFETY: reads the target's memory, wherever the target has said.
        _ if regs.rax as u32 == 0 => unsafe { bpf_probe_read_user(pending.out as *const u64) }.unwrap_or(0),
        _ => 0,
    };
    if pending.made_by != 0 && outcome.address == 0 && pending.size != 0 {
        // It was not moved and not released. It is its caller's still, so nobody else can have come by the address.
        follow(ctx, &mut outcome, (pending.old, cookie.pool), pending.made_by);
        outcome.flags |= OUTCOME_OLD_STAYS;
    } else if pending.flags & CALL_SAMPLED != 0 && outcome.address != 0 {
        let address = outcome.address;
        follow(ctx, &mut outcome, (address, cookie.pool), pending.id);
    }
    if !send(&outcome, settings) {
        count(COUNT_LOST_OUTCOMES);
    }
}

#[inline(always)]
fn follow(ctx: &ProbeContext, outcome: &mut Outcome, (address, pool): (u64, u8), id: u64) {
    let key = live_key(outcome.pid, address, pool);
    // First, so that no release finds the block and not its number.
    maps::follow(address, 1);
    if LIVE.insert(key, id, BPF_NOEXIST).is_ok() {
        return;
    }
    maps::follow(address, -1);
    // The release of the block that was there before was not seen.
    if LIVE.insert(key, id, BPF_EXIST).is_ok() {
        return;
    }
    outcome.flags |= OUTCOME_NOT_FOLLOWED;
    if first(COUNT_LIVE_FULL) {
        warn!(ctx, "the table of live sampled blocks is full: releases of further ones will not be seen");
    }
}

/// The return of a call that is not sampled: what it hands out is nobody else's any more.
#[inline(always)]
fn unsampled(regs: &pt_regs, cookie: &Cookie, settings: &Settings, pid: u32, tid: u32) {
    let address = regs.rax;
    if address == 0 || cookie.out != NOTHING || cookie.does == DOES_RESIZE {
        return;
    }
    let id = live(address, cookie.pool);
    if id != 0 && forget(pid, address, cookie.pool) {
        let found = Outcome { message: MESSAGE_REUSED, flags: 0, id, time_ns: now(), pid, tid, address, result: cookie.to_bits() };
        if !send(&found, settings) {
            count(COUNT_LOST_OUTCOMES);
        }
    }
}

/// A function that releases was called.
#[inline(always)]
pub fn released(ctx: &ProbeContext) {
    count(COUNT_FREE_HITS);
    // SAFETY: the kernel passes a probe's program the registers.
    let regs = unsafe { &*ctx.regs };
    let arguments = Arguments::of(regs);
    let cookie = cookie_of(ctx);
    let block = arguments.get(cookie.block);
    if block == 0 {
        return;
    }
    let made_by = live(block, cookie.pool);
    // Who takes it out is the one that tells.
    if made_by == 0 || !forget(current().0, block, cookie.pool) {
        return;
    }
    count(COUNT_RELEASES);
    let Some(settings) = settings() else { return };
    let mut head = head_of(&cookie, MESSAGE_FREE, settings);
    (head.pointer, head.made_by, head.flags) = (block, made_by, CALL_KNOWN);
    let class = if settings.flags & SETTING_FREE_STACKS != 0 { settings.stack_class } else { 0 };
    if !send_call(&mut head, regs, settings, class) {
        count(COUNT_LOST_RELEASES);
    }
}

#[inline(always)]
fn head_of(cookie: &Cookie, message: u32, settings: &Settings) -> Head {
    let (pid, tid) = current();
    let time_ns = now();
    Head {
        message,
        // A thread makes no two calls in a nanosecond; time's 42 bits come round after 73 minutes.
        id: time_ns << TID_BITS | tid as u64,
        time_ns,
        pid,
        tid,
        cookie: cookie.to_bits(),
        interval: settings.draw.interval,
        own_tid: own_tid(pid),
        ..Head::default()
    }
}

#[inline(always)]
fn cookie_of(ctx: &ProbeContext) -> Cookie {
    // SAFETY: asks for the number that the link was made with.
    Cookie::from_bits(unsafe { bpf_get_attach_cookie(ctx.as_ptr()) })
}

/// The arguments that a call may have (System V ABI).
struct Arguments([u64; 6]);

impl Arguments {
    /// All are read before one is chosen: the verifier allows no read of the registers at a place that is computed, and the compiler would
    /// make one of a choice between six reads.
    #[inline(always)]
    fn of(regs: &pt_regs) -> Self {
        let registers =
            [&raw const regs.rdi, &raw const regs.rsi, &raw const regs.rdx, &raw const regs.rcx, &raw const regs.r8, &raw const regs.r9];
        // SAFETY: fields of a structure that is there.
        Arguments(registers.map(|register| unsafe { register.read_volatile() }))
    }

    #[inline(always)]
    fn get(&self, number: u8) -> u64 {
        let [first, second, third, fourth, fifth, sixth] = self.0;
        match number {
            0 => first,
            1 => second,
            2 => third,
            3 => fourth,
            4 => fifth,
            5 => sixth,
            _ => 0,
        }
    }
}

#[inline(always)]
fn size_of_call(arguments: &Arguments, cookie: &Cookie) -> u64 {
    let size = arguments.get(cookie.size);
    if cookie.count == NOTHING {
        return size;
    }
    let count = arguments.get(cookie.count);
    if (size | count) >> 32 == 0 {
        return size * count;
    }
    // In halves: there is no 128-bit product here.
    let (large, small) = if size > count { (size, count) } else { (count, size) };
    let high = (large >> 32) * (small & LOW);
    let product = (high << 32).wrapping_add((large & LOW) * (small & LOW));
    if small > LOW || high > LOW || product < high << 32 { u64::MAX } else { product }
}

/// Names a call under way. A pool's function may jump to one of the heap's, which finds the stack as it was: both calls count.
#[inline(always)]
fn pending_key(sp: u64, tid: u32, pool: u8) -> [u64; 2] {
    [sp, tid as u64 | (pool as u64) << 32]
}

/// The `id` that a live sampled block of this process was made by, or 0.
#[inline(always)]
fn live(address: u64, pool: u8) -> u64 {
    if !maps::may_be_live(address) {
        return 0;
    }
    // SAFETY: one word, read at once; another thread can change it only by misuse of its block.
    unsafe { LIVE.get(live_key(current().0, address, pool)) }.copied().unwrap_or(0)
}

/// Takes a block out of `LIVE`; whether it was there, and nobody else did so.
#[inline(always)]
fn forget(pid: u32, address: u64, pool: u8) -> bool {
    let was_there = LIVE.remove(live_key(pid, address, pool)).is_ok();
    if was_there {
        maps::follow(address, -1);
    }
    was_there
}

/// Process and thread.
#[inline(always)]
pub fn current() -> (u32, u32) {
    let both = bpf_get_current_pid_tgid();
    ((both >> 32) as u32, both as u32)
}

/// The thread that runs, as its own PID namespace numbers it; 0: not known.
#[inline(always)]
pub fn own_tid(pid: u32) -> u32 {
    // SAFETY: of a child, whose parent's it was at first, they may change once; then another number is not found.
    let Some(Target { namespace, .. }) = (unsafe { TARGETS.get(pid) }) else { return 0 };
    let mut numbers = bpf_pidns_info { pid: 0, tgid: 0 };
    let bytes = size_of::<bpf_pidns_info>() as u32;
    // SAFETY: the structure is of the size that is told.
    let failed = unsafe { bpf_get_ns_current_pid_tgid(namespace.device, namespace.inode, &raw mut numbers, bytes) };
    if failed == 0 { numbers.pid } else { 0 }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: asks for the time.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: asks for a number.
    unsafe { bpf_get_prandom_u32() }
}

/// Counts, and says whether this CPU has never counted it before.
#[inline(always)]
fn first(which: u32) -> bool {
    let before = crate::maps::counted(which);
    count(which);
    before == 0
}
