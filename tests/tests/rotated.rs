//! Recordings in several files (`--rotate`): each is a capture for itself, together they have everything once, and the last one has all that lives.

use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::{binaries, requirement};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

/// Some millions of events by four threads, which release each other's blocks.
const ROUNDS: &str = "10000";
const HELD_MS: &str = "200";

fn program() -> PathBuf {
    Program::new("culled.c", Build::Optimised).path()
}

struct Recorded {
    outcome: Outcome,
    dir: TempDir,
}

impl Recorded {
    fn by(options: &[&str], rounds: &str, held_ms: &str) -> Recorded {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let mut command = Command::new(binaries::hound());
        command.args(["run", "--quiet", "-o"]).arg(dir.path().join("app.hound")).args(options);
        let outcome = process::run(command.arg("--").arg(program()).args([rounds, held_ms]));
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        Recorded { outcome, dir }
    }

    /// Blocks that the program says it has allocated of these sorts.
    fn told(&self, sorts: &[&str]) -> u64 {
        let of = |line: &str| {
            let (sort, rest) = line.split_once(' ')?;
            sorts.contains(&sort).then(|| rest.split(' ').next()?.parse::<u64>().ok())?
        };
        self.outcome.out().lines().filter_map(of).sum()
    }

    /// In the order of time.
    fn files(&self) -> Vec<PathBuf> {
        let path = |number: u32| self.dir.path().join(format!("app.{number}.hound"));
        let numbered = (1..1000).map(path).skip_while(|path| !path.exists()).take_while(|path| path.exists());
        numbered.chain([self.dir.path().join("app.hound")]).collect()
    }
}

fn report(file: &Path) -> Value {
    let capture = Capture { path: file.to_owned() };
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    let outcome = capture.ask("report", &["--all", "--format", "json"]);
    let report: Value = serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {}", outcome.err()));
    for nothing in ["lost_events", "unknown_frees"] {
        assert_eq!(report["totals"][nothing], 0, "{}: {}", file.display(), report["totals"]);
    }
    // A thread that is kept from writing a release for a tenth of a second does so into the next file, in which all is right again.
    let is_late = |what: &Value| what.as_str().is_some_and(|what| what.contains("releases are missing"));
    let anomalies = report["session"]["anomalies"].as_array().expect("a list");
    let is_last = file.ends_with("app.hound");
    assert!(anomalies.iter().all(|what| !is_last && is_late(what)), "{}: {anomalies:?}", file.display());
    report
}

fn number(report: &Value, part: &str, name: &str) -> u64 {
    report[part][name].as_u64().unwrap_or_else(|| panic!("{part}.{name}: {}", report[part]))
}

fn before(report: &Value) -> u64 {
    report["session"]["stripped"]["blocks"].as_u64().unwrap_or(0)
}

#[test]
fn each_file_is_a_capture_for_itself_and_nothing_is_missing_between_them() {
    for via in ["preload", "patch"].into_iter().filter(|via| *via == "preload" || requirement::root()) {
        let recorded = Recorded::by(&["--rotate", "200K", "--via", via], ROUNDS, HELD_MS);
        let files = recorded.files();
        assert!(files.len() > 1, "{via}: {files:?}");
        let mut so_far = 0;
        for (at, file) in files.iter().enumerate() {
            let report = report(file);
            // What was released in files before this one.
            let gone = before(&report);
            assert_eq!(report["session"]["stripped"]["before"], if at == 0 { Value::Null } else { Value::Bool(true) }, "{via}");
            let all = gone + number(&report, "totals", "allocations");
            assert!(all >= so_far, "{via}: {all} after {so_far}");
            assert_eq!(all - gone - number(&report, "totals", "frees"), number(&report, "totals", "live_blocks"), "{via}");
            so_far = all;
            if at + 1 < files.len() {
                assert_eq!(report["session"]["end"]["how"], "detach", "{via}");
                continue;
            }
            // glibc and the loader have some of their own.
            let told = recorded.told(&["short", "long", "leaked"]);
            assert!((told..told + 100).contains(&all), "{via}: {all} of {told}");
            let sites = report["sites"].as_array().expect("sites");
            let work = |site: &&Value| site["stack"].to_string().contains("work");
            let live: u64 = sites.iter().filter(work).filter_map(|site| site["live_blocks"].as_u64()).sum();
            assert_eq!(live, recorded.told(&["leaked"]), "{via}: what lives at the end, with the stacks it was allocated from");
            assert_eq!(
                report["session"]["end"]["how"],
                if via == "patch" { report["session"]["end"]["how"].clone() } else { "exit".into() }
            );
        }
        let text = Capture { path: files[1].clone() }.ask("report", &[]).out();
        assert!(text.contains("were released before this capture was begun"), "{via}: {text}");
    }
}

