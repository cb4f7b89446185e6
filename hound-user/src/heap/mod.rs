//! Replay: events in, blocks out. Pure: no I/O, and no content it could fail on.
//!
//! [`Replay`] is fed every event of a capture in merged order and tells a closure of each block that ended, and at the end of each
//! that lives, how it went. Nothing else is kept: memory is bounded by the largest live set, not by the length of the capture, so
//! whoever wants a table adds up as blocks end, and whoever wants a list makes one.
//!
//! Invariants, whatever the events are:
//!
//! ```text
//! allocations     = frees       + replaced       + live_blocks
//! allocated_bytes = freed_bytes + replaced_bytes + live_bytes
//! ```
//!
//! Blocks of custom pools are cut from memory that the heap's blocks are made of, often at the same address: [`Heaps`] replays each pool on
//! its own, so that what is said of the heap is what would be said without pools.
//!
//! What cannot be right is counted in [`Anomalies`], never an error. The order of events is repaired by legality ([`order`]).

mod addresses;
mod block;
mod heaps;
mod order;
mod replay;

pub use block::{Anomalies, Block, Death, Ending, Outcome, Peak, Totals};
pub use heaps::{Heaps, Sink};
pub use replay::Replay;

#[cfg(test)]
mod tests;
