//! A capture in, a report out: the composition of `capture`, `symbols`, `heap`, `query` and `view`.

mod faults;
mod flame;
mod fragments;
mod graph;
mod head;
mod histogram;
mod indexed;
mod leaks;
mod material;
mod naming;
mod processes;
mod progress;
mod second;
mod space;

use crate::capture::model::{ProcessId, StreamId};
use crate::capture::{Anomalies, Capture, Pool, SessionInfo};
use crate::columns::{Columns, Watched};
use crate::heap::{Block, Ending, Heaps, Outcome, Peak, Processes, Sampling, Sink};
use crate::query::{Entry, Group, Listing, Query, Sites, Sums, Suppressions, Tallied, Tally, Whole, ask, tree};
use crate::symbols::{Files, SymbolTable, symbolise};
use crate::view::{self, Answer, PoolAnswer, Style, TextOptions};
pub use flame::{FlameFormat, FlameOptions, flamegraph};
pub use graph::{GraphOf, GraphOptions, graph};
pub use indexed::{Indexing, LARGE, index_of};
pub use leaks::{leaks, verdict};

use anyhow::Context;
pub(crate) use naming::told_apart;
pub(crate) use progress::Progress;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

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
    /// Report page faults instead of allocations. A capture that has nothing else is always reported so.
    pub faults: bool,
    /// What to leave out of a leak report.
    pub suppressions: Suppressions,
    /// Text or JSON.
    pub format: Format,
    /// Colours or not.
    pub style: Style,
    /// Show every frame.
    pub full_stacks: bool,
    /// List single blocks that live, too.
    pub blocks: bool,
    /// In text: only the section asked for, without what stands before it.
    pub rows_only: bool,
    /// Of what was there at this moment of the capture, in nanoseconds, as if it ended then.
    pub until_ns: Option<u64>,
    /// Whether an index is used, and made.
    pub index: Indexing,
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
            faults: false,
            suppressions: Suppressions::runtime(),
            format: Format::Text,
            style: Style::Plain,
            full_stacks: false,
            blocks: false,
            rows_only: false,
            until_ns: None,
            index: Indexing::default(),
            progress: false,
            files: None,
        }
    }
}

/// The report of a capture.
///
/// # Errors
/// If the capture cannot be read.
pub fn report(path: &Path, options: &Options) -> anyhow::Result<String> {
    let mut capture = Capture::open(path)?;
    processes::must_be_there(&capture, &options.query.processes)?;
    Ok(report_with(&mut capture, Some(path), options))
}

/// The report of an open capture. Processes that are asked for and not in it have no figures.
pub fn report_of(capture: &mut Capture, options: &Options) -> String {
    report_with(capture, None, options)
}

/// `path`: where the capture is, if there may be an index of it.
fn report_with(capture: &mut Capture, path: Option<&Path>, options: &Options) -> String {
    if options.faults || capture.session().mode == "faults" {
        return faults::report_of(capture, options);
    }
    let progress = Progress::new(options.progress);
    let (mut names, names_remark) = stored_names(capture);
    let moments = names.remappings();
    let (mut read, _) = read(capture, path, options, &moments, &progress);
    let (modules, stacks) = (capture.modules(), capture.stacks());
    let here = Files::of_command(&capture.session().command);
    let files = options.files.as_ref().unwrap_or(&here);
    let unresolved = symbolise(&mut names, stacks, modules, files, |done, all| progress.at("naming functions", done as u64, all as u64));
    progress.done();
    let answered = |replayed: &Replayed| {
        let sites = Sites::new(&replayed.entries, stacks, &names, &moments);
        answer(sites, replayed, capture, options)
    };
    let heap = answered(&read.heap);
    let pools: Vec<PoolAnswer<'_>> = pools(capture.session(), &read, answered);
    let mut summary = head::summary(capture, &read, &heap.sites, &options.query.processes);
    summary.anomalies.extend(names_remark);
    summary.unresolved.extend(unresolved.iter().map(ToString::to_string));
    let query = &options.query;
    let blocks = read.listing.take().map(|listing| listing.finish(query, stacks, &names, capture.streams()));
    match options.format {
        Format::Json => view::json_with_blocks(&summary, &heap, &pools, blocks.as_ref()),
        Format::Text => {
            let here = std::env::current_dir().ok().and_then(|path| path.to_str().map(str::to_owned));
            let (style, full_stacks) = (options.style, options.full_stacks);
            let text = TextOptions { style, full_stacks, here, group: query.group, measure: query.measure };
            let report = match options.rows_only {
                true => view::rows(&summary, &heap, &pools, &text),
                false => view::text(&summary, &heap, &pools, &text),
            };
            report + blocks.map_or_else(String::new, |blocks| view::blocks_text(&blocks, &text)).as_str()
        }
    }
}

/// The question asked of one heap.
fn answer<'a>(sites: Sites<'a>, replayed: &Replayed, capture: &Capture, options: &Options) -> Answer<'a> {
    let (query, suppressions, streams) = (&options.query, &options.suppressions, capture.streams());
    let scale = replayed.whole.as_ref().map(|whole| &whole.scale);
    let (branches, table) = match query.group {
        // A branch under half a percent is noise, unless everything was asked for.
        Group::Tree => tree(query, &sites, streams, suppressions, if query.limit.is_some() { 200 } else { u64::MAX }, scale),
        _ => (Vec::new(), ask(query, &sites, streams, suppressions, scale)),
    };
    let Outcome { totals, peak, .. } = replayed.outcome;
    Answer { totals, peak, whole: replayed.whole.clone(), sites, table, branches }
}

