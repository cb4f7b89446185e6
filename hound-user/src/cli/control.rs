//! `hound status`, `detach`, `snapshot` and `mark`: what is said to sessions that run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hound_inject::{Error, Existing, Refusal, State, find};
use serde_json::{Value, json};

use super::info::Format;
use super::report::{What, options, print};
use crate::report::report_growing;
use crate::session::{Answer, Mode, Request, Status, ask_session, files_of_target, kernel_session, sessions, short};
use crate::symbols::HeldFiles;

const STATUS_EXAMPLES: &str = "\
Examples:
  hound status                          every recording that runs
  hound status -p 4242                  this one, or what an earlier one left in the process
  hound status --format json | jq '.sessions[].pid'";

/// Show the recordings that run: those of this user, and for root everybody's.
#[derive(clap::Args, Debug)]
#[command(before_help = STATUS_EXAMPLES)]
pub struct StatusArgs {
    /// Only of this process; also what an earlier recording left in it.
    #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
    pid: Option<u32>,
    /// For people or for programs.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Which recording is meant.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Which {
    /// The process.
    #[arg(short, long, value_name = "PID", value_parser = parse_pid, required_unless_present = "kernel")]
    pid: Option<u32>,
    /// The recording of the kernel's memory (`hound attach --kernel`), of this process' making or, without -p, of the whole host.
    #[arg(long)]
    kernel: bool,
}

impl Which {
    /// As sessions are numbered.
    fn target(self) -> u32 {
        if self.kernel { kernel_session(self.pid) } else { self.pid.unwrap_or(0) }
    }
}

const DETACH_EXAMPLES: &str = "\
Examples:
  hound detach -p 4242                  end the recording; the library stays, asleep, for the next
  hound detach -p 4242 --unload         leave nothing in the process
  hound detach --kernel                 end the recording of the kernel's memory";

/// End a recording. Where the hound that recorded is gone, repair what it left.
#[derive(clap::Args, Debug)]
#[command(before_help = DETACH_EXAMPLES)]
pub struct DetachArgs {
    /// Which recording.
    #[command(flatten)]
    which: Which,
    /// Take the library out of the process, too.
    #[arg(long)]
    unload: bool,
}

const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  hound snapshot -p 4242                      what was allocated since the attach and lives
  hound snapshot -p 4242 --peak --by function
  hound snapshot -p 4242 --min-lifetime 1min --format json";

/// Report on a recording up to now, while it goes on.
#[derive(clap::Args, Debug)]
#[command(before_help = SNAPSHOT_EXAMPLES)]
pub struct SnapshotArgs {
    /// Which recording.
    #[command(flatten)]
    which: Which,
    /// What to report, and how.
    #[command(flatten)]
    what: What,
}

const MARK_EXAMPLES: &str = "\
Examples:
  hound mark -p 4242 'cache is full'    an event among the others, which `hound dump` shows";

/// Put a marker with a text into a recording.
#[derive(clap::Args, Debug)]
#[command(before_help = MARK_EXAMPLES)]
pub struct MarkArgs {
    /// Which recording.
    #[command(flatten)]
    which: Which,
    /// What it says (up to 1024 bytes).
    text: String,
}

const MODE_EXAMPLES: &str = "\
Examples:
  hound mode -p 4242 full               the suspect is found: from now on every allocation
  hound mode -p 4242 sampled            and back
  hound mode -p 4242 off                the session stays, and nothing is recorded";

/// Change how a running session records, in the same capture.
#[derive(clap::Args, Debug)]
#[command(before_help = MODE_EXAMPLES)]
pub struct ModeArgs {
    /// The process.
    #[arg(short, long, value_name = "PID", value_parser = parse_pid)]
    pid: u32,
    /// How to go on.
    #[arg(value_enum)]
    mode: To,
}

/// How to go on.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum To {
    /// Some allocations, from which all are estimated.
    Sampled,
    /// Every allocation.
    Full,
    /// Page faults alone.
    Faults,
    /// Nothing, until the mode is changed again.
    Off,
}

/// Longest time to repair what a dead hound left.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process id as it is typed.
pub(super) fn parse_pid(text: &str) -> Result<u32, String> {
    let number = text.parse::<i32>().ok().filter(|pid| *pid > 0);
    number.map(|pid| pid as u32).ok_or_else(|| "that is no process id; `ps -e` lists them, `hound attach -n` takes a name".into())
}

