//! Who touched memory first, as text and as JSON, beside what the process' memory came to meanwhile.

use super::head::head;
use super::json::JsonFrame;
use super::sampled::{about, bytes_of};
use super::summary::Summary;
use super::text::{TextOptions, aligned, line, plain_key, site, tree_with};
use super::units::{bytes, count, duration, share};
use crate::capture::model::ProcessMemory;
use crate::heap::FaultKind;
use crate::query::{FaultRow, FaultTable, Figure, Group, RowKey, Sites, Sums};
use serde_json::{Value, json};

/// What a report of page faults shows.
pub struct FaultAnswer<'a> {
    /// Call paths.
    pub sites: Sites<'a>,
    /// Who touched how much.
    pub table: FaultTable,
    /// Smallest and largest interval that samples were drawn at; 0: every touch was recorded. None: nothing was.
    pub intervals: Option<(u64, u64)>,
    /// Touches recorded.
    pub recorded: u64,
    /// How long the first and the second half of the time was, in nanoseconds.
    pub halves_ns: [u64; 2],
    /// What the process' memory was.
    pub memory: Option<MemoryTrack>,
}

/// What a process' memory was while it was recorded, looked at once a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryTrack {
    /// Resident bytes at the first look and at the last.
    pub resident: [u64; 2],
    /// The most that was seen, and when.
    pub peak: (u64, u64),
    /// Between two looks it was more: by the mark that the kernel keeps, which does not say when.
    pub between_looks: Option<u64>,
    /// More of the first look and the last; none in captures of older hounds.
    pub parts: Option<[ProcessMemory; 2]>,
}

/// What the report cannot know; it stands in each.
const NOT_KNOWN: &str = "not known: by which site what left again (munmap, madvise, swapped out) was touched; what came without a touch \
                         (MAP_POPULATE, mlock, pages of a file around the one that was touched)";

/// The report for people. `rows_only`: without what stands before the sites.
pub fn faults_text(summary: &Summary, answer: &FaultAnswer<'_>, rows_only: bool, options: &TextOptions) -> String {
    let mut out = String::new();
    if !rows_only {
        head(&mut out, summary, (answer.recorded, "page faults"), options.style);
        totals(&mut out, answer);
    }
    let FaultTable { table, branches, rows, .. } = &answer.table;
    let total = bytes_of(&table.total, Figure::AllocatedBytes);
    out.push('\n');
    line(&mut out, &options.style.strong(&format!("Touched first: {total}")));
    if table.rows.is_empty() && branches.is_empty() {
        line(&mut out, "  nothing");
    }
    if options.group == Group::Tree {
        let columns: Vec<[String; 4]> = branches.iter().map(|branch| figures(&branch.sums, &table.total)).collect();
        tree_with(&mut out, &answer.sites, branches, aligned(&columns), options);
    } else {
        let columns = table.rows.iter().zip(rows).map(|(row, more)| columns(&row.sums, &table.total, more, answer.halves_ns));
        let columns: Vec<[String; 4]> = columns.collect();
        for (row, figures) in table.rows.iter().zip(aligned(&columns)) {
            match row.key {
                RowKey::Site(node) => site(&mut out, &answer.sites, node, &figures, options),
                _ => line(&mut out, &format!("{figures}{}", plain_key(row, summary, options))),
            }
        }
    }
    if table.omitted_rows > 0 {
        let figure = bytes_of(&table.omitted, Figure::AllocatedBytes);
        let rows = count(table.omitted_rows as u64);
        let more = if options.group == Group::Tree { format!("… {rows} more") } else { format!("… {rows} more with {figure}") };
        line(&mut out, &options.style.faint(&format!("{more} (--limit N or --all to see them)")));
    }
    out
}

fn figures(sums: &Sums, total: &Sums) -> [String; 4] {
    [bytes_of(sums, Figure::AllocatedBytes), share(sums.allocated_bytes, total.allocated_bytes), String::new(), String::new()]
}

/// Bytes, share, how fast in the first half and in the second, kinds.
fn columns(sums: &Sums, total: &Sums, row: &FaultRow, halves_ns: [u64; 2]) -> [String; 4] {
    let [amount, share, ..] = figures(sums, total);
    let [first, second] = [0, 1].map(|half| bytes(a_minute(&row.halves[half], halves_ns[half])));
    [amount, share, format!("{}{first}/min, then {second}/min", about(sums)), kinds(row)]
}

fn a_minute(sums: &Sums, ns: u64) -> u64 {
    (sums.allocated_bytes as f64 * 60e9 / ns.max(1) as f64).round() as u64
}

