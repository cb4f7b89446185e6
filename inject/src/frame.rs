//! The signal frame from which a borrowed thread restores itself, as the kernel's `rt_sigreturn` reads it.

use libc::user_regs_struct;

use crate::error::Error;
use crate::memory::Memory;

/// Below the stack pointer, the function's own (System V ABI).
const RED_ZONE: u64 = 128;
/// Return address, ucontext, siginfo.
const FIXED: u64 = 448;
/// More than any x86-64 thread's extended state.
const STATE_ROOM: u64 = 12 * 1024;
/// Legacy area and header of an XSAVE area: the least the kernel takes.
const LEAST_STATE: usize = 576;
/// Where an XSAVE area's legacy part has room for software.
const SOFTWARE: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// x87 and SSE: always there.
const LEGACY_FEATURES: u64 = 3;
/// UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
const FLAGS: u64 = 7;
/// Not a mode that sigaltstack knows: it leaves the thread's alternate stack as it is, and `rt_sigreturn` passes over the failure.
const ALTSTACK_UNCHANGED: u64 = 7;

/// How a thread gets from the end of a call to `rt_sigreturn`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum WayBack {
    /// By a libc's own code for it.
    Restorer(u64),
    /// By `pop rax; ret`, which takes the call's number from the stack, and `syscall`.
    Chain {
        /// Where `pop rax; ret` is.
        pop: u64,
        /// Where `syscall` is.
        syscall: u64,
    },
}

impl WayBack {
    /// The words on the stack that it takes, in front of the ucontext.
    fn words(self) -> Vec<u64> {
        match self {
            WayBack::Restorer(restorer) => vec![restorer],
            WayBack::Chain { pop, syscall } => vec![pop, libc::SYS_rt_sigreturn as u64, syscall],
        }
    }
}

/// Where a frame lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Where the ucontext is.
    context: u64,
    /// The XSAVE area, behind it.
    state: u64,
}

impl Frame {
    /// Below a thread's stack pointer.
    pub(crate) fn below(sp: u64) -> Frame {
        Frame::ending(sp - RED_ZONE)
    }

    /// At the end of a piece of memory: what the kernel writes below, for a signal while it returns, has room too.
    pub(crate) fn within(address: u64, bytes: u64) -> Frame {
        Frame::ending(address + bytes)
    }

    fn ending(end: u64) -> Frame {
        let state = (end - STATE_ROOM) & !63;
        Frame { context: ((state - FIXED) & !15) + 8, state }
    }

    /// Its first byte: the stack pointer during calls. The return address is there.
    pub(crate) fn start(&self, back: WayBack) -> u64 {
        self.context - 8 * back.words().len() as u64
    }

    /// The least and the greatest stack pointer of a thread that is in a call, or on its way back through the frame.
    pub(crate) fn on_the_way(&self, back: WayBack) -> (u64, u64) {
        (self.start(back), self.context)
    }

    /// The frame's address and bytes.
    ///
    /// # Errors
    /// [`Error::Unfit`] when the thread's floating-point state is not one that this can hold.
    pub(crate) fn bytes(&self, back: WayBack, regs: &user_regs_struct, mask: u64, xstate: &[u8]) -> Result<(u64, Vec<u8>), Error> {
        let mut bytes = Vec::with_capacity(4096);
        let mut word = |value: u64| bytes.extend_from_slice(&value.to_le_bytes());
        back.words().into_iter().for_each(&mut word);
        word(FLAGS);
        word(0); // uc_link
        [0, ALTSTACK_UNCHANGED, 0].into_iter().for_each(&mut word);
        let segments = regs.cs & 0xffff | (regs.ss & 0xffff) << 48;
        let r = regs;
        // struct sigcontext
        [r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15].into_iter().for_each(&mut word);
        [r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp, r.rip, r.eflags].into_iter().for_each(&mut word);
        // Segments; error, trap, old mask, cr2: of no meaning on the way back; the state's address; reserved.
        [segments, 0, 0, mask, 0, self.state].into_iter().for_each(&mut word);
        (0..8).for_each(|_| word(0));
        word(mask);
        let start = self.start(back);
        bytes.resize((self.state - start) as usize, 0);
        bytes.extend_from_slice(&state(xstate)?);
        Ok((start, bytes))
    }
}

/// The XSAVE area with what the kernel wants to see around it.
fn state(xstate: &[u8]) -> Result<Vec<u8>, Error> {
    let unfit = || Error::Unfit { what: "the thread's floating-point state has an unknown form".into() };
    let header = xstate.get(512..520).ok_or_else(unfit)?;
    let features = u64::from_le_bytes(header.try_into().map_err(|_| unfit())?) | LEGACY_FEATURES;
    // Only as far as features in use reach: the kernel takes no more than the thread has room for, which with AMX is less than what ptrace
    // gives. The others are in their initial state, which is what the kernel makes of those not named.
    let size = (2..63).filter(|bit| features >> bit & 1 == 1).map(end_of).fold(LEAST_STATE, usize::max);
    let mut bytes = xstate.get(..size).ok_or_else(unfit)?.to_vec();
    if bytes.len() as u64 + 4 > STATE_ROOM - 64 {
        return Err(unfit());
    }
    let size = size as u32;
    bytes[SOFTWARE..512].fill(0);
    bytes[SOFTWARE..SOFTWARE + 4].copy_from_slice(&MAGIC1.to_le_bytes());
    bytes[SOFTWARE + 4..SOFTWARE + 8].copy_from_slice(&(size + 4).to_le_bytes());
    bytes[SOFTWARE + 8..SOFTWARE + 16].copy_from_slice(&features.to_le_bytes());
    bytes[SOFTWARE + 16..SOFTWARE + 20].copy_from_slice(&size.to_le_bytes());
    bytes[512..520].copy_from_slice(&features.to_le_bytes());
    bytes.extend_from_slice(&MAGIC2.to_le_bytes());
    Ok(bytes)
}

/// Where a feature's part of an XSAVE area in the standard format ends.
fn end_of(feature: u32) -> usize {
    // Leaf 13 tells of a feature the offset in ebx and the size in eax.
    let leaf = std::arch::x86_64::__cpuid_count(13, feature);
    (leaf.ebx + leaf.eax) as usize
}

/// Whether `ip` lies in the restartable sequence that a thread has announced in its rseq area (0 = it has none).
pub(crate) fn in_restartable_sequence(memory: &Memory, area: u64, ip: u64) -> bool {
    if area == 0 {
        return false;
    }
    // struct rseq: two cpu numbers, the pointer to struct rseq_cs: version and flags, start, length, abort.
    match memory.read_u64(area + 8) {
        Ok(0) | Err(_) => false,
        Ok(sequence) => match (memory.read_u64(sequence + 8), memory.read_u64(sequence + 16)) {
            (Ok(start), Ok(length)) => ip.wrapping_sub(start) < length,
            _ => false,
        },
    }
}
