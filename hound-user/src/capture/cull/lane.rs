//! One stream's records on their way: from ring bytes to what waits, and from what is kept to ring bytes.

use std::collections::{BTreeMap, VecDeque};

use hound_common::event::{self, Header, StackEdit, tag};

use super::{Chain, Key};
use crate::capture::nodes::{NO_NODE, Nodes};
use crate::capture::rewrite::Rewriter;
use crate::capture::stack::{REASON_DAMAGED, StackMirror};

/// Gaps in a queue are closed when there are more than so many, and than there are records.
const FEW_GAPS: usize = 1024;

/// A record that waits.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) ticks: u64,
    pub(super) head: (u8, u8, u8),
    pub(super) fate: Fate,
    pub(super) stack: Option<Stack>,
    pub(super) words: Words,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Keep,
    Drop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stack {
    node: u32,
    end: (u8, u8),
}

/// Most records have a word or two.
#[derive(Debug)]
pub(super) enum Words {
    Few([u64; 3], u8),
    Many(Box<[u64]>),
}

impl Words {
    pub(super) fn of(words: &[[u8; 8]]) -> Self {
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        if words.len() > 3 {
            return Words::Many(words.iter().map(word).collect());
        }
        let mut few = [0; 3];
        few.iter_mut().zip(words).for_each(|(place, bytes)| *place = word(bytes));
        Words::Few(few, words.len() as u8)
    }

    pub(super) fn all(&self) -> &[u64] {
        match self {
            Words::Few(words, count) => &words[..usize::from(*count)],
            Words::Many(words) => words,
        }
    }

    pub(super) fn at(&self, place: usize) -> u64 {
        self.all().get(place).copied().unwrap_or(0)
    }
}

impl Entry {
    /// In the place of what was left out. Its number is odd: it is never looked for.
    pub(super) fn gap(number: u64, ticks: u64, pool: u8, (blocks, bytes): (u64, u64)) -> Self {
        Entry { number, ticks, head: (tag::STRIPPED, pool, 0), fate: Fate::Keep, stack: None, words: Words::Few([blocks, bytes, 0], 3) }
    }

    pub(super) fn pool(&self) -> u8 {
        event::pool_of(self.head.1, self.head.2)
    }

    pub(super) fn key(&self, process: u32) -> Key {
        (u64::from(process) << 8 | u64::from(self.pool()), self.words.at(0))
    }

    pub(super) fn size(&self) -> u64 {
        event::size_and_slack(self.words.at(1)).0
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) process: u32,
    pub(super) clock: u64,
    pub(super) mirror: StackMirror,
    pub(super) nodes: Nodes,
    pub(super) end: (u8, u8),
    pub(super) queue: VecDeque<Entry>,
    pub(super) next_number: u64,
    /// So many of the queue were looked at.
    pub(super) looked: usize,
    pub(super) gaps: usize,
    /// The release half of a realloc, whose allocation comes next.
    pub(super) reallocated: Option<(u64, Chain)>,
    pub(super) out: Rewriter,
    pub(super) path: Vec<u64>,
    pub(super) left_out: BTreeMap<u8, (u64, u64)>,
    pub(super) ended: bool,
}

impl Lane {
    /// An empty one of this process.
    pub(super) fn of(process: u32) -> Self {
        Lane {
            process,
            clock: 0,
            mirror: StackMirror::default(),
            nodes: Nodes::default(),
            end: (0, 0),
            queue: VecDeque::new(),
            next_number: 2,
            looked: 0,
            gaps: 0,
            reallocated: None,
            out: Rewriter::default(),
            path: Vec::new(),
            left_out: BTreeMap::new(),
            ended: false,
        }
    }

    pub(super) fn find(&self, number: u64) -> Option<usize> {
        // Since gaps were last closed, every second number is there.
        let last = self.queue.len().checked_sub(1)?;
        let back = (self.queue[last].number.checked_sub(number)? / 2) as usize;
        let at = last.checked_sub(back).filter(|at| self.queue[*at].number == number);
        at.or_else(|| self.queue.binary_search_by_key(&number, |entry| entry.number).ok())
    }