/// The same as the kernel has it. It fits: it was parsed so.
fn number(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(i32::MAX)
}

const NO_KERNEL_SESSION: &str =
    "the kernel's memory is not being recorded (so); `hound status` lists what is, `hound attach --kernel` begins";

/// Asks a session that must be there.
fn ask(which: Which, request: &Request) -> anyhow::Result<Answer> {
    if let Some(answer) = ask_session(which.target(), request)? {
        return Ok(answer);
    }
    let Some(pid) = which.pid.filter(|_| !which.kernel) else { bail!("{NO_KERNEL_SESSION}") };
    let left = find(number(pid)).with_context(|| format!("process {pid} is not being recorded"))?;
    if let Some(State::Armed { drainer }) = left.as_ref().filter(|left| is_drained(left)).map(Existing::state) {
        bail!("{}", elsewhere(pid, drainer));
    }
    bail!("process {pid} is not being recorded; `hound status` lists what is, `hound attach -p {pid}` begins")
}

/// A session that is there and cannot be spoken to from here.
fn elsewhere(pid: u32, hound: u32) -> String {
    let user = std::fs::metadata(format!("/proc/{hound}")).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).ok();
    let own = nix::unistd::geteuid().as_raw();
    match user {
        Some(user) if user != own => {
            format!("hound process {hound} of user {user} records process {pid}; only that user and root may ask it anything, or end it")
        }
        _ => format!(
            "hound process {hound} records process {pid}, and its socket is not where this hound looks (another XDG_RUNTIME_DIR, or another \
             container?); `kill -INT {hound}` ends the recording"
        ),
    }
}

/// What is in a process beside a session that answers.
enum Left {
    /// It was attached to.
    Behind(Existing),
    /// It was started so.
    FromItsStart,
}

/// Prints all sessions.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let (all, silent) = sessions(args.pid);
    let left = match args.pid.map(|pid| (pid, find(number(pid)))) {
        None => None,
        Some((_, Ok(left))) => left.map(Left::Behind),
        Some((_, Err(Error::Refused(Refusal::Launched)))) => Some(Left::FromItsStart),
        Some((pid, Err(error))) => return Err(anyhow::Error::from(error).context(format!("cannot look into process {pid}"))),
    };
    for silent in silent {
        eprintln!("hound: {silent}");
    }
    if args.format == Format::Json {
        let left = left.as_ref().map_or(Value::Null, left_json);
        return print(&format!("{}\n", json!({"sessions": all, "library": left})));
    }
    let mut text: String = all.iter().map(line).collect();
    match (&left, args.pid) {
        (Some(left), Some(pid)) => text += &format!("process {pid}: {}\n", left_words(left, pid, !all.is_empty())),
        (None, Some(pid)) if all.is_empty() => text += &format!("process {pid} is not being recorded, and nothing of hound is in it\n"),
        _ if all.is_empty() => {
            text += &format!("nothing is being recorded{}\n", if nix::unistd::geteuid().is_root() { "" } else { " by this user" })
        }
        _ => {}
    }
    print(&text)
}

/// A session, for people.
fn line(status: &Status) -> String {
    if status.mode == "kernel" {
        return kernel_line(status);
    }
    let live = match status.live_bytes {
        Some(bytes) => format!("live {}", megabytes(bytes)),
        None if status.mode == "launch" => format!("live: see `hound snapshot -p {}`", status.pid),
        None => "live not counted (too busy)".to_owned(),
    };
    let overhead = status.overhead.map_or_else(|| "idle".to_owned(), |share| format!("overhead {:.0} % (estimate)", share * 100.0));
    let lost = if status.lost_events == 0 { "nothing lost".to_owned() } else { format!("{} events LOST", status.lost_events) };
    let (seconds, rate) = (Duration::from_secs_f64(status.seconds.max(0.0)), status.events_per_second / 1e3);
    let stall = match status.mode.as_str() {
        "launch" => String::new(),
        _ => format!("; longest stall {:.1} ms", status.longest_stall_ms),
    };
    format!(
        "process {} ({}), {} mode for {} by hound process {}\n  {} events, {rate:.1} k/s; {live}; {lost}; {overhead}{stall}\n  resident {}; capture {} ({})\n",
        status.pid,
        status.command,
        status.mode,
        short(seconds),
        status.hound,
        status.events,
        megabytes(status.resident),
        status.capture.display(),
        megabytes(status.capture_bytes),
    )
}

