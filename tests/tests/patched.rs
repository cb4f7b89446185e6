//! `hound run --via patch`: the library is in the program before its first instruction, whatever the program is linked with, and records
//! exactly what a preloaded one would.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hound_tests::capture::Capture;
use hound_tests::compare::{self, Rules};
use hound_tests::compile::{Build, Program, cargo_program};
use hound_tests::oracle::Oracle;
use hound_tests::process::{self, Outcome, wait_until};
use hound_tests::record::{Target, Way, exact_in_all_builds_by};
use hound_tests::{binaries, requirement};
use serde_json::Value;
use tempfile::TempDir;

fn exact(sources: &[&'static str]) {
    if requirement::root() {
        sources.iter().for_each(|source| exact_in_all_builds_by(source, Way::Patched));
    }
}

#[test]
fn every_entry_point_and_operator_in_every_build() {
    exact(&["entry_points.c", "cpp_new.cpp"]);
}

#[test]
fn blocks_made_before_main_and_after_it() {
    exact(&["before_main.c"]);
}

#[test]
fn frames_of_every_shape() {
    exact(&["shapes.c", "alloca.c", "realigned.c", "deep_changed.c", "pushed_again.c"]);
}

#[test]
fn exceptions_jumps_and_fibers() {
    exact(&["exceptions.cpp", "longjmp.c", "fibers.c"]);
}

#[test]
fn threads_handlers_and_destructors() {
    if requirement::root() {
        for source in ["threads.c", "signals.c", "alternate_stack.c", "tls_dtor.cpp", "fork.c", "collections.rs"] {
            Target::new(source, Build::Optimised).record(Way::Patched).must_be_unharmed().must_be_exact();
        }
    }
}

#[test]
fn every_end_of_a_program() {
    if requirement::root() {
        for how in ["exit", "_exit", "quick_exit", "syscall", "abort", "kill", "term", "segv", "trap", "thread"] {
            Target::new("die.c", Build::Optimised).args(&[how]).record(Way::Patched).must_be_unharmed().must_be_exact();
        }
    }
}

#[test]
fn programs_that_start_and_become_others() {
    if requirement::root() {
        for how in ["vfork", "spawn", "fail", "exec"] {
            Target::new("exec.c", Build::Optimised).args(&[how]).record(Way::Patched).must_be_unharmed().must_be_exact();
        }
    }
}

/// Without being asked for: nothing else reaches them.
#[test]
fn static_programs() {
    if requirement::root() {
        for how in ["-static", "-static-pie"] {
            for source in ["entry_points.c", "before_main.c", "shapes.c", "threads.c", "longjmp.c", "signals.c", "exceptions.cpp"] {
                let recording = Target::new(source, Build::Optimised).linked(how).record(Way::Patched);
                recording.must_be_unharmed().must_be_exact();
                // An ending thread's cache is emptied of what was released before.
                assert_eq!(recording.capture.report().totals.unknown_frees, 0, "{source} {how}");
            }
        }
    }
}

#[test]
fn programs_of_musl_dynamic_and_static() {
    if requirement::root() && requirement::program("musl-gcc") {
        for flags in [&[][..], &["-static", "-DSTATIC"]] {
            for source in ["before_main.c", "shapes.c", "threads.c", "longjmp.c", "signals.c"] {
                let target = Target::new(source, Build::Optimised).by("musl-gcc").with(flags);
                target.record(Way::Run).must_be_unharmed().must_be_exact();
            }
        }
    }
}

/// A program that takes orders, run under hound.
struct Fed {
    dir: TempDir,
    outcome: Outcome,
}

impl Fed {
    fn run(program: &Path, options: &[&str], orders: &str) -> Fed {
        Fed::run_with(&[program], options, orders)
    }

    fn run_with(words: &[&Path], options: &[&str], orders: &str) -> Fed {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let mut stdin = tempfile::tempfile().expect("a temporary file can be made");
        stdin.write_all(orders.as_bytes()).and_then(|()| stdin.rewind()).expect("room for a line");
        let mut command = Command::new(binaries::hound());
        command.args(["run", "-o"]).arg(dir.path().join("capture.hound")).args(options).arg("--").args(words);
        let running = process::start_reading(command.env("ORACLE_FILE", dir.path().join("oracle")), Stdio::from(stdin));
        let outcome = running.finish();
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        Fed { dir, outcome }
    }

    fn capture(&self) -> Capture {
        Capture { path: self.dir.path().join("capture.hound") }
    }

    fn must_be_exact(&self, rules: &Rules) {
        let (oracle, mut events) = (Oracle::read(&self.dir.path().join("oracle")), self.capture().events());
        // There may be others that note nothing, such as a shell.
        let noting: BTreeSet<u32> = oracle.notes.iter().map(|note| note.tid).collect();
        let pids: BTreeSet<u32> = events.iter().filter(|event| noting.contains(&event.tid)).map(|event| event.pid).collect();
        events.retain(|event| pids.contains(&event.pid));
        assert!(compare::noted(&oracle) > 100, "it noted too little");
        let differences = compare::differences(&oracle, &events, rules);
        assert!(differences.is_empty(), "the capture differs from the oracle:\n{}\n{}", differences.join("\n"), self.outcome.err());
    }
}

/// Without being asked for, and with a word of why.
#[test]
fn allocators_that_are_linked_into_the_program() {
    if !requirement::root() {
        return;
    }
    let exported = |flags: &[&str]| Program::new("attach_family.c", Build::Optimised).with(flags).path();
    let programs: [(PathBuf, &str); 5] = [
        (exported(&["-DFAMILY_EXPORTED", "-rdynamic"]), "exported by the executable"),
        (exported(&["-DFAMILY_EXPORTED", "-static", "-DSTATIC"]), "statically linked"),
        (cargo_program("allocators", "tikv-jemallocator", "with_jemalloc"), "jemalloc (_rjem_)"),
        (cargo_program("allocators", "mimalloc", "with_mimalloc"), "mimalloc"),
        (cargo_program("allocators", "snmalloc-rs", "with_snmalloc"), "snmalloc"),
    ];
    for (program, why) in programs {
        let fed = Fed::run(&program, &[], "noted\nend\n");
        fed.must_be_exact(&Rules { usable_unknown: true, ..Rules::default() });
        let said = fed.outcome.err();
        assert!(said.contains("are patched") && said.contains(why), "{why}: {said}");
    }
}

/// A library that is preloaded into a child of the program's waits in it for hound, which patches it meanwhile.
#[test]
fn allocators_that_are_linked_into_what_a_program_begins() {
    if !requirement::root() {
        return;
    }
    let programs = [
        Program::new("attach_family.c", Build::Optimised).with(&["-DFAMILY_EXPORTED", "-rdynamic"]).path(),
        cargo_program("allocators", "tikv-jemallocator", "with_jemalloc"),
        cargo_program("allocators", "mimalloc", "with_mimalloc"),
    ];
    for program in programs {
        let script = PathBuf::from(format!("'{}'; exit $?", program.display()));
        for via in ["auto", "patch"] {
            let words = [Path::new("/bin/sh"), Path::new("-c"), &script];
            let fed = Fed::run_with(&words, &["--children", "--quiet", "--via", via], "noted\nend\n");
            fed.must_be_exact(&Rules { usable_unknown: true, ..Rules::default() });
            assert_eq!(fed.outcome.err(), "", "{}", program.display());
            let report: Value = serde_json::from_str(&fed.capture().ask("report", &["--all", "--format", "json"]).out()).expect("JSON");
            assert_eq!((report["totals"]["lost_events"].as_u64(), report["totals"]["unknown_frees"].as_u64()), (Some(0), Some(0)));
        }
    }
}

#[test]
fn pools_of_the_programs_own() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("attach_pool.c", Build::Optimised).path();
    let hooks =
        ["alloc=arena_get(size=1)", "alloc=arena_zeroed(count=1,size=2)", "realloc=arena_grow(ptr=1,size=2)", "free=arena_put(ptr=1)"];
    let options: Vec<&str> = hooks.iter().flat_map(|hook| ["--hook", hook]).collect();
    let fed = Fed::run(&program, &options, "work\ncount\nend\n");
    let printed = fed.outcome.out();
    let counted = printed.lines().find_map(|line| line.strip_prefix("arena ")).expect("it counts its pool");
    let counted: Vec<u64> = counted.split(' ').map(|word| word.parse().expect("a number")).collect();
    let [allocations, _, frees, unknown, live, ..] = counted[..] else { panic!("{printed}") };
    let report: Value = serde_json::from_str(&fed.capture().ask("report", &["--all", "--format", "json"]).out()).expect("JSON");
    let told = |name: &str| report["pools"][0]["totals"][name].as_u64().expect("a number");
    // The program counts as who comes later would: some blocks were there before its work, and some of those are released by it.
    let before = told("allocations") - allocations;
    assert!(before > unknown && unknown > 0, "{before} before, {unknown} released");
    assert_eq!((told("frees"), told("unknown_frees"), told("live_blocks")), (frees + unknown, 0, live + before - unknown));
    // From its beginning: there is no block from before.
    assert_eq!(report["totals"]["unknown_frees"], 0, "{}", report["totals"]);
}

