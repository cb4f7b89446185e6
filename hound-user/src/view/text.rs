//! The report for people.

use super::answer::{Answer, PoolAnswer};
use super::head::{head, totals};
use super::names::{mode, short_function, short_path};
use super::sampled::{about, amount, blocks_of, bytes_of};
use super::summary::{EndKind, Summary};
use super::units::{blocks, bytes, count, duration, share};
use crate::query::{Branch, Group, Measure, NodeId, Row, RowKey, Sites, Sums, Suppressed, Table, site_end, site_start};
use crate::symbols::Frame;
use std::fmt::Write;

/// Whether text may have colours: only on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Style {
    /// No escape sequences.
    #[default]
    Plain,
    /// Escape sequences.
    Colour,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Style::Plain => text.to_owned(),
            Style::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint("31", text)
    }
}

/// How to show.
#[derive(Clone, Debug, Default)]
pub struct TextOptions {
    /// Colours or not.
    pub style: Style,
    /// Every frame with its whole name and path, the allocator's included.
    pub full_stacks: bool,
    /// Source paths below this folder are shown from it.
    pub here: Option<String>,
    /// What rows are.
    pub group: Group,
    /// What they are sorted by.
    pub measure: Measure,
}

/// Callers shown below a site unless full stacks are wanted.
const CALLERS: usize = 8;

/// The sections alone, for who reads one after another.
pub fn rows(summary: &Summary, answer: &Answer<'_>, pools: &[PoolAnswer<'_>], options: &TextOptions) -> String {
    let mut out = String::new();
    section(&mut out, summary, answer, None, options);
    site_rows(&mut out, &answer.sites, &answer.table, options);
    for of in pools {
        section(&mut out, summary, &of.answer, Some(&of.name()), options);
        site_rows(&mut out, &of.answer.sites, &of.answer.table, options);
    }
    out
}

/// The whole report.
pub fn text(summary: &Summary, answer: &Answer<'_>, pools: &[PoolAnswer<'_>], options: &TextOptions) -> String {
    let mut out = String::new();
    head(&mut out, summary, (answer.totals.allocations, "allocations"), options.style);
    totals(&mut out, summary, answer);
    section(&mut out, summary, answer, None, options);
    table(&mut out, summary, answer, options);
    for of in pools {
        let name = of.name();
        out.push('\n');
        line(
            &mut out,
            &options.style.strong(&format!("{}: counted beside the memory it is cut from, not in the figures above", capital(&name))),
        );
        of.pool.hooks.iter().for_each(|hook| line(&mut out, &options.style.faint(&format!("  {hook}"))));
        let cut: u64 = of.answer.sites.roots().iter().filter(|(root, _)| root.reason != 0).map(|(_, sums)| sums.recorded()).sum();
        if cut > 0 {
            let all = count(of.answer.totals.allocations);
            line(&mut out, &options.style.warning(&format!("stacks cut short: those of {} of {all} allocations", count(cut))));
        }
        totals(&mut out, summary, &of.answer);
        section(&mut out, summary, &of.answer, Some(&name), options);
        table(&mut out, summary, &of.answer, options);
    }
    out
}

fn table(out: &mut String, summary: &Summary, answer: &Answer<'_>, options: &TextOptions) {
    let Answer { sites, table, branches, .. } = answer;
    match options.group {
        Group::Tree => tree(out, sites, branches, table, options),
        Group::Site => site_rows(out, sites, table, options),
        _ => plain_rows(out, summary, table, options),
    }
    if table.omitted_rows > 0 {
        let figure = amount(options.measure, &table.omitted);
        let rows = count(table.omitted_rows as u64);
        let more = if options.group == Group::Tree { format!("… {rows} more") } else { format!("… {rows} more with {figure}") };
        line(out, &options.style.faint(&format!("{more} (--limit N or --all to see them)")));
    }
}

/// With a capital letter, or without.
fn capital(text: &str) -> String {
    let (first, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
    first.to_uppercase() + rest
}

fn small(text: &str) -> String {
    let (first, rest) = text.split_at(text.chars().next().map_or(0, char::len_utf8));
    first.to_lowercase() + rest
}

pub(super) fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end());
    out.push('\n');
}

