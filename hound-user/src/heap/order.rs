//! Order by legality: the events at one address whose stamps contradict each other.
//!
//! Stamps of ordered operations on different cores may be inverted by up to [`REORDER_NS`]. At one address legal histories alternate:
//! alloc, free, alloc, free. An event that does not fit is held for that long; every event at its address queues behind it, and
//! whichever fits next is let through, as long as no event of its own stream waits before it (a stream's own order is true).
//!
//! An event that was let through because it fitted may have been the wrong one of two: `free B` before `free A` where truth is
//! `free A, alloc A, free B`. Then `free A` is held with nothing it could wait for but its own stream. Such an event, held at an address
//! that other streams used within the window, is *exchangeable*: had it come first, the other one would be held now. So it holds nobody
//! up, and an exchangeable allocation is paired with the release that follows it in its own stream. The blocks come out the same but for
//! which of two events within two microseconds began or ended which. An address that others used so shortly before cannot hold a
//! block from before the recording, so this never mistakes an unknown free.
//!
//! What remains cannot be told by anyone: two complete alloc–free pairs at one address by different threads within two microseconds may
//! come out exchanged. Counts, live addresses and sums per address are exact regardless.

use super::block::Block;
use crate::capture::model::{Alloc, Free, StreamId};
use hound_common::event::REORDER_NS;
use std::collections::{HashMap, VecDeque};

/// An event at one address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operation {
    Alloc(Alloc),
    Free(Free),
}

/// An event that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub time_ns: u64,
    pub stream: StreamId,
    pub operation: Operation,
    /// It waits because an event of another stream that might as well have come later came first.
    pub exchangeable: bool,
}

/// What may happen next at an address with held events.
pub(super) enum Step {
    /// This one fits.
    Apply(Held),
    /// These two are one block that came and went: it never met the live one.
    Pair(Held, Held),
    /// None fits, and the first has waited long enough.
    Overdue(Held),
    /// None fits yet.
    Wait,
}

/// Frees remembered to find exchangeable ones: more than all cores together make in [`REORDER_NS`] (100 frees a microsecond).
const RECENT: usize = 256;

const NOBODY: Recent = Recent { addr: 0, alloc_ns: 0, alloc_by: StreamId(0), free_ns: 0, free_by: StreamId(0) };

/// Everything that waits.
pub(super) struct Order {
    held: HashMap<u64, Vec<Held>>,
    /// When the held events are due, oldest first.
    due: VecDeque<(u64, u64)>,
    recent: Vec<Recent>,
    newest: usize,
}

/// A block that ended a short while ago: who used its address when.
#[derive(Clone, Copy)]
struct Recent {
    addr: u64,
    alloc_ns: u64,
    alloc_by: StreamId,
    free_ns: u64,
    free_by: StreamId,
}

impl Order {
    pub(super) fn new() -> Self {
        Order { held: HashMap::new(), due: VecDeque::new(), recent: vec![NOBODY; RECENT], newest: 0 }
    }

    /// Whether nothing waits: the usual case, and the only check an ordinary event pays for.
    pub(super) fn is_idle(&self) -> bool {
        self.due.is_empty()
    }

    /// Whether something waits at this address.
    pub(super) fn holds(&self, addr: u64) -> bool {
        self.held.contains_key(&addr)
    }

    /// Remembers that a block was released.
    pub(super) fn freed(&mut self, block: &Block, free_ns: u64, free_by: StreamId) {
        self.newest = (self.newest + 1) % RECENT;
        self.recent[self.newest] = Recent { addr: block.addr, alloc_ns: block.alloc_ns, alloc_by: block.stream, free_ns, free_by };
    }

    /// Whether another stream used this address so shortly before or after that its event may have been the later one: `live` is the
    /// block that lives there.
    pub(super) fn used_by_others(&self, addr: u64, time_ns: u64, stream: StreamId, live: Option<&Block>) -> bool {
        let near = |other_ns: u64, by: StreamId| by != stream && other_ns.abs_diff(time_ns) <= REORDER_NS;
        live.is_some_and(|block| near(block.alloc_ns, block.stream))
            || self.recent.iter().any(|r| r.addr == addr && (near(r.alloc_ns, r.alloc_by) || near(r.free_ns, r.free_by)))
    }

    /// Lets an event wait.
    pub(super) fn hold(&mut self, addr: u64, held: Held) {
        self.held.entry(addr).or_default().push(held);
        self.due.push_back((held.time_ns.saturating_add(REORDER_NS), addr));
    }

    /// Any address where something waits.
    pub(super) fn any(&self) -> Option<u64> {
        self.held.keys().min().copied()
    }

    /// An address whose oldest event has waited long enough at `now_ns`.
    pub(super) fn due(&mut self, now_ns: u64) -> Option<u64> {
        let &(until, addr) = self.due.front()?;
        (until < now_ns).then(|| {
            self.due.pop_front();
            addr
        })
    }

    /// What may happen next at `addr`, where a block lives or not.
    pub(super) fn step(&mut self, addr: u64, alive: bool, now_ns: u64) -> Step {
        let Some(queue) = self.held.get_mut(&addr) else { return Step::Wait };
        let step = if let Some((first, second)) = next_pair(queue).filter(|_| alive) {
            let freed = queue.remove(second);
            Step::Pair(queue.remove(first), freed)
        } else if let Some(index) = next_fitting(queue, alive) {
            let applied = queue.remove(index);
            mark_exchangeable(queue, &applied);
            Step::Apply(applied)
        } else if queue.first().is_some_and(|first| first.time_ns.saturating_add(REORDER_NS) < now_ns) {
            Step::Overdue(queue.remove(0))
        } else {
            Step::Wait
        };
        if queue.is_empty() {
            self.held.remove(&addr);
        }
        step
    }
}

/// Whoever still waits after an event of another stream was let through might as well have gone first.
fn mark_exchangeable(queue: &mut [Held], applied: &Held) {
    for held in queue.iter_mut().filter(|held| held.stream != applied.stream) {
        held.exchangeable |= held.time_ns.abs_diff(applied.time_ns) <= REORDER_NS;
    }
}

/// The first event that fits and has none of its own stream before it that must go first.
fn next_fitting(queue: &[Held], alive: bool) -> Option<usize> {
    (0..queue.len()).find(|&index| {
        let held = &queue[index];
        let fits = matches!(held.operation, Operation::Free(_)) == alive;
        fits && !queue[..index].iter().any(|before| before.stream == held.stream && !before.exchangeable)
    })
}

/// An exchangeable allocation and the free that follows it in its own stream.
fn next_pair(queue: &[Held]) -> Option<(usize, usize)> {
    queue.iter().enumerate().find_map(|(first, held)| {
        if !held.exchangeable || !matches!(held.operation, Operation::Alloc(_)) {
            return None;
        }
        let second = first + 1 + queue[first + 1..].iter().position(|later| later.stream == held.stream)?;
        matches!(queue[second].operation, Operation::Free(_)).then_some((first, second))
    })
}