/// A session on the kernel's memory.
fn kernel_line(status: &Status) -> String {
    let lost = if status.lost_events == 0 { "nothing lost".to_owned() } else { format!("{} events LOST", status.lost_events) };
    format!(
        "the kernel's memory{}, for {} by hound process {}\n  {} events, {:.1} k/s; {lost}; capture {} ({})\n",
        if status.pid == 0 { String::new() } else { format!(" of process {} ({})", status.pid, status.command) },
        short(Duration::from_secs_f64(status.seconds.max(0.0))),
        status.hound,
        status.events,
        status.events_per_second / 1e3,
        status.capture.display(),
        megabytes(status.capture_bytes),
    )
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn left_words(left: &Left, pid: u32, answers: bool) -> String {
    let left = match left {
        Left::Behind(left) => left,
        Left::FromItsStart if answers => return "libhound.so is in it since its start".into(),
        Left::FromItsStart => {
            return "libhound.so is in it since its start (by `hound run` or LD_PRELOAD, of this or of the program it was forked from), and \
                    no hound that answers here records it"
                .into();
        }
    };
    match left.state() {
        State::Dormant => {
            format!("libhound.so is in it, asleep; the next attach uses it, `hound detach -p {pid} --unload` takes it out")
        }
        State::Armed { drainer } if answers => format!("libhound.so is at work in it, for hound process {drainer}"),
        State::Armed { drainer } if is_drained(left) => elsewhere(pid, drainer),
        State::Armed { .. } => {
            format!("libhound.so is hooked in, and the hound that did it is gone; `hound detach -p {pid}` repairs that")
        }
        State::HalfBuilt => format!("a hound died on its way in; `hound detach -p {pid}` takes out what it left"),
        State::OtherVersion => {
            "libhound.so of another version of hound is in it; only that version can take it out, by `hound detach --unload`".into()
        }
    }
}

fn left_json(left: &Left) -> Value {
    let Left::Behind(left) = left else { return json!({"state": "launched"}) };
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

/// Ends a recording, or repairs what is left of one.
pub fn detach(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    let pid = args.which.pid.unwrap_or(0);
    if let Some(answer) = ask_session(args.which.target(), &Request::Detach { unload: args.unload })? {
        let Answer::Done { capture } = answer else { bail!("the session gave an answer to something else") };
        match args.which.kernel {
            true => eprintln!("hound: the kernel's memory is recorded no longer; capture in {}", capture.display()),
            false => eprintln!("hound: detached from {pid}; capture in {}", capture.display()),
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.which.kernel {
        bail!("{NO_KERNEL_SESSION}");
    }
    let cannot = || format!("cannot detach from process {pid}");
    let Some(mut left) = find(number(pid)).with_context(cannot)? else {
        bail!("process {pid} is not being recorded, and nothing of hound is in it");
    };
    match left.state() {
        State::Armed { drainer } if is_drained(&left) => {
            bail!("{}", elsewhere(pid, drainer))
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
    let Answer::Flushed { capture, bytes } = ask(args.which, &Request::Flush)? else {
        bail!("the session gave an answer to something else")
    };
    options.files = Some(files_of_target(args.which.pid.unwrap_or(std::process::id()), HeldFiles::default()));
    print(&report_growing(&capture, bytes, &options)?)
}

/// Changes the mode of a session.
pub fn mode(args: &ModeArgs) -> anyhow::Result<ExitCode> {
    let to = match args.mode {
        To::Sampled => Mode::Sampled,
        To::Full => Mode::Full,
        To::Faults => Mode::Faults,
        To::Off => Mode::Off,
    };
    let Answer::Done { capture } = ask(Which { pid: Some(args.pid), kernel: false }, &Request::Mode { to })? else {
        bail!("the session gave an answer to something else")
    };
    eprintln!("hound: process {} is recorded in mode {} now; capture in {}", args.pid, to.name(), capture.display());
    Ok(ExitCode::SUCCESS)
}

/// Puts a marker into a recording.
pub fn mark(args: &MarkArgs) -> anyhow::Result<ExitCode> {
    let Answer::Done { capture } = ask(args.which, &Request::Mark { text: args.text.clone() })? else {
        bail!("the session gave an answer to something else")
    };
    eprintln!("hound: marked in {}", capture.display());
    Ok(ExitCode::SUCCESS)
}
