//! `hound index` and `hound strip` as they are typed: an index changes no answer and is never believed of another capture; what strip leaves
//! out is said, and what lived long is there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::binaries;
use hound_tests::capture::{Capture, hound};
use hound_tests::compile::Build;
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Target, Way};
use hound_tests::requirement;
use serde_json::Value;
use tempfile::TempDir;

/// A capture in a folder of its own.
fn recorded(source: &'static str, dir: &Path) -> Capture {
    let path = dir.join("app.hound");
    fs::copy(&Target::new(source, Build::Optimised).record(Way::Run).capture.path, &path).expect("room for it");
    Capture { path }
}

fn index_of(capture: &Capture) -> PathBuf {
    capture.path.with_extension("hound.index")
}

fn printed(outcome: &Outcome) -> String {
    assert!(outcome.status.success(), "{}", outcome.err());
    outcome.out()
}

/// What is asked, and of what kind of answer.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("report", &["--format", "json", "--all"]),
    ("report", &["--leaks"]),
    ("report", &["--peak", "--by", "function", "--function", "a"]),
    ("report", &["--temporary", "--min-size", "32"]),
    ("graph", &["--format", "json"]),
    ("graph", &["--sizes", "--format", "json"]),
    ("flame", &["--allocations", "-o", "-.folded"]),
];

/// The answers to all of them.
fn answers(capture: &Capture, more: &[&str]) -> Vec<String> {
    let of = |(command, words): &(&str, &[&str])| {
        let file = capture.path.with_file_name("answer.folded");
        let in_file = words.contains(&"-.folded");
        let name = file.to_str().expect("a plain path");
        let words: Vec<&str> = words.iter().map(|word| if *word == "-.folded" { name } else { word }).collect();
        let said = printed(&capture.ask(command, &[&words, more].concat()));
        if in_file { fs::read_to_string(&file).expect("it was written") } else { said }
    };
    QUESTIONS.iter().map(of).collect()
}

#[test]
fn answers_are_the_same_with_an_index_and_without() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let capture = recorded("shapes.c", dir.path());
    let without = answers(&capture, &["--no-index"]);
    assert!(!index_of(&capture).exists(), "a small capture needs none");
    let made = capture.ask("index", &[]);
    assert!(printed(&made).contains("app.hound.index"), "{}", made.out());
    assert_eq!(answers(&capture, &[]), without);
    assert_eq!(answers(&capture, &["--no-index"]), without);
    // It is what they come from: events that cannot be read any more are missed by those only who look there.
    let truth = capture.report().totals;
    let modified = fs::metadata(&capture.path).and_then(|file| file.modified()).expect("it is there");
    let mut bytes = fs::read(&capture.path).expect("it is there");
    let third = bytes.len() / 3;
    bytes[third] ^= 1;
    fs::write(&capture.path, &bytes).expect("room for it");
    File::options().write(true).open(&capture.path).and_then(|file| file.set_modified(modified)).expect("our own file");
    assert_eq!(capture.report().totals, truth);
    let read: Value = serde_json::from_str(&capture.ask("report", &["--no-index", "--format", "json"]).out()).expect("JSON");
    assert_ne!(read["totals"]["allocations"], truth.allocations, "nothing was damaged");
    assert!(printed(&hound(["index".as_ref(), "--remove".as_ref(), capture.path.as_os_str()])).contains("removed"));
    assert!(!index_of(&capture).exists());
    assert!(printed(&hound(["index".as_ref(), "--remove".as_ref(), capture.path.as_os_str()])).contains("there was none"));
}

#[test]
fn an_index_of_another_capture_or_a_damaged_one_is_not_believed() {
    let dirs = [(); 2].map(|()| TempDir::new().expect("a temporary directory can be made"));
    let one = recorded("shapes.c", dirs[0].path());
    let other = recorded("entry_points.c", dirs[1].path());
    printed(&one.ask("index", &[]));
    let truth = answers(&other, &["--no-index"]);
    fs::copy(&other.path, &one.path).expect("room for it");
    assert_eq!(answers(&one, &[]), truth, "the capture was written anew");
    printed(&one.ask("index", &[]));
    let mut bytes = fs::read(index_of(&one)).expect("it is there");
    let half = bytes.len() / 2;
    bytes.truncate(half);
    fs::write(index_of(&one), &bytes).expect("room for it");
    assert_eq!(answers(&one, &[]), truth, "half of an index");
    fs::write(index_of(&one), b"something else").expect("room for it");
    assert_eq!(answers(&one, &[]), truth, "no index at all");
}

/// `"$@"` with the folder `$ROOM` unchangeable.
const UNCHANGEABLE: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$ROOM" "$ROOM"
mount -o remount,bind,ro "$ROOM"
"$@"
"#;

