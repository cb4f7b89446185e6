//! A capture in, a picture of its memory out.

use super::second::Prepared;
use super::{Options, Progress, fragments, histogram, naming, processes, space};
use crate::capture::model::{Event, ProcessId, ProcessMemory, Stamped};
use crate::heap::{Peak, Processes, Sampling};
use crate::query::{Course, Over, Rank, Timeline};
use crate::view::chart::{Along, Chart, REST, Scheme, Series, Shape, Track, Unit, json, svg};
use crate::view::{self, Summary, duration};
use hound_common::event::{END_THREAD, MODE_FULL, MODE_OFF};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Moments that are looked at: one for each two pixels.
const MOMENTS: u64 = 400;

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GraphOf {
    /// What lived when.
    #[default]
    Live,
    /// Allocations a second.
    Rates,
    /// How much there is of each size.
    Sizes,
    /// How much lived how long.
    Lifetimes,
    /// Pages that hold little.
    Fragmentation,
    /// Where the heap lies, and how full it is.
    AddressSpace,
}

impl GraphOf {
    /// As options and files are called.
    pub fn name(self) -> &'static str {
        match self {
            GraphOf::Live => "graph",
            GraphOf::Rates => "rates",
            GraphOf::Sizes => "sizes",
            GraphOf::Lifetimes => "lifetimes",
            GraphOf::Fragmentation => "fragmentation",
            GraphOf::AddressSpace => "address-space",
        }
    }
}

/// How to draw.
#[derive(Clone, Debug, Default)]
pub struct GraphOptions {
    /// What.
    pub of: GraphOf,
    /// Its numbers as JSON, and no picture.
    pub json: bool,
    /// Without the process' memory as the kernel has it.
    pub heap_only: bool,
    /// Colours.
    pub scheme: Scheme,
    /// From when, in nanoseconds of the capture.
    pub start_ns: Option<u64>,
    /// Until when.
    pub end_ns: Option<u64>,
    /// At which moment, of what is of one; none: at the end.
    pub at_ns: Option<u64>,
}

/// A picture, and its numbers.
pub(super) struct Drawn {
    pub svg: String,
    pub json: Value,
    pub summary: Summary,
}

/// The picture of a capture's heap, as SVG or as JSON.
///
/// # Errors
/// If the capture cannot be read, or does not tell what is to be drawn.
pub fn graph(path: &Path, options: &Options, how: &GraphOptions) -> anyhow::Result<String> {
    let progress = Progress::new(options.progress);
    let drawn = match how.of {
        GraphOf::Live | GraphOf::Rates => over_time(path, options, how, &progress),
        GraphOf::Sizes => histogram::drawn(path, options, how, Over::Sizes, &progress),
        GraphOf::Lifetimes => histogram::drawn(path, options, how, Over::Lifetimes, &progress),
        GraphOf::Fragmentation => fragments::drawn(path, options, how, &progress),
        GraphOf::AddressSpace => space::drawn(path, options, how, &progress),
    }?;
    Ok(if how.json { view::graph_json(how.of.name(), &drawn.summary, drawn.json) } else { drawn.svg })
}

/// What lived when, or what was allocated: the largest rows stacked, everything else on top.
fn over_time(path: &Path, options: &Options, how: &GraphOptions, progress: &Progress) -> anyhow::Result<Drawn> {
    let rated = how.of == GraphOf::Rates;
    let mut prepared = Prepared::of(path, options, progress)?;
    let outcome = prepared.material.read.heap.outcome;
    let end_ns = prepared.material.end_ns();
    let (from, to) = (how.start_ns.unwrap_or(0), how.end_ns.unwrap_or(end_ns).min(end_ns));
    let sampling = prepared.material.read.sampling.clone();
    let mut timeline = Timeline::new(prepared.grouping(), moments(from, to, (!rated).then_some(outcome.peak)), sampling.clone());
    timeline = timeline.with_ends(&processes::ends(&prepared.material.capture));
    let memory = Memory { processes: prepared.material.processes.clone(), ..Memory::default() };
    let mut beside = Beside { memory, marks: Vec::new() };
    let mut culled = Vec::new();
    prepared.pass(
        progress,
        |block, ending| timeline.add(block, ending),
        |event| {
            culled.extend(histogram::of_culled(event));
            beside.look(event);
        },
    );
    if rated && !prepared.is_filtered() {
        culled.iter().for_each(|of| timeline.add_culled(of));
    }
    let rank = if rated { Rank::Allocations } else { Rank::Live };
    let course = timeline.finish(prepared.most, rank, prepared.material.scale.as_ref());
    progress.done();
    let names = prepared.names(&course.rows);
    let mut chart = match rated {
        true => rates(&course, &names),
        false => live(&course, &names, &outcome.peak, prepared.material.faults),
    };
    if !rated && !how.heap_only {
        let resident = beside.memory.resident.iter().map(|(_, bytes)| *bytes).fold(0.0, f64::max);
        chart.tracks = beside.memory.tracks();
        // What is a line at the bottom of another's scale says nothing.
        chart.tracks_apart = !prepared.material.faults && resident > 3.0 * outcome.peak.bytes as f64;
    }
    chart.remarks = prepared.remarks();
    chart.spans = spans(sampling.as_deref(), end_ns);
    chart.marks = beside.marks;
    (chart.scheme, chart.start_ns, chart.end_ns) = (how.scheme.clone(), Some(from), Some(how.end_ns.unwrap_or(end_ns)));
    Ok(Drawn { svg: svg(&chart), json: json(&chart), summary: prepared.summary })
}

