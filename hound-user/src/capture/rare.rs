//! The rare part of a section: every event that is no allocation or free, kept as its ring record so that all of it survives, also tags
//! this version does not know. It is compressed apart, so that opening a capture reads it without the rest.

use super::clock::TickClock;
use super::columns::ShapeKey;
use super::model::{Culled, Event, Fault, Module, ProcessEvent, ProcessId, ProcessMemory, StackId, ThreadEvent};
use super::session::UnwindCounters;
use super::varint::{self, Cursor};
use hound_common::event::{self, Header, tag};

/// Words of a `FAULT` that has a stack, without it. In the file the stack is one more word: readers that know no such stack pass over it.
pub const FAULT_WORDS: usize = 3;

/// Builds the part.
#[derive(Debug, Default)]
pub struct RareWriter {
    bytes: Vec<u8>,
    events: u32,
    /// Allocations and frees before, and time of, the event before.
    position: u32,
    time: u64,
}

impl RareWriter {
    /// Begins at this (shifted) time.
    pub fn start(&mut self, time: u64) {
        (self.position, self.time) = (0, time);
    }

    /// Events in it.
    pub fn events(&self) -> u32 {
        self.events
    }

    /// Bytes in it.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Takes the part out and leaves an empty one.
    pub fn take(&mut self) -> Vec<u8> {
        self.events = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Appends an event: after how many allocations and frees, when, and its record.
    pub fn append(&mut self, position: u32, time: u64, header: Header, stack: Option<ShapeKey>, payload: &[[u8; 8]]) {
        varint::put(&mut self.bytes, u64::from(position - self.position));
        varint::put(&mut self.bytes, time - self.time);
        self.bytes.extend_from_slice(&[header.tag, header.a, header.b]);
        varint::put(&mut self.bytes, payload.len() as u64);
        if let Some(stack) = stack {
            varint::put(&mut self.bytes, stack.0 >> 16);
        }
        self.bytes.extend_from_slice(payload.as_flattened());
        (self.position, self.time) = (position, time);
        self.events += 1;
    }
}

/// One event of the part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RareRecord {
    /// Allocations and frees of the section before it.
    pub position: u32,
    /// Shifted time.
    pub time: u64,
    /// Tag, `a` and `b` are meant; the rest is 0.
    pub header: Header,
    /// Stack part of a [`ShapeKey`], for the records that have one.
    pub stack: Option<ShapeKey>,
    /// Words after the header.
    pub words: Vec<u64>,
}

/// Reads a whole part that begins at this shifted time. `None`: it is none.
pub fn read(bytes: &[u8], first: u64, events: u32) -> Option<Vec<RareRecord>> {
    let mut cursor = Cursor::default();
    let mut records = Vec::new();
    let (mut position, mut time) = (0u32, first);
    for _ in 0..events {
        position = position.checked_add(u32::try_from(cursor.number(bytes)).ok()?)?;
        time = time.checked_add(cursor.number(bytes))?;
        let [tag, a, b] = std::array::from_fn(|_| cursor.byte(bytes));
        let count = cursor.number(bytes);
        let before = matches!(tag, tag::MAP | tag::UNMAP | tag::REMAP).then(|| ShapeKey(cursor.number(bytes) << 16));
        if count > cursor.left(bytes) as u64 / 8 {
            return None;
        }
        let words: Vec<u64> = (0..count).map(|_| cursor.word(bytes)).collect();
        let stack = before.or_else(|| (tag == tag::FAULT).then(|| words.get(FAULT_WORDS).map(|word| ShapeKey(word << 16)))?);
        records.push(RareRecord { position, time, header: Header { tag, words: 0, a, b, dt: 0 }, stack, words });
    }
    cursor.is_at_end(bytes).then_some(records)
}

impl RareRecord {
    fn culled(&self, clock: &TickClock) -> Event {
        let at = |i: usize| self.words.get(i).copied().unwrap_or(0);
        let places = self.words.get(7..).unwrap_or_default().as_chunks::<2>().0;
        let of_kind = |kind: u64| {
            let ours = places.iter().filter(move |[head, _]| head >> 56 == kind);
            ours.map(|[head, bytes]| ((head >> 48) as u8, head & ((1 << 48) - 1), *bytes)).collect()
        };
        Event::Culled(Box::new(Culled {
            from_ns: clock.ns(at(0)),
            to_ns: clock.ns(at(1)),
            blocks: at(2),
            bytes: at(3),
            threshold_ns: at(4),
            late: at(5),
            overflows: at(6),
            lifetimes: of_kind(0),
            sizes: of_kind(1),
        }))
    }

