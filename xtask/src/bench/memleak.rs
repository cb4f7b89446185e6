//! bcc's memleak on the same programs: how much slower it makes them, and what it says of a leak whose size is known.

use super::figures::{median, shown, spread, table};
use super::visit::{Pace, Pacing, Visit};
use super::{Plan, Section};
use crate::exec::Ending;
use crate::setup::{self, Purpose};
use crate::{exec, json, place, programs};
use anyhow::{Context, Result, bail, ensure};
use std::cmp::Ordering;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The function that loses its blocks, and how much it loses.
const CULPRIT: &str = "leak_here";
const LEAK: &str = "1000000";
/// So many times as long a target's operations take when memleak's probes are set: the traps alone.
const SLOWER: f64 = 1.5;
/// How long memleak may take to compile its programs and set its probes.
const LIMIT: Duration = Duration::from_secs(60);

/// Who looks.
#[derive(Clone, Copy)]
enum Tool {
    Hound(&'static str, &'static [&'static str]),
    Memleak(&'static str, &'static [&'static str]),
}

const TOOLS: [Tool; 4] = [
    Tool::Hound("hound, kernel, default budget", &[]),
    Tool::Hound("hound, --engine library", &["--engine", "library"]),
    Tool::Memleak("memleak -p", &[]),
    Tool::Memleak("memleak -p -s 100", &["-s", "100"]),
];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Hound(name, _) | Self::Memleak(name, _) => name,
        }
    }
}

/// A program: what it is called, its source, its arguments.
struct Target {
    name: &'static str,
    source: &'static str,
    arguments: &'static [&'static str],
    /// It waits between its operations, so that processor time tells more than how many it has done.
    is_paced: bool,
}

const TARGETS: [Target; 3] = [
    Target { name: "two million pairs a second", source: "steady.c", arguments: &["malloc", "470", "0"], is_paced: false },
    Target { name: "100,000 pairs a second, never idle", source: "steady.c", arguments: &["malloc", "10000", "0"], is_paced: false },
    Target {
        name: "100,000 pairs a second of many sizes, and a leak",
        source: "leaking.c",
        arguments: &["100000", "1024", LEAK],
        is_paced: true,
    },
];

/// Measures slowdown, then accuracy.
pub fn measure(plan: &Plan) -> Result<Section> {
    setup::ensure(&[Purpose::Memleak])?;
    let headers = headers()?;
    let mut slower = Vec::new();
    for target in &TARGETS {
        slower.push(slowdowns(plan, target, headers.as_ref())?);
    }
    let mut told = Vec::new();
    for tool in TOOLS {
        told.push(accuracy(plan, tool, headers.as_ref())?);
    }
    let mut headings = vec!["target (median and spread of what it takes, alone = 1)"];
    headings.extend(TOOLS.map(Tool::name));
    let detail = format!(
        "How many times as long the target takes, by its own count (the last one, which waits between its operations: by its processor time), the \
         same process alone and looked at in turns:\n\n{}\nWhat is told of a leak of 1 MB/s in a program of 100,000 pairs a second, after ten seconds:\n\n{}",
        table(&headings, &slower),
        table(&["", "bytes told, against the truth (ratio)", "the truth (MB)", "the 95 % interval, against the truth"], &told)
    );
    Ok(Section { name: "memleak", title: "Beside bcc's memleak", bounds: Vec::new(), detail })
}

fn start(target: &Target, plan: &Plan) -> Result<Pacing> {
    let name = target.source.trim_end_matches(".c");
    // memleak follows frame pointers, and nothing else.
    let program = programs::compiled(target.source, &format!("{name}-fp"), &["-fno-omit-frame-pointer"])?;
    Pacing::start(Command::new(program), target.arguments, &plan.scratch)
}

fn slowdowns(plan: &Plan, target: &Target, headers: Option<&PathBuf>) -> Result<Vec<String>> {
    eprintln!("bench: memleak: {}", target.name);
    let window = Duration::from_millis(plan.size(6000).max(500));
    let mut ratios: [Vec<f64>; TOOLS.len()] = Default::default();
    let process = start(target, plan)?;
    let mut before = process.pace(window)?;
    for round in 0..plan.runs {
        for step in 0..TOOLS.len() {
            let place = if round % 2 == 0 { step } else { TOOLS.len() - 1 - step };
            let meanwhile = with(plan, TOOLS[place], &process, headers, || process.pace(window))?;
            let after = process.pace(window)?;
            let ratio = |figure: fn(Pace) -> f64| figure(meanwhile) / ((figure(before) + figure(after)) / 2.0);
            ratios[place].push(if target.is_paced { ratio(|pace| pace.cpu_ns) } else { ratio(|pace| 1.0 / pace.rate) });
            before = after;
        }
    }
    let mut row = vec![target.name.to_owned()];
    row.extend(ratios.iter().map(|ratios| spread(ratios)));
    Ok(row)
}

