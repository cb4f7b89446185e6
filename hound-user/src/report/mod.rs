//! A capture in, a report out: the composition of `capture`, `symbols`, `heap`, `query` and `view`.

mod head;
mod progress;

use crate::capture::model::{Alloc, Free, Stamped, StreamId};
use crate::capture::{Anomalies, Capture, Pool, SessionInfo, Visitor};
use crate::heap::{Block, Ending, Heaps, Outcome, Peak, Sink};
use crate::query::{Entry, Group, Query, Sites, Suppressions, Tally, ask, tree};
use crate::symbols::{Files, SymbolTable, symbolise};
use crate::view::{self, Answer, PoolAnswer, Style, TextOptions};
use anyhow::Context;
use progress::Progress;
use std::cell::RefCell;
use std::collections::BTreeMap;
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
    let read = read(capture, options, &moments, &progress);
    let (modules, stacks) = (capture.modules(), capture.stacks());
    let here = Files::of_command(&capture.session().command);
    let files = options.files.as_ref().unwrap_or(&here);
    let unresolved = symbolise(&mut names, stacks, modules, files, |done, all| progress.at("naming functions", done as u64, all as u64));
    progress.done();
    let answered = |entries: &[Entry], outcome: &Outcome| {
        let sites = Sites::new(entries, stacks, &names, &moments);
        answer(sites, outcome, capture, options)
    };
    let heap = answered(&read.entries, &read.outcome);
    let pools: Vec<PoolAnswer<'_>> = pools(capture.session(), &read, answered);
    let mut summary = head::summary(capture, &read, &heap.sites);
    summary.anomalies.extend(names_remark);
    summary.unresolved.extend(unresolved.iter().map(ToString::to_string));
    let query = &options.query;
    match options.format {
        Format::Json => view::json(&summary, &heap, &pools),
        Format::Text => {
            let here = std::env::current_dir().ok().and_then(|path| path.to_str().map(str::to_owned));
            let (style, full_stacks) = (options.style, options.full_stacks);
            let text = TextOptions { style, full_stacks, here, group: query.group, measure: query.measure };
            match options.rows_only {
                true => view::rows(&summary, &heap, &pools, &text),
                false => view::text(&summary, &heap, &pools, &text),
            }
        }
    }
}

/// The question asked of one heap.
fn answer<'a>(sites: Sites<'a>, outcome: &Outcome, capture: &Capture, options: &Options) -> Answer<'a> {
    let (query, suppressions, streams) = (&options.query, &options.suppressions, capture.streams());
    let (branches, table) = match query.group {
        // A branch under half a percent is noise, unless everything was asked for.
        Group::Tree => tree(query, &sites, streams, suppressions, if query.limit.is_some() { 200 } else { u64::MAX }),
        _ => (Vec::new(), ask(query, &sites, streams, suppressions)),
    };
    Answer { totals: outcome.totals, peak: outcome.peak, sites, table, branches }
}

/// The pools that the session names, also those that were never used, and any others that events are of.
fn pools<'a>(session: &SessionInfo, read: &Read, answered: impl Fn(&[Entry], &Outcome) -> Answer<'a>) -> Vec<PoolAnswer<'a>> {
    let mut known: BTreeMap<u8, Pool> = session.pools.iter().map(|pool| (pool.number, pool.clone())).collect();
    for &(number, ..) in &read.pools {
        known.entry(number).or_insert_with(|| Pool { number, ..Pool::default() });
    }
    let of = |pool: Pool| {
        let met = read.pools.iter().find(|(number, ..)| *number == pool.number);
        PoolAnswer {
            answer: met.map_or_else(|| answered(&[], &Outcome::default()), |(_, entries, outcome)| answered(entries, outcome)),
            pool,
        }
    };
    known.into_values().map(of).collect()
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
    /// The pools that were met, by number.
    pools: Vec<(u8, Vec<Entry>, Outcome)>,
    anomalies: Anomalies,
}

fn read(capture: &mut Capture, options: &Options, moments: &[u64], progress: &Progress) -> Read {
    let new = || Tally::new(options.query.blocks.clone(), options.query.split(), moments.to_vec());
    let mut tally = new();
    let pools: RefCell<BTreeMap<u8, Tally>> = RefCell::default();
    let shared = &pools;
    let sink_of = |number: u8| -> Sink<'_> {
        shared.borrow_mut().insert(number, new());
        Box::new(move |block: &Block, ending: &Ending, peak: &Peak| {
            if let Some(tally) = shared.borrow_mut().get_mut(&number) {
                tally.add(block, ending, peak);
            }
        })
    };
    let events = capture.counts().heap;
    let heaps = Heaps::new(|block: &Block, ending: &Ending, peak: &Peak| tally.add(block, ending, peak), sink_of);
    let mut watched = Watched { heaps, progress, done: 0, events };
    let anomalies = capture.visit(&mut watched);
    let (outcome, of_pools) = watched.heaps.finish();
    let tallies = std::mem::take(&mut *pools.borrow_mut()).into_values().zip(of_pools);
    let pools = tallies.map(|(tally, (number, outcome))| (number, tally.finish(&outcome.peak), outcome));
    Read { entries: tally.finish(&outcome.peak), outcome, pools: pools.collect(), anomalies }
}

/// A replay that says how far it is.
struct Watched<'a, S> {
    heaps: Heaps<'a, S>,
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
        self.heaps.alloc(time_ns, stream, alloc);
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        self.count();
        self.heaps.free(time_ns, stream, free);
    }

    fn other(&mut self, event: &Stamped) {
        self.heaps.other(event);
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
