//! What goes in comes out.

use super::ring::{Do, Ring, Step, expected, step};
use super::*;
use hound_common::event::{LOST_DAMAGED, MARKER_TEXT, SLACK_UNKNOWN, tag};
use proptest::prelude::*;

fn ring_of(steps: &[Step], runs: usize) -> Vec<Vec<u8>> {
    let mut ring = Ring::default();
    ring.time(0);
    let mut out = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        ring.step(step);
        if (i + 1) % steps.len().div_ceil(runs) == 0 {
            out.push(std::mem::take(&mut ring.bytes));
        }
    }
    out.push(ring.bytes);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_event_of_every_stream_comes_back_in_order(
        streams in proptest::collection::vec(proptest::collection::vec(step(), 1..150), 1..4),
        runs in 1usize..5,
    ) {
        let rings: Vec<_> = streams.iter().map(|steps| ring_of(steps, runs)).collect();
        let (seen, anomalies) = read(capture_of(&rings));
        prop_assert!(anomalies.is_empty(), "{:?}", anomalies.0);
        prop_assert!(seen.windows(2).all(|two| two[0].time_ns <= two[1].time_ns));
        for (id, steps) in streams.iter().enumerate() {
            let of_stream: Vec<_> = seen.iter().filter(|seen| seen.stream == id as u32).cloned().collect();
            for (seen, expected) in of_stream.iter().zip(&expected(id as u32, steps)) {
                prop_assert_eq!(seen, expected);
            }
            prop_assert_eq!(of_stream.len(), steps.len());
        }
    }

    #[test]
    fn arbitrary_ring_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        exercise(&data);
    }

    #[test]
    fn scribbled_ring_bytes_never_panic(steps in proptest::collection::vec(step(), 1..60), at in any::<prop::sample::Index>(), bits in any::<u64>()) {
        let mut bytes = ring_of(&steps, 1).concat();
        let at = at.index(bytes.len() / 8) * 8;
        for (byte, scribble) in bytes[at..at + 8].iter_mut().zip(bits.to_le_bytes()) {
            *byte ^= scribble;
        }
        exercise(&bytes);
    }
}

fn alloc(addr: u64, stack: &[u64]) -> Step {
    let what = Do::Alloc(addr, 24, Some(24), 1, 0, None);
    Step { dt: 10, stack: stack.to_vec(), reason: 0, frame_pointers: false, style: 0, what }
}

#[test]
fn sections_end_when_they_are_full_and_nothing_is_lost_between_them() {
    let steps: Vec<Step> = (0..150_000u64)
        .map(|i| match i % 3 {
            2 => Step { what: Do::Free(0x1000 + (i - 2) * 16, false, false), ..alloc(0, &[]) },
            _ => alloc(0x1000 + i * 16, &[1, 2, 3 + i % 5]),
        })
        .collect();
    let (seen, anomalies) = read(capture_of(&[ring_of(&steps, 1)]));
    assert_eq!(anomalies, Anomalies::default());
    assert_eq!(seen, expected(0, &steps));
}

#[test]
fn a_step_back_in_time_is_put_in_its_place() {
    let mut ring = Ring::default();
    for ticks in [1000, 500, 700, 1000] {
        ring.time(ticks);
        ring.record(tag::MARKER, 0, 0, 0, &[ticks]);
    }
    let (seen, anomalies) = read(capture_of(&[vec![ring.bytes]]));
    assert_eq!(anomalies, Anomalies::default());
    let order: Vec<_> = seen.iter().map(|seen| (seen.time_ns, seen.event.as_str())).collect();
    assert_eq!(order, [(500, "Marker(500)"), (700, "Marker(700)"), (1000, "Marker(1000)"), (1000, "Marker(1000)")]);
}

#[test]
fn a_marker_with_a_text_comes_back_whole_or_cut_never_wrong() {
    let text = "größer als 8 Bytes";
    let words: Vec<u64> = text.as_bytes().chunks(8).map(|c| c.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))).collect();
    for (length, expected) in
        [(text.len() as u64, format!("Mark({text:?})")), (u64::MAX, format!("Mark({:?})", text.to_owned() + "\0\0\0\0"))]
    {
        let mut ring = Ring::default();
        ring.time(10);
        ring.record(tag::MARKER, MARKER_TEXT, 0, 0, &[&[0, length], &words[..]].concat());
        let (seen, anomalies) = read(capture_of(&[vec![ring.bytes]]));
        assert_eq!((seen.len(), &seen[0].event, anomalies), (1, &expected, Anomalies::default()));
    }
}

#[test]
fn damage_in_the_ring_is_counted_and_later_stacks_say_that_they_lack_their_root() {
    let mut ring = Ring::default();
    ring.time(0);
    ring.step(&alloc(0x100, &[1, 2, 3]));
    let mut damaged = ring.bytes.clone();
    damaged.extend_from_slice(&0u64.to_le_bytes().repeat(6)); // a record of no words
    ring.bytes.clear();
    ring.step(&alloc(0x200, &[1, 2, 9]));
    ring.step(&alloc(0x300, &[7, 8]));
    let (seen, anomalies) = read(capture_of(&[vec![damaged, ring.bytes]]));
    assert_eq!(anomalies, Anomalies::default());
    assert_eq!(seen[1].event, format!("Lost {{ count: 2, reason: {LOST_DAMAGED} }}"));
    assert_eq!(seen[2].stack, Some((REASON_DAMAGED, false, vec![9])));
    assert_eq!(seen[3].stack, Some((0, false, vec![8, 7])));
}

