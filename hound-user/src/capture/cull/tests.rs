//! What is left out while recording is what `hound strip` would leave out afterwards, and nothing else.

use super::*;
use crate::capture::model::{Alloc, Free, Stamped};
use crate::capture::{Capture, CaptureWriter, Clock, Compressor, End, MemorySink, SessionInfo, StreamEncoder, StreamMeta, Visitor};
use crate::columns::random::{STREAMS, Step, What, ring_bytes, steps};
use hound_common::event::END_EXIT;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

fn session() -> SessionInfo {
    SessionInfo { clock: Clock::Monotonic, ticks_per_second: SECOND, pid: 100, mode: "full".into(), ..SessionInfo::default() }
}

/// A capture of these streams' records.
fn capture(streams: &BTreeMap<u32, Vec<u8>>) -> Capture {
    let mut writer = CaptureWriter::over(MemorySink::default(), &session()).expect("memory");
    let mut compressor = Compressor::new().expect("memory");
    for (&id, bytes) in streams {
        let meta = StreamMeta { time_shift: 0, ..StreamMeta::new(StreamId(id), 70 + id, 0, &session()) };
        let (mut encoder, mut sections) = (StreamEncoder::new(meta), Vec::new());
        encoder.push(bytes, &mut sections);
        sections.extend(encoder.flush());
        for section in sections {
            writer.write(&section.compress(&mut compressor).expect("memory")).expect("memory");
        }
    }
    Capture::from_bytes(writer.finish(End { reason: END_EXIT, ..End::default() }).expect("memory").bytes).expect("a capture")
}

/// Events as text, with their stacks spelled out, in the order of time.
#[derive(Default)]
struct Told(Vec<(u64, u32, String, Option<super::super::model::StackId>)>);

impl Visitor for Told {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        let what = format!("alloc {:?} {:#x} {} {:?} {}", alloc.kind, alloc.addr, alloc.size, alloc.previous, alloc.pool);
        self.0.push((time_ns, stream.0, what, Some(alloc.stack)));
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        self.0.push((time_ns, stream.0, format!("free {:?} {:#x} {} {}", free.kind, free.addr, free.realloc, free.pool), free.stack));
    }

    fn other(&mut self, event: &Stamped) {
        let _ = event;
    }
}

/// Time, stream, what, path.
type Line = (u64, u32, String, Vec<u64>);

fn told(mut capture: Capture) -> (Vec<Line>, Option<(u64, u64)>) {
    let mut told = Told::default();
    capture.visit(&mut told);
    assert!(capture.anomalies().is_empty(), "{:?}", capture.anomalies());
    let path = |stack| capture.stacks().ips(stack).collect();
    let events = told.0.into_iter().map(|(at, stream, what, stack)| (at, stream, what, stack.map(path).unwrap_or_default())).collect();
    (events, capture.stripped().map(|stripped| (stripped.blocks, stripped.bytes)))
}

/// The same, stripped afterwards.
fn stripped(streams: &BTreeMap<u32, Vec<u8>>, threshold_ns: u64) -> Capture {
    let file = tempfile::tempfile().expect("a file");
    crate::strip::strip(&mut capture(streams), file.try_clone().expect("a descriptor"), threshold_ns, &|_| ()).expect("room for it");
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut &file).and_then(|()| std::io::Read::read_to_end(&mut &file, &mut bytes)).expect("own file");
    Capture::from_bytes(bytes).expect("a capture")
}

