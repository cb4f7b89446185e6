//! What a capture tells besides blocks: maps and how much of each was resident, and markers.

use crate::capture::model::{Alloc, Event, Free, ProcessId, StackId, Stamped, StreamId};
use crate::capture::{Capture, Visitor};
use hound_common::event::tag;
use std::collections::{BTreeMap, HashMap};

/// Address space that the program mapped, from then until no page of it is left.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct MapRecord {
    /// Where it was mapped first.
    pub addr: u64,
    /// Protection bits as given to mmap.
    pub prot: u32,
    /// Where from; nothing for the heap of `brk`, which grows without a stack.
    pub stack: Option<StackId>,
    /// When it was mapped, in nanoseconds of the capture.
    pub mapped_ns: u64,
    /// When the last of it was unmapped.
    pub unmapped_ns: Option<u64>,
    /// Where that was called.
    pub unmap_stack: Option<StackId>,
    /// From when on, how many bytes of address space.
    pub space: Vec<(u64, u64)>,
    /// When it was looked at, how many bytes were resident.
    pub resident: Vec<(u64, u64)>,
    /// Which addresses it had: start, end, from when, until when.
    pub places: Vec<(u64, u64, u64, u64)>,
    /// Whose.
    pub process: ProcessId,
}

impl MapRecord {
    /// Most bytes of address space it ever had.
    pub fn size(&self) -> u64 {
        self.space.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0)
    }

    /// Most bytes that were seen to be resident.
    pub fn peak_resident(&self) -> u64 {
        self.resident.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0)
    }
}

/// All of it.
#[derive(Debug, Default)]
pub struct Mappings {
    /// In the order of time.
    pub maps: Vec<MapRecord>,
    /// From when on, which marker the program had set.
    pub markers: Vec<(u64, u32)>,
    /// Moments that somebody marked, with their text.
    pub marks: Vec<(u64, String)>,
}

impl Mappings {
    /// Reads the whole capture.
    pub fn of(capture: &mut Capture) -> Self {
        let mut reading = Reading::new(capture);
        capture.visit(&mut reading);
        reading.finish()
    }

    /// The same without the stacks of maps: all that tells of none is left out, and need not be read.
    pub fn without_stacks(capture: &Capture) -> Self {
        let mut reading = Reading::new(capture);
        capture.rare().iter().for_each(|(_, event)| reading.other(event));
        reading.finish()
    }
}

impl Reading {
    fn new(capture: &Capture) -> Self {
        let page = capture.session().page_bytes.max(1);
        let page = if page.is_power_of_two() { page } else { 4096 };
        let processes = capture.streams().iter().map(|stream| (stream.id, stream.process)).collect();
        Reading { events: Mappings::default(), page, processes, live: BTreeMap::new() }
    }

    fn finish(self) -> Mappings {
        let mut events = self.events;
        // What was never unmapped stays where it is.
        events.maps.retain(|map| !map.space.is_empty());
        events
    }
}

struct Reading {
    events: Mappings,
    page: u64,
    processes: HashMap<StreamId, ProcessId>,
    /// What is mapped: by process and start, end and number of the map.
    live: BTreeMap<(ProcessId, u64), (u64, usize)>,
}

impl Visitor for Reading {
    fn alloc(&mut self, _: u64, _: StreamId, _: &Alloc) {}

    fn free(&mut self, _: u64, _: StreamId, _: &Free) {}

    fn other(&mut self, event: &Stamped) {
        let Stamped { time_ns, stream, event } = event;
        let process = self.processes.get(stream).copied().unwrap_or(ProcessId::FIRST);
        let at = At { time_ns: *time_ns, process };
        match event {
            Event::Map { addr, length, prot, stack, .. } => {
                let length = self.pages(*length);
                self.remove(at, *addr, length, Some(*stack));
                let map = self.new_map(at, *addr, *prot, Some(*stack));
                self.insert(at, *addr, length, map);
            }
            Event::Unmap { addr, length, stack } => {
                let length = self.pages(*length);
                self.remove(at, *addr, length, Some(*stack));
            }
            Event::Remap { old_addr, old_length, new_addr, new_length, stack } => {
                let (old, new) = (self.pages(*old_length), self.pages(*new_length));
                let owner = self.owner(process, *old_addr);
                let map = owner.unwrap_or_else(|| self.new_map(at, *new_addr, 0, Some(*stack)));
                // A copy of a shared mapping leaves the old one where it is.
                let moved = self.take(at, *old_addr, old);
                self.remove(at, *new_addr, new, Some(*stack));
                self.insert(at, *new_addr, new, map);
                moved.into_iter().for_each(|map| self.end(at, map, Some(*stack)));
            }
            Event::MapRss { addr, resident, .. } => {
                if let Some(map) = self.owner(process, *addr) {
                    let seen = &mut self.events.maps[map].resident;
                    match seen.last_mut() {
                        Some((last, bytes)) if *last == at.time_ns => *bytes += resident,
                        _ => seen.push((at.time_ns, *resident)),
                    }
                }
            }
            Event::Other { tag: tag::BRK, words, .. } => {
                if let [old, new, ..] = words[..] {
                    self.brk(at, old, new);
                }
            }
            Event::Marker(number) => self.events.markers.push((at.time_ns, *number)),
            Event::Mark(text) => self.events.marks.push((at.time_ns, text.clone())),
            _ => {}
        }
    }
}

