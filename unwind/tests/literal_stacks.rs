//! Small stacks written out in full, with the call frame information that describes them.

use hound_unwind::{
    EndReason, FullRegs, Regs, Row, RowKind, Saved, SavedSlots, Scratch, Sections, Stepped, evaluate, frame_pointer_step, is_signal_return,
    step, step_full, step_general, visit_rows,
};

/// Where the one function is, 0x100 bytes long.
const FUNCTION: u64 = 0x40_0000;
/// Where the stacks begin.
const STACK: u64 = 0x7000;

/// An `.eh_frame` with one function. The CIE says: CFA = rsp + 8, return address at CFA - 8; `augmentation` is "zR" or
/// "zRS", `instructions` are the function's own.
fn eh_frame(augmentation: &str, instructions: &[u8]) -> Vec<u8> {
    let mut cie = vec![0, 0, 0, 0, 1];
    cie.extend(augmentation.as_bytes());
    // code alignment 1, data alignment -8, return address in 16; one byte of augmentation: absolute pointers
    cie.extend([0, 1, 0x78, 16, 1, 0x00]);
    cie.extend([0x0c, 7, 8, 0x90, 1]);
    let mut section = (cie.len() as u32).to_le_bytes().to_vec();
    section.extend(cie);
    let mut fde = (section.len() as u32 + 4).to_le_bytes().to_vec();
    fde.extend(FUNCTION.to_le_bytes());
    fde.extend(0x100_u64.to_le_bytes());
    fde.push(0);
    fde.extend(instructions);
    section.extend((fde.len() as u32).to_le_bytes());
    section.extend(fde);
    section.extend([0; 4]);
    section
}

fn row_of(augmentation: &str, instructions: &[u8]) -> Row {
    evaluate(&Sections::from_eh_frame(&eh_frame(augmentation, instructions), 0), FUNCTION + 0x10, &mut Scratch::new())
}

fn row(instructions: &[u8]) -> Row {
    row_of("zR", instructions)
}

/// Reads from words that lie at `STACK`.
fn on(words: &[u64]) -> impl FnMut(u64) -> Option<u64> + '_ {
    move |address| {
        assert_eq!(address % 8, 0, "reads are promised to be aligned");
        words.get(usize::try_from(address.checked_sub(STACK)? / 8).ok()?).copied()
    }
}

fn full(sp: u64, bp: u64) -> FullRegs {
    FullRegs { ip: FUNCTION + 0x11, sp, bp, bx: 0xb, r12: 12, r13: 13, r14: 14, r15: 15 }
}

const NONE: SavedSlots = SavedSlots { bp: 0, bx: 0, r12: 0, r13: 0, r14: 0, r15: 0 };

#[test]
fn a_frame_on_sp_leads_to_its_caller() {
    // push %rbp; push %rbx; sub $8, %rsp:    DW_CFA_def_cfa_offset: 32; rbp at cfa-16; rbx at cfa-24
    let row = row(&[0x0e, 32, 0x86, 2, 0x83, 3]);
    assert_eq!(row, Row::sp(32, SavedSlots { bp: 2, bx: 3, ..NONE }));
    let words = [0, 0xb0b, 0xbbb, 0x40_2000, 0];
    let mut regs = Regs { ip: FUNCTION, sp: STACK, bp: 5 };
    assert_eq!(step(row, &mut regs, on(&words)), Stepped::Frame { ra_slot: STACK + 24, bp_slot: STACK + 16 });
    assert_eq!(regs, Regs { ip: 0x40_2000, sp: STACK + 32, bp: 0xbbb });
    assert!(row.follows_from_slots());

    let mut regs = full(STACK, 5);
    assert_eq!(step_full(row, &mut regs, on(&words)), Stepped::Frame { ra_slot: STACK + 24, bp_slot: STACK + 16 });
    assert_eq!(regs, FullRegs { ip: 0x40_2000, sp: STACK + 32, bp: 0xbbb, bx: 0xb0b, ..full(0, 0) });
}

#[test]
fn a_frame_on_bp_does_not_ask_for_sp() {
    // push %rbp; mov %rsp, %rbp; sub …:      DW_CFA_def_cfa: rbp+16; rbp at cfa-16
    let row = row(&[0x0c, 6, 16, 0x86, 2]);
    assert_eq!(row, Row::bp(16, SavedSlots { bp: 2, ..NONE }));
    let words = [0, 0, 0, 0, 0xbbb, 0x40_2000];
    let mut regs = Regs { ip: FUNCTION, sp: STACK, bp: STACK + 32 };
    assert_eq!(step(row, &mut regs, on(&words)), Stepped::Frame { ra_slot: STACK + 40, bp_slot: STACK + 32 });
    assert_eq!(regs, Regs { ip: 0x40_2000, sp: STACK + 48, bp: 0xbbb });
}

