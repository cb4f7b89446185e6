//! Graphs and flamegraphs of lists become SVG, by what draws them everywhere in hound.

use super::allocations::AllocationList;
use super::course::{Course, held, moments, resident};
use super::dataset::Dataset;
use super::fault::{Refusal, refusal, refused};
use super::graph::{Added, Graph, Show};
use super::limits::Meter;
use super::paths::PathId;
use super::rows::{full, ones};
use crate::query::{FlameShape, FlameSide, Measure, Query, Suppressions, flame, site_start};
use crate::report::told_apart;
use crate::view::chart::{self, Along, Chart, Scheme, Series, Shape, Unit};
use crate::view::flame::{DEEPEST, Picture, SMALLEST};
use crate::view::{self, Remark, duration, short_function};
use std::collections::HashMap;
use std::sync::Arc;

/// Moments that are looked at: one for each two pixels.
const MOMENTS: u64 = 400;
/// More series than this are added up, as colours go no further; a gradient has any number.
const MOST_SERIES: usize = 20;

/// A series of a graph: what it is called, and its blocks or maps as what they were added.
struct Placed {
    names: Vec<String>,
    /// Row, and which series.
    rows: Vec<(u32, usize)>,
}

/// The graph as SVG.
///
/// # Errors
/// If it shows nothing, or the script may not take so much.
pub fn graph(graph: &Graph, meter: &Meter) -> Result<String, Refusal> {
    let data = graph.must_be_drawable()?.clone();
    let mut chart = if graph.is_of_maps() { of_maps(graph, &data)? } else { of_blocks(graph, &data, meter)? };
    chart.remarks = remarks(&data);
    chart.scheme = graph.scheme.clone();
    (chart.axes, chart.grid, chart.legend) = (graph.axes, graph.grid, graph.legend);
    chart.most_series = if matches!(graph.scheme, Scheme::Gradient(..)) { usize::MAX } else { MOST_SERIES };
    meter.must_have_time()?;
    Ok(chart::svg(&chart))
}

/// Whose it is, what is missing.
fn remarks(data: &Dataset) -> Vec<Remark> {
    let session = data.session();
    let command = if session.command.is_empty() { "(command not known)".to_owned() } else { session.command.join(" ") };
    let mut remarks =
        vec![Remark::Plain(command), Remark::Plain(format!("process {}, {} mode, {}", session.pid, session.mode, duration(data.end_ns())))];
    let lost = data.lost_events();
    if lost > 0 {
        remarks.push(Remark::Warning(format!("LOST {} events: the figures are short of them", view::count(lost))));
    }
    if data.sampling().is_some_and(|sampling| sampling.largest_interval() > 0 || !sampling.windows().is_empty()) {
        remarks.push(Remark::Plain("parts of it are estimated from samples".to_owned()));
    }
    remarks
}

/// From when to when is drawn. `first` and `last`: of what there is anything.
fn range(graph: &Graph, data: &Dataset, first: Option<u64>, last: Option<u64>) -> Result<(u64, u64), Refusal> {
    let moment = |at: super::duration::Duration| u64::try_from(at.0).unwrap_or(0);
    let trimmed = |wanted: bool, at: Option<u64>| at.filter(|_| wanted);
    let from = graph.start.map(moment).or_else(|| trimmed(graph.trim_left, first)).unwrap_or(0);
    let to = graph.end.map(moment).or_else(|| trimmed(graph.trim_right, last)).unwrap_or(data.end_ns());
    match from < to || graph.start.is_none() && graph.end.is_none() {
        true => Ok((from, to)),
        false => refused(format!("the graph would begin at {} and end at {}, which is before", duration(from), duration(to))),
    }
}

