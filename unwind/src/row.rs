//! A row: how to get from one frame to its caller, in 16 bytes.
//!
//! Nearly all of a module's code needs only "CFA = sp or bp plus a constant, return address right below the CFA, some
//! registers saved at constant distances below the CFA". That fits two words, which can be kept in a cache slot that is
//! written with two plain stores. What does not fit is [`RowKind::General`] and is evaluated anew at each visit.
//!
//! ```text
//! word 0:  kind | bp | bx | r12 | r13 | r14 | r15 | detail     one byte each, kind lowest
//! word 1:  CFA offset (i32) | zero
//! ```
//! `bp` … `r15` say where the caller's register is saved, in 8-byte words below the frame base; 0: the register still
//! holds the caller's value. The frame base is the CFA, but `bp + 8` for [`RowKind::DerefBp`].

use crate::EndReason;

/// A callee-saved register other than `bp` that a CFA can be computed from.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// `rbx`
    Bx = 0,
    /// `r12`
    R12 = 1,
    /// `r13`
    R13 = 2,
    /// `r14`
    R14 = 3,
    /// `r15`
    R15 = 4,
}

impl Saved {
    const fn from_u8(number: u8) -> Option<Saved> {
        match number {
            0 => Some(Saved::Bx),
            1 => Some(Saved::R12),
            2 => Some(Saved::R13),
            3 => Some(Saved::R14),
            4 => Some(Saved::R15),
            _ => None,
        }
    }
}

/// Where the callee-saved registers of the caller are kept: 8-byte words below the frame base, 0 for "not saved".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedSlots {
    /// `rbp`
    pub bp: u8,
    /// `rbx`
    pub bx: u8,
    /// `r12`
    pub r12: u8,
    /// `r13`
    pub r13: u8,
    /// `r14`
    pub r14: u8,
    /// `r15`
    pub r15: u8,
}

/// The form of a row. `off` is [`Row::cfa_offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// CFA = sp + off
    Sp,
    /// CFA = bp + off
    Bp,
    /// CFA = \*(bp + off): gcc's functions that realign the stack; they keep the address of their arguments in memory.
    DerefBp,
    /// CFA = another callee-saved register + off; needs [`FullRegs`](crate::FullRegs).
    Reg(Saved),
    /// A lazy `.plt` stub: CFA = sp + 8, and 8 more once the stub has pushed its index.
    Plt,
    /// The return trampoline of a signal handler: the kernel's `ucontext` lies at sp and holds all registers.
    Signal,
    /// No rules known, `bp` is taken for a frame pointer: CFA = bp + 16, if plausible.
    FramePointer,
    /// The outermost frame.
    Root,
    /// Rules that do not fit a row: see [`step_general`](crate::step_general).
    General,
    /// There is no way up from here, for this reason.
    None(EndReason),
}

const SP: u8 = 1;
const BP: u8 = 2;
const DEREF_BP: u8 = 3;
const REG: u8 = 4;
const PLT: u8 = 5;
const SIGNAL: u8 = 6;
const FRAME_POINTER: u8 = 7;
const ROOT: u8 = 8;
const GENERAL: u8 = 9;
const NONE: u8 = 10;

/// How to get from a frame to its caller; see the module for the layout.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Row([u64; 2]);

const _: () = assert!(size_of::<Row>() == 16, "a cache slot holds a row in two words");

impl Row {
    /// The row for code without rules: trust the frame pointer if it is plausible.
    pub const FRAME_POINTER: Row = Row::with_detail(FRAME_POINTER, 0, 16, SavedSlots { bp: 2, ..NOT_SAVED });
    /// The row of a signal trampoline, for those without call frame information (musl): see [`is_signal_return`].
    pub const SIGNAL: Row = Row::with_detail(SIGNAL, 0, 0, NOT_SAVED);
    /// The row of an outermost function.
    pub const ROOT: Row = Row::with_detail(ROOT, 0, 0, NOT_SAVED);
    /// The row of an address whose rules must be evaluated at each visit.
    pub const GENERAL: Row = Row::with_detail(GENERAL, 0, 0, NOT_SAVED);