#[test]
fn a_realigned_frame_finds_the_cfa_in_memory() {
    // lea 8(%rsp), %r10; and $-64, %rsp; push -8(%r10); push %rbp; mov %rsp, %rbp; push %r12; push %r10:
    //     DW_CFA_def_cfa_expression: *(rbp-16); rbp at (rbp+0), r12 at (rbp-8)
    let row = row(&[0x0f, 3, 0x76, 0x70, 0x06, 0x10, 6, 2, 0x76, 0, 0x10, 12, 2, 0x76, 0x78]);
    assert_eq!(row, Row::deref_bp(-16, SavedSlots { bp: 1, r12: 2, ..NONE }));
    let words = [STACK + 64, 0xc12, 0xbbb, 0x40_2000, 0, 0, 0, 0x40_2000];
    let mut regs = full(STACK, STACK + 16);
    assert_eq!(step_full(row, &mut regs, on(&words)), Stepped::Frame { ra_slot: STACK + 56, bp_slot: STACK + 16 });
    assert_eq!(regs, FullRegs { ip: 0x40_2000, sp: STACK + 64, bp: 0xbbb, r12: 0xc12, ..full(0, 0) });
    assert!(!row.follows_from_slots(), "the word that holds the CFA is not among the slots");
}

#[test]
fn a_cfa_in_another_register_needs_all_registers() {
    // DW_CFA_def_cfa: rbx+16, as in the loader's _dl_runtime_resolve
    let row = row(&[0x0c, 3, 16]);
    assert_eq!(row.kind(), RowKind::Reg(Saved::Bx));
    let mut fast = Regs { ip: FUNCTION, sp: STACK, bp: 0 };
    assert_eq!(step(row, &mut fast, on(&[])), Stepped::NeedsFullRegs);
    let mut regs = FullRegs { bx: STACK + 8, ..full(STACK, 5) };
    assert_eq!(step_full(row, &mut regs, on(&[0, 0, 0x40_2000])), Stepped::Frame { ra_slot: STACK + 16, bp_slot: 0 });
    assert_eq!((regs.ip, regs.sp, regs.bp), (0x40_2000, STACK + 24, 5));
}

#[test]
fn a_plt_stub_has_one_word_more_after_its_push() {
    // DW_CFA_def_cfa_expression: rsp + 8 + ((rip & 15) >= 11) * 8
    let row = row(&[0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22]);
    assert_eq!((row.kind(), row.plt_threshold()), (RowKind::Plt, 11));
    for (byte, cfa) in [(0, 8), (6, 8), (10, 8), (11, 16), (15, 16)] {
        let mut regs = Regs { ip: FUNCTION + byte, sp: STACK, bp: 5 };
        let stepped = step(row, &mut regs, on(&[0x40_2000, 0x40_3000]));
        assert_eq!(stepped, Stepped::Frame { ra_slot: STACK + cfa - 8, bp_slot: 0 }, "at byte {byte}");
        assert_eq!(regs.sp, STACK + cfa);
    }
}

/// A `ucontext` as the kernel lays it out, with the value 100 + number in each register.
fn ucontext() -> [u64; 22] {
    let mut words = [0; 22];
    words[5..9].copy_from_slice(&[108, 109, 110, 111]); // r8 … r11
    words[9..13].copy_from_slice(&[112, 113, 114, 115]); // r12 … r15
    words[15] = 106; // rbp
    words[16] = 103; // rbx
    words[20] = 0x9000; // rsp
    words[21] = 0x40_2000; // rip
    words
}

const INTERRUPTED: FullRegs = FullRegs { ip: 0x40_2000, sp: 0x9000, bp: 106, bx: 103, r12: 112, r13: 113, r14: 114, r15: 115 };

#[test]
fn a_signal_frame_restores_everything_from_the_ucontext() {
    // __restore_rt: DW_CFA_def_cfa_expression: *(rsp+160); rip at (rsp+168)
    let row = row_of("zRS", &[0x0f, 4, 0x77, 0xa0, 1, 6, 0x10, 16, 3, 0x77, 0xa8, 1]);
    assert_eq!(row, Row::SIGNAL);
    let words = ucontext();
    let mut regs = full(STACK, 5);
    assert_eq!(step_full(row, &mut regs, on(&words)), Stepped::SignalFrame);
    assert_eq!(regs, INTERRUPTED);
    let mut fast = Regs { ip: 0, sp: STACK, bp: 5 };
    assert_eq!(step(row, &mut fast, on(&words)), Stepped::SignalFrame);
    assert_eq!(fast, INTERRUPTED.regs());
    assert!(is_signal_return(&[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 5]), "mov $15, %rax; syscall");
}

