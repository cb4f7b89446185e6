//! System calls that ended with EINTR only because hound stopped the thread.
//!
//! Most blocking calls give one of the kernel's restart codes when a thread is stopped, and go on by themselves. Some give EINTR instead
//! (signal(7), "Interruption of system calls and library functions by stop signals"), measured on Linux 6.18: epoll_wait and its kin,
//! rt_sigtimedwait, semop and semtimedop, io_getevents, and calls on sockets with SO_RCVTIMEO or SO_SNDTIMEO. hound puts -ERESTARTNOHAND in
//! the place of their EINTR: the kernel then makes EINTR of it again if a handler really runs, and else calls anew.
//!
//! The time left has to be put into the arguments. When a thread fell asleep stands in /proc/PID/task/TID/sched, in the clock of the
//! processor it fell asleep on; hound's own thread, moved there for a moment, tells how that clock stands. These clocks differ (by what
//! interrupts and other guests of the host took: 0.7 s after 17 hours were seen), and the scheduler may move a thread that sleeps already:
//! which processor it was, the thread's rseq area tells, which the kernel writes only on the way to user mode. Where it does not, the latest
//! moment that is possible counts; where even that is not to be had, the time begins anew: a wait may become longer through hound, never
//! shorter. It also begins anew for recvmmsg, and for SO_RCVTIMEO and
//! SO_SNDTIMEO: such a time belongs to the socket, which other threads and other processes use too. To set it for one call and set it back
//! would give them a wrong one meanwhile, and for ever if hound died in between.
//!
//! Once a thread has been asked to stop it must be seen to rest, however late it gets its turn: let go before, it would return EINTR.
//!
//! What cannot be mended: a signal that the target ignores wakes a thread all the same while the thread it is sent to is traced (see
//! `freeze.rs`); a thread that sleeps in one of these calls and is not stopped at that moment gets EINTR. And a call that had moved a part
//! of its bytes (a write to a full pipe, recv with MSG_WAITALL) returns that part, as it would with any handled signal or debugger.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use libc::user_regs_struct;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use procfs::process::{MMapPath, MemoryMap};

use crate::appointments::{self, Appointment};
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

/// The folder of the thread that asks.
const OWN: &str = "/proc/thread-self";

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

