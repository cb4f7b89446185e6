//! What is added up of blocks, and what it amounts to where blocks are samples.

use super::estimate::{Estimate, Living, Scale};
use crate::heap::{Drawn, End, Ending, Weight};

/// Sums over blocks. Bytes are as asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sums {
    /// Blocks allocated.
    pub allocations: u64,
    /// Their bytes.
    pub allocated_bytes: u64,
    /// Blocks that live at the end.
    pub live_blocks: u64,
    /// Their bytes.
    pub live_bytes: u64,
    /// Blocks that lived when most bytes of the whole heap lived.
    pub peak_blocks: u64,
    /// Their bytes.
    pub peak_bytes: u64,
    /// Blocks released with no other allocation of their thread between.
    pub temporary: u64,
    /// Their bytes.
    pub temporary_bytes: u64,
    /// Of a capture that has samples: what they add up to. The figures above are 0 until [`Sums::settle`] has been asked for them.
    pub sampled: Option<Box<Sampled>>,
}

/// Which figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// [`Sums::allocations`].
    Allocations,
    /// [`Sums::allocated_bytes`].
    AllocatedBytes,
    /// [`Sums::live_blocks`].
    LiveBlocks,
    /// [`Sums::live_bytes`].
    LiveBytes,
    /// [`Sums::peak_blocks`].
    PeakBlocks,
    /// [`Sums::peak_bytes`].
    PeakBytes,
    /// [`Sums::temporary`].
    Temporary,
    /// [`Sums::temporary_bytes`].
    TemporaryBytes,
    /// Blocks released.
    Freed,
    /// Their bytes.
    FreedBytes,
    /// Blocks that may live beyond the estimate of those that do: they are not known to have ended.
    Uncertain,
    /// Their bytes.
    UncertainBytes,
    /// Blocks that outlived the windows in which they were sampled; only to find [`Figure::LiveBlocks`].
    Survived,
    /// Their bytes.
    SurvivedBytes,
    /// What ended of [`Figure::Survived`], by the ends that were seen.
    Ended,
    /// Their bytes.
    EndedBytes,
}

/// How many [`Figure`]s there are.
const FIGURES: usize = Figure::EndedBytes as usize + 1;

impl Figure {
    const ALL: [Figure; FIGURES] = [
        Figure::Allocations,
        Figure::AllocatedBytes,
        Figure::LiveBlocks,
        Figure::LiveBytes,
        Figure::PeakBlocks,
        Figure::PeakBytes,
        Figure::Temporary,
        Figure::TemporaryBytes,
        Figure::Freed,
        Figure::FreedBytes,
        Figure::Uncertain,
        Figure::UncertainBytes,
        Figure::Survived,
        Figure::SurvivedBytes,
        Figure::Ended,
        Figure::EndedBytes,
    ];

    /// Whether it is a number of blocks.
    fn counts(self) -> bool {
        // Blocks and bytes alternate.
        (self as usize).is_multiple_of(2)
    }
}

/// The figures of a capture that has samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// How many samples there are.
    pub samples: u64,
    /// How many blocks there are that stand for themselves.
    pub exact: u64,
    figures: [Estimate; FIGURES],
    /// What [`Sums::settle`] found.
    intervals: Option<[(u64, u64); FIGURES]>,
}

impl Sampled {
    fn figure(&self, figure: Figure) -> &Estimate {
        &self.figures[figure as usize]
    }

    fn living(&self, figure: Figure) -> Option<Living<'_>> {
        let [known, survived, ended, doubted] = match figure {
            Figure::LiveBlocks | Figure::Uncertain => [Figure::LiveBlocks, Figure::Survived, Figure::Ended, Figure::Uncertain],
            Figure::LiveBytes | Figure::UncertainBytes => {
                [Figure::LiveBytes, Figure::SurvivedBytes, Figure::EndedBytes, Figure::UncertainBytes]
            }
            _ => return None,
        };
        let [known, survived, ended, doubted] = [known, survived, ended, doubted].map(|figure| self.figure(figure));
        Some(Living { known, survived, ended, doubted })
    }

    /// The estimate.
    pub fn value(&self, figure: Figure) -> u64 {
        match (figure, self.living(figure)) {
            (Figure::LiveBlocks | Figure::LiveBytes, Some(living)) => living.value(),
            (_, Some(living)) => living.beyond(),
            (_, None) => self.figure(figure).value(),
        }
    }

    /// The interval that holds the truth with 95 %, of all but [`Figure::Uncertain`] and its bytes: of those, what all that is in doubt
    /// may be.
    pub(super) fn bounds(&self, figure: Figure, scale: &Scale) -> (u64, u64) {
        let own = || self.figure(figure).interval(scale, figure.counts());
        match figure {
            Figure::LiveBlocks | Figure::LiveBytes => {
                self.living(figure).map_or_else(own, |living| living.interval(scale, figure.counts()))
            }
            // What was not seen to end before is in it, whether it lived then or not; what lives at the end is no more than at the peak.
            Figure::PeakBlocks | Figure::PeakBytes => {
                let lives = if figure.counts() { Figure::LiveBlocks } else { Figure::LiveBytes };
                let (low, high) = own();
                match self.living(lives) {
                    Some(living) if living.is_doubtful() || living.survived.value() > 0 => {
                        let surely = living.interval(scale, figure.counts()).0.min(low);
                        (surely, high)
                    }
                    _ => (low, high),
                }
            }
            _ => own(),
        }
    }

    /// The interval that holds the truth with 95 %; none before [`Sums::settle`].
    pub fn interval(&self, figure: Figure) -> Option<(u64, u64)> {
        self.intervals.map(|intervals| intervals[figure as usize])
    }

    /// Holds all that is in doubt for alive, as it looks.
    #[cfg(test)]
    pub(super) fn hold_for_alive(&mut self) {
        let doubted = std::mem::take(&mut self.figures[Figure::UncertainBytes as usize]);
        self.figures[Figure::LiveBytes as usize].merge(&doubted);
    }

    fn add(&mut self, figure: Figure, value: u64, weight: Option<&Weight>) {
        let estimate = &mut self.figures[figure as usize];
        match weight {
            Some(weight) => estimate.add(value, weight),
            None => estimate.add_exact(value),
        }
    }

    fn add_both(&mut self, figures: [Figure; 2], size: u64, weight: Option<&Weight>) {
        self.add(figures[0], 1, weight);
        self.add(figures[1], size, weight);
    }
}

