//! A chart for programs: the numbers that are drawn.

use super::axis::Unit;
use super::{Along, Chart};
use crate::view::picture::Remark;
use serde_json::{Value, json};

/// What values are, in words.
pub(super) fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => "bytes",
        Unit::Count => "blocks",
        Unit::CountASecond => "blocks per second",
        Unit::BytesASecond => "bytes per second",
    }
}

/// The chart's numbers: places along the lower edge, series, lines, marks.
pub fn json(chart: &Chart) -> Value {
    let series = |name: &str, values: &[f64]| json!({"name": name, "values": values});
    let mut value = json!({
        "title": chart.title,
        "remarks": chart.remarks.iter().map(Remark::text).collect::<Vec<_>>(),
        "unit": unit(chart.unit),
        "series": chart.series.iter().map(|of| series(&of.name, &of.values)).collect::<Vec<_>>(),
        "marks": chart.marks.iter().map(|(at, text)| json!({"time_ns": at, "text": text})).collect::<Vec<_>>(),
        "spans": chart.spans.iter().map(|(from, to, what)| json!({"from_ns": from, "to_ns": to, "what": what})).collect::<Vec<_>>(),
    });
    match &chart.along {
        Along::Times(times) => value["times_ns"] = json!(times),
        Along::Names(names) => value["names"] = json!(names),
    }
    if !chart.tracks.is_empty() {
        let track = |points: &[(u64, f64)]| points.iter().map(|(at, bytes)| json!([at, bytes])).collect::<Vec<_>>();
        let tracks = chart.tracks.iter().map(|of| json!({"name": of.name, "time_ns_and_value": track(&of.points)}));
        value["tracks"] = tracks.collect();
    }
    if let Some((_, bounds)) = &chart.band {
        value["whole_ci95"] = bounds.iter().map(|(low, high)| json!([low, high])).collect();
    }
    value
}
