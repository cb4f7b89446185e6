//! Figures that may be estimates, and what a report says of the sampling behind them.

use super::answer::Answer;
use super::summary::{Sampled, Summary};
use super::text::{Style, line};
use super::units::{blocks, bytes, count, duration, range, share};
use crate::query::{Figure, Measure, Sums};

/// A number of bytes: `12.3 MB`, or `≈ 12.3 MB (11.1–13.6)` if it is an estimate.
pub(super) fn bytes_of(sums: &Sums, figure: Figure) -> String {
    let value = sums.value(figure);
    match sums.interval(figure).filter(|_| sums.is_estimate()) {
        Some((low, high)) => format!("≈ {}", range(value, low, high)),
        None => bytes(value),
    }
}

/// A number of blocks: `1,024 blocks`, or `≈ 1,024 blocks (900–1,100)`.
pub(super) fn blocks_of(sums: &Sums, figure: Figure) -> String {
    let value = sums.value(figure);
    match sums.interval(figure).filter(|_| sums.is_estimate()) {
        Some((low, high)) => format!("≈ {} ({}–{})", blocks(value), count(low), count(high)),
        None => blocks(value),
    }
}

/// The figure that rows are sorted by, as `bytes_of` or `blocks_of`.
pub fn amount(measure: Measure, sums: &Sums) -> String {
    let (number, size) = measure.figures();
    match measure {
        Measure::Live | Measure::Peak | Measure::Allocated => bytes_of(sums, size),
        Measure::Allocations | Measure::Temporary => blocks_of(sums, number),
    }
}

/// What stands before figures that come second: `≈ `, or nothing. Their intervals are in the JSON.
pub(super) fn about(sums: &Sums) -> &'static str {
    if sums.is_estimate() { "≈ " } else { "" }
}

/// How it was sampled, for a picture: a line a part, or one for all if they are many.
pub(super) fn about_parts(sampled: &Sampled) -> Vec<String> {
    let mut lines: Vec<String> = match &sampled.parts[..] {
        [part] => vec![format!("sampled: {}", part.words())],
        parts if parts.len() <= 3 => {
            parts.iter().map(|part| format!("{} to {}: {}", duration(part.from_ns), duration(part.to_ns), part.words())).collect()
        }
        parts => vec![format!("recorded in {} parts, sampled and in full", parts.len())],
    };
    lines.push("figures with ≈ are estimates: the truth lies within the range behind them with 95 %".to_owned());
    lines
}

/// How it was sampled, and what is in doubt.
pub(super) fn head(out: &mut String, sampled: &Sampled, style: Style) {
    match &sampled.parts[..] {
        [part] => line(out, &format!("sampled: {}", part.words())),
        parts => {
            for (index, part) in parts.iter().enumerate() {
                let time = format!("{} to {}", duration(part.from_ns), duration(part.to_ns));
                let sums = &part.figures;
                let (allocated, live) = (bytes_of(sums, Figure::AllocatedBytes), bytes_of(sums, Figure::LiveBytes));
                // What became of the blocks of a part in which all were recorded is not known once it is over.
                let until = if part.samples == 0 && index + 1 < parts.len() { "lived at its end" } else { "live" };
                let figures = if part.is_off() { String::new() } else { format!("; allocated {allocated}, of which {live} {until}") };
                line(out, &format!("{time}: {}{figures}", part.words()));
            }
        }
    }
    line(out, "figures with ≈ are estimates: the truth lies within the range behind them with 95 %");
    if sampled.uncertain_blocks > 0 {
        let (number, size) = (blocks(sampled.uncertain_blocks), bytes(sampled.uncertain_bytes));
        let text = format!(
            "uncertain: ≈ {number} (≈ {size}) may live or not beyond what lives by estimate, for nobody watched; they are in no figure but the ranges' upper ends"
        );
        line(out, &style.warning(&text));
    }
    if sampled.left_out_samples > 0 {
        let number = count(sampled.left_out_samples);
        let text = format!("{number} samples are in no figure: the capture ends before it says how much of their time was observed");
        line(out, &style.warning(&text));
    }
}

/// What one heap adds up to, estimated.
pub(super) fn totals(out: &mut String, summary: &Summary, answer: &Answer<'_>, total: &Sums) {
    let both = |number, size| format!("{} in {}", bytes_of(total, size), blocks_of(total, number));
    let temporary = share(total.temporary, total.allocations);
    line(out, &format!("allocated  {}, {temporary} of them temporary", both(Figure::Allocations, Figure::AllocatedBytes)));
    line(out, &format!("released   {}", both(Figure::Freed, Figure::FreedBytes)));
    if answer.totals.unknown_frees > 0 {
        line(out, &format!("           and {} whose allocation was not recorded", blocks(answer.totals.unknown_frees)));
    }
    if answer.totals.gone > 0 {
        line(out, &format!("           {} ended unseen, between windows or after a switch", count(answer.totals.gone)));
    }
    let since = if summary.is_attached() { ", all allocated since the attach" } else { "" };
    line(out, &format!("at the end {}{since}", both(Figure::LiveBlocks, Figure::LiveBytes)));
    if let Some(sampled) = summary.sampled.as_ref().filter(|sampled| sampled.unwatched_blocks > 0) {
        let (number, size) = (blocks(sampled.unwatched_blocks), bytes(sampled.unwatched_bytes));
        line(
            out,
            &format!("           of these, {number} ({size}) lived when not all was recorded any more: they may have been released since"),
        );
    }
    line(out, &format!("peak       {} after {}", bytes_of(total, Figure::PeakBytes), duration(answer.peak.time_ns)));
}
