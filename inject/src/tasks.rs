//! What /proc tells of a target's threads and mappings.

use std::fs::{self, File};
use std::io::Read;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

use crate::error::Error;

/// `kcmp` type: do two processes share their memory?
const KCMP_VM: libc::c_long = 1;

/// The threads of a process, as hound sees their numbers.
pub(crate) fn threads(pid: i32) -> Result<Vec<i32>, Error> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| Error::Gone)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// A thread's state letter (`R`, `S`, `D`, `T`, `t`, `Z`, …), `None` when it has ended.
pub(crate) fn state(pid: i32, tid: i32) -> Option<char> {
    let text = fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    // The name, in parentheses, may hold anything but this: it is the last.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    text.get(end + 2).map(|&byte| char::from(byte))
}

/// The system call a thread sleeps in: number, six arguments, stack pointer, instruction pointer (/proc/PID/task/TID/syscall). `None` if it
/// does not sleep.
pub(crate) fn call(pid: i32, tid: i32) -> Option<String> {
    call_in(&File::open(format!("/proc/{pid}/task/{tid}/syscall")).ok()?)
}

/// As [`call`], of the opened file.
pub(crate) fn call_in(mut file: &File) -> Option<String> {
    let mut bytes = [0; 256];
    let read = file.read(&mut bytes).ok()?;
    let text = str::from_utf8(bytes.get(..read)?).ok()?;
    // Else "running", or -1 where it is in no call.
    text.starts_with(|first: char| first.is_ascii_digit()).then(|| text.to_owned())
}

/// Whether a thread has no user mode to come back to.
pub(crate) fn has_ended(pid: i32, tid: i32) -> bool {
    matches!(state(pid, tid), None | Some('Z' | 'X' | 'x'))
}

/// The mappings of a process.
pub(crate) fn mappings(pid: i32) -> Result<Vec<MemoryMap>, Error> {
    let maps = Process::new(pid).and_then(|process| process.maps()).map_err(|_| Error::Gone)?;
    Ok(maps.0)
}

/// The mapping with the stack that ends at `sp`, if it is surely one: the kernel's own of the main thread, or one that also holds the
/// thread's descriptor further up, as both libcs lay it out. Coroutines' stacks are not sure: what lies below may be anything.
pub(crate) fn sure_stack(mappings: &[MemoryMap], sp: u64, thread_pointer: u64) -> Option<&MemoryMap> {
    let mapping = mappings.iter().find(|mapping| (mapping.address.0..mapping.address.1).contains(&sp))?;
    let owned = mapping.pathname == MMapPath::Stack || (sp..mapping.address.1).contains(&thread_pointer);
    (owned && mapping.perms.contains(MMPermissions::WRITE)).then_some(mapping)
}

/// Another process that shares this one's memory: a child (before its exec, or made with CLONE_VM) or the parent.
pub(crate) fn memory_shared_with(pid: i32) -> Result<Option<i32>, Error> {
    let mut others = Vec::new();
    for tid in threads(pid)? {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
        others.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
    }
    if let Ok(stat) = Process::new(pid).and_then(|process| process.stat()) {
        others.push(stat.ppid);
    }
    Ok(others.into_iter().find(|&other| other > 0 && same_memory(pid, other)))
}

/// Whether two processes share their memory, as after vfork(2), as far as the kernel says.
pub fn same_memory(one: i32, other: i32) -> bool {
    // SAFETY: kcmp with KCMP_VM takes numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, libc::c_long::from(one), libc::c_long::from(other), KCMP_VM, 0, 0) };
    // A zombie, or one that hound may not look into, gives an error: it has other memory, or hound cannot know.
    Errno::result(order) == Ok(0)
}

/// Whether a thread has seccomp filters.
pub(crate) fn filtered(pid: i32, tid: i32) -> bool {
    of_status(&format!("/proc/{pid}/task/{tid}/status"), "Seccomp:").is_some()
}

/// The thread that traces a thread, as hound sees its number.
pub(crate) fn tracer(tid: i32) -> Option<i32> {
    of_status(&format!("/proc/{tid}/status"), "TracerPid:")
}

/// A number of a status file, if it is not 0.
fn of_status(file: &str, name: &str) -> Option<i32> {
    let status = fs::read_to_string(file).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().parse().ok().filter(|&number| number != 0)
}

/// Whether more threads of the target want to run than it has processors.
pub(crate) fn is_crowded(pid: i32) -> Result<bool, Error> {
    let states: Vec<char> = threads(pid)?.into_iter().filter_map(|tid| state(pid, tid)).collect();
    if states.contains(&'D') {
        return Ok(false); // not all can be stopped
    }
    let running = states.iter().filter(|&&state| state == 'R').count();
    let allowed = sched_getaffinity(Pid::from_raw(pid)).unwrap_or_else(|_| CpuSet::new());
    let processors = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false)).count();
    Ok(running > processors.max(1))
}

/// The threads that can be stopped, in the order in which they are to be tried. First those that run: they wait in no system call that would have to be made
/// again if hound died. The main thread last: while it is traced, a signal that the target ignores wakes another thread (see `freeze.rs`).
pub(crate) fn candidates(pid: i32) -> Result<Vec<i32>, Error> {
    let mut list: Vec<(bool, bool, i32)> = Vec::new();
    for tid in threads(pid)? {
        match state(pid, tid) {
            // Uninterruptible sleep: it cannot be stopped, and let go, before it wakes.
            None | Some('Z' | 'X' | 'D') => {}
            Some(state) => list.push((tid == pid, state != 'R', tid)),
        }
    }
    list.sort_unstable();
    Ok(list.into_iter().map(|(_, _, tid)| tid).collect())
}
