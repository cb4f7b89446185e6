//! From the raw ring bytes of one stream to sections. The hot path of recording: no allocation an event, no I/O.
//!
//! The bytes are the target's to scribble on, so nothing in them is trusted: what is no record is counted as lost
//! ([`hound_common::event::LOST_DAMAGED`]), the rest of the run is dropped, and the stack of what follows is marked as damaged until new
//! frames have replaced the lost ones.

use super::addrmap::AddrMap;
use super::columns::*;
use super::format::ChunkHeader;
use super::model::{ProcessId, StreamId};
use super::nodes::Nodes;
use super::paths::ModulePaths;
use super::predict::*;
use super::rare::{FAULT_WORDS, RareWriter};
use super::section::Section;
use super::session::SessionInfo;
use super::stack::{REASON_DAMAGED, StackMirror};
use super::varint;
use hound_common::event::{self, Header, StackEdit, tag};
use hound_common::hook::Kind;
use std::sync::Arc;

/// A section with more rare bytes than this is finished.
const RARE_BYTES: usize = 1 << 20;
/// A section with more stack nodes than this is finished.
const SECTION_NODES: usize = 256 * 1024;

/// What a stream's sections say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamMeta {
    /// Its number in the capture. A new thread is a new stream, also if it reuses another's place in the ring.
    pub id: StreamId,
    /// Kernel thread id, 0 if not known (yet).
    pub tid: u32,
    /// Nesting level of signal handlers.
    pub level: u32,
    /// Whose it is.
    pub process: ProcessId,
    /// [`SessionInfo::time_shift`].
    pub time_shift: u8,
}

impl StreamMeta {
    /// Meta data with the shift the session's clock allows.
    pub fn new(id: StreamId, tid: u32, level: u32, session: &SessionInfo) -> Self {
        StreamMeta { id, tid, level, process: ProcessId::FIRST, time_shift: session.time_shift() }
    }
}

/// Encodes one stream.
#[derive(Debug)]
pub struct StreamEncoder {
    meta: StreamMeta,
    /// In ticks.
    clock: u64,
    stack: StackMirror,
    /// End reason and frame-pointer bit of the current stack, placed as in a [`ShapeKey`].
    stack_bits: u64,
    /// [`ShapeKey`] part of the current stack, if it was asked for since its last edit.
    stack_key: Option<u64>,
    /// Address of the last release half of a realloc.
    realloc_from: u64,
    known_kinds: [bool; 256],
    paths: Arc<ModulePaths>,
    section: Open,
}

/// The section being filled.
#[derive(Debug, Default)]
struct Open {
    events: u32,
    rare: RareWriter,
    /// Shifted time of the first event, of the last of all, and of the last allocation or free.
    first: u64,
    last: u64,
    last_hot: u64,
    nodes: Nodes,
    shapes: Vec<(ShapeKey, SizeGuess)>,
    shape_index: AddrMap,
    shape_guess: ShapeGuess,
    slack_guess: SlackGuess,
    blocks: Blocks,
    block_index: AddrMap,
    columns: Columns,
}

impl Open {
    fn is_empty(&self) -> bool {
        self.events == 0 && self.rare.events() == 0
    }

    /// Notes the time of an event.
    #[inline(always)]
    fn touch(&mut self, time: u64) {
        if self.is_empty() {
            self.first = time;
            self.last_hot = time;
            self.rare.start(time);
        }
        self.last = time;
    }

    /// Time and shape of an allocation or free; the index of the shape.
    #[inline(always)]
    fn begin(&mut self, time: u64, key: ShapeKey) -> usize {
        self.touch(time);
        varint::put(&mut self.columns.0[TIME], time - self.last_hot);
        self.last_hot = time;
        self.events += 1;
        let guess = self.shape_guess.guess();
        let shape = match self.shapes.get(guess as usize) {
            Some((known, _)) if *known == key => {
                self.columns.0[SHAPE].push(0);
                guess
            }
            _ => {
                let shape = self.shape(key);
                varint::put(&mut self.columns.0[SHAPE], u64::from(shape) + 1);
                shape
            }
        };
        self.shape_guess.learn(shape);
        shape as usize
    }

