//! The report of page faults: who touched memory first.

use super::{Format, Options, Progress, Read, Replayed, head, processes, stored_names};
use crate::capture::Capture;
use crate::capture::Visitor;
use crate::capture::model::{Alloc, Event, Free, ProcessId, ProcessMemory, Stamped, StreamId};
use crate::heap::Processes;
use crate::query::{FaultTally, Measure, Query, Sites, ask_faults};
use crate::symbols::{Files, symbolise};
use crate::view::{self, FaultAnswer, MemoryTrack, TextOptions};
use hound_common::event::END_THREAD;
use std::collections::BTreeMap;

/// The report of an open capture's page faults.
pub(super) fn report_of(capture: &mut Capture, options: &Options) -> String {
    let progress = Progress::new(options.progress);
    let (mut names, remark) = stored_names(capture);
    let moments = names.remappings();
    let query = Query { measure: Measure::Allocated, ..options.query.clone() };
    let end_ns = capture.streams().iter().map(|stream| stream.to_ns).max().unwrap_or(0);
    let (from_ns, to_ns) = (query.blocks.from_ns.unwrap_or(0), query.blocks.to_ns.unwrap_or(end_ns).min(end_ns));
    let middle_ns = from_ns.midpoint(to_ns.max(from_ns));
    let tally = FaultTally::new(&query, moments.clone(), middle_ns);
    let processes = Processes::of(capture.streams(), &processes::asked_for(capture, &query.processes));
    let within = from_ns..to_ns.saturating_add(1);
    let (resident, parts, marks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut reading = Reading { tally, memory: None, within, processes, resident, parts, marks };
    let anomalies = capture.visit(&mut reading);
    let Reading { tally, memory, .. } = reading;
    let faults = tally.finish();
    let (modules, stacks) = (capture.modules(), capture.stacks());
    let here = Files::of_command(&capture.session().command);
    let files = options.files.as_ref().unwrap_or(&here);
    let unresolved = symbolise(&mut names, stacks, modules, files, |done, all| progress.at("naming functions", done as u64, all as u64));
    progress.done();
    let sites = Sites::new(&faults.entries, stacks, &names, &moments);
    let mut heap = Replayed::default();
    heap.outcome.end_ns = end_ns;
    let mut summary =
        head::summary(capture, &Read { heap, pools: Vec::new(), anomalies, sampling: None, listing: None }, &sites, &query.processes);
    summary.anomalies.extend(remark);
    summary.unresolved.extend(unresolved.iter().map(ToString::to_string));
    let answer = FaultAnswer {
        table: ask_faults(&query, &sites, capture.streams(), faults.scale.as_ref()),
        sites,
        intervals: faults.intervals,
        recorded: faults.recorded,
        halves_ns: [middle_ns.saturating_sub(from_ns), to_ns.saturating_sub(middle_ns)],
        memory,
    };
    match options.format {
        Format::Json => view::faults_json(&summary, &answer),
        Format::Text => {
            let here = std::env::current_dir().ok().and_then(|path| path.to_str().map(str::to_owned));
            let (style, full_stacks) = (options.style, options.full_stacks);
            let text = TextOptions { style, full_stacks, here, group: query.group, measure: query.measure };
            view::faults_text(&summary, &answer, options.rows_only, &text)
        }
    }
}

/// Goes through the capture for faults, and looks at the process' memory.
struct Reading {
    tally: FaultTally,
    memory: Option<MemoryTrack>,
    within: std::ops::Range<u64>,
    /// Where there are several: which are asked for.
    processes: Option<Processes>,
    /// What each has, as last looked at.
    resident: BTreeMap<ProcessId, u64>,
    parts: BTreeMap<ProcessId, ProcessMemory>,
    /// The kernel's mark of the most that was resident, at the first look.
    marks: BTreeMap<ProcessId, u64>,
}

impl Reading {
    fn resident(&mut self, time_ns: u64, resident: u64) {
        let first = MemoryTrack { resident: [resident; 2], peak: (resident, time_ns), between_looks: None, parts: None };
        let track = self.memory.get_or_insert(first);
        track.resident[1] = resident;
        if resident > track.peak.0 {
            track.peak = (resident, time_ns);
        }
    }

    /// The kernel's own mark: where it has risen since the first look, what made it rise was here. Of several processes marks do not add up.
    fn mark(&mut self, process: ProcessId, resident: u64) {
        let first = *self.marks.entry(process).or_insert(resident);
        if let Some(track) = self.memory.as_mut().filter(|_| self.marks.len() == 1) {
            track.between_looks = (resident > first && resident > track.peak.0).then_some(resident);
        } else if let Some(track) = &mut self.memory {
            track.between_looks = None;
        }
    }

    fn parts(&mut self, now: ProcessMemory) {
        if let Some(track) = &mut self.memory {
            track.parts.get_or_insert([now; 2])[1] = now;
        }
    }
}

impl Visitor for Reading {
    fn alloc(&mut self, _: u64, _: StreamId, _: &Alloc) {}

    fn free(&mut self, _: u64, _: StreamId, _: &Free) {}

    fn other(&mut self, event: &Stamped) {
        let Stamped { time_ns, stream, ref event } = *event;
        let Some(process) = self.processes.as_ref().map_or(Some(ProcessId::FIRST), |processes| processes.of_stream(stream)) else { return };
        match event {
            Event::Fault(fault) => self.tally.add(time_ns, stream, fault),
            Event::ProcessRss { resident, .. } if self.within.contains(&time_ns) => {
                self.resident.insert(process, *resident);
                self.resident(time_ns, self.resident.values().sum());
            }
            Event::ProcessMemory(now) if self.within.contains(&time_ns) => {
                self.parts.insert(process, *now);
                self.parts(self.parts.values().fold(ProcessMemory::default(), |sum, one| sum.and(one)));
            }
            Event::ProcessPeak { resident } if self.within.contains(&time_ns) => self.mark(process, *resident),
            Event::End { reason, .. } if *reason != END_THREAD => {
                self.resident.remove(&process);
                self.parts.remove(&process);
            }
            _ => {}
        }
    }
}
