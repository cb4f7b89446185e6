//! What the capture promises: nothing changes on the way through the file, a cut costs only what is behind it, damage is noticed.

mod damage;
mod example;
mod ring;
mod round_trip;

use super::model::{Alloc, Free, ProcessId, StackId, StackTree, Stamped, StreamId};
use super::*;

/// An event with its stack written out: what tests compare.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub time_ns: u64,
    pub stream: u32,
    pub event: String,
    /// Root reason, frame pointers, ips innermost first.
    pub stack: Option<(u8, bool, Vec<u64>)>,
}

/// Keeps all events; stacks are resolved afterwards.
#[derive(Default)]
pub struct Keep(Vec<(Seen, Option<StackId>)>);

impl Keep {
    fn add(&mut self, time_ns: u64, stream: StreamId, event: String, stack: Option<StackId>) {
        self.0.push((Seen { time_ns, stream: stream.0, event, stack: None }, stack));
    }

    fn resolve(self, tree: &StackTree) -> Vec<Seen> {
        let stack = |id: StackId| {
            let root = tree.root_of(id).expect("the stack is known");
            (root.reason, root.frame_pointers, tree.ips(id).collect())
        };
        self.0.into_iter().map(|(seen, id)| Seen { stack: id.map(stack), ..seen }).collect()
    }
}

impl Visitor for Keep {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        let Alloc { addr, size, usable, kind, flags, pool, previous, stack } = *alloc;
        let pool = if pool > 0 { format!(" pool {pool}") } else { String::new() };
        self.add(time_ns, stream, format!("alloc {addr:x} {size} {usable:?} {kind:?} {flags} {previous:?}{pool}"), Some(stack));
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        let Free { addr, kind, pool, realloc, stack } = *free;
        let pool = if pool > 0 { format!(" pool {pool}") } else { String::new() };
        self.add(time_ns, stream, format!("free {addr:x} {kind:?} {realloc}{pool}"), stack);
    }

    fn other(&mut self, event: &Stamped) {
        let (text, stack) = describe(&event.event);
        self.add(event.time_ns, event.stream, text, stack);
    }
}

/// An event without its stack id, which is not the same in two captures.
fn describe(event: &model::Event) -> (String, Option<StackId>) {
    use model::Event::*;
    match event {
        Map { addr, length, prot, flags, fd, offset, stack } => {
            (format!("map {addr:x} {length} {prot} {flags} {fd} {offset}"), Some(*stack))
        }
        Unmap { addr, length, stack } => (format!("unmap {addr:x} {length}"), Some(*stack)),
        Remap { old_addr, old_length, new_addr, new_length, stack } => {
            (format!("remap {old_addr:x} {old_length} {new_addr:x} {new_length}"), Some(*stack))
        }
        Fault(model::Fault { addr, interval, bytes, kind, flags, stack }) => {
            (format!("fault {addr:x} {interval} {bytes} kind {kind} flags {flags}"), Some(*stack))
        }
        other => (format!("{other:?}"), None),
    }
}

/// A session whose stamps are nanoseconds: with `exact`, no bits are dropped from them.
pub fn session() -> SessionInfo {
    SessionInfo { clock: Clock::Monotonic, ticks_per_second: 1_000_000_000, command: vec!["true".into()], ..SessionInfo::default() }
}

/// A capture of these streams' ring bytes, each flushed after this many bytes (rounded to records by the caller).
pub fn capture_of(streams: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut writer = CaptureWriter::over(MemorySink::default(), &session()).expect("memory");
    let mut compressor = Compressor::new().expect("memory");
    for (id, runs) in streams.iter().enumerate() {
        let meta = StreamMeta { id: StreamId(id as u32), tid: 100 + id as u32, level: 0, process: ProcessId::FIRST, time_shift: 0 };
        let mut encoder = StreamEncoder::new(meta);
        for run in runs {
            let mut sections = Vec::new();
            encoder.push(run, &mut sections);
            sections.extend(encoder.flush());
            for section in sections {
                writer.write(&section.compress(&mut compressor).expect("memory")).expect("memory");
            }
        }
    }
    writer.finish(End::default()).expect("memory").bytes
}

/// All events of a capture, and what is wrong with it.
pub fn read(bytes: Vec<u8>) -> (Vec<Seen>, Anomalies) {
    let mut capture = Capture::from_bytes(bytes).expect("a capture");
    let mut keep = Keep::default();
    let anomalies = capture.visit(&mut keep);
    (keep.resolve(capture.stacks()), anomalies)
}
