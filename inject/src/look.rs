//! A first look at a target: everything that can be known to forbid an attach, before anything changes.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{geteuid, getpid};
use procfs::process::{Process, Stat, Status};

use crate::error::{Denied, Error, Refusal};
use crate::memory::Memory;
use crate::place::mappings;
use crate::remote::Borrowed;
use crate::site::is_launched;
use crate::tasks;

/// In a process's flags: it is a kernel thread.
const PF_KTHREAD: u32 = 0x0020_0000;
const CAP_SYS_PTRACE: u64 = 1 << 19;
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;
const EM_X86_64: u16 = 62;
const ELFCLASS64: u8 = 2;
/// How long a look may take where it has to stop a thread to read its seccomp filters.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process that hound can get into.
#[derive(Debug)]
pub struct Target {
    /// Its number, as hound sees it.
    pub pid: i32,
    /// Its number in its own pid namespace.
    pub pid_in_namespace: u32,
    /// Its name (`comm`).
    pub name: String,
    /// When it started, in clock ticks since boot: tells a process from a later one with the same number.
    pub started: u64,
    /// The thread whose seccomp filters were read and found to pass all that an attach needs; `None` where there are no filters. Other
    /// threads may have others: what a thread does is checked again when it is borrowed.
    pub seccomp_checked: Option<i32>,
    pidfd: OwnedFd,
}

impl Target {
    /// The same once more.
    pub(crate) fn duplicate(&self) -> Result<Target, Error> {
        let pidfd = self.pidfd.try_clone().map_err(|e| Error::io("duplicating a descriptor", &e))?;
        Ok(Target { name: self.name.clone(), pidfd, ..*self })
    }
}

