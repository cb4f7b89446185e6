//! Answers from an index instead of a replay.

use super::processes::over_by;
use super::{Listing, Options, Progress, Read, Replayed, tally_of};
use crate::capture::Capture;
use crate::columns::{Columns, Damaged, Rows, index};
use crate::heap::{Processes, Sampling};
use crate::query::Tally;
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// When a report looks for an index, and when it makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Indexing {
    /// Never: the capture is read.
    Never,
    /// One that is there and up to date is used.
    #[default]
    IfThere,
    /// And of a large capture ([`LARGE`]) one is made.
    WhenLarge,
}

/// Allocations and frees from which on an index is made unasked: below, a replay takes a second or two, and an index is a file that nobody
/// expects. It takes some 33 bytes an event, so the smallest that is made so is of 500 MB.
pub const LARGE: u64 = 16_000_000;

/// The index of a capture, made if there is none that is up to date; and where it is.
///
/// # Errors
/// If the capture cannot be read, or the index cannot be written.
pub fn index_of(path: &Path, progress: bool) -> anyhow::Result<(Columns, PathBuf)> {
    let mut capture = Capture::open(path)?;
    if let Some((columns, place)) = index::find(path, &mut capture).filter(|(columns, _)| columns.check().is_ok()) {
        return Ok((columns, place));
    }
    let (events, progress) = (capture.counts().heap, Progress::new(progress));
    let made = index::make(path, &mut capture, &|done| progress.at("making the index", done, events));
    progress.done();
    made.with_context(|| {
        format!("cannot make an index of {}: free some room, or set XDG_CACHE_HOME to a folder that has some", path.display())
    })
}

/// The columns to ask, if there is an index or is to be one.
pub(super) fn columns(path: &Path, capture: &mut Capture, options: &Options, progress: &Progress) -> Option<Columns> {
    // Of some processes only, the peak is another one: it has to be replayed.
    if options.index == Indexing::Never || !options.query.processes.is_empty() || capture.is_growing() {
        return None;
    }
    if let Some((columns, _)) = index::find(path, capture) {
        return Some(columns);
    }
    let events = capture.counts().heap;
    if options.index != Indexing::WhenLarge || events < LARGE {
        return None;
    }
    let made = index::make(path, capture, &|done| progress.at("making an index", done, events));
    progress.done();
    match made {
        Ok((columns, place)) => {
            progress.note(&format!("made the index {}: what is asked next of this capture is answered at once", place.display()));
            Some(columns)
        }
        Err(error) => {
            progress.note(&format!("no index could be made ({error}): each answer takes reading the whole capture"));
            None
        }
    }
}

/// What a replay would give; `None` if the index is damaged: then it is removed, and the capture has to be read.
pub(super) fn read(
    path: &Path,
    columns: &Columns,
    capture: &mut Capture,
    options: &Options,
    moments: &[u64],
    progress: &Progress,
) -> Option<Read> {
    let read = read_columns(columns, capture, options, moments);
    if read.is_err() {
        progress.note("the index of this capture was damaged, and is removed: the capture itself is read");
        // It may be another's by now, or not ours to remove: it is not read again here either way.
        let _ = index::remove(path);
    }
    read.ok()
}

fn read_columns(columns: &Columns, capture: &Capture, options: &Options, moments: &[u64]) -> Result<Read, Damaged> {
    let sampling = Sampling::of(capture.sampling()).map(Arc::new);
    let processes = Processes::of(capture.streams(), &[]).map(Arc::new);
    let over = over_by(capture, options.until_ns);
    let new = || tally_of(options, moments, sampling.as_ref(), &over);
    let of_heap = || processes.iter().fold(new(), |tally, processes| tally.of_processes(processes.clone()));
    // Sums of fractions depend on their order: of samples, everybody is to get the same.
    let threads = sampling.as_ref().map(|_| 1);
    let heap = added_up(columns.heap(), threads, of_heap)?;
    let pools = columns.pools().iter().map(|(number, rows)| Ok((*number, added_up(rows, threads, new)?)));
    let pools = pools.collect::<Result<_, _>>()?;
    let mut listing = options.blocks.then(|| Listing::new(options.query.blocks.clone()));
    if let Some(listing) = &mut listing {
        columns.heap().each(|block, ending, _| {
            let addr = processes.as_ref().map_or(block.addr, |processes| processes.plain(block.stream, block.addr));
            listing.add(&crate::heap::Block { addr, ..*block }, ending, sampling.as_deref());
        })?;
    }
    Ok(Read { heap, pools, anomalies: columns.anomalies().clone(), listing, sampling })
}

fn added_up(rows: &Rows, threads: Option<usize>, new: impl Fn() -> Tally + Sync) -> Result<Replayed, Damaged> {
    let outcome = *rows.outcome();
    let mut tallies = rows.fold(threads, &new, |tally: &mut Tally, part| {
        part.each(|block, ending, lived| tally.add_as(block, ending, &outcome.peak, lived));
    })?;
    let first = tallies.pop().unwrap_or_else(&new);
    let tally = tallies.into_iter().fold(first, |mut sum, tally| {
        sum.merge(tally);
        sum
    });
    Ok(Replayed::new(tally, outcome))
}
