//! The kernel's probes on every kind of program and allocator: exact while they are there, and nothing of them is left.

use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hound_tests::attach::{self, Footprint, Session, Subject};
use hound_tests::capture::{Capture, Event};
use hound_tests::compare::{self, Rules};
use hound_tests::compile::{Build, Program, cargo_program};
use hound_tests::process::{self, EndOf};
use hound_tests::requirement;

const DEBIAN: &str = "/usr/lib/x86_64-linux-gnu";

fn target(flags: &[&str]) -> Program {
    Program::new("attach_target.c", Build::Optimised).with(flags)
}

fn subject(program: &Program) -> Subject {
    let mut subject = Subject::start(&mut Command::new(program.path()));
    subject.rules = Rules { function_starts: program.function_starts(), ..subject.rules };
    subject.observed_from_the_kernel()
}

/// The stacks of attach_target.c are shallow: all that it does between two orders fits into the ring, however busy the machine is.
const SHALLOW: &[&str] = &["--stack", "2Ki"];
const DEEPER: &[&str] = &["--stack", "8Ki"];

fn attach(subject: &Subject, name: &str, more: &[&str]) -> Session {
    attach::attach_kernel(subject.pid(), &subject.file(name), more)
}

/// The capture holds exactly these phases, but for frees of blocks from before: of these nothing is known.
fn exact(subject: &Subject, capture: &Capture, phases: Range<usize>) -> Vec<Event> {
    let mut oracle = subject.oracle();
    oracle.facts[3 + 2 * phases.start] = oracle.facts[3 + 2 * (phases.end - 1)];
    let mut oracle = oracle.phase(phases.start);
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    compare::leave_out_what_was_there(&mut oracle);
    assert!(compare::noted(&oracle) > 0, "nothing was noted");
    let totals = capture.report().totals;
    assert_eq!((totals.lost_events, totals.unknown_frees), (0, 0));
    let events = capture.events();
    let differences = compare::differences(&oracle, &events, &subject.comparing());
    assert!(differences.is_empty(), "the capture differs from what the program noted:\n{}", differences.join("\n"));
    events
}

