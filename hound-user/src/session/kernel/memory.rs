//! The programs for the kernel's own memory: loading them, and reading what they say.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfLoader, Pod};
use hound_common::draw::Draw;
use hound_common::kernel::{KERNEL_CACHE, KERNEL_KMALLOC, KERNEL_PAGES, KERNEL_PERCPU, KMEM_COUNTERS, KernelBlock, KernelSettings};

use super::error::KernelError;
use super::load::{MOST_AT_ONCE, OBJECT, missing, program};
use super::messages::kernel_block;
use super::rights::{BOTH, BPF};
use super::types::{CacheFields, arguments};

/// `BPF_ANY`: make the entry or replace it.
const ANY: u64 = 0;

/// A kind of kernel memory: what follows it are programs, their tracepoints, and how many arguments those have.
struct Watched {
    kind: u32,
    /// What releases first: a block that is sampled has its release seen.
    programs: [(&'static str, &'static str, usize); 2],
}

const WATCHED: [Watched; 4] = [
    Watched { kind: KERNEL_KMALLOC, programs: [("kmem_kfree", "kfree", 2), ("kmem_kmalloc", "kmalloc", 6)] },
    Watched { kind: KERNEL_CACHE, programs: [("kmem_cache_free", "kmem_cache_free", 3), ("kmem_cache_alloc", "kmem_cache_alloc", 5)] },
    Watched {
        kind: KERNEL_PERCPU,
        programs: [("kmem_percpu_free", "percpu_free_percpu", 3), ("kmem_percpu_alloc", "percpu_alloc_percpu", 10)],
    },
    Watched { kind: KERNEL_PAGES, programs: [("kmem_pages_free", "mm_page_free", 2), ("kmem_pages_alloc", "mm_page_alloc", 4)] },
];

/// What to record of the kernel's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelMemoryOptions {
    /// Only what this process' threads allocate.
    pub pid: Option<u32>,
    /// hound's own process, of which nothing is recorded; 0: there is none to leave out.
    pub hound: u32,
    /// Mean bytes between samples; 0: every allocation.
    pub interval: u64,
    /// Most sampled blocks that can be followed at once. The table for them is made at once: 60 bytes of kernel memory each.
    pub live_entries: u32,
    /// Of the ring; a power of two.
    pub ring_bytes: u32,
    /// Possible processors.
    pub processors: u32,
}

impl Default for KernelMemoryOptions {
    fn default() -> Self {
        let interval = hound_common::sampling::DEFAULT_INTERVAL;
        KernelMemoryOptions { pid: None, hound: 0, interval, live_entries: 1 << 18, ring_bytes: 16 << 20, processors: 1 }
    }
}

/// The programs, loaded.
pub struct KernelMemory {
    ebpf: Ebpf,
    settings: Array<MapData, Entry>,
    fields: CacheFields,
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, [u64; KMEM_COUNTERS as usize]>,
    live: HashMap<MapData, u64, u64>,
    attached: Vec<&'static str>,
}

impl fmt::Debug for KernelMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KernelMemory").field("attached", &self.attached).finish_non_exhaustive()
    }
}

/// As the map has them: integers without padding.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Entry(KernelSettings);

// SAFETY: `KernelSettings` is `repr(C)` and has only fields of 64 bits, so no padding.
#[expect(unsafe_code, reason = "says that the structure is plain bytes")]
unsafe impl Pod for Entry {}

impl KernelMemory {
    /// Loads the programs. Nothing is watched yet.
    ///
    /// # Errors
    /// [`KernelError::NotPermitted`] without the capabilities, [`KernelError::NotSupported`] where the kernel has not what they read.
    pub fn load(options: &KernelMemoryOptions) -> Result<Self, KernelError> {
        let fields = CacheFields::of_this_kernel()
            .map_err(|_| KernelError::NotSupported { lacks: "type information in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)" })?;
        let mut ebpf = EbpfLoader::new()
            .map_max_entries("EVENTS", options.ring_bytes)
            .map_max_entries("KMEM_LIVE", options.live_entries)
            // Of the programs for processes, which are not used here.
            .map_max_entries("LIVE", 1)
            .load(OBJECT)
            .map_err(|error| KernelError::of("make eBPF maps", BOTH, error))?;
        let mut programs = KernelMemory {
            settings: taken(&mut ebpf, "KMEM_SETTINGS")?,
            fields,
            ring: taken(&mut ebpf, "EVENTS")?,
            counts: taken(&mut ebpf, "KMEM_COUNTS")?,
            live: taken(&mut ebpf, "KMEM_LIVE")?,
            ebpf,
            attached: Vec::new(),
        };
        programs.set(options)?;
        Ok(programs)
    }

