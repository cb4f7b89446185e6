//! Captures made of told events, with names for their functions: real bytes, read by hound's reader. What is told is kept for the model.

use crate::capture::model::{Module, ProcessId, StreamId};
use crate::capture::{Capture, CaptureWriter, Clock, Compressor, End, MemorySink, ModuleSpan, SessionInfo, StreamEncoder, StreamMeta};
use crate::symbols::{Frame, Location, SymbolTable};
use hound_common::event::*;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Address, bytes, kind, flags, the address it continues.
    Alloc(u64, u64, u8, u8, Option<u64>),
    /// Address, whether it is the release half of a realloc.
    Free(u64, bool),
    /// Address, length, protection.
    Map(u64, u64, u32),
    /// Address, length.
    Unmap(u64, u64),
    /// Old address and length, new address and length.
    Remap(u64, u64, u64, u64),
    /// Old end and new end of the heap.
    Brk(u64, u64),
    /// Address, length, resident bytes.
    Rss(u64, u64, u64),
    /// A marker.
    Marker(u32),
    /// The recording is switched to a mode.
    Mode(u8),
    /// Mean bytes between samples from here on.
    Rate(u64),
}

/// When (nanoseconds), where (indices of [`FUNCTIONS`], outermost first; none: no stack is told), what.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub at: u64,
    pub path: Option<Vec<usize>>,
    pub what: Told,
}

/// Function, file, line, module of each place that can be called from; an inlined function is a second frame of its place.
pub const FUNCTIONS: &[(&str, &str, u32, &str)] = &[
    ("_start", "/build/start.S", 115, "/app/simulation"),
    ("main", "/app/src/main.cpp", 10, "/app/simulation"),
    ("simulation::load", "/app/src/load.cpp", 20, "/app/simulation"),
    ("simulation::parse", "/app/src/parse.cpp", 30, "/app/simulation"),
    ("cache::insert", "/app/src/cache.cpp", 40, "/app/libcache.so"),
    ("libc.so.6+0x2928f", "", 0, "/lib/libc.so.6"),
    ("operator new(unsigned long)", "", 0, "/lib/libstdc++.so.6"),
    ("je_pages_map", "", 0, "/app/simulation"),
    ("hook", "", 0, "/lib/libhound.so"),
];

/// The place whose function has another one inlined into it.
pub const INLINED_AT: usize = 3;
/// That one.
pub const INLINED: (&str, &str, u32) = ("simulation::token", "/app/src/token.hpp", 7);

fn ip(place: usize) -> u64 {
    0x1000 * (place as u64 + 1) + 0x10
}

/// A place that can be called from: its module, and function, file and line of each of its frames, the innermost first.
#[derive(Clone, Debug)]
pub struct Place {
    pub module: &'static str,
    pub frames: Vec<(&'static str, &'static str, u32)>,
}

