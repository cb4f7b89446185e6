//! What can be seen of the target from outside: of its threads, and in `/proc`.

use std::collections::HashMap;

use nix::sys::resource::{UsageWho, getrusage};
use procfs::process::{MMapPath, Process};

use super::threads::Threads;
use crate::capture::model::StreamId;

/// Threads whose names are looked at in one go: a glance must not cost what recording does.
const NAMES_AT_ONCE: usize = 128;

/// Whether a thread of the process exists. One cheap system call: it is asked 20 times a second of each thread, and `/proc`, which may not
/// even be mounted, would cost ten times as much. An answer other than "no such thread" (a target of another user, say) is no death.
#[expect(unsafe_code, reason = "tgkill(2) has no safe wrapper")]
pub fn is_alive(pid: u32, tid: u32) -> bool {
    if pid == 0 {
        return true; // not known whose thread it is
    }
    let no_signal = 0;
    // SAFETY: signal 0 only asks; touches no memory.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, pid as libc::pid_t, tid as libc::pid_t, no_signal) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Thread names, and which of them are known already.
#[derive(Debug, Default)]
pub struct Names {
    known: HashMap<u32, String>,
    next: usize,
}

impl Names {
    /// Looks at some of the threads and tells of new or changed names.
    pub fn look(
        &mut self,
        threads: &Threads,
        streams: impl ExactSizeIterator<Item = (StreamId, u32)>,
        mut tell: impl FnMut(StreamId, String),
    ) {
        let count = streams.len();
        let skip = if self.next >= count { 0 } else { self.next };
        self.next = skip + NAMES_AT_ONCE;
        for (stream, tid) in streams.skip(skip).take(NAMES_AT_ONCE) {
            let Some(here) = threads.here(tid) else { continue };
            let Ok(name) = std::fs::read_to_string(format!("/proc/{}/task/{here}/comm", threads.pid())) else { continue };
            let name = name.trim_end().to_owned();
            if self.known.get(&stream.0) != Some(&name) {
                self.known.insert(stream.0, name.clone());
                tell(stream, name);
            }
        }
    }
}

/// Resident, proportional (0: costs a walk over all maps, not taken) and swapped bytes.
pub fn process_rss(pid: u32) -> Option<[u64; 3]> {
    process_memory(pid).map(|(rss, ..)| rss)
}

/// The same; address space, resident anonymous bytes, those of files, and shared ones; the most that was resident since it began.
pub fn process_memory(pid: u32) -> Option<([u64; 3], [u64; 4], [u64; 1])> {
    let status = Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()?;
    let bytes = |kilobytes: Option<u64>| kilobytes.unwrap_or(0) * 1024;
    let rss = [status.vmrss? * 1024, 0, bytes(status.vmswap)];
    let memory = [bytes(status.vmsize), bytes(status.rssanon), bytes(status.rssfile), bytes(status.rssshmem)];
    Some((rss, memory, [bytes(status.vmhwm)]))
}

/// Start, length and resident bytes of the target's anonymous maps that have any.
pub fn map_rss(pid: u32) -> Vec<[u64; 3]> {
    let maps = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()).and_then(|process| process.smaps().ok());
    let anonymous = |path: &MMapPath| matches!(path, MMapPath::Anonymous | MMapPath::Heap | MMapPath::Other(_));
    let maps = maps.into_iter().flatten().filter(|map| anonymous(&map.pathname));
    maps.filter_map(|map| {
        let resident = map.extension.map.get("Rss").copied().unwrap_or(0);
        (resident > 0).then_some([map.address.0, map.address.1 - map.address.0, resident])
    })
    .collect()
}

/// Processor time hound itself has used, in nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0 };
    let ns = |time: nix::sys::time::TimeVal| time.tv_sec() as u64 * 1_000_000_000 + time.tv_usec() as u64 * 1_000;
    ns(usage.user_time()) + ns(usage.system_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_alive_until_it_has_ended() {
        let pid = std::process::id();
        let (told, tid) = std::sync::mpsc::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let _ = told.send(nix::unistd::gettid().as_raw() as u32);
            let _ = held.recv();
        });
        let tid = tid.recv().expect("the thread tells its id");
        assert!(is_alive(pid, tid) && is_alive(0, tid));
        drop(release);
        thread.join().expect("it does nothing");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        // The kernel wakes who joins a little before the thread is gone for good.
        while is_alive(pid, tid) {
            assert!(std::time::Instant::now() < deadline, "still alive");
            std::thread::yield_now();
        }
    }
}
