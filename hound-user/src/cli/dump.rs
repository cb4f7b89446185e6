//! `hound dump`: every event in time order, one line each.

use super::info::{Format, end_reason, loss_reason, name};
use crate::capture::model::{Alloc, Event, Fault, Free, StackId, StackNode, StackRoot, StackTree, Stamped, StreamId, ThreadEvent};
use crate::capture::{Capture, REASON_DAMAGED, Visitor};
use crate::heap::FaultKind;
use anyhow::Context;
use hound_common::event::{
    ALLOC_MMAPPED, ALLOC_NON_MAIN_ARENA, ALLOC_ZEROED, FAULT_BY_KERNEL, FAULT_WRITE, LIVENESS_ALIVE, LIVENESS_GONE, LIVENESS_UNKNOWN,
};
use hound_unwind::EndReason;
use serde_json::json;
use std::collections::HashMap;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hound dump app.hound | head                   how the program began
  hound dump app.hound --format json | jq -c .  for scripts: one object a line";

/// Print every event of a capture in time order, one line each.
#[derive(Debug, clap::Args)]
#[command(before_help = EXAMPLES)]
pub struct Args {
    /// The capture.
    pub file: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Prints all events. Whoever reads may stop at any time (`hound dump x | head`).
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut capture = Capture::open(&args.file)?;
    let threads = capture.streams().iter().map(|stream| (stream.id, (stream.tid, stream.level))).collect();
    let pids = pids(&capture);
    let out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut dump = Dump { out, format: args.format, threads, pids, nodes: Vec::new(), state: Ok(()) };
    let anomalies = capture.visit(&mut dump);
    let written = dump.state.and_then(|()| dump.out.flush());
    for anomaly in &anomalies.0 {
        warn(&format!("warning: {}: {anomaly}", args.file.display()));
    }
    quiet_pipe(written).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Whose each stream is, where there are several processes.
fn pids(capture: &Capture) -> HashMap<StreamId, u32> {
    if capture.processes().len() < 2 {
        return HashMap::new();
    }
    let all: HashMap<_, u32> = capture.processes().iter().map(|info| (info.id, info.pid)).collect();
    capture.streams().iter().map(|stream| (stream.id, all.get(&stream.process).copied().unwrap_or(0))).collect()
}

fn warn(text: &str) {
    // A closed stderr is no reason to fail.
    let _ = writeln!(io::stderr(), "{text}");
}

/// A reader that went away is no error: it has seen enough.
pub(super) fn quiet_pipe(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
}

struct Dump<W: Write> {
    out: W,
    format: Format,
    threads: HashMap<StreamId, (u32, u32)>,
    /// Whose each stream is; nothing is in it where all is of one process.
    pids: HashMap<StreamId, u32>,
    /// A copy of the capture's stacks so far.
    nodes: Vec<StackNode>,
    /// The first failure to write; nothing is written after it.
    state: io::Result<()>,
}

impl<W: Write> Visitor for Dump<W> {
    fn alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) {
        let written = match self.format {
            Format::Json => self.json_alloc(time_ns, stream, alloc),
            Format::Text => self.text_alloc(time_ns, stream, alloc),
        };
        self.note(written);
    }

    fn free(&mut self, time_ns: u64, stream: StreamId, free: &Free) {
        let written = match self.format {
            Format::Json => self.json_free(time_ns, stream, free),
            Format::Text => self.text_free(time_ns, stream, free),
        };
        self.note(written);
    }

    fn other(&mut self, event: &Stamped) {
        let written = match self.format {
            Format::Json => self.json_other(event),
            Format::Text => self.text_other(event),
        };
        self.note(written);
    }

    fn stacks(&mut self, stacks: &StackTree) {
        let new = (self.nodes.len()..stacks.len()).map_while(|id| stacks.node(StackId(id as u32)));
        self.nodes.extend(new);
    }

    fn wants_more(&self) -> bool {
        self.state.is_ok()
    }
}

impl<W: Write> Dump<W> {
    fn note(&mut self, written: io::Result<()>) {
        if self.state.is_ok() {
            self.state = written;
        }
    }

