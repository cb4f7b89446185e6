//! `hound strip`.

use super::report::{parse_duration, print};
use crate::capture::Capture;
use crate::report::Progress;
use crate::strip::{Kept, strip};
use crate::view;
use anyhow::Context;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound strip --threshold 60s -o small.hound app.hound    leave out what lived shorter than a minute
  hound strip --threshold 10ms -o app2.hound app.hound    only what is freed at once";

/// Write a smaller capture, without the blocks that lived a short time.
///
/// Blocks that lived shorter than the threshold are left out with their releases; a block that was reallocated counts as one. How many there were
/// stands at the head of every report; all other figures are then of what was kept. Memory depends on what lived at once, not on the capture's
/// length. Of sampled parts nothing is left out.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    file: PathBuf,
    /// Leave out what lived shorter than this (ns, us, ms, s, min, h).
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    threshold: u64,
    /// Where to; must not be there yet.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Writes the capture.
///
/// # Errors
/// If the capture cannot be read, or the new one cannot be written; then there is none.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut capture = Capture::open(&args.file)?;
    let output = &args.output;
    let file = File::options().read(true).write(true).create_new(true).open(output);
    let file = file.with_context(|| format!("cannot make {}: give -o a file that is not there, in a folder of yours", output.display()))?;
    let (events, progress) = (capture.counts().heap, Progress::new(true));
    let stripped = strip(&mut capture, file, args.threshold, &|done| progress.at("stripping", done, events * 2));
    progress.done();
    let Kept { blocks, bytes, events: kept, file_bytes } = stripped.map_err(|error| {
        let _ = fs::remove_file(output);
        anyhow::Error::from(error).context(format!("cannot write {}", output.display()))
    })?;
    let before = view::bytes(capture.file_bytes());
    let (blocks, bytes, kept, after) = (view::count(blocks), view::bytes(bytes), view::count(kept), view::bytes(file_bytes));
    print(&format!(
        "{}: left out {blocks} blocks ({bytes}), kept {kept} of {} allocations and releases; {before} became {after}\n",
        output.display(),
        view::count(events)
    ))
}
