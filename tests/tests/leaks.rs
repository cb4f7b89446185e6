//! `hound leaks`: what is called a leak, and what is not.

use std::path::Path;
use std::process::{Command, Stdio};

use hound_tests::attach::{self, Subject};
use hound_tests::binaries;
use hound_tests::capture::hound;
use hound_tests::compile::{Build, Program};
use hound_tests::requirement;
use serde_json::Value;

const SECONDS: &str = "8";

fn kinds() -> Program {
    Program::new("leak_kinds.c", Build::Optimised)
}

/// Records a run of the program that leaks, or of the one that does not; returns the number of its turns.
fn recorded(what: &str, file: &Path, options: &[&str]) -> f64 {
    let mut command = Command::new(binaries::hound());
    command.arg("run").args(options).arg("-o").arg(file).arg("--").arg(kinds().path()).args([SECONDS, what]);
    let output = command.output().expect("hound runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    // It ends in an answer.
    assert!(told.contains(" leak: ") || told.contains("1 place leaks: ") || told.contains("no leak found: "), "{told}");
    let said = String::from_utf8_lossy(&output.stdout);
    said.trim().strip_prefix("turns ").and_then(|turns| turns.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

fn verdicts(file: &Path, more: &[&str]) -> Value {
    let outcome = hound([&["leaks", file.to_str().expect("a plain path"), "--format", "json"], more].concat());
    assert!(outcome.status.success(), "{}", outcome.err());
    serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("no JSON: {e}: {:.2000}", outcome.out()))
}

/// The verdict on a function, and what was found of it.
fn of<'a>(found: &'a Value, function: &str) -> Option<(&'a str, &'a Value)> {
    let all = ["leaks", "others"].into_iter().flat_map(|list| found[list].as_array().expect("a list"));
    let is_it = |one: &&Value| one["stack"].as_array().is_some_and(|stack| stack.iter().any(|name| name == function));
    all.filter(is_it).map(|one| (one["verdict"].as_str().expect("a word"), one)).next()
}

/// The functions that leak: of each leak the innermost of the program's own.
fn leaking(found: &Value) -> Vec<&str> {
    let of_program = |name: &&str| !["made", "malloc", "__libc_malloc", "realloc", "__libc_realloc"].contains(name);
    let sites = found["leaks"].as_array().expect("a list").iter().filter_map(|one| one["stack"].as_array());
    let mut names: Vec<&str> = sites.filter_map(|stack| stack.iter().rev().filter_map(Value::as_str).find(of_program)).collect();
    names.sort_unstable();
    names
}

#[test]
fn what_leaks_is_found_however_little_it_is_and_what_does_not_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("leaking.hound");
    let turns = recorded("leaking", &file, &[]);
    let found = verdicts(&file, &[]);
    assert_eq!(leaking(&found), ["appends", "leaks", "leaks_some"], "{found:#}");
    let recorded_s = found["recorded_ns"].as_f64().expect("a number") / 1e9;
    for (function, bytes, never) in [("leaks", 120.0, 1.0), ("leaks_some", 1.0, 1.0 / 64.0), ("appends", 10.0, 1.0)] {
        let (_, evidence) = of(&found, function).expect("it is there");
        let truth = turns * bytes / recorded_s * 3600.0;
        let [low, high] = [0, 1].map(|at| evidence["bytes_an_hour_ci95"][at].as_f64().expect("a number"));
        assert!(low * 0.9 < truth && truth < high * 1.1, "{function}: {truth} an hour, {low} to {high}");
        let share = evidence["never_released"].as_f64().expect("a number");
        assert!((share / never - 1.0).abs() < 0.1, "{function}: {share}");
    }
    for (function, verdicts) in [
        ("doubles", &["may_leak"][..]),
        ("starts", &["start_up"]),
        ("fills", &["plateau"]),
        ("pooled", &["plateau", "start_up"]),
        ("replaces_in_order", &["turns_over"]),
        ("replaces_at_random", &["turns_over", "plateau"]),
    ] {
        let verdict = of(&found, function).map(|(verdict, _)| verdict);
        assert!(verdicts.contains(&verdict.unwrap_or("nothing")), "{function}: {verdict:?} {found:#}");
    }
    assert!(of(&found, "churns").is_none() && of(&found, "kept_till_exit").is_none(), "all of it was released");
    let text = hound(["leaks", file.to_str().expect("a plain path"), "--exit-code"]);
    assert_eq!(text.status.code(), Some(1));
    assert!(text.out().contains("3 places leak: ") && text.out().contains("never released, with survivors in"), "{}", text.out());
    assert!(text.out().contains("May leak, ") && text.out().contains("larger blocks took the place of smaller ones"), "{}", text.out());
    let (named, list) = (folder.path().join("suppressions"), file.to_str().expect("a plain path"));
    std::fs::write(&named, "leak:leaks_some\n").expect("it can be written");
    let without = ["leaks", list, "--suppressions", named.to_str().expect("a plain path")];
    let text = hound(without).out();
    assert!(text.contains("2 places leak: ") && text.contains("leak:leaks_some"), "{text}");
    let by_function = verdicts(&file, &["--by", "function", "--function", "^leaks"]);
    assert_eq!(
        (by_function["leaks"].as_array().map(Vec::len), &by_function["leaks"][0]["function"]),
        (Some(1), &"made".into()),
        "{by_function:#}"
    );
}

