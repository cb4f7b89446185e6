//! Charts as SVG: what lay where at which time, stacked or as lines, and bars. Pure: numbers in, a picture out, whatever the numbers are.

mod axis;
mod colour;
mod draw;
mod histogram;
mod json;
mod layers;
mod legend;
mod page;
mod pins;
mod space;

pub use axis::Unit;
pub use colour::{REST, Rgb};
pub use draw::svg;
pub use histogram::{Histogram, Place, Stack, histogram_json, histogram_svg};
pub use json::json;
pub use pins::{Pin, Pins, pins_json, pins_svg};
pub use space::{Cell, Kind, Range, Space, space_json, space_svg};

use super::picture::Remark;

/// How series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shape {
    /// Areas on top of each other, the first at the bottom: their upper edge is the sum.
    #[default]
    Area,
    /// The same where a value holds until the next one: rates.
    Steps,
    /// A line each, not stacked.
    Line,
    /// Bars on top of each other, side by side for each place.
    Bar,
}

/// What lies along the lower edge.
#[derive(Clone, Debug, PartialEq)]
pub enum Along {
    /// Moments in nanoseconds, ascending.
    Times(Vec<u64>),
    /// Names of places, one each.
    Names(Vec<String>),
}

/// Numbers that belong together, one for each place along the lower edge. What is no number, or missing, is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// Its values.
    pub values: Vec<f64>,
    /// Its colour, if the scheme is not to choose.
    pub colour: Option<Rgb>,
}

/// A line over the rest, with moments of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// What it is called.
    pub name: String,
    /// Moment in nanoseconds, ascending, and value.
    pub points: Vec<(u64, f64)>,
}

/// Colours of series.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Scheme {
    /// Told apart by the colour-blind, too.
    #[default]
    Palette,
    /// From the first series' colour to the last one's.
    Gradient(Rgb, Rgb),
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// Whose it is, what is missing.
    pub remarks: Vec<Remark>,
    /// How series are drawn.
    pub shape: Shape,
    /// Where values are.
    pub along: Along,
    /// What values are.
    pub unit: Unit,
    /// The values, the most important ones first.
    pub series: Vec<Series>,
    /// More series than this: the last ones are added up.
    pub most_series: usize,
    /// What the sum of those is called.
    pub rest: String,
    /// Lines over the rest; only over times.
    pub tracks: Vec<Track>,
    /// Those lines in a plot of their own, with a scale of their own, above the other.
    pub tracks_apart: bool,
    /// Between what the sum of all series lies, at each place: what it is called, and the bounds.
    pub band: Option<(String, Vec<(f64, f64)>)>,
    /// Times in which something was different: from, to, what. Shown below the lower edge.
    pub spans: Vec<(u64, u64, String)>,
    /// Moments to point out, and their names.
    pub marks: Vec<(u64, String)>,
    /// Colours of series.
    pub scheme: Scheme,
    /// With numbers and lines at the edges.
    pub axes: bool,
    /// With lines across.
    pub grid: bool,
    /// With names of series.
    pub legend: bool,
    /// From when, if not from the first moment.
    pub start_ns: Option<u64>,
    /// Until when, if not until the last moment.
    pub end_ns: Option<u64>,
}

impl Default for Chart {
    fn default() -> Self {
        Chart {
            title: String::new(),
            remarks: Vec::new(),
            shape: Shape::default(),
            along: Along::Times(Vec::new()),
            unit: Unit::Bytes,
            series: Vec::new(),
            most_series: 12,
            rest: "others".to_owned(),
            tracks: Vec::new(),
            tracks_apart: false,
            band: None,
            spans: Vec::new(),
            marks: Vec::new(),
            scheme: Scheme::default(),
            axes: true,
            grid: true,
            legend: true,
            start_ns: None,
            end_ns: None,
        }
    }
}

/// What can be read in a picture, for tests of those who make one.
#[cfg(test)]
pub(crate) fn inspect_texts(svg: &str) -> Vec<String> {
    super::svg::inspect::texts(svg, None).into_iter().map(|text| text.content).collect()
}

#[cfg(test)]
mod tests;
