//! From call frame instructions to a row.
//!
//! gimli runs the instructions up to the wanted address; what comes out is a rule for the CFA and one per register, which
//! [`compress`] turns into a [`Row`] if it has one of the forms that a row can say.

use gimli::{
    BaseAddresses, CfaRule, EndianSlice, Register, RegisterRule, UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection,
    UnwindTableRow, X86_64,
};

use crate::sections::{Bytes, Fde, Frames, Sections, find_eh, scan, visit_fdes};
use crate::{EndReason, Row, Saved, SavedSlots};

/// Sizes gimli's storage: signal trampolines have rules for 17 registers, the most that was seen; hand-written code in
/// glibc remembers two states, and one more slot goes to the initial rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 20];
    type Stack = [UnwindTableRow<usize, Storage>; 5];
}

pub(crate) type Rules = UnwindTableRow<usize, Storage>;

/// Working memory for [`evaluate`], [`visit_rows`] and [`step_general`](crate::step_general). It is almost 4 KiB: keep one
/// per thread, not on a small stack. Its content carries nothing from one call to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) context: UnwindContext<usize, Storage>,
}

const _: () = assert!(size_of::<Scratch>() <= 4096, "a signal stack must be able to hold it");

impl Scratch {
    /// Empty working memory.
    #[must_use]
    pub fn new() -> Self {
        Scratch::default()
    }
}

/// The row for one code address: `lookup_ip` is a return address minus one, or an exact ip in leaf and interrupted frames.
/// Every failure is a row too ([`RowKind::None`](crate::RowKind::None)), so that it can be cached like any other.
pub fn evaluate(sections: &Sections<'_>, lookup_ip: u64, scratch: &mut Scratch) -> Row {
    let found = with_rules(sections, lookup_ip, scratch, Compress);
    found.unwrap_or_else(Row::none)
}

/// Shows each stretch of code `start..end` that shares a row to `visit`, for all functions, in the order of the section.
/// For whole modules; allocates nothing either.
///
/// # Errors
/// [`EndReason::BadRow`] if an entry is so malformed that those behind it cannot be found. Entries whose instructions
/// alone are malformed are shown with a row that says so.
pub fn visit_rows(sections: &Sections<'_>, scratch: &mut Scratch, mut visit: impl FnMut(u64, u64, Row)) -> Result<(), EndReason> {
    let bases = &sections.bases;
    match &sections.frames {
        Frames::Eh { section, .. } => visit_fdes(section, bases, |fde| {
            visit_fde(section, bases, fde, scratch, &mut visit);
            true
        }),
        Frames::Debug { section, bias } => visit_fdes(section, bases, |fde| {
            let mut biased = |start: u64, end: u64, row| visit(start.wrapping_add(*bias), end.wrapping_add(*bias), row);
            visit_fde(section, bases, fde, scratch, &mut biased);
            true
        }),
    }
}

fn visit_fde<'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    fde: &Fde<'a>,
    scratch: &mut Scratch,
    visit: &mut impl FnMut(u64, u64, Row),
) {
    let mut reached = fde.initial_address();
    let failed = match fde.rows(section, bases, &mut scratch.context) {
        Err(error) => Some(error),
        Ok(mut table) => loop {
            match table.next_row() {
                Ok(None) => break None,
                Err(error) => break Some(error),
                Ok(Some(rules)) => {
                    let (start, end) = (rules.start_address(), rules.end_address());
                    if start < end {
                        visit(start, end, compress(section, fde, rules));
                        reached = end;
                    }
                }
            }
        },
    };
    if let Some(error) = failed
        && reached < fde.end_address()
    {
        visit(reached, fde.end_address(), Row::none(reason_of(error)));
    }
}

