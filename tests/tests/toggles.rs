//! Recording switched off and on by the program itself or by signals, as often and as fast as can be: what was recorded is exact, and what
//! lived through a gap is not called leaked.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

use hound_tests::binaries;
use hound_tests::capture::{Capture, hound, wait_until_finished};
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use serde_json::Value;

const TIMES: u64 = 10_000;

fn program() -> std::path::PathBuf {
    Program::new("toggled.c", Build::Optimised).with(&["-pthread"]).path()
}

fn arguments(times: u64, how: &str) -> [String; 2] {
    [times.to_string(), how.to_owned()]
}

fn launched(times: u64, how: &str, variables: &[(&str, &str)], file: &Path) -> Outcome {
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "-o"]).arg(file).arg("--").arg(program()).args(arguments(times, how));
    process::run(command.envs(variables.iter().copied()))
}

fn preloaded(times: u64, how: &str, variables: &[(&str, &str)], file: &Path) -> Outcome {
    let mut command = Command::new(program());
    command.args(arguments(times, how)).env("LD_PRELOAD", binaries::libhound()).env("HOUND_OUTPUT", file);
    let outcome = process::run(command.envs(variables.iter().copied()));
    wait_until_finished(file);
    outcome
}

/// What each thread knows of its allocations, by their size: recorded surely, perhaps, surely not.
fn told(outcome: &Outcome) -> BTreeMap<u64, [u64; 3]> {
    let numbers = |line: &str| -> Vec<u64> { line.split(' ').map(|number| number.parse().expect("a number")).collect() };
    let told: BTreeMap<u64, [u64; 3]> = outcome.out().lines().map(numbers).map(|of| (of[0], [of[1], of[2], of[3]])).collect();
    assert_eq!(told.len(), 3, "{}{}", outcome.out(), outcome.err());
    told
}

/// The parts recorded are whole, what lay between is not there, and nothing is called leaked that was released unseen.
fn must_be_exact(outcome: &Outcome, file: &Path, switches: u64) {
    let events = Capture { path: file.to_owned() }.events();
    for (size, [sure, unsure, off]) in told(outcome) {
        let recorded = events.iter().filter(|event| event.event == "alloc" && event.size == size).count() as u64;
        assert!(
            (sure..=sure + unsure).contains(&recorded),
            "of {size} bytes {recorded} are recorded, and {sure} must be and {unsure} may be"
        );
        assert!(off > 1000 && sure > 1000, "{size}: {sure} while it was on, {off} while it was off: that tells nothing");
    }
    // One more: how it began.
    assert_eq!(events.iter().filter(|event| event.event == "mode").count() as u64, switches + 1);
    let report = hound([Path::new("report"), file, Path::new("--format"), Path::new("json")]);
    let report: Value = serde_json::from_str(&report.out()).expect("JSON");
    let total = |name: &str| report["totals"][name].as_u64().unwrap_or(0); // what is none is not said
    assert!(total("lost_events") == 0 && total("allocations") > 3000, "{}", report["totals"]);
    assert_eq!(report["anomalies"], Value::Null, "a release that was not seen is no fault of the capture");
    let gaps = format!("in which recording was switched off, {} times", ["5,000", "5,001"][usize::from(switches % 2 == 1)]);
    let text = hound([Path::new("report"), file]).out();
    assert!(text.contains("NOT recorded: ") && text.contains(&gaps), "{text:.2000}");
    let (live, censored) = (total("live_blocks"), total("censored_blocks"));
    assert!(live - censored < 8, "{live} live, of which {censored} lived through a gap: {}", report["totals"]);
}

