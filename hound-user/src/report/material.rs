//! What one pass over a capture gives to whoever draws it: sums by call path, with names.

use super::{Options, Progress, Read, Replayed, head, processes, read, stored_names};
use crate::capture::model::{Alloc, Event, Free, Stamped, StreamId};
use crate::capture::{Capture, Visitor};
use crate::columns::Columns;
use crate::heap::Processes;
use crate::query::{Entry, FaultTally, Scale, Sites};
use crate::symbols::{Files, SymbolTable, symbolise};
use crate::view::Summary;
use std::path::Path;

/// A capture that was read.
pub(super) struct Material {
    pub capture: Capture,
    pub read: Read,
    /// The index it was read from, if it was.
    pub columns: Option<Columns>,
    names: SymbolTable,
    /// Moments from which addresses may mean something else.
    pub moments: Vec<u64>,
    /// Of samples: what intervals need.
    pub scale: Option<Scale>,
    /// Page faults and not allocations.
    pub faults: bool,
    /// Where there are several processes: which are asked for.
    pub processes: Option<Processes>,
    pids: Vec<u32>,
    names_remark: Option<String>,
    unresolved: Vec<String>,
}

impl Material {
    /// Reads a capture for this question: allocations, or page faults where `options` says so or there is nothing else.
    pub fn of(path: &Path, options: &Options, progress: &Progress) -> anyhow::Result<Self> {
        let mut capture = Capture::open(path)?;
        let pids = options.query.processes.clone();
        processes::must_be_there(&capture, &pids)?;
        let processes = Processes::of(capture.streams(), &processes::asked_for(&capture, &pids));
        let (mut names, names_remark) = stored_names(&capture);
        let moments = names.remappings();
        let faults = options.faults || capture.session().mode == "faults";
        let ((read, scale), columns) = match faults {
            true => (read_faults(&mut capture, options, &moments, processes.as_ref()), None),
            false => {
                let (read, columns) = read(&mut capture, Some(path), options, &moments, progress);
                let scale = read.heap.whole.as_ref().map(|whole| whole.scale.clone());
                ((read, scale), columns)
            }
        };
        let here = Files::of_command(&capture.session().command);
        let files = options.files.as_ref().unwrap_or(&here);
        let at = |done: usize, all: usize| progress.at("naming functions", done as u64, all as u64);
        let unresolved = symbolise(&mut names, capture.stacks(), capture.modules(), files, at);
        let unresolved = unresolved.iter().map(ToString::to_string).collect();
        Ok(Material { read, columns, names, moments, scale, faults, processes, pids, names_remark, unresolved, capture })
    }

    /// What was added up, by stack.
    pub fn entries(&self) -> &[Entry] {
        &self.read.heap.entries
    }

    /// When the capture ends, in its nanoseconds.
    pub fn end_ns(&self) -> u64 {
        self.capture.streams().iter().map(|stream| stream.to_ns).fold(self.read.heap.outcome.end_ns, u64::max)
    }

    /// The call paths.
    pub fn sites(&self) -> Sites<'_> {
        Sites::new(self.entries(), self.capture.stacks(), &self.names, &self.moments)
    }

    /// What stands at the head of what is shown.
    pub fn summary(&self, sites: &Sites<'_>) -> Summary {
        let mut summary = head::summary(&self.capture, &self.read, sites, &self.pids);
        summary.anomalies.extend(self.names_remark.clone());
        summary.unresolved.extend(self.unresolved.iter().cloned());
        summary
    }
}

fn read_faults(capture: &mut Capture, options: &Options, moments: &[u64], processes: Option<&Processes>) -> (Read, Option<Scale>) {
    let mut reading = Touches { tally: FaultTally::new(&options.query, moments.to_vec(), 0), processes };
    let anomalies = capture.visit(&mut reading);
    let faults = reading.tally.finish();
    let mut heap = Replayed { entries: faults.entries, ..Replayed::default() };
    heap.outcome.end_ns = capture.streams().iter().map(|stream| stream.to_ns).max().unwrap_or(0);
    (Read { heap, pools: Vec::new(), anomalies, listing: None, sampling: None }, faults.scale)
}

struct Touches<'a> {
    tally: FaultTally,
    processes: Option<&'a Processes>,
}

impl Visitor for Touches<'_> {
    fn alloc(&mut self, _: u64, _: StreamId, _: &Alloc) {}

    fn free(&mut self, _: u64, _: StreamId, _: &Free) {}

    fn other(&mut self, event: &Stamped) {
        let is_asked_for = self.processes.is_none_or(|processes| processes.of_stream(event.stream).is_some());
        if let (Event::Fault(fault), true) = (&event.event, is_asked_for) {
            self.tally.add(event.time_ns, event.stream, fault);
        }
    }
}
