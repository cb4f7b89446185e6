//! System calls that ended with EINTR only because hound stopped the thread.
//!
//! Most blocking calls give one of the kernel's restart codes when a thread is stopped, and go on by themselves. Some give EINTR instead
//! (signal(7), "Interruption of system calls and library functions by stop signals"), measured on Linux 6.18: epoll_wait and its kin,
//! rt_sigtimedwait, semop and semtimedop, io_getevents, and calls on sockets with SO_RCVTIMEO or SO_SNDTIMEO. hound puts -ERESTARTNOHAND in
//! the place of their EINTR: the kernel then makes EINTR of it again if a handler really runs, and else calls anew.
//!
//! The time left has to be put into the arguments: `clocks.rs` tells since when a thread sleeps. Where that is not to be had, the time begins
//! anew: a wait may become longer through hound, never shorter. Where the time is a socket's, hound ends the call itself
//! (`appointments.rs`). It always begins anew for recvmmsg and sendmmsg.
//!
//! Once a thread has been asked to stop it must be seen to rest, however late it gets its turn: let go before, it would return EINTR.
//!
//! What cannot be mended: a signal that the target ignores wakes a thread all the same while the thread it is sent to is traced (see
//! `freeze.rs`); a thread that sleeps in one of these calls and is not stopped at that moment gets EINTR. And a call that had moved a part
//! of its bytes (a write to a full pipe, recv with MSG_WAITALL) returns that part, as it would with any handled signal or debugger.

use std::collections::HashMap;
use std::fs::File;
use std::time::Duration;

use libc::user_regs_struct;
use nix::errno::Errno;
use procfs::process::{MMapPath, MemoryMap};

use crate::appointments::{self, Appointment};
use crate::clocks::{Clocks, Scheduling, last_processor, monotonic, processor, scheduling};
use crate::memory::Memory;
use crate::sockets::{self, Which};
use crate::tasks;
use crate::trace;

/// The kernel's code for "call again, unless a handler runs".
pub(crate) const ERESTARTNOHAND: i64 = 514;
/// All codes with which the kernel asks itself to call again.
const RESTARTS: [i64; 4] = [512, 513, ERESTARTNOHAND, 516];
const EINTR: i64 = libc::EINTR as i64;

/// How far off the moment may be at which a timer was to run out: the clock is read within some 20 µs, a timer runs out within 50.
const NEAR: Duration = Duration::from_micros(100);

/// Where a call that gives EINTR has its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timeout {
    /// Nowhere, or not to be changed.
    None,
    /// Milliseconds in the argument of this index, negative = for ever.
    Millis(usize),
    /// A relative timespec, to which the argument of this index points, null = for ever.
    Timespec(usize),
    /// In the socket whose descriptor is the first argument.
    Socket(Which),
}

/// Of `io_uring_enter`'s flags: the fifth argument points to a structure, with a timeout maybe.
const IORING_ENTER_EXT_ARG: u64 = 8;

/// The calls that give EINTR, and may be made again: they had done nothing yet.
fn interrupted(number: i64) -> Option<Timeout> {
    Some(match number {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Timeout::Millis(3),
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Timeout::Timespec(3),
        libc::SYS_rt_sigtimedwait => Timeout::Timespec(2),
        libc::SYS_io_getevents => Timeout::Timespec(4),
        // Older kernels give EINTR for some of these.
        libc::SYS_futex | libc::SYS_msgrcv | libc::SYS_msgsnd | libc::SYS_semop => Timeout::None,
        // What it was to submit it has not, or it would have said so. (With a timeout: see `mend`.)
        libc::SYS_io_uring_enter => Timeout::None,
        // Several messages have a time of their own, too.
        libc::SYS_recvmmsg | libc::SYS_sendmmsg => Timeout::None,
        // read and write give a part or nothing, just as recv and send.
        libc::SYS_read | libc::SYS_readv | libc::SYS_recvfrom | libc::SYS_recvmsg => Timeout::Socket(Which::Receive),
        libc::SYS_accept | libc::SYS_accept4 => Timeout::Socket(Which::Receive),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg => Timeout::Socket(Which::Send),
        libc::SYS_connect => Timeout::Socket(Which::Connect),
        _ => return None,
    })
}

