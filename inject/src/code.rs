//! A function's first instructions: which ones a patch displaces, whether that is safe, and the same instructions for another place.

use core::fmt;

use hound_common::attach::DISPLACED;
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionBlock, OpKind, Register,
};

/// Bytes of a `jmp rel32`.
pub const JUMP: usize = 5;
/// `endbr64`: a patch begins behind it, so that a call through a pointer still meets it under branch tracking.
pub const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// `int3`: what breakpoints and uprobes put in the place of an instruction's first byte.
pub const BREAKPOINT: u8 = 0xcc;
/// `jmp [rip]`: the address follows.
const FAR_JUMP: [u8; 6] = [0xff, 0x25, 0, 0, 0, 0];
/// Most bytes of one trampoline: `endbr64`, the displaced instructions with their branches widened, the jump back.
pub const TRAMPOLINE: usize = 96;

/// Why a function's entry cannot be patched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It ends before a jump has room.
    Short {
        /// Its length.
        bytes: usize,
    },
    /// Bytes that are no instruction hound knows.
    Unknown,
    /// A breakpoint, or a uprobe, of somebody else.
    Breakpoint,
    /// A call: its return address would point into the patch.
    Call,
    /// A system call or an interrupt: threads sleep in it.
    Trap,
    /// Code jumps to the displaced bytes.
    Branch {
        /// From where.
        from: u64,
    },
    /// Another function begins there.
    Symbol {
        /// Where.
        at: u64,
    },
    /// The jump would not lie in one page: it could be written by half.
    Page,
    /// The same instructions cannot be had elsewhere.
    Fixed {
        /// Why not.
        why: String,
    },
    /// Memory is not what the file says: somebody else has patched it.
    Changed,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { bytes } => write!(f, "it is {bytes} bytes long, too short for a jump"),
            Self::Unknown => write!(f, "its first instructions are unknown to hound"),
            Self::Breakpoint => write!(f, "another tracer's breakpoint or uprobe is on its entry"),
            Self::Call => write!(f, "it begins with a call that cannot be moved"),
            Self::Trap => write!(f, "it begins with a system call"),
            Self::Branch { from } => write!(f, "code at {from:#x} jumps into its first instructions"),
            Self::Symbol { at } => write!(f, "another function begins inside its first instructions, at {at:#x}"),
            Self::Page => write!(f, "its entry crosses a page"),
            Self::Fixed { why } => write!(f, "its first instructions cannot be moved: {why}"),
            Self::Changed => write!(f, "its first instructions differ from the file's: somebody else has patched them"),
        }
    }
}

/// The instructions that a patch displaces.
#[derive(Clone, Debug)]
pub struct Displaced {
    /// Where the patch begins: the function's entry, or behind its `endbr64`.
    pub address: u64,
    /// What is there.
    pub bytes: Vec<u8>,
    instructions: Vec<Instruction>,
}

pub(crate) fn decode(code: &[u8], at: u64) -> Decoder<'_> {
    Decoder::with_ip(64, code, at, DecoderOptions::NONE)
}

