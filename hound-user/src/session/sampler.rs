//! From the messages of hound's programs in the kernel to events in streams.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hound_common::hook::Kind;
use hound_common::kernel::{
    CALL_AT_ONCE, CALL_BY_KERNEL, CALL_KNOWN, CALL_SAMPLED, Call, Cookie, DOES_RESIZE, MESSAGE_ALLOC, MESSAGE_FAULT, MESSAGE_FREE,
    MESSAGE_MAPPED, MESSAGE_REALLOC, MESSAGE_REUSED, OUTCOME_OLD_STAYS, Outcome,
};

use super::areas::{Areas, Touch};
use super::clock;
use super::mapped;
use super::stacks::{Change, Copied, Ended, Stacks};
use super::streams::{Born, Died, Stack, Streams, Touched};
use crate::capture::Clock;
use hound_unwind::EndReason;

/// Calls that have begun and not returned. More are of threads that left an allocator by a jump, or ended in it.
const PENDING: usize = 1 << 16;
/// Windows remembered for samples that are read late.
const WINDOWS: usize = 64;
/// How often the kernel's clock is compared with the capture's.
const CALIBRATE_EVERY: Duration = Duration::from_secs(1);

/// Turns the kernel's time (CLOCK_MONOTONIC) into ticks of the capture's clock. Never runs back. Clones are the same: windows and what is seen in
/// them are stamped alike, in all processes.
#[derive(Clone, Debug)]
pub struct Ticks(Arc<Mutex<Line>>);

#[derive(Debug)]
struct Line {
    clock: Clock,
    base: (u64, u64),
    per_ns: f64,
    read: Instant,
}

impl Ticks {
    /// For a capture with this clock and so many ticks a second.
    pub fn new(clock: Clock, ticks_per_second: u64) -> Self {
        let now = clock::calibrate(clock);
        let line = Line { clock, base: (now.monotonic_ns, now.ticks), per_ns: ticks_per_second as f64 / 1e9, read: Instant::now() };
        Ticks(Arc::new(Mutex::new(line)))
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ticks of a moment.
    pub fn at(&self, ns: u64) -> u64 {
        self.line().at(ns)
    }

    /// Compares the clocks again, if it is time.
    pub fn refresh(&self) {
        self.line().refresh();
    }
}

impl Line {
    fn at(&self, ns: u64) -> u64 {
        let (base_ns, base_ticks) = self.base;
        let off = ns.wrapping_sub(base_ns).cast_signed() as f64 * self.per_ns;
        base_ticks.saturating_add_signed(off as i64)
    }

    /// What the clocks are apart is made up for over the next second, not at once.
    fn refresh(&mut self) {
        if self.clock == Clock::Monotonic || self.read.elapsed() < CALIBRATE_EVERY {
            return;
        }
        let now = clock::calibrate(self.clock);
        let (expected, passed) = (self.at(now.monotonic_ns), now.monotonic_ns.saturating_sub(self.base.0) as f64);
        let rate = now.ticks.saturating_sub(self.base.1) as f64 / passed.max(1.0);
        let apart = now.ticks as f64 - expected as f64;
        self.base = (now.monotonic_ns, expected);
        self.per_ns = rate + apart / 1e9;
        self.read = Instant::now();
    }
}

/// A moment in which the probes were in place, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// All probes were there.
    pub opened: u64,
    /// They began to go; `u64::MAX` while they are there.
    pub closed: u64,
}

/// What is known of a sampled block that has not been seen to be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive {
    /// The call that made it.
    pub id: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Where the probe of the function is that made it.
    pub probe: u64,
}

/// A call that has not returned.
#[derive(Debug)]
struct Pending {
    call: Call,
    ips: Vec<u64>,
    ended: Ended,
    /// The block that it resizes. It is none of those alive from here on: before the call returns, another thread may be given its address.
    old: Option<Alive>,
}

