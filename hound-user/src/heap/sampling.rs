//! How a capture was sampled: its parts, its windows, and what each sampled block stands for.
//!
//! All of it is known before the replay begins ([`Capture::sampling`] is read when a capture is opened), so a block's weight is known
//! when the block is met, also that of a window which was closed later.
//!
//! [`Capture::sampling`]: crate::capture::Capture::sampling

use super::block::{Block, Ending};
use super::survival::{self, End, Share};
use crate::capture::model::{Event, Stamped};
use hound_common::event::{MODE_FAULTS, MODE_FULL, MODE_OFF, MODE_SAMPLED};
use hound_common::sampling::probability;
use std::ops::Range;

/// A time in one mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// When it began, in nanoseconds of the capture.
    pub from_ns: u64,
    /// When it ended; `u64::MAX` for the last one.
    pub to_ns: u64,
    /// `hound_common::event::MODE_…`
    pub mode: u8,
    /// Smallest and largest mean interval between samples that was set in it, in bytes; none if none was.
    pub intervals: Option<(u64, u64)>,
    /// Its windows, of [`Sampling::windows`]. None: all of it was observed.
    pub windows: Range<usize>,
}

/// A period of which a window was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When the period began, in nanoseconds of the capture.
    pub from_ns: u64,
    /// When it ended.
    pub to_ns: u64,
    /// When the window opened.
    pub opened_ns: u64,
    /// How long the window was open, in nanoseconds; never 0.
    pub open_ns: u64,
}

impl Window {
    /// Whether all of its period was observed.
    pub(super) fn is_whole(&self) -> bool {
        self.open_ns >= self.to_ns - self.from_ns
    }
}

/// What one sampled block stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    /// Probability with which a block of its size was sampled where it was observed.
    pub probability: f64,
    /// Length of its period for each unit of it that was observed; 1 = all was.
    pub scale: f64,
    /// Which cluster of windows it is of ([`Sampling::clusters`]); none if there was no window.
    pub cluster: Option<u32>,
}

/// What kind of evidence a block is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Drawn {
    /// It was recorded because all were: it stands for itself.
    Exact,
    /// It is a sample.
    Sampled(Weight),
    /// It is a sample of a period whose window is not known, for the capture ends before: it stands for an unknown number.
    Unknown,
}

/// How a capture was sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// In order, without gaps; never empty.
    parts: Vec<Part>,
    /// In order.
    windows: Vec<Window>,
    /// The intervals that streams were set to, ascending, without 0. A block's `rate` is a place here plus one.
    rates: Vec<u64>,
    /// How many windows make a cluster.
    per_cluster: usize,
    /// Of each window.
    shares: Vec<Share>,
}

/// Most clusters: with more windows than this, neighbours are taken together. The spread between this many is known to 5 %, and a site's
/// sums stay small.
const MOST_CLUSTERS: usize = 256;

/// So much periods that follow each other may be apart: clocks are compared anew between the stamp of one's end and of the next one's begin.
const SLACK_NS: u64 = 10_000;