/// The calls of threads that sleep with a timeout, as they were before the threads are stopped.
#[derive(Debug, Default)]
pub(crate) struct Sleepers {
    pid: i32,
    sleeps: HashMap<i32, Sleep>,
    clocks: Clocks,
    /// Read only if a thread's timeout lies in memory.
    mappings: Vec<MemoryMap>,
}

#[derive(Debug)]
struct Sleep {
    /// The thread's folder in /proc.
    thread: String,
    /// When the thread fell asleep, in the clock of the processor it did on.
    exec_start: Duration,
    /// The processor it belonged to when it was looked at.
    processor: usize,
    /// How often the thread had gone to sleep by then.
    switches: u64,
    /// Its timeout.
    total: Duration,
    /// With what the call ends then, if that is hound's to do.
    errno: Option<i32>,
    /// When it was last looked at, in CLOCK_MONOTONIC; it slept a moment later still.
    seen: Duration,
    /// When it had been asked to stop.
    asked: Duration,
}

impl Sleepers {
    /// Looks at these threads of the process.
    pub(crate) fn of(pid: i32, tids: &[i32], memory: &Memory) -> Sleepers {
        let mut sleepers = Sleepers { pid, ..Sleepers::default() };
        let mut in_memory = false;
        for &tid in tids {
            let thread = format!("/proc/{pid}/task/{tid}");
            let Some((timeout, total, errno)) = sleeping_call(pid, tid, memory) else { continue };
            let (Some(before), Some(processor)) = (scheduling(&thread), processor(&thread)) else { continue };
            in_memory |= !matches!(timeout, Timeout::Millis(_));
            let Scheduling { exec_start, switches } = before;
            let seen = monotonic();
            let sleep = Sleep { thread, exec_start, processor, switches, total, errno, seen, asked: seen };
            sleepers.sleeps.insert(tid, sleep);
        }
        if !sleepers.sleeps.is_empty() {
            sleepers.clocks = Clocks::read(&sleepers.sleeps.values().map(|sleep| sleep.processor).collect());
        }
        if in_memory {
            sleepers.mappings = tasks::mappings(pid).unwrap_or_default();
        }
        sleepers
    }

    /// Asks a traced thread to stop. What is known of its sleep counts only if it is this sleep that is broken off: else a call that has just
    /// begun, and not slept yet, would be taken for the one before it (seen in 8 of 10,000 stops of a thread that calls all the time).
    pub(crate) fn interrupt(&mut self, tid: i32) -> Result<(), Errno> {
        let Some(mut sleep) = self.sleeps.remove(&tid) else { return trace::interrupt(tid) };
        let call = File::open(format!("{}/syscall", sleep.thread));
        // In this order: no other sleep had begun, and it sleeps still. Both numbers: the kernel tells first one, then the other, and the
        // thread may have come to its next call in between.
        let same = scheduling(&sleep.thread) == Some(Scheduling { exec_start: sleep.exec_start, switches: sleep.switches });
        sleep.seen = monotonic();
        let asleep = same && call.is_ok_and(|call| tasks::call_in(&call).is_some());
        trace::interrupt(tid)?;
        sleep.asked = monotonic();
        if asleep {
            self.sleeps.insert(tid, sleep);
        }
        Ok(())
    }

    /// When the call began that a stopped thread was in, whose timeout is `total`. Never too early; `None` if it is not known.
    fn since(&self, tid: i32, total: Duration, memory: &Memory) -> Option<Duration> {
        let sleep = self.sleeps.get(&tid).filter(|sleep| sleep.total == total)?;
        // It was left once, for the stop. Another call would have been fallen asleep in, too.
        if scheduling(&sleep.thread)?.switches > sleep.switches + 1 {
            return None;
        }
        let ran_on = last_processor(tid, memory).map(|ran_on| [ran_on, sleep.processor]);
        let since = self.clocks.latest(ran_on, sleep.exec_start, sleep.seen)?;
        let end = since + total;
        // It ran out just then: this may be the next call, which began before the thread was to stop.
        let in_between = sleep.seen.saturating_sub(NEAR) < end && end < sleep.asked + NEAR;
        // It had run out long before, and the thread slept on: then the moment is wrong.
        let overdue = end + slack(total) < sleep.seen;
        (!in_between && !overdue).then_some(since)
    }

