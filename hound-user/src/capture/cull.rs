//! Leaves out, while it is recorded, what lives only a short time: ring bytes in, ring bytes out.
//!
//! Records wait until they are older than the threshold, each stream's in a queue. In the order of time over all streams an allocation and the
//! release that follows it at the same address are put together; a pair that lived shorter goes (a chain of reallocs as a whole, judged by its first
//! moment), everything else is handed on, in its stream's order. So memory is for what has happened within the threshold and was not
//! released yet, and has a limit: beyond it nothing that waits is left out any more.
//!
//! Only what is certain goes. What two streams did at one address closer in time than stamps can tell is kept; so is what came when its
//! time was over already (it is counted), whatever lives when recording is switched, when a process forks, or when the file is looked at.
//!
//! How much went is told twice: in its place, as `hound strip` does (`STRIPPED`), so that nothing is taken for temporary that is not; and
//! once a second with sizes and lifetimes (`CULLED`), so that sums, rates and distributions stay whole.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use hound_common::event::{self, REORDER_NS, tag};

use super::model::{ProcessId, StreamId};
use lane::{Fate, Lane};
pub use scale::Scale;

mod lane;
mod scale;

/// A stream's tree of stacks is forgotten beyond so many nodes, when nothing of it waits.
const MOST_NODES: usize = 1 << 20;
/// Bytes are handed on in pieces of about so many.
const PIECE: usize = 32 << 10;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cull {
    /// What lived shorter than this.
    pub threshold_ns: u64,
    /// Records that may wait for being old enough.
    pub most_pending: usize,
    /// Between the moment that an event is stamped with and the one at which it can be read its thread may be interrupted for so long.
    pub lateness_ns: u64,
}

impl Cull {
    /// As many wait as take some 300 MB.
    pub const MOST_PENDING: usize = 4 << 20;
    const LATENESS_NS: u64 = 100_000_000;

    /// What lived shorter than this.
    pub fn shorter_than(threshold_ns: u64) -> Self {
        Cull { threshold_ns, most_pending: Self::MOST_PENDING, lateness_ns: Self::LATENESS_NS }
    }
}

/// Process and pool, and the address there.
type Key = (u64, u64);
fn process_of(process_and_pool: u64) -> u32 {
    (process_and_pool >> 8) as u32
}
/// A record: its stream, and its number there.
type Place = (u32, u64);

/// A chain of reallocs: when it began, and its allocations with their releases.
#[derive(Clone, Debug, Default)]
struct Chain {
    since: u64,
    links: Vec<(Place, Place)>,
}

/// A block that may be left out.
#[derive(Debug)]
struct Young {
    at: Place,
    ticks: u64,
    chain: Chain,
}

/// Blocks that may be left out, those of each process and pool for themselves: a fork takes all of one.
#[derive(Debug, Default)]
struct Table(Addressed<Addressed<Young>>);
type Addressed<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;

impl Table {
    fn get(&self, (owner, address): Key) -> Option<&Young> {
        self.0.get(&owner)?.get(&address)
    }

    fn insert(&mut self, (owner, address): Key, young: Young) {
        self.0.entry(owner).or_default().insert(address, young);
    }

    fn remove(&mut self, (owner, address): Key) -> Option<Young> {
        self.0.get_mut(&owner)?.remove(&address)
    }

    /// Takes out all, or those of one process.
    fn take(&mut self, of: Option<u32>) -> Vec<Young> {
        let taken =
            |owner: &u64, blocks: &mut Addressed<Young>| blocks.is_empty() || of.is_none_or(|process| process_of(*owner) == process);
        self.0.extract_if(taken).flat_map(|(_, blocks)| blocks.into_values()).collect()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }
}

/// What has gone within a second, by when it was allocated.
#[derive(Clone, Debug, Default)]
struct Gone {
    blocks: u64,
    bytes: u64,
    /// By place on the scale of lifetimes: blocks and bytes.
    lifetimes: Vec<(u64, u64)>,
    /// By place on the scale of sizes.
    sizes: Vec<(u64, u64)>,
}

