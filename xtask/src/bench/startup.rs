//! What is added to the start and the end of a small program: the whole command, its capture finished, against the program alone.

use super::bounds::Bound;
use super::column::{Column, Target, alternate};
use super::figures::{median, shown, table};
use super::{Plan, Section};
use crate::{exec, programs};
use anyhow::Result;
use std::time::Instant;

/// Rounds, whatever the plan says: one run takes milliseconds, and milliseconds vary.
const ROUNDS: usize = 25;

/// Times the whole command in every column.
pub fn measure(plan: &Plan) -> Result<Section> {
    let target = Target::new(programs::compiled("tiny.c", "tiny", &[])?, &[]);
    let capture = plan.scratch.join("tiny.hound");
    let rounds = if plan.shrink > 1 { 3 } else { ROUNDS };
    let runs = alternate(&Column::ALL, rounds, |column| {
        let mut command = target.command(column, &capture);
        let start = Instant::now();
        exec::output(&mut command)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })?;
    let ms: Vec<f64> = runs.into_iter().map(median).collect();
    let added = |column: Column| ms[column as usize] - ms[Column::Bare as usize];
    let mut cells = vec!["a program that does nothing (ms)".to_owned(), shown(ms[Column::Bare as usize])];
    cells.extend([Column::Hound, Column::HoundFreeStacks, Column::Heaptrack].map(|column| shown(added(column))));
    Ok(Section {
        name: "startup",
        title: "Start and end of a small program",
        bounds: vec![Bound::new("added to the start and end of a small program (ms)", added(Column::HoundFreeStacks), 40.0, 8.0)],
        detail: table(&["", "no profiler", "added by hound, no free stacks", "added by hound", "added by heaptrack"], &[cells]),
    })
}