/// `"$@"` with a copy of the capture in a file system that has little more room than for that; then what lies there.
const IN_LITTLE_ROOM: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs -o size=$SIZE room "$LITTLE"
cp "$ROOM/app.hound" "$LITTLE/app.hound"
status=0
"$@" || status=$?
ls "$LITTLE"
exit $status
"#;

fn within(script: &str, room: &Path, words: &[&str], environment: &[(&str, &Path)]) -> Outcome {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(binaries::hound()).args(words).env("ROOM", room);
    process::run(command.envs(environment.iter().copied()))
}

#[test]
fn where_the_folder_cannot_be_written_the_index_lies_in_the_cache() {
    if !requirement::containers() {
        return;
    }
    let (dir, cache) = (TempDir::new().expect("a temporary directory can be made"), TempDir::new().expect("one more"));
    let capture = recorded("shapes.c", dir.path());
    let truth = printed(&capture.ask("report", &["--no-index"]));
    let path = capture.path.to_str().expect("a plain path");
    let cached = [("XDG_CACHE_HOME", cache.path())];
    let made = printed(&within(UNCHANGEABLE, dir.path(), &["index", path], &cached));
    assert!(made.contains(cache.path().to_str().expect("a plain path")), "{made}");
    assert!(!index_of(&capture).exists(), "it lies beside the capture");
    assert_eq!(fs::read_dir(cache.path().join("hound")).expect("a folder of hound's").count(), 1);
    assert_eq!(printed(&within(UNCHANGEABLE, dir.path(), &["report", path], &cached)), truth);
    // Removed, wherever it is.
    assert!(printed(&within(UNCHANGEABLE, dir.path(), &["index", "--remove", path], &cached)).contains("removed"));
    assert_eq!(fs::read_dir(cache.path().join("hound")).expect("a folder of hound's").count(), 0);
}

#[test]
fn a_full_disk_gets_no_index_and_harms_no_answer() {
    if !requirement::containers() {
        return;
    }
    let (dir, little) = (TempDir::new().expect("a temporary directory can be made"), TempDir::new().expect("one more"));
    let capture = recorded("shapes.c", dir.path());
    let truth = printed(&capture.ask("report", &["--no-index"]));
    let size = fs::metadata(&capture.path).expect("it is there").len().next_multiple_of(4096) + 8192;
    let path = little.path().join("app.hound");
    let size = PathBuf::from(size.to_string());
    let full = [("XDG_CACHE_HOME", little.path()), ("LITTLE", little.path()), ("SIZE", size.as_path())];
    let path = path.to_str().expect("a plain path");
    let failed = within(IN_LITTLE_ROOM, dir.path(), &["index", path], &full);
    assert!(!failed.status.success() && failed.err().contains("No space left"), "{} {}", failed.out(), failed.err());
    assert!(!failed.out().contains("index"), "something is left of it: {}", failed.out());
    let told = within(IN_LITTLE_ROOM, dir.path(), &["report", path], &full);
    assert!(printed(&told).starts_with(&truth), "{}", told.out());
}

#[test]
fn a_stripped_capture_says_so_and_has_what_lived_long() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let capture = recorded("shapes.c", dir.path());
    let small = Capture { path: dir.path().join("small.hound") };
    let words = ["strip", "--threshold", "1h", "-o"].map(AsRef::as_ref);
    let stripped = hound([&words[..], &[small.path.as_os_str(), capture.path.as_os_str()]].concat());
    assert!(stripped.status.success(), "{}", stripped.err());
    assert!(small.check().status.success(), "{}", small.check().err());
    let (before, after) = (capture.report().totals, small.report().totals);
    // Nothing lives for an hour: what is left is what was never released, and what was released without having been made.
    assert!(before.allocations > before.live_blocks, "nothing was to be left out");
    assert_eq!((after.allocations, after.live_blocks, after.live_bytes), (before.live_blocks, before.live_blocks, before.live_bytes));
    assert_eq!(after.unknown_frees, before.unknown_frees);
    let text = printed(&small.ask("report", &[]));
    assert!(text.contains("STRIPPED of"), "{text}");
    let json: Value = serde_json::from_str(&printed(&small.ask("report", &["--format", "json"]))).expect("JSON");
    assert_eq!(json["session"]["stripped"]["blocks"], before.allocations - before.live_blocks, "{json:.2000}");
    // The same file again, or itself, is no place for it.
    let over = hound([&words[..], &[capture.path.as_os_str(), capture.path.as_os_str()]].concat());
    assert!(!over.status.success(), "it was written over itself");
    assert!(capture.check().status.success(), "the capture was harmed: {}", over.err());
}