impl Sums {
    /// Adds another group's sums. Wraps, as sizes may be anything in a damaged capture.
    pub fn add(&mut self, other: &Sums) {
        let pairs = [
            (&mut self.allocations, other.allocations),
            (&mut self.allocated_bytes, other.allocated_bytes),
            (&mut self.live_blocks, other.live_blocks),
            (&mut self.live_bytes, other.live_bytes),
            (&mut self.peak_blocks, other.peak_blocks),
            (&mut self.peak_bytes, other.peak_bytes),
            (&mut self.temporary, other.temporary),
            (&mut self.temporary_bytes, other.temporary_bytes),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum = sum.wrapping_add(more));
        if let Some(more) = &other.sampled {
            let sampled = self.sampled.get_or_insert_default();
            sampled.samples += more.samples;
            sampled.exact += more.exact;
            sampled.intervals = None;
            sampled.figures.iter_mut().zip(&more.figures).for_each(|(sum, more)| sum.merge(more));
        }
    }

    /// Adds what a block of a capture that has samples says of what lives; `end`: see [`Sampling::end_of`].
    ///
    /// [`Sampling::end_of`]: crate::heap::Sampling::end_of
    pub(super) fn add_life(&mut self, size: u64, ending: &Ending, drawn: &Drawn, end: End) {
        let sampled = self.sampled.get_or_insert_default();
        let weight = match drawn {
            Drawn::Exact => None,
            Drawn::Sampled(weight) => Some(weight),
            Drawn::Unknown => return,
        };
        if ending.is_live() {
            return sampled.add_both([Figure::LiveBlocks, Figure::LiveBytes], size, weight);
        }
        if let Ending::Uncertain { .. } = ending {
            sampled.add_both([Figure::Uncertain, Figure::UncertainBytes], size, weight);
        }
        let Some(weight) = weight.filter(|weight| weight.cluster.is_some()) else { return };
        let factor = match end {
            End::Watched => return,
            End::Within { factor } => factor,
            End::Later { .. } | End::Unseen => 1.0,
        };
        for (figure, value) in [(Figure::Survived, 1), (Figure::SurvivedBytes, size)] {
            sampled.figures[figure as usize].add_part(value, weight, factor);
        }
        if let End::Later { factor, cluster } = end {
            for (figure, value) in [(Figure::Ended, 1), (Figure::EndedBytes, size)] {
                sampled.figures[figure as usize].add_ends(value, weight, factor, cluster);
            }
        }
    }

    /// Adds a block of a capture that has samples, all but whether it lives or lived at the peak.
    pub(super) fn add_block(&mut self, size: u64, ending: &Ending, drawn: &Drawn) {
        let sampled = self.sampled.get_or_insert_default();
        let weight = match drawn {
            Drawn::Exact => None,
            Drawn::Sampled(weight) => Some(weight),
            Drawn::Unknown => return,
        };
        match weight {
            None => sampled.exact += 1,
            Some(_) => sampled.samples += 1,
        }
        sampled.add_both([Figure::Allocations, Figure::AllocatedBytes], size, weight);
        if let Ending::Freed(death) = ending {
            sampled.add_both([Figure::Freed, Figure::FreedBytes], size, weight);
            if death.temporary {
                sampled.add_both([Figure::Temporary, Figure::TemporaryBytes], size, weight);
            }
        }
    }

