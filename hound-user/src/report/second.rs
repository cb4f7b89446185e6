//! The second pass over a capture: its names are known, and each block's row is.

use super::material::Material;
use super::naming::{name, told_apart};
use super::{Options, Progress};
use crate::capture::model::{Alloc, Event, Free, Stamped, StreamId};
use crate::capture::{StreamInfo, Visitor};
use crate::columns::Watched;
use crate::heap::{Block, Ending, Heaps, Hears, Peak};
use crate::query::{Grouping, Measure, Query, Suppressions, Table, ask};
use crate::view::{self, Remark, Summary, duration};
use hound_common::event::{MODE_FULL, MODE_OFF};
use std::path::Path;

/// A capture after its first pass.
pub(super) struct Prepared {
    pub material: Material,
    pub summary: Summary,
    /// Every row that has anything: which are the largest is known after the second pass.
    pub table: Table,
    /// How many rows are to be shown.
    pub most: usize,
    query: Query,
    streams: Vec<StreamInfo>,
}

impl Prepared {
    /// Reads the capture.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(path: &Path, options: &Options, progress: &Progress) -> anyhow::Result<Self> {
        let query = Query { measure: Measure::Allocated, limit: None, keep_zero: true, ..options.query.clone() };
        let material = Material::of(path, &Options { query: query.clone(), ..options.clone() }, progress)?;
        let streams = material.capture.streams().to_vec();
        let sites = material.sites();
        let table = ask(&query, &sites, &streams, &Suppressions::none(), None);
        let summary = material.summary(&sites);
        drop(sites);
        Ok(Prepared { most: options.query.limit.unwrap_or(usize::MAX), material, summary, table, query, streams })
    }

    /// The moment that is asked for, or the last one up to which every block was recorded: the end, or a moment before the detach.
    ///
    /// # Errors
    /// If it is after the end, or not every block was recorded up to it.
    pub fn exact_moment(&self, at_ns: Option<u64>) -> anyhow::Result<u64> {
        let (capture, end_ns) = (&self.material.capture, self.material.end_ns());
        anyhow::ensure!(!self.material.faults, "this capture has page faults alone: which blocks lie where is not known");
        let modes = capture.sampling().iter().filter_map(|event| match event.event {
            Event::Mode { mode } => Some((event.time_ns, mode != MODE_FULL)),
            Event::Window { from_ns, .. } => Some((from_ns, true)),
            Event::Rate(interval) => Some((event.time_ns, interval > 0)),
            _ => None,
        });
        let partial_ns = modes.filter(|(_, is_partial)| *is_partial).map(|(from_ns, _)| from_ns).min();
        let at_ns = at_ns.unwrap_or_else(|| end_ns.min(partial_ns.unwrap_or(u64::MAX).saturating_sub(1)));
        anyhow::ensure!(at_ns <= end_ns, "the capture ends after {}, before {}", duration(end_ns), duration(at_ns));
        if let Some(from_ns) = partial_ns.filter(|from| *from <= at_ns) {
            let way = match from_ns {
                0 => "record with `hound run`, or `hound attach --mode full`".to_owned(),
                _ => format!("give a moment before {} to --at", duration(from_ns)),
            };
            anyhow::bail!(
                "of samples it is not known what else lies on a page, and not every block was recorded up to {}: {way}",
                duration(at_ns)
            );
        }
        Ok(at_ns)
    }

    /// When recording was over, if the capture goes on after that.
    pub fn watched_until(&self) -> Option<u64> {
        let mode = |event: &Stamped| if let Event::Mode { mode } = event.event { Some((event.time_ns, mode)) } else { None };
        self.material.capture.sampling().iter().rev().find_map(mode).filter(|(_, mode)| *mode == MODE_OFF).map(|(time_ns, _)| time_ns)
    }

    /// Which row each block is of.
    pub fn grouping(&self) -> Grouping {
        let Prepared { material, query, streams, table, .. } = self;
        Grouping::new(query, &material.sites(), streams, table, material.entries(), material.moments.clone())
    }

    /// What these rows of the table are called.
    pub fn names(&self, rows: &[usize]) -> Vec<String> {
        let sites = self.material.sites();
        told_apart(&rows.iter().map(|&row| name(&self.table.rows[row].key, &sites, &self.summary)).collect::<Vec<_>>())
    }

    /// Whether filters leave anything out.
    pub fn is_filtered(&self) -> bool {
        let Query { blocks, frames, thread, .. } = &self.query;
        *blocks != Default::default() || !frames.is_empty() || thread.is_some()
    }

    /// What stands over the picture.
    pub fn remarks(&self) -> Vec<Remark> {
        let filtered = self.is_filtered().then(|| Remark::Plain("only of what the filters let through".to_owned()));
        view::remarks(&self.summary).into_iter().chain(filtered).collect()
    }

    /// What of the pages' content is not known.
    pub fn not_in_pages(&self) -> Vec<Remark> {
        let what = "what the allocator keeps beside blocks, and blocks that are released and kept, are in no figure";
        let mut remarks = vec![Remark::Plain(what.to_owned())];
        if self.summary.mode != "launch" && !self.summary.started {
            let before = "blocks from before the recording began are not known: they may lie on these pages, too";
            remarks.push(Remark::Warning(before.to_owned()));
        }
        remarks
    }

    /// Shows every block of the heap as it ends, and everything else that was recorded.
    pub fn pass(&mut self, progress: &Progress, mut each: impl FnMut(&Block, &Ending), mut beside: impl FnMut(&Stamped)) {
        let material = &mut self.material;
        // The first pass has compared all of it with its checksums.
        if let Some(columns) = &material.columns
            && columns.heap().each(|block, ending, _| each(block, ending)).is_ok()
        {
            material.capture.rare().iter().for_each(|(_, event)| beside(event));
            return;
        }
        let events = material.capture.counts().heap;
        let at = |done| progress.at("reading events", done, events);
        // Pools are cut from what is counted already.
        let sink = |block: &Block, ending: &Ending, _: &Peak| each(block, ending);
        let heaps = Heaps::new(sink, |_| Box::new(|_: &Block, _: &Ending, _: &Peak| ()));
        let heaps = heaps.of_capture(material.read.sampling.clone(), material.processes.clone());
        let mut again = Again { replay: Watched::new(heaps, &at), beside };
        // What is wrong with the capture was told by the first pass.
        let _ = material.capture.visit(&mut again);
        again.replay.finish();
    }
}

struct Again<'a, S, B> {
    replay: Watched<'a, S>,
    beside: B,
}

impl<S: Hears, B: FnMut(&Stamped)> Visitor for Again<'_, S, B> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        self.replay.alloc(time_ns, stream, alloc);
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        self.replay.free(time_ns, stream, free);
    }

    fn other(&mut self, event: &Stamped) {
        (self.beside)(event);
        self.replay.other(event);
    }
}