#[test]
fn what_needs_a_preloaded_library_is_refused_and_nothing_has_run() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let sign = dir.path().join("sign");
    let program = Program::new("before_main.c", Build::Optimised).linked("-static").path();
    let cases: [(&[&str], &str); 3] = [
        (&["--hold-exit", "1s"], "an exit is held"),
        (&["--via", "preload"], "statically linked"),
        (&["--via", "preload", "--hook", "alloc=pool_get(size=0)"], "leave out --via preload"),
    ];
    for (options, about) in cases {
        let mut command = Command::new(binaries::hound());
        command.args(["run", "-o"]).arg(dir.path().join("c.hound")).args(options).arg("--").arg(&program).env("ORACLE_FILE", &sign);
        let outcome = process::run(&mut command);
        assert_eq!(outcome.status.code(), Some(2), "{options:?}: {}", outcome.err());
        assert!(outcome.err().contains(about) && outcome.err().trim_end().lines().count() == 1, "{about}: {}", outcome.err());
        assert!(!sign.exists(), "{options:?}: the program ran");
    }
}

/// Processes that run this file, by their state.
fn states(program: &Path) -> Vec<char> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let ours = processes.filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program));
    let state = |stat: String| stat.rsplit_once(") ")?.1.chars().next();
    ours.filter_map(|entry| state(fs::read_to_string(entry.path().join("stat")).ok()?)).collect()
}

