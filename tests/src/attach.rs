//! Programs that run on their own and do what they are told by lines on their standard input, and hound attached to them from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hound_common::hook::{HOOKS, PATCHES};
use tempfile::TempDir;

use crate::binaries;
use crate::capture::{Capture, Event, hound};
use crate::compare::{self, Rules};
use crate::oracle::Oracle;
use crate::process::{self, Outcome, Running};

/// A program that waits for orders.
pub struct Subject {
    /// The program.
    pub running: Running,
    /// Its process id, unless it was started by another program.
    inner: Option<i32>,
    orders: File,
    dir: TempDir,
    /// Rules for comparisons with what it noted.
    pub rules: Rules,
}

impl Subject {
    /// Starts it with `ORACLE_FILE` set, and waits until it says "ready".
    pub fn start(command: &mut Command) -> Subject {
        Subject::start_in(command, TempDir::new().expect("a temporary directory can be made"))
    }

    /// The same, with notes in a directory that every user may write to.
    pub fn start_open(command: &mut Command) -> Subject {
        let dir = TempDir::new().expect("a temporary directory can be made");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("it is our own");
        Subject::start_in(command, dir)
    }

    fn start_in(command: &mut Command, dir: TempDir) -> Subject {
        let (read, write) = std::io::pipe().expect("a pipe can be made");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HOUND_")) {
            command.env_remove(name);
        }
        let running = process::start_reading(command.env("ORACLE_FILE", dir.path().join("oracle")), Stdio::from(read));
        let ready = process::wait_until(|| running.printed().contains("ready\n") || running.has_ended());
        assert!(ready && !running.has_ended(), "the program is not ready: {}", running.said());
        Subject { running, inner: None, orders: File::from(std::os::fd::OwnedFd::from(write)), dir, rules: Rules::default() }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.inner.unwrap_or(self.running.pid.as_raw())
    }

    /// What was started is only a wrapper: the program is the one below it with this name.
    pub fn below_named(mut self, name: &str) -> Subject {
        let comm = |pid: &nix::unistd::Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == name);
        self.inner = process::descendants(self.running.pid).iter().find(|pid| comm(pid)).map(|pid| pid.as_raw());
        assert!(self.inner.is_some(), "no {name} below process {}", self.running.pid);
        self
    }

    /// Where files of this test may go.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives an order that it will not say it has done.
    pub fn say(&mut self, line: &str) {
        writeln!(self.orders, "{line}").unwrap_or_else(|e| panic!("order {line:?}: {e}; it said: {}", self.running.said()));
    }

    /// Gives an order and waits until it says that it has done it.
    ///
    /// # Panics
    /// If it does not by the deadline, or ends.
    pub fn order(&mut self, line: &str) {
        let answer = format!("done {line}\n");
        let before = self.running.printed().matches(&answer).count();
        self.say(line);
        let done = process::wait_until(|| self.running.printed().matches(&answer).count() > before || self.running.has_ended());
        let printed = self.running.printed();
        assert!(done && printed.matches(&answer).count() > before, "{line:?} was not done: {printed:.300} {}", self.running.said());
    }

    /// The rules for a comparison while it is attached to, with what its libraries' symbols say. It must still run.
    pub fn comparing(&self) -> Rules {
        let mut rules = self.rules.clone();
        rules.one_function.extend(one_function(self.pid()));
        rules
    }

    /// From here on captures are compared as the kernel's probes can tell: usable sizes are unknown, and a function that only passes its
    /// call on to another is seen as that one.
    pub fn observed_from_the_kernel(mut self) -> Subject {
        self.rules.usable_unknown = true;
        self.rules.copied = true;
        self.rules.one_function.push(passed_on());
        self
    }

    /// What it has noted so far.
    pub fn oracle(&self) -> Oracle {
        Oracle::read(&self.file("oracle"))
    }

    /// Tells it to end, and holds it to its own checks.
    pub fn end(mut self) -> Outcome {
        writeln!(self.orders, "end").expect("the program still reads");
        let outcome = self.running.finish();
        assert_eq!(outcome.shell_status(), 0, "the program fails its own checks: {}", outcome.err());
        outcome
    }

    /// The capture tells exactly what the program noted in this phase. Returns both.
    ///
    /// # Panics
    /// With the first differences, if not.
    pub fn must_be_exact(&self, capture: &Capture, phase: usize) -> (Oracle, Vec<Event>) {
        self.must_be_exact_in(capture, phase..phase + 1)
    }

    /// The same, of phases that follow each other.
    pub fn must_be_exact_in(&self, capture: &Capture, phases: Range<usize>) -> (Oracle, Vec<Event>) {
        let check = capture.check();
        assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
        let (mut oracle, events) = (self.oracle(), capture.events());
        oracle.facts[3 + 2 * phases.start] = oracle.facts[3 + 2 * (phases.end - 1)];
        let mut oracle = oracle.phase(phases.start);
        if self.rules.copied {
            compare::leave_out_what_was_there(&mut oracle);
        }
        assert!(compare::noted(&oracle) > 0, "nothing was noted in phases {phases:?}");
        assert_eq!(capture.report().totals.lost_events, 0, "events were lost");
        let differences = compare::differences(&oracle, &events, &self.comparing());
        assert!(differences.is_empty(), "the capture differs from what the program noted:\n{}", differences.join("\n"));
        (oracle, events)
    }
}

