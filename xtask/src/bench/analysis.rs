//! How long questions to a large capture take: with an index and without, and in little memory; beside heaptrack's interpreter.

use super::bounds::Bound;
use super::column::{Column, Info, Target};
use super::figures::{median, mib, shown, table};
use super::{Plan, Section};
use crate::{exec, place, programs};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Pairs of events in the capture.
const PAIRS: u64 = 25_000_000;
/// In what memory the capture must be opened, and is to be.
const LIMITS: [u64; 2] = [1 << 30, 200 << 20];
/// Where heaptrack keeps what it runs itself.
const INTERPRETER: &str = "/usr/lib/heaptrack/libexec/heaptrack_interpret";

/// Records a program, asks questions of its capture, and measures how long the answers take.
pub fn measure(plan: &Plan) -> Result<Section> {
    let target = Target::new(programs::compiled("events.cpp", "events", &[])?, &[&plan.size(PAIRS).to_string()]);
    let capture = plan.scratch.join("analysis.hound");
    exec::output(&mut target.command(Column::Hound, &capture))?;
    let info = Info::of(&capture)?;
    let millions = info.events as f64 / 1e6;
    // The bounds are for 50 million.
    let scaled = |seconds: f64| seconds * 50.0 / millions;

    let index = |arguments: &[&str]| hound("index", &capture, arguments);
    let opened = timed(plan, || index(&["--remove"]).map(drop), || index(&[]))?;
    let index_bytes = fs::metadata(index_of(&capture)).map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512)?;
    let again = timed(plan, || Ok(()), || index(&[]))?;
    let regex = ["--function", "descend<[37]>", "--by", "site", "--allocations"];
    let filtered = timed(plan, || Ok(()), || hound("report", &capture, &regex))?;
    let picture = plan.scratch.join("analysis.svg").display().to_string();
    let flame = timed(plan, || Ok(()), || hound("flame", &capture, &["--allocated", "-o", &picture]))?;
    let graph = timed(plan, || Ok(()), || hound("graph", &capture, &["-o", &picture]))?;
    let one_core = timed(plan, || Ok(()), || on_one_core(&capture))?;
    let streamed = timed(plan, || Ok(()), || hound("report", &capture, &["--no-index"]))?;
    let mut limited = Vec::new();
    for limit in LIMITS {
        index(&["--remove"])?;
        // Once each: what counts is whether it goes through.
        let seconds = within(limit, &capture).unwrap_or_else(|error| {
            eprintln!("bench: under {} MiB: {error:#}", limit >> 20);
            f64::NAN
        });
        limited.push(seconds);
    }
    index(&["--remove"])?;
    fs::remove_file(&capture).with_context(|| format!("cannot remove {}", capture.display()))?;
    let heaptrack = heaptrack(plan, &target)?;

    let row = |what: &str, seconds: f64| vec![what.to_owned(), shown(seconds), shown(millions / seconds)];
    let mut rows = vec![
        row("`hound index`: opened the first time", opened),
        row("`hound index` again: opened, and all of it compared with its checksums", again),
        row("`hound report --function REGEX --by site`", filtered),
        row("`hound flame --allocated`", flame),
        row("`hound graph`", graph),
        row("`hound report --no-index`: replayed", streamed),
        row("the same on one core", one_core),
    ];
    rows.extend(heaptrack.iter().map(|(what, seconds)| row(what, *seconds)));
    let sizes = format!(
        "\nThe capture is of {} MiB, its index takes {} MiB on disk.\n",
        shown(mib(info.file_bytes as f64)),
        shown(mib(index_bytes as f64))
    );
    Ok(Section {
        name: "analysis",
        title: "Questions to a capture of 50 million events",
        bounds: vec![
            Bound::new("opened the first time (s)", scaled(opened), 15.0, 4.0),
            Bound::new("opened again (s)", scaled(again), 0.5, 0.05),
            Bound::new("opened the first time under a memory limit of 1 GiB (s)", scaled(limited[0]), 15.0, 4.0),
            Bound::new("opened the first time under a memory limit of 200 MiB (s)", scaled(limited[1]), 60.0, 15.0),
            Bound::new("filter with a function's regular expression, by call path (s)", scaled(filtered), 2.0, 0.2),
            Bound::new("flamegraph (s)", scaled(flame), 3.0, 0.5),
            Bound::new("replay on one core (ns an event)", one_core * 1e3 / millions, 200.0, 50.0),
        ],
        detail: table(&["", "time (s)", "million events a second"], &rows) + &sizes,
    })
}

