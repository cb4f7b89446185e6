//! Processes from outside: found by name, held by a descriptor, and how one ended.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process that cannot be mistaken for another when it is gone and its number given out again.
#[derive(Debug)]
pub struct ProcessFd {
    fd: OwnedFd,
    pid: u32,
}

/// The thread of a process that has this number in the process' own world of numbers. As hound sees it.
pub fn thread_seen_as(pid: u32, own: u32) -> Option<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let threads = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_it = |tid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
        let innermost = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok());
        innermost == Some(own)
    };
    threads.into_iter().find(is_it)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exit(u8),
    /// By this signal.
    Signal(u8),
    /// Its parent has taken the answer, and this kernel tells nobody else.
    Unknown,
}

impl Ended {
    /// From a status as wait(2) gives it.
    fn of_status(status: i32) -> Self {
        match (status & 0x7f, (status >> 8) & 0xff) {
            (0, code) => Ended::Exit(code as u8),
            (signal, _) => Ended::Signal(signal as u8),
        }
    }
}

impl ProcessFd {
    /// Opens it.
    #[expect(unsafe_code, reason = "pidfd_open(2) has no safe wrapper")]
    pub fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: makes a new descriptor; touches no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the new descriptor is ours.
        Ok(ProcessFd { fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) }, pid })
    }

    /// Waits for its end.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// How it ended: of a zombie `/proc` tells it, of one whose parent has waited for it the kernel (from 6.15 on) through the descriptor.
    pub fn ended(&self) -> Ended {
        let zombie = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok();
        let zombie = zombie.and_then(|stat| status_of_zombie(&stat));
        zombie.or_else(|| self.kept_status()).map_or(Ended::Unknown, Ended::of_status)
    }

    #[expect(unsafe_code, reason = "PIDFD_GET_INFO has no safe wrapper")]
    fn kept_status(&self) -> Option<i32> {
        /// `struct pidfd_info` in its first version: mask, cgroup, eleven ids, exit status.
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            mask: u64,
            cgroup: u64,
            ids: [u32; 11],
            exit_status: i32,
        }
        const WITH_EXIT: u64 = 1 << 3;
        const GET_INFO: libc::c_ulong = 0xc000_ff0b | ((size_of::<Info>() as libc::c_ulong) << 16);
        const _: () = assert!(size_of::<Info>() == 64);
        let mut info = Info { mask: WITH_EXIT, ..Info::default() };
        // SAFETY: the kernel fills in at most the size encoded in the request.
        let done = unsafe { libc::ioctl(self.fd.as_raw_fd(), GET_INFO, &raw mut info) };
        (done == 0 && info.mask & WITH_EXIT != 0).then_some(info.exit_status)
    }
}

impl AsFd for ProcessFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for ProcessFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// The fields of `/proc/PID/stat` behind the name, which may hold anything: the state is the first.
fn fields(stat: &str) -> Option<Vec<&str>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace().collect())
}

fn status_of_zombie(stat: &str) -> Option<i32> {
    let fields = fields(stat)?;
    (*fields.first()? == "Z").then(|| fields.get(49)?.parse().ok())?
}

/// What tells one program image from the next that exec puts into the same process: where its stack starts. `None` where the kernel does
/// not say (another user's process).
pub fn image(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    fields(&stat)?.get(25)?.parse().ok().filter(|start| *start != 0)
}

/// A process's command line.
pub fn command_line(pid: u32) -> Vec<OsString> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if words.is_empty() {
        return Vec::new();
    }
    words.split(|b| *b == 0).map(|word| OsStr::from_bytes(word).to_owned()).collect()
}

/// The process whose name is this. Names are the kernel's (`comm`), the executable's and the first word of the command line. How a name begins
/// is not enough: hound would get into programs that nobody meant.
///
/// # Errors
/// If there is none: then those whose names begin so are listed. If there is more than one: then all of them.
pub fn find_by_name(name: &str) -> Result<u32, NotOne> {
    let own = std::process::id();
    let all: Vec<(u32, Vec<String>)> = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten()
        .map(|process| process.pid as u32)
        .filter(|pid| *pid != own)
        .map(|pid| (pid, names(pid)))
        .filter(|(_, names)| !names.is_empty())
        .collect();
    let with = |fits: &dyn Fn(&String) -> bool| -> Vec<u32> {
        all.iter().filter(|(_, names)| names.iter().any(fits)).map(|(pid, _)| *pid).collect()
    };
    let exact = with(&|own| own == name);
    if let [pid] = exact.as_slice() {
        return Ok(*pid);
    }
    let (why, candidates) = match exact.len() {
        0 => {
            let similar = if name.is_empty() { Vec::new() } else { with(&|own| own.starts_with(name)) };
            let what_to_do = match similar.len() {
                0 => "`ps -e` lists what there is, -p PID takes one by its number",
                _ => "the names of these begin so, -p PID takes one by its number:",
            };
            (format!("no process is called '{name}'; {what_to_do}"), similar)
        }
        several => (format!("{several} processes are called '{name}'; choose one with -p PID:"), exact),
    };
    Err(NotOne { why, candidates: list(&candidates) })
}