    /// The event. `stack` is the global id of [`Self::stack`]; `clock` turns the ticks in it into times.
    pub fn event(&self, stack: StackId, clock: &TickClock) -> Event {
        let at = |i: usize| self.words.get(i).copied().unwrap_or(0);
        match self.header.tag {
            tag::MAP => Event::Map {
                addr: at(0),
                length: at(1),
                prot: at(2) as u32,
                flags: (at(2) >> 32) as u32,
                fd: at(3) as i64,
                offset: at(4),
                stack,
            },
            tag::UNMAP => Event::Unmap { addr: at(0), length: at(1), stack },
            tag::REMAP => Event::Remap { old_addr: at(0), old_length: at(1), new_addr: at(2), new_length: at(3), stack },
            tag::MODULE => Event::Module(self.module()),
            tag::MODULE_GONE => Event::ModuleGone { start: at(0), end: at(1) },
            tag::THREAD => self.thread(),
            tag::PROCESS => self.process(),
            tag::RATE => Event::Rate(at(0)),
            tag::WINDOW => {
                Event::Window { opened_ns: clock.ns(at(0)), closed_ns: clock.ns(at(1)), from_ns: clock.ns(at(2)), to_ns: clock.ns(at(3)) }
            }
            tag::LIVENESS => {
                let (addr, pool) = event::of_liveness_word(at(0));
                Event::Liveness { state: self.header.a, addr, pool }
            }
            tag::STRIPPED => Event::Stripped { pool: self.header.a, blocks: at(0), bytes: at(1), threshold_ns: at(2) },
            tag::CULLED => self.culled(clock),
            tag::MODE => Event::Mode { mode: self.header.a },
            tag::MARKER if self.header.a == event::MARKER_TEXT => {
                Event::Mark(String::from_utf8_lossy(&self.bytes(2, at(1) as usize)).into_owned())
            }
            tag::MARKER => Event::Marker(at(0) as u32),
            tag::FAULT if self.words.len() > FAULT_WORDS => {
                let Header { a: kind, b: flags, .. } = self.header;
                Event::Fault(Fault { addr: at(0), interval: at(1), bytes: at(2), kind, flags, stack })
            }
            tag::LOST => Event::Lost { count: at(0), reason: self.header.a },
            tag::END => Event::End { reason: self.header.a, value: at(0) },
            tag::METRIC => match self.header.a {
                event::METRIC_MAP_RSS => Event::MapRss { addr: at(0), length: at(1), resident: at(2) },
                event::METRIC_PROCESS_RSS => Event::ProcessRss { resident: at(0), proportional: at(1), swapped: at(2) },
                event::METRIC_PROCESS_MEMORY => {
                    Event::ProcessMemory(ProcessMemory { virtual_size: at(0), anonymous: at(1), file: at(2), shared: at(3) })
                }
                event::METRIC_PROCESS_PEAK => Event::ProcessPeak { resident: at(0) },
                event::METRIC_UNWINDING => Event::Unwinding(UnwindCounters::from_words(&self.words)),
                _ => self.other(),
            },
            _ => self.other(),
        }
    }

    fn other(&self) -> Event {
        Event::Other { tag: self.header.tag, a: self.header.a, words: self.words.clone() }
    }

    fn module(&self) -> Module {
        let at = |i: usize| self.words.get(i).copied().unwrap_or(0);
        let lengths = at(4);
        let (id_length, path_length) = (lengths as u32 as usize, (lengths >> 32) as usize);
        let build_id = self.bytes(5, id_length);
        let path = self.bytes(5 + id_length.div_ceil(8), path_length);
        Module { bias: at(0), start: at(1), end: at(2), build_id, path: String::from_utf8_lossy(&path).into_owned() }
    }

    fn process(&self) -> Event {
        let at = |i: usize| self.words.get(i).copied().unwrap_or(0);
        if !(event::PROCESS_JOINED..=event::PROCESS_NEW_PROGRAM).contains(&self.header.a) {
            return self.other();
        }
        let words = self.bytes(4, at(3) as usize);
        let words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Event::Process(ProcessEvent {
            began: self.header.a,
            pid: at(0) as u32,
            parent: at(1) as u32,
            from: u32::try_from(at(2)).ok().and_then(|number| number.checked_sub(1)).map(ProcessId),
            command: if at(3) == 0 { Vec::new() } else { words.collect() },
        })
    }

    fn thread(&self) -> Event {
        let at = |i: usize| self.words.get(i).copied().unwrap_or(0);
        match self.header.a {
            event::THREAD_START => Event::Thread(ThreadEvent::Start { tid: at(0) as u32 }),
            event::THREAD_NAME => Event::Thread(ThreadEvent::Name(String::from_utf8_lossy(&self.bytes(2, at(1) as usize)).into_owned())),
            event::THREAD_EXIT => Event::Thread(ThreadEvent::Exit),
            _ => self.other(),
        }
    }

    /// Bytes packed into words from this word on; fewer than asked for if there are fewer.
    fn bytes(&self, from: usize, length: usize) -> Vec<u8> {
        let words = self.words.get(from..).unwrap_or(&[]);
        words.iter().flat_map(|word| word.to_le_bytes()).take(length).collect()
    }
}
