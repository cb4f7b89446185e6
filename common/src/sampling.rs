//! Byte-Poisson sampling: which allocations are sampled, and what each sample stands for.
//!
//! Sample points lie on the line of allocated bytes with exponentially distributed gaps of mean R. An allocation of s bytes is sampled
//! if at least one point falls into it: P(s) = 1 − e^(−s/R). Estimates weight every sample by 1/P(s) and sum *then*; scaling a site's
//! average size instead loses the count of small blocks at sites of mixed sizes.

/// Default mean interval between samples in bytes (512 KiB, the default of the allocators that sample themselves).
pub const DEFAULT_INTERVAL: u64 = 512 * 1024;

/// Largest mean interval, in bytes.
pub const MAX_INTERVAL: u64 = u32::MAX as u64;

/// The next number of a sequence that looks random, 64 bits of it. Any `state` will do to begin with; each gives another sequence (Steele,
/// Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[inline]
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Bytes up to and with the one that the next sample point falls into, from a number in which every value is as likely as any other: 1 or
/// more, P(gap ≤ s) = 1 − e^(−s/interval). `interval` is 1 to [`MAX_INTERVAL`].
///
/// In integers: floating-point flags and exceptions are the target's, and the kernel has none. Exact to 1e-9 of the interval.
#[inline]
pub fn gap(random: u64, interval: u64) -> u64 {
    const LN_2: u64 = 2_977_044_472; // times 2^32
    const LOW: u64 = 0xffff_ffff;
    let random = random.max(1);
    let zeros = random.leading_zeros();
    // log2 of the mantissa in [1, 2): squaring it doubles its logarithm, so each squaring gives one more bit.
    let mut mantissa = (random << zeros) >> 32;
    let mut fraction = 0;
    for bit in (0..32).rev() {
        mantissa = (mantissa * mantissa) >> 31;
        if mantissa > LOW {
            mantissa >>= 1;
            fraction |= 1 << bit;
        }
    }
    // −log2(random / 2^64), then −ln of it, times 2^32.
    let log2 = ((u64::from(zeros) + 1) << 32) - fraction;
    let ln = (log2 >> 32) * LN_2 + (((log2 & LOW) * LN_2) >> 32);
    let part = interval.min(MAX_INTERVAL) * (ln & LOW);
    let bytes = interval.min(MAX_INTERVAL) * (ln >> 32) + (part >> 32) + u64::from(part & LOW != 0);
    bytes.max(1)
}

/// e^(−x) for x ≥ 0, without libm: this crate runs where there is none. Relative error below 1e-12.
fn exp_neg(x: f64) -> f64 {
    if x > 700.0 {
        return 0.0;
    }
    // e^-x = 2^-k · e^-r, with r = x − k·ln 2 in [0, ln 2).
    let k = (x / core::f64::consts::LN_2) as i64;
    let r = x - k as f64 * core::f64::consts::LN_2;
    let (mut term, mut sum) = (1.0, 1.0);
    for n in 1..20 {
        term *= -r / n as f64;
        sum += term;
    }
    sum * f64::from_bits(((1023 - k) as u64) << 52)
}

/// Probability that an allocation of `size` bytes is sampled at mean interval `interval` bytes. An interval of 0 means every one.
pub fn probability(size: u64, interval: u64) -> f64 {
    if interval == 0 {
        return 1.0;
    }
    let x = size.max(1) as f64 / interval as f64;
    // Cancellation: for tiny x, 1 − e^−x is x − x²/2 to within x³/6.
    if x < 1e-5 { x - x * x / 2.0 } else { 1.0 - exp_neg(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probability_agrees_with_the_closed_form() {
        for (size, interval, expected) in
            [(1, 1, 0.632_120_558_828_557_7), (4096, 524_288, 0.007_782_061_739_756_485), (1 << 30, 524_288, 1.0), (0, 0, 1.0)]
        {
            let p = probability(size, interval);
            assert!((p - expected).abs() < 1e-12, "P({size}, {interval}) = {p}, expected {expected}");
        }
    }

    #[test]
    fn probability_is_continuous_where_the_formula_changes() {
        let below = probability(99_999, 10_000_000_000);
        let above = probability(100_001, 10_000_000_000);
        assert!(below < above && above - below < 1e-9);
    }

    /// Points drawn from a fixed seed, and how many bytes the blocks below are away from what the law says, in standard deviations.
    #[test]
    fn gaps_follow_the_law() {
        const DRAWS: u32 = 200_000;
        for interval in [1, 2, 7, 64, 4096, DEFAULT_INTERVAL, MAX_INTERVAL] {
            let mut state = interval;
            let mut below = [0u32; 5];
            let sizes = [1, interval / 10, interval / 2, interval, interval * 3].map(|size| size.max(1));
            let mut sum = 0.0;
            for _ in 0..DRAWS {
                let gap = gap(random(&mut state), interval);
                assert!(gap >= 1);
                sum += gap as f64;
                below.iter_mut().zip(sizes).for_each(|(count, size)| *count += u32::from(gap <= size));
            }
            for (count, size) in below.into_iter().zip(sizes) {
                let p = probability(size, interval);
                let (expected, variance) = (f64::from(DRAWS) * p, f64::from(DRAWS) * p * (1.0 - p));
                let off = f64::from(count) - expected;
                assert!(off * off < 36.0 * variance + 1e-3, "P(gap <= {size}) at {interval}: {count} of {DRAWS}, expected {expected}");
            }
            // Of whole bytes: the sum of P(gap > n) over all n.
            let mean = 1.0 / probability(1, interval);
            let off = sum / f64::from(DRAWS) - mean;
            assert!(off * off < 36.0 * mean * mean / f64::from(DRAWS), "mean {} at {interval}", sum / f64::from(DRAWS));
        }
    }

    #[test]
    fn gaps_of_the_ends_of_the_range_are_what_the_logarithm_says() {
        let interval = DEFAULT_INTERVAL as f64;
        for (random, expected) in [(u64::MAX, 1.0), (1 << 63, interval * core::f64::consts::LN_2), (1, interval * 44.361_419_555_836_5)] {
            let gap = gap(random, DEFAULT_INTERVAL) as f64;
            assert!((gap - expected).abs() <= 1.0, "{random}: {gap}, expected {expected}");
        }
        assert_eq!(gap(0, DEFAULT_INTERVAL), gap(1, DEFAULT_INTERVAL));
        assert!(gap(1, u64::MAX) < 45 << 32, "it does not overflow");
    }

    /// A block is sampled as often as its size says, also behind blocks that drew anew, and wherever in the gap it begins.
    #[test]
    fn a_countdown_over_mixed_sizes_samples_each_by_its_own_probability() {
        const ROUNDS: u32 = 300_000;
        let (sizes, interval) = ([1_u64, 24, 200, 5000, 100_000], 2000);
        let (mut state, mut sampled) = (42, [0u32; 5]);
        let mut left = gap(random(&mut state), interval) as i64;
        for _ in 0..ROUNDS {
            for (size, count) in sizes.into_iter().zip(&mut sampled) {
                left -= size as i64;
                if left <= 0 {
                    *count += 1;
                    left = gap(random(&mut state), interval) as i64;
                }
            }
        }
        for (count, size) in sampled.into_iter().zip(sizes) {
            let p = probability(size, interval);
            let (expected, variance) = (f64::from(ROUNDS) * p, f64::from(ROUNDS) * p * (1.0 - p));
            let off = f64::from(count) - expected;
            assert!(off * off < 36.0 * variance + 1e-3, "{size}: {count}, expected {expected}");
        }
    }
}
