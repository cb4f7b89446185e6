//! What hound finds out about lists beside the book: what samples stand for, how a list grows, which generations survive, how long blocks live,
//! and what differs between two captures.

use super::allocations::AllocationList;
use super::api::{Api, Origin};
use super::course::{Course, moments};
use super::data::Data;
use super::duration::Duration;
use super::fault::{Refusal, refused};
use super::groups::AllocationGroupList;
use super::paths::PathId;
use super::table::{Cell, Table};
use crate::query::Figure;
use rhai::{Dynamic, Map};
use std::collections::BTreeMap;

/// Two-sided 95 % of the normal distribution.
const NORMAL: f64 = 1.959_963_984_540_054;
/// Moments by which growth is measured.
const MOMENTS: u64 = 60;
/// Ages that a table of survival has.
const AGES: usize = 32;

fn whole(number: f64) -> i64 {
    number.round() as i64
}

/// What scripts ask.
pub fn register(api: &mut Api<'_>) {
    api.about("AllocationList", "samples_weigh_what_they_stand_for").of(Origin::Hound);
    api.function(
        "estimate",
        "(self: AllocationList) -> Object",
        "How many allocations they stand for, and bytes, each with the range that holds the truth with 95 %: `allocations`, `allocations_low`, \
         `allocations_high`, `bytes`, `bytes_low`, `bytes_high`, and `samples`. Where all was recorded, the figures are exact.",
        |list: &mut AllocationList| estimate(list),
    );
    api.function(
        "bytes",
        "(self: AllocationList) -> Integer",
        "How many bytes they have together; samples, what they stand for.",
        |list: &mut AllocationList| {
            let (data, rows) = (list.0.data(), list.0.rows()?);
            let view = data.view();
            Ok::<_, Refusal>(whole(rows.iter().map(|row| view.size[row as usize] as f64 * data.weight(row)).sum()))
        },
    );
    api.about("AllocationList", "growth_generations_and_survival_are_measured").of(Origin::Hound);
    api.function(
        "growth",
        "(self: AllocationList) -> Object",
        "How what lives of them grows, by the median slope between moments (Theil and Sen): `bytes_per_second`, and its range of 95 % `low` to \
         `high` by the steps from one moment to the next (signed ranks of Wilcoxon), as if those were independent. `hound leaks` asks more.",
        |list: &mut AllocationList| growth(list),
    );
    api.function(
        "generations",
        "(self: AllocationList, count: Integer) -> Table",
        "The recording in so many spans of time: what was allocated in each, and how much of that was never released.",
        |list: &mut AllocationList, count: i64| generations(list, count),
    );
    api.function(
        "survival",
        "(self: AllocationList) -> Table",
        "The share of blocks that reach an age (Kaplan and Meier): those not released are counted as long as they were seen.",
        |list: &mut AllocationList| survival(list),
    );
    api.about("AllocationGroupList", "groups_become_tables").of(Origin::Hound);
    api.function(
        "table",
        "(self: AllocationGroupList) -> Table",
        "Backtrace, number and bytes of each group.",
        |groups: &mut AllocationGroupList| groups_table(groups),
    );
    api.about("", "two_captures_are_compared").of(Origin::Hound);
    api.entry(
        "diff",
        "What the second has more than the first, or less, by backtrace, the largest change first. Both may be of different captures.",
    )
    .overload("(a: AllocationList, b: AllocationList) -> Table", |a: AllocationList, b: AllocationList| diff(&a, &b))
    .overload("(a: Data, b: Data) -> Table", |a: Data, b: Data| {
        diff(&AllocationList::all(&a.set, &a.meter), &AllocationList::all(&b.set, &b.meter))
    });
}

