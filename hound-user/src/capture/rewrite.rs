//! One stream's records written anew, as they would come from a ring: for what leaves some of them out.

use hound_common::event::{self, Header, StackEdit, tag};

/// Makes the bytes of records.
#[derive(Debug, Default)]
pub struct Rewriter {
    /// Ticks of the last record.
    clock: u64,
    /// The path of the stack that was written last, outermost frame first, with its end reason and flags.
    path: Vec<u64>,
    end: Option<(u8, u8)>,
    bytes: Vec<u8>,
}

impl Rewriter {
    /// Ticks of the last record.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// Adds a record. False if it is longer than one of a ring: only its time was written then.
    pub fn push(&mut self, ticks: u64, (tag, a, b): (u8, u8, u8), words: &[u64]) -> bool {
        let dt = ticks.checked_sub(self.clock).and_then(|gap| u32::try_from(gap).ok());
        if dt.is_none() {
            self.put(Header { tag: tag::TIME, words: 2, a: 0, b: 0, dt: 0 }, &[ticks]);
        }
        self.clock = ticks;
        let Ok(length) = u8::try_from(words.len() + 1) else { return false };
        self.put(Header { tag, words: length, a, b, dt: dt.unwrap_or(0) }, words);
        true
    }

    fn put(&mut self, header: Header, words: &[u64]) {
        self.bytes.extend(std::iter::once(header.to_word()).chain(words.iter().copied()).flat_map(u64::to_le_bytes));
    }

    /// What follows comes from this path, outermost frame first, with this end reason and these flags.
    pub fn set_stack(&mut self, ticks: u64, path: &[u64], end: (u8, u8)) {
        if self.end == Some(end) && self.path == path {
            return;
        }
        let mut keep = path.iter().zip(&self.path).take_while(|(ip, known)| ip == known).count();
        loop {
            let to = path.len().min(keep + event::MAX_STACK_RECORD_IPS);
            let edit = StackEdit { keep_root: keep as u16, new: (to - keep) as u16, leaf_from: to as u16, keep_leaf: 0 };
            let words: Vec<u64> = std::iter::once(edit.to_word()).chain(path[keep..to].iter().copied()).collect();
            self.push(ticks, (tag::STACK, end.0, end.1), &words);
            keep = to;
            if keep == path.len() {
                break;
            }
        }
        self.end = Some(end);
        self.path.clear();
        self.path.extend_from_slice(path);
    }

    /// The bytes so far.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
