//! Runs a program to its end, within a deadline, and keeps all it said.
//!
//! Output goes to files, not pipes: a daemon left behind by a test would hold a pipe open and the reader with it.

use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

/// Far above what any test needs, so that only a hang meets it, on however slow a machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a program did.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Its status as a shell shows it: the exit status, or 128 + the signal that killed it.
    pub fn shell_status(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A program under way.
pub struct Running {
    /// Its process id.
    pub pid: Pid,
    stdout: NamedTempFile,
    stderr: NamedTempFile,
    end: mpsc::Receiver<io::Result<ExitStatus>>,
    shown: String,
    started: Instant,
}

/// Ends a process when dropped, so that it does not outlive a test that fails.
pub struct EndOf(pub Pid);

impl Drop for EndOf {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL); // it may have ended
    }
}

/// Starts a program with no standard input.
pub fn start(command: &mut Command) -> Running {
    start_reading(command, Stdio::null())
}

/// Starts a program that reads from `stdin`.
pub fn start_reading(command: &mut Command, stdin: impl Into<Stdio>) -> Running {
    let file = || NamedTempFile::new().expect("a temporary file can be made");
    let (stdout, stderr) = (file(), file());
    let append = |f: &NamedTempFile| Stdio::from(File::options().append(true).open(f.path()).expect("a temporary file can be opened"));
    let shown = format!("{command:?}");
    command.stdin(stdin).stdout(append(&stdout)).stderr(append(&stderr));
    // A copy of a program that was made just now is busy as long as a child that another test began meanwhile has not come to its exec.
    let busy = |spawned: &io::Result<Child>| spawned.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy);
    let mut spawned = command.spawn();
    wait_until(|| {
        if busy(&spawned) {
            spawned = command.spawn();
        }
        !busy(&spawned)
    });
    let mut child: Child = spawned.unwrap_or_else(|e| panic!("{shown}: {e}"));
    let pid = Pid::from_raw(child.id().try_into().expect("invariant: a process id fits an i32"));
    let (send, end) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait()));
    Running { pid, stdout, stderr, end, shown, started: Instant::now() }
}

impl Running {
    /// Waits for its end, which must come before the deadline has passed from now on, however long it has run.
    ///
    /// # Panics
    /// If it has not ended by then; it and its descendants are killed.
    pub fn finish(self) -> Outcome {
        let run = self.started.elapsed();
        self.finish_within(run + DEADLINE)
    }

    /// Waits for its end, which must come before this long after its start.
    ///
    /// # Panics
    /// As [`Running::finish`].
    pub fn finish_within(self, limit: Duration) -> Outcome {
        let left = limit.saturating_sub(self.started.elapsed());
        let status = match self.end.recv_timeout(left) {
            Ok(status) => status.unwrap_or_else(|e| panic!("waiting for {}: {e}", self.shown)),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                for pid in descendants(self.pid) {
                    // One that ended meanwhile is no concern.
                    let _ = kill(pid, Signal::SIGKILL);
                }
                panic!("no end within {limit:?}: {}\nstderr so far: {}", self.shown, String::from_utf8_lossy(&contents(&self.stderr)));
            }
        };
        Outcome { status, stdout: contents(&self.stdout), stderr: contents(&self.stderr) }
    }

    /// What it has said on standard error so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&contents(&self.stderr)).into_owned()
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&contents(&self.stdout)).into_owned()
    }

    /// Whether it has ended and been waited for.
    pub fn has_ended(&self) -> bool {
        !Path::new(&format!("/proc/{}", self.pid)).exists()
    }

    /// Waits until its standard output contains `text`.
    ///
    /// # Panics
    /// If it does not come to that by the deadline.
    pub fn wait_for_output(&self, text: &str) {
        let said = wait_until(|| String::from_utf8_lossy(&contents(&self.stdout)).contains(text));
        assert!(said, "did not say {text:?}: {}", self.shown);
    }
}

/// A test that fails leaves nothing running behind.
impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.end.try_recv(), Err(TryRecvError::Empty)) {
            return; // it has ended and been waited for: the number may be another's by now
        }
        for pid in descendants(self.pid) {
            // One that ended meanwhile is no concern.
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = self.end.recv_timeout(DEADLINE);
    }
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Outcome {
    start(command).finish()
}

/// Asks again and again until it is so, or the deadline has passed. Says whether it was so.
pub fn wait_until(mut so: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if so() {
            return true;
        }
        // Between two looks, not in place of one.
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// The process and all below it, the youngest first.
pub fn descendants(root: Pid) -> Vec<Pid> {
    let parents: Vec<(Pid, Pid)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in parentheses may hold anything; what follows its last parenthesis is "state ppid …".
            let parent: i32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
            Some((Pid::from_raw(pid), Pid::from_raw(parent)))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.reverse();
    found
}

fn contents(file: &NamedTempFile) -> Vec<u8> {
    std::fs::read(file.path()).expect("a temporary file can be read")
}
