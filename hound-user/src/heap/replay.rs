//! The replay itself: one pass, a table of live blocks, and a word to the sink for every block that ends.

use super::addresses::AddressMap;
use super::block::{Anomalies, Block, Death, Ending, Outcome, Peak, Totals};
use super::order::{Held, Operation, Order, Step};
use crate::capture::Visitor;
use crate::capture::model::{Alloc, Event, Free, Stamped, StreamId};
use hound_common::event::MODE_OFF;

// Sums of bytes wrap: sizes come from memory that the target could scribble on, and no content may stop a replay.

/// What replay remembers of a stream.
#[derive(Clone, Copy, Default)]
struct StreamState {
    /// Ordinal of its last allocation: a block that it frees while this is the block's own is temporary.
    last_alloc: u64,
    /// The block its last realloc released: where, since when, how many reallocs.
    released: Option<(u64, u64, u32)>,
}

/// Turns events into blocks. `sink(block, ending, peak)` hears of each block once, when it ends, or at the end if it lives.
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
}

impl<S: FnMut(&Block, &Ending, &Peak)> Visitor for Replay<S> {
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

    /// Only the switching of the recording matters here.
    fn other(&mut self, event: &Stamped) {
        self.advance(event.time_ns);
        if event.event == (Event::Mode { mode: MODE_OFF }) {
            self.censored_to = self.ordinal;
        }
    }
}

impl<S: FnMut(&Block, &Ending, &Peak)> Replay<S> {
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
        }
    }

    /// The end of the recording: whatever waits is decided, and the sink hears of the blocks that live.
    pub fn finish(mut self) -> Outcome {
        while let Some(addr) = self.order.any() {
            self.settle(addr, u64::MAX);
        }
        // Rows stay in the table of addresses exactly as long as their blocks live.
        for (row, block) in self.rows.iter().enumerate() {
            let here = |other: u32| other as usize == row;
            if self.addresses.find(block.addr, here).is_none() {
                continue;
            }
            let ending = if block.ordinal <= self.censored_to {
                self.totals.censored_blocks += 1;
                self.totals.censored_bytes = self.totals.censored_bytes.wrapping_add(block.size);
                Ending::Censored { time_ns: self.now_ns }
            } else {
                Ending::Alive { time_ns: self.now_ns }
            };
            (self.sink)(block, &ending, &self.peak);
        }
        Outcome { totals: self.totals, peak: self.peak, anomalies: self.anomalies, end_ns: self.now_ns }
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
                    Operation::Free(_) => self.totals.unknown_frees += 1,
                    Operation::Alloc(_) => {
                        self.replace(addr, held.time_ns);
                        self.apply(&held);
                    }
                },
            }
        }
    }

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
    fn place(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) -> bool {
        let row = self.vacant.last().copied().unwrap_or(self.rows.len() as u32);
        let rows = &self.rows;
        if !self.addresses.insert(alloc.addr, row, |other| rows[other as usize].addr == alloc.addr) {
            return false;
        }
        self.ordinal += 1;
        let state = stream_state(&mut self.streams, stream);
        state.last_alloc = self.ordinal;
        let (chain_ns, chain_length) = match state.released.take() {
            Some((addr, since_ns, length)) if alloc.previous == Some(addr) => (since_ns, length + 1),
            _ => (time_ns, 0),
        };
        let block = Block {
            addr: alloc.addr,
            size: alloc.size,
            alloc_ns: time_ns,
            ordinal: self.ordinal,
            chain_ns,
            stack: alloc.stack,
            stream,
            chain_length,
            kind: alloc.kind,
            flags: alloc.flags,
        };
        if self.vacant.pop().is_some() {
            self.rows[row as usize] = block;
        } else {
            self.rows.push(block);
        }
        let totals = &mut self.totals;
        totals.allocations += 1;
        totals.allocated_bytes = totals.allocated_bytes.wrapping_add(block.size);
        totals.live_blocks += 1;
        totals.live_bytes = totals.live_bytes.wrapping_add(block.size);
        if totals.live_bytes > self.peak.bytes {
            self.peak = Peak { bytes: totals.live_bytes, time_ns, ordinal: self.ordinal };
        }
        true
    }

    /// Ends the block that is released, unless none lives there: then false.
    fn release(&mut self, time_ns: u64, stream: StreamId, free: &Free) -> bool {
        let Free { addr, kind, realloc, stack, .. } = *free;
        let Some(block) = self.take(addr) else { return false };
        let state = stream_state(&mut self.streams, stream);
        let temporary = block.stream == stream && state.last_alloc == block.ordinal;
        if realloc {
            state.released = Some((addr, block.chain_ns, block.chain_length));
        }
        self.totals.frees += 1;
        self.totals.freed_bytes = self.totals.freed_bytes.wrapping_add(block.size);
        self.totals.temporary += u64::from(temporary);
        self.order.freed(&block, time_ns, stream);
        (self.sink)(&block, &Ending::Freed(Death { time_ns, stream, kind, realloc, stack, temporary }), &self.peak);
        true
    }

    /// Ends the block at `addr` because its address was given out again.
    fn replace(&mut self, addr: u64, time_ns: u64) {
        let Some(block) = self.take(addr) else { return };
        // A block from before a pause may well have been freed in it.
        self.anomalies.allocated_alive += u64::from(block.ordinal > self.censored_to);
        self.totals.replaced += 1;
        self.totals.replaced_bytes = self.totals.replaced_bytes.wrapping_add(block.size);
        (self.sink)(&block, &Ending::Replaced { time_ns }, &self.peak);
    }

    /// Takes the block at `addr` out of the live ones.
    fn take(&mut self, addr: u64) -> Option<Block> {
        let rows = &self.rows;
        let row = self.addresses.remove(addr, |row| rows[row as usize].addr == addr)?;
        self.vacant.push(row);
        let block = self.rows[row as usize];
        self.totals.live_blocks -= 1;
        self.totals.live_bytes = self.totals.live_bytes.wrapping_sub(block.size);
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
