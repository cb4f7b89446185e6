//! `hound attach`.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use hound_inject::CustomHook;

use super::control::parse_pid;
use super::report::{parse_duration, parse_size};
use super::run::Overload;
use super::{FAILED, setting, switch};
use crate::query::{BlockFilter, Only, Query, Suppressions};
use crate::report::{Options, leak_report, report_growing};
use crate::session::{Attach, Glance, NotOne, attach, find_by_name};
use crate::view::Style;

const EXAMPLES: &str = "\
Examples:
  hound attach -p 4242                          until Ctrl-C; ends with what it kept since
  hound attach -n redis-server --duration 30s   the one process of this name, half a minute
  hound attach -p 4242 --every 5s --top 10 --older-than 500ms
                                                meanwhile, who holds most that is not short-lived
  hound attach -p 4242 --hook 'alloc=pool_get(size=1)' --hook 'free=pool_put(ptr=0)'
                                                a pool of the program's own, too
  hound doctor -p 4242                          whether that would work, and what it would see
  hound status; hound snapshot -p 4242; hound mark -p 4242 'cache filled'; hound detach -p 4242";

/// How a target is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Every allocation with its whole stack, through a library inside the target.
    Full,
}

/// Record a running program: every allocation from now on, with the stack it was made from. The program is not restarted.
///
/// Ends by Ctrl-C, SIGTERM, --duration or `hound detach`: the program then runs on as it was found, the capture is kept, and what was
/// allocated since the attach and is alive is printed to standard error. Ends also with the program.
#[derive(clap::Args, Debug)]
#[command(before_help = EXAMPLES, group = clap::ArgGroup::new("target").args(["pid", "name"]).required(true))]
pub struct Args {
    /// The process.
    #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
    pid: Option<u32>,
    /// The process by its name: as `ps` shows it, its executable's, or the first word of its command line. It must be the only one.
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// How to record. Every allocation, by a library that is brought into the target: the only mode yet, so also the default.
    #[arg(long, value_enum, default_value = "full")]
    mode: Mode,
    /// Detach after this time (ms, s, min, h).
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    duration: Option<u64>,
    /// Where the capture goes. %p is replaced by the process id, %t by the time, %e by the program's name, %n by the first free number.
    #[arg(short, long, value_name = "FILE")]
    output: Option<OsString>,
    /// A function of a pool of the program's own: alloc=NAME(size=N[,count=M]), free=NAME(ptr=N) or realloc=NAME(ptr=N,size=M), arguments
    /// counted from 0; NAME@MODULE looks in one module only; `nothrow` among them says that a function of a C++ program throws no
    /// exception. What a pool hands out is counted beside what it was cut from, never added.
    #[arg(long, value_name = "HOOK")]
    hook: Vec<CustomHook>,
    /// Do not record where blocks are freed: smaller captures, cheaper frees.
    #[arg(long)]
    no_free_stacks: bool,
    /// Do not record mmap, munmap and mremap.
    #[arg(long)]
    no_maps: bool,
    /// What to do when the program is faster than hound.
    #[arg(long, value_enum, default_value = "wait")]
    on_overload: Overload,
    /// At the end, take the library out of the program, too. Else it stays, asleep, and the next attach is quicker.
    #[arg(long)]
    unload: bool,
    /// No status line and no report at the end.
    #[arg(short, long)]
    quiet: bool,

    /// Print the sites that hold most so often, to standard output. The growing capture is read each time; where that takes long, it is
    /// done less often.
    #[arg(long, value_name = "TIME", value_parser = some_time, help_heading = "While recording")]
    every: Option<u64>,
    /// So many sites.
    #[arg(long, value_name = "N", default_value = "10", value_parser = some_sites, requires = "every", help_heading = "While recording")]
    top: usize,
    /// Only blocks that have lived at least so long.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_duration, requires = "every", help_heading = "While recording")]
    older_than: u64,
    /// Only blocks of at least so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "every", help_heading = "While recording")]
    min_size: Option<u64>,
    /// Only blocks of at most so many bytes.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "every", help_heading = "While recording")]
    max_size: Option<u64>,
}