    /// CFA = sp + `cfa_offset`.
    #[must_use]
    pub const fn sp(cfa_offset: i32, saved: SavedSlots) -> Row {
        Row::with_detail(SP, 0, cfa_offset, saved)
    }

    /// CFA = bp + `cfa_offset`.
    #[must_use]
    pub const fn bp(cfa_offset: i32, saved: SavedSlots) -> Row {
        Row::with_detail(BP, 0, cfa_offset, saved)
    }

    /// CFA = \*(bp + `cfa_offset`); `saved` counts from bp + 8, so that 1 is the word bp points at.
    #[must_use]
    pub const fn deref_bp(cfa_offset: i32, saved: SavedSlots) -> Row {
        Row::with_detail(DEREF_BP, 0, cfa_offset, saved)
    }

    /// CFA = `register` + `cfa_offset`.
    #[must_use]
    pub const fn reg(register: Saved, cfa_offset: i32, saved: SavedSlots) -> Row {
        Row::with_detail(REG, register as u8, cfa_offset, saved)
    }

    /// A `.plt` stub of 16 bytes whose push is complete from byte `threshold` on.
    #[must_use]
    pub const fn plt(threshold: u8) -> Row {
        Row::with_detail(PLT, threshold, 8, NOT_SAVED)
    }

    /// No way up, and why.
    #[must_use]
    pub const fn none(reason: EndReason) -> Row {
        Row::with_detail(NONE, reason as u8, 0, NOT_SAVED)
    }

    const fn with_detail(kind: u8, detail: u8, cfa_offset: i32, saved: SavedSlots) -> Row {
        let SavedSlots { bp, bx, r12, r13, r14, r15 } = saved;
        let word = u64::from_le_bytes([kind, bp, bx, r12, r13, r14, r15, detail]);
        Row([word, cfa_offset as u32 as u64])
    }

    /// The two words, for a cache. Never both zero, so that zeroed memory is an empty slot.
    #[inline]
    #[must_use]
    pub const fn to_bits(self) -> [u64; 2] {
        self.0
    }

    /// The row with these words. Any bits are accepted, and taken as they are: what no row has is of the kind
    /// `None(UnknownRow)`, so a torn or damaged slot cannot do worse than cut a stack.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: [u64; 2]) -> Row {
        Row(bits)
    }

    /// The form of the row.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> RowKind {
        let [kind, .., detail] = self.0[0].to_le_bytes();
        match kind {
            SP => RowKind::Sp,
            BP => RowKind::Bp,
            DEREF_BP => RowKind::DerefBp,
            REG => match Saved::from_u8(detail) {
                Some(register) => RowKind::Reg(register),
                None => RowKind::None(EndReason::UnknownRow),
            },
            PLT => RowKind::Plt,
            SIGNAL => RowKind::Signal,
            FRAME_POINTER => RowKind::FramePointer,
            ROOT => RowKind::Root,
            GENERAL => RowKind::General,
            NONE => RowKind::None(match EndReason::from_u8(detail) {
                Some(reason) => reason,
                None => EndReason::UnknownRow,
            }),
            _ => RowKind::None(EndReason::UnknownRow),
        }
    }

    /// CFA = sp + off.
    #[inline]
    #[must_use]
    pub const fn is_sp(self) -> bool {
        self.0[0] as u8 == SP
    }

    /// CFA = bp + off.
    #[inline]
    #[must_use]
    pub const fn is_bp(self) -> bool {
        self.0[0] as u8 == BP
    }

    /// Whether the caller's frame follows from sp, bp and the words in the slots that the step reports, and from
    /// nothing else: while those are unchanged, so is the rest of the path. True for CFA = sp or bp + constant.
    #[inline]
    #[must_use]
    pub const fn follows_from_slots(self) -> bool {
        matches!(self.0[0] as u8, SP | BP | FRAME_POINTER)
    }

    /// The constant in the CFA's formula, in bytes.
    #[inline]
    #[must_use]
    pub const fn cfa_offset(self) -> i32 {
        self.0[1] as i32
    }

    /// Where the caller's bp is saved: words below the frame base, 0 if bp is unchanged.
    #[inline]
    #[must_use]
    pub const fn bp_slot_words(self) -> u8 {
        (self.0[0] >> 8) as u8
    }

    /// Where all callee-saved registers are saved.
    #[inline]
    #[must_use]
    pub const fn saved(self) -> SavedSlots {
        let [_, bp, bx, r12, r13, r14, r15, _] = self.0[0].to_le_bytes();
        SavedSlots { bp, bx, r12, r13, r14, r15 }
    }

    /// For [`RowKind::Plt`]: the first byte of the 16-byte stub at which the index has been pushed.
    #[inline]
    #[must_use]
    pub const fn plt_threshold(self) -> u8 {
        (self.0[0] >> 56) as u8
    }
}

