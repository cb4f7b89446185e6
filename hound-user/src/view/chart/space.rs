//! Address space: ranges as strips of cells, the darker the fuller.

use super::Rgb;
use super::legend::{Entry, Sign, legend};
use super::page::{MARGIN, SIZE, WIDTH, document, header};
use crate::view::picture::Remark;
use crate::view::svg::{escaped, number, width};
use crate::view::units::{bytes, share};
use serde_json::{Value, json};
use std::fmt::Write;

/// Cells in a row, their width, and the height of a row.
const CELLS: usize = 128;
const CELL: f64 = 6.0;
const ROW: f64 = 14.0;
/// More rows than this are nothing that anybody reads.
const ROWS: usize = 56;
/// The smallest cell: a page.
const PAGE: u64 = 4096;
/// Opacity of what is mapped and holds nothing.
const EMPTY: f64 = 0.16;

/// What address space is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The heap of `brk`.
    Heap,
    /// The program mapped it.
    Mapped,
    /// Live blocks lie there, and nothing else is known.
    Blocks,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Heap, Kind::Mapped, Kind::Blocks];

    fn name(self) -> &'static str {
        match self {
            Kind::Heap => "heap of brk",
            Kind::Mapped => "mapped, as recorded",
            Kind::Blocks => "around live blocks: no mapping was recorded there",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Kind::Heap => "brk",
            Kind::Mapped => "map",
            Kind::Blocks => "blocks",
        }
    }

    fn colour(self) -> Rgb {
        match self {
            Kind::Heap => Rgb(0x00, 0x72, 0xB2),
            Kind::Mapped => Rgb(0xD5, 0x5E, 0x00),
            Kind::Blocks => Rgb(0x00, 0x9E, 0x73),
        }
    }
}

/// Some of a range: bytes of live blocks from here on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Where.
    pub from: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins, and ends.
    pub from: u64,
    /// The first address behind it.
    pub to: u64,
    /// What it is.
    pub kind: Kind,
    /// Live blocks in it, ascending, not over each other: parts of them that lie within.
    pub live: Vec<Cell>,
}

impl Range {
    fn used(&self) -> u64 {
        self.live.iter().map(|cell| cell.bytes).sum()
    }
}

/// The address space of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// What it shows.
    pub title: String,
    /// Whose it is, what is missing.
    pub remarks: Vec<Remark>,
    /// Ascending, not over each other.
    pub ranges: Vec<Range>,
}

/// A strip: a range from a multiple of the cell's size on.
fn rows_of(range: &Range, cell: u64) -> u64 {
    (range.to - 1) / cell / CELLS as u64 - range.from / cell / CELLS as u64 + 1
}

/// The size of a cell with which the picture has so few rows, and the ranges that are in it: where there are too many, the largest.
fn fitted(of: &Space) -> (u64, Vec<&Range>) {
    let mut ranges: Vec<&Range> = of.ranges.iter().filter(|range| range.to > range.from).collect();
    if ranges.len() > ROWS / 2 {
        ranges.sort_by_key(|range| std::cmp::Reverse((range.used(), range.to - range.from)));
        ranges.truncate(ROWS / 2);
        ranges.sort_by_key(|range| range.from);
    }
    let mut cell = PAGE;
    while ranges.iter().map(|range| rows_of(range, cell)).sum::<u64>() > ROWS as u64 && cell < 1 << 62 {
        cell *= 2;
    }
    (cell, ranges)
}

