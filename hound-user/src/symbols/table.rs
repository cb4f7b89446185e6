//! The table: (module span, ip) → frames, with every string stored once.

use crate::capture::ModuleSpan;
use crate::capture::model::ProcessId;
use std::collections::{BTreeMap, HashMap};

/// One function that an address stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame<'a> {
    /// Demangled name, `module+0xsvma` where there is none.
    pub function: &'a str,
    /// Where in it, if line information was found.
    pub location: Option<Location<'a>>,
    /// Path of the module, empty if the address is in none.
    pub module: &'a str,
    /// The compiler inlined it into the next frame.
    pub inlined: bool,
}

/// A line of a source file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Location<'a> {
    /// Path as the compiler recorded it.
    pub file: &'a str,
    /// Line, from 1; 0 = not known.
    pub line: u32,
}

/// Where a module was mapped, and from when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// In which process.
    pub process: ProcessId,
    /// First avma.
    pub start: u64,
    /// End avma.
    pub end: u64,
    /// When it was first known to be there, in nanoseconds of the capture.
    pub from_ns: u64,
    /// Its path, as a string of the table.
    pub(super) path: u32,
}

/// A frame as stored: strings by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct StoredFrame {
    pub function: u32,
    /// 0 = no location; else number of the string plus one.
    pub file: u32,
    pub line: u32,
    pub module: u32,
    pub inlined: bool,
}

/// Span number for addresses that are in no module.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Where the table has an address. Spans are each of one process; an address in none is told apart by its upper bits.
fn key(process: ProcessId, span: u32, ip: u64) -> (u32, u64) {
    (span, if span == NOWHERE { ip ^ u64::from(process.0) << 48 } else { ip })
}

/// A list of frames in the table: what one or several addresses stand for. Equal lists have equal numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrameList(pub u32);

/// All names of a capture.
#[derive(Clone, Debug, Default)]
pub struct SymbolTable {
    pub(super) strings: Vec<String>,
    pub(super) spans: Vec<Span>,
    pub(super) lists: Vec<Vec<StoredFrame>>,
    pub(super) entries: HashMap<(u32, u64), u32>,
    string_numbers: HashMap<String, u32>,
    list_numbers: HashMap<Vec<StoredFrame>, u32>,
    /// For each process, where a set of spans begins to apply, by address; each set in time order.
    regions: BTreeMap<ProcessId, Vec<(u64, Vec<u32>)>>,
}

impl SymbolTable {
    /// A table for these modules, with no names in it.
    pub fn new(modules: &[ModuleSpan]) -> Self {
        let mut table = SymbolTable::default();
        for span in modules {
            let path = table.string(&span.module.path);
            table.spans.push(Span { process: span.process, start: span.module.start, end: span.module.end, from_ns: span.from_ns, path });
        }
        table.index_spans();
        table
    }

    /// What the return address `ip` stood for in this process at `time_ns`; none if it was not looked up.
    pub fn list(&self, process: ProcessId, ip: u64, time_ns: u64) -> Option<FrameList> {
        let span = self.span_at(process, ip, time_ns);
        self.entries.get(&key(process, span, ip)).map(|&number| FrameList(number))
    }

    /// Whether this address has names in this span.
    pub(super) fn has(&self, process: ProcessId, span: u32, ip: u64) -> bool {
        self.entries.contains_key(&key(process, span, ip))
    }

