//! Bounded, deterministic mutation of what hound reads from others, so that plain `cargo test` covers a little of what `fuzz/` covers long.
//! No panic and no hang is the whole claim.

use std::process::Command;

use hound_tests::compile::{Build, Program};

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
    let done = Command::new("objcopy").args(["-O", "binary", &only]).arg(program).arg(&out).status().expect("objcopy comes with the compiler");
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
