//! Captures made by chance, with all that a replay has to do with: reallocs, pools, several processes, samples, contradictions.

use crate::capture::model::{ProcessId, StreamId};
use crate::capture::{Capture, CaptureWriter, Clock, Compressor, End, MemorySink, SessionInfo, StreamEncoder, StreamMeta};
use hound_common::event::*;
use hound_common::hook::Kind;
use proptest::prelude::*;

/// What a stream records.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Alloc { slot: u8, size: u16, path: u8 },
    Free { slot: u8, with_stack: bool },
    Realloc { from: u8, to: u8, size: u16, path: u8 },
    PoolAlloc { pool: u8, slot: u8, size: u16 },
    PoolFree { pool: u8, slot: u8 },
    Mode(u8),
    Rate(u16),
    Window { open: u16, length: u16 },
    Liveness { slot: u8, state: u8 },
}

/// By which stream, how long after the step before, what.
pub(crate) type Step = (u8, u16, What);

pub(crate) const STREAMS: u8 = 4;

/// Steps of every sort; those of sampling only where `sampled`.
pub(crate) fn steps(sampled: bool, most: usize) -> impl Strategy<Value = Vec<Step>> {
    let slot = 0..16u8;
    let heap = prop_oneof![
        6 => (slot.clone(), 1..5000u16, 0..12u8).prop_map(|(slot, size, path)| What::Alloc { slot, size, path }),
        5 => (slot.clone(), any::<bool>()).prop_map(|(slot, with_stack)| What::Free { slot, with_stack }),
        2 => (slot.clone(), slot.clone(), 1..5000u16, 0..12u8).prop_map(|(from, to, size, path)| What::Realloc { from, to, size, path }),
        1 => (1..4u8, slot.clone(), 1..500u16).prop_map(|(pool, slot, size)| What::PoolAlloc { pool, slot, size }),
        1 => (1..4u8, slot.clone()).prop_map(|(pool, slot)| What::PoolFree { pool, slot }),
    ];
    let rare = prop_oneof![
        (0..3u8).prop_map(What::Mode),
        prop_oneof![Just(0u16), 100..3000u16].prop_map(What::Rate),
        (1..2000u16, 2000..30_000u16).prop_map(|(open, length)| What::Window { open, length }),
        (slot, 0..4u8).prop_map(|(slot, state)| What::Liveness { slot, state }),
    ];
    let what = prop_oneof![9 => heap.boxed(), u32::from(sampled) => rare.boxed()];
    // Stamps are often equal, and often within the time by which they may be inverted.
    let gap = prop_oneof![2 => Just(0u16), 4 => 1..3000u16, 1 => any::<u16>()];
    prop::collection::vec((0..STREAMS, gap, what), 1..most)
}

fn address(slot: u8) -> u64 {
    0x7000_0000_0000 + u64::from(slot) * 0x40
}

