//! The head of a report, from what the capture says about itself.

use super::{Read, processes};
use crate::capture::model::Event;
use crate::capture::{Anomaly, Capture, REASON_DAMAGED, STARTED};
use crate::query::Sites;
use crate::view::{EndKind, ProcessLine, Sampled, Summary, count, duration};
use hound_common::event;
use hound_unwind::EndReason;
use std::collections::BTreeMap;

/// `pids`: the processes that are asked for; empty = all.
pub(super) fn summary(capture: &Capture, read: &Read, sites: &Sites<'_>, pids: &[u32]) -> Summary {
    let session = capture.session();
    let end = capture.end();
    let mut anomalies: Vec<String> = read.anomalies.0.iter().map(ToString::to_string).collect();
    if read.heap.outcome.anomalies.allocated_alive > 0 {
        let number = read.heap.outcome.anomalies.allocated_alive;
        anomalies.push(format!("{number} allocations returned an address that was alive: releases are missing"));
    }
    let mut summary = Summary {
        command: session.command.clone(),
        pid: session.pid,
        mode: session.mode.clone(),
        started: session.options.iter().any(|option| option == STARTED),
        hound_version: session.hound_version.clone(),
        machine: session.machine.clone(),
        wall_ns: end.map(|end| end.target_wall_ns).filter(|&ns| ns > 0).unwrap_or(read.heap.outcome.end_ns),
        end: end_kind(capture),
        losses: losses(capture),
        stripped: capture.stripped().copied(),
        cut_stacks: cut_stacks(sites),
        frame_pointer_stacks: sites.roots().iter().filter(|(root, _)| root.frame_pointers).map(|(_, sums)| sums.recorded()).sum(),
        anomalies,
        unresolved: Vec::new(),
        reordered: read.heap.outcome.anomalies.reordered,
        before: session.before.clone(),
        attach_stall_ns: session.attach_stall_ns,
        detach_stall_ns: end.map_or(0, |end| end.detach_stall_ns),
        sampled: sampled(read),
        covered: session.covered.clone(),
        not_covered: session.not_covered.iter().cloned().chain(switched_off(capture, read)).collect(),
        processes: processes::lines(capture, pids, &read.heap.processes),
    };
    match &summary.processes[..] {
        [] => {}
        [only] => {
            (summary.command, summary.pid, summary.end) = (only.command.clone(), only.pid, only.end);
            summary.wall_ns = only.to_ns.unwrap_or(summary.wall_ns).saturating_sub(only.from_ns);
        }
        // What lives at the end of all of them has leaked only if all had their chance to release it.
        several => {
            let is_final = |line: &&ProcessLine| line.end.is_final() || line.end == EndKind::Exec;
            let last = several.iter().find(|line| !is_final(line)).or(several.iter().find(|line| line.end.is_final()));
            summary.end = last.map_or(summary.end, |line| line.end);
        }
    }
    summary
}

/// For how long a program that was launched has had its recording switched off.
fn switched_off(capture: &Capture, read: &Read) -> Option<String> {
    if capture.session().mode != "launch" || read.sampling.is_some() {
        return None; // the parts of others are shown one by one
    }
    let (mut since, mut gaps, mut off_ns) = (None, 0, 0);
    for event in capture.sampling() {
        let Event::Mode { mode } = event.event else { continue };
        match (mode, since) {
            (event::MODE_OFF, None) => since = Some(event.time_ns),
            (event::MODE_OFF, _) => {}
            (_, Some(from_ns)) => (since, gaps, off_ns) = (None, gaps + 1, off_ns + event.time_ns.saturating_sub(from_ns)),
            (_, None) => {}
        }
    }
    if let Some(from_ns) = since {
        (gaps, off_ns) = (gaps + 1, off_ns + read.heap.outcome.end_ns.saturating_sub(from_ns));
    }
    let times = if gaps == 1 { "once".to_owned() } else { format!("{} times", count(gaps)) };
    (gaps > 0).then(|| format!("{} in which recording was switched off, {times}", duration(off_ns)))
}

