//! From what hound's programs say of the kernel's memory to events in streams: one thread that reads, and records.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hound_common::event::{LOST_BUSY, LOST_INTERRUPTED, LOST_RING_FULL, LOST_SAMPLES_FULL, tag};
use hound_common::hook::Kind;
use hound_common::kernel::{
    KERNEL_ALLOC, KERNEL_CACHE, KERNEL_FRAMES, KERNEL_KMALLOC, KERNEL_PERCPU, KERNEL_REUSED, KMEM_BUSY, KMEM_COUNTERS, KMEM_LIVE_FULL,
    KMEM_LOST_ALLOCS, KMEM_LOST_FREES, KernelBlock,
};
use hound_unwind::EndReason;

use super::Progress;
use super::places::{Place, Places};
use super::price::Price;
use crate::capture::Clock;
use crate::capture::model::Module;
use crate::session::clock;
use crate::session::kernel::{KernelError, KernelMemory};
use crate::session::pipeline::{Order, Orders};
use crate::session::sampler::Ticks;
use crate::session::stacks::Ended;
use crate::session::streams::{Born, Died, Stack, Streams};
use crate::session::target::module_words;

/// How often what the programs say is read.
const READ_EVERY: Duration = Duration::from_millis(20);
/// How often clocks, losses and threads are looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Messages of several processors come nearly in order. They are put in order once they are so old.
const SETTLED_NS: u64 = 2_000_000;
/// A thread of which nothing was seen for so long has no stream any more; a later event begins another.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// What can be lost on the way, and how a capture says it.
const LOSSES: [(u32, u8); 3] = [(KMEM_LOST_ALLOCS, LOST_RING_FULL), (KMEM_LIVE_FULL, LOST_SAMPLES_FULL), (KMEM_BUSY, LOST_BUSY)];

/// What the thread works with.
pub struct Engine {
    pub programs: KernelMemory,
    pub streams: Streams,
    pub ticks: Ticks,
    pub places: Places,
    pub price: Price,
    pub orders: Orders,
    pub rounds: Arc<AtomicU64>,
    pub lost: Arc<AtomicU64>,
    pub clock: Clock,
    /// Interrupts are nobody's in particular: with a process they are left out.
    pub of_a_process: bool,
    pub stop: Arc<AtomicBool>,
    pub progress: Arc<Mutex<Progress>>,
    pub state: State,
}

/// What it remembers.
#[derive(Default)]
pub struct State {
    waiting: Vec<(KernelBlock, Box<[u64]>)>,
    /// Blocks recorded that are not known to be gone: the `id` of the allocation.
    alive: HashMap<u64, u64>,
    seen: HashMap<u32, Instant>,
    named: HashSet<u32>,
    names: Vec<(u32, String)>,
    /// When recording began, and by the last look.
    first: [u64; KMEM_COUNTERS as usize],
    before: [u64; KMEM_COUNTERS as usize],
    totals: Progress,
}

impl From<[u64; KMEM_COUNTERS as usize]> for State {
    /// The counters stand so when recording begins.
    fn from(first: [u64; KMEM_COUNTERS as usize]) -> Self {
        State { first, before: first, ..State::default() }
    }
}

