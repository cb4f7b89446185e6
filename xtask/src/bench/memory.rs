//! What each thread of the target adds to hound's memory in it.

use super::bounds::Bound;
use super::column::{Column, Target, alternate};
use super::figures::{median, mib, shown, table};
use super::{Plan, Section};
use crate::programs;
use anyhow::Result;

/// Threads of the two runs that are compared.
const FEW: u64 = 1;
const MANY: u64 = 513;

/// Measures peak resident memory with few and with many threads alive.
pub fn measure(plan: &Plan) -> Result<Section> {
    let program = programs::compiled("threads.cpp", "threads", &[])?;
    let peaks = |threads: u64| -> Result<Vec<f64>> {
        let target = Target::new(program.clone(), &[&threads.to_string()]);
        let runs = alternate(&Column::ALL, plan.runs, |column| Ok(target.run(column, &plan.scratch)?.watched.peak_bytes as f64))?;
        Ok(runs.into_iter().map(median).collect())
    };
    let (few, many) = (peaks(FEW)?, peaks(MANY)?);
    let added = |peaks: &[f64], column: Column| peaks[column as usize] - peaks[Column::Bare as usize];
    let a_thread = |column| (added(&many, column) - added(&few, column)) / (MANY - FEW) as f64 / 1024.0;

    let rows: Vec<Vec<String>> = [Column::Hound, Column::HoundFreeStacks, Column::Heaptrack]
        .into_iter()
        .map(|column| {
            let figures = [mib(added(&few, column)), mib(added(&many, column)), a_thread(column)];
            std::iter::once(column.heading().to_owned()).chain(figures.map(shown)).collect()
        })
        .collect();
    Ok(Section {
        name: "memory",
        title: "Memory a thread",
        bounds: vec![
            Bound::new("memory added for each thread (KiB)", a_thread(Column::Hound), 16.0, 4.0),
            Bound::new("memory added to a program of one thread (MiB)", mib(added(&few, Column::Hound)), 24.0, 8.0),
        ],
        detail: table(&["", "added at 1 thread (MiB)", "added at 513 threads (MiB)", "added a thread (KiB)"], &rows),
    })
}
