//! The mode changes while a target is recorded, under load: each part tells what happened in it, nothing is told twice, and gaps are told.
//!
//! The kernel is told to watch every call (`--budget unlimited --interval 0`), so that what is kept in each part is known exactly.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use hound_tests::attach::{self, Session, Subject};
use hound_tests::capture::{Capture, hound};
use hound_tests::compile::{Build, Program, cargo_program};
use hound_tests::process::wait_until;
use hound_tests::{binaries, requirement};

const KEPT: usize = 100;

fn mode(pid: i32, to: &str) {
    let asked = hound(["mode", "-p", &pid.to_string(), to]);
    assert!(asked.status.success(), "hound mode {to}: {}", asked.err());
}

fn attached(pid: i32, capture: &Path, more: &[&str]) -> Session {
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "-p", &pid.to_string(), "--quiet", "-o"]).arg(capture).args(more);
    attach::begin(pid, capture, &mut command).unwrap_or_else(|said| panic!("hound did not attach: {said}"))
}

/// The changes of the mode that the capture tells of.
fn modes(capture: &Capture) -> Vec<String> {
    let dump = capture.ask("dump", &[]).out().to_owned();
    dump.lines().filter_map(|line| line.split_once(" mode mode=")).map(|(_, mode)| mode.to_owned()).collect()
}

/// Allocations and what lives, by size, of those that were made here.
fn by_size(capture: &Capture, function: &str) -> HashMap<u64, (u64, u64)> {
    let mut sums = HashMap::new();
    for site in capture.report().sites.iter().filter(|site| site.passes(function)) {
        let size = site.allocated_bytes / site.allocations.max(1);
        let sum: &mut (u64, u64) = sums.entry(size).or_default();
        *sum = (sum.0 + site.allocations, sum.1 + site.live_blocks);
    }
    sums
}

/// Ten changes; in each part something is kept, the part before last's is dropped, and one part's blocks are made larger in the next.
fn ten_changes(mut subject: Subject, engine: &[&str]) {
    let pid = subject.pid();
    let file = subject.file("c.hound");
    let session = attached(pid, &file, &[&["--mode", "sampled"], engine].concat());
    let exact = engine.contains(&"0");
    subject.order("keep");
    let turns = ["full", "sampled"];
    for change in 0..10 {
        mode(pid, turns[change % 2]);
        if change == 4 {
            subject.order("more"); // of the part before, allocated in the other mode
        }
        subject.order("keep");
        if change % 3 == 2 {
            subject.order("drop");
        }
    }
    mode(pid, "off");
    subject.order("keep"); // is in no part
    mode(pid, "full");
    subject.order("keep");
    let capture = session.detach(&[]);
    assert!(capture.check().status.success(), "{}", capture.check().err());
    let report = capture.report();
    assert_eq!(report.totals.lost_events, 0);
    let all: u64 = report.sites.iter().filter(|site| site.passes("keep_here")).map(|site| site.allocations).sum();
    if exact {
        // Eleven parts in which something was kept, and the last; what was kept while it was off is not there.
        assert_eq!(all, 12 * KEPT as u64, "{:?}", by_size(&capture, "keep_here"));
        let moved: u64 = report.sites.iter().filter(|site| site.passes("more_here")).map(|site| site.allocations).sum();
        assert_eq!(moved, KEPT as u64);
    } else {
        // Six parts are full; what is sampled comes on top.
        assert!(all >= 6 * KEPT as u64, "{all}");
    }
    assert!(modes(&capture).len() >= 13, "{:?}", modes(&capture));
    subject.end();
}

fn program(flags: &[&str]) -> Program {
    Program::new("mode_switching.c", Build::Optimised).with(flags)
}

const EVERY_CALL: [&str; 6] = ["--budget", "unlimited", "--interval", "0", "--stack", "2Ki"];

#[test]
fn parts_of_a_glibc_program_are_exact() {
    if requirement::root() {
        ten_changes(Subject::start(&mut Command::new(program(&["-pthread"]).path())), &EVERY_CALL);
    }
}

#[test]
fn parts_of_a_musl_program_are_exact() {
    if requirement::root() && requirement::program("musl-gcc") {
        let program = program(&["-pthread", "-static"]).by("musl-gcc");
        ten_changes(Subject::start(&mut Command::new(program.path())), &EVERY_CALL);
    }
}

#[test]
fn parts_of_a_program_with_jemalloc_in_it_are_exact() {
    if requirement::root() {
        let program = cargo_program("allocators", "tikv-jemallocator", "with_jemalloc");
        ten_changes(Subject::start(Command::new(program).arg("switching")), &EVERY_CALL);
    }
}

