//! `hound leaks`.

use super::report::{By, OutputFormat, Which, filters, print, suppressions};
use crate::report::{DEFAULT_LIMIT, Format, Options, leaks};
use crate::view::Style;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound attach -p 4242 --duration 10min -o app.hound
  hound leaks app.hound                     what grows and is never released, most certain loss first
  hound leaks app.hound --by function       the same by function, whoever calls it
  hound leaks app.hound --exit-code         fails if anything leaks: for a test under load
  hound leaks app.hound --format json | jq '.leaks[0].bytes_an_hour_ci95'";

/// Leaks were found, and --exit-code was given.
const LEAKS: u8 = 1;

/// Say what leaks, how fast, and why that is thought; and what else there is, and why that is none.
///
/// A place leaks if what it allocated long ago becomes more and more, if blocks from all over the time survive, and if that does not slow
/// down. Caches that are full, start-up and what is in use are told apart from that. It takes some minutes of recording to be sure.
///
/// Exit status: 0; with --exit-code 1 if something leaks; 2 if hound could not do its job.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    file: PathBuf,
    /// What is judged.
    #[arg(long, value_enum, default_value = "site", help_heading = "What to show")]
    by: By,
    /// Most leaks.
    #[arg(long, value_name = "N", help_heading = "What to show")]
    limit: Option<usize>,
    /// No limit, also of what is none.
    #[arg(long, help_heading = "What to show")]
    all: bool,
    /// Whole names, paths and stacks, with the allocator's own frames.
    #[arg(long, help_heading = "What to show")]
    full_stacks: bool,
    /// For people or for programs.
    #[arg(long, value_enum, default_value = "text", help_heading = "What to show")]
    format: OutputFormat,
    /// End with status 1 if something leaks.
    #[arg(long)]
    exit_code: bool,
    /// Which blocks.
    #[command(flatten)]
    which: Which,
}

/// Prints the verdicts.
///
/// # Errors
/// If the capture, or a suppression file, cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let judged = !matches!(args.by, By::Tree | By::Mode);
    anyhow::ensure!(judged, "only places can be judged: give --by site, function, module, thread, size or process");
    let mut query = filters(&args.which)?;
    query.group = args.by.group();
    query.limit = if args.all { None } else { args.limit.or(Some(DEFAULT_LIMIT)) };
    let colour = args.format == OutputFormat::Text && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let options = Options {
        query,
        suppressions: suppressions(&args.which, args.all)?,
        format: if args.format == OutputFormat::Json { Format::Json } else { Format::Text },
        style: if colour { Style::Colour } else { Style::Plain },
        full_stacks: args.full_stacks,
        progress: true,
        ..Options::default()
    };
    let (text, number) = leaks(&args.file, &options)?;
    let printed = print(&text)?;
    Ok(if args.exit_code && number > 0 { ExitCode::from(LEAKS) } else { printed })
}
