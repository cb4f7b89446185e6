//! Runs a hazard program alone and under hound, and holds both to account: the target must not be able to tell the difference, and the
//! capture must say exactly what the target noted.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::attach::{self, Session};
use crate::binaries;
use crate::capture::{self, Capture, Event, Report};
use crate::compare::{self, Rules};
use crate::compile::{Build, Program};
use crate::oracle::Oracle;
use crate::process::{self, Outcome, Running};
use crate::replay::replay;
use crate::sampled;

/// How a program is brought under hound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `hound run -- program`
    Run,
    /// `hound run --no-free-stacks -- program`
    RunWithoutFreeStacks,
    /// `hound run --via patch -- program`
    Patched,
    /// `LD_PRELOAD=libhound.so program`
    Preload,
    /// The program waits before its first note until `hound attach --budget unlimited --interval 0` observes it from the kernel.
    Kernel,
    /// `hound run --engine kernel --budget unlimited --interval 0 -- program`
    KernelRun,
    /// The program waits before its first note until `hound attach --mode full` is in it.
    Attached,
}

impl Way {
    /// Whether functions are known by their entries, and not by their names.
    fn patches(self) -> bool {
        matches!(self, Way::Patched | Way::KernelRun | Way::Attached)
    }

    /// Whether the kernel observes it, which sees no usable sizes, and stacks as far as they are copied.
    fn is_by_the_kernel(self) -> bool {
        matches!(self, Way::Kernel | Way::KernelRun)
    }

    /// Whether the program is running when hound comes.
    fn attaches(self) -> bool {
        matches!(self, Way::Kernel | Way::Attached)
    }
}

/// A program, its arguments and its environment.
#[derive(Clone, Debug)]
pub struct Target {
    program: Program,
    args: Vec<String>,
    env: Vec<(String, String)>,
    interval: Option<u64>,
    hound: Vec<&'static str>,
    below: Vec<String>,
}

impl Target {
    /// `programs/SOURCE`, compiled in this way.
    pub fn new(source: &'static str, build: Build) -> Target {
        let program = Program::new(source, build);
        Target { program, args: Vec::new(), env: Vec::new(), interval: None, hound: Vec::new(), below: Vec::new() }
    }