/// How the capture was sampled. The figures are the program's heap's.
fn sampled(read: &Read) -> Option<Sampled> {
    Some(Sampled::new(read.sampling.as_ref()?, read.heap.whole.as_ref()?, read.heap.outcome.end_ns))
}

pub(super) fn end_kind(capture: &Capture) -> EndKind {
    match capture.end().map(|end| (end.reason, end.value)) {
        Some((event::END_EXIT, status)) => EndKind::Exit(status),
        Some((event::END_SIGNAL, signal)) => EndKind::Signal(signal),
        Some((event::END_NO_MEMORY, _)) => EndKind::NoMemory,
        Some((event::END_EXEC, _)) => EndKind::Exec,
        Some((event::END_DETACH, _)) => EndKind::Detach,
        None if capture.is_growing() => EndKind::Growing,
        _ => EndKind::Cut,
    }
}

fn losses(capture: &Capture) -> Vec<(String, u64)> {
    let mut by_reason: BTreeMap<u8, u64> = BTreeMap::new();
    capture.losses().iter().for_each(|loss| *by_reason.entry(loss.reason).or_default() += loss.count);
    if let Some(lost) = capture.end().map(|end| end.lost_on_disk).filter(|&lost| lost > 0) {
        *by_reason.entry(event::LOST_DISK).or_default() += lost;
    }
    let damaged = |anomaly: &Anomaly| if let Anomaly::Damaged { events, .. } = anomaly { *events } else { 0 };
    let damaged: u64 = capture.anomalies().0.iter().map(damaged).sum();
    let words = |reason| match reason {
        event::LOST_RING_FULL => "the ring was full for longer than the program may be made to wait".to_owned(),
        event::LOST_NO_STREAM => "there was no stream left for a thread".to_owned(),
        event::LOST_NESTED => "signal handlers were nested deeper than streams are kept for".to_owned(),
        event::LOST_DAMAGED => "the program overwrote the ring (an estimate)".to_owned(),
        event::LOST_DISK => "the capture could not be written: the disk was full".to_owned(),
        event::LOST_NO_MEMORY => "the program had no memory left to record a deeper stack".to_owned(),
        event::LOST_SAMPLES_FULL => "the table of sampled blocks was full: choose a larger --interval".to_owned(),
        event::LOST_BUSY => "the table of sampled blocks was locked by what an interrupt had interrupted".to_owned(),
        event::LOST_INTERRUPTED => {
            "interrupts came while hound's own program ran there (a release among them leaves its block outstanding)".to_owned()
        }
        event::LOST_BUDGET => "there were more changes of mappings than the budget allows to record".to_owned(),
        event::LOST_UNFINISHED => "threads did not finish writing it while hound detached".to_owned(),
        other => format!("for reason {other}, which this hound has no words for"),
    };
    let mut losses: Vec<_> = by_reason.into_iter().map(|(reason, count)| (words(reason), count)).collect();
    if damaged > 0 {
        losses.push(("chunks of the capture file are damaged".to_owned(), damaged));
    }
    losses.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    losses
}

fn cut_stacks(sites: &Sites<'_>) -> Vec<(String, u64)> {
    let mut by_reason: BTreeMap<u8, u64> = BTreeMap::new();
    for (root, sums) in sites.roots().iter().filter(|(root, _)| root.reason != EndReason::Root as u8) {
        *by_reason.entry(root.reason).or_default() += sums.recorded();
    }
    let words = |reason| match EndReason::from_u8(reason) {
        Some(known) => known.sentence().to_owned(),
        None if reason == REASON_DAMAGED => "the program overwrote the ring".to_owned(),
        None => format!("for reason {reason}, which this hound has no words for"),
    };
    let mut cut: Vec<_> = by_reason.into_iter().map(|(reason, count)| (words(reason), count)).collect();
    cut.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    cut
}
