//! Full mode attached to every kind of program: what it allocates meanwhile is captured exactly, and nothing of the visit is left.

use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::capture::Event;
use hound_tests::compare::Rules;
use hound_tests::compile::{Build, Program, cargo_program};
use hound_tests::{binaries, process, requirement};

fn target(build: Build, flags: &[&str]) -> Program {
    Program::new("attach_target.c", build).with(flags)
}

fn subject(program: &Program) -> Subject {
    let mut subject = Subject::start(&mut Command::new(program.path()));
    subject.rules = Rules { function_starts: program.function_starts(), ..subject.rules };
    subject
}

/// Attach, orders, detach, twice over: each capture is exact, and the program's text, descriptors and threads are what they were.
fn visited_twice(mut subject: Subject, orders: [&[&str]; 2]) -> [Vec<Event>; 2] {
    let pid = subject.pid();
    subject.order("quiet");
    let before = Footprint::of(pid);
    let mut phase = 0;
    let captured = orders.map(|orders| {
        let file = subject.file(&format!("{phase}.hound"));
        let session = attach::attach(pid, &file, &[]);
        assert!(Footprint::of(pid).is_patched_beside(&before), "nothing is patched: this is not full mode");
        let first = phase;
        orders.iter().for_each(|order| subject.order(order));
        phase += orders.len();
        let capture = session.detach(&[]);
        Footprint::of(pid).must_be_as(&before, "after detaching");
        subject.order("quiet"); // must be in no capture
        exact(&subject, &capture, first..phase)
    });
    subject.end();
    captured
}

/// The capture holds exactly these phases. The program's own blocks are told from libc's by their caller.
fn exact(subject: &Subject, capture: &hound_tests::capture::Capture, phases: std::ops::Range<usize>) -> Vec<Event> {
    let mut oracle = subject.oracle();
    // Phases that follow each other are one stretch of notes.
    oracle.facts[3 + 2 * phases.start] = oracle.facts[3 + 2 * (phases.end - 1)];
    let oracle = oracle.phase(phases.start);
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    let events = capture.events();
    assert!(hound_tests::compare::noted(&oracle) > 0, "nothing was noted");
    let differences = hound_tests::compare::differences(&oracle, &events, &subject.comparing());
    let lost: Vec<&Event> = events.iter().filter(|e| e.event == "lost").collect();
    assert!(differences.is_empty(), "the capture differs from what the program noted:\n{}\n{lost:?}", differences.join("\n"));
    assert_eq!(capture.report().totals.lost_events, 0, "events were lost");
    events
}

const FIRST: &[&str] = &["noted", "threads", "old"];
const SECOND: &[&str] = &["threads", "noted"];

fn dynamic_or_static(program: &Program) {
    if requirement::root() {
        visited_twice(subject(program), [FIRST, SECOND]);
    }
}

#[test]
fn a_dynamic_glibc_program_is_captured_exactly_in_every_build() {
    for build in Build::ALL {
        dynamic_or_static(&target(build, &[]));
    }
}

#[test]
fn a_static_glibc_program_is_captured_exactly() {
    dynamic_or_static(&target(Build::Optimised, &["-static", "-DSTATIC"]));
    dynamic_or_static(&target(Build::Optimised, &["-static-pie", "-DSTATIC"]));
}

#[test]
fn a_musl_program_is_captured_exactly() {
    if !requirement::program("musl-gcc") {
        return;
    }
    dynamic_or_static(&target(Build::Optimised, &[]).by("musl-gcc"));
    dynamic_or_static(&target(Build::Optimised, &["-static", "-DSTATIC"]).by("musl-gcc"));
}

