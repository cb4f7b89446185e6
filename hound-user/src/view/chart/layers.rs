//! What is drawn of the numbers: series that are put together, stacked, and the range that all lie in.

use super::colour::{self, REST};
use super::{Along, Chart, Series, Shape};

/// Larger values are of a damaged capture; their sum must still be a number.
const LARGEST: f64 = 1e300;

pub(super) fn finite(value: f64) -> f64 {
    if value.is_finite() { value.clamp(-LARGEST, LARGEST) } else { 0.0 }
}

/// A series that is drawn.
pub(super) struct Layer {
    pub name: String,
    pub values: Vec<f64>,
    pub colour: String,
}

/// The series, with those past the limit added up.
pub(super) fn folded(chart: &Chart) -> Vec<Layer> {
    let places = places(chart);
    let values = |series: &Series| -> Vec<f64> { (0..places).map(|at| finite(series.values.get(at).copied().unwrap_or(0.0))).collect() };
    let most = chart.most_series.max(1);
    // A single one past the limit takes no more room than the sum would.
    let keep = if chart.series.len() > most.saturating_add(1) { most } else { chart.series.len() };
    let of = |number: usize, series: &Series| series.colour.unwrap_or_else(|| colour::of(&chart.scheme, number, keep)).hex();
    let mut layers: Vec<Layer> = chart.series[..keep]
        .iter()
        .enumerate()
        .map(|(number, series)| Layer { name: series.name.clone(), values: values(series), colour: of(number, series) })
        .collect();
    let rest = &chart.series[keep..];
    if !rest.is_empty() {
        let mut sum = vec![0.0; places];
        for series in rest {
            sum.iter_mut().zip(values(series)).for_each(|(sum, value)| *sum = finite(*sum + value));
        }
        layers.push(Layer { name: format!("{} ({} series)", chart.rest, rest.len()), values: sum, colour: REST.hex() });
    }
    if chart.series.is_empty() { Vec::new() } else { layers }
}

fn places(chart: &Chart) -> usize {
    match &chart.along {
        Along::Times(times) => times.len(),
        Along::Names(names) => names.len(),
    }
}

/// Lower and upper edge of each layer at each place. Nothing is less than nothing in a stack.
pub(super) fn stacked(chart: &Chart, series: &[Layer]) -> Vec<Vec<(f64, f64)>> {
    let mut reached = vec![0.0f64; places(chart)];
    let on_top = |layer: &Layer| {
        let edges = reached.iter_mut().zip(&layer.values).map(|(reached, &value)| {
            let below = *reached;
            *reached = finite(below + value.max(0.0));
            (below, *reached)
        });
        edges.collect()
    };
    series.iter().map(on_top).collect()
}

/// From which moment to which is shown. Names lie at 0, 1, 2, …, each from half before to half behind.
pub(super) fn range(chart: &Chart) -> (f64, f64) {
    let Along::Times(times) = &chart.along else { return (-0.5, (places(chart).max(1)) as f64 - 0.5) };
    let tracked = chart.tracks.iter().flat_map(|track| track.points.iter().map(|(at, _)| *at));
    let moments = || times.iter().copied().chain(tracked.clone());
    let from = chart.start_ns.or_else(|| moments().min()).unwrap_or(0);
    let to = chart.end_ns.or_else(|| moments().max()).unwrap_or(0);
    let (from, to) = (from as f64, to as f64);
    // One moment is shown as the beginning of nothing. So late that a nanosecond more is the same number, it must be more than that.
    if to > from { (from, to) } else { (from, from * (1.0 + 1e-9) + 1.0) }
}

/// The least and the most that is to be seen.
pub(super) fn extent(chart: &Chart, series: &[Layer], stack: &[Vec<(f64, f64)>], range: (f64, f64)) -> (f64, f64) {
    let seen = |at: usize| match &chart.along {
        Along::Times(times) => (range.0..=range.1).contains(&(times[at] as f64)),
        Along::Names(_) => true,
    };
    let all: Vec<usize> = (0..places(chart)).filter(|&at| seen(at)).collect();
    let (mut least, mut most) = (0.0f64, 0.0f64);
    let mut note = |value: f64| (least, most) = (least.min(value), most.max(value));
    match chart.shape {
        Shape::Line => series.iter().for_each(|layer| all.iter().for_each(|&at| note(layer.values[at]))),
        _ => stack.iter().for_each(|layer| all.iter().for_each(|&at| note(layer[at].1))),
    }
    if !chart.tracks_apart {
        let (low, high) = track_extent(chart, range);
        note(low);
        note(high);
    }
    if let Some((_, bounds)) = &chart.band {
        all.iter().filter_map(|&at| bounds.get(at)).for_each(|(_, high)| note(finite(*high)));
    }
    (least, most)
}

pub(super) fn track_extent(chart: &Chart, range: (f64, f64)) -> (f64, f64) {
    let points = chart.tracks.iter().flat_map(|track| &track.points);
    let seen = points.filter(|(at, _)| (range.0..=range.1).contains(&(*at as f64))).map(|(_, value)| finite(*value));
    seen.fold((0.0, 0.0), |(least, most), value| (f64::min(least, value), f64::max(most, value)))
}
