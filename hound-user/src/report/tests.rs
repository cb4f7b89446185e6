//! From ring bytes through a capture file to the report: captures that have samples.

use super::*;
use crate::capture::model::StreamId;
use crate::capture::{CaptureWriter, Clock, Compressor, End, MemorySink, StreamEncoder, StreamMeta};
use hound_common::event::{END_DETACH, Header, MODE_FULL, MODE_OFF, MODE_SAMPLED, size_word, tag};

const MALLOC: u8 = 1;
const FREE: u8 = 32;
/// hound's own stream.
const OWN: usize = 0;

/// What streams recorded, each in order.
#[derive(Default)]
struct Recorded([Vec<u8>; 2], [u64; 2]);

impl Recorded {
    fn record(&mut self, stream: usize, ticks: u64, tag: u8, a: u8, words: &[u64]) {
        let Recorded(bytes, clocks) = self;
        let dt = (ticks - clocks[stream]) as u32;
        clocks[stream] = ticks;
        let header = Header { tag, words: words.len() as u8 + 1, a, b: 0, dt };
        for word in std::iter::once(header.to_word()).chain(words.iter().copied()) {
            bytes[stream].extend_from_slice(&word.to_le_bytes());
        }
    }

    fn alloc(&mut self, ticks: u64, addr: u64, size: u64) {
        self.record(1, ticks, tag::ALLOC, MALLOC, &[addr, size_word(size, 0)]);
    }

    fn capture(&self, ended: bool) -> Capture {
        let session =
            SessionInfo { clock: Clock::Monotonic, ticks_per_second: 1_000_000_000, mode: "sampled".into(), ..SessionInfo::default() };
        let mut writer = CaptureWriter::over(MemorySink::default(), &session).expect("memory");
        let mut compressor = Compressor::new().expect("memory");
        for (stream, bytes) in self.0.iter().enumerate() {
            let mut encoder =
                StreamEncoder::new(StreamMeta { time_shift: 0, ..StreamMeta::new(StreamId(stream as u32), 100, 0, &session) });
            let mut sections = Vec::new();
            encoder.push(bytes, &mut sections);
            sections.extend(encoder.flush());
            for section in sections {
                writer.write(&section.compress(&mut compressor).expect("memory")).expect("memory");
            }
        }
        let bytes = match ended {
            true => writer.finish(End { reason: END_DETACH, ..End::default() }).expect("memory").bytes,
            false => writer.finish(End::default()).expect("memory").bytes,
        };
        Capture::from_bytes(bytes).expect("a capture")
    }
}

fn json_of(recorded: &Recorded) -> serde_json::Value {
    let options = Options { format: Format::Json, ..Options::default() };
    serde_json::from_str(&report_of(&mut recorded.capture(true), &options)).expect("JSON")
}

/// Ten windows of a tenth of a second, each a fifth open, with 20 samples each at 1000 bytes; `told` of them are told of.
fn windows(told: u64) -> Recorded {
    let mut recorded = Recorded::default();
    recorded.record(OWN, 0, tag::MODE, MODE_SAMPLED, &[0]);
    recorded.record(1, 0, tag::RATE, 0, &[1000]);
    for period in 0..10u64 {
        let (from, to) = (period * 100_000, period * 100_000 + 100_000);
        let opened = from + period * 7_000;
        (0..20).for_each(|block| recorded.alloc(opened + block * 1000, 0x1000 + period * 0x10_0000 + block * 0x100, 50));
        if period < told {
            recorded.record(OWN, opened + 20_000, tag::WINDOW, 0, &[opened, opened + 20_000, from, to]);
        }
    }
    recorded
}

#[test]
fn windows_reach_the_report_through_the_file() {
    let report = json_of(&windows(10));
    let probability = hound_common::sampling::probability(50, 1000);
    assert_eq!(report["totals"]["allocations"], (200.0 * 5.0 / probability).round() as u64);
    assert_eq!(report["totals"]["allocated_bytes"], (200.0 * 50.0 * 5.0 / probability).round() as u64);
    assert_eq!((&report["totals"]["samples"], &report["session"]["left_out_samples"]), (&200.into(), &0.into()));
    let part = &report["session"]["parts"][0];
    assert_eq!((&part["mode"], &part["windows"], &part["interval"][0]), (&"sampled".into(), &10.into(), &1000.into()));
    assert!((part["share_observed"].as_f64().expect("a number") - 0.2).abs() < 1e-9);
    assert_eq!(report["sites"][0]["live_bytes_ci95"], report["totals"]["live_bytes_ci95"]);
}

#[test]
fn samples_of_a_window_that_is_not_told_of_are_left_out_and_counted() {
    let report = json_of(&windows(9));
    let probability = hound_common::sampling::probability(50, 1000);
    assert_eq!(report["totals"]["allocations"], (180.0 * 5.0 / probability).round() as u64);
    assert_eq!((&report["totals"]["samples"], &report["session"]["left_out_samples"]), (&180.into(), &20.into()));
    let text = report_of(&mut windows(9).capture(true), &Options::default());
    assert!(text.contains("20 samples are in no figure"), "{text}");
}

#[test]
fn a_full_part_between_samples_is_exact_and_told_apart() {
    let mut recorded = Recorded::default();
    recorded.record(OWN, 0, tag::MODE, MODE_SAMPLED, &[0]);
    recorded.record(1, 0, tag::RATE, 0, &[1000]);
    (0..50).for_each(|block| recorded.alloc(1000 + block, 0x1_0000 + block * 0x100, 50));
    recorded.record(OWN, 100_000, tag::MODE, MODE_FULL, &[0]);
    recorded.record(1, 100_000, tag::RATE, 0, &[0]);
    (0..7).for_each(|block| recorded.alloc(101_000 + block, 0x10 + block * 0x10, 11));
    recorded.record(1, 110_000, tag::FREE, FREE, &[0x10]);
    recorded.record(1, 120_000, tag::FREE, FREE, &[0x1_0000]);
    recorded.record(OWN, 200_000, tag::MODE, MODE_SAMPLED, &[0]);
    recorded.record(1, 200_000, tag::RATE, 0, &[1000]);
    recorded.record(OWN, 300_000, tag::MODE, MODE_OFF, &[0]);
    let report = json_of(&recorded);
    let parts = &report["session"]["parts"];
    let full = &parts[1]["figures"];
    assert_eq!((&full["allocated_bytes"], &full["live_bytes"], &full["samples"]), (&77.into(), &66.into(), &0.into()));
    let each = 50.0 / hound_common::sampling::probability(50, 1000);
    assert_eq!(parts[0]["figures"]["live_bytes"], (each * 49.0).round() as u64);
    assert_eq!(report["totals"]["live_bytes"], (each * 49.0 + 66.0).round() as u64);
    assert_eq!(report["totals"]["unknown_frees"], 0);
    assert_eq!(report["session"]["anomalies"].as_array().map(Vec::len), Some(0));
}

#[test]
fn an_exact_capture_has_no_word_of_samples() {
    let mut recorded = Recorded::default();
    recorded.record(OWN, 0, tag::MODE, MODE_FULL, &[0]);
    recorded.alloc(10, 0x10, 8);
    let report = json_of(&recorded);
    assert_eq!(report["totals"]["allocations"], 1);
    let text = report.to_string() + report_of(&mut recorded.capture(false), &Options::default()).as_str();
    assert!(!["ci95", "samples", "parts", "≈"].iter().any(|word| text.contains(word)), "{text}");
}
