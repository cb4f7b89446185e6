//! `hound run --engine kernel`: a program is observed from its beginning, whatever it is and however it ends, and cannot tell.

use std::fs;
use std::path::Path;
use std::process::Command;

use hound_tests::attach::{Subject, changed_bytes, maps, must_have_probes_as};
use hound_tests::binaries;
use hound_tests::capture::{Capture, hound};
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome, Running, wait_until};
use hound_tests::record::{Target, Way, exact_in_all_builds_by};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Every call, all of the time.
const EVERY_CALL: &[&str] = &["--budget", "unlimited", "--interval", "0", "--stack", "8Ki"];

fn place() -> TempDir {
    TempDir::new().expect("a temporary directory can be made")
}

/// hound with its sockets in this place.
fn command(dir: &Path, options: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--engine", "kernel", "-o"]).arg(dir.join("capture.hound")).args(options).arg("--").args(program);
    command.env("XDG_RUNTIME_DIR", dir);
    command
}

fn run(dir: &Path, options: &[&str], program: &[&str]) -> Outcome {
    process::run(&mut command(dir, options, program))
}

fn report(dir: &Path) -> Value {
    let capture = Capture { path: dir.join("capture.hound") };
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    serde_json::from_slice(capture.ask("report", &["--format", "json", "--all"]).out().as_bytes()).expect("JSON")
}

#[test]
fn every_c_entry_point_in_every_build() {
    if requirement::uprobes() {
        exact_in_all_builds_by("entry_points.c", Way::KernelRun);
    }
}

#[test]
fn blocks_made_before_main_and_after_it() {
    if requirement::uprobes() {
        Target::new("before_main.c", Build::Optimised).record(Way::KernelRun).must_be_unharmed().must_be_exact();
    }
}

#[test]
fn initialisers_of_libraries_are_seen() {
    if !requirement::uprobes() {
        return;
    }
    // libstdc++'s initialiser allocates the pool for exceptions before anything of the program runs.
    let recording = Target::new("cpp_new.cpp", Build::Optimised).record(Way::KernelRun);
    recording.must_be_unharmed().must_be_exact();
    let report = recording.capture.ask("report", &["--allocations", "--all", "--full-stacks"]).out();
    assert!(report.contains("call_init") && report.contains("_dl_init"), "{report}");
}

