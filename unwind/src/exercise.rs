//! One entry for fuzzers: everything this crate does with bytes it has not written itself.

use crate::{FullRegs, Regs, Row, Scratch, Sections, Stepped, evaluate, step, step_full, step_general, visit_rows};

/// How many addresses are tried and how many frames each walk may have.
const TRIES: u64 = 4;
const DEPTH: usize = 16;
/// Where the bytes are pretended to lie. Low, so that 32-bit offsets in random bytes often hit.
const AVMA: u64 = 0x1000;

/// Treats `data` as unwind sections in every form, evaluates and steps through what it seems to describe with `data` as
/// the stack too. Must return for every input, without a panic; that is all a fuzzer has to check.
pub fn exercise(data: &[u8]) {
    let mut scratch = Scratch::new();
    let hdr = Sections::from_eh_frame_hdr(data, AVMA, AVMA).ok();
    let others = [Sections::from_eh_frame(data, AVMA), Sections::from_debug_frame(data, AVMA)];
    for sections in hdr.iter().chain(&others) {
        let mut first = None;
        // A section may end in garbage; what came before has been visited.
        let _ = visit_rows(sections, &mut scratch, |start, _, _| {
            first.get_or_insert(start);
        });
        for n in 0..TRIES {
            walk(sections, first.unwrap_or(AVMA).wrapping_add(n * 4), data, &mut scratch);
        }
    }
    for (words, _) in data.as_chunks::<16>().0.iter().zip(0..TRIES) {
        let [low, high] = [words.first_chunk::<8>(), words.last_chunk::<8>()].map(|w| w.map_or(0, |w| u64::from_le_bytes(*w)));
        let mut regs = FullRegs { ip: low, sp: AVMA, bp: AVMA + 16, ..FullRegs::default() };
        let _ = step_full(Row::from_bits([low, high]), &mut regs, |address| word(data, address));
    }
}

fn walk(sections: &Sections<'_>, ip: u64, data: &[u8], scratch: &mut Scratch) {
    let mut full = FullRegs { ip, sp: AVMA, bp: AVMA + 64, bx: AVMA, ..FullRegs::default() };
    let mut read = |address| word(data, address);
    for _ in 0..DEPTH {
        let _ = sections.fde_range(full.ip);
        let row = evaluate(sections, full.ip, scratch);
        let mut fast: Regs = full.regs();
        let stepped_fast = step(row, &mut fast, &mut read);
        let mut stepped = step_full(row, &mut full, &mut read);
        if stepped == Stepped::NeedsSections {
            stepped = step_general(sections, full.ip, scratch, &mut full, &mut read);
        }
        let (Stepped::Frame { .. } | Stepped::SignalFrame, _) = (stepped, stepped_fast) else { return };
    }
}

/// The word at an address in `data`.
fn word(data: &[u8], address: u64) -> Option<u64> {
    let offset = usize::try_from(address.checked_sub(AVMA)?).ok()?;
    Some(u64::from_le_bytes(*data.get(offset..)?.first_chunk::<8>()?))
}
