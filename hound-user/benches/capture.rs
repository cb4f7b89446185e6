//! What an event costs on its way into the capture and out again, and how many bytes it takes.
//!
//! The workloads are ring bytes with real heap addresses: the generator allocates what it says it allocates. `churn` allocates and frees
//! one block over and over from three alternating leaf frames at depth 30; `mixed` has 200 call paths, sizes that half of them choose at
//! random, and lifetimes from "at once" to "much later".

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use hound_common::event::{Header, StackEdit, size_word, tag};
use hound_common::hook::Kind;
use hound_user::capture::model::{Alloc, Free, Stamped, StreamId};
use hound_user::capture::{Capture, CaptureWriter, Compressor, End, MemorySink, Section, SessionInfo, StreamEncoder, StreamMeta, Visitor};

/// Allocations and frees in a workload.
const EVENTS: usize = 1_000_000;
/// What the drain hands over at once.
const SEGMENT: usize = 32 * 1024;

/// A small generator of numbers: the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

#[derive(Default)]
struct Ring {
    words: Vec<u64>,
    /// Where segments may end: a record never straddles two.
    segments: Vec<usize>,
    path: Vec<u64>,
}

impl Ring {
    fn record(&mut self, tag: u8, a: u8, dt: u32, words: &[u64]) {
        let start = self.segments.last().copied().unwrap_or(0);
        if (self.words.len() + words.len() + 1 - start) * 8 > SEGMENT {
            self.segments.push(self.words.len());
        }
        self.words.push(Header { tag, words: words.len() as u8 + 1, a, b: 0, dt }.to_word());
        self.words.extend_from_slice(words);
    }

    fn stack(&mut self, path: &[u64]) {
        let keep = self.path.iter().zip(path).take_while(|(old, new)| old == new).count();
        if keep == path.len() && keep == self.path.len() {
            return;
        }
        let new = &path[keep..];
        let edit = StackEdit { keep_root: keep as u16, new: new.len() as u16, leaf_from: path.len() as u16, keep_leaf: 0 };
        self.record(tag::STACK, 0, 0, &[&[edit.to_word()], new].concat());
        self.path = path.to_vec();
    }

    fn alloc(&mut self, size: usize, dt: u32) -> Vec<u8> {
        let block: Vec<u8> = Vec::with_capacity(size);
        let slack = ((size + 23) & !15).max(32) - 8 - size;
        self.record(tag::ALLOC, Kind::Malloc as u8, dt, &[block.as_ptr() as u64, size_word(size as u64, slack as u16)]);
        block
    }

    fn free(&mut self, block: Vec<u8>, dt: u32) {
        self.record(tag::FREE, Kind::Free as u8, dt, &[block.as_ptr() as u64]);
    }

    /// The bytes, in runs as the drain hands them over.
    fn runs(mut self) -> Vec<Vec<u8>> {
        self.segments.push(self.words.len());
        let mut start = 0;
        let mut runs = Vec::new();
        for end in self.segments {
            runs.push(self.words[start..end].iter().flat_map(|word| word.to_le_bytes()).collect());
            start = end;
        }
        runs
    }
}

fn churn() -> Vec<Vec<u8>> {
    let mut ring = Ring::default();
    let mut numbers = Numbers(1);
    ring.record(tag::TIME, 0, 0, &[1_000_000]);
    let mut path: Vec<u64> = (0..30).map(|i| 0x5555_0000 + i * 77).collect();
    for i in 0..EVENTS / 2 {
        path[29] = 0x5556_0000 + (i % 3) as u64 * 40;
        ring.stack(&path);
        let block = ring.alloc(48, 90 + numbers.below(30) as u32);
        ring.free(block, 60 + numbers.below(20) as u32);
    }
    ring.runs()
}