/// Figures of what was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Allocations recorded.
    pub samples: u64,
    /// Releases recorded.
    pub frees: u64,
    /// Page faults recorded.
    pub faults: u64,
    /// Calls from inside an allocator: its own, not the program's.
    pub inner: u64,
    /// Samples from just before a window opened or after it closed.
    pub outside: u64,
    /// Calls that were sampled and whose return was not seen.
    pub unfinished: u64,
}

impl Figures {
    /// Both together.
    pub fn and(self, other: Figures) -> Figures {
        Figures {
            samples: self.samples + other.samples,
            frees: self.frees + other.frees,
            faults: self.faults + other.faults,
            inner: self.inner + other.inner,
            outside: self.outside + other.outside,
            unfinished: self.unfinished + other.unfinished,
        }
    }
}

/// Whether a call is the allocator's own: by the function's pool (0: the heap's) and the place of its probe, and the return addresses, the
/// innermost first. Of the heap only that one counts; of a system call, which has no probe, each is asked for by itself.
pub type IsInner = Box<dyn FnMut(Option<(u8, u64)>, &[u64]) -> bool + Send>;

/// Where a block is: address and pool. A pool's block may lie where the block lies that it was cut from.
pub type Place = (u64, u8);

/// A call, by its place on the stack.
#[derive(Clone, Copy, Debug)]
struct Caller {
    id: u64,
    /// Its return address.
    address: u64,
    pool: u8,
}

/// Turns messages into streams.
pub struct Sampler {
    stacks: Stacks,
    areas: Areas,
    /// What goes into the capture.
    pub streams: Streams,
    ticks: Ticks,
    is_inner: IsInner,
    inner: HashMap<(Option<u64>, u64), bool>,
    /// Whether changes of mappings are recorded.
    maps: bool,
    /// Where the heap that grows by brk ends.
    heap: Option<u64>,
    /// Code was mapped that nobody has looked at.
    code_came: bool,
    /// Modules that came and went, and when.
    changes: Vec<(u64, Change)>,
    pending: HashMap<u64, Pending>,
    /// By thread and place on the stack: the last call made there.
    callers: HashMap<(u32, u64), Caller>,
    order: VecDeque<u64>,
    windows: VecDeque<Window>,
    alive: HashMap<Place, Alive>,
    /// Blocks that were born since the probes were last taken out.
    fresh: Vec<Place>,
    figures: Figures,
    ips: Vec<u64>,
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("figures", &self.figures).field("alive", &self.alive.len()).finish_non_exhaustive()
    }
}

impl Sampler {
    /// Nothing seen so far.
    pub fn new(stacks: Stacks, streams: Streams, ticks: Ticks, is_inner: IsInner) -> Self {
        Sampler {
            areas: Areas::of(stacks.pid()),
            stacks,
            streams,
            ticks,
            is_inner,
            inner: HashMap::new(),
            maps: false,
            heap: None,
            code_came: false,
            changes: Vec::new(),
            pending: HashMap::new(),
            callers: HashMap::new(),
            order: VecDeque::new(),
            windows: VecDeque::new(),
            alive: HashMap::new(),
            fresh: Vec::new(),
            figures: Figures::default(),
            ips: Vec::new(),
        }
    }

    /// Changes of mappings are recorded from here on.
    pub fn record_mappings(&mut self) {
        self.maps = true;
        // By pages; libcs let it grow by pages.
        self.heap = self.areas.heap_end();
    }

    /// Modules that came and went since the last call, and when (in ticks).
    pub fn changes(&mut self) -> Vec<(u64, Change)> {
        self.note_changes(clock::ticks(Clock::Monotonic));
        std::mem::take(&mut self.changes)
    }

    fn note_changes(&mut self, ns: u64) {
        let changes = self.stacks.changes();
        if !changes.is_empty() {
            self.inner.clear();
        }
        let ticks = self.ticks.at(ns);
        self.changes.extend(changes.into_iter().map(|change| (ticks, change)));
    }

    /// Whether code was mapped since the last call.
    pub fn code_came(&mut self) -> bool {
        std::mem::take(&mut self.code_came)
    }

    /// Reads the target's modules again.
    pub fn refresh(&mut self) {
        let _ = self.stacks.look(); // gone: what is known is used for what is still to be read
    }

