//! Every function that an installed allocator exports is hooked or excepted with a reason; and what is hooked is recorded as it is called.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hound_common::hook::{EXCEPTED, HOOKS, PATCHES};
use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::compare::{self, Rules};
use hound_tests::compile::{Build, Program};
use hound_tests::{process, requirement};

fn library(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from("/usr/lib/x86_64-linux-gnu").join(name);
    requirement::fulfilled(name, path.exists()).then_some(path)
}

const LIBRARIES: [&str; 4] = ["libmimalloc.so.2.0", "libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libc.so.6"];

/// Sounds like an allocator's. Scoped C++ names are functions within a library, which nobody else calls.
fn sounds_so(name: &str) -> bool {
    let scoped = name.starts_with("_Z") && !["_Zn", "_Zd"].iter().any(|operator| name.starts_with(operator));
    let words = ["alloc", "free", "dup", "new", "delete", "realpath", "expand", "_Zn", "_Zd", "reallocarr", "destroy"];
    !scoped && words.iter().any(|word| name.contains(word))
}

/// libc has many that free what is not a block, or return blocks from malloc: of it only names of the allocator itself count.
fn is_of_the_allocator(name: &str) -> bool {
    let words = ["malloc", "calloc", "realloc", "memalign", "valloc", "aligned_alloc", "cfree", "free"];
    let bare = name.trim_start_matches("__libc_").trim_start_matches("__");
    words.contains(&bare) || ["malloc", "memalign", "realloc"].iter().any(|word| bare.starts_with(word))
}

#[test]
fn every_export_that_sounds_like_an_allocators_is_hooked_or_excepted() {
    let excepted =
        |name: &str| EXCEPTED.iter().any(|(known, _)| known.strip_suffix('*').map_or(*known == name, |start| name.starts_with(start)));
    let hooked = |name: &str| HOOKS.iter().any(|hook| hook.symbol == name) || PATCHES.iter().any(|patch| patch.symbol == name);
    for path in LIBRARIES.iter().filter_map(|name| library(name)) {
        let of_libc = path.ends_with("libc.so.6");
        let exports = attach::nm(&path.display().to_string(), "-D");
        let wanted: Vec<String> =
            exports.into_iter().map(|(_, name)| name).filter(|n| sounds_so(n) && (!of_libc || is_of_the_allocator(n))).collect();
        assert!(wanted.len() > 8, "{}: only {wanted:?}", path.display());
        let forgotten: Vec<_> = wanted.iter().filter(|name| !hooked(name) && !excepted(name)).collect();
        assert!(forgotten.is_empty(), "{}: neither hooked nor excepted: {forgotten:?}", path.display());
    }
}

/// Calls all of them while attached, twice.
fn all_called(preload: Option<PathBuf>, least: u64) {
    if !requirement::root() {
        return;
    }
    let program = Program::new("attach_exports.c", Build::Optimised).with(&["-fno-builtin"]);
    let mut command = Command::new(program.path());
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    let mut subject = Subject::start(&mut command);
    subject.rules = Rules { usable_unknown: true, ..Rules::default() };
    let before = Footprint::of(subject.pid());
    for round in 0..2 {
        let session = attach::attach(subject.pid(), &subject.file(&format!("{round}.hound")), &[]);
        subject.order("call");
        let capture = session.detach(&[]);
        Footprint::of(subject.pid()).must_be_as(&before, "after detaching");
        let oracle = subject.oracle();
        assert!(oracle.facts[40] >= least, "only {} functions were called", oracle.facts[40]);
        let oracle = oracle.phase(round);
        let differences = compare::differences(&oracle, &capture.events(), &subject.comparing());
        assert!(differences.is_empty(), "the capture differs from what the program noted:\n{}", differences.join("\n"));
        assert_eq!(capture.report().totals.lost_events, 0, "events were lost");
    }
    subject.end();
}

#[test]
fn every_function_of_glibc_is_recorded_as_it_is_called() {
    all_called(None, 30);
}

#[test]
fn every_function_of_mimalloc_is_recorded_as_it_is_called() {
    if let Some(library) = library("libmimalloc.so.2.0") {
        all_called(Some(library), 300);
    }
}

#[test]
fn every_function_of_jemalloc_is_recorded_as_it_is_called() {
    if let Some(library) = library("libjemalloc.so.2") {
        all_called(Some(library), 60);
    }
}

#[test]
fn every_function_of_tcmalloc_is_recorded_as_it_is_called() {
    if let Some(library) = library("libtcmalloc_minimal.so.4") {
        all_called(Some(library), 120);
    }
}

#[test]
fn an_allocator_that_is_loaded_later_is_named_however_the_recording_ends() {
    let Some(late) = library("libmimalloc.so.2.0") else { return };
    if !requirement::root() || !requirement::program("python3") {
        return;
    }
    let script = format!(
        "import ctypes, sys, time; print('ready', flush=True); sys.stdin.read(1); ctypes.CDLL('{}'); time.sleep(6)",
        late.display()
    );
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    for detaches in [true, false] {
        let mut child =
            Command::new("python3").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it says that it is ready");
        let pid = child.id() as i32;
        let session = attach::attach(pid, &dir.path().join(format!("{detaches}.hound")), &[]);
        drop(child.stdin.take());
        let maps = || std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        assert!(process::wait_until(|| maps().contains("libmimalloc")), "it loads nothing");
        let capture = if detaches {
            session.detach(&[])
        } else {
            child.wait().expect("it ends by itself");
            session.finish().0
        };
        let report = capture.ask("report", &["--format", "json"]);
        assert!(report.out().contains("it was loaded after the attach"), "detached: {detaches}: {}", report.out());
        let _ = child.kill(); // it may have ended
        let _ = child.wait();
    }
}
