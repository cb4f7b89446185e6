//! The replay itself: one pass, a table of live blocks, and a word to the sink for every block that ends.

use super::addresses::AddressMap;
use super::block::{Anomalies, Block, Death, Ending, Outcome, Peak, Totals};
use super::fetch::fetch;
use super::order::{Held, Operation, Order, Step};
use super::processes::Tag;
use super::sampling::Sampling;
use crate::capture::Visitor;
use crate::capture::model::{Alloc, Event, Free, Stamped, StreamId};
use hound_common::event::{LIVENESS_ALIVE, LIVENESS_GONE, LIVENESS_UNKNOWN, MODE_OFF, MODE_SAMPLED};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

// Sums of bytes wrap: sizes come from memory that the target could scribble on, and no content may stop a replay.

/// What replay remembers of a stream.
#[derive(Clone, Copy, Default)]
struct StreamState {
    /// Ordinal of its last allocation: a block that it frees while this is the block's own is temporary.
    last_alloc: u64,
    /// The block its last realloc released: where, the first of its chain, how many reallocs.
    released: Option<(u64, u64, u32)>,
    /// [`Block::rate`] of what it allocates.
    rate: u16,
}

/// Who hears of blocks while they are replayed. A closure hears of their ends only.
pub trait Hears {
    /// A block came to be. Its ordinal is one more than the last one's.
    #[inline(always)]
    fn born(&mut self, block: &Block) {
        let _ = block;
    }

    /// A block ended, or lives at the end. `peak` is the peak so far.
    fn ended(&mut self, block: &Block, ending: &Ending, peak: &Peak);
}

impl<F: FnMut(&Block, &Ending, &Peak)> Hears for F {
    #[inline(always)]
    fn ended(&mut self, block: &Block, ending: &Ending, peak: &Peak) {
        self(block, ending, peak);
    }
}

/// Turns events into blocks. The sink hears of each block once, when it ends, or at the end if it lives.
///
/// **Who lived at the peak, in one pass.** `peak` is the peak so far, and its ordinal only grows. A block that ends now lived at it if
/// `block.ordinal <= peak.ordinal`. If a higher peak comes later, the block was not there. So whoever sums what lived at the peak
/// keeps the peak's ordinal beside the sum, and starts again from zero when it has changed: one comparison a block, no second pass over
/// the capture, no undo log. At the end, sums with an old ordinal are zero.
pub struct Replay<S> {
    sink: S,
    addresses: AddressMap,
    /// Live blocks by row; rows in `vacant` hold none.
    rows: Vec<Block>,
    vacant: Vec<u32>,
    streams: Vec<StreamState>,
    order: Order,
    totals: Totals,
    peak: Peak,
    anomalies: Anomalies,
    now_ns: u64,
    ordinal: u64,
    /// Blocks up to this ordinal that live have lived through a time without recording.
    censored_to: u64,
    /// Times without recording that were over before the end: up to which ordinal blocks were made before, and when it began.
    pauses: Vec<(u64, u64)>,
    /// Since when nothing is recorded, if that is so.
    off_since_ns: Option<u64>,
    /// Only for captures that have samples.
    sampled: Option<Sampled>,
    /// Blocks that processes have from before their forks, by address.
    inherited: HashSet<u64>,
    /// Blocks and bytes that lived when their process ended.
    left: (u64, u64),
}

/// What replay keeps beside where there are samples.
struct Sampled {
    sampling: Arc<Sampling>,
    /// Blocks of which it is not known whether they live, by ordinal: until when it is known.
    doubts: HashMap<u64, u64>,
    /// Exact blocks up to this ordinal that live have lived through a switch to samples.
    unwatched_to: u64,
    /// Bytes that the blocks that are not known to have ended stand for.
    standing: u64,
}

impl Sampled {
    /// Whether the block is among those that live, or may live and are samples.
    fn stands(&self, block: &Block) -> bool {
        block.ordinal > self.unwatched_to || !self.sampling.is_exact(block)
    }

    // Out of line, as what is below: inlined, they cost a replay without samples a tenth.
    /// A block came to be. The bytes that stand then.
    #[cold]
    #[inline(never)]
    fn enters(&mut self, block: &Block) -> u64 {
        self.standing = self.standing.wrapping_add(self.sampling.worth(block));
        self.standing
    }