#[test]
fn unknown_usable_sizes_stay_unknown() {
    let mut ring = Ring::default();
    ring.time(0);
    ring.record(tag::ALLOC, 1, 0, 5, &[0x10, hound_common::event::size_word(100, SLACK_UNKNOWN)]);
    let (seen, _) = read(capture_of(&[vec![ring.bytes]]));
    assert_eq!(seen[0].event, "alloc 10 100 None Malloc 0 None");
}

#[test]
fn times_are_kept_to_the_step_the_clock_allows() {
    let shift = |rate| SessionInfo { ticks_per_second: rate, ..SessionInfo::default() }.time_shift();
    assert_eq!((shift(1_000_000_000), shift(3_000_000_000), shift(2_445_000_000), shift(1_000_000)), (3, 4, 4, 0));
}

#[test]
fn modules_without_a_path_are_named_by_where_they_are() {
    let paths = ModulePaths::new(vec![(0x1000..0x2000, "/bin/program".to_owned()), (0x5000..0x6000, "[vdso]".to_owned())]);
    let mut encoder = StreamEncoder::new(StreamMeta { id: StreamId(0), tid: 1, level: 0, process: ProcessId::FIRST, time_shift: 0 })
        .with_paths(paths.into());
    let mut ring = Ring::default();
    let (build_id, path) = (u64::from_le_bytes(*b"\x01\x02\x03\x04\x05\0\0\0"), u64::from_le_bytes(*b"/lib/a.s"));
    ring.record(tag::MODULE, 0, 0, 1, &[0x1000, 0x1000, 0x2000, 0, 5, build_id]);
    ring.record(tag::MODULE, 0, 0, 1, &[0x5000, 0x5000, 0x6000, 0, 0]);
    ring.record(tag::MODULE, 0, 0, 1, &[0x3000, 0x3000, 0x4000, 0, 5 | 8 << 32, build_id, path]);
    ring.record(tag::MODULE, 0, 0, 1, &[0x9000, 0x9000, 0xa000, 0, 0]);
    // Lengths that are longer than the record: the target's to scribble on.
    ring.record(tag::MODULE, 0, 0, 1, &[0x1000, 0x1000, 0x2000, 0, 0xffff_ffff, build_id]);
    encoder.push(&ring.bytes, &mut Vec::new());
    let mut writer = CaptureWriter::over(MemorySink::default(), &session()).expect("memory");
    let section = encoder.flush().expect("it has events");
    writer.write(&section.compress(&mut Compressor::new().expect("memory")).expect("memory")).expect("memory");
    let capture = Capture::from_bytes(writer.finish(End::default()).expect("memory").bytes).expect("a capture");
    let modules: Vec<_> = capture.modules().iter().map(|span| (&*span.module.path, span.module.build_id.len())).collect();
    assert_eq!(modules, [("/bin/program", 5), ("[vdso]", 0), ("/lib/a.s", 5), ("", 0), ("", 8)]);
}

#[test]
fn a_later_session_record_replaces_the_earlier_one_and_times_count_from_its_start() {
    let at = |ns: u64| Calibration { ticks: ns, monotonic_ns: ns, realtime_ns: ns };
    let first = SessionInfo { start: at(1000), ..session() };
    let mut writer = CaptureWriter::over(MemorySink::default(), &first).expect("memory");
    let mut ring = Ring::default();
    for ticks in [1500, 5000, 5030] {
        ring.time(ticks);
        ring.record(tag::MARKER, 0, 0, 0, &[ticks]);
    }
    let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(0), 1, 0, &SessionInfo::default()));
    encoder.push(&ring.bytes, &mut Vec::new());
    let section = encoder.flush().expect("it has events");
    writer.write(&section.compress(&mut Compressor::new().expect("memory")).expect("memory")).expect("memory");
    let heaps = vec![HeapBefore::NotSound { allocator: "jemalloc".into(), why: "private".into() }];
    let pools = vec![Pool { number: 1, name: "get".into(), hooks: vec!["alloc=get(size=0)".into()] }];
    let before = Some(Before { resident: 7, heaps, looked_ns: Some(3), ..Before::default() });
    let last = SessionInfo { start: at(5000), before, pools, attach_stall_ns: 9, ..session() };
    writer.write_session(&last).expect("memory");
    let mut capture = Capture::from_bytes(writer.finish(End::default()).expect("memory").bytes).expect("a capture");
    assert_eq!(capture.session(), &last);
    let mut keep = Keep::default();
    assert!(capture.visit(&mut keep).is_empty());
    assert_eq!(keep.resolve(capture.stacks()).iter().map(|seen| seen.time_ns).collect::<Vec<_>>(), [0, 0, 30]);
}
