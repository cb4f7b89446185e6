//! The sampling law of [`crate::sampling`] in integers, for code that has no floating point: the programs in the kernel.
//!
//! Every call is drawn by itself. There is no countdown that a thread or a CPU would have to keep, so nothing is lost when a task is
//! preempted or moved in between. A draw is one 32-bit random number for nearly all calls: P = 1 − e^(−s/R) is at most s/R, so a number
//! above s/R decides without knowing P.

/// Sizes from this many intervals on are always sampled: e^(−22) is below 2^(−31).
const CERTAIN_INTERVALS: u64 = 22;
/// 1 in units of 2^(−32).
const ONE: u64 = 1 << 32;
const LOW: u64 = ONE - 1;
/// e^(−1) in units of 2^(−32).
const INVERSE_E: u64 = 1_580_030_169;
/// Terms of the series: the first that is left out is below 2^(−30).
const TERMS: u64 = 12;

/// A mean interval between samples, prepared so that a draw needs no division.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// Mean bytes between samples; 0: every call.
    pub interval: u64,
    /// 2^64 / interval, rounded down.
    inverse: u64,
    /// Sizes from here on are always sampled.
    certain: u64,
}

impl Draw {
    /// Prepares an interval. The relative error of [`Draw::probability`] stays below 10^(−4) up to an interval of 2^50.
    pub const fn of(interval: u64) -> Self {
        let inverse = match interval {
            0 | 1 => u64::MAX,
            _ => ((1u128 << 64) / interval as u128) as u64,
        };
        Draw { interval, inverse, certain: interval.saturating_mul(CERTAIN_INTERVALS) }
    }

    /// Whether a call for `size` bytes is sampled. `random` gives evenly distributed numbers; it is asked once, or twice where the first
    /// does not decide.
    #[inline(always)]
    pub fn sampled(&self, size: u64, mut random: impl FnMut() -> u32) -> bool {
        if size >= self.certain {
            return true;
        }
        let high = random() as u64;
        // Below one interval the product is s/R in units of 2^(−64), and cannot overflow.
        if size < self.interval && high > (at_least_one(size) * self.inverse) >> 32 {
            return false;
        }
        (high << 32 | random() as u64) < self.probability(size)
    }

    /// Probability that a call for `size` bytes is sampled, in units of 2^(−64).
    #[inline(always)]
    pub fn probability(&self, size: u64) -> u64 {
        let size = at_least_one(size);
        if size >= self.certain {
            return u64::MAX;
        }
        if size < self.interval {
            return below_one(size * self.inverse);
        }
        // Never 0 here; but a check by the compiler would be a way into a panic, and the verifier takes none.
        let whole = size.checked_div(self.interval).unwrap_or(0);
        let mut missed = u64::MAX - below_one((size - whole * self.interval) * self.inverse);
        let mut i = 0;
        // The second condition tells the kernel's verifier that this ends.
        while i < whole && i < CERTAIN_INTERVALS {
            missed = times(missed, INVERSE_E);
            i += 1;
        }
        u64::MAX - missed
    }
}

/// As [`crate::sampling::probability`] has it: a block of no bytes is as likely as one of a byte.
#[inline(always)]
const fn at_least_one(size: u64) -> u64 {
    if size == 0 { 1 } else { size }
}

/// `a` times `b`, where `b` is in units of 2^(−32).
#[inline(always)]
const fn times(a: u64, b: u64) -> u64 {
    (a >> 32) * b + (((a & LOW) * b) >> 32)
}

/// 1 − e^(−x) for 0 ≤ x < 1, both in units of 2^(−64): x·(1 − x/2·(1 − x/3·(1 − …))), which keeps its precision for tiny x.
#[inline(always)]
const fn below_one(x: u64) -> u64 {
    let short = x >> 32;
    let mut series = ONE;
    let mut n = TERMS;
    while n > 1 {
        series = ONE - ((short * series) >> 32) / n;
        n -= 1;
    }
    times(x, series)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::sampling;

    fn sizes() -> impl Iterator<Item = u64> {
        (0..44).flat_map(|shift| [1u64 << shift, (1 << shift) + (1 << shift) / 3, (1 << shift) * 15 / 8 + 1]).chain([0])
    }

    #[test]
    fn the_integers_agree_with_the_law() {
        let mut compared = 0;
        for interval in [1, 2, 3, 100, 4096, 100_000, 524_288, 524_289, 1 << 20, 10_000_000_019, 1 << 40, (1 << 50) - 1] {
            let draw = Draw::of(interval);
            for size in sizes() {
                let (law, integer) = (sampling::probability(size, interval), draw.probability(size) as f64 / 2f64.powi(64));
                if law > 1e-6 {
                    compared += 1;
                    assert!((integer / law - 1.0).abs() < 1e-4, "P({size}, {interval}) = {integer}, by the law {law}");
                }
            }
        }
        assert!(compared > 500, "{compared} probabilities were compared");
    }

    #[test]
    fn the_probability_grows_with_the_size() {
        for interval in [4096, 524_288, 1 << 40] {
            let draw = Draw::of(interval);
            let around = (1..40).flat_map(|n| [n * interval - 1, n * interval, n * interval + 1]);
            let found: std::vec::Vec<u64> = around.map(|size| draw.probability(size)).collect();
            // The series is cut, the constants are rounded: by less than 2^(−29) in all.
            assert!(found.windows(2).all(|w| w[0] <= w[1].saturating_add(1 << 35)), "{found:?}");
        }
    }

    #[test]
    fn the_quick_refusal_refuses_nothing_that_the_law_takes() {
        for interval in [2, 4096, 524_288] {
            let draw = Draw::of(interval);
            for size in sizes().filter(|size| *size < interval * CERTAIN_INTERVALS) {
                let probability = draw.probability(size);
                let (mut high, mut low) = ((probability - 1) >> 32, (probability - 1) & LOW);
                let mut numbers = [low as u32, high as u32].into_iter().collect::<std::vec::Vec<_>>();
                assert!(draw.sampled(size, || numbers.pop().expect("two numbers at most")), "{size} at {interval}");
                (high, low) = (probability >> 32, probability & LOW);
                numbers = [low as u32, high as u32].into_iter().collect();
                assert!(!draw.sampled(size, || numbers.pop().expect("two numbers at most")), "{size} at {interval}");
            }
        }
    }

    #[test]
    fn an_interval_of_nothing_takes_all_and_a_huge_one_nothing() {
        assert!([0, 1, u64::MAX].iter().all(|size| Draw::of(0).sampled(*size, || u32::MAX)));
        let mut seed = 1u32;
        let mut random = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) | 1;
            seed
        };
        assert!((0..1_000_000).all(|_| !Draw::of(1 << 62).sampled(4096, &mut random)));
    }
}