    /// Adds a page that was touched. It is counted where blocks that are allocated are.
    pub(super) fn add_touch(&mut self, bytes: u64, drawn: &Drawn) {
        let sampled = self.sampled.get_or_insert_default();
        let weight = match drawn {
            Drawn::Sampled(weight) => Some(weight),
            Drawn::Exact => None,
            Drawn::Unknown => return,
        };
        match weight {
            None => sampled.exact += 1,
            Some(_) => sampled.samples += 1,
        }
        sampled.add_both([Figure::Allocations, Figure::AllocatedBytes], bytes, weight);
    }

    /// Adds a block that lived at the peak.
    pub(super) fn add_at_peak(&mut self, size: u64, drawn: &Drawn) {
        let weight = match drawn {
            Drawn::Exact => None,
            Drawn::Sampled(weight) => Some(weight),
            Drawn::Unknown => return,
        };
        self.sampled.get_or_insert_default().add_both([Figure::PeakBlocks, Figure::PeakBytes], size, weight);
    }

    /// Forgets what lived at the peak: there is a higher one.
    pub(super) fn forget_peak(&mut self) {
        (self.peak_blocks, self.peak_bytes) = (0, 0);
        if let Some(sampled) = &mut self.sampled {
            sampled.figures[Figure::PeakBlocks as usize] = Estimate::default();
            sampled.figures[Figure::PeakBytes as usize] = Estimate::default();
        }
    }

    /// The interval that holds a figure's truth with 95 %, if samples are behind it and it was settled.
    pub fn interval(&self, figure: Figure) -> Option<(u64, u64)> {
        self.sampled.as_ref().and_then(|sampled| sampled.interval(figure))
    }

    /// Whether there is a sample in it: then its figures are estimates.
    pub fn is_estimate(&self) -> bool {
        self.samples() > 0
    }

    /// How many samples are behind it.
    pub fn samples(&self) -> u64 {
        self.sampled.as_ref().map_or(0, |sampled| sampled.samples)
    }

    /// A figure, rounded.
    pub fn value(&self, figure: Figure) -> u64 {
        match figure {
            Figure::Allocations => self.allocations,
            Figure::AllocatedBytes => self.allocated_bytes,
            Figure::LiveBlocks => self.live_blocks,
            Figure::LiveBytes => self.live_bytes,
            Figure::PeakBlocks => self.peak_blocks,
            Figure::PeakBytes => self.peak_bytes,
            Figure::Temporary => self.temporary,
            Figure::TemporaryBytes => self.temporary_bytes,
            // Only added up where there are samples.
            Figure::Freed
            | Figure::FreedBytes
            | Figure::Uncertain
            | Figure::UncertainBytes
            | Figure::Survived
            | Figure::SurvivedBytes
            | Figure::Ended
            | Figure::EndedBytes => self.sampled.as_ref().map_or(0, |sampled| sampled.value(figure)),
        }
    }

    /// Blocks that were recorded, each counted once whatever it stands for.
    pub fn recorded(&self) -> u64 {
        self.sampled.as_ref().map_or(self.allocations, |sampled| sampled.samples + sampled.exact)
    }

    /// Whether any of its blocks may live and is not known to.
    pub(super) fn is_doubtful(&self) -> bool {
        self.sampled.as_ref().and_then(|sampled| sampled.living(Figure::LiveBytes)).is_some_and(|living| living.is_doubtful())
    }

    /// Whether any of its blocks lives.
    pub(super) fn lives(&self) -> bool {
        self.live_blocks > 0 || self.sampled.as_ref().is_some_and(|sampled| sampled.value(Figure::LiveBlocks) > 0)
    }

    /// Sets the figures to the estimates, where there are samples. To be asked for when all is added up.
    pub fn round(&mut self) {
        let Some(sampled) = &self.sampled else { return };
        let value = |figure| sampled.value(figure);
        (self.allocations, self.allocated_bytes) = (value(Figure::Allocations), value(Figure::AllocatedBytes));
        (self.live_blocks, self.live_bytes) = (value(Figure::LiveBlocks), value(Figure::LiveBytes));
        (self.peak_blocks, self.peak_bytes) = (value(Figure::PeakBlocks), value(Figure::PeakBytes));
        (self.temporary, self.temporary_bytes) = (value(Figure::Temporary), value(Figure::TemporaryBytes));
    }

    /// Sets the figures to the estimates and finds their intervals; `None` where there are no samples.
    pub fn settle(&mut self, scale: Option<&Scale>) {
        if let Some(scale) = scale {
            // Nothing seen has an interval too.
            let sampled = self.sampled.get_or_insert_default();
            sampled.intervals = Some(Figure::ALL.map(|figure| sampled.bounds(figure, scale)));
        }
        self.round();
    }

    /// The figure that is surely reached: what rows are ranked by. Where there are no samples, the figure itself.
    pub(super) fn least(&self, figure: Figure, exactly: u64, scale: Option<&Scale>) -> u64 {
        match (&self.sampled, scale) {
            (Some(sampled), Some(scale)) => sampled.bounds(figure, scale).0,
            _ => exactly,
        }
    }
}
