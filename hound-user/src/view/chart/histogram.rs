//! How much there is of each size, or of each length of life: bytes above, blocks below.

use super::axis::{Unit, of_values};
use super::colour;
use super::layers::finite;
use super::legend::{Entry, Sign, figure, legend};
use super::page::{MARGIN, Plot, SIZE, WIDTH, document, framed, header};
use super::{Rgb, Scheme};
use crate::view::picture::Remark;
use crate::view::svg::{cut, escaped, number, width};
use serde_json::{Value, json};
use std::fmt::Write;

/// Height of each of both plots.
const PLOT: f64 = 170.0;
/// Width of the place of what is on no scale, and the gap before the first of them.
const APART: f64 = 112.0;
const GAP: f64 = 24.0;
/// Share of its place that a bar takes.
const BAR: f64 = 0.86;

/// Where a bar stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// What it holds, in words: `16 to 31 B`.
    pub name: String,
    /// What stands at its left edge; nothing: no label.
    pub label: String,
    /// From which value on, and below which; nothing: it is on no scale, and stands apart.
    pub bounds: Option<(u64, Option<u64>)>,
    /// The range that holds the blocks with 95 %, and that of the bytes, where they are estimates.
    pub intervals: Option<[(u64, u64); 2]>,
}

/// A part of each bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// What it is called.
    pub name: String,
    /// Its blocks, by place.
    pub blocks: Vec<f64>,
    /// Their bytes.
    pub bytes: Vec<f64>,
    /// Its colour, if the scheme is not to choose.
    pub colour: Option<Rgb>,
}

/// A histogram.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Histogram {
    /// What it shows.
    pub title: String,
    /// Whose it is, what is missing.
    pub remarks: Vec<Remark>,
    /// What lies along the lower edge, for people; and its unit, for programs.
    pub along: (String, String),
    /// Where bars are; those that stand apart last.
    pub places: Vec<Place>,
    /// What bars are made of, the lowest first.
    pub stacks: Vec<Stack>,
    /// Figures are estimates.
    pub estimated: bool,
    /// Colours.
    pub scheme: Scheme,
}

impl Histogram {
    fn at(&self, values: &[f64], place: usize) -> f64 {
        finite(values.get(place).copied().unwrap_or(0.0)).max(0.0)
    }

    /// Blocks and bytes of a place.
    fn sum(&self, place: usize) -> [f64; 2] {
        let sum = |of: fn(&Stack) -> &[f64]| self.stacks.iter().map(|stack| self.at(of(stack), place)).sum();
        [sum(|stack| &stack.blocks), sum(|stack| &stack.bytes)]
    }

    /// A figure as the reports have it.
    fn shown(&self, value: f64, unit: Unit) -> String {
        format!("{}{}", if self.estimated { "≈ " } else { "" }, figure(value, unit))
    }
}

/// Left edge and width of each bar, and where its label stands.
struct Slot {
    left: f64,
    wide: f64,
    edge: f64,
}

fn slots(of: &Histogram, left: f64, right: f64) -> Vec<Slot> {
    let apart = of.places.iter().filter(|place| place.bounds.is_none()).count();
    let scaled = (of.places.len() - apart).max(1);
    let room = right - left - apart as f64 * APART - if apart > 0 { GAP } else { 0.0 };
    // A few bars need not be as wide as a hand.
    let each = (room / scaled as f64).min(64.0);
    let mut edge = left;
    let slot = |place: &Place| {
        let (is_apart, from) = (place.bounds.is_none(), edge);
        edge += if is_apart { APART } else { each };
        let (from, wide) = if is_apart { (from + GAP + APART / 4.0, APART / 2.0) } else { (from + each * (1.0 - BAR) / 2.0, each * BAR) };
        Slot { left: from, wide, edge: edge - if is_apart { APART } else { each } }
    };
    of.places.iter().map(slot).collect()
}

