//! Single blocks that live, or may.

use super::json::json_frames;
use super::text::{TextOptions, call_path, line};
use super::units::{bytes, count, duration};
use crate::query::Blocks;
use serde_json::{Value, json};

/// For people.
pub fn blocks_text(blocks: &Blocks<'_>, options: &TextOptions) -> String {
    let mut out = String::from("\n");
    let sampled = if blocks.rows.iter().any(|row| row.probability.is_some()) { " (of those that were sampled)" } else { "" };
    let title = format!("Single blocks alive, the largest first{sampled}:");
    line(&mut out, &options.style.strong(&title));
    if blocks.rows.is_empty() {
        line(&mut out, "  nothing");
    }
    for row in &blocks.rows {
        let thread = match (row.tid, row.thread) {
            (0, _) => String::new(),
            (tid, "") => format!("  by thread {tid}"),
            (tid, name) => format!("  by {name} (thread {tid})"),
        };
        let age = if row.in_doubt { "old if it lives" } else { "old" };
        let figures = format!("{:#x}  {}  {} {age}  {}{thread}  ", row.address, bytes(row.size), duration(row.age_ns), row.kind.name());
        call_path(&mut out, &row.frames, &figures, options);
    }
    if blocks.omitted > 0 {
        line(&mut out, &options.style.faint(&format!("… {} more (--limit N or --all to see them)", count(blocks.omitted))));
    }
    out
}

/// For programs: an array. `stack` is outermost first, `frames` innermost.
pub(super) fn blocks_json(blocks: &Blocks<'_>) -> Value {
    let row = |row: &crate::query::Listed<'_>| {
        let mut value = json!({
            "address": format!("{:#x}", row.address),
            "size": row.size,
            "allocated_ns": row.alloc_ns,
            "age_ns": row.age_ns,
            "kind": row.kind.name(),
            "tid": row.tid,
            "thread": row.thread,
            "stack": row.frames.iter().rev().map(|frame| frame.function).collect::<Vec<_>>(),
            "frames": json_frames(&row.frames),
        });
        if let Some(probability) = row.probability {
            value["probability"] = json!(probability);
        }
        if row.in_doubt {
            value["in_doubt"] = json!(true);
        }
        value
    };
    blocks.rows.iter().map(row).collect()
}
