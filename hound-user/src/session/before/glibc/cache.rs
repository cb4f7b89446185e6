//! Blocks that were freed and kept for the next request of their size: they look like blocks in use.
//!
//! They are told apart by following the lists they are kept in. A fast bin's list begins in its arena. A thread cache's begins in a
//! table that is itself a block; where the thread keeps it is private to it, but it is recognised by its size and by leading to lists of
//! blocks of exactly the right sizes, which carry one and the same key (2.29 and later): no other block does.

use std::collections::HashMap;

use super::super::Bound;
use super::super::memory::{Area, What};
use super::super::source::{Source, Stop, word_in};
use super::arena::Arena;
use super::{FLAGS, HIGHEST, MMAPPED, SMALLEST};

/// Chunks of these sizes may hold a table.
const OF_BYTES: u64 = 0x250; // 2.26 to 2.29: 64 counts of one byte
const OF_WORDS: u64 = 0x290; // 2.30 to 2.41: 64 counts of two bytes
const OF_SLOTS: u64 = 0x300; // since 2.42: 76 numbers of slots left, of two bytes
const SMALL: usize = 64;
/// Longer than a list can be: counts have 16 bits.
const LONGEST: usize = 1 << 16;
/// A fast bin has no such limit; reading one of its chunks costs about half a microsecond.
const FAST_LONGEST: usize = 1 << 18;
const ATTEMPTS: u32 = 4;

/// How a list's pointers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Linking {
    /// Mixed with the address they are stored at, since 2.32.
    Mixed,
    Plain,
}

/// The cached chunks found so far.
#[derive(Debug, Default)]
pub struct Caches {
    /// Size by address.
    chunks: HashMap<u64, u64>,
    kept: Vec<u64>,
}

/// Where in a table the first blocks are, and how many lists there are.
fn heads(size: u64) -> Option<(usize, usize)> {
    match size {
        OF_BYTES => Some((64, SMALL)),
        OF_WORDS => Some((128, SMALL)),
        OF_SLOTS => Some((152, 76)),
        _ => None,
    }
}

/// How long a list is, by its table. None: its table does not say.
fn told(size: u64, table: &[u8], list: usize) -> Option<usize> {
    match size {
        OF_BYTES => table.get(list).map(|&count| count.into()),
        OF_WORDS => Some(u16::from_le_bytes(*table.get(2 * list..)?.first_chunk()?).into()),
        _ => None,
    }
}

/// Whether a block, of which `inside` is the content as far as it was read, may be a table with anything in it. Cheap: asked of each block of that size.
pub fn may_be_table(size: u64, inside: &[u8]) -> bool {
    let Some((first, lists)) = heads(size) else { return false };
    let mut any = false;
    for list in 0..lists {
        let Some(head) = word_in(inside, first + 8 * list) else { return true };
        any |= head != 0;
        if head % 16 != 0 || head >= HIGHEST || told(size, inside, list).is_some_and(|count| (count == 0) != (head == 0)) {
            return false;
        }
    }
    any
}

impl Caches {
    /// Follows the lists of all tables. Returns how many could not be followed, though they are tables by all that is seen.
    pub fn collect(&mut self, source: &mut Source, tables: &[u64], covered: &[(u64, u64)]) -> Result<u32, Bound> {
        let mut unread = 0;
        for &table in tables {
            let mut outcome = Ok(Vec::new());
            for _ in 0..ATTEMPTS {
                outcome = follow(source, table);
                match outcome {
                    Ok(_) | Err(Unread::NoTable) => break,
                    Err(Unread::Bound(bound)) => return Err(bound),
                    Err(Unread::Torn) => {}
                }
            }
            match outcome {
                Ok(found) => self.take(found, covered),
                Err(Unread::Torn) => unread += 1,
                Err(_) => {}
            }
        }
        Ok(unread)
    }

    /// Follows an arena's fast bins. Returns how many could not be followed.
    pub fn fast_bins(&mut self, source: &mut Source, arena: &Arena, covered: &[(u64, u64)]) -> Result<u32, Bound> {
        let mut unread = 0;
        for (index, &head) in arena.fast.iter().enumerate().filter(|(_, head)| **head != 0) {
            let expected = Expected {
                smallest: SMALLEST + 16 * index as u64,
                largest: SMALLEST + 16 * index as u64,
                count: None,
                longest: FAST_LONGEST,
            };
            match list(source, head.wrapping_add(16), &expected, 16) {
                Ok(found) => self.take(found.chunks, covered),
                Err(Unread::Bound(bound)) => return Err(bound),
                Err(_) => unread += 1,
            }
        }
        Ok(unread)
    }

    fn take(&mut self, found: Vec<(u64, u64)>, covered: &[(u64, u64)]) {
        for (at, size) in found {
            let is_counted = covered.iter().any(|&(start, end)| (start..end).contains(&at));
            if is_counted && self.chunks.insert(at, size).is_none() {
                self.kept.push(size);
            }
        }
    }

    /// The sizes of all of them.
    pub fn sizes(&self) -> &[u64] {
        &self.kept
    }
}

