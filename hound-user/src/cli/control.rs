//! `hound status`, `detach`, `snapshot` and `mark`: what is said to sessions that run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hound_inject::{Existing, State, find};
use serde_json::{Value, json};

use super::info::Format;
use super::report::{What, options, print};
use crate::report::report_growing;
use crate::session::{Answer, Request, Status, ask_session, files_of_target, sessions};
use crate::symbols::HeldFiles;

const STATUS_EXAMPLES: &str = "\
Examples:
  hound status                          every recording that runs
  hound status -p 4242                  this one, or what an earlier one left in the process
  hound status --format json | jq '.sessions[].pid'";

/// Show the recordings that run.
#[derive(clap::Args, Debug)]
#[command(before_help = STATUS_EXAMPLES)]
pub struct StatusArgs {
    /// Only of this process; also what an earlier recording left in it.
    #[arg(short, long)]
    pid: Option<u32>,
    /// For people or for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

const DETACH_EXAMPLES: &str = "\
Examples:
  hound detach -p 4242                  end the recording; the library stays, asleep, for the next
  hound detach -p 4242 --unload         leave nothing in the process";

/// End a recording. Where the hound that recorded is gone, repair what it left.
#[derive(clap::Args, Debug)]
#[command(before_help = DETACH_EXAMPLES)]
pub struct DetachArgs {
    /// The process.
    #[arg(short, long)]
    pid: u32,
    /// Take the library out of the process, too.
    #[arg(long)]
    unload: bool,
}

const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  hound snapshot -p 4242                          what was allocated since the attach and is alive now
  hound snapshot -p 4242 --peak --by function
  hound snapshot -p 4242 --min-lifetime 1min --format json";

/// Report on a recording up to now, while it goes on.
#[derive(clap::Args, Debug)]
#[command(before_help = SNAPSHOT_EXAMPLES)]
pub struct SnapshotArgs {
    /// The process.
    #[arg(short, long)]
    pid: u32,
    /// What to report, and how.
    #[command(flatten)]
    what: What,
}

const MARK_EXAMPLES: &str = "\
Examples:
  hound mark -p 4242 'cache is full'    in `hound dump` as an event, between those before and after it";

/// Put a marker with a text into a recording.
#[derive(clap::Args, Debug)]
#[command(before_help = MARK_EXAMPLES)]
pub struct MarkArgs {
    /// The process.
    #[arg(short, long)]
    pid: u32,
    /// What it says (up to 1024 bytes).
    text: String,
}

/// Longest time to repair what a dead hound left.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks a session that must be there.
fn ask(pid: u32, request: &Request) -> anyhow::Result<Answer> {
    ask_session(pid, request)?.with_context(|| {
        format!("process {pid} is not being recorded (by this user); `hound status` lists what is, `hound attach -p {pid}` begins")
    })
}

/// Prints all sessions.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let mut all = sessions();
    if let Some(pid) = args.pid {
        all.retain(|status| status.pid == pid);
    }
    let left = match args.pid {
        Some(pid) => find(number(pid)?).with_context(|| format!("cannot look into process {pid}"))?,
        None => None,
    };
    if args.format == Format::Json {
        let left = left.as_ref().map_or(Value::Null, left_json);
        return print(&format!("{}\n", json!({"sessions": all, "library": left})));
    }
    let mut text: String = all.iter().map(line).collect();
    match (&left, args.pid) {
        (Some(left), Some(pid)) => text += &format!("process {pid}: {}\n", left_words(left)),
        (None, Some(pid)) if all.is_empty() => text += &format!("process {pid} is not being recorded, and nothing of hound is in it\n"),
        _ if all.is_empty() => text += "nothing is being recorded (by this user)\n",
        _ => {}
    }
    print(&text)
}

/// A session, for people.
fn line(status: &Status) -> String {
    let live = status.live_bytes.map_or_else(|| "not counted (too busy)".to_owned(), |bytes| format!("{:.1} MB", bytes as f64 / 1e6));
    let overhead = status.overhead.map_or_else(|| "idle".to_owned(), |share| format!("overhead about {:.0} %", share * 100.0));
    let lost = if status.lost_events == 0 { "nothing lost".to_owned() } else { format!("{} events LOST", status.lost_events) };
    format!(
        "process {} ({}), {} mode for {:.0} s by hound process {}\n  {} events, {:.1} k/s; live {live}; {lost}; {overhead}\n  capture {} ({:.1} MB)\n",
        status.pid,
        status.command,
        status.mode,
        status.seconds,
        status.hound,
        status.events,
        status.events_per_second / 1e3,
        status.capture.display(),
        status.capture_bytes as f64 / 1e6,
    )
}

