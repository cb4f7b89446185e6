//! What breaks other profilers, and builds that differ from the usual: each program is exact and cannot tell.

use std::fs;
use std::path::Path;

use hound_tests::capture::Site;
use hound_tests::compile::{Build, Program};
use hound_tests::oracle::Oracle;
use hound_tests::record::{Recording, Target, Way};
use hound_tests::requirement;

const BUILDS: [Build; 3] = [Build::Plain, Build::Optimised, Build::FramePointers];

fn exact(target: Target, way: Way) {
    // A program that dies of itself proves nothing.
    let recording = target.record(way);
    assert!(recording.outcome.shell_status() < 99, "{target:?}: {}", recording.outcome.err());
    recording.must_be_unharmed().must_be_exact();
}

#[test]
fn stacks_unwound_by_force() {
    for build in BUILDS {
        exact(Target::new("forced_unwind.cpp", build), Way::Run);
    }
    if requirement::root() {
        exact(Target::new("forced_unwind.cpp", Build::Optimised), Way::Patched);
    }
}

#[test]
fn switches_written_by_hand() {
    for build in BUILDS {
        let recording = Target::new("switches.c", build).record(Way::Run);
        let (oracle, _) = recording.must_be_unharmed().must_be_exact();
        assert!(oracle.facts[0] > 1000, "{} switches", oracle.facts[0]);
    }
}

#[test]
fn teams_of_openmp() {
    for build in BUILDS {
        let recording = Target::new("openmp.c", build).with(&["-fopenmp"]).record(Way::Run);
        let (oracle, _) = recording.must_be_unharmed().must_be_exact();
        assert_eq!(oracle.facts[0], 4, "threads of a team");
        assert!(oracle.by_thread().len() >= 4);
    }
}

#[test]
fn two_thousand_threads_at_once_on_the_smallest_stacks() {
    for way in [Way::Run, Way::RunWithoutFreeStacks] {
        let recording = Target::new("small_stacks.c", Build::Optimised).record(way);
        assert_eq!(recording.outcome.shell_status(), 0, "{}", recording.outcome.err());
        let (oracle, _) = recording.must_be_unharmed().must_be_exact();
        assert_eq!(oracle.by_thread().len() as u64, oracle.facts[0], "every thread noted something");
    }
}

/// So many that the kernel gives thread ids out anew, and each place in the ring has been many threads'.
fn a_hundred_thousand_threads(way: Way) -> (Recording, Oracle) {
    let recording = Target::new("many_threads.c", Build::Optimised).record(way);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    assert_eq!(oracle.facts[0], 100_000, "threads");
    (recording, oracle)
}

/// What is told of them is what the program has counted itself, without its notes.
#[test]
fn a_hundred_thousand_threads_launched() {
    let (recording, oracle) = a_hundred_thousand_threads(Way::Run);
    let [_, blocks, bytes, frees, ..] = oracle.facts[..] else { panic!("four facts") };
    let report = recording.capture.report();
    let sum = |of: fn(&Site) -> u64| report.sites.iter().filter(|site| site.passes("brief")).map(of).sum::<u64>();
    assert_eq!((sum(|s| s.allocations), sum(|s| s.allocated_bytes)), (blocks, bytes));
    assert_eq!((blocks, sum(|s| s.live_blocks)), (200_000, blocks - frees));
}

#[test]
fn a_hundred_thousand_threads_preloaded() {
    a_hundred_thousand_threads(Way::Preload);
}

#[test]
fn a_hundred_thousand_threads_of_a_patched_program() {
    if requirement::root() {
        a_hundred_thousand_threads(Way::Patched);
    }
}

/// 8 KiB are no thread's with glibc, and any thread's with musl.
#[test]
fn threads_of_eight_kilobytes_of_stack_and_handlers_on_as_much() {
    let recording = |target: Target, way: Way| {
        // What the hooks may need (docs/safety.md), and some hundred bytes for the callers.
        let recording = target.args(&["3584"]).record(way);
        assert_eq!(recording.outcome.shell_status(), 0, "{way:?}: {}", recording.outcome.err());
        let (oracle, _) = recording.must_be_unharmed().must_be_exact();
        assert_eq!(oracle.by_thread().len() as u64, oracle.facts[0], "every thread noted something");
    };
    // The loader's own look for a function, at its first call, would not fit.
    recording(Target::new("little_stacks.c", Build::Optimised).with(&["-Wl,-z,now"]), Way::Run);
    if requirement::root() && requirement::program("musl-gcc") {
        for flags in [&[][..], &["-static", "-DSTATIC"]] {
            for build in [Build::Plain, Build::Optimised] {
                recording(Target::new("little_stacks.c", build).by("musl-gcc").with(flags), Way::Run);
            }
        }
        recording(Target::new("little_stacks.c", Build::Optimised).with(&["-Wl,-z,now"]), Way::Patched);
    }
}