fn of_blocks(graph: &Graph, data: &Dataset, meter: &Meter) -> Result<Chart, Refusal> {
    let placed = placed(graph, data)?;
    let view = data.view();
    let first = placed.rows.iter().map(|(row, _)| view.alloc_ns[*row as usize]).min();
    let last = placed.rows.iter().map(|(row, _)| if data.has_ended(*row) { view.end_ns[*row as usize] } else { data.end_ns() }).max();
    let (from, to) = range(graph, data, first, last)?;
    let _share = meter.take(placed.names.len() * MOMENTS as usize * 5 * size_of::<f64>())?;
    let mut course = Course::new(moments(from, to.min(data.end_ns().max(from)), MOMENTS), placed.names.len());
    course.add(data, placed.rows.iter().copied(), meter)?;
    let course = course.finish();
    let seconds: Vec<f64> = course.moments.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect();
    let a_second = |counts: &[f64]| counts.iter().zip(&seconds).map(|(count, seconds)| count / seconds).collect::<Vec<f64>>();
    let values = |number: usize| {
        let line = &course.lines[number];
        match graph.show {
            Show::LiveAllocations => line.blocks.clone(),
            Show::NewAllocations => a_second(&line.allocated),
            Show::Deallocations => a_second(&line.ended),
            _ => line.bytes.clone(),
        }
    };
    let rates = matches!(graph.show, Show::NewAllocations | Show::Deallocations);
    let shown = |number: &usize| !(graph.only_non_empty && course.lines[*number].is_empty);
    let series = (0..placed.names.len()).filter(shown);
    let series = series.map(|number| Series { name: placed.names[number].clone(), values: values(number), colour: None }).collect();
    let (title, unit) = match graph.show {
        Show::LiveAllocations => ("Allocations that live, over time", Unit::Count),
        Show::NewAllocations => ("Allocations made a second, over time", Unit::CountASecond),
        Show::Deallocations => ("Allocations released a second, over time", Unit::CountASecond),
        _ => ("Memory in allocations over time", Unit::Bytes),
    };
    let until = course.moments.len() - usize::from(rates && course.moments.len() > 1);
    Ok(Chart {
        title: title.to_owned(),
        shape: if rates { Shape::Steps } else { Shape::Area },
        along: Along::Times(course.moments[..until].to_vec()),
        unit,
        series,
        start_ns: Some(from),
        end_ns: Some(to),
        ..Chart::default()
    })
}

/// Each block in the first series that has it.
fn placed(graph: &Graph, data: &Dataset) -> Result<Placed, Refusal> {
    let mut left = full(data.rows());
    let mut placed = Placed { names: Vec::new(), rows: Vec::new() };
    let mut unnamed = Vec::new();
    for (name, added) in &graph.added {
        let rows = match added {
            Added::Blocks(list) => list.0.rows()?,
            Added::Groups(groups) => groups.ungroup()?.0.rows()?,
            Added::Maps(_) => continue,
        };
        let fresh: Vec<u64> = rows.words().iter().zip(&left).map(|(rows, left)| rows & left).collect();
        left.iter_mut().zip(rows.words()).for_each(|(left, rows)| *left &= !rows);
        let first = placed.names.len();
        match added {
            Added::Groups(groups) => {
                let numbers: HashMap<PathId, usize> = groups.paths().enumerate().map(|(number, path)| (path, first + number)).collect();
                let paths: Vec<Vec<String>> = groups.paths().map(|path| path_name(data, path)).collect();
                placed.names.extend(told_apart(&paths));
                placed.rows.extend(ones(&fresh, 0).filter_map(|row| Some((row, *numbers.get(&data.path_of(row))?))));
            }
            _ => {
                unnamed.extend(name.is_none().then_some(first));
                placed.names.push(name.clone().unwrap_or_else(|| format!("series {}", first + 1)));
                placed.rows.extend(ones(&fresh, 0).map(|row| (row, first)));
            }
        }
    }
    if let (1, [only]) = (placed.names.len(), &unnamed[..]) {
        placed.names[*only] = "allocations".to_owned();
    }
    Ok(placed)
}

