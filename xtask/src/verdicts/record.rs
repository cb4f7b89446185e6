//! One subject: begun, recorded, ended, and judged.

use super::files;
use super::ground::{Ground, Site};
use super::judge::Said;
use super::subject::{Begun, Kind, Mode, Running, Subject};
use crate::{exec, json, place};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

/// How long hound may take longer than it records, and to judge.
const PATIENCE: Duration = Duration::from_secs(180);
/// A program that ends when its work is done may take so long.
const WORK: Duration = Duration::from_secs(300);
/// Fewer allocations prove nothing. A service that keeps all it ever had for the next client makes no more than some dozen.
const FEW: u64 = 20;
/// Fewer requests a second are no load.
const IDLE: f64 = 20.0;

/// What became of a subject.
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// What is known of it.
    pub kind: Kind,
    /// How it was recorded.
    pub mode: Mode,
    /// What it does.
    pub what: &'static str,
    /// Places that leak, in truth.
    pub leaks: usize,
    /// For how long.
    pub minutes: f64,
    /// Requests that were answered, where they are counted.
    pub requests: Option<u64>,
    /// Allocations that the capture has, or samples of them.
    pub allocations: u64,
    /// How many places have each verdict.
    pub verdicts: Vec<(String, usize)>,
    /// What is wrong; nothing if all is right.
    pub wrong: Vec<String>,
}

impl Outcome {
    /// For the progress.
    pub fn in_short(&self) -> String {
        match self.wrong.first() {
            None => format!("{}: right", self.name),
            Some(wrong) => format!("{}: WRONG: {wrong}", self.name),
        }
    }

    /// How many places have this verdict.
    pub fn number(&self, verdict: &str) -> usize {
        self.verdicts.iter().find(|(word, _)| word == verdict).map_or(0, |(_, number)| *number)
    }
}

/// Records and judges. What cannot be done is wrong, too, with the reason.
pub fn outcome(subject: &Subject, site: &Site, time: Duration, keep: bool) -> Outcome {
    let mut outcome = Outcome {
        name: subject.name,
        kind: subject.kind,
        mode: subject.mode,
        what: subject.what,
        leaks: subject.leaks.len(),
        minutes: time.as_secs_f64() / 60.0,
        requests: None,
        allocations: 0,
        verdicts: Vec::new(),
        wrong: Vec::new(),
    };
    if let Err(error) = fill(&mut outcome, subject, site, time, keep) {
        outcome.wrong.push(format!("cannot be judged: {error:#}"));
    }
    outcome
}

fn fill(outcome: &mut Outcome, subject: &Subject, site: &Site, time: Duration, keep: bool) -> Result<()> {
    let files = files(subject.name)?;
    let ground = site.ground(subject.name, &files, time)?;
    let capture = files.join("capture.hound");
    let begun = Instant::now();
    match (subject.begin)(&ground)? {
        Begun::Command(command) => {
            let started = Instant::now();
            launched(&ground, subject, &command, &capture)?;
            outcome.minutes = started.elapsed().as_secs_f64() / 60.0;
        }
        Begun::Running(mut running) => {
            let recorded = attached(&ground, subject, &mut running, &capture);
            outcome.requests = running.counted.as_deref().and_then(counted);
            recorded.with_context(|| format!("after {:.0} s", begun.elapsed().as_secs_f64()))?;
        }
    }
    let said = judged(&ground, &capture)?;
    outcome.allocations = match said.samples {
        Some(samples) => samples,
        None => recorded(&ground, &capture)?,
    };
    outcome.verdicts = said.verdicts().into_iter().map(|(word, number)| (word.to_owned(), number)).collect();
    outcome.wrong = said.wrong(subject.leaks);
    if outcome.allocations < FEW {
        outcome.wrong.push(format!("only {} allocations were recorded", outcome.allocations));
    }
    if let Some(requests) = outcome.requests
        && (requests as f64) < IDLE * time.as_secs_f64()
    {
        outcome.wrong.push(format!("only {requests} requests were answered"));
    }
    if outcome.wrong.is_empty() && !keep {
        fs::remove_file(&capture).with_context(|| format!("cannot remove {}", capture.display()))?;
    }
    Ok(())
}

