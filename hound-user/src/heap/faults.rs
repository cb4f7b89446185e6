//! What a page fault stands for.

use super::sampling::{Drawn, Weight};
use crate::capture::model::Fault;
use hound_common::event::{FAULT_ANONYMOUS, FAULT_COPY, FAULT_FILE, FAULT_HEAP, FAULT_SHARED, FAULT_STACK};
use hound_common::sampling::probability;

/// Bytes that a touch counts for when it is drawn, however large the page turns out to be.
pub const PAGE: u64 = 4096;

/// What lies where a page was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// The heap that grows by brk.
    Heap,
    /// An anonymous mapping.
    Anonymous,
    /// A stack.
    Stack,
    /// A page of a file.
    File,
    /// A copy of a file's page of the process' own.
    Copy,
    /// Memory shared with others.
    Shared,
    /// It was unmapped before hound looked.
    Unknown,
}

impl FaultKind {
    /// All, as they are listed.
    pub const ALL: [FaultKind; 7] =
        [FaultKind::Heap, FaultKind::Anonymous, FaultKind::Stack, FaultKind::File, FaultKind::Copy, FaultKind::Shared, FaultKind::Unknown];

    /// By its number in a record (`hound_common::event::FAULT_…`).
    pub fn of(number: u8) -> Self {
        match number {
            FAULT_HEAP => FaultKind::Heap,
            FAULT_ANONYMOUS => FaultKind::Anonymous,
            FAULT_FILE => FaultKind::File,
            FAULT_COPY => FaultKind::Copy,
            FAULT_STACK => FaultKind::Stack,
            FAULT_SHARED => FaultKind::Shared,
            _ => FaultKind::Unknown,
        }
    }

    /// One word, as JSON and the dump have it.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Heap => "heap",
            FaultKind::Anonymous => "anonymous",
            FaultKind::Stack => "stack",
            FaultKind::File => "file",
            FaultKind::Copy => "copy",
            FaultKind::Shared => "shared",
            FaultKind::Unknown => "unknown",
        }
    }

    /// Whether what is touched counts as resident anonymous memory.
    pub fn is_anonymous(self) -> bool {
        matches!(self, FaultKind::Heap | FaultKind::Anonymous | FaultKind::Stack | FaultKind::Copy)
    }
}

/// What it stands for. Faults are drawn one by one with the probability of a block of a page.
pub fn drawn(fault: &Fault) -> Drawn {
    match fault.interval {
        0 => Drawn::Exact,
        interval => Drawn::Sampled(Weight { probability: probability(PAGE, interval), scale: 1.0, cluster: None }),
    }
}