#[test]
fn eight_hot_threads_and_two_thousand_short_ones() {
    if requirement::uprobes() {
        let recording = Target::new("threads.c", Build::Optimised).hound(&["--stack", "2Ki"]).record(Way::KernelRun);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn static_programs_and_those_of_musl() {
    if !requirement::uprobes() {
        return;
    }
    let static_ones = [&["-static", "-DSTATIC"][..], &["-static-pie", "-DSTATIC"]];
    let mut targets: Vec<Target> = static_ones.iter().map(|flags| Target::new("before_main.c", Build::Optimised).with(flags)).collect();
    if requirement::program("musl-gcc") {
        let of_musl = [&[][..], &["-static", "-DSTATIC"]];
        // It also releases: without a `free`, musl links another malloc, which never takes anything back.
        targets.extend(of_musl.iter().map(|flags| Target::new("before_main.c", Build::Optimised).by("musl-gcc").with(flags)));
    }
    for target in targets {
        let recording = target.record(Way::KernelRun);
        recording.must_be_unharmed();
        let (oracle, events) = (recording.oracle(), recording.capture.events());
        assert!(oracle.notes.len() >= 4, "{target:?} noted too little");
        // The C library's own calls come from the same executable: what the program noted is among them, in its order.
        let mut made = events.iter().filter(|event| event.event == "alloc");
        for note in oracle.notes.iter().filter(|note| note.size > 0) {
            let found = made.any(|event| (event.addr, event.size) == (note.addr, note.size));
            assert!(found, "{target:?}: {} bytes at {:#x} are not in the capture", note.size, note.addr);
        }
    }
}

#[test]
fn every_end_of_a_program_is_hounds_own_and_leaves_a_capture_of_all_it_did() {
    if !requirement::uprobes() {
        return;
    }
    let ends =
        [("exit", 20), ("_exit", 21), ("quick_exit", 22), ("syscall", 24), ("abort", 134), ("kill", 137), ("segv", 139), ("thread", 31)];
    for (how, status) in ends {
        let recording = Target::new("die.c", Build::Optimised).args(&[how]).record(Way::KernelRun);
        assert_eq!(recording.outcome.shell_status(), status, "{how}: {}", recording.outcome.err());
        recording.must_be_exact_but(1);
        let title = recording.capture.ask("report", &[]).out();
        assert!(!title.contains("attached to"), "it was not attached to: {title}");
    }
}

#[test]
fn a_program_that_ends_at_once_is_passed_on() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let outcome = run(dir.path(), &[EVERY_CALL, &["--quiet"]].concat(), &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((outcome.shell_status(), outcome.out().as_str(), outcome.err().as_str()), (7, "out\n", "err\n"));
    assert!(dir.path().join("capture.hound").is_file());
    let plain = run(dir.path(), &[], &["sh", "-c", "echo out; exit 7"]);
    assert_eq!((plain.shell_status(), plain.out().as_str()), (7, "out\n"));
    assert!(plain.err().contains("it exited with status 7") && plain.err().contains("capture in"), "{}", plain.err());
}

#[test]
fn what_cannot_be_run_is_refused_and_nothing_has_run() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let (plain, sign) = (dir.path().join("plain"), dir.path().join("sign"));
    fs::write(&plain, "text").expect("room for a word");
    let (plain, sign_text) = (plain.display().to_string(), sign.display().to_string());
    let touch = &["touch", sign_text.as_str()];
    let refusals: [(&[&str], &[&str], &str); 6] = [
        (&[], &["/nonexistent/program"], "no such program"),
        (&[], &[&plain], "not executable"),
        (&["--mode", "full"], touch, "--interval 0"),
        (&["--tree", "--then", "full:1s"], touch, "--tree"),
        (&["--hook", "alloc=no_such_pool(size=0)"], touch, "no_such_pool"),
        (&["-o", "/nonexistent/c.hound"], touch, "/nonexistent/c.hound"),
    ];
    for (options, program, about) in refusals {
        let mut command = Command::new(binaries::hound());
        let outcome =
            process::run(command.args(["run", "--engine", "kernel"]).args(options).arg("--").args(program).current_dir(dir.path()));
        assert_eq!(outcome.status.code(), Some(2), "{options:?} {program:?}: {}", outcome.err());
        assert!(outcome.err().contains(about) && outcome.err().trim_end().lines().count() == 1, "{about}: {}", outcome.err());
        assert!(!sign.exists(), "the program ran although it could not be recorded: {}", outcome.err());
    }
    let left: Vec<_> = fs::read_dir(dir.path()).expect("our own").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["plain"], "a refused run left something");
    let library = process::run(Command::new(binaries::hound()).args(["run", "--tree", "--", "true"]));
    assert!(library.status.code() == Some(2) && library.err().contains("--engine kernel"), "{}", library.err());
}

#[test]
fn a_program_whose_library_is_missing_says_so_itself() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let library = Program::new("lib_ab.c", Build::Optimised).shared("libgone_at_run.so").path();
    let copy = dir.path().join("libgone_at_run.so");
    fs::copy(&library, &copy).expect("room for a library");
    let linked = format!("-L{}", dir.path().display());
    let program = Program::new("shapes.c", Build::Optimised).with(&["-Wl,--no-as-needed", &linked, "-l:libgone_at_run.so"]).path();
    fs::remove_file(&copy).expect("just made");
    let outcome = run(dir.path(), &[], &[program.to_str().expect("UTF-8")]);
    assert_eq!(outcome.shell_status(), 127, "{}", outcome.err());
    assert!(outcome.err().contains("libgone_at_run.so") && outcome.err().contains("nothing was recorded"), "{}", outcome.err());
}

/// The program that this hound has started.
fn started(hound: &Running) -> Option<i32> {
    let list = format!("/proc/{0}/task/{0}/children", hound.pid);
    // hound's measured process is another child, for a moment.
    let children = fs::read_to_string(list).unwrap_or_default();
    let is_program = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| !exe.ends_with("hound"));
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_program)
}

#[test]
fn signals_to_hound_are_the_programs() {
    if !requirement::uprobes() {
        return;
    }
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGHUP, "HUP"), (Signal::SIGUSR1, "USR1"), (Signal::SIGINT, "INT")] {
        let dir = place();
        let script = format!("trap 'echo had {name}; exit 9' {name}; echo ready; while :; do sleep 0.02; done");
        let hound = process::start(&mut command(dir.path(), &["--quiet"], &["sh", "-c", &script]));
        hound.wait_for_output("ready");
        kill(hound.pid, signal).expect("hound runs");
        let outcome = hound.finish();
        assert_eq!((outcome.shell_status(), outcome.out()), (9, format!("ready\nhad {name}\n")), "{}", outcome.err());
        assert!(report(dir.path())["session"].is_object());
    }
}