/// The pools that the session names, also those that were never used, and any others that events are of.
fn pools<'a>(session: &SessionInfo, read: &Read, answered: impl Fn(&Replayed) -> Answer<'a>) -> Vec<PoolAnswer<'a>> {
    let mut known: BTreeMap<u8, Pool> = session.pools.iter().map(|pool| (pool.number, pool.clone())).collect();
    for &(number, _) in &read.pools {
        known.entry(number).or_insert_with(|| Pool { number, ..Pool::default() });
    }
    let of = |pool: Pool| {
        let met = read.pools.iter().find(|(number, ..)| *number == pool.number);
        PoolAnswer { answer: met.map_or_else(|| answered(&Replayed::default()), |(_, replayed)| answered(replayed)), pool }
    };
    known.into_values().map(of).collect()
}

/// The report of the first `bytes` of a capture that is still being recorded.
///
/// # Errors
/// If the capture cannot be read.
pub fn report_growing(path: &Path, bytes: u64, options: &Options) -> anyhow::Result<String> {
    let mut capture = Capture::open_growing(path, bytes)?;
    processes::must_be_there(&capture, &options.query.processes)?;
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
    heap: Replayed,
    /// The pools that were met, by number.
    pools: Vec<(u8, Replayed)>,
    anomalies: Anomalies,
    /// Single blocks of the heap, if they were asked for.
    listing: Option<Listing>,
    /// If there are samples: how they came about.
    sampling: Option<Arc<Sampling>>,
}

/// What the replay of one heap gives.
#[derive(Default)]
struct Replayed {
    entries: Vec<Entry>,
    whole: Option<Whole>,
    /// Of the program's heap, where there are several processes.
    processes: Vec<(ProcessId, Sums)>,
    outcome: Outcome,
}

impl Replayed {
    fn new(tally: Tally, outcome: Outcome) -> Self {
        let Tallied { entries, whole, processes } = tally.finish(&outcome.peak);
        Replayed { entries, whole, processes, outcome }
    }
}

/// Sums of nothing, for the question. `over`: streams of processes that are over at the moment that is asked about.
fn tally_of(options: &Options, moments: &[u64], sampling: Option<&Arc<Sampling>>, over: &[StreamId]) -> Tally {
    let tally = Tally::new(options.query.blocks.clone(), options.query.split(), moments.to_vec());
    let tally = tally.until(options.until_ns).without(over);
    match sampling {
        Some(sampling) => tally.sampled(sampling.clone()),
        None => tally,
    }
}

/// What is to be known of the blocks: from the index of the capture at `path`, if there is one or is to be one; else by a replay.
fn read(capture: &mut Capture, path: Option<&Path>, options: &Options, moments: &[u64], progress: &Progress) -> (Read, Option<Columns>) {
    if let Some((path, columns)) = path.and_then(|path| Some((path, indexed::columns(path, capture, options, progress)?)))
        && let Some(read) = indexed::read(path, &columns, capture, options, moments, progress)
    {
        return (read, Some(columns));
    }
    (replayed(capture, options, moments, progress), None)
}

fn replayed(capture: &mut Capture, options: &Options, moments: &[u64], progress: &Progress) -> Read {
    let sampling = Sampling::of(capture.sampling()).map(Arc::new);
    let over = processes::over_by(capture, options.until_ns);
    let new = || tally_of(options, moments, sampling.as_ref(), &over);
    let processes = Processes::of(capture.streams(), &processes::asked_for(capture, &options.query.processes)).map(Arc::new);
    let mut tally = new();
    if let Some(processes) = &processes {
        tally = tally.of_processes(processes.clone());
    }
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
    let mut listing = options.blocks.then(|| Listing::new(options.query.blocks.clone()));
    let of_heap = |block: &Block, ending: &Ending, peak: &Peak| {
        tally.add(block, ending, peak);
        if let Some(listing) = &mut listing {
            let addr = processes.as_ref().map_or(block.addr, |processes| processes.plain(block.stream, block.addr));
            listing.add(&Block { addr, ..*block }, ending, sampling.as_deref());
        }
    };
    let heaps = Heaps::new(of_heap, sink_of).of_capture(sampling.clone(), processes.as_deref().cloned());
    let at = |done| progress.at("reading events", done, events);
    let mut watched = Watched::new(heaps, &at);
    let anomalies = capture.visit(&mut watched);
    let (outcome, of_pools) = watched.finish();
    let tallies = std::mem::take(&mut *pools.borrow_mut()).into_values().zip(of_pools);
    let pools = tallies.map(|(tally, (number, outcome))| (number, Replayed::new(tally, outcome))).collect();
    Read { heap: Replayed::new(tally, outcome), pools, anomalies, listing, sampling: sampling.clone() }
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

#[cfg(test)]
mod same_answers;
#[cfg(test)]
mod tests;
