//! What an attach records is what a launch under hound records: the same program does the same in both, and the events are compared one by
//! one: kind, sizes, and where each frame of each stack lies in its page.

use std::process::Command;

use hound_tests::attach::{self, Subject};
use hound_tests::capture::{Capture, Event};
use hound_tests::compile::{Build, Program};
use hound_tests::{binaries, requirement};

/// An event without what differs from run to run: times, and addresses but for their place in a page.
#[derive(PartialEq, Eq)]
struct Shape {
    event: String,
    kind: String,
    size: u64,
    usable: Option<u64>,
    length: u64,
    realloc: bool,
    thread: usize,
    stack: Vec<u64>,
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let frames: Vec<String> = self.stack.iter().map(|ip| format!("{ip:x}")).collect();
        let Self { event, kind, size, usable, length, realloc, thread, .. } = self;
        write!(f, "{event} {kind} size {size} usable {usable:?} length {length} realloc {realloc} thread {thread} [{}]", frames.join(" "))
    }
}

/// The events between the two blocks that mark beginning and end.
fn between(capture: &Capture) -> Vec<Shape> {
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    assert_eq!(capture.report().totals.lost_events, 0, "events were lost");
    let events = capture.events();
    let mark = |size: u64| events.iter().position(|e| e.event == "alloc" && e.size == size).expect("the mark was recorded");
    let mut threads = Vec::new();
    let wanted = ["alloc", "free", "map", "unmap", "remap"];
    let inside = events[mark(77777)..mark(77778)].iter().filter(|e| wanted.contains(&e.event.as_str()));
    inside.map(|event| shape(event, &mut threads)).collect()
}

fn shape(event: &Event, threads: &mut Vec<u32>) -> Shape {
    if !threads.contains(&event.tid) {
        threads.push(event.tid);
    }
    // One function in glibc: an attach cannot tell by which name it was called.
    let kind = event.kind.clone().unwrap_or_default().replace("aligned_alloc", "memalign").replace("cfree", "free");
    Shape {
        event: event.event.clone(),
        kind,
        size: event.size,
        usable: event.usable,
        length: event.length,
        realloc: event.realloc,
        thread: threads.iter().position(|tid| *tid == event.tid).unwrap_or_default(),
        stack: event.stack.iter().flatten().map(|ip| ip % 4096).collect(),
    }
}

#[test]
fn an_attach_records_what_a_launch_records() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("attach_target.c", Build::Optimised).with(&["-fno-builtin"]);
    let libraries = [
        Program::new("attach_library.c", Build::Optimised).shared("same").path(),
        Program::new("attach_new.cpp", Build::Optimised).shared("same").path(),
    ];
    let order = format!("everything {} {}", libraries[0].display(), libraries[1].display());

    let mut launch = Command::new(binaries::hound());
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let launched_file = dir.path().join("launched.hound");
    launch.args(["run", "--quiet", "-o"]).arg(&launched_file).arg("--").arg(program.path());
    let mut launched = Subject::start(&mut launch);
    launched.order(&order);
    launched.end();
    let launched = between(&Capture { path: launched_file });

    let mut subject = Subject::start(&mut Command::new(program.path()));
    let session = attach::attach(subject.pid(), &subject.file("attached.hound"), &[]);
    subject.order(&order);
    let capture = session.detach(&[]);
    let attached = between(&capture);
    subject.end();

    let mut attached = attached;
    let counts = format!("{} launched, {} attached", launched.len(), attached.len());
    for (at, (of_launch, of_attach)) in launched.iter().zip(&mut attached).enumerate() {
        // Under a launch libhound.so is a module with thread-local storage: a new thread's table of modules has one row of 16 bytes more.
        if of_launch.kind == "calloc" && of_launch.stack == of_attach.stack && of_launch.size == of_attach.size + 16 {
            (of_attach.size, of_attach.usable) = (of_launch.size, of_launch.usable);
        }
        assert_eq!(&*of_attach, of_launch, "event {at} of {counts} (left: attached)");
    }
    assert_eq!(attached.len(), launched.len());
    assert!(attached.len() > 100, "only {} events", attached.len());
    for kind in ["malloc", "calloc", "realloc", "reallocarray", "posix_memalign", "memalign", "valloc", "pvalloc", "free"] {
        assert!(attached.iter().any(|e| e.kind == kind), "no {kind}");
    }
    for event in ["map", "remap", "unmap"] {
        assert!(attached.iter().any(|e| e.event == event), "no {event}");
    }
}