/// Attach, orders, detach, twice over: each capture is exact, and the program's text, descriptors and threads are what they were.
fn visited_twice(mut subject: Subject, more: &[&str], orders: [&[&str]; 2]) -> [Vec<Event>; 2] {
    let pid = subject.pid();
    subject.order("quiet");
    let before = Footprint::of(pid);
    let mut phase = 0;
    let captured = orders.map(|orders| {
        let session = attach(&subject, &format!("{phase}.hound"), more);
        assert!(Footprint::of(pid).is_patched_beside(&before), "no breakpoint is in the text");
        assert!(!attach::maps(pid).iter().any(|line| line.contains("libhound")), "the library was brought in");
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

const FIRST: &[&str] = &["noted", "threads", "old"];
const SECOND: &[&str] = &["threads", "noted"];

fn dynamic_or_static(program: &Program) {
    if requirement::uprobes() {
        visited_twice(subject(program), SHALLOW, [FIRST, SECOND]);
    }
}

#[test]
fn glibc_dynamic_and_static() {
    dynamic_or_static(&target(&[]));
    dynamic_or_static(&target(&["-static", "-DSTATIC"]));
    dynamic_or_static(&target(&["-static-pie", "-DSTATIC"]));
}

#[test]
fn musl_dynamic_and_static() {
    if !requirement::uprobes() || !requirement::program("musl-gcc") {
        return;
    }
    for flags in [&[][..], &["-static", "-DSTATIC"]] {
        let mut subject = subject(&target(flags).by("musl-gcc"));
        // musl's memalign and posix_memalign only call its aligned_alloc.
        subject.rules.one_function.push(["memalign", "posix_memalign", "aligned_alloc"].into_iter().map(String::from).collect());
        visited_twice(subject, SHALLOW, [FIRST, SECOND]);
    }
}

/// An allocator of Debian's, linked and preloaded. `passed_on`: functions that do nothing but jump to another one, and that one.
fn other_allocator(library: &str, passed_on: &[&str]) {
    let path = Path::new(DEBIAN).join(library);
    if !requirement::uprobes() || !requirement::fulfilled(library, path.exists()) {
        return;
    }
    let flags = ["-DNO_REALLOCARRAY", "-DSECTIONED"];
    let preloaded = target(&flags);
    let linked = target(&flags).with(&["-Wl,--no-as-needed", &format!("-l:{library}")]);
    let subjects =
        [Subject::start(Command::new(preloaded.path()).env("LD_PRELOAD", &path)), Subject::start(&mut Command::new(linked.path()))];
    for subject in subjects {
        assert!(attach::maps(subject.pid()).iter().any(|line| line.contains(library)), "{library} is not loaded");
        let mut subject = subject.observed_from_the_kernel();
        subject.rules.one_function.push(passed_on.iter().copied().map(String::from).collect());
        visited_twice(subject, SHALLOW, [FIRST, SECOND]);
    }
}

#[test]
fn jemalloc_linked_and_preloaded() {
    other_allocator("libjemalloc.so.2", &[]);
}

#[test]
fn mimalloc_linked_and_preloaded() {
    other_allocator("libmimalloc.so.2.0", &["memalign", "aligned_alloc", "malloc"]);
}

#[test]
fn tcmalloc_linked_and_preloaded() {
    other_allocator("libtcmalloc_minimal.so.4", &[]);
}

#[test]
fn what_may_throw_is_not_probed_and_is_said_not_to_be() {
    const LIBRARY: &str = "libtcmalloc_minimal.so.4";
    let path = Path::new(DEBIAN).join(LIBRARY);
    if !requirement::uprobes() || !requirement::fulfilled(LIBRARY, path.exists()) {
        return;
    }
    let mut subject = Subject::start(Command::new(target(&["-DNO_REALLOCARRAY"]).path()).env("LD_PRELOAD", &path));
    let session = attach(&subject, "capture.hound", DEEPER);
    subject.order("noted");
    let capture = session.detach(&[]);
    let report = capture.ask("report", &[]).out();
    let named = |line: &str| line.contains("NOT recorded") && line.contains(LIBRARY) && line.contains("it may throw");
    assert!(report.lines().any(named), "operator new is not named as not recorded: {report}");
    subject.end();
}

#[test]
fn jemalloc_and_mimalloc_linked_into_rust_programs() {
    if !requirement::uprobes() {
        return;
    }
    for (project, feature, name) in [
        ("allocators", "tikv-jemallocator", "with_jemalloc"),
        ("jemallocator", "default", "with_jemallocator"),
        ("allocators", "mimalloc", "with_mimalloc"),
    ] {
        let subject = Subject::start(&mut Command::new(cargo_program(project, feature, name)));
        visited_twice(subject.observed_from_the_kernel(), DEEPER, [&["noted", "old"], &["noted"]]);
    }
}

/// Addresses that the program was given, told as facts.
fn told(subject: &Subject) -> Vec<u64> {
    let oracle = subject.oracle();
    oracle.facts[40..40 + oracle.facts[39] as usize].to_vec()
}

#[test]
fn what_libc_and_libraries_opened_later_allocate_has_its_stacks() {
    if !requirement::uprobes() {
        return;
    }
    let library = Program::new("attach_library.c", Build::Optimised).shared("late");
    let mut subject = subject(&target(&[]));
    let session = attach(&subject, "capture.hound", DEEPER);
    subject.order("libc");
    subject.order(&format!("library {}", library.path().display()));
    let capture = session.detach(&[]);
    let (events, addresses) = (capture.events(), told(&subject));
    assert_eq!(addresses.len(), 5, "strdup, fopen, getline, asprintf, the library's own");
    for address in &addresses {
        let block = events.iter().find(|e| e.event == "alloc" && e.addr == *address);
        let end = &block.unwrap_or_else(|| panic!("block {address:#x} is missing")).end;
        assert_eq!(end.as_str(), Some("root"), "the stack of {address:#x} is not whole");
    }
    let report = capture.report();
    let site = report.sites.iter().find(|s| s.passes("library_malloc") && s.allocated_bytes == 12345);
    assert!(site.is_some_and(|site| site.passes("by_library") && site.passes("main")), "the library's block has its functions");
    subject.end();
}

#[test]
fn an_allocator_that_is_loaded_later_is_recorded_from_then_on() {
    if !requirement::uprobes() {
        return;
    }
    let own = ["-DOWN_ALLOCATOR", "-fno-builtin", "-Wl,-Bsymbolic"];
    let library = Program::new("attach_library.c", Build::Optimised).with(&own).shared("own").path();
    let name = library.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    // Called from outside: what a library that is an allocator does from inside is its own.
    let mut subject = Subject::start(&mut Command::new(Program::new("changing.c", Build::Optimised).with(&["-pthread"]).path()));
    let pid = subject.pid();
    let session = attach(&subject, "capture.hound", DEEPER);
    let order = format!("load {}", library.display());
    subject.order(&order);
    // The library stays open. hound says when all of its probes are there.
    let line = attach::maps(pid).into_iter().find(|line| line.contains(&name) && line.contains("r-xp")).expect("it is loaded");
    let said = |session: &Session| session.running.said();
    assert!(process::wait_until(|| said(&session).contains("was loaded meanwhile")), "it is never probed: {}", said(&session));
    assert!(attach::differs_from_its_file(pid, &line) > 0, "no breakpoint is in its text");
    subject.order(&order);
    let capture = session.detach(&[]);
    assert_eq!(attach::differs_from_its_file(pid, &line), 0, "its text after detaching");
    let printed = subject.running.printed();
    let block = printed.lines().filter_map(|line| line.strip_prefix("block 0x")).nth(1).expect("it was called twice");
    let block = u64::from_str_radix(block, 16).expect("an address");
    let is_it = |e: &Event| e.event == "alloc" && e.size == 12345 && e.addr == block;
    assert!(capture.events().iter().any(is_it), "the block of the second call is missing");
    let sites = capture.report().sites;
    assert!(sites.iter().any(|s| s.allocated_bytes >= 12345 && s.passes("by_allocator")), "it has its stack");
    let text = capture.ask("report", &[]).out();
    let is_told = |line: &str| line.contains("NOT recorded") && line.contains(&name) && line.contains("before");
    assert!(text.lines().any(is_told), "what came before its probes is not told as missing: {text}");
    subject.end();
}

#[test]
fn a_library_in_the_place_of_one_that_was_there_is_what_it_is() {
    if !requirement::uprobes() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let library = |name: &str, flags: &[&str]| Program::new("attach_library.c", Build::Optimised).with(flags).shared(name).path();
    let mut command = Command::new(Program::new("elsewhere.c", Build::Optimised).path());
    command.args([library("big", &["-DROOM"]), library("small", &[])]);
    let (reader, mut writer) = std::io::pipe().expect("descriptors are left");
    let running = process::start_reading(&mut command, Stdio::from(reader));
    let _end = EndOf(running.pid);
    running.wait_for_output("ready");
    let session = attach::attach_kernel(running.pid.as_raw(), &dir.path().join("capture.hound"), &[]);
    writer.write_all(b"\n").expect("the program reads");
    running.wait_for_output("done");
    let capture = session.detach(&[]);
    assert!(capture.check().status.success());
    let sites = capture.report().sites;
    let small = sites.iter().find(|s| s.passes("library_malloc")).unwrap_or_else(|| panic!("no library_malloc: {sites:?}"));
    assert!(small.frames.iter().any(|f| f.module.as_deref().is_some_and(|m| m.contains("small"))), "{:?}", small.frames);
    assert_eq!((small.allocations, small.allocated_bytes), (100, 100 * 12345));
    drop(writer);
    let outcome = running.finish();
    assert_eq!((outcome.shell_status(), outcome.out().contains("unharmed")), (0, true), "{}", outcome.err());
}

#[test]
fn an_executable_that_is_deleted_has_its_stacks_and_names() {
    if !requirement::uprobes() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let program = target(&[]);
    let copy: PathBuf = dir.path().join("deleted_target");
    std::fs::copy(program.path(), &copy).expect("room for a program");
    let mut subject = Subject::start(&mut Command::new(&copy)).observed_from_the_kernel();
    std::fs::remove_file(&copy).expect("the test's own");
    subject.rules.function_starts = program.function_starts();
    let session = attach(&subject, "capture.hound", DEEPER);
    subject.order("noted");
    let capture = session.detach(&[]);
    exact(&subject, &capture, 0..1);
    assert!(capture.report().sites.iter().any(|s| s.passes("every_entry_point")), "no names");
    subject.end();
}
