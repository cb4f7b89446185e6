//! The blocks of glibc's malloc, 2.26 and later, on x86-64.
//!
//! Nothing of it is exported, and offsets differ between versions; but the structures carry enough redundancy to be found and proved:
//! an arena's empty bins point to themselves, arenas form a ring, each heap names its arena, and each chunk's size leads to the next
//! one, up to the arena's top.
//!
//! Where the layouts come from: malloc/malloc.c and malloc/arena.c, from 2.26 to 2.43.

mod arena;
mod cache;
mod chain;
pub mod evidence;
mod mapped;
mod tally;

use self::arena::{Arena, Arenas};
use self::cache::Caches;
use self::chain::{End, Ended, Stretch};
use self::tally::Tally;
use super::memory::{Area, What};
use super::source::{Source, Stop};
use super::{Blocks, Bound, LeftOut};

/// A size word's low bits.
const PREVIOUS_IN_USE: u64 = 1;
const MMAPPED: u64 = 2;
const NOT_MAIN_ARENA: u64 = 4;
const FLAGS: u64 = 7;
/// The smallest chunk; the sizes are multiples of 16.
const SMALLEST: u64 = 32;
const PAGE: u64 = 4096;
/// User addresses are below.
const HIGHEST: u64 = 1 << 47;
/// An arena that changes under our eyes is begun anew this often.
const ATTEMPTS: u32 = 3;
/// A stretch of which more than this is swapped out is left alone: the walk would bring it back.
const SWAPPED_AT_MOST: u64 = 1 << 20;

/// All of an address space's glibc heaps; none if there is no main arena.
pub fn walk(source: &mut Source, areas: &[Area]) -> Option<Blocks> {
    let mut walk = Walk { tally: Tally::default(), blocks: Blocks::default(), covered: Vec::new(), caches: Caches::default() };
    let found = match Arenas::find_all(source, areas) {
        Ok(found) => found,
        Err(bound) => {
            walk.blocks.cut = Some(bound);
            Vec::new()
        }
    };
    if found.is_empty() && walk.blocks.cut.is_none() {
        return None;
    }
    for arenas in &found {
        if let Err(bound) = walk.arenas(source, areas, arenas) {
            walk.blocks.cut = Some(bound);
            walk.blocks.unread_lists += walk.tally.tables.len() as u32;
            break;
        }
    }
    Some(walk.finish(source))
}

struct Walk {
    tally: Tally,
    blocks: Blocks,
    /// What was walked over, to know whether a cached block was counted as in use.
    covered: Vec<(u64, u64)>,
    caches: Caches,
}

/// What one attempt at an arena found.
#[derive(Default)]
struct Found {
    tally: Tally,
    covered: Vec<(u64, u64)>,
    left_out: Vec<LeftOut>,
    broken: bool,
    cut: Option<Bound>,
}

impl Walk {
    fn arenas(&mut self, source: &mut Source, areas: &[Area], arenas: &Arenas) -> Result<(), Bound> {
        for (index, &at) in arenas.at.iter().enumerate() {
            self.blocks.arenas += 1;
            self.arena(source, areas, arenas, at, index == 0)?;
        }
        mapped::walk(source, areas, arenas, &mut self.tally, &mut self.blocks)?;
        let lists = self.caches.collect(source, &self.tally.tables, &self.covered)?;
        self.blocks.unread_lists += lists;
        self.tally.tables.clear();
        Ok(())
    }

    /// One arena: what is known of it is kept only if it holds together.
    fn arena(&mut self, source: &mut Source, areas: &[Area], arenas: &Arenas, at: u64, is_main: bool) -> Result<(), Bound> {
        let mut last = LeftOut { start: at, bytes: 0, why: String::new() };
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                self.blocks.retried += 1;
            }
            let planned = Arena::read(source, arenas, at, is_main).and_then(|arena| Ok((arena.stretches(source, areas)?, arena)));
            let (stretches, arena) = match planned {
                Ok(planned) => planned,
                Err(arena::Fault::Stop(Stop::Bound(bound))) => return Err(bound),
                Err(fault) => {
                    last.why = fault.to_string();
                    continue;
                }
            };
            last.bytes = arena.system;
            let found = self.stretches(source, areas, &stretches);
            if let Some(bound) = found.cut {
                self.keep(&arena, found);
                return Err(bound);
            }
            if !found.broken || attempt + 1 == ATTEMPTS {
                self.blocks.unread_lists += self.caches.fast_bins(source, &arena, &found.covered)?;
                self.keep(&arena, found);
                return Ok(());
            }
        }
        self.blocks.left_out.push(last);
        Ok(())
    }

    /// An arena's stretches, one after the other.
    fn stretches(&mut self, source: &mut Source, areas: &[Area], stretches: &[Stretch]) -> Found {
        let mut found = Found::default();
        for stretch in stretches {
            let left = |why: String| LeftOut { start: stretch.start, bytes: stretch.limit - stretch.start, why };
            let overlaps = |&(start, end): &(u64, u64)| stretch.start < end && start < stretch.limit;
            if self.covered.iter().chain(&found.covered).any(overlaps) {
                found.left_out.push(LeftOut { bytes: 0, ..left("it overlaps another".into()) });
                continue;
            }
            let swapped: u64 = areas.iter().filter(|area| area.holds(stretch.start)).map(|area| area.swapped).sum();
            if swapped > SWAPPED_AT_MOST {
                found.left_out.push(left(format!("{swapped} bytes of it are swapped out: reading would bring them back")));
                continue;
            }
            let walked = chain::walk(source, stretch, &mut found.tally);
            self.blocks.retried += walked.retried;
            if let Ended::Broken(place, why) = walked.ended {
                found.broken = true;
                found.left_out.push(left(format!("at {place:#x}: {why}")));
                continue;
            }
            found.covered.push((stretch.start - stretch.header, walked.reached));
            if walked.ended == Ended::Fence {
                let why = "somebody else's sbrk lies in between: where the blocks go on is not known".into();
                found.left_out.push(LeftOut { start: walked.reached, bytes: stretch.limit.saturating_sub(walked.reached), why });
            }
            if let Ended::Bound(bound) = walked.ended {
                found.cut = Some(bound);
                break;
            }
        }
        found
    }

    fn keep(&mut self, arena: &Arena, found: Found) {
        self.tally.add(found.tally);
        self.blocks.covered += found.covered.iter().map(|(start, end)| end - start).sum::<u64>();
        self.blocks.mapped += arena.system;
        self.covered.extend(found.covered);
        self.blocks.left_out.extend(found.left_out);
    }

    fn finish(mut self, source: &Source) -> Blocks {
        // A list read later than the chunks may name more blocks of a size than were counted: those are not taken back.
        for &size in self.caches.sizes() {
            self.blocks.cached.bytes += self.tally.take_back(size);
        }
        let Walk { tally, mut blocks, .. } = self;
        blocks.cached.count = tally.taken_back;
        blocks.classes = tally.classes();
        for class in &blocks.classes {
            blocks.in_use.count += class.blocks.count;
            blocks.in_use.bytes += class.blocks.bytes;
        }
        (blocks.free, blocks.overhead) = (tally.free, tally.overhead);
        (blocks.read, blocks.took_us) = (source.bytes, source.took_us());
        blocks
    }
}

/// Whether a private, anonymous mapping or the brk heap holds an address.
fn area_of(areas: &[Area], address: u64) -> Option<&Area> {
    areas.iter().find(|area| area.holds(address) && matches!(area.what, What::Heap | What::Anonymous))
}
