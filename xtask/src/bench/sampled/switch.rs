//! Going from mode to mode, by the target's own clock; and samples at their fastest.

use super::super::Plan;
use super::super::bounds::Bound;
use super::super::column::Info;
use super::super::figures::{spread, table};
use super::super::visit::{Pacing, Visit};
use super::{Part, spell};
use crate::programs;
use anyhow::Result;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// Where a session samples between the full parts.
const ENGINES: [(&str, &[&str]); 2] = [("from the kernel", &[]), ("in the library", &["--engine", "library"])];

/// The longest wait the target sees while the mode changes to full and back.
pub fn stall(plan: &Plan) -> Result<Part> {
    let program = programs::compiled("steady.c", "steady", &[])?;
    let target = Pacing::start(Command::new(program), &["malloc", "470", "0"], &plan.scratch)?;
    let mut bounds = Vec::new();
    let mut rows = Vec::new();
    for (name, options) in ENGINES {
        let [mut alone, mut there, mut back] = <[Vec<f64>; 3]>::default();
        for _ in 0..plan.runs {
            let rest = || {
                thread::sleep(Duration::from_millis(500));
                Ok(())
            };
            alone.push(longest_ms(&target, rest)?);
            let visit = Visit::begin(target.pid(), options, &plan.scratch)?;
            there.push(longest_ms(&target, || visit.mode("full"))?);
            back.push(longest_ms(&target, || visit.mode("sampled"))?);
            visit.end()?;
        }
        let worst = there.iter().chain(&back).copied().fold(0.0, f64::max);
        bounds.push(Bound::new(
            format!("longest stall of {} switches sampled ({name}) → full → sampled (ms)", plan.runs),
            worst,
            50.0,
            10.0,
        ));
        rows.push(vec![format!("sampled {name}"), spread(&alone), spread(&there), spread(&back)]);
    }
    let headings = ["longest wait seen by a target of one thread (ms)", "half a second alone", "sampled → full", "full → sampled"];
    Ok(Part {
        title: "Going from mode to mode, the first switch with the library yet to be brought in",
        bounds,
        table: table(&headings, &rows),
    })
}

fn longest_ms(target: &Pacing, doing: impl FnOnce() -> Result<()>) -> Result<f64> {
    target.forget_extra()?;
    doing()?;
    thread::sleep(Duration::from_millis(2)); // what was under way is noted
    Ok(target.extra()? as f64 / 1e6)
}

/// Calls a second: each is a sample with 16 KiB of stack, and so is its free.
const WORK_NS: &str = "95000";
/// Calls deep, so that there is more stack than is copied.
const DEPTH: &str = "60";

/// Ten thousand samples a second, each with 16 KiB of stack: none may be lost.
pub fn flood(plan: &Plan) -> Result<Part> {
    let program = programs::compiled("steady.c", "steady", &[])?;
    let target = Pacing::start(Command::new(program), &["malloc", WORK_NS, DEPTH], &plan.scratch)?;
    let options = ["--budget", "unlimited", "--interval", "0", "--stack", "16Ki"];
    let [mut lost, mut rates, mut cpu] = <[Vec<f64>; 3]>::default();
    for _ in 0..plan.runs {
        let visit = Visit::begin(target.pid(), &options, &plan.scratch)?;
        let (began, cpu_before, capture) = (Instant::now(), visit.cpu_s()?, visit.capture.clone());
        thread::sleep(spell(plan, 10_000));
        let seconds = began.elapsed().as_secs_f64();
        cpu.push((visit.cpu_s()? - cpu_before) / seconds * 100.0);
        visit.end()?;
        let info = Info::of(&capture)?;
        lost.push(info.lost as f64);
        rates.push(info.events as f64 / seconds);
    }
    let worst = lost.iter().copied().fold(0.0, f64::max);
    let headings = ["target", "events a second, each with a stack of 16 KiB", "lost", "hound's own processor time (% of a core)"];
    let row = vec!["steady, 10,000 pairs a second, 60 calls deep".to_owned(), spread(&rates), spread(&lost), spread(&cpu)];
    Ok(Part {
        title: "Samples at their fastest: every call, unlimited budget",
        bounds: vec![Bound::new("samples lost at 10,000 calls a second, a sample of 16 KiB each (the worst round)", worst, 0.0, 0.0)],
        table: table(&headings, &[row]),
    })
}
