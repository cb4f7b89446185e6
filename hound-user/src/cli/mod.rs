//! The command line: one file a command, no logic beside.
//!
//! Exit status: 0 done, 2 hound could not do its job; `hound run` passes the program's own status on.

mod attach;
mod check;
mod control;
mod culling;
mod doctor;
mod dump;
mod ending;
mod flame;
mod gather;
mod graph;
mod index;
mod info;
mod leaks;
mod meanwhile;
mod on_time;
mod picture;
mod probing;
mod repl;
mod report;
mod run;
mod script;
mod serving;
mod strip;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// hound could not do its job.
const FAILED: u8 = 2;

#[derive(Parser, Debug)]
#[command(
    name = "hound",
    version,
    about = "Finds out where the memory of a running Linux program goes, who put it there, and why it is still there."
)]
#[command(before_help = EXAMPLES, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  hound run -- ./server --port 8080         record a program from its start, end with the leak report
  hound run --engine kernel -- ./server     only sample it, from the kernel; static programs, too
  hound attach -p 4242 --duration 30s       record a running program for a while, end with what is alive
  hound run -o s.hound -- python3 app.py    keep the capture in s.hound
  hound report s.hound --peak               what was on the heap when it was largest
  LD_PRELOAD=./libhound.so ./server         the same without hound in front";

#[derive(Subcommand, Debug)]
enum Command {
    Run(Box<run::Args>),
    Attach(Box<attach::Args>),
    Detach(control::DetachArgs),
    Status(control::StatusArgs),
    Snapshot(Box<control::SnapshotArgs>),
    Mark(control::MarkArgs),
    Mode(control::ModeArgs),
    Doctor(doctor::Args),
    Report(Box<report::Args>),
    Flame(Box<flame::Args>),
    Graph(Box<graph::Args>),
    Leaks(Box<leaks::Args>),
    Script(script::Args),
    Repl(repl::Args),
    Index(index::Args),
    Strip(strip::Args),
    Gather(gather::Args),
    Info(info::Args),
    Check(check::Args),
    Dump(dump::Args),
    #[command(hide = true)]
    Collect(run::CollectArgs),
    #[command(hide = true)]
    OnTime(on_time::Args),
    /// What the kernel's probes are tried on. Started by hound itself.
    #[command(hide = true)]
    AllocateOnRequest {
        /// Under a seccomp filter.
        #[arg(long)]
        filtered: bool,
    },
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Attach(args) => attach::run(&args),
        Command::Detach(args) => control::detach(&args),
        Command::Status(args) => control::status(&args),
        Command::Snapshot(args) => control::snapshot(&args),
        Command::Mark(args) => control::mark(&args),
        Command::Mode(args) => control::mode(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Flame(args) => flame::run(&args),
        Command::Graph(args) => graph::run(&args),
        Command::Leaks(args) => leaks::run(&args),
        Command::Script(args) => script::run(&args),
        Command::Repl(args) => repl::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Strip(args) => strip::run(&args),
        Command::Gather(args) => gather::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Dump(args) => dump::run(&args),
        Command::Collect(args) => run::collect(&args),
        Command::OnTime(args) => on_time::run(&args),
        Command::AllocateOnRequest { filtered } => crate::session::calibrate::allocate_on_request(filtered).map(|()| ExitCode::SUCCESS),
    };
    on_time::hand_over();
    result.unwrap_or_else(|error| {
        eprintln!("hound: {}", one_line(&error));
        ExitCode::from(FAILED)
    })
}

/// The error and its causes on one line.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some errors print their cause themselves.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    text.replace('\n', " ")
}

/// A setting from the environment: hound's own name first, then the documented one.
fn setting(name: &str) -> Option<OsString> {
    std::env::var_os(format!("HOUND_{name}")).or_else(|| std::env::var_os(format!("MEMORY_PROFILER_{name}")))
}

/// As [`setting`], for a switch.
fn switch(name: &str) -> Option<bool> {
    setting(name).map(|value| value == "1" || value == "true")
}