/// A name that is not one process's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOne {
    /// What is the matter, and what to do.
    pub why: String,
    /// Which it could be, a line each.
    pub candidates: Vec<String>,
}

/// The processes, a line each.
fn list(all: &[u32]) -> Vec<String> {
    /// More are not read on a screen.
    const MOST: usize = 20;
    /// Nor longer lines.
    const WIDTH: usize = 100;
    let shown = |pid: &u32| {
        let command = command_line(*pid).join(OsStr::new(" ")).to_string_lossy().chars().take(WIDTH).collect::<String>();
        let age = procfs::process::Process::new(*pid as i32).and_then(|process| process.stat()).ok().and_then(|stat| age(stat.starttime));
        let age = age.map_or_else(String::new, |seconds| format!("started {} ago", super::talk::short(Duration::from_secs(seconds))));
        format!("  {pid:>7}  {age:<20}  {command}")
    };
    let mut lines: Vec<String> = all.iter().take(MOST).map(shown).collect();
    if all.len() > MOST {
        lines.push(format!("  … and {} more", all.len() - MOST));
    }
    lines
}

/// How long ago a moment was, in seconds; the moment in ticks since the machine started.
fn age(ticks: u64) -> Option<u64> {
    let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    (up as u64).checked_sub(ticks / procfs::ticks_per_second())
}

/// What a process is called; nothing for kernel threads, which have no executable.
fn names(pid: u32) -> Vec<String> {
    let command = command_line(pid);
    let Some(first) = command.first() else { return Vec::new() };
    let base = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|name| name.trim_end().to_owned());
    let executable = std::fs::read_link(format!("/proc/{pid}/exe")).ok().and_then(|path| base(&path));
    comm.into_iter().chain(executable).chain(base(Path::new(first))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    /// A process that waits for its input to end, called by this name.
    fn called(name: &str) -> Child {
        let child = Command::new("cat").arg0(name).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat is installed");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while command_line(child.id()).first().is_none_or(|first| first != name) {
            assert!(std::time::Instant::now() < deadline, "it does not start");
            std::thread::yield_now();
        }
        child
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().expect("it ends with its input");
    }

    #[test]
    fn a_name_finds_its_process_and_several_are_listed() {
        let own = std::process::id();
        let (one, two) = (called(&format!("hound-test-{own}-a")), called(&format!("hound-test-{own}-ab")));
        assert_eq!(find_by_name(&format!("hound-test-{own}-a")).ok(), Some(one.id()), "not the one whose name only begins so");
        assert_eq!(find_by_name(&format!("hound-test-{own}-ab")).ok(), Some(two.id()));
        let error = find_by_name(&format!("hound-test-{own}-")).expect_err("none is called so, two begin so");
        let listed = |pid: u32| error.candidates.iter().filter(|line| line.contains(&format!(" {pid} "))).count();
        assert_eq!((error.candidates.len(), listed(one.id()), listed(two.id())), (2, 1, 1), "{error:?}");
        assert!(error.candidates[0].contains("started "), "{error:?}");
        for nobody in ["no process is called so", ""] {
            let error = find_by_name(nobody).expect_err("none");
            assert!(error.why.contains("no process is called") && error.candidates.is_empty(), "{error:?}");
        }
        end(one);
        end(two);
    }

    #[test]
    fn how_a_process_ended_is_known_before_and_after_its_parent_has_waited() {
        for (script, expected) in [("read x; exit 7", Ended::Exit(7)), ("read x; kill -9 $$", Ended::Signal(9))] {
            let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().expect("sh is installed");
            let process = ProcessFd::open(child.id()).expect("it is alive");
            drop(child.stdin.take());
            process.wait().expect("it ends");
            assert_eq!(process.ended(), expected, "as a zombie");
            child.wait().expect("it has ended");
            let after = process.ended();
            assert!(after == expected || after == Ended::Unknown, "waited for: {after:?}");
        }
    }

    #[test]
    fn exec_changes_the_image() {
        let mut child = Command::new("sh").args(["-c", "read x; exec cat"]).stdin(Stdio::piped()).spawn().expect("sh is installed");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while command_line(child.id()).first().is_none_or(|first| first != "sh") {
            assert!(std::time::Instant::now() < deadline, "it does not start");
            std::thread::yield_now();
        }
        let before = image(child.id());
        assert!(before.is_some() && before == image(child.id()));
        child.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("it reads");
        while image(child.id()) == before {
            assert!(std::time::Instant::now() < deadline, "still the same image");
            std::thread::yield_now();
        }
        drop(child.stdin.take());
        child.wait().expect("it ends with its input");
    }
}
