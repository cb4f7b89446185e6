//! Several processes under one session, observed from the kernel: each is exact in one capture, and none is harmed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::attach::{self, Session, Subject, changed_bytes, must_have_probes_as};
use hound_tests::binaries;
use hound_tests::capture::{Capture, Event, hound};
use hound_tests::compare;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, wait_until};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn program() -> Program {
    Program::new("attach_target.c", Build::Optimised)
}

fn subject() -> Subject {
    let mut subject = Subject::start(&mut Command::new(program().path()));
    subject.rules.function_starts = program().function_starts();
    subject.observed_from_the_kernel()
}

/// Records every call of all these, all of the time.
fn command(capture: &Path, whom: &[&str]) -> Command {
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "--budget", "unlimited", "--interval", "0", "--stack", "8Ki", "--quiet", "-o"]).arg(capture).args(whom);
    command
}

fn attach(pid: i32, capture: &Path, whom: &[&str]) -> Session {
    attach::begin(pid, capture, &mut command(capture, whom)).unwrap_or_else(|said| panic!("hound did not attach: {said}"))
}

fn report(capture: &Path, more: &[&str]) -> Value {
    let outcome = hound(
        ["report".as_ref(), capture.as_os_str()]
            .into_iter()
            .chain(["--format", "json", "--all"].map(AsRef::as_ref))
            .chain(more.iter().map(AsRef::as_ref)),
    );
    assert!(outcome.status.success(), "{}", outcome.err());
    serde_json::from_slice(outcome.out().as_bytes()).expect("JSON")
}

/// What the capture tells of this program is what it noted in these phases.
fn exact(subject: &Subject, capture: &Capture, phases: usize) {
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    let mut oracle = subject.oracle();
    oracle.facts[3] = oracle.facts[3 + 2 * (phases - 1)];
    let mut oracle = oracle.phase(0);
    compare::leave_out_what_was_there(&mut oracle);
    assert!(compare::noted(&oracle) > 0, "nothing was noted");
    let events: Vec<Event> = capture.events().into_iter().filter(|event| event.pid == subject.pid() as u32).collect();
    let differences = compare::differences(&oracle, &events, &subject.comparing());
    assert!(differences.is_empty(), "process {}: the capture differs from what it noted:\n{}", subject.pid(), differences.join("\n"));
}

fn untouched(pid: i32, when: &str) {
    assert!(wait_until(|| changed_bytes(pid) == 0), "{when}: {} bytes of process {pid}'s text differ from its files", changed_bytes(pid));
}

#[test]
fn two_processes_are_exact_in_one_capture() {
    if !requirement::uprobes() {
        return;
    }
    let (mut one, mut two, none) = (subject(), subject(), subject());
    let path = one.file("both.hound");
    let pids = [one.pid(), two.pid()].map(|pid| pid.to_string());
    let session = attach(two.pid(), &path, &["-p", &pids[0], "-p", &pids[1]]);
    assert!(changed_bytes(one.pid()) > 0 && changed_bytes(two.pid()) > 0, "no breakpoint is in the text");
    assert_eq!(changed_bytes(none.pid()), 0, "another process has breakpoints");
    for order in ["noted", "threads", "old"] {
        one.order(order);
        two.order(order);
    }
    // The second is of the session as the first is.
    let (capture, said) = session.detach_and_hear(&[]);
    assert!(said.contains("attached to 2 processes") && said.contains("detached from 2 processes"), "{said}");
    for subject in [&one, &two] {
        untouched(subject.pid(), "after detaching");
        exact(subject, &capture, 3);
    }
    let both = report(&path, &[]);
    let of = |pid: &str| report(&path, &["--process", pid])["totals"].clone();
    let (first, second) = (of(&pids[0]), of(&pids[1]));
    for figure in ["allocations", "allocated_bytes", "frees", "live_blocks", "live_bytes"] {
        let sum = first[figure].as_u64().zip(second[figure].as_u64()).map(|(one, two)| one + two);
        assert_eq!(both["totals"][figure].as_u64(), sum, "{figure}");
        assert!(sum.is_some_and(|sum| sum > 0 || figure.starts_with("live")), "{figure}");
    }
    let listed: Vec<String> = both["processes"].as_array().expect("a list").iter().map(|of| of["pid"].to_string()).collect();
    assert_eq!(listed, pids);
    let wrong = hound(["report".as_ref(), path.as_os_str(), "--process".as_ref(), "1".as_ref()]);
    assert_eq!(wrong.status.code(), Some(2), "{}", wrong.err());
    [one, two, none].into_iter().for_each(|subject| drop(subject.end()));
}