/// Culls what streams wrote, of which pieces come in this order and size.
fn culled(written: &[Vec<(u64, Vec<u8>)>], cull: Cull, turns: &[(u8, u8)]) -> (BTreeMap<u32, Vec<u8>>, Vec<Vec<u64>>) {
    let mut culler = Culler::new(cull, SECOND);
    let mut at = vec![0; written.len()];
    let (mut out, mut streams, mut sums) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new(), Vec::new());
    let mut deliver = |culler: &mut Culler, stream: usize, count: usize, out: &mut Vec<Out>| {
        for (_, bytes) in written[stream].iter().skip(at[stream]).take(count) {
            culler.take(StreamId(stream as u32), bytes);
        }
        at[stream] = written[stream].len().min(at[stream].saturating_add(count));
        // Everything before the earliest record that is still to come was taken in.
        let to_come = (0..written.len()).filter_map(|stream| written[stream].get(at[stream])).map(|(time, _)| *time).min();
        if let Some(to_come) = to_come.filter(|time| *time > 0) {
            culler.advance(to_come - 1, out);
        }
    };
    for (stream, count) in turns {
        deliver(&mut culler, usize::from(*stream) % written.len(), usize::from(*count), &mut out);
    }
    for stream in 0..written.len() {
        deliver(&mut culler, stream, usize::MAX, &mut out);
        culler.end(StreamId(stream as u32));
    }
    culler.flush(None, &mut out);
    for piece in out {
        match piece {
            Out::Bytes(stream, bytes) => streams.entry(stream.0).or_default().extend(bytes),
            Out::Ended(_) => {}
            Out::Culled(_, words) => sums.push(words),
        }
    }
    assert_eq!((culler.young.len(), culler.lanes.len()), (0, 0), "something still waits");
    (streams, sums)
}

fn whole(written: &[Vec<(u64, Vec<u8>)>]) -> BTreeMap<u32, Vec<u8>> {
    let all = |stream: &Vec<(u64, Vec<u8>)>| stream.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    written.iter().enumerate().map(|(id, stream)| (id as u32, all(stream))).collect()
}

/// Far enough apart that no order is to be put right, and without contradictions: what is known of an old block whose release is missing only
/// `strip` knows, which has all of the capture.
fn in_order(steps: Vec<Step>) -> Vec<Step> {
    let mut alive = std::collections::BTreeSet::new();
    let told = |(stream, gap, what): Step| {
        let what = match what {
            What::Realloc { from, to, .. } if !alive.contains(&(0, from)) || from != to && alive.contains(&(0, to)) => {
                What::Free { slot: from, with_stack: true }
            }
            What::Alloc { slot, .. } if alive.contains(&(0, slot)) => What::Free { slot, with_stack: true },
            What::PoolAlloc { pool, slot, .. } if alive.contains(&(pool, slot)) => What::PoolFree { pool, slot },
            other => other,
        };
        match what {
            What::Realloc { from, to, .. } => {
                alive.remove(&(0, from));
                alive.insert((0, to));
            }
            What::Alloc { slot, .. } => _ = alive.insert((0, slot)),
            What::Free { slot, .. } => _ = alive.remove(&(0, slot)),
            What::PoolAlloc { pool, slot, .. } => _ = alive.insert((pool, slot)),
            What::PoolFree { pool, slot } => _ = alive.remove(&(pool, slot)),
            _ => {}
        }
        (stream, gap / 4 + 3000, what)
    };
    steps.into_iter().map(told).collect()
}

