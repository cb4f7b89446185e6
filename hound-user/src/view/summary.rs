//! What stands at the head of every report: what was run, what is missing, what it adds up to.

use super::units::{bytes, count, duration, share_of};
use crate::capture::{Before, Stripped};
use crate::heap::Sampling;
use crate::query::{Figure, Sums, Whole};
use serde::Serialize;

/// How the recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "how", content = "value")]
pub enum EndKind {
    /// The program exited with this status.
    Exit(u64),
    /// This signal killed it.
    Signal(u64),
    /// The kernel killed it for want of memory.
    NoMemory,
    /// It replaced itself by another program.
    Exec,
    /// hound stopped watching; it ran on.
    Detach,
    /// It has not: this is a look at a recording that goes on.
    Growing,
    /// Not known: the recording was cut.
    Cut,
}

impl EndKind {
    /// Whether what lived at the end can be called leaked: the program had its chance to release it.
    pub fn is_final(self) -> bool {
        matches!(self, EndKind::Exit(_))
    }

    /// In words, for "the program …".
    pub fn words(self) -> String {
        match self {
            EndKind::Exit(status) => format!("exited with status {status}"),
            EndKind::Signal(signal) => format!("was killed by signal {signal}"),
            EndKind::NoMemory => "was killed by the kernel's OOM killer, for want of memory".to_owned(),
            EndKind::Exec => "replaced itself by another program".to_owned(),
            EndKind::Detach => "ran on when the recording ended".to_owned(),
            EndKind::Growing => "is being recorded still".to_owned(),
            EndKind::Cut => "was cut off from its recording, how is not known".to_owned(),
        }
    }
}

/// All that a report says before its tables.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The command line.
    pub command: Vec<String>,
    /// The target's process id.
    pub pid: u32,
    /// How it was recorded.
    pub mode: String,
    /// hound has started it, as it did every program in mode "launch".
    #[serde(skip_serializing_if = "core::ops::Not::not")]
    pub started: bool,
    /// hound's version when recording.
    pub hound_version: String,
    /// Kernel and host.
    pub machine: String,
    /// From the target's start to its end, or to the last event, in nanoseconds.
    pub wall_ns: u64,
    /// How the recording ended.
    pub end: EndKind,
    /// Events lost: why, and how many.
    pub losses: Vec<(String, u64)>,
    /// What was left out of the capture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripped: Option<Stripped>,
    /// Allocations whose stack does not reach the thread's first function: why, and how many.
    pub cut_stacks: Vec<(String, u64)>,
    /// Allocations whose stack needed frame pointers.
    pub frame_pointer_stacks: u64,
    /// What in the capture cannot be right, a line each.
    pub anomalies: Vec<String>,
    /// Modules without names, a line each.
    pub unresolved: Vec<String>,
    /// Events that were stamped out of order and put right.
    pub reordered: u64,
    /// What the target held before it was attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// The longest that the target stood still at the attach, and at the detach, in nanoseconds; 0 = it did not.
    #[serde(skip_serializing_if = "is_zero")]
    pub attach_stall_ns: u64,
    /// See `attach_stall_ns`.
    #[serde(skip_serializing_if = "is_zero")]
    pub detach_stall_ns: u64,
    /// What was recorded, where it was chosen by looking at the target.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub covered: Vec<String>,
    /// How it was sampled, if it was.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub sampled: Option<Sampled>,
    /// What allocates and was not recorded, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_covered: Vec<String>,
    /// The processes that the figures are of, where the capture has several.
    #[serde(skip)]
    pub processes: Vec<ProcessLine>,
}

/// One process of several.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessLine {
    /// Its number in the capture: a pid may be several programs', one after the other.
    pub number: u32,
    /// As the machine numbers it.
    pub pid: u32,
    /// Its parent, as the machine numbers it; 0 = not known.
    pub parent: u32,
    /// Its command line.
    pub command: Vec<String>,
    /// How its recording began: "attach", "fork" or "exec".
    pub began: &'static str,
    /// When, in nanoseconds of the capture.
    pub from_ns: u64,
    /// When it ended; none: it was there at the end of the recording.
    pub to_ns: Option<u64>,
    /// How it ended.
    pub end: EndKind,
    /// What it adds up to.
    #[serde(flatten, serialize_with = "super::json::figures")]
    pub figures: Sums,
}

impl Summary {
    /// A process by pid and name, of its number in the capture.
    pub fn process(&self, number: u32) -> String {
        let line = self.processes.iter().find(|line| line.number == number);
        let (pid, command) = line.map_or((self.pid, &self.command), |line| (line.pid, &line.command));
        let program = command.first().map(|path| path.rsplit('/').next().unwrap_or(path));
        program.map_or_else(|| format!("process {pid}"), |program| format!("{program} (process {pid})"))
    }
}

