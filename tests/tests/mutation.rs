//! Bounded, deterministic mutation of what hound reads from others, so that plain `cargo test` covers a little of what `fuzz/` covers long.
//! No panic and no hang is the whole claim.

use std::process::Command;

use hound_tests::compile::{Build, Program};
use hound_tests::record::{Target, Way};

/// xorshift64*: the same bytes on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Values that break length and offset arithmetic.
const AWKWARD: [u64; 8] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// Changes, removes or repeats a few parts of the seed.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let piece: Vec<u8> = bytes.iter().skip(random.below(bytes.len())).take(random.below(64)).copied().collect();
                bytes.splice(at..at, piece);
            }
            _ => {
                let value = AWKWARD[random.below(AWKWARD.len())].to_le_bytes();
                bytes.iter_mut().skip(at).zip(&value[..1 << random.below(4)]).for_each(|(b, v)| *b = *v);
            }
        }
    }
    bytes
}

/// A section of a compiled program.
fn section(name: &str) -> Vec<u8> {
    let program = Program::new("exceptions.cpp", Build::Optimised).path();
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let out = dir.path().join("section");
    let only = format!("--only-section={name}");
    let done =
        Command::new("objcopy").args(["-O", "binary", &only]).arg(program).arg(&out).status().expect("objcopy comes with the compiler");
    assert!(done.success());
    std::fs::read(out).expect("objcopy wrote it")
}

#[test]
fn rows_of_mutated_call_frame_information_never_panic() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for name in [".eh_frame", ".eh_frame_hdr"] {
        let seed = section(name);
        assert!(!seed.is_empty(), "the program has no {name}");
        hound_unwind::exercise(&seed);
        for _ in 0..20_000 {
            hound_unwind::exercise(&mutate(&seed, &mut random));
        }
    }
    for length in 0..2000 {
        let noise: Vec<u8> = (0..length % 300).map(|_| random.next() as u8).collect();
        hound_unwind::exercise(&noise);
    }
}

/// Ring bytes whose headers are mostly right and whose contents are anything: random bytes alone rarely get past a header.
fn records(random: &mut Random) -> Vec<u8> {
    let mut words = Vec::new();
    for _ in 0..random.below(200) {
        let (tag, length) = (random.below(24) as u64, 1 + random.below(8) as u64);
        let claimed = if random.below(20) == 0 { random.next() & 0xff } else { length };
        let step = random.next() & 0xffff_0000_0000;
        words.push(tag | claimed << 8 | (random.below(70) as u64) << 16 | (random.below(32) as u64) << 24 | step);
        for _ in 1..length {
            words.push(match random.below(4) {
                0 => AWKWARD[random.below(AWKWARD.len())],
                1 => random.below(40) as u64 | (random.below(12) as u64) << 16 | (random.below(40) as u64) << 32,
                2 => 0x5555_0000_0000 + (random.below(64) as u64) * 16,
                _ => random.next(),
            });
        }
    }
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn arbitrary_records_are_stored_and_read_back_without_a_panic() {
    let mut random = Random(0x0123_4567_89AB_CDEF);
    for _ in 0..1500 {
        hound_user::capture::exercise(&records(&mut random));
    }
}

#[test]
fn a_mutated_capture_is_read_without_a_panic() {
    let recording = Target::new("die.c", Build::Optimised).args(&["exit"]).record(Way::Run);
    let seed = std::fs::read(&recording.capture.path).expect("the capture is there");
    let mut random = Random(0xFEDC_BA98_7654_3210);
    for _ in 0..1500 {
        hound_user::capture::exercise(&mutate(&seed, &mut random));
    }
}