fn estimate(list: &AllocationList) -> Result<Map, Refusal> {
    let rows = list.0.rows()?;
    let summed = list.0.data().sum_of(&rows, list.0.meter())?;
    let mut map = Map::new();
    for (name, figure) in [("allocations", Figure::Allocations), ("bytes", Figure::AllocatedBytes)] {
        let exact: u64 = summed.entries.iter().map(|entry| entry.sums.value(figure)).sum();
        let value = summed.total.as_ref().map_or(exact, |total| total.value(figure));
        let (low, high) = summed.total.as_ref().and_then(|total| total.interval(figure)).unwrap_or((value, value));
        for (end, value) in [("", value), ("_low", low), ("_high", high)] {
            map.insert(format!("{name}{end}").into(), Dynamic::from(i64::try_from(value).unwrap_or(i64::MAX)));
        }
    }
    let samples = summed.total.as_ref().map_or(0, crate::query::Sums::samples);
    map.insert("samples".into(), Dynamic::from(samples as i64));
    Ok(map)
}

fn growth(list: &AllocationList) -> Result<Map, Refusal> {
    let data = list.0.data();
    let mut course = Course::new(moments(0, data.end_ns(), MOMENTS), 1);
    course.add(data, list.0.rows()?.iter().map(|row| (row, 0)), list.0.meter())?;
    let course = course.finish();
    let points: Vec<(f64, f64)> = course.moments.iter().zip(&course.lines[0].bytes).map(|(at, bytes)| (*at as f64 / 1e9, *bytes)).collect();
    let slope = |from: &(f64, f64), to: &(f64, f64)| (to.1 - from.1) / (to.0 - from.0);
    let later = |at: usize| points[at + 1..].iter();
    let mut slopes: Vec<f64> = points.iter().enumerate().flat_map(|(at, from)| later(at).map(move |to| slope(from, to))).collect();
    slopes.sort_by(f64::total_cmp);
    // What lives is a sum over time: not its moments are independent, but at best its steps. The means of two of those (Walsh), a step with itself
    // included, hold the middle of their law between these ranks.
    let steps: Vec<f64> = points.windows(2).map(|two| slope(&two[0], &two[1])).collect();
    let mut means: Vec<f64> =
        steps.iter().enumerate().flat_map(|(at, one)| steps[at..].iter().map(move |other| f64::midpoint(*one, *other))).collect();
    means.sort_by(f64::total_cmp);
    let (count, pairs) = (steps.len() as f64, means.len() as f64);
    let spread = NORMAL * (count * (count + 1.0) * (2.0 * count + 1.0) / 24.0).sqrt();
    let at = |of: &[f64], rank: f64| of.get((rank.max(0.0) as usize).min(of.len().saturating_sub(1))).copied().unwrap_or(0.0);
    let middle = at(&slopes, slopes.len() as f64 / 2.0);
    let (low, high) = (at(&means, pairs / 2.0 - spread).min(middle), at(&means, pairs / 2.0 + spread).max(middle));
    let figures = [("bytes_per_second", middle), ("low", low), ("high", high)];
    Ok(figures.into_iter().map(|(name, value)| (name.into(), Dynamic::from(value))).collect())
}

fn generations(list: &AllocationList, count: i64) -> Result<Table, Refusal> {
    let Some(count) = usize::try_from(count).ok().filter(|count| (1..=10_000).contains(count)) else {
        return refused(format!("{count} generations: give a number from 1 to 10000"));
    };
    let data = list.0.data();
    let (view, span) = (data.view(), data.end_ns().max(1));
    let mut sums = vec![[0.0f64; 4]; count];
    for row in list.0.rows()?.iter() {
        let born = view.alloc_ns[row as usize];
        let number = (u128::from(born) * count as u128 / u128::from(span)).min(count as u128 - 1) as usize;
        let (weight, bytes) = (data.weight(row), view.size[row as usize] as f64);
        let lives = f64::from(u8::from(data.is_leaked(row)));
        let more = [weight, weight * bytes, weight * lives, weight * bytes * lives];
        sums[number].iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }
    let at = |number: usize| Cell::Time(Duration::of_ns((u128::from(span) * number as u128 / count as u128) as u64));
    let row = |(number, sums): (usize, [f64; 4])| {
        [at(number), at(number + 1)].into_iter().chain(sums.map(|sum| Cell::Whole(whole(sum)))).collect()
    };
    let columns = ["from", "to", "allocations", "bytes", "leaked", "leaked_bytes"];
    Ok(Table::new(&columns, sums.into_iter().enumerate().map(row).collect()))
}

