//! A program that a recorded process is about to begin, and into which no library can be preloaded: a static one. Its process is traced from
//! before its exec until its first thread is known, and then waits, traced by nobody, in a system call that ends by itself.
//!
//! Whatever becomes of hound meanwhile, the program begins: a process whose tracer has died goes on, and one that waits comes back through a
//! signal frame as a borrowed thread does (see [`crate::Borrowed`]), [`MOST`] later at the latest. No breakpoints and no single steps: those
//! would be left in it.

use std::path::Path;
use std::time::{Duration, Instant};

use iced_x86::{Code, FlowControl, OpKind, Register};
use libc::user_regs_struct;
use nix::errno::Errno;

use crate::code::decode;
use crate::error::Error;
use crate::frame::Frame;
use crate::memory::Memory;
use crate::remote::fit;
use crate::seccomp::{Call, Filters};
use crate::surroundings::TID_OFFSETS;
use crate::tasks;
use crate::trace::{self, Event, Tracer};
use crate::ways::Places;

/// How long a program waits for hound.
const MOST: Duration = Duration::from_secs(5);
/// A static program of glibc's or musl's makes some five system calls before it has a thread; each is reported twice.
const CALLS_BEFORE_THREADS: usize = 2 * 32;
/// Most instructions from the system call to where its result is put.
const UNTIL_NOTED: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);
const SYSCALL_BYTES: u64 = 2;

/// A thread that is about to execute a program, or to begin a process that does.
#[derive(Debug)]
pub struct Awaited {
    tracer: Tracer<()>,
}

impl Awaited {
    /// Traces a thread until it has executed a program; with `spawns`, until a process has that it begins.
    ///
    /// # Errors
    /// When it has another tracer, or has ended.
    pub fn thread(pid: i32, tid: i32, spawns: bool) -> Result<Awaited, Error> {
        let of_children = if spawns { libc::PTRACE_O_TRACEVFORK | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACECLONE } else { 0 };
        let (tracer, ()) = Tracer::start(move || Ok(((), trace::seize_with(pid, tid, libc::PTRACE_O_TRACEEXEC | of_children)?)))?;
        Ok(Awaited { tracer })
    }

    /// Waits for the exec. The process, which stands still then; nothing if there is none in time, or no longer one.
    pub fn program(&mut self, patience: Duration) -> Option<i32> {
        self.tracer.run(move |()| program(Instant::now() + patience))
    }

    /// Lets a process that stands behind its exec come to where its C library knows its first thread, and has it wait there. Nothing if it
    /// has ended.
    ///
    /// # Errors
    /// When it prepares its first thread as no C library does that hound knows, or cannot be made to wait. It goes on then.
    pub fn park(mut self, pid: i32) -> Result<Option<Parked>, Error> {
        self.tracer.run(move |()| if comes_to_its_thread(pid)? { park(pid).map(Some) } else { Ok(None) })
    }
}

/// Whether a file is a program of which nothing else is loaded: neither dynamically linked nor a loader itself.
pub fn is_static(path: &Path) -> bool {
    use object::read::elf::{Dyn, FileHeader, ProgramHeader};
    let is_static = || -> Option<bool> {
        let data = object::ReadCache::new(std::fs::File::open(path).ok()?);
        let header = object::elf::FileHeader64::<object::LittleEndian>::parse(&data).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, &data).ok()?;
        let has_loader = segments.iter().any(|segment| segment.p_type(endian) == object::elf::PT_INTERP);
        let entries = segments.iter().find_map(|segment| segment.dynamic(endian, &data).ok()?).unwrap_or_default();
        let names_itself_a_program = |entry: &object::elf::Dyn64<_>| {
            entry.d_tag(endian) == object::elf::DT_FLAGS_1 && entry.d_val(endian) & object::elf::DF_1_PIE.0 != 0
        };
        let is_fixed = header.e_type(endian) == object::elf::ET_EXEC;
        let is_ours = header.e_machine(endian) == object::elf::EM_X86_64;
        Some(is_ours && !has_loader && (is_fixed || entries.iter().any(names_itself_a_program)))
    };
    is_static().unwrap_or(false)
}

