//! Runs the whole reader over arbitrary bytes: what the fuzz target and the damage tests call.

use super::model::{Alloc, Free, Stamped, StreamId};
use super::reader::{Capture, Visitor};
use super::session::SessionInfo;
use super::writer::{CaptureWriter, MemorySink};
use super::{Compressor, StreamEncoder, StreamMeta};

/// Looks at everything and keeps only how much there was.
#[derive(Default)]
struct Count {
    events: u64,
    last_ns: u64,
}

impl Count {
    fn at(&mut self, time_ns: u64) {
        assert!(time_ns >= self.last_ns, "events come in time order");
        self.last_ns = time_ns;
        self.events += 1;
    }
}

impl Visitor for Count {
    fn alloc(&mut self, time_ns: u64, _: StreamId, _: &Alloc) {
        self.at(time_ns);
    }

    fn free(&mut self, time_ns: u64, _: StreamId, _: &Free) {
        self.at(time_ns);
    }

    fn other(&mut self, event: &Stamped) {
        self.at(event.time_ns);
    }
}

/// Reads the bytes as a capture, and encodes them as ring bytes and reads the result. Panics only if hound is wrong.
pub fn exercise(data: &[u8]) {
    if let Ok(mut capture) = Capture::from_bytes(data.to_vec()) {
        let mut count = Count::default();
        capture.visit(&mut count);
        let _ = capture.symbols();
        assert!(count.events <= capture.counts().heap + capture.counts().other, "no more events than the headers count");
    }
    let session = SessionInfo::default();
    let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(0), 0, 0, &session));
    let mut sections = Vec::new();
    encoder.push(data, &mut sections);
    sections.extend(encoder.flush());
    let events: u64 = sections.iter().map(super::Section::events).sum();
    let Ok(mut compressor) = Compressor::new() else { return };
    let Ok(mut writer) = CaptureWriter::over(MemorySink::default(), &session) else { return };
    for section in &sections {
        let chunk = section.compress(&mut compressor).expect("invariant: memory takes every chunk");
        writer.write(&chunk).expect("invariant: an unlimited sink is never full");
    }
    let sink = writer.finish(Default::default()).expect("invariant: an unlimited sink is never full");
    let mut capture = Capture::from_bytes(sink.bytes).expect("invariant: what was just written is a capture");
    let mut count = Count::default();
    let anomalies = capture.visit(&mut count);
    assert!(anomalies.is_empty(), "what was just written is whole: {:?}", anomalies.0);
    assert_eq!(count.events, events, "every event comes back");
}