/// The picture.
pub fn histogram_svg(of: &Histogram) -> String {
    let (head, mut top) = header(&of.title, &of.remarks);
    let colours: Vec<String> =
        (0..of.stacks.len()).map(|at| of.stacks[at].colour.unwrap_or_else(|| colour::of(&of.scheme, at, of.stacks.len())).hex()).collect();
    let panels = [("bytes", Unit::Bytes, 1), ("blocks", Unit::Count, 0)].map(|(what, unit, which)| {
        let high = |place: usize| of.places[place].intervals.map_or(0.0, |both| both[which].1 as f64).max(of.sum(place)[which]);
        let most = (0..of.places.len()).map(high).fold(0.0, f64::max);
        // A value stands above the highest bar.
        (what, which, unit, of_values(0.0, most * 1.1, 4, unit))
    });
    let labels = panels.iter().flat_map(|(.., ticks)| &ticks.labels).map(|label| width(label, SIZE)).fold(0.0, f64::max);
    let (left, right) = (MARGIN + labels + 10.0, WIDTH - MARGIN - 10.0);
    let slots = slots(of, left, right);
    let mut body = String::new();
    for (what, which, unit, ticks) in &panels {
        let caption = format!("{what} allocated, by {}", of.along.0);
        let _ = writeln!(body, "<text class=\"faint\" x=\"{}\" y=\"{}\">{}</text>", number(left), number(top + SIZE), escaped(&caption));
        top += SIZE + 10.0;
        let high = ticks.at[ticks.at.len() - 1];
        let plot = Plot { left, top, wide: right - left, tall: PLOT, from: 0.0, to: 1.0, low: 0.0, high };
        framed(&mut body, (true, true), &plot, ticks, |out| bars(out, of, &plot, &slots, &colours, (*which, *unit)));
        values_apart(&mut body, of, &plot, &slots, (*which, *unit));
        top += PLOT + 16.0;
    }
    top -= 16.0;
    along(&mut body, of, &slots, top);
    if of.places.is_empty() {
        let (x, y) = (number((left + right) / 2.0), number(top - PLOT / 2.0));
        let _ = writeln!(body, "<text class=\"middle faint\" x=\"{x}\" y=\"{y}\">nothing was recorded of this</text>");
    }
    top += SIZE + 14.0;
    let entry = |(stack, colour): (&Stack, &String)| {
        let sum = |values: &[f64]| (0..of.places.len()).map(|place| of.at(values, place)).sum();
        let figures = [of.shown(sum(&stack.bytes), Unit::Bytes), of.shown(sum(&stack.blocks), Unit::Count)];
        Entry { sign: Sign::Area(colour.clone()), name: stack.name.clone(), figures: Some(figures) }
    };
    let entries: Vec<Entry> = of.stacks.iter().zip(&colours).rev().map(entry).collect();
    let (text, bottom) = legend(&entries, ["bytes", "blocks"], MARGIN, top + 12.0, WIDTH - 2.0 * MARGIN);
    document(&of.title, &head, &(body + &text[..]), bottom)
}

