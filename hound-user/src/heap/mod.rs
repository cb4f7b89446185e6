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
//! What cannot be right is counted in [`Anomalies`], never an error. The order of events is repaired by legality ([`order`]).

mod addresses;
mod block;
mod order;
mod replay;

pub use block::{Anomalies, Block, Death, Ending, Outcome, Peak, Totals};
pub use replay::Replay;

#[cfg(test)]
mod tests;
