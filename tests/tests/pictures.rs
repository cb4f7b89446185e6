//! Flamegraphs and graphs of recorded programs: their figures are those of the report, any program can draw them, and their script is one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::attach::{self, Subject};
use hound_tests::capture::{Capture, Frame, Site};
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Recording, Target, Way};
use hound_tests::requirement;
use tempfile::TempDir;

struct Drawn {
    dir: TempDir,
    recording: Recording,
}

impl Drawn {
    fn of(source: &'static str) -> Drawn {
        Drawn::from(Target::new(source, Build::Plain).record(Way::Run))
    }

    fn from(recording: Recording) -> Drawn {
        Drawn { dir: TempDir::new().expect("a temporary directory can be made"), recording }
    }

    fn capture(&self) -> &Capture {
        &self.recording.capture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ask(&self, command: &str, name: &str, args: &[&str]) -> Outcome {
        let output = self.path(name);
        let with_output = [&["-o", output.to_str().expect("a plain name")], args].concat();
        self.capture().ask(command, &with_output)
    }

    /// What `hound COMMAND CAPTURE -o NAME ARGS…` writes.
    fn draw(&self, command: &str, name: &str, args: &[&str]) -> String {
        let outcome = self.ask(command, name, args);
        assert!(outcome.status.success(), "hound {command} {args:?}: {}", outcome.err());
        assert!(outcome.stdout.is_empty() && outcome.err().contains(name), "{}{}", outcome.out(), outcome.err());
        fs::read_to_string(self.path(name)).expect("it was written")
    }
}

/// A figure of a report's site.
type Figure = fn(&Site) -> u64;

/// Figures by call path.
fn folded(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (path, figure) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no call path: {line}"));
        (path.to_owned(), figure.parse().unwrap_or_else(|e| panic!("{line}: {e}")))
    };
    text.lines().map(line).collect()
}

#[test]
fn collapsed_stacks_hold_what_the_report_says_path_by_path() {
    let drawn = Drawn::of("shapes.c");
    let report = drawn.capture().report();
    let cases: [(&[&str], Figure); 4] = [
        (&["--leaks", "--no-default-suppressions"], |site| site.live_bytes),
        (&["--peak"], |site| site.peak_bytes),
        (&["--allocated"], |site| site.allocated_bytes),
        (&["--allocations"], |site| site.allocations),
    ];
    for (args, figure) in cases {
        let found = folded(&drawn.draw("flame", "a.folded", &[args, &["--full-stacks"]].concat()));
        let mut expected: BTreeMap<String, u64> = BTreeMap::new();
        for site in report.sites.iter().filter(|site| figure(site) > 0) {
            let name = |frame: &Frame| {
                let inlined = if frame.inlined { "_[i]" } else { "" };
                format!("{}{inlined}", frame.function.as_deref().unwrap_or(""))
            };
            let path: Vec<String> = site.frames.iter().rev().map(name).collect();
            *expected.entry(path.join(";")).or_default() += figure(site);
        }
        assert_eq!(found, expected, "{args:?}");
    }
    let found = folded(&drawn.draw("flame", "b.folded", &["--allocated", "--function", "padded", "--inverted"]));
    assert!(!found.is_empty() && found.keys().all(|path| path.contains("padded") && path.ends_with("main")), "{found:?}");
}

#[test]
fn a_flamegraph_says_what_the_report_says_and_needs_nothing_else() {
    let drawn = Drawn::of("shapes.c");
    let picture = drawn.draw("flame", "a.svg", &["--allocated"]);
    let total = drawn.capture().report().totals.allocated_bytes;
    // The first box is the root, and its figure is exact.
    let root = picture.split("<g id=\"boxes\">").nth(1).and_then(|boxes| boxes.lines().nth(1)).expect("a root");
    assert!(root.contains(&format!("data-v=\"{total}\"")), "{total}: {root}");
    assert!(picture.contains("<title>walk&#10;"), "functions have their names");
    let page = drawn.draw("flame", "a.html", &["--allocated"]);
    assert!(page.starts_with("<!doctype html>") && page.contains(&picture), "the page is the picture, framed");
    for outside in ["src=", "href=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("http").count(), 3, "only the names of two name spaces");
}

#[test]
fn the_script_of_a_flamegraph_is_one() {
    if !requirement::program("node") {
        return;
    }
    let drawn = Drawn::of("entry_points.c");
    let picture = drawn.draw("flame", "a.svg", &[]);
    let script = picture.split("<![CDATA[").nth(1).and_then(|rest| rest.split("]]>").next()).expect("a script");
    let file = drawn.path("script.js");
    fs::write(&file, script).expect("it can be written");
    let outcome = process::run(Command::new("node").arg("--check").arg(&file));
    assert!(outcome.status.success(), "{}", outcome.err());
    assert!(script.contains("addEventListener"));
}

/// A file that begins as PNG does, and has more in it than one colour takes.
fn must_be_drawn(picture: &Path) {
    let image = picture.with_extension("png");
    let outcome = process::run(Command::new("rsvg-convert").arg(picture).arg("-o").arg(&image));
    assert!(outcome.status.success(), "{}: {}", picture.display(), outcome.err());
    let bytes = fs::read(&image).expect("it was drawn");
    assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 5000, "{}: {} bytes", picture.display(), bytes.len());
}

