//! `Duration`: a span of time, or a moment as counted from the start of the recording.

use super::api::{Api, Origin};
use super::fault::{Refusal, refused};
use std::fmt;

/// Nanoseconds; may be less than nothing where something was subtracted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Duration(pub i64);

const US: f64 = 1e3;
const MS: f64 = 1e6;
const S: f64 = 1e9;

/// From largest to smallest, in microseconds.
const PARTS: [(u64, &str); 6] = [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1000, "ms"), (1, "us")];

impl Duration {
    /// A moment of the capture.
    pub fn of_ns(ns: u64) -> Self {
        Duration(i64::try_from(ns).unwrap_or(i64::MAX))
    }

    /// # Errors
    /// If it is no number, or more than 292 years.
    fn of(number: f64, unit: f64) -> Result<Self, Refusal> {
        let ns = number * unit;
        // What is more has lost its last digits long before.
        if ns.abs() < i64::MAX as f64 { Ok(Duration(ns.round() as i64)) } else { refused(format!("{number} is no time span")) }
    }

    fn of_whole(number: i64, unit: f64) -> Result<Self, Refusal> {
        match number.checked_mul(unit as i64) {
            Some(ns) => Ok(Duration(ns)),
            None => refused(format!("{number} is too long a time span: 292 years are the most")),
        }
    }

    fn sum(self, other: Option<i64>) -> Result<Self, Refusal> {
        other.map_or_else(|| refused("the result is too long a time span: 292 years are the most"), |ns| Ok(Duration(ns)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.unsigned_abs() / 1000;
        if rest == 0 {
            return f.write_str("0us");
        }
        f.write_str(if self.0 < 0 { "-" } else { "" })?;
        let mut between = "";
        for (unit, name) in PARTS {
            let number = rest / unit;
            rest %= unit;
            if number > 0 {
                write!(f, "{between}{number}{name}")?;
                between = " ";
            }
        }
        Ok(())
    }
}

/// What scripts do with durations.
pub fn register(api: &mut Api<'_>) {
    api.engine.register_type_with_name::<Duration>("Duration");
    api.engine.register_fn("to_string", |span: &mut Duration| span.to_string());
    api.engine.register_fn("to_debug", |span: &mut Duration| span.to_string());
    api.about("", "durations_are_made_of_integers_and_floats");
    let units: [(&str, &str, f64); 5] = [
        ("h", "hours", 3600.0 * S),
        ("m", "minutes", 60.0 * S),
        ("s", "seconds", S),
        ("ms", "milliseconds", MS),
        ("us", "microseconds", US),
    ];
    for (name, what, unit) in units {
        api.entry(name, format!("A duration of so many {what}."))
            .overload(&format!("({what}: Integer) -> Duration"), move |number: i64| Duration::of_whole(number, unit))
            .overload(&format!("({what}: Float) -> Duration"), move |number: f64| Duration::of(number, unit));
    }
    api.about("Duration", "durations_are_added_subtracted_and_multiplied");
    api.function("+", "(lhs: Duration, rhs: Duration) -> Duration", "Both together.", |a: Duration, b: Duration| {
        a.sum(a.0.checked_add(b.0))
    });
    api.function(
        "-",
        "(lhs: Duration, rhs: Duration) -> Duration",
        "What is left of the first without the second.",
        |a: Duration, b: Duration| a.sum(a.0.checked_sub(b.0)),
    );
    api.entry("*", "So many times the duration.")
        .overload("(lhs: Integer, rhs: Duration) -> Duration", |factor: i64, span: Duration| span.sum(span.0.checked_mul(factor)))
        .overload("(lhs: Float, rhs: Duration) -> Duration", |factor: f64, span: Duration| Duration::of(factor, span.0 as f64))
        .overload("(lhs: Duration, rhs: Integer) -> Duration", |span: Duration, factor: i64| span.sum(span.0.checked_mul(factor)))
        .overload("(lhs: Duration, rhs: Float) -> Duration", |span: Duration, factor: f64| Duration::of(factor, span.0 as f64));
    own(api);
}

fn own(api: &mut Api<'_>) {
    api.about("Duration", "durations_are_divided_and_compared").of(Origin::Hound);
    api.entry("/", "A part of the duration; or how many times it holds another one.")
        .overload("(lhs: Duration, rhs: Integer) -> Duration", |span: Duration, part: i64| match part {
            0 => refused("division by zero"),
            _ => Ok(Duration(span.0.saturating_div(part))),
        })
        .overload("(lhs: Duration, rhs: Float) -> Duration", |span: Duration, part: f64| Duration::of(1.0 / part, span.0 as f64))
        .overload("(lhs: Duration, rhs: Duration) -> Float", |span: Duration, other: Duration| match other.0 {
            0 => refused("division by a duration of nothing"),
            _ => Ok(span.0 as f64 / other.0 as f64),
        });
    type Holds = fn(&i64, &i64) -> bool;
    let compared: [(&str, &str, Holds); 6] = [
        ("==", "Whether both are as long.", i64::eq),
        ("!=", "Whether one is longer.", i64::ne),
        ("<", "Whether the first is shorter.", i64::lt),
        ("<=", "Whether the first is not longer.", i64::le),
        (">", "Whether the first is longer.", i64::gt),
        (">=", "Whether the first is not shorter.", i64::ge),
    ];
    for (name, meaning, holds) in compared {
        api.function(name, "(lhs: Duration, rhs: Duration) -> Bool", meaning, move |a: Duration, b: Duration| holds(&a.0, &b.0));
    }
    api.function("seconds", "(self: Duration) -> Float", "How many seconds it is.", |span: &mut Duration| span.0 as f64 / S);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_print_their_parts_down_to_microseconds() {
        let print = |ns: i64| Duration(ns).to_string();
        assert_eq!(print(62_590_000), "62ms 590us");
        assert_eq!(print(10_065_367_000), "10s 65ms 367us");
        assert_eq!(print(62_799_999), "62ms 799us");
        assert_eq!(print(3 * 86_400_000_000_000 + 3_600_000_000_000 + 120_000_000_000), "3d 1h 2m");
        assert_eq!((print(0), print(999), print(-1_500_000)), ("0us".into(), "0us".into(), "-1ms 500us".into()));
        assert_eq!(print(i64::MIN).chars().next(), Some('-'));
    }
}