    /// Return addresses innermost first, and how the stack ended.
    fn stack(&self, mut id: StackId) -> (Vec<u64>, StackRoot) {
        let mut ips = Vec::new();
        loop {
            match self.nodes.get(id.0 as usize) {
                Some(StackNode::Frame { parent, ip }) => {
                    ips.push(*ip);
                    id = *parent;
                }
                Some(StackNode::Root(root)) => return (ips, *root),
                None => return (ips, StackRoot::default()),
            }
        }
    }

    fn thread(&self, stream: StreamId) -> (u32, u32) {
        self.threads.get(&stream).copied().unwrap_or_default()
    }

    fn json_start(&mut self, time_ns: u64, stream: StreamId, event: &str) -> io::Result<()> {
        let (tid, level) = self.thread(stream);
        write!(self.out, "{{\"t\":{time_ns},\"tid\":{tid},\"level\":{level},\"event\":\"{event}\"")?;
        if let Some(pid) = self.pids.get(&stream) { write!(self.out, ",\"pid\":{pid}") } else { Ok(()) }
    }

    fn json_stack(&mut self, stack: StackId) -> io::Result<()> {
        let (ips, root) = self.stack(stack);
        self.out.write_all(b",\"stack\":[")?;
        for (i, ip) in ips.iter().enumerate() {
            write!(self.out, "{}{ip}", if i == 0 { "" } else { "," })?;
        }
        write!(self.out, "],\"end\":\"{}\"", end_name(root.reason))?;
        if root.frame_pointers { self.out.write_all(b",\"frame_pointers\":true") } else { Ok(()) }
    }

    fn json_alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) -> io::Result<()> {
        self.json_start(time_ns, stream, "alloc")?;
        write!(self.out, ",\"kind\":\"{}\",\"addr\":{},\"size\":{}", alloc.kind.name(), alloc.addr, alloc.size)?;
        if let Some(usable) = alloc.usable {
            write!(self.out, ",\"usable\":{usable}")?;
        }
        let flags: Vec<String> = flag_names(alloc.flags).map(|name| format!("\"{name}\"")).collect();
        write!(self.out, ",\"flags\":[{}]", flags.join(","))?;
        self.json_pool(alloc.pool)?;
        if let Some(previous) = alloc.previous {
            write!(self.out, ",\"realloc\":true,\"prev\":{previous}")?;
        }
        self.json_stack(alloc.stack)?;
        self.out.write_all(b"}\n")
    }

    fn json_pool(&mut self, pool: u8) -> io::Result<()> {
        if pool > 0 { write!(self.out, ",\"pool\":{pool}") } else { Ok(()) }
    }

    fn json_free(&mut self, time_ns: u64, stream: StreamId, free: &Free) -> io::Result<()> {
        self.json_start(time_ns, stream, "free")?;
        write!(self.out, ",\"kind\":\"{}\",\"addr\":{}", free.kind.name(), free.addr)?;
        self.json_pool(free.pool)?;
        if free.realloc {
            self.out.write_all(b",\"realloc\":true")?;
        }
        if let Some(stack) = free.stack {
            self.json_stack(stack)?;
        }
        self.out.write_all(b"}\n")
    }

    fn json_other(&mut self, event: &Stamped) -> io::Result<()> {
        self.json_start(event.time_ns, event.stream, name(&event.event))?;
        for (key, value) in facts(&event.event) {
            write!(self.out, ",\"{key}\":{value}")?;
        }
        if let Some(stack) = stack_of(&event.event) {
            self.json_stack(stack)?;
        }
        self.out.write_all(b"}\n")
    }

    fn text_start(&mut self, time_ns: u64, stream: StreamId, event: &str) -> io::Result<()> {
        let (tid, level) = self.thread(stream);
        let level = if level > 0 { format!("+{level}") } else { String::new() };
        write!(self.out, "{:>13.9} ", time_ns as f64 / 1e9)?;
        if let Some(pid) = self.pids.get(&stream) {
            write!(self.out, "{pid:>7} ")?;
        }
        write!(self.out, "{tid:>7}{level} {event}")
    }

    fn text_stack(&mut self, stack: StackId) -> io::Result<()> {
        let (ips, root) = self.stack(stack);
        self.out.write_all(b" at")?;
        for ip in ips {
            write!(self.out, " {ip:x}")?;
        }
        if root.reason != 0 { write!(self.out, " ({})", end_name(root.reason)) } else { Ok(()) }
    }

    fn text_alloc(&mut self, time_ns: u64, stream: StreamId, alloc: &Alloc) -> io::Result<()> {
        self.text_start(time_ns, stream, alloc.kind.name())?;
        write!(self.out, "({}) = {:x}", alloc.size, alloc.addr)?;
        if let Some(usable) = alloc.usable {
            write!(self.out, " usable {usable}")?;
        }
        for flag in flag_names(alloc.flags) {
            write!(self.out, " {flag}")?;
        }
        self.text_pool(alloc.pool)?;
        if let Some(previous) = alloc.previous {
            write!(self.out, " from {previous:x}")?;
        }
        self.text_stack(alloc.stack)?;
        self.out.write_all(b"\n")
    }

    fn text_pool(&mut self, pool: u8) -> io::Result<()> {
        if pool > 0 { write!(self.out, " of pool {pool}") } else { Ok(()) }
    }

    fn text_free(&mut self, time_ns: u64, stream: StreamId, free: &Free) -> io::Result<()> {
        self.text_start(time_ns, stream, free.kind.name())?;
        write!(self.out, "({:x})", free.addr)?;
        self.text_pool(free.pool)?;
        self.out.write_all(if free.realloc { b" for realloc" } else { b"" })?;
        if let Some(stack) = free.stack {
            self.text_stack(stack)?;
        }
        self.out.write_all(b"\n")
    }

    fn text_other(&mut self, event: &Stamped) -> io::Result<()> {
        self.text_start(event.time_ns, event.stream, name(&event.event))?;
        for (key, value) in facts(&event.event) {
            match (key, value.as_u64()) {
                ("addr" | "old_addr" | "start" | "end" | "bias", Some(addr)) => write!(self.out, " {key}={addr:x}")?,
                _ => write!(self.out, " {key}={value}")?,
            }
        }
        if let Some(stack) = stack_of(&event.event) {
            self.text_stack(stack)?;
        }
        self.out.write_all(b"\n")
    }
}