/// An allocator of Debian's, linked or preloaded.
fn other_allocator(library: &str) {
    let path = PathBuf::from("/usr/lib/x86_64-linux-gnu").join(library);
    if !requirement::root() || !requirement::fulfilled(library, path.exists()) {
        return;
    }
    let flags = ["-DNO_REALLOCARRAY", "-DSECTIONED"];
    let preloaded = target(Build::Optimised, &flags);
    let mut subjects = vec![Subject::start(Command::new(preloaded.path()).env("LD_PRELOAD", &path))];
    let linked = target(Build::Optimised, &flags).with(&["-Wl,--no-as-needed", &format!("-l:{library}")]);
    subjects.push(Subject::start(&mut Command::new(linked.path())));
    for mut subject in subjects {
        assert!(attach::maps(subject.pid()).iter().any(|line| line.contains(library)), "{library} is not loaded");
        subject.rules.usable_unknown = true;
        visited_twice(subject, [FIRST, SECOND]);
    }
}

#[test]
fn tcmalloc_is_captured_exactly_linked_and_preloaded() {
    other_allocator("libtcmalloc_minimal.so.4");
}

#[test]
fn tcmalloc_is_captured_exactly_in_a_program_that_holds_it() {
    const LIBRARY: &str = "libtcmalloc_minimal.a";
    let there = PathBuf::from("/usr/lib/x86_64-linux-gnu").join(LIBRARY).exists();
    if !requirement::root() || !requirement::fulfilled(LIBRARY, there) {
        return;
    }
    let own = [
        "-DNO_REALLOCARRAY",
        "-DSECTIONED",
        "-Wl,--whole-archive",
        "-l:libtcmalloc_minimal.a",
        "-Wl,--no-whole-archive",
        "-lstdc++",
        "-lm",
    ];
    let program = target(Build::Optimised, &own);
    let mut subject = Subject::start(&mut Command::new(program.path()));
    assert!(!attach::maps(subject.pid()).iter().any(|line| line.contains("libtcmalloc")), "it is a library, not the program's own");
    subject.rules.usable_unknown = true;
    visited_twice(subject, [FIRST, SECOND]);
}

#[test]
fn jemalloc_is_captured_exactly_linked_and_preloaded() {
    other_allocator("libjemalloc.so.2");
}

#[test]
fn mimalloc_is_captured_exactly_linked_and_preloaded() {
    other_allocator("libmimalloc.so.2.0");
}

#[test]
fn an_allocator_that_the_executable_exports_is_captured_exactly() {
    if !requirement::root() {
        return;
    }
    for flags in [&["-DFAMILY_EXPORTED", "-rdynamic"][..], &["-DFAMILY_EXPORTED", "-static", "-DSTATIC"]] {
        let program = Program::new("attach_family.c", Build::Optimised).with(flags);
        let mut subject = subject(&program);
        subject.rules.usable_unknown = true;
        visited_twice(subject, [&["noted", "old"], &["noted"]]);
    }
}

/// A Rust program with its allocator linked into it.
fn rust_program(project: &str, feature: &str, name: &str) -> PathBuf {
    let program = cargo_program(project, feature, name);
    let mut subject = Subject::start(&mut Command::new(&program));
    subject.rules.usable_unknown = true;
    visited_twice(subject, [&["noted", "old"], &["noted"]]);
    program
}

#[test]
fn static_jemalloc_of_a_rust_program_is_captured_exactly_and_named_when_stripped() {
    if requirement::root() {
        stripped(&rust_program("allocators", "tikv-jemallocator", "with_jemalloc"), "jemalloc");
    }
}

#[test]
fn static_jemalloc_of_the_older_crate_is_captured_exactly() {
    if requirement::root() {
        rust_program("jemallocator", "default", "with_jemallocator");
    }
}

#[test]
fn static_mimalloc_of_a_rust_program_is_captured_exactly_and_named_when_stripped() {
    if requirement::root() {
        stripped(&rust_program("allocators", "mimalloc", "with_mimalloc"), "mimalloc");
    }
}

/// Without symbols nothing says where the allocator is. The report must name it, and libc's own blocks are still seen.
fn stripped(program: &Path, allocator: &str) {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let bare = dir.path().join("stripped");
    let done = Command::new("strip").arg("-o").arg(&bare).arg(program).status().expect("strip is installed with the compiler");
    assert!(done.success());
    let mut subject = Subject::start(&mut Command::new(bare));
    let session = attach::attach(subject.pid(), &subject.file("capture.hound"), &[]);
    subject.order("noted");
    let capture = session.detach(&[]);
    let report = hound_tests::capture::hound(["report".as_ref(), capture.path.as_os_str()]).out();
    let named = report.lines().any(|line| line.contains("NOT recorded") && line.contains(allocator) && line.contains("stripped"));
    assert!(named, "the report does not say that {allocator} was not recorded:\n{report}");
    subject.end();
}

