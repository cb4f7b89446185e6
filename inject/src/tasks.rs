//! What /proc tells of a target's threads and mappings.

use std::fs;

use nix::errno::Errno;
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

fn same_memory(one: i32, other: i32) -> bool {
    // SAFETY: kcmp with KCMP_VM takes numbers only.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, libc::c_long::from(one), libc::c_long::from(other), KCMP_VM, 0, 0) };
    // A zombie, or one that hound may not look into, gives an error: it has other memory, or hound cannot know.
    Errno::result(order) == Ok(0)
}

/// Whether a thread has seccomp filters.
pub(crate) fn filtered(pid: i32, tid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Seccomp:")).is_some_and(|mode| mode.trim() != "0")
}
