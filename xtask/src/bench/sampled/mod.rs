//! Sampled mode: from the kernel within its budget and without one, by the library, and going from mode to mode.
//!
//! Wherever it can be, the runs that are compared are spells of one process, attached to and left alone in turns: what differs between two
//! starts of a program (where its heap lies, which core it is on) then differs from nothing.

mod leak;
mod pace;
mod pair;
mod switch;

use super::bounds::Bound;
use super::{Plan, Section};
use anyhow::Result;
use std::time::Duration;

/// One part: its bounds, its table, and what the table is called.
pub struct Part {
    title: &'static str,
    bounds: Vec<Bound>,
    table: String,
}

/// The parts by name: `sampled:NAME` on the command line.
pub const PARTS: &[(&str, Measure)] = &[
    ("sampled:pace", pace::program),
    ("sampled:redis", pace::redis),
    ("sampled:kernel", pair::kernel),
    ("sampled:library", pair::library),
    ("sampled:leak", leak::measure),
    ("sampled:switch", switch::stall),
    ("sampled:flood", switch::flood),
];

type Measure = fn(&Plan) -> Result<Part>;

/// Measures every part, or those of the plan.
pub fn measure(plan: &Plan) -> Result<Section> {
    let mut bounds = Vec::new();
    let mut detail = Vec::new();
    for (name, measure) in PARTS.iter().filter(|(name, _)| plan.wants(name)) {
        eprintln!("bench: {name}");
        let part = measure(plan)?;
        bounds.extend(part.bounds);
        detail.push(format!("{}:\n\n{}", part.title, part.table));
    }
    Ok(Section { name: "sampled", title: "Sampled mode", bounds, detail: detail.join("\n") })
}

/// A spell of measurement under this plan.
fn spell(plan: &Plan, full_ms: u64) -> Duration {
    Duration::from_millis(plan.size(full_ms).max(300))
}
