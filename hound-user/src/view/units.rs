//! Figures for people. Units are decimal: 1 kB = 1000 bytes.

/// Three significant digits and a unit: `999 B`, `12.3 MB`.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1000.0, 0);
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    // 999.5 would be shown as 1000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A figure and the range it lies in: `12.3 MB (11.1–13.6)`, with units in the range where they are others.
pub fn range(value: u64, low: u64, high: u64) -> String {
    let [shown, low, high] = [value, low, high].map(bytes);
    let unit = |text: &str| text.rsplit(' ').next().unwrap_or("").to_owned();
    let number = |text: &str| text.split(' ').next().unwrap_or("").to_owned();
    let same = unit(&shown) == unit(&low) && unit(&shown) == unit(&high);
    let of_low = if same || unit(&low) == unit(&high) { number(&low) } else { low };
    format!("{shown} ({of_low}–{})", if same { number(&high) } else { high })
}

/// With a comma every three digits: `1,024`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 block`, `1,024 blocks`.
pub fn blocks(number: u64) -> String {
    format!("{} block{}", count(number), if number == 1 { "" } else { "s" })
}

/// `250 ms`, `2.31 s`, `3 min 20 s`, `2 h 5 min`.
pub fn duration(ns: u64) -> String {
    let seconds = ns as f64 / 1e9;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} ms", ns as f64 / 1e6),
        _ if seconds < 60.0 => format!("{seconds:.2} s"),
        _ if seconds < 3600.0 => format!("{} min {} s", seconds as u64 / 60, seconds as u64 % 60),
        _ => format!("{} h {} min", seconds as u64 / 3600, seconds as u64 / 60 % 60),
    }
}

/// A part of a whole in per cent: `45 %`; `<1 %` for what would round to nothing.
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let percent = part as f64 * 100.0 / whole as f64;
    if part > 0 && percent < 0.5 { "<1 %".to_owned() } else { format!("{percent:.0} %") }
}

/// A share from 0 to 1 in per cent, with two digits that count: `12 %`, `0.98 %`.
pub fn share_of(share: f64) -> String {
    let percent = share * 100.0;
    let digits = if percent >= 10.0 || percent == 0.0 { 0 } else { (1.0 - percent.log10().floor()) as usize };
    format!("{percent:.digits$} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        let shown = [0, 999, 1000, 1234, 12_345, 999_499, 999_500, 12_345_678, 1 << 40, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.00 kB", "1.23 kB", "12.3 kB", "999 kB", "1.00 MB", "12.3 MB", "1.10 TB", "18.4 EB"]);
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(range(12_300_000, 11_100_000, 13_600_000), "12.3 MB (11.1–13.6)");
        assert_eq!(range(1_200_000, 900_000, 1_600_000), "1.20 MB (900 kB–1.60 MB)");
        assert_eq!(range(900_000, 1_100_000, 1_600_000), "900 kB (1.10–1.60 MB)");
        assert_eq!([0.0, 0.00098, 0.052, 0.1, 1.0].map(share_of), ["0 %", "0.098 %", "5.2 %", "10 %", "100 %"]);
        let shown = [17, 1_500, 2_000_000, 2_310_000_000, 200_000_000_000, 7_500_000_000_000].map(duration);
        assert_eq!(shown, ["17 ns", "2 µs", "2 ms", "2.31 s", "3 min 20 s", "2 h 5 min"]);
        assert_eq!([(0, 0), (0, 9), (1, 1000), (45, 100)].map(|(part, whole)| share(part, whole)), ["-", "0 %", "<1 %", "45 %"]);
    }
}
