//! Looking addresses up, a module at a time.
//!
//! For each module: its separate debug file by build-id, else the file itself (with its own debug information, or what its debug link
//! names), else its symbol tables alone (where the debug information cannot be read), else `module+0xsvma`.

use super::demangle::demangle;
use super::files::Files;
use super::kernel::{KernelNames, boot, cache_of, is_kernels};
use super::perf_map::PerfMap;
use super::split::{Place, Split};
use super::table::{NOWHERE, StoredFrame, SymbolTable};
use crate::capture::ModuleSpan;
use crate::capture::model::{Module, ProcessId, StackId, StackNode, StackTree};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A module whose addresses got no names, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// Its file is not on this machine.
    Missing(String),
    /// The file at its path is another build than the one that ran.
    Changed(String),
    /// The file could not be read as an object file.
    Unreadable {
        /// Its path.
        path: String,
        /// Why.
        reason: String,
    },
}

impl std::fmt::Display for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unresolved::Missing(path) => write!(f, "no names for {path}: the file is not here"),
            Unresolved::Changed(path) => write!(f, "no names for {path}: the file here is another build than the one that ran"),
            Unresolved::Unreadable { path, reason } => write!(f, "no names for {path}: {reason}"),
        }
    }
}

/// Names every return address in `stacks` that `table` has no names for yet. `modules` are those the table was made for, or the
/// capture's (the table's spans are matched by place and time). `progress(done, all)` is called after each batch of addresses.
pub fn symbolise(
    table: &mut SymbolTable,
    stacks: &StackTree,
    modules: &[ModuleSpan],
    files: &Files,
    mut progress: impl FnMut(usize, usize),
) -> Vec<Unresolved> {
    let wanted = missing(table, stacks);
    let all: usize = wanted.values().map(BTreeSet::len).sum();
    let (mut done, mut unresolved) = (0, Vec::new());
    let symbolizer = Symbolizer::builder().set_debug_dirs(Some(&files.debug_dirs)).enable_demangling(false).build();
    for ((process, span), ips) in wanted {
        let ips: Vec<u64> = ips.into_iter().collect();
        let files = &files.of_process(process);
        if span == NOWHERE {
            name_generated(table, process, &ips, files);
            done += ips.len();
            progress(done, all);
            continue;
        }
        let module = table.spans.get(span as usize).and_then(|known| {
            let same = |m: &&ModuleSpan| {
                (m.process, m.module.start, m.module.end, m.from_ns) == (known.process, known.start, known.end, known.from_ns)
            };
            modules.iter().find(same)
        });
        let Some(module) = module.map(|m| &m.module) else { continue };
        if is_kernels(module) {
            unresolved.extend(name_in_the_kernel(table, span, module, &ips));
            done += ips.len();
            progress(done, all);
            continue;
        }
        let (sources, path) = (files.of(module), files.path_of(module).to_owned());
        if sources.files.is_empty() && path.starts_with('/') {
            let path = path.clone();
            unresolved.push(if sources.changed { Unresolved::Changed(path) } else { Unresolved::Missing(path) });
        }
        let mut lookup = Lookup { symbolizer: &symbolizer, files: &sources.files, failure: None, split: BTreeMap::new() };
        for batch in ips.chunks(BATCH) {
            // The call, not what follows it.
            let svmas: Vec<u64> = batch.iter().map(|ip| ip.wrapping_sub(1).wrapping_sub(module.bias)).collect();
            for ((ip, svma), frames) in batch.iter().zip(&svmas).zip(lookup.frames(table, &svmas, &path)) {
                let frames = if frames.is_empty() { vec![nameless(table, &path, svma.wrapping_add(1))] } else { frames };
                table.enter(process, span, *ip, frames);
            }
            done += batch.len();
            progress(done, all);
        }
        unresolved.extend(lookup.failure.map(|reason| Unresolved::Unreadable { path, reason }));
    }
    unresolved.sort_by_key(ToString::to_string);
    unresolved.dedup();
    unresolved
}

/// Addresses a call: enough to make the progress worth showing, and blazesym's cost a call vanish.
const BATCH: usize = 256;