#[test]
fn the_librarys_sampling_takes_its_turn_with_full_parts() {
    if requirement::root() {
        ten_changes(Subject::start(&mut Command::new(program(&["-pthread"]).path())), &["--engine", "library", "--interval", "4Ki"]);
    }
}

#[test]
fn a_plan_is_carried_out() {
    if !requirement::root() {
        return;
    }
    let subject = Subject::start(&mut Command::new(program(&["-pthread"]).path()));
    let file = subject.file("p.hound");
    let plan = ["--mode", "sampled", "--then", "full:500ms", "--then", "off:100ms", "--duration", "2s"];
    let (capture, outcome) = attached(subject.pid(), &file, &plan).finish();
    assert!(outcome.status.success(), "{}", outcome.err());
    let modes = modes(&capture);
    assert_eq!(modes.iter().filter(|mode| *mode == "1").count(), 1, "{modes:?}");
    assert_eq!((modes.first().map(String::as_str), modes.last().map(String::as_str)), (Some("2"), Some("0")), "{modes:?}");
    subject.end();
}

#[test]
fn a_mode_that_it_is_in_already_is_refused_and_nothing_changes() {
    if !requirement::root() {
        return;
    }
    let mut subject = Subject::start(&mut Command::new(program(&["-pthread"]).path()));
    let (pid, file) = (subject.pid(), subject.file("r.hound"));
    let session = attached(pid, &file, &["--mode", "full"]);
    let asked = hound(["mode", "-p", &pid.to_string(), "full"]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(asked.err().contains("already"), "{}", asked.err());
    subject.order("keep");
    let capture = session.detach(&[]);
    assert_eq!(by_size(&capture, "keep_here").get(&1000), Some(&(KEPT as u64, KEPT as u64)));
    subject.end();
}

/// A program started under hound goes on in other modes, too: by the library in it.
fn launched(options: &[&str], begins: &str, turns: [&str; 4], expected: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let file = dir.path().join("run.hound");
    let mut command = Command::new(binaries::hound());
    let program = program(&["-pthread"]).path();
    command.args(["run", "--quiet", "-o"]).arg(&file).args(options).arg("--").arg(&program);
    let name = program.file_name().expect("a program").to_string_lossy().into_owned();
    // The kernel keeps the first 15 bytes of a name.
    let mut subject = Subject::start_open(&mut command).below_named(&name[..name.len().min(15)]);
    let pid = subject.pid();
    let refused = |to: &str, why: &str| {
        let asked = hound(["mode", "-p", &pid.to_string(), to]);
        assert!(asked.status.code() == Some(2) && asked.err().contains(why), "{to}: {}", asked.err());
    };
    // hound makes its socket while the program starts.
    let is_there = || hound(["status", "-p", &pid.to_string()]).out().contains("launch mode");
    assert!(wait_until(is_there), "no session: {}", hound(["status"]).out());
    refused(begins, "already");
    refused("faults", "does not see page faults");
    subject.order("keep");
    for turn in turns {
        mode(pid, turn);
        subject.order("keep");
    }
    let outcome = subject.end();
    assert!(outcome.status.success(), "{}", outcome.err());
    let capture = Capture { path: file };
    assert!(capture.check().status.success(), "{}", capture.check().err());
    assert_eq!(modes(&capture).concat(), expected);
    let kept = |size: u64| {
        let size = size.to_string();
        let options = ["--format", "json", "--all", "--function", "^keep_here$", "--min-size", &size, "--max-size", &size];
        let report: serde_json::Value = serde_json::from_str(&capture.ask("report", &options).out()).expect("JSON");
        let sites = report["sites"].as_array().expect("sites");
        sites.iter().filter_map(|site| site["allocations"].as_u64()).sum::<u64>()
    };
    let steps: Vec<(&str, u64)> = std::iter::once(begins).chain(turns).zip(1000..).collect();
    for (mode, size) in steps {
        match mode {
            "full" => assert_eq!(kept(size), KEPT as u64, "{size} in full mode"),
            "off" => assert_eq!(kept(size), 0, "{size} while it was off"),
            _ => {}
        }
    }
}

#[test]
fn a_program_started_in_full_mode_goes_through_the_others() {
    if requirement::root() {
        launched(&[], "full", ["sampled", "full", "off", "full"], "12101");
    }
}

#[test]
fn a_program_started_in_sampled_mode_goes_through_the_others() {
    if requirement::root() {
        launched(&["--mode", "sampled", "--interval", "4Ki"], "sampled", ["full", "off", "sampled", "full"], "21021");
    }
}
