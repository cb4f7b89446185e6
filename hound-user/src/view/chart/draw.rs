//! A chart becomes SVG.

use super::axis::{Ticks, of_times, of_values};
use super::colour;
use super::layers::{Layer, extent, finite, folded, range, stacked, track_extent};
use super::legend::{Entry, OVER_TIME, Sign, figure, legend};
use super::page::{MARGIN, Plot, SIZE, WIDTH, document, framed, header};
use super::{Along, Chart, Shape};
use crate::view::svg::{cut, escaped, number, width};
use std::fmt::Write;

/// Height of what values are drawn in.
const PLOT: f64 = 320.0;
/// Height of the plot of tracks that have their own.
const APART: f64 = 110.0;
/// Rows for names of marks; marks that do not fit are drawn without.
const MARK_ROWS: usize = 3;
const DASHES: [&str; 4] = ["none", "7 4", "2 3", "8 3 2 3"];

/// The picture.
pub fn svg(chart: &Chart) -> String {
    let series = folded(chart);
    let range = range(chart);
    let stack = stacked(chart, &series);
    let (least, most) = extent(chart, &series, &stack, range);
    let values = of_values(least, most, 6, chart.unit);
    let apart = (chart.tracks_apart && !chart.tracks.is_empty()).then(|| {
        let (least, most) = track_extent(chart, range);
        of_values(least, most, 2, chart.unit)
    });
    let (head, mut top) = header(&chart.title, &chart.remarks);
    let labels = values.labels.iter().chain(apart.iter().flat_map(|ticks| &ticks.labels));
    let labels = labels.map(|label| width(label, SIZE)).fold(0.0, f64::max);
    let left = MARGIN + if chart.axes { labels + 10.0 } else { 0.0 };
    let right = WIDTH - MARGIN - 10.0;
    let mut body = String::new();
    let of = |top: f64, high_px: f64, ticks: &Ticks| {
        let (low, high) = (ticks.at[0], ticks.at[ticks.at.len() - 1]);
        Plot { left, top, wide: right - left, tall: high_px, from: range.0, to: range.1, low, high }
    };
    if let Some(ticks) = &apart {
        let plot = of(top, APART, ticks);
        framed(&mut body, (chart.grid, chart.axes), &plot, ticks, |out| tracks(out, chart, &plot));
        top += APART + 18.0;
    }
    let (marks, of_marks) = marks(chart, range, left, right, top);
    top += of_marks;
    let plot = of(top, PLOT, &values);
    framed(&mut body, (chart.grid, chart.axes), &plot, &values, |out| {
        shapes(out, chart, &plot, &series, &stack);
        band(out, chart, &plot);
        if apart.is_none() {
            tracks(out, chart, &plot);
        }
    });
    body += &marks;
    if series.iter().all(|series| series.values.is_empty()) && chart.tracks.iter().all(|track| track.points.is_empty()) {
        let (x, y) = (number(plot.left + plot.wide / 2.0), number(plot.top + PLOT / 2.0));
        let _ = writeln!(body, "<text class=\"middle faint\" x=\"{x}\" y=\"{y}\">nothing was recorded of this</text>");
    }
    let mut bottom = plot.top + PLOT;
    if chart.axes {
        along(&mut body, chart, &plot);
        bottom += SIZE + 14.0;
    }
    bottom = spans(&mut body, chart, &plot, bottom);
    if chart.legend {
        let (text, end) = legend(&entries(chart, &series), OVER_TIME, MARGIN, bottom + 12.0, WIDTH - 2.0 * MARGIN);
        body += &text;
        bottom = end;
    }
    document(&chart.title, &head, &body, bottom)
}

/// Where each place is, along the lower edge.
fn moments(chart: &Chart) -> Vec<f64> {
    match &chart.along {
        Along::Times(times) => times.iter().map(|&time| time as f64).collect(),
        Along::Names(names) => (0..names.len()).map(|at| at as f64).collect(),
    }
}

