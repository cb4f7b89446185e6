//! What hound says about a capture, read the way its users read it: `dump`, `report`, `info` and `check`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::binaries;
use crate::process::{self, Outcome};

/// One line of `hound dump --format json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Nanoseconds.
    #[serde(default)]
    pub t: u64,
    /// The thread.
    #[serde(default)]
    pub tid: u32,
    /// The process, where the capture has several.
    #[serde(default)]
    pub pid: u32,
    /// What it is: `alloc`, `free`, `map`, `marker`, …
    pub event: String,
    /// The function's name.
    #[serde(default)]
    pub kind: Option<String>,
    /// The block.
    #[serde(default)]
    pub addr: u64,
    /// Requested bytes.
    #[serde(default)]
    pub size: u64,
    /// Usable bytes, where known.
    #[serde(default)]
    pub usable: Option<u64>,
    /// Half of a realloc.
    #[serde(default)]
    pub realloc: bool,
    /// The block that this one continues.
    #[serde(default)]
    pub prev: Option<u64>,
    /// Return addresses, innermost first.
    #[serde(default)]
    pub stack: Option<Vec<u64>>,
    /// Why the stack ends: `root` if it is whole. Other events than blocks have an address here (a module: its end), or nothing.
    #[serde(default)]
    pub end: serde_json::Value,
    /// Bytes that a `map` or `unmap` is about.
    #[serde(default)]
    pub length: u64,
    /// A marker's.
    #[serde(default)]
    pub value: u64,
    /// Of a `lost`: how many.
    #[serde(default)]
    pub count: u64,
    /// Of a `lost`: why.
    #[serde(default)]
    pub reason: serde_json::Value,
    /// A `rate`'s, in bytes.
    #[serde(default)]
    pub mean: u64,
    /// A `module`'s file.
    #[serde(default)]
    pub path: Option<String>,
    /// Its first address.
    #[serde(default)]
    pub start: u64,
}

/// `hound report --format json`.
#[derive(Debug, Deserialize)]
pub struct Report {
    /// Of the whole process.
    pub totals: Totals,
    /// By allocating call path.
    pub sites: Vec<Site>,
}

/// Totals of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[expect(missing_docs, reason = "the names are the report's contract")]
pub struct Totals {
    pub allocations: u64,
    pub allocated_bytes: u64,
    pub frees: u64,
    pub live_blocks: u64,
    pub live_bytes: u64,
    #[serde(default)]
    pub peak_bytes: u64,
    pub lost_events: u64,
    pub unknown_frees: u64,
}

/// One site of a report.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the report's contract")]
pub struct Site {
    pub stack: Vec<String>,
    pub frames: Vec<Frame>,
    pub allocations: u64,
    pub allocated_bytes: u64,
    pub live_blocks: u64,
    pub live_bytes: u64,
    pub peak_bytes: u64,
    pub temporary: u64,
}

impl Site {
    /// Whether some frame is in this function.
    pub fn passes(&self, function: &str) -> bool {
        self.stack.iter().any(|f| f == function)
    }
}

/// One frame of a site.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the names are the report's contract")]
pub struct Frame {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u64>,
    pub module: Option<String>,
    #[serde(default)]
    pub inlined: bool,
}

/// A finished capture file.
#[derive(Debug)]
pub struct Capture {
    /// The file.
    pub path: PathBuf,
}

impl Capture {
    /// Runs `hound COMMAND FILE ARGS…`.
    pub fn ask(&self, command: &str, args: &[&str]) -> Outcome {
        hound([command].into_iter().map(OsStr::new).chain([self.path.as_os_str()]).chain(args.iter().map(OsStr::new)))
    }

    fn answer(&self, command: &str, args: &[&str]) -> String {
        let outcome = self.ask(command, args);
        assert!(outcome.status.success(), "hound {command} {args:?} of {}: {}\n{}", self.path.display(), outcome.status, outcome.err());
        outcome.out()
    }

    /// Every event, in the order of time.
    pub fn events(&self) -> Vec<Event> {
        self.answer("dump", &["--format", "json"])
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("hound dump printed what is no event: {e}: {line}")))
            .collect()
    }

    /// The report of everything, nothing left out.
    pub fn report(&self) -> Report {
        let text = self.answer("report", &["--format", "json", "--all"]);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("hound report printed no report: {e}: {text:.2000}"))
    }

    /// How the frames of all stacks were found, by way.
    pub fn unwinding(&self) -> BTreeMap<String, u64> {
        let text = self.answer("info", &["--format", "json"]);
        let info: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("hound info printed no JSON: {e}: {text}"));
        let ways = info.get("unwinding").and_then(|u| u.as_object()).unwrap_or_else(|| panic!("hound info has no \"unwinding\": {text}"));
        ways.iter().filter_map(|(way, n)| Some((way.clone(), n.as_u64()?))).collect()
    }

    /// `hound check`: whether the file is whole and sound.
    pub fn check(&self) -> Outcome {
        self.ask("check", &[])
    }
}

/// Runs the `hound` binary with these arguments.
pub fn hound<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Outcome {
    process::run(Command::new(binaries::hound()).args(args))
}

/// Waits until a recording that ends on its own has been finished.
///
/// # Panics
/// If `hound check` does not call it whole by the deadline.
pub fn wait_until_finished(path: &Path) -> Capture {
    let capture = Capture { path: path.to_owned() };
    let finished = process::wait_until(|| path.exists() && capture.check().status.success());
    assert!(finished, "{} was never finished: {}", path.display(), capture.check().err());
    capture
}