/// The records of one step: tag, a, b, words.
fn records(ticks: u64, what: What) -> Vec<(u8, u8, u8, Vec<u64>)> {
    let path = |path: u8| {
        let ips: Vec<u64> = (0..u64::from(path % 4 + 1)).map(|depth| 0x10_0000 + depth * 0x100 + u64::from(path) * 0x10).collect();
        let edit = StackEdit { keep_root: 0, new: ips.len() as u16, leaf_from: ips.len() as u16, keep_leaf: 0 };
        (tag::STACK, 0, 0, std::iter::once(edit.to_word()).chain(ips).collect())
    };
    let alloc = |kind: Kind, b: u8, slot: u8, size: u16| (tag::ALLOC, kind as u8, b, vec![address(slot), size_word(size.into(), 0)]);
    let free = |kind: Kind, b: u8, slot: u8| (tag::FREE, kind as u8, b, vec![address(slot)]);
    match what {
        What::Alloc { slot, size, path: at } => {
            let kind = if size % 3 == 0 { Kind::Calloc } else { Kind::Malloc };
            vec![path(at), alloc(kind, 0, slot, size)]
        }
        What::Free { slot, with_stack } => vec![free(Kind::Free, if with_stack { FREE_HAS_STACK } else { 0 }, slot)],
        What::Realloc { from, to, size, path: at } => {
            let mut second = alloc(Kind::Realloc, ALLOC_REALLOC, to, size);
            second.3.push(address(from));
            vec![path(at), free(Kind::Realloc, FREE_REALLOC, from), second]
        }
        What::PoolAlloc { pool, slot, size } => vec![alloc(Kind::PoolAlloc, pool << POOL_SHIFT, slot, size)],
        What::PoolFree { pool, slot } => vec![free(Kind::PoolFree, pool << POOL_SHIFT, slot)],
        What::Mode(mode) => vec![(tag::MODE, mode, 0, vec![0])],
        What::Rate(interval) => vec![(tag::RATE, 0, 0, vec![interval.into()])],
        What::Window { open, length } => {
            let from = ticks.saturating_sub(length.into());
            vec![(tag::WINDOW, 0, 0, vec![from, from + u64::from(open), from, ticks])]
        }
        What::Liveness { slot, state } => vec![(tag::LIVENESS, state, 0, vec![address(slot)])],
    }
}

/// What this stream wrote at each of its steps: time and bytes.
pub(crate) fn ring_bytes(steps: &[Step], stream: u8) -> Vec<(u64, Vec<u8>)> {
    let (mut all, mut clock, mut now) = (Vec::new(), 0, 0);
    for &(by, gap, what) in steps {
        now += u64::from(gap);
        if by != stream {
            continue;
        }
        let mut bytes = Vec::new();
        for (tag, a, b, words) in records(now, what) {
            let header = Header { tag, words: words.len() as u8 + 1, a, b, dt: (now - clock) as u32 };
            clock = now;
            bytes.extend(std::iter::once(header.to_word()).chain(words).flat_map(u64::to_le_bytes));
        }
        all.push((now, bytes));
    }
    all
}

/// The bytes of a capture in which this was recorded. `several`: the last two streams are of another process.
pub(crate) fn capture_bytes(steps: &[Step], several: bool) -> Vec<u8> {
    let session = SessionInfo {
        clock: Clock::Monotonic,
        ticks_per_second: 1_000_000_000,
        pid: 100,
        mode: "full".into(),
        several,
        ..SessionInfo::default()
    };
    let mut writer = CaptureWriter::over(MemorySink::default(), &session).expect("memory");
    let mut compressor = Compressor::new().expect("memory");
    for stream in 0..STREAMS {
        let process = ProcessId(u32::from(several && stream >= STREAMS / 2));
        let mut bytes = Vec::new();
        if process.0 > 0 && stream == STREAMS / 2 {
            let words = [101, 100, 1, 8, u64::from_le_bytes(*b"worker\0\0")];
            let header = Header { tag: tag::PROCESS, words: 6, a: PROCESS_FORKED, b: 0, dt: 0 };
            bytes.extend(std::iter::once(header.to_word()).chain(words).flat_map(u64::to_le_bytes));
        }
        bytes.extend(ring_bytes(steps, stream).into_iter().flat_map(|(_, bytes)| bytes));
        let meta = StreamMeta { time_shift: 0, process, ..StreamMeta::new(StreamId(stream.into()), 70 + u32::from(stream), 0, &session) };
        let mut encoder = StreamEncoder::new(meta);
        let mut sections = Vec::new();
        encoder.push(&bytes, &mut sections);
        sections.extend(encoder.flush());
        for section in sections {
            writer.write(&section.compress(&mut compressor).expect("memory")).expect("memory");
        }
    }
    writer.finish(End { reason: END_EXIT, ..End::default() }).expect("memory").bytes
}

/// The same, open.
pub(crate) fn capture(steps: &[Step], several: bool) -> Capture {
    Capture::from_bytes(capture_bytes(steps, several)).expect("a capture")
}