/// The picture.
pub fn space_svg(of: &Space) -> String {
    let (cell, ranges) = fitted(of);
    let mut remarks = of.remarks.clone();
    if !ranges.is_empty() {
        remarks.push(Remark::Plain(format!("a cell is {}, a row {}", binary(cell), binary(cell.saturating_mul(CELLS as u64)))));
    }
    if ranges.len() < of.ranges.len() {
        let left_out = of.ranges.len() - ranges.len();
        remarks.push(Remark::Plain(format!("{left_out} smaller ranges with less in them are left out")));
    }
    let (head, mut top) = header(&of.title, &remarks);
    let mut body = String::new();
    let left = MARGIN + width("0x7fff00000000", SIZE) + 10.0;
    for range in &ranges {
        top = strip(&mut body, range, cell, left, top) + 4.0;
    }
    if ranges.is_empty() {
        let _ = writeln!(
            body,
            "<text class=\"faint\" x=\"{}\" y=\"{}\">nothing was recorded of this</text>",
            number(MARGIN),
            number(top + SIZE)
        );
        top += ROW;
    }
    top = scale(&mut body, top + 8.0);
    let entry = |kind: Kind| {
        let mine = || of.ranges.iter().filter(move |range| range.kind == kind);
        let (mapped, used) = (mine().map(|range| range.to - range.from).sum::<u64>(), mine().map(Range::used).sum::<u64>());
        let figures = Some([bytes(mapped), format!("{} ({})", bytes(used), share(used, mapped))]);
        (mapped > 0).then(|| Entry { sign: Sign::Area(kind.colour().hex()), name: kind.name().to_owned(), figures })
    };
    let entries: Vec<Entry> = Kind::ALL.into_iter().filter_map(entry).collect();
    let (text, bottom) = legend(&entries, ["address space", "in live blocks"], MARGIN, top + 8.0, WIDTH - 2.0 * MARGIN);
    document(&of.title, &head, &(body + &text[..]), bottom)
}

/// One range, from this height on; and where it ends. A cell that it begins or ends in is as full as its part of it is.
fn strip(out: &mut String, range: &Range, cell: u64, left: f64, top: f64) -> f64 {
    let mut used: std::collections::BTreeMap<u64, u64> = std::collections::BTreeMap::new();
    for live in range.live.iter().filter(|live| live.bytes > 0) {
        let (from, to) = (live.from.max(range.from), live.from.saturating_add(live.bytes).min(range.to));
        for number in from / cell..to.div_ceil(cell) {
            let (begin, end) = (number * cell, number.saturating_add(1).saturating_mul(cell));
            *used.entry(number).or_default() += to.min(end).saturating_sub(from.max(begin));
        }
    }
    let first_row = range.from / cell / CELLS as u64;
    let colour = range.kind.colour().hex();
    let tip = format!("{:#x} to {:#x}: {}, {} in live blocks", range.from, range.to, bytes(range.to - range.from), bytes(range.used()));
    let _ = writeln!(out, "<g fill=\"{colour}\"><title>{}</title>", escaped(&tip));
    let rows = rows_of(range, cell);
    for row in 0..rows {
        let (begin, end) = ((first_row + row) * CELLS as u64, (first_row + row + 1) * CELLS as u64);
        let (from, to) = ((range.from / cell).max(begin), ((range.to - 1) / cell + 1).min(end));
        let y = top + row as f64 * ROW;
        let x = |number: u64| left + (number - begin) as f64 * CELL;
        let _ = writeln!(
            out,
            "<rect fill-opacity=\"{EMPTY}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
            number(x(from)),
            number(y),
            number((to - from) as f64 * CELL),
            number(ROW - 2.0)
        );
        let mut at = from;
        // Neighbours that are as full are one.
        while at < to {
            let full = |at: u64| {
                let size = range.to.min(at.saturating_add(1).saturating_mul(cell)) - range.from.max(at * cell);
                (used.get(&at).copied().unwrap_or(0) as f64 / size.max(1) as f64 * 20.0).ceil().min(20.0) as u32
            };
            let shade = full(at);
            let mut next = at + 1;
            while next < to && full(next) == shade {
                next += 1;
            }
            if shade > 0 {
                let _ = writeln!(
                    out,
                    "<rect fill-opacity=\"{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>",
                    number(f64::from(shade) / 20.0 * (1.0 - EMPTY) + EMPTY),
                    number(x(at)),
                    number(y),
                    number((next - at) as f64 * CELL),
                    number(ROW - 2.0)
                );
            }
            at = next;
        }
    }
    out.push_str("</g>\n");
    let _ = writeln!(out, "<text x=\"{}\" y=\"{}\">{:#x}</text>", number(MARGIN), number(top + SIZE - 2.0), range.from);
    top + rows as f64 * ROW
}

