//! Executes `docs/format.md`: every example block there is decoded and encoded again, and every golden capture is read.
//!
//! `HOUND_BLESS=1 cargo test -p hound-user format_` writes the blocks and the golden captures anew; look at the difference before
//! committing it: a capture written by an older hound must stay readable.

use super::ring::Ring;
use super::*;
use format::{CHUNK_HEADER_BYTES, ChunkHeader, FILE_HEADER_BYTES};
use hound_common::event::*;
use std::fmt::Write as _;
use std::path::PathBuf;

fn in_repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn bless() -> bool {
    std::env::var_os("HOUND_BLESS").is_some()
}

/// One line an event.
fn text(seen: &[Seen]) -> String {
    let mut out = String::new();
    for Seen { time_ns, stream, event, stack } in seen {
        write!(out, "{time_ns} ns, stream {stream}: {event}").expect("memory");
        if let Some((reason, frame_pointers, ips)) = stack {
            let ips: Vec<_> = ips.iter().map(|ip| format!("{ip:x}")).collect();
            let through = if *frame_pointers { ", frame pointers" } else { "" };
            write!(out, " at [{}] end {reason}{through}", ips.join(" ")).expect("memory");
        }
        out.push('\n');
    }
    out
}

fn packed(bytes: &[u8]) -> Vec<u64> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(8), 0);
    padded.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// An example record: tag, a, b, dt, words.