/// What a sum is called, by its measure and how the recording ended.
pub fn title(summary: &Summary, total: &Sums, measure: Measure, peak_ns: u64) -> String {
    let (number, size) = measure.figures();
    let (number, size) = (blocks_of(total, number), bytes_of(total, size));
    match (measure, summary.end) {
        (Measure::Live, EndKind::Growing) if summary.is_of_the_kernel() => format!("Outstanding now: {size} in {number}"),
        (Measure::Live, _) if summary.is_of_the_kernel() => {
            format!("Outstanding when the recording ended, not released so far: {size} in {number}")
        }
        (Measure::Live, EndKind::Exit(_)) if summary.was_unwatched() => format!("Leaks, as far as was watched: {size} in {number}"),
        (Measure::Live, EndKind::Exit(_)) => format!("Leaks: {size} in {number} were never released"),
        (Measure::Live, EndKind::Signal(signal)) => format!("Alive when signal {signal} killed the program: {size} in {number}"),
        (Measure::Live, EndKind::NoMemory) => format!("Alive when the kernel killed the program for want of memory: {size} in {number}"),
        (Measure::Live, EndKind::Growing) => format!("Alive now: {size} in {number}"),
        (Measure::Live, EndKind::Detach) => format!("Alive at the detach (not leaks: the program runs on): {size} in {number}"),
        (Measure::Live, _) => format!("Alive when the recording ended (not leaks: the program ran on): {size} in {number}"),
        (Measure::Peak, _) => format!("Peak, {} after the start: {size} in {number}", duration(peak_ns)),
        (Measure::Allocations | Measure::Allocated, _) => format!("Allocations: {size} in {number}"),
        (Measure::Temporary, _) => format!("Temporary: {number} ({size}) were released before their thread allocated again"),
    }
}

/// The section's title, and what it leaves out.
fn section(out: &mut String, summary: &Summary, answer: &Answer<'_>, pool: Option<&str>, options: &TextOptions) {
    let table = &answer.table;
    let title = title(summary, &table.total, options.measure, answer.peak.time_ns);
    let title = pool.map_or_else(|| title.clone(), |pool| format!("{}, {}", capital(pool), small(&title)));
    out.push('\n');
    line(out, &options.style.strong(&title));
    left_out(out, table, options.style);
    if table.rows.is_empty() && options.group != Group::Tree {
        line(out, "  nothing");
    }
}

pub(super) fn left_out(out: &mut String, table: &Table, style: Style) {
    let say = |out: &mut String, what: &str, hint: &str, of: &dyn Fn(&Suppressed) -> Option<String>| {
        let (mut sum, mut reasons) = (Sums::default(), Vec::new());
        for (why, sums) in &table.left_out {
            if let Some(reason) = of(why) {
                sum.add(sums);
                reasons.push(format!("{}{} in {}", about(sums), bytes(sums.live_bytes), reason));
            }
        }
        if !reasons.is_empty() {
            sum.round();
            let (number, size, reasons) = (blocks(sum.live_blocks), bytes(sum.live_bytes), reasons.join(", "));
            let about = about(&sum);
            line(out, &style.faint(&format!("left out: {about}{number}, {about}{size}, {what}: {reasons} ({hint})")));
        }
    };
    say(out, "that language runtimes keep by design", "--all shows them", &|why| match why {
        Suppressed::Runtime(words) => Some((*words).to_owned()),
        Suppressed::User(_) => None,
    });
    say(out, "by suppression files", "--all shows them", &|why| match why {
        Suppressed::User(pattern) => Some(format!("leak:{pattern}")),
        Suppressed::Runtime(_) => None,
    });
}

/// The columns before the name: figure, share, the other figure, size of a block.
fn columns(measure: Measure, sums: &Sums, total: &Sums) -> [String; 4] {
    let (number, size) = measure.blocks_and_bytes(sums);
    let share = share(measure.of(sums), measure.of(total));
    let (about, figure) = (about(sums), amount(measure, sums));
    let each = format!("{about}{} each", bytes(size.checked_div(number).unwrap_or(0)));
    match measure {
        Measure::Live | Measure::Peak | Measure::Allocated => [figure, share, format!("{about}{}", blocks(number)), each],
        Measure::Allocations | Measure::Temporary => [figure, share, format!("{about}{}", bytes(size)), each],
    }
}