fn shapes(out: &mut String, chart: &Chart, plot: &Plot, series: &[Layer], stack: &[Vec<(f64, f64)>]) {
    let at = moments(chart);
    for (number_of, layer) in series.iter().enumerate() {
        let most = layer.values.iter().copied().fold(0.0, f64::max);
        let tip = format!("<title>{}: at most {}</title>", escaped(&layer.name), figure(most, chart.unit));
        let colour = &layer.colour;
        let edges = stack.get(number_of).map_or(&[][..], Vec::as_slice);
        match chart.shape {
            Shape::Line => {
                let points = at.iter().zip(&layer.values).map(|(&at, &value)| (at, value));
                let _ = writeln!(
                    out,
                    "<g>{tip}<path class=\"halo\" d=\"{d}\"/><path style=\"fill:none;stroke:{colour};stroke-width:2\" d=\"{d}\" \
                     stroke-linecap=\"round\" stroke-dasharray=\"{}\"/></g>",
                    DASHES[number_of / colour::DISTINCT % DASHES.len()],
                    d = through(plot, points)
                );
            }
            Shape::Area => {
                let edge = |upper: bool| at.iter().zip(edges).map(move |(&at, &(low, high))| (at, if upper { high } else { low }));
                let _ =
                    writeln!(out, "<path class=\"layer\" fill=\"{colour}\" d=\"{}\">{tip}</path>", between(plot, edge(true), edge(false)));
            }
            Shape::Steps => {
                let until = |index: usize| at.get(index + 1).copied().unwrap_or(plot.to.max(at[index]));
                let corners = |upper: bool| -> Vec<(f64, f64)> {
                    let both = edges.iter().enumerate().map(|(index, &(low, high))| (index, if upper { high } else { low }));
                    both.flat_map(|(index, value)| [(at[index], value), (until(index), value)]).collect()
                };
                let path = between(plot, corners(true).into_iter(), corners(false).into_iter());
                let _ = writeln!(out, "<path class=\"layer\" fill=\"{colour}\" d=\"{path}\">{tip}</path>");
            }
            Shape::Bar => {
                let _ = write!(out, "<g fill=\"{colour}\">{tip}");
                for (index, &(low, high)) in edges.iter().enumerate().filter(|(_, (low, high))| high > low) {
                    let (from, to) = match &chart.along {
                        Along::Names(_) => (plot.x(index as f64 - 0.36), plot.x(index as f64 + 0.36)),
                        Along::Times(_) => (plot.x(at[index]), plot.x(at.get(index + 1).copied().unwrap_or(plot.to))),
                    };
                    let (upper, lower) = (plot.y(high), plot.y(low));
                    let rect = [from, upper, (to - from).max(0.5), lower - upper].map(number);
                    let _ = write!(out, "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>", rect[0], rect[1], rect[2], rect[3]);
                }
                out.push_str("</g>\n");
            }
        }
    }
}

/// A line through these points; a single one is a dot.
fn through(plot: &Plot, points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (index, (at, value)) in points.enumerate() {
        let _ = write!(path, "{}{} {}", if index == 0 { 'M' } else { 'L' }, number(plot.x(at)), number(plot.y(value)));
    }
    if path.contains('L') || path.is_empty() { path } else { path + "h0.1" }
}

/// What lies between two edges; over a single moment, a stroke as narrow as can be seen.
fn between(plot: &Plot, upper: impl Iterator<Item = (f64, f64)>, lower: impl DoubleEndedIterator<Item = (f64, f64)>) -> String {
    let (upper, lower): (Vec<_>, Vec<_>) = (upper.collect(), lower.rev().collect());
    let wide = if upper.len() == 1 { 3.0 } else { 0.0 };
    let mut path = String::new();
    let mut point = |(at, value): (f64, f64), shift: f64| {
        let _ = write!(path, "{}{} {}", if path.is_empty() { 'M' } else { 'L' }, number(plot.x(at) + shift), number(plot.y(value)));
    };
    upper.iter().for_each(|&edge| point(edge, 0.0));
    upper.iter().filter(|_| wide > 0.0).for_each(|&edge| point(edge, wide));
    lower.iter().filter(|_| wide > 0.0).for_each(|&edge| point(edge, wide));
    lower.iter().for_each(|&edge| point(edge, 0.0));
    if path.is_empty() { path } else { path + "z" }
}

fn band(out: &mut String, chart: &Chart, plot: &Plot) {
    let Some((name, bounds)) = &chart.band else { return };
    let at = moments(chart);
    let edge = |upper: bool| at.iter().zip(bounds).map(move |(&at, &(low, high))| (at, finite(if upper { high } else { low })));
    let path = between(plot, edge(true), edge(false));
    let _ = writeln!(out, "<path class=\"band\" d=\"{path}\"><title>{}</title></path>", escaped(name));
    for upper in [true, false] {
        let _ =
            writeln!(out, "<path class=\"line\" style=\"stroke-width:1\" stroke-dasharray=\"1 3\" d=\"{}\"/>", through(plot, edge(upper)));
    }
}

fn tracks(out: &mut String, chart: &Chart, plot: &Plot) {
    for (index, track) in chart.tracks.iter().enumerate() {
        let path = through(plot, track.points.iter().map(|&(at, value)| (at as f64, finite(value))));
        let _ = writeln!(
            out,
            "<g><title>{}</title><path class=\"halo\" d=\"{path}\"/><path class=\"line\" d=\"{path}\" stroke-dasharray=\"{}\"/></g>",
            escaped(&track.name),
            DASHES[index % DASHES.len()]
        );
    }
}

/// What lies along the lower edge.
fn along(out: &mut String, chart: &Chart, plot: &Plot) {
    let (left, bottom) = (plot.left, plot.top + plot.tall);
    let ticks = match &chart.along {
        Along::Times(_) => of_times(plot.from as u64, plot.to as u64, 8),
        Along::Names(names) => Ticks { at: (0..names.len()).map(|at| at as f64).collect(), labels: names.clone() },
    };
    // A name may take what is between two of its neighbours' middles.
    let apart = if let Along::Names(names) = &chart.along { plot.wide / names.len().max(1) as f64 } else { plot.wide };
    let mut reached = f64::NEG_INFINITY;
    for (&at, label) in ticks.at.iter().zip(&ticks.labels) {
        let x = left + plot.x(at).clamp(0.0, plot.wide);
        let label = cut(label, SIZE, apart.max(60.0) - 4.0);
        // The first and the last one stay inside the picture.
        let half = width(&label, SIZE) / 2.0;
        let middle = x.clamp(half + 2.0, (WIDTH - half - 2.0).max(half + 2.0));
        let _ = writeln!(out, "<path class=\"edge\" d=\"M{} {}v4\"/>", number(x), number(bottom));
        if middle - half < reached + 6.0 {
            continue;
        }
        reached = middle + half;
        let _ =
            writeln!(out, "<text class=\"middle x\" x=\"{}\" y=\"{}\">{}</text>", number(middle), number(bottom + 18.0), escaped(&label));
    }
}