/// How a capture that has samples came about.
#[derive(Clone, Debug, Serialize)]
pub struct Sampled {
    /// Its parts, in order.
    pub parts: Vec<SampledPart>,
    /// Samples in all.
    pub samples: u64,
    /// Blocks, estimated, of which it is not known whether they live.
    pub uncertain_blocks: u64,
    /// Their bytes, estimated.
    pub uncertain_bytes: u64,
    /// Blocks of parts in which all were recorded that lived when such a part was over: they count as live, and may have been released since.
    pub unwatched_blocks: u64,
    /// Their bytes.
    pub unwatched_bytes: u64,
    /// Samples that are in no figure, for the capture ends before it says what they stand for.
    pub left_out_samples: u64,
}

/// A time in one mode.
#[derive(Clone, Debug, Serialize)]
pub struct SampledPart {
    /// When it began, in nanoseconds of the capture.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
    /// "full", "sampled" or "off".
    pub mode: &'static str,
    /// Smallest and largest mean interval between samples, bytes; none where all was recorded.
    pub interval: Option<(u64, u64)>,
    /// Windows it was observed in; 0: all the time.
    pub windows: usize,
    /// How much of it was observed, from 0 to 1.
    pub share_observed: f64,
    /// Samples allocated in it.
    pub samples: u64,
    /// What was allocated in it.
    #[serde(serialize_with = "super::json::figures")]
    pub figures: Sums,
}

impl Sampled {
    /// Of a capture that was sampled so, adds up to this, and ends then.
    pub fn new(sampling: &Sampling, whole: &Whole, end_ns: u64) -> Self {
        let parts = sampling.parts().iter().zip(&whole.parts).map(|(part, sums)| SampledPart {
            from_ns: part.from_ns,
            to_ns: part.to_ns.min(end_ns),
            mode: part.name(),
            interval: part.intervals,
            windows: part.windows.len(),
            share_observed: sampling.share_observed(part),
            samples: sums.samples(),
            figures: sums.clone(),
        });
        let parts: Vec<SampledPart> = parts.collect();
        let over = parts.len().saturating_sub(1);
        let unwatched = |figure| parts[..over].iter().filter(|part| part.samples == 0).map(|part| part.figures.value(figure)).sum();
        Sampled {
            unwatched_blocks: unwatched(Figure::LiveBlocks),
            unwatched_bytes: unwatched(Figure::LiveBytes),
            parts,
            samples: whole.total.samples(),
            uncertain_blocks: whole.total.value(Figure::Uncertain),
            uncertain_bytes: whole.total.value(Figure::UncertainBytes),
            left_out_samples: whole.unknown,
        }
    }
}

impl SampledPart {
    /// Whether nothing was recorded in it.
    pub fn is_off(&self) -> bool {
        self.mode == "off"
    }

    /// In words.
    pub fn words(&self) -> String {
        if self.mode != "sampled" {
            let exact = if self.is_off() { "" } else { ", every block recorded" };
            return format!("{}{exact}", self.mode);
        }
        let interval = match self.interval {
            Some((least, most)) if least == most => format!("one sample every {}", bytes(most)),
            Some((least, most)) => format!("one sample every {} to {}", bytes(least), bytes(most)),
            None => "every block in the windows".to_owned(),
        };
        let windows = match self.windows {
            0 => "observed all the time".to_owned(),
            1 => format!("observed for {} of the time, in 1 window", share_of(self.share_observed)),
            number => format!("observed for {} of the time, in {} windows", share_of(self.share_observed), count(number as u64)),
        };
        let samples = if self.samples == 1 { "1 sample".to_owned() } else { format!("{} samples", count(self.samples)) };
        format!("{interval}, {windows}; {samples}")
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Summary {
    /// Whether it is of the kernel's own memory.
    pub fn is_of_the_kernel(&self) -> bool {
        self.mode == "kernel"
    }

    /// Whether the program ran before it was recorded.
    pub fn is_attached(&self) -> bool {
        !self.started && (self.before.is_some() || !self.covered.is_empty())
    }

    /// Whether blocks that count as live may have been released while they were not watched.
    pub fn was_unwatched(&self) -> bool {
        self.sampled.as_ref().is_some_and(|sampled| sampled.unwatched_blocks > 0)
    }

    /// What was left out of the capture, in words.
    pub fn stripped_of(&self) -> Option<String> {
        self.stripped.map(|Stripped { blocks, bytes: size, threshold_ns, before, late, overflows }| {
            let what = match (before, threshold_ns) {
                (true, 0) => "were released before this capture was begun".to_owned(),
                (true, _) => format!("were released before this capture was begun, or lived shorter than {}", duration(threshold_ns)),
                (false, _) => format!("lived shorter than {}", duration(threshold_ns)),
            };
            let (blocks, size) = (count(blocks), bytes(size));
            let mut text = format!("STRIPPED of {blocks} blocks ({size}) that {what}: all figures, the peak too, are of what was kept");
            if overflows > 0 {
                text += &format!("; {} times too much waited to be judged, and was kept", count(overflows));
            }
            if late > 0 {
                text += &format!("; {} events came too late to be judged, and may lack their other half", count(late));
            }
            text
        })
    }

    /// Events known to be missing.
    pub fn lost_events(&self) -> u64 {
        self.losses.iter().map(|(_, count)| count).sum()
    }
}
