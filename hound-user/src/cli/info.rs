//! `hound info`: what a capture is, at a glance. Counts come from decoding the events, so they are true also for a damaged file.

use crate::capture::model::{Alloc, Event, Free, Stamped, StreamId};
use crate::capture::{Anomalies, Capture, HeapBefore, Reach, SessionInfo, UnwindCounters, Visitor};
use crate::heap::{Part, Sampling};
use crate::view::share_of;
use anyhow::Context;
use hound_common::hook::Kind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status of a command that could not do its job, or found that something is wrong.
pub const NOT_DONE: u8 = 2;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

const EXAMPLES: &str = "\
Examples:
  hound info app.hound                          what was recorded, when, and how completely
  hound info app.hound --format json | jq .end  how the recording ended";

/// Show what a capture contains: the program, how it ended, events by kind, threads, modules, and what was lost.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    pub file: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Events by what they are.
struct Count {
    kinds: [u64; 256],
    others: BTreeMap<&'static str, u64>,
    last_ns: u64,
}

impl Visitor for Count {
    fn alloc(&mut self, time_ns: u64, _: StreamId, alloc: &Alloc) {
        self.kinds[alloc.kind as usize] += 1;
        self.last_ns = time_ns;
    }

    fn free(&mut self, time_ns: u64, _: StreamId, free: &Free) {
        self.kinds[free.kind as usize] += 1;
        self.last_ns = time_ns;
    }

    fn other(&mut self, event: &Stamped) {
        *self.others.entry(name(&event.event)).or_default() += 1;
        self.last_ns = event.time_ns;
    }
}

impl Count {
    fn by_kind(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.others.clone();
        for (number, count) in self.kinds.iter().enumerate().filter(|(_, count)| **count > 0) {
            let name = Kind::from_u8(number as u8).map_or("unknown", Kind::name);
            *all.entry(name).or_default() += count;
        }
        all
    }
}

/// What `hound dump` and `hound info` call an event.
pub(super) fn name(event: &Event) -> &'static str {
    match event {
        Event::Alloc(_) => "alloc",
        Event::Free(_) => "free",
        Event::Map { .. } => "map",
        Event::Unmap { .. } => "unmap",
        Event::Remap { .. } => "remap",
        Event::Module(_) => "module",
        Event::ModuleGone { .. } => "module_gone",
        Event::Thread(_) => "thread",
        Event::Marker(_) | Event::Mark(_) => "marker",
        Event::Process(_) => "process",
        Event::Mode { .. } => "mode",
        Event::Rate(_) => "rate",
        Event::Window { .. } => "window",
        Event::Liveness { .. } => "liveness",
        Event::Stripped { .. } => "stripped",
        Event::Culled(_) => "culled",
        Event::MapRss { .. } => "map_rss",
        Event::ProcessRss { .. } => "process_rss",
        Event::ProcessMemory(_) => "process_memory",
        Event::ProcessPeak { .. } => "process_peak",
        Event::Fault(_) => "fault",
        Event::Lost { .. } => "lost",
        Event::End { .. } => "end",
        Event::Unwinding(_) => "unwinding",
        Event::Other { .. } => "other",
    }
}

/// What a `LOST_…` number means.
pub(super) fn loss_reason(reason: u8) -> &'static str {
    use hound_common::event::*;
    match reason {
        LOST_RING_FULL => "ring full",
        LOST_NO_STREAM => "no stream for a thread",
        LOST_NESTED => "signal handlers nested too deeply",
        LOST_DAMAGED => "ring damaged by the target",
        LOST_DISK => "disk full",
        LOST_NO_MEMORY => "no memory for a deeper stack",
        LOST_UNFINISHED => "not finished when hound detached",
        LOST_SAMPLES_FULL => "table of sampled blocks full",
        LOST_BUSY => "table of sampled blocks locked",
        LOST_INTERRUPTED => "interrupted",
        LOST_BUDGET => "more changes of mappings than the budget allows",
        _ => "unknown",
    }
}

/// What an `END_…` number means.
pub(super) fn end_reason(reason: u8) -> &'static str {
    use hound_common::event::*;
    match reason {
        END_THREAD => "thread ended",
        END_EXIT => "exit",
        END_SIGNAL => "signal",
        END_EXEC => "exec",
        END_DETACH => "detach",
        END_NO_MEMORY => "killed by the kernel for want of memory (OOM)",
        END_UNKNOWN => "not known how",
        _ => "unknown",
    }
}

