//! Reads of the target, counted and bounded.

use std::io;
use std::time::{Duration, Instant};

use super::Bound;

/// What a walk may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long it may take.
    pub time: Duration,
    /// How much it may read.
    pub bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { time: Duration::from_millis(200), bytes: 256 << 20 }
    }
}

/// Why a read did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Not there (any more), or not readable.
    Unreadable,
    /// A bound is reached.
    Bound(Bound),
}

type Read<'r> = &'r mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>;

/// The target's memory.
pub struct Source<'r> {
    read: Read<'r>,
    started: Instant,
    limits: Limits,
    /// Bytes read so far.
    pub bytes: u64,
}

impl<'r> Source<'r> {
    pub fn new(read: Read<'r>, limits: Limits) -> Self {
        Source { read, started: Instant::now(), limits, bytes: 0 }
    }

    pub fn fill(&mut self, address: u64, into: &mut [u8]) -> Result<(), Stop> {
        if self.started.elapsed() > self.limits.time {
            return Err(Stop::Bound(Bound::Time));
        }
        if self.bytes.saturating_add(into.len() as u64) > self.limits.bytes {
            return Err(Stop::Bound(Bound::Bytes));
        }
        self.bytes += into.len() as u64;
        (self.read)(address, into).map_err(|_| Stop::Unreadable)
    }

    pub fn words<const N: usize>(&mut self, address: u64) -> Result<[u64; N], Stop> {
        let mut bytes = [[0; 8]; N];
        self.fill(address, bytes.as_flattened_mut())?;
        Ok(bytes.map(u64::from_le_bytes))
    }

    pub fn word(&mut self, address: u64) -> Result<u64, Stop> {
        self.words::<1>(address).map(|[word]| word)
    }

    pub fn took_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
}

/// The word at an offset of a buffer; none past its end.
pub fn word_in(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}