/// Addresses that the program was given, told as facts.
fn told(subject: &Subject) -> Vec<u64> {
    let oracle = subject.oracle();
    oracle.facts[40..40 + oracle.facts[39] as usize].to_vec()
}

#[test]
fn what_libc_and_libraries_opened_later_allocate_is_captured() {
    if !requirement::root() {
        return;
    }
    let program = target(Build::Optimised, &[]);
    let library = Program::new("attach_library.c", Build::Optimised).shared("late");
    let mut subject = subject(&program);
    let file = subject.file("capture.hound");
    let session = attach::attach(subject.pid(), &file, &[]);
    subject.order("libc");
    subject.order(&format!("library {}", library.path().display()));
    let capture = session.detach(&[]);
    let (events, addresses) = (capture.events(), told(&subject));
    assert_eq!(addresses.len(), 5, "strdup, fopen, getline, asprintf, the library's own");
    for address in &addresses {
        assert!(events.iter().any(|e| e.event == "alloc" && e.addr == *address), "block {address:#x} is missing");
    }
    assert!(events.iter().any(|e| e.event == "alloc" && e.addr == addresses[0] && e.size == 26), "strdup's size");
    let report = capture.report();
    let sites = |function: &str| report.sites.iter().filter(|s| s.passes(function)).map(|s| s.allocations).sum::<u64>();
    assert!(sites("by_libc") >= 4 && sites("by_library") >= 3, "by_libc {}, by_library {}", sites("by_libc"), sites("by_library"));
    assert!(report.sites.iter().any(|s| s.passes("library_malloc") && s.allocated_bytes == 12345), "the library's block has its function");
    subject.end();
}

#[test]
fn a_library_opened_later_with_an_allocator_of_its_own_is_named_as_not_recorded() {
    if !requirement::root() {
        return;
    }
    let library =
        Program::new("attach_library.c", Build::Optimised).with(&["-DOWN_ALLOCATOR", "-fno-builtin", "-Wl,-Bsymbolic"]).shared("own");
    let mut subject = subject(&target(Build::Optimised, &[]));
    let session = attach::attach(subject.pid(), &subject.file("capture.hound"), &[]);
    subject.order(&format!("library {}", library.path().display()));
    let capture = session.detach(&[]);
    let text = process::run(Command::new(binaries::hound()).arg("report").arg(&capture.path)).out();
    let named = text.lines().any(|l| l.contains("NOT recorded") && l.contains("attach_library") && l.contains("after the attach"));
    assert!(named, "the report does not say that an allocator was missed: {text}");
    // The library's malloc is its own: its blocks lie in its own array, and no event has them.
    assert!(!capture.events().iter().any(|e| e.event == "alloc" && e.size == 12345));
    subject.end();
}

#[test]
fn unloading_takes_every_mapping_away() {
    if !requirement::root() {
        return;
    }
    let mut subject = subject(&target(Build::Optimised, &[]));
    let pid = subject.pid();
    let before = Footprint::of(pid);
    for round in 0..3 {
        let session = attach::attach(pid, &subject.file(&format!("{round}.hound")), &[]);
        subject.order("noted");
        let capture = session.detach(&["--unload"]);
        Footprint::of(pid).must_be_as(&before, "after unloading");
        let gone = process::wait_until(|| !attach::maps(pid).iter().any(|line| line.contains("hound") && !line.contains("attach_target")));
        let left = attach::maps(pid);
        assert!(gone, "mappings are left:\n{}", left.join("\n"));
        assert!(
            left.iter().filter(|line| line.split(' ').nth(1) == Some("r-xp")).count() == before.text.len() + 1,
            "code is left: {left:#?}"
        );
        exact(&subject, &capture, round..round + 1);
    }
    subject.end();
}
