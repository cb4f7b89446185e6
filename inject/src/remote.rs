//! One stopped thread, and the system calls hound makes in it.
//!
//! The others run on, unless more of them want to run than there are processors: the borrowed thread would then wait for its turn after each
//! step, time slices of all others long. There all stand still until it is done, which is a hundredth of that.
//!
//! Each call is set up so that the thread undoes it by itself: the stack pointer points at a complete signal frame with the thread's own
//! state, whose return address is the target's `rt_sigreturn`. If hound dies at any moment, the thread finishes the call, returns into
//! `rt_sigreturn`, and goes on where it was. In the normal course that frame is never used.
//!
//! Order of the mask: all signals are blocked only after the registers lead to the frame (which holds the thread's mask), and the thread's
//! mask is put back before its registers are. So there is no moment at which hound's death leaves signals blocked.

use std::time::{Duration, Instant};

use libc::user_regs_struct;
use nix::errno::Errno;
use procfs::process::MemoryMap;

use crate::error::{Error, Refusal};
use crate::frame::{self, Frame};
use crate::freeze::Hold;
use crate::look::Target;
use crate::memory::Memory;

use crate::restart::{Mend, Sleepers, restarted_by_hand};
use crate::seccomp::{self, Call, Filters};
use crate::step;
use crate::tasks;
use crate::trace::{self, Event, Haste, Tracer};
use crate::ways::Places;

/// Code segment of 64-bit user code.
const CODE64: u64 = 0x33;
/// What must be mapped below the stack pointer: the frame reserves 13 KiB (AMX), and touches 3 KiB with AVX-512.
const ROOM: u64 = 16 * 1024;
/// How long a thread, or all together, may take to stop before hound looks why.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a system call may take in the target. The calls hound makes wait for nothing but the target's memory lock.
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a thread that hound has lost sight of is waited for.
const COMING_BACK: Duration = Duration::from_secs(1);
/// One thread of the target, stopped; all others run on. Released when dropped, as it was; when hound dies, it goes on by itself.
#[derive(Debug)]
pub struct Borrowed {
    pid: i32,
    tid: i32,
    tracer: Tracer<Loan>,
    /// Of the thread that works while the target's waits.
    haste: Haste,
}