/// How a stack ended, as one word or a sentence without quotes.
fn end_name(reason: u8) -> String {
    match (reason, EndReason::from_u8(reason)) {
        (0, _) => "root".into(),
        (REASON_DAMAGED, _) => "the outer frames were lost with damaged events".into(),
        (_, Some(reason)) => reason.sentence().into(),
        (number, None) => format!("reason {number}"),
    }
}

fn flag_names(flags: u8) -> impl Iterator<Item = &'static str> {
    let names = [(ALLOC_MMAPPED, "mmapped"), (ALLOC_NON_MAIN_ARENA, "non_main_arena"), (ALLOC_ZEROED, "zeroed")];
    names.into_iter().filter(move |(bit, _)| flags & bit != 0).map(|(_, name)| name)
}

fn stack_of(event: &Event) -> Option<StackId> {
    match event {
        Event::Map { stack, .. } | Event::Unmap { stack, .. } | Event::Remap { stack, .. } => Some(*stack),
        Event::Fault(Fault { stack, .. }) => Some(*stack),
        _ => None,
    }
}

/// What a `LIVENESS_…` number means.
fn liveness(state: u8) -> &'static str {
    match state {
        LIVENESS_UNKNOWN => "unknown",
        LIVENESS_ALIVE => "alive",
        LIVENESS_GONE => "gone",
        _ => "other",
    }
}

