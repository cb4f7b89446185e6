//! `--cull`: what lives short is not in the capture, everything else is exactly, and of what is not there sums, sizes and lifetimes are known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::capture::{Capture, wait_until_finished};
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::{binaries, requirement};
use serde_json::Value;
use tempfile::TempDir;

/// Of each thread, a hundred times.
const ROUNDS: &str = "2000";
/// Far more than any thread is interrupted for.
const THRESHOLD: &str = "2s";
const HELD_MS: &str = "3000";

fn program() -> PathBuf {
    Program::new("culled.c", Build::Optimised).path()
}

fn place() -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let file = dir.path().join("capture.hound");
    (dir, file)
}

fn run(options: &[&str], file: &Path, variables: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "-o"]).arg(file).args(options).arg("--").arg(program()).args([ROUNDS, HELD_MS]);
    process::run(command.envs(variables.iter().copied()))
}

/// What the program counted: blocks and bytes.
fn told(outcome: &Outcome) -> BTreeMap<String, [u64; 2]> {
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    let of = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, blocks, bytes] = words[..] else { return None };
        Some((name.to_owned(), [blocks.parse().ok()?, bytes.parse().ok()?]))
    };
    let told: BTreeMap<_, _> = outcome.out().lines().filter_map(of).collect();
    assert_eq!(told.len(), 3, "{}", outcome.out());
    told
}

fn json(file: &Path, what: &[&str]) -> Value {
    let outcome = Capture { path: file.to_owned() }.ask(what[0], &[&what[1..], &["--format", "json"]].concat());
    serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{e}: {}", outcome.err()))
}

/// Blocks and bytes that this function allocated, as the report has them: allocated, and alive at the end.
fn sites(report: &Value, function: &str) -> [u64; 4] {
    let ours = report["sites"].as_array().expect("sites").iter().filter(|site| site["stack"].to_string().contains(function));
    let names = ["allocations", "allocated_bytes", "live_blocks", "live_bytes"];
    ours.fold([0; 4], |sum, site| std::array::from_fn(|at| sum[at] + site[names[at]].as_u64().expect("a number")))
}

/// All long-lived blocks are there, each with its end; what is missing is known by number and size; and nothing was taken apart.
fn must_be_exact(outcome: &Outcome, file: &Path, whole: &Value) {
    let (told, capture) = (told(outcome), Capture { path: file.to_owned() });
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    let report = json(file, &["report", "--all"]);
    let gone = |name: &str| report["session"]["stripped"][name].as_u64().unwrap_or_else(|| panic!("{}", report["session"]));
    let total = |of: &Value, name: &str| of["totals"][name].as_u64().expect("a number");
    for name in ["allocations", "allocated_bytes", "frees"] {
        let missing = if name == "allocated_bytes" { gone("bytes") } else { gone("blocks") };
        assert_eq!(total(&report, name) + missing, total(whole, name), "{name}");
    }
    for name in ["live_blocks", "live_bytes", "unknown_frees", "lost_events"] {
        assert_eq!(total(&report, name), total(whole, name), "{name}");
    }
    assert!(gone("blocks") <= told["short"][0], "more than what lived short is gone");
    // On a machine that stands still for seconds a few of those live longer.
    assert!(gone("blocks") > told["short"][0] * 9 / 10, "only {} of {} are gone", gone("blocks"), told["short"][0]);
    assert!(report["session"]["stripped"]["late"].is_null(), "{}", report["session"]["stripped"]);
    let events = capture.events();
    let allocated = |sizes: std::ops::Range<u64>| events.iter().filter(|e| e.event == "alloc" && sizes.contains(&e.size)).count() as u64;
    assert_eq!((allocated(2000..2050), allocated(4000..4001)), (told["long"][0], told["leaked"][0]));
    assert_eq!(sites(&report, "work")[2..], [told["leaked"][0], told["leaked"][1]], "what lives at the end");
    // Every release that is there has its block: long ones, and those short ones that were kept.
    assert_eq!(total(&report, "frees"), total(&report, "allocations") - total(&report, "live_blocks"));
    // Sizes and lifetimes are of all blocks, also of those that are not there.
    for of in ["--sizes", "--lifetimes"] {
        let sum = |graph: &Value| {
            graph["buckets"].as_array().expect("buckets").iter().map(|b| b["blocks"].as_u64().expect("a number")).sum::<u64>()
        };
        assert_eq!(sum(&json(file, &["graph", of])), total(whole, "allocations"), "{of}");
    }
    let rates = json(file, &["graph", "--rates"]);
    let moments = rates["moments"].as_array().map_or(0, Vec::len);
    assert!(moments > 0 || rates["series"].is_array(), "{rates}");
}

fn whole() -> Value {
    let (_dir, file) = place();
    told(&run(&[], &file, &[]));
    json(&file, &["report", "--all"])
}

