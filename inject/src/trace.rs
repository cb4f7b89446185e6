//! ptrace, one call at a time, and the thread that makes the calls.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::{c_int, c_uint, user_regs_struct};
use nix::errno::Errno;

use crate::error::Error;
use crate::step::{moment, step};
use crate::tasks;

/// Note type of a thread's extended floating-point state.
const NT_X86_XSTATE: usize = 0x202;
/// More than any x86-64 thread's extended state (AMX: 11 KiB).
const XSTATE_ROOM: usize = 16 * 1024;
const PTRACE_GET_RSEQ_CONFIGURATION: c_uint = 0x420f;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: c_uint = 0x4211;
const PTRACE_SECCOMP_GET_FILTER: c_uint = 0x420c;

/// Why a thread was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Stopped where the kernel would look for signals: on its way to user mode. Only from here does the kernel restart system calls.
    Rest,
    /// Stopped before or after a system call.
    Syscall,
    /// Stopped with a signal that it would have been given.
    Signal(i32),
    /// Stopped because a program was executed ([`seize_with`]).
    Executed,
    /// Stopped because it has begun a process (likewise).
    Began,
    /// Ended.
    Gone,
}

fn request(request: c_uint, tid: i32, address: usize, data: usize) -> Result<i64, Errno> {
    step()?;
    // SAFETY: `data` is 0, a number, or points to memory of the size the request writes or reads: each caller in this file passes a live
    // buffer of the kernel's type. ptrace changes no other memory of hound's.
    Errno::result(unsafe { libc::ptrace(request, tid, address, data) })
}

/// Becomes a thread's tracer without stopping it. Another thread of hound's, or of an earlier hound, may have it for a moment
/// ([`crate::appointments`]): that is waited for.
///
/// # Errors
/// [`Error::Gone`] when the thread has ended, [`Error::Deadline`] when another tracer keeps it, [`Error::Os`].
pub(crate) fn seize(pid: i32, tid: i32) -> Result<(), Error> {
    seize_with(pid, tid, 0)
}

