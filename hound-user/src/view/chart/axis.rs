//! Scales: where lines go across, and what they are called.

use crate::view::units::count;

/// What values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes: decimal kB and MB, as reports have them.
    Bytes,
    /// A number of things.
    Count,
    /// A number of things each second.
    CountASecond,
    /// Bytes each second.
    BytesASecond,
}

/// Lines across: values ascending, and their labels. Never empty; at least two.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ticks {
    pub at: Vec<f64>,
    pub labels: Vec<String>,
}

/// Lines for values from 0 (or below) to `most`: the last one is not below it.
pub(super) fn of_values(least: f64, most: f64, lines: usize, unit: Unit) -> Ticks {
    let whole = matches!(unit, Unit::Count | Unit::Bytes);
    let span = (most - least).max(if whole { 1.0 } else { f64::MIN_POSITIVE });
    let span = if span.is_finite() { span } else { f64::MAX / 4.0 };
    let rough = span / lines.max(1) as f64;
    let decade = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * decade).find(|step| *step >= rough * 0.999_999).unwrap_or(10.0 * decade);
    // Half a block is none.
    let step = if whole { step.max(1.0) } else { step };
    let (first, last) = ((least / step).floor(), (most / step - 1e-9).ceil().max(1.0));
    let at: Vec<f64> = (0..=((last - first) as usize).min(100)).map(|line| (first + line as f64) * step).collect();
    let labels = labels(&at, step, unit);
    Ticks { at, labels }
}

fn labels(at: &[f64], step: f64, unit: Unit) -> Vec<String> {
    let most = at.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let (is_bytes, suffix) = match unit {
        Unit::Bytes => (true, ""),
        Unit::BytesASecond => (true, "/s"),
        Unit::Count => (false, ""),
        Unit::CountASecond => (false, "/s"),
    };
    const BYTES: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    // Numbers are written out as far as people read them.
    const COUNTS: [&str; 7] = ["", "", "", " G", " T", " P", " E"];
    let mut power = 0;
    while power + 1 < BYTES.len() && most >= 1000f64.powi(power as i32 + 1) * 0.999_999 {
        power += 1;
    }
    if !is_bytes && power < 3 {
        power = 0;
    }
    let scale = 1000f64.powi(power as i32);
    let unit = if is_bytes { format!(" {}{suffix}", BYTES[power]) } else { format!("{}{suffix}", COUNTS[power]) };
    // As many digits as tell two lines apart.
    let digits = (-(step / scale).log10().floor()).clamp(0.0, 12.0) as usize;
    let label = |&value: &f64| {
        if value == 0.0 {
            return "0".to_owned();
        }
        let value = value / scale;
        if digits == 0 && value.abs() < 1e15 {
            let sign = if value < 0.0 { "−" } else { "" };
            return format!("{sign}{}{unit}", count(value.abs().round() as u64));
        }
        if value.abs() >= 1e15 { format!("{value:.1e}{unit}") } else { format!("{value:.digits$}{unit}").replace('-', "−") }
    };
    at.iter().map(label).collect()
}

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
const MIN: u64 = 60 * S;
const H: u64 = 60 * MIN;
const DAY: u64 = 24 * H;

/// Steps of time that people count in, above a second.
const STEPS: [u64; 19] = [
    S,
    2 * S,
    5 * S,
    10 * S,
    15 * S,
    30 * S,
    MIN,
    2 * MIN,
    5 * MIN,
    10 * MIN,
    15 * MIN,
    30 * MIN,
    H,
    2 * H,
    3 * H,
    6 * H,
    12 * H,
    DAY,
    2 * DAY,
];

