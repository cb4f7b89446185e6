//! `hound run --hold-exit`: which blocks a program has pointers to when it ends, and that its end is held for no longer than was said.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use hound_tests::binaries;
use hound_tests::capture::hound;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, EndOf, Outcome};
use hound_user::capture::{Capture, Reach};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

fn program(build: Build) -> std::path::PathBuf {
    Program::new("reach.c", build).with(&["-pthread"]).path()
}

fn run(program: &Path, how: &str, options: &[&str], file: &Path) -> Outcome {
    let mut command = Command::new(binaries::hound());
    command.arg("run").args(options).arg("-o").arg(file).arg("--").arg(program).arg(how);
    process::run(&mut command)
}

/// The blocks that the program has told of: those it has pointers to, and the others.
fn told(out: &str) -> [BTreeSet<(String, u64)>; 2] {
    let mut told = [BTreeSet::new(), BTreeSet::new()];
    for line in out.lines() {
        let (what, rest) = line.split_once(' ').expect("two words and an address");
        let (which, address) = rest.rsplit_once(' ').expect("an address");
        let address = !address.parse::<u64>().expect("a number");
        told[usize::from(what == "lost")].insert((which.to_owned(), address));
    }
    told
}

fn reach(file: &Path) -> Option<Reach> {
    Capture::open(file).expect("a capture").reach()
}

#[test]
fn what_a_program_has_pointers_to_is_told_from_what_it_has_none_to() {
    let folder = tempfile::tempdir().expect("a folder");
    for build in Build::ALL {
        for (how, status) in [("return", 3), ("exit", 7)] {
            let file = folder.path().join("reach.hound");
            let outcome = run(&program(build), how, &["--hold-exit", "20s"], &file);
            assert_eq!(outcome.status.code(), Some(status), "{}", outcome.err());
            let [kept, lost] = told(&outcome.out());
            assert_eq!((kept.len(), lost.len()), (31 + usize::from(how == "exit"), 24), "{}", outcome.out());
            let found = reach(&file).unwrap_or_else(|| panic!("nobody looked: {}", outcome.err()));
            let unreachable: BTreeSet<u64> = found.addresses().collect();
            let of = |all: &BTreeSet<(String, u64)>, are: bool| -> Vec<String> {
                all.iter().filter(|(_, address)| unreachable.contains(address) == are).map(|(which, _)| which.clone()).collect()
            };
            assert_eq!(of(&kept, true), [""; 0], "{build:?} {how}: it has pointers to these");
            assert_eq!(of(&lost, false), [""; 0], "{build:?} {how}: it has none to these");
            assert!(found.blocks >= 56 && found.bytes > 1_100_000 && found.held_ns > 0, "{found:?}");
            // Whoever copies the capture, copies that, too.
            let copy = folder.path().join(format!("copy-{how}-{build:?}.hound"));
            let stripped = hound(["strip", "--threshold", "1ms", "-o"].map(Path::new).into_iter().chain([&*copy, &*file]));
            assert!(stripped.status.success(), "{}", stripped.err());
            assert_eq!(reach(&copy), Some(found));
            let check = hound([Path::new("check"), &file]);
            assert!(check.status.success(), "{}{}", check.out(), check.err());
        }
    }
}

#[test]
fn nobody_looks_where_that_was_not_asked_for_or_there_is_no_exit() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("reach.hound");
    let program = program(Build::Optimised);
    let long = &["--hold-exit", "20s"][..];
    for (how, options) in [("return", &[][..]), ("return", &["--hold-exit", "never"]), ("_exit", long), ("killed", long)] {
        let outcome = run(&program, how, options, &file);
        assert_eq!(reach(&file), None, "{how} {options:?}: {}", outcome.err());
        assert!(!outcome.err().contains("pointers") && !outcome.err().contains("not known"), "{}", outcome.err());
    }
    let refused = run(&program, "return", &["--hold-exit", "1s", "--children"], &file);
    assert!(!refused.status.success() && refused.err().contains("not with --children"), "{}", refused.err());
}

#[test]
fn an_exit_is_held_for_no_longer_than_was_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("reach.hound");
    // A gibibyte is not copied in a millisecond.
    let outcome = run(&program(Build::Optimised), "many", &["--hold-exit", "1ms"], &file);
    assert_eq!(outcome.status.code(), Some(3), "{}", outcome.err());
    assert_eq!(reach(&file), None);
    assert!(outcome.err().contains("which blocks the program still reached when it ended is not known: "), "{}", outcome.err());
}

#[test]
fn a_program_whose_hound_is_gone_ends_all_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("reach.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--hold-exit", "3s", "-o"]).arg(&file).arg("--").arg(program(Build::Optimised)).arg("many");
    let running = process::start(&mut command);
    running.wait_for_output("kept other tls");
    let target = process::descendants(running.pid)[0];
    let _end = EndOf(target);
    kill(running.pid, Signal::SIGKILL).expect("hound is alive");
    let is_there = || std::fs::read_link(format!("/proc/{target}/exe")).is_ok();
    assert!(is_there() && target != running.pid, "it has not come to its end yet");
    assert!(process::wait_until(|| !is_there()), "it waits for a hound that is gone");
}

#[test]
fn what_grows_and_is_reached_may_leak_and_what_is_lost_leaks() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("grows.hound");
    let program = Program::new("gathers.c", Build::Optimised).path();
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--hold-exit", "20s", "-o"]).arg(&file).arg("--").arg(program).arg("8");
    let outcome = process::run(&mut command);
    assert!(outcome.status.success() && outcome.err().contains("1 place leaks"), "{}", outcome.err());
    let leaks = |format: &str| {
        let outcome = hound([Path::new("leaks"), &file, Path::new("--all"), Path::new("--format"), Path::new(format)]);
        assert!(outcome.status.success(), "{}", outcome.err());
        outcome.out()
    };
    let found: Value = serde_json::from_str(&leaks("json")).expect("JSON");
    let of = |function: &str| {
        let all = ["leaks", "others"].into_iter().flat_map(|list| found[list].as_array().expect("a list"));
        let mut of = all.filter(|one| one["stack"].as_array().is_some_and(|stack| stack.iter().any(|name| name == function)));
        of.next().unwrap_or_else(|| panic!("{function} is not in {found:#}"))
    };
    let figures = |function: &str| {
        let one = of(function);
        let number = |name: &str| one[name].as_u64().unwrap_or_else(|| panic!("{one:#}"));
        (one["verdict"].as_str().expect("a word"), number("survivors_seen"), number("survivors_unreachable"))
    };
    let (verdict, seen, unreachable) = figures("gathers");
    assert!(verdict == "may_leak" && seen > 100 && unreachable == 0, "{verdict} {seen} {unreachable}");
    let (verdict, seen, unreachable) = figures("loses");
    assert!(verdict == "leak" && seen > 100 && unreachable * 100 >= seen * 99, "{verdict} {seen} {unreachable}");
    let text = leaks("text");
    assert!(text.contains("The program still had pointers to it when it ended"), "{text}");
    assert!(text.contains("the program had no pointer to "), "{text}");
}