/// Does something while a tool looks at the target.
fn with<T>(plan: &Plan, tool: Tool, process: &Pacing, headers: Option<&PathBuf>, doing: impl FnOnce() -> Result<T>) -> Result<T> {
    match tool {
        Tool::Hound(_, options) => {
            let visit = Visit::begin(process.pid(), options, &plan.scratch)?;
            let done = doing();
            visit.end()?;
            done
        }
        Tool::Memleak(_, options) => {
            let free = process.pace(Duration::from_millis(300))?;
            let said = plan.scratch.join("memleak.said");
            let mut memleak = Ending(memleak(process, options, &["3600"], headers, &said)?);
            // It says nothing when its probes are set; the target's pace does, twice in a row.
            let (began, mut slow) = (Instant::now(), 0);
            while slow < 2 {
                ensure!(memleak.0.try_wait().context("cannot wait for memleak")?.is_none(), "memleak: {}", last_line(&said));
                ensure!(began.elapsed() < LIMIT, "memleak makes nothing slower: {}", last_line(&said));
                // None done is slow, too.
                let is_slow = process.pace(Duration::from_millis(200))?.cpu_ns.partial_cmp(&(SLOWER * free.cpu_ns)) != Some(Ordering::Less);
                slow = if is_slow { slow + 1 } else { 0 };
            }
            let done = doing();
            interrupt(&memleak);
            exec::ended(&mut memleak.0, "memleak", LIMIT)?;
            done
        }
    }
}

fn memleak(process: &Pacing, options: &[&str], times: &[&str], headers: Option<&PathBuf>, said: &PathBuf) -> Result<std::process::Child> {
    let program = exec::find("memleak-bpfcc").context("there is no memleak-bpfcc in PATH")?;
    let mut command = Command::new(program);
    command.args(["-p", &process.pid().to_string(), "-o", "0", "-T", "40"]).args(options).args(times).env("PYTHONUNBUFFERED", "1");
    if let Some(headers) = headers {
        command.env("BCC_KERNEL_SOURCE", headers);
    }
    let file = File::create(said).with_context(|| format!("cannot create {}", said.display()))?;
    let errors = file.try_clone().context("cannot share a file")?;
    command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn().context("cannot start memleak")
}

fn interrupt(memleak: &Ending) {
    if let Some(pid) = i32::try_from(memleak.0.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT); // it may have ended
    }
}

fn last_line(said: &PathBuf) -> String {
    fs::read_to_string(said).unwrap_or_default().trim().lines().last().unwrap_or("it said nothing").to_owned()
}

/// What a tool says of the leak after a while, against the target's own count.
fn accuracy(plan: &Plan, tool: Tool, headers: Option<&PathBuf>) -> Result<Vec<String>> {
    let seconds = plan.size(10).max(3);
    let (mut ratios, mut truths, mut intervals) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let process = start(&TARGETS[2], plan)?;
        let (told, low, high, truth) = match tool {
            Tool::Hound(_, options) => told_by_hound(plan, &process, options, seconds)?,
            Tool::Memleak(_, options) => told_by_memleak(plan, &process, options, seconds, headers)?,
        };
        ratios.push(told / truth);
        truths.push(truth / 1e6);
        if !low.is_nan() {
            intervals.push(format!("{}–{}", shown(low / truth), shown(high / truth)));
        }
    }
    let intervals = if intervals.is_empty() { "none given".to_owned() } else { intervals.join(", ") };
    Ok(vec![tool.name().to_owned(), spread(&ratios), shown(median(truths)), intervals])
}