impl Borrowed {
    /// Stops one thread that can be borrowed: one of 64-bit code, whose stack is surely one and has 16 KiB to spare, outside restartable
    /// sequences, whose seccomp filters pass all that an attach needs.
    ///
    /// # Errors
    /// [`Error::Refused`] when no thread can be borrowed (at once for a filter; at the deadline for what may change), [`Error::Deadline`]
    /// when others trace them all that time, [`Error::Gone`], [`Error::Os`]. Nothing is changed then.
    pub fn any(target: &Target, memory: &Memory, deadline: Instant) -> Result<Borrowed, Error> {
        let pid = target.pid;
        let places = Places::find(pid, memory)?;
        loop {
            let mut last = Refusal::NoThread { why: "none is alive".into() }.into();
            if tasks::is_crowded(pid)? {
                match Self::of_a_crowd(target, places, deadline) {
                    // Not all would stop: one will.
                    Err(Error::Deadline { .. } | Error::Refused(_)) => {}
                    borrowed => return borrowed,
                }
            }
            for tid in tasks::candidates(pid)? {
                match Self::alone(pid, tid, places, deadline) {
                    Ok(borrowed) => return Ok(borrowed),
                    Err(error @ (Error::Refused(Refusal::NoThread { .. }) | Error::Deadline { .. })) => last = error,
                    Err(Error::Gone) if tasks::has_ended(pid, tid) => {}
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() >= deadline {
                return Err(last);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn alone(pid: i32, tid: i32, places: Places, deadline: Instant) -> Result<Borrowed, Error> {
        let haste = Haste::begin();
        let (tracer, ()) = Tracer::start(move || Ok((Loan::of(pid, tid, places, deadline)?, ())))?;
        Ok(Borrowed { pid, tid, tracer, haste })
    }

    /// Stops all, and borrows one of them.
    fn of_a_crowd(target: &Target, places: Places, deadline: Instant) -> Result<Borrowed, Error> {
        let (pid, order) = (target.pid, tasks::candidates(target.pid)?);
        let haste = Haste::begin();
        let (tracer, tid) = Tracer::start(move || Loan::of_a_crowd(pid, &order, places, deadline))?;
        Ok(Borrowed { pid, tid, tracer, haste })
    }

    /// Stops this thread of the target, as [`Borrowed::any`] would.
    ///
    /// # Errors
    /// As [`Borrowed::any`], of this thread, and without trying again.
    pub fn thread(target: &Target, tid: i32, memory: &Memory, deadline: Instant) -> Result<Borrowed, Error> {
        Self::alone(target.pid, tid, Places::find(target.pid, memory)?, deadline)
    }

    /// The thread.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// The thread's registers as it was found.
    pub fn regs(&mut self) -> user_regs_struct {
        self.tracer.run(|loan| loan.regs)
    }

    /// Makes a system call in the target's thread and returns its result.
    ///
    /// # Errors
    /// [`Error::Os`] with the call's name when it failed there, [`Error::Refused`] when a seccomp filter forbids it (it is not made then),
    /// [`Error::Gone`].
    pub fn syscall(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, Error> {
        self.tracer.run(move |loan| loan.syscall(number, arguments))
    }

    /// From the next call on, the frame lies in these bytes of the target (readable and writable, [`Borrowed::SCRATCH`] at least), no
    /// longer below the thread's stack pointer. They must stay mapped for ever: the thread may need the frame when hound is dead.
    ///
    /// # Errors
    /// [`Error::Unfit`] where there is too little room, [`Error::Os`] where it cannot be written.
    pub fn use_scratch(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        self.tracer.run(move |loan| loan.use_scratch(address, bytes))
    }

    /// Bytes that [`Borrowed::use_scratch`] needs.
    pub const SCRATCH: u64 = ROOM;

    /// Puts bytes at addresses, by the thread that traces: some systems let nobody else write to code.
    ///
    /// # Errors
    /// As [`Memory::write`].
    pub(crate) fn write(&mut self, writes: Vec<(u64, Vec<u8>)>) -> Result<(), Error> {
        self.tracer.run(move |loan| writes.iter().try_for_each(|(address, bytes)| loan.memory.write(*address, bytes)))
    }

    /// Lets it run on as it was. Returns how long it (and the others, if they did) stood still. A thread that hound has lost sight of
    /// finishes its call and comes back by itself: that is waited for, for what the call does must not come after what undoes it.
    pub fn release(mut self) -> Duration {
        let (stall, astray) = self.tracer.run(|loan| {
            let astray = loan.astray();
            (loan.give_back(), astray)
        });
        let Borrowed { pid, tid, tracer, haste } = self;
        drop((tracer, haste));
        if let Some(astray) = astray {
            astray.wait(pid, tid);
        }
        stall
    }
}

/// A thread that hound has lost sight of in a remote call: where its stack pointer is until it has come back.
#[derive(Clone, Copy, Debug)]
struct Astray {
    places: Places,
    first: u64,
    last: u64,
}

impl Astray {
    /// Waits for it, but not for ever: it may have been killed, or sleep in the call.
    fn wait(self, pid: i32, tid: i32) {
        let until = Instant::now() + COMING_BACK;
        while Instant::now() < until {
            match Borrowed::alone(pid, tid, self.places, until) {
                Ok(mut borrowed) => {
                    let sp = borrowed.regs().rsp;
                    borrowed.release();
                    if !(self.first..=self.last).contains(&sp) {
                        return;
                    }
                }
                // On a stack that is none of its own, such as the frame's; or another has it for a moment.
                Err(Error::Refused(_) | Error::Deadline { .. }) => {}
                Err(_) => return,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Where a borrowed thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// As it was found.
    Own,
    /// On the way out of a remote call.
    Remote,
    /// No longer to be touched: it ended, or is not where hound can put it back from. The frame brings it back, if anything.
    Lost,
}

/// A thread at rest, as it was found.
struct Held {
    tid: i32,
    since: Instant,
    regs: user_regs_struct,
    mend: Option<Mend>,
}

/// A borrowed thread, on the thread that traces it. Given back when dropped.
#[derive(Debug)]
struct Loan {
    tid: i32,
    since: Instant,
    memory: Memory,
    /// As it was found, but for an EINTR of ours.
    regs: user_regs_struct,
    mend: Option<Mend>,
    mask: u64,
    xstate: Vec<u8>,
    filters: Filters,
    places: Places,
    frame: Frame,
    place: Place,
    /// The other threads, where they stand still too.
    others: Option<Hold>,
}

impl Loan {
    fn of(pid: i32, tid: i32, places: Places, deadline: Instant) -> Result<Loan, Error> {
        let memory = Memory::open(pid)?;
        let mut sleepers = Sleepers::of(pid, &[tid], &memory);
        let mappings = tasks::mappings(pid)?;
        trace::seize(pid, tid)?;
        let since = Instant::now();
        sleepers.interrupt(tid).map_err(|errno| Error::os("stopping a thread", errno))?;
        // A thread that waits for a processor is waited for: let go now, it would keep the EINTR it was stopped with.
        let soon = deadline.min(Instant::now() + PATIENCE);
        match trace::wait_for_rest(tid, soon).or_else(|| trace::wait_for_late(pid, tid)) {
            Some(Event::Rest) => {}
            Some(_) => return Err(Error::Gone),
            None => return Err(unusable(tid, "did not stop")),
        }
        let os = |errno| Error::os("reading a stopped thread", errno);
        let mut regs = trace::regs(tid).map_err(os)?;
        let mend = sleepers.mend(tid, &regs, &memory);
        if let Some(mend) = &mend {
            regs = mend.regs(&memory);
            trace::set_regs(tid, &regs).map_err(os)?;
        }
        let held = Held { tid, since, regs, mend };
        Self::with(pid, held, places, &mappings, memory).inspect_err(|_| trace::detach(tid))
    }

    /// Stops all threads and takes the first in `order` that serves.
    fn of_a_crowd(pid: i32, order: &[i32], places: Places, deadline: Instant) -> Result<(Loan, i32), Error> {
        let (mut others, stopped) = Hold::all(pid, None, PATIENCE, deadline)?;
        let (mappings, since) = (tasks::mappings(pid)?, others.since());
        let mut last = unusable(pid, "is not alive");
        for tid in order.iter().copied().filter(|tid| stopped.iter().any(|thread| thread.tid == *tid)) {
            let Some((thread, mend)) = others.taken(tid) else { continue };
            let held = Held { tid, since, regs: thread.regs, mend };
            match Self::with(pid, held, places, &mappings, Memory::open(pid)?) {
                Ok(mut loan) => {
                    let _ = others.take_out(tid);
                    loan.others = Some(others);
                    return Ok((loan, tid));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Of a thread at rest, which is left as it is if this fails.
    fn with(pid: i32, held: Held, places: Places, mappings: &[MemoryMap], memory: Memory) -> Result<Loan, Error> {
        let os = |errno| Error::os("reading a stopped thread", errno);
        let Held { tid, since, regs, mend } = held;
        fit(tid, &regs, mappings, &memory)?;
        if !places.still_there(&memory) {
            return Err(unusable(tid, "the code it was to use has been unloaded"));
        }
        let filters = Filters::of(pid, tid)?;
        filters.check_all(places.gadget + 2)?;
        let (mask, xstate) = (trace::mask(tid).map_err(os)?, trace::xstate(tid).map_err(os)?);
        let frame = Frame::below(regs.rsp);
        Ok(Loan { tid, since, memory, regs, mend, mask, xstate, filters, places, frame, place: Place::Own, others: None })
    }

    fn syscall(&mut self, number: i64, arguments: [u64; 6]) -> Result<u64, Error> {
        if self.place == Place::Lost {
            return Err(Error::Gone);
        }
        self.filters.check(&Call { number, instruction_pointer: self.places.gadget + 2, arguments })?;
        step::note(|| seccomp::name(number));
        let os = |errno| Error::os("driving the borrowed thread", errno);
        let first = self.place == Place::Own;
        if first {
            self.write_frame()?;
        }
        let [rdi, rsi, rdx, r10, r8, r9] = arguments;
        let regs = user_regs_struct {
            rip: self.places.gadget,
            rsp: self.frame.start(self.places.way_back),
            rax: number as u64,
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..self.regs
        };
        trace::set_regs(self.tid, &regs).map_err(os)?;
        self.place = Place::Remote;
        if first {
            trace::set_mask(self.tid, u64::MAX).map_err(os)?;
        }
        let result = self.run_call()?;
        match -(result as i64) {
            errno @ 1..=4095 => {
                let what = format!("{} in the target", seccomp::name(number));
                if errno == i64::from(libc::ENOMEM) {
                    return Err(Refusal::NoMemory { what }.into());
                }
                Err(Error::Os { what, errno: errno as i32 })
            }
            _ => Ok(result),
        }
    }

    /// Lets the thread run through its call. A stop signal for the whole process passes; the process stays stopped after the release.
    fn run_call(&mut self) -> Result<u64, Error> {
        let deadline = Instant::now() + CALL_PATIENCE;
        let mut signal = 0;
        loop {
            let event = trace::resume_to_syscall(self.tid, signal).map(|()| trace::wait(self.tid, deadline));
            signal = 0;
            match event {
                Ok(Some(Event::Syscall)) => {
                    // Not to know is to have lost it: one more step would take it through the frame.
                    if trace::leaves_syscall(self.tid).map_err(|errno| self.lose(errno))? {
                        let regs = trace::regs(self.tid).map_err(|errno| self.lose(errno))?;
                        // A restart code: the kernel will make the call again.
                        if !(512..=516).contains(&-(regs.rax as i64)) {
                            return Ok(regs.rax);
                        }
                    }
                }
                Ok(Some(Event::Rest | Event::Executed | Event::Began)) => {}
                Ok(Some(Event::Signal(number))) => signal = number,
                Ok(Some(Event::Gone)) => return Err(self.lose(Errno::ESRCH)),
                Ok(None) => {
                    self.place = Place::Lost;
                    return Err(Error::Deadline { what: format!("thread {} did not finish a system call", self.tid) });
                }
                Err(errno) => return Err(self.lose(errno)),
            }
        }
    }

    fn lose(&mut self, errno: Errno) -> Error {
        self.place = Place::Lost;
        Error::os("driving the borrowed thread", errno)
    }

    fn write_frame(&self) -> Result<(), Error> {
        let (start, bytes) = self.frame.bytes(self.places.way_back, &restarted_by_hand(&self.regs), self.mask, &self.xstate)?;
        self.memory.write(start, &bytes)
    }

    fn use_scratch(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        if bytes < Borrowed::SCRATCH {
            return Err(Error::Unfit { what: format!("{bytes} bytes of scratch are too few") });
        }
        let before = std::mem::replace(&mut self.frame, Frame::within(address, bytes));
        self.write_frame().inspect_err(|_| self.frame = before)
    }

    /// Where the thread is if it is not to be put back from there.
    fn astray(&self) -> Option<Astray> {
        let (first, last) = self.frame.on_the_way(self.places.way_back);
        (self.place == Place::Lost).then_some(Astray { places: self.places, first, last })
    }

    /// Puts the thread back and lets it go, and the others if they stood still.
    fn give_back(&mut self) -> Duration {
        step::note(|| "release".into());
        let stall = self.give_this_back();
        match &mut self.others {
            Some(others) => others.let_go(),
            None => stall,
        }
    }

    fn give_this_back(&mut self) -> Duration {
        let at_rest = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Own => true,
            Place::Remote => self.come_to_rest(),
            // Only if it has stopped after all; else the kernel lets go of it when this thread of hound's ends.
            Place::Lost => false,
        };
        if at_rest {
            if let Some(mend) = self.mend.filter(Mend::ages) {
                self.regs = mend.regs(&self.memory);
            }
            // Each fails only for a thread that has been killed.
            let _ = trace::set_regs(self.tid, &self.regs);
        }
        trace::detach(self.tid);
        self.since.elapsed()
    }

    /// From the exit of a remote call to where the kernel restarts calls by itself, with the thread's own mask again.
    fn come_to_rest(&mut self) -> bool {
        let asked = trace::interrupt(self.tid).and_then(|()| trace::resume(self.tid, 0));
        let rests = asked.is_ok() && trace::wait_for_rest(self.tid, Instant::now() + CALL_PATIENCE) == Some(Event::Rest);
        rests && trace::set_mask(self.tid, self.mask).is_ok()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn unusable(tid: i32, why: &str) -> Error {
    Refusal::NoThread { why: format!("thread {tid} {why}") }.into()
}

/// Whether a stopped thread can make calls for hound.
pub(crate) fn fit(tid: i32, regs: &user_regs_struct, mappings: &[MemoryMap], memory: &Memory) -> Result<(), Error> {
    if regs.cs != CODE64 {
        return Err(unusable(tid, "runs 32-bit code"));
    }
    let Some(stack) = tasks::sure_stack(mappings, regs.rsp, regs.fs_base) else {
        return Err(unusable(tid, "is on a stack of the program's own making"));
    };
    if regs.rsp - stack.address.0 < ROOM {
        return Err(unusable(tid, "has too little stack left"));
    }
    if trace::diverts_syscalls(tid) {
        return Err(unusable(tid, "diverts system calls to a handler"));
    }
    if frame::in_restartable_sequence(memory, trace::rseq(tid), regs.rip) {
        // The kernel would take its note of the sequence away when it sees the thread elsewhere, and not abort it afterwards.
        return Err(unusable(tid, "is in a restartable sequence"));
    }
    Ok(())
}
