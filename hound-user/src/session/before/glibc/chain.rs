//! One stretch of chunks, from its first to its end.

use super::super::Bound;
use super::super::source::{Source, Stop, word_in};
use super::tally::{Mark, Tally};
use super::{FLAGS, MMAPPED, NOT_MAIN_ARENA, PREVIOUS_IN_USE, SMALLEST, cache};

/// Read at once: large enough that the system call costs little (0.3 µs beside 10 µs of copying), small enough to lie in the cache.
const PIECE: usize = 128 << 10;
/// After a chunk larger than this only a little is read at once: more would be the inside of the next large one, of pages never touched.
const LARGE: u64 = 32 << 10;
const LITTLE: usize = 4096;
/// Tries at one place before the stretch is given up; each begins a piece further back.
const STRIKES: usize = 8;
/// Tries in all.
const RETRIES: u32 = 64;
/// A fence's size: two words, less than the smallest chunk.
const FENCE: u64 = 16;

/// Memory filled with chunks.
#[derive(Clone, Debug)]
pub struct Stretch {
    /// The first chunk.
    pub start: u64,
    /// No chunk ends behind it.
    pub limit: u64,
    /// Bytes before the first chunk that belong to the heap.
    pub header: u64,
    pub is_main: bool,
    pub end: End,
}

/// What the last chunk is.
#[derive(Clone, Debug)]
pub enum End {
    /// The arena's top, as it was, and where the arena says which it is.
    Top { pointer: u64, top: u64 },
    /// Small chunks that cannot be merged with anything: the stretch was filled up and left.
    Fence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// At the top, or at the fence of a heap that was filled up.
    Complete,
    /// At a fence before the top.
    Fence,
    Bound(Bound),
    /// It does not hold together, at this address.
    Broken(u64, &'static str),
}

/// How a walk went.
#[derive(Debug)]
pub struct Walked {
    pub ended: Ended,
    pub reached: u64,
    pub retried: u32,
}

enum Fault {
    Stop(Stop),
    Broken(&'static str),
}

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        Fault::Stop(stop)
    }
}

/// A place that can be gone back to.
struct Place {
    at: u64,
    tally: Mark,
}

/// Walks over a stretch and counts what it finds; nothing if it is broken.
pub fn walk(source: &mut Source, stretch: &Stretch, tally: &mut Tally) -> Walked {
    let mut walker = Walker {
        source,
        stretch: stretch.clone(),
        piece: Vec::with_capacity(PIECE),
        base: 0,
        at: stretch.start,
        after_free: false,
        last: 0,
        tally,
    };
    let first = walker.tally.mark();
    walker.tally.overhead += stretch.header;
    let mut places = Vec::new();
    let (mut retried, mut strikes, mut furthest) = (0, 0, 0);
    loop {
        let fault = match walker.advance(&mut places) {
            Ok(None) => continue,
            Ok(Some(ended)) => return Walked { ended, reached: walker.at, retried },
            Err(Fault::Stop(Stop::Bound(bound))) => return Walked { ended: Ended::Bound(bound), reached: walker.at, retried },
            Err(Fault::Stop(Stop::Unreadable)) => "a part of it is not readable",
            Err(Fault::Broken(why)) => why,
        };
        if walker.at > furthest {
            (strikes, furthest) = (0, walker.at);
        }
        strikes += 1;
        if strikes > STRIKES || retried == RETRIES {
            walker.tally.back_to(&first);
            return Walked { ended: Ended::Broken(walker.at, fault), reached: stretch.start, retried };
        }
        retried += 1;
        // A chunk that the chain went by may have been merged since: each time it is followed from a little earlier.
        places.truncate(places.len().saturating_sub(strikes - 1).max(1));
        walker.piece.clear();
        if let Some(place) = places.pop() {
            (walker.at, walker.after_free, walker.last) = (place.at, false, 0);
            walker.tally.back_to(&place.tally);
        }
    }
}

struct Walker<'w, 'r> {
    source: &'w mut Source<'r>,
    stretch: Stretch,
    /// What was read last, and its address.
    piece: Vec<u8>,
    base: u64,
    at: u64,
    /// The chunk before is free: then this one is not, two would have been merged.
    after_free: bool,
    /// Size of the chunk before.
    last: u64,
    tally: &'w mut Tally,
}