    #[cold]
    #[inline(never)]
    fn ends(&mut self, block: &Block) {
        self.leaves(block);
        self.doubts.remove(&block.ordinal);
    }

    fn leaves(&mut self, block: &Block) {
        if self.stands(block) {
            self.standing = self.standing.wrapping_sub(self.sampling.worth(block));
        }
    }
}

impl<S: Hears> Visitor for Replay<S> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        self.advance(time_ns);
        if !self.order.is_idle() && self.order.holds(alloc.addr) || !self.place(time_ns, stream, alloc) {
            self.hold(time_ns, stream, alloc.addr, Operation::Alloc(*alloc));
        }
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        self.advance(time_ns);
        if !self.order.is_idle() && self.order.holds(free.addr) || !self.release(time_ns, stream, free) {
            self.hold(time_ns, stream, free.addr, Operation::Free(*free));
        }
    }

    /// Only how it was recorded matters here.
    #[inline(never)]
    fn other(&mut self, event: &Stamped) {
        self.advance(event.time_ns);
        if matches!(event.event, Event::Mode { mode } if mode != MODE_OFF) && self.off_since_ns.is_some() {
            self.end_pause();
        }
        match event.event {
            Event::Mode { mode: MODE_OFF } => {
                self.censored_to = self.ordinal;
                self.off_since_ns.get_or_insert(event.time_ns);
            }
            Event::Mode { mode: MODE_SAMPLED } => self.stop_watching(),
            Event::Rate(interval) => {
                if let Some(sampled) = &self.sampled {
                    stream_state(&mut self.streams, event.stream).rate = sampled.sampling.rate(interval);
                }
            }
            // Something was allocated in between: what was allocated before is not temporary.
            Event::Stripped { .. } => stream_state(&mut self.streams, event.stream).last_alloc = 0,
            Event::Liveness { state, addr, .. } => self.learn(event.time_ns, addr, state),
            _ => {}
        }
    }
}

impl<S: Hears> Replay<S> {
    /// A replay with nothing in it.
    pub fn new(sink: S) -> Self {
        Replay {
            sink,
            addresses: AddressMap::new(),
            rows: Vec::new(),
            vacant: Vec::new(),
            streams: Vec::new(),
            order: Order::new(),
            totals: Totals::default(),
            peak: Peak::default(),
            anomalies: Anomalies::default(),
            now_ns: 0,
            ordinal: 0,
            censored_to: 0,
            pauses: Vec::new(),
            off_since_ns: None,
            sampled: None,
            inherited: HashSet::new(),
            left: (0, 0),
        }
    }

    /// The same for a capture that was sampled so.
    pub fn sampled(self, sampling: Arc<Sampling>) -> Self {
        Replay { sampled: Some(Sampled { sampling, doubts: HashMap::new(), unwatched_to: 0, standing: 0 }), ..self }
    }

    /// With the streams' intervals as they are in another replay.
    pub(super) fn with_intervals_of<T>(mut self, other: &Replay<T>) -> Self {
        self.streams = other.streams.iter().map(|state| StreamState { rate: state.rate, ..StreamState::default() }).collect();
        self
    }

    /// The end of the recording: whatever waits is decided, and the sink hears of the blocks that live: rows stay in the table of addresses
    /// exactly as long as their blocks do.
    pub fn finish(mut self) -> Outcome {
        while let Some(addr) = self.order.any() {
            self.settle(addr, u64::MAX);
        }
        if self.off_since_ns.is_some() {
            self.censored_to = self.ordinal;
        }
        for row in 0..self.rows.len() {
            let block = self.rows[row];
            if self.addresses.find(block.addr, |other| other as usize == row).is_none() {
                continue;
            }
            self.lives_to_the_end(&block);
        }
        self.totals.live_blocks += self.left.0;
        self.totals.live_bytes = self.totals.live_bytes.wrapping_add(self.left.1);
        Outcome { totals: self.totals, peak: self.peak, anomalies: self.anomalies, end_ns: self.now_ns }
    }

    /// What lives now has lived through a time without recording, also what a thread at work still recorded after it had begun.
    fn end_pause(&mut self) {
        if let Some(from_ns) = self.off_since_ns.take() {
            self.pauses.push((self.ordinal, from_ns));
            self.censored_to = self.ordinal;
        }
    }