fn at_once(threshold_ns: u64) -> Cull {
    Cull { lateness_ns: 0, ..Cull::shorter_than(threshold_ns) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn what_is_left_out_is_what_strip_leaves_out(
        steps in steps(false, 200),
        threshold_ns in prop_oneof![Just(0u64), 1..60_000u64, Just(u64::MAX)],
        turns in prop::collection::vec((0..STREAMS, 0..12u8), 0..60),
    ) {
        let steps = in_order(steps);
        let written: Vec<_> = (0..STREAMS).map(|stream| ring_bytes(&steps, stream)).collect();
        let (streams, sums) = culled(&written, at_once(threshold_ns), &turns);
        let (found, left_out) = told(capture(&streams));
        let (expected, gone) = told(stripped(&whole(&written), threshold_ns));
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(left_out.unwrap_or_default(), gone.unwrap_or_default());
        let sum = |place: usize| sums.iter().map(|words| words[place]).sum::<u64>();
        let of_heap = |events: &[Line]| events.iter().filter(|event| event.2.starts_with("alloc") && event.2.ends_with(" 0")).count() as u64;
        prop_assert_eq!(sum(2), of_heap(&told(capture(&whole(&written))).0) - of_heap(&found));
        for kind in 0..2 {
            let of_kind = sums.iter().flat_map(|words| words[7..].chunks(2)).filter(|place| place[0] >> 56 == kind);
            let (blocks, bytes) = of_kind.fold((0, 0), |sum, place| (sum.0 + (place[0] & 0xffff_ffff_ffff), sum.1 + place[1]));
            prop_assert_eq!((blocks, bytes), (sum(2), sum(3)));
        }
    }

    /// Whatever comes, in whatever order, too late and too much: each event is handed on or counted, a block with its release.
    #[test]
    fn nothing_is_lost_whatever_comes(
        steps in steps(true, 200),
        threshold_ns in 0..60_000u64,
        most_pending in 0..40usize,
        turns in prop::collection::vec((0..STREAMS, 0..12u8), 0..60),
        looks in prop::collection::vec(any::<u32>(), 0..20),
    ) {
        let written: Vec<_> = (0..STREAMS).map(|stream| ring_bytes(&steps, stream)).collect();
        let mut culler = Culler::new(Cull { most_pending, ..at_once(threshold_ns) }, SECOND);
        let mut at = [0; STREAMS as usize];
        let (mut out, mut looks) = (Vec::new(), looks.into_iter());
        for (stream, count) in turns.into_iter().chain((0..STREAMS).map(|stream| (stream, u8::MAX))) {
            let place = usize::from(stream);
            written[place].iter().skip(at[place]).take(count.into()).for_each(|(_, bytes)| culler.take(StreamId(stream.into()), bytes));
            at[place] += usize::from(count);
            match looks.next() {
                Some(look) if look % 4 == 0 => culler.flush(Some(u64::from(look) % 300_000), &mut out),
                Some(look) if look % 4 == 1 => culler.keep_at(u64::from(look) % 300_000, Some(look % 8 == 1)),
                Some(look) => culler.advance(u64::from(look) % 300_000, &mut out),
                None => {}
            }
        }
        culler.flush(None, &mut out);
        let mut streams = BTreeMap::<u32, Vec<u8>>::new();
        let mut told_gone = 0;
        for piece in out {
            match piece {
                Out::Bytes(stream, bytes) => streams.entry(stream.0).or_default().extend(bytes),
                Out::Ended(_) => {}
                Out::Culled(_, words) => told_gone += words[2],
            }
        }
        let (found, left_out) = told(capture(&streams));
        let (expected, _) = told(capture(&whole(&written)));
        let gone = left_out.unwrap_or_default().0;
        prop_assert!(told_gone <= gone, "told of {told_gone}, and {gone} in all heaps are gone");
        prop_assert_eq!(found.len() as u64 + 2 * gone, expected.len() as u64);
        let mut rest = expected.into_iter();
        let mut in_order: Vec<_> = found;
        in_order.sort();
        let mut all: Vec<_> = rest.by_ref().collect();
        all.sort();
        let mut all = all.into_iter();
        prop_assert!(in_order.iter().all(|event| all.any(|other| other == *event)), "something was handed on that was not recorded");
    }
}

#[test]
fn memory_is_bounded_by_what_lives_and_not_by_what_happens() {
    let mut culler = Culler::new(at_once(10 * SECOND), SECOND);
    let mut out = Vec::new();
    let pair = |at: u64| {
        ring_bytes(
            &[
                (0, 1000, What::Alloc { slot: (at % 16) as u8, size: 100, path: 1 }),
                (0, 1000, What::Free { slot: (at % 16) as u8, with_stack: true }),
            ],
            0,
        )
    };
    let mut most = 0;
    for at in 0..200_000u64 {
        for (_, bytes) in pair(at) {
            culler.take(StreamId(0), &bytes);
        }
        if at % 1000 == 0 {
            culler.advance(culler.lanes[&0].clock, &mut out);
            most = most.max(culler.lanes[&0].queue.len());
        }
    }
    culler.flush(None, &mut out);
    assert!(most < 20_000, "{most} records waited");
    let told: u64 = out.iter().map(|piece| if let Out::Culled(_, words) = piece { words[2] } else { 0 }).sum();
    assert_eq!(told, 200_000);
    let bytes: usize = out.iter().map(|piece| if let Out::Bytes(_, bytes) = piece { bytes.len() } else { 0 }).sum();
    assert!(bytes < 2000, "{bytes} bytes for nothing");
}

#[test]
fn places_are_those_of_the_scales() {
    for scale in [Scale::Lifetimes, Scale::Sizes] {
        let from = scale.places();
        for value in from.iter().flat_map(|from| [from.saturating_sub(1), *from, from + 1]).chain([u64::MAX]) {
            let expected = from.partition_point(|from| *from <= value) - 1;
            assert_eq!(usize::from(scale.place(value)), expected, "{scale:?} {value}");
        }
    }
}