impl Walker<'_, '_> {
    /// One chunk on.
    fn advance(&mut self, places: &mut Vec<Place>) -> Result<Option<Ended>, Fault> {
        let at = self.at;
        if let End::Top { pointer, top } = self.stretch.end
            && at >= top
            && self.at_top(pointer, top)?
        {
            return Ok(Some(Ended::Complete));
        }
        if at.checked_add(16).is_none_or(|end| end > self.stretch.limit) {
            return Err(Fault::Broken("the chunks run over the end"));
        }
        if self.in_piece(at + 8).is_none() {
            places.push(Place { at, tally: self.tally.mark() });
            self.load()?;
        }
        let mut head = self.in_piece(at + 8).ok_or(Fault::Broken("the chunks run over the end"))?;
        let next = at.checked_add(head & !FLAGS).filter(|next| next.checked_add(16).is_some_and(|end| end <= self.stretch.limit));
        let mut next = next.ok_or(Fault::Broken("a chunk is longer than its heap"))?;
        // A chunk and the next one's header are taken from one read wherever they fit in one: so they are at most microseconds apart.
        if self.in_piece(next + 8).is_none() && at != self.base {
            places.push(Place { at, tally: self.tally.mark() });
            self.load()?;
            head = self.in_piece(at + 8).ok_or(Fault::Broken("the chunks run over the end"))?;
            next = at.saturating_add(head & !FLAGS);
            if next > self.stretch.limit - 16 {
                return Err(Fault::Broken("a chunk is longer than its heap"));
            }
        }
        let [before, following] = match (self.in_piece(next), self.in_piece(next + 8)) {
            (Some(before), Some(following)) => [before, following],
            _ => self.source.words(next)?,
        };
        self.chunk(head, next, before, following)
    }

    /// Checks and counts the chunk at hand.
    fn chunk(&mut self, head: u64, next: u64, before: u64, following: u64) -> Result<Option<Ended>, Fault> {
        let size = head & !FLAGS;
        if head & MMAPPED != 0 || !size.is_multiple_of(16) {
            return Err(Fault::Broken("a chunk's size is none"));
        }
        let is_fence_end =
            if self.stretch.is_main { following == FENCE | PREVIOUS_IN_USE && size == FENCE } else { following == PREVIOUS_IN_USE };
        if is_fence_end && (size == FENCE || size == SMALLEST) {
            // The rest of a heap that was left is a few bytes of alignment.
            let end = if self.stretch.is_main { next + FENCE } else { self.stretch.limit };
            self.tally.overhead += end - self.at;
            self.at = end;
            let is_whole = !self.stretch.is_main || matches!(self.stretch.end, End::Fence);
            return Ok(Some(if is_whole { Ended::Complete } else { Ended::Fence }));
        }
        if size < SMALLEST {
            return Err(Fault::Broken("a chunk's size is none"));
        }
        if following & PREVIOUS_IN_USE != 0 {
            if (head & NOT_MAIN_ARENA == 0) != self.stretch.is_main {
                return Err(Fault::Broken("a chunk belongs to another arena"));
            }
            self.tally.chunk(size);
            let inside = self.at.checked_sub(self.base).and_then(|offset| self.piece.get(offset as usize + 16..));
            if cache::may_be_table(size, inside.unwrap_or_default()) {
                self.tally.tables.push(self.at);
            }
        } else {
            if before != size {
                return Err(Fault::Broken("a free chunk's two sizes differ"));
            }
            if self.after_free {
                return Err(Fault::Broken("two free chunks are not merged"));
            }
            self.tally.free += size;
        }
        self.after_free = following & PREVIOUS_IN_USE == 0;
        (self.at, self.last) = (next, size);
        Ok(None)
    }

    /// Whether the chunk at hand is the top still. The top moves as the target runs.
    fn at_top(&mut self, pointer: u64, top: u64) -> Result<bool, Fault> {
        let now = self.source.word(pointer)?;
        let head = self.source.word(now.checked_add(8).ok_or(Fault::Broken("its top is no chunk"))?)?;
        let end = now.checked_add(head & !FLAGS).filter(|_| head & FLAGS == PREVIOUS_IN_USE && now.is_multiple_of(16));
        let end = end.ok_or(Fault::Broken("its top is no chunk"))?;
        if now == self.at {
            self.tally.free += end - now;
            self.at = end;
            return Ok(true);
        }
        if now < top || now < self.at {
            // The next attempt goes up to there.
            if now >= self.stretch.start {
                self.stretch.end = End::Top { pointer, top: now };
            }
            return Err(Fault::Broken("its top moved back"));
        }
        // Heaps never grow over 8 GiB; an arena that went on in another heap is begun anew.
        if !self.stretch.is_main && now - self.stretch.start > 1 << 33 {
            return Err(Fault::Broken("the arena went on in another heap"));
        }
        self.stretch.limit = self.stretch.limit.max(end);
        self.stretch.end = End::Top { pointer, top: now };
        Ok(false)
    }

    fn load(&mut self) -> Result<(), Fault> {
        let length = if self.last > LARGE { LITTLE } else { PIECE };
        let length = length.min((self.stretch.limit - self.at) as usize);
        self.piece.resize(length, 0);
        self.base = self.at;
        if let Err(stop) = self.source.fill(self.at, &mut self.piece) {
            self.piece.clear();
            return Err(stop.into());
        }
        Ok(())
    }

    fn in_piece(&self, at: u64) -> Option<u64> {
        word_in(&self.piece, usize::try_from(at.checked_sub(self.base)?).ok()?)
    }
}