type Record = (&'static str, u8, u8, u8, u32, Vec<u64>);

fn records() -> Vec<Record> {
    let edit = StackEdit { keep_root: 1, new: 1, leaf_from: 2, keep_leaf: 1 };
    let path = b"/usr/lib/libc.so.6";
    let build_id = [0xAA, 0xBB, 0xCC, 0xDD];
    let lengths = build_id.len() as u64 | (path.len() as u64) << 32;
    let module =
        [&[0x7f00_0000_0000, 0x7f00_0000_0000, 0x7f00_001d_0000, 0x7f00_001b_0000, lengths][..], &packed(&build_id), &packed(path)];
    let mapped = vec![0x7f12_0000_0000, 65536, 3 | 0x22 << 32, u64::MAX, 0];
    vec![
        ("PAD", tag::PAD, 0, 0, 0, vec![0]),
        ("TIME", tag::TIME, 0, 0, 0, vec![5000]),
        ("STACK", tag::STACK, 0, 0, 0, vec![edit.to_word(), 0x40_2222]),
        ("ALLOC", tag::ALLOC, 1, 0, 10, vec![0x5581_a2c0, size_word(100, 4)]),
        (
            "ALLOC wide realloc",
            tag::ALLOC,
            3,
            ALLOC_REALLOC | ALLOC_WIDE | ALLOC_MMAPPED,
            10,
            vec![0x7f12_0010, size_word(100_000, 0), 200_000, 0x5581_a2c0],
        ),
        ("ALLOC pool", tag::ALLOC, 15, 3 << POOL_SHIFT, 10, vec![0x5581_a2c0, size_word(100, SLACK_UNKNOWN)]),
        ("FREE", tag::FREE, 32, FREE_HAS_STACK, 10, vec![0x5581_a2c0]),
        ("FREE pool", tag::FREE, 40, FREE_HAS_STACK | 3 << POOL_SHIFT, 10, vec![0x5581_a2c0]),
        ("MAP", tag::MAP, 64, 0, 10, mapped),
        ("UNMAP", tag::UNMAP, 65, 0, 10, vec![0x7f12_0000_0000, 65536]),
        ("REMAP", tag::REMAP, 66, 0, 10, vec![0x7f12_0000_0000, 65536, 0x7f13_0000_0000, 131_072, 1]),
        ("BRK", tag::BRK, 0, 0, 10, vec![0x5581_0000, 0x5583_1000]),
        ("PROTECT", tag::PROTECT, 0, 0, 10, vec![0x7f12_0000_0000, 4096, 1]),
        ("FAULT", tag::FAULT, 0, 0, 10, vec![0x7f12_0000_0000]),
        ("FAULT sampled", tag::FAULT, FAULT_ANONYMOUS, FAULT_WRITE, 10, vec![0x7f12_0000_0123, 1 << 20, 4096]),
        ("MODULE", tag::MODULE, 0, 0, 10, module.concat()),
        ("MODULE_GONE", tag::MODULE_GONE, 0, 0, 10, vec![0x7f00_0000_0000, 0x7f00_001d_0000]),
        ("THREAD", tag::THREAD, THREAD_NAME, 0, 10, [&[4242, 6][..], &packed(b"worker")].concat()),
        ("PROCESS", tag::PROCESS, 1, 0, 10, vec![4243, 4242]),
        ("PROCESS forked", tag::PROCESS, PROCESS_FORKED, 0, 10, [&[4243, 4242, 1, 7][..], &packed(b"true\0-v")].concat()),
        ("RATE", tag::RATE, 0, 0, 10, vec![524_288]),
        ("MODE", tag::MODE, MODE_FULL, 0, 10, vec![0]),
        ("WINDOW", tag::WINDOW, 0, 0, 10, vec![1200, 1300, 1000, 2000]),
        ("LIVENESS", tag::LIVENESS, LIVENESS_ALIVE, 0, 10, vec![0x5581_a2c0]),
        ("STRIPPED", tag::STRIPPED, 0, 0, 10, vec![1200, 96_000, 60_000_000_000]),
        (
            "CULLED",
            tag::CULLED,
            0,
            0,
            10,
            vec![1000, 2000, 1200, 96_000, 10_000_000_000, 0, 0, 4 << 48 | 1200, 96_000, 1 << 56 | 7 << 48 | 1200, 96_000],
        ),
        ("METRIC map", tag::METRIC, METRIC_MAP_RSS, 0, 10, vec![0x7f12_0000_0000, 65536, 8192]),
        ("METRIC process", tag::METRIC, METRIC_PROCESS_RSS, 0, 10, vec![10_485_760, 0, 0]),
        ("METRIC memory", tag::METRIC, METRIC_PROCESS_MEMORY, 0, 10, vec![104_857_600, 8_388_608, 2_097_152, 0]),
        ("METRIC peak", tag::METRIC, METRIC_PROCESS_PEAK, 0, 10, vec![12_582_912]),
        ("METRIC unwinding", tag::METRIC, METRIC_UNWINDING, 0, 10, vec![1000, 200, 30, 4, 5, 0]),
        ("MARKER", tag::MARKER, 0, 0, 10, vec![7]),
        ("LOST", tag::LOST, LOST_RING_FULL, 0, 10, vec![12]),
        ("END", tag::END, END_EXIT, 0, 10, vec![0]),
    ]
}

/// What a reader sees of a record that comes at 1000 ns after the stack [root 401111, 402000, leaf 403333]; records that are no event are
/// seen by the allocation that follows them.
fn effect_of(name: &str, record: &[u8]) -> String {
    let mut ring = Ring::default();
    ring.time(1000);
    ring.stack(&[0x40_1111, 0x40_2000, 0x40_3333], 0, false, 2);
    ring.bytes.extend_from_slice(record);
    if matches!(name, "PAD" | "TIME" | "STACK") {
        ring.record(tag::ALLOC, 1, 0, 10, &[0x5581_a2c0, size_word(100, 4)]);
    }
    let (seen, anomalies) = read(capture_of(&[vec![ring.bytes]]));
    assert!(anomalies.is_empty(), "{name}: {anomalies:?}");
    text(&seen)
}

/// A capture with one chunk of each kind.
fn one_of_each() -> Vec<u8> {
    let session = SessionInfo {
        hound_version: "0.1.0".into(),
        command: vec!["true".into()],
        pid: 4242,
        mode: "launch".into(),
        start: Calibration { ticks: 1000, monotonic_ns: 1000, realtime_ns: 1_700_000_000_000_000_000 },
        ..session()
    };
    let mut writer = CaptureWriter::over(MemorySink::default(), &session).expect("memory");
    let mut ring = Ring::default();
    ring.time(2000);
    ring.stack(&[0x40_1111, 0x40_2222], 0, false, 2);
    ring.record(tag::ALLOC, 1, 0, 80, &[0x5581_a2c0, size_word(100, 4)]);
    ring.record(tag::MARKER, 0, 0, 8, &[7]);
    ring.record(tag::FREE, 32, 0, 80, &[0x5581_a2c0]);
    let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(0), 4242, 0, &session));
    encoder.push(&ring.bytes, &mut Vec::new());
    let section = encoder.flush().expect("it has events");
    let chunk = section.compress(&mut Compressor::new().expect("memory")).expect("memory");
    writer.write(&chunk).expect("memory");
    let pair = Calibration { ticks: 9000, monotonic_ns: 9000, realtime_ns: 1_700_000_000_000_008_000 };
    writer.write_calibration(&[pair]).expect("memory");
    let reach = Reach { held_ns: 1500, memory_bytes: 8192, blocks: 3, bytes: 300, unreachable: vec![0x5581_a2c0, 0x100] };
    writer.write_reach(&reach).expect("memory");
    writer.write_symbols(b"names").expect("memory");
    let end = End { reason: END_EXIT, value: 0, events: 3, ..End::default() };
    writer.finish(end).expect("memory").bytes
}