#[test]
fn ten_thousand_signals_leave_exact_parts_and_censored_gaps() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("signals.hound");
    // The documented default of plain preloading; `hound run` does it when it is asked to.
    let outcome = preloaded(TIMES, "signals", &[], &file);
    assert!(outcome.status.success(), "{}", outcome.err());
    must_be_exact(&outcome, &file, TIMES);
    let asked = [("MEMORY_PROFILER_REGISTER_SIGUSR1", "1"), ("HOUND_REGISTER_SIGUSR2", "1")];
    let outcome = launched(TIMES, "signals", &asked, &file);
    assert!(outcome.status.success(), "{}", outcome.err());
    must_be_exact(&outcome, &file, TIMES);
}

#[test]
fn the_program_switches_it_as_often() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("calls.hound");
    for times in [TIMES, TIMES + 1] {
        let outcome = launched(times, "calls", &[], &file);
        assert!(outcome.status.success(), "{}", outcome.err());
        must_be_exact(&outcome, &file, times);
    }
}

#[test]
fn a_signal_that_nobody_asked_for_does_what_it_does_without_hound() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("signal.hound");
    let alone = process::run(Command::new(program()).args(arguments(1, "signals")).env("LD_PRELOAD", ""));
    assert_eq!(alone.status.code(), Some(3), "it finds no profiler");
    const SIGUSR2: i32 = 12;
    let outcome = launched(1, "signals", &[], &file);
    assert_eq!(outcome.status.code(), Some(128 + SIGUSR2), "{}", outcome.err());
    let outcome = preloaded(1, "signals", &[("MEMORY_PROFILER_REGISTER_SIGUSR2", "0")], &file);
    assert_eq!(outcome.shell_status(), 128 + SIGUSR2, "{}", outcome.err());
}

/// The documented variable that changes what the program gets; everything is recorded as it was called.
#[test]
fn memory_is_zero_when_it_is_asked_to_be() {
    let program = Program::new("zeroed.c", Build::Optimised).path();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("zeroed.hound");
    for (variable, dirty) in [("", true), ("MEMORY_PROFILER_ZERO_MEMORY", false), ("HOUND_ZERO_MEMORY", false)] {
        let variables: Vec<(&str, &str)> = [(variable, "1")].into_iter().filter(|(name, _)| !name.is_empty()).collect();
        let mut command = Command::new(binaries::hound());
        command.args(["run", "--quiet", "-o"]).arg(&file).arg("--").arg(&program);
        let launched = process::run(command.envs(variables.iter().copied()));
        let mut command = Command::new(&program);
        let preloaded = command.env("LD_PRELOAD", binaries::libhound()).env("HOUND_OUTPUT", folder.path().join("p.hound"));
        let preloaded = process::run(preloaded.envs(variables.iter().copied()));
        for outcome in [launched, preloaded] {
            assert_eq!(outcome.out().trim(), if dirty { "dirty" } else { "zero" }, "{variable}: {}", outcome.err());
        }
        let events = Capture { path: file.clone() }.events();
        let kinds: Vec<_> =
            events.iter().filter(|event| event.event == "alloc" && event.size == 1234).filter_map(|e| e.kind.clone()).collect();
        assert_eq!((kinds.len(), kinds.iter().all(|kind| kind == "malloc")), (100, true), "{variable}: {kinds:?}");
    }
}

fn switches(file: &Path) -> usize {
    Capture { path: file.to_owned() }.events().iter().filter(|event| event.event == "mode").count() - 1
}