impl Displaced {
    /// Picks whole instructions from a function's entry (`code`: the function, from there) until a jump has room.
    ///
    /// # Errors
    /// [`Unfit`], and then the function must not be patched.
    pub fn of(entry: u64, code: &[u8]) -> Result<Self, Unfit> {
        if code.first() == Some(&BREAKPOINT) {
            return Err(Unfit::Breakpoint);
        }
        let skipped = if code.starts_with(&ENDBR64) { ENDBR64.len() } else { 0 };
        let (address, code) = (entry + skipped as u64, &code[skipped..]);
        let mut decoder = decode(code, address);
        let mut instructions: Vec<Instruction> = Vec::new();
        let mut length = 0;
        while length < JUMP {
            if instructions.last().is_some_and(never_goes_on) || !decoder.can_decode() {
                return Err(Unfit::Short { bytes: skipped + length });
            }
            let instruction = decoder.decode();
            if instruction.is_invalid() {
                return Err(if decoder.can_decode() { Unfit::Unknown } else { Unfit::Short { bytes: skipped + code.len() } });
            }
            match instruction.flow_control() {
                // With its five bytes it is the last one displaced.
                FlowControl::Call if instruction.code() == Code::Call_rel32_64 => {}
                FlowControl::Call | FlowControl::IndirectCall => {
                    let trap = matches!(instruction.code(), Code::Syscall | Code::Sysenter);
                    return Err(if trap { Unfit::Trap } else { Unfit::Call });
                }
                FlowControl::Interrupt if instruction.code() == Code::Int3 => return Err(Unfit::Breakpoint),
                FlowControl::Interrupt | FlowControl::XbeginXabortXend => return Err(Unfit::Trap),
                _ => {}
            }
            length += instruction.len();
            instructions.push(instruction);
        }
        if length > DISPLACED {
            return Err(Unfit::Fixed { why: format!("they are {length} bytes long") });
        }
        if address / 4096 != (address + JUMP as u64 - 1) / 4096 {
            return Err(Unfit::Page);
        }
        Ok(Self { address, bytes: code[..length].to_vec(), instructions })
    }

    /// End of the displaced bytes.
    pub fn end(&self) -> u64 {
        self.address + self.bytes.len() as u64
    }

    /// Where the last displaced instruction calls, if it is a call. It becomes a push of the address behind the original and a jump: its
    /// callee returns to the function itself, and nobody who looks at the stack sees the difference. Not for a shadow stack.
    pub fn last_call(&self) -> Option<u64> {
        let last = self.instructions.last().filter(|last| last.flow_control() == FlowControl::Call)?;
        near_target(last)
    }

    /// The displaced instructions for a place at `at`, followed by a jump behind the originals (or to what the last of them calls).
    ///
    /// # Errors
    /// [`Unfit::Fixed`] where they do not mean the same there: the result is decoded again and compared.
    pub fn relocated(&self, at: u64) -> Result<Vec<u8>, Unfit> {
        let fixed = |why: String| Unfit::Fixed { why };
        let start = at + ENDBR64.len() as u64;
        let (moved, onward) = match self.last_call() {
            Some(target) => (&self.instructions[..self.instructions.len() - 1], target),
            None => (&self.instructions[..], self.end()),
        };
        // The call is not moved with the rest: a branch to it would lead into the patch.
        if moved.len() < self.instructions.len() && moved.iter().any(|i| near_target(i) == self.instructions.last().map(Instruction::ip)) {
            return Err(fixed("a branch among them leads to their call".into()));
        }
        // The jump back is not part of the block: BlockEncoder takes a branch to an address that an instruction of the block carries for
        // a branch within it, and would make of the jump back a jump to itself.
        let block = InstructionBlock::new(moved, start);
        let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).map_err(|e| fixed(e.to_string()))?;
        Self::check(moved, &encoded.code_buffer, start).map_err(fixed)?;
        let mut code = ENDBR64.to_vec();
        code.extend(encoded.code_buffer);
        if self.last_call().is_some() {
            let [a, b, c, d, high @ ..] = self.end().to_le_bytes();
            code.extend([0x68, a, b, c, d]); // push: 8 bytes, of which the upper half comes next
            code.extend([0xc7, 0x44, 0x24, 0x04]); // mov dword ptr [rsp + 4], …
            code.extend(high);
        }
        code.extend(FAR_JUMP);
        code.extend(onward.to_le_bytes());
        if code.len() > TRAMPOLINE { Err(fixed(format!("they take {} bytes elsewhere", code.len()))) } else { Ok(code) }
    }

    /// Whether code at `start` means instruction by instruction what the displaced ones do.
    fn check(wanted: &[Instruction], code: &[u8], start: u64) -> Result<(), String> {
        let moved: Vec<Instruction> = decode(code, start).iter().collect();
        if moved.len() != wanted.len() {
            return Err("one instruction becomes several".into());
        }
        let target = |of: u64| match wanted.iter().position(|i| i.ip() == of) {
            Some(at) => moved[at].ip(),
            None => of,
        };
        for (old, new) in wanted.iter().zip(&moved) {
            if !means_the_same(old, new, target) {
                return Err(format!("{:?} becomes {:?}", old.code(), new.code()));
            }
        }
        Ok(())
    }

    /// Whether the function itself (`code`, from `entry`) branches to its displaced bytes, or back to its entry: then each round of such a
    /// loop would be a call of the hook. Branches among the displaced instructions move along.
    ///
    /// # Errors
    /// [`Unfit::Branch`]
    pub fn no_branch_within(&self, entry: u64, code: &[u8]) -> Result<(), Unfit> {
        for instruction in &mut decode(code, entry) {
            let own = (self.address..self.end()).contains(&instruction.ip());
            let Some(target) = near_target(&instruction).filter(|_| !own) else { continue };
            let call = instruction.flow_control() == FlowControl::Call;
            let first = if call { self.address + 1 } else { entry };
            if (first..self.end()).contains(&target) {
                return Err(Unfit::Branch { from: instruction.ip() });
            }
        }
        Ok(())
    }
}

