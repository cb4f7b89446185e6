//! The maps that hound and the programs share: settings, counters, live sampled blocks, targets.
#![expect(unsafe_code, reason = "promises aya that settings are plain bytes")]

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use hound_common::kernel::{self, COUNTERS, Namespace, SETTINGS_SLOTS, Target, live_key, of_live_key};
use nix::sys::stat::{major, minor};

use super::error::KernelError;
use super::load::missing;
use super::rights::BPF;

const BPF_ANY: u64 = 0;

/// Settings as bytes for the kernel.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Slot(kernel::Settings);

// SAFETY: all its fields are of 64 bits; it has no padding, and any bytes are one.
unsafe impl Pod for Slot {}

/// A process that is told of, as bytes for the kernel.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Watched(Target);

// SAFETY: as of settings.
unsafe impl Pod for Watched {}

/// The counters of all CPUs added up; see `hound_common::kernel::COUNT_…`.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters([u64; COUNTERS as usize]);

impl Counters {
    /// One of them, by its `COUNT_…`.
    pub fn get(&self, which: u32) -> u64 {
        self.0[which as usize]
    }

    /// Messages lost because the ring was full, of all kinds.
    pub fn lost(&self) -> u64 {
        let which = (kernel::COUNT_LOST_CALLS..=kernel::COUNT_LOST_LIFECYCLE).chain([kernel::COUNT_LOST_MAPPED]);
        which.map(|which| self.get(which)).sum()
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            "alloc_hits",
            "free_hits",
            "samples",
            "returns",
            "releases",
            "faults",
            "lost_calls",
            "lost_outcomes",
            "lost_releases",
            "lost_faults",
            "lost_lifecycle",
            "live_full",
            "pending_full",
            "stack_unreadable",
            "stack_cut",
            "mapped",
            "lost_mapped",
            "too_many_mapped",
        ];
        f.debug_map().entries(names.iter().zip(self.0)).finish()
    }
}

/// The maps, with hound's names for them.
pub(super) struct Tables {
    settings: Array<MapData, Slot>,
    current: Array<MapData, u32>,
    counts: PerCpuArray<MapData, [u64; COUNTERS as usize]>,
    live: HashMap<MapData, [u32; 3], u64>,
    targets: HashMap<MapData, u32, Watched>,
    slot: u32,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Tables {
            settings: taken(ebpf, "SETTINGS")?,
            current: taken(ebpf, "CURRENT")?,
            counts: taken(ebpf, "COUNTS")?,
            live: taken(ebpf, "LIVE")?,
            targets: taken(ebpf, "TARGETS")?,
            slot: 0,
        })
    }

    /// Fills the next slot, then points to it.
    pub(super) fn set(&mut self, settings: kernel::Settings) -> Result<(), KernelError> {
        self.slot = (self.slot + 1) % SETTINGS_SLOTS;
        self.settings.set(self.slot, Slot(settings), BPF_ANY).map_err(failed)?;
        self.current.set(0, self.slot, BPF_ANY).map_err(failed)
    }

    pub(super) fn counters(&self) -> Result<Counters, KernelError> {
        let mut sum = Counters::default();
        for one in self.counts.get(&0, 0).map_err(failed)?.iter() {
            for (to, from) in sum.0.iter_mut().zip(one) {
                *to += from;
            }
        }
        Ok(sum)
    }

    pub(super) fn add_target(&mut self, pid: u32, follow: bool) -> Result<(), KernelError> {
        let target = Target { namespace: namespace(pid), follow: follow.into() };
        self.targets.insert(pid, Watched(target), BPF_ANY).map_err(failed)
    }

    pub(super) fn remove_target(&mut self, pid: u32) {
        // Not there is as good.
        let _ = self.targets.remove(&pid);
    }

    pub(super) fn forget(&mut self, pid: u32, (address, pool): (u64, u8)) {
        let _ = self.live.remove(&live_key(pid, address, pool));
    }

    pub(super) fn forget_those(&mut self, are_gone: impl Fn(u32) -> bool) {
        // Before any is taken out: taking out an entry makes the way through the table begin anew.
        let gone: Vec<[u32; 3]> = self.live.keys().filter_map(Result::ok).filter(|key| are_gone(of_live_key(*key).0)).collect();
        for key in gone {
            let _ = self.live.remove(&key);
        }
    }

    pub(super) fn live(&self, pid: u32) -> Vec<((u64, u8), u64)> {
        // An entry that went while the table was read is no block any more.
        let of_this = |entry: Result<([u32; 3], u64), MapError>| {
            let (key, id) = entry.ok()?;
            let (of, address, pool) = of_live_key(key);
            (of == pid).then_some(((address, pool), id))
        };
        self.live.iter().filter_map(of_this).collect()
    }
}

/// The PID namespace of a process; of one that is gone none.
fn namespace(pid: u32) -> Namespace {
    let file = std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok();
    // The kernel puts the minor number into the lower 20 bits.
    file.map_or_else(Namespace::default, |file| Namespace { device: major(file.dev()) << 20 | minor(file.dev()), inode: file.ino() })
}

fn taken<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, KernelError> {
    ebpf.take_map(name).and_then(|map| T::try_from(map).ok()).ok_or_else(|| missing(name))
}

fn failed(error: MapError) -> KernelError {
    KernelError::of("use eBPF maps", &[BPF], error)
}

/// The descriptor of a map of a kind that the programs use.
pub(super) fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::PerCpuArray(data) | Map::RingBuf(data) => {
            Some(data.fd().as_fd())
        }
        _ => None,
    }
}

impl super::Programs {
    /// What the programs have counted since they were loaded.
    ///
    /// # Errors
    /// If the kernel does not give them.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        self.tables.counters()
    }

    /// The live sampled blocks of a process: address and pool, and `id` of the call that made it. Entries that come or go meanwhile may be missing
    /// or there twice.
    pub fn live(&self, pid: u32) -> Vec<((u64, u8), u64)> {
        self.tables.live(pid)
    }

    /// Follows a block no longer. Its release will not be told.
    pub fn forget(&mut self, pid: u32, block: (u64, u8)) {
        self.tables.forget(pid, block);
    }

    /// Follows no block of such processes any longer, in one pass over the table.
    pub fn forget_those(&mut self, are_gone: impl Fn(u32) -> bool) {
        self.tables.forget_those(are_gone);
    }

    /// Follows no block of this process any longer; after its exec or its end.
    pub fn forget_all(&mut self, pid: u32) {
        for (block, _) in self.live(pid) {
            self.tables.forget(pid, block);
        }
    }
}