#[test]
fn old_files_go_where_few_are_to_be_kept_and_an_age_is_as_good_as_a_size() {
    let recorded = Recorded::by(&["--rotate", "200ms", "--keep", "2"], "1000", "3000");
    let files = recorded.files();
    assert_eq!(files.len(), 3, "{files:?}");
    let reports: Vec<Value> = files.iter().map(|file| report(file)).collect();
    let last = reports.last().expect("as seen");
    let told = recorded.told(&["short", "long", "leaked"]);
    let all = before(last) + number(last, "totals", "allocations");
    assert!((told..told + 100).contains(&all), "{all} of {told}: also what was in files that are gone");
    let listed: Vec<PathBuf> = std::fs::read_dir(recorded.dir.path()).expect("it is there").flatten().map(|entry| entry.path()).collect();
    assert!(!listed.iter().any(|path| path.to_string_lossy().contains(".next-")), "{listed:?}");
    let captures = listed.iter().filter(|path| path.extension().is_some_and(|extension| extension == "hound")).count();
    assert_eq!(captures, 3, "{listed:?}");
    assert!(!listed.contains(&recorded.dir.path().join("app.1.hound")), "{listed:?}");
}

#[test]
fn processes_and_what_is_left_out_go_with_it() {
    let recorded = Recorded::by(&["--rotate", "4K", "--cull", "100ms", "--children"], "20000", HELD_MS);
    let files = recorded.files();
    let reports: Vec<Value> = files.iter().map(|file| report(file)).collect();
    let last = reports.last().expect("one at least");
    let told = recorded.told(&["short", "long", "leaked"]);
    let all = before(last) + number(last, "totals", "allocations");
    assert!(files.len() > 1 && (told..told + 100).contains(&all), "{all} of {told} in {files:?}");
    // A tree whose processes hold what their parents allocated in an earlier file.
    let dir = TempDir::new().expect("a temporary directory can be made");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "--children", "--rotate", "100K", "-o"]).arg(dir.path().join("app.hound"));
    command.args(["--", "/bin/sh", "-c", "\"$@\" & \"$@\"; status=$?; wait; exit $status", "sh"]).arg(program()).args([ROUNDS, HELD_MS]);
    let recorded = Recorded { outcome: process::run(&mut command), dir };
    assert_eq!(recorded.outcome.shell_status(), 0, "{}", recorded.outcome.err());
    let files = recorded.files();
    let reports: Vec<Value> = files.iter().map(|file| report(file)).collect();
    let last = reports.last().expect("one at least");
    let told = recorded.told(&["short", "long", "leaked"]);
    let all = before(last) + number(last, "totals", "allocations");
    assert!(files.len() > 1 && (told..told + 500).contains(&all), "{all} of {told} in {files:?}");
    assert!(last["processes"].as_array().map(Vec::len) >= Some(3), "{}", last["processes"]);
}