impl Sampling {
    /// How a capture with these events was sampled; all but `MODE`, `RATE` and `WINDOW` are ignored. `None`: it was not, every block in it
    /// stands for itself.
    pub fn of(events: &[Stamped]) -> Option<Self> {
        let mut parts: Vec<Part> = Vec::new();
        let part = |from_ns, mode| Part { from_ns, to_ns: u64::MAX, mode, intervals: None, windows: 0..0 };
        let (mut windows, mut rates) = (Vec::new(), Vec::new());
        for Stamped { time_ns, event, .. } in events {
            match *event {
                // Switching to what is on already is no new part.
                Event::Mode { mode } if parts.last().is_none_or(|last| last.mode != mode) => parts.push(part(*time_ns, mode)),
                Event::Rate(interval) if interval > 0 => rates.push((*time_ns, interval)),
                Event::Window { opened_ns, closed_ns, from_ns, to_ns } => {
                    let open_ns = closed_ns.saturating_sub(opened_ns);
                    // A damaged record must not make a weight without bounds.
                    if open_ns > 0 && to_ns.saturating_sub(from_ns) >= open_ns {
                        windows.push(Window { from_ns, to_ns, opened_ns, open_ns });
                    }
                }
                _ => {}
            }
        }
        if rates.is_empty() && windows.is_empty() {
            return None;
        }
        if parts.is_empty() {
            parts.push(part(0, MODE_SAMPLED));
        }
        windows.sort_by_key(|window: &Window| window.from_ns);
        for index in 1..parts.len() {
            parts[index - 1].to_ns = parts[index].from_ns;
        }
        for part in &mut parts {
            // By its middle: its ends may have been stamped a little apart from the switch that they are one with.
            let at = |ns: u64| windows.partition_point(|window: &Window| window.opened_ns + window.open_ns / 2 < ns);
            if part.mode == MODE_SAMPLED {
                part.windows = at(part.from_ns)..at(part.to_ns);
            }
        }
        parts[0].from_ns = 0;
        let (per_cluster, shares) = (windows.len().div_ceil(MOST_CLUSTERS).max(1), survival::shares(&windows));
        let mut sampling = Sampling { parts, per_cluster, windows, rates: Vec::new(), shares };
        for &(time_ns, interval) in &rates {
            let part = sampling.part_at(time_ns);
            // Each thread notices the switch in its own time: an interval set late belongs to the part before.
            let part = if sampling.parts[part].mode == MODE_SAMPLED { part } else { part.saturating_sub(1) };
            let known = &mut sampling.parts[part].intervals;
            let (least, most) = known.unwrap_or((interval, interval));
            *known = Some((least.min(interval), most.max(interval)));
        }
        sampling.rates = rates.into_iter().map(|(_, interval)| interval).collect();
        sampling.rates.sort_unstable();
        sampling.rates.dedup();
        Some(sampling)
    }

    /// Its parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// All windows, in order.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// How many clusters of windows there are.
    pub fn clusters(&self) -> u32 {
        self.windows.len().div_ceil(self.per_cluster) as u32
    }

    /// How long the periods of each cluster are together, divided by the mean of all clusters.
    pub fn cluster_lengths(&self) -> Vec<f64> {
        let length = |windows: &[Window]| windows.iter().map(|window| (window.to_ns - window.from_ns) as f64).sum::<f64>();
        let mean = length(&self.windows) / f64::from(self.clusters().max(1));
        self.windows.chunks(self.per_cluster).map(|windows| length(windows) / mean).collect()
    }

    /// The largest interval that was set, in bytes; 0: none was.
    pub fn largest_interval(&self) -> u64 {
        self.rates.last().copied().unwrap_or(0)
    }

    /// When the last window's period ended, in nanoseconds of the capture; 0 if there are none.
    pub fn ended_ns(&self) -> u64 {
        self.windows.last().map_or(0, |window| window.to_ns)
    }

    /// Which part this moment is in.
    pub fn part_at(&self, time_ns: u64) -> usize {
        self.parts.partition_point(|part| part.from_ns <= time_ns).saturating_sub(1)
    }

    /// How much of a part was observed, from 0 to 1.
    pub fn share_observed(&self, part: &Part) -> f64 {
        let windows = &self.windows[part.windows.clone()];
        match (part.mode, windows) {
            (MODE_OFF | MODE_FAULTS, _) => 0.0,
            (_, []) => 1.0,
            _ => share(windows),
        }
    }

    /// The share observed of all periods that have windows; 1 if there are none.
    pub fn share_of_windows(&self) -> f64 {
        if self.windows.is_empty() { 1.0 } else { share(&self.windows) }
    }

    /// A block's `rate` for this interval.
    pub(super) fn rate(&self, interval: u64) -> u16 {
        if interval == 0 {
            return 0;
        }
        // More intervals than numbers: they lie so close that the nearest below is as good.
        let at = self.rates.partition_point(|&known| known <= interval);
        at.clamp(1, usize::from(u16::MAX)) as u16
    }

    /// The mean interval between samples that the block was drawn at, in bytes; 0 = every block was recorded.
    pub fn interval(&self, block: &Block) -> u64 {
        usize::from(block.rate).checked_sub(1).and_then(|at| self.rates.get(at)).copied().unwrap_or(0)
    }

    /// What the block stands for.
    pub fn drawn(&self, block: &Block) -> Drawn {
        let interval = self.interval(block);
        let part = &self.parts[self.part_at(block.alloc_ns)];
        if part.windows.is_empty() {
            return match interval {
                0 => Drawn::Exact,
                _ => Drawn::Sampled(Weight { probability: probability(block.size, interval), scale: 1.0, cluster: None }),
            };
        }
        let Some(index) = self.period_of(block.alloc_ns) else { return Drawn::Unknown };
        let window = &self.windows[index];
        let scale = (window.to_ns - window.from_ns) as f64 / window.open_ns as f64;
        let cluster = self.cluster_of(index);
        Drawn::Sampled(Weight { probability: probability(block.size, interval), scale, cluster: Some(cluster) })
    }