/// `hound attach`, under way.
pub struct Session {
    /// hound.
    pub running: Running,
    target: i32,
    capture: PathBuf,
}

/// The command that attaches in full mode.
pub fn attach_command(pid: i32, capture: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "-p", &pid.to_string(), "--mode", "full", "--quiet", "-o"]).arg(capture).args(more);
    command
}

/// Attaches in full mode and waits until hound says that it has.
///
/// # Panics
/// If it does not.
pub fn attach(pid: i32, capture: &Path, more: &[&str]) -> Session {
    try_attach(pid, capture, more).unwrap_or_else(|said| panic!("hound did not attach: {said}"))
}

/// The same.
///
/// # Errors
/// If it does not: what hound said.
pub fn try_attach(pid: i32, capture: &Path, more: &[&str]) -> Result<Session, String> {
    begin(pid, capture, &mut attach_command(pid, capture, more))
}

/// Attaches in sampled mode, with the library as its engine and this mean interval, and waits until hound says that it has.
///
/// # Panics
/// If it does not.
pub fn attach_sampled(pid: i32, capture: &Path, interval: u64) -> Session {
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "-p", &pid.to_string(), "--mode", "sampled", "--engine", "library", "--interval", &interval.to_string()]);
    command.args(["--quiet", "-o"]).arg(capture);
    begin(pid, capture, &mut command).unwrap_or_else(|said| panic!("hound did not attach: {said}"))
}

/// Attaches with probes of the kernel's (`--mode sampled` or `--mode faults` and what goes with it), and waits until hound says that it has.
///
/// # Panics
/// If it does not.
pub fn attach_from_the_kernel(pid: i32, capture: &Path, more: &[&str]) -> Session {
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "-p", &pid.to_string(), "--quiet", "-o"]).arg(capture).args(more);
    begin(pid, capture, &mut command).unwrap_or_else(|said| panic!("hound did not attach: {said}"))
}

/// The command that observes all of the time from the kernel, and records every call.
pub fn kernel_command(pid: i32, capture: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "-p", &pid.to_string(), "--budget", "unlimited", "--interval", "0", "--quiet", "-o"]).arg(capture).args(more);
    command
}

/// Attaches from the kernel, to record every call, and waits until hound says that it has.
///
/// # Panics
/// If it does not.
pub fn attach_kernel(pid: i32, capture: &Path, more: &[&str]) -> Session {
    // Before others: the kernel's ring makes nobody wait, and a test of exactness beside others on two cores would be one of the scheduler.
    let hound = kernel_command(pid, capture, more);
    let mut command = Command::new("nice");
    command.args(["-n", "-20"]).arg(hound.get_program()).args(hound.get_args());
    begin(pid, capture, &mut command).unwrap_or_else(|said| panic!("hound did not attach: {said}"))
}

/// Starts a hound that attaches, and waits until it says that it has.
///
/// # Errors
/// If it does not: what hound said.
pub fn begin(pid: i32, capture: &Path, command: &mut Command) -> Result<Session, String> {
    let running = process::start(command);
    let done = process::wait_until(|| running.said().contains("attached to") || running.has_ended());
    match done && running.said().contains("attached to") && !running.has_ended() {
        true => Ok(Session { running, target: pid, capture: capture.to_owned() }),
        false => Err(running.said()),
    }
}