    /// When hound has to end a stopped thread's call on a socket, as promised already or from now on.
    fn end_by_hound(&self, tid: i32, regs: &user_regs_struct, memory: &Memory) -> Option<Appointment> {
        let number = regs.orig_rax as i64;
        if let Some(known) = appointments::of(self.pid, tid, number, regs.rdi) {
            return Some(known);
        }
        let sleep = self.sleeps.get(&tid)?;
        // Another hound's mark stays: it will end the call.
        let may_be_marked = regs.rdi <= u64::from(u32::MAX) && in_a_libc(&self.mappings, regs.rip);
        let (at, errno) = (self.since(tid, sleep.total, memory)? + sleep.total, sleep.errno?);
        may_be_marked.then(|| Appointment { pid: self.pid, tid, number, marked: regs.rdi | appointments::mark(), at, errno })
    }

    /// Looks at a thread that has just stopped: `Some` if its call has to be made again.
    pub(crate) fn mend(&self, tid: i32, regs: &user_regs_struct, memory: &Memory) -> Option<Mend> {
        let number = regs.orig_rax as i64;
        if number < 0 || regs.rax as i64 != -EINTR {
            return None;
        }
        let timeout = interrupted(number)?;
        // Its timeout lies in a structure of its own, and would begin anew.
        if number == libc::SYS_io_uring_enter && regs.r10 & IORING_ENTER_EXT_ARG != 0 {
            return None;
        }
        let mut mend = Mend { regs: *regs, until: None };
        mend.regs.rax = (-ERESTARTNOHAND) as u64;
        let arguments = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
        let (total, place) = match timeout {
            Timeout::Millis(index) => match millis(arguments[index]) {
                Some(total) => (total, Place::Register(index)),
                None => return Some(mend),
            },
            Timeout::Timespec(index) if arguments[index] != 0 => {
                // 128 bytes below the stack pointer belong to the function that made the call.
                let copy = (regs.rsp - 128 - 16) & !15;
                let sure = tasks::sure_stack(&self.mappings, regs.rsp, regs.fs_base).is_some_and(|stack| stack.address.0 <= copy);
                match read_timespec(memory, arguments[index]) {
                    Some(total) if sure => (total, Place::Memory { index, copy }),
                    _ => return Some(mend),
                }
            }
            Timeout::Socket(_) => {
                mend.until = self.end_by_hound(tid, regs, memory).map(|end| (end.at, Place::Nowhere(end)));
                return Some(mend);
            }
            _ => return Some(mend),
        };
        mend.until = self.since(tid, total, memory).map(|since| (since + total, place));
        Some(mend)
    }
}

/// Where the time left is to be put.
#[derive(Clone, Copy, Debug)]
enum Place {
    Register(usize),
    Memory {
        index: usize,
        copy: u64,
    },
    /// Hound sees to it.
    Nowhere(Appointment),
}

/// What a thread needs for its call to be made again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mend {
    regs: user_regs_struct,
    until: Option<(Duration, Place)>,
}

impl Mend {
    /// The registers with which the call is made again now, with the time left now.
    pub(crate) fn regs(&self, memory: &Memory) -> user_regs_struct {
        let mut regs = self.regs;
        let Some((until, place)) = self.until else { return regs };
        let left = until.saturating_sub(monotonic());
        match place {
            // Rounded up: a wait must not become shorter.
            Place::Register(index) => *argument(&mut regs, index) = left.as_micros().div_ceil(1000) as u64,
            Place::Memory { index, copy } => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&left.as_secs().to_le_bytes());
                bytes[8..].copy_from_slice(&u64::from(left.subsec_nanos()).to_le_bytes());
                if memory.write(copy, &bytes).is_ok() {
                    *argument(&mut regs, index) = copy;
                }
            }
            Place::Nowhere(end) if left.is_zero() => {
                appointments::cancel(end.pid, end.tid);
                regs.rax = -i64::from(end.errno) as u64;
                regs.rdi &= u64::from(u32::MAX);
            }
            Place::Nowhere(end) => {
                regs.rdi = end.marked;
                appointments::make(end);
            }
        }
        regs
    }

    /// Whether the time left changes while the thread stands still.
    pub(crate) fn ages(&self) -> bool {
        self.until.is_some()
    }
}

