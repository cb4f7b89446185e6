//! From a chunk's bytes back to the events of its section. The mirror of `encode`.

use super::clock::{Span, TickClock};
use super::columns::*;
use super::format::{CHUNK_HEADER_BYTES, ChunkHeader};
use super::index::{Placed, Source};
use super::model::{Alloc, Free, ProcessId, StackId, StackRoot, StackTree, Stamped, StreamId};
use super::nodes::NodeList;
use super::predict::*;
use super::rare::{self, FAULT_WORDS, RareRecord};
use super::reader::{Raw, Visitor};
use super::varint::{self, Cursor};
use hound_common::event::{self, ALLOC_REALLOC, FREE_HAS_STACK, FREE_REALLOC, tag};
use hound_common::hook::Kind;
use std::collections::HashMap;
use zstd::bulk::Decompressor;

/// A section read, checked and decompressed, its events still in columns.
#[derive(Debug)]
pub struct Loaded {
    header: ChunkHeader,
    columns: Columns,
    shapes: Vec<ShapeKey>,
    nodes: NodeList,
    rare: Vec<RareRecord>,
}

/// The payload of a chunk, if it is whole.
pub fn payload(source: &Source, placed: &Placed) -> Result<Vec<u8>, &'static str> {
    let header = &placed.header;
    let bytes = source.read(placed.at + CHUNK_HEADER_BYTES as u64, header.payload as usize).map_err(|_| "it cannot be read")?;
    match crc32fast::hash(&bytes) == header.payload_crc {
        true => Ok(bytes),
        false => Err("checksum"),
    }
}

/// The content of a chunk that holds plain bytes.
pub fn read_plain(source: &Source, placed: &Placed) -> Option<Vec<u8>> {
    let bytes = payload(source, placed).ok()?;
    decompress(&bytes, placed.header.main_raw as usize, &mut Decompressor::new().ok()?)
}

/// The rare events of a section.
pub fn read_rare(source: &Source, placed: &Placed) -> Option<Vec<RareRecord>> {
    let bytes = payload(source, placed).ok()?;
    parse_rare(&bytes, &placed.header, &mut Decompressor::new().ok()?)
}

fn parse_rare(payload: &[u8], header: &ChunkHeader, decompressor: &mut Decompressor<'_>) -> Option<Vec<RareRecord>> {
    let bytes = decompress(payload.get(..header.rare as usize)?, header.rare_raw as usize, decompressor)?;
    rare::read(&bytes, header.first >> header.time_shift, header.rare_events)
}

impl Loaded {
    /// Reads a section.
    pub fn read(source: &Source, placed: &Placed, decompressor: &mut Decompressor<'_>) -> Result<Self, &'static str> {
        let header = placed.header;
        let payload = payload(source, placed)?;
        if header.events as usize > SECTION_EVENTS {
            return Err("too many events");
        }
        let rare = parse_rare(&payload, &header, decompressor).ok_or("rare events")?;
        let columns = Columns::read(&payload[header.rare as usize..], decompressor).ok_or("columns")?;
        let shapes = ShapeKey::read_all(&columns.0[SHAPE_LIST]).ok_or("shapes")?;
        let nodes = NodeList::read(&columns.0[NODE_PARENTS], &columns.0[NODE_IPS]).ok_or("stacks")?;
        let used = shapes.iter().chain(rare.iter().filter_map(|record| record.stack.as_ref()));
        if used.into_iter().any(|shape| shape.node() as usize >= nodes.ips.len()) {
            return Err("stacks");
        }
        Ok(Loaded { header, columns, shapes, nodes, rare })
    }
}

/// Puts a section's stacks into the capture's tree, each node once a root.
struct Grafter<'a> {
    process: ProcessId,
    nodes: &'a NodeList,
    tree: &'a mut StackTree,
    /// Per root: the capture's id of each node.
    known: HashMap<StackRoot, Vec<Option<StackId>>>,
}

impl Grafter<'_> {
    fn graft(&mut self, shape: ShapeKey) -> StackId {
        let root = StackRoot { reason: shape.reason(), frame_pointers: shape.frame_pointers(), process: self.process };
        let tree = &mut *self.tree;
        let nodes = self.nodes;
        let known = self.known.entry(root).or_insert_with(|| {
            let mut known = vec![None; nodes.ips.len()];
            known[0] = Some(tree.root(root));
            known
        });
        let mut path = Vec::new();
        let mut node = shape.node() as usize;
        let mut id = loop {
            match known[node] {
                Some(id) => break id,
                None => path.push(node),
            }
            node = nodes.parents[node] as usize;
        };
        for node in path.into_iter().rev() {
            id = tree.child(id, nodes.ips[node]);
            known[node] = Some(id);
        }
        id
    }
}