#[test]
fn a_signal_frame_of_another_form_is_evaluated() {
    // The same with a needless DW_OP_nop, and with rules for the registers, which a compact row knows without.
    let mut code = vec![0x0f, 5, 0x77, 0xa0, 1, 6, 0x96, 0x10, 16, 3, 0x77, 0xa8, 1];
    for (register, offset) in [(3, 128), (6, 120), (7, 160), (12, 72), (13, 80), (14, 88), (15, 96)] {
        code.extend([0x10, register, 3, 0x77, offset & 0x7f | 0x80, offset >> 7]);
    }
    let section = eh_frame("zRS", &code);
    let sections = Sections::from_eh_frame(&section, 0);
    let mut scratch = Scratch::new();
    let row = evaluate(&sections, FUNCTION, &mut scratch);
    assert_eq!(row, Row::GENERAL);
    let mut regs = full(STACK, 5);
    assert_eq!(step_full(row, &mut regs, on(&ucontext())), Stepped::NeedsSections);
    assert_eq!(step_general(&sections, FUNCTION, &mut scratch, &mut regs, on(&ucontext())), Stepped::SignalFrame);
    assert_eq!(regs, INTERRUPTED);
}

#[test]
fn an_undefined_or_zero_return_address_is_the_root() {
    // DW_CFA_undefined: rip, as in _start and clone3
    assert_eq!(row(&[0x07, 16]), Row::ROOT);
    assert_eq!(step(Row::ROOT, &mut Regs::default(), on(&[])), Stepped::End(EndReason::Root));
    let before = Regs { ip: FUNCTION, sp: STACK, bp: 5 };
    let mut regs = before;
    assert_eq!(step(Row::sp(8, NONE), &mut regs, on(&[0])), Stepped::End(EndReason::Root));
    assert_eq!(regs, before, "an end leaves the registers alone");
}

#[test]
fn rules_that_no_row_can_say_are_general() {
    let cases: &[(&[u8], &str)] = &[
        (&[0x0c, 10, 0], "the CFA in a caller-saved register"),
        (&[0x90, 2], "the return address elsewhere than below the CFA"),
        (&[0x11, 6, 0x7e], "rbp above the CFA"),
        (&[0x05, 6, 0x80, 2], "rbp 256 words below the CFA"),
        (&[0x09, 3, 12], "rbx in r12"),
        (&[0x14, 7, 1], "the caller's sp is not the CFA"),
        (&[0x16, 6, 1, 0x31], "rbp is the value of an expression"),
    ];
    for (instructions, what) in cases {
        assert_eq!(row(instructions), Row::GENERAL, "{what}");
    }
    // DW_CFA_offset_extended: rbp at cfa-255*8 just fits; registers that calls do not preserve are of no interest
    assert_eq!(row(&[0x05, 6, 0xff, 1]), Row::sp(8, SavedSlots { bp: 255, ..NONE }));
    assert_eq!(row(&[0x09, 0, 1, 0x05, 11, 0x80, 2]), Row::sp(8, NONE));
}

#[test]
fn a_general_step_follows_every_rule() {
    // cfa = rsp+32; return address in rbx; rbp = cfa-8 as a value; r12 in r13; r14 at (cfa-24), an expression on the CFA
    let code = [0x0e, 32, 0x09, 16, 3, 0x14, 6, 1, 0x09, 12, 13, 0x10, 14, 3, 0x38, 0x1c, 0x96, 0x8f, 3];
    let section = eh_frame("zR", &code);
    let sections = Sections::from_eh_frame(&section, 0);
    let mut regs = full(STACK, 5);
    let words = [0, 0xf15, 0, 0xe14];
    let stepped = step_general(&sections, FUNCTION, &mut Scratch::new(), &mut regs, on(&words));
    assert_eq!(stepped, Stepped::Frame { ra_slot: 0, bp_slot: 0 });
    assert_eq!((regs.ip, regs.sp, regs.bp), (0xb, STACK + 32, STACK + 24));
    assert_eq!((regs.r12, regs.r13, regs.r14, regs.r15), (13, 13, 0xe14, 0xf15));
}