    /// Begun by these words, which stand before its own: what is recorded of them is not looked at.
    pub fn below(mut self, words: &[&str]) -> Target {
        self.below = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Program and arguments, with what begins it.
    fn words(&self) -> Vec<PathBuf> {
        let own = [self.program.path()].into_iter().chain(self.args.iter().map(PathBuf::from));
        self.below.iter().map(PathBuf::from).chain(own).collect()
    }

    /// With these options of hound's.
    pub fn hound(mut self, options: &[&'static str]) -> Target {
        self.hound.extend(options);
        self
    }

    /// With these compiler flags.
    pub fn with(mut self, flags: &[&str]) -> Target {
        self.program = self.program.with(flags);
        self
    }

    /// Linked statically in this way: `-static`, `-static-pie`.
    pub fn linked(mut self, how: &str) -> Target {
        self.program = self.program.linked(how);
        self
    }

    /// By another compiler than gcc and g++.
    pub fn by(mut self, compiler: &'static str) -> Target {
        self.program = self.program.by(compiler);
        self
    }

    /// With these arguments.
    pub fn args<A: AsRef<Path>>(mut self, args: &[A]) -> Target {
        self.args.extend(args.iter().map(|a| a.as_ref().display().to_string()));
        self
    }

    /// With this variable set.
    pub fn env(mut self, name: &str, value: &str) -> Target {
        self.env.push((name.into(), value.into()));
        self
    }

    /// In sampled mode, with this mean interval in bytes.
    pub fn sampled(mut self, interval: u64) -> Target {
        self.interval = Some(interval);
        self
    }

    /// Runs it without hound.
    pub fn alone(&self) -> Outcome {
        let dir = TempDir::new().expect("a temporary directory can be made");
        process::run(&mut self.as_it_is(dir.path()))
    }

    /// Starts it under hound.
    pub fn start(&self, way: Way) -> Started {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let file = dir.path().join("capture.hound");
        let mut command = match way {
            Way::Run | Way::RunWithoutFreeStacks | Way::Patched => {
                let mut hound = Command::new(binaries::hound());
                hound.args(["run", "--quiet", "-o"]).arg(&file);
                if way == Way::RunWithoutFreeStacks {
                    hound.arg("--no-free-stacks");
                }
                if way == Way::Patched {
                    hound.args(["--via", "patch"]);
                }
                if let Some(interval) = self.interval {
                    hound.args(["--mode", "sampled", "--interval", &interval.to_string()]);
                }
                hound.args(&self.hound).arg("--").args(self.words());
                self.command(hound, dir.path())
            }
            Way::KernelRun => {
                let mut hound = Command::new(binaries::hound());
                hound.args(["run", "--quiet", "--engine", "kernel", "--budget", "unlimited", "--interval", "0", "-o"]).arg(&file);
                hound.args(&self.hound).arg("--").args(self.words());
                self.command(hound, dir.path())
            }
            Way::Kernel | Way::Attached => self.as_it_is(dir.path()),
            Way::Preload => {
                let mut command = self.as_it_is(dir.path());
                command.env("LD_PRELOAD", binaries::libhound()).env("HOUND_OUTPUT", &file);
                // By the documented default it takes these signals, which a program may see.
                command.env("HOUND_REGISTER_SIGUSR1", "0").env("HOUND_REGISTER_SIGUSR2", "0");
                if let Some(interval) = self.interval {
                    command.env("HOUND_MODE", "sampled").env("HOUND_INTERVAL", interval.to_string());
                }
                command
            }
        };
        if !way.attaches() {
            let one_function = if way.patches() { self.one_function() } else { Vec::new() };
            let running = process::start(&mut command);
            return Started { running, way, target: self.clone(), dir, file, hound: None, one_function };
        }
        let gate = Gate::new(dir.path());
        let running = process::start(command.env("ORACLE_WAIT", &gate.path));
        let held = gate.hold(&running);
        let pid = running.pid.as_raw();
        let hound = match way {
            Way::Kernel => attach::attach_kernel(pid, &file, &self.hound),
            _ => attach::attach(pid, &file, &self.hound),
        };
        let one_function = attach::one_function(pid).into_iter().chain([attach::passed_on()]).collect();
        held.let_go();
        Started { running, way, target: self.clone(), dir, file, hound: Some(hound), one_function }
    }

    /// Kinds of functions that are one in it, as told by a run of its own.
    fn one_function(&self) -> Vec<BTreeSet<String>> {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let gate = Gate::new(dir.path());
        let mut command = self.command(Command::new(self.program.path()), dir.path());
        let running = process::start(command.env("ORACLE_WAIT", &gate.path).args(&self.args));
        let held = gate.hold(&running);
        let found = attach::one_function(running.pid.as_raw()).into_iter().chain([attach::passed_on()]).collect();
        held.let_go();
        running.finish();
        found
    }

    /// Runs it under hound to its end, and waits for the capture to be finished.
    pub fn record(&self, way: Way) -> Recording {
        self.start(way).finish()
    }

    /// The command itself.
    fn as_it_is(&self, dir: &Path) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        self.command(command, dir)
    }

    /// A command with the environment of a test program: none of hound's own variables, and a place for the notes.
    fn command(&self, mut command: Command, dir: &Path) -> Command {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HOUND_") || name == "LD_PRELOAD" {
                command.env_remove(name);
            }
        }
        command.env("ORACLE_FILE", dir.join("oracle")).envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }
}

/// Where a program waits before its first note (`oracle.h`).
struct Gate {
    path: PathBuf,
}

/// A program that waits there.
struct Held {
    path: PathBuf,
    end: File,
}

impl Gate {
    fn new(dir: &Path) -> Gate {
        let path = dir.join("gate");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("the test's own directory");
        Gate { path }
    }

    fn hold(self, running: &Running) -> Held {
        let open = || File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&self.path).ok();
        let mut end = None;
        process::wait_until(|| {
            end = open();
            end.is_some() || running.has_ended()
        });
        Held { end: end.unwrap_or_else(|| panic!("the program does not come to its gate: {}", running.said())), path: self.path }
    }
}

