//! `hound report`.

use super::index::Indexed;
use crate::query::{BlockFilter, FrameFilter, Group, Measure, Only, Query, Suppressions, ThreadFilter};
use crate::report::{DEFAULT_LIMIT, Format, Options, add_suppressions, report};
use crate::view::Style;
use clap::ValueEnum;
use hound_common::hook::{Kind, Role};
use regex::Regex;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound report app.hound                                  what was never released, largest first
  hound report app.hound --peak --by function             who held the heap when it was largest
  hound report app.hound --temporary --by tree            blocks that could have lived on the stack
  hound report app.hound --function '^parse' --min-size 4k
  hound report app.hound --faults --by function           who touched memory first
  hound report app.hound --blocks --min-size 1Mi          single blocks: where they are, how old, from where
  hound report app.hound --all --format json | jq '.totals'";

/// Filters that say nothing of a page.
const OF_BLOCKS: [&str; 6] = ["min_size", "max_size", "min_lifetime", "max_lifetime", "kind", "only"];

/// Show where the memory in a capture went.
#[derive(clap::Args, Debug, Clone)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    pub file: PathBuf,
    /// What to report, and how.
    #[command(flatten)]
    pub what: What,
    /// Whether with an index.
    #[command(flatten)]
    pub indexed: Indexed,
}

/// Which figure.
#[derive(clap::Args, Debug, Clone)]
pub struct Section {
    /// Blocks that were never released [default]. What language runtimes keep by design is left out, and counted.
    #[arg(long, group = "section", help_heading = "What to show")]
    pub leaks: bool,
    /// Blocks that lived when the heap was largest.
    #[arg(long, group = "section", help_heading = "What to show")]
    pub peak: bool,
    /// All allocations, by their number.
    #[arg(long, group = "section", help_heading = "What to show")]
    pub allocations: bool,
    /// All allocations, by their bytes.
    #[arg(long, group = "section", help_heading = "What to show")]
    pub allocated: bool,
    /// Temporary blocks, by their number: released by the thread that allocated them, before it allocated anything else. A realloc
    /// counts as the release of the old block and the allocation of the new one. For lives shorter than a given time see --max-lifetime.
    #[arg(long, group = "section", help_heading = "What to show")]
    pub temporary: bool,
    /// Page faults: who touched memory first, how fast, and what of it the process still has. Of captures that were sampled from the
    /// kernel; those of `--mode faults` have nothing else.
    #[arg(long, group = "section", conflicts_with_all = OF_BLOCKS, help_heading = "What to show")]
    pub faults: bool,
}

/// What to report, and how.
#[derive(clap::Args, Debug, Clone)]
pub struct What {
    /// Which figure.
    #[command(flatten)]
    pub section: Section,
    /// List single blocks that are alive, too: address, size, age and stack, the largest first.
    #[arg(short = 'a', long, help_heading = "What to show")]
    pub blocks: bool,
    /// What makes a row.
    #[arg(long, value_enum, default_value = "site", help_heading = "What to show")]
    pub by: By,
    /// Most rows.
    #[arg(long, value_name = "N", help_heading = "What to show")]
    pub limit: Option<usize>,
    /// No limit, and nothing left out for being kept by a runtime.
    #[arg(long, help_heading = "What to show")]
    pub all: bool,
    /// Whole names, paths and stacks, with the allocator's own frames.
    #[arg(long, help_heading = "What to show")]
    pub full_stacks: bool,
    /// For people or for programs.
    #[arg(long, value_enum, default_value = "text", help_heading = "What to show")]
    pub format: OutputFormat,
    /// Which blocks.
    #[command(flatten)]
    pub which: Which,
}

/// Which blocks.
#[derive(clap::Args, Debug, Clone)]
pub struct Which {
    /// Only call paths with a function that matches.
    #[arg(long, value_name = "REGEX", help_heading = "Which blocks")]
    pub function: Vec<Regex>,
    /// No call paths with a function that matches.
    #[arg(long, value_name = "REGEX", help_heading = "Which blocks")]
    pub exclude_function: Vec<Regex>,
    /// Only call paths with a source file that matches.
    #[arg(long, value_name = "REGEX", help_heading = "Which blocks")]
    pub source: Vec<Regex>,
    /// No call paths with a source file that matches.
    #[arg(long, value_name = "REGEX", help_heading = "Which blocks")]
    pub exclude_source: Vec<Regex>,
    /// Only call paths with a module that matches.
    #[arg(long, value_name = "REGEX", help_heading = "Which blocks")]
    pub module: Vec<Regex>,
    /// No call paths with a module that matches.
    #[arg(long, value_name = "REGEX", help_heading = "Which blocks")]
    pub exclude_module: Vec<Regex>,
    /// Only blocks allocated by this thread: its id, or a regular expression for its name.
    #[arg(long, value_name = "THREAD", help_heading = "Which blocks")]
    pub thread: Option<String>,
    /// Only of this process, where the capture is of several; may be given several times. Totals and the peak are then of these alone.
    #[arg(long, value_name = "PID", help_heading = "Which blocks")]
    pub process: Vec<u32>,
    /// Only blocks of at least so many bytes (k, M, G: decimal; Ki, Mi, Gi: binary).
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Which blocks")]
    pub min_size: Option<u64>,
    /// Only blocks of at most so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Which blocks")]
    pub max_size: Option<u64>,
    /// Only blocks that lived at least so long (ns, us, ms, s, min, h). What lives at the end has lived until then.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Which blocks")]
    pub min_lifetime: Option<u64>,
    /// Only blocks that were released after at most so long.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Which blocks")]
    pub max_lifetime: Option<u64>,
    /// Only blocks allocated so long after the start, or later.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Which blocks")]
    pub from: Option<u64>,
    /// Only blocks allocated earlier than so long after the start.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Which blocks")]
    pub to: Option<u64>,
    /// Only blocks from this allocation function (malloc, calloc, realloc, …).
    #[arg(long, value_name = "FUNCTION", value_parser = parse_kind, help_heading = "Which blocks")]
    pub kind: Vec<Kind>,
    /// Only blocks that ended so.
    #[arg(long, value_enum, help_heading = "Which blocks")]
    pub only: Option<Ended>,