#[test]
fn damage_is_named() {
    let none = |reason| Row::none(reason);
    assert_eq!(row(&[0x0f, 200, 1]), none(EndReason::BadRow), "an expression longer than the entry");
    assert_eq!(row(&[0x0b]), none(EndReason::BadRow), "restore_state without remember_state");
    assert_eq!(row(&[0x0a; 9]), none(EndReason::TooComplex), "nine remembered states");
    let many: Vec<u8> = (17..60).flat_map(|register| [0x07, register]).collect();
    assert_eq!(row(&many), none(EndReason::TooComplex), "rules for sixty registers");
    let good = eh_frame("zR", &[]);
    let elsewhere = evaluate(&Sections::from_eh_frame(&good, 0), FUNCTION + 0x100, &mut Scratch::new());
    assert_eq!(elsewhere, none(EndReason::NoRow));
    assert_eq!(Sections::from_eh_frame_hdr(&[], 0, 0).err(), Some(EndReason::BadSection));
    assert_eq!(Sections::from_eh_frame_hdr(&good, 0x1000, 0x10).err(), Some(EndReason::BadSection));
}

#[test]
fn a_smashed_stack_ends_the_walk_with_a_reason() {
    let walk = |row, sp, bp, words: &[u64]| step(row, &mut Regs { ip: FUNCTION, sp, bp }, on(words));
    let on_bp = Row::bp(16, SavedSlots { bp: 2, ..NONE });
    assert_eq!(walk(Row::sp(8, NONE), STACK, 0, &[]), Stepped::End(EndReason::BadRead));
    assert_eq!(walk(on_bp, STACK + 64, STACK, &[0; 9]), Stepped::End(EndReason::StackNotGrowing));
    assert_eq!(walk(on_bp, STACK, STACK + 4, &[1; 9]), Stepped::End(EndReason::Misaligned));
    assert_eq!(walk(on_bp, STACK, u64::MAX - 7, &[1; 9]), Stepped::End(EndReason::StackNotGrowing), "wraps around");
    assert_eq!(walk(Row::sp(-8, NONE), STACK, 0, &[1; 9]), Stepped::End(EndReason::StackNotGrowing));
    assert_eq!(walk(Row::none(EndReason::BadRow), STACK, 0, &[]), Stepped::End(EndReason::BadRow));
    assert_eq!(walk(Row::GENERAL, STACK, 0, &[]), Stepped::NeedsFullRegs);
}

#[test]
fn a_frame_pointer_is_taken_only_if_plausible() {
    let words = [0xbbb, 0x40_2000];
    let at = |sp, bp| {
        let mut regs = Regs { ip: 1, sp, bp };
        (frame_pointer_step(&mut regs, on(&words)), regs)
    };
    let (stepped, regs) = at(STACK, STACK);
    assert_eq!(stepped, Stepped::Frame { ra_slot: STACK + 8, bp_slot: STACK });
    assert_eq!(regs, Regs { ip: 0x40_2000, sp: STACK + 16, bp: 0xbbb });
    assert_eq!(at(STACK, 0).0, Stepped::End(EndReason::Root), "start-up code clears rbp");
    assert_eq!(at(STACK + 8, STACK).0, Stepped::End(EndReason::BadFramePointer), "below sp");
    assert_eq!(at(STACK, STACK + 1).0, Stepped::End(EndReason::BadFramePointer));
    assert_eq!(at(STACK, STACK + 800).0, Stepped::End(EndReason::BadRead));
    let mut regs = Regs { ip: 1, sp: STACK, bp: STACK };
    assert_eq!(step(Row::FRAME_POINTER, &mut regs, on(&words)), stepped, "the row does the same");
    assert!(Row::FRAME_POINTER.follows_from_slots());
}

#[test]
fn all_rows_of_a_function_are_visited_in_order() {
    // advance 1; def_cfa_offset 16; advance 3; def_cfa rbp+16
    let section = eh_frame("zR", &[0x41, 0x0e, 16, 0x43, 0x0c, 6, 16]);
    let mut seen = Vec::new();
    visit_rows(&Sections::from_eh_frame(&section, 0), &mut Scratch::new(), |start, end, row| {
        seen.push((start - FUNCTION, end - FUNCTION, row));
    })
    .expect("well formed");
    let expected = [(0, 1, Row::sp(8, NONE)), (1, 4, Row::sp(16, NONE)), (4, 0x100, Row::bp(16, NONE))];
    assert_eq!(seen, expected);
}
