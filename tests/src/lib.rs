//! The oracle harness: builds the hazard programs, runs them with and without hound, and compares what hound says with what the
//! programs wrote down themselves.
//!
//! No number is kept by hand: a program notes each of its allocations (`programs/oracle.h`), the test compares block by block and frame
//! by frame. What hound says is read as its users read it, from `hound dump`, `report` and `info`; the harness shares no code with it, so
//! that a mistake in a shared definition cannot hide itself.

pub mod attach;
pub mod binaries;
pub mod capture;
pub mod compare;
pub mod compile;
pub mod oracle;
pub mod process;
pub mod record;
pub mod replay;
pub mod requirement;
pub mod sampled;
pub mod scene;
pub mod visited;
