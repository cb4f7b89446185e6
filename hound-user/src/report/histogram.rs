//! A capture in, a histogram of sizes or lifetimes out.

use super::graph::{Drawn, GraphOptions};
use super::naming::others;
use super::second::Prepared;
use super::{Options, Progress};
use crate::capture::model::{Culled, Event, Stamped};
use crate::query::{Bucket, Over, Spread};
use crate::view::chart::{Histogram, Place, REST, Stack, histogram_json, histogram_svg};
use crate::view::{Remark, bytes, count};
use std::path::Path;

/// Sizes or lifetimes of blocks, stacked by group.
pub(super) fn drawn(path: &Path, options: &Options, how: &GraphOptions, over: Over, progress: &Progress) -> anyhow::Result<Drawn> {
    let mut prepared = Prepared::of(path, options, progress)?;
    anyhow::ensure!(!prepared.material.faults, "this capture has page faults alone, which have no sizes and no lifetimes");
    let sampling = prepared.material.read.sampling.clone();
    let mut spread = Spread::new(prepared.grouping(), over, sampling.clone(), prepared.watched_until());
    let mut culled = Vec::new();
    prepared.pass(progress, |block, ending| spread.add(block, ending), |event| culled.extend(of_culled(event)));
    let counts_culled = !prepared.is_filtered();
    if counts_culled {
        culled.iter().for_each(|of| spread.add_culled(of));
    }
    let found = spread.finish(prepared.most, prepared.material.scale.as_ref());
    progress.done();
    let named = prepared.names(&found.rows).into_iter().map(|name| (name, None));
    let rest = (found.others > 0).then(|| (others(found.others), Some(REST)));
    let stack = |((name, colour), values): ((String, _), &Vec<[f64; 2]>)| {
        let part = |which: usize| values.iter().map(|both| both[which]).collect();
        Stack { name, blocks: part(0), bytes: part(1), colour }
    };
    let place = |(at, bucket): (usize, &Bucket)| place(bucket, over, found.intervals.as_ref().map(|intervals| intervals[at]));
    let mut remarks = prepared.remarks();
    if counts_culled && !culled.is_empty() {
        remarks.push(Remark::Plain("what was left out while it was recorded is in this picture, among the others".to_owned()));
    }
    if over == Over::Lifetimes {
        remarks.push(Remark::Plain("a realloc ends a block and begins another".to_owned()));
        if found.buckets.contains(&Bucket::NotKnown) {
            let why = "not known: the release may have been missed, or recording was switched while the block lived";
            remarks.push(Remark::Plain(why.to_owned()));
        }
        if sampling.as_ref().is_some_and(|sampling| !sampling.windows().is_empty()) {
            let short = "nobody watches between windows: what lived longer than a window is mostly among what is not known";
            remarks.push(Remark::Warning(short.to_owned()));
        }
    }
    if sampling.is_some() {
        remarks.push(Remark::Plain("estimated from samples; the thin lines are the ranges that hold the truth with 95 %".to_owned()));
    }
    let histogram = Histogram {
        title: title(over, &found.values, sampling.is_some()),
        remarks,
        along: match over {
            Over::Sizes => ("size asked for".to_owned(), "bytes".to_owned()),
            Over::Lifetimes => ("how long they lived".to_owned(), "nanoseconds".to_owned()),
        },
        places: found.buckets.iter().enumerate().map(place).collect(),
        stacks: named.chain(rest).zip(&found.values).map(stack).collect(),
        estimated: sampling.is_some(),
        scheme: how.scheme.clone(),
    };
    Ok(Drawn { svg: histogram_svg(&histogram), json: histogram_json(&histogram), summary: prepared.summary })
}

/// What was left out while it was recorded.
pub(super) fn of_culled(event: &Stamped) -> Option<Culled> {
    if let Event::Culled(of) = &event.event { Some((**of).clone()) } else { None }
}

fn title(over: Over, values: &[Vec<[f64; 2]>], estimated: bool) -> String {
    let sum = |which: usize| values.iter().flatten().map(|both| both[which]).sum::<f64>().round() as u64;
    let about = if estimated { "≈ " } else { "" };
    let what = if over == Over::Sizes { "Sizes" } else { "Lifetimes" };
    format!("{what} of blocks: {about}{} allocated, {about}{}", count(sum(0)), bytes(sum(1)))
}

fn place(bucket: &Bucket, over: Over, intervals: Option<[(u64, u64); 2]>) -> Place {
    let apart = |name: &str| Place { name: name.to_owned(), label: name.to_owned(), bounds: None, intervals };
    let (from, below) = match bucket {
        Bucket::NeverReleased => return apart("never released"),
        Bucket::NotKnown => return apart("not known"),
        Bucket::Values(from, below) => (*from, *below),
    };
    let (label, name) = match over {
        Over::Sizes => {
            let name = match below {
                Some(1) => "0 B".to_owned(),
                Some(below) => format!("{} to {} B", count(from), count(below - 1)),
                None => format!("{} B and more", count(from)),
            };
            // Every second power of two: 1 B, 4 B, 16 B, 64 B, 256 B, 1 KiB.
            let label = if from == 0 { "0".to_owned() } else { binary(from) };
            (if from == 0 || from.trailing_zeros().is_multiple_of(2) { label } else { String::new() }, name)
        }
        Over::Lifetimes => {
            let name = match below {
                Some(below) if from == 0 => format!("less than {}", time(below)),
                Some(below) => format!("{} to {}", time(from), time(below)),
                None => format!("{} and more", time(from)),
            };
            (if from == 0 || is_decade(from) { if from == 0 { "0".to_owned() } else { time(from) } } else { String::new() }, name)
        }
    };
    Place { name, label, bounds: Some((from, below)), intervals }
}

fn is_decade(ns: u64) -> bool {
    ns == 10u64.pow(ns.ilog10())
}

/// A power of two.
fn binary(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = bytes.ilog2() / 10;
    format!("{} {}", bytes >> (10 * power), UNITS[power as usize])
}

/// A round number of one unit.
fn time(ns: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "s"), (1_000_000, "ms"), (1000, "µs")];
    match UNITS.into_iter().find(|(unit, _)| ns >= *unit) {
        Some((unit, name)) => format!("{} {name}", count(ns / unit)),
        None => format!("{ns} ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_round_names_and_units() {
        let of = |from, below, over| {
            let place = place(&Bucket::Values(from, below), over, None);
            (place.label, place.name)
        };
        let names = |label: &str, name: &str| (label.to_owned(), name.to_owned());
        assert_eq!(of(0, Some(1), Over::Sizes), names("0", "0 B"));
        assert_eq!(of(16, Some(32), Over::Sizes), names("16 B", "16 to 31 B"));
        assert_eq!(of(32, Some(64), Over::Sizes), names("", "32 to 63 B"));
        assert_eq!(of(1 << 20, Some(1 << 21), Over::Sizes), names("1 MiB", "1,048,576 to 2,097,151 B"));
        assert_eq!(of(1 << 63, None, Over::Sizes), names("", "9,223,372,036,854,775,808 B and more"));
        assert_eq!(of(0, Some(1000), Over::Lifetimes), names("0", "less than 1 µs"));
        assert_eq!(of(20_000, Some(50_000), Over::Lifetimes), names("", "20 µs to 50 µs"));
        assert_eq!(of(1_000_000_000, Some(2_000_000_000), Over::Lifetimes), names("1 s", "1 s to 2 s"));
        assert_eq!(of(1_000_000_000_000, None, Over::Lifetimes), names("1,000 s", "1,000 s and more"));
    }
}