    /// The block lives at the end, the recording's or its process'. Whether that is known.
    fn lives_to_the_end(&mut self, block: &Block) -> bool {
        let ending = self.ending_of(block);
        let is_known = !matches!(ending, Ending::Uncertain { .. });
        match ending {
            Ending::Uncertain { .. } => {
                self.totals.uncertain_blocks += 1;
                self.totals.uncertain_bytes = self.totals.uncertain_bytes.wrapping_add(block.size);
                self.totals.live_blocks = self.totals.live_blocks.wrapping_sub(1);
                self.totals.live_bytes = self.totals.live_bytes.wrapping_sub(block.size);
            }
            Ending::Censored { .. } => {
                self.totals.censored_blocks += 1;
                self.totals.censored_bytes = self.totals.censored_bytes.wrapping_add(block.size);
            }
            _ => {}
        }
        self.sink.ended(block, &ending, &self.peak);
        is_known
    }

    /// A process has ended: what lives there counts as live, and is there no more, for the peak of those that go on.
    pub(super) fn close(&mut self, time_ns: u64, tag: Tag) {
        self.advance(time_ns);
        for row in 0..self.rows.len() {
            let block = self.rows[row];
            if !tag.is_on(block.addr) || self.addresses.find(block.addr, |other| other as usize == row).is_none() {
                continue;
            }
            let is_known = self.lives_to_the_end(&block);
            // An uncertain one has left the live ones already, and `take` takes it out once more.
            if is_known {
                self.left = (self.left.0 + 1, self.left.1.wrapping_add(block.size));
            } else {
                self.totals.live_blocks = self.totals.live_blocks.wrapping_add(1);
                self.totals.live_bytes = self.totals.live_bytes.wrapping_add(block.size);
            }
            self.take(block.addr);
        }
        self.inherited.retain(|addr| !tag.is_on(*addr));
    }

    /// A process has forked: the new one holds a copy of what it holds. That is no allocation of the new one's, and its release no unknown one.
    pub(super) fn inherit(&mut self, time_ns: u64, from: Tag, to: Tag) {
        self.advance(time_ns);
        let lives = |row: usize, addr: u64| self.addresses.find(addr, |other| other as usize == row).is_some();
        let theirs = self.rows.iter().enumerate().filter(|(row, block)| from.is_on(block.addr) && lives(*row, block.addr));
        let inherited = theirs.map(|(_, block)| block.addr).chain(self.inherited.iter().copied().filter(|addr| from.is_on(*addr)));
        let copies: Vec<u64> = inherited.map(|addr| to.apply(from.apply(addr))).collect();
        self.inherited.extend(copies);
    }

    /// What is to be said at the end of a block that lives, for all that was recorded.
    fn ending_of(&self, block: &Block) -> Ending {
        if let Some(sampled) = &self.sampled {
            if let Some(&time_ns) = sampled.doubts.get(&block.ordinal) {
                return Ending::Uncertain { time_ns };
            }
            if let Some(time_ns) = sampled.sampling.watched_until(block) {
                return Ending::Censored { time_ns };
            }
        }
        // What lived when a pause began has lived until then, for all that is known.
        let pause = self.pauses.iter().find(|(to, _)| block.ordinal <= *to);
        let time_ns = pause.map_or(self.now_ns, |(_, from_ns)| (*from_ns).max(block.alloc_ns));
        if block.ordinal <= self.censored_to { Ending::Censored { time_ns } } else { Ending::Alive { time_ns } }
    }

    /// From here on only samples are watched: of the other blocks that live it is not known how long.
    #[cold]
    fn stop_watching(&mut self) {
        let Some(sampled) = &mut self.sampled else { return };
        let lives = |row: usize, block: &Block| self.addresses.find(block.addr, |other| other as usize == row).is_some();
        let exact = self.rows.iter().enumerate().filter(|(row, block)| sampled.sampling.is_exact(block) && lives(*row, block));
        let left: u64 = exact.filter(|(_, block)| sampled.stands(block)).map(|(_, block)| block.size).sum();
        sampled.standing = sampled.standing.wrapping_sub(left);
        sampled.unwatched_to = self.ordinal;
    }

    /// What is known now of the block at `addr`, if there is one.
    #[cold]
    fn learn(&mut self, time_ns: u64, addr: u64, state: u8) {
        let Some(row) = self.live_at(addr) else { return };
        let block = self.rows[row as usize];
        let Some(sampled) = &mut self.sampled else { return };
        match state {
            LIVENESS_UNKNOWN => {
                sampled.doubts.entry(block.ordinal).or_insert(time_ns);
            }
            LIVENESS_ALIVE => {
                sampled.doubts.remove(&block.ordinal);
            }
            LIVENESS_GONE => self.replace(addr, time_ns, true),
            _ => {}
        }
    }