impl Engine {
    /// Until it is stopped; then nothing is watched any more, and all that was said is recorded.
    pub fn run(mut self) {
        let (mut looked, begun) = (Instant::now(), Instant::now());
        let failed = loop {
            self.read(clock::ticks(Clock::Monotonic).saturating_sub(SETTLED_NS));
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                if let Err(error) = self.look_after(begun) {
                    break Some(error);
                }
            }
            // Release: the round's parcels are on their way. Pairs with a flusher's acquire.
            self.rounds.fetch_add(1, Ordering::Release);
            if self.stop.load(Ordering::Acquire) {
                break None;
            }
            std::thread::park_timeout(READ_EVERY);
        };
        self.state.totals.left_out = self.programs.left_out();
        if self.state.totals.left_out > 0 {
            self.note(tag::LOST, LOST_INTERRUPTED, vec![self.state.totals.left_out]);
        }
        let ended = self.programs.unwatch().and_then(|()| self.look_after(begun));
        self.read(u64::MAX);
        self.make_up_for_lost_releases();
        self.hand_on();
        self.state.totals.failed = failed.or(ended.err()).map(|error: KernelError| error.to_string());
        self.show();
    }

    /// Reads all there is, and records what is older than this moment of CLOCK_MONOTONIC.
    fn read(&mut self, until: u64) {
        let waiting = &mut self.state.waiting;
        while self.programs.read(&mut |block, stack| waiting.push((*block, stack.into()))) > 0 {}
        // Mostly in order already, which a stable sort takes no time for.
        waiting.sort_by_key(|(block, _)| block.time_ns);
        let settled = waiting.partition_point(|(block, _)| block.time_ns <= until);
        let settled: Vec<_> = waiting.drain(..settled).collect();
        for (block, stack) in &settled {
            match block.message {
                KERNEL_ALLOC => self.allocated(block, stack),
                _ => self.released(block),
            }
        }
        self.hand_on();
    }

    fn allocated(&mut self, block: &KernelBlock, ips: &[u64]) {
        // Its release was not seen, or was lost.
        if self.state.alive.contains_key(&block.address) {
            self.state.totals.reused += 1;
            self.gone(block, block.address);
        }
        let first = match self.places.of(block, ips) {
            Place::Stock => {
                self.state.totals.stock += 1;
                return self.programs.forget(block.address);
            }
            Place::Interrupt(_) if self.of_a_process => {
                self.state.totals.interrupts += 1;
                return self.programs.forget(block.address);
            }
            Place::Interrupt(first) | Place::At(first) => first,
        };
        let cache = if block.kind == KERNEL_CACHE { self.places.cache(block) } else { None };
        if let Some((_, Some(module))) = &cache {
            self.module(self.ticks.at(block.time_ns), module);
        }
        let ips: Vec<u64> = cache.iter().map(|(ip, _)| *ip).chain(ips[first.min(ips.len())..].iter().copied()).collect();
        let reason = if block.frames as usize == KERNEL_FRAMES { EndReason::DepthLimit } else { EndReason::Root };
        let stack = Stack { ips: &ips, ended: Ended { reason, frame_pointers: false } };
        let born = Born {
            kind: kind(block.kind) as u8,
            pool: 0,
            address: block.address,
            size: block.size,
            interval: block.interval,
            previous: None,
        };
        self.streams.born(block.tid, self.ticks.at(block.time_ns), stack, &born);
        self.state.alive.insert(block.address, block.id);
        self.state.totals.samples += 1;
        self.state.seen.insert(block.tid, Instant::now());
        if self.state.named.insert(block.tid) {
            let name = block.thread.split(|byte| *byte == 0).next().unwrap_or_default();
            self.state.names.push((block.tid, String::from_utf8_lossy(name).into_owned()));
        }
    }

    fn released(&mut self, block: &KernelBlock) {
        // Of a block that is not in the capture nothing can be said.
        if self.state.alive.get(&block.address) != Some(&block.made_by) {
            return;
        }
        if block.message == KERNEL_REUSED {
            self.state.totals.reused += 1;
        } else {
            self.state.totals.releases += 1;
        }
        self.gone(block, block.address);
    }

    /// The block there has ended, before this was said.
    fn gone(&mut self, said: &KernelBlock, address: u64) {
        self.state.alive.remove(&address);
        self.state.seen.insert(said.tid, Instant::now());
        // Before an allocation that takes its place.
        let ticks = self.ticks.at(said.time_ns.saturating_sub(1));
        let kind = free_kind(said.kind) as u8;
        self.streams.died(said.tid, ticks, None, &Died { kind, pool: 0, address, realloc: false });
    }

    /// Sends what was recorded.
    fn hand_on(&mut self) {
        for parcel in self.streams.take() {
            self.orders.send(Order::Parcel(parcel));
        }
        for (tid, name) in std::mem::take(&mut self.state.names) {
            if let Some(stream) = self.streams.id(tid) {
                self.orders.send(Order::Name(stream, name));
            }
        }
    }

    fn look_after(&mut self, begun: Instant) -> Result<(), KernelError> {
        self.ticks.refresh();
        let State { seen, named, .. } = &mut self.state;
        let streams = &mut self.streams;
        seen.retain(|tid, last| {
            let stays = last.elapsed() < FORGOTTEN;
            if !stays {
                streams.ended(*tid);
                named.remove(tid);
            }
            stays
        });
        let now = self.programs.counters()?;
        for (which, reason) in LOSSES {
            let fresh = now[which as usize].saturating_sub(self.state.before[which as usize]);
            if fresh > 0 {
                self.lost.fetch_add(fresh, Ordering::Relaxed);
                self.note(tag::LOST, reason, vec![fresh]);
            }
        }
        let lost_releases = now[KMEM_LOST_FREES as usize] > self.state.before[KMEM_LOST_FREES as usize];
        self.state.before = now;
        self.state.totals.seconds = begun.elapsed().as_secs_f64();
        if lost_releases {
            self.make_up_for_lost_releases();
        }
        self.show();
        Ok(())
    }

    /// What a full ring has swallowed, the table of live blocks knows: what is not in it any more is gone by now.
    fn make_up_for_lost_releases(&mut self) {
        if self.state.before[KMEM_LOST_FREES as usize] == self.state.totals.releases_lost {
            return;
        }
        self.state.totals.releases_lost = self.state.before[KMEM_LOST_FREES as usize];
        // An allocation that was made since at such an address must be known before its predecessor ends.
        self.read(u64::MAX);
        let gone: Vec<u64> =
            self.state.alive.iter().filter(|(address, id)| !self.programs.holds(**address, **id)).map(|(address, _)| *address).collect();
        let said = KernelBlock { time_ns: clock::ticks(Clock::Monotonic), kind: KERNEL_KMALLOC, ..KernelBlock::default() };
        for address in gone {
            self.state.totals.releases += 1;
            self.gone(&said, address);
        }
    }

    fn module(&self, ticks: u64, module: &Module) {
        self.orders.send(Order::Note { ticks, tag: tag::MODULE, a: 0, words: module_words(module) });
    }

    fn note(&self, tag: u8, a: u8, words: Vec<u64>) {
        self.orders.send(Order::Note { ticks: clock::ticks(self.clock), tag, a, words });
    }

    fn show(&mut self) {
        let totals = &mut self.state.totals;
        totals.counters = std::array::from_fn(|at| self.state.before[at].saturating_sub(self.state.first[at]));
        totals.cost = self.price.of(&totals.counters);
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = totals.clone();
    }
}

fn kind(of: u32) -> Kind {
    match of {
        KERNEL_KMALLOC => Kind::Kmalloc,
        KERNEL_CACHE => Kind::KmemCacheAlloc,
        KERNEL_PERCPU => Kind::PercpuAlloc,
        _ => Kind::PageAlloc,
    }
}

fn free_kind(of: u32) -> Kind {
    match of {
        KERNEL_KMALLOC => Kind::Kfree,
        KERNEL_CACHE => Kind::KmemCacheFree,
        KERNEL_PERCPU => Kind::PercpuFree,
        _ => Kind::PageFree,
    }
}
