//! What a target held before it was attached to, in a few lines.

use super::units::{blocks, bytes, count, duration};
use crate::capture::{Before, BlockClass, Blocks, Bound, HeapBefore};

/// Reasons shown; the rest are counted.
const REASONS: usize = 3;
/// Size classes shown, those with the most bytes; `hound info` shows all.
const CLASSES: usize = 4;

/// The lines, each without its line end.
pub fn before(before: &Before) -> Vec<String> {
    let swapped = if before.swapped > 0 { format!(", {} swapped out", bytes(before.swapped)) } else { String::new() };
    let mut lines = vec![format!("there before the attach: {} resident{swapped}", bytes(before.resident))];
    let when = before.looked_ns.map_or_else(String::new, |at| format!(" ({} after recording began)", duration(at)));
    match &before.not_looked {
        Some(why) => lines.push(format!("  of what, is not known: {why}")),
        None if before.heap + before.anonymous > 0 => {
            let (heap, other) = (bytes(before.heap), bytes(before.anonymous));
            lines.push(format!("  {heap} in the heap segment, {other} in other anonymous memory{when}"));
        }
        None => {}
    }
    for heap in &before.heaps {
        match heap {
            HeapBefore::Walked(found) => walked(found, &mut lines),
            HeapBefore::NotSound { allocator, why } => lines.push(format!("  {allocator}: blocks not counted, because {why}")),
        }
    }
    lines
}

/// The sizes of the blocks that were walked, a line each: all of them.
pub fn sizes(blocks: &Blocks) -> Vec<String> {
    let line = |class: &BlockClass| {
        let (number, size) = (count(class.blocks.count), bytes(class.blocks.bytes));
        format!("{number:>12}  {size:>9}  {}", range(class))
    };
    blocks.classes.iter().map(line).collect()
}

fn range(class: &BlockClass) -> String {
    format!("of {} to {} bytes", count(class.from), count(class.from.saturating_mul(2).saturating_sub(1)))
}

fn walked(found: &Blocks, lines: &mut Vec<String>) {
    let view = if found.stood_still { "exact: no thread ran meanwhile" } else { "a snapshot while it ran" };
    let cached = match found.cached.count {
        0 => String::new(),
        number => format!("; {} freed but cached", count(number)),
    };
    let (number, size, free) = (blocks(found.in_use.count), bytes(found.in_use.bytes), bytes(found.free));
    lines.push(format!("  glibc: {number} in use, {size}{cached}; {free} free, {} ({view})", arenas(found.arenas)));
    let mut largest: Vec<&BlockClass> = found.classes.iter().collect();
    largest.sort_by_key(|class| std::cmp::Reverse(class.blocks.bytes));
    largest.truncate(CLASSES);
    let most: Vec<String> =
        largest.iter().map(|class| format!("{} in {} {}", bytes(class.blocks.bytes), blocks(class.blocks.count), range(class))).collect();
    if !most.is_empty() {
        lines.push(format!("    {}{}", if found.classes.len() > CLASSES { "most: " } else { "" }, most.join("; ")));
    }
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
