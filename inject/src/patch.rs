//! Patching while all threads stand still.

use std::time::Duration;

/// What patching did.
#[derive(Clone, Copy, Debug)]
pub struct Patched {
    /// How long the target stood still.
    pub stall: Duration,
    /// How many threads it had.
    pub threads: usize,
    /// How many functions were patched.
    pub entries: usize,
}
