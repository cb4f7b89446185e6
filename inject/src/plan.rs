//! What to patch in a target, found by reading only.

use std::collections::BTreeSet;

use hound_common::attach::{ENTRY_GLIBC, NO_ARGUMENT, Shape};
use hound_common::hook::{Kind, Role};

use crate::code::{BREAKPOINT, Displaced, JUMP, Range, Unfit, branches_into, is_instruction};
use crate::custom::{CustomHook, PoolRole};
use crate::error::{Error, Refusal};
use crate::existing::Beneath;
use crate::families::{self, Family, Function};
use crate::look::Target;
use crate::memory::Memory;
use crate::modules::{Module, modules};
use crate::place::mappings;
use crate::thunk::Row;

/// Bytes of code looked through at once: they stay in the cache, and are not a module's twenty megabytes of memory.
const PIECE: usize = 256 << 10;
/// Bytes (Intel SDM, volume 2, 2.3.11).
const LONGEST_INSTRUCTION: u64 = 15;

/// Most code of one function that is looked at; larger ones are generated state machines, never an allocator's entry.
const MAX_FUNCTION: u64 = 1 << 20;
/// An allocator's functions lie within this of its `free`: it is one source file.
const OWN_REACH: u64 = 16 << 10;
/// Names shown to a user who has mistyped one.
const SIMILAR: usize = 8;

/// One allocator (or libc's mapping functions, or a custom pool) that will be patched.
#[derive(Clone, Debug)]
pub struct Covered {
    /// The module's path.
    pub module: String,
    /// For people: `glibc`, `musl`, `jemalloc (_rjem_)`, `mimalloc`, `tcmalloc`, `exported by the executable`, `pool 1`, ….
    pub family: String,
    /// The functions' symbols.
    pub functions: Vec<String>,
}

/// Something that allocates and will not be seen.
#[derive(Clone, Debug)]
pub struct NotCovered {
    /// The module's path.
    pub module: String,
    /// What is not covered: a family, or one function.
    pub what: String,
    /// Why, for people.
    pub why: String,
}

/// A function that will be patched.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub row: Row,
    pub displaced: Displaced,
    /// The function's own address, before its `endbr64`.
    pub entry: u64,
    pub nothrow: Option<u64>,
    /// Its module.
    pub module: (u64, u64),
}

/// What to patch: made before anything is changed.
#[derive(Debug)]
pub struct Plan {
    pub(crate) planned: Vec<Planned>,
    covered: Vec<Covered>,
    not_covered: Vec<NotCovered>,
    /// Start and path of each module there was.
    seen: BTreeSet<(u64, String)>,
}

impl Plan {
    /// Finds the target's allocators and how each of their entries is patched. Reads only; the target runs on.
    ///
    /// # Errors
    /// A refusal when nothing at all can be hooked, or when one of `custom` is not found (then similar names are listed).
    pub fn of(target: &Target, custom: &[CustomHook]) -> Result<Self, Error> {
        Self::beneath(target, custom, &Beneath::default(), false)
    }

    /// The same while hound's own probes are still there: see [`crate::ProbePlan::beneath`]. They must be gone when it is patched. `children`:
    /// processes that the target begins are to be recorded, too, so it must be seen when it does.
    ///
    /// # Errors
    /// As [`Plan::of`].
    pub fn beneath(target: &Target, custom: &[CustomHook], probes: &Beneath, children: bool) -> Result<Self, Error> {
        let memory = Memory::open(target.pid)?;
        let maps = mappings(target.pid)?;
        let modules = modules(target.pid, &memory, &maps)?;
        // What a dead hound has patched counts as what was there before: entering restores it.
        let patched = Beneath::patches(target.pid, &memory)?.and(probes);
        let seen = modules.iter().map(|module| (module.start, module.path.clone())).collect();
        let mut plan = Self { planned: Vec::new(), covered: Vec::new(), not_covered: Vec::new(), seen };
        let shadow_stack = has_shadow_stack(target.pid);
        let mut unplaced: Vec<&CustomHook> = custom.iter().collect();
        for module in &modules {
            let mut found = families::families(module, &memory);
            let of_children = |function: &Function| matches!(function.shape, Shape::Fork | Shape::Prctl | Shape::Syscall);
            found.retain(|family| children || !family.functions.iter().any(of_children));
            for (what, why) in families::not_covered(module, &memory, &found) {
                plan.not_covered.push(NotCovered { module: module.path.clone(), what, why });
            }
            let pools = pools(module, &memory, custom);
            if let Some((function, _)) = pools.iter().find(|(_, hook)| hook.role != PoolRole::Free && !hook.nothrow)
                && may_throw(module, &memory)
            {
                return Err(Refusal::MayThrow { function: function.name.clone(), module: module.path.clone() }.into());
            }
            unplaced.retain(|hook| !pools.iter().any(|(_, of)| of == hook));
            if !found.is_empty() || !pools.is_empty() {
                Reading::of(module, &memory, &patched, shadow_stack).add(&mut plan, &found, &pools)?;
            }
        }
        if let Some(hook) = unplaced.first() {
            return Err(not_found(hook, &modules, &memory).into());
        }
        plan.check(&modules)?;
        Ok(plan)
    }

