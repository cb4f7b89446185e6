//! Whether a thread's seccomp filters let hound's system calls pass.
//!
//! The filters are classic BPF programs over the call's number, architecture, instruction pointer and arguments. hound runs them itself,
//! over the very values it will make the call with: anything but "allow" and "log" is a refusal.

use libc::sock_filter;
use nix::errno::Errno;

use crate::error::{Error, Refusal};
use crate::trace;

/// `AUDIT_ARCH_X86_64`
const ARCHITECTURE: u32 = 0xc000_003e;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_KILL: u32 = 0;
const ACTION: u32 = 0xffff_0000;
/// Of `struct seccomp_data`.
const DATA_BYTES: u32 = 64;

/// A system call as a filter sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub number: i64,
    pub instruction_pointer: u64,
    pub arguments: [u64; 6],
}

/// The filters of one thread.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    tid: i32,
    programs: Vec<Vec<sock_filter>>,
}

impl Filters {
    /// Reads the filters of a stopped thread, which the kernel allows to CAP_SYS_ADMIN only.
    pub(crate) fn of(pid: i32, tid: i32) -> Result<Filters, Error> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).map_err(|_| Error::Gone)?;
        let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map_or("0", str::trim);
        let mut programs = Vec::new();
        match mode {
            "0" => {}
            "2" => loop {
                match trace::filter(tid, programs.len()) {
                    Ok(Some(program)) => programs.push(program),
                    Ok(None) => break,
                    Err(Errno::ESRCH) => return Err(Error::Gone),
                    Err(errno) => return Err(Refusal::SeccompUnreadable { tid, errno: errno as i32 }.into()),
                }
            },
            // Strict mode knows read, write, _exit and sigreturn.
            _ => return Err(Refusal::SeccompForbids { call: "every call hound needs (strict mode)".into(), tid }.into()),
        }
        Ok(Filters { tid, programs })
    }

    /// Refuses a call that a filter does not let pass.
    pub(crate) fn check(&self, call: &Call) -> Result<(), Refusal> {
        let passes = |program: &Vec<sock_filter>| matches!(run(program, call) & ACTION, RET_ALLOW | RET_LOG);
        match self.programs.iter().all(passes) {
            true => Ok(()),
            false => Err(Refusal::SeccompForbids { call: describe(call), tid: self.tid }),
        }
    }

    /// Refuses if one of the calls that an attach consists of does not pass.
    pub(crate) fn check_all(&self, instruction_pointer: u64) -> Result<(), Refusal> {
        NEEDED.iter().try_for_each(|&(number, arguments)| self.check(&Call { number, instruction_pointer, arguments }))
    }
}

const READ_WRITE: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const READ_EXECUTE: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;
const PRIVATE: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
const SHARED: u64 = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64;
/// An address and a length as they are: filters compare the other arguments.
const AT: u64 = 0x7f00_0000_0000;
const PAGE: u64 = 4096;

/// The calls an attach makes, with arguments of their kind.
const NEEDED: [(i64, [u64; 6]); 8] = [
    (libc::SYS_memfd_create, [AT, (libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) as u64, 0, 0, 0, 0]),
    (libc::SYS_mmap, [AT, PAGE, READ_WRITE, PRIVATE, u64::MAX, 0]),
    (libc::SYS_mmap, [AT, PAGE, READ_WRITE, SHARED, 3, 0]),
    (libc::SYS_mprotect, [AT, PAGE, READ_EXECUTE, 0, 0, 0]),
    (libc::SYS_madvise, [AT, PAGE, libc::MADV_WIPEONFORK as u64, 0, 0, 0]),
    (libc::SYS_munmap, [AT, PAGE, 0, 0, 0, 0]),
    (libc::SYS_close, [3, 0, 0, 0, 0, 0]),
    (libc::SYS_rt_sigreturn, [0; 6]),
];

/// A call's name, for messages.
pub(crate) fn name(number: i64) -> String {
    let known = match number {
        libc::SYS_memfd_create => "memfd_create",
        libc::SYS_mmap => "mmap",
        libc::SYS_mprotect => "mprotect",
        libc::SYS_madvise => "madvise",
        libc::SYS_munmap => "munmap",
        libc::SYS_close => "close",
        libc::SYS_rt_sigreturn => "rt_sigreturn",
        libc::SYS_prctl => "prctl",
        _ => return format!("system call {number}"),
    };
    known.into()
}

fn describe(call: &Call) -> String {
    let protection = call.arguments[2] as i32;
    match call.number {
        libc::SYS_mmap | libc::SYS_mprotect if protection & libc::PROT_EXEC != 0 => format!("{} of executable memory", name(call.number)),
        _ => name(call.number),
    }
}

/// The word at `offset` of `struct seccomp_data`: number, architecture, instruction pointer (low, high), arguments (low, high).
fn data(call: &Call, offset: u32) -> u32 {
    let half = |value: u64| if offset.is_multiple_of(8) { value as u32 } else { (value >> 32) as u32 };
    match offset / 8 {
        0 if offset == 0 => call.number as u32,
        0 => ARCHITECTURE,
        1 => half(call.instruction_pointer),
        field => half(call.arguments[field as usize - 2]),
    }
}

