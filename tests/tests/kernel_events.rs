//! What the kernel tells beside allocations: mappings, the end for want of memory, threads by their own numbers; and stacks with holes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::attach::{self, Subject};
use hound_tests::capture::{self, Capture, Event};
use hound_tests::compile::{Build, Program};
use hound_tests::process;
use hound_tests::requirement;

fn program() -> PathBuf {
    Program::new("changing.c", Build::Optimised).with(&["-pthread"]).path()
}

/// Changes of mappings, in order: what it was, how much, and its stack.
fn mappings(capture: &Capture) -> Vec<(String, u64, Vec<u64>)> {
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    let events = capture.events().into_iter().filter(|e| ["map", "unmap", "remap"].contains(&e.event.as_str()));
    events.map(|event| (event.event, event.length, event.stack.unwrap_or_default())).collect()
}

#[test]
fn mappings_are_recorded_as_the_library_does() {
    if !requirement::uprobes() {
        return;
    }
    let mut subject = Subject::start(&mut Command::new(program()));
    subject.order("map"); // the loader's work is done
    let full = attach::attach(subject.pid(), &subject.file("full.hound"), &[]);
    subject.order("map");
    let full = mappings(&full.detach(&[]));
    let sampled = attach::attach_kernel(subject.pid(), &subject.file("sampled.hound"), &[]);
    subject.order("map");
    subject.order("thread");
    subject.order("grow");
    let sampled = mappings(&sampled.detach(&[]));
    assert_eq!(sampled, full, "left: from the kernel");
    assert_eq!(full.iter().map(|(what, ..)| what.as_str()).collect::<Vec<_>>(), ["map", "unmap", "remap", "unmap", "unmap"]);
    assert!(full.iter().all(|(.., stack)| stack.len() > 2), "{full:?}");

    // Not between windows only: all the time.
    let session = attach::attach_from_the_kernel(subject.pid(), &subject.file("windows.hound"), &["--mode", "sampled", "--maps"]);
    (0..20).for_each(|_| subject.order("map"));
    assert_eq!(mappings(&session.detach(&[])).len(), 20 * full.len());
    // As long as the budget allows it; then it is told how much is missing.
    let session = attach::attach_from_the_kernel(subject.pid(), &subject.file("many.hound"), &["--mode", "sampled", "--maps"]);
    subject.order("maps 2000");
    let capture = session.detach(&[]);
    let recorded = mappings(&capture).len() as u64;
    let lost = capture.report().totals.lost_events;
    assert!(recorded > 0 && lost > 0 && recorded + lost >= 2000 * full.len() as u64, "{recorded} recorded, {lost} told as lost");
    // Others pay for it: not unless told to within a budget, and never if told not to.
    for options in [&["--no-maps", "--budget", "unlimited"][..], &[]] {
        let session =
            attach::attach_from_the_kernel(subject.pid(), &subject.file("none.hound"), &[&["--mode", "sampled"], options].concat());
        subject.order("map");
        assert_eq!(mappings(&session.detach(&[])), [], "{options:?}");
    }
    subject.end();
}

#[test]
fn a_stack_is_followed_over_pages_that_are_not_there() {
    if !requirement::uprobes() {
        return;
    }
    let mut subject = Subject::start(&mut Command::new(program()));
    let session = attach::attach_kernel(subject.pid(), &subject.file("capture.hound"), &["--stack", "32Ki"]);
    subject.order("hole");
    let capture = session.detach(&[]);
    let events = capture.events();
    let block = events.iter().find(|e| e.event == "alloc" && e.size == 777).expect("the block is recorded");
    assert_eq!(block.end.as_str(), Some("root"), "{block:?}");
    assert!(capture.report().sites.iter().any(|s| s.allocated_bytes == 777 && s.passes("thread") && s.passes("over_a_hole")));
    subject.end();
}

#[test]
fn threads_have_the_numbers_that_they_know_themselves_by() {
    if !requirement::containers() || !requirement::uprobes() {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork"]).arg(program());
    let mut subject = Subject::start(&mut command).below_named("changing");
    assert_ne!(subject.pid(), 1);
    let session = attach::attach_kernel(subject.pid(), &subject.file("capture.hound"), &[]);
    subject.order("thread");
    subject.order("map");
    let events = session.detach(&[]).events();
    let by = |size: u64| events.iter().find(|e| e.event == "alloc" && e.size == size).map(|e| e.tid);
    assert_eq!((by(4 << 20), by(888)), (Some(1), Some(2)), "the first thread of a namespace, and the second");
    assert!(events.iter().filter(|e| ["map", "unmap", "remap"].contains(&e.event.as_str())).all(|e: &Event| e.tid == 1));
    subject.end();
}

/// A control group whose memory is limited; gone when dropped.
struct Group(PathBuf);

impl Group {
    const LIMIT: &str = "67108864";

    fn new() -> Option<Group> {
        let root = Path::new("/sys/fs/cgroup");
        let (below, limits) = match root.join("cgroup.controllers").exists() {
            true => (root.to_owned(), ["memory.max", "memory.swap.max"]),
            false => (root.join("memory"), ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]),
        };
        let group = Group(below.join(format!("hound-test-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(limits[0]), Group::LIMIT).ok()?;
        let _ = fs::write(group.0.join(limits[1]), if limits[1] == "memory.swap.max" { "0" } else { Group::LIMIT }); // there may be no swap
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What was killed in it has to be gone first.
        process::wait_until(|| fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_program_that_is_killed_for_want_of_memory_is_said_to_be() {
    if !requirement::uprobes() {
        return;
    }
    let group = Group::new();
    if !requirement::fulfilled("a control group with a limit of memory", group.is_some()) {
        return;
    }
    let group = group.expect("there is one");
    let mut subject = Subject::start(&mut Command::new(program()));
    fs::write(group.0.join("cgroup.procs"), subject.pid().to_string()).expect("the test's own process");
    let path = subject.file("capture.hound");
    let session = attach::attach_from_the_kernel(subject.pid(), &path, &["--mode", "sampled"]);
    subject.say("eat");
    let outcome = session.running.finish();
    assert!(outcome.err().contains("was killed by the kernel's OOM killer"), "{}", outcome.err());
    let report = capture::hound([Path::new("report"), &path]);
    assert!(report.out().contains("killed by the kernel's OOM killer"), "{}", report.out());
    assert_eq!(subject.running.finish().shell_status(), 128 + 9);
}