    /// What will be seen, for the report.
    pub fn covered(&self) -> &[Covered] {
        &self.covered
    }

    /// What will not, and why.
    pub fn not_covered(&self) -> &[NotCovered] {
        &self.not_covered
    }

    /// Allocators of modules that were loaded after the plan was made: nothing is patched there.
    ///
    /// # Errors
    /// When the target is gone.
    pub fn appeared(&self, target: &Target) -> Result<Vec<NotCovered>, Error> {
        let memory = Memory::open(target.pid)?;
        let mut appeared = Vec::new();
        for module in modules(target.pid, &memory, &mappings(target.pid)?)? {
            if self.seen.contains(&(module.start, module.path.clone())) {
                continue;
            }
            for family in families::families(&module, &memory).into_iter().filter(Family::allocates) {
                let why = "it was loaded after the attach; detach and attach again to see it".into();
                appeared.push(NotCovered { module: module.path.clone(), what: family.name, why });
            }
        }
        Ok(appeared)
    }

    /// Refuses when nothing would be seen.
    fn check(&mut self, modules: &[Module]) -> Result<(), Error> {
        let executable = modules.iter().find(|m| m.is_executable);
        let go = executable.filter(|m| m.has_section(".go.buildinfo"));
        let allocates = |row: &Row| Kind::from_u8(row.kind).is_some_and(|kind| kind.role() == Role::Alloc);
        if self.planned.iter().any(|p| allocates(&p.row)) {
            if let Some(go) = go {
                let why = "the Go runtime has a heap of its own: only memory of C code is seen; see pprof for Go's".into();
                self.not_covered.push(NotCovered { module: go.path.clone(), what: "Go's heap".into(), why });
            }
            return Ok(());
        }
        let (why, cure) = match (self.not_covered.first(), executable) {
            _ if go.is_some() => {
                ("it is a Go program without C code: the Go runtime's heap is not malloc".into(), "use Go's own pprof".into())
            }
            (Some(first), _) => {
                (format!("{} of {} cannot be hooked: {}", first.what, first.module, first.why), "start it with `hound run`".into())
            }
            (None, Some(executable)) if !executable.has_interpreter => (
                "it is linked statically and stripped: nothing says where its allocator is".into(),
                "use a build with symbols (do not strip, or strip only debug information)".to_owned(),
            ),
            _ => ("no allocator was found in it".into(), "name its functions with --hook".into()),
        };
        Err(Refusal::NoAllocator { why, cure }.into())
    }
}

/// Whether the kernel keeps shadow stacks for the process (from Linux 6.6, where its C library asks for it).
pub fn has_shadow_stack(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("x86_Thread_features:") && line.contains("shstk"))
}

/// Whether exceptions may come from the module's code: then one may pass through any of its functions. A hook's frame has no unwind
/// tables that the program's unwinder knows, and an exception that comes to it ends the program.
pub(crate) fn may_throw(module: &Module, memory: &Memory) -> bool {
    // The C++ runtime's functions, its operator new, and what it and Rust's panics come down to.
    const THROWERS: [&str; 4] = ["__cxa_throw", "_Znwm", "_Znam", "_Unwind_RaiseException"];
    module.mentions(THROWERS.map(str::as_bytes)).contains(&true) || THROWERS.iter().any(|name| module.address_of(memory, name).is_some())
}