/// What was different when, below the lower edge, and where that ends.
fn spans(out: &mut String, chart: &Chart, plot: &Plot, top: f64) -> f64 {
    if chart.spans.is_empty() || matches!(chart.along, Along::Names(_)) {
        return top;
    }
    for (from, to, what) in &chart.spans {
        let [from, to] = [from, to].map(|&at| plot.x(at as f64).clamp(0.0, plot.wide));
        if to <= from {
            continue;
        }
        let (x, wide) = (plot.left + from, to - from);
        let _ = write!(
            out,
            "<g><title>{}</title><rect class=\"span layer\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"16\"/>",
            escaped(what),
            number(x),
            number(top + 2.0),
            number(wide)
        );
        if width(what, SIZE) + 8.0 <= wide {
            let _ = write!(
                out,
                "<text class=\"span-name\" x=\"{}\" y=\"{}\" style=\"font-size:11px\">{}</text>",
                number(x + 4.0),
                number(top + 14.0),
                escaped(what)
            );
        }
        out.push_str("</g>\n");
    }
    top + 20.0
}

/// Moments to point out: lines through the plot, names above it; and the room that the names take.
fn marks(chart: &Chart, range: (f64, f64), left: f64, right: f64, top: f64) -> (String, f64) {
    let mut out = String::new();
    let shown: Vec<(f64, &str)> = chart
        .marks
        .iter()
        .map(|(at, name)| (*at as f64, name.as_str()))
        .filter(|(at, _)| (range.0..=range.1).contains(at) && matches!(chart.along, Along::Times(_)))
        .collect();
    let mut rows: Vec<f64> = Vec::new();
    let mut names = Vec::new();
    for &(at, name) in &shown {
        let x = left + (at - range.0) / (range.1 - range.0) * (right - left);
        let name = cut(name, SIZE, 220.0);
        let start = (x + 3.0).min(WIDTH - 4.0 - width(&name, SIZE));
        let row = rows.iter().position(|reached| start > *reached + 6.0).unwrap_or(rows.len());
        if row < MARK_ROWS {
            if row == rows.len() {
                rows.push(0.0);
            }
            rows[row] = start + width(&name, SIZE);
            names.push((start, row, name));
        }
    }
    let room = rows.len() as f64 * (SIZE + 3.0);
    for (x, row, name) in names {
        let y = top + row as f64 * (SIZE + 3.0) + SIZE - 6.0;
        let _ = writeln!(out, "<text class=\"faint mark\" x=\"{}\" y=\"{}\">{}</text>", number(x), number(y), escaped(&name));
    }
    for (at, name) in shown {
        let x = left + (at - range.0) / (range.1 - range.0) * (right - left);
        let _ = writeln!(
            out,
            "<path class=\"edge\" stroke-dasharray=\"3 3\" d=\"M{} {}v{}\"><title>{}</title></path>",
            number(x),
            number(top + room - 6.0),
            number(PLOT + 6.0),
            escaped(name)
        );
    }
    (out, room)
}

/// What the legend lists: lines first, then series from the top of the picture down.
fn entries(chart: &Chart, series: &[Layer]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (index, track) in chart.tracks.iter().enumerate() {
        let most = track.points.iter().map(|(_, value)| finite(*value)).fold(0.0, f64::max);
        let figures = track.points.last().map(|(_, last)| [most, finite(*last)].map(|value| figure(value, chart.unit)));
        entries.push(Entry { sign: Sign::Line(String::new(), DASHES[index % DASHES.len()]), name: track.name.clone(), figures });
    }
    if let Some((name, _)) = &chart.band {
        entries.push(Entry { sign: Sign::Line(String::new(), "1 3"), name: name.clone(), figures: None });
    }
    let stacked = chart.shape != Shape::Line;
    let over_time = matches!(chart.along, Along::Times(_));
    let of = |layer: &Layer| {
        let most = layer.values.iter().copied().fold(0.0, f64::max);
        let about = if chart.band.is_some() { "≈ " } else { "" };
        let last = layer.values.last().copied().unwrap_or(0.0);
        let figures = over_time.then(|| [most, last].map(|value| format!("{about}{}", figure(value, chart.unit))));
        Entry { sign: Sign::Area(layer.colour.clone()), name: layer.name.clone(), figures }
    };
    match stacked {
        true => entries.extend(series.iter().rev().map(of)),
        false => entries.extend(series.iter().map(of)),
    }
    entries
}