/// Prints it.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut capture = Capture::open(&args.file)?;
    let mut count = Count { kinds: [0; 256], others: BTreeMap::new(), last_ns: 0 };
    let anomalies = capture.visit(&mut count);
    let facts = facts(&capture, &count, &anomalies);
    let text = match args.format {
        Format::Json => format!("{facts}\n"),
        Format::Text => text(&capture, &facts, &anomalies)?,
    };
    super::dump::quiet_pipe(std::io::stdout().write_all(text.as_bytes())).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn facts(capture: &Capture, count: &Count, anomalies: &Anomalies) -> Value {
    let by_kind = count.by_kind();
    let events: u64 = by_kind.values().sum();
    let modules = capture.modules().iter().map(|span| {
        let build_id: String = span.module.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
        let gone = (span.to_ns != u64::MAX).then_some(span.to_ns);
        json!({"path": span.module.path, "start": span.module.start, "end": span.module.end, "bias": span.module.bias,
            "build_id": build_id, "from_ns": span.from_ns, "to_ns": gone})
    });
    let threads = capture.streams().iter().map(|stream| {
        json!({"stream": stream.id.0, "process": stream.process.0, "tid": stream.tid, "level": stream.level, "names": stream.names, "events": stream.events,
            "from_ns": stream.from_ns, "to_ns": stream.to_ns})
    });
    let processes = capture.processes().iter().map(|info| {
        json!({"number": info.id.0, "pid": info.pid, "parent": info.parent, "command": info.command, "from": info.from.map(|from| from.0),
            "from_ns": info.from_ns, "to_ns": (info.to_ns != u64::MAX).then_some(info.to_ns),
            "how": (info.end != 0).then(|| end_reason(info.end)), "value": info.value})
    });
    let losses = capture
        .losses()
        .iter()
        .map(|loss| json!({"t": loss.time_ns, "stream": loss.stream.0, "count": loss.count, "reason": loss_reason(loss.reason)}));
    let end = capture.end().map(|end| {
        let mut value = json!(end);
        value["how"] = json!(end_reason(end.reason));
        value
    });
    let anomalies: Vec<String> = anomalies.0.iter().map(ToString::to_string).collect();
    let reach = capture.reach().map(|reach| {
        let Reach { held_ns, memory_bytes, blocks, bytes, unreachable } = reach;
        json!({"held_ns": held_ns, "memory_bytes": memory_bytes, "blocks": blocks, "bytes": bytes, "unreachable_blocks": unreachable.len()})
    });
    json!({
        "session": capture.session(),
        "file_bytes": capture.file_bytes(),
        "events": events,
        "bytes_per_event": if events == 0 { 0.0 } else { capture.file_bytes() as f64 / events as f64 },
        "by_kind": by_kind,
        "duration_ns": count.last_ns,
        "parts": parts(capture, count.last_ns),
        "modules": modules.collect::<Vec<_>>(),
        "processes": processes.collect::<Vec<_>>(),
        "threads": threads.collect::<Vec<_>>(),
        "stacks": capture.stacks().len(),
        "lost_events": capture.losses().iter().map(|loss| loss.count).fold(0, u64::saturating_add),
        "losses": losses.collect::<Vec<_>>(),
        "unwinding": capture.unwinding(),
        "symbols": capture.has_symbols(),
        "reach": reach,
        "end": end,
        "anomalies": anomalies,
    })
}

fn text(capture: &Capture, facts: &Value, anomalies: &Anomalies) -> anyhow::Result<String> {
    let session = capture.session();
    let mut out = String::new();
    for anomaly in &anomalies.0 {
        writeln!(out, "warning: {anomaly}")?;
    }
    writeln!(out, "command    {}", session.command.join(" "))?;
    writeln!(out, "process    {} ({} mode, hound {})", session.pid, session.mode, session.hound_version)?;
    writeln!(out, "machine    {} {}", session.architecture, session.machine)?;
    writeln!(out, "duration   {:.3} s", count_seconds(facts))?;
    let per_event = facts["bytes_per_event"].as_f64().unwrap_or(0.0);
    writeln!(out, "size       {} bytes, {} events, {per_event:.2} bytes an event", facts["file_bytes"], facts["events"])?;
    sampled(&mut out, facts)?;
    attached(&mut out, session)?;
    match capture.end() {
        Some(end) => writeln!(out, "end        {} {}", end_reason(end.reason), end.value)?,
        None => writeln!(out, "end        none: the capture was cut")?,
    }
    if let Some(Reach { held_ns, memory_bytes, blocks, unreachable, .. }) = capture.reach() {
        let (mib, ms, lost) = (memory_bytes >> 20, held_ns as f64 / 1e6, unreachable.len());
        writeln!(out, "reached    all but {lost} of {blocks} blocks at its exit, which was held for {ms:.1} ms ({mib} MiB looked at)")?;
    }
    writeln!(out, "lost       {} events", facts["lost_events"])?;
    for loss in capture.losses() {
        writeln!(out, "  {:>12}  {} at {:.3} s", loss.count, loss_reason(loss.reason), loss.time_ns as f64 / 1e9)?;
    }
    writeln!(out, "events")?;
    for (kind, count) in facts["by_kind"].as_object().into_iter().flatten() {
        writeln!(out, "  {:>12}  {kind}", count.to_string())?;
    }
    let u = capture.unwinding();
    writeln!(out, "frames     {} verified, {} stepped, {} through frame pointers", u.verified, u.stepped, u.frame_pointer)?;
    let UnwindCounters { spliced, general, full, evaluated, .. } = u;
    writeln!(out, "stacks     {spliced} spliced, {general} by the general walk, {full} unwound in full; {evaluated} rows evaluated")?;
    processes(&mut out, capture)?;
    writeln!(out, "threads    {}", capture.streams().len())?;
    for stream in capture.streams() {
        let nested = if stream.level > 0 { format!(" (signal level {})", stream.level) } else { String::new() };
        writeln!(out, "  {:>12}  {} events{nested} {}", stream.tid, stream.events, stream.names.join(", "))?;
    }
    writeln!(out, "modules    {}", capture.modules().len())?;
    for span in capture.modules() {
        writeln!(out, "  {:012x}-{:012x}  {}", span.module.start, span.module.end, span.module.path)?;
    }
    Ok(out)
}

