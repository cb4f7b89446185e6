//! Options of long captures, wherever they are offered.

use std::time::Duration;

use anyhow::{Context, bail};

use super::attach::some_time;
use super::report::parse_size;
use super::{setting, switch};
use crate::capture::Cull;
use crate::session::{Rotate, When};

/// What is left out while it is recorded.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Culling {
    /// Leave out what lives shorter than this (ms, s, min, h): for captures of days. A block that was reallocated counts as one. How much it was, how
    /// large and how long it lived stays known. What is recorded reaches the file that much later.
    #[arg(long, value_name = "TIME", value_parser = some_time, help_heading = "Long captures")]
    pub cull: Option<u64>,
    /// Record until the capture has so many bytes, give or take what is under way. The program runs on.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Long captures")]
    pub max_capture: Option<u64>,
    /// Go on in a new file when the capture has this size (as 500M) or this age (as 6h): the one before gets a number (app.1.hound, app.2.hound, …). Each
    /// begins with what lives then, so that it is a capture for itself.
    #[arg(
        long,
        value_name = "SIZE|TIME",
        value_parser = size_or_age,
        conflicts_with_all = ["max_capture", "server"],
        help_heading = "Long captures"
    )]
    pub rotate: Option<When>,
    /// How many of the numbered files of --rotate are kept: the latest. All, if it is not given.
    #[arg(long, value_name = "N", requires = "rotate", help_heading = "Long captures")]
    pub keep: Option<usize>,
}

fn size_or_age(text: &str) -> Result<When, String> {
    let is_time = ["s", "min", "h"].iter().any(|unit| text.trim_end().ends_with(unit));
    match is_time {
        true => some_time(text).map(|ns| When::Age(Duration::from_nanos(ns))),
        false => parse_size(text).map(When::Bytes).map_err(|why| format!("{why}, or a time such as 6h")),
    }
}

impl Culling {
    /// As it was asked for here or, of a program that hound starts, by the documented variables.
    pub fn of_program(&self) -> anyhow::Result<Option<Cull>> {
        if self.cull.is_some() { Ok(self.asked()) } else { of_environment() }
    }

    /// Whether the capture goes on in several files.
    pub fn rotate(&self) -> Option<Rotate> {
        self.rotate.map(|when| Rotate { when, keep: self.keep })
    }

    /// As it was asked for here.
    pub fn asked(&self) -> Option<Cull> {
        self.cull.map(Cull::shorter_than)
    }
}

/// `CULL_TEMPORARY_ALLOCATIONS` and what goes with it.
///
/// # Errors
/// If a number is none.
pub(super) fn of_environment() -> anyhow::Result<Option<Cull>> {
    const MILLISECONDS: &str = "TEMPORARY_ALLOCATION_LIFETIME_THRESHOLD";
    const DEFAULT_MS: u64 = 10_000;
    if switch("CULL_TEMPORARY_ALLOCATIONS") != Some(true) {
        return Ok(None);
    }
    let number = |name: &str| {
        let Some(text) = setting(name) else { return Ok(None) };
        let text = text.to_string_lossy();
        text.trim().parse::<u64>().map(Some).with_context(|| format!("HOUND_{name} is '{text}': give a whole number"))
    };
    let cull = Cull::shorter_than(number(MILLISECONDS)?.unwrap_or(DEFAULT_MS).saturating_mul(1_000_000));
    Ok(Some(match number("TEMPORARY_ALLOCATION_PENDING_THRESHOLD")? {
        Some(0) => bail!("HOUND_TEMPORARY_ALLOCATION_PENDING_THRESHOLD is 0: nothing could be left out"),
        Some(most) => Cull { most_pending: usize::try_from(most).unwrap_or(usize::MAX), ..cull },
        None => cull,
    }))
}
