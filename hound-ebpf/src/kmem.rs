//! What the kernel allocates for itself, and releases: its own tracepoints for slabs, per-CPU memory and pages.
//!
//! These run inside the allocator, in any context but an NMI, up to millions of times a second. So nothing here allocates: `KMEM_LIVE` is
//! preallocated, unlike the tables for processes, and its size bounds what can be followed. A release costs one lookup; an allocation one
//! lookup and one random number, and only of those that are sampled a stack is taken.
//!
//! An allocation is told of after it, a release before it, so that `KMEM_LIVE` never speaks of another one's block. Some releases have no
//! tracepoint (bulk releases of slabs): their blocks stay in the table until the address is handed out again, which every allocation is
//! looked at for.

use crate::calls::{current, now, random};
use crate::kernel::*;
use crate::life::field;
use crate::maps::EVENTS;
use crate::record::waking;
use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_get_stack, bpf_probe_read_kernel_str};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::RawTracePointContext;
use core::arch::asm;

/// Live sampled blocks of the kernel's: address to the `id` of the allocation. Preallocated: see above. hound sets the size where it is
/// used; else it takes no room.
#[map]
pub static KMEM_LIVE: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);

/// One entry, which does not change while the programs run.
#[map]
pub static KMEM_SETTINGS: Array<KernelSettings> = Array::with_max_entries(1, 0);

/// Counters (`KMEM_…`).
#[map]
pub static KMEM_COUNTS: PerCpuArray<[u64; KMEM_COUNTERS as usize]> = PerCpuArray::with_max_entries(1, 0);

const BPF_ANY: u64 = 0;
/// The table has no free entry.
const E2BIG: i32 = -7;
const ENOENT: i32 = -2;
const PAGE_SHIFT: u32 = 12;
/// Bits of an `id` that tell the processor.
const CPU_BITS: u32 = 12;

/// What a reservation for an allocation holds.
#[repr(C)]
struct Record {
    head: KernelBlock,
    stack: [u64; KERNEL_FRAMES],
}

#[inline(always)]
fn count(which: u32) {
    if let Some(counts) = KMEM_COUNTS.get_ptr_mut(0)
        && which < KMEM_COUNTERS
    {
        // SAFETY: `which` is inside the array that the map's value is.
        let counter = unsafe { counts.cast::<u64>().add(which as usize) };
        // An interrupt may count, too.
        // SAFETY: adds to the counter, which is aligned and is never taken away from a running program.
        unsafe { asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1u64) };
    }
}

/// A place where the kernel keeps how large a cache's objects are, or a size.
#[derive(Clone, Copy)]
enum Size {
    Bytes(u64),
    Cache(*const u8),
}

#[inline(always)]
fn allocated(ctx: &RawTracePointContext, kind: u32, address: u64, size: Size) -> Option<()> {
    let settings = KMEM_SETTINGS.get(0)?;
    let (pid, tid) = current();
    // What hound does to record must not make it record more.
    let wanted = pid != settings.hound as u32 && (settings.pid == 0 || pid == settings.pid as u32);
    count(if wanted { KMEM_ALLOC_HITS } else { KMEM_OTHERS });
    if address == 0 {
        return None;
    }
    // SAFETY: one word, read at once; only who allocates and releases this very block can change it.
    let made_by = unsafe { KMEM_LIVE.get(address) }.copied().unwrap_or(0);
    let (mut sampled, mut bytes) = (false, 0);
    if wanted {
        bytes = match size {
            Size::Bytes(bytes) => bytes,
            Size::Cache(cache) => field::<u32>(cache, settings.cache_size).unwrap_or(0) as u64,
        };
        sampled = settings.draw.sampled(bytes, random);
    }
    if !sampled {
        if made_by != 0 && KMEM_LIVE.remove(address).is_ok() {
            told(settings, KERNEL_REUSED, address, made_by, kind);
        }
        return None;
    }
    let mut head = KernelBlock { message: KERNEL_ALLOC, size: bytes, time_ns: now(), ..KernelBlock::default() };
    // SAFETY: asks which processor this is.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    head.id = head.time_ns << CPU_BITS | cpu as u64;
    (head.pid, head.tid, head.kind) = (pid, tid, kind);
    (head.address, head.made_by, head.interval) = (address, made_by, settings.draw.interval);
    head.thread = bpf_get_current_comm().unwrap_or_default();
    if let Size::Cache(cache) = size {
        head.cache = cache as u64;
        name_of_cache(&mut head, cache, settings);
    }
    // Before the message: a block whose release would not be seen must not be told of.
    if let Err(why) = KMEM_LIVE.insert(address, head.id, BPF_ANY) {
        count(if why == E2BIG { KMEM_LIVE_FULL } else { KMEM_BUSY });
        return None;
    }
    if with_stack(ctx, &mut head, settings) {
        count(KMEM_SAMPLES);
    } else {
        count(KMEM_LOST_ALLOCS);
        let _ = KMEM_LIVE.remove(address);
    }
    Some(())
}

