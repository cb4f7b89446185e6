//! The program `attach_death.c`, which checks itself while hounds visit it, die in it, and repair it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::{NamedTempFile, TempDir};

use crate::attach::{Footprint, maps};
use crate::binaries;
use crate::capture::Capture;
use crate::compile::{Build, Program};
use crate::process::{self, Outcome, Running};

/// Words of the file it shares.
const ORDER: u64 = 0;
const STILL: u64 = 1;
const FAILURES: u64 = 2;
const INTERRUPTED: u64 = 3;
const THREADS: u64 = 4;
const LONGEST_US: u64 = 5;
const PROGRESS: u64 = 8;

/// The program, under way.
pub struct Visited {
    /// The program.
    pub running: Running,
    /// Ends it where a test fails: it would run for ever.
    leash: Leash,
    shared: NamedTempFile,
    dir: TempDir,
    before: (Footprint, Vec<String>),
}

/// Kills a process when dropped.
struct Leash(Option<Pid>);

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended by itself.
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

impl Visited {
    /// Starts it, and notes how it looks before any visit.
    pub fn start() -> Visited {
        let shared = NamedTempFile::new().expect("a temporary file can be made");
        shared.as_file().set_len(4096).expect("it is our own");
        let program = Program::new("attach_death.c", Build::Optimised).path();
        let running = process::start(Command::new(program).arg(shared.path()));
        let dir = TempDir::new().expect("a temporary directory can be made");
        let before = (Footprint { descriptors: Default::default(), threads: 0, text: Default::default() }, Vec::new());
        let mut visited = Visited { leash: Leash(Some(running.pid)), running, shared, dir, before };
        assert!(process::wait_until(|| visited.word(THREADS) > 0), "it did not start: {}", visited.running.said());
        visited.progresses("at first");
        visited.before = visited.look();
        visited
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.running.pid.as_raw()
    }

    /// A path for a capture.
    pub fn capture(&self) -> std::path::PathBuf {
        self.dir.path().join("capture.hound")
    }

    fn word(&self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.shared.as_file().read_exact_at(&mut bytes, index * 8).expect("the file has a page");
        u64::from_le_bytes(bytes)
    }

    fn set(&self, index: u64, value: u64) {
        self.shared.as_file().write_all_at(&value.to_le_bytes(), index * 8).expect("the file is our own");
    }

    /// How often a call was interrupted that the kernel interrupts when a thread is stopped.
    pub fn interrupted(&self) -> u64 {
        self.word(INTERRUPTED)
    }

    /// The longest that one of its allocations took since it was last asked, in microseconds.
    pub fn longest_us(&self) -> u64 {
        let longest = self.word(LONGEST_US);
        self.set(LONGEST_US, 0);
        longest
    }

    /// How often each thread has done its work.
    pub fn progress(&self) -> Vec<u64> {
        (0..self.word(THREADS)).map(|thread| self.word(PROGRESS + thread)).collect()
    }

    /// Waits until all threads have come on (the first of twice: the work under way may have begun before), and holds it to its checks.
    ///
    /// # Panics
    /// If a thread does not, or a check has failed.
    pub fn progresses(&self, when: &str) {
        let from = self.progress();
        let on = || self.progress().iter().zip(&from).all(|(now, then)| *now >= then + 2);
        let done = process::wait_until(|| on() || self.word(FAILURES) > 0 || self.running.has_ended());
        assert!(!self.running.has_ended(), "{when}: the program has ended: {}", self.running.said());
        assert_eq!(self.word(FAILURES), 0, "{when}: {}", self.running.said());
        assert!(done, "{when}: a thread stands still: {from:?} {:?}", self.progress());
    }

    /// Its descriptors, threads, code and mappings while it makes no new ones.
    fn look(&self) -> (Footprint, Vec<String>) {
        self.set(ORDER, 1);
        assert!(process::wait_until(|| self.word(STILL) == 1), "it does not keep still: {}", self.running.said());
        // The file is made anew where two tests come to want it at once.
        let maps = maps(self.pid()).iter().map(|line| line.trim_end_matches(" (deleted)").to_owned()).collect();
        let mut footprint = Footprint::of(self.pid());
        footprint.text = footprint.text.into_iter().map(|(place, hash)| (place.trim_end_matches(" (deleted)").to_owned(), hash)).collect();
        let seen = (footprint, maps);
        self.set(ORDER, 0);
        seen
    }

    /// It is as before the first visit.
    ///
    /// # Panics
    /// If not.
    pub fn must_be_as_before(&self, when: &str) {
        let (footprint, maps) = self.look();
        footprint.must_be_as(&self.before.0, when);
        let more: Vec<_> = maps.iter().filter(|line| !self.before.1.contains(line)).collect();
        let less: Vec<_> = self.before.1.iter().filter(|line| !maps.contains(line)).collect();
        assert!(more.is_empty() && less.is_empty(), "{when}: mappings have come {more:?} and gone {less:?}");
    }

    /// Whether any of its code differs from what it was.
    pub fn is_patched(&self) -> bool {
        self.look().0.is_patched_beside(&self.before.0)
    }

    /// A hound attaches, records, leaves and takes everything with it.
    ///
    /// # Panics
    /// If that fails, or the program is not as before its first visit.
    pub fn must_be_repaired(&self, when: &str) {
        let file = self.capture();
        let running = process::start(&mut crate::attach::attach_command(self.pid(), &file, &[]));
        let done = process::wait_until(|| running.said().contains("attached to") || running.has_ended());
        assert!(done && running.said().contains("attached to"), "{when}: the next hound did not attach: {}", running.said());
        // Every thread allocates, or does whatever it does, while it is recorded.
        self.progresses(when);
        let detached = crate::capture::hound(["detach", "--unload", "-p", &self.pid().to_string()]);
        assert!(detached.status.success(), "{when}: hound detach: {}", detached.err());
        let outcome = running.finish();
        let err = outcome.err();
        assert_eq!(outcome.shell_status(), 0, "{when}: the next hound: {err}");
        assert!(err.contains("attached to") && err.contains("detached from"), "{when}: {err}");
        assert!(
            !err.contains("nothing was recorded") && !err.contains("stays in process") && !err.contains("ended early"),
            "{when}: {err}"
        );
        let check = Capture { path: file.clone() }.check();
        assert!(check.status.success(), "{when}: hound check: {}{}", check.out(), check.err());
        std::fs::remove_file(file).expect("it was written");
        self.progresses(when);
        self.must_be_as_before(when);
    }

    /// Starts a hound that dies (`HOUND_DIE_AFTER`), fails (`HOUND_FAIL_AT`) or counts (`HOUND_STEPS`) as this variable says, to attach,
    /// record and detach with `--unload`; waits for its end.
    pub fn visit(&self, variable: &str, value: &str) -> Outcome {
        let mut command = Command::new(binaries::hound_death());
        command.args(["attach", "-p", &self.pid().to_string(), "--mode", "full", "--quiet", "--duration", "20ms", "--unload", "-o"]);
        process::run(command.arg(self.capture()).env(variable, value))
    }

    /// Tells it to end, and holds it to its checks once more.
    ///
    /// # Panics
    /// If one has failed.
    pub fn end(mut self) {
        self.set(ORDER, 2);
        self.leash.0 = None;
        let outcome = self.running.finish_within(process::DEADLINE * 60);
        assert_eq!(outcome.shell_status(), 0, "the program fails its own checks: {}", outcome.err());
    }

    /// Its memory.
    pub fn memory(&self) -> File {
        File::options().read(true).write(true).open(format!("/proc/{}/mem", self.pid())).expect("the test's own child")
    }
}