    fn shape(&mut self, key: ShapeKey) -> u32 {
        if let Some(shape) = self.shape_index.get(key.0) {
            return shape;
        }
        let shape = self.shapes.len() as u32;
        let previous = self.shapes.last().map_or(ShapeKey(0), |(key, _)| *key);
        key.write(previous, &mut self.columns.0[SHAPE_LIST]);
        self.shapes.push((key, SizeGuess::default()));
        self.shape_index.insert(key.0, shape);
        shape
    }

    fn clear(&mut self) {
        self.events = 0;
        self.nodes.clear();
        self.shapes.clear();
        self.shape_index.clear();
        self.shape_guess.clear();
        self.slack_guess.clear();
        self.blocks.clear();
        self.block_index.clear();
    }
}

impl StreamEncoder {
    /// An encoder for a stream that has sent nothing yet.
    pub fn new(meta: StreamMeta) -> Self {
        StreamEncoder {
            meta,
            clock: 0,
            stack: StackMirror::default(),
            stack_bits: 0,
            stack_key: None,
            realloc_from: 0,
            known_kinds: std::array::from_fn(|number| Kind::from_u8(number as u8).is_some()),
            paths: Arc::default(),
            section: Open::default(),
        }
    }

    /// Modules that come without a path get it from these.
    pub fn with_paths(self, paths: Arc<ModulePaths>) -> Self {
        StreamEncoder { paths, ..self }
    }

    /// Which stream it is.
    pub fn meta(&self) -> StreamMeta {
        self.meta
    }

    /// Sets the thread id, once it is known; it goes into the sections finished from now on.
    pub fn set_tid(&mut self, tid: u32) {
        self.meta.tid = tid;
    }

