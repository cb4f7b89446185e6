//! `hound graph`.

use super::index::Indexed;
use super::picture;
use super::report::{By, Which, filters, parse_duration, print};
use crate::report::{GraphOf, GraphOptions, Options, graph};
use crate::view::chart::{Rgb, Scheme};
use clap::ValueEnum;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound graph app.hound                                   what lived when, by call path, and the process' memory
  hound graph app.hound --by module --top 5 -o app.svg
  hound graph app.hound --only leaked                     only of what was never released
  hound graph app.hound --rates --by function             allocations a second
  hound graph app.hound --sizes --only leaked             how large the blocks are that were never released
  hound graph app.hound --lifetimes --by function         how long blocks live
  hound graph app.hound --fragmentation --at 30s          who holds pages for next to nothing after 30 s
  hound graph app.hound --address-space                   where the heap lies, and how full it is
  hound graph app.hound --sizes --format json             the numbers, for programs
  hound graph app.hound --start 10s --end 1min --gradient navy:orange";

/// What is of pictures over time alone.
const OVER_TIME: [&str; 3] = ["start", "end", "heap_only"];

/// What is not of one moment.
const NOT_AT: [&str; 3] = ["rates", "sizes", "lifetimes"];

/// What a graph is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GraphFormat {
    /// A picture.
    Svg,
    /// Its numbers.
    Json,
}

/// Draw memory over time, stacked by who allocated it, and what the process had in all; or how large blocks are, or how long they live.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    file: PathBuf,
    /// Where to: .svg or .json; - for standard output. Without it, an SVG beside the capture's name in the working directory.
    #[arg(short, long, value_name = "FILE", help_heading = "The picture")]
    output: Option<PathBuf>,
    /// What is stacked, or has a bar: those that held most when the heap was largest, or allocated most often.
    #[arg(long, value_enum, default_value = "site", help_heading = "The picture")]
    by: By,
    /// How many of them; the rest is added up.
    #[arg(long, value_name = "N", default_value = "8", value_parser = parse_top, help_heading = "The picture")]
    top: usize,
    /// Allocations a second, instead of what lives.
    #[arg(long, group = "what", help_heading = "The picture")]
    rates: bool,
    /// How many blocks there are of each size, and how many bytes.
    #[arg(long, group = "what", conflicts_with_all = OVER_TIME, help_heading = "The picture")]
    sizes: bool,
    /// How many blocks, and bytes, lived how long. What was never released has a bar of its own.
    #[arg(long, group = "what", conflicts_with_all = OVER_TIME, help_heading = "The picture")]
    lifetimes: bool,
    /// The pages that each call path holds alone, and how little of them it uses: they cannot be given back as long as it does. At the end,
    /// or --at a moment. Needs every block: not of samples.
    #[arg(long, group = "what", conflicts_with_all = OVER_TIME, help_heading = "The picture")]
    fragmentation: bool,
    /// Where the heap lies: address ranges by kind, the darker the fuller of live blocks. At the end, or --at a moment; not of samples.
    #[arg(long, group = "what", conflicts_with_all = OVER_TIME, conflicts_with_all = ["by", "top", "gradient"], help_heading = "The picture")]
    address_space: bool,
    /// So long after the start.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with_all = NOT_AT, help_heading = "The picture")]
    at: Option<u64>,
    /// A picture, or its numbers for programs (on standard output unless -o says otherwise).
    #[arg(long, value_enum, help_heading = "The picture")]
    format: Option<GraphFormat>,
    /// Without the process' memory as the kernel sees it.
    #[arg(long, help_heading = "The picture")]
    heap_only: bool,
    /// Colours from one to another, by name or #rrggbb.
    #[arg(long, value_name = "FROM:TO", value_parser = parse_gradient, help_heading = "The picture")]
    gradient: Option<(Rgb, Rgb)>,
    /// Begin so long after the start.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "The picture")]
    start: Option<u64>,
    /// End so long after the start.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "The picture")]
    end: Option<u64>,
    /// Which blocks.
    #[command(flatten)]
    which: Which,
    /// Whether with an index.
    #[command(flatten)]
    indexed: Indexed,
}

/// Writes the graph.
///
/// # Errors
/// If the capture cannot be read, or the picture cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(args.by != By::Tree, "a tree cannot be stacked: give --by site, function, module, thread, size, mode or process");
    if let (Some(start), Some(end)) = (args.start, args.end) {
        anyhow::ensure!(start < end, "--start must be before --end");
    }
    let of = args.of();
    let of_a_moment = matches!(of, GraphOf::Fragmentation | GraphOf::AddressSpace);
    anyhow::ensure!(args.at.is_none() || of_a_moment, "--at is for --fragmentation and --address-space; others have --start and --end");
    let is_json = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let json = args.format.map_or_else(|| args.output.as_ref().is_some_and(is_json), |format| format == GraphFormat::Json);
    let output = args.output.clone().unwrap_or_else(|| if json { "-".into() } else { picture::beside(&args.file, of.name()) });
    let to_output = picture::is_standard_output(&output);
    let end = if json { "json" } else { "svg" };
    anyhow::ensure!(
        to_output || output.extension().is_some_and(|extension| extension == end),
        "{}: give a file that ends in .{end}",
        output.display()
    );
    picture::must_not_be(&output, std::iter::once(&args.file))?;
    let mut query = filters(&args.which)?;
    (query.group, query.limit) = (args.by.group(), Some(args.top));
    let scheme = args.gradient.map_or(Scheme::Palette, |(from, to)| Scheme::Gradient(from, to));
    let how = GraphOptions { of, json, heap_only: args.heap_only, scheme, start_ns: args.start, end_ns: args.end, at_ns: args.at };
    let drawn = graph(&args.file, &Options { query, index: args.indexed.indexing(), progress: true, ..Options::default() }, &how)?;
    if to_output { print(&drawn) } else { picture::write(&output, &drawn, "graph") }
}

impl Args {
    fn of(&self) -> GraphOf {
        match self {
            Args { rates: true, .. } => GraphOf::Rates,
            Args { sizes: true, .. } => GraphOf::Sizes,
            Args { lifetimes: true, .. } => GraphOf::Lifetimes,
            Args { fragmentation: true, .. } => GraphOf::Fragmentation,
            Args { address_space: true, .. } => GraphOf::AddressSpace,
            _ => GraphOf::Live,
        }
    }
}

fn parse_top(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|top| (1..=40).contains(top)).ok_or_else(|| "give a number from 1 to 40".to_owned())
}

fn parse_gradient(text: &str) -> Result<(Rgb, Rgb), String> {
    let both = text.split_once(':').and_then(|(from, to)| Some((Rgb::parse(from)?, Rgb::parse(to)?)));
    both.ok_or_else(|| "give two colours by name or as #rrggbb, for example navy:orange".to_owned())
}
