//! Whose call it was: the program's, or the allocator's own.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::code::{decode, near_target};
use crate::families::Function;
use crate::memory::Memory;

use super::ProbeSite;
use super::links::{Exits, Leads, Links};

/// Functions followed from one allocator's function by jumps: tail calls of tail calls.
const FOLLOWED: usize = 64;

/// One function of an allocator.
#[derive(Clone, Debug, Default)]
struct Known {
    module: String,
    names: Vec<String>,
    range: Range<u64>,
    /// Where it jumps, also by way of other functions.
    jumps: Vec<Leads>,
    /// Code of its own elsewhere, and functions it jumps to.
    beyond: Vec<Range<u64>>,
    /// What it calls counts as the program's call: it is not probed itself.
    excepted: bool,
    /// It has a probe of its own.
    is_probed: bool,
}

/// Code of allocators.
#[derive(Clone, Debug, Default)]
pub(super) struct Inside {
    known: BTreeMap<u64, Known>,
    modules: Vec<(u64, u64)>,
    names: BTreeMap<String, u64>,
    ranges: Vec<(u64, u64)>,
}

impl Inside {
    pub fn function(&mut self, function: &Function, module: &str, range: Range<u64>, exits: &Exits, links: &Links<'_>) {
        let mut known = Known { module: module.to_owned(), range: range.clone(), jumps: exits.jumps.clone(), ..Known::default() };
        known.names = core::iter::once(&function.name).chain(&function.aliases).cloned().collect();
        let mut seen: BTreeSet<u64> = BTreeSet::from([function.address]);
        let mut waiting = exits.jumps.clone();
        while let Some(leads) = waiting.pop() {
            let Leads::To(target) = leads else { continue };
            if range.contains(&target) || seen.len() > FOLLOWED {
                continue;
            }
            let Some(beyond) = links.range(target).filter(|beyond| seen.insert(beyond.start)) else { continue };
            let further = links.exits(&beyond).jumps;
            known.jumps.extend(further.iter().cloned());
            waiting.extend(further);
            known.beyond.push(beyond);
        }
        self.known.insert(function.address, known);
    }

    /// The allocator has all of this to itself.
    pub fn whole(&mut self, code: Vec<(u64, u64)>) {
        self.modules.extend(code);
    }

    pub fn module_of(&self, entry: u64) -> &str {
        self.known.get(&entry).map_or("", |known| &known.module)
    }

    pub fn entry_of(&self, function: &str, module: &str) -> Option<u64> {
        let is = |known: &Known| known.module == module && known.names.iter().any(|name| name == function);
        self.known.iter().find(|(_, known)| is(known)).map(|(entry, _)| *entry)
    }

    /// Calls that come from this function are the program's.
    pub fn except(&mut self, entry: u64) {
        if let Some(known) = self.known.get_mut(&entry) {
            known.excepted = true;
        }
    }

    pub fn resolve_names(&mut self, sites: &[ProbeSite]) {
        for site in sites {
            for name in core::iter::once(&site.function).chain(&site.aliases) {
                self.names.entry(name.clone()).or_insert(site.entry);
            }
        }
        for (entry, known) in &self.known {
            for name in &known.names {
                self.names.entry(name.clone()).or_insert(*entry);
            }
        }
    }

    /// The function that a jump leads to.
    pub fn target(&self, leads: &Leads) -> Option<u64> {
        match leads {
            Leads::To(target) => Some(*target),
            Leads::Named(name) => self.names.get(name).copied(),
        }
    }

    /// Makes the ranges, now that it is known what is probed.
    pub fn finish(&mut self, sites: &[ProbeSite]) {
        let probed: BTreeSet<u64> = sites.iter().map(|site| site.entry).collect();
        for (entry, known) in &mut self.known {
            known.is_probed = probed.contains(entry);
        }
        let functions = self.known.values().filter(|known| known.is_probed && !known.excepted);
        let functions = functions.flat_map(|known| core::iter::once(&known.range).chain(&known.beyond));
        let all = functions.map(|range| (range.start, range.end)).chain(self.modules.iter().copied());
        let mut all: Vec<(u64, u64)> = all.collect();
        all.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (start, end) in all {
            match ranges.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => ranges.push((start, end)),
            }
        }
        for hole in self.known.values().filter(|known| known.excepted).map(|known| &known.range) {
            ranges = ranges
                .into_iter()
                .flat_map(|(start, end)| [(start, end.min(hole.start)), (start.max(hole.end), end)])
                .filter(|(s, e)| s < e)
                .collect();
            ranges.sort_unstable();
            ranges.dedup();
        }
        self.ranges = ranges;
    }

    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    pub fn contains(&self, ip: u64) -> bool {
        let next = self.ranges.partition_point(|(start, _)| *start <= ip);
        next.checked_sub(1).is_some_and(|at| ip < self.ranges[at].1)
    }

    pub fn comes_through(&self, memory: &Memory, entry: u64, return_address: u64) -> bool {
        let Some(called) = called(memory, return_address) else { return false };
        let Some(known) = self.known.get(&called).filter(|known| called != entry && !known.excepted) else { return false };
        // What a function left out of the plan passes on is the program's call.
        known.is_probed && known.jumps.iter().any(|leads| self.target(leads) == Some(entry))
    }
}

/// What the call instruction before a return address calls, through a stub of the linkage table or without.
fn called(memory: &Memory, return_address: u64) -> Option<u64> {
    let slot = |code: &[u8], at: u64| {
        let jump = decode(code, at).iter().find(|i| i.code() != iced_x86::Code::Endbr64)?;
        let indirect = matches!(jump.code(), iced_x86::Code::Jmp_rm64 | iced_x86::Code::Call_rm64) && jump.is_ip_rel_memory_operand();
        if indirect { memory.read_u64(jump.ip_rel_memory_address()).ok() } else { None }
    };
    let mut six = [0; 6];
    memory.read(return_address.checked_sub(6)?, &mut six).ok()?;
    if six[0] == 0xff && six[1] == 0x15 {
        return slot(&six, return_address - 6);
    }
    let call = decode(&six[1..], return_address - 5).iter().next().filter(|call| call.code() == iced_x86::Code::Call_rel32_64)?;
    let target = near_target(&call)?;
    let mut stub = [0; 16];
    memory.read(target, &mut stub).ok()?;
    Some(slot(&stub, target).unwrap_or(target))
}
