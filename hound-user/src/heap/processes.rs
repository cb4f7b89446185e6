//! Captures of several processes: each has addresses of its own, and they are replayed together.
//!
//! One replay for all, instead of one for each: so the peak is the most that lived in all of them at one moment, not a sum of peaks of
//! different moments. A process' number goes into the upper bits of its addresses, which no address of a user's has.

use crate::capture::StreamInfo;
use crate::capture::model::{ProcessId, StreamId};

/// Bits of an address that are its own.
const ADDRESS_BITS: u32 = 48;
/// Numbers that fit above. Processes beyond share them, and there are never so many at once.
const TAGS: u32 = u16::MAX as u32;

/// Which stream is of which process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    /// By stream; nothing: it is left out.
    streams: Vec<Option<ProcessId>>,
}

/// What tells the addresses of a process from those of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

impl Tag {
    pub(super) fn of(process: ProcessId) -> Self {
        Tag(process.0.checked_sub(1).map_or(0, |other| u64::from(other % TAGS + 1) << ADDRESS_BITS))
    }

    /// The address as it is in the replay; and back.
    pub(super) fn apply(self, addr: u64) -> u64 {
        addr ^ self.0
    }

    /// Whether this address of the replay is the process'.
    pub(super) fn is_on(self, addr: u64) -> bool {
        addr >> ADDRESS_BITS == self.0 >> ADDRESS_BITS
    }
}

impl Processes {
    /// Those of a capture with these streams. `only`: the processes that are asked for; empty = all. Nothing, if all is of one process and
    /// asked for: then it need not be told apart.
    pub fn of(streams: &[StreamInfo], only: &[ProcessId]) -> Option<Self> {
        let is_asked_for = |process: &ProcessId| only.is_empty() || only.contains(process);
        if streams.iter().all(|stream| stream.process == ProcessId::FIRST && is_asked_for(&stream.process)) {
            return None;
        }
        let mut all = Vec::new();
        for stream in streams {
            let at = stream.id.0 as usize;
            if at >= all.len() {
                all.resize(at + 1, None);
            }
            all[at] = Some(stream.process).filter(is_asked_for);
        }
        Some(Processes { streams: all })
    }

    /// Whose stream it is; nothing: it is left out.
    pub fn of_stream(&self, stream: StreamId) -> Option<ProcessId> {
        self.streams.get(stream.0 as usize).copied().flatten()
    }

    /// An address of a block as the process has it.
    pub fn plain(&self, stream: StreamId, addr: u64) -> u64 {
        self.of_stream(stream).map_or(addr, |process| Tag::of(process).apply(addr))
    }

    pub(super) fn tag(&self, stream: StreamId) -> Option<Tag> {
        self.of_stream(stream).map(Tag::of)
    }
}
