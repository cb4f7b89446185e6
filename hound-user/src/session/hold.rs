//! A program that hound has started, and that waits before its first instruction until hound observes it.
//!
//! It waits where its loader has mapped and linked all libraries it is started with, and none of their initialisers has run: at the loader's
//! call of `_dl_debug_state` that says so (what debuggers stop at), else at the program's entry. So the very first call of an allocator that
//! is not the loader's own is seen. It is stopped there by breakpoints in the processor's registers: no byte of its memory is ever changed,
//! and nothing stays of them when it goes on.
//!
//! While it waits it is hound's in every sense: if hound dies, the kernel ends it (`PTRACE_O_EXITKILL`), and none of its code has run.
//! From the moment it goes on it is nobody's but its own.
//!
//! To bring the library in, other threads of hound's trace it. So it is let go into a stop like that of SIGSTOP ([`Stopped`]); there it is a
//! death signal (`PR_SET_PDEATHSIG`) that ends it with hound.

use std::ffi::OsString;
use std::fs;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::path::PathBuf;

use anyhow::{Context, bail};
use hound_inject::Target;
use nix::errno::Errno;
use nix::sys::ptrace::{self, AddressType, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use object::{Object, ObjectSegment, ObjectSymbol};
use procfs::process::{MMapPath, Process};

use super::program::Program;
use super::{before, begin};

/// Of the auxiliary vector: where the loader is, 0 for static programs.
const AT_BASE: u64 = 7;
/// Of the auxiliary vector: the program's first instruction.
const AT_ENTRY: u64 = 9;
/// `r_state` in `struct r_debug`, and its value while nothing is being added or removed.
const STATE_AT: u64 = 24;
const CONSISTENT: u32 = 0;
/// The processor's register that switches the others on.
const CONTROL: usize = 7;

/// Makes a command of which the first instruction waits for [`Held`]. To be spawned, and held, on one and the same thread: the kernel
/// knows a tracer by its thread, and a parent that sends a death signal.
#[expect(unsafe_code, reason = "asks for being traced between fork and exec")]
pub fn command(program: &Program, words: &[OsString]) -> tokio::process::Command {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(&program.path);
    command.arg0(&words[0]).args(&words[1..]);
    let begin = || {
        begin::give_back_ignored();
        ptrace::traceme().map_err(std::io::Error::from)
    };
    // SAFETY: system calls alone, which allocate nothing and take no lock.
    unsafe { command.pre_exec(begin) };
    command.into()
}

/// The same for one that is to be [`Stopped`].
#[expect(unsafe_code, reason = "asks for a death signal between fork and exec")]
pub fn command_to_stop(program: &Program, words: &[OsString]) -> tokio::process::Command {
    let mut command = command(program, words);
    // SAFETY: one system call, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)) };
    command
}

/// A static program of glibc's or musl's makes some five system calls before it has a thread.
const CALLS_BEFORE_THREADS: usize = 32;
/// Instructions from the system call to where its result is put.
const STEPS_TO_NOTE: usize = 64;

/// A program that waits. Dropped before it was let go, it is ended: nothing of it has run.
#[derive(Debug)]
pub struct Held {
    pid: Pid,
    /// Came while its loader was at work, and are to be had as soon as it goes on.
    stops: Vec<Signal>,
    is_over: bool,
    /// Its libraries' initialisers run first.
    after_libraries: bool,
    /// Only the thread that has started it can do anything with it.
    here: PhantomData<*const ()>,
}

/// Where to stop it.
#[derive(Clone, Copy, Debug)]
struct Places {
    entry: u64,
    /// The loader's word that it has done something, and where it says what.
    linked: Option<(u64, u64)>,
}

impl Held {
    /// Lets a program that was just spawned come to its beginning. Nothing if it ended on the way, as it does when a library is missing.
    /// `after_libraries`: to its entry, behind the initialisers of its libraries.
    ///
    /// # Errors
    /// If it cannot be stopped there. It is ended then.
    pub fn at_its_beginning(pid: u32, after_libraries: bool) -> anyhow::Result<Option<Self>> {
        let pid = Pid::from_raw(i32::try_from(pid).context("that is no process id")?);
        let mut held = Held { pid, stops: Vec::new(), is_over: false, after_libraries, here: PhantomData };
        if held.runs_to_its_beginning().context("cannot hold the program before its first instruction")? {
            return Ok(Some(held));
        }
        held.is_over = true;
        Ok(None)
    }

    fn runs_to_its_beginning(&mut self) -> anyhow::Result<bool> {
        let mut places = None;
        loop {
            let Some(signal) = self.next_stop()? else { return Ok(false) };
            let pass = match (signal, places) {
                // The first stop: exec has just replaced hound's own image.
                (Signal::SIGTRAP, None) => {
                    ptrace::setoptions(self.pid, Options::PTRACE_O_EXITKILL)?;
                    let Some(found) = self.places()? else { return Ok(true) };
                    self.watch(&found)?;
                    places = Some(found);
                    None
                }
                (Signal::SIGTRAP, Some(places)) if self.is_at(places.entry)? => return Ok(true),
                (Signal::SIGTRAP, Some(Places { linked: Some((call, state)), .. })) if self.is_at(call)? => {
                    if self.word(state)? == CONSISTENT {
                        return Ok(true);
                    }
                    None
                }
                // Stopped by these, a thread that is traced in this way could not be told from one that goes on.
                (stop @ (Signal::SIGSTOP | Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU), _) => {
                    self.stops.push(stop);
                    None
                }
                (other, _) => Some(other),
            };
            ptrace::cont(self.pid, pass)?;
        }
    }

    /// Nothing if it has ended; its end can still be waited for.
    fn next_stop(&self) -> anyhow::Result<Option<Signal>> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::Pid(self.pid), flags) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Ok(None),
                Ok(_) => match waitpid(self.pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED))? {
                    WaitStatus::Stopped(_, signal) => return Ok(Some(signal)),
                    WaitStatus::StillAlive => {}
                    other => bail!("it was reported as {other:?}"),
                },
            }
        }
    }

    /// Nothing for a static program: it waits at its beginning already.
    fn places(&self) -> anyhow::Result<Option<Places>> {
        let process = Process::new(self.pid.as_raw())?;
        let vector = process.auxv()?;
        let (Some(&entry), Some(&base)) = (vector.get(&AT_ENTRY), vector.get(&AT_BASE)) else {
            bail!("the kernel does not say where it is")
        };
        if base == 0 {
            return Ok(None);
        }
        // A loader that says nothing leaves the entry: initialisers of libraries have run there with glibc, and have not with musl.
        let linked = if self.after_libraries { None } else { linked(&process, base) };
        Ok(Some(Places { entry, linked }))
    }

    /// Sets the processor's breakpoints.
    fn watch(&self, places: &Places) -> anyhow::Result<()> {
        let addresses: Vec<u64> = std::iter::once(places.entry).chain(places.linked.map(|(call, _)| call)).collect();
        let mut control = 0;
        for (number, address) in addresses.into_iter().enumerate() {
            self.set(number, address)?;
            // Enabled for this thread; kind and length of an execution are 0.
            control |= 1 << (2 * number);
        }
        self.set(CONTROL, control)
    }

    fn set(&self, register: usize, value: u64) -> anyhow::Result<()> {
        let at = offset_of!(libc::user, u_debugreg) + register * size_of::<u64>();
        ptrace::write_user(self.pid, std::ptr::without_provenance_mut::<libc::c_void>(at) as AddressType, value.cast_signed())
            .context("this machine gives no breakpoints of the processor's (a virtual machine may forbid them, another debugger hold all)")
    }

    fn is_at(&self, address: u64) -> anyhow::Result<bool> {
        Ok(ptrace::getregs(self.pid)?.rip == address)
    }

    fn word(&self, address: u64) -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        before::reader(self.pid.as_raw().cast_unsigned())(address, &mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    /// It begins.
    ///
    /// # Errors
    /// If it could not be let go. It is ended then.
    pub fn let_go(mut self) -> anyhow::Result<()> {
        self.detach(None)?;
        self.is_over = true;
        pass_on(self.pid, &std::mem::take(&mut self.stops));
        Ok(())
    }

    /// It waits on, for [`Stopped::let_go`], and anybody can trace it. Nothing if it was killed meanwhile.
    ///
    /// The library knows threads by what their C library keeps of them, and a static program waits where it has yet to prepare that: it goes
    /// on until it has. (A loader has done it.)
    ///
    /// # Errors
    /// If it could not be handed over. It is ended then.
    pub fn stopped(mut self) -> anyhow::Result<Option<Stopped>> {
        if ptrace::getregs(self.pid).is_ok_and(|regs| regs.fs_base == 0) && !self.knows_its_thread()? {
            self.is_over = true;
            return Ok(None);
        }
        let at = ptrace::getregs(self.pid).map_or(0, |regs| regs.rip);
        self.detach(Some(Signal::SIGSTOP))?;
        let stopped = self.next_stop()?;
        self.is_over = true;
        Ok(stopped.map(|_| Stopped { pid: self.pid, at, stops: std::mem::take(&mut self.stops), is_over: false, here: PhantomData }))
    }

    /// Goes on until the C library has noted which thread this is: `set_tid_address` has just told it. False if the program has ended.
    fn knows_its_thread(&self) -> anyhow::Result<bool> {
        let unlike = || anyhow::anyhow!("it does not prepare its first thread as glibc or musl do");
        for _ in 0..2 * CALLS_BEFORE_THREADS {
            // Both at the entry of a call and at its exit, where orig_rax is still its number.
            ptrace::syscall(self.pid, None)?;
            if self.next_stop()?.is_none() {
                return Ok(false);
            }
            let regs = ptrace::getregs(self.pid)?;
            if regs.orig_rax == libc::SYS_set_tid_address as u64 && regs.rax.cast_signed() > 0 {
                let tid = regs.rax as u32;
                for _ in 0..STEPS_TO_NOTE {
                    let pointer = ptrace::getregs(self.pid)?.fs_base;
                    if hound_inject::TID_OFFSETS.iter().any(|at| self.word(pointer + at).is_ok_and(|word| word == tid)) {
                        return Ok(true);
                    }
                    ptrace::step(self.pid, None)?;
                    if self.next_stop()?.is_none() {
                        return Ok(false);
                    }
                }
                break;
            }
        }
        Err(unlike())
    }

    fn detach(&self, signal: Option<Signal>) -> anyhow::Result<()> {
        let done = self.set(CONTROL, 0).and_then(|()| (0..2).try_for_each(|number| self.set(number, 0)));
        match done.and_then(|()| Ok(ptrace::detach(self.pid, signal)?)) {
            // One that was killed meanwhile is as free.
            Err(error) if error.downcast_ref() != Some(&Errno::ESRCH) => Err(error.context("cannot let the program go")),
            _ => Ok(()),
        }
    }
}