/// The chunks in an arena's fast bins.
pub fn fast_chunks(source: &mut Source, arena: &Arena) -> Result<Vec<u64>, Stop> {
    let mut all = Caches::default();
    match all.fast_bins(source, arena, &[(0, HIGHEST)]) {
        Ok(0) => Ok(all.chunks.into_keys().collect()),
        Ok(_) => Err(Stop::Unreadable),
        Err(bound) => Err(Stop::Bound(bound)),
    }
}

/// The key that cached blocks carry, from a table that the first chunks of a heap hold; none if no block is cached there now.
pub fn any_key(source: &mut Source, areas: &[Area]) -> Option<u64> {
    areas.iter().filter(|area| matches!(area.what, What::Heap | What::Anonymous)).find_map(|area| {
        // The first chunk of the main arena's heap is its thread's table; that of another's lies behind the arena itself.
        (0..=THREADS_TABLE).step_by(16).find_map(|offset| key_of(source, area.start + offset))
    })
}

/// How far behind a heap's beginning a thread's own table may be.
const THREADS_TABLE: u64 = 0x900;

fn key_of(source: &mut Source, table: u64) -> Option<u64> {
    let size = source.word(table + 8).ok()? & !FLAGS;
    // Some versions with tables of that size have no key.
    let (first, lists) = heads(size).filter(|_| size != OF_BYTES)?;
    follow(source, table).ok().filter(|chunks| !chunks.is_empty())?;
    (0..lists).find_map(|list| {
        let head = source.word(table + 16 + (first + 8 * list) as u64).ok().filter(|head| *head != 0)?;
        source.word(head + 8).ok()
    })
}

enum Unread {
    NoTable,
    Torn,
    Bound(Bound),
}

impl From<Stop> for Unread {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Unreadable => Unread::Torn,
            Stop::Bound(bound) => Unread::Bound(bound),
        }
    }
}

/// What the chunks of a list must be.
struct Expected {
    smallest: u64,
    largest: u64,
    count: Option<usize>,
    longest: usize,
}

/// All lists of a table.
fn follow(source: &mut Source, table: u64) -> Result<Vec<(u64, u64)>, Unread> {
    let size = source.word(table + 8)? & !FLAGS;
    let (first, lists) = heads(size).ok_or(Unread::NoTable)?;
    let mut inside = vec![0; size as usize - 16];
    source.fill(table + 16, &mut inside)?;
    if !may_be_table(size, &inside) {
        return Err(Unread::NoTable);
    }
    let (mut found, mut key, mut agreed) = (Vec::new(), None, 0);
    for index in 0..lists {
        let head = word_in(&inside, first + 8 * index).unwrap_or(0);
        if head == 0 {
            continue;
        }
        let (smallest, largest) = if index < SMALL {
            (SMALLEST + 16 * index as u64, SMALLEST + 16 * index as u64)
        } else {
            (0x410, 8 << 20) // large ones, by powers of two
        };
        let expected = Expected { smallest, largest, count: told(size, &inside, index), longest: LONGEST };
        let followed = match list(source, head, &expected, 0) {
            // A block of the target's that looked like a table; a table has at least one list that is in order.
            Err(Unread::Torn) if agreed == 0 && index + 1 == lists => return Err(Unread::NoTable),
            Err(Unread::Torn) => return Err(if agreed == 0 { Unread::NoTable } else { Unread::Torn }),
            other => other?,
        };
        // 2.26 to 2.28 have no key: there the pointers are plain, and the counts say how long each list is.
        if followed.linking == Linking::Mixed || size != OF_BYTES {
            if key.is_some_and(|key| key != followed.key) || !followed.one_key {
                return Err(if agreed == 0 { Unread::NoTable } else { Unread::Torn });
            }
            key = Some(followed.key);
        }
        agreed += 1;
        found.extend(followed.chunks);
    }
    Ok(found)
}

struct Followed {
    chunks: Vec<(u64, u64)>,
    linking: Linking,
    key: u64,
    one_key: bool,
}

/// One list, from the block that its first pointer names. `shift`: how far its pointers point before the block.
fn list(source: &mut Source, head: u64, expected: &Expected, shift: u64) -> Result<Followed, Unread> {
    match linked(source, head, expected, shift, Linking::Mixed) {
        Err(Unread::Torn) => linked(source, head, expected, shift, Linking::Plain),
        other => other,
    }
}

fn linked(source: &mut Source, head: u64, expected: &Expected, shift: u64, linking: Linking) -> Result<Followed, Unread> {
    let mut followed = Followed { chunks: Vec::new(), linking, key: 0, one_key: true };
    let mut block = head;
    loop {
        if !block.is_multiple_of(16) || !(4096..HIGHEST).contains(&block) || followed.chunks.len() == expected.longest {
            return Err(Unread::Torn);
        }
        let [_, size, next, key] = source.words(block - 16)?;
        let size = if size & MMAPPED == 0 { size & !FLAGS } else { 0 };
        if !(expected.smallest..=expected.largest).contains(&size) {
            return Err(Unread::Torn);
        }
        if followed.chunks.is_empty() {
            followed.key = key;
        }
        followed.one_key &= key == followed.key;
        followed.chunks.push((block - 16, size));
        let next = if linking == Linking::Mixed { next ^ (block >> 12) } else { next };
        if next == 0 {
            break;
        }
        block = next.wrapping_add(shift);
    }
    if expected.count.is_some_and(|count| count != followed.chunks.len()) {
        return Err(Unread::Torn);
    }
    Ok(followed)
}
