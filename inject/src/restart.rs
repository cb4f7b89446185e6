//! System calls that ended with EINTR only because hound stopped the thread.
//!
//! Most blocking calls give one of the kernel's restart codes when a thread is stopped, and go on by themselves. Some give EINTR instead
//! (signal(7), "Interruption of system calls and library functions by stop signals"), measured on Linux 6.18: epoll_wait and its kin,
//! rt_sigtimedwait, semop and semtimedop, io_getevents, and calls on sockets with SO_RCVTIMEO or SO_SNDTIMEO. hound puts -ERESTARTNOHAND in
//! the place of their EINTR: the kernel then makes EINTR of it again if a handler really runs, and else calls anew.
//!
//! The time left has to be put into the arguments. When a thread fell asleep stands in /proc/PID/task/TID/sched, in the clock of the
//! processor it slept on; hound's own thread, moved there for a moment, tells how that clock stands. Where this is not to be had, the time
//! begins anew: a wait may become longer through hound, never shorter. It also begins anew for recvmmsg, and for SO_RCVTIMEO and
//! SO_SNDTIMEO: such a time belongs to the socket, which other threads and other processes use too. To set it for one call and set it back
//! would give them a wrong one meanwhile, and for ever if hound died in between.
//!
//! Once a thread has been asked to stop it must be seen to rest, however late it gets its turn: let go before, it would return EINTR.
//!
//! What cannot be mended: a signal that the target ignores wakes a thread all the same while the thread it is sent to is traced (see
//! `freeze.rs`); a thread that sleeps in one of these calls and is not stopped at that moment gets EINTR. And a call that had moved a part
//! of its bytes (a write to a full pipe, recv with MSG_WAITALL) returns that part, as it would with any handled signal or debugger.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use libc::user_regs_struct;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use procfs::process::MemoryMap;

use crate::memory::Memory;
use crate::tasks;

/// The kernel's code for "call again, unless a handler runs".
pub(crate) const ERESTARTNOHAND: i64 = 514;
/// All codes with which the kernel asks itself to call again.
const RESTARTS: [i64; 4] = [512, 513, ERESTARTNOHAND, 516];
const EINTR: i64 = libc::EINTR as i64;

/// Where a call that gives EINTR has its timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timeout {
    /// Nowhere, or not to be changed.
    None,
    /// Milliseconds in the argument of this index, negative = for ever.
    Millis(usize),
    /// A relative timespec, to which the argument of this index points, null = for ever.
    Timespec(usize),
}

/// The calls that give EINTR, and may be made again: they had done nothing yet.
fn interrupted(number: i64) -> Option<Timeout> {
    Some(match number {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Timeout::Millis(3),
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Timeout::Timespec(3),
        libc::SYS_rt_sigtimedwait => Timeout::Timespec(2),
        libc::SYS_io_getevents => Timeout::Timespec(4),
        // Older kernels give EINTR for some of these.
        libc::SYS_futex | libc::SYS_msgrcv | libc::SYS_msgsnd | libc::SYS_semop => Timeout::None,
        // With SO_RCVTIMEO or SO_SNDTIMEO. read and write give a part or nothing, just as recv and send.
        libc::SYS_read | libc::SYS_readv | libc::SYS_write | libc::SYS_writev => Timeout::None,
        libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_recvmmsg => Timeout::None,
        libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_sendmmsg => Timeout::None,
        libc::SYS_accept | libc::SYS_accept4 | libc::SYS_connect => Timeout::None,
        _ => return None,
    })
}

/// When the calls of threads that sleep with a timeout began, as far as it matters; taken before the threads are stopped.
#[derive(Debug, Default)]
pub(crate) struct Sleepers {
    sleeps: HashMap<i32, Sleep>,
    /// Read only if a thread's timeout lies in memory.
    mappings: Vec<MemoryMap>,
}

#[derive(Clone, Copy, Debug)]
struct Sleep {
    /// In CLOCK_MONOTONIC.
    since: Duration,
    /// How often the thread had gone to sleep by then.
    switches: u64,
}

impl Sleepers {
    /// Looks at these threads of the process.
    pub(crate) fn of(pid: i32, tids: &[i32]) -> Sleepers {
        let mut sleepers = Sleepers::default();
        let mut clocks = Clocks::default();
        let mut in_memory = false;
        for &tid in tids {
            let Some(timeout) = sleeping_call(pid, tid) else { continue };
            in_memory |= matches!(timeout, Timeout::Timespec(_));
            let (Some(before), Some(processor)) = (scheduling(pid, tid), processor(pid, tid)) else { continue };
            let Some(offset) = clocks.offset(processor) else { continue };
            let since = u64::try_from(nanos(before.exec_start) + offset).map(Duration::from_nanos);
            let Ok(since) = since else { continue };
            sleepers.sleeps.insert(tid, Sleep { since, switches: before.switches });
        }
        if in_memory {
            sleepers.mappings = tasks::mappings(pid).unwrap_or_default();
        }
        sleepers
    }