/// The median of all rounds.
fn timed(plan: &Plan, before: impl Fn() -> Result<()>, run: impl Fn() -> Result<f64>) -> Result<f64> {
    let mut seconds = Vec::new();
    for _ in 0..plan.runs {
        before()?;
        seconds.push(run()?);
    }
    Ok(median(seconds))
}

fn seconds(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    exec::output(command)?;
    Ok(start.elapsed().as_secs_f64())
}

fn hound(command: &str, capture: &Path, arguments: &[&str]) -> Result<f64> {
    seconds(Command::new(place::hound()).arg(command).arg(capture).args(arguments))
}

fn on_one_core(capture: &Path) -> Result<f64> {
    seconds(Command::new("taskset").args(["-c", "0"]).arg(place::hound()).arg("report").arg(capture).arg("--no-index"))
}

fn index_of(capture: &Path) -> PathBuf {
    let mut name = capture.as_os_str().to_owned();
    name.push(".index");
    name.into()
}

/// How long it takes to make the index, and then a report, in a cgroup with so little memory.
fn within(limit: u64, capture: &Path) -> Result<f64> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (root, file) = if unified { ("/sys/fs/cgroup", "memory.max") } else { ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") };
    let group = Path::new(root).join(format!("hound-bench-{}", std::process::id()));
    fs::create_dir(&group).with_context(|| format!("cannot make a cgroup {}", group.display()))?;
    let limited = fs::write(group.join(file), limit.to_string()).context("cannot limit a cgroup's memory");
    let run = || {
        let start = Instant::now();
        let script = "echo $$ > \"$0/cgroup.procs\" && \"$1\" index \"$2\" && exec \"$1\" report \"$2\" --limit 1";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(&group).arg(place::hound()).arg(capture);
        exec::output(&mut shell)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let seconds = limited.and_then(|()| run());
    let _ = fs::remove_dir(&group); // it may hold on to pages of the file
    seconds
}

/// What heaptrack's interpreter and its report take for the same program.
fn heaptrack(plan: &Plan, target: &Target) -> Result<Vec<(&'static str, f64)>> {
    let raw = plan.scratch.join("analysis-heaptrack");
    let mut record = Command::new("heaptrack");
    exec::output(record.arg("--raw").arg("-o").arg(&raw).arg(&target.program).args(&target.arguments))?;
    let written = ["raw.zst", "zst", "raw.gz", "gz"].map(|end| raw.with_extension(end)).into_iter().find(|path| path.exists());
    let Some(written) = written else { bail!("heaptrack wrote nothing beside {}", raw.display()) };
    let interpreted = plan.scratch.join("analysis-interpreted.zst");
    let unpack = if written.extension().is_some_and(|end| end == "gz") { "gzip -dc" } else { "zstd -dc" };
    let (mut interpret, mut print) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let start = Instant::now();
        let script = format!("{unpack} \"$0\" | \"$1\" | zstd -c > \"$2\"");
        let mut shell = Command::new("sh");
        exec::output(shell.args(["-c", &script]).arg(&written).arg(INTERPRETER).arg(&interpreted).stderr(Stdio::null()))?;
        interpret.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        exec::output(Command::new("heaptrack_print").arg("-f").arg(&interpreted).stdout(Stdio::null()))?;
        print.push(start.elapsed().as_secs_f64());
    }
    fs::remove_file(&written).and_then(|()| fs::remove_file(&interpreted)).context("cannot remove heaptrack's files")?;
    Ok(vec![("`heaptrack_interpret` of the same program", median(interpret)), ("`heaptrack_print` of that", median(print))])
}