/// The kernel reads and writes blocks of the heap while the program goes on allocating; with a thread of the kernel's own in the process, too.
#[test]
fn requests_of_io_uring_under_way() {
    for how in [&[][..], &["poll"]] {
        let target = |build| Target::new("io_uring.c", build).args(how);
        if !requirement::fulfilled(&format!("io_uring {how:?}"), target(Build::Optimised).alone().shell_status() != 77) {
            continue;
        }
        for build in BUILDS {
            let recording = target(build).record(Way::Run);
            let (oracle, _) = recording.must_be_unharmed().must_be_exact();
            assert_eq!(oracle.facts[0], 1024, "requests came back");
        }
        if requirement::root() {
            exact(target(Build::Optimised), Way::Patched);
        }
    }
}

/// Symbols and lines in files of their own: found by a link, by the build's id, in `.dwo` files. Whichever it is, the report is that of the
/// program that has them all.
#[test]
fn debug_information_that_is_elsewhere() {
    type Told = Vec<(Vec<(Option<String>, Option<String>, Option<u64>, bool)>, u64)>;
    let told = |target: &Target| -> Told {
        let recording = target.record(Way::Run);
        recording.must_be_unharmed().must_be_exact();
        let name = |path: String| path.rsplit('/').next().map(str::to_owned);
        let frames = |site: &Site| {
            let own = site.frames.iter().filter(|frame| frame.file.as_ref().is_some_and(|file| file.ends_with("shapes.c")));
            own.map(|frame| (frame.function.clone(), frame.file.clone().and_then(name), frame.line, frame.inlined)).collect()
        };
        let mut sites: Told = recording.capture.report().sites.iter().map(|site| (frames(site), site.allocations)).collect();
        sites.sort();
        sites
    };
    let target = |build, flags: &[&str]| Target::new("shapes.c", build).with(flags);
    let expected = told(&target(Build::Optimised, &[]));
    assert!(expected.iter().filter(|(frames, _)| frames.len() >= 3 && frames.iter().all(|(.., line, _)| *line > Some(0))).count() > 10);
    assert!(told(&target(Build::Linked, &[])) == expected, "by its debug link");
    for flags in [&["-gsplit-dwarf"][..], &["-gdwarf-4", "-gsplit-dwarf"]] {
        assert!(told(&target(Build::Optimised, flags)) == expected, "{flags:?}");
    }
    if !requirement::root() {
        return;
    }
    // A build of its own, whose file nobody has linked to.
    let flags = ["-Wl,--build-id=0x686f756e64207465737473206974"];
    let folder = Path::new("/usr/lib/debug/.build-id/68");
    fs::create_dir_all(folder).expect("root may");
    let file = folder.join("6f756e64207465737473206974.debug");
    fs::copy(Program::new("shapes.c", Build::Stripped).with(&flags).debug_file(), &file).expect("root may");
    let by_id = std::panic::catch_unwind(|| told(&target(Build::Stripped, &flags)));
    fs::remove_file(&file).expect("it was put there");
    let _ = fs::remove_dir(folder); // others may have files there
    assert!(by_id.is_ok_and(|told| told == expected), "by its build-id");
}

/// Frames that compilers make in other ways: clang's, those of higher levels, of whole-program optimisation, with checks in between.
#[test]
fn other_compilers_and_options() {
    let sources = ["entry_points.c", "shapes.c", "alloca.c", "realigned.c", "longjmp.c", "signals.c", "exceptions.cpp"];
    let fortified = ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"];
    let mut options: Vec<(Option<[&'static str; 2]>, &[&str])> = vec![
        (None, &["-O1"]),
        (None, &["-O3"]),
        (None, &["-O2", "-flto"]),
        (None, &fortified),
        (None, &["-fstack-protector-all", "-fstack-clash-protection"]),
        (None, &["-fcf-protection=full", "-Wl,-z,now"]),
        (None, &["-no-pie"]),
    ];
    if requirement::program("clang") {
        options.extend([
            (Some(["clang", "clang++"]), &["-O0"][..]),
            (Some(["clang", "clang++"]), &["-O2"]),
            (Some(["clang", "clang++"]), &["-O3"]),
        ]);
    }
    for (compilers, flags) in options {
        for source in sources {
            let mut target = Target::new(source, Build::Optimised).with(flags);
            if let Some([c, cpp]) = compilers {
                target = target.by(if source.ends_with(".cpp") { cpp } else { c });
            }
            exact(target, Way::Run);
        }
    }
}

/// A sanitizer's library must be the first of all: what is built with one is patched, behind its initialisers.
#[test]
fn programs_built_with_sanitizers() {
    if !requirement::root() {
        return;
    }
    for sanitizer in ["-fsanitize=address", "-fsanitize=thread", "-fsanitize=undefined"] {
        for source in ["shapes.c", "threads.c"] {
            let quiet = "detect_leaks=0:report_signal_unsafe=0:report_bugs=0";
            // The notes have a frame more there, that of the noting itself.
            let target = Target::new(source, Build::Optimised)
                .with(&[sanitizer, "-DO_NO_STACKS"])
                .env("ASAN_OPTIONS", quiet)
                .env("TSAN_OPTIONS", quiet);
            let mut recording = target.record(Way::Run);
            recording.rules.usable_unknown = true;
            assert!(recording.outcome.shell_status() < 99, "{target:?}: {}", recording.outcome.err());
            recording.must_be_unharmed().must_be_exact();
        }
    }
}