/// Evenly from `from` to `to`, and the peak: otherwise the picture might be lower than the report says.
fn moments(from: u64, to: u64, peak: Option<Peak>) -> Vec<u64> {
    let span = to.saturating_sub(from);
    let mut moments: Vec<u64> =
        (0..=MOMENTS).map(|number| from + (u128::from(span) * u128::from(number) / u128::from(MOMENTS)) as u64).collect();
    moments.extend(peak.filter(|peak| peak.ordinal > 0 && (from..=to).contains(&peak.time_ns)).map(|peak| peak.time_ns));
    moments.sort_unstable();
    moments.dedup();
    moments
}

/// What is drawn beside the heap.
#[derive(Default)]
struct Beside {
    memory: Memory,
    marks: Vec<(u64, String)>,
}

impl Beside {
    fn look(&mut self, event: &Stamped) {
        match &event.event {
            Event::Mark(text) => self.marks.push((event.time_ns, text.clone())),
            Event::Marker(number) => self.marks.push((event.time_ns, format!("marker {number}"))),
            _ => self.memory.look(event),
        }
    }
}

/// The process' memory as the kernel has it; of several, what they have together.
#[derive(Default)]
struct Memory {
    /// Where there are several: which are asked for.
    processes: Option<Processes>,
    /// What each has, as last looked at: resident, and anonymous.
    last: [BTreeMap<ProcessId, u64>; 2],
    resident: Vec<(u64, f64)>,
    anonymous: Vec<(u64, f64)>,
}

impl Memory {
    fn look(&mut self, event: &Stamped) {
        let Stamped { time_ns, stream, ref event } = *event;
        let Some(process) = self.processes.as_ref().map_or(Some(ProcessId::FIRST), |processes| processes.of_stream(stream)) else { return };
        let (which, bytes) = match event {
            Event::ProcessRss { resident, .. } => (0, *resident),
            Event::ProcessMemory(ProcessMemory { anonymous, .. }) => (1, *anonymous),
            Event::End { reason, .. } if *reason != END_THREAD => {
                self.last.iter_mut().for_each(|last| {
                    last.remove(&process);
                });
                return;
            }
            _ => return,
        };
        let last = &mut self.last[which];
        last.insert(process, bytes);
        let sum = last.values().sum::<u64>() as f64;
        if which == 0 { &mut self.resident } else { &mut self.anonymous }.push((time_ns, sum));
    }

    fn tracks(self) -> Vec<Track> {
        let tracks = [("resident memory of the process (RSS)", self.resident), ("of it anonymous: no file's pages", self.anonymous)];
        // One look tells of one moment: what it is in the others of a program that ended within a second, nobody knows.
        let moments = |points: &[(u64, f64)]| points.chunk_by(|a, b| a.0 == b.0).count();
        tracks.into_iter().filter(|(_, points)| moments(points) > 1).map(|(name, points)| Track { name: name.to_owned(), points }).collect()
    }
}

/// What was recorded otherwise than the rest: sampled, or not at all.
fn spans(sampling: Option<&Sampling>, end_ns: u64) -> Vec<(u64, u64, String)> {
    let parts = sampling.map_or(&[][..], Sampling::parts);
    let what = |mode| match mode {
        MODE_FULL => "every block",
        MODE_OFF => "not recorded",
        _ => "sampled: estimates",
    };
    parts.iter().map(|part| (part.from_ns, part.to_ns.min(end_ns), what(part.mode).to_owned())).collect()
}

fn series(course: &Course, values: &[Vec<f64>], names: &[String]) -> Vec<Series> {
    let others = (course.others > 0).then_some((naming::others(course.others), Some(REST)));
    let named = names.iter().map(|name| (name.clone(), None)).chain(others);
    named.zip(values).map(|((name, colour), values)| Series { name, values: values.clone(), colour }).collect()
}

/// What lives.
fn live(course: &Course, names: &[String], peak: &Peak, faults: bool) -> Chart {
    let about = if course.intervals.is_some() { "≈ " } else { "" };
    let title = match faults {
        true => "Memory of the process over time (no allocations were recorded)".to_owned(),
        false => format!("Live bytes of the heap over time: {about}{} at most, after {}", view::bytes(peak.bytes), duration(peak.time_ns)),
    };
    let bounds = course.intervals.as_ref().map(|intervals| intervals.iter().map(|&(low, high)| (low as f64, high as f64)).collect());
    Chart {
        title,
        along: Along::Times(course.moments.clone()),
        unit: Unit::Bytes,
        series: if faults { Vec::new() } else { series(course, &course.live, names) },
        most_series: usize::MAX,
        band: bounds.map(|bounds| ("the whole, in the range that holds the truth with 95 %".to_owned(), bounds)),
        ..Chart::default()
    }
}

/// Allocations a second.
fn rates(course: &Course, names: &[String]) -> Chart {
    let seconds: Vec<f64> = course.moments.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect();
    let a_second = |counts: &Vec<f64>| -> Vec<f64> { counts.iter().zip(&seconds).map(|(count, seconds)| count / seconds).collect() };
    let values: Vec<Vec<f64>> = course.allocations.iter().map(a_second).collect();
    let moments = course.moments[..course.moments.len() - 1].to_vec();
    let about = if course.intervals.is_some() { ", estimated" } else { "" };
    Chart {
        title: format!("Allocations a second over time{about}"),
        shape: Shape::Steps,
        along: Along::Times(moments),
        unit: Unit::CountASecond,
        series: series(course, &values, names),
        most_series: usize::MAX,
        ..Chart::default()
    }
}
