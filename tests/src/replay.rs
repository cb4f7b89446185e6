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

/// Replays heap events in the order given.
pub fn replay(events: &[Event]) -> Replay {
    let mut r = Replay { totals: Totals::default(), live: HashMap::new(), illegal: Vec::new() };
    let mut now = 0;
    for (i, e) in events.iter().enumerate() {
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
        if e.t < now {
            r.illegal.push(format!("event {i}: time runs backwards from {now}: {e:?}"));
        }
        now = e.t;
    }
    r.totals.live_blocks = r.live.len() as u64;
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: &str, addr: u64, size: u64) -> Event {
        let line = format!(r#"{{"event":"{event}","addr":{addr},"size":{size}}}"#);
        serde_json::from_str(&line).expect("a valid line")
    }

    #[test]
    fn an_inverted_reuse_is_illegal_though_its_totals_add_up() {
        let right = [event("alloc", 16, 8), event("free", 16, 0), event("alloc", 16, 8), event("free", 16, 0)];
        assert!(replay(&right).illegal.is_empty());
        let inverted = [event("alloc", 16, 8), event("alloc", 16, 8), event("free", 16, 0), event("free", 16, 0)];
        assert_eq!(replay(&inverted).illegal.len(), 1);
    }
}