#[test]
fn every_picture_can_be_drawn_without_a_browser() {
    if !requirement::program("rsvg-convert") {
        return;
    }
    let plain = Drawn::of("threads.c");
    let cpp = Drawn::of("cpp_new.cpp");
    let sampled = Drawn::from(Target::new("threads.c", Build::Optimised).sampled(1000).record(Way::Run));
    let other = plain.capture().path.to_str().expect("a plain name").to_owned();
    for drawn in [&plain, &cpp, &sampled] {
        let pictures: [(&str, &[&str]); 9] = [
            ("graph", &["--sizes"]),
            ("graph", &["--lifetimes", "--by", "function"]),
            ("flame", &["--allocated"]),
            ("flame", &["--allocations", "--inverted"]),
            ("flame", &["--allocated", "--compare", &other]),
            ("graph", &[]),
            ("graph", &["--by", "thread", "--gradient", "navy:orange"]),
            ("graph", &["--rates", "--by", "function", "--top", "3"]),
            ("graph", &["--by", "size", "--heap-only", "--start", "1ms", "--end", "1h"]),
        ];
        for (number, (command, args)) in pictures.into_iter().enumerate() {
            let name = format!("{number}.svg");
            drawn.draw(command, &name, args);
            must_be_drawn(&drawn.path(&name));
        }
    }
}

#[test]
fn a_graph_is_as_high_as_the_peak_of_the_report() {
    let drawn = Drawn::of("shapes.c");
    let peak = drawn.capture().ask("report", &["--format", "json", "--peak"]);
    let report: serde_json::Value = serde_json::from_str(&peak.out()).expect("a report");
    let peak = report["totals"]["peak_bytes"].as_u64().expect("a figure");
    let picture = drawn.draw("graph", "a.svg", &["--heap-only", "--top", "1"]);
    // One series and the rest: the upper edge of the rest is the whole.
    let shown = |bytes: u64| match bytes {
        0..1000 => format!("{bytes} B"),
        _ => format!("{:.*} kB", if bytes < 9995 { 2 } else { usize::from(bytes < 99_950) }, bytes as f64 / 1000.0),
    };
    assert!(peak < 999_500, "the test knows kB only: {peak}");
    assert!(picture.contains(&format!("{} at most", shown(peak))), "{peak}: {}", &picture[..2000]);
}

#[test]
fn pictures_of_samples_say_that_they_are_estimates() {
    let drawn = Drawn::from(Target::new("threads.c", Build::Optimised).sampled(1000).record(Way::Run));
    let flame = drawn.draw("flame", "a.svg", &["--allocated"]);
    assert!(flame.contains("all: ≈ ") && flame.contains("holds the truth with 95 %"), "{}", &flame[..2000]);
    let graph = drawn.draw("graph", "b.svg", &[]);
    for words in ["≈ ", "sampled: estimates", "the range that holds the truth with 95 %", "class=\"band\""] {
        assert!(graph.contains(words), "{words}: {}", &graph[..2000]);
    }
}

/// What `hound graph --format json ARGS…` says.
fn numbers(capture: &Capture, args: &[&str]) -> serde_json::Value {
    let outcome = capture.ask("graph", &[&["--format", "json"], args].concat());
    assert!(outcome.status.success(), "{args:?}: {}", outcome.err());
    serde_json::from_str(&outcome.out()).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", outcome.out()))
}

fn sum(values: &serde_json::Value, of: &str) -> u64 {
    values.as_array().expect("a list").iter().map(|value| value[of].as_u64().unwrap_or_else(|| panic!("no {of}: {value}"))).sum()
}

#[test]
fn histograms_hold_every_block_of_the_report() {
    let drawn = Drawn::of("shapes.c");
    let totals = drawn.capture().report().totals;
    for what in ["--sizes", "--lifetimes"] {
        let found = numbers(drawn.capture(), &[what]);
        let all = (sum(&found["buckets"], "blocks"), sum(&found["buckets"], "bytes"));
        assert_eq!(all, (totals.allocations, totals.allocated_bytes), "{what}");
    }
    let found = numbers(drawn.capture(), &["--lifetimes"]);
    let never =
        found["buckets"].as_array().expect("a list").iter().find(|bucket| bucket["name"] == "never released").expect("a bar of its own");
    assert_eq!(never["bytes"], totals.live_bytes);
    let leaked = numbers(drawn.capture(), &["--sizes", "--only", "leaked", "--by", "mode"]);
    assert_eq!(sum(&leaked["buckets"], "bytes"), totals.live_bytes);
    assert_eq!(leaked["series"][0]["name"], "every block recorded: exact");
    let of_process = numbers(drawn.capture(), &["--sizes", "--by", "process"]);
    assert!(of_process["series"][0]["name"].as_str().expect("a name").contains("(process "), "{of_process}");
}