#[test]
fn one_that_is_killed_leaves_the_others_recorded() {
    if !requirement::uprobes() {
        return;
    }
    let (mut one, mut two) = (subject(), subject());
    let path = two.file("both.hound");
    let pids = [one.pid(), two.pid()].map(|pid| pid.to_string());
    let session = attach(two.pid(), &path, &["-p", &pids[0], "-p", &pids[1]]);
    one.order("noted");
    two.order("noted");
    kill(Pid::from_raw(one.pid()), Signal::SIGKILL).expect("it lives");
    let ended = wait_until(|| one.running.has_ended());
    assert!(ended);
    two.order("threads");
    let capture = session.detach(&[]);
    untouched(two.pid(), "after detaching");
    exact(&two, &capture, 2);
    let report = report(&path, &[]);
    let [first, second] = &report["processes"].as_array().expect("a list")[..] else { panic!("{report:.500}") };
    assert_eq!((&first["end"]["how"], &first["end"]["value"]), (&"signal".into(), &9.into()), "{first}");
    assert_eq!(second["end"]["how"], "detach", "{second}");
    assert!(first["allocations"].as_u64() > Some(1000), "{first}");
    two.end();
}

#[test]
fn several_are_refused_with_a_reason_where_one_cannot_be() {
    if !requirement::uprobes() {
        return;
    }
    let one = subject();
    let (own, path) = (one.pid().to_string(), one.file("none.hound"));
    let refused = |whom: &[&str], parts: &[&str]| {
        let outcome = process::run(&mut command(&path, whom));
        assert_eq!(outcome.status.code(), Some(2), "not refused: {}", outcome.err());
        parts.iter().for_each(|part| assert!(outcome.err().contains(part), "not said: {part}\n{}", outcome.err()));
        assert!(!path.exists(), "a refused attach left a capture");
    };
    refused(&["-p", &own, "-p", "2"], &["process 2"]);
    refused(&["-p", &own, "--tree", "--mode", "full"], &["one process at a time", "--mode full"]);
    refused(&["--cgroup", "no/such/group"], &["control group"]);
    untouched(one.pid(), "after refusals");
    one.end();
}

/// A program with children, and what hound says of them.
struct Family {
    subject: Subject,
    children: Vec<i32>,
}

impl Family {
    fn start() -> Self {
        let subject = Subject::start(&mut Command::new(Program::new("forking.c", Build::Optimised).path()));
        Family { subject, children: Vec::new() }
    }

    fn child(&mut self, how: &str, size: u32) -> i32 {
        self.subject.order(&format!("{how} child{} {size}", self.children.len()));
        let printed = self.subject.running.printed();
        let pid = printed.lines().filter_map(|line| line.strip_prefix("pid ")).next_back().and_then(|pid| pid.parse().ok());
        self.children.push(pid.expect("it says so"));
        self.children[self.children.len() - 1]
    }
}

fn of_child(report: &Value, pid: i32) -> &Value {
    let all = report["processes"].as_array().expect("a list");
    all.iter().rfind(|of| of["pid"] == pid).unwrap_or_else(|| panic!("process {pid} is not in {all:?}"))
}

#[test]
fn a_tree_is_recorded_with_children_that_fork_and_exec_later() {
    if !requirement::uprobes() {
        return;
    }
    let mut family = Family::start();
    let there = family.child("fork", 1000);
    let path = family.subject.file("tree.hound");
    let own = family.subject.pid().to_string();
    let session = attach(family.subject.pid(), &path, &["--tree", "-p", &own]);
    let forked = family.child("fork", 2000);
    let replaced = family.child("exec", 3000);
    // Breakpoints of the parent are in a forked child's text from the start: that hound knows of it is told by the capture.
    let known = |number: usize| {
        let snapshot = hound(["snapshot", "-p", &own, "--format", "json"]);
        let report: Value = serde_json::from_slice(snapshot.out().as_bytes()).unwrap_or(Value::Null);
        report["processes"].as_array().is_some_and(|all| all.len() >= number)
    };
    // The program, three children, and what the last one was before its exec, if that was seen.
    assert!(wait_until(|| known(4)), "{}", session.running.said());
    [there, forked, replaced].into_iter().for_each(|child| must_have_probes_as(child, family.subject.pid()));
    let settled = wait_until(|| {
        let status = hound(["status", "-p", &replaced.to_string()]);
        status.out().contains(&own)
    });
    assert!(settled, "the session is not found under its child");
    family.subject.order("go");
    let (_, said) = session.detach_and_hear(&[]);
    for pid in [family.subject.pid(), there, forked, replaced] {
        untouched(pid, "after detaching");
    }
    let report = report(&path, &[]);
    for (pid, size) in [(there, 1000), (forked, 2000), (replaced, 3000)] {
        let of = of_child(&report, pid);
        assert_eq!((&of["allocated_bytes"], &of["live_bytes"]), (&(100 * size).into(), &(50 * size).into()), "{of} {said}");
    }
    assert!(of_child(&report, replaced)["command"].to_string().contains("forked-child"), "{report:.600}");
    // The same function of the same file is one site in all of them.
    let sites: Vec<&Value> =
        report["sites"].as_array().expect("a list").iter().filter(|site| site["stack"].to_string().contains("made_in_child")).collect();
    let held: Vec<u64> = sites.iter().map(|site| site["live_blocks"].as_u64().unwrap_or(0)).collect();
    // The two that were forked have one call path, the one that is a new program another.
    assert_eq!((held.iter().sum::<u64>(), held.iter().max()), (150, Some(&100)), "{sites:?}");
    family.subject.end();
}