/// Those of [`FUNCTIONS`].
fn usual() -> Vec<Place> {
    let of = |(place, &(function, file, line, module)): (usize, &(&'static str, &'static str, u32, &'static str))| {
        let frames = if place == INLINED_AT { vec![INLINED, (function, file, line)] } else { vec![(function, file, line)] };
        Place { module, frames }
    };
    FUNCTIONS.iter().enumerate().map(of).collect()
}

/// Names of all places.
fn names(places: &[Place]) -> SymbolTable {
    let span = |(number, place): (usize, &Place)| ModuleSpan {
        process: ProcessId::FIRST,
        module: Module {
            start: 0x1000 * (number as u64 + 1),
            end: 0x1000 * (number as u64 + 2),
            path: place.module.to_owned(),
            ..Module::default()
        },
        from_ns: 0,
        to_ns: u64::MAX,
    };
    let mut names = SymbolTable::new(&places.iter().enumerate().map(span).collect::<Vec<_>>());
    for (number, place) in places.iter().enumerate() {
        let last = place.frames.len() - 1;
        let frame = |(at, &(function, file, line)): (usize, &(&'static str, &'static str, u32))| {
            let location = (!file.is_empty()).then_some(Location { file, line });
            Frame { function, location, module: place.module, inlined: at < last }
        };
        names.name(ip(number), 0, &place.frames.iter().enumerate().map(frame).collect::<Vec<_>>());
    }
    names
}

/// A capture of these events, which are in the order of time, and of a recording that ended then.
pub fn capture(events: &[Event], end: u64) -> Capture {
    Capture::from_bytes(bytes(&usual(), events, end)).expect("a capture")
}

/// The same of a program with these places, as a file has it.
pub fn bytes(places: &[Place], events: &[Event], end: u64) -> Vec<u8> {
    let session = SessionInfo {
        command: vec!["./simulation".into()],
        pid: 4242,
        mode: "launch".into(),
        clock: Clock::Monotonic,
        ticks_per_second: 1_000_000_000,
        free_stacks: true,
        page_bytes: 4096,
        ..SessionInfo::default()
    };
    let mut ring = Vec::new();
    for event in events {
        record(&mut ring, tag::TIME, 0, 0, &[event.at]);
        if let Some(path) = &event.path {
            let edit = StackEdit { keep_root: 0, new: path.len() as u16, leaf_from: path.len() as u16, keep_leaf: 0 };
            let words: Vec<u64> = std::iter::once(edit.to_word()).chain(path.iter().map(|place| ip(*place))).collect();
            record(&mut ring, tag::STACK, 0, 0, &words);
        }
        write(&mut ring, event);
    }
    record(&mut ring, tag::TIME, 0, 0, &[end]);
    record(&mut ring, tag::END, END_EXIT, 0, &[0]);
    let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(0), 4242, 0, &session));
    let mut sections = Vec::new();
    encoder.push(&ring, &mut sections);
    sections.extend(encoder.flush());
    let mut writer = CaptureWriter::over(MemorySink::default(), &session).expect("memory");
    let mut compressor = Compressor::new().expect("memory");
    for section in sections {
        writer.write(&section.compress(&mut compressor).expect("memory")).expect("memory");
    }
    writer.write_symbols(&names(places).to_bytes()).expect("memory");
    writer.finish(End { reason: END_EXIT, ..End::default() }).expect("memory").bytes
}

fn write(ring: &mut Vec<u8>, event: &Event) {
    match event.what {
        Told::Alloc(addr, size, kind, flags, previous) => {
            let flags = flags | if previous.is_some() { ALLOC_REALLOC } else { 0 };
            let words: Vec<u64> = [addr, size_word(size, SLACK_UNKNOWN)].into_iter().chain(previous).collect();
            record(ring, tag::ALLOC, kind, flags, &words);
        }
        Told::Free(addr, realloc) => {
            let flags = if realloc { FREE_REALLOC } else { 0 } | if event.path.is_some() { FREE_HAS_STACK } else { 0 };
            record(ring, tag::FREE, if realloc { 3 } else { 32 }, flags, &[addr]);
        }
        Told::Map(addr, length, prot) => record(ring, tag::MAP, 64, 0, &[addr, length, u64::from(prot) | 0x22 << 32, u64::MAX, 0]),
        Told::Unmap(addr, length) => record(ring, tag::UNMAP, 65, 0, &[addr, length]),
        Told::Remap(addr, length, to, new) => record(ring, tag::REMAP, 66, 0, &[addr, length, to, new, 1]),
        Told::Brk(old, new) => record(ring, tag::BRK, 0, 0, &[old, new]),
        Told::Rss(addr, length, resident) => record(ring, tag::METRIC, METRIC_MAP_RSS, 0, &[addr, length, resident]),
        Told::Mode(mode) => record(ring, tag::MODE, mode, 0, &[0]),
        Told::Rate(interval) => record(ring, tag::RATE, 0, 0, &[interval]),
        Told::Marker(number) => record(ring, tag::MARKER, 0, 0, &[u64::from(number)]),
    }
}

fn record(ring: &mut Vec<u8>, tag: u8, a: u8, b: u8, words: &[u64]) {
    let header = Header { tag, words: words.len() as u8 + 1, a, b, dt: 0 };
    for word in std::iter::once(header.to_word()).chain(words.iter().copied()) {
        ring.extend_from_slice(&word.to_le_bytes());
    }
}
