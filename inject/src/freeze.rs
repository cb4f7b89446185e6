//! All threads of a target at a standstill.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use libc::user_regs_struct;

use crate::error::{Error, Refusal};
use crate::look::Target;
use crate::memory::Memory;
use crate::restart::{Mend, Sleepers};
use crate::tasks;
use crate::trace::{self, Event, Haste, Tracer};

/// How long an attempt lets the threads that have stopped stand while it waits for the others.
const PATIENCE: Duration = Duration::from_millis(20);
/// So many attempts have no more than that. Each further one has twice as long as the one before: a machine that is too busy for the
/// target's threads to get their turn in [`PATIENCE`] lets them stand still for long anyway.
const SHORT_ATTEMPTS: u32 = 8;
/// The most an attempt has.
const MOST_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at a thread that cannot be stopped now.
const NAP: Duration = Duration::from_millis(1);

/// One thread of a frozen target.
#[derive(Clone, Copy, Debug)]
pub struct Stopped {
    /// The thread, as hound sees its number.
    pub tid: i32,
    /// Its registers as it stopped. In a system call, `rax` is one of the kernel's restart codes.
    pub regs: user_regs_struct,
}

/// All threads of a target, stopped. Released when dropped; when hound dies, the kernel releases them.
#[derive(Debug)]
pub struct Frozen {
    threads: Vec<Stopped>,
    tracer: Tracer<Hold>,
    /// Of the thread that works while the target stands still.
    haste: Haste,
}

impl Frozen {
    /// Stops all threads, new ones included, and makes sure that no other process runs on in their memory.
    ///
    /// Threads in uninterruptible sleep (a disk, vfork) are waited for before anything is stopped; one that falls into it in between ends
    /// the attempt, and all run on until the next.
    ///
    /// # Errors
    /// [`Error::Deadline`] when a thread did not stop in time, [`Error::Refused`] with [`Refusal::SharedMemory`] when another process
    /// had the same memory all that time, [`Error::Gone`], [`Error::Os`]. All threads run on then.
    pub fn all(target: &Target, deadline: Instant) -> Result<Frozen, Error> {
        Self::of(target, None, deadline)
    }

    /// Stops these threads only, as far as they have not ended. Others run on: they may make new ones.
    ///
    /// # Errors
    /// As [`Frozen::all`].
    pub(crate) fn some(target: &Target, tids: &[i32], deadline: Instant) -> Result<Frozen, Error> {
        Self::of(target, Some(tids), deadline)
    }