fn left_words(left: &Existing) -> String {
    match left.state() {
        State::Dormant => "libhound.so is in it, asleep; the next attach uses it, `hound detach --unload` takes it out".into(),
        State::Armed { drainer } if is_drained(left) => format!("hound process {drainer} has libhound.so at work in it"),
        State::Armed { .. } => "libhound.so is hooked in, and the hound that did it is gone; `hound detach` repairs that".into(),
        State::HalfBuilt => "a hound died on its way in; `hound detach --unload` takes out what it left".into(),
        State::OtherVersion => {
            "libhound.so of another version is in it; the hound of that version takes it out: `hound detach --unload`".into()
        }
    }
}

fn left_json(left: &Existing) -> Value {
    let (state, drainer) = match left.state() {
        State::Dormant => ("dormant", None),
        State::Armed { drainer } => ("armed", Some(drainer).filter(|_| is_drained(left))),
        State::HalfBuilt => ("half-built", None),
        State::OtherVersion => ("other-version", None),
    };
    let (ring, attachment) = left.version();
    json!({"state": state, "drainer": drainer, "ring_version": ring, "attachment_version": attachment})
}

/// Whether a living hound records. In doubt it does.
fn is_drained(left: &Existing) -> bool {
    left.is_drained().unwrap_or(true)
}

fn number(pid: u32) -> anyhow::Result<i32> {
    i32::try_from(pid).ok().filter(|pid| *pid > 0).with_context(|| format!("{pid} is no process id"))
}

/// Ends a recording, or repairs what is left of one.
pub fn detach(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    let pid = args.pid;
    if let Some(answer) = ask_session(pid, &Request::Detach { unload: args.unload })? {
        let Answer::Done { capture } = answer else { bail!("the session on process {pid} gave an answer to something else") };
        eprintln!("hound: detached from {pid}; capture in {}", capture.display());
        return Ok(ExitCode::SUCCESS);
    }
    let cannot = || format!("cannot detach from process {pid}");
    let Some(mut left) = find(number(pid)?).with_context(cannot)? else {
        bail!("process {pid} is not being recorded, and nothing of hound is in it");
    };
    match left.state() {
        State::Armed { drainer } if is_drained(&left) => {
            bail!("hound process {drainer} records process {pid}, and does not answer here; ask it to end: kill -INT {drainer}")
        }
        State::Armed { .. } => {
            let stall = left.unpatch(Instant::now() + PATIENCE).with_context(cannot)?;
            eprintln!("hound: detached from {pid} what an earlier hound had left (stall {:.1} ms)", stall.as_secs_f64() * 1e3);
        }
        State::Dormant if !args.unload => {
            eprintln!("hound: process {pid} is not being recorded; libhound.so is in it, asleep (--unload takes it out)");
        }
        _ => {}
    }
    let must_go = matches!(left.state(), State::HalfBuilt | State::OtherVersion);
    if args.unload || must_go {
        left.unload(Instant::now() + PATIENCE).with_context(|| format!("cannot take libhound.so out of process {pid}"))?;
        eprintln!("hound: nothing of hound is left in process {pid}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Reports on what was recorded so far.
pub fn snapshot(args: &SnapshotArgs) -> anyhow::Result<ExitCode> {
    let mut options = options(&args.what)?;
    let Answer::Flushed { capture, bytes } = ask(args.pid, &Request::Flush)? else { bail!("the session gave an answer to something else") };
    options.files = Some(files_of_target(args.pid, HeldFiles::default()));
    print(&report_growing(&capture, bytes, &options)?)
}

/// Puts a marker into a recording.
pub fn mark(args: &MarkArgs) -> anyhow::Result<ExitCode> {
    ask(args.pid, &Request::Mark { text: args.text.clone() })?;
    Ok(ExitCode::SUCCESS)
}