/// The processes, where there are several.
fn processes(out: &mut String, capture: &Capture) -> anyhow::Result<()> {
    let all = capture.processes();
    if all.len() < 2 {
        return Ok(());
    }
    writeln!(out, "processes  {}", all.len())?;
    for info in all {
        let from = info.from_ns as f64 / 1e9;
        let ended = match info.end {
            0 if info.to_ns == u64::MAX => "to the end".to_owned(),
            end => format!("to {:.3} s: {} {}", info.to_ns as f64 / 1e9, end_reason(end), info.value),
        };
        writeln!(out, "  {:>12}  {}; from {from:.3} s {ended}", info.pid, info.command.join(" "))?;
    }
    Ok(())
}

/// How the capture was sampled, part by part; nothing if it was not.
fn parts(capture: &Capture, end_ns: u64) -> Vec<Value> {
    let Some(sampling) = Sampling::of(capture.sampling()) else { return Vec::new() };
    let part = |part: &Part| {
        json!({"from_ns": part.from_ns, "to_ns": part.to_ns.min(end_ns), "mode": part.name(), "interval": part.intervals,
            "windows": part.windows.len(), "share_observed": sampling.share_observed(part)})
    };
    sampling.parts().iter().map(part).collect()
}

/// The parts as lines.
fn sampled(out: &mut String, facts: &Value) -> anyhow::Result<()> {
    for part in facts["parts"].as_array().into_iter().flatten() {
        let [from, to] = ["from_ns", "to_ns"].map(|key| part[key].as_u64().unwrap_or(0) as f64 / 1e9);
        write!(out, "part       {from:.3} to {to:.3} s: {}", part["mode"].as_str().unwrap_or(""))?;
        if let (Some(least), Some(most)) = (part["interval"][0].as_u64(), part["interval"][1].as_u64()) {
            let every = if least == most { least.to_string() } else { format!("{least} to {most}") };
            write!(out, ", one sample every {every} bytes")?;
        }
        match part["windows"].as_u64() {
            Some(0) | None => writeln!(out)?,
            Some(windows) => {
                writeln!(out, ", {} of it observed in {windows} windows", share_of(part["share_observed"].as_f64().unwrap_or(0.0)))?;
            }
        }
    }
    Ok(())
}

/// What there is to say of a program that ran before it was recorded.
fn attached(out: &mut String, session: &SessionInfo) -> anyhow::Result<()> {
    session.covered.iter().try_for_each(|what| writeln!(out, "recorded   {what}"))?;
    session.not_covered.iter().try_for_each(|what| writeln!(out, "NOT        {what}"))?;
    for pool in &session.pools {
        writeln!(out, "pool {:<5} {}: {}", pool.number, pool.name, pool.hooks.join(" "))?;
    }
    for (index, line) in session.before.iter().flat_map(crate::view::before).enumerate() {
        writeln!(out, "{}{line}", if index == 0 { "before     " } else { "           " })?;
    }
    for heap in session.before.iter().flat_map(|before| &before.heaps) {
        if let HeapBefore::Walked(blocks) = heap {
            crate::view::sizes_before(blocks).iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        }
    }
    Ok(())
}

fn count_seconds(facts: &Value) -> f64 {
    facts["duration_ns"].as_u64().unwrap_or(0) as f64 / 1e9
}
