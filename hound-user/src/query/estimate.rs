//! One figure estimated from samples, and the interval in which the truth lies.
//!
//! Each sample is weighted by the inverse of the probability of seeing it, and *then* they are added. What is uncertain is only what was
//! not seen: the samples themselves are certain. Its distribution is close to a gamma distribution with the estimate's mean and variance
//! (exactly that of Garwood's interval for a Poisson count where all weights are equal, and normal from some 40 samples on).
//! `docs/decisions/0010-intervals-of-estimates.md` says why, and what was measured.

use crate::heap::{Sampling, Weight};
use hound_common::sampling::probability;
use statrs::distribution::{ContinuousCDF, Gamma, StudentsT};
use std::sync::Arc;

/// Two-sided 95 %.
const LOW: f64 = 0.025;
const HIGH: f64 = 0.975;
/// The normal distribution's quantile at [`HIGH`].
const NORMAL: f64 = 1.959_963_984_540_054;
/// A Poisson count that was seen to be 0 has at most this mean, with 95 %.
const RULE_OF_THREE: f64 = 3.0;
/// From this shape on the gamma distribution is normal to within a thousandth of its width.
const NEARLY_NORMAL: f64 = 1e5;
/// Below this shape the gamma distribution's lower quantile is 0 for all that can be told.
const NEARLY_ZERO: f64 = 0.05;

/// A figure being added up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Estimate {
    /// What was seen: the truth is not less.
    seen: f64,
    /// The estimate.
    sum: f64,
    /// Variance from sampling by bytes, of samples that were observed all the time.
    variance: f64,
    /// The same, of samples in windows.
    within: f64,
    /// Sum of value times variance: divided by the variance, the steps in which the truth moves where it is uncertain.
    steps: f64,
    /// Sum of what samples stand for in the time that was observed, and of its squares.
    observed: (f64, f64),
    /// Estimates of clusters of windows, by number; those without samples are left out.
    clusters: Vec<(u32, f64)>,
}

/// What is known of the sampling as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    /// Clusters of windows, those without samples included.
    pub clusters: u32,
    /// How long the periods of each are together, in means of all; 1 for those past the end.
    pub lengths: Arc<[f64]>,
    /// Share of the windows' periods that was observed.
    pub share: f64,
    /// What the heaviest sample that may have been missed stands for, in bytes.
    pub bytes: f64,
    /// The same in blocks.
    pub blocks: f64,
}

impl Scale {
    /// Of a capture that was sampled so. `smallest`: size of the smallest blocks that are to be expected; `mean`: of a typical one.
    pub fn new(sampling: &Sampling, smallest: u64, mean: u64) -> Self {
        let (share, interval) = (sampling.share_of_windows(), sampling.largest_interval());
        // A sample never stands for much more than the interval that is not seen, however small it is.
        let bytes = if interval > 0 { interval } else { mean };
        let blocks = 1.0 / probability(smallest, interval);
        let lengths = sampling.cluster_lengths().into();
        Scale { clusters: sampling.clusters(), lengths, share, bytes: bytes as f64 / share, blocks: blocks / share }
    }

    fn length(&self, cluster: u32) -> f64 {
        self.lengths.get(cluster as usize).copied().unwrap_or(1.0)
    }

    /// What a sample of this figure may stand for.
    fn heaviest(&self, counts: bool) -> f64 {
        if counts { self.blocks } else { self.bytes }
    }
}

impl Estimate {
    /// Adds a block that counts for `value` and was not sampled but recorded.
    pub fn add_exact(&mut self, value: u64) {
        self.seen += value as f64;
        self.sum += value as f64;
    }

    /// Adds a sample that counts for `value`.
    pub fn add(&mut self, value: u64, weight: &Weight) {
        self.seen += value as f64;
        self.add_part(value, weight, 1.0);
    }

    /// Adds `factor` of a sample, none of which is certain.
    pub fn add_part(&mut self, value: u64, weight: &Weight, factor: f64) {
        let (value, p) = (value as f64, weight.probability);
        let estimate = value * weight.scale / p * factor;
        let variance = estimate * estimate * (1.0 - p);
        self.sum += estimate;
        self.observed.0 += value / p;
        self.observed.1 += (value / p).powi(2);
        self.steps += value * variance;
        match weight.cluster {
            None => self.variance += variance,
            Some(cluster) => {
                self.within += variance;
                self.add_to(cluster, estimate);
            }
        }
    }