/// As [`seize`], with more options.
pub(crate) fn seize_with(pid: i32, tid: i32, options: c_int) -> Result<(), Error> {
    const MOMENT: Duration = Duration::from_millis(10);
    let begun = Instant::now();
    loop {
        let errno = match request(libc::PTRACE_SEIZE, tid, 0, (libc::PTRACE_O_TRACESYSGOOD | options) as usize) {
            Ok(_) => return Ok(()),
            Err(errno) => errno,
        };
        // The kernel says EPERM for a zombie, such as a main thread that ended before the others.
        if tasks::has_ended(pid, tid) {
            return Err(Error::Gone);
        }
        // Also where nobody has it any more by now: who had it may have let it go since.
        if errno != Errno::EPERM {
            return Err(Error::os(format!("tracing thread {tid}"), errno));
        }
        if begun.elapsed() >= MOMENT {
            return Err(match tasks::tracer(tid) {
                Some(tracer) => Error::Deadline { what: format!("thread {tid} is traced by thread {tracer}") },
                None => Error::os(format!("tracing thread {tid}"), errno),
            });
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Asks a thread to stop ([`Event::Rest`]).
pub(crate) fn interrupt(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a thread run, with a signal (0 = none).
pub(crate) fn resume(tid: i32, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// Lets a thread run to its next entry to or exit from a system call.
pub(crate) fn resume_to_syscall(tid: i32, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Whether a thread rests because its process was stopped.
pub(crate) fn is_of_a_stop(tid: i32) -> Result<bool, Errno> {
    // SAFETY: all-zero bytes are a valid value: it holds integers and a null.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize)?;
    Ok(matches!(info.si_signo, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU))
}

/// Leaves a thread that rests for that as it is, until its process is continued.
pub(crate) fn stay(tid: i32) -> Result<(), Errno> {
    request(libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Lets a stopped thread go. A thread that ended meanwhile is gone just as well.
pub(crate) fn detach(tid: i32) {
    let _ = request(libc::PTRACE_DETACH, tid, 0, 0);
}

/// A stopped thread's registers.
pub(crate) fn regs(tid: i32) -> Result<user_regs_struct, Errno> {
    // SAFETY: all-zero bytes are a valid value: it holds integers only.
    let mut regs: user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, 0, &raw mut regs as usize)?;
    Ok(regs)
}

/// Sets a stopped thread's registers.
pub(crate) fn set_regs(tid: i32, regs: &user_regs_struct) -> Result<(), Errno> {
    request(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as usize).map(drop)
}

/// A stopped thread's signal mask: the lasting one, not the one a sigsuspend put in its place.
pub(crate) fn mask(tid: i32) -> Result<u64, Errno> {
    let mut mask = 0u64;
    request(libc::PTRACE_GETSIGMASK, tid, 8, &raw mut mask as usize)?;
    Ok(mask)
}

/// Sets a stopped thread's signal mask.
pub(crate) fn set_mask(tid: i32, mask: u64) -> Result<(), Errno> {
    request(libc::PTRACE_SETSIGMASK, tid, 8, &raw const mask as usize).map(drop)
}

/// A stopped thread's extended floating-point state, in the standard format.
pub(crate) fn xstate(tid: i32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0u8; XSTATE_ROOM];
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &raw mut vector as usize)?;
    bytes.truncate(vector.iov_len);
    Ok(bytes)
}

/// Whether a thread stopped by [`Event::Syscall`] is on its way out of the call.
pub(crate) fn leaves_syscall(tid: i32) -> Result<bool, Errno> {
    // SAFETY: all-zero bytes are a valid value: it holds integers only, also in its union.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GET_SYSCALL_INFO, tid, size_of_val(&info), &raw mut info as usize)?;
    Ok(info.op == libc::PTRACE_SYSCALL_INFO_EXIT)
}

/// Address of a stopped thread's rseq area, 0 if it has none (or the kernel cannot tell: before 5.13).
pub(crate) fn rseq(tid: i32) -> u64 {
    // struct ptrace_rseq_configuration: address, size, signature, flags, padding.
    let mut words = [0u64; 3];
    match request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of_val(&words), &raw mut words as usize) {
        Ok(_) => words[0],
        Err(_) => 0,
    }
}

/// Whether a stopped thread's system calls are diverted to a handler of its own (as Wine does).
pub(crate) fn diverts_syscalls(tid: i32) -> bool {
    // struct ptrace_sud_config: mode, selector, offset, length.
    let mut words = [0u64; 4];
    let known = request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of_val(&words), &raw mut words as usize);
    known.is_ok() && words[0] != 0
}

/// A stopped thread's `index`-th seccomp filter, `None` behind the last one.
pub(crate) fn filter(tid: i32, index: usize) -> Result<Option<Vec<libc::sock_filter>>, Errno> {
    let length = match request(PTRACE_SECCOMP_GET_FILTER, tid, index, 0) {
        Ok(length) => length as usize,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let mut program = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; length];
    request(PTRACE_SECCOMP_GET_FILTER, tid, index, program.as_mut_ptr() as usize)?;
    Ok(Some(program))
}

/// Waits until any thread is reported that this one traces, `None` at the deadline. One that has ended is left to be waited for by its parent,
/// which may be hound.
pub(crate) fn wait_for_any(deadline: Instant) -> Option<(i32, Event)> {
    const MINE: c_int = libc::__WALL | libc::__WNOTHREAD;
    moment();
    let mut nap = Duration::from_micros(4);
    loop {
        // SAFETY: all-zero bytes are a valid value: it holds integers and a null.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOHANG | libc::WNOWAIT | MINE;
        // SAFETY: `info` is a live object of the kernel's type.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
        // SAFETY: of a process' change, as all that this call tells of; 0 where it has told nothing.
        let pid = unsafe { info.si_pid() };
        if result == 0 && pid != 0 {
            if matches!(info.si_code, libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED) {
                return Some((pid, Event::Gone));
            }
            let mut status: c_int = 0;
            // SAFETY: status is a live int of ours.
            if unsafe { libc::waitpid(pid, &raw mut status, MINE | libc::WNOHANG) } == pid {
                return Some((pid, event(status)));
            }
        } else if result != 0 && Errno::last() != Errno::EINTR {
            return Some((0, Event::Gone)); // it traces nothing any more
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(nap);
        nap = (nap * 2).min(Duration::from_micros(100));
    }
}

/// Waits until a traced thread is reported, `None` at the deadline.
pub(crate) fn wait(tid: i32, deadline: Instant) -> Option<Event> {
    moment();
    let mut nap = Duration::from_micros(4);
    for round in 0u32.. {
        let mut status: c_int = 0;
        // SAFETY: status is a live int of ours.
        match unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) } {
            0 => {}
            -1 if Errno::last() == Errno::EINTR => continue,
            -1 => return Some(Event::Gone),
            _ => return Some(event(status)),
        }
        if Instant::now() >= deadline {
            return None;
        }
        // There is no wait with a deadline. A stop mostly comes within microseconds, but the thread may need this very processor: to yield
        // it is not enough for one that runs before all others.
        if round >= 8 {
            std::thread::sleep(nap);
            nap = (nap * 2).min(Duration::from_micros(100));
        }
    }
    None
}

fn event(status: c_int) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Gone;
    }
    match (status >> 16, libc::WSTOPSIG(status)) {
        // Of its own with SIGTRAP, with a stopping signal's number when the process is stopped: both are the same place.
        (libc::PTRACE_EVENT_STOP, _) => Event::Rest,
        (libc::PTRACE_EVENT_EXEC, _) => Event::Executed,
        (libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE, _) => Event::Began,
        (_, stop) if stop == libc::SIGTRAP | 0x80 => Event::Syscall,
        (_, stop) => Event::Signal(stop),
    }
}