#[test]
fn pages_and_address_space_hold_what_lives() {
    let drawn = Drawn::of("shapes.c");
    let totals = drawn.capture().report().totals;
    let pages = numbers(drawn.capture(), &["--fragmentation", "--top", "40"]);
    let pinned = sum(&pages["sites"], "pages") + pages["shared_pages"].as_u64().expect("a figure");
    assert_eq!((pages["live_bytes"].as_u64(), Some(pinned)), (Some(totals.live_bytes), pages["pages"].as_u64()));
    let space = numbers(drawn.capture(), &["--address-space"]);
    assert_eq!(sum(&space["ranges"], "live_bytes"), totals.live_bytes);
    assert!(numbers(drawn.capture(), &["--fragmentation", "--at", "0"])["live_bytes"] == 0, "nothing lived yet");
}

#[test]
fn what_lives_at_a_detach_is_drawn_without_a_moment_given() {
    if !requirement::root() {
        return;
    }
    let mut subject = Subject::start(&mut Command::new(Program::new("attach_target.c", Build::Optimised).path()));
    let file = subject.file("attached.hound");
    let session = attach::attach(subject.pid(), &file, &[]);
    subject.order("noted");
    let capture = session.detach(&[]);
    let live = capture.report().totals.live_bytes;
    let lifetimes = numbers(&capture, &["--lifetimes"]);
    let buckets = lifetimes["buckets"].as_array().expect("a list");
    let bar = |name: &str| buckets.iter().find(|bucket| bucket["name"] == name).map(|bucket| bucket["bytes"].clone());
    assert_eq!((bar("never released"), bar("not known").unwrap_or(0.into())), (Some(live.into()), 0.into()), "{lifetimes:#}");
    assert_eq!(numbers(&capture, &["--fragmentation"])["live_bytes"], live);
    assert_eq!(sum(&numbers(&capture, &["--address-space"])["ranges"], "live_bytes"), live);
    subject.end();
}

#[test]
fn a_flamegraph_of_the_last_moment_is_what_lives_at_the_end() {
    let drawn = Drawn::of("shapes.c");
    let of = |args: &[&str]| folded(&drawn.draw("flame", "a.folded", &[args, &["--full-stacks"]].concat()));
    let wall = numbers(drawn.capture(), &[])["times_ns"].as_array().and_then(|times| times.last().cloned()).expect("a moment");
    assert_eq!(of(&["--at", &format!("{wall}ns")]), of(&["--leaks", "--no-default-suppressions"]));
    assert!(of(&["--at", "0"]).is_empty());
    let other = drawn.capture().path.to_str().expect("a plain name").to_owned();
    let compared = drawn.draw("flame", "b.svg", &["--at", &format!("{wall}ns"), "--compare", &other]);
    assert!(compared.contains("Live after "), "{}", &compared[..2000]);
    let late = drawn.ask("flame", "c.svg", &["--at", "10h"]);
    assert!(late.status.code() == Some(2) && late.err().contains("the capture ends after"), "{}", late.err());
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let drawn = Drawn::of("entry_points.c");
    let capture = drawn.capture().path.to_str().expect("a plain name").to_owned();
    let refused = |outcome: &Outcome, about: &str| {
        assert_eq!(outcome.status.code(), Some(2), "{}", outcome.err());
        assert!(outcome.err().contains(about) && !outcome.err().contains("panicked"), "{about}: {}", outcome.err());
    };
    refused(&drawn.ask("flame", "a.png", &[]), ".folded");
    refused(&drawn.ask("graph", "a.html", &[]), ".svg");
    refused(&drawn.ask("graph", "a.svg", &["--by", "tree"]), "a tree cannot be stacked");
    refused(&drawn.ask("graph", "a.svg", &["--gradient", "navy"]), "navy:orange");
    refused(&drawn.ask("graph", "a.svg", &["--start", "2s", "--end", "1s"]), "--start");
    refused(&drawn.ask("graph", "a.svg", &["--sizes", "--lifetimes"]), "--lifetimes");
    refused(&drawn.ask("graph", "a.svg", &["--sizes", "--at", "1s"]), "--at");
    let sampled = Drawn::from(Target::new("threads.c", Build::Optimised).sampled(1000).record(Way::Run));
    refused(&sampled.ask("graph", "a.svg", &["--fragmentation"]), "of samples it is not known");
    refused(&sampled.ask("graph", "a.svg", &["--address-space"]), "of samples it is not known");
    refused(&drawn.ask("flame", "no/such/folder.svg", &[]), "cannot write");
    // A capture is not written over, whatever it is called.
    let named = drawn.path("capture.svg");
    fs::copy(&capture, &named).expect("it can be copied");
    let named = Capture { path: named };
    let itself = named.path.to_str().expect("a plain name").to_owned();
    refused(&named.ask("flame", &["-o", &itself]), "is a capture");
    assert_eq!(fs::read(&named.path).expect("it is there"), fs::read(&capture).expect("it is there"));
}