const NOT_SAVED: SavedSlots = SavedSlots { bp: 0, bx: 0, r12: 0, r13: 0, r14: 0, r15: 0 };

impl core::fmt::Debug for Row {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Row").field("kind", &self.kind()).field("cfa_offset", &self.cfa_offset()).field("saved", &self.saved()).finish()
    }
}

/// Whether `code` begins with `mov $15, %eax|%rax; syscall`: the return from a signal handler, in the form that every C
/// library uses. For trampolines that have no call frame information; the row is then [`Row::SIGNAL`].
#[must_use]
pub fn is_signal_return(code: &[u8]) -> bool {
    code.starts_with(&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05]) || code.starts_with(&[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05])
}

/// Bytes of the longest call instruction.
pub const LONGEST_CALL: usize = 7;

/// Whether a call instruction may end where these bytes do. What stands behind none is no return address.
#[must_use]
pub fn may_end_in_call(before: &[u8; LONGEST_CALL]) -> bool {
    const CALL_RELATIVE: u8 = 0xe8;
    const INDIRECT: u8 = 0xff;
    // `call r/m64` is FF /2, with two to seven bytes in all.
    before[2] == CALL_RELATIVE || before.windows(2).any(|pair| matches!(pair, [INDIRECT, modrm] if modrm >> 3 & 7 == 2))
}

#[cfg(test)]
mod tests {
    use super::{Row, RowKind, Saved, SavedSlots};
    use crate::EndReason;

    const SLOTS: SavedSlots = SavedSlots { bp: 2, bx: 3, r12: 4, r13: 5, r14: 6, r15: 255 };

    #[test]
    fn a_row_survives_its_bits() {
        let rows = [
            (Row::sp(i32::MAX, SLOTS), RowKind::Sp),
            (Row::bp(i32::MIN, SLOTS), RowKind::Bp),
            (Row::deref_bp(-8, SLOTS), RowKind::DerefBp),
            (Row::reg(Saved::R15, 8, SLOTS), RowKind::Reg(Saved::R15)),
            (Row::plt(11), RowKind::Plt),
            (Row::SIGNAL, RowKind::Signal),
            (Row::FRAME_POINTER, RowKind::FramePointer),
            (Row::ROOT, RowKind::Root),
            (Row::GENERAL, RowKind::General),
            (Row::none(EndReason::Root), RowKind::None(EndReason::Root)),
            (Row::none(EndReason::NoRow), RowKind::None(EndReason::NoRow)),
        ];
        for (row, kind) in rows {
            assert_eq!(row.kind(), kind);
            assert_eq!(Row::from_bits(row.to_bits()), row);
            assert_ne!(row.to_bits(), [0, 0], "zero is an empty cache slot");
        }
    }

    #[test]
    fn a_row_keeps_its_numbers() {
        let row = Row::bp(-1234, SLOTS);
        assert_eq!((row.cfa_offset(), row.saved(), row.bp_slot_words()), (-1234, SLOTS, 2));
        assert_eq!(Row::plt(11).plt_threshold(), 11);
    }

    #[test]
    fn bits_of_no_row_end_the_stack() {
        // No kind, a kind too high, a register and a reason that do not exist.
        for word in [0, 11, u64::MAX, 4 | 5 << 56, 10 | 200 << 56] {
            assert_eq!(Row::from_bits([word, 0]).kind(), RowKind::None(EndReason::UnknownRow), "{word:x}");
        }
    }
}