/// What to do with the rules of an address; generic over the section they come from, which a closure cannot be.
pub(crate) trait UseRules {
    type Output;
    fn call<'a, S: UnwindSection<Bytes<'a>>>(self, section: &S, fde: &Fde<'a>, rules: &Rules) -> Self::Output;
}

struct Compress;

impl UseRules for Compress {
    type Output = Row;
    fn call<'a, S: UnwindSection<Bytes<'a>>>(self, section: &S, fde: &Fde<'a>, rules: &Rules) -> Row {
        compress(section, fde, rules)
    }
}

/// Finds the rules for `lookup_ip` and hands them to `then`.
pub(crate) fn with_rules<T: UseRules>(
    sections: &Sections<'_>,
    lookup_ip: u64,
    scratch: &mut Scratch,
    then: T,
) -> Result<T::Output, EndReason> {
    let bases = &sections.bases;
    match &sections.frames {
        Frames::Eh { section, table } => {
            let fde = find_eh(section, table.as_ref(), bases, lookup_ip)?;
            rules_in(section, bases, &fde, lookup_ip, scratch, then)
        }
        Frames::Debug { section, bias } => {
            let ip = lookup_ip.wrapping_sub(*bias);
            let fde = scan(section, bases, ip)?;
            rules_in(section, bases, &fde, ip, scratch, then)
        }
    }
}

fn rules_in<'a, S: UnwindSection<Bytes<'a>>, T: UseRules>(
    section: &S,
    bases: &BaseAddresses,
    fde: &Fde<'a>,
    ip: u64,
    scratch: &mut Scratch,
    then: T,
) -> Result<T::Output, EndReason> {
    let rules = fde.unwind_info_for_address(section, bases, &mut scratch.context, ip).map_err(reason_of)?;
    Ok(then.call(section, fde, rules))
}

fn reason_of(error: gimli::Error) -> EndReason {
    match error {
        gimli::Error::NoUnwindInfoForAddress => EndReason::NoRow,
        gimli::Error::StackFull | gimli::Error::TooManyRegisterRules => EndReason::TooComplex,
        _ => EndReason::BadRow,
    }
}

/// `*(sp + 160)`: the interrupted rsp in the kernel's `ucontext`.
const UCONTEXT_SP: &[u8] = &[0x77, 0xa0, 0x01, 0x06];
/// `sp + 168`: the address of the interrupted rip.
const UCONTEXT_IP: &[u8] = &[0x77, 0xa8, 0x01];

/// The CFA's formula, in the terms of a row.
enum Cfa {
    Sp(i32),
    Bp(i32),
    DerefBp(i32),
    Reg(Saved, i32),
    Plt(u8),
    Other,
}

/// The row that says the same as `rules`, [`Row::GENERAL`] if none can.
fn compress<'a, S: UnwindSection<Bytes<'a>>>(section: &S, fde: &Fde<'a>, rules: &Rules) -> Row {
    if fde.cie().return_address_register() != X86_64::RA {
        return Row::none(EndReason::Unsupported);
    }
    if fde.is_signal_trampoline() {
        return signal(section, rules);
    }
    let cfa = cfa_form(section, rules.cfa());
    let mut saved = SavedSlots::default();
    let mut return_address = None;
    for (register, rule) in rules.registers() {
        let slot = match *register {
            X86_64::RA => {
                return_address = Some(rule);
                continue;
            }
            X86_64::RBP => &mut saved.bp,
            X86_64::RBX => &mut saved.bx,
            X86_64::R12 => &mut saved.r12,
            X86_64::R13 => &mut saved.r13,
            X86_64::R14 => &mut saved.r14,
            X86_64::R15 => &mut saved.r15,
            // The caller's sp is the CFA unless a rule says otherwise.
            X86_64::RSP if !matches!(rule, RegisterRule::ValOffset(0)) => return Row::GENERAL,
            // Registers that no call preserves are of no use to the caller.
            _ => continue,
        };
        match words_below_base(section, &cfa, rule) {
            Some(words) => *slot = words,
            None => return Row::GENERAL,
        }
    }
    match return_address {
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Undefined) => return Row::ROOT,
        Some(_) => return Row::GENERAL,
        None => return Row::none(EndReason::Unsupported),
    }
    match cfa {
        Cfa::Sp(offset) => Row::sp(offset, saved),
        Cfa::Bp(offset) => Row::bp(offset, saved),
        Cfa::DerefBp(offset) => Row::deref_bp(offset, saved),
        Cfa::Reg(register, offset) => Row::reg(register, offset, saved),
        Cfa::Plt(threshold) if saved == SavedSlots::default() => Row::plt(threshold),
        Cfa::Plt(_) | Cfa::Other => Row::GENERAL,
    }
}

