//! Whole programs: wall time, memory added to the target, and the size of the captures.

use super::bounds::Bound;
use super::column::{Column, alternate};
use super::figures::{median, mib, shown, table};
use super::workload::{NAMES, Timed, Workload};
use super::{Plan, Section};
use anyhow::{Context, Result, ensure};

/// The medians of one program.
struct Row {
    title: &'static str,
    bound: Option<(f64, f64)>,
    threads: u64,
    is_of_short_threads: bool,
    /// By column.
    cells: [Cell; 4],
}

/// The medians of one program in one column.
struct Cell {
    wall_s: f64,
    cpu_s: f64,
    peak: f64,
    /// NaN but under hound, like the next two.
    drainer_s: f64,
    events: f64,
    bytes_per_event: f64,
}

impl Row {
    fn cell(&self, column: Column) -> &Cell {
        &self.cells[column as usize]
    }

    fn ratio(&self, column: Column) -> f64 {
        self.cell(column).wall_s / self.cell(Column::Bare).wall_s
    }

    fn added_mib(&self, column: Column) -> f64 {
        mib(self.cell(column).peak - self.cell(Column::Bare).peak)
    }
}

/// Measures the programs of the plan.
pub fn measure(plan: &Plan) -> Result<Section> {
    let mut rows = Vec::new();
    for name in NAMES.iter().filter(|name| plan.programs.is_empty() || plan.programs.iter().any(|chosen| chosen == *name)) {
        eprintln!("bench: {name}");
        rows.push(row(name, plan)?);
    }
    Ok(Section { name: "programs", title: "Whole programs", bounds: bounds(&rows), detail: detail(&rows) })
}

fn row(name: &str, plan: &Plan) -> Result<Row> {
    let workload = Workload::prepare(name, plan)?;
    let runs = alternate(&Column::ALL, plan.runs, |column| workload.run(column, &plan.scratch))?;
    let printed = &runs[Column::Bare as usize][0].run.watched.stdout;
    // Heaptrack writes its own words between those of the target.
    for timed in runs[..=Column::HoundFreeStacks as usize].iter().flatten() {
        ensure!(
            !workload.prints_the_same() || &timed.run.watched.stdout == printed,
            "{name} printed something else under hound than without it"
        );
    }
    let cells: Vec<Cell> = runs.iter().map(|runs| cell(runs)).collect();
    let cells = cells.try_into().ok().context("invariant: a cell for each column")?;
    Ok(Row {
        title: workload.title,
        bound: workload.bound,
        threads: workload.threads,
        is_of_short_threads: workload.is_of_short_threads,
        cells,
    })
}

fn cell(runs: &[Timed]) -> Cell {
    let infos = || runs.iter().filter_map(|timed| timed.run.info.as_ref());
    Cell {
        wall_s: median(runs.iter().map(|timed| timed.wall_s)),
        cpu_s: median(runs.iter().map(|timed| timed.run.watched.cpu.as_secs_f64())),
        peak: median(runs.iter().map(|timed| timed.run.watched.peak_bytes as f64)),
        drainer_s: median(infos().map(|info| info.drainer_cpu.as_secs_f64())),
        events: median(infos().map(|info| info.events as f64)),
        bytes_per_event: median(infos().map(|info| info.bytes_per_event())),
    }
}

fn bounds(rows: &[Row]) -> Vec<Bound> {
    let wall = |row: &Row| {
        let (must, aim) = row.bound?;
        Some(Bound::new(format!("wall ratio: {}", row.title), row.ratio(Column::Hound), must, aim))
    };
    let mut bounds: Vec<Bound> = rows.iter().filter_map(wall).collect();
    // `f64::max` passes over NaN, so an unmeasured program could hide; a sum cannot.
    let worst_of = |rows: &[&Row], figure: &dyn Fn(&Row) -> f64| {
        let values: Vec<f64> = rows.iter().map(|row| figure(row)).collect();
        if values.iter().any(|value| value.is_nan()) { f64::NAN } else { values.into_iter().fold(f64::MIN, f64::max) }
    };
    let long: Vec<&Row> = rows.iter().filter(|row| !row.is_of_short_threads).collect();
    let all: Vec<&Row> = rows.iter().collect();
    let bytes = |column: Column| worst_of(&long, &|row: &Row| row.cell(column).bytes_per_event);
    if !long.is_empty() {
        bounds.push(Bound::new("capture bytes an event, without free stacks (the worst program)", bytes(Column::Hound), 6.0, 3.0));
        bounds.push(Bound::new("capture bytes an event, with free stacks (the worst program)", bytes(Column::HoundFreeStacks), 9.0, 5.0));
    }
    let beyond = |row: &Row, kib_a_thread: f64| row.added_mib(Column::Hound) - row.threads as f64 * kib_a_thread / 1024.0;
    bounds.push(Bound::new(
        "memory added to the target, less 16 KiB a thread (the worst program, MiB)",
        worst_of(&all, &|row: &Row| beyond(row, 16.0)),
        24.0,
        8.0,
    ));
    bounds
}

fn detail(rows: &[Row]) -> String {
    let headings =
        ["program", Column::Bare.heading(), Column::Hound.heading(), Column::HoundFreeStacks.heading(), Column::Heaptrack.heading()];
    // A figure of the bare run, and one for each profiler.
    let compared = |bare: &dyn Fn(&Row) -> String, profiled: &dyn Fn(&Row, Column) -> f64| {
        let row = |row: &Row| {
            let mut cells = vec![row.title.to_owned(), bare(row)];
            cells.extend([Column::Hound, Column::HoundFreeStacks, Column::Heaptrack].map(|column| shown(profiled(row, column))));
            cells
        };
        table(&headings, &rows.iter().map(row).collect::<Vec<_>>())
    };
    let seconds = |value: f64| format!("{} s", shown(value));
    let cpu = |row: &Row, column: Column| row.cell(column).cpu_s;
    let captures =
        ["program", "million events", "bytes an event, no free stacks", "bytes an event", "drainer, no free stacks (s)", "drainer (s)"];
    let parts = [
        ("Wall time to the end of the target, as a ratio", compared(&|row| seconds(row.cell(Column::Bare).wall_s), &Row::ratio)),
        (
            "Processor time of the target and everything around it (the profiler; redis's clients), as a ratio",
            compared(&|row| seconds(cpu(row, Column::Bare)), &|row, column| cpu(row, column) / cpu(row, Column::Bare)),
        ),
        (
            "Peak resident memory of the target, and what is added to it (MiB)",
            compared(&|row| shown(mib(row.cell(Column::Bare).peak)), &Row::added_mib),
        ),
        (
            "Captures, and the processor time that draining them took beside the target",
            table(&captures, &rows.iter().map(capture_row).collect::<Vec<_>>()),
        ),
    ];
    parts.map(|(title, table)| format!("{title}:\n\n{table}")).join("\n")
}

fn capture_row(row: &Row) -> Vec<String> {
    let (without, with) = (row.cell(Column::Hound), row.cell(Column::HoundFreeStacks));
    let figures = [with.events / 1e6, without.bytes_per_event, with.bytes_per_event, without.drainer_s, with.drainer_s];
    std::iter::once(row.title.to_owned()).chain(figures.map(shown)).collect()
}
