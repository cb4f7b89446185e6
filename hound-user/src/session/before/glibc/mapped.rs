//! Blocks with a mapping of their own.
//!
//! Such a block has its header at the start of its mapping. Neighbouring mappings are merged by the kernel, so one block may follow
//! another, or anything else the program mapped. libc counts these blocks: what is found beyond the first break is believed only if it
//! makes up exactly what libc says.

use super::super::memory::{Area, What};
use super::super::source::{Source, Stop, word_in};
use super::super::{Blocks, Bound, Count, LeftOut};
use super::arena::Arenas;
use super::tally::Tally;
use super::{FLAGS, MMAPPED, PAGE};

/// Pages looked at beyond what follows from the mappings: about half a microsecond each.
const PAGES_AT_MOST: usize = 1 << 14;

/// Finds the blocks and counts them.
pub fn walk(source: &mut Source, areas: &[Area], arenas: &Arenas, tally: &mut Tally, blocks: &mut Blocks) -> Result<(), Bound> {
    let told = told(source, areas, arenas)?;
    if told.is_some_and(|told| told.count == 0) {
        blocks.own_mapping_told.get_or_insert_default();
        return Ok(());
    }
    let (mut sure, mut more, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    let candidates = areas.iter().filter(|area| area.what == What::Anonymous);
    for area in candidates {
        let mut at = area.start;
        while let Some(block) = block(source, at, area.end)? {
            at += block.0;
            sure.push(block);
        }
        rest.push((at, area.end));
    }
    let sum = |found: &[(u64, u64)]| Count { count: found.len() as u64, bytes: found.iter().map(|block| block.0).sum() };
    if told.is_some_and(|told| told.count > sum(&sure).count) {
        let mut pages = 0;
        for (mut at, end) in rest {
            while at < end && pages < PAGES_AT_MOST {
                pages += 1;
                match block(source, at, end)? {
                    Some(block) => {
                        at += block.0;
                        more.push(block);
                    }
                    None => at += PAGE,
                }
            }
        }
        let (with, without) = (sum(&more), sum(&sure));
        if told == Some(Count { count: with.count + without.count, bytes: with.bytes + without.bytes }) {
            sure.append(&mut more);
        }
    }
    let found = sum(&sure);
    if let Some(told) = told {
        if told.count > found.count {
            let why = format!("{} blocks with mappings of their own were not found among other mappings", told.count - found.count);
            blocks.left_out.push(LeftOut { start: 0, bytes: told.bytes.saturating_sub(found.bytes), why });
        }
        let sum = blocks.own_mapping_told.get_or_insert_default();
        sum.count += told.count;
        sum.bytes += told.bytes;
    }
    for &(length, usable) in &sure {
        tally.block(length, usable);
        blocks.own_mapping.bytes += usable;
    }
    blocks.own_mapping.count += found.count;
    blocks.covered += found.bytes;
    blocks.mapped += told.map_or(found.bytes, |told| told.bytes.max(found.bytes));
    Ok(())
}

/// The block whose mapping begins at an address: its mapping's length and its usable bytes.
fn block(source: &mut Source, at: u64, end: u64) -> Result<Option<(u64, u64)>, Bound> {
    if at >= end {
        return Ok(None);
    }
    let [before, head] = match source.words(at) {
        Ok(words) => words,
        Err(Stop::Unreadable) => return Ok(None),
        Err(Stop::Bound(bound)) => return Err(bound),
    };
    let size = head & !FLAGS;
    // Since 2.43 the length is told without the header, and a bit says that it lies on huge pages.
    let (length, usable) = match size % PAGE {
        0 => (size, size.saturating_sub(16)),
        rest if rest == PAGE - 16 => (size.saturating_add(16), size - 8),
        _ => return Ok(None),
    };
    let is_block = before <= 1 && head & FLAGS == MMAPPED && length >= PAGE && length <= end - at;
    Ok(is_block.then_some((length, usable)))
}

/// libc's own count of these blocks. It stands a little before the address at which the main arena's heap began, among its settings.
fn told(source: &mut Source, areas: &[Area], arenas: &Arenas) -> Result<Option<Count>, Bound> {
    let (start, end) = arenas.data;
    let mut bytes = vec![0; usize::try_from((end - start).min(16 << 20)).unwrap_or(0)];
    match source.fill(start, &mut bytes) {
        Ok(()) => {}
        Err(Stop::Unreadable) => return Ok(None),
        Err(Stop::Bound(bound)) => return Err(bound),
    }
    let heaps: Vec<&Area> = areas.iter().filter(|area| area.what == What::Heap).collect();
    let is_base = |word: u64| heaps.iter().any(|heap| heap.holds(word)) && word.is_multiple_of(8);
    let bases = (64..bytes.len().saturating_sub(8)).step_by(8).filter(|&offset| word_in(&bytes, offset).is_some_and(is_base));
    let mut counts = bases.filter_map(|base| [36, 32].iter().find_map(|&before| counted(&bytes, base, before)));
    // Two places that look like it: neither is believed.
    Ok(counts.next().filter(|first| counts.all(|other| other == *first)))
}

/// The counts, if they stand `before` bytes before the base: number, most ever allowed, most there were, a flag; bytes, most bytes.
fn counted(bytes: &[u8], base: usize, before: usize) -> Option<Count> {
    let number = |index: usize| Some(u64::from(u32::from_le_bytes(*bytes.get(base - before + 4 * index..)?.first_chunk()?)));
    let (count, allowed, most, fixed) = (number(0)?, number(1)?, number(2)?, number(3)?);
    let (sum, most_bytes) = (word_in(bytes, base - 16)?, word_in(bytes, base - 8)?);
    let holds = count <= most && most <= allowed && allowed > 0 && fixed <= 1 && sum <= most_bytes;
    let pages =
        sum % PAGE == 0 && most_bytes % PAGE == 0 && count * PAGE <= sum && (count == 0) == (sum == 0) && (most == 0) == (most_bytes == 0);
    (holds && pages).then_some(Count { count, bytes: sum })
}
