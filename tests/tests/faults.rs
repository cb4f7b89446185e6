//! Page faults: who touches memory first, found out by the kernel alone.

use std::fs;
use std::process::Command;

use hound_tests::attach::{self, Footprint, Subject};
use hound_tests::capture::Capture;
use hound_tests::compile::{Build, Program};
use hound_tests::process;
use hound_tests::requirement;
use serde_json::Value;

const PAGE: u64 = 4096;

fn subject(args: &[&str]) -> Subject {
    Subject::start(Command::new(Program::new("faults.c", Build::Optimised).with(&["-pthread", "-fno-inline", "-g"]).path()).args(args))
}

/// The report of page faults.
fn report(capture: &Capture, more: &[&str]) -> Value {
    let outcome = capture.ask("report", &[&["--faults", "--format", "json", "--all"], more].concat());
    assert!(outcome.status.success(), "{}", outcome.err());
    serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("no JSON: {e}: {:.2000}", outcome.out()))
}

fn passes(site: &Value, function: &str) -> bool {
    site["stack"].as_array().expect("a list").iter().any(|name| name == function)
}

/// Pages of this kind that were touched in this function or what it calls.
fn pages(report: &Value, function: &str, kind: &str) -> u64 {
    let sites = report["sites"].as_array().expect("sites").iter().filter(|site| passes(site, function));
    sites.filter_map(|site| site["kinds"][kind]["pages"].as_u64()).sum()
}

fn bytes(report: &Value, function: &str) -> u64 {
    let sites = report["sites"].as_array().expect("sites").iter().filter(|site| passes(site, function));
    sites.filter_map(|site| site["bytes"].as_u64()).sum()
}

#[test]
fn every_touch_is_told_of_who_and_what_and_of_nobody_else() {
    if !requirement::root() {
        return;
    }
    let (mut subject, mut other) = (subject(&[]), subject(&[]));
    let (pid, file, mapped) = (subject.pid(), subject.file("c.hound"), subject.file("mapped"));
    let before = Footprint::of(pid);
    let session = attach::attach_from_the_kernel(pid, &file, &["--mode", "faults", "--interval", "0"]);
    Footprint::of(pid).must_be_as(&before, "while its page faults are recorded");
    subject.order("fill 3000");
    other.order("fill 3000");
    subject.order("child 700");
    subject.order(&format!("scan 500 {}", mapped.display()));
    subject.order(&format!("copy 300 {}", mapped.display()));
    subject.order("share 200");
    subject.order("grow 400");
    subject.order("load 600");
    let capture = session.detach(&[]);
    Footprint::of(pid).must_be_as(&before, "after detaching");
    subject.order("fill 1000"); // must be in no capture
    let report = report(&capture, &[]);
    // The allocator's header is in a page of its own, before the first that is filled.
    assert_eq!(pages(&report, "fill", "anonymous"), 3001, "{report:#}");
    let filled = report["sites"].as_array().expect("sites").iter().filter(|site| passes(site, "fill"));
    let leaf = |site: &Value| site["frames"][0]["function"].as_str().unwrap_or("").to_owned();
    let set: u64 =
        filled.filter(|site| leaf(site).contains("memset")).filter_map(|site| site["kinds"]["anonymous"]["pages"].as_u64()).sum();
    assert_eq!(set, 3000, "by the C library's function itself: {report:#}");
    assert_eq!(
        (pages(&report, "scan", "file"), pages(&report, "copy", "copy"), pages(&report, "share", "shared")),
        (500, 300, 200),
        "{report:#}"
    );
    let deep = pages(&report, "descend", "stack");
    assert!((400..=430).contains(&deep), "{deep} pages of stack: {report:#}");
    assert_eq!(pages(&report, "load", "anonymous"), 600, "{report:#}");
    let by_kernel = report["faults"]["by_kernel_bytes"].as_u64().expect("a number");
    assert!((600 * PAGE..620 * PAGE).contains(&by_kernel), "{by_kernel} bytes by the kernel");
    // The call into the kernel is the leaf, and its caller is found.
    let load = report["sites"].as_array().expect("sites").iter().find(|site| passes(site, "load")).expect("it is there");
    assert!(leaf(load).contains("read"), "{load:#}");
    assert_eq!((&report["faults"]["lost_events"], &report["faults"]["bytes_ci95"]), (&0.into(), &Value::Null));
    // What is resident is what was touched and is there still.
    let [first, last] = [0, 1].map(|at| report["memory"]["anonymous"][at].as_u64().expect("a number"));
    assert!(last - first >= 3900 * PAGE && last - first <= 4400 * PAGE, "{report:#}");
    let filtered = self::report(&capture, &["--function", "^scan$"]);
    assert_eq!(filtered["faults"]["kinds"]["file"]["pages"], 500);
    let functions = self::report(&capture, &["--by", "function"]);
    let row = functions["rows"].as_array().expect("rows").iter().find(|row| row["function"] == "fill").expect("a row");
    assert!(row["pages"].as_u64() >= Some(3001), "what memset touches is its caller's: {row}");
    let text = capture.ask("report", &["--by", "tree"]).out();
    assert!(text.contains("Touched first") && text.contains("descend"), "a capture of faults is reported as one: {text}");
    assert!(capture.ask("check", &[]).status.success());
    subject.end();
    other.end();
}