/// Addresses in the kernel. Only the boot that they were recorded in knows them.
fn name_in_the_kernel(table: &mut SymbolTable, span: u32, module: &Module, ips: &[u64]) -> Option<Unresolved> {
    let path = &module.path;
    if let Some(cache) = cache_of(module) {
        let frame = StoredFrame {
            function: table.string(&format!("slab:{cache}")),
            file: 0,
            line: 0,
            module: table.string("[slab]"),
            inlined: false,
        };
        ips.iter().for_each(|ip| table.enter(ProcessId::FIRST, span, *ip, vec![frame]));
        return None;
    }
    let calls: Vec<u64> = ips.iter().map(|ip| ip.wrapping_sub(1)).collect();
    let is_running = module.build_id == boot();
    let (names, why) = match KernelNames::default().of(&calls) {
        _ if !is_running => (Vec::new(), Some(Unresolved::Changed(path.clone()))),
        Ok(names) if names.iter().any(Option::is_some) => (names, None),
        // Addresses are hidden from whoever lacks CAP_SYSLOG, or from all, as kernel.kptr_restrict says.
        Ok(_) => (Vec::new(), Some(Unresolved::Unreadable { path: path.clone(), reason: HIDDEN.into() })),
        Err(error) => (Vec::new(), Some(Unresolved::Unreadable { path: path.clone(), reason: format!("{HIDDEN} ({error})") })),
    };
    for (at, ip) in ips.iter().enumerate() {
        let frame = match names.get(at) {
            Some(Some(name)) => StoredFrame { function: table.string(name), file: 0, line: 0, module: table.string(path), inlined: false },
            _ => nameless(table, path, ip.wrapping_sub(module.start)),
        };
        table.enter(ProcessId::FIRST, span, *ip, vec![frame]);
    }
    why
}

const HIDDEN: &str = "the kernel hides its addresses: sysctl kernel.kptr_restrict=0 or 1, and root or CAP_SYSLOG, show them";

/// The addresses without names, by process and module span.
fn missing(table: &SymbolTable, stacks: &StackTree) -> BTreeMap<(ProcessId, u32), BTreeSet<u64>> {
    let mut wanted: BTreeMap<(ProcessId, u32), BTreeSet<u64>> = BTreeMap::new();
    // By node: parents come before their children.
    let mut processes: Vec<ProcessId> = Vec::with_capacity(stacks.len());
    for id in 0..stacks.len() as u32 {
        let (process, ip) = match stacks.node(StackId(id)) {
            Some(StackNode::Frame { parent, ip }) => (processes.get(parent.0 as usize).copied().unwrap_or_default(), Some(ip)),
            Some(StackNode::Root(root)) => (root.process, None),
            None => (ProcessId::FIRST, None),
        };
        processes.push(process);
        let Some(ip) = ip else { continue };
        let spans = table.spans_of(process, ip);
        for &span in if spans.is_empty() { &[NOWHERE] } else { spans } {
            if !table.has(process, span, ip) {
                wanted.entry((process, span)).or_default().insert(ip);
            }
        }
    }
    wanted
}

/// One module's files and what went wrong with them.
struct Lookup<'a> {
    symbolizer: &'a Symbolizer,
    files: &'a [PathBuf],
    failure: Option<String>,
    /// What stands apart from a file, looked for once.
    split: BTreeMap<PathBuf, Option<Split>>,
}