fn bars(out: &mut String, of: &Histogram, plot: &Plot, slots: &[Slot], colours: &[String], (which, unit): (usize, Unit)) {
    for (at, (place, slot)) in of.places.iter().zip(slots).enumerate() {
        let mut reached = 0.0;
        let _ = write!(out, "<g><title>{}: {}</title>", escaped(&place.name), of.shown(of.sum(at)[which], unit));
        for (stack, colour) in of.stacks.iter().zip(colours) {
            let value = of.at(if which == 0 { &stack.blocks } else { &stack.bytes }, at);
            if value <= 0.0 {
                continue;
            }
            let (upper, lower) = (plot.y(reached + value), plot.y(reached));
            reached += value;
            // What is there is seen, however little it is.
            let [x, y, wide, tall] =
                [slot.left - plot.left, upper.min(lower - if reached == value { 1.0 } else { 0.0 }), slot.wide, lower - upper].map(number);
            let tall = if tall == "0" { "1" } else { &tall };
            let _ = write!(out, "<rect class=\"layer\" fill=\"{colour}\" x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{tall}\"/>");
        }
        if let Some((low, high)) = place.intervals.map(|both| both[which]).filter(|(low, high)| high > low) {
            let middle = slot.left - plot.left + slot.wide / 2.0;
            let (upper, lower, half) = (plot.y(high as f64), plot.y(low as f64), slot.wide.min(10.0) / 2.0);
            let [from, cap, upper, lower, x] = [middle - half, half * 2.0, upper, lower, middle].map(number);
            let _ = write!(
                out,
                "<path class=\"line\" style=\"stroke-width:1\" d=\"M{from} {upper}h{cap}M{from} {lower}h{cap}M{x} {upper}V{lower}\"/>"
            );
        }
        out.push_str("</g>\n");
    }
}

/// What stands apart has its figure written above: it is on no scale with its neighbours.
fn values_apart(out: &mut String, of: &Histogram, plot: &Plot, slots: &[Slot], (which, unit): (usize, Unit)) {
    for (at, slot) in slots.iter().enumerate().filter(|(at, _)| of.places[*at].bounds.is_none()) {
        let value = of.sum(at)[which];
        let high = of.places[at].intervals.map_or(0.0, |both| both[which].1 as f64).max(value);
        let (x, y) = (number(slot.left + slot.wide / 2.0), number(plot.top + plot.y(high) - 5.0));
        let _ =
            writeln!(out, "<text class=\"middle\" x=\"{x}\" y=\"{y}\">{}</text>", escaped(&cut(&of.shown(value, unit), SIZE, APART - 6.0)));
    }
}

fn along(out: &mut String, of: &Histogram, slots: &[Slot], bottom: f64) {
    let mut reached = f64::NEG_INFINITY;
    for (place, slot) in of.places.iter().zip(slots).filter(|(place, _)| !place.label.is_empty()) {
        let is_apart = place.bounds.is_none();
        let x = if is_apart { slot.left + slot.wide / 2.0 } else { slot.edge };
        let label = cut(&place.label, SIZE, APART - 6.0);
        let half = width(&label, SIZE) / 2.0;
        let middle = x.max(half + 2.0).min(WIDTH - half - 2.0);
        if !is_apart {
            let _ = writeln!(out, "<path class=\"edge\" d=\"M{} {}v4\"/>", number(x), number(bottom));
        }
        if middle - half < reached + 6.0 {
            continue;
        }
        reached = middle + half;
        let _ =
            writeln!(out, "<text class=\"middle x\" x=\"{}\" y=\"{}\">{}</text>", number(middle), number(bottom + 18.0), escaped(&label));
    }
}