/// Tries to attach to what must be refused. Returns what hound did.
pub fn refused(pid: i32, capture: &Path) -> Outcome {
    let outcome = process::run(&mut attach_command(pid, capture, &[]));
    let err = outcome.err();
    assert_eq!(outcome.status.code(), Some(2), "not refused: {err}");
    assert!(!err.contains("panicked"), "{err}");
    assert!(!capture.exists(), "a refused attach left a capture");
    outcome
}

/// Attaches to a program that may not come to rest in time, for threads that wait for a child's exec or for a processor that others want:
/// hound gives up then, and has changed nothing. Returns also how often it did.
///
/// # Panics
/// If hound fails otherwise, or again and again.
pub fn attach_patiently(pid: i32, capture: &Path) -> (Session, u32) {
    for tries in 0..10 {
        match try_attach(pid, capture, &[]) {
            Ok(session) => return (session, tries),
            Err(said) => assert!(said.contains("gave up, and undid what was begun"), "hound did not attach: {said}"),
        }
        assert!(!capture.exists(), "an attach that was given up left a capture");
    }
    panic!("hound gave up ten times");
}

impl Session {
    /// Detaches by `hound detach` and waits for the end of the recording.
    pub fn detach(self, more: &[&str]) -> Capture {
        self.detach_and_hear(more).0
    }

    /// The same; also what hound said meanwhile.
    pub fn detach_and_hear(self, more: &[&str]) -> (Capture, String) {
        let pid = self.target.to_string();
        let detached = hound(["detach", "-p", pid.as_str()].iter().chain(more));
        assert!(detached.status.success(), "hound detach: {} {}", detached.status, detached.err());
        let outcome = self.running.finish();
        assert_eq!(outcome.shell_status(), 0, "hound attach: {}", outcome.err());
        (Capture { path: self.capture }, outcome.err())
    }

    /// Waits for the end of a recording whose target ends by itself.
    pub fn finish(self) -> (Capture, Outcome) {
        let outcome = self.running.finish();
        (Capture { path: self.capture }, outcome)
    }
}

/// What can be seen of a process from outside, and must be the same after a visit.
#[derive(Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Number and name of each descriptor.
    pub descriptors: BTreeSet<(String, String)>,
    /// How many threads.
    pub threads: usize,
    /// A hash of each executable mapping that a file stands behind, by where it is.
    pub text: BTreeMap<String, u64>,
}

impl Footprint {
    /// Of a process as it is now.
    pub fn of(pid: i32) -> Footprint {
        let list = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).into_iter().flatten().flatten().collect::<Vec<_>>();
        let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let link = |entry: &fs::DirEntry| fs::read_link(entry.path()).map(|to| to.display().to_string()).unwrap_or_default();
        Footprint {
            descriptors: list("fd").iter().map(|entry| (name(entry), link(entry))).collect(),
            threads: list("task").len(),
            text: text_of(pid),
        }
    }

    /// The text differs from what it was: something is patched.
    pub fn is_patched_beside(&self, before: &Footprint) -> bool {
        before.text.iter().any(|(place, hash)| self.text.get(place).is_some_and(|now| now != hash))
    }

    /// Nothing has changed since.
    ///
    /// # Panics
    /// If something has.
    pub fn must_be_as(&self, before: &Footprint, when: &str) {
        assert_eq!(self.descriptors, before.descriptors, "{when}: descriptors");
        assert_eq!(self.threads, before.threads, "{when}: threads");
        let changed: Vec<_> = before.text.iter().filter(|(place, hash)| self.text.get(*place).is_some_and(|now| now != *hash)).collect();
        assert!(changed.is_empty(), "{when}: text has changed: {changed:?}");
    }
}

/// glibc's `reallocarray` only calls `realloc`.
pub fn passed_on() -> BTreeSet<String> {
    BTreeSet::from(["realloc", "reallocarray"].map(String::from))
}

