//! What all charts have: size, colours, title and remarks, a plot with its edges.

use super::axis::Ticks;
use crate::view::picture::Remark;
use crate::view::svg::{cut, escaped, lines, number};
use std::fmt::Write;

pub(super) const WIDTH: f64 = 960.0;
pub(super) const MARGIN: f64 = 16.0;
pub(super) const TITLE: f64 = 17.0;
pub(super) const SIZE: f64 = 12.0;

/// The whole picture: `bottom` is where what is drawn ends.
pub(super) fn document(title: &str, head: &str, body: &str, bottom: f64) -> String {
    let height = number(bottom + MARGIN);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"hound\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" aria-label=\"{}\">\n<style>{}</style>\n<rect id=\"ground\" width=\"100%\" height=\"100%\"/>\n{head}{body}</svg>\n",
        escaped(title),
        style()
    )
}

fn style() -> String {
    let rules = |text: &str, faint: &str, warn: &str, ground: &str, grid: &str| {
        format!(
            "text{{fill:{text}}}.faint{{fill:{faint}}}.warn{{fill:{warn}}}#ground{{fill:{ground}}}.grid{{stroke:{grid}}}.edge{{stroke:{faint}}}\
             .line{{stroke:{text}}}.halo{{stroke:{ground}}}.span{{fill:{grid}}}.layer{{stroke:{ground}}}.band{{fill:{text}}}"
        )
    };
    format!(
        "text{{font:12px \"DejaVu Sans\",Verdana,Arial,sans-serif}}.title{{font-size:17px;font-weight:bold}}.end{{text-anchor:end}}\
         .middle{{text-anchor:middle}}.grid,.edge{{fill:none;stroke-width:1}}.line{{fill:none;stroke-width:1.8;stroke-linejoin:round}}\
         .halo{{fill:none;stroke-width:4;stroke-opacity:.6;stroke-linejoin:round}}.layer{{stroke-width:.5}}.band{{fill-opacity:.16}}\
         {}@media (prefers-color-scheme:dark){{{}}}",
        rules("#101010", "#555555", "#a33c00", "#ffffff", "#dddddd"),
        rules("#f4f4f4", "#a9b0b8", "#ffb074", "#16191d", "#3a3f45")
    )
}

/// Title and remarks, and where they end.
pub(super) fn header(title: &str, remarks: &[Remark]) -> (String, f64) {
    let (mut out, mut y) = (String::new(), MARGIN);
    let wide = WIDTH - 2.0 * MARGIN;
    if !title.is_empty() {
        y += TITLE;
        let _ =
            writeln!(out, "<text class=\"title\" x=\"{MARGIN}\" y=\"{}\">{}</text>", number(y), escaped(&cut(title, TITLE * 1.1, wide)));
        y += 3.0;
    }
    for remark in remarks {
        let class = if matches!(remark, Remark::Warning(_)) { "warn" } else { "faint" };
        for line in lines(remark.text(), SIZE, wide).iter().take(2) {
            y += SIZE + 4.0;
            let _ = writeln!(out, "<text class=\"{class}\" x=\"{MARGIN}\" y=\"{}\">{}</text>", number(y), escaped(line));
        }
    }
    (out, y + 14.0)
}

/// Where things are drawn.
pub(super) struct Plot {
    pub left: f64,
    pub top: f64,
    pub wide: f64,
    pub tall: f64,
    pub from: f64,
    pub to: f64,
    pub low: f64,
    pub high: f64,
}

impl Plot {
    /// From the left edge of the plot.
    pub fn x(&self, at: f64) -> f64 {
        // What lies far outside is as good as what lies a little outside.
        ((at - self.from) / (self.to - self.from) * self.wide).clamp(-self.wide, 2.0 * self.wide)
    }

    /// From the upper edge of the plot.
    pub fn y(&self, value: f64) -> f64 {
        ((self.high - value) / (self.high - self.low) * self.tall).clamp(0.0, self.tall)
    }
}

/// What is drawn in a plot, clipped to it, with lines across behind it and its edges and values beside.
pub(super) fn framed(out: &mut String, (across, edges): (bool, bool), plot: &Plot, values: &Ticks, draw: impl FnOnce(&mut String)) {
    if across {
        grid(out, plot, values);
    }
    let [x, y, wide, tall] = [plot.left, plot.top, plot.wide, plot.tall].map(number);
    let _ = writeln!(out, "<svg x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{tall}\">");
    draw(out);
    *out += "</svg>\n";
    if !edges {
        return;
    }
    let (bottom, right) = (number(plot.top + plot.tall), number(plot.left + plot.wide));
    let _ = writeln!(out, "<path class=\"edge\" d=\"M{x} {y}V{bottom}H{right}\"/>");
    for (&value, label) in values.at.iter().zip(&values.labels) {
        let y = plot.top + plot.y(value) + 4.0;
        let _ = writeln!(out, "<text class=\"end y\" x=\"{}\" y=\"{}\">{}</text>", number(plot.left - 6.0), number(y), escaped(label));
    }
}

fn grid(out: &mut String, plot: &Plot, values: &Ticks) {
    for &value in &values.at {
        let _ =
            writeln!(out, "<path class=\"grid\" d=\"M{} {}h{}\"/>", number(plot.left), number(plot.top + plot.y(value)), number(plot.wide));
    }
}
