//! Byte-Poisson sampling: which allocations are sampled, and what each sample stands for.
//!
//! Sample points lie on the line of allocated bytes with exponentially distributed gaps of mean R. An allocation of s bytes is sampled
//! if at least one point falls into it: P(s) = 1 − e^(−s/R). Estimates weight every sample by 1/P(s) and sum *then*; scaling a site's
//! average size instead loses the count of small blocks at sites of mixed sizes.

/// Default mean interval between samples in bytes (512 KiB, the default of the allocators that sample themselves).
pub const DEFAULT_INTERVAL: u64 = 512 * 1024;

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
}
