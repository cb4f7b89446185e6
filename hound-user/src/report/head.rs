//! The head of a report, from what the capture says about itself.

use super::Read;
use crate::capture::{Anomaly, Capture, REASON_DAMAGED};
use crate::query::Sites;
use crate::view::{EndKind, Summary};
use hound_common::event;
use hound_unwind::EndReason;
use std::collections::BTreeMap;

pub(super) fn summary(capture: &Capture, read: &Read, sites: &Sites<'_>) -> Summary {
    let session = capture.session();
    let end = capture.end();
    let mut anomalies: Vec<String> = read.anomalies.0.iter().map(ToString::to_string).collect();
    if read.outcome.anomalies.allocated_alive > 0 {
        let number = read.outcome.anomalies.allocated_alive;
        anomalies.push(format!("{number} allocations returned an address that was alive: releases are missing"));
    }
    Summary {
        command: session.command.clone(),
        pid: session.pid,
        mode: session.mode.clone(),
        hound_version: session.hound_version.clone(),
        machine: session.machine.clone(),
        wall_ns: end.map(|end| end.target_wall_ns).filter(|&ns| ns > 0).unwrap_or(read.outcome.end_ns),
        end: end_kind(capture),
        losses: losses(capture),
        cut_stacks: cut_stacks(sites),
        frame_pointer_stacks: sites.roots().iter().filter(|(root, _)| root.frame_pointers).map(|(_, sums)| sums.allocations).sum(),
        anomalies,
        unresolved: Vec::new(),
        reordered: read.outcome.anomalies.reordered,
        before: session.before.clone(),
        attach_stall_ns: session.attach_stall_ns,
        detach_stall_ns: end.map_or(0, |end| end.detach_stall_ns),
        covered: session.covered.clone(),
        not_covered: session.not_covered.clone(),
    }
}

fn end_kind(capture: &Capture) -> EndKind {
    match capture.end().map(|end| (end.reason, end.value)) {
        Some((event::END_EXIT, status)) => EndKind::Exit(status),
        Some((event::END_SIGNAL, signal)) => EndKind::Signal(signal),
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
        *by_reason.entry(root.reason).or_default() += sums.allocations;
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
