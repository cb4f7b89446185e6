//! The totals of a list of events, and the legality of its order, worked out once more by the plainest means.

use std::collections::HashMap;

use crate::capture::{Event, Totals};

/// What a replay found.
#[derive(Debug)]
pub struct Replay {
    /// As a report prints them (losses aside).
    pub totals: Totals,
    /// Live blocks at the end: address and size.
    pub live: HashMap<u64, u64>,
    /// Addresses handed out while they were alive, and time running backwards: neither can happen, so their order is wrong.
    pub illegal: Vec<String>,
}

/// Longest time by which the stamps of two operations on one address, made by different cores, may come out inverted: the processor reads
/// its clock a little before the operations it stamps are done.
const REORDER_NS: u64 = 2_000;

/// The places of heap events in the order in which they must have happened: where an address is handed out while alive and another
/// thread's free stands within [`REORDER_NS`] behind, the two change places. The order within a thread is always true: a free of what
/// is not alive, and the same thread's malloc right behind it, are a block that was made unseen and its successor.
fn possible_order(events: &[Event]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..events.len()).collect();
    let mut last = HashMap::<u64, usize>::new();
    let mut by_address = HashMap::<u64, Vec<usize>>::new();
    for (i, e) in events.iter().enumerate().filter(|(_, e)| matches!(e.event.as_str(), "alloc" | "free")) {
        // Only addresses with two events close together can need repair.
        if last.insert(e.addr, i).is_some_and(|before| e.t.saturating_sub(events[before].t) <= REORDER_NS) {
            by_address.entry(e.addr).or_default();
        }
    }
    for (i, e) in events.iter().enumerate() {
        if let Some(places) = by_address.get_mut(&e.addr).filter(|_| matches!(e.event.as_str(), "alloc" | "free")) {
            places.push(i);
        }
    }
    for places in by_address.values() {
        let mut alive = false;
        for k in 0..places.len() {
            let (here, next) = (places[k], places.get(k + 1).copied());
            let makes = |place: usize| events[order[place]].event == "alloc";
            let inverted = |next: &usize| {
                let apart = events[order[here]].tid != events[order[*next]].tid && events[*next].t - events[here].t <= REORDER_NS;
                apart && makes(here) == alive && makes(*next) != alive
            };
            if let Some(next) = next.filter(inverted) {
                order.swap(here, next);
            }
            alive = events[order[here]].event == "alloc";
        }
    }
    order
}

/// Replays the heap events of a dump, which stand in the order of their stamps.
pub fn replay(events: &[Event]) -> Replay {
    let mut r = Replay { totals: Totals::default(), live: HashMap::new(), illegal: Vec::new() };
    let mut now = 0;
    for (i, place) in possible_order(events).into_iter().enumerate() {
        if events[i].t < now {
            r.illegal.push(format!("event {i}: time runs backwards from {now}: {:?}", events[i]));
        }
        now = events[i].t;
        let e = &events[place];
        let t = &mut r.totals;
        match e.event.as_str() {
            "alloc" => {
                t.allocations += 1;
                t.allocated_bytes += e.size;
                t.live_bytes += e.size;
                t.peak_bytes = t.peak_bytes.max(t.live_bytes);
                if let Some(size) = r.live.insert(e.addr, e.size) {
                    t.live_bytes -= size;
                    r.illegal.push(format!("event {i}: {:#x} handed out while alive: {e:?}", e.addr));
                }
            }
            "free" => match r.live.remove(&e.addr) {
                Some(size) => {
                    t.frees += 1;
                    t.live_bytes -= size;
                }
                None => t.unknown_frees += 1,
            },
            _ => continue,
        }
    }
    r.totals.live_blocks = r.live.len() as u64;
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An allocation or a free by thread 1 or 2.
    fn event(event: &str, tid: u32, t: u64, size: u64) -> Event {
        let line = format!(r#"{{"event":"{event}","tid":{tid},"t":{t},"addr":16,"size":{size}}}"#);
        serde_json::from_str(&line).expect("a valid line")
    }

    #[test]
    fn an_inverted_reuse_is_illegal_though_its_totals_add_up_unless_it_is_short() {
        let inverted_by =
            |ns: u64| [event("alloc", 1, 10, 8), event("alloc", 2, 5000, 8), event("free", 1, 5000 + ns, 0), event("free", 2, 50_000, 0)];
        assert!(replay(&inverted_by(100)).illegal.is_empty());
        assert_eq!(replay(&inverted_by(100)).totals.peak_bytes, 8);
        assert_eq!(replay(&inverted_by(5000)).illegal.len(), 1);
    }

    #[test]
    fn a_block_freed_before_it_is_made_is_put_right_only_if_it_is_short() {
        let inverted_by = |ns: u64| [event("free", 2, 10, 0), event("alloc", 1, 10 + ns, 8)];
        assert_eq!(replay(&inverted_by(100)).totals.unknown_frees, 0);
        assert_eq!(replay(&inverted_by(5000)).totals.unknown_frees, 1);
    }

    #[test]
    fn the_order_within_a_thread_is_never_changed() {
        let replayed = replay(&[event("free", 1, 10, 0), event("alloc", 1, 20, 8)]);
        assert_eq!((replayed.totals.unknown_frees, replayed.totals.live_blocks), (1, 1));
    }
}