    /// Changes what is recorded, and how closely. The sizes stay as they were loaded.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn set(&mut self, options: &KernelMemoryOptions) -> Result<(), KernelError> {
        let settings = KernelSettings {
            draw: Draw::of(options.interval),
            pid: options.pid.unwrap_or(0).into(),
            hound: options.hound.into(),
            wake_bytes: (options.ring_bytes / 4).into(),
            cpus: options.processors.into(),
            cache_size: self.fields.size,
            cache_name: self.fields.name,
        };
        self.settings.set(0, Entry(settings), ANY).map_err(failed)
    }

    /// Watches these kinds (`KERNEL_…`) from now on. What releases is watched before what allocates.
    ///
    /// # Errors
    /// [`KernelError::NotSupported`] where this kernel's tracepoints are others than those that the programs were written for.
    pub fn watch(&mut self, kinds: &[u32]) -> Result<(), KernelError> {
        let watched = || WATCHED.iter().filter(|watched| kinds.contains(&watched.kind));
        for (_, tracepoint, expected) in watched().flat_map(|watched| watched.programs) {
            // The programs read arguments by their places.
            if arguments(tracepoint).is_ok_and(|found| found != Some(expected)) {
                return Err(KernelError::NotSupported { lacks: "tracepoints of its allocators as Linux has them since 6.1" });
            }
        }
        for which in [0, 1] {
            for (name, tracepoint, _) in watched().map(|watched| watched.programs[which]) {
                let program = program::<RawTracePoint>(&mut self.ebpf, name)?;
                program.load().map_err(|error| KernelError::of("load eBPF programs", BOTH, error))?;
                program.attach(tracepoint).map_err(|error| KernelError::of("attach to a tracepoint", BOTH, error))?;
                self.attached.push(name);
            }
        }
        Ok(())
    }

    /// Watches nothing any more. What was said can still be read.
    ///
    /// # Errors
    /// If the kernel keeps a program attached.
    pub fn unwatch(&mut self) -> Result<(), KernelError> {
        // Allocations first: none is recorded whose release is not seen.
        for name in std::mem::take(&mut self.attached).into_iter().rev() {
            let program = program::<RawTracePoint>(&mut self.ebpf, name)?;
            program.unload().map_err(|error| KernelError::of("detach from a tracepoint", BOTH, error))?;
        }
        Ok(())
    }

    /// Takes what is in the ring; returns how many messages it was.
    pub fn read(&mut self, take: &mut impl FnMut(&KernelBlock, &[u64])) -> usize {
        let (mut taken, mut stack) = (0, Vec::new());
        while taken < MOST_AT_ONCE
            && let Some(item) = self.ring.next()
        {
            taken += 1;
            if let Some(block) = kernel_block(&item, &mut stack) {
                take(&block, &stack);
            }
        }
        taken
    }

    /// Becomes readable when the ring has filled by a quarter.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// What the programs have counted, by `KMEM_…`.
    ///
    /// # Errors
    /// If the kernel does not give them.
    pub fn counters(&self) -> Result<[u64; KMEM_COUNTERS as usize], KernelError> {
        let mut sum = [0; KMEM_COUNTERS as usize];
        for one in self.counts.get(&0, 0).map_err(failed)?.iter() {
            sum.iter_mut().zip(one).for_each(|(to, from)| *to += from);
        }
        Ok(sum)
    }

    /// Runs of the programs that the kernel left out: on the same processor the same program was interrupted. Such a release is seen only
    /// when its address is handed out again.
    pub fn left_out(&mut self) -> u64 {
        let mut sum = 0;
        for name in self.attached.clone() {
            let Ok(program) = program::<RawTracePoint>(&mut self.ebpf, name) else { continue };
            let Ok(descriptor) = program.fd() else { continue };
            let said = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd())).unwrap_or_default();
            let number = said.lines().find_map(|line| line.strip_prefix("recursion_misses:")).and_then(|text| text.trim().parse().ok());
            sum += number.unwrap_or(0);
        }
        sum
    }

    /// Whether the block is still held to be there by the programs.
    pub fn holds(&self, address: u64, id: u64) -> bool {
        self.live.get(&address, 0).is_ok_and(|found| found == id)
    }

    /// Follows a block no longer.
    pub fn forget(&mut self, address: u64) {
        // Not there is as good.
        let _ = self.live.remove(&address);
    }
}

fn taken<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, KernelError> {
    ebpf.take_map(name).and_then(|map| T::try_from(map).ok()).ok_or_else(|| missing(name))
}

fn failed(error: MapError) -> KernelError {
    KernelError::of("use eBPF maps", &[BPF], error)
}
