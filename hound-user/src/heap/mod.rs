//! Replay: events in, blocks out. Pure: no I/O, and no content it could fail on.
//!
//! [`Replay`] is fed every event of a capture in merged order and tells a closure of each block that ended, and at the end of each
//! that lives, how it went. Nothing else is kept: memory is bounded by the largest live set, not by the length of the capture, so
//! whoever wants a table adds up as blocks end, and whoever wants a list makes one.
//!
//! Invariants, whatever the events are:
//!
//! ```text
//! allocations     = frees       + replaced       + gone       + live_blocks + uncertain_blocks
//! allocated_bytes = freed_bytes + replaced_bytes + gone_bytes + live_bytes  + uncertain_bytes
//! ```
//!
//! Blocks of custom pools are cut from memory that the heap's blocks are made of, often at the same address: [`Heaps`] replays each pool on
//! its own, so that what is said of the heap is what would be said without pools.
//!
//! These count what was recorded, each block once. What sampled blocks stand for is said by [`Sampling`], and added up by `query`.
//!
//! What cannot be right is counted in [`Anomalies`], never an error. The order of events is repaired by legality ([`order`]).

mod addresses;
mod block;
mod faults;
mod fetch;
mod heaps;
mod mappings;
mod order;
mod processes;
mod reach;
mod replay;
mod sampling;
mod survival;

pub use block::{Anomalies, Block, Death, Ending, Outcome, Peak, Totals};
pub use faults::{FaultKind, PAGE, drawn as fault_drawn};
pub use heaps::{Heaps, Sink};
pub use mappings::{MapRecord, Mappings};
pub use processes::Processes;
pub use reach::{Held, Memory};
pub use replay::{Hears, Replay};
pub use sampling::{Drawn, Part, Sampling, Weight, Window};
pub use survival::End;

#[cfg(test)]
mod tests;