impl Gone {
    fn add(&mut self, lifetime_ns: u64, size: u64) {
        let add = |places: &mut Vec<(u64, u64)>, place: u8| {
            if places.len() <= usize::from(place) {
                places.resize(usize::from(place) + 1, (0, 0));
            }
            let sum = &mut places[usize::from(place)];
            (sum.0, sum.1) = (sum.0 + 1, sum.1.saturating_add(size));
        };
        (self.blocks, self.bytes) = (self.blocks + 1, self.bytes.saturating_add(size));
        add(&mut self.lifetimes, Scale::Lifetimes.place(lifetime_ns));
        add(&mut self.sizes, Scale::Sizes.place(size));
    }
}

/// A moment at which nothing that lives may be left out.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    /// Whether anything may from then on, if that changes.
    exact: Option<bool>,
    /// Only of this process.
    of: Option<u32>,
}

/// What comes out.
#[derive(Debug, PartialEq, Eq)]
pub enum Out {
    /// Records of a stream, next in its order.
    Bytes(StreamId, Vec<u8>),
    /// A stream has ended, and nothing of it comes any more.
    Ended(StreamId),
    /// For a stream of hound's own about this process: the words of a `CULLED` record.
    Culled(ProcessId, Vec<u64>),
}

/// Leaves out what lives a short time.
#[derive(Debug)]
pub struct Culler {
    cull: Cull,
    ticks_per_second: u64,
    /// In ticks.
    threshold: u64,
    lateness: u64,
    reorder: u64,
    lanes: HashMap<u32, Lane, BuildHasherDefault<AddressHasher>>,
    /// Whose streams are, of other processes than the first.
    whose: HashMap<u32, u32>,
    young: Table,
    /// Until then everything was looked at.
    frontier: u64,
    marks: BTreeMap<u64, Mark>,
    /// Every allocation is recorded: something may be left out.
    is_exact: bool,
    /// By second and process.
    gone: BTreeMap<(u64, u32), Gone>,
    late: u64,
    overflows: u64,
}

impl Culler {
    /// One that has seen nothing.
    pub fn new(cull: Cull, ticks_per_second: u64) -> Self {
        let ticks = |ns: u64| u64::try_from(u128::from(ns) * u128::from(ticks_per_second) / 1_000_000_000).unwrap_or(u64::MAX);
        Culler {
            cull,
            ticks_per_second: ticks_per_second.max(1),
            threshold: ticks(cull.threshold_ns),
            lateness: ticks(cull.lateness_ns),
            reorder: ticks(REORDER_NS),
            lanes: HashMap::default(),
            whose: HashMap::new(),
            young: Table::default(),
            frontier: 0,
            marks: BTreeMap::new(),
            is_exact: true,
            gone: BTreeMap::new(),
            late: 0,
            overflows: 0,
        }
    }

    /// Takes a run of a stream's records.
    pub fn take(&mut self, stream: StreamId, bytes: &[u8]) {
        self.lane(stream).take(bytes);
    }

    fn lane(&mut self, stream: StreamId) -> &mut Lane {
        self.lanes.entry(stream.0).or_insert_with(|| Lane::of(self.whose.get(&stream.0).copied().unwrap_or_default()))
    }

    /// Whose a stream is, unless it is the first process'. Before anything of it is taken.
    pub fn belongs(&mut self, stream: StreamId, process: ProcessId) {
        self.whose.insert(stream.0, process.0);
    }

    /// What lives at this time is kept: recording is switched. `exact`: whether every allocation is recorded from then on, if that changes;
    /// samples are kept.
    pub fn keep_at(&mut self, ticks: u64, exact: Option<bool>) {
        let known = self.marks.entry(ticks).or_default();
        *known = Mark { exact: exact.or(known.exact), of: None };
    }

    /// What this process holds at this time is kept: it forks, and what it held has copies.
    pub fn keep_of(&mut self, process: ProcessId, ticks: u64) {
        let of = Some(process.0);
        let known = self.marks.entry(ticks).or_insert(Mark { exact: None, of });
        known.of = known.of.filter(|known| Some(*known) == of);
    }