/// Whether what stands behind an instruction is reached from elsewhere only.
pub(crate) fn never_goes_on(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::UnconditionalBranch | FlowControl::IndirectBranch | FlowControl::Return | FlowControl::Exception
    )
}

pub(crate) fn near_target(instruction: &Instruction) -> Option<u64> {
    let near = matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32 | OpKind::NearBranch16);
    near.then(|| instruction.near_branch_target())
}

/// Whether two instructions at different places do the same; `target` says where a branch target is now.
fn means_the_same(old: &Instruction, new: &Instruction, target: impl Fn(u64) -> u64) -> bool {
    if old.mnemonic() != new.mnemonic() || old.op_count() != new.op_count() {
        return false;
    }
    if let (Some(before), Some(after)) = (near_target(old), near_target(new)) {
        return target(before) == after;
    }
    // Anything else keeps its very encoding, a displacement from rip excepted.
    old.code() == new.code()
        && old.has_lock_prefix() == new.has_lock_prefix()
        && old.has_rep_prefix() == new.has_rep_prefix()
        && old.has_repne_prefix() == new.has_repne_prefix()
        && (0..old.op_count()).all(|n| same_operand(old, new, n))
}

fn same_operand(old: &Instruction, new: &Instruction, n: u32) -> bool {
    if old.op_kind(n) != new.op_kind(n) {
        return false;
    }
    match old.op_kind(n) {
        OpKind::Register => old.op_register(n) == new.op_register(n),
        OpKind::Memory if old.is_ip_rel_memory_operand() => {
            new.is_ip_rel_memory_operand() && old.ip_rel_memory_address() == new.ip_rel_memory_address()
        }
        OpKind::Memory => {
            let parts = |i: &Instruction| {
                (i.memory_base(), i.memory_index(), i.memory_index_scale(), i.memory_displacement64(), i.memory_segment())
            };
            parts(old) == parts(new) && new.memory_base() != Register::RIP
        }
        _ => old.try_immediate(n).ok() == new.try_immediate(n).ok(),
    }
}

/// A range of displaced bytes, for [`branches_into`]: the first is exclusive, a jump to the patch's beginning being a call like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// Where the patch begins.
    pub start: u64,
    /// End of the displaced bytes.
    pub end: u64,
}