#[test]
fn a_hound_that_is_killed_before_the_program_begins_takes_it_along_and_later_leaves_it() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let sign = dir.path().join("sign");
    let text = sign.display().to_string();
    let held = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") t "));
    // It is held for as long as it takes to load programs and to measure: what is asked here takes a thousandth of it.
    let caught = (0..20).any(|_| {
        let hound = process::start(&mut command(dir.path(), &["--quiet"], &["touch", &text]));
        let mut program = None;
        wait_until(|| {
            program = started(&hound).filter(|pid| held(*pid) && maps(*pid).iter().any(|line| line.contains("libc.so")));
            program.is_some() || hound.has_ended()
        });
        let Some(program) = program else {
            hound.finish();
            let _ = fs::remove_file(&sign);
            return false;
        };
        kill(hound.pid, Signal::SIGKILL).expect("it runs");
        hound.finish();
        assert!(wait_until(|| !Path::new(&format!("/proc/{program}/exe")).exists()), "the program is there still");
        assert!(!sign.exists(), "the program ran");
        true
    });
    assert!(caught, "the program was never seen to wait");

    let script = "echo ready; while [ ! -e $0 ]; do sleep 0.02; done; echo whole > $0.done";
    let hound = process::start(&mut command(dir.path(), &["--quiet"], &["sh", "-c", script, &text]));
    hound.wait_for_output("ready");
    let program = started(&hound).expect("it runs");
    kill(hound.pid, Signal::SIGKILL).expect("it runs");
    // Its output stays open in the program.
    fs::write(&sign, "").expect("room");
    assert!(wait_until(|| fs::read_to_string(format!("{text}.done")).is_ok_and(|said| said == "whole\n")), "the program does not go on");
    assert!(wait_until(|| kill(Pid::from_raw(program), None).is_err() || !Path::new(&format!("/proc/{program}/exe")).exists()));
    hound.finish();
    let check = hound_check(dir.path());
    assert!(check.contains("no end"), "{check}");
}

fn hound_check(dir: &Path) -> String {
    let outcome = hound(["info".as_ref(), dir.join("capture.hound").as_os_str()]);
    outcome.out() + &outcome.err()
}

/// The processes that the capture has so far. The answer waits for a whole round of hound's.
fn processes(dir: &Path, pid: i32) -> Vec<Value> {
    let mut ask = Command::new(binaries::hound());
    let snapshot = process::run(ask.args(["snapshot", "-p", &pid.to_string(), "--format", "json"]).env("XDG_RUNTIME_DIR", dir));
    let report: Value = serde_json::from_slice(snapshot.out().as_bytes()).unwrap_or_default();
    report["processes"].as_array().cloned().unwrap_or_default()
}

/// Allocations, their bytes, and blocks alive, of what children have made.
fn made_in_children(dir: &Path) -> [u64; 3] {
    let report = report(dir);
    let sites = report["sites"].as_array().expect("a list");
    let made: Vec<&Value> = sites.iter().filter(|site| site.to_string().contains("made_in_child")).collect();
    ["allocations", "allocated_bytes", "live_blocks"].map(|what| made.iter().filter_map(|site| site[what].as_u64()).sum())
}

#[test]
fn children_are_recorded_and_the_recording_ends_with_the_program() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let program = Program::new("forking.c", Build::Optimised).path();
    let options = [EVERY_CALL, &["--quiet", "--tree"]].concat();
    let mut family = Subject::start(&mut command(dir.path(), &options, &[program.to_str().expect("UTF-8")]));
    family.order("fork one 2000");
    family.order("exec two 3000");
    let pid = started(&family.running).expect("it runs");
    assert!(wait_until(|| processes(dir.path(), pid).len() >= 3), "{}", family.running.said());
    // The second one was a process before its exec, too.
    let printed = family.running.printed();
    for child in printed.lines().filter_map(|line| line.strip_prefix("pid ")) {
        must_have_probes_as(child.parse().expect("a number"), pid);
    }
    // Whoever set them is done with it a round later.
    processes(dir.path(), pid);
    family.order("go");
    family.end();
    assert_eq!(made_in_children(dir.path()), [200, 100 * (2000 + 3000), 100]);
}

