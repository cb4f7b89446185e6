//! Stepping from a frame to its caller.
//!
//! Input is a row, the registers and a closure that reads one stack word; output is the caller's registers. Nothing here
//! can fail on content: a wrong row or a smashed stack ends the walk with a reason. **Every address given to `read` is a
//! multiple of 8**; whether it lies on the stack is for the closure to judge.

use crate::{EndReason, Row, RowKind, Saved};

/// What the fast path tracks: enough for rows whose CFA comes from sp or bp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    /// Code address: the return address of the frame below, or exact in a leaf or interrupted frame.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer, or whatever else the program keeps in `rbp`.
    pub bp: u64,
}

/// All registers that survive a call, for rows that need more than sp and bp.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FullRegs {
    /// As in [`Regs`].
    pub ip: u64,
    /// As in [`Regs`].
    pub sp: u64,
    /// As in [`Regs`].
    pub bp: u64,
    /// `rbx`
    pub bx: u64,
    /// `r12`
    pub r12: u64,
    /// `r13`
    pub r13: u64,
    /// `r14`
    pub r14: u64,
    /// `r15`
    pub r15: u64,
}

impl FullRegs {
    /// The part that the fast path tracks.
    #[inline]
    #[must_use]
    pub const fn regs(&self) -> Regs {
        Regs { ip: self.ip, sp: self.sp, bp: self.bp }
    }

    fn set_regs(&mut self, regs: Regs) {
        self.ip = regs.ip;
        self.sp = regs.sp;
        self.bp = regs.bp;
    }

