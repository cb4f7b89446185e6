//! What a return address costs the first time it is seen (`evaluate`) and a frame each time it is passed (`step`).
//!
//! `cargo bench -p hound-unwind`. `evaluate` runs over libc's own tables, at code addresses spread over all functions.

use std::hint::black_box;

use hound_unwind::{FullRegs, Regs, Row, RowKind, SavedSlots, Scratch, Sections, evaluate, step, step_full, visit_rows};
use object::{Object, ObjectSection, ObjectSegment};

fn main() {
    divan::main();
}

const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// libc's unwind sections and addresses in 1024 of its functions.
fn with_libc(run: impl FnOnce(&Sections<'_>, &[u64])) {
    let data = std::fs::read(LIBC).expect("libc is where Debian puts it");
    let file = object::File::parse(&*data).expect("libc is an ELF file");
    let hdr = file.section_by_name(".eh_frame_hdr").expect("libc has the table").address();
    let segment = file
        .segments()
        .find(|segment| (segment.address()..segment.address() + segment.size()).contains(&hdr))
        .expect("the table is loaded");
    let bytes = segment.data().expect("the segment is in the file");
    let sections = Sections::from_eh_frame_hdr(bytes, segment.address(), hdr).expect("libc is well formed");
    let mut ips = Vec::new();
    visit_rows(&sections, &mut Scratch::new(), |start, _, row| {
        if matches!(row.kind(), RowKind::Sp | RowKind::Bp) {
            ips.push(start);
        }
    })
    .expect("libc is well formed");
    let step = ips.len() / 1024;
    let chosen: Vec<u64> = ips.into_iter().step_by(step.max(1)).take(1024).collect();
    run(&sections, &chosen);
}

/// Always the same address: everything is in the cache.
#[divan::bench]
fn evaluate_one_address(bencher: divan::Bencher) {
    with_libc(|sections, ips| {
        let mut scratch = Scratch::new();
        bencher.bench_local(|| evaluate(sections, black_box(ips[500]), &mut scratch));
    });
}

/// 1024 addresses in turn; divide by 1024.
#[divan::bench]
fn evaluate_1024_addresses(bencher: divan::Bencher) {
    with_libc(|sections, ips| {
        let mut scratch = Scratch::new();
        bencher.bench_local(|| ips.iter().map(|&ip| evaluate(sections, ip, &mut scratch).cfa_offset()).sum::<i32>());
    });
}

/// Parsing the header of a module, once per module.
#[divan::bench]
fn sections_of_one_module(bencher: divan::Bencher) {
    // A header that says: .eh_frame follows the table, which has one entry.
    let module = [1, 0x1b, 0x03, 0x3b, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0];
    bencher.bench_local(|| Sections::from_eh_frame_hdr(black_box(&module), 0x1000, 0x1000).is_ok());
}

/// Only finding the function and parsing its entry; divide by 1024.
#[divan::bench]
fn find_1024_functions(bencher: divan::Bencher) {
    with_libc(|sections, ips| {
        bencher.bench_local(|| ips.iter().filter(|&&ip| sections.fde_range(ip).is_ok()).count());
    });
}

/// A stack of 64 frames of two kinds, as words from address 0x1000 on, and its rows.
fn stack() -> (Vec<u64>, [Row; 64]) {
    let rows = core::array::from_fn(|n| {
        if n % 4 == 3 {
            Row::bp(16, SavedSlots { bp: 2, ..SavedSlots::default() })
        } else {
            Row::sp(32, SavedSlots { bx: 2, ..SavedSlots::default() })
        }
    });
    let mut words = vec![0; 8];
    for row in rows {
        if row.kind() == RowKind::Bp {
            let next_bp = 0x1000 + 8 * (words.len() as u64 + 14);
            words.extend([next_bp, 0x5000]);
        } else {
            words.extend([1, 2, 3, 0x4000]);
        }
    }
    (words, rows)
}

/// 64 frames through sp and bp; divide by 64.
#[divan::bench]
fn step_64_frames(bencher: divan::Bencher) {
    let (words, rows) = stack();
    let start = Regs { ip: 0x4000, sp: 0x1000 + 64, bp: 0x1000 + 8 * 20 };
    bencher.bench_local(|| {
        let mut regs = black_box(start);
        for &row in black_box(&rows) {
            let _ = black_box(step(row, &mut regs, |at| words.get((at.wrapping_sub(0x1000) >> 3) as usize).copied()));
        }
        regs
    });
    let mut regs = start;
    for row in rows {
        let stepped = step(row, &mut regs, |at| words.get((at.wrapping_sub(0x1000) >> 3) as usize).copied());
        assert!(matches!(stepped, hound_unwind::Stepped::Frame { .. }), "the bench must step: {stepped:?}");
    }
}

/// As above with all callee-saved registers; divide by 64.
#[divan::bench]
fn step_full_64_frames(bencher: divan::Bencher) {
    let (words, rows) = stack();
    bencher.bench_local(|| {
        let mut regs = black_box(FullRegs { ip: 0x4000, sp: 0x1000 + 64, bp: 0x1000 + 8 * 20, ..FullRegs::default() });
        for &row in black_box(&rows) {
            let _ = black_box(step_full(row, &mut regs, |at| words.get((at.wrapping_sub(0x1000) >> 3) as usize).copied()));
        }
        regs
    });
}
