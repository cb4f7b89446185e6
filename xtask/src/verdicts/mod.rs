//! `cargo xtask verdicts`: whether `hound leaks` is right about real services under load, about programs that are healthy, and about programs
//! whose leaks are known.
//!
//! What decides are the thresholds of `hound-user/src/query/verdict.rs`, which are older than the choice of these programs and are not fitted
//! to them: a wrong verdict is a fault of a rule, and stands in the table of `docs/verdicts.md` until the rule is a better one.
//!
//! Several run at once. Whatever is started ends with this program, however it ends, and files of the services lie in a directory of the
//! system's that a process of its own removes then.

mod ground;
mod judge;
mod page;
mod programs;
mod record;
mod services;
mod subject;
mod unseen;

use crate::setup::{self, Purpose};
use crate::{Verdict, compile, place};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ground::Site;
use record::Outcome;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use subject::{Kind, Subject};

/// The minutes that the page is about: what was recorded for less is not written to it.
const MINUTES: f64 = 5.0;
/// Programs that do the same over and over show what they do in a minute.
const PROGRAM_MINUTES: f64 = 1.0;

/// So many wrong verdicts on one program are printed.
const SHOWN: usize = 10;

/// Options of `cargo xtask verdicts`.
#[derive(Args)]
pub struct Options {
    /// For how long each service is recorded. Programs: as long, but a minute at most. Less than 5 is not written to docs/verdicts.md
    #[arg(long, default_value_t = MINUTES)]
    minutes: f64,
    /// These alone, by name
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The services alone
    #[arg(long)]
    services: bool,
    /// The programs alone
    #[arg(long)]
    programs: bool,
    /// Those alone that were chosen after the rules were made
    #[arg(long)]
    unseen: bool,
    /// So many at once
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Keep all captures, below target/xtask/verdicts: else those alone whose verdict is wrong
    #[arg(long)]
    keep: bool,
}

impl Options {
    /// How long one of this kind is recorded.
    fn time(&self, kind: Kind) -> Duration {
        Duration::from_secs_f64(60.0 * if kind == Kind::Service { self.minutes } else { self.minutes.min(PROGRAM_MINUTES) })
    }
}

/// `cargo xtask verdicts`.
pub fn task(options: &Options) -> Result<Verdict> {
    let subjects = chosen(options)?;
    ensure!(options.minutes > 0.0 && options.minutes < 24.0 * 60.0, "--minutes: more than none, and less than a day");
    setup::ensure(&[Purpose::Verdicts])?;
    if !rustix::process::geteuid().is_root() {
        bail!("verdicts attaches to services of its own, whose users are others: run it as root");
    }
    compile::build()?;
    programs::compile()?;
    unseen::compile()?;
    let site = Site::new()?;
    let outcomes = all(subjects, &site, options);
    site.leave()?;
    println!("\n{}", page::table(&outcomes));
    for outcome in &outcomes {
        outcome.wrong.iter().take(SHOWN).for_each(|wrong| println!("verdicts: WRONG: {}: {wrong}", outcome.name));
        if outcome.wrong.len() > SHOWN {
            println!("verdicts: WRONG: {}: {} more", outcome.name, outcome.wrong.len() - SHOWN);
        }
    }
    if options.minutes >= MINUTES {
        page::write(&outcomes)?;
    }
    let wrong = outcomes.iter().filter(|outcome| !outcome.wrong.is_empty()).count();
    println!("verdicts: {} of {} right", outcomes.len() - wrong, outcomes.len());
    Ok(if wrong == 0 { Verdict::Good } else { Verdict::Bad })
}

fn chosen(options: &Options) -> Result<VecDeque<&'static Subject>> {
    if let Some(unknown) = options.only.iter().find(|name| known().all(|subject| subject.name != name.as_str())) {
        bail!("there is no {unknown}; there are: {}", known().map(|subject| subject.name).collect::<Vec<_>>().join(", "));
    }
    let is_of = |kind: Kind| options.services == options.programs || options.services == (kind == Kind::Service);
    let wanted = |subject: &Subject| options.only.is_empty() || options.only.iter().any(|name| name == subject.name);
    let is_of_age = |subject: &Subject| !options.unseen || is_unseen(subject.name);
    Ok(known().filter(|subject| is_of(subject.kind) && is_of_age(subject) && wanted(subject)).collect())
}

/// All there are, in the order of the page.
fn known() -> impl DoubleEndedIterator<Item = &'static Subject> {
    services::ALL.iter().chain(programs::ALL).chain(unseen::all())
}

/// Whether it was chosen after the rules were made.
fn is_unseen(name: &str) -> bool {
    unseen::all().any(|subject| subject.name == name)
}

/// Records and judges them, some at a time, and says so. The outcomes are in the order of the table.
fn all(subjects: VecDeque<&'static Subject>, site: &Site, options: &Options) -> Vec<Outcome> {
    let (begun, number) = (Instant::now(), subjects.len());
    let (left, done) = (Mutex::new(subjects), Mutex::new(Vec::new()));
    // What a thread starts is told to end when the thread ends: each lives as long as all that it started.
    let work = || {
        loop {
            let Some(subject) = lock(&left).pop_front() else { return };
            eprintln!("verdicts: {:3.0} s: {} begins", begun.elapsed().as_secs_f64(), subject.name);
            let outcome = record::outcome(subject, site, options.time(subject.kind), options.keep);
            let mut done = lock(&done);
            let so_far = done.len() + 1;
            eprintln!("verdicts: {:3.0} s: {so_far} of {number}: {}", begun.elapsed().as_secs_f64(), outcome.in_short());
            done.push(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|outcome| known().position(|subject| subject.name == outcome.name));
    done
}

/// A thread that panicked has left the list as it was.
fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where captures and what was said are kept.
fn files(name: &str) -> Result<std::path::PathBuf> {
    place::scratch(&format!("verdicts/{name}")).context("cannot make room for a capture")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_twenty_healthy_ones_at_least_ten_of_them_services_and_names_are_theirs_alone() {
        let of = |kind: Kind| known().filter(move |subject| subject.kind == kind);
        assert!(of(Kind::Service).count() >= 10 && of(Kind::Healthy).count() >= 10);
        assert!(of(Kind::Leaking).all(|subject| !subject.leaks.is_empty()) && of(Kind::Leaking).count() >= 7);
        assert!(of(Kind::Service).chain(of(Kind::Healthy)).all(|subject| subject.leaks.is_empty()));
        let mut names: Vec<&str> = known().map(|subject| subject.name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