impl AsFd for Target {
    /// A pidfd of the process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Looks whether hound can get into a process. Only a target with seccomp filters is touched: to read them, one of its threads is stopped
/// for a moment.
///
/// # Errors
/// [`Error::Refused`] with the cause and the cure.
pub fn look(pid: i32) -> Result<Target, Error> {
    let no_process = || Error::from(Refusal::NoProcess { pid });
    let process = Process::new(pid).map_err(|_| no_process())?;
    let status = process.status().map_err(|_| no_process())?;
    let stat = process.stat().map_err(|_| no_process())?;
    kind(pid, &status, &stat)?;
    untraced(&status)?;
    // From here on the number cannot be another process's without the descriptor's telling.
    let pidfd = open_pidfd(pid)?;
    permission(pid, &status)?;
    machine(pid)?;
    if status_line(pid, "x86_Thread_features:").is_some_and(|features| features.contains("shstk")) {
        return Err(Refusal::ShadowStack.into());
    }
    if is_launched(&mappings(pid)?) {
        return Err(Refusal::Launched.into());
    }
    // A child between vfork and exec passes; a parent that waits for this one does not.
    if tasks::memory_shared_with(pid)? == Some(stat.ppid) {
        return Err(Refusal::SharedMemory { with: stat.ppid }.into());
    }
    let mut target = Target {
        pid,
        pid_in_namespace: status.nspid.as_ref().and_then(|numbers| numbers.last()).copied().unwrap_or(pid) as u32,
        name: status.name.clone(),
        started: stat.starttime,
        seccomp_checked: None,
        pidfd,
    };
    if tasks::threads(pid)?.iter().any(|&tid| tasks::filtered(pid, tid)) {
        let borrowed = Borrowed::any(&target, &Memory::open(pid)?, Instant::now() + PATIENCE)?;
        target.seccomp_checked = Some(borrowed.tid());
        borrowed.release();
    }
    Ok(target)
}

/// Whether the process is one that may be looked into, as probing it from the kernel needs. Reads only.
///
/// # Errors
/// A refusal that says why not, and what helps.
pub fn must_be_readable(pid: i32) -> Result<(), Error> {
    let no_process = || Error::from(Refusal::NoProcess { pid });
    let process = Process::new(pid).map_err(|_| no_process())?;
    let status = process.status().map_err(|_| no_process())?;
    kind(pid, &status, &process.stat().map_err(|_| no_process())?)?;
    permission(pid, &status)?;
    machine(pid)
}

/// Refuses what is not a program.
fn kind(pid: i32, status: &Status, stat: &Stat) -> Result<(), Refusal> {
    if status.tgid != pid {
        return Err(Refusal::ThreadOnly { pid, process: status.tgid });
    }
    if pid == getpid().as_raw() {
        return Err(Refusal::Itself);
    }
    // A main thread that ended before the others is a zombie too, but the process lives.
    let alone = tasks::threads(pid).map_or(true, |threads| threads.iter().all(|&tid| tasks::has_ended(pid, tid)));
    if alone {
        return Err(Refusal::Zombie { parent: stat.ppid });
    }
    if stat.flags & PF_KTHREAD != 0 {
        return Err(Refusal::KernelThread);
    }
    Ok(())
}

/// Refuses what another tracer holds: nobody else can borrow its threads.
fn untraced(status: &Status) -> Result<(), Refusal> {
    if status.tracerpid != 0 {
        let name = fs::read_to_string(format!("/proc/{}/comm", status.tracerpid)).unwrap_or_default();
        return Err(Refusal::Traced { name: name.trim().into(), pid: status.tracerpid });
    }
    Ok(())
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, Error> {
    // SAFETY: pidfd_open takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(fd).map_err(|errno| Error::os("pidfd_open", errno))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Asks the kernel as an attach will: opening the memory needs the same right as tracing.
fn permission(pid: i32, status: &Status) -> Result<(), Error> {
    match Memory::open(pid) {
        Ok(memory) => memory_of_a_program(pid, &memory),
        Err(Error::Os { errno: libc::EACCES | libc::EPERM, .. }) => Err(Refusal::NoPermission(denied(pid, status)).into()),
        Err(error) => Err(error),
    }
}

/// A process that is just ending has no memory any more, but can be opened.
fn memory_of_a_program(pid: i32, memory: &Memory) -> Result<(), Error> {
    match tasks::mappings(pid)?.first() {
        Some(mapping) => memory.read(mapping.address.0, &mut [0]).or_else(|error| match error {
            // The first mapping may be one without access.
            Error::Os { errno: libc::EIO, .. } => Ok(()),
            error => Err(error),
        }),
        None => Err(Error::Gone),
    }
}

/// Which rule it was, in the order in which the kernel asks.
fn denied(pid: i32, status: &Status) -> Denied {
    let own = geteuid().as_raw();
    let capabilities = status_line(getpid().as_raw(), "CapEff:").and_then(|set| u64::from_str_radix(&set, 16).ok()).unwrap_or(0);
    let may_trace = capabilities & CAP_SYS_PTRACE != 0;
    let user_namespace = |pid: i32| fs::metadata(format!("/proc/{pid}/ns/user")).map(|namespace| namespace.ino()).ok();
    let elsewhere = user_namespace(pid).is_some_and(|there| user_namespace(getpid().as_raw()) != Some(there));
    let yama = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok().and_then(|scope| scope.trim().parse().ok()).unwrap_or(0);
    if yama == 3 {
        return Denied::Yama { scope: yama };
    }
    // The file of its memory is its user's own: who may trace it must also be let past that.
    let past_files = capabilities & (CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH) != 0;
    if may_trace && status.ruid != own && !past_files {
        return Denied::User { own, target: status.ruid };
    }
    if may_trace {
        return if elsewhere { Denied::Container } else { Denied::SecurityModule };
    }
    if status.ruid != own {
        return Denied::User { own, target: status.ruid };
    }
    let all_own = [status.euid, status.suid].iter().all(|&user| user == own) && status.rgid == status.egid && status.rgid == status.sgid;
    // What is undumpable belongs to root in /proc.
    let undumpable = fs::metadata(format!("/proc/{pid}/stat")).is_ok_and(|file| file.uid() != own);
    match yama {
        _ if !all_own || undumpable => Denied::Undumpable,
        _ if status.capprm & !capabilities != 0 => Denied::Capability,
        0 if elsewhere => Denied::Container,
        0 => Denied::SecurityModule,
        scope => Denied::Yama { scope },
    }
}

fn machine(pid: i32) -> Result<(), Error> {
    let path = format!("/proc/{pid}/exe");
    let mut header = [0; 20];
    let read = File::open(&path).and_then(|mut file| file.read_exact(&mut header));
    read.map_err(|error| Error::io(format!("reading {path}"), &error))?;
    let machine = u16::from_le_bytes([header[18], header[19]]);
    match (header[4], machine) {
        (ELFCLASS64, EM_X86_64) => Ok(()),
        (ELFCLASS64, machine) => Err(Refusal::ForeignMachine { machine }.into()),
        _ => Err(Refusal::ThirtyTwoBit.into()),
    }
}

fn status_line(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().into())
}