    fn add_to(&mut self, cluster: u32, estimate: f64) {
        match self.clusters.last_mut() {
            // Blocks end in an order that has little to do with when they were allocated, but runs are common.
            Some((last, sum)) if *last == cluster => *sum += estimate,
            Some((last, _)) if *last < cluster => self.clusters.push((cluster, estimate)),
            None => self.clusters.push((cluster, estimate)),
            Some(_) => match self.clusters.binary_search_by_key(&cluster, |(number, _)| *number) {
                Ok(at) => self.clusters[at].1 += estimate,
                Err(at) => self.clusters.insert(at, (cluster, estimate)),
            },
        }
    }

    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Estimate) {
        self.seen += other.seen;
        self.sum += other.sum;
        self.variance += other.variance;
        self.within += other.within;
        self.steps += other.steps;
        self.observed.0 += other.observed.0;
        self.observed.1 += other.observed.1;
        other.clusters.iter().for_each(|&(cluster, estimate)| self.add_to(cluster, estimate));
    }

    /// The estimate, rounded.
    pub fn value(&self) -> u64 {
        self.sum.round() as u64
    }

    /// Adds `ends` ends of blocks like this, which were seen in this cluster of windows.
    pub fn add_ends(&mut self, value: u64, weight: &Weight, ends: f64, cluster: u32) {
        let estimate = value as f64 / weight.probability * ends;
        self.sum += estimate;
        self.add_to(cluster, estimate);
    }

    /// The interval that holds the truth with 95 %. `counts`: the figure is a number of blocks, not of bytes.
    pub fn interval(&self, scale: &Scale, counts: bool) -> (u64, u64) {
        let (low, high) = self.bounds(scale, counts);
        (low.floor() as u64, high.ceil() as u64)
    }

    fn bounds(&self, scale: &Scale, counts: bool) -> (f64, f64) {
        let missed = scale.heaviest(counts);
        let (unseen, Spread { variance, degrees, jump }) = ((self.sum - self.seen).max(0.0), self.spread(scale));
        if unseen <= 0.0 && variance <= 0.0 {
            return (self.seen, self.seen + RULE_OF_THREE * missed);
        }
        // Few windows: their spread is known badly, and the interval is as much wider as Student's is.
        let stretch = if degrees > 1000.0 { 1.0 } else { student(degrees) / NORMAL };
        let missed = missed.max(jump);
        // Truth moves in steps of a block: where blocks are as large as what is uncertain, the quantile lies between two steps.
        let step = if variance > 0.0 { self.steps / (self.variance + self.within).max(f64::MIN_POSITIVE) } else { 0.0 };
        let low = unseen - (unseen - (quantile(unseen, variance, LOW) - step)) * stretch;
        let high = unseen + (quantile(unseen + missed, variance + missed * missed, HIGH) - unseen) * stretch;
        (self.seen + low.max(0.0), self.seen + high)
    }

    /// What the sample of its typical byte, or block, stands for in the time that was observed.
    fn typical(&self) -> f64 {
        if self.observed.0 > 0.0 { self.observed.1 / self.observed.0 } else { 0.0 }
    }

    /// How far the estimate may be off.
    fn spread(&self, scale: &Scale) -> Spread {
        let Between { variance: between, jump } = self.between(scale);
        // The spread between periods holds the sampling within the windows already. The rest of it comes from where the windows fell, and
        // of that there is the less the more was observed.
        let windows = self.within + (between - self.within).max(0.0) * (1.0 - scale.share);
        let variance = self.variance + windows;
        let count = f64::from(scale.clusters);
        // Of the estimator over neighbours; with some variance known better (there is sampling without windows too), more.
        let own = 2.0 * (count - 1.0).powi(2) / (3.0 * count - 4.0);
        let share = windows / variance;
        let degrees = if windows > 0.0 && scale.clusters > 1 { own / (share * share) } else { f64::INFINITY };
        Spread { variance, degrees, jump }
    }

    /// The variance of a sum over all clusters from the differences of neighbours: what they estimate for a time of the same length is
    /// compared, as their own lengths are drawn at random and known.
    fn between(&self, scale: &Scale) -> Between {
        let (clusters, count) = (&self.clusters[..], scale.clusters);
        let (Some(&first), Some(&last)) = (clusters.first(), clusters.last()) else { return Between::default() };
        if count <= 1 {
            return Between { variance: first.1 * first.1, jump: first.1 };
        }
        // Squared, and as large as it would be if the neighbours were as long as they are on average.
        let square = |one: (u32, f64), other: (u32, f64)| {
            let (a, b) = (scale.length(one.0), scale.length(other.0));
            (one.1 / a - other.1 / b).powi(2) * (a * a + b * b) / 2.0
        };
        let (mut squares, mut cubes) = (0.0, 0.0);
        let mut note = |square: f64| {
            squares += square;
            cubes += square * square.sqrt();
        };
        let mut before: Option<(u32, f64)> = None;
        for &cluster in clusters {
            match before {
                Some(neighbour) if neighbour.0 + 1 == cluster.0 => note(square(cluster, neighbour)),
                _ => {
                    if let Some(other) = before {
                        note(square(other, (other.0 + 1, 0.0)));
                    }
                    if cluster.0 > 0 {
                        note(square(cluster, (cluster.0 - 1, 0.0)));
                    }
                }
            }
            before = Some(cluster);
        }
        if last.0 + 1 < count {
            note(square(last, (last.0 + 1, 0.0)));
        }
        let jump = if squares > 0.0 { cubes / squares } else { 0.0 };
        // Each period's variance is to be counted once, and each but the outermost ones is in two differences.
        let at = |cluster: u32| (cluster, self.at(cluster));
        let ends = square(at(0), at(1)) + square(at(count - 1), at(count - 2));
        let variance = if count == 2 { squares } else { (squares + ends) / 2.0 };
        Between { variance, jump }
    }

    fn at(&self, cluster: u32) -> f64 {
        self.clusters.binary_search_by_key(&cluster, |(number, _)| *number).map_or(0.0, |at| self.clusters[at].1)
    }
}

