//! Names of series below the picture, in the order in which they lie there.

use super::axis::Unit;
use crate::view::svg::{cut, escaped, number, width};
use crate::view::units::{bytes, count};
use std::fmt::Write;

/// How an entry's sign is drawn.
pub(super) enum Sign {
    /// A filled area.
    Area(String),
    /// A line in this colour, dashed so.
    Line(String, &'static str),
}

/// A name and what is said of it.
pub(super) struct Entry {
    pub sign: Sign,
    pub name: String,
    /// Its two figures; none for what has no values.
    pub figures: Option<[String; 2]>,
}

const SIZE: f64 = 12.0;
const ROW: f64 = 17.0;
/// Names of the columns of what is over time: the most that it had, and what it had last.
pub(super) const OVER_TIME: [&str; 2] = ["most", "at the end"];

/// A value as the reports have it.
pub(super) fn figure(value: f64, unit: Unit) -> String {
    // What is larger than any address space is of a damaged capture.
    let whole = value.max(0.0).round() as u64;
    match unit {
        Unit::Bytes => bytes(whole),
        Unit::BytesASecond => format!("{}/s", bytes(whole)),
        Unit::Count => count(whole),
        Unit::CountASecond if value > 0.0 && value < 10.0 => format!("{value:.1}/s"),
        Unit::CountASecond => format!("{}/s", count(whole)),
    }
}

/// The legend with its upper edge at `top`, and where it ends. `columns`: what the figures are.
pub(super) fn legend(entries: &[Entry], columns: [&str; 2], left: f64, top: f64, wide: f64) -> (String, f64) {
    let with_figures = entries.iter().any(|entry| entry.figures.is_some());
    let column = |at: usize| {
        let figures = entries.iter().filter_map(|entry| entry.figures.as_ref());
        figures.map(|of| width(&of[at], SIZE)).fold(width(columns[at], SIZE), f64::max)
    };
    let (most, last) = (column(0), column(1));
    let right = left + wide;
    let room = wide - last - most - 24.0 - 2.0 * 18.0;
    let mut out = String::from("<g id=\"legend\">\n");
    let mut y = top;
    let mut text = |y: f64, x: f64, class: &str, text: &str| {
        let _ = writeln!(out, "<text class=\"{class}\" x=\"{}\" y=\"{}\">{}</text>", number(x), number(y + 11.0), escaped(text));
    };
    if with_figures {
        text(y, right - last - 18.0, "faint end", columns[0]);
        text(y, right, "faint end", columns[1]);
        y += ROW;
    }
    for entry in entries {
        text(y, left + 24.0, "name", &cut(&entry.name, SIZE, room));
        if let Some([of_most, of_last]) = &entry.figures {
            text(y, right - last - 18.0, "end", of_most);
            text(y, right, "end", of_last);
        }
        y += ROW;
    }
    let mut y = top + if with_figures { ROW } else { 0.0 };
    for entry in entries {
        let _ = match &entry.sign {
            Sign::Area(colour) => {
                writeln!(out, "<rect x=\"{}\" y=\"{}\" width=\"14\" height=\"11\" fill=\"{colour}\"/>", number(left), number(y + 1.0))
            }
            Sign::Line(class, dashes) => writeln!(
                out,
                "<path class=\"line {class}\" d=\"M{} {}h16\" stroke-dasharray=\"{dashes}\"/>",
                number(left - 1.0),
                number(y + 6.5)
            ),
        };
        y += ROW;
    }
    out += "</g>\n";
    (out, y)
}