/// The parts of a capture with their names, and what each says.
fn parts(bytes: &[u8]) -> Vec<(String, Vec<u8>, String)> {
    let (file_header, mut rest) = bytes.split_at(FILE_HEADER_BYTES);
    let mut parts = vec![("file header".to_owned(), file_header.to_vec(), "version 1\n".to_owned())];
    while let Some(header) = ChunkHeader::from_bytes(rest) {
        let (chunk, behind) = rest.split_at(header.chunk_bytes() as usize);
        rest = behind;
        let kind = ChunkKind::from_u16(header.kind).expect("a known kind");
        parts.push((format!("chunk {kind:?}"), chunk.to_vec(), chunk_text(kind, header, chunk)));
    }
    assert!(rest.is_empty());
    parts
}

fn chunk_text(kind: ChunkKind, header: ChunkHeader, chunk: &[u8]) -> String {
    let source = index::Source::Memory(chunk.to_vec());
    let placed = index::Placed { at: 0, header };
    if kind == ChunkKind::Events {
        // Behind a session, for its times to mean something.
        let whole = one_of_each();
        let session = ChunkHeader::from_bytes(&whole[FILE_HEADER_BYTES..]).expect("the session");
        let before = FILE_HEADER_BYTES + session.chunk_bytes() as usize;
        let (seen, _) = read([&whole[..before], chunk].concat());
        return text(&seen);
    }
    let bytes = decode::read_plain(&source, &placed).expect("a whole chunk");
    match kind {
        ChunkKind::Calibration => {
            let words: Vec<String> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word).to_string()).collect();
            words.join(" ") + "\n"
        }
        _ => String::from_utf8(bytes).expect("text") + "\n",
    }
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ") + "\n");
    lines.collect()
}

fn block(name: &str, bytes: &[u8], text: &str) -> String {
    format!("```example {name}\n{}---\n{text}```\n", hex(bytes))
}

/// Name, bytes and text of every block in the document.
fn blocks(document: &str) -> Vec<(String, Vec<u8>, String)> {
    let starts = document.split("```example ").skip(1);
    let parse = |rest: &str| {
        let (name, rest) = rest.split_once('\n').expect("a name");
        let (body, _) = rest.split_once("```").expect("an end");
        let (hex, text) = body.split_once("---\n").expect("hex, then text");
        let bytes = hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
        (name.to_owned(), bytes, text.to_owned())
    };
    starts.map(parse).collect()
}

#[test]
fn format_document_examples_are_what_the_code_does() {
    let path = in_repository("docs/format.md");
    let mut document = std::fs::read_to_string(&path).expect("docs/format.md");
    let mut wanted = Vec::new();
    for (name, tag, a, b, dt, words) in records() {
        let mut ring = Ring::default();
        ring.record(tag, a, b, dt, &words);
        wanted.push((name.to_owned(), effect_of(name, &ring.bytes), ring.bytes));
    }
    for (name, bytes, text) in parts(&one_of_each()) {
        wanted.push((name, text, bytes));
    }
    if bless() {
        for (name, text, bytes) in &wanted {
            let start = document.find(&format!("```example {name}\n")).unwrap_or_else(|| panic!("no block for {name}"));
            let end = start + document[start + 3..].find("```\n").expect("an end") + 7;
            document.replace_range(start..end, &block(name, bytes, text));
        }
        std::fs::write(&path, &document).expect("writable");
    }
    let found = blocks(&document);
    assert_eq!(found.len(), wanted.len(), "one block for each record and each kind of chunk");
    for (name, text, bytes) in wanted {
        let (_, in_document, says) = found.iter().find(|block| block.0 == name).unwrap_or_else(|| panic!("no block for {name}"));
        if name.starts_with("chunk") {
            // zstd may compress otherwise in its next version: what counts is that the bytes in the document mean the text, and that
            // the header is encoded as they are.
            let header = ChunkHeader::from_bytes(in_document).expect("a chunk header");
            assert_eq!(header.to_bytes(), in_document[..CHUNK_HEADER_BYTES], "{name}");
            let kind = ChunkKind::from_u16(header.kind).expect("a known kind");
            assert_eq!(&chunk_text(kind, header, in_document), says, "{name}: decoded");
            assert_eq!(&text, says, "{name}: encoded and decoded");
        } else {
            assert_eq!(in_document, &bytes, "{name}: encoded");
            let decoded = if name == "file header" { text } else { effect_of(&name, in_document) };
            assert_eq!(&decoded, says, "{name}: decoded");
        }
    }
}

