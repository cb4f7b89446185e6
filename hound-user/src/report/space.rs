//! A capture in, a picture out of where its heap lies.

use super::graph::{Drawn, GraphOptions};
use super::second::Prepared;
use super::{Options, Progress};
use crate::capture::model::ProcessId;
use crate::heap::Mappings;
use crate::view::chart::{Cell, Kind, Range, Space, space_json, space_svg};
use crate::view::{Remark, bytes, duration};
use std::path::Path;

/// Blocks so near to each other are of one range, where no mapping is known.
const NEAR: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Where the heap lies and how full it is.
pub(super) fn drawn(path: &Path, options: &Options, how: &GraphOptions, progress: &Progress) -> anyhow::Result<Drawn> {
    let mut prepared = Prepared::of(path, options, progress)?;
    let at_ns = prepared.exact_moment(how.at_ns)?;
    let process = one_process(&prepared, &options.query.processes)?;
    let processes = prepared.material.processes.clone();
    let grouping = prepared.grouping();
    let mut live: Vec<Cell> = Vec::new();
    prepared.pass(
        progress,
        |block, ending| {
            let lives = block.alloc_ns <= at_ns && (ending.is_live() || ending.known_ns() > at_ns);
            if lives && grouping.has(block, ending) {
                let from = processes.as_ref().map_or(block.addr, |processes| processes.plain(block.stream, block.addr));
                live.push(Cell { from, bytes: block.size });
            }
        },
        |_| (),
    );
    progress.done();
    let maps = Mappings::without_stacks(&prepared.material.capture).maps;
    let of_process = maps.iter().filter(|map| map.process == process);
    let known = of_process.flat_map(|map| {
        let kind = if map.stack.is_none() { Kind::Heap } else { Kind::Mapped };
        let then = map.places.iter().filter(move |(_, _, since, until)| *since <= at_ns && at_ns < *until);
        then.map(move |(from, to, ..)| (*from, *to, kind))
    });
    let (known, used): (Vec<_>, u64) = (known.collect(), live.iter().map(|cell| cell.bytes).sum());
    let mut remarks = prepared.remarks();
    if known.is_empty() {
        remarks.push(Remark::Warning("no mappings were recorded: ranges are those around live blocks".to_owned()));
    }
    remarks.push(Remark::Plain("not in it: the program, libraries and stacks, and what was mapped and not recorded".to_owned()));
    remarks.extend(prepared.not_in_pages());
    let title = format!("Where the heap lies, after {}: {} in live blocks", duration(at_ns), bytes(used));
    let space = Space { title, remarks, ranges: ranges(known, live) };
    Ok(Drawn { svg: space_svg(&space), json: space_json(&space), summary: prepared.summary })
}

/// # Errors
/// If there are several, and none was chosen.
fn one_process(prepared: &Prepared, pids: &[u32]) -> anyhow::Result<ProcessId> {
    let all = prepared.material.capture.processes();
    let mut asked = all.iter().filter(|info| pids.is_empty() || pids.contains(&info.pid));
    match (asked.next(), asked.next()) {
        (first, None) => Ok(first.map_or(ProcessId::FIRST, |info| info.id)),
        _ => {
            let mut there: Vec<String> = all.iter().map(|info| info.pid.to_string()).collect();
            there.dedup();
            anyhow::bail!("an address space is that of one process: give --process with one of {}", there.join(", "))
        }
    }
}

/// Ranges that do not lie over each other: what is known to be mapped, and around blocks that lie elsewhere.
fn ranges(mut known: Vec<(u64, u64, Kind)>, mut live: Vec<Cell>) -> Vec<Range> {
    known.sort_unstable();
    let mut ranges: Vec<Range> = Vec::new();
    for (from, to, kind) in known.into_iter().filter(|(from, to, _)| from < to) {
        match ranges.last_mut() {
            // Of mappings side by side nobody can tell where one begins.
            Some(last) if from <= last.to && last.kind == kind => last.to = last.to.max(to),
            Some(last) if from < last.to => {
                let from = last.to;
                if from < to {
                    ranges.push(Range { from, to, kind, live: Vec::new() });
                }
            }
            _ => ranges.push(Range { from, to, kind, live: Vec::new() }),
        }
    }
    live.retain(|cell| cell.bytes > 0);
    live.sort_unstable_by_key(|cell| cell.from);
    let mut others: Vec<Range> = Vec::new();
    for cell in live {
        let at = ranges.partition_point(|range| range.to <= cell.from);
        match ranges.get_mut(at).filter(|range| range.from <= cell.from) {
            Some(range) => range.live.push(Cell { bytes: cell.bytes.min(range.to - cell.from), ..cell }),
            None => {
                let bound = ranges.get(at).map_or(u64::MAX, |range| range.from);
                let end = cell.from.saturating_add(cell.bytes).min(bound);
                let (from, to) = (cell.from / PAGE * PAGE, end.checked_next_multiple_of(PAGE).unwrap_or(end).min(bound).max(end));
                let bytes = end - cell.from;
                let crossed = |last: &Range| ranges.iter().any(|range| range.from >= last.to && range.to <= from);
                match others.last_mut().filter(|last| from.saturating_sub(last.to) <= NEAR && !crossed(last)) {
                    Some(last) => {
                        last.to = last.to.max(to);
                        last.live.push(Cell { bytes, ..cell });
                    }
                    None => others.push(Range { from, to, kind: Kind::Blocks, live: vec![Cell { bytes, ..cell }] }),
                }
            }
        }
    }
    ranges.extend(others);
    ranges.sort_by_key(|range| range.from);
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lie_in_what_is_mapped_or_make_a_range_of_their_own() {
        let live = |from, bytes| Cell { from, bytes };
        let known = vec![(0x5000, 0x9000, Kind::Heap), (0x10_0000, 0x10_2000, Kind::Mapped), (0x10_2000, 0x10_4000, Kind::Mapped)];
        let blocks =
            vec![live(0x70_0000_0010, 8), live(0x5010, 100), live(0x10_3000, 0x5000), live(0x70_0000_4000, 8), live(0x90_0000_0000, 4097)];
        let found = ranges(known, blocks);
        let of: Vec<(u64, u64, Kind, u64)> =
            found.iter().map(|range| (range.from, range.to, range.kind, range.live.iter().map(|cell| cell.bytes).sum())).collect();
        let expected = [
            (0x5000, 0x9000, Kind::Heap, 100),
            (0x10_0000, 0x10_4000, Kind::Mapped, 0x1000),
            (0x70_0000_0000, 0x70_0000_5000, Kind::Blocks, 16),
            (0x90_0000_0000, 0x90_0000_2000, Kind::Blocks, 4097),
        ];
        assert_eq!(of, expected);
    }
}
