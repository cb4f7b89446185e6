//! The JSON report: the contract that tests and other programs read.

use super::answer::{Answer, PoolAnswer};
use super::blocks::blocks_json;
use super::summary::{ProcessLine, Summary};
use crate::query::{Blocks, Figure, Row, RowKey, Sums, Suppressed, Table};
use crate::symbols::Frame;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

#[derive(Serialize)]
struct Document<'a> {
    session: Value,
    #[serde(flatten)]
    heap: Heap<'a>,
    /// Where there are several.
    #[serde(skip_serializing_if = "<[ProcessLine]>::is_empty")]
    processes: &'a [ProcessLine],
    /// Counted beside the heap, never added to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pools: Vec<JsonPool<'a>>,
    /// Single blocks, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<Value>,
}

#[derive(Serialize)]
struct JsonPool<'a> {
    pool: u8,
    name: &'a str,
    hooks: &'a [String],
    #[serde(flatten)]
    heap: Heap<'a>,
    /// What was suppressed.
    left_out: Value,
}

#[derive(Serialize)]
struct Heap<'a> {
    totals: Value,
    sites: Vec<Site<'a>>,
    /// For groups other than sites.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rows: Vec<Value>,
}

#[derive(Serialize)]
struct Site<'a> {
    /// Function names, outermost first.
    stack: Vec<&'a str>,
    /// Innermost first, as frames were found.
    frames: Vec<JsonFrame<'a>>,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
pub(super) struct JsonFrame<'a> {
    function: &'a str,
    file: Option<&'a str>,
    line: Option<u32>,
    module: &'a str,
    inlined: bool,
}

impl<'a> JsonFrame<'a> {
    pub(super) fn of(frame: &Frame<'a>) -> Self {
        JsonFrame {
            function: frame.function,
            file: frame.location.map(|at| at.file),
            line: frame.location.map(|at| at.line).filter(|&line| line > 0),
            module: frame.module,
            inlined: frame.inlined,
        }
    }
}

#[derive(Serialize)]
struct Figures {
    allocations: u64,
    allocated_bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
    peak_bytes: u64,
    temporary: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    sampled: Option<Intervals>,
}

/// What stands beside figures that are estimates: [least, most] with 95 %.
#[derive(Serialize)]
struct Intervals {
    allocations_ci95: [u64; 2],
    allocated_bytes_ci95: [u64; 2],
    live_blocks_ci95: [u64; 2],
    live_bytes_ci95: [u64; 2],
    peak_bytes_ci95: [u64; 2],
    temporary_ci95: [u64; 2],
    samples: u64,
    uncertain_blocks: u64,
    uncertain_bytes: u64,
}

impl Figures {
    fn of(sums: &Sums) -> Self {
        Figures {
            allocations: sums.allocations,
            allocated_bytes: sums.allocated_bytes,
            live_blocks: sums.live_blocks,
            live_bytes: sums.live_bytes,
            peak_bytes: sums.peak_bytes,
            temporary: sums.temporary,
            sampled: Intervals::of(sums),
        }
    }
}

impl Intervals {
    fn of(sums: &Sums) -> Option<Self> {
        let interval = |figure| sums.interval(figure).map(|(low, high)| [low, high]);
        Some(Intervals {
            allocations_ci95: interval(Figure::Allocations)?,
            allocated_bytes_ci95: interval(Figure::AllocatedBytes)?,
            live_blocks_ci95: interval(Figure::LiveBlocks)?,
            live_bytes_ci95: interval(Figure::LiveBytes)?,
            peak_bytes_ci95: interval(Figure::PeakBytes)?,
            temporary_ci95: interval(Figure::Temporary)?,
            samples: sums.sampled.as_ref()?.samples,
            uncertain_blocks: sums.value(Figure::Uncertain),
            uncertain_bytes: sums.value(Figure::UncertainBytes),
        })
    }
}

/// Sums as an object of figures.
pub(super) fn figures<S: Serializer>(sums: &Sums, serializer: S) -> Result<S::Ok, S::Error> {
    Figures::of(sums).serialize(serializer)
}

/// The report as one line of JSON.
pub fn json(summary: &Summary, answer: &Answer<'_>, pools: &[PoolAnswer<'_>]) -> String {
    json_with_blocks(summary, answer, pools, None)
}

/// The same, with single blocks.
pub fn json_with_blocks(summary: &Summary, answer: &Answer<'_>, pools: &[PoolAnswer<'_>], blocks: Option<&Blocks<'_>>) -> String {
    let pools = pools.iter().map(|of| JsonPool {
        pool: of.pool.number,
        name: &of.pool.name,
        hooks: &of.pool.hooks,
        heap: heap(&of.answer, 0),
        left_out: left_out(&of.answer.table),
    });
    let session = session(summary, &answer.table);
    let (processes, heap, blocks) = (&summary.processes[..], heap(answer, summary.lost_events()), blocks.map(blocks_json));
    let document = Document { session, heap, processes, pools: pools.collect(), blocks };
    // Numbers, strings and lists: nothing that serialising could refuse.
    let mut text = serde_json::to_string(&document).expect("invariant: a report has only string keys");
    text.push('\n');
    text
}

