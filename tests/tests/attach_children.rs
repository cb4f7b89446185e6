//! `hound attach --children`: what a running program begins is recorded with it, none is harmed, and all that run on are left as they were.
//! That it is exact `children.rs` shows.

use std::path::Path;

use hound_tests::attach::{self, changed_bytes, maps};
use hound_tests::capture::{Capture, hound};
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Running, wait_until};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The program, under way.
struct Service {
    running: Running,
    dir: TempDir,
}

impl Service {
    fn start(how: &[&str]) -> Service {
        let running = process::start(std::process::Command::new(Program::new("begins.c", Build::Optimised).path()).args(how));
        running.wait_for_output("ready");
        Service { running, dir: TempDir::new().expect("a temporary directory can be made") }
    }

    fn pid(&self) -> i32 {
        self.running.pid.as_raw()
    }

    /// Has it begin a process that stays, and waits until it has. Its number.
    fn begin(&self, signal: Signal) -> i32 {
        let word = if signal == Signal::SIGUSR1 { "stays " } else { "became " };
        let last = || self.running.printed().lines().filter_map(|line| line.strip_prefix(word)?.parse::<i32>().ok()).next_back();
        let before = last();
        kill(self.running.pid, signal).expect("it runs");
        assert!(wait_until(|| last() != before), "{}", self.running.printed());
        last().expect("as seen")
    }

    /// It still begins processes, which do what they are for.
    fn must_go_on(&self) {
        let rounds = || self.running.printed().matches("round ").count();
        let before = rounds();
        assert!(wait_until(|| rounds() > before + 1 || self.running.has_ended()), "it stands still");
        assert!(!self.running.has_ended(), "{}", self.running.said());
    }

    /// Ends it and what it began, and holds all of them to their own checks.
    fn end(self) {
        kill(self.running.pid, Signal::SIGTERM).expect("it runs");
        let outcome = self.running.finish();
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    }
}

fn report(capture: &Path) -> Value {
    let outcome = hound([Path::new("report"), capture].into_iter().chain(["--format", "json", "--all"].map(Path::new)));
    assert!(outcome.status.success(), "{}", outcome.err());
    serde_json::from_str(&outcome.out()).expect("JSON")
}

fn of(report: &Value, pid: i32, began: &str) -> Value {
    let all = report["processes"].as_array().expect("a list");
    let one = all.iter().find(|one| one["pid"] == pid && one["began"] == began);
    one.unwrap_or_else(|| panic!("no process {pid} by {began}: {all:?}")).clone()
}

/// So many events of this process have reached hound: it is recorded.
fn must_be_recorded(pid: i32) {
    let says = || String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default()).into_owned();
    assert!(wait_until(|| says().contains("/memfd:hound-launch")), "process {pid} has no ring:\n{}", says());
}

#[test]
fn what_runs_on_is_left_as_it_was_and_can_be_attached_to_again() {
    if !requirement::root() {
        return;
    }
    let service = Service::start(&[]);
    let file = service.dir.path().join("children.hound");
    let before = service.begin(Signal::SIGUSR1);
    let session = attach::attach(service.pid(), &file, &["--children"]);
    let (stays, became) = (service.begin(Signal::SIGUSR1), service.begin(Signal::SIGUSR2));
    must_be_recorded(stays);
    must_be_recorded(became);
    service.must_go_on();
    // It belongs to that session.
    let other = attach::try_attach(stays, &service.dir.path().join("other.hound"), &[]);
    let said = other.err().expect("two hounds in one process");
    assert!(said.contains("being recorded already") || said.contains("recording it"), "{said}");
    let (capture, said) = session.detach_and_hear(&[]);
    assert!(!said.contains("could not be restored"), "{said}");
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    for pid in [service.pid(), before, stays, became] {
        assert_eq!(changed_bytes(pid), 0, "process {pid}: code");
    }
    let all = report(&capture.path);
    assert_eq!((&all["totals"]["lost_events"], &all["totals"]["unknown_frees"].is_u64()), (&0.into(), &true), "{}", all["totals"]);
    assert!(of(&all, stays, "fork")["allocations"].as_u64() > Some(0), "{all:?}");
    assert_eq!(of(&all, stays, "fork")["end"]["how"], "detach");
    assert!(of(&all, became, "exec")["allocations"].as_u64() > Some(0), "{all:?}");
    // Recording goes on and off in the middle of the life of one.
    let short = all["processes"].as_array().expect("a list").iter().filter(|one| one["end"]["value"] == 5);
    let counts: Vec<u64> = short.filter_map(|one| one["allocations"].as_u64()).collect();
    let whole = counts.iter().filter(|count| **count == 40).count();
    assert!(whole > 10 && counts.len() - whole <= 2, "{counts:?}");
    // A process that was forked from it is one as any other now.
    let alone = attach::attach(stays, &service.dir.path().join("alone.hound"), &[]);
    let capture: Capture = alone.detach(&["--unload"]);
    assert!(capture.check().status.success());
    assert!(!maps(stays).iter().any(|line| line.contains("hound")), "{:?}", maps(stays));
    service.must_go_on();
    service.end();
}