/// `anonymous`, or `anonymous, file`.
fn kinds(row: &FaultRow) -> String {
    // What is under a tenth is no characteristic of the site.
    let all: u64 = row.kinds.iter().map(|(_, sums)| sums.allocated_bytes).sum();
    let names = row.kinds.iter().filter(|(_, sums)| sums.allocated_bytes * 10 >= all).map(|(kind, _)| kind.name());
    names.collect::<Vec<_>>().join(", ")
}

/// In words.
fn words(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Heap => "the heap (brk)",
        FaultKind::Anonymous => "anonymous mappings",
        FaultKind::Stack => "stacks",
        FaultKind::File => "files",
        FaultKind::Copy => "the process' own copies of files' pages",
        FaultKind::Shared => "shared memory",
        FaultKind::Unknown => "what was unmapped before hound looked",
    }
}

fn totals(out: &mut String, answer: &FaultAnswer<'_>) {
    let FaultTable { table, total, by_kernel, huge, .. } = &answer.table;
    let how = match answer.intervals {
        None => "no page fault was recorded".to_owned(),
        Some((0, 0)) => "every page fault recorded".to_owned(),
        Some((least, most)) if least == most => format!("one sample every {}; {} samples", bytes(least), count(answer.recorded)),
        Some((least, most)) => format!("one sample every {} to {}; {} recorded", bytes(least), bytes(most), count(answer.recorded)),
    };
    if table.total.is_estimate() {
        line(out, "figures with ≈ are estimates: the truth lies within the range behind them with 95 %");
    }
    out.push('\n');
    let faults = if table.total.allocations == 1 { "page fault" } else { "page faults" };
    let number = format!("{}{} {faults}", about(&table.total), count(table.total.allocations));
    line(out, &format!("touched first  {} by {number}; {how}", bytes_of(&table.total, Figure::AllocatedBytes)));
    for (kind, sums) in &total.kinds {
        line(out, &format!("               {} of {}", bytes_of(sums, Figure::AllocatedBytes), words(*kind)));
    }
    let of_which = |out: &mut String, sums: &Sums, what: &str| {
        if sums.allocated_bytes > 0 {
            line(out, &format!("               {} of it {what}", bytes_of(sums, Figure::AllocatedBytes)));
        }
    };
    of_which(out, by_kernel, "by the kernel for the program, in system calls");
    of_which(out, huge, "in huge pages");
    if let Some(memory) = &answer.memory {
        resident(out, answer, memory);
    }
    line(out, NOT_KNOWN);
}

/// What was resident, and how that goes with what was touched.
fn resident(out: &mut String, answer: &FaultAnswer<'_>, memory: &MemoryTrack) {
    let change = |[from, to]: [u64; 2]| match from <= to {
        true => format!("+{}", bytes(to - from)),
        false => format!("−{}", bytes(from - to)),
    };
    let ([first, last], (peak, at)) = (memory.resident, memory.peak);
    let ends = format!("{} at the first look, {} at the last", bytes(first), bytes(last));
    let most = match memory.between_looks {
        None => format!("{} at most, after {}", bytes(peak), duration(at)),
        Some(mark) => {
            format!("{} at most, between two looks (by the kernel's mark); {} seen, after {}", bytes(mark), bytes(peak), duration(at))
        }
    };
    let Some(parts) = memory.parts else {
        line(out, &format!("resident       {ends} ({}); {most}", change([first, last])));
        return;
    };
    let of = |part: fn(&ProcessMemory) -> u64| [part(&parts[0]), part(&parts[1])];
    let (anonymous, file, shared) = (of(|of| of.anonymous), of(|of| of.file), of(|of| of.shared));
    let detail = format!("anonymous {}, files {}, shared {}", change(anonymous), change(file), change(shared));
    line(out, &format!("resident       {ends} ({}: {detail}); {most}", change([first, last])));
    let size = of(|of| of.virtual_size);
    let part = share(last, size[1]);
    line(
        out,
        &format!(
            "address space  {} at the first look, {} at the last ({}), {part} of it resident",
            bytes(size[0]),
            bytes(size[1]),
            change(size)
        ),
    );
    let touched = answer.touched_anonymous();
    let grown = anonymous[1].saturating_sub(anonymous[0]);
    if touched > 0 {
        let about = about(&answer.table.table.total);
        let text =
            format!("of {about}{} of anonymous memory that was touched, {} are there more than before", bytes(touched), bytes(grown));
        line(out, &format!("               {text}"));
    }
}