    /// The frames of a list, innermost first.
    pub fn frames(&self, list: FrameList) -> impl ExactSizeIterator<Item = Frame<'_>> {
        self.lists.get(list.0 as usize).map_or(&[][..], Vec::as_slice).iter().map(|stored| self.frame(stored))
    }

    /// How many lists there are: their numbers are `0..lists()`.
    pub fn lists(&self) -> u32 {
        self.lists.len() as u32
    }

    /// How many (module span, ip) pairs have names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no names at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Moments from which some address may mean something else than before, in time order: a module was mapped where another had been.
    pub fn remappings(&self) -> Vec<u64> {
        let mut moments = Vec::new();
        for (_, spans) in self.regions.values().flatten() {
            for pair in spans.windows(2) {
                let (before, after) = (&self.spans[pair[0] as usize], &self.spans[pair[1] as usize]);
                if (before.path, before.start, before.end) != (after.path, after.start, after.end) {
                    moments.push(after.from_ns);
                }
            }
        }
        moments.sort_unstable();
        moments.dedup();
        moments
    }

    fn frame<'a>(&'a self, stored: &StoredFrame) -> Frame<'a> {
        let string = |number: u32| self.strings.get(number as usize).map_or("", String::as_str);
        let location = stored.file.checked_sub(1).map(|file| Location { file: string(file), line: stored.line });
        Frame { function: string(stored.function), location, module: string(stored.module), inlined: stored.inlined }
    }

    /// The span in which a return address lay: the latest one mapped by then, for an address outlives its module in stacks but never
    /// precedes it, except by the little that a module is noticed late; then it is the earliest one.
    pub(super) fn span_at(&self, process: ProcessId, ip: u64, time_ns: u64) -> u32 {
        let spans = self.spans_of(process, ip);
        let after = spans.partition_point(|&span| self.spans[span as usize].from_ns <= time_ns);
        spans.get(after.saturating_sub(1)).copied().unwrap_or(NOWHERE)
    }

    /// Every span that a return address ever lay in, in time order.
    pub(super) fn spans_of(&self, process: ProcessId, ip: u64) -> &[u32] {
        let Some(regions) = self.regions.get(&process) else { return &[] };
        let call = ip.wrapping_sub(1);
        let region = regions.partition_point(|&(start, _)| start <= call);
        region.checked_sub(1).map_or(&[], |region| &regions[region].1)
    }

    /// Notes that the return address `ip` of the first process stood for these frames at `time_ns`, innermost first.
    pub fn name(&mut self, ip: u64, time_ns: u64, frames: &[Frame<'_>]) {
        let mut store = |frame: &Frame<'_>| StoredFrame {
            function: self.string(frame.function),
            file: frame.location.map_or(0, |at| self.string(at.file) + 1),
            line: frame.location.map_or(0, |at| at.line),
            module: self.string(frame.module),
            inlined: frame.inlined,
        };
        let frames = frames.iter().map(&mut store).collect();
        self.enter(ProcessId::FIRST, self.span_at(ProcessId::FIRST, ip, time_ns), ip, frames);
    }

    /// Notes what (span, ip) stands for.
    pub(super) fn enter(&mut self, process: ProcessId, span: u32, ip: u64, frames: Vec<StoredFrame>) {
        let number = match self.list_numbers.get(&frames) {
            Some(&number) => number,
            None => {
                let number = self.lists.len() as u32;
                self.lists.push(frames.clone());
                self.list_numbers.insert(frames, number);
                number
            }
        };
        self.entries.insert(key(process, span, ip), number);
    }

    pub(super) fn string(&mut self, string: &str) -> u32 {
        if let Some(&number) = self.string_numbers.get(string) {
            return number;
        }
        let number = self.strings.len() as u32;
        self.strings.push(string.to_owned());
        self.string_numbers.insert(string.to_owned(), number);
        number
    }

    /// Cuts the address space where spans begin and end, and notes for each piece which spans were ever there.
    pub(super) fn index_spans(&mut self) {
        let mut by_process: BTreeMap<ProcessId, Vec<u32>> = BTreeMap::new();
        for (number, span) in self.spans.iter().enumerate() {
            by_process.entry(span.process).or_default().push(number as u32);
        }
        self.regions = by_process.into_iter().map(|(process, numbers)| (process, self.regions_of(&numbers))).collect();
    }

    fn regions_of(&self, numbers: &[u32]) -> Vec<(u64, Vec<u32>)> {
        let span = |number: u32| &self.spans[number as usize];
        let mut cuts: Vec<u64> = numbers.iter().flat_map(|&number| [span(number).start, span(number).end]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut regions: Vec<(u64, Vec<u32>)> = cuts.into_iter().map(|cut| (cut, Vec::new())).collect();
        for &number in numbers {
            let first = regions.partition_point(|&(start, _)| start < span(number).start);
            let inside = regions[first..].iter_mut().take_while(|(start, _)| *start < span(number).end);
            inside.for_each(|(_, spans)| spans.push(number));
        }
        for (_, spans) in &mut regions {
            spans.sort_by_key(|&number| span(number).from_ns);
        }
        regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::model::Module;

    fn span(path: &str, start: u64, end: u64, from_ns: u64) -> ModuleSpan {
        let module = Module { start, end, path: path.to_owned(), ..Module::default() };
        ModuleSpan { process: ProcessId::FIRST, module, from_ns, to_ns: u64::MAX }
    }

    #[test]
    fn an_address_belongs_to_the_module_that_was_there_last() {
        let table = SymbolTable::new(&[span("a", 100, 200, 10), span("b", 100, 180, 50), span("c", 300, 400, 5)]);
        assert_eq!(
            (table.span_at(ProcessId::FIRST, 150, 0), table.span_at(ProcessId::FIRST, 150, 49), table.span_at(ProcessId::FIRST, 150, 50)),
            (0, 0, 1)
        );
        assert_eq!(
            (table.span_at(ProcessId::FIRST, 190, 99), table.span_at(ProcessId::FIRST, 250, 99), table.span_at(ProcessId::FIRST, 350, 99)),
            (0, NOWHERE, 2)
        );
        // A return address may lie at the end of its module, not at the start.
        assert_eq!((table.span_at(ProcessId::FIRST, 400, 99), table.span_at(ProcessId::FIRST, 300, 99)), (2, NOWHERE));
    }

    #[test]
    fn only_a_different_module_at_the_same_place_is_a_remapping() {
        let same = SymbolTable::new(&[span("a", 100, 200, 10), span("a", 100, 200, 50), span("c", 300, 400, 5)]);
        assert!(same.remappings().is_empty());
        let other = SymbolTable::new(&[span("a", 100, 200, 10), span("b", 150, 200, 50), span("a", 100, 200, 70)]);
        assert_eq!(other.remappings(), [50, 70]);
    }
}