/// The columns of all rows, right-aligned, as one string a row.
pub(super) fn aligned(rows: &[[String; 4]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let padded =
        |row: &[String; 4]| row.iter().zip(&widths).fold(String::new(), |text, (cell, width)| text + format!("{cell:>width$}  ").as_str());
    rows.iter().map(padded).collect()
}

fn site_rows(out: &mut String, sites: &Sites<'_>, table: &Table, options: &TextOptions) {
    let figures: Vec<_> = table.rows.iter().map(|row| columns(options.measure, &row.sums, &table.total)).collect();
    for (row, figures) in table.rows.iter().zip(aligned(&figures)) {
        let RowKey::Site(node) = row.key else { continue };
        site(out, sites, node, &figures, options);
    }
}

/// A site: its figures and innermost frame, then its callers.
pub(super) fn site(out: &mut String, sites: &Sites<'_>, node: NodeId, figures: &str, options: &TextOptions) {
    call_path(out, &sites.frames(node), figures, options);
}

/// The same of frames, the innermost first.
pub(super) fn call_path(out: &mut String, frames: &[Frame<'_>], figures: &str, options: &TextOptions) {
    let shown = if options.full_stacks { frames } else { &frames[site_start(frames).min(frames.len())..site_end(frames)] };
    let Some((first, callers)) = shown.split_first() else {
        line(out, &format!("{figures}(no stack)"));
        return;
    };
    line(out, &format!("{figures}{}", frame(first, options, None)));
    let limit = if options.full_stacks { callers.len() } else { CALLERS };
    let mut module = first.module;
    for caller in callers.iter().take(limit) {
        line(out, &format!("        {}", frame(caller, options, Some(module))));
        module = caller.module;
    }
    if callers.len() > limit {
        line(out, &options.style.faint(&format!("        … {} more callers (--full-stacks)", callers.len() - limit)));
    }
}

/// `function  file:line  module`. The module is left out where the frame before has the same.
fn frame(frame: &Frame<'_>, options: &TextOptions, module_before: Option<&str>) -> String {
    let function = if options.full_stacks { frame.function.into() } else { short_function(frame.function) };
    let mut text = match module_before {
        None => options.style.strong(&function),
        Some(_) => function.into_owned(),
    };
    if let Some(at) = frame.location.filter(|at| !at.file.is_empty()) {
        let file = if options.full_stacks { at.file.into() } else { short_path(at.file, options.here.as_deref()) };
        let _ = write!(text, "  {file}");
        if at.line > 0 {
            let _ = write!(text, ":{}", at.line);
        }
    }
    if module_before != Some(frame.module) && !frame.module.is_empty() {
        let module = if options.full_stacks { frame.module } else { frame.module.rsplit('/').next().unwrap_or(frame.module) };
        let _ = write!(text, "  {}", options.style.faint(module));
    }
    text
}

fn plain_rows(out: &mut String, summary: &Summary, table: &Table, options: &TextOptions) {
    let figures: Vec<_> = table.rows.iter().map(|row| columns(options.measure, &row.sums, &table.total)).collect();
    for (row, figures) in table.rows.iter().zip(aligned(&figures)) {
        line(out, &format!("{figures}{}", plain_key(row, summary, options)));
    }
}

pub(super) fn plain_key(row: &Row, summary: &Summary, options: &TextOptions) -> String {
    let base = |path: &str| if options.full_stacks { path.to_owned() } else { path.rsplit('/').next().unwrap_or(path).to_owned() };
    match &row.key {
        RowKey::Site(_) => String::new(),
        RowKey::Function(function, module) => {
            let name = if options.full_stacks { function.into() } else { short_function(function) };
            let with = row.with_callees.as_ref().map(|sums| format!("  ({} with what it calls)", amount(options.measure, sums)));
            format!("{}  {}{}", options.style.strong(&name), options.style.faint(&base(module)), with.unwrap_or_default())
        }
        RowKey::Module(module) if module.is_empty() => "(in no module)".to_owned(),
        RowKey::Module(module) => options.style.strong(&base(module)),
        RowKey::Thread(tid, name) if name.is_empty() => options.style.strong(&format!("thread {tid}")),
        RowKey::Thread(tid, name) => format!("{}  thread {tid}", options.style.strong(name)),
        RowKey::Mode { sampled } => mode(*sampled).to_owned(),
        RowKey::Process(number) => options.style.strong(&summary.process(*number)),
        RowKey::Size(0) => "of 0 bytes".to_owned(),
        RowKey::Size(bits) => format!("of {} to {} bytes", count(1u64 << (bits - 1)), count(u64::MAX >> (64 - bits))),
    }
}

/// The call tree. Calls without a fork are not indented: only where paths part does the tree grow to the right.
fn tree(out: &mut String, sites: &Sites<'_>, branches: &[Branch], table: &Table, options: &TextOptions) {
    let figures: Vec<_> = branches.iter().map(|branch| columns(options.measure, &branch.sums, &table.total)).collect();
    tree_with(out, sites, branches, aligned(&figures), options);
}

/// The same with these figures.
pub(super) fn tree_with(out: &mut String, sites: &Sites<'_>, branches: &[Branch], figures: Vec<String>, options: &TextOptions) {
    for (branch, figures) in branches.iter().zip(figures) {
        let indent = "  ".repeat(branch.depth.min(40));
        let frames: Vec<Frame<'_>> = sites.list(branch.node).map(|list| sites.table().frames(list).collect()).unwrap_or_default();
        if frames.is_empty() {
            line(out, &format!("{figures}{indent}(not named)"));
        }
        // Root first: the function before what was inlined into it.
        for (index, shown) in frames.iter().rev().enumerate() {
            let figures = if index == 0 { figures.clone() } else { " ".repeat(figures.chars().count()) };
            line(out, &format!("{figures}{indent}{}", frame(shown, options, Some(""))));
        }
    }
}
