//! Blocks that were sampled, and then not watched all of the time: whether they are gone is found out by looking at them.
//!
//! A look can tell that a block has ended: what it was is free, or of another size. It can never tell that a block lives: what was released and
//! given out again in its size, at the same place and with the same content, looks the same, and a cache of a fixed size does nothing else.
//! How many of those that look alive live is for the ends to tell that are seen in windows (`heap/survival.rs`).
//!
//! A block is looked at often at first: few places are taken all the time, so one that is given out again is free at some looks. What is
//! found out late may be taken for the end of another block that has come to its place.

use std::collections::VecDeque;

use super::before::{Evidence, Seen, reader};

/// Looks that come one after the other; later ones come seldom.
const SOON: u32 = 8;
/// Blocks looked at each time, the longest not looked at first.
const AT_ONCE: usize = 4096;
/// The same of those that are looked at often.
const AT_ONCE_SOON: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Doubt {
    address: u64,
    looks: u32,
}

/// Which of them are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that have not been looked at often.
    Young,
    /// All.
    All,
}

/// Blocks in doubt.
#[derive(Debug, Default)]
pub struct Doubts {
    young: VecDeque<Doubt>,
    old: VecDeque<Doubt>,
    evidence: Evidence,
    /// Whether something of the target is swapped out, when that was asked last.
    swapped: Option<bool>,
}

impl Doubts {
    /// A block is not watched any more.
    pub fn add(&mut self, address: u64) {
        self.young.push_back(Doubt { address, looks: 0 });
    }

    /// Looks at some, and tells which are gone. `size_of` says how large a block is; nothing: it is known to be gone.
    pub fn look(&mut self, pid: u32, which: Which, size_of: impl Fn(u64) -> Option<u64>) -> Vec<u64> {
        self.young.retain(|doubt| size_of(doubt.address).is_some());
        let mut some: Vec<Doubt> = self.young.drain(..self.young.len().min(AT_ONCE_SOON)).collect();
        if which == Which::All {
            self.old.retain(|doubt| size_of(doubt.address).is_some());
            some.extend(self.old.drain(..self.old.len().min(AT_ONCE)));
        }
        if some.is_empty() {
            return Vec::new();
        }
        // What takes time to find out is asked for as often as old ones are looked at, once a second.
        let thorough = which == Which::All || self.swapped.is_none();
        if thorough {
            self.swapped = Some(is_swapped(pid));
        }
        // Looking at what is swapped out would bring it back, and cost the target what it has not.
        if self.swapped == Some(true) {
            some.into_iter().for_each(|doubt| self.keep(doubt));
            return Vec::new();
        }
        let blocks: Vec<(u64, u64)> = some.iter().map(|doubt| (doubt.address, size_of(doubt.address).unwrap_or(0))).collect();
        let seen = self.evidence.look(pid, &mut reader(pid), &blocks, thorough);
        let mut gone = Vec::new();
        for (doubt, seen) in some.into_iter().zip(seen) {
            match seen {
                Seen::Free => gone.push(doubt.address),
                Seen::InUse | Seen::Unknown => self.keep(Doubt { looks: doubt.looks + 1, ..doubt }),
            }
        }
        gone
    }

    fn keep(&mut self, doubt: Doubt) {
        if doubt.looks < SOON { self.young.push_back(doubt) } else { self.old.push_back(doubt) }
    }
}

fn is_swapped(pid: u32) -> bool {
    let status = procfs::process::Process::new(pid as i32).and_then(|process| process.status());
    status.is_ok_and(|status| status.vmswap.unwrap_or(0) > 0)
}