    /// A LeakSanitizer suppression file: what it names is left out of leaks, and counted.
    #[arg(long, value_name = "FILE", help_heading = "Which blocks")]
    pub suppressions: Vec<PathBuf>,
    /// Do not leave out what language runtimes keep by design.
    #[arg(long, help_heading = "Which blocks")]
    pub no_default_suppressions: bool,
}

/// What makes a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// A call path.
    Site,
    /// The allocating function, with and without what it calls.
    Function,
    /// Call paths as a tree.
    Tree,
    /// The allocating module.
    Module,
    /// The allocating thread.
    Thread,
    /// Sizes between two powers of two.
    Size,
    /// Whether every block was recorded, or samples were taken.
    Mode,
    /// The allocating process.
    Process,
}

impl By {
    /// The same as a query has it.
    pub(super) fn group(self) -> Group {
        match self {
            By::Site => Group::Site,
            By::Function => Group::Function,
            By::Tree => Group::Tree,
            By::Module => Group::Module,
            By::Thread => Group::Thread,
            By::Size => Group::Size,
            By::Mode => Group::Mode,
            By::Process => Group::Process,
        }
    }
}

/// How a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Ended {
    /// It did not.
    Leaked,
    /// It was released.
    Freed,
    /// It was released by its thread before that allocated again.
    Temporary,
}

/// What a report is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints the report.
///
/// # Errors
/// If the capture, or a suppression file, cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = Options { index: args.indexed.indexing(), ..options(&args.what)? };
    let text = report(&args.file, &options)?;
    print(&text)
}

/// Writes a report to standard output.
pub(super) fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `hound report … | head` closes the pipe when it has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(anyhow::Error::from(error).context("cannot write the report")),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// What the arguments ask for.
pub(super) fn options(args: &What) -> anyhow::Result<Options> {
    let colour = args.format == OutputFormat::Text && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let of_blocks = matches!(args.by, By::Size | By::Mode);
    anyhow::ensure!(
        !args.section.faults || !of_blocks,
        "--by size and --by mode are for blocks: a page fault has no size, and no weight of its own"
    );
    Ok(Options {
        query: query(args)?,
        faults: args.section.faults,
        suppressions: suppressions(&args.which, args.all)?,
        format: if args.format == OutputFormat::Json { Format::Json } else { Format::Text },
        style: if colour { Style::Colour } else { Style::Plain },
        full_stacks: args.full_stacks,
        blocks: args.blocks,
        progress: true,
        ..Options::default()
    })
}

/// What is left out of leaks; `all`: only what suppression files name.
pub(super) fn suppressions(which: &Which, all: bool) -> anyhow::Result<Suppressions> {
    let mut suppressions = if all || which.no_default_suppressions { Suppressions::none() } else { Suppressions::runtime() };
    which.suppressions.iter().try_for_each(|path| add_suppressions(&mut suppressions, path))?;
    Ok(suppressions)
}

/// The query that these filters and this figure make, with no limit.
pub(super) fn filters(args: &Which) -> anyhow::Result<Query> {
    let thread = match &args.thread {
        None => None,
        Some(text) => Some(match text.parse() {
            Ok(tid) => ThreadFilter::Tid(tid),
            Err(_) => ThreadFilter::Name(Regex::new(text).map_err(|error| anyhow::anyhow!("--thread {text}: {error}"))?),
        }),
    };
    Ok(Query {
        blocks: BlockFilter {
            min_size: args.min_size,
            max_size: args.max_size,
            min_lifetime_ns: args.min_lifetime,
            max_lifetime_ns: args.max_lifetime,
            from_ns: args.from,
            to_ns: args.to,
            kinds: args.kind.clone(),
            only: match args.only {
                None => Only::Any,
                Some(Ended::Leaked) => Only::Live,
                Some(Ended::Freed) => Only::Freed,
                Some(Ended::Temporary) => Only::Temporary,
            },
        },
        frames: FrameFilter {
            function: args.function.clone(),
            exclude_function: args.exclude_function.clone(),
            source: args.source.clone(),
            exclude_source: args.exclude_source.clone(),
            module: args.module.clone(),
            exclude_module: args.exclude_module.clone(),
        },
        thread,
        processes: args.process.clone(),
        ..Query::default()
    })
}