/// The milliseconds of each stall that hound told.
pub fn stalls(said: &str) -> impl Iterator<Item = f64> {
    said.split("stall ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok())
}

/// Lines of a process's memory map.
pub fn maps(pid: i32) -> Vec<String> {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default().lines().map(String::from).collect()
}

/// Kinds of functions that have one address in some module of the process: patching its entry catches all of them as one.
pub fn one_function(pid: i32) -> Vec<BTreeSet<String>> {
    // By the mapping: a path means something else in another mount namespace.
    let code = maps(pid).into_iter().filter(|line| line.contains(" r-xp ") && line.contains('/'));
    let range = |line: String| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some(format!("/proc/{pid}/map_files/{}-{}", start.trim_start_matches('0'), end.trim_start_matches('0')))
    };
    let mut groups: Vec<BTreeSet<String>> = Vec::new();
    for file in code.filter_map(range) {
        let mut named = BTreeMap::<String, BTreeSet<String>>::new();
        for (address, symbol) in ["-D", "--no-sort"].iter().flat_map(|table| nm(&file, table)) {
            let hook = HOOKS.iter().find(|hook| hook.symbol == symbol).map(|hook| hook.kind);
            if let Some(kind) = hook.or_else(|| PATCHES.iter().find(|patch| patch.symbol == symbol).map(|patch| patch.kind)) {
                named.entry(address).or_default().insert(kind.name().to_owned());
            }
        }
        groups.extend(named.into_values().filter(|kinds| kinds.len() > 1));
    }
    groups
}

/// Address and name of each function in a symbol table, the name without its version.
pub fn nm(file: &str, table: &str) -> Vec<(String, String)> {
    let listing = Command::new("nm").args(["--defined-only", table]).arg(file).output().expect("nm is installed with the compiler");
    let text = String::from_utf8_lossy(&listing.stdout).into_owned();
    let functions = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
        "TtWwi".contains(kind).then(|| (address.to_owned(), name.split('@').next().unwrap_or(name).to_owned()))
    });
    functions.collect()
}

/// Bytes of the process's code that are not what its files hold: breakpoints, patches.
pub fn changed_bytes(pid: i32) -> usize {
    let code = maps(pid).into_iter().filter(|line| line.contains(" r-xp ") && line.contains('/') && !line.contains("/memfd:"));
    code.map(|line| differs_from_its_file(pid, &line)).sum()
}

/// Waits until this process has as many breakpoints as the other one, which runs the same program and has all of its own.
///
/// # Panics
/// If it has not by the deadline.
pub fn must_have_probes_as(pid: i32, other: i32) {
    // Both anew each time: one of the other's own may have been on its way at the first look.
    let both = || (changed_bytes(pid), changed_bytes(other));
    let are_equal = process::wait_until(|| matches!(both(), (own, all) if all > 0 && own == all));
    assert!(are_equal, "process {pid} and process {other} have {:?} probes", both());
}

/// Bytes of this mapping of a file that are not what the file holds.
pub fn differs_from_its_file(pid: i32, line: &str) -> usize {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |hex: &str| u64::from_str_radix(hex, 16).expect("invariant: addresses are hexadecimal");
    let (start, end) = words[0].split_once('-').expect("invariant: a map's line begins so");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of the test's own child can be read");
    let mut now = vec![0; (number(end) - number(start)) as usize];
    if memory.read_exact_at(&mut now, number(start)).is_err() {
        return 0; // it has gone meanwhile
    }
    // By the mapping: the file may be deleted, or in another mount namespace.
    let file = File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", number(start), number(end)));
    let mut original = vec![0; now.len()];
    let Ok(read) = file.and_then(|file| file.read_at(&mut original, number(words[2]))) else { return 0 };
    now[..read].iter().zip(&original[..read]).filter(|(now, original)| now != original).count()
}

fn text_of(pid: i32) -> BTreeMap<String, u64> {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of the test's own child can be read");
    let code = maps(pid).into_iter().filter(|line| {
        let mut words = line.split_whitespace();
        words.nth(1) == Some("r-xp") && words.nth(3).is_some_and(|path| path.starts_with('/') && !path.starts_with("/memfd:"))
    });
    code.map(|line| {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("invariant: a map's line begins so");
        let number = |hex: &str| u64::from_str_radix(hex, 16).expect("invariant: addresses are hexadecimal");
        let mut bytes = vec![0; (number(end) - number(start)) as usize];
        memory.read_exact_at(&mut bytes, number(start)).unwrap_or_else(|e| panic!("reading {line}: {e}"));
        let mut hash = DefaultHasher::new();
        bytes.hash(&mut hash);
        (line, hash.finish())
    })
    .collect()
}