#[test]
fn a_program_behind_a_chain_of_others_is_recorded_with_its_children() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let program = Program::new("forking.c", Build::Optimised).path();
    let options = [EVERY_CALL, &["--quiet", "--tree"]].concat();
    let wrapped = ["sh", "-c", "exec env env env env \"$0\"", program.to_str().expect("UTF-8")];
    let mut family = Subject::start(&mut command(dir.path(), &options, &wrapped));
    let pid = started(&family.running).expect("it runs");
    assert!(wait_until(|| changed_bytes(pid) > 0), "{}", family.running.said());
    family.order("fork one 2000");
    let printed = family.running.printed();
    let child = printed.lines().find_map(|line| line.strip_prefix("pid ")).expect("it says so");
    let is_there = || processes(dir.path(), pid).iter().any(|of| of["pid"].as_u64() == child.parse().ok());
    assert!(wait_until(is_there), "process {child} is not there: {}", family.running.said());
    processes(dir.path(), pid);
    family.order("go");
    let outcome = family.end();
    assert_eq!(outcome.err(), "", "nobody is left out");
    assert_eq!(made_in_children(dir.path()), [100, 100 * 2000, 50]);
}

#[test]
fn one_that_replaces_itself_is_recorded_up_to_then_and_its_status_is_passed_on() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let outcome = run(dir.path(), &["--quiet"], &["sh", "-c", "exec sh -c 'echo replaced; exit 5'"]);
    assert_eq!((outcome.shell_status(), outcome.out().as_str()), (5, "replaced\n"), "{}", outcome.err());
    report(dir.path());
}

#[test]
fn a_recording_that_is_ended_leaves_the_program_and_waits_for_it() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let go = dir.path().join("go");
    let script = "echo ready; while [ ! -e $0 ]; do sleep 0.02; done; exit 4";
    let hound = process::start(&mut command(dir.path(), &[], &["sh", "-c", script, go.to_str().expect("UTF-8")]));
    hound.wait_for_output("ready");
    let pid = started(&hound).expect("it runs").to_string();
    let detached = process::run(Command::new(binaries::hound()).args(["detach", "-p", &pid]).env("XDG_RUNTIME_DIR", dir.path()));
    assert_eq!(detached.shell_status(), 0, "{}", detached.err());
    assert!(!hound.has_ended(), "the program runs on");
    fs::write(&go, "").expect("room");
    let outcome = hound.finish();
    assert_eq!(outcome.shell_status(), 4, "{}", outcome.err());
    assert!(outcome.err().contains("detached from"), "{}", outcome.err());
}

#[test]
fn who_holds_most_is_shown_beside_the_program() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let program = Program::new("die.c", Build::Optimised).path();
    let go = dir.path().join("go");
    let script = "$0 exit; while [ ! -e $1 ]; do sleep 0.02; done";
    let options = [EVERY_CALL, &["--tree", "--every", "100ms", "--top", "3", "--older-than", "1ms", "--min-size", "1", "-a"]].concat();
    let words = ["sh", "-c", script, program.to_str().expect("UTF-8"), go.to_str().expect("UTF-8")];
    let hound = process::start(&mut command(dir.path(), &options, &words));
    assert!(wait_until(|| hound.said().contains("blocks older than 1ms") || hound.has_ended()), "{}", hound.said());
    fs::write(&go, "").expect("room");
    let outcome = hound.finish();
    assert!(outcome.out().is_empty(), "said on the program's output: {}", outcome.out());
    assert!(outcome.err().contains("sh and its children, blocks older than 1ms, of at least 1 bytes"), "{}", outcome.err());
}

#[test]
fn page_faults_alone() {
    if !requirement::uprobes() {
        return;
    }
    let dir = place();
    let outcome = run(dir.path(), &["--quiet", "--mode", "faults", "--interval", "0"], &["sh", "-c", "exit 3"]);
    assert_eq!(outcome.shell_status(), 3, "{}", outcome.err());
    let shown = hound(["report".as_ref(), dir.path().join("capture.hound").as_os_str()]).out();
    assert!(shown.contains("Touched first") && shown.contains("recorded in faults mode"), "{shown}");
}