#[test]
fn format_document_names_every_kind() {
    let document = std::fs::read_to_string(in_repository("docs/format.md")).expect("docs/format.md");
    for kind in hound_common::hook::Kind::all() {
        let row = format!("\n| {} | {} |\n", kind as u8, kind.name());
        assert!(document.contains(&row), "docs/format.md has no row {row}");
    }
}

/// Two threads that hand blocks over, with every kind of record between.
fn golden() -> Vec<u8> {
    let mut rings = [Ring::default(), Ring::default()];
    for (i, ring) in rings.iter_mut().enumerate() {
        ring.time(1000 + i as u64 * 7);
        ring.record(tag::THREAD, THREAD_START, 0, 0, &[100 + i as u64, 0]);
    }
    for (_, tag, a, b, dt, words) in records().into_iter().filter(|record| !matches!(record.1, tag::TIME | tag::STACK | tag::END)) {
        rings[0].stack(&[0x40_1111, 0x40_2000, 0x40_3333], 0, false, 0);
        rings[0].record(tag, a, b, dt, &words);
    }
    for i in 0..40u64 {
        rings[0].stack(&[0x40_1111, 0x40_2000 + i % 3 * 16, 0x40_3333, 0x40_4444 + i % 2], (i % 7 / 6) as u8, i % 5 == 0, (i % 3) as u8);
        rings[0].record(
            tag::ALLOC,
            1,
            if i % 8 == 0 { ALLOC_NON_MAIN_ARENA } else { 0 },
            20,
            &[0x5600_0000 + i % 11 * 64, size_word(40 + i % 4, 8)],
        );
        let free = i % 2;
        rings[free as usize].record(tag::FREE, 32, 0, 20, &[0x5600_0000 + i % 11 * 64]);
        rings[1 - free as usize].record(tag::PAD, 0, 0, 20, &[]);
    }
    rings[0].record(tag::END, END_EXIT, 0, 1, &[3]);
    rings[1].record(tag::END, END_THREAD, 0, 1, &[0]);
    capture_of(&rings.map(|ring| vec![ring.bytes]))
}

#[test]
fn format_golden_captures_read_as_they_always_did() {
    let whole = golden();
    let mut flipped = whole.clone();
    // A bit in the payload of the second chunk of events.
    let ends: Vec<usize> = parts(&whole).iter().scan(0, |at, part| Some(std::mem::replace(at, *at + part.1.len()))).collect();
    flipped[ends[3] + CHUNK_HEADER_BYTES + 20] ^= 4;
    let cut = whole[..ends[3] + CHUNK_HEADER_BYTES + 30].to_vec();
    // `faults` was written by the first hound that records page faults, `sampled` by the first one that samples; the others are older.
    for (name, bytes) in [("faults", golden()), ("sampled", golden()), ("whole", whole), ("flipped", flipped), ("cut", cut)] {
        let capture = in_repository(&format!("tests/golden/{name}.hound"));
        let listing = in_repository(&format!("tests/golden/{name}.txt"));
        if bless() {
            std::fs::write(&capture, bytes).expect("writable");
        }
        let (seen, anomalies) = read(std::fs::read(&capture).expect("a golden capture"));
        let problems: String = anomalies.0.iter().map(|anomaly| format!("anomaly: {anomaly}\n")).collect();
        let listed = text(&seen) + problems.as_str();
        if bless() {
            std::fs::write(&listing, &listed).expect("writable");
        }
        assert_eq!(listed, std::fs::read_to_string(&listing).expect("its listing"), "{name}");
    }
}