    /// Which window's period this moment is in. Its period, not its window: an allocation is stamped when the call returns, which may be
    /// after the window was closed.
    fn period_of(&self, time_ns: u64) -> Option<usize> {
        let part = &self.parts[self.part_at(time_ns)];
        let windows = &self.windows[part.windows.clone()];
        let after = windows.partition_point(|window| window.from_ns <= time_ns);
        let last = |number: usize| number.checked_sub(1).filter(|&index| time_ns < windows[index].to_ns.saturating_add(SLACK_NS));
        let next = || windows.get(after).filter(|next| next.from_ns <= time_ns.saturating_add(SLACK_NS)).map(|_| after);
        last(after).or_else(next).map(|index| part.windows.start + index)
    }

    fn cluster_of(&self, window: usize) -> u32 {
        (window / self.per_cluster) as u32
    }

    /// What the end of a sampled block says of others that ended where nobody looked.
    pub fn end_of(&self, block: &Block, ending: &Ending) -> End {
        let (Some(born), Ending::Freed(death)) = (self.period_of(block.alloc_ns), ending) else { return End::Unseen };
        let time_ns = death.time_ns;
        let Some(died) = self.period_of(time_ns) else {
            // In a part in which all is recorded every end is seen; else what is seen outside of windows is seen by chance.
            if self.parts[self.part_at(time_ns)].mode != MODE_FULL {
                return End::Unseen;
            }
            return End::Later { factor: 1.0 / self.shares[born].share, cluster: self.clusters() };
        };
        let window = &self.windows[died];
        if !(window.opened_ns..=window.opened_ns + window.open_ns).contains(&time_ns) {
            return End::Unseen;
        }
        let (birth, death) = (&self.shares[born], &self.shares[died]);
        if birth.stretch == death.stretch && window.is_whole() {
            return End::Watched;
        }
        let life = time_ns.saturating_sub(block.alloc_ns) as f64;
        let seen = survival::seen(life / self.windows[born].open_ns as f64, death.share);
        if born == died {
            return End::Within { factor: 1.0 - 1.0 / (death.share * seen) };
        }
        End::Later { factor: 1.0 / (birth.share * death.share * seen), cluster: self.cluster_of(died) }
    }

    /// Bytes that the block stands for.
    pub(super) fn worth(&self, block: &Block) -> u64 {
        match self.drawn(block) {
            Drawn::Exact => block.size,
            Drawn::Sampled(weight) => (block.size as f64 * weight.scale / weight.probability).round() as u64,
            Drawn::Unknown => 0,
        }
    }

    /// Whether the block was recorded because all were.
    pub fn is_exact(&self, block: &Block) -> bool {
        block.rate == 0 && self.parts[self.part_at(block.alloc_ns)].windows.is_empty()
    }

    /// Until when the block is known to have lived, if its release may have been missed, other than by loss, by `now_ns`.
    pub(super) fn unwatched_since(&self, block: &Block, now_ns: u64) -> Option<u64> {
        if self.is_exact(block) {
            return self.watched_until(block).filter(|&until| until <= now_ns);
        }
        // Between windows nobody watches.
        (!self.windows.is_empty()).then_some(block.alloc_ns)
    }

    /// When a block that was recorded because all were was no longer watched: from there on nothing was, or only samples.
    pub(super) fn watched_until(&self, block: &Block) -> Option<u64> {
        let from = self.part_at(block.alloc_ns);
        let next = self.parts[from..].iter().find(|part| part.mode != MODE_FULL)?;
        self.is_exact(block).then(|| next.from_ns.max(block.alloc_ns))
    }
}

fn share(windows: &[Window]) -> f64 {
    let open: u64 = windows.iter().map(|window| window.open_ns).sum();
    let all: u64 = windows.iter().map(|window| window.to_ns - window.from_ns).sum();
    open as f64 / all as f64
}

impl Part {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self.mode {
            MODE_OFF => "off",
            MODE_FULL => "full",
            MODE_SAMPLED => "sampled",
            MODE_FAULTS => "faults",
            _ => "unknown",
        }
    }
}