    /// An event at this address comes soon: where it is looked up is fetched.
    #[inline(always)]
    pub(super) fn comes(&self, addr: u64) {
        self.addresses.fetch(addr);
    }

    /// It comes sooner: what lives there is fetched.
    #[inline(always)]
    pub(super) fn comes_next(&self, addr: u64) {
        if let Some(row) = self.addresses.likely(addr).and_then(|row| self.rows.get(row as usize)) {
            fetch(row);
        }
    }

    /// The recording went on until then, though nothing happened here.
    pub(super) fn extend(&mut self, end_ns: u64) {
        self.now_ns = self.now_ns.max(end_ns);
    }

    /// Time of the last event.
    pub(super) fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Time passes: what has waited long enough is decided.
    fn advance(&mut self, time_ns: u64) {
        self.now_ns = self.now_ns.max(time_ns);
        if !self.order.is_idle() {
            while let Some(addr) = self.order.due(self.now_ns) {
                self.settle(addr, self.now_ns);
            }
        }
    }

    /// Lets an event wait, then lets through whatever fits at its address now.
    fn hold(&mut self, time_ns: u64, stream: StreamId, addr: u64, operation: Operation) {
        let live = self.live_at(addr).map(|row| &self.rows[row as usize]);
        let exchangeable = self.order.used_by_others(addr, time_ns, stream, live);
        self.order.hold(addr, Held { time_ns, stream, operation, exchangeable });
        self.settle(addr, self.now_ns);
    }

    /// Applies the events held at `addr` as far as they can be decided at `now_ns`.
    fn settle(&mut self, addr: u64, now_ns: u64) {
        loop {
            let alive = self.live_at(addr).is_some();
            match self.order.step(addr, alive, now_ns) {
                Step::Wait => return,
                Step::Apply(held) => {
                    self.anomalies.reordered += u64::from(held.time_ns < now_ns);
                    self.apply(&held);
                }
                Step::Pair(alloc, free) => {
                    self.anomalies.reordered += 1;
                    self.pass(addr, &alloc, &free);
                }
                Step::Overdue(held) => match held.operation {
                    Operation::Free(_) if self.inherited.remove(&addr) => self.totals.inherited_frees += 1,
                    Operation::Free(_) => self.totals.unknown_frees += 1,
                    Operation::Alloc(_) => {
                        self.replace(addr, held.time_ns, false);
                        self.apply(&held);
                    }
                },
            }
        }
    }

    #[inline(never)]
    fn apply(&mut self, held: &Held) -> bool {
        match held.operation {
            Operation::Alloc(alloc) => self.place(held.time_ns, held.stream, &alloc),
            Operation::Free(free) => self.release(held.time_ns, held.stream, &free),
        }
    }

    /// A block that came and went before the one that lives at its address: the live one is set aside meanwhile. The peak is left as it
    /// is, for both never lived at once.
    fn pass(&mut self, addr: u64, alloc: &Held, free: &Held) {
        let Some(row) = self.live_at(addr) else { return };
        let rows = &self.rows;
        self.addresses.remove(addr, |other| rows[other as usize].addr == addr && other == row);
        let peak = self.peak;
        self.apply(alloc);
        self.peak = peak;
        self.apply(free);
        let rows = &self.rows;
        self.addresses.insert(addr, row, |other| rows[other as usize].addr == addr);
    }

    fn live_at(&self, addr: u64) -> Option<u32> {
        self.addresses.find(addr, |row| self.rows[row as usize].addr == addr)
    }