#[test]
fn samples_stand_for_what_was_touched() {
    if !requirement::root() {
        return;
    }
    const TOUCHED: u64 = 20_001;
    for interval in [20_000_u64, 200_000] {
        let mut subject = subject(&[]);
        let file = subject.file("c.hound");
        let session = attach::attach_from_the_kernel(subject.pid(), &file, &["--mode", "faults", "--interval", &interval.to_string()]);
        subject.order("fill 20000");
        let report = report(&session.detach(&[]), &["--function", "^fill$"]);
        let p = 1.0 - (-(PAGE as f64) / interval as f64).exp();
        let deviation = (TOUCHED as f64 * (1.0 - p) / p).sqrt() * PAGE as f64;
        let told = report["faults"]["kinds"]["anonymous"]["bytes"].as_u64().expect("a number");
        assert!((told as f64 - (TOUCHED * PAGE) as f64).abs() < 6.0 * deviation, "{told}, off by more than six times {deviation}");
        let [low, high] = [0, 1].map(|at| report["faults"]["bytes_ci95"][at].as_u64().expect("an interval"));
        assert!(low < told && told < high && ((high - low) as f64) < 6.0 * deviation, "{low} to {high}, deviation {deviation}");
        subject.end();
    }
}

#[test]
fn a_huge_page_counts_for_all_of_it() {
    if !requirement::root() {
        return;
    }
    let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !requirement::fulfilled("huge pages", !mode.is_empty() && !mode.contains("[never]")) {
        return;
    }
    let mut subject = subject(&["huge"]);
    let file = subject.file("c.hound");
    let session = attach::attach_from_the_kernel(subject.pid(), &file, &["--mode", "faults", "--interval", "0"]);
    subject.order("huge 10240");
    let report = report(&session.detach(&[]), &["--function", "^fill_huge$"]);
    // Where the kernel has no huge page left it gives small ones: together it is all.
    assert_eq!(report["faults"]["kinds"]["anonymous"]["bytes"], 10240 * PAGE, "{}", report["faults"]);
    let (huge, pages) = (report["faults"]["huge_bytes"].as_u64(), report["faults"]["pages"].as_u64());
    assert!(huge > Some(0) && pages < Some(10240), "{}", report["faults"]);
    subject.end();
}

/// 1 MB a second is leaked amid two million allocations a second that are released at once.
#[test]
fn a_leak_amid_churn_is_found_first_by_its_page_faults() {
    if !requirement::root() {
        return;
    }
    let mut subject = subject(&[]);
    let file = subject.file("c.hound");
    subject.order("leak 0");
    let session = attach::attach_from_the_kernel(subject.pid(), &file, &["--duration", "12s"]);
    let (capture, outcome) = session.finish();
    assert!(outcome.status.success(), "{}", outcome.err());
    subject.order("enough 0");
    let report = report(&capture, &["--by", "function"]);
    let first = &report["rows"][0];
    assert_eq!(first["function"], "leak", "{report:#}");
    let sampled = self::report(&capture, &[]);
    assert!(bytes(&sampled, "leak") > 4_000_000 && bytes(&sampled, "churn") < 500_000, "{sampled:#}");
    // The allocations of the same capture are there, too.
    assert!(capture.report().totals.allocations > 1_000_000, "not the program it was meant to be");
    subject.end();
}

#[test]
fn a_peak_between_two_looks_is_known_by_the_kernels_mark() {
    if !requirement::uprobes() {
        return;
    }
    let dir = tempfile::TempDir::new().expect("a temporary directory can be made");
    let path = dir.path().join("capture.hound");
    let (read, write) = std::io::pipe().expect("a pipe can be made");
    let mut command = Command::new(hound_tests::binaries::hound());
    command.args(["run", "--mode", "faults", "--quiet", "-o"]).arg(&path).arg("--");
    command.arg(Program::new("short_peak.c", Build::Optimised).path()).env("XDG_RUNTIME_DIR", dir.path());
    let hound = process::start_reading(&mut command, std::process::Stdio::from(read));
    hound.wait_for_output("ready");
    let capture = Capture { path };
    let mark = || {
        let events = capture.ask("dump", &["--format", "json"]).out();
        let marks = events.lines().filter(|line| line.contains("\"process_peak\"")).filter_map(|line| serde_json::from_str(line).ok());
        marks.filter_map(|mark: Value| mark["resident"].as_u64()).max()
    };
    assert!(process::wait_until(|| mark() > Some(64 << 20)), "no look has seen the mark: {:?}", mark());
    drop(write);
    assert_eq!(hound.finish().shell_status(), 0);
    let process = &report(&capture, &[])["memory"];
    let most = process["peak_between_looks"].as_u64().max(process["peak_resident"].as_u64());
    assert!(most > Some(64 << 20), "{process}");
    let text = capture.ask("report", &[]).out();
    assert_eq!(text.contains("between two looks"), process["peak_between_looks"].is_u64(), "{text}");
}
