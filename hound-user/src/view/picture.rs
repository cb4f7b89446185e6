//! What stands over every picture: whose it is, what is missing, what is estimated.

use super::sampled::about_parts;
use super::summary::Summary;
use super::units::{bytes, count, duration};
use crate::query::{Sums, Suppressed};

/// A line over a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// Says what this is.
    Plain(String),
    /// Says what is missing or in doubt.
    Warning(String),
}

impl Remark {
    /// Its text.
    pub(super) fn text(&self) -> &str {
        match self {
            Remark::Plain(text) | Remark::Warning(text) => text,
        }
    }
}

/// What a report says at its head, as short as a picture allows.
pub fn remarks(summary: &Summary) -> Vec<Remark> {
    let command = if summary.command.is_empty() { "(command not known)".to_owned() } else { summary.command.join(" ") };
    let (wall, mode) = (duration(summary.wall_ns), &summary.mode);
    let how = match (summary.is_of_the_kernel(), summary.pid) {
        (true, 0) => format!("kernel memory of the whole host, recorded for {wall}"),
        (true, pid) => format!("kernel memory that process {pid} made the kernel allocate, recorded for {wall}"),
        (false, pid) => format!("process {pid}, {mode} mode, {wall}; it {}", summary.end.words()),
    };
    let mut remarks = vec![Remark::Plain(command), Remark::Plain(how)];
    remarks.extend(summary.stripped_of().map(Remark::Warning));
    let lost = summary.lost_events();
    if lost > 0 {
        remarks.push(Remark::Warning(format!("LOST {} events: the figures are short of them", count(lost))));
    }
    if let Some(sampled) = &summary.sampled {
        remarks.extend(about_parts(sampled).into_iter().map(Remark::Plain));
        if sampled.uncertain_blocks > 0 {
            let size = bytes(sampled.uncertain_bytes);
            remarks.push(Remark::Warning(format!("≈ {size} may live or not, for nobody watched; they are in no figure of what lives")));
        }
        if sampled.left_out_samples > 0 {
            let number = count(sampled.left_out_samples);
            remarks.push(Remark::Warning(format!("{number} samples are in no figure: how much of their time was observed is not known")));
        }
    }
    let cut: u64 = summary.cut_stacks.iter().map(|(_, number)| number).sum();
    if cut > 0 {
        remarks.push(Remark::Warning(format!("stacks cut short: those of {} records", count(cut))));
    }
    if !summary.anomalies.is_empty() {
        let number = summary.anomalies.len();
        remarks.push(Remark::Warning(format!("{number} anomalies in the capture: `hound check` lists them")));
    }
    remarks
}

/// What was left out of leaks.
pub fn left_out(left_out: &[(Suppressed, Sums)]) -> Option<Remark> {
    let mut sum = Sums::default();
    left_out.iter().for_each(|(_, sums)| sum.add(sums));
    sum.round();
    let (number, size) = (count(sum.live_blocks), bytes(sum.live_bytes));
    let text = format!("left out: {size} in {number} blocks that runtimes keep by design or suppression files name");
    (!left_out.is_empty()).then_some(Remark::Plain(text))
}
