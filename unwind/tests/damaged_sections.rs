//! No bytes make the unwinder panic or run for ever: real unwind sections with bytes changed, cut and moved, and noise.
//! Built with overflow checks, so arithmetic that would wrap unnoticed in a release build fails here.

#[path = "process/mod.rs"]
#[expect(dead_code, reason = "only the compilation of fixtures is needed here")]
mod process;

use std::sync::LazyLock;

use hound_unwind::{FullRegs, Regs, Row, Scratch, Sections, evaluate, exercise, step, step_full, step_general};
use object::{Object, ObjectSection, ObjectSegment};
use proptest::collection::vec;
use proptest::prelude::*;

/// `.eh_frame_hdr` and `.eh_frame` of a fixture, as they lie in memory; the header is at the start.
static REAL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let path = process::compile("paths.c", "damaged", &["-O2"]);
    let data = std::fs::read(&path).expect("just compiled");
    std::fs::remove_file(&path).expect("just compiled");
    let file = object::File::parse(&*data).expect("cc writes ELF");
    let section = |name| file.section_by_name(name).expect("the fixture has call frame information");
    let (hdr, frame) = (section(".eh_frame_hdr"), section(".eh_frame"));
    let segment = file.segments().find(|segment| (segment.address()..segment.address() + segment.size()).contains(&hdr.address()));
    let segment = segment.expect("the header is loaded");
    let (start, end) = (hdr.address() - segment.address(), frame.address() + frame.size() - segment.address());
    segment.data().expect("in the file")[start as usize..end as usize].to_vec()
});

/// Where the header of [`REAL`] is pretended to lie.
const AVMA: u64 = 0x4000_0000;

fn first_function(sections: &Sections<'_>) -> u64 {
    let mut first = AVMA;
    let _ = hound_unwind::visit_rows(sections, &mut Scratch::new(), |start, _, _| first = first.min(start));
    first
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn damaged_sections_never_panic(
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..24),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        skipped in prop_oneof![4 => Just(0_usize), 1 => 0_usize..64],
        offsets in vec(0_u64..0x1000, 4),
    ) {
        let mut data = REAL.clone();
        for (place, byte) in changes {
            let place = place.index(data.len());
            data[place] = byte;
        }
        if let Some(cut) = cut {
            data.truncate(cut.index(data.len()));
        }
        let data = data.get(skipped..).unwrap_or_default();
        exercise(data);
        let hdr = Sections::from_eh_frame_hdr(data, AVMA, AVMA);
        for sections in hdr.iter().chain([&Sections::from_eh_frame(data, AVMA)]) {
            let first = first_function(sections);
            for offset in &offsets {
                let _ = evaluate(sections, first.wrapping_add(*offset), &mut Scratch::new());
            }
        }
    }

    #[test]
    fn noise_never_panics(data in vec(any::<u8>(), 0..600)) {
        exercise(&data);
    }

    /// One function with arbitrary instructions, so that they are always reached.
    #[test]
    fn arbitrary_instructions_never_panic(
        code in vec(prop_oneof![any::<u8>(), 0_u8..0x17, Just(0x0f), Just(0x10)], 0..80),
        words in vec(any::<u64>(), 32),
    ) {
        let section = one_function(&code);
        let sections = Sections::from_eh_frame(&section, 0);
        let mut scratch = Scratch::new();
        let regs = FullRegs { ip: 0x1010, sp: 0x7000, bp: 0x7040, bx: 0x7080, ..FullRegs::default() };
        let read = |address: u64| words.get(usize::try_from(address.checked_sub(0x7000)? / 8).ok()?).copied();
        let row = evaluate(&sections, 0x1010, &mut scratch);
        let _ = step_full(row, &mut regs.clone(), read);
        let _ = step_general(&sections, 0x1010, &mut scratch, &mut regs.clone(), read);
    }

    #[test]
    fn arbitrary_rows_never_panic_and_only_read_aligned_words(
        bits in (any::<u64>(), prop_oneof![any::<u64>(), 0..=u64::from(u32::MAX)]),
        kind in prop::option::of(0_u64..12),
        (ip, sp, bp) in any::<(u64, u64, u64)>(),
        word in any::<u64>(),
    ) {
        let row = Row::from_bits([kind.map_or(bits.0, |kind| bits.0 & !0xff | kind), bits.1]);
        let before = Regs { ip, sp, bp };
        let mut after = before;
        let stepped = step(row, &mut after, |address| {
            assert_eq!(address % 8, 0, "reads are promised to be aligned");
            Some(word)
        });
        match stepped {
            hound_unwind::Stepped::Frame { ra_slot, .. } => {
                prop_assert!(after.sp > before.sp, "the stack must grow");
                prop_assert_eq!(ra_slot, after.sp - 8);
            }
            hound_unwind::Stepped::SignalFrame => {}
            _ => prop_assert_eq!(after, before, "no step leaves the registers alone"),
        }
    }
}

/// An `.eh_frame` of one CIE and one function at 0x1000..0x1100.
fn one_function(code: &[u8]) -> Vec<u8> {
    let cie = [0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0, 0x0c, 7, 8, 0x90, 1];
    let mut section = vec![cie.len() as u8, 0, 0, 0];
    section.extend(cie);
    let mut fde = vec![section.len() as u8 + 4, 0, 0, 0];
    fde.extend(0x1000_u64.to_le_bytes());
    fde.extend(0x100_u64.to_le_bytes());
    fde.push(0);
    fde.extend(code);
    section.extend((fde.len() as u32).to_le_bytes());
    section.extend(fde);
    section
}