struct Spread {
    variance: f64,
    /// Degrees of freedom with which the variance is known.
    degrees: f64,
    /// What one cluster more or less may make.
    jump: f64,
}

#[derive(Default)]
struct Between {
    variance: f64,
    /// The typical size of what makes the variance.
    jump: f64,
}

/// What lives, where not all of the time was observed.
#[derive(Clone, Copy, Debug)]
pub struct Living<'a> {
    /// What is known to live.
    pub known: &'a Estimate,
    /// What outlived the windows in which it was sampled, and is not known to live.
    pub survived: &'a Estimate,
    /// What of that ended: the ends that were seen, and those that they stand for.
    pub ended: &'a Estimate,
    /// What is not known to have ended: no more than that lives.
    pub doubted: &'a Estimate,
}

impl Living<'_> {
    /// Whether anything is in doubt.
    pub fn is_doubtful(&self) -> bool {
        self.doubted.sum > 0.0
    }

    /// How much of what is in doubt lives, by estimate.
    fn of_doubted(&self) -> f64 {
        (self.survived.sum - self.ended.sum).clamp(0.0, self.doubted.sum.max(0.0))
    }

    /// The estimate, rounded.
    pub fn value(&self) -> u64 {
        (self.known.sum + self.of_doubted()).round() as u64
    }

    /// What is in doubt beyond the estimate, rounded.
    pub fn beyond(&self) -> u64 {
        (self.doubted.sum - self.of_doubted()).round() as u64
    }

    /// The interval that holds the truth with 95 %: below, what outlived its window less the most that may have ended since; above, all that
    /// is not known to have ended.
    pub fn interval(&self, scale: &Scale, counts: bool) -> (u64, u64) {
        if !self.is_doubtful() {
            return self.known.interval(scale, counts);
        }
        let (sure, _) = self.known.bounds(scale, counts);
        let mut most = self.known.clone();
        most.merge(self.doubted);
        let (at_most, high) = most.bounds(scale, counts);
        let mut survived = self.known.clone();
        survived.merge(self.survived);
        let (survived_low, _) = survived.bounds(scale, counts);
        // As many ends may have been missed as a Poisson count of none allows, each as heavy as what is in doubt is.
        let missed = self.doubted.typical() / (scale.share * scale.share);
        let variance: f64 = self.ended.clusters.iter().map(|(_, ends)| ends * ends).sum();
        let ended_high = quantile(self.ended.sum + missed, variance + missed * missed, HIGH);
        // How far a difference may be off by how far its two sides may (Zou and Donner, 2008).
        let off = (survived.sum - survived_low).hypot(ended_high - self.ended.sum);
        let low = (survived.sum - self.ended.sum - off).min(at_most).max(sure);
        (low.floor() as u64, high.max(low).ceil() as u64)
    }
}

/// Student's quantile at [`HIGH`].
fn student(degrees: f64) -> f64 {
    StudentsT::new(0.0, 1.0, degrees).map_or(NORMAL, |student| student.inverse_cdf(HIGH))
}

