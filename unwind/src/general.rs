//! The step for rules that fit no row: everything is evaluated anew.
//!
//! Such code is rare (hand-written assembly, `swapcontext`, odd signal trampolines), so this is written for generality:
//! every register gets its own rule, in DWARF's terms.

use gimli::{CfaRule, Register, RegisterRule, UnwindExpression, UnwindSection, X86_64};

use crate::evaluate::{Rules, UseRules, with_rules};
use crate::sections::{Bytes, Fde};
use crate::step::aligned;
use crate::{EndReason, FullRegs, Scratch, Sections, Stepped, expression};

/// Takes one step by the rules of `lookup_ip`, whatever they are, for rows that are
/// [`RowKind::General`](crate::RowKind::General). `regs.ip` may differ from `lookup_ip` by the one byte of a return address.
pub fn step_general(
    sections: &Sections<'_>,
    lookup_ip: u64,
    scratch: &mut Scratch,
    regs: &mut FullRegs,
    read: impl FnMut(u64) -> Option<u64>,
) -> Stepped {
    let callee = *regs;
    match with_rules(sections, lookup_ip, scratch, Apply { callee, read }) {
        Ok(Ok((caller, stepped))) => {
            *regs = caller;
            stepped
        }
        Ok(Err(reason)) | Err(reason) => Stepped::End(reason),
    }
}

/// The step as what is done with the rules.
struct Apply<F> {
    callee: FullRegs,
    read: F,
}

impl<F: FnMut(u64) -> Option<u64>> UseRules for Apply<F> {
    type Output = Result<(FullRegs, Stepped), EndReason>;

    fn call<'a, S: UnwindSection<Bytes<'a>>>(self, section: &S, fde: &Fde<'a>, rules: &Rules) -> Self::Output {
        let Apply { callee, mut read } = self;
        let get = |register: Register| value_of(&callee, register);
        let cfa = match rules.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => get(*register).ok_or(EndReason::Unsupported)?.wrapping_add_signed(*offset),
            CfaRule::Expression(code) => expression::run(bytes(section, code)?, None, get, &mut read)?,
        };
        let mut restore = |register: Register, unchanged: u64| restored(section, rules.register(register), unchanged, cfa, get, &mut read);
        let (ip, ra_slot) = match rules.register(X86_64::RA) {
            Some(RegisterRule::Undefined) => return Err(EndReason::Root),
            None => return Err(EndReason::Unsupported),
            Some(_) => restore(X86_64::RA, 0)?,
        };
        let (bp, bp_slot) = restore(X86_64::RBP, callee.bp)?;
        let caller = FullRegs {
            ip,
            sp: restore(X86_64::RSP, cfa)?.0,
            bp,
            bx: restore(X86_64::RBX, callee.bx)?.0,
            r12: restore(X86_64::R12, callee.r12)?.0,
            r13: restore(X86_64::R13, callee.r13)?.0,
            r14: restore(X86_64::R14, callee.r14)?.0,
            r15: restore(X86_64::R15, callee.r15)?.0,
        };
        if fde.is_signal_trampoline() {
            return Ok((caller, Stepped::SignalFrame));
        }
        if ip == 0 {
            return Err(EndReason::Root);
        }
        if caller.sp <= callee.sp {
            return Err(EndReason::StackNotGrowing);
        }
        Ok((caller, Stepped::Frame { ra_slot, bp_slot }))
    }
}

/// The caller's value of a register with this rule, and where it was read (0 if it was not).
fn restored<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    rule: Option<RegisterRule<usize>>,
    unchanged: u64,
    cfa: u64,
    get: impl Fn(Register) -> Option<u64>,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<(u64, u64), EndReason> {
    let slot = match rule {
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => return Ok((unchanged, 0)),
        Some(RegisterRule::ValOffset(offset)) => return Ok((cfa.wrapping_add_signed(offset), 0)),
        Some(RegisterRule::Register(register)) => return Ok((get(register).ok_or(EndReason::Unsupported)?, 0)),
        Some(RegisterRule::ValExpression(code)) => {
            return Ok((expression::run(bytes(section, &code)?, Some(cfa), get, read)?, 0));
        }
        Some(RegisterRule::Offset(offset)) => cfa.wrapping_add_signed(offset),
        Some(RegisterRule::Expression(code)) => expression::run(bytes(section, &code)?, Some(cfa), get, read)?,
        Some(RegisterRule::Architectural | RegisterRule::Constant(_)) => return Err(EndReason::Unsupported),
    };
    Ok((aligned(slot, read)?, slot))
}

fn bytes<'a, S: UnwindSection<Bytes<'a>>>(section: &S, code: &UnwindExpression<usize>) -> Result<&'a [u8], EndReason> {
    Ok(code.get(section).map_err(|_| EndReason::BadRow)?.0.slice())
}

/// The callee's value of a register, if it is one of those that are tracked.
fn value_of(regs: &FullRegs, register: Register) -> Option<u64> {
    Some(match register {
        X86_64::RA => regs.ip,
        X86_64::RSP => regs.sp,
        X86_64::RBP => regs.bp,
        X86_64::RBX => regs.bx,
        X86_64::R12 => regs.r12,
        X86_64::R13 => regs.r13,
        X86_64::R14 => regs.r14,
        X86_64::R15 => regs.r15,
        _ => return None,
    })
}