/// Waits until an interrupted thread is at rest; signals that come first are passed on. `None` at the deadline.
pub(crate) fn wait_for_rest(tid: i32, deadline: Instant) -> Option<Event> {
    loop {
        match wait(tid, deadline)? {
            Event::Signal(signal) => resume(tid, signal).ok()?,
            Event::Syscall | Event::Executed | Event::Began => resume(tid, 0).ok()?,
            rest_or_gone => return Some(rest_or_gone),
        }
    }
}

/// Waits for a thread that did not stop in its time and is no longer wanted. One that was asked to stop may have broken off a system call
/// for that: only when it is at rest can hound let it go as if nothing had been. `None` for what sleeps uninterruptibly (it breaks nothing
/// off), or does not stop at all.
pub(crate) fn wait_for_late(pid: i32, tid: i32) -> Option<Event> {
    const SLICE: Duration = Duration::from_millis(20);
    const LATEST: Duration = Duration::from_secs(10);
    let (begun, mut asleep) = (Instant::now(), 0);
    // In passing, a thread on its way may have to wait for a lock.
    while begun.elapsed() < LATEST && asleep < 3 {
        if let Some(event) = wait_for_rest(tid, Instant::now() + SLICE) {
            return Some(event);
        }
        asleep = if tasks::state(pid, tid) == Some('D') { asleep + 1 } else { 0 };
    }
    None
}

/// While it lives, a thread of hound's runs before others, if the system allows it, and so do threads it starts: the target stands still
/// while hound waits for a processor, and may have many threads that want one. The scheduling of the target is never touched.
#[derive(Debug)]
pub struct Haste {
    tid: i32,
    policy: c_int,
    priority: c_int,
    nice: c_int,
}

impl Haste {
    /// Of the calling thread.
    pub fn begin() -> Haste {
        let tid = nix::unistd::gettid().as_raw();
        let mut parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: takes a number.
        let policy = unsafe { libc::sched_getscheduler(tid) };
        // SAFETY: `parameters` is a live object of the kernel's type.
        unsafe { libc::sched_getparam(tid, &raw mut parameters) };
        // SAFETY: takes numbers only.
        let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, tid as libc::id_t) };
        let haste = Haste { tid, policy, priority: parameters.sched_priority, nice };
        let first = libc::sched_param { sched_priority: 1 };
        if policy == libc::SCHED_OTHER || policy == libc::SCHED_BATCH || policy == libc::SCHED_IDLE {
            // SAFETY: `first` is a live object of the kernel's type.
            let done = unsafe { libc::sched_setscheduler(tid, libc::SCHED_RR, &raw const first) };
            if done != 0 {
                // SAFETY: takes numbers only. A refusal costs time, no more.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, tid as libc::id_t, -20) };
            }
        }
        haste
    }
}