    /// All that was recorded until `read` has been taken in: decides what can be decided, and hands on what waits no longer.
    pub fn advance(&mut self, read: u64, out: &mut Vec<Out>) {
        self.look(read.saturating_sub(self.lateness));
        if self.lanes.values().map(|lane| lane.looked - lane.gaps.min(lane.looked)).sum::<usize>() > self.cull.most_pending {
            self.overflows += 1;
            self.keep_all();
        }
        self.hand_on(out);
        self.tell(self.frontier.saturating_sub(self.threshold), out);
    }

    /// Hands on what is decided already, however little of a stream that is.
    pub fn hand_on_pieces(&mut self, out: &mut Vec<Out>) {
        self.pieces(0, out);
    }

    /// After [`Self::hand_on_pieces`]: all that was recorded until then was handed on, as far as it is kept.
    pub fn handed_on(&self) -> u64 {
        self.frontier.saturating_sub(self.threshold)
    }

    /// The same, without waiting: nothing that was recorded until `read` waits any longer. `None`: nothing comes any more.
    pub fn flush(&mut self, read: Option<u64>, out: &mut Vec<Out>) {
        self.look(read.unwrap_or(u64::MAX));
        self.keep_all();
        self.hand_on(out);
        self.tell(if read.is_some() { self.frontier } else { u64::MAX }, out);
        if read.is_none() {
            for lane in self.lanes.values_mut() {
                lane.tell(lane.clock, self.cull.threshold_ns);
            }
        }
        self.pieces(0, out);
    }

    /// A stream has ended: [`Out::Ended`] says when nothing of it waits any more.
    pub fn end(&mut self, stream: StreamId) {
        self.lane(stream).ended = true;
    }

    /// Looks at everything up to this time, in the order of time.
    fn look(&mut self, until: u64) {
        let first = |(id, lane): (&u32, &Lane)| lane.next().map(|ticks| Reverse((ticks, *id)));
        let mut heap: BinaryHeap<Reverse<(u64, u32)>> = self.lanes.iter().filter_map(first).filter(|next| next.0.0 <= until).collect();
        while let Some(Reverse((ticks, id))) = heap.pop() {
            while let Some(mark) = self.marks.first_entry().filter(|mark| *mark.key() <= ticks) {
                let mark = mark.remove();
                self.is_exact = mark.exact.unwrap_or(self.is_exact);
                self.keep_young(mark.of);
            }
            // Its own records up to the next of another.
            let turn = heap.peek().map_or(until, |Reverse((other, _))| until.min(*other));
            self.look_at(id, ticks);
            while let Some(next) = self.lanes[&id].next().filter(|next| *next <= turn && self.marks.is_empty()) {
                self.look_at(id, next);
            }
            if let Some(next) = self.lanes[&id].next().filter(|next| *next <= until) {
                heap.push(Reverse((next, id)));
            }
        }
        self.frontier = self.frontier.max(until);
    }