    /// Looks at a thread that has just stopped: `Some` if its call has to be made again.
    pub(crate) fn mend(&self, pid: i32, tid: i32, regs: &user_regs_struct, memory: &Memory) -> Option<Mend> {
        let number = regs.orig_rax as i64;
        if number < 0 || regs.rax as i64 != -EINTR {
            return None;
        }
        let timeout = interrupted(number)?;
        let mut mend = Mend { regs: *regs, since: None, timeout: None };
        mend.regs.rax = (-ERESTARTNOHAND) as u64;
        let arguments = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
        let (total, place) = match timeout {
            Timeout::Millis(index) if (arguments[index] as i32) > 0 => {
                (Duration::from_millis(u64::from(arguments[index] as u32)), Place::Register(index))
            }
            Timeout::Timespec(index) if arguments[index] != 0 => {
                // 128 bytes below the stack pointer belong to the function that made the call.
                let copy = (regs.rsp - 128 - 16) & !15;
                let sure = tasks::sure_stack(&self.mappings, regs.rsp, regs.fs_base).is_some_and(|stack| stack.address.0 <= copy);
                match read_timespec(memory, arguments[index]) {
                    Some(total) if sure => (total, Place::Memory { index, copy }),
                    _ => return Some(mend),
                }
            }
            _ => return Some(mend),
        };
        // The same sleep as the one looked at before: it was left once, for the stop.
        let sleep = self.sleeps.get(&tid).filter(|sleep| scheduling(pid, tid).is_some_and(|now| now.switches <= sleep.switches + 1));
        mend.since = sleep.map(|sleep| sleep.since);
        mend.timeout = Some((total, place));
        Some(mend)
    }
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Register(usize),
    Memory { index: usize, copy: u64 },
}

/// What a thread needs for its call to be made again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mend {
    regs: user_regs_struct,
    since: Option<Duration>,
    timeout: Option<(Duration, Place)>,
}

impl Mend {
    /// The registers with which the call is made again now, with the time left now.
    pub(crate) fn regs(&self, memory: &Memory) -> user_regs_struct {
        let mut regs = self.regs;
        let (Some(since), Some((total, place))) = (self.since, self.timeout) else { return regs };
        let left = total.saturating_sub(monotonic().saturating_sub(since));
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
        }
        regs
    }

    /// Whether the time left changes while the thread stands still.
    pub(crate) fn ages(&self) -> bool {
        self.since.is_some() && self.timeout.is_some()
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

/// The timeout of the call a thread sleeps in, if it is one that will give EINTR and has an end.
fn sleeping_call(pid: i32, tid: i32) -> Option<Timeout> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    // "running", or: number, six arguments, stack pointer, instruction pointer.
    let mut words = text.split_whitespace();
    let timeout = interrupted(words.next()?.parse().ok()?)?;
    let mut value = |index: usize| u64::from_str_radix(words.nth(index)?.trim_start_matches("0x"), 16).ok();
    let ends = match timeout {
        Timeout::None => false,
        Timeout::Millis(index) => (value(index)? as i32) > 0,
        Timeout::Timespec(index) => value(index)? != 0,
    };
    ends.then_some(timeout)
}

fn read_timespec(memory: &Memory, address: u64) -> Option<Duration> {
    let mut bytes = [0; 16];
    memory.read(address, &mut bytes).ok()?;
    let (seconds, nanos) = bytes.split_at(8);
    let nanos = u32::try_from(u64::from_le_bytes(nanos.try_into().ok()?)).ok()?;
    Some(Duration::new(u64::from_le_bytes(seconds.try_into().ok()?), nanos.min(999_999_999)))
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// What the scheduler tells of a thread.
struct Scheduling {
    /// When it last ran, in its processor's clock.
    exec_start: Duration,
    /// How often it gave its processor up by itself.
    switches: u64,
}

fn scheduling(pid: i32, tid: i32) -> Option<Scheduling> {
    read_scheduling(&format!("/proc/{pid}/task/{tid}/sched"))
}

fn read_scheduling(path: &str) -> Option<Scheduling> {
    let text = fs::read_to_string(path).ok()?;
    let value = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()));
    // Milliseconds, a dot, six digits.
    let (millis, nanos) = value("se.exec_start")?.split_once('.')?;
    let exec_start = Duration::from_millis(millis.parse().ok()?) + Duration::from_nanos(nanos.parse().ok()?);
    Some(Scheduling { exec_start, switches: value("nr_voluntary_switches")?.parse().ok()? })
}

fn processor(pid: i32, tid: i32) -> Option<usize> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // Field 39, counted from the state, which is the third.
    text.rsplit_once(')')?.1.split_whitespace().nth(36)?.parse().ok()
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX / 2)
}

/// How many nanoseconds CLOCK_MONOTONIC is ahead of each processor's clock of running threads.
#[derive(Default)]
struct Clocks {
    offsets: HashMap<usize, Option<i64>>,
}

impl Clocks {
    /// Reads it on that processor. The clock hound sees there may be a little old, never new: a sleep looks shorter than it was.
    fn offset(&mut self, processor: usize) -> Option<i64> {
        *self.offsets.entry(processor).or_insert_with(|| {
            let own = Pid::from_raw(0);
            let everywhere = sched_getaffinity(own).ok()?;
            let mut there = CpuSet::new();
            there.set(processor).ok()?;
            sched_setaffinity(own, &there).ok()?;
            // Brings the scheduler's note of this thread up to date, else it is as old as the last tick.
            std::thread::yield_now();
            let read = read_scheduling("/proc/thread-self/sched");
            let now = monotonic();
            // A failure leaves this thread of hound's on one processor: slower, not wrong.
            let _ = sched_setaffinity(own, &everywhere);
            Some(nanos(now) - nanos(read?.exec_start))
        })
    }
}