fn survival(list: &AllocationList) -> Result<Table, Refusal> {
    let data = list.0.data();
    let view = data.view();
    let _share = list.0.meter().take(list.0.rows()?.len() * 24)?;
    let mut lives: Vec<(u64, bool, f64)> = Vec::new();
    for row in list.0.rows()?.iter() {
        let life = view.known_ns(row as usize).saturating_sub(view.alloc_ns[row as usize]);
        lives.push((life, data.has_ended(row), data.weight(row)));
    }
    lives.sort_unstable_by_key(|(life, ..)| *life);
    let longest = lives.last().map_or(0, |(life, ..)| *life);
    // Ages in even ratios, from a microsecond on.
    let age = |number: usize| (1000.0 * (longest.max(1000) as f64 / 1000.0).powf(number as f64 / (AGES - 1) as f64)).round() as u64;
    let mut ages = (0..AGES).map(age).collect::<Vec<_>>();
    ages.dedup();
    let (mut share, mut at_risk) = (1.0f64, lives.iter().map(|(.., weight)| weight).sum::<f64>());
    let mut groups = lives.chunk_by(|a, b| a.0 == b.0).peekable();
    let mut rows = Vec::new();
    for age in ages {
        while let Some(group) = groups.next_if(|group| group[0].0 <= age) {
            let ended: f64 = group.iter().filter(|(_, ended, _)| *ended).map(|(.., weight)| weight).sum();
            share *= 1.0 - if at_risk > 0.0 { (ended / at_risk).min(1.0) } else { 0.0 };
            at_risk -= group.iter().map(|(.., weight)| weight).sum::<f64>();
        }
        rows.push(vec![Cell::Time(Duration::of_ns(age)), Cell::Number(share), Cell::Whole(whole(at_risk.max(0.0)))]);
    }
    Ok(Table::new(&["age", "share", "still_seen"], rows))
}

fn functions(data: &super::dataset::Dataset, path: PathId) -> String {
    let frames = data.paths().inner_first(path);
    let names: Vec<&str> = frames.iter().map(|frame| frame.function).collect();
    if names.is_empty() { "(no stack)".to_owned() } else { names.join(" ← ") }
}

fn groups_table(groups: &AllocationGroupList) -> Table {
    let row = |group: &super::groups::Group| {
        let leaked = if group.all_leaked { "all leaked" } else { "" };
        vec![
            Cell::Whole(i64::from(group.path)),
            Cell::Whole(group.count as i64),
            Cell::Whole(whole(group.bytes)),
            Cell::Text(leaked.to_owned()),
            Cell::Text(functions(groups.data(), group.path)),
        ]
    };
    Table::new(&["backtrace", "count", "bytes", "leaked", "functions"], groups.groups().iter().map(row).collect())
}

/// By what a path is called: numbers of paths are of one capture.
fn diff(a: &AllocationList, b: &AllocationList) -> Result<Table, Refusal> {
    let mut sums: BTreeMap<String, [f64; 4]> = BTreeMap::new();
    for (side, list) in [a, b].into_iter().enumerate() {
        let groups = AllocationGroupList::of(list)?;
        for group in groups.groups() {
            let sum = sums.entry(functions(groups.data(), group.path)).or_default();
            sum[side] += group.count as f64;
            sum[side + 2] += group.bytes;
        }
    }
    let mut all: Vec<(String, [f64; 4])> = sums.into_iter().collect();
    all.sort_by(|(_, one), (_, other)| (other[3] - other[2]).abs().total_cmp(&(one[3] - one[2]).abs()));
    let row = |(path, [count, count_b, bytes, bytes_b]): (String, [f64; 4])| {
        let figures = [count, count_b, bytes, bytes_b, bytes_b - bytes];
        figures.into_iter().map(|figure| Cell::Whole(whole(figure))).chain([Cell::Text(path)]).collect()
    };
    Ok(Table::new(&["count_a", "count_b", "bytes_a", "bytes_b", "change", "functions"], all.into_iter().map(row).collect()))
}