/// `hound run` of a program that ends by itself.
fn launched(ground: &Ground, subject: &Subject, program: &Command, capture: &Path) -> Result<()> {
    let mut hound = Command::new(place::hound());
    hound.arg("run").args(subject.mode.arguments()).arg("-o").arg(capture).arg("--").arg(program.get_program()).args(program.get_args());
    program.get_envs().for_each(|(name, value)| {
        hound.env(name, value.unwrap_or_default());
    });
    let mut hound = ground.start("hound", &hound)?;
    let ended = exec::ended(&mut hound.0, "hound run", ground.time + WORK + PATIENCE)?;
    ensure!(ended.success(), "hound run ended with {ended}: {}", ground.said("hound"));
    Ok(())
}

/// `hound attach` to what runs, for its time.
fn attached(ground: &Ground, subject: &Subject, running: &mut Running, capture: &Path) -> Result<()> {
    let mut hound = Command::new(place::hound());
    hound.args(["attach", "--quiet", "-p", &running.pid.to_string(), "--duration", &format!("{}s", ground.time.as_secs()), "-o"]);
    hound.arg(capture).args(subject.mode.arguments());
    let begun = Instant::now();
    let mut hound = ground.start("hound", &hound)?;
    let attached = || fs::read_to_string(ground.files.join("hound.err")).is_ok_and(|said| said.contains("attached to"));
    while !attached() {
        still_runs(ground, "hound", &mut hound.0)?;
        ensure!(begun.elapsed() < PATIENCE, "hound does not attach: {}", ground.said("hound"));
        thread::sleep(Duration::from_millis(5));
    }
    if let Some(load) = running.then.take() {
        running.load = Some(ground.start("load", &load)?);
    }
    let ended = exec::ended(&mut hound.0, "hound attach", ground.time + PATIENCE)?;
    ensure!(ended.success(), "hound attach ended with {ended}: {}", ground.said("hound"));
    let recorded = begun.elapsed();
    ensure!(recorded >= ground.time.mul_f64(0.95), "hound ended after {:.0} s: {}", recorded.as_secs_f64(), ground.said("hound"));
    still_runs(ground, "server", &mut running.server.0)?;
    running.load.as_mut().map_or(Ok(()), |load| still_runs(ground, "load", &mut load.0))
}

fn still_runs(ground: &Ground, name: &str, child: &mut Child) -> Result<()> {
    if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for the {name}"))? {
        bail!("the {name} ended ({status}): {}", ground.said(name));
    }
    Ok(())
}

fn counted(at: &Path) -> Option<u64> {
    fs::read_to_string(at).ok()?.trim().parse().ok()
}

fn judged(ground: &Ground, capture: &Path) -> Result<Said> {
    Said::read(&said(ground, "leaks", &["--all", "--full-stacks"], capture)?)
}

/// How many allocations a capture has in which all were recorded.
fn recorded(ground: &Ground, capture: &Path) -> Result<u64> {
    json::number(&json::parse(&said(ground, "report", &["--limit", "1"], capture)?)?, &["totals", "allocations"])
}

/// What a command of hound's says of a capture, as JSON; it is kept.
fn said(ground: &Ground, command: &str, arguments: &[&str], capture: &Path) -> Result<String> {
    let mut hound = Command::new(place::hound());
    hound.arg(command).args(arguments).args(["--format", "json"]).arg(capture);
    let mut hound = ground.start(command, &hound)?;
    let ended = exec::ended(&mut hound.0, &format!("hound {command}"), PATIENCE)?;
    ensure!(ended.success(), "hound {command} ended with {ended}: {}", ground.said(command));
    let at = ground.files.join(format!("{command}.out"));
    fs::read_to_string(&at).with_context(|| format!("cannot read {}", at.display()))
}