impl Held {
    fn let_go(self) {
        // What the program starts must not wait.
        std::fs::remove_file(&self.path).expect("the test's own file");
        drop(self.end);
    }
}

/// A program under way under hound.
pub struct Started {
    /// What was started: hound, or with [`Way::Preload`] the program itself.
    pub running: Running,
    way: Way,
    target: Target,
    dir: TempDir,
    file: PathBuf,
    /// Where it was attached to: hound.
    pub hound: Option<Session>,
    one_function: Vec<BTreeSet<String>>,
}

impl Started {
    /// The file the program notes into.
    pub fn oracle_file(&self) -> PathBuf {
        self.dir.path().join("oracle")
    }

    /// Waits for the end of program and recording.
    pub fn finish(self) -> Recording {
        let outcome = self.running.finish();
        let capture = match self.way {
            Way::Preload => capture::wait_until_finished(&self.file),
            _ => Capture { path: self.file },
        };
        let said = self.hound.map(|hound| {
            let (_, ended) = hound.finish();
            assert_eq!(ended.shell_status(), 0, "hound: {}", ended.err());
            ended.err()
        });
        let rules = Rules {
            function_starts: self.target.program.function_starts(),
            usable_unknown: self.way.is_by_the_kernel(),
            copied: self.way.is_by_the_kernel(),
            one_function: self.one_function,
            ..Rules::default()
        };
        Recording { outcome, capture, said: said.unwrap_or_default(), target: self.target, dir: self.dir, rules }
    }
}

/// A program's run under hound, finished.
pub struct Recording {
    /// What it did, as seen through hound.
    pub outcome: Outcome,
    /// What hound recorded.
    pub capture: Capture,
    /// Where it was attached to: what hound said.
    pub said: String,
    target: Target,
    dir: TempDir,
    /// Rules for comparisons with what the program noted.
    pub rules: Rules,
}

impl Recording {
    /// What the program noted.
    pub fn oracle(&self) -> Oracle {
        Oracle::read(&self.dir.path().join("oracle"))
    }

    /// The capture tells exactly what the program noted, and its report agrees with its events. Returns both records, for more questions.
    ///
    /// # Panics
    /// With the first differences, if not.
    pub fn must_be_exact(&self) -> (Oracle, Vec<Event>) {
        self.must_be_exact_but(0)
    }

    /// As [`Recording::must_be_exact`], of a program that was killed between doing and noting: each thread may have `cut_tail` events more.
    pub fn must_be_exact_but(&self, cut_tail: usize) -> (Oracle, Vec<Event>) {
        let check = self.capture.check();
        assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
        let (oracle, mut events) = (self.oracle(), self.capture.events());
        if !self.target.below.is_empty() {
            let noting: BTreeSet<u32> = oracle.notes.iter().map(|note| note.tid).collect();
            let pids: BTreeSet<u32> = events.iter().filter(|event| noting.contains(&event.tid)).map(|event| event.pid).collect();
            events.retain(|event| pids.contains(&event.pid));
            self.leave_out_hounds_frames(&mut events);
        }
        let rules = Rules { cut_tail, ..self.rules.clone() };
        let differences = compare::differences(&oracle, &events, &rules);
        let name = format!("{:?} {:?}", self.target.program, self.target.args);
        assert!(differences.is_empty(), "{name}: the capture differs from the oracle:\n{}\n{}", differences.join("\n"), self.said);
        assert!(compare::noted(&oracle) > 0, "{name} noted nothing: it did not reach its path");
        if self.target.below.is_empty() {
            self.report_must_agree(&events);
        }
        (oracle, events)
    }

    /// Where hound has patched a program that its library was preloaded into, calls come through that. Reports leave its frames out.
    fn leave_out_hounds_frames(&self, events: &mut [Event]) {
        let of_hound = |event: &&Event| event.path.as_deref().is_some_and(|path| path.ends_with("/libhound.so"));
        let range = |event: &Event| Some((event.pid, event.start, event.end.as_u64()?));
        let ranges: Vec<(u32, u64, u64)> = events.iter().filter(of_hound).filter_map(range).collect();
        for event in events {
            let is_ours = |ip: u64| ranges.iter().any(|(pid, start, end)| *pid == event.pid && (*start..*end).contains(&ip));
            let theirs = event.stack.iter().flatten().position(|ip| !is_ours(*ip)).unwrap_or(0);
            event.stack.iter_mut().for_each(|stack| drop(stack.drain(..theirs)));
        }
    }