/// Children that come while allocations are not sampled, by fork and by exec, are sampled when those are again.
#[test]
fn a_tree_is_recorded_on_after_changes_of_the_mode() {
    if !requirement::uprobes() {
        return;
    }
    let mut family = Family::start();
    let there = family.child("fork", 1000);
    let path = family.subject.file("modes.hound");
    let own = family.subject.pid().to_string();
    let session = attach(family.subject.pid(), &path, &["--tree", "-p", &own]);
    let switch = |mode: &str| {
        let outcome = hound(["mode", "-p", &own, mode]);
        assert!(outcome.status.success(), "{mode}: {}{}", outcome.err(), session.running.said());
    };
    for between in ["off", "faults"] {
        switch(between);
        [family.subject.pid(), there].into_iter().for_each(|pid| untouched(pid, between));
        let (forked, replaced) = (family.child("fork", 2000), family.child("exec", 3000));
        switch("sampled");
        [there, forked, replaced].into_iter().for_each(|child| must_have_probes_as(child, family.subject.pid()));
    }
    let known = || {
        let snapshot = hound(["snapshot", "-p", &own, "--format", "json"]);
        let report: Value = serde_json::from_slice(snapshot.out().as_bytes()).unwrap_or(Value::Null);
        let all = report["processes"].as_array().cloned().unwrap_or_default();
        family.children.iter().all(|pid| all.iter().any(|of| of["pid"] == *pid))
    };
    assert!(wait_until(known), "{}", session.running.said());
    family.subject.order("go");
    let (_, said) = session.detach_and_hear(&[]);
    let report = report(&path, &[]);
    let sizes = [1000, 2000, 3000, 2000, 3000];
    for (pid, size) in family.children.iter().zip(sizes) {
        untouched(*pid, "after detaching");
        let of = of_child(&report, *pid);
        assert_eq!((&of["allocated_bytes"], &of["live_bytes"]), (&(100 * size).into(), &(50 * size).into()), "{of} {said}");
        let numbers = report["processes"].as_array().map(|all| all.iter().filter(|of| of["pid"] == *pid).count());
        assert!(numbers.is_some_and(|number| number <= 2), "process {pid} is there {numbers:?} times");
    }
    family.subject.end();
}

/// A control group of the test's own; nothing where there can be none.
struct Group {
    mounted: Option<PathBuf>,
    path: PathBuf,
}

impl Group {
    fn make(dir: &Path) -> Option<Group> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let there = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| words.get(2) == Some(&"cgroup2"));
        let (root, mounted) = match there {
            Some(words) => (PathBuf::from(words[1]), None),
            None => {
                let root = dir.join("cgroup");
                fs::create_dir(&root).ok()?;
                let mount = process::run(Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&root));
                if !mount.status.success() {
                    return None;
                }
                (root.clone(), Some(root))
            }
        };
        let path = root.join(format!("hound-test-{}", std::process::id()));
        let group = Group { mounted, path };
        fs::create_dir(&group.path).ok()?;
        Some(group)
    }

    fn add(&self, pid: i32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("a process can be moved");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = wait_until(|| fs::remove_dir(&self.path).is_ok());
        if let Some(root) = &self.mounted {
            process::run(Command::new("umount").arg(root));
        }
    }
}

#[test]
fn a_control_group_is_recorded_with_processes_that_join_it_later() {
    if !requirement::uprobes() {
        return;
    }
    let dir = tempfile::TempDir::new().expect("a temporary directory can be made");
    let Some(group) = Group::make(dir.path()) else {
        requirement::fulfilled("a writeable cgroup v2", false);
        return;
    };
    let (mut one, mut two, none) = (subject(), subject(), subject());
    group.add(one.pid());
    let path = one.file("group.hound");
    let session = attach(one.pid(), &path, &["--cgroup", &group.path.display().to_string()]);
    assert!(changed_bytes(one.pid()) > 0);
    one.order("noted");
    assert_eq!((changed_bytes(two.pid()), changed_bytes(none.pid())), (0, 0), "processes outside have breakpoints");
    group.add(two.pid());
    must_have_probes_as(two.pid(), one.pid());
    let own = two.pid().to_string();
    assert!(wait_until(|| hound(["status", "-p", &own]).status.success()), "the session is not found under the second");
    two.order("noted");
    let capture = session.detach(&[]);
    for subject in [&one, &two] {
        untouched(subject.pid(), "after detaching");
        exact(subject, &capture, 1);
    }
    assert_eq!(report(&path, &[])["processes"].as_array().map(Vec::len), Some(2));
    [one, two, none].into_iter().for_each(|subject| drop(subject.end()));
}