impl FaultAnswer<'_> {
    fn touched_anonymous(&self) -> u64 {
        self.table.total.kinds.iter().filter(|(kind, _)| kind.is_anonymous()).map(|(_, sums)| sums.allocated_bytes).sum()
    }
}

/// The report as one line of JSON.
pub fn faults_json(summary: &Summary, answer: &FaultAnswer<'_>) -> String {
    let FaultTable { table, branches, rows, total, by_kernel, huge } = &answer.table;
    let mut totals = figures_of(&table.total, total, answer.halves_ns);
    totals["by_kernel_bytes"] = json!(by_kernel.allocated_bytes);
    totals["huge_bytes"] = json!(huge.allocated_bytes);
    totals["recorded"] = json!(answer.recorded);
    totals["interval"] = json!(answer.intervals);
    totals["lost_events"] = json!(summary.lost_events());
    let mut document = json!({
        "session": summary,
        "faults": totals,
        "memory": answer.memory.as_ref().map(memory),
        "sites": [],
        "not_known": NOT_KNOWN,
    });
    let (mut sites, mut others) = (Vec::new(), Vec::new());
    for (row, more) in table.rows.iter().zip(rows) {
        let mut value = figures_of(&row.sums, more, answer.halves_ns);
        let about = match &row.key {
            RowKey::Site(node) => {
                let frames = answer.sites.frames(*node);
                let list: Vec<JsonFrame<'_>> = frames.iter().map(JsonFrame::of).collect();
                json!({"stack": frames.iter().rev().map(|frame| frame.function).collect::<Vec<_>>(), "frames": list})
            }
            RowKey::Function(function, module) => json!({"function": function, "module": module}),
            RowKey::Module(module) => json!({"module": module}),
            RowKey::Thread(tid, name) => json!({"tid": tid, "thread": name}),
            RowKey::Process(number) => json!({"process": number}),
            RowKey::Size(_) | RowKey::Mode { .. } => json!({}),
        };
        extend(&mut value, about);
        if let Some(sums) = &row.with_callees {
            value["with_callees"] = bytes_and_interval(sums);
        }
        if matches!(row.key, RowKey::Site(_)) { sites.push(value) } else { others.push(value) }
    }
    for branch in branches {
        let list = answer.sites.list(branch.node);
        let functions: Vec<&str> = list.map(|list| answer.sites.table().frames(list).map(|f| f.function).collect()).unwrap_or_default();
        let mut value = bytes_and_interval(&branch.sums);
        extend(&mut value, json!({"depth": branch.depth, "functions": functions}));
        others.push(value);
    }
    document["sites"] = Value::Array(sites);
    if !others.is_empty() {
        document["rows"] = Value::Array(others);
    }
    format!("{document}\n")
}

fn extend(value: &mut Value, more: Value) {
    if let (Value::Object(value), Value::Object(more)) = (value, more) {
        value.extend(more);
    }
}

fn bytes_and_interval(sums: &Sums) -> Value {
    let mut value = json!({"bytes": sums.allocated_bytes, "pages": sums.allocations});
    if let Some((low, high)) = sums.interval(Figure::AllocatedBytes).filter(|_| sums.is_estimate()) {
        value["bytes_ci95"] = json!([low, high]);
        value["samples"] = json!(sums.samples());
    }
    value
}

fn figures_of(sums: &Sums, row: &FaultRow, halves_ns: [u64; 2]) -> Value {
    let mut value = bytes_and_interval(sums);
    let kinds = row.kinds.iter().map(|(kind, sums)| (kind.name().to_owned(), bytes_and_interval(sums)));
    value["kinds"] = Value::Object(kinds.collect());
    value["bytes_per_minute"] = json!([0, 1].map(|half| a_minute(&row.halves[half], halves_ns[half])));
    value
}

fn memory(track: &MemoryTrack) -> Value {
    let mut value = json!({"resident": track.resident, "peak_resident": track.peak.0, "peak_ns": track.peak.1});
    if let Some(mark) = track.between_looks {
        value["peak_between_looks"] = json!(mark);
    }
    if let Some(parts) = &track.parts {
        let of = |part: fn(&ProcessMemory) -> u64| [part(&parts[0]), part(&parts[1])];
        let more = json!({
            "virtual": of(|of| of.virtual_size), "anonymous": of(|of| of.anonymous), "file": of(|of| of.file), "shared": of(|of| of.shared),
        });
        extend(&mut value, more);
    }
    value
}