    fn look_at(&mut self, id: u32, ticks: u64) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let at = lane.looked;
        lane.looked += 1;
        let Some(entry) = lane.queue.get_mut(at) else { return };
        let is_late = ticks < self.frontier;
        self.late += u64::from(ticks.saturating_add(self.lateness) < self.frontier);
        match entry.head.0 {
            tag::ALLOC => self.allocated(id, at, is_late),
            tag::FREE => self.released(id, at),
            tag::MODE | tag::RATE | tag::PROCESS => {
                let of = Some(lane.process);
                self.keep_young(of);
            }
            _ => {}
        }
    }

    fn allocated(&mut self, id: u32, at: usize, is_late: bool) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let entry = &mut lane.queue[at];
        let (key, place, ticks) = (entry.key(lane.process), (id, entry.number), entry.ticks);
        let is_realloc = entry.head.2 & event::ALLOC_REALLOC != 0;
        let wide = usize::from(entry.head.2 & event::ALLOC_WIDE != 0);
        let previous = entry.words.at(2 + wide);
        let chain = match lane.reallocated.take() {
            Some((addr, chain)) if is_realloc && addr == previous => Some(chain),
            // Its release half made no new block, or was kept.
            other => {
                lane.reallocated = other.filter(|_| !is_realloc);
                (!is_realloc).then(|| Chain { since: ticks, links: Vec::new() })
            }
        };
        // Two at one address: the end of the older one is missing, or comes later than it was.
        let conflict = self.young.remove(key);
        if let (Some(chain), None, false) = (&chain, &conflict, is_late || !self.is_exact) {
            self.young.insert(key, Young { at: place, ticks, chain: chain.clone() });
            return;
        }
        self.keep(place);
        if let Some(chain) = chain {
            self.keep_chain(&chain);
        }
        if let Some(older) = conflict {
            self.keep(older.at);
            self.keep_chain(&older.chain);
        }
    }

    fn released(&mut self, id: u32, at: usize) {
        let lane = &self.lanes[&id];
        let entry = &lane.queue[at];
        let (key, place, ticks) = (entry.key(lane.process), (id, entry.number), entry.ticks);
        let is_realloc = entry.head.2 & event::FREE_REALLOC != 0;
        let young = self.young.remove(key);
        // A chain that a realloc to nothing has ended.
        if let Some((_, chain)) = self.lanes.get_mut(&id).and_then(|lane| lane.reallocated.take()) {
            self.leave_out(&chain);
        }
        let Some(young) = young else { return self.keep(place) };
        let since_own = ticks.checked_sub(young.ticks);
        let is_certain = since_own.is_some_and(|own| young.at.0 == id || own >= self.reorder);
        if !is_certain || ticks - young.chain.since >= self.threshold {
            self.keep(place);
            self.keep(young.at);
            return self.keep_chain(&young.chain);
        }
        let mut chain = young.chain;
        chain.links.push((young.at, place));
        if !is_realloc {
            return self.leave_out(&chain);
        }
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.reallocated = Some((key.1, chain));
        }
    }

    fn keep(&mut self, (id, number): Place) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let Some(at) = lane.find(number) else { return };
        let entry = &mut lane.queue[at];
        if entry.fate == Fate::Open {
            entry.fate = Fate::Keep;
        }
    }

    fn keep_chain(&mut self, chain: &Chain) {
        for (alloc, free) in &chain.links {
            self.keep(*alloc);
            self.keep(*free);
        }
    }

    /// Unless a part of it was handed on already.
    fn leave_out(&mut self, chain: &Chain) {
        if !chain.links.iter().all(|(alloc, free)| self.waits(*alloc) && self.waits(*free)) {
            return self.keep_chain(chain);
        }
        for (alloc, free) in &chain.links {
            let (Some((from, size, pool)), Some((to, ..))) = (self.drop(*alloc), self.drop(*free)) else { continue };
            let process = self.lanes.get(&alloc.0).map_or(0, |lane| lane.process);
            // Pools are cut from what is counted already.
            if pool == 0 {
                let lifetime_ns = u128::from(to.saturating_sub(from)) * 1_000_000_000 / u128::from(self.ticks_per_second);
                let second = self.gone.entry((from / self.ticks_per_second, process)).or_default();
                second.add(u64::try_from(lifetime_ns).unwrap_or(u64::MAX), size);
            }
        }
    }

    fn waits(&self, (id, number): Place) -> bool {
        let found = self.lanes.get(&id).and_then(|lane| Some(lane.queue[lane.find(number)?].fate));
        found == Some(Fate::Open)
    }

    /// Time, size and pool of what goes.
    fn drop(&mut self, (id, number): Place) -> Option<(u64, u64, u8)> {
        let lane = self.lanes.get_mut(&id)?;
        let at = lane.find(number)?;
        let entry = &mut lane.queue[at];
        entry.fate = Fate::Drop;
        lane.gaps += 1;
        Some((entry.ticks, entry.size(), entry.pool()))
    }

    /// Nothing of what lives is left out any more; if one is given, of what lives in this process.
    fn keep_young(&mut self, of: Option<u32>) {
        let kept = self.young.take(of);
        for young in kept {
            self.keep(young.at);
            self.keep_chain(&young.chain);
        }
        let theirs = self.lanes.iter().filter(|(_, lane)| of.is_none_or(|process| lane.process == process));
        let ids: Vec<u32> = theirs.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some((_, chain)) = self.lanes.get_mut(&id).and_then(|lane| lane.reallocated.take()) {
                self.keep_chain(&chain);
            }
        }
    }

    /// The same, of all that was looked at.
    fn keep_all(&mut self) {
        self.keep_young(None);
        for lane in self.lanes.values_mut() {
            let looked = lane.looked;
            lane.queue.iter_mut().take(looked).filter(|entry| entry.fate == Fate::Open).for_each(|entry| entry.fate = Fate::Keep);
        }
    }

    /// Hands on what is decided, in each stream's order.
    fn hand_on(&mut self, out: &mut Vec<Out>) {
        let (frontier, threshold, threshold_ns) = (self.frontier, self.threshold, self.cull.threshold_ns);
        for (&id, lane) in &mut self.lanes {
            while lane.looked > 0 {
                let Some(entry) = lane.queue.front() else { break };
                let is_old = frontier.saturating_sub(entry.ticks) >= threshold;
                match entry.fate {
                    Fate::Open if !is_old => break,
                    Fate::Drop => {
                        lane.gaps = lane.gaps.saturating_sub(1);
                        if entry.head.0 == tag::ALLOC {
                            let (pool, size) = (entry.pool(), entry.size());
                            let (blocks, bytes) = lane.left_out.entry(pool).or_default();
                            (*blocks, *bytes) = (*blocks + 1, bytes.saturating_add(size));
                        }
                    }
                    Fate::Open | Fate::Keep => {
                        if entry.fate == Fate::Open && entry.head.0 == tag::ALLOC {
                            let (key, at) = (entry.key(lane.process), (id, entry.number));
                            if self.young.get(key).is_some_and(|young| young.at == at) {
                                self.young.remove(key);
                            }
                        }
                        if let Some(entry) = lane.queue.pop_front() {
                            lane.write(&entry, threshold_ns);
                            lane.looked -= 1;
                        }
                        continue;
                    }
                }
                lane.queue.pop_front();
                lane.looked -= 1;
            }
            lane.close_gaps();
            if lane.queue.is_empty() && lane.nodes.len() > MOST_NODES {
                lane.nodes.clear();
                lane.mirror.forget_nodes();
            }
        }
        self.pieces(PIECE, out);
    }

    /// Streams with more than so many bytes, and those of which nothing waits: what is in the file is not much older than the threshold.
    fn pieces(&mut self, least: usize, out: &mut Vec<Out>) {
        let threshold_ns = self.cull.threshold_ns;
        self.lanes.retain(|&id, lane| {
            let is_over = lane.ended && lane.queue.is_empty();
            if is_over {
                lane.tell(lane.clock, threshold_ns);
            }
            if lane.out.len() > least || (!lane.out.is_empty() && lane.queue.is_empty()) {
                out.push(Out::Bytes(StreamId(id), lane.out.take()));
            }
            if is_over {
                out.push(Out::Ended(StreamId(id)));
                self.whose.remove(&id);
            }
            !is_over
        });
    }

    /// Tells what has gone of the seconds that are over.
    fn tell(&mut self, until: u64, out: &mut Vec<Out>) {
        let second = self.ticks_per_second;
        while let Some(first) = self.gone.first_entry().filter(|first| (first.key().0 + 1).saturating_mul(second) <= until) {
            let ((at, process), gone) = first.remove_entry();
            let mut words =
                vec![at * second, (at + 1) * second, gone.blocks, gone.bytes, self.cull.threshold_ns, self.late, self.overflows];
            (self.late, self.overflows) = (0, 0);
            for (kind, places) in [(0, gone.lifetimes), (1, gone.sizes)] {
                for (place, (blocks, bytes)) in (0u64..).zip(places).filter(|(_, (blocks, _))| *blocks > 0) {
                    words.extend([kind << 56 | place << 48 | (blocks & ((1 << 48) - 1)), bytes]);
                }
            }
            out.push(Out::Culled(ProcessId(process), words));
        }
    }
}

/// One multiplication: addresses are even apart from their low bits.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ mixed >> 32;
    }
}

#[cfg(test)]
mod tests;