#[test]
fn what_lives_short_is_left_out_and_all_else_is_exact() {
    let whole = whole();
    let (_dir, file) = place();
    let outcome = run(&["--cull", THRESHOLD], &file, &[]);
    must_be_exact(&outcome, &file, &whole);
    let text = Capture { path: file.clone() }.ask("report", &[]).out();
    assert!(text.contains("STRIPPED of") && text.contains("with what was left out"), "{text}");
    // Twelve hundred thousand events and more, of which some hundreds are there.
    let bytes = std::fs::metadata(&file).expect("it is there").len();
    assert!(bytes < 100_000, "{bytes} bytes");
    // The same where functions are patched, and by the documented variables.
    let (_dir, file) = place();
    if requirement::root() {
        let outcome = run(&["--cull", THRESHOLD, "--via", "patch"], &file, &[]);
        // A patched program makes no block for the library's sake.
        let report = json(&file, &["report", "--all"]);
        assert_eq!(sites(&report, "work")[2], told(&outcome)["leaked"][0]);
    }
    let (_dir, file) = place();
    let variables = [("MEMORY_PROFILER_CULL_TEMPORARY_ALLOCATIONS", "1"), ("HOUND_TEMPORARY_ALLOCATION_LIFETIME_THRESHOLD", "2000")];
    must_be_exact(&run(&[], &file, &variables), &file, &whole);
}

/// Two at once that have blocks at the same addresses: none is taken for the other's.
#[test]
fn each_process_of_a_tree_is_culled_for_itself() {
    for via in ["preload", "patch"].into_iter().filter(|via| *via == "preload" || requirement::root()) {
        let (_dir, file) = place();
        let mut command = Command::new("/usr/bin/setarch");
        command
            .args(["-R"])
            .arg(binaries::hound())
            .args(["run", "--quiet", "--via", via, "--children", "--cull", THRESHOLD, "-o"])
            .arg(&file);
        command
            .args(["--", "/bin/sh", "-c", "\"$@\" & \"$@\"; status=$?; wait; exit $status", "sh"])
            .arg(program())
            .args([ROUNDS, HELD_MS]);
        let outcome = process::run(&mut command);
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        let sum = |sort: &str| -> u64 {
            let of = |line: &str| line.strip_prefix(sort)?.split_whitespace().next()?.parse::<u64>().ok();
            let both: Vec<u64> = outcome.out().lines().filter_map(of).collect();
            assert_eq!(both.len(), 2, "{}", outcome.out());
            both.iter().sum()
        };
        let (short, long, leaked) = (sum("short "), sum("long "), sum("leaked "));
        let capture = Capture { path: file.clone() };
        assert!(capture.check().status.success(), "{}", capture.check().out());
        let report = json(&file, &["report", "--all"]);
        let totals = &report["totals"];
        assert_eq!((&totals["lost_events"], &totals["unknown_frees"]), (&Value::from(0), &Value::from(0)), "{via}: {totals}");
        let stripped = &report["session"]["stripped"];
        let gone = stripped["blocks"].as_u64().unwrap_or_default();
        // Some are the shell's.
        assert!(gone <= short + 200 && gone > short * 9 / 10, "{via}: {gone} of {short} are gone");
        let events = capture.events();
        let allocated =
            |sizes: std::ops::Range<u64>| events.iter().filter(|e| e.event == "alloc" && sizes.contains(&e.size)).count() as u64;
        assert_eq!((allocated(2000..2050), allocated(4000..4001)), (long, leaked), "{via}");
        assert_eq!(sites(&report, "work")[2], leaked, "{via}: what lives at the end");
        // What was left out is told of the process that it was of.
        let of = events.iter().filter(|event| event.event == "culled").map(|event| event.pid).collect::<std::collections::BTreeSet<u32>>();
        assert!(of.len() >= 2, "{via}: {of:?}");
    }
}

#[test]
fn plain_preloading_obeys_the_documented_variables() {
    let (_dir, file) = place();
    let mut command = Command::new(program());
    command.args(["500", "300"]).env("LD_PRELOAD", binaries::libhound()).env("HOUND_OUTPUT", &file);
    command.env("HOUND_CULL_TEMPORARY_ALLOCATIONS", "1").env("MEMORY_PROFILER_TEMPORARY_ALLOCATION_PENDING_THRESHOLD", "100");
    let told = told(&process::run(&mut command));
    wait_until_finished(&file);
    let report = json(&file, &["report", "--all"]);
    // Ten seconds, the default: the long ones are gone, too, but for those that were written because more than a hundred waited.
    assert_eq!(report["session"]["stripped"]["threshold_ns"], 10_000_000_000u64, "{}", report["session"]["stripped"]);
    assert_eq!(sites(&report, "work")[2..], [told["leaked"][0], told["leaked"][1]]);
    assert!(report["session"]["stripped"]["overflows"].as_u64() > Some(0), "{}", report["session"]["stripped"]);
}

#[test]
fn a_look_meanwhile_is_of_all_that_lives() {
    let (dir, file) = place();
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "--cull", "60s", "-o"]).arg(&file).arg("--").arg(program()).args(["500", "2000"]);
    let running = process::start(command.env("XDG_RUNTIME_DIR", dir.path()));
    running.wait_for_output("held");
    let pid = process::descendants(running.pid).first().expect("the program").to_string();
    let mut ask = Command::new(binaries::hound());
    let seen = process::run(ask.args(["snapshot", "--format", "json", "-p", &pid]).env("XDG_RUNTIME_DIR", dir.path()));
    let report: Value = serde_json::from_str(&seen.out()).unwrap_or_else(|e| panic!("{e}: {}", seen.err()));
    let told = told(&running.finish());
    let alive = sites(&report, "work")[2];
    assert!(alive >= told["long"][0] + told["leaked"][0], "{alive} live of {told:?}");
}