/// Runs a filter. The kernel has checked every program before it took it; one that is not as it should be counts as "kill".
fn run(program: &[sock_filter], call: &Call) -> u32 {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0usize;
    while let Some(&sock_filter { code, jt, jf, k }) = program.get(at) {
        at += 1;
        let code = u32::from(code);
        let slot = (k as usize) % memory.len();
        let operand = if code & 0x08 == libc::BPF_X { x } else { k };
        match code & 0x07 {
            libc::BPF_LD | libc::BPF_LDX => {
                let value = match code & 0xe0 {
                    libc::BPF_IMM => k,
                    libc::BPF_MEM => memory[slot],
                    libc::BPF_LEN => DATA_BYTES,
                    libc::BPF_ABS if k < DATA_BYTES && k.is_multiple_of(4) => data(call, k),
                    _ => return RET_KILL,
                };
                *(if code & 0x07 == libc::BPF_LD { &mut a } else { &mut x }) = value;
            }
            libc::BPF_ST => memory[slot] = a,
            libc::BPF_STX => memory[slot] = x,
            libc::BPF_ALU => match arithmetic(code & 0xf0, a, operand) {
                Some(value) => a = value,
                None => return RET_KILL,
            },
            libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => at += k as usize,
            libc::BPF_JMP => {
                let holds = match code & 0xf0 {
                    libc::BPF_JEQ => a == operand,
                    libc::BPF_JGT => a > operand,
                    libc::BPF_JGE => a >= operand,
                    libc::BPF_JSET => a & operand != 0,
                    _ => return RET_KILL,
                };
                at += usize::from(if holds { jt } else { jf });
            }
            libc::BPF_RET => return if code & 0x18 == libc::BPF_A { a } else { k },
            _ if code & 0xf8 == libc::BPF_TXA => a = x,
            _ => x = a,
        }
    }
    RET_KILL
}

fn arithmetic(operation: u32, a: u32, operand: u32) -> Option<u32> {
    Some(match operation {
        libc::BPF_ADD => a.wrapping_add(operand),
        libc::BPF_SUB => a.wrapping_sub(operand),
        libc::BPF_MUL => a.wrapping_mul(operand),
        libc::BPF_DIV => a.checked_div(operand)?,
        libc::BPF_MOD => a.checked_rem(operand)?,
        libc::BPF_OR => a | operand,
        libc::BPF_AND => a & operand,
        libc::BPF_XOR => a ^ operand,
        libc::BPF_LSH => a.checked_shl(operand)?,
        libc::BPF_RSH => a.checked_shr(operand)?,
        libc::BPF_NEG => a.wrapping_neg(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
        sock_filter { code: code as u16, jt, jf, k }
    }

    fn call(number: i64, arguments: [u64; 6]) -> Call {
        Call { number, instruction_pointer: 0x1_0000_0002, arguments }
    }

    #[test]
    fn a_filter_that_denies_one_call_denies_that_one_only() {
        let program = vec![
            op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_munmap as u32, 0, 1),
            op(libc::BPF_RET | libc::BPF_K, 0x0005_0001, 0, 0),
            op(libc::BPF_RET | libc::BPF_K, RET_ALLOW, 0, 0),
        ];
        let filters = Filters { tid: 7, programs: vec![program] };
        assert_eq!(filters.check(&call(libc::SYS_mmap, [0; 6])), Ok(()));
        let refused = filters.check(&call(libc::SYS_munmap, [0; 6]));
        assert_eq!(refused, Err(Refusal::SeccompForbids { call: "munmap".into(), tid: 7 }));
        assert!(filters.check_all(0).is_err());
    }

    #[test]
    fn a_filter_sees_both_halves_of_each_argument_and_the_architecture() {
        for (offset, expected) in [(4, ARCHITECTURE), (8, 2), (12, 1), (32, 5), (36, 6), (60, 9)] {
            let program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0), op(libc::BPF_RET | libc::BPF_A, 0, 0, 0)];
            assert_eq!(run(&program, &call(1, [0, 0, 0x6_0000_0005, 0, 0, 9 << 32])), expected);
        }
    }

    #[test]
    fn scratch_memory_arithmetic_and_index_moves_work() {
        let program = vec![
            op(libc::BPF_LD | libc::BPF_IMM, 40, 0, 0),
            op(libc::BPF_ST, 3, 0, 0),
            op(libc::BPF_LDX | libc::BPF_MEM, 3, 0, 0),
            op(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0, 0, 0),
            op(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 4, 0, 0),
            op(libc::BPF_MISC | libc::BPF_TAX, 0, 0, 0),
            op(libc::BPF_LD | libc::BPF_IMM, 0, 0, 0),
            op(libc::BPF_MISC | libc::BPF_TXA, 0, 0, 0),
            op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
        ];
        assert_eq!(run(&program, &call(0, [0; 6])), 5);
    }
}