impl Drop for Haste {
    fn drop(&mut self) {
        let before = libc::sched_param { sched_priority: self.priority };
        if self.policy < 0 {
            return;
        }
        // SAFETY: `before` is a live object of the kernel's type. The thread is hound's own, ended or not.
        unsafe { libc::sched_setscheduler(self.tid, self.policy, &raw const before) };
        // SAFETY: takes numbers only.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, self.tid as libc::id_t, self.nice) };
    }
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A thread of hound's that traces, with its state.
///
/// The kernel knows a tracer by its thread. One of its own does this: when it ends, for whatever reason, the kernel lets go of everything it
/// traces, also of threads that cannot be detached because they have not stopped yet.
#[derive(Debug)]
pub(crate) struct Tracer<S> {
    jobs: Option<mpsc::Sender<Job<S>>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: 'static> Tracer<S> {
    /// Starts the thread; `begin` is the first thing it does. When that fails the thread has ended (and let go) on return.
    pub(crate) fn start<T: Send + 'static>(begin: impl FnOnce() -> Result<(S, T), Error> + Send + 'static) -> Result<(Self, T), Error> {
        let (jobs, orders) = mpsc::channel::<Job<S>>();
        let (report, begun) = mpsc::channel();
        let body = move || match begin() {
            Err(error) => drop(report.send(Err(error))),
            Ok((mut state, value)) => {
                drop(report.send(Ok(value)));
                for job in orders {
                    job(&mut state);
                }
            }
        };
        let thread = std::thread::Builder::new().name("hound-trace".into()).spawn(body);
        let thread = thread.map_err(|error| Error::io("starting a thread", &error))?;
        match begun.recv() {
            Ok(Ok(value)) => Ok((Tracer { jobs: Some(jobs), thread: Some(thread) }, value)),
            Ok(Err(error)) => {
                let _ = thread.join();
                Err(error)
            }
            Err(_) => panic!("invariant: the tracing thread reports before it ends"),
        }
    }

    /// Has the thread do something.
    pub(crate) fn run<T: Send + 'static>(&mut self, job: impl FnOnce(&mut S) -> T + Send + 'static) -> T {
        let (report, done) = mpsc::channel();
        let job: Job<S> = Box::new(move |state| drop(report.send(job(state))));
        self.jobs.as_ref().expect("invariant: taken only on drop").send(job).expect("invariant: the thread ends on drop");
        done.recv().expect("invariant: a job reports")
    }
}

impl<S> Drop for Tracer<S> {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Has the thread for so long, on a thread of its own.
    fn another_has_it_for(pid: i32, time: Duration) -> JoinHandle<()> {
        let (report, begun) = mpsc::channel();
        let other = std::thread::spawn(move || {
            seize(pid, pid).expect("nobody traces it");
            report.send(()).expect("it is waited for");
            std::thread::sleep(time);
            // The end of the thread ends its tracing, also of one that runs.
        });
        begun.recv().expect("it says so");
        other
    }

    #[test]
    fn a_thread_that_another_traces_for_a_moment_is_waited_for() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("it is there");
        let pid = child.id() as i32;
        for _ in 0..50 {
            let other = another_has_it_for(pid, Duration::from_micros(700));
            let begun = Instant::now();
            while let Err(error) = std::thread::spawn(move || seize(pid, pid)).join().expect("it ends") {
                // The other may have been kept from its processor.
                assert!(matches!(error, Error::Deadline { .. }), "{error}");
                assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
            }
            other.join().expect("it ends");
        }
        let other = another_has_it_for(pid, Duration::from_millis(500));
        let refused = seize(pid, pid);
        let named = format!("thread {pid} is traced by thread ");
        assert!(matches!(&refused, Err(Error::Deadline { what }) if what.starts_with(&named)) || refused == Ok(()), "{refused:?}");
        other.join().expect("it ends");
        child.kill().expect("it runs");
        // A zombie: nobody has waited for it.
        while !tasks::has_ended(pid, pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(seize(pid, pid), Err(Error::Gone));
        child.wait().expect("it has ended");
    }
}
