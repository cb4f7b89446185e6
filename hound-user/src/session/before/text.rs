//! The result in a few lines.

use super::{Before, Blocks, Bound, Heap};
use crate::view::{blocks, bytes, count};

/// Reasons shown; the rest are counted.
const REASONS: usize = 3;

pub fn lines(before: &Before) -> Vec<String> {
    let memory = &before.memory;
    let mut lines = vec![format!(
        "There before: {} resident, {} of it anonymous, {} swapped out; heap grown with brk: {}",
        bytes(memory.resident),
        bytes(memory.anonymous),
        bytes(memory.swapped),
        bytes(memory.heap)
    )];
    for heap in &before.heaps {
        match heap {
            Heap::Walked(found) => walked(found, &mut lines),
            Heap::NotSound { allocator, why } => lines.push(format!("  {allocator}: blocks not counted, because {why}")),
        }
    }
    lines
}

fn walked(found: &Blocks, lines: &mut Vec<String>) {
    let view = if found.stood_still { "exact: no thread ran meanwhile" } else { "a snapshot while it ran" };
    lines.push(format!("  glibc: {} in use, {} ({view})", blocks(found.in_use.count), bytes(found.in_use.bytes)));
    let classes: Vec<String> = found
        .classes
        .iter()
        .map(|class| format!("{}+ B: {} ({})", count(class.from), count(class.blocks.count), bytes(class.blocks.bytes)))
        .collect();
    if !classes.is_empty() {
        lines.push(format!("    by size: {}", classes.join(", ")));
    }
    let mut more = vec![
        format!("{} freed but cached, {}", blocks(found.cached.count), bytes(found.cached.bytes)),
        format!("{} free", bytes(found.free)),
    ];
    more.push(format!("{} of {} in {} walked", bytes(found.covered), bytes(found.mapped), arenas(found.arenas)));
    if found.retried > 0 {
        more.push(format!("{} retried", count(found.retried.into())));
    }
    lines.push(format!("    {}", more.join("; ")));
    if found.unread_lists > 0 {
        let lists = if found.unread_lists == 1 { "1 list".into() } else { format!("{} lists", count(found.unread_lists.into())) };
        lines.push(format!("    {lists} of cached blocks changed too fast: a few more of the small blocks may be free"));
    }
    match found.cut {
        Some(Bound::Time) => lines.push(format!("    ended after {} ms: there is more than was counted", found.took_us / 1000)),
        Some(Bound::Bytes) => lines.push(format!("    ended after {} read: there is more than was counted", bytes(found.read))),
        None => {}
    }
    for left in found.left_out.iter().take(REASONS) {
        lines.push(format!("    not counted: {} at {:#x}: {}", bytes(left.bytes), left.start, left.why));
    }
    if found.left_out.len() > REASONS {
        lines.push(format!("    not counted: {} more stretches", count((found.left_out.len() - REASONS) as u64)));
    }
}

fn arenas(number: u32) -> String {
    format!("{} arena{}", count(number.into()), if number == 1 { "" } else { "s" })
}