fn told_by_hound(plan: &Plan, process: &Pacing, options: &[&str], seconds: u64) -> Result<(f64, f64, f64, f64)> {
    let visit = Visit::begin(process.pid(), options, &plan.scratch)?;
    let before = process.extra()?;
    thread::sleep(Duration::from_secs(seconds));
    let capture = visit.capture.clone();
    let truth = (process.extra()? - before) as f64;
    visit.end()?;
    let report = exec::output(Command::new(place::hound()).args(["report", "--all", "--format", "json"]).arg(&capture))?;
    let report = json::parse(&report)?;
    let sites = json::list(&report, &["sites"])?;
    let Some(site) = sites.iter().find(|site| site["stack"].to_string().contains(CULPRIT)) else {
        return Ok((0.0, f64::NAN, f64::NAN, truth));
    };
    let bound = |at: usize| site["live_bytes_ci95"][at].as_f64().unwrap_or(f64::NAN);
    Ok((site["live_bytes"].as_f64().context("a site without live_bytes")?, bound(0), bound(1), truth))
}

fn told_by_memleak(
    plan: &Plan,
    process: &Pacing,
    options: &[&str],
    seconds: u64,
    headers: Option<&PathBuf>,
) -> Result<(f64, f64, f64, f64)> {
    let said = plan.scratch.join("memleak.said");
    let mut memleak = Ending(memleak(process, options, &[&seconds.to_string(), "1"], headers, &said)?);
    // It reports so many seconds after its probes were set, and tells of that moment only.
    let mut counts = Vec::new();
    let began = Instant::now();
    while memleak.0.try_wait().context("cannot wait for memleak")?.is_none() {
        ensure!(began.elapsed() < LIMIT + Duration::from_secs(seconds), "memleak has not reported");
        let text = fs::read_to_string(&said).unwrap_or_default();
        if text.contains("outstanding allocations") {
            break;
        }
        counts.push((Instant::now(), process.extra()?));
        thread::sleep(Duration::from_millis(5));
    }
    exec::ended(&mut memleak.0, "memleak", LIMIT)?;
    let (Some((last, after)), text) = (counts.last().copied(), fs::read_to_string(&said).unwrap_or_default()) else {
        bail!("memleak: {}", last_line(&said))
    };
    ensure!(text.contains("outstanding allocations"), "memleak: {}", last_line(&said));
    let start = counts.iter().find(|(at, _)| last.duration_since(*at) <= Duration::from_secs(seconds)).map_or(0, |(_, count)| *count);
    Ok((told(&text), f64::NAN, f64::NAN, (after - start) as f64))
}

/// The bytes that memleak's report has for the culprit; 0 if it does not name it.
fn told(report: &str) -> f64 {
    let mut bytes = 0.0;
    let mut heading = 0.0;
    for line in report.lines() {
        if let Some((number, _)) = line.trim().split_once(" bytes in ") {
            heading = number.parse().unwrap_or(0.0);
        } else if line.contains(CULPRIT) {
            bytes += heading;
        }
    }
    bytes
}

/// Where the kernel's headers are, if not where its own name says: bcc looks at one directory only, in which the distribution's two are
/// joined by links. What memleak takes from them (the layout of saved registers) is the same in every kernel.
fn headers() -> Result<Option<PathBuf>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    if PathBuf::from(format!("/lib/modules/{}/build", release.trim())).exists() {
        return Ok(None);
    }
    let mut found: Vec<PathBuf> =
        fs::read_dir("/usr/src").context("cannot look for kernel headers")?.flatten().map(|entry| entry.path()).collect();
    found.sort();
    let named = |end: &str| {
        found.iter().rev().find(|path| path.to_string_lossy().contains("linux-headers-") && path.to_string_lossy().ends_with(end))
    };
    let (Some(common), Some(own)) = (named("-common"), named("-amd64")) else { bail!("there are no kernel headers in /usr/src") };
    let joined = place::scratch("headers")?;
    for from in [common, own] {
        for part in ["include", "arch"] {
            let to = joined.join(part);
            fs::create_dir_all(&to).with_context(|| format!("cannot create {}", to.display()))?;
            exec::output(Command::new("cp").args(["--recursive", "--symbolic-link", "--force"]).arg(from.join(part).join(".")).arg(&to))?;
        }
    }
    Ok(Some(joined))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_stacks_with_the_culprit() {
        let report = "[05:52:28] Top 3 stacks with outstanding allocations:\n\t880078 bytes in 810 allocations from stack\n\t\tplace_6+0x9 [leaking]\n\
                      \t2967000 bytes in 2967 allocations from stack\n\t\tleak_here+0xe [leaking]\n\t\tmain+0x2e9 [leaking]\n";
        assert_eq!(told(report), 2_967_000.0);
        assert_eq!(told(""), 0.0);
    }
}