fn pass_on(pid: Pid, signals: &[Signal]) {
    for signal in signals {
        let _ = kill(pid, *signal); // it may have ended
    }
}

/// A program that waits, stopped. Dropped before it was let go, it is ended: nothing of it has run.
#[derive(Debug)]
pub struct Stopped {
    pid: Pid,
    /// Where it waits.
    at: u64,
    stops: Vec<Signal>,
    is_over: bool,
    /// It dies with the thread that has started it.
    here: PhantomData<*const ()>,
}

impl Stopped {
    /// It begins. False if somebody has woken it before.
    ///
    /// # Errors
    /// If it could not be let go. It is ended then.
    pub fn let_go(mut self, target: &Target) -> anyhow::Result<bool> {
        let at = match hound_inject::begin(target) {
            Err(hound_inject::Error::Gone) => self.at,
            at => at.context("cannot let the program go")?,
        };
        self.is_over = true;
        pass_on(self.pid, &std::mem::take(&mut self.stops));
        Ok(at == self.at)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = kill(self.pid, Signal::SIGKILL); // it may have ended
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = kill(self.pid, Signal::SIGKILL); // it may have ended
        }
    }
}

/// Where the loader calls when it has linked something, and where its state is.
fn linked(process: &Process, base: u64) -> Option<(u64, u64)> {
    let maps = process.maps().ok()?;
    let MMapPath::Path(path) = &maps.iter().find(|map| map.address.0 == base)?.pathname else { return None };
    let seen = PathBuf::from(format!("/proc/{}/root{}", process.pid(), path.display()));
    let bytes = fs::read(seen).ok()?;
    let loader = object::File::parse(&*bytes).ok()?;
    let bias = base.wrapping_sub(loader.segments().next()?.address() & !0xFFF);
    let find = |name: &str| loader.dynamic_symbols().find(|symbol| symbol.name() == Ok(name) && symbol.is_definition());
    Some((bias.wrapping_add(find("_dl_debug_state")?.address()), bias.wrapping_add(find("_r_debug")?.address() + STATE_AT)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::waitpid;

    fn spawn(words: &[&str]) -> u32 {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let program = Program::find(&words[0]).expect("it is installed");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
        let _inside = runtime.enter();
        let child = command(&program, &words).spawn().expect("it can be started");
        let pid = child.id().expect("it was just started");
        // Dropped, any event loop of this process would wait for it, and take its stops away from who traces it.
        std::mem::forget(child);
        pid
    }

    #[test]
    fn a_program_waits_with_its_libraries_and_has_done_nothing() {
        let pid = spawn(&["sh", "-c", "exit 7"]);
        let held = Held::at_its_beginning(pid, false).expect("it can be held").expect("it begins");
        let process = Process::new(pid.cast_signed()).expect("it is there");
        let maps = process.maps().expect("it is ours");
        let is_libc = |path: &MMapPath| matches!(path, MMapPath::Path(path) if path.to_string_lossy().contains("libc.so"));
        assert!(maps.iter().any(|map| is_libc(&map.pathname)), "its libraries are mapped");
        let entry = process.auxv().expect("it is ours")[&AT_ENTRY];
        let at = ptrace::getregs(held.pid).expect("it stands still").rip;
        assert_ne!(at, entry, "the loader's own word is earlier");
        held.let_go().expect("it is there");
        assert_eq!(waitpid(Pid::from_raw(pid.cast_signed()), None), Ok(WaitStatus::Exited(Pid::from_raw(pid.cast_signed()), 7)));
    }

    #[test]
    fn a_program_that_is_given_up_has_never_begun() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let sign = folder.path().join("sign");
        let pid = spawn(&["touch", sign.to_str().expect("a plain name")]);
        drop(Held::at_its_beginning(pid, false).expect("it can be held"));
        let status = waitpid(Pid::from_raw(pid.cast_signed()), None).expect("it is ours");
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
        assert!(!sign.exists(), "it ran");
    }

    #[test]
    fn signals_that_come_before_the_beginning_come_after_it() {
        let pid = spawn(&["sh", "-c", "exit 7"]);
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).expect("it is ours");
        let held = Held::at_its_beginning(pid, false).expect("it can be held").expect("it begins");
        held.let_go().expect("it is there");
        let (pid, stopped) = (Pid::from_raw(pid.cast_signed()), Some(WaitPidFlag::WUNTRACED));
        assert_eq!(waitpid(pid, stopped), Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)));
        kill(pid, Signal::SIGCONT).expect("it is ours");
        assert_eq!(waitpid(pid, stopped), Ok(WaitStatus::Exited(pid, 7)));
    }

    #[test]
    fn a_program_that_is_killed_while_it_waits_is_gone_without_an_error() {
        let pid = spawn(&["sleep", "60"]);
        let held = Held::at_its_beginning(pid, false).expect("it can be held").expect("it begins");
        kill(held.pid, Signal::SIGKILL).expect("it is ours");
        assert!(matches!(waitpid(held.pid, None), Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))));
        held.let_go().expect("it is free");
    }
}