#[test]
fn what_cannot_be_culled_is_refused() {
    let (_dir, file) = place();
    for (options, about) in
        [(&["--cull", "1s", "--mode", "sampled"][..], "samples are few"), (&["--cull", "1s", "--engine", "kernel"], "needs the library")]
    {
        let outcome = run(options, &file, &[]);
        assert_eq!(outcome.status.code(), Some(2), "{options:?}");
        assert!(outcome.err().contains(about) && outcome.err().trim_end().lines().count() == 1, "{about}: {}", outcome.err());
    }
    let outcome = run(&[], &file, &[("HOUND_CULL_TEMPORARY_ALLOCATIONS", "1"), ("HOUND_TEMPORARY_ALLOCATION_LIFETIME_THRESHOLD", "soon")]);
    assert!(outcome.status.code() == Some(2) && outcome.err().contains("'soon'"), "{}", outcome.err());
}

/// It ends by itself about there, nothing is lost, and what lived then is not called leaked.
#[test]
fn a_capture_of_a_given_size_ends_there() {
    const LIMIT: u64 = 200_000;
    // Of the last one's threads some are in the middle of an event when it ends: in one round of forty.
    let several = [("patch", true); 6];
    for (via, children) in [("preload", false), ("preload", true), ("patch", false)].into_iter().chain(several) {
        if via == "patch" && !requirement::root() {
            continue;
        }
        let (_dir, file) = place();
        let mut command = Command::new(binaries::hound());
        command.args(["run", "--via", via, "--max-capture", &LIMIT.to_string(), "-o"]).arg(&file);
        if children {
            // All of it by a child of a shell's.
            command.args(["--children", "--", "/bin/sh", "-c", "\"$@\"; exit $?", "sh"]);
        } else {
            command.arg("--");
        }
        let outcome = process::run(command.arg(program()).args(["20000", "500"]));
        assert_eq!(told(&outcome).len(), 3);
        assert!(outcome.err().contains("recording ends here, and the program runs on"), "{}", outcome.err());
        let bytes = std::fs::metadata(&file).expect("it is there").len();
        // What was under way when it was reached, symbols, the end.
        assert!((LIMIT..LIMIT + (16 << 20)).contains(&bytes), "{via}: {bytes} bytes");
        let report = json(&file, &["report", "--all"]);
        assert_eq!(report["totals"]["lost_events"], 0, "{via}");
        assert_eq!(report["totals"]["unknown_frees"], 0, "{via}");
        assert!(report["totals"]["allocations"].as_u64().is_some_and(|n| n > 1000), "{via}: {}", report["totals"]);
        // What the shell's child had before it became the program was over by then.
        let ended = |of: &Value| if of["end"]["how"] == "exec" { of["live_blocks"].as_u64().unwrap_or_default() } else { 0 };
        let over: u64 = report["processes"].as_array().map_or(0, |all| all.iter().map(ended).sum());
        let censored = report["totals"]["censored_blocks"].as_u64().unwrap_or_default();
        assert_eq!(Some(censored + over), report["totals"]["live_blocks"].as_u64(), "{via}: {}", report["totals"]);
    }
}

/// From full to samples, off, and back: samples are kept, nothing waits for ever, and what is recorded in full is culled again.
#[test]
fn a_session_that_changes_its_mode_keeps_samples() {
    if !requirement::uprobes() {
        return;
    }
    let (dir, file) = place();
    let hound = |args: &[&str]| {
        let outcome = process::run(Command::new(binaries::hound()).args(args).env("XDG_RUNTIME_DIR", dir.path()));
        assert!(outcome.status.success(), "{args:?}: {}", outcome.err());
    };
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--quiet", "--via", "patch", "--cull", "100ms", "-o"]).arg(&file).arg("--").arg(program()).args(["200000", "200"]);
    let running = process::start(command.env("XDG_RUNTIME_DIR", dir.path()));
    let pid = || process::descendants(running.pid).first().map(ToString::to_string);
    process::wait_until(|| std::fs::metadata(&file).is_ok_and(|file| file.len() > 4096) || running.has_ended());
    let pid = pid().expect("the program runs");
    for mode in ["sampled", "off", "full"] {
        hound(&["mode", "-p", &pid, mode]);
    }
    let outcome = running.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    let capture = Capture { path: file.clone() };
    assert!(capture.check().status.success(), "{}", capture.check().out());
    let report = json(&file, &["report", "--all"]);
    assert_eq!((&report["totals"]["lost_events"], &report["session"]["anomalies"]), (&Value::from(0), &Value::Array(Vec::new())));
    assert!(report["session"]["stripped"]["blocks"].as_u64() > Some(1000), "{}", report["session"]["stripped"]);
}