/// Bytes anywhere in `code` (at `at`) that, read as a `jmp`, `jcc` or `call` of 32 bits, lead inside one of `ranges` (sorted): where from,
/// and which range. They may be in the middle of an instruction: [`is_instruction`] tells.
pub fn branches_into(code: &[u8], at: u64, ranges: &[Range]) -> Vec<(u64, usize)> {
    let mut found = Vec::new();
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return found };
    for (n, window) in code.windows(JUMP).enumerate() {
        let [opcode, a, b, c, d] = *window else { continue };
        let conditional = opcode & 0xf0 == 0x80 && n > 0 && code[n - 1] == 0x0f;
        if !conditional && opcode != 0xe8 && opcode != 0xe9 {
            continue;
        }
        let next = at + n as u64 + JUMP as u64;
        let target = next.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])));
        if target <= first.start || target >= last.end {
            continue;
        }
        let which = ranges.partition_point(|r| r.end <= target);
        if ranges[which].start < target {
            found.push((at + n as u64 - u64::from(conditional), which));
        }
    }
    found
}

/// Whether, decoding a function (`code`, from `entry`) from its beginning, an instruction starts at `at`.
pub fn is_instruction(entry: u64, code: &[u8], at: u64) -> bool {
    decode(code, entry).iter().take_while(|i| i.ip() <= at).any(|i| i.ip() == at)
}

/// The `jmp rel32` at `from` that leads to `to`; `None` where it does not reach.
pub fn jump(from: u64, to: u64) -> Option<[u8; JUMP]> {
    let distance = i32::try_from(to.wrapping_sub(from + JUMP as u64).cast_signed()).ok()?;
    let [a, b, c, d] = distance.to_le_bytes();
    Some([0xe9, a, b, c, d])
}