/// A shape with what decoding needs to know of it.
#[derive(Debug)]
struct Shape {
    key: ShapeKey,
    /// `None`: a number this version does not know.
    kind: Option<Kind>,
    /// Without a pool's number, and that.
    flags: u8,
    pool: u8,
    stack: StackId,
    size: SizeGuess,
}

/// A section being decoded.
#[derive(Debug)]
pub struct SectionDecoder {
    header: ChunkHeader,
    columns: Columns,
    cursors: [Cursor; COLUMNS],
    shapes: Vec<Shape>,
    rare: std::iter::Peekable<std::vec::IntoIter<(RareRecord, StackId)>>,
    shape_guess: ShapeGuess,
    slack_guess: SlackGuess,
    blocks: Blocks,
    realloc_from: u64,
    /// Allocations and frees decoded.
    done: u32,
    /// Shifted time of the next allocation or free.
    hot_time: u64,
    span: Span,
    /// Time of the last event shown, in ticks.
    last: u64,
    /// Events left out because their kind is not known.
    pub unknown: u64,
}

impl SectionDecoder {
    /// Starts decoding; the section's stacks go into the tree.
    pub fn new(loaded: Loaded, tree: &mut StackTree, clock: &TickClock) -> Self {
        let Loaded { header, columns, shapes, nodes, rare } = loaded;
        let mut grafter = Grafter { process: ProcessId(header.process), nodes: &nodes, tree, known: HashMap::new() };
        let shape = |key: ShapeKey, grafter: &mut Grafter<'_>| Shape {
            key,
            kind: Kind::from_u8(key.kind()),
            flags: event::flags_of(key.kind(), key.flags()),
            pool: event::pool_of(key.kind(), key.flags()),
            stack: match key.is_alloc() || key.flags() & FREE_HAS_STACK != 0 {
                true => grafter.graft(key),
                false => StackId(0),
            },
            size: SizeGuess::default(),
        };
        let shapes = shapes.into_iter().map(|key| shape(key, &mut grafter)).collect();
        let stack_of = |record: &RareRecord, grafter: &mut Grafter<'_>| record.stack.map_or(StackId(0), |key| grafter.graft(key));
        let rare: Vec<_> = rare.into_iter().map(|record| (stack_of(&record, &mut grafter), record)).map(|(stack, r)| (r, stack)).collect();
        let mut decoder = SectionDecoder {
            header,
            columns,
            cursors: Default::default(),
            shapes,
            rare: rare.into_iter().peekable(),
            shape_guess: ShapeGuess::default(),
            slack_guess: SlackGuess::default(),
            blocks: Blocks::default(),
            realloc_from: 0,
            done: 0,
            hot_time: header.first >> header.time_shift,
            span: clock.span(header.first),
            last: header.first,
            unknown: 0,
        };
        decoder.read_time();
        decoder
    }

    /// Events not decoded yet.
    pub fn left(&self) -> u64 {
        u64::from(self.header.events - self.done) + self.rare.len() as u64
    }

    /// When the next event was, in ticks; `None` at the end.
    pub fn next_ticks(&mut self) -> Option<u64> {
        let rare = self.rare.peek().map(|(record, _)| (record.position, record.time));
        if self.done < rare.map_or(u32::MAX, |(position, _)| position).min(self.header.events) {
            return Some(self.ticks(self.hot_time));
        }
        rare.map(|(_, time)| self.ticks(time))
    }

    #[inline(always)]
    fn ticks(&self, time: u64) -> u64 {
        let shift = u32::from(self.header.time_shift);
        // A section that is not sorted was not written by hound: what is out of order is shown late.
        (time.min(u64::MAX >> shift) << shift).max(self.last)
    }

    #[inline(always)]
    fn number(&mut self, column: usize) -> u64 {
        self.cursors[column].number(&self.columns.0[column])
    }

    #[inline(always)]
    fn read_time(&mut self) {
        if self.done < self.header.events {
            self.hot_time = self.hot_time.saturating_add(self.number(TIME));
        }
    }

    #[inline(always)]
    fn ns(&mut self, ticks: u64, clock: &TickClock) -> u64 {
        self.last = ticks;
        if !self.span.covers(ticks) {
            self.span = clock.span(ticks);
        }
        self.span.ns(ticks)
    }

    /// Shows all events with `ticks < limit` (`or_equal`: `<=`) to the visitor.
    pub fn run(&mut self, limit: u64, or_equal: bool, clock: &TickClock, visitor: &mut impl Visitor) -> Result<(), &'static str> {
        let before = |ticks: u64| ticks < limit || or_equal && ticks == limit;
        loop {
            let position = self.rare.peek().map_or(u32::MAX, |(record, _)| record.position);
            let until = position.min(self.header.events);
            while self.done < until {
                let ticks = self.ticks(self.hot_time);
                if !before(ticks) {
                    return Ok(());
                }
                let time_ns = self.ns(ticks, clock);
                self.hot(time_ns, visitor)?;
                self.done += 1;
                self.read_time();
            }
            let Some(time) = self.rare.peek().map(|(record, _)| record.time) else { return self.check_end() };
            let ticks = self.ticks(time);
            if !before(ticks) {
                return Ok(());
            }
            let time_ns = self.ns(ticks, clock);
            let stream = StreamId(self.header.stream);
            if let Some((record, stack)) = self.rare.next() {
                let RareRecord { header, words, .. } = &record;
                let words = if header.tag == tag::FAULT { &words[..words.len().min(FAULT_WORDS)] } else { words };
                let raw = Raw { tag: header.tag, ab: (header.a, header.b), words };
                visitor.record(&Stamped { time_ns, stream, event: record.event(stack, clock) }, raw);
            }
        }
    }

    fn check_end(&self) -> Result<(), &'static str> {
        let per_event = [SHAPE, TIME, SIZE, PLACE, SLACK, PREVIOUS, RANK, FAR];
        match per_event.into_iter().all(|i| self.cursors[i].is_at_end(&self.columns.0[i])) {
            true => Ok(()),
            false => Err("columns do not end together"),
        }
    }

    #[inline(always)]
    fn hot(&mut self, time_ns: u64, visitor: &mut impl Visitor) -> Result<(), &'static str> {
        let index = match self.number(SHAPE) {
            0 => u64::from(self.shape_guess.guess()),
            code => code - 1,
        } as usize;
        let Some(shape) = self.shapes.get(index) else { return Err("shape") };
        self.shape_guess.learn(index as u32);
        if shape.key.is_alloc() { self.alloc(index, time_ns, visitor) } else { self.free(index, time_ns, visitor) }
    }

    #[inline(always)]
    fn alloc(&mut self, index: usize, time_ns: u64, visitor: &mut impl Visitor) -> Result<(), &'static str> {
        let size_code = self.number(SIZE);
        let place = self.cursors[PLACE].byte(&self.columns.0[PLACE]);
        let shape = &mut self.shapes[index];
        let size = shape.size.decode(size_code);
        let (kind, flags, pool, stack) = (shape.kind, shape.flags, shape.pool, shape.stack);
        if size >> 48 != 0 {
            return Err("size");
        }
        let slack_code = if place & PLACE_SLACK == 0 {
            self.slack_guess.guess(size)
        } else {
            let code = self.number(SLACK);
            self.slack_guess.learn(size, code);
            code
        };
        let code = place & !PLACE_SLACK;
        let far = if code == PLACE_FAR || code == PLACE_FAR_ODD { varint::unfold(self.number(FAR)) } else { 0 };
        let extent = size.wrapping_add(slack_code.saturating_sub(1));
        let Some(addr) = self.blocks.find(Place { code, far }, extent) else { return Err("place") };
        let previous = (flags & ALLOC_REALLOC != 0)
            .then(|| varint::unfold(self.number(PREVIOUS)) as u64)
            .map(|difference| self.realloc_from.wrapping_add(difference));
        let usable = (slack_code != 0).then_some(extent);
        match kind {
            Some(kind) => {
                let alloc = Alloc { addr, size, usable, kind, flags, pool, previous, stack };
                visitor.alloc(time_ns, StreamId(self.header.stream), &alloc);
            }
            None => self.unknown += 1,
        }
        Ok(())
    }

    #[inline(always)]
    fn free(&mut self, index: usize, time_ns: u64, visitor: &mut impl Visitor) -> Result<(), &'static str> {
        let addr = match self.number(RANK) {
            0 => {
                let difference = varint::unfold(self.number(FAR));
                self.blocks.find_stray(difference)
            }
            rank => self.blocks.free_by_rank(rank - 1).ok_or("rank")?,
        };
        let shape = &self.shapes[index];
        let realloc = shape.flags & FREE_REALLOC != 0;
        let stack = (shape.flags & FREE_HAS_STACK != 0).then_some(shape.stack);
        if realloc {
            self.realloc_from = addr;
        }
        match shape.kind {
            Some(kind) => {
                let free = Free { addr, kind, pool: shape.pool, realloc, stack };
                visitor.free(time_ns, StreamId(self.header.stream), &free);
            }
            None => self.unknown += 1,
        }
        Ok(())
    }
}
