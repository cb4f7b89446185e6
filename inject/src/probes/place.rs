//! Where in a function a uprobe costs least and still sees the call as its caller made it.
//!
//! A uprobe is a breakpoint. What it costs beyond the trap depends on the instruction that it covers: most are stepped over elsewhere,
//! which takes a second trap, and the kernel carries out a few by itself. Which ones, was measured (Linux 6.18) and read in
//! `arch/x86/kernel/uprobes.c`: `push` of a 64-bit register (from 4.17), `nop` with a prefix or none, and near jumps, calls and
//! conditional jumps (from 3.16). Later kernels carry out longer `nop`s, too, which are not relied on. `endbr64` is stepped.

use hound_common::kernel::{Cookie, DOES_FREE, NOTHING};
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::code::{BREAKPOINT, Unfit, decode, near_target};

/// The System V ABI's argument registers.
const ARGUMENTS: [Register; 6] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
/// What unwinding from the probe needs as the caller left it.
const CALLERS: [Register; 7] = [Register::RSP, Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
/// Instructions looked at: an emulated one stands among the first or nowhere near.
const REACH: usize = 48;

/// How the kernel passes over the probed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// The kernel does what the instruction does.
    Emulated,
    /// The instruction runs elsewhere, followed by a second trap.
    Stepped,
}

impl How {
    /// What a call of the function costs by a probe that does nothing, in ns of the target's time: as measured on a virtual machine. The
    /// machine makes it half or double; the ratio stays.
    pub fn cost_ns(self) -> u64 {
        match self {
            How::Emulated => 700,
            How::Stepped => 9200,
        }
    }
}

/// A place for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The instruction's address.
    pub address: u64,
    /// What it is to the kernel.
    pub how: How,
    /// Where the arguments are there: the function may have moved them among the argument registers.
    pub cookie: Cookie,
    /// Calls that release null do not come there.
    pub skips_null: bool,
}

/// Whether the kernel emulates an instruction (`bytes`: it alone).
pub fn is_emulated(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [0x50..=0x57 | 0x90]
            | [0x41, 0x50..=0x57]
            | [0x66, 0x90]
            | [0xeb | 0x70..=0x7f, _]
            | [0xe8 | 0xe9, _, _, _, _]
            | [0x0f, 0x80..=0x8f, _, _, _, _]
    )
}

/// In which argument registers (bits) the arguments that a cookie names are.
#[derive(Clone, Copy)]
struct Arguments {
    wanted: Cookie,
    now: [u8; 6],
}

impl Arguments {
    fn of(cookie: Cookie) -> Self {
        Self { wanted: cookie, now: [0, 1, 2, 3, 4, 5].map(|n| 1 << n) }
    }

    fn place(&self, argument: u8) -> Option<u8> {
        match self.now.get(usize::from(argument)) {
            None => Some(NOTHING),
            Some(bits) if bits & 1 << argument != 0 => Some(argument),
            Some(0) => None,
            Some(bits) => Some(bits.trailing_zeros() as u8),
        }
    }

    /// The cookie with the arguments' places as they are now; `None` where one of them is lost.
    fn cookie(&self) -> Option<Cookie> {
        let Cookie { size, count, block, out, .. } = self.wanted;
        let [size, count, block, out] = [self.place(size)?, self.place(count)?, self.place(block)?, self.place(out)?];
        Some(Cookie { size, count, block, out, pushes: 0, ..self.wanted })
    }

    /// Takes note of what an instruction does to them. False where it changes what unwinding needs.
    fn pass(&mut self, instruction: &Instruction, info: &mut InstructionInfoFactory) -> bool {
        let number = |register: Register| ARGUMENTS.iter().position(|of| *of == register.full_register());
        let moved = match (instruction.code(), instruction.op1_kind()) {
            (Code::Mov_r64_rm64 | Code::Mov_rm64_r64, OpKind::Register) => {
                number(instruction.op0_register()).zip(number(instruction.op1_register()))
            }
            _ => None,
        };
        if let Some((to, from)) = moved {
            for bits in &mut self.now {
                *bits = *bits & !(1 << to) | (*bits >> from & 1) << to;
            }
            return true;
        }
        for used in info.info(instruction).used_registers() {
            if !matches!(used.access(), OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite) {
                continue;
            }
            if CALLERS.contains(&used.register().full_register()) {
                return false;
            }
            if let Some(gone) = number(used.register()) {
                self.now.iter_mut().for_each(|bits| *bits &= !(1 << gone));
            }
        }
        true
    }
}

/// Places for a probe that every call (but releases of null) comes to as its caller made it: with its arguments in argument registers, the
/// return address on top of the stack, and the caller's registers untouched. `code`: the function, from `entry`. The best first; the last
/// one is the entry itself.
///
/// # Errors
/// [`Unfit::Breakpoint`], [`Unfit::Unknown`]
pub fn spots(entry: u64, code: &[u8], cookie: Cookie) -> Result<Vec<Spot>, Unfit> {
    if code.first() == Some(&BREAKPOINT) {
        return Err(Unfit::Breakpoint);
    }
    let mut found: Vec<Spot> = Vec::new();
    let mut arguments = Arguments::of(cookie);
    let mut info = InstructionInfoFactory::new();
    let mut before: Option<Instruction> = None;
    for instruction in decode(code, entry).iter().take(REACH) {
        let Some(now) = arguments.cookie().filter(|_| !instruction.is_invalid()) else { break };
        let at = (instruction.ip() - entry) as usize;
        if is_emulated(&code[at..at + instruction.len()]) {
            let skips_null = !found.is_empty();
            found.insert(0, Spot { address: instruction.ip(), how: How::Emulated, cookie: now, skips_null });
            // Beyond the jump that is taken for null every other call goes on, and those for null need no trap.
            if !skips_null && cookie.does == DOES_FREE && before.is_some_and(|test| skips_null_only(&test, &instruction, now.block)) {
                before = Some(instruction);
                continue;
            }
            break;
        }
        let goes_on = instruction.flow_control() == iced_x86::FlowControl::Next;
        if !goes_on || !arguments.pass(&instruction, &mut info) {
            break;
        }
        before = Some(instruction);
    }
    if found.last().is_none_or(|spot| spot.address != entry) {
        let first = decode(code, entry).iter().next().filter(|first| !first.is_invalid()).ok_or(Unfit::Unknown)?;
        found.push(Spot { address: first.ip(), how: How::Stepped, cookie: Cookie { pushes: 0, ..cookie }, skips_null: false });
    }
    Ok(found)
}

/// Whether these two are `test block, block; je`.
fn skips_null_only(test: &Instruction, jump: &Instruction, block: u8) -> bool {
    let register = ARGUMENTS.get(usize::from(block)).copied();
    test.code() == Code::Test_rm64_r64
        && test.op0_kind() == OpKind::Register
        && Some(test.op0_register()) == register
        && Some(test.op1_register()) == register
        && jump.mnemonic() == Mnemonic::Je
}

/// Whether the function itself (`code`, from `entry`) comes to `spot` more than once a call.
///
/// # Errors
/// [`Unfit::Branch`]
pub fn no_loop(entry: u64, code: &[u8], spot: &Spot) -> Result<(), Unfit> {
    for instruction in &mut decode(code, entry) {
        let call = instruction.flow_control() == iced_x86::FlowControl::Call;
        let first = if call { entry + 1 } else { entry };
        if near_target(&instruction).is_some_and(|target| (first..=spot.address).contains(&target)) {
            return Err(Unfit::Branch { from: instruction.ip() });
        }
    }
    Ok(())
}