/// What an event says besides its time, thread and stack, as JSON values.
fn facts(event: &Event) -> Vec<(&'static str, serde_json::Value)> {
    let number = |value: u64| json!(value);
    match event {
        Event::Alloc(_) | Event::Free(_) => Vec::new(),
        Event::Map { addr, length, prot, flags, fd, offset, .. } => vec![
            ("addr", number(*addr)),
            ("length", number(*length)),
            ("prot", json!(prot)),
            ("flags", json!(flags)),
            ("fd", json!(fd)),
            ("offset", number(*offset)),
        ],
        Event::Unmap { addr, length, .. } => vec![("addr", number(*addr)), ("length", number(*length))],
        Event::Remap { old_addr, old_length, new_addr, new_length, .. } => vec![
            ("old_addr", number(*old_addr)),
            ("old_length", number(*old_length)),
            ("addr", number(*new_addr)),
            ("length", number(*new_length)),
        ],
        Event::Module(module) => {
            let build_id: String = module.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
            vec![
                ("path", json!(module.path)),
                ("start", number(module.start)),
                ("end", number(module.end)),
                ("bias", number(module.bias)),
                ("build_id", json!(build_id)),
            ]
        }
        Event::ModuleGone { start, end } => vec![("start", number(*start)), ("end", number(*end))],
        Event::Thread(ThreadEvent::Start { tid }) => vec![("what", json!("start")), ("of", json!(tid))],
        Event::Thread(ThreadEvent::Name(text)) => vec![("what", json!("name")), ("name", json!(text))],
        Event::Process(process) => vec![
            ("what", json!(["joined", "forked", "new program"].get(usize::from(process.began.wrapping_sub(2))))),
            ("parent", json!(process.parent)),
            ("command", json!(process.command)),
        ],
        Event::Thread(ThreadEvent::Exit) => vec![("what", json!("exit"))],
        Event::Mark(text) => vec![("text", json!(text))],
        Event::Marker(value) => vec![("value", json!(value))],
        Event::Mode { mode } => vec![("mode", json!(mode))],
        Event::Rate(mean) => vec![("mean", number(*mean))],
        Event::Window { opened_ns, closed_ns, from_ns, to_ns } => {
            vec![("opened", number(*opened_ns)), ("closed", number(*closed_ns)), ("from", number(*from_ns)), ("to", number(*to_ns))]
        }
        Event::Liveness { state, addr, pool } => {
            let pool = (*pool > 0).then(|| ("pool", json!(pool)));
            [("addr", number(*addr)), ("state", json!(liveness(*state)))].into_iter().chain(pool).collect()
        }
        Event::Stripped { pool, blocks, bytes, threshold_ns } => {
            let pool = (*pool > 0).then(|| ("pool", json!(pool)));
            let told = [("blocks", number(*blocks)), ("bytes", number(*bytes)), ("threshold", number(*threshold_ns))];
            told.into_iter().chain(pool).collect()
        }
        Event::Culled(of) => {
            let places =
                |of: &[(u8, u64, u64)]| json!(of.iter().map(|(place, blocks, bytes)| json!([place, blocks, bytes])).collect::<Vec<_>>());
            vec![
                ("from", number(of.from_ns)),
                ("to", number(of.to_ns)),
                ("blocks", number(of.blocks)),
                ("bytes", number(of.bytes)),
                ("threshold", number(of.threshold_ns)),
                ("late", number(of.late)),
                ("overflows", number(of.overflows)),
                ("lifetimes", places(&of.lifetimes)),
                ("sizes", places(&of.sizes)),
            ]
        }
        Event::MapRss { addr, length, resident } => {
            vec![("addr", number(*addr)), ("length", number(*length)), ("resident", number(*resident))]
        }
        Event::ProcessRss { resident, proportional, swapped } => {
            vec![("resident", number(*resident)), ("proportional", number(*proportional)), ("swapped", number(*swapped))]
        }
        Event::ProcessMemory(memory) => vec![
            ("virtual", number(memory.virtual_size)),
            ("anonymous", number(memory.anonymous)),
            ("file", number(memory.file)),
            ("shared", number(memory.shared)),
        ],
        Event::ProcessPeak { resident } => vec![("resident", number(*resident))],
        Event::Fault(fault) => vec![
            ("addr", number(fault.addr)),
            ("bytes", number(fault.bytes)),
            ("mean", number(fault.interval)),
            ("of", json!(FaultKind::of(fault.kind).name())),
            ("by_kernel", json!(fault.flags & FAULT_BY_KERNEL != 0)),
            ("write", json!(fault.flags & FAULT_WRITE != 0)),
        ],
        Event::Lost { count, reason } => vec![("count", number(*count)), ("reason", json!(loss_reason(*reason)))],
        Event::End { reason, value } => vec![("how", json!(end_reason(*reason))), ("value", number(*value))],
        Event::Unwinding(counters) => vec![("counters", json!(counters))],
        Event::Other { tag, a, words } => vec![("tag", json!(tag)), ("a", json!(a)), ("words", json!(words))],
    }
}