/// Its environment is in memory that goes with the library.
#[test]
fn the_library_is_not_taken_out_below_a_thread_that_is_about_to_become_another_program() {
    if !requirement::root() {
        return;
    }
    let running = process::start(&mut std::process::Command::new(Program::new("holds_environment.c", Build::Optimised).path()));
    running.wait_for_output("ready");
    let dir = TempDir::new().expect("a temporary directory can be made");
    let session = attach::attach(running.pid.as_raw(), &dir.path().join("held.hound"), &["--children"]);
    kill(running.pid, Signal::SIGUSR1).expect("it runs");
    assert!(wait_until(|| running.printed().contains("holds") || running.has_ended()), "{}", running.printed());
    let is_there = || maps(running.pid.as_raw()).iter().any(|line| line.contains("hound"));
    let pid = running.pid.as_raw().to_string();
    let mut detach = std::process::Command::new(hound_tests::binaries::hound());
    let detaching = process::start(detach.args(["detach", "--unload", "-p", &pid]));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(is_there() && !detaching.has_ended(), "it was taken out: {}", detaching.said());
    kill(running.pid, Signal::SIGUSR2).expect("it runs");
    let detached = detaching.finish();
    assert!(detached.status.success(), "{}", detached.err());
    session.running.finish();
    assert!(!is_there(), "{:?}", maps(running.pid.as_raw()));
    kill(running.pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(running.finish().shell_status(), 0);
}

#[test]
fn a_killed_hound_harms_none_of_them_and_the_next_one_repairs() {
    if !requirement::root() {
        return;
    }
    let service = Service::start(&[]);
    let session = attach::attach(service.pid(), &service.dir.path().join("killed.hound"), &["--children"]);
    let (stays, became) = (service.begin(Signal::SIGUSR1), service.begin(Signal::SIGUSR2));
    must_be_recorded(stays);
    must_be_recorded(became);
    kill(session.running.pid, Signal::SIGKILL).expect("hound runs");
    session.running.finish();
    service.must_go_on();
    let unrecorded = service.begin(Signal::SIGUSR2);
    service.must_go_on();
    for pid in [service.pid(), stays] {
        let left = hound(["detach", "-p", &pid.to_string()]);
        assert!(left.status.success(), "process {pid}: {}", left.err());
        assert_eq!(changed_bytes(pid), 0, "process {pid}: code");
    }
    service.must_go_on();
    for pid in [stays, became, unrecorded] {
        assert_eq!(kill(Pid::from_raw(pid), None), Ok(()), "process {pid}");
    }
    service.end();
}

#[test]
fn who_may_not_speak_to_hound_is_refused_with_its_children() {
    if !requirement::root() {
        return;
    }
    let service = Service::start(&["filtered"]);
    let file = service.dir.path().join("refused.hound");
    let said = attach::try_attach(service.pid(), &file, &["--children"]).err().expect("its children could be killed for asking");
    assert!(said.contains("seccomp"), "{said}");
    assert_eq!(changed_bytes(service.pid()), 0);
    let session = attach::attach(service.pid(), &file, &[]);
    session.detach(&["--unload"]);
    service.must_go_on();
    service.end();
}

#[test]
fn samples_come_from_all_of_them() {
    if !requirement::root() {
        return;
    }
    let service = Service::start(&[]);
    let file = service.dir.path().join("sampled.hound");
    let mut command = attach::attach_command(service.pid(), &file, &["--children"]);
    command.args(["--engine", "library", "--interval", "512"]);
    let arguments: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let arguments = arguments.into_iter().map(|word| if word == "full" { "sampled".into() } else { word });
    let session = attach::begin(service.pid(), &file, std::process::Command::new(hound_tests::binaries::hound()).args(arguments));
    let session = session.unwrap_or_else(|said| panic!("hound did not attach: {said}"));
    let stays = service.begin(Signal::SIGUSR1);
    must_be_recorded(stays);
    service.must_go_on();
    let capture = session.detach(&[]);
    let all = report(&capture.path);
    let sampled = all["processes"].as_array().expect("a list").iter().filter(|one| one["allocations"].as_f64() > Some(0.0));
    assert!(sampled.count() > 5, "{}", all["processes"]);
    service.end();
}

#[test]
fn the_mode_of_all_of_them_is_changed_together() {
    if !requirement::root() {
        return;
    }
    let service = Service::start(&[]);
    let session = attach::attach(service.pid(), &service.dir.path().join("modes.hound"), &["--children"]);
    let mode = |to: &str| {
        let asked = hound(["mode", "-p", &service.pid().to_string(), to]);
        assert!(asked.status.success(), "hound mode {to}: {}", asked.err());
    };
    let stays = service.begin(Signal::SIGUSR1);
    must_be_recorded(stays);
    service.must_go_on();
    mode("off");
    let meanwhile = service.begin(Signal::SIGUSR2);
    service.must_go_on();
    mode("full");
    service.must_go_on();
    let refused = hound(["mode", "-p", &service.pid().to_string(), "faults"]);
    assert!(!refused.status.success() && refused.err().contains("each by a library of its own"), "{}", refused.err());
    let capture = session.detach(&[]);
    let events = capture.events();
    let modes: Vec<u64> = events.iter().filter(|event| event.event == "mode").map(|event| event.t).collect();
    let [_, off, on, _] = modes[..] else { panic!("{modes:?}") };
    let allocations = |pid: i32, from: u64, to: u64| {
        events.iter().filter(|event| event.event == "alloc" && event.pid == pid as u32 && (from..to).contains(&event.t)).count()
    };
    for (pid, before) in [(service.pid(), true), (stays, true), (meanwhile, false)] {
        assert_eq!(allocations(pid, 0, off) > 0, before, "process {pid}, before");
        assert!(allocations(pid, on, u64::MAX) > 0, "process {pid}, after");
    }
    let unexpected = events.iter().find(|event| event.event == "alloc" && (off..on).contains(&event.t));
    assert!(unexpected.is_none(), "{unexpected:?} while it was off");
    service.end();
}