/// Where a `jmp rel32` at `from` leads; `None` when it is none.
pub fn jump_target(from: u64, bytes: &[u8]) -> Option<u64> {
    match bytes {
        [0xe9, a, b, c, d, ..] => Some((from + JUMP as u64).wrapping_add_signed(i64::from(i32::from_le_bytes([*a, *b, *c, *d])))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x7f00_0000_1000;
    const THERE: u64 = 0x7f00_1000_0000;

    #[test]
    fn takes_whole_instructions_and_widens_the_branch() {
        // glibc's free: test rdi,rdi; je +0x6b; push r12; ...
        let code = [0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x85, 0xff, 0x0f, 0x84, 0xbb, 0, 0, 0, 0x55, 0xc3];
        let displaced = Displaced::of(AT, &code).unwrap();
        assert_eq!((displaced.address, displaced.bytes.len()), (AT + 4, 9));
        let moved = displaced.relocated(THERE).unwrap();
        let list: Vec<Instruction> = decode(&moved, THERE).iter().collect();
        assert_eq!(list[0].code(), Code::Endbr64);
        assert_eq!(list[2].near_branch_target(), AT + 13 + 0xbb);
        assert_eq!(moved[moved.len() - 8..], (AT + 13).to_le_bytes());
    }

    #[test]
    fn a_branch_to_the_first_byte_behind_goes_there() {
        // test rdi,rdi; je +0: the target carries the very address at which execution goes on.
        let code = [0x48, 0x85, 0xff, 0x74, 0x00, 0x90, 0xc3];
        let displaced = Displaced::of(AT, &code).unwrap();
        let moved = displaced.relocated(THERE).unwrap();
        let branch = decode(&moved, THERE).iter().nth(2).unwrap();
        assert_eq!(branch.near_branch_target(), AT + 5);
    }

    #[test]
    fn refuses_what_cannot_be_displaced() {
        let unfit = |code: &[u8]| Displaced::of(AT, code).unwrap_err();
        assert_eq!(unfit(&[0x31, 0xc0, 0xc3, 0x90, 0x90, 0x90]), Unfit::Short { bytes: 3 });
        assert_eq!(unfit(&[0xf3, 0x0f, 0x1e, 0xfa, 0xc3]), Unfit::Short { bytes: 5 });
        assert_eq!(unfit(&[0x48, 0x85, 0xff]), Unfit::Short { bytes: 3 });
        assert_eq!(unfit(&[0xcc, 0x85, 0xff, 0x90, 0x90]), Unfit::Breakpoint);
        assert_eq!(unfit(&[0x55, 0xcc, 0x90, 0x90, 0x90]), Unfit::Breakpoint);
        assert_eq!(unfit(&[0x55, 0xff, 0xd0, 0x90, 0x90]), Unfit::Call);
        assert_eq!(unfit(&[0x89, 0xf8, 0x0f, 0x05, 0xc3]), Unfit::Trap);
        assert_eq!(unfit(&[0x06, 0x90, 0x90, 0x90, 0x90]), Unfit::Unknown);
        let page_end = AT + 4096 - 4;
        assert_eq!(Displaced::of(page_end, &[0xb8, 1, 0, 0, 0, 0xc3]).unwrap_err(), Unfit::Page);
        // A jump of five bytes is a whole function.
        assert_eq!(Displaced::of(AT, &[0xe9, 1, 0, 0, 0]).unwrap().bytes.len(), 5);
    }

    #[test]
    fn a_call_returns_to_the_function_itself() {
        // push rbx; call +0x100; ...
        let code = [0x53, 0xe8, 0, 1, 0, 0, 0x5b, 0xc3];
        let displaced = Displaced::of(AT, &code).unwrap();
        assert_eq!((displaced.bytes.len(), displaced.last_call()), (6, Some(AT + 0x106)));
        let moved = displaced.relocated(THERE).unwrap();
        let list: Vec<Instruction> = decode(&moved, THERE).iter().collect();
        assert_eq!(list[1].code(), Code::Push_r64);
        let (low, high) = (list[2].immediate32to64() as u64 & 0xffff_ffff, u64::from(list[3].immediate32()));
        assert_eq!((list[2].code(), low | high << 32), (Code::Pushq_imm32, AT + 6));
        assert_eq!((list[3].memory_base(), list[3].memory_displacement64()), (Register::RSP, 4));
        assert_eq!(moved[moved.len() - 8..], (AT + 0x106).to_le_bytes());
        // je to the call: it does not move along.
        let displaced = Displaced::of(AT, &[0x74, 0x00, 0xe8, 0, 1, 0, 0, 0xc3]).unwrap();
        assert!(matches!(displaced.relocated(THERE), Err(Unfit::Fixed { .. })));
    }

    #[test]
    fn finds_branches_into_the_displaced_bytes() {
        // push rbp; mov rbp,rsp; L: dec edi; jne L; ret: the loop's head is displaced.
        let code = [0x55, 0x48, 0x89, 0xe5, 0xff, 0xcf, 0x75, 0xfc, 0xc3];
        let displaced = Displaced::of(AT, &code).unwrap();
        assert_eq!(displaced.no_branch_within(AT, &code), Err(Unfit::Branch { from: AT + 6 }));
        // From elsewhere: jne, jmp and call of 32 bits; the one to the beginning is fine.
        let range = [Range { start: AT, end: AT + 6 }];
        let mut far = vec![0x0f, 0x85];
        far.extend((-0x1006_i32 + 2).to_le_bytes()); // to AT + 2 from AT + 0x1000
        far.extend([0xe9]);
        far.extend((-0x100b_i32).to_le_bytes()); // to AT
        assert_eq!(branches_into(&far, AT + 0x1000, &range), [(AT + 0x1000, 0)]);
        assert!(is_instruction(AT + 0x1000, &far, AT + 0x1006));
        assert!(!is_instruction(AT + 0x1000, &far, AT + 0x1002));
    }

    #[test]
    fn a_jump_reads_back() {
        let bytes = jump(AT, THERE).unwrap();
        assert_eq!(jump_target(AT, &bytes), Some(THERE));
        assert_eq!(jump(AT, AT + (3 << 30)), None);
    }
}