    /// The probes are in place since then.
    pub fn open(&mut self, opened: u64) {
        if self.windows.len() == WINDOWS {
            self.windows.pop_front();
        }
        self.windows.push_back(Window { opened, closed: u64::MAX });
    }

    /// The probes began to go then.
    pub fn close(&mut self, closed: u64) {
        if let Some(window) = self.windows.back_mut() {
            window.closed = closed;
        }
    }

    /// Figures so far.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// The probes are gone: blocks that live, and were watched until now; and the probes of the functions that made them.
    pub fn newly_unwatched(&mut self) -> Vec<(Place, u64)> {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.sort_unstable();
        fresh.dedup();
        fresh.into_iter().filter_map(|block| Some((block, self.alive.get(&block)?.probe))).collect()
    }

    /// Bytes asked for of a block of the heap that is not known to be gone.
    pub fn size_of(&self, address: u64) -> Option<u64> {
        self.alive.get(&(address, 0)).map(|alive| alive.size)
    }

    /// The heap's block there is gone, as evidence shows.
    pub fn forget_address(&mut self, address: u64) {
        self.alive.remove(&(address, 0));
    }

    fn is_observed(&self, ns: u64) -> bool {
        self.windows.iter().rev().any(|window| window.opened <= ns && ns <= window.closed)
    }

    /// A call of a probed function begins.
    pub fn call(&mut self, call: &Call, stack: &[u8]) {
        self.streams.name(call.tid, call.own_tid);
        let stack = Copied { bytes: stack, holes: call.holes };
        match call.message {
            MESSAGE_FAULT => return self.touched(call, stack),
            MESSAGE_MAPPED => return self.mapped(call, stack),
            _ => {}
        }
        let has_stack = call.stack_bytes > 0;
        let mut ips = std::mem::take(&mut self.ips);
        ips.clear();
        let Sampler { stacks, callers, .. } = self;
        let replaced = |place| callers.get(&(call.tid, place)).map(|caller| caller.address);
        let ended = has_stack.then(|| stacks.walk(&call.registers, stack, replaced, &mut ips));
        let outer = self.enters_from_another(call, stack.bytes, &ips);
        match call.message {
            MESSAGE_FREE => self.freed(call, ended.map(|ended| Stack { ips: &ips, ended })),
            MESSAGE_ALLOC | MESSAGE_REALLOC => {
                if let Some(outer) = outer {
                    self.passed_on(outer, call.id);
                    self.figures.inner += 1;
                } else if self.is_the_allocators_own(call, &ips) {
                    self.figures.inner += 1;
                } else if !self.is_observed(call.time_ns) {
                    self.figures.outside += 1;
                } else if let Some(ended) = ended {
                    let old = if call.flags & CALL_KNOWN != 0 { self.take((call.pointer, pool_of(call)), call.made_by) } else { None };
                    self.wait(Pending { call: *call, ips: std::mem::take(&mut ips), ended, old });
                }
            }
            _ => {}
        }
        self.ips = ips;
    }

    /// The mappings have changed: what is known of modules has to follow before the next stack is unwound.
    fn mapped(&mut self, call: &Call, stack: Copied<'_>) {
        let change = mapped::change(call, self.heap);
        self.heap = mapped::heap_end(call).or(self.heap);
        let mut ips = std::mem::take(&mut self.ips);
        ips.clear();
        // Before what it takes away is forgotten: the stack may pass through that.
        let ended = (call.stack_bytes > 0).then(|| {
            let Sampler { stacks, callers, .. } = self;
            let replaced = |place| callers.get(&(call.tid, place)).map(|caller| caller.address);
            stacks.walk_interrupted(&call.registers, true, stack, replaced, &mut ips).0
        });
        if let Some(change) = change.as_ref().filter(|_| self.maps)
            && let Some(libcs) = self.stacks.frames_of_libc(&ips)
            && !ips.iter().any(|ip| self.is_inside(None, *ip))
        {
            let stack = ended.map(|ended| Stack { ips: &ips[libcs..], ended });
            self.streams.changed(call.tid, self.ticks.at(call.time_ns), stack, change);
        }
        if let Some((start, end)) = mapped::gone(call) {
            self.stacks.gone(start, end);
        }
        if call.flags & CALL_AT_ONCE != 0 {
            let _ = self.stacks.look(); // gone: nothing more can be learnt
            self.code_came = true;
        }
        self.areas.have_changed(change.as_ref());
        self.note_changes(call.time_ns);
        self.ips = ips;
    }