    /// Takes a run of records in.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        let (words, odd) = bytes.as_chunks::<8>();
        let mut rest = words;
        while let Some(first) = rest.first() {
            let header = Header::from_word(u64::from_le_bytes(*first));
            let Some((record, behind)) = rest.split_at_checked(usize::from(header.words)).filter(|(record, _)| !record.is_empty()) else {
                return self.damaged(rest.len());
            };
            self.clock = self.clock.saturating_add(u64::from(header.dt));
            let understood = match header.tag {
                tag::STACK => self.edit_stack(header, record),
                tag::TIME => self.set_time(record),
                tag::PAD => true,
                tag::ALLOC => record.len() >= 3 && self.append(header, record),
                tag::FREE => record.len() >= 2 && self.append(header, record),
                _ => self.append(header, record),
            };
            if !understood {
                return self.damaged(rest.len());
            }
            rest = behind;
        }
        if !odd.is_empty() {
            self.damaged(1);
        }
    }

    pub(super) fn set_time(&mut self, record: &[[u8; 8]]) -> bool {
        record.get(1).map(|ticks| self.clock = u64::from_le_bytes(*ticks)).is_some()
    }

    pub(super) fn edit_stack(&mut self, header: Header, record: &[[u8; 8]]) -> bool {
        let Some((edit, ips)) = record[1..].split_first() else { return false };
        self.end = (header.a, header.b);
        self.mirror.edit(StackEdit::from_word(u64::from_le_bytes(*edit)), ips)
    }

    pub(super) fn append(&mut self, header: Header, record: &[[u8; 8]]) -> bool {
        let has_stack = match header.tag {
            tag::ALLOC | tag::MAP | tag::UNMAP | tag::REMAP | tag::FAULT => true,
            tag::FREE => header.b & event::FREE_HAS_STACK != 0,
            _ => false,
        };
        let stack = has_stack.then(|| {
            let node = self.mirror.node(&mut self.nodes);
            let end = if self.mirror.is_damaged() { (REASON_DAMAGED, 0) } else { self.end };
            Stack { node, end }
        });
        self.put(self.clock, (header.tag, header.a, header.b), stack, Words::of(&record[1..]));
        true
    }

    pub(super) fn put(&mut self, ticks: u64, head: (u8, u8, u8), stack: Option<Stack>, words: Words) {
        let fate = if matches!(head.0, tag::ALLOC | tag::FREE) { Fate::Open } else { Fate::Keep };
        self.queue.push_back(Entry { number: self.next_number, ticks, head, fate, stack, words });
        self.next_number += 2;
    }

    /// As the encoder counts what cannot be read.
    #[cold]
    pub(super) fn damaged(&mut self, words: usize) {
        self.mirror.lose();
        let lost = Words::of(&[(words as u64).div_ceil(3).to_le_bytes()]);
        self.put(self.clock, (tag::LOST, event::LOST_DAMAGED, 0), None, lost);
    }

    /// The time of the next record to be looked at.
    pub(super) fn next(&self) -> Option<u64> {
        self.queue.get(self.looked).map(|entry| entry.ticks)
    }

    /// Closes gaps: what was left out stays told in its place.
    pub(super) fn close_gaps(&mut self) {
        if self.gaps <= FEW_GAPS || self.gaps * 2 <= self.queue.len() {
            return;
        }
        let mut kept = VecDeque::with_capacity(self.queue.len() - self.gaps + 16);
        let (mut looked, mut last, mut open): (usize, u64, BTreeMap<u8, (u64, u64)>) = (0, 0, BTreeMap::new());
        for (at, entry) in std::mem::take(&mut self.queue).into_iter().enumerate() {
            if entry.fate == Fate::Drop {
                if entry.head.0 == tag::ALLOC {
                    let (blocks, bytes) = open.entry(entry.pool()).or_default();
                    (*blocks, *bytes) = (*blocks + 1, bytes.saturating_add(entry.size()));
                }
                last = entry.ticks;
                continue;
            }
            for (pool, left_out) in std::mem::take(&mut open) {
                kept.push_back(Entry::gap(entry.number - 1, entry.ticks, pool, left_out));
                looked += usize::from(at < self.looked);
            }
            looked += usize::from(at < self.looked);
            kept.push_back(entry);
        }
        // Behind all that was taken in so far.
        for (pool, left_out) in open {
            kept.push_back(Entry::gap(self.next_number - 1, last, pool, left_out));
            looked += 1;
        }
        (self.queue, self.looked, self.gaps) = (kept, looked, 0);
    }

    /// Writes one kept record.
    pub(super) fn write(&mut self, entry: &Entry, threshold_ns: u64) {
        if entry.head.0 == tag::STRIPPED {
            let (blocks, bytes) = self.left_out.entry(entry.head.1).or_default();
            (*blocks, *bytes) = (*blocks + entry.words.at(0), bytes.saturating_add(entry.words.at(1)));
            return;
        }
        self.tell(entry.ticks, threshold_ns);
        if let Some(stack) = entry.stack {
            match stack.node {
                NO_NODE => self.path.clear(),
                node => self.nodes.path(node, &mut self.path),
            }
            self.out.set_stack(entry.ticks, &self.path, stack.end);
        }
        self.out.push(entry.ticks, entry.head, entry.words.all());
    }

    pub(super) fn tell(&mut self, ticks: u64, threshold_ns: u64) {
        for (pool, (blocks, bytes)) in std::mem::take(&mut self.left_out) {
            self.out.push(ticks, (tag::STRIPPED, pool, 0), &[blocks, bytes, threshold_ns]);
        }
    }
}
