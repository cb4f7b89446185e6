//! Whether blocks that glibc has given out are still in use, by its own metadata: for blocks whose release nobody may have seen.
//!
//! A chunk says how long it is, and the chunk behind it whether it is in use. What is kept for the next request of its size looks as if it
//! were: in a thread's cache it carries the process's key, in a fast bin it is on an arena's list. A block that was released and given out
//! again in the same size looks like one that was never released.

use std::collections::HashSet;

use super::super::memory::{Area, areas};
use super::super::source::{Limits, Source, Stop};
use super::arena::{Arena, Arenas};
use super::cache::{any_key, fast_chunks};
use super::{FLAGS, HIGHEST, MMAPPED, PAGE, PREVIOUS_IN_USE, SMALLEST};
use std::io;

/// Largest chunk that a thread caches, whatever its version's limit is for sure.
const CACHED_AT_MOST: u64 = 8 << 20;
/// Largest chunk that goes into a fast bin.
const FAST_AT_MOST: u64 = 0xb0;
/// More than was asked for: the chunk's own word, and rounding. What is left of a larger chunk may be given out with it.
const SLACK: u64 = 48;

/// What one look at a block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// In use, by whomever.
    InUse,
    /// Released.
    Free,
    /// Nothing can be said.
    Unknown,
}

/// Looks at blocks of one process, again and again.
#[derive(Debug, Default)]
pub struct Evidence {
    arenas: Option<Vec<Arenas>>,
    key: Option<u64>,
}

impl Evidence {
    /// Looks at blocks: address and the size that was asked for. Those that there was no time for are unknown. `search`: for the arenas
    /// and the key, too, where they were not found so far.
    pub fn look(
        &mut self,
        pid: u32,
        read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
        blocks: &[(u64, u64)],
        search: bool,
    ) -> Vec<Seen> {
        let mut seen = vec![Seen::Unknown; blocks.len()];
        let mut source = Source::new(read, Limits::default());
        // Stops only where time or bytes are used up: what is seen so far counts.
        let _ = self.fill(pid, &mut source, blocks, &mut seen, search);
        seen
    }

    fn fill(&mut self, pid: u32, source: &mut Source, blocks: &[(u64, u64)], seen: &mut [Seen], search: bool) -> Result<(), Stop> {
        if search && self.arenas.as_ref().is_none_or(Vec::is_empty) {
            let areas: Vec<Area> = areas(pid).unwrap_or_default();
            self.arenas = Some(Arenas::find_all(source, &areas).map_err(Stop::Bound)?);
        }
        let Some(arenas) = self.arenas.as_mut().filter(|arenas| !arenas.is_empty()) else { return Ok(()) };
        let (mut fast, mut fast_is_known) = (HashSet::new(), true);
        for of_libc in arenas {
            of_libc.refresh(source);
            for (index, &at) in of_libc.at.iter().enumerate() {
                match Arena::read(source, of_libc, at, index == 0).ok().and_then(|arena| fast_chunks(source, &arena).ok()) {
                    Some(chunks) => fast.extend(chunks),
                    None => fast_is_known = false,
                }
            }
        }
        if search && self.key.is_none() {
            self.key = any_key(source, &areas(pid).unwrap_or_default());
        }
        for ((address, size), seen) in blocks.iter().zip(seen) {
            *seen = match self.one(source, *address, *size) {
                Ok(Seen::InUse) if *size <= FAST_AT_MOST => match (fast.contains(&(address - 16)), fast_is_known) {
                    (true, _) => Seen::Free,
                    (false, true) => Seen::InUse,
                    (false, false) => Seen::Unknown,
                },
                Ok(said) => said,
                Err(Stop::Unreadable) => Seen::Free, // its memory is gone
                Err(bound) => return Err(bound),
            };
        }
        Ok(())
    }

    fn one(&self, source: &mut Source, address: u64, asked: u64) -> Result<Seen, Stop> {
        if !address.is_multiple_of(16) || !(PAGE..HIGHEST).contains(&address) {
            return Ok(Seen::Unknown);
        }
        let [_, word, _, second] = source.words(address - 16)?;
        let size = word & !FLAGS;
        let is_mapped = word & MMAPPED != 0;
        // An aligned block may begin inside its chunk: then this is no header, and nothing can be said.
        if size < SMALLEST || !size.is_multiple_of(16) || size >= HIGHEST {
            return Ok(Seen::Unknown);
        }
        let fits = asked + 8 <= size && if is_mapped { size < asked + 3 * PAGE } else { size <= asked.max(24) + SLACK };
        if !fits {
            return Ok(Seen::Free);
        }
        if !is_mapped {
            if source.word(address - 16 + size + 8)? & PREVIOUS_IN_USE == 0 {
                return Ok(Seen::Free);
            }
            match self.key {
                Some(key) if second == key => return Ok(Seen::Free),
                None if size <= CACHED_AT_MOST => return Ok(Seen::Unknown),
                _ => {}
            }
        }
        Ok(Seen::InUse)
    }
}