    fn touched(&mut self, call: &Call, stack: Copied<'_>) {
        /// Of the processor's error code.
        const WRITE: u32 = 2;
        let mut ips = std::mem::take(&mut self.ips);
        let by_kernel = call.flags & CALL_BY_KERNEL != 0;
        let Sampler { stacks, callers, .. } = self;
        let replaced = |place| callers.get(&(call.tid, place)).map(|caller| caller.address);
        let (ended, last) = stacks.walk_interrupted(&call.registers, by_kernel, stack, replaced, &mut ips);
        let (sp, write) = (call.registers[7], call.detail & WRITE != 0);
        let top = (ended.reason == EndReason::Root).then_some(last);
        let (kind, bytes) = self.areas.place(&Touch { address: call.pointer, write, sp, time_ns: call.time_ns, top });
        let page = Touched { address: call.pointer, interval: call.interval, bytes, kind, by_kernel, write };
        self.streams.touched(call.tid, self.ticks.at(call.time_ns), Stack { ips: &ips, ended }, &page);
        self.figures.faults += 1;
        self.ips = ips;
    }

    /// The call whose function has jumped to this one, if one has: the kernel waits for its return, and has put an address of its own in
    /// place of the return address that both share. Remembers this call's, for calls that come while the kernel waits.
    fn enters_from_another(&mut self, call: &Call, stack: &[u8], ips: &[u64]) -> Option<u64> {
        if call.message == MESSAGE_FREE {
            return None;
        }
        let (place, address) = ((call.tid, call.registers[7]), *ips.first()?);
        let pool = pool_of(call);
        let there = stack.first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
        // What a pool takes from the heap is a block of the heap, also where it jumps there.
        let waiting = self.callers.get(&place).filter(|outer| there != Some(address) && outer.pool == pool);
        let outer = waiting.map(|outer| outer.id);
        if self.callers.len() >= PENDING {
            self.callers.clear();
        }
        self.callers.insert(place, Caller { id: call.id, address, pool });
        outer
    }

    /// The kernel tells what becomes of a call under the number of the one that it has jumped to.
    fn passed_on(&mut self, outer: u64, inner: u64) {
        if let Some(pending) = self.pending.remove(&outer) {
            self.order.push_back(inner);
            self.pending.insert(inner, pending);
        }
    }

    fn is_the_allocators_own(&mut self, call: &Call, ips: &[u64]) -> bool {
        let (pool, entry) = (pool_of(call), call.registers[16]);
        if pool != 0 {
            return (self.is_inner)(Some((pool, entry)), ips);
        }
        self.is_inside(Some(entry), ips.first().copied().unwrap_or(0))
    }

    fn is_inside(&mut self, entry: Option<u64>, caller: u64) -> bool {
        let is_inner = &mut self.is_inner;
        *self.inner.entry((entry, caller)).or_insert_with(|| is_inner(entry.map(|entry| (0, entry)), &[caller]))
    }

    fn wait(&mut self, pending: Pending) {
        if self.order.len() >= PENDING
            && let Some(oldest) = self.order.pop_front().and_then(|id| self.pending.remove(&id))
        {
            self.give_up(&oldest);
        }
        self.order.push_back(pending.call.id);
        self.pending.insert(pending.call.id, pending);
    }

    /// What becomes of a call will not be known.
    fn give_up(&mut self, pending: &Pending) {
        self.figures.unfinished += 1;
        if let Some(old) = pending.old {
            self.alive.entry((pending.call.pointer, pool_of(&pending.call))).or_insert(old);
        }
    }