/// The functions that a person would call a path by.
fn path_name(data: &Dataset, path: PathId) -> Vec<String> {
    let frames = data.paths().inner_first(path);
    let names: Vec<String> = frames[site_start(&frames)..].iter().map(|frame| short_function(frame.function).into_owned()).collect();
    if names.is_empty() { vec!["(no stack)".to_owned()] } else { names }
}

fn of_maps(graph: &Graph, data: &Dataset) -> Result<Chart, Refusal> {
    let mut taken = vec![false; data.events().maps.len()];
    let lists = graph.added.iter().filter_map(|(name, added)| if let Added::Maps(list) = added { Some((name, list)) } else { None });
    let mut series: Vec<(String, Vec<u32>)> = Vec::new();
    for (name, list) in lists {
        let fresh: Vec<u32> = list.numbers.iter().copied().filter(|map| !std::mem::replace(&mut taken[*map as usize], true)).collect();
        series.push((name.clone().unwrap_or_else(|| format!("series {}", series.len() + 1)), fresh));
    }
    if let ([only], Some((None, _))) = (&mut series[..], graph.added.first()) {
        only.0 = "maps".to_owned();
    }
    let record = |map: &u32| &data.events().maps[*map as usize];
    let all = || series.iter().flat_map(|(_, maps)| maps).map(record);
    let first = all().map(|map| map.mapped_ns).min();
    let last = all().map(|map| map.unmapped_ns.unwrap_or(data.end_ns())).max();
    let (from, to) = range(graph, data, first, last)?;
    let moments = moments(from, to.min(data.end_ns().max(from)), MOMENTS);
    let space = graph.show == Show::AddressSpace;
    let values = |maps: &[u32]| {
        let mut sum = vec![0.0; moments.len()];
        for map in maps.iter().map(record) {
            let values = if space { held(&map.space, &moments) } else { resident(map, &moments) };
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        sum
    };
    let shown = series.iter().filter(|(_, maps)| !(graph.only_non_empty && maps.is_empty()));
    let series = shown.map(|(name, maps)| Series { name: name.clone(), values: values(maps), colour: None }).collect();
    let title = if space { "Address space of maps over time" } else { "Resident memory of maps over time" };
    Ok(Chart {
        title: title.to_owned(),
        along: Along::Times(moments),
        unit: Unit::Bytes,
        series,
        start_ns: Some(from),
        end_ns: Some(to),
        ..Chart::default()
    })
}

/// Each series in a graph of its own, with its name.
///
/// # Errors
/// If the script may not take so much.
pub fn each_series(graph: &Graph, meter: &Meter) -> Result<Vec<(String, Graph)>, Refusal> {
    let data = graph.must_be_drawable()?.clone();
    if graph.is_of_maps() {
        let mut taken: Option<super::maps::MapList> = None;
        let mut each = Vec::new();
        for (number, (name, added)) in graph.added.iter().enumerate() {
            let Added::Maps(list) = added else { continue };
            let name = name.clone().unwrap_or_else(|| format!("series {}", number + 1));
            let fresh = taken.as_ref().map_or_else(|| Ok(list.clone()), |taken| list.without(taken))?;
            taken = Some(taken.map_or_else(|| Ok(list.clone()), |taken| taken.and(list))?);
            each.push((name.clone(), Graph { added: vec![(Some(name), Added::Maps(fresh))], ..graph.clone() }));
        }
        return Ok(each);
    }
    let placed = placed(graph, &data)?;
    let mut words: Vec<Vec<u64>> = Vec::new();
    let _share = meter.take(placed.names.len() * data.rows() / 8)?;
    words.resize_with(placed.names.len(), || vec![0; data.rows().div_ceil(64)]);
    placed.rows.iter().for_each(|(row, series)| words[*series][*row as usize / 64] |= 1 << (row % 64));
    let Some((_, Added::Blocks(AllocationList(any)))) = graph.added.first().map(|(name, added)| {
        (
            name,
            match added {
                Added::Groups(groups) => Added::Blocks(groups.list().clone()),
                other => other.clone(),
            },
        )
    }) else {
        return refused("the graph is empty");
    };
    let each = placed.names.into_iter().zip(words).filter(|(_, words)| !(graph.only_non_empty && words.iter().all(|word| *word == 0)));
    each.map(|(name, words)| {
        let list = AllocationList(any.known(super::rows::RowSet::new(words, meter)?));
        Ok((name.clone(), Graph { added: vec![(Some(name), Added::Blocks(list))], ..graph.clone() }))
    })
    .collect()
}

/// The flamegraph of all that is in a graph.
///
/// # Errors
/// If it shows maps, or the script may not take so much.
pub fn flamegraph_of(graph: &Graph, meter: &Meter) -> Result<String, Refusal> {
    match graph.added.first() {
        Some((_, Added::Blocks(list))) => flamegraph(list, meter),
        _ => refused("a flamegraph shows allocations, and the graph shows maps"),
    }
}

/// What has changed from one list to the other, of one capture or of two, as SVG.
///
/// # Errors
/// If the script may not take so much.
pub fn flamegraph_of_change(now: &AllocationList, before: &AllocationList, meter: &Meter) -> Result<String, Refusal> {
    let (data, old) = (now.0.data(), before.0.data());
    let (summed, summed_before) = (data.sum_of(&*now.0.rows()?, meter)?, old.sum_of(&*before.0.rows()?, meter)?);
    let query = Query { measure: Measure::Allocated, ..Query::default() };
    let drawn = data.with_both_sites(&summed.entries, (old, &summed_before.entries), |sites, sites_before| {
        let side = FlameSide { sites, streams: data.streams(), scale: summed.scale.as_ref() };
        let side_before = FlameSide { sites: sites_before, streams: old.streams(), scale: summed_before.scale.as_ref() };
        let merged = flame(&query, &Suppressions::none(), &side, Some(&side_before), FlameShape::default());
        let boxes = merged.boxes(SMALLEST, DEEPEST);
        let mut title = format!("Allocated: {}", view::amount(query.measure, &boxes[0].sums));
        if let Some(before) = &boxes[0].before {
            title = format!("{title}; {}", view::flame::difference(query.measure, &boxes[0].sums, before));
        }
        let mut remarks = remarks(data);
        if !Arc::ptr_eq(data, old) {
            remarks.push(Remark::Plain("compared with:".to_owned()));
            remarks.extend(self::remarks(old));
        }
        view::flame::svg(&Picture { title, remarks, measure: query.measure, pages: false, boxes: &boxes })
    });
    meter.must_have_time()?;
    drawn.ok_or_else(|| refusal("the capture cannot be read any more"))
}

/// A name as a file may have it.
pub fn file_name(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() || " -_.,()".contains(c) { c } else { '_' }).take(100).collect();
    let plain = plain.trim().trim_start_matches('.').to_owned();
    if plain.is_empty() { "series".to_owned() } else { plain }
}

/// Who allocated the blocks of a list, as SVG.
///
/// # Errors
/// If the script may not take so much.
pub fn flamegraph(list: &AllocationList, meter: &Meter) -> Result<String, Refusal> {
    let data = list.0.data();
    let rows = list.0.rows()?;
    let summed = data.sum_of(&rows, meter)?;
    let query = Query { measure: Measure::Allocated, ..Query::default() };
    let drawn = data.with_sites(&summed.entries, |sites| {
        let side = FlameSide { sites, streams: data.streams(), scale: summed.scale.as_ref() };
        let merged = flame(&query, &Suppressions::none(), &side, None, FlameShape::default());
        let boxes = merged.boxes(SMALLEST, DEEPEST);
        let title = format!("Allocated: {}", view::amount(query.measure, &boxes[0].sums));
        let picture = Picture { title, remarks: remarks(data), measure: query.measure, pages: false, boxes: &boxes };
        view::flame::svg(&picture)
    });
    meter.must_have_time()?;
    drawn.ok_or_else(|| refusal("the capture cannot be read any more"))
}