impl Lookup<'_> {
    /// The frames of each address, innermost first; empty where no file names it.
    fn frames(&mut self, table: &mut SymbolTable, svmas: &[u64], module: &str) -> Vec<Vec<StoredFrame>> {
        let mut found = vec![Vec::new(); svmas.len()];
        for path in self.files {
            // Debug information that cannot be read (a compression blazesym lacks, a debug link to another build) must not cost the
            // names that the symbol table has.
            for debug_syms in [true, false] {
                let open: Vec<usize> = (0..svmas.len()).filter(|&index| found[index].is_empty()).collect();
                if open.is_empty() {
                    return found;
                }
                let addresses: Vec<u64> = open.iter().map(|&index| svmas[index]).collect();
                let mut elf = Elf::new(path);
                elf.debug_syms = debug_syms;
                match self.symbolizer.symbolize(&Source::Elf(elf), Input::VirtOffset(&addresses)) {
                    Ok(symbols) => {
                        for (index, symbol) in open.into_iter().zip(symbols) {
                            let Symbolized::Sym(symbol) = symbol else { continue };
                            found[index] = stored_frames(table, &symbol, module);
                            if let (true, Some(split)) = (debug_syms, self.split.entry(path.clone()).or_insert_with(|| Split::of(path))) {
                                add_places(table, &mut found[index], &split.places(svmas[index]));
                            }
                        }
                    }
                    Err(error) => self.failure = Some(error.to_string()),
                }
            }
        }
        if found.iter().any(|frames| !frames.is_empty()) {
            self.failure = None;
        }
        found
    }
}

/// A symbol and what was inlined at the address, innermost first.
fn stored_frames(table: &mut SymbolTable, symbol: &Sym<'_>, module: &str) -> Vec<StoredFrame> {
    let module = table.string(module);
    let mut frame = |name: &str, code: Option<&CodeInfo<'_>>, inlined: bool| {
        let file = code.map_or(0, |code| table.string(&code.to_path().to_string_lossy()) + 1);
        let line = code.and_then(|code| code.line).unwrap_or(0);
        StoredFrame { function: table.string(name), file, line, module, inlined }
    };
    if symbol.name.is_empty() {
        return Vec::new();
    }
    // glibc's alias for calls from inside itself: people, and suppressions, know the function by its other name.
    let plain = |name: &str| demangle(name.strip_prefix("__GI_").unwrap_or(name)).into_owned();
    let inlined = symbol.inlined.iter().rev().filter(|function| !function.name.is_empty());
    let mut frames: Vec<_> = inlined.map(|function| frame(&plain(&function.name), function.code_info.as_ref(), true)).collect();
    frames.push(frame(&plain(&symbol.name), symbol.code_info.as_deref(), false));
    frames
}

/// What stands apart from the file of a function: what was inlined in it, and where all of them are.
fn add_places(table: &mut SymbolTable, frames: &mut Vec<StoredFrame>, places: &[Place]) {
    let (Some((outer, inlined)), Some(symbol)) = (places.split_last(), frames.last().copied()) else { return };
    if outer.function.is_none() && symbol.file != 0 {
        return; // its other file is not here: no more is known than there was
    }
    frames.clear();
    let mut frame = |place: &Place, unnamed: Option<u32>, inlined: bool| {
        let function = place.function.as_deref().map(|name| table.string(&demangle(name))).or(unnamed)?;
        Some(StoredFrame { function, file: table.string(&place.file) + 1, line: place.line, module: symbol.module, inlined })
    };
    frames.extend(inlined.iter().filter_map(|place| frame(place, None, true)));
    frames.extend(frame(outer, Some(symbol.function), false));
}

/// `module+0xsvma`: enough for a person with the file to find the place.
fn nameless(table: &mut SymbolTable, path: &str, svma: u64) -> StoredFrame {
    // The loader knows the program itself by an empty name.
    let base = path.rsplit('/').next().filter(|base| !base.is_empty()).unwrap_or("program");
    StoredFrame { function: table.string(&format!("{base}+{svma:#x}")), file: 0, line: 0, module: table.string(path), inlined: false }
}

/// Addresses outside every module: generated code, named by the target's perf map if it wrote one.
fn name_generated(table: &mut SymbolTable, process: ProcessId, ips: &[u64], files: &Files) {
    let map = files.perf_map.as_ref().and_then(|path| std::fs::read(path).ok());
    let map = map.map(|bytes| PerfMap::parse(&String::from_utf8_lossy(&bytes))).unwrap_or_default();
    for &ip in ips {
        let (name, module) = match map.find(ip.wrapping_sub(1)) {
            Some(name) => (table.string(name), table.string("[generated]")),
            None => (table.string(&format!("{ip:#x}")), table.string("")),
        };
        table.enter(process, NOWHERE, ip, vec![StoredFrame { function: name, file: 0, line: 0, module, inlined: false }]);
    }
}