#[test]
fn a_look_meanwhile_is_of_all_that_lives_and_a_killed_hound_leaves_what_it_has() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "--rotate", "200ms", "-o"]).arg(dir.path().join("app.hound")).arg("--").arg(program());
    let running = process::start(command.args(["2000", "60000"]).env("XDG_RUNTIME_DIR", dir.path()));
    running.wait_for_output("held");
    let second = dir.path().join("app.2.hound");
    assert!(process::wait_until(|| second.exists() || running.has_ended()), "{}", running.said());
    let mut totals = Vec::new();
    let pid = process::descendants(running.pid).first().expect("the program").to_string();
    for _ in 0..3 {
        let mut ask = Command::new(binaries::hound());
        let seen = process::run(ask.args(["snapshot", "--format", "json", "-p", &pid]).env("XDG_RUNTIME_DIR", dir.path()));
        let report: Value = serde_json::from_str(&seen.out()).unwrap_or_else(|e| panic!("{e}: {}", seen.err()));
        assert_eq!(report["totals"]["unknown_frees"], 0, "{}", report["totals"]);
        totals.push((before(&report) + number(&report, "totals", "allocations"), number(&report, "totals", "live_blocks")));
        let so_far = (1..).find(|number| !dir.path().join(format!("app.{number}.hound")).exists());
        let next = dir.path().join(format!("app.{}.hound", so_far.expect("some")));
        assert!(process::wait_until(|| next.exists() || running.has_ended()), "{}", running.said());
    }
    // The program stands still, and the files go on.
    assert!(totals.iter().all(|total| *total == totals[0] && total.0 > 400_000 && total.1 >= 280), "{totals:?}");
    kill(running.pid, Signal::SIGKILL).expect("hound runs");
    let program = nix::unistd::Pid::from_raw(pid.parse().expect("a number"));
    let _ = kill(program, Signal::SIGKILL); // it runs on without hound
    running.finish();
    let recorded = Recorded { outcome: process::run(&mut Command::new("true")), dir };
    for file in recorded.files() {
        let info = Capture { path: file.clone() }.ask("info", &["--format", "json"]);
        let info: Value = serde_json::from_str(&info.out()).unwrap_or_else(|e| panic!("{}: {e}: {}", file.display(), info.err()));
        assert!(info.is_object());
    }
}

/// What others do with the files meanwhile costs nothing, and what is theirs is left alone.
#[test]
fn a_file_that_is_moved_away_stays_there_and_one_that_is_in_the_way_stays_what_it_is() {
    for in_the_way in [false, true] {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("app.hound.next"), "theirs").expect("room");
        let mut command = Command::new(binaries::hound());
        command.args(["run", "--rotate", "300ms", "-o"]).arg(path("app.hound")).arg("--").arg(program()).args(["1000", "3000"]);
        let running = process::start(&mut command);
        running.wait_for_output("held");
        // It has no name for a moment now and then.
        assert!(process::wait_until(|| std::fs::rename(path("app.hound"), path("moved.hound")).is_ok()), "{}", running.said());
        if in_the_way {
            std::fs::write(path("app.hound"), "mine").expect("room");
        }
        let outcome = running.finish();
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        assert!(outcome.err().contains("was moved or deleted while it was written"), "{}", outcome.err());
        assert_eq!(std::fs::read(path("app.hound.next")).expect("it is there"), b"theirs");
        let listed = std::fs::read_dir(dir.path()).expect("it is there").flatten();
        let next: Vec<PathBuf> = listed.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(".next-")).collect();
        let last = if in_the_way {
            assert_eq!(std::fs::read(path("app.hound")).expect("it is there"), b"mine");
            assert!(outcome.err().contains("cannot be had as a name any more: the recording goes on in"), "{}", outcome.err());
            let [last] = &next[..] else { panic!("{next:?}: {}", outcome.err()) };
            assert!(outcome.err().contains(&format!("capture in {}", last.display())), "{}", outcome.err());
            last.clone()
        } else {
            assert_eq!(next, [] as [PathBuf; 0]);
            path("app.hound")
        };
        assert_eq!(report(&path("moved.hound"))["session"]["end"]["how"], "detach");
        let last = report(&last);
        let recorded = Recorded { outcome, dir };
        let told = recorded.told(&["short", "long", "leaked"]);
        let all = before(&last) + number(&last, "totals", "allocations");
        assert!((told..told + 100).contains(&all), "{in_the_way}: {all} of {told}");
    }
}

#[test]
fn what_cannot_be_spread_is_refused() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    for (options, about) in [
        (&["--rotate", "1M", "--mode", "sampled"][..], "samples are few"),
        (&["--rotate", "1M", "--engine", "kernel"], "needs the library"),
        (&["--rotate", "1M", "--max-capture", "2M"], "cannot be used with"),
        (&["--rotate", "1M", "--server"], "cannot be used with"),
        (&["--keep", "2"], "--rotate"),
        (&["--rotate", "soon"], "soon"),
    ] {
        let mut command = Command::new(binaries::hound());
        let outcome = process::run(command.args(["run", "-o"]).arg(dir.path().join("app.hound")).args(options).args(["--", "true"]));
        assert_eq!(outcome.status.code(), Some(2), "{options:?}: {}", outcome.err());
        assert!(outcome.err().contains(about), "{about}: {}", outcome.err());
    }
}