    /// Of a recording in sampled mode: what was recorded is a part of what the program noted, and whole in itself. Returns both records.
    ///
    /// # Panics
    /// With the first differences, if not.
    pub fn must_be_a_sample(&self) -> (Oracle, Vec<Event>) {
        let interval = self.target.interval.expect("it was recorded in sampled mode");
        let name = format!("{:?} {:?} at {interval}", self.target.program, self.target.args);
        let (oracle, events) = (self.oracle(), self.capture.events());
        let differences = sampled::differences(&self.capture, &oracle, &events, interval, &self.rules);
        assert!(differences.is_empty(), "{name}: the sample differs from the oracle:\n{}", differences.join("\n"));
        assert!(compare::noted(&oracle) > 0, "{name} noted nothing: it did not reach its path");
        (oracle, events)
    }

    /// The report's totals and sites are those of the events, nothing is lost, and the order of events is a possible one.
    pub fn report_must_agree(&self, events: &[Event]) -> Report {
        let replayed = replay(events);
        assert!(replayed.illegal.is_empty(), "{} impossible events; the first: {}", replayed.illegal.len(), replayed.illegal[0]);
        let report = self.capture.report();
        assert_eq!(report.totals.lost_events, 0, "events were lost");
        assert_eq!(report.totals, replayed.totals, "left: hound report; right: the replay of hound dump");
        let sum = |of: fn(&capture::Site) -> u64| report.sites.iter().map(of).sum::<u64>();
        assert_eq!(sum(|s| s.allocations), report.totals.allocations, "allocations over all sites");
        assert_eq!(sum(|s| s.allocated_bytes), report.totals.allocated_bytes, "allocated bytes over all sites");
        assert_eq!(sum(|s| s.live_blocks), report.totals.live_blocks, "live blocks over all sites");
        assert_eq!(sum(|s| s.live_bytes), report.totals.live_bytes, "live bytes over all sites");
        report
    }

    /// The program behaved as it does alone: output, status, and all that it printed about itself.
    pub fn must_be_unharmed(&self) -> &Self {
        let alone = self.target.alone();
        self.must_have_behaved_like(&alone);
        self
    }

    /// The program behaved as `alone` did.
    pub fn must_have_behaved_like(&self, alone: &Outcome) {
        let name = format!("{:?} {:?}", self.target.program, self.target.args);
        assert_ne!(alone.shell_status(), 99, "{name} fails its own check even alone: {}", alone.err());
        // What it is found by among the processes that are recorded with it.
        let of_hound = |line: &&str| {
            !self.target.below.is_empty()
                && ["env LD_PRELOAD=", "env HOUND_FAMILY=", "env ASAN_OPTIONS="].iter().any(|name| line.starts_with(name))
        };
        let lines = |o: &Outcome| -> Vec<String> { o.out().lines().filter(|line| !of_hound(line)).map(String::from).collect() };
        let (expected, got) = (lines(alone), lines(&self.outcome));
        let lost: Vec<_> = expected.iter().filter(|l| !got.contains(l)).collect();
        let added: Vec<_> = got.iter().filter(|l| !expected.contains(l)).collect();
        assert!(lost.is_empty() && added.is_empty(), "{name}: alone it said {lost:#?}\nunder hound {added:#?}\n{}", self.outcome.err());
        assert_eq!(got, expected, "{name}: other output under hound");
        assert_eq!(self.outcome.err(), alone.err(), "{name}: other standard error under hound");
        assert_eq!(self.outcome.shell_status(), alone.shell_status(), "{name}: other exit status under hound");
    }
}

/// Runs a program in all builds, by `hound run`: unharmed and exact in each.
pub fn exact_in_all_builds(source: &'static str) {
    exact_in_all_builds_by(source, Way::Run);
}

/// The same, in another way.
pub fn exact_in_all_builds_by(source: &'static str, way: Way) {
    for build in Build::ALL {
        let recording = Target::new(source, build).record(way);
        recording.must_be_unharmed().must_be_exact();
    }
}