/// It waits, stopped, while hound brings its library in: nobody else would ever wake it.
#[test]
fn hound_dies_at_a_step_and_the_program_ends_before_it_began_or_runs_to_its_end() {
    if !requirement::root() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let program = dir.path().join("program");
    fs::copy("/bin/sh", &program).expect("there is a shell");
    let (sign, list) = (dir.path().join("sign"), dir.path().join("steps"));
    let script = format!("echo began >{0}; echo ended >>{0}", sign.display());
    let run = |variable: &str, value: &str| {
        let mut command = Command::new(binaries::hound_death());
        command.args(["run", "--quiet", "--via", "patch", "-o"]).arg(dir.path().join("c.hound")).arg("--").arg(&program);
        process::run(command.args(["-c", &script]).env(variable, value))
    };
    let whole = run("HOUND_STEPS", list.to_str().expect("a plain name"));
    assert_eq!(whole.shell_status(), 0, "{}", whole.err());
    let text = fs::read_to_string(&list).expect("hound has written it");
    let steps = text.lines().count();
    assert!(text.contains("\tprctl "), "no step lets it begin: {text}");
    // All of those that let it begin, and some of those before.
    let begins = |line: &(usize, &str)| line.1.contains("\tprctl ");
    let mut chosen: Vec<usize> = text.lines().enumerate().filter(begins).map(|(at, _)| at + 1).collect();
    chosen.extend((1..=steps).step_by((steps / 24).max(1)));
    let (mut before, mut after) = (0, 0);
    for step in chosen {
        let _ = fs::remove_file(&sign);
        let outcome = run("HOUND_DIE_AFTER", &step.to_string());
        let is_gone = wait_until(|| states(&program).iter().all(|state| *state == 'Z'));
        let left = states(&program);
        assert!(is_gone, "death at step {step} of {steps}: the program is left {left:?}");
        match fs::read_to_string(&sign) {
            Ok(written) => {
                assert_eq!(written, "began\nended\n", "death at step {step} of {steps}");
                after += 1;
            }
            Err(_) => before += 1,
        }
        assert!(outcome.shell_status() == 0 || outcome.shell_status() == 137, "step {step}: {}", outcome.err());
    }
    println!("{steps} steps; ended before it began {before} times, ran to its end {after} times");
    assert!(before >= 10 && after >= 1, "before {before}, after {after} of {steps} steps");
}

#[test]
fn a_program_that_somebody_wakes_too_early_is_said_to() {
    if !requirement::root() {
        return;
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let program = dir.path().join("program");
    fs::copy("/bin/sleep", &program).expect("it is installed");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "--via", "patch", "-o"]).arg(dir.path().join("c.hound")).arg("--").arg(&program).arg("0.5");
    let running = process::start(&mut command);
    let mut woken = false;
    wait_until(|| {
        let child = process::descendants(running.pid).first().copied();
        let waits = states(&program).contains(&'T');
        if let (Some(child), true) = (child, waits) {
            woken = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGCONT).is_ok();
        }
        woken || running.has_ended()
    });
    let outcome = running.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    // Seldom it is stopped for so short a time that it was not seen to be.
    assert!(!woken || outcome.err().contains("somebody has woken the program"), "{}", outcome.err());
}