    fn freed(&mut self, call: &Call, stack: Option<Stack<'_>>) {
        let cookie = Cookie::from_bits(call.cookie);
        // Of a block whose allocation is not in the capture nothing can be said.
        if self.take((call.pointer, cookie.pool), call.made_by).is_none() {
            return;
        }
        let died = Died { kind: cookie.kind, pool: cookie.pool, address: call.pointer, realloc: false };
        self.streams.died(call.tid, self.ticks.at(call.time_ns), stack, &died);
        self.figures.frees += 1;
    }

    /// Takes the block of this call out of those that live, if it is among them.
    fn take(&mut self, block: Place, made_by: u64) -> Option<Alive> {
        let is_it = self.alive.get(&block).is_some_and(|alive| alive.id == made_by);
        if is_it { self.alive.remove(&block) } else { None }
    }

    /// A sampled call has returned, or an address was found to be handed out again: then it is returned, if the block there was alive.
    pub fn outcome(&mut self, outcome: &Outcome) -> Option<Place> {
        if outcome.message == MESSAGE_REUSED {
            let block = (outcome.address, Cookie::from_bits(outcome.result).pool);
            return self.take(block, outcome.id).map(|_| block);
        }
        self.returned(outcome);
        None
    }

    fn returned(&mut self, outcome: &Outcome) {
        let Some(Pending { call, ips, ended, old }) = self.pending.remove(&outcome.id) else { return };
        while self.order.front().is_some_and(|id| !self.pending.contains_key(id)) {
            self.order.pop_front();
        }
        let (before, after) = (self.ticks.at(call.time_ns), self.ticks.at(outcome.time_ns));
        let cookie = Cookie::from_bits(call.cookie);
        let stack = Stack { ips: &ips, ended };
        let stays = outcome.flags & OUTCOME_OLD_STAYS != 0;
        let known = old.is_some() && !stays;
        if let Some(old) = old.filter(|_| stays) {
            self.alive.insert((call.pointer, cookie.pool), old);
        }
        let sampled = call.flags & CALL_SAMPLED != 0 && outcome.address != 0;
        if known {
            // What a call releases that is not continued was released by a function that does so.
            let kind = if sampled { cookie.kind } else { free_kind(cookie.kind) };
            let died = Died { kind, pool: cookie.pool, address: call.pointer, realloc: sampled };
            self.streams.died(call.tid, before, None, &died);
            self.figures.frees += 1;
        }
        if sampled {
            let size = if cookie.does == DOES_RESIZE { outcome.result } else { call.size };
            let previous = known.then_some(call.pointer);
            let (kind, pool, interval) = (cookie.kind, cookie.pool, call.interval);
            let born = Born { kind, pool, address: outcome.address, size, interval, previous };
            self.streams.born(call.tid, after, stack, &born);
            self.fresh.push((outcome.address, pool));
            self.alive.insert((outcome.address, pool), Alive { id: outcome.id, size, probe: call.registers[16] });
            self.figures.samples += 1;
        }
    }

    /// The thread has ended.
    pub fn ended(&mut self, tid: u32) {
        let left: Vec<u64> = self.pending.iter().filter(|(_, pending)| pending.call.tid == tid).map(|(id, _)| *id).collect();
        for id in left {
            if let Some(pending) = self.pending.remove(&id) {
                self.give_up(&pending);
            }
        }
        self.streams.ended(tid);
    }
}

impl Sampler {
    /// The process is over, with all its threads.
    pub fn all_ended(&mut self) {
        self.figures.unfinished += self.pending.len() as u64;
        self.pending.clear();
        self.streams.all_ended();
    }
}

fn pool_of(call: &Call) -> u8 {
    Cookie::from_bits(call.cookie).pool
}

/// The kind of a release by a function of this kind.
fn free_kind(kind: u8) -> u8 {
    if kind == Kind::PoolRealloc as u8 { Kind::PoolFree as u8 } else { Kind::Free as u8 }
}