/// On the thread that traces: whatever it traces is the one that is awaited, or what that has begun.
fn program(until: Instant) -> Option<i32> {
    loop {
        let (pid, event) = trace::wait_for_any(until)?;
        match event {
            Event::Executed => return Some(pid),
            // It has done what it was awaited for. What it has begun is traced by itself.
            Event::Began => trace::detach(pid),
            Event::Rest if trace::is_of_a_stop(pid).ok()? => trace::stay(pid).ok()?,
            Event::Rest => trace::resume(pid, 0).ok()?,
            Event::Signal(signal) => trace::resume(pid, signal).ok()?,
            Event::Syscall => trace::resume(pid, 0).ok()?,
            Event::Gone => return None,
        }
    }
}

/// Goes on to the exit of `set_tid_address`, and writes down what the very next instructions do. False if it has ended.
fn comes_to_its_thread(pid: i32) -> Result<bool, Error> {
    let os = |errno| Error::os("following a program to its beginning", errno);
    let until = Instant::now() + PATIENCE;
    let mut signal = 0;
    for _ in 0..CALLS_BEFORE_THREADS {
        trace::resume_to_syscall(pid, signal).map_err(os)?;
        signal = 0;
        let mut event = trace::wait_for_any(until);
        // It ran before who has begun it had its turn to say so.
        while let Some((other, _)) = event.filter(|(other, _)| *other != pid && *other != 0) {
            trace::detach(other);
            event = trace::wait_for_any(until);
        }
        match event {
            Some((_, Event::Syscall)) if trace::leaves_syscall(pid).map_err(os)? => {
                let regs = trace::regs(pid).map_err(os)?;
                if regs.orig_rax == libc::SYS_set_tid_address as u64 && regs.rax.cast_signed() > 0 {
                    return note_thread(pid, &regs).map(|()| true);
                }
            }
            Some((_, Event::Signal(other))) => signal = other,
            Some((_, Event::Gone)) => return Ok(false),
            // The end of this thread of hound's leaves it so.
            Some((_, Event::Rest)) if trace::is_of_a_stop(pid).map_err(os)? => {
                return Err(Error::Deadline { what: "it was stopped at its beginning".into() });
            }
            None => return Err(Error::Deadline { what: "the program did not come to its beginning".into() }),
            Some(_) => {}
        }
    }
    Err(unlike())
}

fn unlike() -> Error {
    Error::Unfit { what: "it does not prepare its first thread as glibc or musl do".into() }
}

