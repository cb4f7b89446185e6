//! A busy target with many threads ends while it is attached to, or while hound is on its way in: the capture is complete, or there is none.
//! And its children, who are no targets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hound_tests::attach::{self, Session, Subject};
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome, Running};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

/// How it ends: what is done to it, and what the capture says of it.
const ENDS: [(&str, &str, u64); 6] = [
    ("exit", "exit", 7),
    ("exec", "exec", 0),
    ("crash", "signal", 11),
    ("abort", "signal", 6),
    ("main-first", "exit", 0),
    ("KILL", "signal", 9),
];

/// A program of many threads that allocate until it is told how to end.
struct Busy {
    running: Running,
    dir: TempDir,
}

impl Busy {
    fn start() -> Busy {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let control = dir.path().join("control");
        let running = process::start(Command::new(Program::new("attach_ends.c", Build::Optimised).path()).arg(control));
        running.wait_for_output("ready\n");
        Busy { running, dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("capture.hound")
    }

    fn attach(&self) -> Session {
        attach::attach(self.running.pid.as_raw(), &self.file(), &[])
    }

    fn end(&self, how: &str) {
        match how {
            "KILL" => kill(self.running.pid, Signal::SIGKILL).expect("it runs"),
            // Written beside and moved: the program sees all of it or nothing.
            _ => {
                let path = self.dir.path().join("order");
                fs::write(&path, how).and_then(|()| fs::rename(&path, self.dir.path().join("control"))).expect("room for a word");
            }
        }
    }

    /// Waits until it has allocated so many times more.
    fn works(&self) {
        let lines = || self.running.printed().matches("round\n").count();
        let before = lines();
        assert!(process::wait_until(|| lines() > before + 2 || self.running.has_ended()), "it stands still");
    }
}

/// Whole, with this end, and with names.
fn complete(capture: &Capture, how: &str, value: u64, site: &str) {
    let check = capture.check();
    assert!(check.status.success(), "{how}: hound check: {}{}", check.out(), check.err());
    let info = capture.ask("info", &["--format", "json"]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap_or_else(|e| panic!("{e}: {}", info.err()));
    assert_eq!((&info["end"]["how"], &info["end"]["value"]), (&how.into(), &value.into()), "{info}");
    let report = capture.report();
    assert_eq!(report.totals.lost_events, 0, "{how}: events were lost");
    assert!(report.totals.allocations > 1000, "{how}: only {} allocations", report.totals.allocations);
    assert!(report.sites.iter().any(|s| s.passes(site)), "{how}: nothing is named {site}");
}

#[test]
fn however_a_busy_target_ends_its_capture_is_complete_and_symbolised() {
    if !requirement::root() {
        return;
    }
    for (order, how, value) in ENDS {
        let busy = Busy::start();
        let session = busy.attach();
        busy.works();
        busy.end(order);
        let (capture, hound) = session.finish();
        assert_eq!(hound.shell_status(), 0, "{order}: {}", hound.err());
        assert!(hound.err().contains("recording is over"), "{order}: {}", hound.err());
        if order == "exec" {
            kill(busy.running.pid, Signal::SIGKILL).expect("sleep runs");
        }
        busy.running.finish();
        complete(&capture, how, value, "busy_here");
    }
}

#[test]
fn a_target_that_ends_while_hound_gets_in_leaves_a_complete_capture_or_none() {
    if !requirement::root() {
        return;
    }
    let (mut refused, mut recorded) = (0, 0);
    for round in 0..24 {
        let (order, ..) = ENDS[round % ENDS.len()];
        let busy = Busy::start();
        let file = busy.file();
        let hound = process::start(&mut attach::attach_command(busy.running.pid.as_raw(), &file, &[]));
        // Not in place of a condition: the moment is to be another one each time, from before hound looks to after it records.
        std::thread::sleep(Duration::from_millis(round as u64 * 25));
        busy.end(order);
        if order == "exec" {
            // hound may have come so late that it is attached to what took its place: that has to end, too.
            process::wait_until(|| hound.has_ended() || hound.said().contains("attached to"));
            kill(busy.running.pid, Signal::SIGKILL).expect("sleep runs, or its end has not been asked for");
        }
        let hound = hound.finish();
        assert!(!hound.err().contains("panicked"), "{order}: {}", hound.err());
        match hound.status.code() {
            Some(0) => {
                recorded += 1;
                let check = Capture { path: file }.check();
                assert!(check.status.success(), "{order}: hound check: {}{}\n{}", check.out(), check.err(), hound.err());
            }
            Some(2) => {
                refused += 1;
                assert!(!file.exists(), "{order}: a failed attach left a file: {}", hound.err());
            }
            _ => panic!("{order}: hound ended with {}: {}", hound.status, hound.err()),
        }
        let ended = busy.running.finish();
        assert!(!ended.err().contains("wrong"), "{order}: the program found fault: {}", ended.err());
    }
    println!("{refused} refused, {recorded} recorded");
    assert!(refused > 0 || recorded > 0);
}

/// A memory control group of the test's own (of the first version), with a limit. Removed when dropped.
struct Group(PathBuf);

impl Group {
    fn new(bytes: u64) -> Option<Group> {
        let path = PathBuf::from(format!("/sys/fs/cgroup/memory/hound-test-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Group(path);
        fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        Some(group)
    }

    fn take_in(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("the group takes the test's own child");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Until the kernel has forgotten the dead.
        process::wait_until(|| fs::remove_dir(&self.0).is_ok() || !Path::new(&self.0).exists());
    }
}

#[test]
fn a_target_that_the_kernel_kills_for_want_of_memory_leaves_a_complete_capture() {
    if !requirement::root() {
        return;
    }
    let group = Group::new(96 << 20);
    if !requirement::fulfilled("a memory control group", group.is_some()) {
        return;
    }
    let group = group.expect("it was just made");
    let busy = Busy::start();
    group.take_in(busy.running.pid.as_raw());
    let session = busy.attach();
    busy.works();
    busy.end("grow");
    let (capture, hound) = session.finish();
    assert_eq!(hound.shell_status(), 0, "{}", hound.err());
    assert!(hound.err().contains("want of memory"), "the reason is not told: {}", hound.err());
    assert_eq!(busy.running.finish().shell_status(), 128 + 9);
    complete(&capture, "signal", 9, "grow_here");
    let report = capture.report();
    let largest = report.sites.iter().max_by_key(|site| site.live_bytes).expect("sites");
    assert!(largest.passes("grow_here"), "what ate the memory is not the first: {:?}", largest.stack);
}

#[test]
fn children_of_the_target_run_on_unharmed_and_unrecorded() {
    if !requirement::root() {
        return;
    }
    let mut subject = Subject::start(&mut Command::new(Program::new("attach_target.c", Build::Optimised).path()));
    subject.order("child before"); // lives through all that follows
    let session = attach::attach(subject.pid(), &subject.file("one.hound"), &[]);
    subject.order("children");
    subject.order("noted");
    subject.order("child meanwhile");
    subject.order("children");
    let capture = session.detach(&[]);
    // Only the parent's: an event of a child's thread would be one that nobody noted.
    subject.must_be_exact(&capture, 0);
    subject.order("children");
    let session = attach::attach(subject.pid(), &subject.file("two.hound"), &[]);
    subject.order("children");
    session.detach(&["--unload"]);
    subject.order("children");
    // Each of the children that lived on tells whether its blocks are as they must be.
    subject.order("children end");
    let ended: Outcome = subject.end();
    assert_eq!(ended.err(), "");
}
