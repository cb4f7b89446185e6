//! `hound flame`.

use super::index::Indexed;
use super::picture;
use super::report::{Section, Which, filters, parse_duration, print, suppressions};
use crate::query::FlameShape;
use crate::report::{FlameFormat, FlameOptions, Options, flamegraph};
use crate::view::flame::DEEPEST;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound flame app.hound                           what was never released, as app-leaks.svg
  hound flame app.hound --peak -o peak.html       who held the heap when it was largest, as a page
  hound flame app.hound --allocations --inverted  who allocates most often, and called by whom
  hound flame app.hound --at 30s                  who held what after 30 s
  hound flame new.hound --compare old.hound       what has grown and what has shrunk
  hound flame app.hound -o app.folded             call paths for other tools";

/// Draw a flamegraph: a picture to zoom into and to search, in one file that needs nothing else.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    file: PathBuf,
    /// Which figure.
    #[command(flatten)]
    section: Section,
    /// What lived so long after the start; also of --compare.
    #[arg(long, group = "section", value_name = "TIME", value_parser = parse_duration, help_heading = "What to show")]
    at: Option<u64>,
    /// Where to: .svg, .html, or .folded for other tools; - for an SVG on standard output. Without it, an SVG beside the capture's name in
    /// the working directory.
    #[arg(short, long, value_name = "FILE", help_heading = "The picture")]
    output: Option<PathBuf>,
    /// Show what has changed since this capture: what has grown, what has shrunk.
    #[arg(long, value_name = "CAPTURE", help_heading = "The picture")]
    compare: Option<PathBuf>,
    /// From the functions that allocate to their callers.
    #[arg(long, help_heading = "The picture")]
    inverted: bool,
    /// With the allocator's own frames, and those below main.
    #[arg(long, help_heading = "The picture")]
    full_stacks: bool,
    /// What is less than this share of the whole is put together with its neighbours.
    #[arg(long, value_name = "PERCENT", default_value = "0.05%", value_parser = parse_share, help_heading = "The picture")]
    smallest: f64,
    /// What is more than so many levels deep is put together.
    #[arg(long, value_name = "LEVELS", default_value_t = DEEPEST, help_heading = "The picture")]
    depth: usize,
    /// Which blocks.
    #[command(flatten)]
    which: Which,
    /// Whether with an index.
    #[command(flatten)]
    indexed: Indexed,
}

/// Writes the flamegraph.
///
/// # Errors
/// If a capture or a suppression file cannot be read, or the picture cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let output =
        args.output.clone().unwrap_or_else(|| picture::beside(&args.file, if args.at.is_some() { "at" } else { name(&args.section) }));
    let format = match output.extension().and_then(|extension| extension.to_str()) {
        _ if picture::is_standard_output(&output) => FlameFormat::Svg,
        Some("svg") => FlameFormat::Svg,
        Some("html" | "htm") => FlameFormat::Html,
        Some("folded" | "collapsed") => FlameFormat::Collapsed,
        _ => anyhow::bail!("{}: what to write is known by its end: .svg, .html or .folded", output.display()),
    };
    picture::must_not_be(&output, std::iter::once(&args.file).chain(&args.compare))?;
    let mut query = filters(&args.which)?;
    query.measure = args.section.measure();
    let options = Options {
        query,
        faults: args.section.faults,
        // What runtimes keep by design is no leak; it is memory all the same.
        suppressions: suppressions(&args.which, args.at.is_some())?,
        until_ns: args.at,
        index: args.indexed.indexing(),
        progress: true,
        ..Options::default()
    };
    let shape = FlameShape { inverted: args.inverted, full_stacks: args.full_stacks };
    let how = FlameOptions { shape, format, smallest: args.smallest, deepest: args.depth };
    let drawn = flamegraph(&args.file, args.compare.as_deref(), &options, &how)?;
    if picture::is_standard_output(&output) {
        return print(&drawn);
    }
    picture::write(&output, &drawn, "flamegraph")
}

fn name(section: &Section) -> &'static str {
    match section {
        Section { peak: true, .. } => "peak",
        Section { allocations: true, .. } => "allocations",
        Section { allocated: true, .. } => "allocated",
        Section { temporary: true, .. } => "temporary",
        Section { faults: true, .. } => "faults",
        _ => "leaks",
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').trim().parse().map_err(|_| "give a share in per cent, for example 0.1%")?;
    if (0.0..=100.0).contains(&number) { Ok(number / 100.0) } else { Err("give a share from 0 to 100 per cent".to_owned()) }
}