    const fn saved(&self, register: Saved) -> u64 {
        match register {
            Saved::Bx => self.bx,
            Saved::R12 => self.r12,
            Saved::R13 => self.r13,
            Saved::R14 => self.r14,
            Saved::R15 => self.r15,
        }
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stepped {
    /// The registers are now the caller's, at the instruction after the call: ip is a return address, so the next row is
    /// looked up at `ip - 1`.
    Frame {
        /// Where the return address was read.
        ra_slot: u64,
        /// Where the caller's bp was read, 0 if bp is unchanged. Together with `ra_slot` all that was read, if
        /// [`Row::follows_from_slots`].
        bp_slot: u64,
    },
    /// The registers are now those of the code that a signal interrupted: ip is exact, the next row is looked up at `ip`.
    SignalFrame,
    /// [`step`] cannot take this row; walk again from the leaf with [`step_full`]. The registers are unchanged.
    NeedsFullRegs,
    /// [`step_full`] cannot take this row; take this step with [`step_general`](crate::step_general). Unchanged.
    NeedsSections,
    /// There is no caller, or it cannot be found. The registers are unchanged.
    End(EndReason),
}

/// Offsets in the `ucontext` that the kernel puts on the stack, from its start: `sigcontext` begins at 40 with r8.
mod ucontext {
    pub(super) const R12: u64 = 72;
    pub(super) const R13: u64 = 80;
    pub(super) const R14: u64 = 88;
    pub(super) const R15: u64 = 96;
    pub(super) const RBP: u64 = 120;
    pub(super) const RBX: u64 = 128;
    pub(super) const RSP: u64 = 160;
    pub(super) const RIP: u64 = 168;
}

/// Goes from the frame in `regs` to its caller by `row`, the row for the frame's ip. `read` gives the word at an address,
/// or `None` where there is none to be read.
#[inline]
pub fn step(row: Row, regs: &mut Regs, mut read: impl FnMut(u64) -> Option<u64>) -> Stepped {
    let base = if row.is_sp() {
        regs.sp
    } else if row.is_bp() {
        regs.bp
    } else {
        return step_rare(row, regs, read);
    };
    let cfa = base.wrapping_add_signed(i64::from(row.cfa_offset()));
    leave(regs, cfa, slot(cfa, row.bp_slot_words()), &mut read)
}

/// The rows of [`step`] that are not worth a place in the caller's hot code.
#[cold]
#[inline(never)]
fn step_rare(row: Row, regs: &mut Regs, mut read: impl FnMut(u64) -> Option<u64>) -> Stepped {
    match row.kind() {
        RowKind::DerefBp => {
            let frame_base = regs.bp.wrapping_add(8);
            match aligned(regs.bp.wrapping_add_signed(i64::from(row.cfa_offset())), &mut read) {
                Ok(cfa) => leave(regs, cfa, slot(frame_base, row.bp_slot_words()), &mut read),
                Err(reason) => Stepped::End(reason),
            }
        }
        RowKind::Plt => {
            let pushed = if regs.ip & 15 >= u64::from(row.plt_threshold()) { 8 } else { 0 };
            let cfa = regs.sp.wrapping_add(8).wrapping_add(pushed);
            leave(regs, cfa, 0, &mut read)
        }
        RowKind::Signal => match interrupted(regs.sp, &mut read) {
            Ok(before) => {
                *regs = before;
                Stepped::SignalFrame
            }
            Err(reason) => Stepped::End(reason),
        },
        RowKind::FramePointer => frame_pointer_step(regs, read),
        RowKind::Root => Stepped::End(EndReason::Root),
        RowKind::None(reason) => Stepped::End(reason),
        RowKind::Sp | RowKind::Bp | RowKind::Reg(_) | RowKind::General => Stepped::NeedsFullRegs,
    }
}

/// As [`step`], for all rows but [`RowKind::General`]. Restores every callee-saved register.
pub fn step_full(row: Row, regs: &mut FullRegs, mut read: impl FnMut(u64) -> Option<u64>) -> Stepped {
    let mut caller = regs.regs();
    let mut restored = *regs;
    let stepped = match row.kind() {
        RowKind::General => return Stepped::NeedsSections,
        RowKind::Reg(register) => {
            let cfa = regs.saved(register).wrapping_add_signed(i64::from(row.cfa_offset()));
            leave(&mut caller, cfa, slot(cfa, row.bp_slot_words()), &mut read)
        }
        _ => step(row, &mut caller, &mut read),
    };
    let others = match stepped {
        Stepped::Frame { .. } => {
            // The CFA is the caller's sp; only realigned frames save relative to bp.
            let base = if row.kind() == RowKind::DerefBp { regs.bp.wrapping_add(8) } else { caller.sp };
            restore_saved(row, base, &mut restored, &mut read)
        }
        Stepped::SignalFrame => restore_interrupted(regs.sp, &mut restored, &mut read),
        _ => return stepped,
    };
    if let Err(reason) = others {
        return Stepped::End(reason);
    }
    restored.set_regs(caller);
    *regs = restored;
    stepped
}

/// Goes to the caller by the frame pointer, for code that has no rules: CFA = bp + 16. Refused unless bp is aligned and
/// not below sp. A bp of zero is how start-up code marks the outermost frame.
pub fn frame_pointer_step(regs: &mut Regs, mut read: impl FnMut(u64) -> Option<u64>) -> Stepped {
    if regs.bp == 0 {
        return Stepped::End(EndReason::Root);
    }
    if regs.bp < regs.sp || regs.bp & 7 != 0 {
        return Stepped::End(EndReason::BadFramePointer);
    }
    leave(regs, regs.bp.wrapping_add(16), regs.bp, &mut read)
}

/// Where a register is saved that many words below `base`, 0 if it is not.
#[inline]
fn slot(base: u64, words: u8) -> u64 {
    if words == 0 { 0 } else { base.wrapping_sub(u64::from(words) * 8) }
}

/// Reads the return address below `cfa` and the saved bp, and makes `regs` the caller's.
#[inline]
pub(crate) fn leave(regs: &mut Regs, cfa: u64, bp_slot: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Stepped {
    if cfa <= regs.sp {
        return Stepped::End(EndReason::StackNotGrowing);
    }
    if (cfa | bp_slot) & 7 != 0 {
        return Stepped::End(EndReason::Misaligned);
    }
    let ra_slot = cfa.wrapping_sub(8);
    let Some(ip) = read(ra_slot) else {
        return Stepped::End(EndReason::BadRead);
    };
    let bp = if bp_slot == 0 {
        regs.bp
    } else {
        match read(bp_slot) {
            Some(bp) => bp,
            None => return Stepped::End(EndReason::BadRead),
        }
    };
    if ip == 0 {
        return Stepped::End(EndReason::Root);
    }
    *regs = Regs { ip, sp: cfa, bp };
    Stepped::Frame { ra_slot, bp_slot }
}

/// Reads one word, refusing addresses that are not aligned.
#[inline]
pub(crate) fn aligned(address: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<u64, EndReason> {
    if address & 7 != 0 {
        return Err(EndReason::Misaligned);
    }
    read(address).ok_or(EndReason::BadRead)
}

/// What a signal interrupted, from the `ucontext` at `sp`. The interrupted stack may lie anywhere (`sigaltstack`).
fn interrupted(sp: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<Regs, EndReason> {
    let mut at = |offset: u64| aligned(sp.wrapping_add(offset), read);
    Ok(Regs { ip: at(ucontext::RIP)?, sp: at(ucontext::RSP)?, bp: at(ucontext::RBP)? })
}

/// The registers that [`interrupted`] leaves out.
fn restore_interrupted(sp: u64, regs: &mut FullRegs, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<(), EndReason> {
    let mut at = |offset: u64| aligned(sp.wrapping_add(offset), read);
    regs.bx = at(ucontext::RBX)?;
    regs.r12 = at(ucontext::R12)?;
    regs.r13 = at(ucontext::R13)?;
    regs.r14 = at(ucontext::R14)?;
    regs.r15 = at(ucontext::R15)?;
    Ok(())
}

/// Loads the callee-saved registers other than bp that the frame had saved below `base`.
fn restore_saved(row: Row, base: u64, regs: &mut FullRegs, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<(), EndReason> {
    let saved = row.saved();
    for (words, register) in [
        (saved.bx, &mut regs.bx),
        (saved.r12, &mut regs.r12),
        (saved.r13, &mut regs.r13),
        (saved.r14, &mut regs.r14),
        (saved.r15, &mut regs.r15),
    ] {
        if words != 0 {
            *register = aligned(slot(base, words), read)?;
        }
    }
    Ok(())
}
