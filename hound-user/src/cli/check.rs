//! `hound check`: walks a whole capture and says what is damaged.

use super::info::NOT_DONE;
use crate::capture::model::{Alloc, Free, Stamped, StreamId};
use crate::capture::{Anomaly, Capture, Visitor};
use anyhow::Context;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound check app.hound                         is the file as it was written?
  hound check app.hound && cp app.hound /backup";

/// Check that a capture is whole: read all of it, and say what is damaged or missing.
///
/// Exit status 0: it is whole; 2: something is damaged or missing, or the file is no capture.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    pub file: PathBuf,
}

/// Counts what could be read.
#[derive(Default)]
struct Count(u64);

impl Visitor for Count {
    fn alloc(&mut self, _: u64, _: StreamId, _: &Alloc) {
        self.0 += 1;
    }

    fn free(&mut self, _: u64, _: StreamId, _: &Free) {
        self.0 += 1;
    }

    fn other(&mut self, _: &Stamped) {
        self.0 += 1;
    }
}

/// Exit status 0: nothing is wrong; 2: something is (it is printed), or the file is no capture.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut capture = Capture::open(&args.file)?;
    let mut count = Count::default();
    let anomalies = capture.visit(&mut count);
    let symbols_damaged = capture.has_symbols() && capture.symbols().is_none();
    let reach_damaged = capture.has_reach() && capture.reach().is_none();
    let mut text = String::new();
    for anomaly in &anomalies.0 {
        text += &format!("{}: {anomaly}\n", args.file.display());
    }
    if symbols_damaged {
        text +=
            &format!("{}: the symbols are damaged; `hound report` names functions from the files on this machine\n", args.file.display());
    }
    if reach_damaged {
        text += &format!("{}: what the program reached at its end is damaged; `hound leaks` does without\n", args.file.display());
    }
    let good = text.is_empty();
    // A file in which the disk was full is whole: it says itself what is not in it.
    let only_lost = !symbols_damaged && !reach_damaged && anomalies.0.iter().all(|anomaly| matches!(anomaly, Anomaly::LostOnDisk { .. }));
    text += &match (good, only_lost) {
        (true, _) => format!("{}: good, {} events\n", args.file.display(), count.0),
        (false, true) => format!("{}: not damaged, but not complete; {} events are in it\n", args.file.display(), count.0),
        (false, false) => format!("{}: damaged; {} events can be read, and every hound command reads them\n", args.file.display(), count.0),
    };
    super::dump::quiet_pipe(std::io::stdout().write_all(text.as_bytes())).context("cannot write to standard output")?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(NOT_DONE) })
}
