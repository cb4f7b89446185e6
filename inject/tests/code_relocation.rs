//! Every function of real libraries whose entry can be displaced: moved, decoded again, compared byte by byte and target by target.

use std::fs;

use hound_inject::code::{Displaced, ENDBR64, JUMP};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// Where the library is taken to be, and where its trampolines.
const BASE: u64 = 0x7f00_0000_0000;
const THERE: u64 = BASE + (1 << 29);

fn decode(code: &[u8], at: u64) -> Vec<Instruction> {
    Decoder::with_ip(64, code, at, DecoderOptions::NONE).iter().collect()
}

/// Compares the moved code with the original; returns whether there was a branch or an address relative to the instruction.
fn compare(displaced: &Displaced, moved: &[u8]) -> bool {
    assert!(moved.starts_with(&ENDBR64));
    let (body, back) = moved[ENDBR64.len()..].split_at(moved.len() - ENDBR64.len() - 14);
    assert_eq!(back[..6], [0xff, 0x25, 0, 0, 0, 0]);
    let mut old = decode(&displaced.bytes, displaced.address);
    let mut moving = false;
    // A call, always the last one, becomes a push of what is behind it and a jump to what it calls.
    let (onward, body) = match displaced.last_call() {
        Some(target) => {
            let call = old.pop().expect("the call");
            assert_eq!((call.near_branch_target(), call.next_ip()), (target, displaced.end()));
            let (body, push) = body.split_at(body.len() - 13);
            let [low, high] = [&displaced.end().to_le_bytes()[..4], &displaced.end().to_le_bytes()[4..]];
            assert_eq!(push, [&[0x68], low, &[0xc7, 0x44, 0x24, 0x04], high].concat());
            moving = true;
            (target, body)
        }
        None => (displaced.end(), body),
    };
    assert_eq!(back[6..], onward.to_le_bytes());
    let new = decode(body, THERE + 4);
    assert_eq!(old.len(), new.len());
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(old.mnemonic(), new.mnemonic());
        let bytes = |code: &[u8], start: u64, i: &Instruction| code[(i.ip() - start) as usize..][..i.len()].to_vec();
        if old.near_branch_target() != 0 {
            let target = old.near_branch_target();
            assert!((displaced.address..displaced.end()).contains(&target) || target == new.near_branch_target());
            moving = true;
        } else if old.is_ip_rel_memory_operand() {
            assert_eq!(old.ip_rel_memory_address(), new.ip_rel_memory_address());
            assert_eq!((old.code(), old.op0_register(), old.op1_register()), (new.code(), new.op0_register(), new.op1_register()));
            moving = true;
        } else {
            assert_eq!(bytes(&displaced.bytes, displaced.address, old), bytes(body, THERE + 4, new));
        }
    }
    moving
}

fn library(name: &str, at_least: usize) {
    let path =
        ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"].iter().map(|d| format!("{d}/{name}")).find(|p| fs::exists(p).unwrap());
    let data = fs::read(path.unwrap_or_else(|| panic!("{name} is needed"))).unwrap();
    let file = object::File::parse(&*data).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let (start, code) = (text.address(), text.data().unwrap());
    let (mut fit, mut moving, mut unfit) = (0, 0, 0);
    for symbol in file.dynamic_symbols().filter(|s| s.kind() == SymbolKind::Text && s.is_definition() && s.size() > 0) {
        let Some(from) = symbol.address().checked_sub(start).map(|n| n as usize) else { continue };
        let Some(body) = code.get(from..from + symbol.size() as usize) else { continue };
        let entry = BASE + symbol.address();
        match Displaced::of(entry, body)
            .and_then(|d| d.no_branch_within(entry, body).map(|()| d))
            .and_then(|d| Ok((d.relocated(THERE)?, d)))
        {
            Ok((moved, displaced)) => {
                assert!(displaced.bytes.len() >= JUMP);
                fit += 1;
                moving += usize::from(compare(&displaced, &moved));
            }
            Err(_) => unfit += 1,
        }
    }
    println!("{name}: {fit} moved ({moving} with a branch or an address), {unfit} refused");
    assert!(fit >= at_least && moving > at_least / 20, "{name}: {fit} moved, {moving} moving, {unfit} refused");
    assert!(unfit * 4 < fit, "{name}: {unfit} of {} refused", fit + unfit);
}

#[test]
fn libc() {
    library("libc.so.6", 2000);
}

#[test]
fn libstdcxx() {
    library("libstdc++.so.6", 3000);
}

#[test]
fn jemalloc() {
    library("libjemalloc.so.2", 20);
}

#[test]
fn tcmalloc() {
    library("libtcmalloc_minimal.so.4", 100);
}
