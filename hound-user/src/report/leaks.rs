//! A capture in, verdicts out: what leaks, how fast, and what else grew and why that is no leak.

use super::material::Material;
use super::{Format, Options, Progress};
use crate::capture::{Capture, StreamInfo};
use crate::columns::Watched;
use crate::heap::{Block, Ending, Heaps, Peak};
use crate::query::{Births, Evidence, Grouping, Measure, Query, Row, Verdict, ask, judge};
use crate::view::{self, Judged, LeaksAnswer, TextOptions};
use std::path::Path;

/// What was found, as text or JSON, and how many places leak.
///
/// # Errors
/// If the capture cannot be read, or has no allocations in it.
pub fn leaks(path: &Path, options: &Options) -> anyhow::Result<(String, usize)> {
    answer(path, options, |answer| {
        let text = match options.format {
            Format::Json => view::leaks_json(answer),
            Format::Text => {
                let here = std::env::current_dir().ok().map(|here| here.to_string_lossy().into_owned());
                let TextOptions { measure, .. } = TextOptions::default();
                let how = TextOptions { style: options.style, full_stacks: options.full_stacks, here, group: options.query.group, measure };
                view::leaks_text(answer, &how)
            }
        };
        (text, answer.judged.iter().filter(|judged| judged.verdict == Verdict::Leak).count())
    })
}

/// Shorter recordings tell nothing of leaks.
const SHORTEST_NS: u64 = 5_000_000_000;

/// What was found, in a line; nothing where too little was recorded to tell.
///
/// # Errors
/// If the capture cannot be read.
pub fn verdict(path: &Path, options: &Options) -> anyhow::Result<Option<String>> {
    let capture = Capture::open(path)?;
    let end_ns = capture.streams().iter().map(|stream| stream.to_ns).max().unwrap_or(0);
    if end_ns < SHORTEST_NS || capture.session().mode == "faults" || capture.counts().heap == 0 {
        return Ok(None);
    }
    answer(path, options, |answer| Some(view::leaks_line(answer)))
}

fn answer<R>(path: &Path, options: &Options, show: impl FnOnce(&LeaksAnswer<'_>) -> R) -> anyhow::Result<R> {
    let progress = Progress::new(options.progress);
    let query = Query { measure: Measure::Live, limit: None, keep_zero: true, ..options.query.clone() };
    let mut material = Material::of(path, &Options { query: query.clone(), ..options.clone() }, &progress)?;
    anyhow::ensure!(
        !material.faults,
        "{} has page faults and no allocations: record --mode sampled or full, or see `hound report --faults`",
        path.display()
    );
    let streams: Vec<StreamInfo> = material.capture.streams().to_vec();
    let sites = material.sites();
    let table = ask(&query, &sites, &streams, &options.suppressions, material.scale.as_ref());
    let grouping = Grouping::new(&query, &sites, &streams, &table, material.entries(), material.moments.clone());
    let summary = material.summary(&sites);
    drop(sites);
    let unreachable = material.capture.reach().map(|reach| reach.addresses().collect());
    let wanted: Vec<bool> = table.rows.iter().map(|row| row.sums.live_bytes > 0 || row.sums.sampled.is_some()).collect();
    let last_ns = material.read.heap.outcome.end_ns;
    let end_ns = streams.iter().map(|stream| stream.to_ns).fold(last_ns, u64::max);
    let mut births = Births::new(grouping, material.read.sampling.clone(), (0, end_ns), last_ns, &wanted).looked_at(unreachable);
    replay(&mut material, |block, ending| births.add(block, ending), &progress);
    progress.done();
    let segment_ns = births.segment_ns();
    let judged = verdicts(births, &table.rows, segment_ns);
    let sites = material.sites();
    let allocations = material.read.heap.outcome.totals.allocations;
    let (group, limit) = (query.group, options.query.limit);
    let answer = LeaksAnswer { judged, sites, table: &table, allocations, summary: &summary, segment_ns, end_ns, group, limit };
    Ok(show(&answer))
}

/// All rows that have anything at the end: leaks first, those that surely leak most before others.
fn verdicts(births: Births, rows: &[Row], segment_ns: u64) -> Vec<Judged> {
    let tables = births.finish();
    let places = tables.iter().flatten().count();
    let judged = rows.iter().zip(tables).filter_map(|(row, of)| {
        let (verdict, evidence) = judge(&of?, segment_ns, places);
        (evidence.live > 0.0).then(|| Judged { row: row.clone(), verdict, evidence })
    });
    let mut judged: Vec<Judged> = judged.collect();
    let at_least = |evidence: &Evidence| evidence.rate_interval.0.max(0.0);
    judged.sort_by(|a, b| {
        let by_rate = || at_least(&b.evidence).total_cmp(&at_least(&a.evidence));
        a.verdict.cmp(&b.verdict).then_with(by_rate).then_with(|| b.evidence.live.total_cmp(&a.evidence.live))
    });
    judged
}

fn replay(material: &mut Material, mut each: impl FnMut(&Block, &Ending), progress: &Progress) {
    // The first pass has compared all of it with its checksums.
    if let Some(columns) = &material.columns
        && columns.heap().each(|block, ending, _| each(block, ending)).is_ok()
    {
        return;
    }
    let events = material.capture.counts().heap;
    let at = |done| progress.at("reading events", done, events);
    let sink = |block: &Block, ending: &Ending, _: &Peak| each(block, ending);
    // Pools are cut from what is counted already.
    let heaps = Heaps::new(sink, |_| Box::new(|_: &Block, _: &Ending, _: &Peak| ()));
    let mut again = Watched::new(heaps.of_capture(material.read.sampling.clone(), material.processes.clone()), &at);
    // What is wrong with the capture was told by the first pass.
    let _ = material.capture.visit(&mut again);
    again.finish();
}