/// The same for programs.
pub fn histogram_json(of: &Histogram) -> Value {
    let whole = |values: &[f64]| -> Vec<u64> { (0..of.places.len()).map(|at| of.at(values, at).round() as u64).collect() };
    let place = |(at, place): (usize, &Place)| {
        let [blocks, bytes] = of.sum(at).map(|value| value.round() as u64);
        let mut value = json!({"name": place.name, "blocks": blocks, "bytes": bytes});
        if let Some((from, below)) = place.bounds {
            (value["from"], value["below"]) = (from.into(), below.into());
        }
        if let Some([blocks, bytes]) = place.intervals {
            (value["blocks_ci95"], value["bytes_ci95"]) = (json!([blocks.0, blocks.1]), json!([bytes.0, bytes.1]));
        }
        value
    };
    let series = |stack: &Stack| json!({"name": stack.name, "blocks": whole(&stack.blocks), "bytes": whole(&stack.bytes)});
    json!({
        "title": of.title,
        "remarks": of.remarks.iter().map(Remark::text).collect::<Vec<_>>(),
        "estimated": of.estimated,
        "unit": of.along.1,
        "buckets": of.places.iter().enumerate().map(place).collect::<Vec<_>>(),
        "series": of.stacks.iter().map(series).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::REST;
    use super::*;
    use crate::view::svg::inspect;
    use crate::view::tests::check;
    use proptest::prelude::*;

    fn lives() -> Histogram {
        let scaled = |name: &str, label: &str, from, below| Place {
            name: name.into(),
            label: label.into(),
            bounds: Some((from, Some(below))),
            intervals: None,
        };
        let apart = |name: &str| Place { name: name.into(), label: name.into(), bounds: None, intervals: None };
        Histogram {
            title: "Lifetimes of blocks <a&b>".into(),
            remarks: vec![Remark::Plain("./app --fast".into())],
            along: ("how long they lived".into(), "ns".into()),
            places: vec![
                scaled("under 1 µs", "", 0, 1000),
                scaled("1 µs to 2 µs", "1 µs", 1000, 2000),
                scaled("2 µs to 5 µs", "", 2000, 5000),
                scaled("5 µs to 10 µs", "", 5000, 10_000),
                scaled("10 µs to 20 µs", "10 µs", 10_000, 20_000),
                Place { intervals: Some([(50, 400), (1000, 90_000)]), ..apart("never released") },
                apart("not known"),
            ],
            stacks: vec![
                Stack {
                    name: "load ← main".into(),
                    blocks: vec![1.0, 200.0, 3000.0, 0.0, 10.0, 200.0, 1.0],
                    bytes: vec![8.0, 1600.0, 90_000.0, 0.0, 1e6, 40_000.0, 5.0],
                    colour: None,
                },
                Stack { name: "2 others".into(), blocks: vec![0.0, 50.0], bytes: vec![0.0, 5e5], colour: Some(REST) },
            ],
            estimated: true,
            scheme: Scheme::Palette,
        }
    }

    #[test]
    fn a_histogram_is_as_expected() {
        let picture = histogram_svg(&lives());
        check("histogram.svg", &picture);
        inspect::must_be_legible(&picture, None);
        inspect::must_have_numbers(&picture);
    }

    #[test]
    fn programs_read_what_people_see() {
        let value = histogram_json(&lives());
        assert_eq!(value["buckets"][1], json!({"name": "1 µs to 2 µs", "from": 1000, "below": 2000, "blocks": 250, "bytes": 501_600}));
        assert_eq!(value["buckets"][5]["bytes_ci95"], json!([1000, 90_000]));
        assert_eq!((&value["series"][1]["blocks"][1], &value["unit"], &value["estimated"]), (&json!(50), &json!("ns"), &json!(true)));
        assert!(value["buckets"][6].get("from").is_none());
    }

    proptest! {
        #[test]
        fn any_histogram_is_legible(
            values in prop::collection::vec(prop_oneof![0.0..1e3, 0.0..1e18, Just(f64::NAN), Just(0.0)], 0..200),
            places in 0..40usize,
            stacks in 1..10usize,
        ) {
            let label = |at: usize| if at.is_multiple_of(3) { format!("{} ms", 10u64.pow(at as u32 % 6)) } else { String::new() };
            let of = |at: usize| Place { name: "<x>".into(), label: label(at), bounds: (at + 3 < places).then_some((at as u64, None)), intervals: None };
            let part = |from: usize| values.iter().copied().skip(from).take(places).collect::<Vec<f64>>();
            let stack = |at: usize| Stack { name: "name ← of".repeat(at), blocks: part(at * 7), bytes: part(at * 11), colour: None };
            let histogram = Histogram { places: (0..places).map(of).collect(), stacks: (0..stacks).map(stack).collect(), ..lives() };
            let picture = histogram_svg(&histogram);
            inspect::must_be_legible(&picture, None);
            inspect::must_have_numbers(&picture);
        }
    }
}