/// The C library is about to put the thread's number to where it keeps it. hound does so now: what knows threads by it can then be brought in.
fn note_thread(pid: i32, regs: &user_regs_struct) -> Result<(), Error> {
    let memory = Memory::open(pid)?;
    let mut code = [0; UNTIL_NOTED * 15];
    memory.read(regs.rip, &mut code)?;
    let mut decoder = decode(&code, regs.rip);
    for _ in 0..UNTIL_NOTED {
        let instruction = decoder.decode();
        let stores = instruction.code() == Code::Mov_rm32_r32 && instruction.op1_register() == Register::EAX;
        if stores && instruction.op0_kind() == OpKind::Memory && instruction.memory_index() == Register::None {
            let base = match (instruction.segment_prefix(), instruction.memory_base()) {
                (Register::FS, Register::None) => regs.fs_base,
                (Register::None, base) => value(base, regs).ok_or_else(unlike)?,
                _ => return Err(unlike()),
            };
            let at = base.wrapping_add(instruction.memory_displacement64());
            if TID_OFFSETS.iter().any(|offset| regs.fs_base.wrapping_add(*offset) == at) {
                return memory.write(at, &(regs.rax as u32).to_le_bytes());
            }
        }
        if instruction.is_invalid() || instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    Err(unlike())
}

fn value(register: Register, regs: &user_regs_struct) -> Option<u64> {
    Some(match register {
        Register::RAX => regs.rax,
        Register::RBX => regs.rbx,
        Register::RCX => regs.rcx,
        Register::RDX => regs.rdx,
        Register::RSI => regs.rsi,
        Register::RDI => regs.rdi,
        Register::RBP => regs.rbp,
        Register::R8 => regs.r8,
        Register::R9 => regs.r9,
        Register::R10 => regs.r10,
        Register::R11 => regs.r11,
        Register::R12 => regs.r12,
        Register::R13 => regs.r13,
        Register::R14 => regs.r14,
        Register::R15 => regs.r15,
        _ => return None,
    })
}

/// A program that waits before its first instruction of its own, as it was, traced by nobody.
#[derive(Debug)]
pub struct Parked {
    pid: i32,
    /// As it was found.
    regs: user_regs_struct,
    /// Where its stack pointer is while it waits, or is on its way back.
    first: u64,
    last: u64,
    /// The system call by which it waits.
    gadget: u64,
}

/// By the thread that traces it, of a process of one thread on its way out of a system call.
fn park(pid: i32) -> Result<Parked, Error> {
    let os = |errno| Error::os("having a program wait", errno);
    let memory = Memory::open(pid)?;
    let places = Places::find(pid, &memory)?;
    let found = trace::regs(pid).map_err(os)?;
    // It has made its call: there is nothing to be restarted.
    let regs = user_regs_struct { orig_rax: u64::MAX, ..found };
    fit(pid, &regs, &tasks::mappings(pid)?, &memory)?;
    let arguments = [0, 0, MOST.as_millis() as u64, 0, 0, 0];
    let filters = Filters::of(pid, pid)?;
    filters.check_all(places.gadget + 2)?;
    filters.check(&Call { number: libc::SYS_poll, instruction_pointer: places.gadget + 2, arguments })?;
    let (mask, xstate) = (trace::mask(pid).map_err(os)?, trace::xstate(pid).map_err(os)?);
    let frame = Frame::below(regs.rsp);
    let (start, bytes) = frame.bytes(places.way_back, &regs, mask, &xstate)?;
    memory.write(start, &bytes)?;
    let waits = user_regs_struct {
        rip: places.gadget,
        rsp: frame.start(places.way_back),
        rax: libc::SYS_poll as u64,
        rdi: arguments[0],
        rsi: arguments[1],
        rdx: arguments[2],
        ..regs
    };
    trace::set_regs(pid, &waits).map_err(os)?;
    trace::detach(pid);
    let (first, last) = frame.on_the_way(places.way_back);
    Ok(Parked { pid, regs, first, last, gadget: places.gadget })
}

impl Parked {
    /// It begins. False if it had waited for too long, and begun before.
    ///
    /// # Errors
    /// When it could not be stopped for it: it begins by itself, later. [`Error::Gone`] when it has ended.
    pub fn go(self) -> Result<bool, Error> {
        let pid = self.pid;
        let (mut tracer, ()) = Tracer::start(move || Ok(((), trace::seize(pid, pid)?)))?;
        tracer.run(move |()| self.put_back())
    }

    fn put_back(&self) -> Result<bool, Error> {
        let os = |errno: Errno| Error::os("letting a program begin", errno);
        trace::interrupt(self.pid).map_err(os)?;
        match trace::wait_for_rest(self.pid, Instant::now() + PATIENCE) {
            Some(Event::Rest) => {}
            Some(_) => return Err(Error::Gone),
            None => return Err(Error::Deadline { what: "the program did not stop".into() }),
        }
        // On its way back already, it is as well off.
        let is_there = |now: user_regs_struct| {
            (self.first..=self.last).contains(&now.rsp) && (now.rip == self.gadget || now.rip == self.gadget + SYSCALL_BYTES)
        };
        let waits = trace::regs(self.pid).is_ok_and(is_there);
        if waits {
            trace::set_regs(self.pid, &self.regs).map_err(os)?;
        }
        trace::detach(self.pid);
        Ok(waits)
    }
}