/// The quantile of the gamma distribution with this mean and variance.
fn quantile(mean: f64, variance: f64, at: f64) -> f64 {
    if variance <= 0.0 || mean <= 0.0 {
        return mean;
    }
    let shape = mean * mean / variance;
    if shape > NEARLY_NORMAL {
        let deviations = if at < 0.5 { -NORMAL } else { NORMAL };
        return mean + deviations * variance.sqrt();
    }
    if shape < NEARLY_ZERO && at < 0.5 {
        return 0.0;
    }
    Gamma::new(shape, 1.0).map_or(mean, |gamma| gamma.inverse_cdf(at) * variance / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(clusters: u32, bytes: f64) -> Scale {
        Scale { clusters, lengths: Arc::new([]), share: 1.0, bytes, blocks: bytes / 10.0 }
    }

    /// `number` samples of 10-byte blocks at a mean interval so large that each stands for about 1000 bytes.
    fn samples(number: u32) -> Estimate {
        let mut estimate = Estimate::default();
        let weight = Weight { probability: 0.01, scale: 1.0, cluster: None };
        (0..number).for_each(|_| estimate.add(10, &weight));
        estimate
    }

    #[test]
    fn equal_weights_give_the_exact_poisson_interval() {
        // Half the quantiles of chi-square at 2n and 2n + 2 degrees of freedom, from tables.
        for (number, low, high) in [(1, 0.0253, 5.572), (4, 1.090, 10.24), (10, 4.795, 18.39), (40, 28.58, 54.47)] {
            let (least, most) = samples(number).interval(&scale(0, 1000.0), false);
            let close = |got: u64, table: f64| (got as f64 - table * 1000.0).abs() < 0.02 * table * 1000.0 + 40.0;
            assert!(close(least, low) && close(most, high), "{number}: {least} {most}");
        }
    }

    #[test]
    fn nothing_seen_is_at_most_three_times_what_a_sample_stands_for() {
        assert_eq!(Estimate::default().interval(&scale(0, 1000.0), false), (0, 3000));
        assert_eq!(Estimate::default().interval(&scale(0, 1000.0), true), (0, 300));
    }

    #[test]
    fn what_is_certain_has_no_interval_but_what_was_not_seen() {
        let mut estimate = Estimate::default();
        estimate.add(1 << 40, &Weight { probability: 1.0, scale: 1.0, cluster: None });
        estimate.add_exact(5);
        assert_eq!(estimate.interval(&scale(0, 1000.0), false), ((1 << 40) + 5, (1 << 40) + 3005));
    }

    #[test]
    fn many_samples_give_the_normal_interval() {
        let (low, high) = samples(400_000).interval(&scale(0, 1000.0), false);
        let deviation = (400_000.0f64 * 0.99).sqrt() * 1000.0;
        assert!((low as f64 - (4e8 - 1.96 * deviation)).abs() < 0.02 * deviation, "{low}");
        assert!((high as f64 - (4e8 + 1.96 * deviation)).abs() < 0.02 * deviation, "{high}");
    }

    /// Clusters with these estimates, each one sample that was sure to be sampled in its window.
    fn windows(estimates: &[f64]) -> Estimate {
        let mut estimate = Estimate::default();
        for (cluster, value) in estimates.iter().enumerate().filter(|(_, value)| **value > 0.0) {
            estimate.add((*value / 10.0) as u64, &Weight { probability: 1.0, scale: 10.0, cluster: Some(cluster as u32) });
        }
        estimate
    }

    #[test]
    fn the_spread_between_periods_is_that_of_neighbours() {
        let check = |estimates: &[f64], variance: f64| {
            let between = windows(estimates).between(&scale(estimates.len() as u32, 0.0)).variance;
            assert!((between - variance).abs() < 1e-6 * variance.max(1.0), "{estimates:?}: {between}, not {variance}");
        };
        check(&[100.0], 1e4);
        check(&[100.0, 40.0], 3600.0);
        check(&[100.0, 100.0, 100.0], 0.0);
        // A burst counts whole wherever it is.
        check(&[100.0, 0.0, 0.0, 0.0, 0.0], 1e4);
        check(&[0.0, 0.0, 100.0, 0.0, 0.0], 1e4);
        check(&[0.0, 0.0, 0.0, 0.0, 100.0], 1e4);
        // A trend counts little.
        check(&[10.0, 20.0, 30.0, 40.0, 50.0], 300.0);
    }

    #[test]
    fn merging_is_adding_all_samples() {
        let (one, two, both) = (windows(&[10.0, 0.0, 30.0]), windows(&[0.0, 50.0, 70.0]), windows(&[10.0, 50.0, 100.0]));
        let mut merged = two;
        merged.merge(&one);
        assert_eq!((merged.clusters.clone(), merged.value()), (both.clusters.clone(), both.value()));
        let mut more = samples(3);
        more.merge(&samples(4));
        assert_eq!(more.interval(&scale(0, 1000.0), false), samples(7).interval(&scale(0, 1000.0), false));
    }

    #[test]
    fn when_all_was_observed_the_windows_add_no_doubt() {
        let mut estimate = Estimate::default();
        for (cluster, value) in [(0, 10), (1, 500), (2, 20)] {
            estimate.add(value, &Weight { probability: 1.0, scale: 1.0, cluster: Some(cluster) });
        }
        assert_eq!(estimate.interval(&scale(3, 0.0), false), (530, 530));
    }
}
