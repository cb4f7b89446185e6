//! Charts as they are committed, and what holds of any.

use super::layers::{folded, stacked};
use super::*;
use crate::view::svg::inspect;
use crate::view::tests::check;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

fn series(name: &str, values: Vec<f64>) -> Series {
    Series { name: name.to_owned(), values, colour: None }
}

fn over_time(shape: Shape) -> Chart {
    let times: Vec<u64> = (0..=20).map(|at| at * 3 * S).collect();
    let of = |factor: f64, shift: usize| (0..=20).map(|at| factor * ((at + shift) % 9) as f64 * 1e5).collect::<Vec<_>>();
    Chart {
        title: "Live bytes over time <a&b>".into(),
        remarks: vec![Remark::Plain("./app --fast".into()), Remark::Warning("LOST 12 events: the figures are short of them".into())],
        shape,
        along: Along::Times(times),
        series: vec![
            series("std::vector<int>::push_back ← load ← main", of(3.0, 0)),
            series("parse", of(1.0, 4)),
            series("others", of(0.4, 7)),
        ],
        tracks: vec![Track { name: "resident memory".into(), points: (0..=60).map(|at| (at * S, 5e6 + at as f64 * 2e4)).collect() }],
        band: Some(("range of the whole".into(), (0..=20).map(|at| (at as f64 * 1e5, at as f64 * 1e5 + 2e6)).collect())),
        spans: vec![(0, 30 * S, "every block".into()), (30 * S, 60 * S, "sampled: estimates".into())],
        marks: vec![(10 * S, "cache is full".into()), (11 * S, "phase two begins".into()), (60 * S, "end".into())],
        ..Chart::default()
    }
}

#[test]
fn areas_are_as_expected() {
    let picture = svg(&over_time(Shape::Area));
    check("chart-area.svg", &picture);
    inspect::must_be_legible(&picture, None);
}

#[test]
fn bars_lines_and_steps_are_as_expected() {
    let names = ["0 B", "1 to 15 B", "16 to 31 B", "32 to 63 B", "64 to 127 B"].map(str::to_owned).to_vec();
    let bars = Chart {
        title: "Blocks by size".into(),
        shape: Shape::Bar,
        unit: Unit::Count,
        along: Along::Names(names),
        series: vec![series("leaked", vec![1.0, 20.0, 3000.0, 1500.0, 12.0]), series("temporary", vec![0.0, 300.0, 100.0, 0.0, 5000.0])],
        scheme: Scheme::Gradient(Rgb(0, 0, 128), Rgb(255, 165, 0)),
        ..Chart::default()
    };
    let lines = Chart { shape: Shape::Line, unit: Unit::CountASecond, band: None, axes: false, ..over_time(Shape::Line) };
    let apart = Chart { tracks_apart: true, ..over_time(Shape::Area) };
    let steps = Chart { grid: false, legend: false, start_ns: Some(10 * S), end_ns: Some(90 * S), ..over_time(Shape::Steps) };
    for (name, chart) in [("chart-bars.svg", bars), ("chart-lines.svg", lines), ("chart-steps.svg", steps), ("chart-apart.svg", apart)] {
        let picture = svg(&chart);
        check(name, &picture);
        inspect::must_be_legible(&picture, None);
    }
}

#[test]
fn what_is_left_out_is_left_out() {
    let chart = over_time(Shape::Area);
    let texts = |chart: &Chart| inspect::texts(&svg(chart), None).into_iter().map(|text| text.content).collect::<Vec<_>>();
    let says = |chart: &Chart, what: &str| texts(chart).iter().any(|text| text == what);
    assert!(says(&chart, "20 s") && says(&chart, "parse") && svg(&chart).contains("class=\"grid\""));
    let bare = Chart { axes: false, grid: false, legend: false, ..chart };
    assert!(!says(&bare, "20 s") && !says(&bare, "parse") && !svg(&bare).contains("class=\"grid\""));
    assert!(says(&bare, "Live bytes over time <a&b>"));
}

#[test]
fn what_lies_outside_the_time_shown_does_not_set_the_scale() {
    let chart = Chart {
        along: Along::Times(vec![0, S, 2 * S]),
        series: vec![series("a", vec![9e9, 10.0, 20.0])],
        start_ns: Some(S),
        ..Chart::default()
    };
    assert!(inspect::texts(&svg(&chart), None).iter().any(|text| text.content == "20 B"), "{}", svg(&chart));
}