/// A graph's numbers, with what the capture is.
pub fn graph_json(graph: &str, summary: &Summary, numbers: Value) -> String {
    let mut value = json!({"graph": graph, "session": session(summary, &Table::default())});
    if let (Value::Object(value), Value::Object(numbers)) = (&mut value, numbers) {
        value.extend(numbers);
    }
    format!("{value}\n")
}

/// `lost`: events that are missing; which heap they were of is not known, so they count as the program's.
fn heap<'a>(answer: &Answer<'a>, lost: u64) -> Heap<'a> {
    let Answer { sites, table, branches, .. } = answer;
    let mut heap = Heap { totals: totals(answer, lost), sites: Vec::new(), rows: Vec::new() };
    for row in &table.rows {
        match row.key {
            RowKey::Site(node) => heap.sites.push(site(&sites.frames(node), &row.sums)),
            _ => heap.rows.push(other_row(row)),
        }
    }
    heap.rows.extend(branches.iter().map(|branch| {
        let functions: Vec<&str> =
            sites.list(branch.node).map(|list| sites.table().frames(list).map(|f| f.function).collect()).unwrap_or_default();
        with_figures(json!({"depth": branch.depth, "functions": functions}), &branch.sums)
    }));
    heap
}

pub(super) fn session(summary: &Summary, table: &Table) -> Value {
    let mut session = serde_json::to_value(summary).unwrap_or(Value::Null);
    session["left_out"] = left_out(table);
    session
}

fn left_out(table: &Table) -> Value {
    let left_out = table.left_out.iter().map(|(why, sums)| {
        let why = match why {
            Suppressed::Runtime(words) => (*words).to_owned(),
            Suppressed::User(pattern) => format!("leak:{pattern}"),
        };
        json!({"why": why, "blocks": sums.live_blocks, "bytes": sums.live_bytes})
    });
    left_out.collect()
}

fn totals(answer: &Answer<'_>, lost: u64) -> Value {
    let totals = &answer.totals;
    if let Some(whole) = &answer.whole {
        let of_total = |figure| whole.total.interval(figure).map(|(low, high)| [low, high]);
        let others = json!({
            "frees": whole.total.value(Figure::Freed),
            "frees_ci95": of_total(Figure::Freed),
            "lost_events": lost,
            "unknown_frees": totals.unknown_frees,
        });
        return with_figures(others, &whole.total);
    }
    let mut value = json!({
        "allocations": totals.allocations,
        "allocated_bytes": totals.allocated_bytes,
        "frees": totals.frees,
        "live_blocks": totals.live_blocks,
        "live_bytes": totals.live_bytes,
        "peak_bytes": answer.peak.bytes,
        "lost_events": lost,
        "unknown_frees": totals.unknown_frees,
    });
    if totals.inherited_frees > 0 {
        value["inherited_frees"] = totals.inherited_frees.into();
    }
    if totals.censored_blocks > 0 {
        value["censored_blocks"] = totals.censored_blocks.into();
        value["censored_bytes"] = totals.censored_bytes.into();
    }
    value
}

/// Frames as a site has them.
pub(super) fn json_frames(frames: &[Frame<'_>]) -> Value {
    serde_json::to_value(frames.iter().map(JsonFrame::of).collect::<Vec<_>>()).unwrap_or(Value::Null)
}

fn site<'a>(frames: &[Frame<'a>], sums: &Sums) -> Site<'a> {
    Site {
        stack: frames.iter().rev().map(|frame| frame.function).collect(),
        frames: frames.iter().map(JsonFrame::of).collect(),
        figures: Figures::of(sums),
    }
}

fn other_row(row: &Row) -> Value {
    let about = match &row.key {
        RowKey::Site(_) => json!({}),
        RowKey::Function(function, module) => json!({"function": function, "module": module}),
        RowKey::Module(module) => json!({"module": module}),
        RowKey::Thread(tid, name) => json!({"tid": tid, "thread": name}),
        RowKey::Size(bits) => json!({"size_below": 1u128 << bits}),
        RowKey::Mode { sampled } => json!({"sampled": sampled}),
        RowKey::Process(number) => json!({"process": number}),
    };
    let mut value = with_figures(about, &row.sums);
    if let Some(sums) = &row.with_callees {
        value["with_callees"] = with_figures(json!({}), sums);
    }
    value
}

fn with_figures(mut about: Value, sums: &Sums) -> Value {
    if let (Value::Object(about), Ok(Value::Object(figures))) = (&mut about, serde_json::to_value(Figures::of(sums))) {
        about.extend(figures);
    }
    about
}
