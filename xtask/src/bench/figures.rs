//! Medians, and figures and tables for people.

use std::fmt::Write;

/// The middle of the values (of an even number, the mean of the two in the middle); NaN for none, which no bound accepts.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

/// A figure with about three significant digits.
pub fn shown(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "–".to_owned(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The median of some values, and the lowest and highest of them; a value that is none comes last.
pub fn spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [low, .., high] => format!("{} ({}–{})", shown(median(sorted.iter().copied())), shown(*low), shown(*high)),
        [only] => shown(*only),
        [] => shown(f64::NAN),
    }
}

/// Bytes as mebibytes.
pub fn mib(bytes: f64) -> f64 {
    bytes / (1 << 20) as f64
}

/// A table in Markdown: the first column to the left, the others to the right.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|---{}|\n", headings.join(" | "), "|---:".repeat(headings.len() - 1));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | ")); // writing to a String cannot fail
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_of_nothing_is_no_number() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        assert_eq!([spread(&[3.0, 1.0, 2.5]), spread(&[1.0]), spread(&[])], ["2.50 (1.00–3.00)", "1.00", "–"]);
        assert_eq!(spread(&[f64::NAN, 1.0, 2.0]), "2.00 (1.00––)");
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!([0.123, 1.005, 12.34, 99.96, 1234.0, f64::NAN].map(shown), ["0.12", "1.00", "12.3", "100", "1234", "–"]);
    }
}