/// Lines between two moments, both of them inside or at the edge.
pub(super) fn of_times(from: u64, to: u64, lines: usize) -> Ticks {
    let span = to.saturating_sub(from).max(1);
    let rough = (span / lines.max(1) as u64).max(1);
    let step = STEPS.into_iter().find(|step| *step >= rough).filter(|_| rough > S / 2).unwrap_or_else(|| {
        let unit = if rough > S { DAY } else { 1 };
        let mut decade = unit;
        while decade.saturating_mul(10) <= rough {
            decade = decade.saturating_mul(10);
        }
        [1, 2, 5, 10].into_iter().map(|factor| decade.saturating_mul(factor)).find(|step| *step >= rough).unwrap_or(decade)
    });
    let mut at = Vec::new();
    let mut line = from.div_ceil(step).saturating_mul(step);
    while line <= to && at.len() < 100 {
        at.push(line);
        match line.checked_add(step) {
            Some(next) => line = next,
            None => break,
        }
    }
    let (unit, name) = [(DAY, "d"), (H, "h"), (MIN, "min"), (S, "s"), (MS, "ms"), (1000, "µs")]
        .into_iter()
        // Halves of a second are said as such, halves of a minute in seconds.
        .find(|&(unit, _)| if unit >= MIN { step % unit == 0 } else { at.last().copied().unwrap_or(to) >= unit })
        .unwrap_or((1, "ns"));
    let digits = (0..9).find(|&digits| step * 10u64.pow(digits) % unit == 0).unwrap_or(3) as usize;
    let label = |&line: &u64| if line == 0 { "0".to_owned() } else { format!("{:.digits$} {name}", line as f64 / unit as f64) };
    Ticks { labels: at.iter().map(label).collect(), at: at.into_iter().map(|line| line as f64).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(most: f64, unit: Unit) -> String {
        of_values(0.0, most, 5, unit).labels.join(" ")
    }

    #[test]
    fn values_have_round_numbers_in_the_reports_units() {
        assert_eq!(values(12_300_000.0, Unit::Bytes), "0 5 MB 10 MB 15 MB");
        assert_eq!(values(2_300_000.0, Unit::Bytes), "0 0.5 MB 1.0 MB 1.5 MB 2.0 MB 2.5 MB");
        assert_eq!(values(0.0, Unit::Bytes), "0 1 B");
        assert_eq!(values(3.0, Unit::Count), "0 1 2 3");
        assert_eq!(values(1_234_567.0, Unit::Count), "0 500,000 1,000,000 1,500,000");
        assert_eq!(values(0.004, Unit::CountASecond), "0 0.001/s 0.002/s 0.003/s 0.004/s");
        assert_eq!(values(5.0e9, Unit::Count), "0 1 G 2 G 3 G 4 G 5 G");
        assert_eq!(values(8e18, Unit::BytesASecond), "0 2 EB/s 4 EB/s 6 EB/s 8 EB/s");
        assert_eq!(of_values(-3e6, 4e6, 5, Unit::Bytes).labels.join(" "), "−4 MB −2 MB 0 2 MB 4 MB");
    }

    #[test]
    fn any_range_has_lines_that_hold_it() {
        for exponent in -300..300 {
            for factor in [1.0, 1.9, 3.0, 7.3, 9.999_999] {
                let most = factor * 10f64.powi(exponent);
                for unit in [Unit::Bytes, Unit::Count, Unit::CountASecond] {
                    let ticks = of_values(0.0, most, 6, unit);
                    let last = ticks.at.last().copied().unwrap_or(0.0);
                    assert!((2..=12).contains(&ticks.at.len()) && last >= most * 0.999_999, "{most}: {ticks:?}");
                    assert!(ticks.at.windows(2).all(|pair| pair[0] < pair[1]), "{most}: {ticks:?}");
                }
            }
        }
    }

    fn times(from: u64, to: u64) -> String {
        of_times(from, to, 8).labels.join(" ")
    }

    #[test]
    fn times_have_the_units_that_people_count_in() {
        assert_eq!(times(0, 2_310_000_000), "0 0.5 s 1.0 s 1.5 s 2.0 s");
        assert_eq!(times(0, 12 * S), "0 2 s 4 s 6 s 8 s 10 s 12 s");
        assert_eq!(times(0, 95 * S), "0 15 s 30 s 45 s 60 s 75 s 90 s");
        assert_eq!(times(0, 10 * MIN), "0 2 min 4 min 6 min 8 min 10 min");
        assert_eq!(times(0, 26 * H), "0 6 h 12 h 18 h 24 h");
        assert_eq!(times(0, 30 * DAY), "0 5 d 10 d 15 d 20 d 25 d 30 d");
        assert_eq!(times(0, 250 * MS), "0 50 ms 100 ms 150 ms 200 ms 250 ms");
        assert_eq!(times(0, 0), "0");
        assert_eq!(times(7 * S, 9 * S), "7.0 s 7.5 s 8.0 s 8.5 s 9.0 s");
        for shift in 0..64 {
            let ticks = of_times(0, 1 << shift, 8);
            assert!((1..=12).contains(&ticks.at.len()), "{shift}: {ticks:?}");
        }
        assert!(of_times(u64::MAX - 5, u64::MAX, 8).at.len() < 20);
    }
}