/// The registers from which `rt_sigreturn` makes a thread go on as the kernel would: `rt_sigreturn` restarts nothing by itself, so the call
/// is made again from its first instruction. The timeout of poll, nanosleep and futex begins anew then (the kernel forgets it there).
pub(crate) fn restarted_by_hand(regs: &user_regs_struct) -> user_regs_struct {
    let mut regs = *regs;
    if regs.orig_rax as i64 >= 0 && RESTARTS.contains(&-(regs.rax as i64)) {
        regs.rax = regs.orig_rax;
        // The length of `syscall`.
        regs.rip -= 2;
    }
    regs
}

/// Whether the code there is a libc's.
fn in_a_libc(mappings: &[MemoryMap], ip: u64) -> bool {
    let Some(mapping) = mappings.iter().find(|mapping| (mapping.address.0..mapping.address.1).contains(&ip)) else { return false };
    let MMapPath::Path(path) = &mapping.pathname else { return false };
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    [b"libc.".as_slice(), b"libc-", b"libpthread", b"ld-musl"].iter().any(|start| name.starts_with(start))
}

fn argument(regs: &mut user_regs_struct, index: usize) -> &mut u64 {
    match index {
        0 => &mut regs.rdi,
        1 => &mut regs.rsi,
        2 => &mut regs.rdx,
        3 => &mut regs.r10,
        4 => &mut regs.r8,
        _ => &mut regs.r9,
    }
}

/// The timeout of the call a thread sleeps in, if it is one that will give EINTR and has an end; with the errno it ends with, if it is a
/// socket's that hound can see to.
fn sleeping_call(pid: i32, tid: i32, memory: &Memory) -> Option<(Timeout, Duration, Option<i32>)> {
    let text = tasks::call(pid, tid)?;
    let mut words = text.split_whitespace();
    let timeout = interrupted(words.next()?.parse().ok()?)?;
    let mut value = |index: usize| u64::from_str_radix(words.nth(index)?.trim_start_matches("0x"), 16).ok();
    let (total, errno) = match timeout {
        Timeout::None => (None, None),
        Timeout::Millis(index) => (millis(value(index)?), None),
        Timeout::Timespec(index) => (read_timespec(memory, value(index)?), None),
        Timeout::Socket(which) => sockets::timeout(pid, tid, value(0)?, which).filter(|_| !tasks::filtered(pid, tid)).unzip(),
    };
    Some((timeout, total?, errno))
}

/// A timeout in an argument, `None` for ever.
fn millis(argument: u64) -> Option<Duration> {
    (argument as i32 > 0).then(|| Duration::from_millis(u64::from(argument as u32)))
}

/// How much later than it was asked for the kernel may let a timer run out.
fn slack(total: Duration) -> Duration {
    Duration::from_millis(1) + total / 1000
}

fn read_timespec(memory: &Memory, address: u64) -> Option<Duration> {
    let mut bytes = [0; 16];
    memory.read(address, &mut bytes).ok()?;
    let (seconds, nanos) = bytes.split_at(8);
    let nanos = u32::try_from(u64::from_le_bytes(nanos.try_into().ok()?)).ok()?;
    Some(Duration::new(u64::from_le_bytes(seconds.try_into().ok()?), nanos.min(999_999_999)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_libc_s_code_is_a_libc_s() {
        let mappings = tasks::mappings(std::process::id() as i32).expect("this process is alive");
        assert!(in_a_libc(&mappings, libc::recv as *const () as u64));
        assert!(!in_a_libc(&mappings, in_a_libc as *const () as u64));
        assert!(!in_a_libc(&mappings, std::ptr::from_ref(&mappings) as u64), "a stack");
        assert!(!in_a_libc(&mappings, 0));
    }
}
