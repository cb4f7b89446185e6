//! `hound run` and `hound collect`.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

use clap::ValueEnum;

use super::{setting, switch};
use crate::report::{Options, leak_report};
use crate::session::{Collect, Launch, Launched, collect as collect_ring, launch};
use crate::view::Style;

/// What to do when the program produces events faster than hound can take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Overload {
    /// The program's threads wait for hound; nothing is lost.
    Wait,
    /// Events are dropped, counted, and the count shown.
    Drop,
}

/// Run a program and record every allocation it makes, with the stack it was made from.
///
/// When the program ends, the leak report is printed to standard error. The program's output and exit status are passed through.
#[derive(clap::Args, Debug)]
#[command(before_help = RUN_EXAMPLES)]
pub struct Args {
    /// Where the capture goes. %p is replaced by the process id, %t by the time, %e by the program's name, %n by the first free number.
    #[arg(short, long, value_name = "FILE")]
    output: Option<OsString>,
    /// Do not record where blocks are freed: smaller captures, cheaper frees.
    #[arg(long)]
    no_free_stacks: bool,
    /// Do not record mmap, munmap and mremap.
    #[arg(long)]
    no_maps: bool,
    /// What to do when the program is faster than hound.
    #[arg(long, value_enum, default_value = "wait")]
    on_overload: Overload,
    /// No status line and no report at the end.
    #[arg(short, long)]
    quiet: bool,
    /// The program and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

const RUN_EXAMPLES: &str = "\
Examples:
  hound run -- ./server --port 8080
  hound run -o /tmp/s-%p.hound -- python3 app.py
  hound run --quiet --no-free-stacks -o s.hound -- ./batch && hound report s.hound";

/// The exit status of a shell for a command that a signal killed.
const KILLED: i32 = 128;

/// Runs the program.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let output = args.output.clone().or_else(|| setting("OUTPUT"));
    let launched = launch(&Launch {
        command: args.command.clone(),
        output,
        free_stacks: !args.no_free_stacks && switch("GRAB_BACKTRACES_ON_FREE").unwrap_or(true),
        maps: !args.no_maps,
        shadow_stack: switch("SHADOW_STACK").or_else(|| switch("USE_SHADOW_STACK")).unwrap_or(true),
        drop_on_overload: args.on_overload == Overload::Drop,
        quiet: args.quiet,
    })?;
    let reported = if args.quiet { Ok(()) } else { show(&launched) };
    // Last, where they are seen, and also if nothing else may be said.
    for warning in &launched.warnings {
        eprintln!("hound: {warning}");
    }
    reported?;
    let status = launched.status.code().unwrap_or_else(|| KILLED + launched.status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

fn show(launched: &Launched) -> anyhow::Result<()> {
    let style = if std::io::stderr().is_terminal() { Style::Colour } else { Style::Plain };
    eprint!("{}", leak_report(&launched.output, &Options { progress: true, style, ..Options::default() })?);
    eprintln!("hound: capture in {}", launched.output.display());
    Ok(())
}

/// Record a program that libhound.so was preloaded into. Started by the library.
#[derive(clap::Args, Debug)]
pub struct CollectArgs {
    /// The inherited descriptor of the ring.
    #[arg(long)]
    ring_fd: i32,
    /// The program's process id.
    #[arg(long)]
    pid: u32,
    /// Its executable.
    #[arg(long, default_value = "program")]
    program: OsString,
}

/// Records until the program has ended.
pub fn collect(args: &CollectArgs) -> anyhow::Result<ExitCode> {
    let output = setting("OUTPUT");
    collect_ring(&Collect { ring_fd: args.ring_fd, pid: args.pid, program: args.program.clone(), output })?;
    Ok(ExitCode::SUCCESS)
}
