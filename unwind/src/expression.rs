//! A bounded evaluator for the DWARF expressions in call frame information.
//!
//! gimli decodes the operations; evaluating them is done here because expressions in unwind tables need a fraction of what
//! debug information does: 64-bit integers, one small stack, no pieces, types or entry values. Termination is a matter
//! of counting: at most [`MAX_OPERATIONS`] are executed.

use gimli::{Encoding, EndianSlice, Format, LittleEndian, Operation, Register};

use crate::EndReason;
use crate::step::aligned;

/// The deepest stack; glibc's hand-written expressions use four values.
const MAX_DEPTH: usize = 16;
/// The most operations one expression may execute, loops included.
const MAX_OPERATIONS: usize = 256;

const ENCODING: Encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };

type Code<'a> = EndianSlice<'a, LittleEndian>;

/// The value on top of the stack after `code` ran on a stack that held `initial`.
pub(crate) fn run(
    code: &[u8],
    initial: Option<u64>,
    register: impl Fn(Register) -> Option<u64>,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<u64, EndReason> {
    let whole = Code::new(code, LittleEndian);
    let mut rest = whole;
    let mut stack = Stack::default();
    if let Some(value) = initial {
        stack.push(value)?;
    }
    for _ in 0..MAX_OPERATIONS {
        if rest.is_empty() {
            return stack.pop();
        }
        let operation = Operation::parse(&mut rest, ENCODING).map_err(|_| EndReason::BadRow)?;
        match operation {
            Operation::RegisterOffset { register: number, offset, .. } => {
                let base = register(number).ok_or(EndReason::Unsupported)?;
                stack.push(base.wrapping_add_signed(offset))?;
            }
            Operation::Deref { size, space: false, .. } => {
                let address = stack.pop()?;
                stack.push(load(address, size, read)?)?;
            }
            Operation::Skip { target } => rest = jump(whole, rest, target)?,
            Operation::Bra { target } => {
                if stack.pop()? != 0 {
                    rest = jump(whole, rest, target)?;
                }
            }
            other => compute(&other, &mut stack)?,
        }
    }
    Err(EndReason::TooComplex)
}

/// The code from `target` bytes after the present operation on.
fn jump<'a>(whole: Code<'a>, rest: Code<'a>, target: i16) -> Result<Code<'a>, EndReason> {
    let position = whole.len().wrapping_sub(rest.len());
    let position = position.checked_add_signed(isize::from(target)).ok_or(EndReason::BadRow)?;
    let code = whole.slice().get(position..).ok_or(EndReason::BadRow)?;
    Ok(Code::new(code, LittleEndian))
}

/// Loads `size` bytes, zero-extended. `read` is only ever asked for aligned words, so the bytes must not straddle two.
fn load(address: u64, size: u8, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<u64, EndReason> {
    let within = address & 7;
    if size == 0 || within.saturating_add(u64::from(size)) > 8 {
        return Err(EndReason::Misaligned);
    }
    let word = aligned(address & !7, read)? >> (within * 8);
    let unused_bits = 64_u32.saturating_sub(u32::from(size) * 8);
    Ok(word & (u64::MAX >> unused_bits))
}

/// The operations that need nothing but the stack.
fn compute(operation: &Operation<Code<'_>>, stack: &mut Stack) -> Result<(), EndReason> {
    let value = match *operation {
        Operation::Nop => return Ok(()),
        Operation::Drop => return stack.pop().map(|_| ()),
        Operation::Pick { index } => stack.pick(index)?,
        Operation::Swap => return stack.rotate(2),
        Operation::Rot => return stack.rotate(3),
        Operation::UnsignedConstant { value } => value,
        Operation::SignedConstant { value } => value.cast_unsigned(),
        Operation::Address { address } => address,
        Operation::PlusConstant { value } => stack.pop()?.wrapping_add(value),
        Operation::Abs => stack.pop()?.cast_signed().wrapping_abs().cast_unsigned(),
        Operation::Neg => stack.pop()?.wrapping_neg(),
        Operation::Not => !stack.pop()?,
        _ => {
            let right = stack.pop()?;
            let left = stack.pop()?;
            combine(operation, left, right)?
        }
    };
    stack.push(value)
}

/// The operations on two values. Arithmetic wraps; comparisons are signed, as DWARF has them for untyped values.
fn combine(operation: &Operation<Code<'_>>, left: u64, right: u64) -> Result<u64, EndReason> {
    let (signed_left, signed_right) = (left.cast_signed(), right.cast_signed());
    let amount = u32::try_from(right).unwrap_or(u32::MAX);
    Ok(match operation {
        Operation::Plus => left.wrapping_add(right),
        Operation::Minus => left.wrapping_sub(right),
        Operation::Mul => left.wrapping_mul(right),
        Operation::Div if right != 0 => signed_left.wrapping_div(signed_right).cast_unsigned(),
        Operation::Mod if right != 0 => left.wrapping_rem(right),
        Operation::Div | Operation::Mod => return Err(EndReason::BadRow),
        Operation::And => left & right,
        Operation::Or => left | right,
        Operation::Xor => left ^ right,
        Operation::Shl => left.checked_shl(amount).unwrap_or(0),
        Operation::Shr => left.checked_shr(amount).unwrap_or(0),
        Operation::Shra => (signed_left >> amount.min(63)).cast_unsigned(),
        Operation::Eq => u64::from(left == right),
        Operation::Ne => u64::from(left != right),
        Operation::Ge => u64::from(signed_left >= signed_right),
        Operation::Gt => u64::from(signed_left > signed_right),
        Operation::Le => u64::from(signed_left <= signed_right),
        Operation::Lt => u64::from(signed_left < signed_right),
        _ => return Err(EndReason::Unsupported),
    })
}

/// The evaluation stack: fixed in size, every access checked.
#[derive(Default)]
struct Stack {
    values: [u64; MAX_DEPTH],
    depth: usize,
}

impl Stack {
    fn push(&mut self, value: u64) -> Result<(), EndReason> {
        *self.values.get_mut(self.depth).ok_or(EndReason::TooComplex)? = value;
        self.depth = self.depth.saturating_add(1);
        Ok(())
    }

    fn pop(&mut self) -> Result<u64, EndReason> {
        let value = self.pick(0)?;
        self.depth = self.depth.saturating_sub(1);
        Ok(value)
    }

    /// The value `index` below the top.
    fn pick(&self, index: u8) -> Result<u64, EndReason> {
        let place = self.depth.checked_sub(usize::from(index).saturating_add(1));
        place.and_then(|place| self.values.get(place)).copied().ok_or(EndReason::BadRow)
    }

    /// Moves the top below the `count - 1` values under it.
    fn rotate(&mut self, count: usize) -> Result<(), EndReason> {
        let from = self.depth.checked_sub(count).ok_or(EndReason::BadRow)?;
        self.values.get_mut(from..self.depth).ok_or(EndReason::BadRow)?.rotate_right(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::run;
    use crate::EndReason;

    fn value(code: &[u8]) -> Result<u64, EndReason> {
        run(code, None, |register| Some(u64::from(register.0) * 1000), &mut |address| Some(address ^ 0xff00))
    }

    #[test]
    fn operations_compute_what_dwarf_says() {
        let cases: &[(&[u8], u64)] = &[
            (&[0x35, 0x33, 0x1c], 2),                   // lit5 lit3 minus
            (&[0x33, 0x35, 0x16, 0x1c], 2),             // lit3 lit5 swap minus
            (&[0x31, 0x32, 0x33, 0x17, 0x1e, 0x1c], 1), // lit1 lit2 lit3 rot: 3 1 2; mul: 3 2; minus
            (&[0x31, 0x32, 0x14], 1),                   // over
            (&[0x77, 0x08], 7008),                      // breg7+8
            (&[0x40, 0x06], 16 ^ 0xff00),               // lit16 deref
            (&[0x41, 0x94, 0x01], 0xff),                // lit17 deref_size 1: second byte of the word at 16
            (&[0x31, 0x28, 0x01, 0x00, 0x32, 0x33], 3), // lit1 bra+1 (over lit2) lit3
            (&[0x09, 0xff, 0x30, 0x2d], 1),             // -1 < 0 is signed
            (&[0x31, 0x08, 200, 0x24], 0),              // 1 << 200
            (&[0x09, 0x80, 0x08, 200, 0x26], u64::MAX), // -128 >> 200, arithmetic
        ];
        for (code, expected) in cases {
            assert_eq!(value(code), Ok(*expected), "{code:x?}");
        }
    }

    #[test]
    fn bad_expressions_end_with_a_reason() {
        assert_eq!(value(&[]), Err(EndReason::BadRow), "nothing on the stack");
        assert_eq!(value(&[0x2f, 0xfd, 0xff]), Err(EndReason::TooComplex), "skip -3 loops");
        assert_eq!(value(&[0x31; 40]), Err(EndReason::TooComplex), "the stack is full");
        assert_eq!(value(&[0x31, 0x30, 0x1b]), Err(EndReason::BadRow), "division by zero");
        assert_eq!(value(&[0x31, 0x06]), Err(EndReason::Misaligned));
        assert_eq!(value(&[0x9c]), Err(EndReason::BadRow), "call_frame_cfa makes no sense in CFI");
    }
}
