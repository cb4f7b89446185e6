//! The kinds of runs that are compared: without a profiler, under hound, and under heaptrack.

use crate::watch::{Watched, watch};
use crate::{exec, json, place};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// One kind of run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Column {
    /// No profiler.
    Bare,
    /// hound without stacks of frees: what can be compared with heaptrack, which has none.
    Hound,
    /// hound as it runs without options.
    HoundFreeStacks,
    /// heaptrack with its interpreter beside it, as it runs without options.
    Heaptrack,
    /// hound in sampled mode, the library taking the samples, at the interval it has without options. Not of [`Column::ALL`], whose runs are
    /// found by number.
    HoundSampled,
    /// hound without stacks of frees, the functions patched instead of interposed. Not of [`Column::ALL`].
    HoundPatched,
}

impl Column {
    /// All kinds, in the order of one round.
    pub const ALL: [Self; 4] = [Self::Bare, Self::Hound, Self::HoundFreeStacks, Self::Heaptrack];

    /// The heading of its column.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Bare => "no profiler",
            Self::Hound => "hound, no free stacks",
            Self::HoundFreeStacks => "hound",
            Self::HoundSampled => "hound sampled, library",
            Self::HoundPatched => "hound, patched, no free stacks",
            Self::Heaptrack => "heaptrack",
        }
    }
}

/// A program to run.
pub struct Target {
    /// The file it executes.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Added to its environment.
    pub environment: Vec<(&'static str, &'static str)>,
}

impl Target {
    /// A program with arguments and nothing else.
    pub fn new(program: PathBuf, arguments: &[&str]) -> Self {
        Self { program, arguments: arguments.iter().map(OsString::from).collect(), environment: Vec::new() }
    }

    /// The command of one kind of run; `capture` is where a profiler shall write.
    pub fn command(&self, column: Column, capture: &Path) -> Command {
        let mut command = match column {
            Column::Bare => Command::new(&self.program),
            Column::Hound | Column::HoundFreeStacks | Column::HoundSampled | Column::HoundPatched => {
                let mut hound = Command::new(place::hound());
                hound.args(["run", "--quiet", "-o"]).arg(capture);
                if matches!(column, Column::Hound | Column::HoundPatched) {
                    hound.arg("--no-free-stacks");
                }
                if column == Column::HoundSampled {
                    hound.args(["--mode", "sampled"]);
                }
                if column == Column::HoundPatched {
                    hound.args(["--via", "patch"]);
                }
                hound.arg("--").arg(&self.program);
                hound
            }
            Column::Heaptrack => {
                let mut heaptrack = Command::new("heaptrack");
                heaptrack.arg("-o").arg(capture).arg(&self.program);
                heaptrack
            }
        };
        command.args(&self.arguments).envs(self.environment.iter().copied());
        command
    }

    /// Runs the target once and reads what the capture says about itself.
    pub fn run(&self, column: Column, scratch: &Path) -> Result<Run> {
        let captures = scratch.join("capture");
        fs::create_dir_all(&captures).with_context(|| format!("cannot create {}", captures.display()))?;
        let capture = captures.join("run.hound");
        let watched = watch(&mut self.command(column, &capture), &self.program, scratch)
            .with_context(|| format!("{} ({})", self.program.display(), column.heading()))?;
        let info = match column {
            Column::Hound | Column::HoundFreeStacks | Column::HoundSampled | Column::HoundPatched => Some(Info::of(&capture)?),
            Column::Bare | Column::Heaptrack => None,
        };
        fs::remove_dir_all(&captures).with_context(|| format!("cannot remove {}", captures.display()))?;
        Ok(Run { watched, info })
    }
}

/// One run and what it recorded.
pub struct Run {
    /// What was seen from outside.
    pub watched: Watched,
    /// Only under hound.
    pub info: Option<Info>,
}

/// What a capture says about itself.
pub struct Info {
    /// Events in it.
    pub events: u64,
    /// Events that are missing.
    pub lost: u64,
    /// Its size.
    pub file_bytes: u64,
    /// Processor time of the process that drained the rings and wrote it.
    pub drainer_cpu: Duration,
}

impl Info {
    /// Asks `hound info`.
    pub fn of(capture: &Path) -> Result<Self> {
        let said = exec::output(Command::new(place::hound()).args(["info", "--format", "json"]).arg(capture))?;
        let info = json::parse(&said)?;
        Ok(Self {
            events: json::number(&info, &["events"])?,
            lost: json::number(&info, &["lost_events"])?,
            file_bytes: json::number(&info, &["file_bytes"])?,
            drainer_cpu: Duration::from_nanos(json::number(&info, &["end", "drainer_cpu_ns"])?),
        })
    }

    /// Bytes of the file for each event.
    pub fn bytes_per_event(&self) -> f64 {
        self.file_bytes as f64 / self.events.max(1) as f64
    }
}

/// Runs every kind of `columns` in turn, `rounds` times over. The runs of a kind are in the place of that kind.
///
/// One run of the first kind goes before and is not counted: it pays for cold files. Every other round goes backwards, so
/// that no kind always follows the same one.
pub fn alternate<T>(columns: &[Column], rounds: usize, mut run: impl FnMut(Column) -> Result<T>) -> Result<Vec<Vec<T>>> {
    if let Some(first) = columns.first() {
        run(*first)?;
    }
    let mut results: Vec<Vec<T>> = columns.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        for step in 0..columns.len() {
            let place = if round % 2 == 0 { step } else { columns.len() - 1 - step };
            results[place].push(run(columns[place])?);
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_alternate_in_both_directions_after_a_run_that_is_not_counted() {
        let mut order = Vec::new();
        let results = alternate(&[Column::Bare, Column::Hound], 2, |column| {
            order.push(column);
            Ok(order.len())
        });
        assert_eq!(order, [Column::Bare, Column::Bare, Column::Hound, Column::Hound, Column::Bare]);
        assert_eq!(results.unwrap(), [[2, 5], [3, 4]]);
    }
}