#[cfg(test)]
mod tests {
    use hound_common::kernel::{DOES_ALLOC, DOES_REALLOC, MESSAGE_OUTCOME, NOTHING};

    use super::*;
    use crate::session::streams::Numbers;

    const OLD: u64 = 0x1000;

    fn sampler() -> Sampler {
        let stacks = Stacks::of(std::process::id(), 64).unwrap();
        let streams = Streams::new(Numbers::from(1));
        let mut sampler = Sampler::new(stacks, streams, Ticks::new(Clock::Monotonic, 1_000_000_000), Box::new(|_, _| false));
        sampler.open(0);
        sampler
    }

    fn begin(sampler: &mut Sampler, id: u64, old: Option<(u64, u64)>, pool: u8) {
        let does = if old.is_some() { DOES_REALLOC } else { DOES_ALLOC };
        let kind = if old.is_some() { Kind::Realloc } else { Kind::Malloc } as u8;
        let cookie = Cookie { kind, does, size: 0, count: NOTHING, block: 0, out: NOTHING, pool, pushes: 0 };
        let (pointer, made_by) = old.unwrap_or((0, 0));
        let call = Call {
            message: if old.is_some() { MESSAGE_REALLOC } else { MESSAGE_ALLOC },
            flags: CALL_SAMPLED | if old.is_some() { CALL_KNOWN } else { 0 },
            id,
            time_ns: id,
            // Each from a thread of its own.
            tid: id as u32,
            cookie: cookie.to_bits(),
            made_by,
            size: 10,
            pointer,
            stack_bytes: 8,
            ..Call::default()
        };
        sampler.call(&call, &1_u64.to_le_bytes());
    }

    fn end(sampler: &mut Sampler, id: u64, address: u64, flags: u32) {
        let outcome = Outcome { message: MESSAGE_OUTCOME, flags, id, time_ns: id + 100, tid: id as u32, address, ..Outcome::default() };
        assert_eq!(sampler.outcome(&outcome), None);
    }

    #[test]
    fn an_address_that_is_given_out_again_before_the_realloc_returns_that_released_it() {
        let mut sampler = sampler();
        begin(&mut sampler, 1, None, 0);
        end(&mut sampler, 1, OLD, 0);
        begin(&mut sampler, 2, Some((OLD, 1)), 0);
        begin(&mut sampler, 3, None, 0);
        end(&mut sampler, 3, OLD, 0);
        end(&mut sampler, 2, 0x2000, 0);
        assert_eq!((sampler.figures().samples, sampler.figures().frees), (3, 1), "the old block is continued");
        assert!(sampler.alive.get(&(OLD, 0)).is_some_and(|alive| alive.id == 3) && sampler.alive.len() == 2);
    }

    #[test]
    fn a_realloc_that_fails_or_never_returns_leaves_the_block_where_it_is() {
        let mut sampler = sampler();
        begin(&mut sampler, 1, None, 0);
        end(&mut sampler, 1, OLD, 0);
        begin(&mut sampler, 2, Some((OLD, 1)), 0);
        end(&mut sampler, 2, 0, OUTCOME_OLD_STAYS);
        assert_eq!((sampler.figures().frees, sampler.size_of(OLD)), (0, Some(10)));
        begin(&mut sampler, 3, Some((OLD, 1)), 0);
        sampler.ended(3);
        assert_eq!((sampler.figures().unfinished, sampler.size_of(OLD)), (1, Some(10)));
    }

    #[test]
    fn a_pools_block_and_the_block_it_was_cut_from_are_two() {
        let mut sampler = sampler();
        for (id, pool) in [(1, 0), (2, 7)] {
            begin(&mut sampler, id, None, pool);
            end(&mut sampler, id, OLD, 0);
        }
        begin(&mut sampler, 3, Some((OLD, 2)), 7);
        end(&mut sampler, 3, 0x2000, 0);
        let mut alive: Vec<Place> = sampler.alive.keys().copied().collect();
        alive.sort_unstable();
        assert_eq!(alive, [(OLD, 0), (0x2000, 7)]);
    }
}
