//! One stopped thread, and the system calls hound makes in it.
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
use procfs::process::{MMPermissions, MMapPath, MemoryMap};

use crate::error::{Error, Refusal};
use crate::frame::{self, Frame};
use crate::look::Target;
use crate::memory::Memory;
use crate::restart::{Mend, Sleepers, restarted_by_hand};
use crate::seccomp::{self, Call, Filters};
use crate::step;
use crate::tasks;
use crate::trace::{self, Event, Tracer};

/// `syscall; ret`
const GADGET: [u8; 3] = [0x0f, 0x05, 0xc3];
/// What libcs give the kernel to return from signal handlers by: `mov rax, 15; syscall`, in both its lengths.
const RESTORERS: [&[u8]; 2] = [&[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05], &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05]];
/// Code segment of 64-bit user code.
const CODE64: u64 = 0x33;
/// What must be mapped below the stack pointer: the frame reserves 13 KiB (AMX), and touches 3 KiB with AVX-512.
const ROOM: u64 = 16 * 1024;
/// How long one thread may take to stop before another is tried.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a system call may take in the target. The calls hound makes wait for nothing but the target's memory lock.
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// Most code of one mapping that is searched.
const SEARCHED: u64 = 64 << 20;

/// One thread of the target, stopped; all others run on. Released when dropped, as it was; when hound dies, it goes on by itself.
#[derive(Debug)]
pub struct Borrowed {
    tid: i32,
    tracer: Tracer<Loan>,
}