/// When and where something happens.
#[derive(Clone, Copy)]
struct At {
    time_ns: u64,
    process: ProcessId,
}

impl Reading {
    fn pages(&self, length: u64) -> u64 {
        length.checked_add(self.page - 1).map_or(u64::MAX - (self.page - 1), |length| length & !(self.page - 1))
    }

    fn owner(&self, process: ProcessId, addr: u64) -> Option<usize> {
        let (_, (end, map)) = self.live.range((process, 0)..=(process, addr)).next_back()?;
        (*end > addr).then_some(*map)
    }

    fn new_map(&mut self, at: At, addr: u64, prot: u32, stack: Option<StackId>) -> usize {
        self.events.maps.push(MapRecord { addr, prot, stack, mapped_ns: at.time_ns, process: at.process, ..MapRecord::default() });
        self.events.maps.len() - 1
    }

    fn insert(&mut self, at: At, addr: u64, length: u64, map: usize) {
        let end = addr.saturating_add(length);
        if end <= addr {
            return;
        }
        self.live.insert((at.process, addr), (end, map));
        let record = &mut self.events.maps[map];
        record.places.push((addr, end, at.time_ns, u64::MAX));
        record.unmapped_ns = None;
        self.changed(at, map, end - addr, true);
    }

    fn changed(&mut self, at: At, map: usize, bytes: u64, more: bool) {
        let space = &mut self.events.maps[map].space;
        let had = space.last().map_or(0, |(_, bytes)| *bytes);
        let has = if more { had.saturating_add(bytes) } else { had.saturating_sub(bytes) };
        match space.last_mut() {
            Some((last, bytes)) if *last == at.time_ns => *bytes = has,
            _ => space.push((at.time_ns, has)),
        }
    }

    /// Takes a range out of whatever is mapped there, and gives the maps that it was of.
    fn take(&mut self, at: At, addr: u64, length: u64) -> Vec<usize> {
        let end = addr.saturating_add(length);
        let overlapping = self.live.range((at.process, 0)..(at.process, end)).rev().take_while(|(_, (to, _))| *to > addr);
        let overlapping: Vec<(u64, u64, usize)> = overlapping.map(|((_, from), (to, map))| (*from, *to, *map)).collect();
        for &(from, to, map) in &overlapping {
            self.live.remove(&(at.process, from));
            let places = &mut self.events.maps[map].places;
            if let Some(place) = places.iter_mut().rev().find(|place| place.0 == from && place.3 == u64::MAX) {
                place.3 = at.time_ns;
            }
            for (from, to) in [(from, addr.min(to)), (end.max(from), to)] {
                if from < to {
                    self.live.insert((at.process, from), (to, map));
                    self.events.maps[map].places.push((from, to, at.time_ns, u64::MAX));
                }
            }
            self.changed(at, map, to.min(end) - from.max(addr), false);
        }
        overlapping.into_iter().map(|(_, _, map)| map).collect()
    }

    fn remove(&mut self, at: At, addr: u64, length: u64, stack: Option<StackId>) {
        for map in self.take(at, addr, length) {
            self.end(at, map, stack);
        }
    }

    fn end(&mut self, at: At, map: usize, stack: Option<StackId>) {
        let record = &mut self.events.maps[map];
        if record.space.last().is_some_and(|(_, bytes)| *bytes == 0) && record.unmapped_ns.is_none() {
            (record.unmapped_ns, record.unmap_stack) = (Some(at.time_ns), stack);
        }
    }

    fn brk(&mut self, at: At, old: u64, new: u64) {
        if new < old {
            return self.remove(at, new, old - new, None);
        }
        let below = old.checked_sub(1).and_then(|below| self.owner(at.process, below));
        let heap = below.filter(|&map| self.events.maps[map].stack.is_none());
        // glibc's heap is readable and writable.
        let map = heap.unwrap_or_else(|| self.new_map(at, old, 3, None));
        self.insert(at, old, new - old, map);
    }
}
