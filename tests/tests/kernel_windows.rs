//! Within a budget a busy program is observed in windows: its leak is found, and no breakpoint is in its text outside of them.

use std::path::Path;
use std::process::Command;

use hound_tests::attach::{self, Subject, changed_bytes};
use hound_tests::binaries;
use hound_tests::compile::{Build, Program};
use hound_tests::process::wait_until;
use hound_tests::requirement;
use serde_json::Value;

#[test]
fn a_leak_is_found_within_the_budget_and_the_text_is_clean_between_windows() {
    if !requirement::uprobes() {
        return;
    }
    let program = Program::new("busy.c", Build::Optimised).with(&["-DCHURNED=100"]);
    let subject = Subject::start(&mut Command::new(program.path()));
    let pid = subject.pid();
    let leaked = || subject.oracle().facts[0];
    let file = subject.file("capture.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "-p", &pid.to_string(), "--budget", "1%", "--quiet", "-o"]).arg(&file);
    let before = leaked();
    let session = attach::begin(pid, &file, &mut command).unwrap_or_else(|said| panic!("hound did not attach: {said}"));
    let attached = leaked();
    // Both states of the text, again and again, until there is enough to tell the leak from a cache of the same traffic.
    let (mut with, mut without, mut asked) = (0, 0, attached);
    let mut told = String::from("nothing");
    let mut is_told = || {
        if changed_bytes(pid) > 0 {
            with += 1
        } else {
            without += 1
        }
        // A report of what there is so far, after each MB that leaks.
        if leaked() - asked < 1 << 20 {
            return subject.running.has_ended();
        }
        asked = leaked();
        match first_site(&file) {
            Some(first) => {
                let found = first["stack"].to_string().contains("leak_here") && interval(&first, "live_bytes").0 > 0.0;
                told = format!("{first:#}");
                found && with > 0 && without > 0
            }
            None => false,
        }
    };
    // A machine that is busy with other things gives the program bursts, and hound needs longer to be sure.
    let seen = (0..3).any(|_| wait_until(&mut is_told));
    assert!(seen, "the leak is not found in {} bytes; breakpoints: {with} times, clean: {without} times; first: {told}", asked - attached);
    assert!(!subject.running.has_ended());
    let (capture, said) = session.detach_and_hear(&[]);
    let detached = leaked();
    assert!(wait_until(|| changed_bytes(pid) == 0), "breakpoints are left");
    println!("found after {} bytes had leaked", asked - attached);
    let check = capture.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    let report: Value = serde_json::from_slice(&capture.ask("report", &["--all", "--format", "json"]).stdout).expect("JSON");
    let sites = report["sites"].as_array().expect("sites");
    let first = &sites[0];
    assert!(first["stack"].to_string().contains("leak_here"), "another site is ranked first: {first:#}\n{said}");
    // What was leaked while it was attached, by the program's own count: between the moments around the attach and around the detach.
    let (least, most) = (asked - attached, detached - before);
    let (low, high) = interval(first, "live_bytes");
    assert!(
        low <= most as f64 && high >= least as f64,
        "the interval {low}..{high} does not meet the truth {least}..{most}: {first:#}\n{said}"
    );
    // An interval that holds anything says nothing.
    assert!(high < 20.0 * most as f64, "{low}..{high} of {most}");
    // The cache's blocks are in use whenever one looks. What lives of them is no more than fits in, and is not held for more.
    if let Some(cache) = sites.iter().find(|site| site["stack"].to_string().contains("cache_here")) {
        let (low, high) = interval(cache, "live_bytes");
        let truth = subject.oracle().facts[1] as f64;
        assert!(low <= truth && truth <= high, "the interval {low}..{high} of the cache does not hold {truth}: {cache:#}\n{said}");
    }
    subject.end();
}

/// What a report of the file as it is now ranks first.
fn first_site(file: &Path) -> Option<Value> {
    let asked = hound_tests::capture::hound([Path::new("report"), file, Path::new("--format"), Path::new("json")]);
    let report: Value = serde_json::from_slice(&asked.stdout).ok()?;
    report["sites"].get(0).cloned()
}

/// The 95 % interval of a site's figure.
fn interval(site: &Value, figure: &str) -> (f64, f64) {
    let bounds = &site[format!("{figure}_ci95")];
    let bound = |at: usize| bounds[at].as_f64().unwrap_or_else(|| panic!("no interval of {figure}: {site:#}"));
    (bound(0), bound(1))
}

#[test]
fn blocks_of_other_allocators_are_not_judged_by_glibcs_marks() {
    if !requirement::uprobes() {
        return;
    }
    let subject = Subject::start(&mut Command::new(Program::new("own_marks.c", Build::Optimised).path()));
    let pid = subject.pid();
    let file = subject.file("capture.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["attach", "-p", &pid.to_string(), "--budget", "1%", "--interval", "256", "--quiet", "-o"]).arg(&file);
    let session = attach::begin(pid, &file, &mut command).unwrap_or_else(|said| panic!("hound did not attach: {said}"));
    // Looks come ten times a second, and what is in doubt after one window is told before the next: many windows are many looks.
    let windows = || told(&file, " window ");
    let enough = wait_until(|| windows() >= 6 && told(&file, "state=\"unknown\"") >= 100);
    let (capture, said) = session.detach_and_hear(&[]);
    assert!(enough, "{} windows, {} blocks in doubt: {said}", windows(), told(&file, "state=\"unknown\""));
    assert_eq!(told(&capture.path, "state=\"gone\""), 0, "blocks that live are said to be gone: {said}");
    subject.end();
}

/// Lines of the capture's events, as it is now, that hold this.
fn told(file: &Path, what: &str) -> usize {
    hound_tests::capture::hound([Path::new("dump"), file]).out().lines().filter(|line| line.contains(what)).count()
}