/// What shades mean.
fn scale(out: &mut String, top: f64) -> f64 {
    let mut x = MARGIN;
    let y = number(top + 11.0);
    let text = |out: &mut String, x: &mut f64, words: &str| {
        let _ = writeln!(out, "<text class=\"faint\" x=\"{}\" y=\"{y}\">{words}</text>", number(*x));
        *x += width(words, SIZE) + 8.0;
    };
    text(out, &mut x, "in live blocks:");
    for (share, words) in [(0.0, "nothing"), (0.25, "a quarter"), (0.5, "half"), (1.0, "all")] {
        let opacity = number(share * (1.0 - EMPTY) + EMPTY);
        let fill = Kind::Heap.colour().hex();
        let _ = writeln!(
            out,
            "<rect fill=\"{fill}\" fill-opacity=\"{opacity}\" x=\"{}\" y=\"{}\" width=\"14\" height=\"12\"/>",
            number(x),
            number(top)
        );
        x += 20.0;
        text(out, &mut x, words);
        x += 8.0;
    }
    top + 18.0
}

/// A power of two from a page up.
fn binary(size: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (size.ilog2() / 10).clamp(1, 6);
    format!("{} {}", size >> (10 * power), UNITS[power as usize - 1])
}

/// The same for programs: addresses are text, as numbers of JSON are not that exact everywhere.
pub fn space_json(of: &Space) -> Value {
    let range = |range: &Range| {
        json!({
            "from": format!("{:#x}", range.from),
            "to": format!("{:#x}", range.to),
            "kind": range.kind.key(),
            "bytes": range.to - range.from,
            "live_bytes": range.used(),
        })
    };
    json!({
        "title": of.title,
        "remarks": of.remarks.iter().map(Remark::text).collect::<Vec<_>>(),
        "ranges": of.ranges.iter().map(range).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::svg::inspect;
    use crate::view::tests::check;
    use proptest::prelude::*;

    fn space(ranges: Vec<Range>) -> Space {
        Space { title: "Where the heap lies <a&b>".into(), remarks: vec![Remark::Plain("./app".into())], ranges }
    }

    #[test]
    fn address_space_is_as_expected() {
        let live = |from, bytes| Cell { from, bytes };
        let heap = Range {
            from: 0x5555_0000_1000,
            to: 0x5555_0010_0000,
            kind: Kind::Heap,
            live: vec![live(0x5555_0000_1000, 4096), live(0x5555_0000_3000, 0x8000)],
        };
        let map = Range { from: 0x7f00_0000_0000, to: 0x7f00_0000_2000, kind: Kind::Mapped, live: vec![live(0x7f00_0000_0800, 2048)] };
        let picture = space_svg(&space(vec![heap, map]));
        check("space.svg", &picture);
        inspect::must_be_legible(&picture, None);
        inspect::must_have_numbers(&picture);
        // A page that is full, one that is not, one that is half full.
        assert_eq!(picture.matches("fill-opacity=\"1\" x").count(), 2 + 1, "a page, eight pages, and the scale");
        assert_eq!(picture.matches("fill-opacity=\"0.58\" x").count(), 1 + 1, "half a page, and the scale");
    }

    proptest! {
        #[test]
        fn any_address_space_has_few_rows(mut at in prop::collection::vec((0u64..1 << 47, 1u64..1 << 40), 0..200)) {
            at.sort_unstable();
            let mut ranges: Vec<Range> = Vec::new();
            for (from, long) in at {
                if ranges.last().is_none_or(|last| last.to <= from) {
                    ranges.push(Range { from, to: from + long, kind: Kind::Blocks, live: vec![Cell { from, bytes: long / 2 }] });
                }
            }
            let picture = space_svg(&space(ranges));
            inspect::must_be_legible(&picture, None);
            inspect::must_have_numbers(&picture);
            prop_assert!(inspect::size(&picture).1 < 1400.0);
        }
    }
}