impl Section {
    /// The figure.
    pub(super) fn measure(&self) -> Measure {
        match self {
            Section { peak: true, .. } => Measure::Peak,
            Section { allocations: true, .. } => Measure::Allocations,
            Section { allocated: true, .. } | Section { faults: true, .. } => Measure::Allocated,
            Section { temporary: true, .. } => Measure::Temporary,
            _ => Measure::Live,
        }
    }
}

fn query(args: &What) -> anyhow::Result<Query> {
    Ok(Query {
        group: args.by.group(),
        measure: args.section.measure(),
        // A tree's rows are branches: a useful one needs more of them than a list needs sites.
        limit: if args.all { None } else { args.limit.or(Some(if args.by == By::Tree { DEFAULT_LIMIT * 10 } else { DEFAULT_LIMIT })) },
        // Whoever asks for all in JSON wants every site, also those that leaked nothing.
        keep_zero: args.all && args.format == OutputFormat::Json,
        ..filters(&args.which)?
    })
}

/// A number and, if there is one, the unit behind it.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic() || c == 'µ' || c.is_whitespace());
    let number: f64 = digits.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    Some((number, text[digits.len()..].trim()))
}

pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text).ok_or("give a number of bytes, for example 4096, 64k or 2Mi")?;
    let factor = match unit.trim_end_matches(['B', 'b']) {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" | "m" => 1e6,
        "G" | "g" => 1e9,
        "Ki" | "ki" => 1024.0,
        "Mi" | "mi" => 1024.0 * 1024.0,
        "Gi" | "gi" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("{other} is no unit of size: use k, M, G, Ki, Mi or Gi")),
    };
    Ok((number * factor) as u64)
}

pub(super) fn parse_duration(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text).ok_or("give a time, for example 500ms, 1.5s or 2min")?;
    let factor = match unit {
        "ns" => 1.0,
        "us" | "µs" => 1e3,
        "ms" => 1e6,
        "" | "s" => 1e9,
        "m" | "min" => 60e9,
        "h" => 3600e9,
        other => return Err(format!("{other} is no unit of time: use ns, us, ms, s, min or h")),
    };
    Ok((number * factor) as u64)
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    let mut allocating = Kind::all().filter(|kind| matches!(kind.role(), Role::Alloc | Role::Realloc));
    match allocating.clone().find(|kind| kind.name() == text) {
        Some(kind) => Ok(kind),
        None => {
            let first = allocating.next().map_or("", Kind::name);
            let names = allocating.fold(first.to_owned(), |names, kind| names + ", " + kind.name());
            Err(format!("it allocates nothing: use one of {names}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<What, clap::Error> {
        Line::try_parse_from(std::iter::once("report").chain(line.split_whitespace())).map(|line| line.args.what)
    }

    #[test]
    fn without_options_the_question_is_the_top_leaks() {
        let query = query(&parse("a.hound").unwrap()).unwrap();
        assert_eq!((query.measure, query.group, query.limit, query.keep_zero), (Measure::Live, Group::Site, Some(DEFAULT_LIMIT), false));
        assert_eq!(query.blocks, BlockFilter::default());
    }

    #[test]
    fn every_option_reaches_the_query() {
        let line = "a.hound --peak --by thread --limit 3 --min-size 4k --max-size 1Mi --min-lifetime 1.5s --max-lifetime 2min --from 10ms \
                    --to 1h --kind calloc --kind malloc --only freed --thread 12 --process 7 --process 8 --function ^f --exclude-function g$";
        let query = query(&parse(line).unwrap()).unwrap();
        let expected = BlockFilter {
            min_size: Some(4000),
            max_size: Some(1 << 20),
            min_lifetime_ns: Some(1_500_000_000),
            max_lifetime_ns: Some(120_000_000_000),
            from_ns: Some(10_000_000),
            to_ns: Some(3_600_000_000_000),
            kinds: vec![Kind::Calloc, Kind::Malloc],
            only: Only::Freed,
        };
        assert_eq!(query.blocks, expected);
        assert_eq!((query.measure, query.group, query.limit), (Measure::Peak, Group::Thread, Some(3)));
        assert!(matches!(query.thread, Some(ThreadFilter::Tid(12))) && query.processes == [7, 8]);
        assert_eq!((query.frames.function.len(), query.frames.exclude_function.len()), (1, 1));
    }

    #[test]
    fn sections_exclude_each_other_and_wrong_values_are_refused() {
        assert!(parse("a.hound --leaks --peak").is_err());
        assert!(parse("a.hound --faults --from 1s --function f").is_ok() && parse("a.hound --faults --min-size 1").is_err());
        assert!(options(&parse("a.hound --faults --by size").unwrap()).is_err());
        for wrong in ["--min-size lots", "--min-size 4x", "--from -1", "--kind free", "--function (", "--by name"] {
            assert!(parse(&format!("a.hound {wrong}")).is_err(), "{wrong}");
        }
    }
}