#[test]
fn a_healthy_program_leaks_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("healthy.hound");
    recorded("healthy", &file, &[]);
    let found = verdicts(&file, &[]);
    assert_eq!(leaking(&found), [""; 0], "{found:#}");
    let text = hound(["leaks", file.to_str().expect("a plain path"), "--exit-code"]);
    assert!(text.status.success() && text.out().contains("No leak found: nothing that stays grows steadily"), "{}", text.out());
}

#[test]
fn samples_tell_of_leaks_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sampled.hound");
    let turns = recorded("leaking", &file, &["--mode", "sampled", "--interval", "4096"]);
    let found = verdicts(&file, &[]);
    let (verdict, evidence) = of(&found, "leaks").expect("it is there");
    assert_eq!(verdict, "leak", "{evidence:#}");
    let truth = turns * 120.0 / (found["recorded_ns"].as_f64().expect("a number") / 1e9) * 3600.0;
    let [low, high] = [0, 1].map(|at| evidence["bytes_an_hour_ci95"][at].as_f64().expect("a number"));
    assert!(low < 1.2 * truth && truth < 1.2 * high, "{truth} an hour, {low} to {high}");
    assert!(leaking(&found).iter().all(|name| name.starts_with("leaks") || *name == "appends"), "{found:#}");
}

/// Attaches for some of a program's time; the program runs on when the recording ends.
fn visited(program: &mut Command, file: &Path, options: &[&str]) {
    let mut program = program.stdout(Stdio::null()).spawn().expect("the program starts");
    let pid = program.id().to_string();
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "--quiet", "-p", &pid, "--duration", "8s", "-o"]).arg(file).args(options);
    let output = command.output().expect("hound runs");
    let runs_on = program.try_wait().expect("it can be waited for").is_none();
    program.kill().expect("it can be ended");
    program.wait().expect("it ends");
    assert!(output.status.success() && runs_on, "{runs_on}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_program_that_runs_on_when_the_recording_ends_is_judged_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("attached.hound");
    let sampled: &[&str] = &["--budget", "unlimited", "--interval", "2Ki"];
    let ways = if requirement::root() { &[&["--mode", "full"], sampled][..] } else { &[&["--mode", "full"][..]] };
    for options in ways {
        for (what, leaks) in [("leaking", true), ("healthy", false)] {
            visited(Command::new(kinds().path()).args(["30", what]), &file, options);
            let found = verdicts(&file, &[]);
            assert_eq!(leaking(&found).contains(&"leaks"), leaks, "{options:?} {what}: {found:#}");
            // What is kept until the program's exit grows as a leak does, and this recording does not see the exit.
            let is_known = |name: &&str| *name == "kept_till_exit" || leaks && (name.starts_with("leaks") || *name == "appends");
            assert!(leaking(&found).iter().all(is_known), "{options:?} {what}: {found:#}");
            let cache = of(&found, "replaces_in_order").map(|(verdict, _)| verdict);
            assert!(cache.is_some() && cache != Some("leak"), "{options:?} {what}: what is in use is judged: {found:#}");
        }
    }
}

#[test]
fn what_a_process_has_when_it_ends_is_no_leak_of_those_that_go_on() {
    if !requirement::root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("children.hound");
    let program = Program::new("leaves_at_exit.c", Build::Optimised);
    visited(Command::new(program.path()).arg("30"), &file, &["--tree", "--budget", "unlimited", "--interval", "0"]);
    let report = hound(["report", file.to_str().expect("a plain path"), "--format", "json"]);
    let report: Value = serde_json::from_str(&report.out()).expect("JSON");
    assert!(report["totals"]["allocations"].as_f64().is_some_and(|all| all > 1000.0), "children were recorded: {report:#}");
    assert_eq!(leaking(&verdicts(&file, &[])), [""; 0]);
}

#[test]
fn what_cannot_be_judged_is_refused() {
    if requirement::root() {
        let subject = Subject::start(&mut Command::new(Program::new("faults.c", Build::Optimised).with(&["-pthread"]).path()));
        let file = subject.file("faults.hound");
        attach::attach_from_the_kernel(subject.pid(), &file, &["--mode", "faults"]).detach(&[]);
        let outcome = hound(["leaks", file.to_str().expect("a plain path")]);
        assert!(!outcome.status.success() && outcome.err().contains("page faults and no allocations"), "{}", outcome.err());
        subject.end();
    }
    let outcome = hound(["leaks", "no-such-file.hound"]);
    assert!(outcome.status.code() == Some(2) && outcome.err().contains("no-such-file.hound"), "{}", outcome.err());
    for by in ["tree", "mode"] {
        assert!(hound(["leaks", "x.hound", "--by", by]).err().contains("only places can be judged"), "{by}");
    }
}