#[inline(always)]
fn name_of_cache(head: &mut KernelBlock, cache: *const u8, settings: &KernelSettings) {
    let Some(name) = field::<u64>(cache, settings.cache_name) else { return };
    let (to, room) = (head.cache_name.as_mut_ptr(), head.cache_name.len() as u32);
    // SAFETY: `to` has this much room; a bad address gives an error.
    let _ = unsafe { bpf_probe_read_kernel_str(to.cast(), room, name as *const _) };
}

#[inline(always)]
fn with_stack(ctx: &RawTracePointContext, head: &mut KernelBlock, settings: &KernelSettings) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Record>(0) else { return false };
    let record = entry.as_mut_ptr();
    // SAFETY: the reservation is of this type's size; the verifier checks it.
    let stack = unsafe { &raw mut (*record).stack }.cast();
    // SAFETY: writes into the reservation, at most so much.
    let bytes = unsafe { bpf_get_stack(ctx.as_ptr(), stack, (8 * KERNEL_FRAMES) as u32, 0) };
    head.frames = if bytes > 0 { bytes as u32 / 8 } else { 0 };
    if head.frames == 0 {
        count(KMEM_NO_STACK);
    }
    // SAFETY: as above.
    let to = unsafe { &raw mut (*record).head };
    // SAFETY: as above.
    unsafe { to.write(*head) };
    entry.submit(waking(settings.wake_bytes, size_of::<Record>() as u64));
    true
}

#[inline(always)]
fn released(kind: u32, address: u64) -> Option<()> {
    count(KMEM_FREE_HITS);
    // SAFETY: as above.
    let made_by = unsafe { KMEM_LIVE.get(address) }.copied()?;
    // One that is taken out already was told of by who did it. Where the table was busy, the block is gone all the same.
    match KMEM_LIVE.remove(address) {
        Err(ENOENT) => return None,
        Err(_) => count(KMEM_BUSY),
        Ok(()) => {}
    }
    told(KMEM_SETTINGS.get(0)?, KERNEL_FREE, address, made_by, kind);
    Some(())
}

/// A block is gone.
#[inline(always)]
fn told(settings: &KernelSettings, message: u32, address: u64, made_by: u64, kind: u32) {
    count(if message == KERNEL_FREE { KMEM_RELEASES } else { KMEM_REUSED });
    let Some(mut entry) = EVENTS.reserve::<KernelBlock>(0) else { return count(KMEM_LOST_FREES) };
    let (pid, tid) = current();
    entry.write(KernelBlock { message, time_ns: now(), pid, tid, address, made_by, kind, ..KernelBlock::default() });
    entry.submit(waking(settings.wake_bytes, size_of::<KernelBlock>() as u64));
}

/// kmem:kmalloc(call_site, block, bytes_req, bytes_alloc, flags, node)
#[raw_tracepoint]
fn kmem_kmalloc(ctx: RawTracePointContext) -> i32 {
    allocated(&ctx, KERNEL_KMALLOC, ctx.arg(1), Size::Bytes(ctx.arg(3)));
    0
}

/// kmem:kmem_cache_alloc(call_site, block, cache, flags, node)
#[raw_tracepoint]
fn kmem_cache_alloc(ctx: RawTracePointContext) -> i32 {
    allocated(&ctx, KERNEL_CACHE, ctx.arg(1), Size::Cache(ctx.arg(2)));
    0
}

/// percpu:percpu_alloc_percpu(call_site, reserved, is_atomic, size, align, base, offset, …)
#[raw_tracepoint]
fn kmem_percpu_alloc(ctx: RawTracePointContext) -> i32 {
    let cpus = KMEM_SETTINGS.get(0).map_or(1, |settings| settings.cpus);
    let (size, base, offset): (u64, u64, i32) = (ctx.arg(3), ctx.arg(5), ctx.arg(6));
    allocated(&ctx, KERNEL_PERCPU, base.wrapping_add(offset as i64 as u64), Size::Bytes(size * cpus));
    0
}

/// kmem:mm_page_alloc(page, order, flags, migratetype)
#[raw_tracepoint]
fn kmem_pages_alloc(ctx: RawTracePointContext) -> i32 {
    let order: u32 = ctx.arg(1);
    allocated(&ctx, KERNEL_PAGES, ctx.arg(0), Size::Bytes(1 << ((order & 31) + PAGE_SHIFT)));
    0
}

/// kmem:kfree(call_site, block)
#[raw_tracepoint]
fn kmem_kfree(ctx: RawTracePointContext) -> i32 {
    released(KERNEL_KMALLOC, ctx.arg(1));
    0
}

/// kmem:kmem_cache_free(call_site, block, cache)
#[raw_tracepoint]
fn kmem_cache_free(ctx: RawTracePointContext) -> i32 {
    released(KERNEL_CACHE, ctx.arg(1));
    0
}

/// percpu:percpu_free_percpu(base, offset, …)
#[raw_tracepoint]
fn kmem_percpu_free(ctx: RawTracePointContext) -> i32 {
    let (base, offset): (u64, i32) = (ctx.arg(0), ctx.arg(1));
    released(KERNEL_PERCPU, base.wrapping_add(offset as i64 as u64));
    0
}

/// kmem:mm_page_free(page, order)
#[raw_tracepoint]
fn kmem_pages_free(ctx: RawTracePointContext) -> i32 {
    released(KERNEL_PAGES, ctx.arg(0));
    0
}
