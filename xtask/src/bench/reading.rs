//! How long `hound report` takes over a large capture, and how much memory.

use super::bounds::Bound;
use super::column::{Column, Info, Target};
use super::figures::{median, mib, shown, table};
use super::{Plan, Section};
use crate::watch::watch;
use crate::{exec, place, programs};
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;

/// Pairs of events in the capture.
const PAIRS: u64 = 10_000_000;

/// Records a capture once, and reads it `runs` times.
pub fn measure(plan: &Plan) -> Result<Section> {
    let target = Target::new(programs::compiled("events.cpp", "events", &[])?, &[&plan.size(PAIRS).to_string()]);
    let capture = plan.scratch.join("events.hound");
    exec::output(&mut target.command(Column::Hound, &capture))?;
    let info = Info::of(&capture)?;
    let (mut seconds, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let mut report = Command::new(place::hound());
        let seen = watch(report.arg("report").arg(&capture), &place::hound(), &plan.scratch)?;
        seconds.push(seen.to_target_end.as_secs_f64());
        peaks.push(seen.peak_bytes as f64);
    }
    fs::remove_file(&capture).with_context(|| format!("cannot remove {}", capture.display()))?;
    let (seconds, peak) = (median(seconds), mib(median(peaks)));
    let millions = info.events as f64 / 1e6;
    Ok(Section {
        name: "reading",
        title: "Reading a capture of 20 million events",
        bounds: vec![
            Bound::new("`hound report` of 20 million events (s)", seconds * 20.0 / millions, 8.0, 2.0),
            Bound::new("peak memory of it (MiB)", peak, 954.0, 286.0),
        ],
        detail: table(
            &["", "million events", "capture (MiB)", "time (s)", "million events a second", "peak memory (MiB)"],
            &[std::iter::once("`hound report`".to_owned())
                .chain([millions, mib(info.file_bytes as f64), seconds, millions / seconds, peak].map(shown))
                .collect()],
        ),
    })
}