    /// Takes a run of complete records as they came from the ring; sections that became full are appended to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Section>) {
        let (words, odd) = bytes.as_chunks::<8>();
        let mut rest = words;
        while let Some(first) = rest.first() {
            let header = Header::from_word(u64::from_le_bytes(*first));
            let Some((record, behind)) = rest.split_at_checked(usize::from(header.words)).filter(|(record, _)| !record.is_empty()) else {
                return self.damaged(rest.len(), out);
            };
            self.clock = self.clock.saturating_add(u64::from(header.dt));
            let understood = match header.tag {
                tag::ALLOC => self.alloc(header, record, out),
                tag::FREE => self.free(header, record, out),
                tag::STACK => self.edit_stack(header, record),
                tag::TIME => self.set_time(record, out),
                tag::PAD => true,
                _ => self.rare(header, record, out),
            };
            if !understood {
                return self.damaged(rest.len(), out);
            }
            rest = behind;
        }
        if !odd.is_empty() {
            self.damaged(1, out);
        }
    }

    /// How many of these bytes, which come next, are of records up to this time. A realloc is not cut in two.
    pub fn until(&self, bytes: &[u8], ticks: u64) -> usize {
        let (words, _) = bytes.as_chunks::<8>();
        let (mut at, mut clock) = (0, self.clock);
        while let Some(first) = words.get(at) {
            let header = Header::from_word(u64::from_le_bytes(*first));
            clock = match (header.tag, words.get(at + 1)) {
                (tag::TIME, Some(ticks)) => u64::from_le_bytes(*ticks),
                _ => clock.saturating_add(u64::from(header.dt)),
            };
            let is_second_half = header.tag == tag::ALLOC && header.b & event::ALLOC_REALLOC != 0;
            if clock > ticks && !is_second_half {
                return at * 8;
            }
            at += usize::from(header.words).max(1);
        }
        bytes.len()
    }

    /// Adds an event that did not come through the ring (`a` and `words` as in the ring's record of this tag). `ticks` before the last
    /// event's start a new section, so keep one encoder for such events and note them in order.
    pub fn note(&mut self, ticks: u64, tag: u8, a: u8, words: &[u64], out: &mut Vec<Section>) {
        if ticks < self.clock {
            out.extend(self.flush());
        }
        self.clock = ticks;
        let header = Header { tag, words: 0, a, b: 0, dt: 0 };
        let payload: Vec<[u8; 8]> = words.iter().map(|word| word.to_le_bytes()).collect();
        self.append_rare(header, &payload, out);
    }

    /// Finishes the section at hand, if there is anything in it.
    pub fn flush(&mut self) -> Option<Section> {
        let open = &mut self.section;
        if open.is_empty() {
            return None;
        }
        let [_, parents, ips, ..] = &mut open.columns.0;
        open.nodes.write(parents, ips);
        let fresh = open.columns.like();
        let shift = self.meta.time_shift;
        let header = ChunkHeader {
            time_shift: shift,
            stream: self.meta.id.0,
            tid: self.meta.tid,
            level: self.meta.level,
            process: self.meta.process.0,
            events: open.events,
            rare_events: open.rare.events(),
            first: open.first << shift,
            last: open.last << shift,
            ..ChunkHeader::default()
        };
        let section = Section { header, rare: open.rare.take(), columns: std::mem::replace(&mut open.columns, fresh) };
        open.clear();
        self.realloc_from = 0;
        self.stack.forget_nodes();
        self.stack_key = None;
        Some(section)
    }

    /// The stream's clock: ticks of its latest record.
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// Events in the section at hand.
    pub fn pending(&self) -> u32 {
        self.section.events + self.section.rare.events()
    }

    #[inline(always)]
    fn time(&self) -> u64 {
        self.clock >> self.meta.time_shift
    }

    fn set_time(&mut self, record: &[[u8; 8]], out: &mut Vec<Section>) -> bool {
        let Some(ticks) = record.get(1) else { return false };
        let ticks = u64::from_le_bytes(*ticks);
        if ticks < self.clock {
            out.extend(self.flush()); // a section is sorted
        }
        self.clock = ticks;
        true
    }

    #[inline(always)]
    fn edit_stack(&mut self, header: Header, record: &[[u8; 8]]) -> bool {
        let Some((edit, ips)) = record[1..].split_first() else { return false };
        self.stack_key = None;
        self.stack_bits = u64::from(header.a) << 16;
        if header.b & event::STACK_FRAME_POINTER != 0 {
            self.stack_bits |= ShapeKey::FRAME_POINTERS;
        }
        self.stack.edit(StackEdit::from_word(u64::from_le_bytes(*edit)), ips)
    }

    /// [`ShapeKey`] bits of the current stack.
    #[inline(always)]
    fn stack_key(&mut self) -> u64 {
        match self.stack_key {
            Some(key) => key,
            None => self.find_stack_key(),
        }
    }

    #[inline]
    fn find_stack_key(&mut self) -> u64 {
        let node = self.stack.node(&mut self.section.nodes);
        let bits = match self.stack.is_damaged() {
            true => u64::from(REASON_DAMAGED) << 16,
            false => self.stack_bits,
        };
        let key = u64::from(node) << 32 | bits;
        self.stack_key = Some(key);
        key
    }

    #[inline(always)]
    fn alloc(&mut self, header: Header, record: &[[u8; 8]], out: &mut Vec<Section>) -> bool {
        let [_, addr, size_word, extra @ ..] = record else { return false };
        let (wide, realloc) = (header.b & event::ALLOC_WIDE != 0, header.b & event::ALLOC_REALLOC != 0);
        if extra.len() < usize::from(wide) + usize::from(realloc) || !self.known_kinds[usize::from(header.a)] {
            return false;
        }
        let addr = u64::from_le_bytes(*addr);
        let (size, slack) = event::size_and_slack(u64::from_le_bytes(*size_word));
        let slack_code = match wide {
            // A usable size below the size asked for is nonsense: not known.
            true => u64::from_le_bytes(extra[0]).checked_sub(size).map_or(0, |slack| slack.wrapping_add(1)),
            false if slack == event::SLACK_UNKNOWN => 0,
            false => u64::from(slack) + 1,
        };
        let flags = u64::from(header.b & !event::ALLOC_WIDE);
        let key = ShapeKey(self.stack_key() | ShapeKey::ALLOC | flags << 8 | u64::from(header.a));
        let time = self.time();
        let open = &mut self.section;
        let shape = open.begin(time, key);
        let code = open.shapes[shape].1.encode(size);
        varint::put(&mut open.columns.0[SIZE], code);
        let slack_bit = if open.slack_guess.guess(size) == slack_code {
            0
        } else {
            open.slack_guess.learn(size, slack_code);
            varint::put(&mut open.columns.0[SLACK], slack_code);
            PLACE_SLACK
        };
        let index = open.blocks.len() as u32;
        let place = open.blocks.place(addr, size + slack_code.saturating_sub(1));
        open.columns.0[PLACE].push(place.code | slack_bit);
        if place.code == PLACE_FAR || place.code == PLACE_FAR_ODD {
            varint::put(&mut open.columns.0[FAR], varint::fold(place.far));
        }
        open.block_index.insert(addr, index);
        if realloc {
            let previous = u64::from_le_bytes(extra[usize::from(wide)]);
            varint::put(&mut open.columns.0[PREVIOUS], varint::fold(previous.wrapping_sub(self.realloc_from) as i64));
        }
        self.finish_if_full(out);
        true
    }

    #[inline(always)]
    fn free(&mut self, header: Header, record: &[[u8; 8]], out: &mut Vec<Section>) -> bool {
        let [_, addr, ..] = record else { return false };
        if !self.known_kinds[usize::from(header.a)] {
            return false;
        }
        let addr = u64::from_le_bytes(*addr);
        let stack = if header.b & event::FREE_HAS_STACK != 0 { self.stack_key() } else { 0 };
        let key = ShapeKey(stack | u64::from(header.b) << 8 | u64::from(header.a));
        let time = self.time();
        let open = &mut self.section;
        open.begin(time, key);
        match open.block_index.remove(addr) {
            Some(index) => {
                let younger = open.blocks.free(index);
                varint::put(&mut open.columns.0[RANK], u64::from(younger) + 1);
            }
            None => {
                open.columns.0[RANK].push(0);
                varint::put(&mut open.columns.0[FAR], varint::fold(open.blocks.free_stray(addr)));
            }
        }
        if header.b & event::FREE_REALLOC != 0 {
            self.realloc_from = addr;
        }
        self.finish_if_full(out);
        true
    }

    #[inline(always)]
    fn finish_if_full(&mut self, out: &mut Vec<Section>) {
        if self.section.events as usize >= SECTION_EVENTS || self.section.nodes.len() > SECTION_NODES {
            out.extend(self.flush());
        }
    }

    #[inline(never)]
    fn rare(&mut self, header: Header, record: &[[u8; 8]], out: &mut Vec<Section>) -> bool {
        let least = match header.tag {
            tag::LOST | tag::RATE | tag::MARKER | tag::FAULT | tag::THREAD | tag::END | tag::LIVENESS => 1,
            tag::PROCESS | tag::MODULE_GONE | tag::UNMAP | tag::BRK => 2,
            tag::PROTECT | tag::STRIPPED => 3,
            tag::WINDOW => 4,
            tag::CULLED => 7,
            tag::MAP | tag::REMAP | tag::MODULE => 5,
            _ => 0,
        };
        if record.len() <= least {
            return false;
        }
        let named = if header.tag == tag::MODULE { self.paths.named(record) } else { None };
        self.append_rare(header, named.as_deref().unwrap_or(&record[1..]), out);
        true
    }

    fn append_rare(&mut self, header: Header, payload: &[[u8; 8]], out: &mut Vec<Section>) {
        let stack = matches!(header.tag, tag::MAP | tag::UNMAP | tag::REMAP).then(|| ShapeKey(self.stack_key()));
        let mut with_stack = [[0; 8]; FAULT_WORDS + 1];
        let payload = match payload.first_chunk::<FAULT_WORDS>() {
            Some(words) if header.tag == tag::FAULT => {
                with_stack[..FAULT_WORDS].copy_from_slice(words);
                with_stack[FAULT_WORDS] = (self.stack_key() >> 16).to_le_bytes();
                &with_stack[..]
            }
            _ => payload,
        };
        let time = self.time();
        let open = &mut self.section;
        open.touch(time);
        open.rare.append(open.events, time, header, stack, payload);
        if open.rare.bytes() > RARE_BYTES || open.nodes.len() > SECTION_NODES {
            out.extend(self.flush());
        }
    }

    /// Counts what cannot be read as lost: `words` words, of which an event usually takes three.
    #[cold]
    fn damaged(&mut self, words: usize, out: &mut Vec<Section>) {
        self.stack.lose();
        self.stack_key = None;
        let header = Header { tag: tag::LOST, a: event::LOST_DAMAGED, ..Header::default() };
        self.append_rare(header, &[(words as u64).div_ceil(3).to_le_bytes()], out);
    }
}
