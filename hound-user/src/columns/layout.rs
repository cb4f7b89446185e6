//! The bytes of an index: a page that says what it is of, the columns, and a tail with everything else.
//!
//! ```text
//! 0        magic, format, which capture (length, mtime, session), where the tail is, its checksum; the page's own checksum
//! 4096     heap: column after column, each as long as there may be blocks; what is not used is a hole in the file
//! …        the first pool that was met, the second, …
//! tail     of each heap: rows, outcome, checksums; stacks; what was wrong with the capture
//! ```
//!
//! Each column has a checksum for every [`SEGMENT`] rows, which is compared before they are first looked at: an index that somebody wrote
//! over is found out, and made anew. Nothing in it is believed: numbers that lead out of the file make it no index.

use super::table::WIDTHS;
use crate::capture::model::{StackId, StackNode, StackRoot, StackTree};
use crate::heap::{Anomalies, Outcome, Peak, Totals};
use serde::{Deserialize, Serialize};

/// Rows of a segment: what is written, checked and summed up at once.
pub(super) const SEGMENT: usize = 1 << 16;
/// The first page, and what columns are aligned to.
pub(super) const PAGE: u64 = 4096;
const MAGIC: [u8; 8] = *b"HOUNDIDX";
/// To be raised with every change of the columns, of what replay tells, or of the tail.
const FORMAT: u32 = 1;
/// Bytes of the first page that say something.
const HEADER: usize = 80;

/// Which capture an index is of, and of which hound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Its length in bytes.
    pub length: u64,
    /// When it was written to last, nanoseconds since 1970.
    pub modified_ns: u64,
    /// Checksum of its session record.
    pub session: u64,
    /// Checksum of hound's version.
    pub hound: u64,
}

/// The first page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub identity: Identity,
    /// How many blocks each heap has room for.
    pub capacity: u64,
    pub tail_at: u64,
    pub tail_bytes: u64,
    pub tail_crc: u32,
}

impl Header {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let Identity { length, modified_ns, session, hound } = self.identity;
        let words = [length, modified_ns, session, hound, self.capacity, self.tail_at, self.tail_bytes];
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend(self.tail_crc.to_le_bytes());
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes.resize(HEADER, 0);
        bytes
    }

    /// `None`: it is no header of this format, or damaged.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
        let word = |number: usize| bytes.get(16 + number * 8..24 + number * 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let is_ours = bytes.get(..8)? == MAGIC && number(8)? == FORMAT && number(72)? == crc32fast::hash(bytes.get(..72)?);
        if !is_ours {
            return None;
        }
        let identity = Identity { length: word(0)?, modified_ns: word(1)?, session: word(2)?, hound: word(3)? };
        Some(Header { identity, capacity: word(4)?, tail_at: word(5)?, tail_bytes: word(6)?, tail_crc: number(12)? })
    }
}

fn padded(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(PAGE)
}

/// Where a column of a heap begins; `None`: nowhere in a file. `heap`: in the order in which they were met.
pub(super) fn column_at(capacity: u64, heap: usize, column: usize) -> Option<u64> {
    let length = |width: &usize| padded(capacity.checked_mul(*width as u64)?);
    let heap_bytes = WIDTHS.iter().try_fold(0u64, |sum, width| sum.checked_add(length(width)?))?;
    let before = WIDTHS[..column].iter().try_fold(0u64, |sum, width| sum.checked_add(length(width)?))?;
    PAGE.checked_add(heap_bytes.checked_mul(heap as u64)?)?.checked_add(before)
}

/// What is told of one heap beside its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeapTail {
    /// The pool's number; 0 for the heap.
    pub number: u8,
    pub rows: u64,
    pub outcome: OutcomeWords,
    /// By segment, then by column.
    pub checksums: Vec<u32>,
    pub gone: Vec<(u32, u64)>,
}

/// [`Outcome`] as numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutcomeWords(Vec<u64>);

impl OutcomeWords {
    pub(super) fn of(outcome: &Outcome) -> Self {
        let Outcome { totals: t, peak, anomalies, end_ns } = *outcome;
        OutcomeWords(vec![
            t.allocations,
            t.allocated_bytes,
            t.frees,
            t.freed_bytes,
            t.replaced,
            t.replaced_bytes,
            t.gone,
            t.gone_bytes,
            t.uncertain_blocks,
            t.uncertain_bytes,
            t.live_blocks,
            t.live_bytes,
            t.censored_blocks,
            t.censored_bytes,
            t.temporary,
            t.inherited_frees,
            t.unknown_frees,
            peak.bytes,
            peak.time_ns,
            peak.ordinal,
            anomalies.allocated_alive,
            anomalies.reordered,
            end_ns,
        ])
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        let [
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            replaced,
            replaced_bytes,
            gone,
            gone_bytes,
            uncertain_blocks,
            uncertain_bytes,
            live_blocks,
            live_bytes,
            censored_blocks,
            censored_bytes,
            temporary,
            inherited_frees,
            unknown_frees,
            bytes,
            time_ns,
            ordinal,
            allocated_alive,
            reordered,
            end_ns,
        ] = self.0[..]
        else {
            return None;
        };
        let totals = Totals {
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            replaced,
            replaced_bytes,
            gone,
            gone_bytes,
            uncertain_blocks,
            uncertain_bytes,
            live_blocks,
            live_bytes,
            censored_blocks,
            censored_bytes,
            temporary,
            inherited_frees,
            unknown_frees,
        };
        let peak = Peak { bytes, time_ns, ordinal };
        Some(Outcome { totals, peak, anomalies: Anomalies { allocated_alive, reordered }, end_ns })
    }
}

/// Everything beside the columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    /// The program's heap first, then pools by number.
    pub heaps: Vec<HeapTail>,
    pub anomalies: crate::capture::Anomalies,
    pub stacks: StackTree,
}

/// The stacks are many, the rest is small: JSON, its length before it.
impl Tail {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let small = serde_json::to_vec(&(&self.heaps, &self.anomalies)).unwrap_or_default();
        let mut bytes = (small.len() as u64).to_le_bytes().to_vec();
        bytes.extend(small);
        for number in 0..self.stacks.len() as u32 {
            let (parent, word) = match self.stacks.node(StackId(number)) {
                Some(StackNode::Frame { parent, ip }) => (parent.0, ip),
                Some(StackNode::Root(root)) => (u32::MAX, root.to_word()),
                None => break,
            };
            bytes.extend(parent.to_le_bytes());
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    /// `None`: it is not the tail of an index.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (heaps, anomalies) = serde_json::from_slice(rest.get(..length)?).ok()?;
        let nodes = rest.get(length..)?.chunks_exact(12).map(|node| {
            let (parent, word) = node.split_first_chunk::<4>()?;
            let (parent, word) = (u32::from_le_bytes(*parent), u64::from_le_bytes(word.try_into().ok()?));
            Some(match parent {
                u32::MAX => StackNode::Root(StackRoot::from_word(word)),
                parent => StackNode::Frame { parent: StackId(parent), ip: word },
            })
        });
        Some(Tail { heaps, anomalies, stacks: StackTree::of_nodes(nodes)? })
    }
}