fn mixed() -> Vec<Vec<u8>> {
    let mut ring = Ring::default();
    let mut numbers = Numbers(7);
    ring.record(tag::TIME, 0, 0, &[1_000_000]);
    let paths: Vec<Vec<u64>> = (0..200u64)
        .map(|site| {
            (0..20 + site % 12)
                .map(|i| if i < 12 { 0x5555_0000 + i * 77 } else { 0x5560_0000 + (site >> (i % 7)) * 513 + i * 40 })
                .collect()
        })
        .collect();
    let mut live: Vec<Vec<u8>> = Vec::new();
    let mut site = 0u64;
    for _ in 0..EVENTS / 2 {
        // Mostly the next of a sequence, at times a jump: loops with branches.
        site = if numbers.below(6) == 0 { numbers.below(200) } else { (site + 1) % 200 };
        ring.stack(&paths[site as usize]);
        let size = if site.is_multiple_of(2) { 16 + site as usize % 7 * 24 } else { 1 + numbers.below(400) as usize };
        live.push(ring.alloc(size, 80 + numbers.below(60) as u32));
        if live.len() > 2000 || numbers.below(3) > 0 {
            let last = live.len() - 1;
            let which = if numbers.below(4) > 0 {
                last - numbers.below(3).min(last as u64) as usize
            } else {
                numbers.below(live.len() as u64) as usize
            };
            let block = live.swap_remove(which);
            ring.free(block, 50 + numbers.below(60) as u32);
        }
    }
    ring.runs()
}

fn workload(name: &str) -> Vec<Vec<u8>> {
    if name == "churn" { churn() } else { mixed() }
}

fn session() -> SessionInfo {
    SessionInfo { ticks_per_second: 2_500_000_000, ..SessionInfo::default() }
}

fn sections(runs: &[Vec<u8>]) -> Vec<Section> {
    let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(0), 1, 0, &session()));
    let mut sections = Vec::new();
    for run in runs {
        encoder.push(run, &mut sections);
    }
    sections.extend(encoder.flush());
    sections
}

fn capture(sections: &[Section]) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("memory");
    let mut writer = CaptureWriter::over(MemorySink::default(), &session()).expect("memory");
    for section in sections {
        writer.write(&section.compress(&mut compressor).expect("memory")).expect("memory");
    }
    writer.finish(End::default()).expect("memory").bytes
}

fn count(sections: &[Section]) -> ItemsCount {
    ItemsCount::new(sections.iter().map(Section::events).sum::<u64>())
}

const WORKLOADS: [&str; 2] = ["churn", "mixed"];

#[divan::bench(args = WORKLOADS, sample_count = 10)]
fn encode(bencher: Bencher<'_, '_>, name: &str) {
    let runs = workload(name);
    let events = count(&sections(&runs));
    bencher.counter(events).bench_local(|| {
        // As in the drain: finished sections leave.
        let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(0), 1, 0, &session()));
        let mut out = Vec::new();
        for run in &runs {
            encoder.push(black_box(run), &mut out);
            out.clear();
        }
    });
}

#[divan::bench(args = WORKLOADS, sample_count = 10)]
fn compress(bencher: Bencher<'_, '_>, name: &str) {
    let sections = sections(&workload(name));
    bencher.counter(count(&sections)).bench_local(|| capture(black_box(&sections)));
}

struct Sum(u64);

impl Visitor for Sum {
    fn alloc(&mut self, time_ns: u64, _: StreamId, alloc: &Alloc) {
        self.0 = self.0.wrapping_add(time_ns ^ alloc.addr);
    }

    fn free(&mut self, time_ns: u64, _: StreamId, free: &Free) {
        self.0 = self.0.wrapping_add(time_ns ^ free.addr);
    }

    fn other(&mut self, _: &Stamped) {}
}

#[divan::bench(args = WORKLOADS, sample_count = 10)]
fn decode(bencher: Bencher<'_, '_>, name: &str) {
    let sections = sections(&workload(name));
    let bytes = capture(&sections);
    bencher.counter(count(&sections)).with_inputs(|| bytes.clone()).bench_local_values(|bytes| {
        let mut sum = Sum(0);
        Capture::from_bytes(bytes).expect("a capture").visit(&mut sum);
        sum.0
    });
}

fn main() {
    for name in WORKLOADS {
        let sections = sections(&workload(name));
        let events: u64 = sections.iter().map(Section::events).sum();
        println!("{name}: {:.2} bytes an event", capture(&sections).len() as f64 / events as f64);
    }
    divan::main();
}