/// The custom hooks that name a function of the module.
pub(crate) fn pools<'a>(module: &Module, memory: &Memory, custom: &'a [CustomHook]) -> Vec<(Function, &'a CustomHook)> {
    let mut found: Vec<(Function, &CustomHook)> = Vec::new();
    if custom.is_empty() {
        return found;
    }
    module.each_function(memory, &mut |symbol| {
        for hook in custom {
            let here = hook.module.as_ref().is_none_or(|wanted| module.path.ends_with(wanted.as_str()));
            if here && symbol.name == hook.name && found.iter().all(|(f, of)| f.address != symbol.address || *of != hook) {
                let (kind, shape) = families::pool_kind(hook.role);
                found.push((Function::new(&hook.name, (symbol.address, symbol.size), kind as u8, shape), hook));
            }
        }
    });
    found
}

pub(crate) fn not_found(hook: &CustomHook, modules: &[Module], memory: &Memory) -> Refusal {
    let wanted = hook.name.to_lowercase();
    let mut similar = BTreeSet::new();
    for module in modules {
        module.each_function(memory, &mut |symbol| {
            let distance = distance(&wanted, &symbol.name.to_lowercase());
            if distance * 3 <= wanted.len() || symbol.name.to_lowercase().contains(&wanted) {
                similar.insert((distance, symbol.name.to_owned()));
            }
        });
    }
    let place = hook.module.as_ref().map_or_else(|| "any module".to_owned(), |module| format!("a module {module}"));
    let similar = similar.into_iter().take(SIMILAR).map(|(_, name)| name).collect();
    Refusal::NoFunction { name: hook.name.clone(), why: format!("there is no such function in {place}"), similar }
}

/// Edits that make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > a.len() {
        return a.len().max(b.len());
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = core::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// One module's code.
pub(crate) struct Reading<'a> {
    pub(crate) module: &'a Module,
    memory: &'a Memory,
    beneath: &'a Beneath,
    /// Where functions begin, sorted, with the length their symbol gives.
    pub(crate) starts: Vec<(u64, u64)>,
    /// The processor holds each return against the call it belongs to.
    shadow_stack: bool,
}

impl<'a> Reading<'a> {
    pub(crate) fn of(module: &'a Module, memory: &'a Memory, beneath: &'a Beneath, shadow_stack: bool) -> Self {
        let mut starts = Vec::new();
        module.each_function(memory, &mut |symbol| starts.push((symbol.address, symbol.size)));
        starts.sort_unstable();
        Self { module, memory, beneath, starts, shadow_stack }
    }

    /// Memory as it is without what hound has put over it: a dead one, or this one in the mode that it is about to leave.
    pub(crate) fn code(&self, address: u64, bytes: u64) -> Result<Vec<u8>, Error> {
        let mut code = vec![0; bytes as usize];
        self.memory.read(address, &mut code)?;
        self.beneath.look_through(address, &mut code);
        Ok(code)
    }

    /// How long the function is: as its symbol says, else up to the next one.
    pub(crate) fn extent(&self, function: &Function) -> u64 {
        let code_end = self.module.code_around(function.address).map_or(function.address, |(start, bytes)| start + bytes);
        let next = self.starts.partition_point(|(start, _)| *start <= function.address);
        let next = self.starts.get(next).map_or(code_end, |(start, _)| (*start).min(code_end));
        let known = if function.size > 0 { function.size } else { next - function.address };
        known.min(code_end - function.address).min(MAX_FUNCTION)
    }

    fn displace(&self, function: &Function) -> Result<Result<Displaced, Unfit>, Error> {
        let extent = self.extent(function);
        let code = match self.code(function.address, extent) {
            Ok(code) => code,
            Err(Error::Gone) => return Err(Error::Gone),
            Err(_) => return Ok(Err(Unfit::Unknown)),
        };
        Ok(self.displace_in(function, &code))
    }

    fn displace_in(&self, function: &Function, code: &[u8]) -> Result<Displaced, Unfit> {
        // All that could be displaced, against the file: a debugger's breakpoint, a uprobe or another tool's patch shows there.
        let mut file = vec![0; code.len().min(32)];
        if self.module.file_bytes(function.address, &mut file).is_some()
            && let Some(at) = (0..file.len()).find(|at| file[*at] != code[*at])
        {
            return Err(if code[at] == BREAKPOINT { Unfit::Breakpoint } else { Unfit::Changed });
        }
        let displaced = Displaced::of(function.address, code)?;
        if self.shadow_stack && displaced.last_call().is_some() {
            return Err(Unfit::Call);
        }
        displaced.no_branch_within(function.address, code)?;
        let next = self.starts.partition_point(|(start, _)| *start <= displaced.address);
        match self.starts.get(next) {
            Some((at, _)) if *at < displaced.end() => Err(Unfit::Symbol { at: *at }),
            _ => {
                // For any place near: what cannot be moved there will not move elsewhere either.
                displaced.relocated(self.module.end.next_multiple_of(4096))?;
                Ok(displaced)
            }
        }
    }