#[test]
fn extremes_are_pictures_too() {
    let one = |along: Along, values: Vec<f64>| Chart { along, series: vec![series("a", values)], ..Chart::default() };
    let charts = [
        Chart::default(),
        one(Along::Times(vec![5]), vec![7.0]),
        one(Along::Times(vec![9_136_264_913_146_871]), vec![7.0]),
        one(Along::Times(vec![u64::MAX - 1, u64::MAX]), vec![7.0, 8.0]),
        one(Along::Times(vec![0, u64::MAX]), vec![f64::MAX, f64::MAX]),
        one(Along::Times(vec![0, S]), vec![0.0, 0.0]),
        one(Along::Times(vec![0, S]), vec![f64::NAN, f64::NEG_INFINITY]),
        one(Along::Times(vec![0, S]), vec![]),
        one(Along::Names(vec![]), vec![]),
        one(Along::Names(vec!["a very long name that nobody has room for".into(); 50]), vec![1.0; 50]),
        Chart { start_ns: Some(10), end_ns: Some(10), ..one(Along::Times(vec![0, S]), vec![1.0, 2.0]) },
        Chart { tracks: vec![Track { name: "t".into(), points: vec![(S, 5.0)] }], ..Chart::default() },
    ];
    for shape in [Shape::Area, Shape::Steps, Shape::Line, Shape::Bar] {
        for chart in &charts {
            let picture = svg(&Chart { shape, ..chart.clone() });
            inspect::must_have_numbers(&picture);
            inspect::must_be_legible(&picture, None);
        }
    }
    assert!(svg(&Chart::default()).contains("nothing was recorded of this"));
}

#[test]
fn forty_series_are_folded_into_a_dozen_and_a_rest() {
    let many = (0..40).map(|number| series(&format!("series {number}"), vec![f64::from(number), 1.0]));
    let chart = Chart { along: Along::Times(vec![0, S]), series: many.collect(), ..Chart::default() };
    let layers = folded(&chart);
    assert_eq!((layers.len(), layers[12].name.as_str()), (13, "others (28 series)"));
    assert_eq!(layers[12].values, [(12..40).map(f64::from).sum::<f64>(), 28.0]);
    inspect::must_be_legible(&svg(&chart), None);
}

prop_compose! {
    fn some_chart()(
        mut times in prop::collection::vec(prop_oneof![0..100 * S, any::<u64>()], 0..30),
        values in prop::collection::vec((".{0,30}", prop::collection::vec(prop_oneof![0.0..1e9, -10.0..10.0, any::<f64>()], 0..32)), 0..16),
        shape in prop::sample::select(vec![Shape::Area, Shape::Steps, Shape::Line, Shape::Bar]),
        unit in prop::sample::select(vec![Unit::Bytes, Unit::Count, Unit::CountASecond, Unit::BytesASecond]),
        marks in prop::collection::vec((any::<u64>(), ".{0,40}"), 0..6),
        (start_ns, end_ns) in prop::option::of((0..50 * S, 50 * S..200 * S)).prop_map(|both| both.unzip()),
        (named, tracks_apart) in any::<(bool, bool)>(),
        points in prop::collection::vec((any::<u64>(), any::<f64>()), 0..5),
    ) -> Chart {
        times.sort_unstable();
        let along = if named { Along::Names(times.iter().map(u64::to_string).collect()) } else { Along::Times(times) };
        let series = values.into_iter().map(|(name, values)| Series { name, values, colour: None }).collect();
        let tracks = vec![Track { name: "track".into(), points }];
        Chart { title: "title".into(), tracks, tracks_apart, along, series, shape, unit, marks, start_ns, end_ns, ..Chart::default() }
    }
}

proptest! {
    #[test]
    fn any_chart_is_legible_and_has_numbers(chart in some_chart()) {
        let picture = svg(&chart);
        inspect::must_have_numbers(&picture);
        inspect::must_be_legible(&picture, None);
    }

    #[test]
    fn a_stack_is_as_high_as_the_sum_of_its_series(chart in some_chart()) {
        let layers = folded(&chart);
        let stack = stacked(&chart, &layers);
        let places = match &chart.along { Along::Times(times) => times.len(), Along::Names(names) => names.len() };
        for at in 0..places {
            let sum: f64 = chart.series.iter().map(|series| series.values.get(at).copied().unwrap_or(0.0)).filter(|value| value.abs() < 1e12).filter(|value| *value > 0.0).sum();
            if chart.series.iter().any(|series| series.values.get(at).is_some_and(|value| value.is_nan() || *value < 0.0 || *value >= 1e12)) {
                continue;
            }
            let top = stack.last().map_or(0.0, |layer| layer[at].1);
            prop_assert!((top - sum).abs() <= 1e-6 * sum.max(1.0), "{} {}", top, sum);
            for pair in stack.windows(2) {
                prop_assert_eq!(pair[0][at].1, pair[1][at].0);
            }
        }
    }
}