/// A frame marked as a signal trampoline: a compact row if its rules describe the kernel's `ucontext` at sp.
fn signal<'a, S: UnwindSection<Bytes<'a>>>(section: &S, rules: &Rules) -> Row {
    let is = |expression: &UnwindExpression<usize>, bytes: &[u8]| expression_bytes(section, expression) == Some(bytes);
    match (rules.cfa(), rules.register(X86_64::RA)) {
        (CfaRule::Expression(cfa), Some(RegisterRule::Expression(ip))) if is(cfa, UCONTEXT_SP) && is(&ip, UCONTEXT_IP) => Row::SIGNAL,
        _ => Row::GENERAL,
    }
}

fn cfa_form<'a, S: UnwindSection<Bytes<'a>>>(section: &S, rule: &CfaRule<usize>) -> Cfa {
    match rule {
        CfaRule::RegisterAndOffset { register, offset } => {
            let Ok(offset) = i32::try_from(*offset) else { return Cfa::Other };
            match *register {
                X86_64::RSP => Cfa::Sp(offset),
                X86_64::RBP => Cfa::Bp(offset),
                X86_64::RBX => Cfa::Reg(Saved::Bx, offset),
                X86_64::R12 => Cfa::Reg(Saved::R12, offset),
                X86_64::R13 => Cfa::Reg(Saved::R13, offset),
                X86_64::R14 => Cfa::Reg(Saved::R14, offset),
                X86_64::R15 => Cfa::Reg(Saved::R15, offset),
                _ => Cfa::Other,
            }
        }
        CfaRule::Expression(expression) => match expression_bytes(section, expression) {
            // rsp+8; rip; &15; >= threshold; *8; add: what linkers put into .eh_frame for .plt
            Some(&[0x77, 0x08, 0x80, 0x00, 0x3f, 0x1a, literal @ 0x30..=0x3f, 0x2a, 0x33, 0x24, 0x22]) => Cfa::Plt(literal & 15),
            Some([rest @ .., 0x06]) => match bp_relative(rest).map(i32::try_from) {
                Some(Ok(offset)) => Cfa::DerefBp(offset),
                _ => Cfa::Other,
            },
            _ => Cfa::Other,
        },
    }
}

/// The slot of a register in words below the row's frame base (0: unchanged), if a row can say it.
fn words_below_base<'a, S: UnwindSection<Bytes<'a>>>(section: &S, cfa: &Cfa, rule: &RegisterRule<usize>) -> Option<u8> {
    let below = match (rule, cfa) {
        // An undefined register has no recoverable value; keeping the present one is as good as any.
        (RegisterRule::SameValue | RegisterRule::Undefined, _) => return Some(0),
        // A realigned frame knows its slots by bp, which the base lies one word above.
        (RegisterRule::Expression(expression), Cfa::DerefBp(_)) => {
            8_i64.checked_sub(bp_relative(expression_bytes(section, expression)?)?)?
        }
        (_, Cfa::DerefBp(_)) => return None,
        (RegisterRule::Offset(offset), _) => offset.checked_neg()?,
        _ => return None,
    };
    let words = u8::try_from(below / 8).ok()?;
    (below % 8 == 0 && words != 0).then_some(words)
}

/// The offset `n` if the expression is `DW_OP_breg6 (rbp) n` and nothing else.
fn bp_relative(expression: &[u8]) -> Option<i64> {
    let [0x76, offset @ ..] = expression else { return None };
    let mut rest = EndianSlice::new(offset, gimli::LittleEndian);
    let offset = gimli::Reader::read_sleb128(&mut rest).ok()?;
    rest.is_empty().then_some(offset)
}

fn expression_bytes<'a, S: UnwindSection<Bytes<'a>>>(section: &S, expression: &UnwindExpression<usize>) -> Option<&'a [u8]> {
    Some(expression.get(section).ok()?.0.slice())
}