/// The calls that give EINTR, and may be made again: they had done nothing yet.
fn interrupted(number: i64) -> Option<Timeout> {
    Some(match number {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Timeout::Millis(3),
        libc::SYS_epoll_pwait2 | libc::SYS_semtimedop => Timeout::Timespec(3),
        libc::SYS_rt_sigtimedwait => Timeout::Timespec(2),
        libc::SYS_io_getevents => Timeout::Timespec(4),
        // Older kernels give EINTR for some of these.
        libc::SYS_futex | libc::SYS_msgrcv | libc::SYS_msgsnd | libc::SYS_semop => Timeout::None,
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
    /// begun, and not slept yet, would be taken for the one before it (seen once in a thousand stops of a thread that calls all the time).
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
        let since = self.clocks.latest(last_processor(tid, memory).map(|ran_on| [ran_on, sleep.processor]), sleep)?;
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

/// A file of /proc, by one read: several might be of several moments.
fn read(mut file: &File) -> Option<String> {
    let mut bytes = [0; 8192];
    let read = file.read(&mut bytes).ok()?;
    Some(str::from_utf8(bytes.get(..read)?).ok()?.to_owned())
}

/// One of the files in a thread's folder.
fn read_named(thread: &str, name: &str) -> Option<String> {
    read(&File::open(format!("{thread}/{name}")).ok()?)
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

pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// What the scheduler tells of a thread.
#[derive(PartialEq, Eq)]
struct Scheduling {
    /// When it last ran, in its processor's clock.
    exec_start: Duration,
    /// How often it gave its processor up by itself.
    switches: u64,
}

fn scheduling(thread: &str) -> Option<Scheduling> {
    let text = read_named(thread, "sched")?;
    let value = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()));
    // Milliseconds, a dot, six digits.
    let (millis, nanos) = value("se.exec_start")?.split_once('.')?;
    let exec_start = Duration::from_millis(millis.parse().ok()?) + Duration::from_nanos(nanos.parse().ok()?);
    Some(Scheduling { exec_start, switches: value("nr_voluntary_switches")?.parse().ok()? })
}

fn processor(thread: &str) -> Option<usize> {
    let text = read_named(thread, "stat")?;
    // Field 39, counted from the state, which is the third.
    text.rsplit_once(')')?.1.split_whitespace().nth(36)?.parse().ok()
}

/// The processor on which a stopped thread was last in user mode; `None` if it has not told the kernel where to write that (glibc since
/// 2.35 has).
fn last_processor(tid: i32, memory: &Memory) -> Option<usize> {
    const LEAST_INVALID: u32 = 0xffff_fff0; // uninitialised, registration failed
    let area = trace::rseq(tid);
    // struct rseq: cpu_id_start, cpu_id.
    let number = (memory.read_u64(area).ok().filter(|_| area != 0)? >> 32) as u32;
    (number < LEAST_INVALID).then_some(number as usize)
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX / 2)
}

/// How many nanoseconds CLOCK_MONOTONIC is ahead of each processor's clock of running threads.
#[derive(Debug, Default)]
struct Clocks {
    offsets: HashMap<usize, i64>,
    /// These are all processors of the machine.
    complete: bool,
}

impl Clocks {
    /// Where there are more processors, only those named are read: each takes some 50 µs.
    const MOST: usize = 16;

    /// Reads them. The clocks hound sees may be a little old, never new: a sleep looks shorter than it was.
    fn read(wanted: &HashSet<usize>) -> Clocks {
        let mut clocks = Clocks::default();
        let own = Pid::from_raw(0);
        let Ok(everywhere) = sched_getaffinity(own) else { return clocks };
        let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().and_then(|count| usize::try_from(count).ok());
        let all = online.is_some_and(|count| count <= Self::MOST);
        for processor in (0..CpuSet::count()).filter(|cpu| everywhere.is_set(*cpu).unwrap_or(false) && (all || wanted.contains(cpu))) {
            let mut there = CpuSet::new();
            if there.set(processor).and_then(|()| sched_setaffinity(own, &there)).is_err() {
                continue;
            }
            // Brings the scheduler's note of this thread up to date, else it is as old as the last tick.
            std::thread::yield_now();
            let read = scheduling(OWN);
            let now = monotonic();
            if let Some(read) = read {
                clocks.offsets.insert(processor, nanos(now) - nanos(read.exec_start));
            }
        }
        // A failure leaves this thread of hound's on one processor: slower, not wrong.
        let _ = sched_setaffinity(own, &everywhere);
        clocks.complete = online == Some(clocks.offsets.len());
        clocks
    }

    /// The latest moment at which a thread can have fallen asleep, on one of these processors if it is known that it was on one of them.
    fn latest(&self, processors: Option<[usize; 2]>, sleep: &Sleep) -> Option<Duration> {
        let offsets: Vec<i64> = match processors {
            Some(known) => known.iter().map(|processor| self.offsets.get(processor).copied()).collect::<Option<_>>()?,
            None if self.complete => self.offsets.values().copied().collect(),
            None => return None,
        };
        let since = |offset: i64| u64::try_from(nanos(sleep.exec_start) + offset).map(Duration::from_nanos).ok();
        offsets.into_iter().filter_map(since).filter(|since| *since <= sleep.seen).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asleep(exec_start: u64, seen: u64, processor: usize) -> Sleep {
        let [exec_start, total, seen] = [exec_start, 5, seen].map(Duration::from_secs);
        Sleep { thread: OWN.into(), exec_start, processor, switches: 0, total, errno: None, seen, asked: seen }
    }

    #[test]
    fn a_sleep_never_begins_too_early() {
        let second = 1_000_000_000;
        let clocks = Clocks { offsets: [(0, 10 * second), (1, 12 * second), (2, 90 * second)].into(), complete: true };
        let sleep = asleep(100, 120, 0);
        let since = |processors| clocks.latest(processors, &sleep).map(|since| since.as_secs());
        assert_eq!(since(Some([0, 0])), Some(110), "its clock is known");
        assert_eq!(since(Some([1, 0])), Some(112), "it was moved, maybe after it fell asleep");
        assert_eq!(since(None), Some(112), "by the third clock it fell asleep after it was seen asleep");
        assert_eq!(since(Some([7, 0])), None, "a clock that is not known");
        assert_eq!(Clocks { complete: false, ..clocks }.latest(None, &sleep), None);
    }

    #[test]
    fn this_machine_s_clocks_are_read() {
        let clocks = Clocks::read(&[0].into());
        assert!(clocks.complete || clocks.offsets.contains_key(&0), "{clocks:?}");
        assert!(scheduling(OWN).is_some());
    }
}
