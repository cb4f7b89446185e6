//! The JSON report: the contract that tests and other programs read.

use super::answer::{Answer, PoolAnswer};
use super::summary::Summary;
use crate::query::{Row, RowKey, Sums, Suppressed, Table};
use crate::symbols::Frame;
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Serialize)]
struct Document<'a> {
    session: Value,
    #[serde(flatten)]
    heap: Heap<'a>,
    /// Counted beside the heap, never added to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pools: Vec<JsonPool<'a>>,
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
struct JsonFrame<'a> {
    function: &'a str,
    file: Option<&'a str>,
    line: Option<u32>,
    module: &'a str,
    inlined: bool,
}

#[derive(Serialize)]
struct Figures {
    allocations: u64,
    allocated_bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
    peak_bytes: u64,
    temporary: u64,
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
        }
    }
}

/// The report as one line of JSON.
pub fn json(summary: &Summary, answer: &Answer<'_>, pools: &[PoolAnswer<'_>]) -> String {
    let pools = pools.iter().map(|of| JsonPool {
        pool: of.pool.number,
        name: &of.pool.name,
        hooks: &of.pool.hooks,
        heap: heap(&of.answer, 0),
        left_out: left_out(&of.answer.table),
    });
    let session = session(summary, &answer.table);
    let document = Document { session, heap: heap(answer, summary.lost_events()), pools: pools.collect() };
    // Numbers, strings and lists: nothing that serialising could refuse.
    let mut text = serde_json::to_string(&document).expect("invariant: a report has only string keys");
    text.push('\n');
    text
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

fn session(summary: &Summary, table: &Table) -> Value {
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
    json!({
        "allocations": totals.allocations,
        "allocated_bytes": totals.allocated_bytes,
        "frees": totals.frees,
        "live_blocks": totals.live_blocks,
        "live_bytes": totals.live_bytes,
        "peak_bytes": answer.peak.bytes,
        "lost_events": lost,
        "unknown_frees": totals.unknown_frees,
    })
}

fn site<'a>(frames: &[Frame<'a>], sums: &Sums) -> Site<'a> {
    let json_frame = |frame: &Frame<'a>| JsonFrame {
        function: frame.function,
        file: frame.location.map(|at| at.file),
        line: frame.location.map(|at| at.line).filter(|&line| line > 0),
        module: frame.module,
        inlined: frame.inlined,
    };
    Site {
        stack: frames.iter().rev().map(|frame| frame.function).collect(),
        frames: frames.iter().map(json_frame).collect(),
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