    /// Enters a block, unless one lives at its address: then false.
    #[inline(always)]
    fn place(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) -> bool {
        let row = self.vacant.last().copied().unwrap_or(self.rows.len() as u32);
        let rows = &self.rows;
        if !self.addresses.insert(alloc.addr, row, |other| rows[other as usize].addr == alloc.addr) {
            return false;
        }
        self.ordinal += 1;
        let state = stream_state(&mut self.streams, stream);
        state.last_alloc = self.ordinal;
        let (chain, chain_length) = match state.released.take() {
            Some((addr, first, length)) if alloc.previous == Some(addr) => (first, length + 1),
            _ => (self.ordinal, 0),
        };
        let block = Block {
            addr: alloc.addr,
            size: alloc.size,
            alloc_ns: time_ns,
            ordinal: self.ordinal,
            chain,
            stack: alloc.stack,
            stream,
            chain_length,
            kind: alloc.kind,
            flags: alloc.flags,
            rate: state.rate,
        };
        if self.vacant.pop().is_some() {
            self.rows[row as usize] = block;
        } else {
            self.rows.push(block);
        }
        self.sink.born(&block);
        let totals = &mut self.totals;
        totals.allocations += 1;
        totals.allocated_bytes = totals.allocated_bytes.wrapping_add(block.size);
        totals.live_blocks += 1;
        totals.live_bytes = totals.live_bytes.wrapping_add(block.size);
        let live = match &mut self.sampled {
            None => totals.live_bytes,
            Some(sampled) => sampled.enters(&block),
        };
        if live > self.peak.bytes {
            self.peak = Peak { bytes: live, time_ns, ordinal: self.ordinal };
        }
        true
    }

    /// Ends the block that is released, unless none lives there: then false.
    #[inline(always)]
    fn release(&mut self, time_ns: u64, stream: StreamId, free: &Free) -> bool {
        let Free { addr, kind, realloc, stack, .. } = *free;
        let Some(block) = self.take(addr) else { return false };
        let state = stream_state(&mut self.streams, stream);
        let temporary = block.stream == stream && state.last_alloc == block.ordinal;
        if realloc {
            state.released = Some((addr, block.chain, block.chain_length));
        }
        self.totals.frees += 1;
        self.totals.freed_bytes = self.totals.freed_bytes.wrapping_add(block.size);
        self.totals.temporary += u64::from(temporary);
        self.order.freed(&block, time_ns, stream);
        self.sink.ended(&block, &Ending::Freed(Death { time_ns, stream, kind, realloc, stack, temporary }), &self.peak);
        true
    }

    /// Ends the block at `addr` unseen: its address was given out again, or it was found to be gone.
    #[cold]
    #[inline(never)]
    fn replace(&mut self, addr: u64, time_ns: u64, found_gone: bool) {
        let doubt = self.sampled.as_ref().and_then(|sampled| {
            let block = &self.rows[self.live_at(addr)? as usize];
            let doubt = sampled.doubts.get(&block.ordinal).copied();
            // Where releases may be missed, an address that is given out again is no fault of the capture.
            let unwatched = || sampled.sampling.unwatched_since(block, time_ns);
            doubt.or_else(unwatched).or_else(|| found_gone.then_some(block.alloc_ns))
        });
        let Some(block) = self.take(addr) else { return };
        let (blocks, bytes) = match doubt {
            Some(_) => (&mut self.totals.gone, &mut self.totals.gone_bytes),
            None => (&mut self.totals.replaced, &mut self.totals.replaced_bytes),
        };
        *blocks += 1;
        *bytes = bytes.wrapping_add(block.size);
        let ending = match doubt {
            // What waited is stamped before what was learnt meanwhile.
            Some(known_ns) => Ending::Gone { time_ns, known_ns: known_ns.min(time_ns) },
            None => {
                // A block from before a pause may well have been freed in it.
                self.anomalies.allocated_alive += u64::from(block.ordinal > self.censored_to);
                Ending::Replaced { time_ns }
            }
        };
        self.sink.ended(&block, &ending, &self.peak);
    }

    /// Takes the block at `addr` out of the live ones.
    #[inline(always)]
    fn take(&mut self, addr: u64) -> Option<Block> {
        let rows = &self.rows;
        let row = self.addresses.remove(addr, |row| rows[row as usize].addr == addr)?;
        self.vacant.push(row);
        let block = self.rows[row as usize];
        self.totals.live_blocks -= 1;
        self.totals.live_bytes = self.totals.live_bytes.wrapping_sub(block.size);
        if let Some(sampled) = &mut self.sampled {
            sampled.ends(&block);
        }
        Some(block)
    }
}

fn stream_state(streams: &mut Vec<StreamState>, stream: StreamId) -> &mut StreamState {
    let index = stream.0 as usize;
    if index >= streams.len() {
        streams.resize(index + 1, StreamState::default());
    }
    &mut streams[index]
}