    fn of(target: &Target, only: Option<&[i32]>, deadline: Instant) -> Result<Frozen, Error> {
        let pid = target.pid;
        for attempt in 0u32.. {
            wait_until_stoppable(pid, deadline)?;
            let patience = PATIENCE * 2u32.saturating_pow(attempt.saturating_sub(SHORT_ATTEMPTS - 1).min(8));
            let patience = patience.min(MOST_PATIENCE);
            let haste = Haste::begin();
            let only = only.map(<[i32]>::to_vec);
            match Tracer::start(move || Hold::all(pid, only.as_deref(), patience, deadline)) {
                Ok((tracer, threads)) => return Ok(Frozen { threads, tracer, haste }),
                Err(error @ (Error::Deadline { .. } | Error::Refused(Refusal::SharedMemory { .. }))) if Instant::now() >= deadline => {
                    return Err(error);
                }
                Err(Error::Deadline { .. } | Error::Refused(Refusal::SharedMemory { .. })) => {
                    drop(haste);
                    std::thread::sleep(NAP);
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("invariant: the deadline ends the attempts")
    }

    /// Puts bytes at addresses, in this order, until one cannot be written. Returns how many were, and the error. By the thread that
    /// traces: some systems let nobody else write to code.
    pub(crate) fn write(&mut self, writes: Vec<(u64, Vec<u8>)>) -> (usize, Result<(), Error>) {
        self.tracer.run(move |hold| {
            for (done, (address, bytes)) in writes.iter().enumerate() {
                if let Err(error) = hold.memory.write(*address, bytes) {
                    return (done, Err(error));
                }
            }
            (writes.len(), Ok(()))
        })
    }

    /// The threads.
    pub fn threads(&self) -> &[Stopped] {
        &self.threads
    }

    /// Lets all run on. Returns how long they stood still: from the first that was asked to stop to the last that was released.
    pub fn release(mut self) -> Duration {
        let stall = self.tracer.run(Hold::let_go);
        drop(self.haste);
        stall
    }
}

/// Waits until no thread is in uninterruptible sleep and no other process has the same memory: the threads shall not stand still meanwhile.
fn wait_until_stoppable(pid: i32, deadline: Instant) -> Result<(), Error> {
    loop {
        let stuck = tasks::threads(pid)?.into_iter().find(|&tid| tasks::state(pid, tid) == Some('D'));
        let sharer = tasks::memory_shared_with(pid)?;
        match (stuck, sharer) {
            (None, None) => return Ok(()),
            (None, Some(with)) if Instant::now() >= deadline => return Err(Refusal::SharedMemory { with }.into()),
            (Some(tid), _) if Instant::now() >= deadline => return Err(stuck_thread(tid)),
            _ => std::thread::sleep(NAP),
        }
    }
}

fn stuck_thread(tid: i32) -> Error {
    Error::Deadline { what: format!("thread {tid} did not stop (it waits for a disk, or for a child to execute its program)") }
}

/// The threads held, on the thread that traces them. Lets go when dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    pid: i32,
    memory: Memory,
    since: Instant,
    held: Vec<(Stopped, Option<Mend>)>,
    /// Asked to stop, not yet at rest.
    pending: Vec<i32>,
    sleepers: Sleepers,
}

impl Hold {
    /// Stops all threads, or only those named. On the thread that is to trace them. Those that have stopped wait no longer than `patience`
    /// for the others: it counts from the first that is asked, for until hound itself has its turn nobody waits.
    pub(crate) fn all(pid: i32, only: Option<&[i32]>, patience: Duration, deadline: Instant) -> Result<(Hold, Vec<Stopped>), Error> {
        let memory = Memory::open(pid)?;
        let list = || -> Result<Vec<i32>, Error> {
            let mut threads = tasks::threads(pid)?;
            threads.retain(|tid| only.is_none_or(|only| only.contains(tid)));
            Ok(threads)
        };
        let mut threads = list()?;
        let sleepers = Sleepers::of(pid, &threads, &memory);
        let mut hold = Hold { pid, memory, since: Instant::now(), held: Vec::new(), pending: Vec::new(), sleepers };
        let deadline = deadline.min(hold.since + patience);
        let mut seen = HashSet::new();
        // A thread that runs may have made another; when all that were listed stand still, nobody is left who could.
        loop {
            threads.retain(|&tid| seen.insert(tid));
            // The kernel does not drop a signal that the target ignores (SIGCHLD) while the thread it is sent to is traced, mostly the
            // main thread: it wakes any thread, also one that no longer, or not yet, stands still. So the main thread is the last to be
            // traced and the first to be let go.
            threads.sort_by_key(|&tid| tid == pid);
            if threads.is_empty() {
                break;
            }
            for &tid in &threads {
                hold.ask(tid)?;
            }
            hold.take_pending(deadline)?;
            threads = list()?;
        }
        if hold.held.is_empty() && only.is_none() {
            return Err(Error::Gone);
        }
        if only.is_none()
            && let Some(with) = tasks::memory_shared_with(pid)?
        {
            return Err(Refusal::SharedMemory { with }.into());
        }
        let stopped = hold.held.iter().map(|(stopped, _)| *stopped).collect();
        Ok((hold, stopped))
    }

    fn ask(&mut self, tid: i32) -> Result<(), Error> {
        let asked = trace::seize(self.pid, tid)
            .and_then(|()| self.sleepers.interrupt(tid).map_err(|errno| Error::os(format!("stopping thread {tid}"), errno)));
        match asked {
            Ok(()) => {
                self.pending.push(tid);
                Ok(())
            }
            Err(_) if tasks::has_ended(self.pid, tid) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn take_pending(&mut self, deadline: Instant) -> Result<(), Error> {
        while let Some(&tid) = self.pending.last() {
            match trace::wait_for_rest(tid, deadline) {
                None => return Err(stuck_thread(tid)),
                Some(Event::Rest) => {
                    self.pending.pop();
                    self.take(tid);
                }
                // A main thread that ends before the others is reported when they have ended: it is not waited for.
                Some(_) => drop(self.pending.pop()),
            }
        }
        Ok(())
    }

    /// Notes a stopped thread. An EINTR of ours is taken back at once, so that it is gone even if hound dies now.
    fn take(&mut self, tid: i32) {
        let Ok(regs) = trace::regs(tid) else { return };
        let mend = self.sleepers.mend(tid, &regs, &self.memory);
        let regs = match &mend {
            Some(mend) => {
                let mended = mend.regs(&self.memory);
                // It fails only for a thread that has been killed.
                let _ = trace::set_regs(tid, &mended);
                mended
            }
            None => regs,
        };
        self.held.push((Stopped { tid, regs }, mend));
    }

    /// When the first was asked to stop.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// A thread that is held.
    pub(crate) fn taken(&self, tid: i32) -> Option<(Stopped, Option<Mend>)> {
        self.held.iter().find(|(stopped, _)| stopped.tid == tid).copied()
    }

    /// Takes a thread out, which is then the caller's to let go.
    pub(crate) fn take_out(&mut self, tid: i32) -> Option<(Stopped, Option<Mend>)> {
        let at = self.held.iter().position(|(stopped, _)| stopped.tid == tid)?;
        Some(self.held.swap_remove(at))
    }

    /// Lets all run on. Returns how long they stood still.
    pub(crate) fn let_go(&mut self) -> Duration {
        self.release_held();
        let stall = self.since.elapsed();
        // Nobody stands still any more. Those that have not had their turn to stop yet have, maybe, broken off a call for it: that is
        // mended when they do.
        for tid in std::mem::take(&mut self.pending) {
            if trace::wait_for_late(self.pid, tid) == Some(Event::Rest) {
                self.take(tid);
                self.release_held();
            }
        }
        stall
    }

    fn release_held(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        held.sort_by_key(|(stopped, _)| stopped.tid != self.pid);
        for (stopped, mend) in held {
            if let Some(mend) = mend.filter(Mend::ages) {
                let _ = trace::set_regs(stopped.tid, &mend.regs(&self.memory));
            }
            trace::detach(stopped.tid);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.let_go();
    }
}
