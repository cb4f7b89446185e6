//! The same function has the same rows, whichever section they come from and however they are found.

#[path = "process/mod.rs"]
#[expect(dead_code, reason = "only the compilation of fixtures is needed here")]
mod process;

use hound_unwind::{EndReason, Row, Scratch, Sections, evaluate, visit_rows};
use object::{Object, ObjectSection, ObjectSegment};

fn rows(sections: &Sections<'_>) -> Vec<(u64, u64, Row)> {
    let mut rows = Vec::new();
    visit_rows(sections, &mut Scratch::new(), |start, end, row| rows.push((start, end, row))).expect("well formed");
    rows
}

/// The file of a fixture compiled with these flags, without start-up code, which would bring an `.eh_frame` of its own.
fn fixture(name: &str, flags: &[&str]) -> Vec<u8> {
    let flags: Vec<_> = flags.iter().chain(&["-O2", "-nostartfiles"]).copied().collect();
    let path = process::compile("paths.c", name, &flags);
    let data = std::fs::read(&path).expect("just compiled");
    std::fs::remove_file(&path).expect("just compiled");
    data
}

fn section<'data>(file: &object::File<'data>, name: &str) -> (&'data [u8], u64) {
    let section = file.section_by_name(name).unwrap_or_else(|| panic!("the fixture has {name}"));
    (section.data().expect("in the file"), section.address())
}

#[test]
fn debug_frame_gives_the_rows_of_eh_frame() {
    let with_eh = fixture("with-eh", &["-fasynchronous-unwind-tables"]);
    let with_debug = fixture("with-debug", &["-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]);
    let (with_eh, with_debug) = (object::File::parse(&*with_eh), object::File::parse(&*with_debug));
    let (with_eh, with_debug) = (with_eh.expect("ELF"), with_debug.expect("ELF"));
    let text = |file: &object::File<'_>| section(file, ".text").1;
    let (bytes, avma) = section(&with_eh, ".eh_frame");
    let eh = Sections::from_eh_frame(bytes, avma);
    // Both files hold the same code; the bias undoes what the missing section moves.
    let bias = text(&with_eh).wrapping_sub(text(&with_debug));
    let debug = Sections::from_debug_frame(section(&with_debug, ".debug_frame").0, bias);

    let range = text(&with_eh)..text(&with_eh) + section(&with_eh, ".text").0.len() as u64;
    let sorted = |sections| {
        let mut rows = rows(sections);
        rows.retain(|(start, ..)| range.contains(start)); // .debug_frame knows nothing of .plt
        rows.sort_by_key(|&(start, ..)| start);
        rows
    };
    let expected = sorted(&eh);
    assert!(expected.len() > 50, "{} rows", expected.len());
    assert_eq!(sorted(&debug), expected);
    for &(start, _, row) in &expected {
        assert_eq!(evaluate(&debug, start, &mut Scratch::new()), row);
    }
}

#[test]
fn the_search_table_finds_what_a_scan_finds() {
    let data = fixture("table", &[]);
    let file = object::File::parse(&*data).expect("ELF");
    let (_, hdr) = section(&file, ".eh_frame_hdr");
    let segment = file.segments().find(|s| (s.address()..s.address() + s.size()).contains(&hdr)).expect("loaded");
    // As loaded at some address: the table is relative, so nothing else changes.
    let bias = 0x7f12_3456_7000;
    let segment_avma = segment.address() + bias;
    let bytes = segment.data().expect("in the file");
    let by_table = Sections::from_eh_frame_hdr(bytes, segment_avma, hdr + bias).expect("well formed");
    let (bytes, avma) = section(&file, ".eh_frame");
    let by_scan = Sections::from_eh_frame(bytes, avma + bias);
    let mut scratch = Scratch::new();
    let (first, last) = (rows(&by_scan).iter().map(|r| r.0).min(), rows(&by_scan).iter().map(|r| r.1).max());
    let (first, last) = (first.expect("has rows"), last.expect("has rows"));
    assert!(first > bias && last - first > 0x100);
    for ip in first - 20..last + 20 {
        assert_eq!(evaluate(&by_table, ip, &mut scratch), evaluate(&by_scan, ip, &mut scratch), "{ip:#x}");
        assert_eq!(by_table.fde_range(ip), by_scan.fde_range(ip), "{ip:#x}");
    }
    assert_eq!(evaluate(&by_table, first - 1, &mut scratch), Row::none(EndReason::NoRow));
    assert_eq!(evaluate(&by_table, bias + (1 << 40), &mut scratch), Row::none(EndReason::NoRow), "too far for the table");
}
