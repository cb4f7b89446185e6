//! How long it takes until a leak of one megabyte a second is what a report names first.

use super::super::Plan;
use super::super::bounds::Bound;
use super::super::figures::{median, spread, table};
use super::super::visit::{Pacing, Visit};
use super::Part;
use crate::{exec, place, programs};
use anyhow::Result;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// The function that loses its blocks.
const CULPRIT: &str = "leak_here";
/// So many looks in a row must name it first: one may do so by luck.
const LOOKS: usize = 3;
/// When to give up.
const LIMIT: Duration = Duration::from_secs(120);

/// A pace of `leaking`, and how it is looked at.
struct Case {
    name: &'static str,
    rate: &'static str,
    held: &'static str,
    options: &'static [&'static str],
    /// `None`: it is shown, and has no bound.
    aim: Option<f64>,
}

const CASES: [Case; 3] = [
    Case { name: "100,000 allocations a second, kernel, default budget", rate: "100000", held: "1024", options: &[], aim: Some(20.0) },
    Case {
        name: "2,000,000 allocations a second, --engine library",
        rate: "2000000",
        held: "64",
        options: &["--engine", "library"],
        aim: Some(15.0),
    },
    Case {
        name: "2,000,000 allocations a second, page faults (--mode faults)",
        rate: "2000000",
        held: "64",
        options: &["--mode", "faults"],
        // Blocks that are lost fill holes, and others touch new pages for want of them: the growth is told, but not whose blocks stay.
        aim: None,
    },
];

/// Measures every case.
pub fn measure(plan: &Plan) -> Result<Part> {
    let program = programs::compiled("leaking.c", "leaking", &["-fno-omit-frame-pointer"])?;
    let mut bounds = Vec::new();
    let mut rows = Vec::new();
    for case in &CASES {
        let mut seconds = Vec::new();
        for _ in 0..plan.runs {
            let target = Pacing::start(Command::new(&program), &[case.rate, case.held, "1000000"], &plan.scratch)?;
            seconds.push(until_ranked_first(plan, &target, case.options)?);
        }
        // No run may fail to find it.
        let worst = seconds.iter().copied().fold(0.0, |a: f64, b| if b.is_nan() { b } else { a.max(b) });
        let shown = if worst.is_nan() { f64::NAN } else { median(seconds.clone()) };
        if let Some(aim) = case.aim {
            bounds.push(Bound::new(format!("until a leak of 1 MB/s is ranked first: {} (s)", case.name), shown, 60.0, aim));
        }
        rows.push(vec![case.name.to_owned(), spread(&seconds)]);
    }
    Ok(Part {
        title: "Until a leak of one megabyte a second is ranked first, and stays there for three looks a second apart (seconds since `hound attach` was typed)",
        bounds,
        table: table(&["target", "ranked first after (s)"], &rows),
    })
}

/// Seconds; NaN if it never was.
fn until_ranked_first(plan: &Plan, target: &Pacing, options: &[&str]) -> Result<f64> {
    let by_faults = options.contains(&"faults");
    let mut arguments = options.to_vec();
    if !by_faults {
        arguments.extend(["--every", "1s", "--top", "1"]);
    }
    let visit = Visit::begin(target.pid(), &arguments, &plan.scratch)?;
    let mut seen: Vec<f64> = Vec::new();
    let mut known = 0;
    let mut found = f64::NAN;
    while visit.since() < limit(plan, by_faults) && found.is_nan() {
        thread::sleep(Duration::from_millis(if by_faults { 1000 } else { 100 }));
        let looks = if by_faults { vec![faults(target)?] } else { new_looks(&visit.told(), &mut known) };
        for look in looks {
            if is_first(&look) { seen.push(visit.since().as_secs_f64()) } else { seen.clear() }
        }
        if seen.len() >= LOOKS {
            found = seen[0];
        }
    }
    visit.end()?;
    Ok(found)
}

/// What `--every` has shown beyond the `known` first looks. A look is complete when the next one begins.
fn new_looks(told: &str, known: &mut usize) -> Vec<String> {
    let shown: Vec<&str> = told.split("\n[").collect();
    let complete = shown.len().saturating_sub(1);
    let looks = shown.get(*known..complete).unwrap_or_default().iter().map(|look| (*look).to_owned()).collect();
    *known = complete.max(*known);
    looks
}

/// Who has touched most so far.
fn faults(target: &Pacing) -> Result<String> {
    let pid = target.pid().to_string();
    exec::output(Command::new(place::hound()).args(["snapshot", "-p", &pid, "--faults", "--limit", "1"]))
}

/// When to give up.
fn limit(plan: &Plan, by_faults: bool) -> Duration {
    if by_faults && plan.shrink > 1 { LIMIT / 10 } else { LIMIT }
}

/// Whether the first site of a report, its first lines' stack, is the culprit's.
fn is_first(look: &str) -> bool {
    look.lines().any(|line| line.contains(CULPRIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_counts_once_and_when_the_next_one_has_begun() {
        let mut known = 0;
        assert_eq!(new_looks("[1]\na\n[2]\nb\n", &mut known), ["[1]\na"]);
        assert_eq!(new_looks("[1]\na\n[2]\nb\n[3]\n", &mut known), ["2]\nb"]);
        assert!(new_looks("[1]\na\n[2]\nb\n[3]\n", &mut known).is_empty());
    }

    #[test]
    fn the_only_site_of_a_look_is_the_first() {
        assert!(is_first("[05:49:50 UTC, process 7]\n≈ 4.49 MB  15 %  ≈ 1.00 kB each  leak_here  …/leaking.c:56\n        main\n"));
        assert!(!is_first("[05:49:50 UTC, process 7]\n≈ 8.51 MB  28 %  ≈ 1.09 kB each  place_10  …/leaking.c:44\n        main\n"));
    }
}