    /// Which of the functions some code of the module jumps into, beyond their own.
    fn jumped_into(&self, list: &[(Function, Displaced)]) -> Result<Vec<(u64, Unfit)>, Error> {
        self.jumps_into(list.iter().map(|(_, d)| Range { start: d.address, end: d.end() }).collect())
    }

    /// Which of the ranges some code of the module jumps into, beyond their first byte and from outside of them.
    pub(crate) fn jumps_into(&self, mut ranges: Vec<Range>) -> Result<Vec<(u64, Unfit)>, Error> {
        ranges.sort_unstable();
        let mut unfit = Vec::new();
        let read = |at: u64, code: &mut [u8]| match self.module.file_bytes(at, code) {
            Some(()) => Ok(()),
            None => self.memory.read(at, code),
        };
        let mut piece = vec![0; PIECE];
        for segment in self.module.segments.iter().filter(|s| s.executable) {
            let start = self.module.bias.wrapping_add(segment.svma);
            let end = start + segment.in_file;
            // A branch that lies across the end of a piece is whole in the next; one at its very end is found twice.
            let mut found = BTreeSet::new();
            for at in (start..end).step_by(PIECE - JUMP) {
                let piece = &mut piece[..((end - at) as usize).min(PIECE)];
                read(at, piece)?;
                found.extend(branches_into(piece, at, &ranges));
            }
            for (from, which) in found {
                let range = ranges[which];
                let own = (range.start..range.end).contains(&from);
                let home = self.starts.partition_point(|(start, _)| *start <= from).checked_sub(1).map(|n| self.starts[n].0);
                // Bytes in the middle of an instruction are no jump. Where nothing says how the instructions lie, they count as one.
                let real = match home.filter(|home| *home >= start) {
                    Some(home) => {
                        let mut code = vec![0; (from + LONGEST_INSTRUCTION).min(end).saturating_sub(home) as usize];
                        read(home, &mut code)?;
                        is_instruction(home, &code, from)
                    }
                    None => true,
                };
                if !own && real {
                    unfit.push((range.start, Unfit::Branch { from }));
                }
            }
        }
        Ok(unfit)
    }

    fn add(&self, plan: &mut Plan, found: &[Family], pools: &[(Function, &CustomHook)]) -> Result<(), Error> {
        let mut fit: Vec<(Function, Displaced)> = Vec::new();
        let mut unfit: Vec<(u64, Unfit)> = Vec::new();
        for function in found.iter().flat_map(|f| &f.functions).chain(pools.iter().map(|(f, _)| f)) {
            match self.displace(function)? {
                Ok(displaced) => fit.push((function.clone(), displaced)),
                Err(why) => unfit.push((function.address, why)),
            }
        }
        // To go round it would be possible. But a uprobe's step and a patch exclude each other, and whoever set it counts on it.
        if let Some((at, _)) = unfit.iter().find(|(_, why)| *why == Unfit::Breakpoint) {
            let mut functions = found.iter().flat_map(|f| &f.functions).chain(pools.iter().map(|(f, _)| f));
            let function = functions.find(|f| f.address == *at).map_or_else(|| format!("{at:#x}"), |f| f.name.clone());
            return Err(Refusal::Breakpoint { function, module: self.module.path.clone() }.into());
        }
        for (start, why) in self.jumped_into(&fit)? {
            if let Some(at) = fit.iter().position(|(_, d)| d.address == start) {
                unfit.push((fit.remove(at).0.address, why));
            }
        }
        let why_not = |function: &Function| unfit.iter().find(|(at, _)| *at == function.address).map(|(_, why)| why.to_string());
        for family in found {
            self.add_family(plan, family, &fit, why_not);
        }
        for (function, hook) in pools {
            let Some((_, displaced)) = fit.iter().find(|(f, _)| f.address == function.address) else {
                let why = format!("it cannot be hooked: {}", why_not(function).unwrap_or_default());
                return Err(Refusal::NoFunction { name: hook.name.clone(), why, similar: Vec::new() }.into());
            };
            let argument = |place: Option<u8>| place.unwrap_or(NO_ARGUMENT);
            let row = Row {
                size_argument: argument(hook.size),
                count_argument: argument(hook.count),
                block_argument: argument(hook.block),
                pool: hook.pool,
                ..Row::of(function, displaced)
            };
            self.push(plan, function, displaced, row);
            let (module, functions) = (self.module.path.clone(), vec![function.name.clone()]);
            plan.covered.push(Covered { module, family: format!("pool {}", hook.pool), functions });
        }
        Ok(())
    }

