//! Cuts, flipped bits, foreign files, full disks.

use super::ring::{Do, Ring, Step};
use super::*;
use std::path::Path;

/// A small capture with several chunks, and where each chunk ends.
fn small() -> (Vec<u8>, Vec<usize>) {
    let mut runs = Vec::new();
    let mut ring = Ring::default();
    ring.time(0);
    for i in 0..60u64 {
        let what =
            if i % 2 == 0 { Do::Alloc(0x1000 + i % 7 * 32, i, None, 1, 0, None) } else { Do::Free(0x1000 + i % 7 * 32, false, false) };
        ring.step(&Step { dt: 5, stack: vec![1, 2, i % 3], reason: 0, frame_pointers: false, style: 0, what });
        if i % 10 == 9 {
            runs.push(std::mem::take(&mut ring.bytes));
        }
    }
    let bytes = capture_of(&[runs]);
    let ends = chunk_ends(&bytes);
    (bytes, ends)
}

fn chunk_ends(bytes: &[u8]) -> Vec<usize> {
    let mut at = format::FILE_HEADER_BYTES;
    let mut ends = Vec::new();
    while let Some(header) = format::ChunkHeader::from_bytes(&bytes[at..]) {
        at += header.chunk_bytes() as usize;
        ends.push(at);
    }
    ends
}

#[test]
fn a_cut_at_any_byte_yields_every_event_before_it() {
    let (bytes, ends) = small();
    let (all, anomalies) = read(bytes.clone());
    assert_eq!((all.len(), anomalies), (60, Anomalies::default()));
    for cut in 0..bytes.len() {
        let whole_chunks = ends.iter().filter(|end| **end <= cut).count();
        match Capture::from_bytes(bytes[..cut].to_vec()) {
            Err(CaptureError::Foreign { .. } | CaptureError::NoSession { .. }) => assert_eq!(whole_chunks, 0, "cut at {cut}"),
            Err(error) => panic!("cut at {cut}: {error}"),
            Ok(_) => {
                let (seen, anomalies) = read(bytes[..cut].to_vec());
                assert_eq!(seen, all[..(whole_chunks - 1) * 10], "cut at {cut}");
                assert!(anomalies.0.contains(&Anomaly::NoEnd));
                let inside = !ends.contains(&cut);
                assert_eq!(anomalies.0.iter().any(|a| matches!(a, Anomaly::Cut { .. })), inside, "cut at {cut}");
            }
        }
    }
}

#[test]
fn any_flipped_bit_is_reported_and_costs_one_chunk_at_most() {
    let (bytes, ends) = small();
    let (all, _) = read(bytes.clone());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if bit / 8 < ends[0] {
            // File header and session record: without them there is no capture, but never a panic.
            let _ = Capture::from_bytes(flipped).map(|mut capture| capture.visit(&mut Keep::default()));
            continue;
        }
        let (seen, anomalies) = read(flipped);
        assert!(!anomalies.is_empty(), "bit {bit}");
        assert!(seen.len() >= all.len() - 10, "bit {bit}");
        assert!(seen.iter().all(|event| all.contains(event)), "bit {bit}: nothing is made up");
    }
}

#[test]
fn bytes_pasted_over_the_middle_do_not_hide_what_is_behind() {
    let (mut bytes, ends) = small();
    bytes[ends[1] - 5..ends[2] + 40].fill(0x55);
    let (seen, anomalies) = read(bytes);
    assert_eq!(seen.len(), 30);
    assert!(anomalies.0.iter().any(|a| matches!(a, Anomaly::Skipped { .. })), "{anomalies:?}");
    assert!(anomalies.0.iter().any(|a| matches!(a, Anomaly::MissingChunks { count: 2, .. })), "{anomalies:?}");
}

#[test]
fn a_full_disk_leaves_what_was_written_and_an_end_record_that_counts_the_loss() {
    let session = session();
    let mut writer = CaptureWriter::over(MemorySink::with_limit(66_000), &session).expect("the limit leaves room for the session");
    let mut compressor = Compressor::new().expect("memory");
    let mut encoder = StreamEncoder::new(StreamMeta::new(StreamId(0), 1, 0, &session));
    let (mut written, mut lost, mut errors) = (0, 0, 0);
    for i in 0..100u64 {
        encoder.note(i, hound_common::event::tag::MARKER, 0, &[i], &mut Vec::new());
        let chunk = encoder.flush().expect("an event").compress(&mut compressor).expect("memory");
        match writer.write(&chunk) {
            Ok(true) => written += 1,
            Ok(false) => lost += 1,
            Err(_) => {
                errors += 1;
                lost += 1;
            }
        }
    }
    assert_eq!((errors, writer.lost_events()), (1, lost));
    assert!(written > 0 && lost > 0);
    let bytes = writer.finish(End::default()).expect("the tail was reserved").bytes;
    let capture = Capture::from_bytes(bytes.clone()).expect("a capture");
    let end = capture.end().expect("an end record").clone();
    assert_eq!(end.lost_on_disk, lost);
    assert!(!end.write_error.is_empty());
    let (seen, anomalies) = read(bytes);
    assert_eq!(seen.len() as u64, written);
    assert_eq!(anomalies.0, [Anomaly::LostOnDisk { count: lost }]);
}

#[test]
fn foreign_files_and_newer_versions_are_refused_with_one_line() {
    let (mut newer, _) = small();
    newer[8] = 99;
    let mut cases =
        vec![(newer, "newer"), (b"\x1F\x8B hello".to_vec(), "gzip"), (Vec::new(), "empty"), (b"HOUNDCAP\x01\0".to_vec(), "cut")];
    for (bytes, word) in cases.drain(..) {
        let text = Capture::from_bytes(bytes).expect_err("refused").to_string();
        assert!(text.contains(word) && !text.contains('\n'), "{text}");
    }
    let missing = Capture::open(Path::new("/nonexistent/x.hound")).expect_err("refused").to_string();
    assert!(missing.contains("No such file"), "{missing}");
    let directory = Capture::open(Path::new("/")).expect_err("refused").to_string();
    assert!(directory.contains("not a regular file"), "{directory}");
}

#[test]
fn symbols_of_any_length_come_back() {
    let symbols: Vec<u8> = (0..format::MAX_PART_BYTES as u32 + 7).map(|i| (i / 1000) as u8).collect();
    let mut writer = CaptureWriter::over(MemorySink::default(), &session()).expect("memory");
    writer.write_symbols(&symbols).expect("memory");
    let bytes = writer.finish(End::default()).expect("memory").bytes;
    assert_eq!(Capture::from_bytes(bytes).expect("a capture").symbols(), Some(symbols));
}