impl Borrowed {
    /// Stops one thread that can be borrowed: one of 64-bit code, whose stack is surely one and has 16 KiB to spare, outside restartable
    /// sequences, whose seccomp filters pass all that an attach needs.
    ///
    /// # Errors
    /// [`Error::Refused`] when no thread can be borrowed (at once for a filter; at the deadline for what may change), [`Error::Gone`],
    /// [`Error::Os`]. Nothing is changed then.
    pub fn any(target: &Target, memory: &Memory, deadline: Instant) -> Result<Borrowed, Error> {
        let pid = target.pid;
        let places = Places::find(pid, memory)?;
        loop {
            let mut last = Refusal::NoThread { why: "none is alive".into() };
            for tid in tasks::threads(pid)? {
                // Uninterruptible sleep: it cannot be stopped, and let go, before it wakes.
                if matches!(tasks::state(pid, tid), None | Some('Z' | 'X' | 'D')) {
                    continue;
                }
                let until = deadline.min(Instant::now() + PATIENCE);
                match Tracer::start(move || Ok((Loan::of(pid, tid, places, until)?, ()))) {
                    Ok((tracer, ())) => return Ok(Borrowed { tid, tracer }),
                    Err(Error::Refused(refusal @ Refusal::NoThread { .. })) => last = refusal,
                    Err(Error::Gone) if tasks::has_ended(pid, tid) => {}
                    Err(error) => return Err(error),
                }
            }
            if Instant::now() >= deadline {
                return Err(last.into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops this thread of the target, as [`Borrowed::any`] would.
    ///
    /// # Errors
    /// As [`Borrowed::any`], of this thread, and without trying again.
    pub fn thread(target: &Target, tid: i32, memory: &Memory, deadline: Instant) -> Result<Borrowed, Error> {
        let (pid, places) = (target.pid, Places::find(target.pid, memory)?);
        let (tracer, ()) = Tracer::start(move || Ok((Loan::of(pid, tid, places, deadline)?, ())))?;
        Ok(Borrowed { tid, tracer })
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

    /// Lets it run on as it was. Returns how long it stood still.
    pub fn release(mut self) -> Duration {
        self.tracer.run(Loan::give_back)
    }
}

/// Code of the target's own that remote calls go through.
#[derive(Clone, Copy, Debug)]
struct Places {
    gadget: u64,
    restorer: u64,
    restorer_bytes: &'static [u8],
}

impl Places {
    /// Looks for it in the target's executable mappings, the C library's first: a library that is unloaded would take it along.
    fn find(pid: i32, memory: &Memory) -> Result<Places, Error> {
        let mut code = tasks::mappings(pid)?;
        code.retain(|mapping| mapping.perms.contains(MMPermissions::READ | MMPermissions::EXECUTE) && mapping.address.0 < 1 << 47);
        code.sort_by_key(rank);
        let (mut gadget, mut restorer) = (None, None);
        for mapping in &code {
            let (start, end) = mapping.address;
            let mut bytes = vec![0; (end - start).min(SEARCHED) as usize];
            if memory.read(start, &mut bytes).is_err() {
                continue;
            }
            let find = |wanted: &[u8]| bytes.windows(wanted.len()).position(|window| window == wanted).map(|at| start + at as u64);
            gadget = gadget.or_else(|| find(&GADGET));
            restorer = restorer.or_else(|| RESTORERS.iter().find_map(|&wanted| Some((find(wanted)?, wanted))));
            if let (Some(gadget), Some((restorer, restorer_bytes))) = (gadget, restorer) {
                return Ok(Places { gadget, restorer, restorer_bytes });
            }
        }
        let what = if gadget.is_none() { "`syscall; ret`" } else { "a return from signal handlers" };
        Err(Refusal::NoThread { why: format!("there is no {what} in its code") }.into())
    }

    fn still_there(&self, memory: &Memory) -> bool {
        let is = |address: u64, wanted: &[u8]| {
            let mut bytes = vec![0; wanted.len()];
            memory.read(address, &mut bytes).is_ok() && bytes == wanted
        };
        is(self.gadget, &GADGET) && is(self.restorer, self.restorer_bytes)
    }
}

fn rank(mapping: &MemoryMap) -> u8 {
    match &mapping.pathname {
        MMapPath::Path(path) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("libc") || name.starts_with("ld-") { 0 } else { 1 }
        }
        _ => 2,
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
}

impl Loan {
    fn of(pid: i32, tid: i32, places: Places, deadline: Instant) -> Result<Loan, Error> {
        let memory = Memory::open(pid)?;
        let sleepers = Sleepers::of(pid, &[tid]);
        let mappings = tasks::mappings(pid)?;
        trace::seize(tid).map_err(|errno| Error::os(format!("tracing thread {tid}"), errno))?;
        let since = Instant::now();
        trace::interrupt(tid).map_err(|errno| Error::os("stopping a thread", errno))?;
        match trace::wait_for_rest(tid, deadline) {
            Some(Event::Rest) => {}
            Some(_) => return Err(Error::Gone),
            None => return Err(unusable(tid, "did not stop")),
        }
        let os = |errno| Error::os("reading a stopped thread", errno);
        let mut regs = trace::regs(tid).map_err(os)?;
        let mend = sleepers.mend(pid, tid, &regs, &memory);
        if let Some(mend) = &mend {
            regs = mend.regs(&memory);
            trace::set_regs(tid, &regs).map_err(os)?;
        }
        let parts = (|| {
            fit(tid, &regs, &mappings, &memory)?;
            if !places.still_there(&memory) {
                return Err(unusable(tid, "the code it was to use has been unloaded"));
            }
            let filters = Filters::of(pid, tid)?;
            filters.check_all(places.gadget + 2)?;
            let frame = Frame::below(regs.rsp);
            Ok((filters, trace::mask(tid).map_err(os)?, trace::xstate(tid).map_err(os)?, frame))
        })();
        match parts {
            Ok((filters, mask, xstate, frame)) => {
                Ok(Loan { tid, since, memory, regs, mend, mask, xstate, filters, places, frame, place: Place::Own })
            }
            Err(error) => {
                trace::detach(tid);
                Err(error)
            }
        }
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
            rsp: self.frame.start,
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
                Ok(Some(Event::Rest)) => {}
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
        let (start, bytes) = self.frame.bytes(self.places.restorer, &restarted_by_hand(&self.regs), self.mask, &self.xstate)?;
        self.memory.write(start, &bytes)
    }

    fn use_scratch(&mut self, address: u64, bytes: u64) -> Result<(), Error> {
        if bytes < Borrowed::SCRATCH {
            return Err(Error::Unfit { what: format!("{bytes} bytes of scratch are too few") });
        }
        let before = std::mem::replace(&mut self.frame, Frame::within(address, bytes));
        self.write_frame().inspect_err(|_| self.frame = before)
    }

    /// Puts the thread back and lets it go.
    fn give_back(&mut self) -> Duration {
        step::note(|| "release".into());
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
fn fit(tid: i32, regs: &user_regs_struct, mappings: &[MemoryMap], memory: &Memory) -> Result<(), Error> {
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
