//! A capture in, a report out: the composition of `capture`, `symbols`, `heap`, `query` and `view`.

mod head;
mod progress;

use crate::capture::model::{Alloc, StackId, Stamped, StreamId};
use crate::capture::{Anomalies, Capture, Visitor};
use crate::heap::{Block, Ending, Outcome, Peak, Replay};
use crate::query::{Entry, Group, Query, Sites, Suppressions, Tally, ask, tree};
use crate::symbols::{Files, SymbolTable, symbolise};
use crate::view::{self, Style, TextOptions};
use anyhow::Context;
use hound_common::hook::Kind;
use progress::Progress;
use std::path::Path;

/// What a report is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What to report, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The question.
    pub query: Query,
    /// What to leave out of a leak report.
    pub suppressions: Suppressions,
    /// Text or JSON.
    pub format: Format,
    /// Colours or not.
    pub style: Style,
    /// Show every frame.
    pub full_stacks: bool,
    /// In text: only the section asked for, without what stands before it.
    pub rows_only: bool,
    /// Show progress on stderr (it appears only if something takes over a second).
    pub progress: bool,
    /// Where to find modules, if the capture has no names in it; none = on this machine, the program by its command line.
    pub files: Option<Files>,
}

/// Rows of a report unless told otherwise.
pub const DEFAULT_LIMIT: usize = 20;

impl Default for Options {
    fn default() -> Self {
        Options {
            query: Query { limit: Some(DEFAULT_LIMIT), ..Query::default() },
            suppressions: Suppressions::runtime(),
            format: Format::Text,
            style: Style::Plain,
            full_stacks: false,
            rows_only: false,
            progress: false,
            files: None,
        }
    }
}

/// The leak report of a capture, as `hound run` prints it at its end.
///
/// # Errors
/// If the capture cannot be read.
pub fn leak_report(path: &Path, options: &Options) -> anyhow::Result<String> {
    report(path, options)
}

/// The report of a capture.
///
/// # Errors
/// If the capture cannot be read.
pub fn report(path: &Path, options: &Options) -> anyhow::Result<String> {
    let mut capture = Capture::open(path)?;
    Ok(report_of(&mut capture, options))
}

/// The report of an open capture.
pub fn report_of(capture: &mut Capture, options: &Options) -> String {
    let progress = Progress::new(options.progress);
    let (mut names, names_remark) = stored_names(capture);
    let moments = names.remappings();
    let read = read(capture, options, moments.clone(), &progress);
    let (modules, stacks) = (capture.modules(), capture.stacks());
    let here = Files::of_command(&capture.session().command);
    let files = options.files.as_ref().unwrap_or(&here);
    let unresolved = symbolise(&mut names, stacks, modules, files, |done, all| progress.at("naming functions", done as u64, all as u64));
    progress.done();
    let sites = Sites::new(&read.entries, stacks, &names, &moments);
    let mut summary = head::summary(capture, &read, &sites);
    summary.anomalies.extend(names_remark);
    summary.unresolved.extend(unresolved.iter().map(ToString::to_string));
    let query = &options.query;
    let (branches, table) = match query.group {
        // A branch under half a percent is noise, unless everything was asked for.
        Group::Tree => tree(query, &sites, capture.streams(), &options.suppressions, if query.limit.is_some() { 200 } else { u64::MAX }),
        _ => (Vec::new(), ask(query, &sites, capture.streams(), &options.suppressions)),
    };
    match options.format {
        Format::Json => view::json(&summary, &sites, &table, &branches),
        Format::Text => {
            let here = std::env::current_dir().ok().and_then(|path| path.to_str().map(str::to_owned));
            let (style, full_stacks) = (options.style, options.full_stacks);
            let text = TextOptions { style, full_stacks, here, group: query.group, measure: query.measure };
            match options.rows_only {
                true => view::rows(&summary, &sites, &table, &text),
                false => view::text(&summary, &sites, &table, &branches, &text),
            }
        }
    }
}

/// The report of the first `bytes` of a capture that is still being recorded.
///
/// # Errors
/// If the capture cannot be read.
pub fn report_growing(path: &Path, bytes: u64, options: &Options) -> anyhow::Result<String> {
    let mut capture = Capture::open_growing(path, bytes)?;
    Ok(report_of(&mut capture, options))
}

/// The names stored in the capture; none if it was cut before they were written.
fn stored_names(capture: &Capture) -> (SymbolTable, Option<String>) {
    let none = || SymbolTable::new(capture.modules());
    match capture.symbols().map(|bytes| SymbolTable::from_bytes(&bytes)) {
        None => (none(), None),
        Some(Ok(table)) => (table, None),
        Some(Err(error)) => (none(), Some(format!("{error}: names are taken from this machine"))),
    }
}

/// What one pass over the capture gives.
struct Read {
    entries: Vec<Entry>,
    outcome: Outcome,
    anomalies: Anomalies,
}

fn read(capture: &mut Capture, options: &Options, moments: Vec<u64>, progress: &Progress) -> Read {
    let mut tally = Tally::new(options.query.blocks.clone(), options.query.split(), moments);
    let events = capture.counts().heap;
    let replay = Replay::new(|block: &Block, ending: &Ending, peak: &Peak| tally.add(block, ending, peak));
    let mut watched = Watched { replay, progress, done: 0, events };
    let anomalies = capture.visit(&mut watched);
    let outcome = watched.replay.finish();
    Read { entries: tally.finish(&outcome.peak), outcome, anomalies }
}

/// A replay that says how far it is.
struct Watched<'a, S> {
    replay: Replay<S>,
    progress: &'a Progress,
    done: u64,
    events: u64,
}

impl<S> Watched<'_, S> {
    fn count(&mut self) {
        self.done += 1;
        if self.done.is_multiple_of(1 << 18) {
            self.progress.at("reading events", self.done, self.events);
        }
    }
}

impl<S: FnMut(&Block, &Ending, &Peak)> Visitor for Watched<'_, S> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        self.count();
        self.replay.alloc(time_ns, stream, alloc);
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, addr: u64, kind: Kind, realloc: bool, stack: Option<StackId>) {
        self.count();
        self.replay.free(time_ns, stream, addr, kind, realloc, stack);
    }

    fn other(&mut self, event: &Stamped) {
        self.replay.other(event);
    }
}

/// A suppression file's patterns, added.
///
/// # Errors
/// If it cannot be read, or a line is no pattern.
pub fn add_suppressions(suppressions: &mut Suppressions, path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read suppressions {}", path.display()))?;
    suppressions.add(&text).map_err(|(number, line)| {
        anyhow::anyhow!("{}:{number}: `{line}` is no suppression: lines must be `leak:PATTERN` or start with #", path.display())
    })
}