/// Preloaded as the book has it: what a program has decided of a signal stays, whenever it decided.
#[test]
fn a_signal_that_the_program_has_its_own_use_of_stays_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("own.hound");
    let recorded = |command: &mut Command| {
        let _ = std::fs::remove_file(&file); // there is none at first
        let outcome = process::run(command.env("HOUND_OUTPUT", &file));
        assert!(outcome.status.success(), "{}", outcome.err());
        wait_until_finished(&file);
        outcome
    };
    // Ignored by who starts it: it stays ignored.
    let program = program();
    let library = binaries::libhound();
    let script = format!("trap '' USR1 USR2; LD_PRELOAD={} exec {} 50 signals", library.display(), program.display());
    recorded(Command::new("bash").args(["-c", &script]));
    assert_eq!(switches(&file), 0, "an ignored signal has switched something");
    // A handler that is set later.
    let python = "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('own'))\nos.kill(os.getpid(), signal.SIGUSR1)\n";
    let outcome = recorded(Command::new("/usr/bin/python3").args(["-c", python]).env("LD_PRELOAD", &library));
    assert_eq!((outcome.out().as_str(), switches(&file)), ("own\n", 0));
    // A child that is not recorded has the handler, and nothing to switch.
    let python = "import os, signal, sys\nif os.fork() == 0:\n  os.kill(os.getpid(), signal.SIGUSR1)\n  os._exit(3)\nprint(os.wait()[1])\n";
    let outcome = recorded(Command::new("/usr/bin/python3").args(["-c", python]).env("LD_PRELOAD", &library));
    assert_eq!((outcome.out().as_str(), switches(&file)), ("768\n", 0));
}

#[test]
fn recording_that_begins_switched_off_is_switched_on() {
    let folder = tempfile::tempdir().expect("a folder");
    for way in [launched, preloaded] {
        let file = folder.path().join("off.hound");
        // Off at first: the first `stop` changes nothing, and the first `start` everything.
        let outcome = way(2, "calls", &[("MEMORY_PROFILER_DISABLE_BY_DEFAULT", "1")], &file);
        assert!(outcome.status.success(), "{}", outcome.err());
        let events = Capture { path: file.clone() }.events();
        let first = events.iter().position(|event| event.event == "alloc").expect("something was recorded");
        let modes: Vec<usize> = (0..events.len()).filter(|at| events[*at].event == "mode").collect();
        assert!(modes.len() == 2 && modes[1] < first, "off, then on, then events: {modes:?} {first}");
        std::fs::remove_file(&file).expect("it is there");
    }
}

#[test]
fn the_header_and_the_crate_steer_and_do_nothing_without_hound() {
    let folder = tempfile::tempdir().expect("a folder");
    // What was compiled with another header or crate is not this program.
    let api = ["include/hound.h", "src/lib.rs"]
        .map(|file| std::fs::read(binaries::workspace().join("preload/api").join(file)).unwrap_or_else(|error| panic!("{file}: {error}")));
    let mut hasher = DefaultHasher::new();
    api.hash(&mut hasher);
    let (macro_name, configuration) = (format!("-DAPI_{:x}", hasher.finish()), format!("api_{:x}", hasher.finish()));
    for source in ["steers.c", "steers.cpp", "steers.rs"] {
        let flags: &[&str] = match source {
            // The linker of Rust drops what the oracle, which is linked to all of them, would need of a program that uses it.
            "steers.rs" => &["--cfg", &configuration, "-C", "link-arg=-Wl,-z,nostart-stop-gc"],
            _ => &[&macro_name],
        };
        let program = Program::new(source, Build::Optimised).with(flags).path();
        let alone = process::run(&mut Command::new(&program));
        assert!(alone.status.success() && alone.out() == "nobody is there\n", "{source}: {}{}", alone.out(), alone.err());
        let file = folder.path().join("steered.hound");
        let mut command = Command::new(binaries::hound());
        let outcome = process::run(command.args(["run", "--quiet", "-o"]).arg(&file).arg("--").arg(program));
        assert!(outcome.status.success() && outcome.out() == "hound is there\n", "{source}: {}{}", outcome.out(), outcome.err());
        let events = Capture { path: file.clone() }.events();
        let of_interest = events.iter().filter_map(|event| match event.event.as_str() {
            "alloc" if (2001..=2003).contains(&event.size) => Some(event.size),
            "marker" => Some(event.value),
            _ => None,
        });
        assert_eq!(of_interest.collect::<Vec<_>>(), [2001, 77, 2003], "{source}");
    }
}
