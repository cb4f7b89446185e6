//! What a probed call costs against a probe that does nothing. Run by hand: `cargo test --release -p hound-user kernel::tests -- --ignored
//! --nocapture`.
#![expect(unsafe_code, reason = "calls functions of its own that no crate has")]

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use aya_obj::generated::bpf_insn;
use hound_common::kernel::{Cookie, DOES_ALLOC, DOES_FREE, NOTHING};
use nix::time::{ClockId, clock_gettime};

use super::raw::{self, Attach};
use super::{LoadOptions, Programs, Settings, Site};

std::arch::global_asm!(
    ".globl hound_probed_malloc, hound_probed_free",
    "hound_probed_malloc: push rbp",
    "call malloc@PLT",
    "pop rbp",
    "ret",
    "hound_probed_free: push rbp",
    "call free@PLT",
    "pop rbp",
    "ret",
);

unsafe extern "C" {
    fn hound_probed_malloc(size: usize) -> *mut u8;
    fn hound_probed_free(block: *mut u8);
}

const PAIRS: u32 = 100_000;

/// Nanoseconds of this thread for a pair.
fn pair() -> f64 {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("there is such a clock"));
    let start = now();
    for _ in 0..PAIRS {
        // SAFETY: malloc.
        let block = unsafe { hound_probed_malloc(std::hint::black_box(64)) };
        // SAFETY: its own block.
        unsafe { hound_probed_free(block) };
    }
    (now() - start).as_nanos() as f64 / f64::from(PAIRS)
}

/// `r0 = answer; exit`
fn empty(answer: i32, attach: Attach) -> OwnedFd {
    let instruction = |code, imm| bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm };
    raw::load("empty", &[instruction(0xB7, answer), instruction(0x95, 0)], c"GPL", attach).expect("root may load it")
}

fn site(function: usize, does: u8) -> Site {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
    let at = maps.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let offset = usize::from_str_radix(words[2], 16).ok()?;
        (start..end).contains(&function).then_some((function - start + offset) as u64)
    });
    let (size, block) = if does == DOES_FREE { (NOTHING, 0) } else { (0, NOTHING) };
    let cookie = Cookie { kind: 1, does, size, count: NOTHING, block, out: NOTHING, pool: 0, pushes: 0 };
    Site { file: "/proc/self/exe".into(), offset: at.expect("the function is mapped"), cookie }
}

#[test]
#[ignore = "a measurement"]
fn a_pair_without_a_sample_against_empty_probes() {
    let sites = [site(hound_probed_malloc as *const () as usize, DOES_ALLOC), site(hound_probed_free as *const () as usize, DOES_FREE)];
    let (alloc, release) = (empty(1, Attach::Session), empty(0, Attach::Multi));
    let mut programs = Programs::load(&LoadOptions::default()).expect("root may load them");
    programs.set(Settings { interval: 1 << 62, ..Settings::default() }).expect("settings are taken");
    let pid = std::process::id();
    let mut best = [f64::MAX; 3];
    for _ in 0..7 {
        best[0] = best[0].min(pair());
        {
            let at = |site: &Site| ([site.offset], [site.cookie.to_bits()]);
            let ((offset, cookie), (free_offset, free_cookie)) = (at(&sites[0]), at(&sites[1]));
            let _both = (
                raw::link(alloc.as_fd(), Attach::Session, c"/proc/self/exe", &offset, &cookie, pid).expect("it can be set"),
                raw::link(release.as_fd(), Attach::Multi, c"/proc/self/exe", &free_offset, &free_cookie, pid).expect("it can be set"),
            );
            best[1] = best[1].min(pair());
        }
        let probes = programs.open(pid, &sites).expect("they can be set");
        best[2] = best[2].min(pair());
        probes.close().wait();
    }
    println!("pair {:.1} ns, empty probes {:.1} ns, ours {:.1} ns: {:.3} x", best[0], best[1], best[2], best[2] / best[1]);
    println!("{:?}", programs.counters().expect("there are counters"));
}