    fn add_family(&self, plan: &mut Plan, family: &Family, fit: &[(Function, Displaced)], why_not: impl Fn(&Function) -> Option<String>) {
        let module = self.module.path.clone();
        let releases = |f: &&Function| Kind::from_u8(f.kind).is_some_and(|kind| kind.role() != Role::Map && kind.role() != Role::Alloc);
        // Blocks whose release is not seen would all look leaked: all or nothing.
        if let Some((function, why)) = family.functions.iter().filter(releases).find_map(|f| Some((f, why_not(f)?))) {
            let why = format!("its {} cannot be hooked: {why}", function.name);
            plan.not_covered.push(NotCovered { module, what: family.name.clone(), why });
            return;
        }
        let inside = match self.module.code_around(family.functions[0].address) {
            Some((start, bytes)) if family.owns_module => (start, start + bytes),
            _ if family.flags & ENTRY_GLIBC != 0 && self.module.is_executable => self.empties_caches().unwrap_or_default(),
            _ if family.flags & ENTRY_GLIBC != 0 => self.calls_itself(family).unwrap_or_default(),
            _ => (0, 0),
        };
        let mut functions = Vec::new();
        for function in &family.functions {
            match fit.iter().find(|(f, _)| f.address == function.address) {
                Some((_, displaced)) => {
                    let flags = family.flags | function.flags;
                    let row = Row { flags, inside, helper: family.usable_size, ..Row::of(function, displaced) };
                    self.push(plan, function, displaced, row);
                    functions.push(function.name.clone());
                    functions.extend(function.aliases.iter().cloned());
                }
                None => {
                    let (what, why) = (function.name.clone(), why_not(function).unwrap_or_default());
                    plan.not_covered.push(NotCovered { module: module.clone(), what, why });
                }
            }
        }
        if !functions.is_empty() {
            plan.covered.push(Covered { module, family: family.name.clone(), functions });
        }
    }

    /// Where a libc's allocator calls its own `free`. What libc allocates for the program it takes and gives back by way of its table of
    /// imports, as anybody; a direct call is the allocator at work for itself: it empties an ending thread's cache of blocks that were
    /// released before.
    fn calls_itself(&self, family: &Family) -> Option<(u64, u64)> {
        let free = family.functions.iter().find(|f| f.kind == Kind::Free as u8)?.address;
        let (start, bytes) = self.module.code_around(free)?;
        let from = free.saturating_sub(OWN_REACH).max(start);
        let code = self.code(from, (free + OWN_REACH).min(start + bytes) - from).ok()?;
        let sites = branches_into(&code, from, &[Range { start: free - 1, end: free + 1 }]);
        let returns = |(site, _): &(u64, usize)| site + JUMP as u64;
        Some((sites.iter().map(returns).min()?, sites.iter().map(returns).max()? + 1))
    }

    /// The same in a static program, in which everybody calls `free` directly: the function that empties the cache (glibc from 2.27 on).
    fn empties_caches(&self) -> Option<(u64, u64)> {
        const NAME: &str = "__malloc_arena_thread_freeres";
        let mut found = None;
        self.module.each_function_named(self.memory, NAME.len(), &mut |symbol| {
            if symbol.name == NAME {
                found = Some((symbol.address, symbol.address + symbol.size));
            }
        });
        found
    }

    fn push(&self, plan: &mut Plan, function: &Function, displaced: &Displaced, row: Row) {
        plan.planned.push(Planned {
            row,
            displaced: displaced.clone(),
            entry: function.address,
            nothrow: function.nothrow,
            module: (self.module.start, self.module.end),
        });
    }
}
