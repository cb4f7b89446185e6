//! What hound adds to one malloc+free pair, by the shape of the call path and its depth.

use super::bounds::Bound;
use super::column::{Column, Target, alternate};
use super::figures::{median, shown, table};
use super::{Plan, Section};
use crate::programs;
use anyhow::{Context, Result};

/// Pairs of one run: long enough that no ring holds them all, so that hound has to keep up.
const PAIRS: u64 = 10_000_000;
/// Under heaptrack a pair takes a hundred times as long.
const HEAPTRACK_PAIRS: u64 = 500_000;

/// What a compiled program is like.
struct Build {
    name: &'static str,
    flag: &'static str,
}

const NO_FRAME_POINTERS: Build = Build { name: "pairs", flag: "-fomit-frame-pointer" };
const FRAME_POINTERS: Build = Build { name: "pairs-fp", flag: "-fno-omit-frame-pointer" };

/// The rows: build, shape, depth.
const ROWS: &[(&Build, &str, &str)] = &[
    (&NO_FRAME_POINTERS, "same", "30"),
    (&NO_FRAME_POINTERS, "leaves", "30"),
    (&NO_FRAME_POINTERS, "root", "30"),
    (&NO_FRAME_POINTERS, "popped", "30"),
    (&NO_FRAME_POINTERS, "leaves", "5"),
    (&NO_FRAME_POINTERS, "leaves", "100"),
    (&FRAME_POINTERS, "same", "30"),
    (&FRAME_POINTERS, "leaves", "30"),
];

const COLUMNS: [Column; 6] =
    [Column::Bare, Column::Hound, Column::HoundPatched, Column::HoundFreeStacks, Column::HoundSampled, Column::Heaptrack];

/// Nanoseconds a pair in each column of one row.
struct Row {
    build: &'static Build,
    shape: &'static str,
    depth: &'static str,
    ns: [f64; COLUMNS.len()],
}

impl Row {
    /// What a column adds to the bare pair.
    fn added(&self, column: Column) -> f64 {
        self.of(column) - self.of(Column::Bare)
    }

    fn of(&self, column: Column) -> f64 {
        COLUMNS.iter().position(|known| *known == column).map_or(f64::NAN, |place| self.ns[place])
    }
}

/// Measures every row.
pub fn measure(plan: &Plan) -> Result<Section> {
    let mut rows = Vec::new();
    for (build, shape, depth) in ROWS {
        let program = programs::compiled("pairs.cpp", build.name, &[build.flag])?;
        let runs = alternate(&COLUMNS, plan.runs, |column| {
            let pairs = plan.size(if column == Column::Heaptrack { HEAPTRACK_PAIRS } else { PAIRS });
            let target = Target::new(program.clone(), &[shape, depth, &pairs.to_string()]);
            figure(&target.run(column, &plan.scratch)?.watched.stdout)
        })?;
        let medians: Vec<f64> = runs.into_iter().map(median).collect();
        let ns = medians.try_into().ok().context("invariant: a figure for each column")?;
        rows.push(Row { build, shape, depth, ns });
    }
    Ok(Section {
        name: "pairs",
        title: "Added to one malloc+free pair",
        bounds: bounds(&rows),
        detail: table(
            &[
                "call path, depth (nanoseconds a pair)",
                "no profiler",
                "added by hound, no free stacks",
                "the same, patched",
                "added by hound",
                "added by hound sampled, library",
                "added by heaptrack",
            ],
            &rows.iter().map(shown_row).collect::<Vec<_>>(),
        ),
    })
}

/// The figure that `pairs` printed; heaptrack adds lines of its own.
fn figure(printed: &str) -> Result<f64> {
    let numbers = printed.lines().find_map(|line| line.trim().parse().ok());
    numbers.with_context(|| format!("pairs printed no number: {printed:?}"))
}

fn shown_row(row: &Row) -> Vec<String> {
    let shape = match row.shape {
        "same" => "the same path",
        "leaves" => "three alternating leaf frames",
        "root" => "a frame near the root alternates",
        _ => "the path is popped and pushed anew",
    };
    let compiled = if row.build.flag == FRAME_POINTERS.flag { ", with frame pointers" } else { "" };
    let mut cells = vec![format!("{shape}, {}{compiled}", row.depth), shown(row.of(Column::Bare))];
    cells.extend(COLUMNS[1..].iter().map(|column| shown(row.added(*column))));
    cells
}

fn bounds(rows: &[Row]) -> Vec<Bound> {
    let added_in = |column: Column, shape: &str, depth: &str| {
        let row = rows.iter().find(|row| row.shape == shape && row.depth == depth && row.build.flag == NO_FRAME_POINTERS.flag);
        row.map_or(f64::NAN, |row| row.added(column))
    };
    let added = |shape: &str, depth: &str| added_in(Column::Hound, shape, depth);
    let sampled = |shape: &str| added_in(Column::HoundSampled, shape, "30");
    let patched = |shape: &str| (added_in(Column::HoundPatched, shape, "30") - added(shape, "30")) / 2.0;
    vec![
        Bound::new("a patched call beside an interposed one, same path (ns)", patched("same"), 5.0, 2.0),
        Bound::new("a patched call beside an interposed one, three alternating leaf frames (ns)", patched("leaves"), 5.0, 2.0),
        Bound::new("added by sampling in the library, same path (ns)", sampled("same"), 6.0, 2.0),
        Bound::new("added by sampling in the library, three alternating leaf frames (ns)", sampled("leaves"), 6.0, 2.0),
        Bound::new("added at depth 30, same path (ns)", added("same", "30"), 70.0, 35.0),
        Bound::new("added at depth 30, three alternating leaf frames (ns)", added("leaves", "30"), 90.0, 50.0),
        Bound::new("added at depth 30, a frame near the root alternates (ns)", added("root", "30"), 150.0, 70.0),
        Bound::new("added at depth 30, popped and pushed anew (ns)", added("popped", "30"), 150.0, 70.0),
        Bound::new(
            "added at depth 100 against depth 5, alternating leaves (ratio)",
            added("leaves", "100") / added("leaves", "5"),
            2.0,
            1.5,
        ),
    ]
}