/// Attaches, and reports at the end.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let pid = match (&args.pid, &args.name) {
        (Some(pid), _) => *pid,
        (None, Some(name)) => match find_by_name(name) {
            Ok(pid) => pid,
            Err(NotOne { why, candidates }) => {
                eprintln!("hound: {why}");
                candidates.iter().for_each(|line| eprintln!("{line}"));
                return Ok(ExitCode::from(FAILED));
            }
        },
        (None, None) => anyhow::bail!("no process given; use -p PID or -n NAME"),
    };
    let mut hooks = args.hook.clone();
    CustomHook::number(&mut hooks)?;
    let Mode::Full = args.mode;
    let options = Attach {
        pid,
        duration: args.duration.map(Duration::from_nanos),
        output: args.output.clone().or_else(|| setting("OUTPUT")),
        hooks,
        free_stacks: !args.no_free_stacks,
        maps: !args.no_maps,
        shadow_stack: switch("SHADOW_STACK").or_else(|| switch("USE_SHADOW_STACK")).unwrap_or(true),
        drop_on_overload: args.on_overload == Overload::Drop,
        every: args.every.map(|every| Duration::from_nanos(every.max(MIN_EVERY_NS))),
        unload: args.unload,
        quiet: args.quiet,
    };
    let (question, which) = (question(args), which(args, pid));
    let attached = attach(&options, move |glance| show(glance, &question, &which))?;
    let reported = if args.quiet { Ok(()) } else { report(&attached.output) };
    // Last, where they are seen, and also if nothing else may be said.
    attached.warnings.iter().chain(&attached.not_left).for_each(|warning| eprintln!("hound: {warning}"));
    reported?;
    Ok(if attached.not_left.is_some() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// A time that is not none.
fn some_time(text: &str) -> Result<u64, String> {
    match parse_duration(text)? {
        0 => Err("that is no time at all; give some, for example 30s".into()),
        time => Ok(time),
    }
}

fn some_sites(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|sites| *sites > 0).ok_or_else(|| "give a number from 1 on".into())
}

/// More often nobody can read it.
const MIN_EVERY_NS: u64 = 100_000_000;

fn report(capture: &std::path::Path) -> anyhow::Result<()> {
    let style = if std::io::stderr().is_terminal() { Style::Colour } else { Style::Plain };
    eprint!("{}", leak_report(capture, &Options { progress: true, style, ..Options::default() })?);
    eprintln!("hound: capture in {}", capture.display());
    Ok(())
}

/// What `--every` shows.
fn question(args: &Args) -> Query {
    let blocks = BlockFilter {
        min_size: args.min_size,
        max_size: args.max_size,
        min_lifetime_ns: Some(args.older_than),
        only: Only::Live,
        ..BlockFilter::default()
    };
    Query { blocks, limit: Some(args.top), ..Query::default() }
}

/// Which blocks of which process `--every` shows: whoever finds the text tomorrow must not have to guess.
fn which(args: &Args, pid: u32) -> String {
    let bound = |what: &str, value: Option<u64>| value.map_or_else(String::new, |value| format!(", of {what} {value} bytes"));
    let older = Duration::from_nanos(args.older_than);
    format!("process {pid}, blocks older than {older:?}{}{}", bound("at least", args.min_size), bound("at most", args.max_size))
}

fn show(glance: &Glance, question: &Query, which: &str) -> anyhow::Result<()> {
    let options = Options {
        query: question.clone(),
        suppressions: Suppressions::none(),
        rows_only: true,
        files: Some(glance.files.clone()),
        ..Options::default()
    };
    let text = report_growing(&glance.capture, glance.bytes, &options)?;
    let mut out = std::io::stdout().lock();
    // Whoever reads may stop reading: the recording goes on.
    let _ = write!(out, "[{}, {which}]{text}", time_of_day()).and_then(|()| out.flush());
    Ok(())
}

/// UTC: what the machine's zone is takes a library to find out.
fn time_of_day() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{:02}:{:02}:{:02} UTC", now / 3600 % 24, now / 60 % 60, now % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once("attach").chain(line.split_whitespace())).map(|line| line.args)
    }

    #[test]
    fn every_option_is_understood() {
        let args = parse(
            "-p 7 --mode full --duration 1.5s --every 5s --top 3 --older-than 1ms --min-size 4k --max-size 1Mi --unload -q \
             --hook alloc=get(size=1) --hook free=put(ptr=0) --no-free-stacks --no-maps --on-overload drop -o x",
        );
        let args = args.unwrap();
        let question = question(&args);
        assert_eq!((args.pid, args.duration, args.every, args.hook.len()), (Some(7), Some(1_500_000_000), Some(5_000_000_000), 2));
        assert_eq!((question.limit, question.blocks.only), (Some(3), Only::Live));
        let blocks = question.blocks;
        assert_eq!((blocks.min_lifetime_ns, blocks.min_size, blocks.max_size), (Some(1_000_000), Some(4000), Some(1 << 20)));
    }

    #[test]
    fn one_target_must_be_named_and_only_one() {
        for wrong in [
            "",
            "-p 0",
            "-p x",
            "-p 7 -n name",
            "-p 7 --mode sampled",
            "-p 7 --hook alloc=f",
            "-p 7 --duration soon",
            "-p 7 --duration 0",
            "-p 7 --every 1s --top 0",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse("-n nginx").unwrap().name.as_deref(), Some("nginx"));
        let said = parse("").unwrap_err().to_string();
        assert!(said.contains("--pid") && said.contains("--name"), "{said}");
        let said = parse("-p nginx").unwrap_err().to_string();
        assert!(said.contains("-n"), "{said}");
    }
}
