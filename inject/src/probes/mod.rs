//! Where uprobes go in a target: one for each function of its allocators, found by reading only.
//!
//! A function that only passes its call on to another one (`operator delete` to `free`) gets no probe: each would count the same block.
//! Where an allocator's function calls another one, both probes are hit; [`ProbePlan::is_inside`] and [`ProbePlan::comes_through`] tell
//! the inner call, which is to be disregarded whatever became of the outer one.

mod cookie;
mod inside;
mod links;
pub mod place;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use hound_common::attach::Shape;
use hound_common::hook::{Kind, Role};
use hound_common::kernel::{Cookie, DOES_FREE};

use crate::code::{BREAKPOINT, Range, Unfit};
use crate::custom::{CustomHook, PoolRole};
use crate::error::{Error, Refusal};
use crate::existing::Beneath;
use crate::families::{self, Family, Function};
use crate::memory::Memory;
use crate::modules::{Module, modules};
use crate::place::mappings;
use crate::plan::{NotCovered, Reading, may_throw, not_found, pools};
use crate::site::{is_launched, ring_mapping};

use inside::Inside;
use links::{Exits, Links};
use place::{How, Spot, no_loop, spots};

/// So much of a function's beginning must be what the file says: patches and breakpoints show there.
const COMPARED: usize = 64;

/// A uprobe to be set.
#[derive(Clone, Debug)]
pub struct ProbeSite {
    /// The function's symbol.
    pub function: String,
    /// Its other names: a probe cannot tell by which of them it was called.
    pub aliases: Vec<String>,
    /// The module's path, for people.
    pub module: String,
    /// The allocator, for people.
    pub family: String,
    /// The module's file, as the target has it mapped: also where it was deleted, or is in another mount namespace.
    pub file: Arc<File>,
    /// Where in the file the probed instruction is.
    pub offset: u64,
    /// Where the target has it (a file that is mapped twice has it at other places, too).
    pub address: u64,
    /// Where the function begins.
    pub entry: u64,
    /// What the kernel's program must know.
    pub cookie: Cookie,
    /// What the kernel does at each hit.
    pub how: How,
    /// Releases of null do not come to the probe.
    pub skips_null: bool,
    /// What comes of a call is known when it returns. The return address is on top of the stack at the probe.
    pub returns: bool,
    /// C++ exceptions may come from it (`operator new` without memory). While a return probe waits for a call, its return address is the
    /// kernel's own, which no unwinder knows: an exception that passes there ends the program.
    pub throws: bool,
}

impl ProbeSite {
    /// A path by which the kernel opens the file, in this process and while the site is kept.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }
}

/// A function that needs no probe: what it calls is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassesOn {
    /// Its symbol.
    pub function: String,
    /// Its module's path.
    pub module: String,
    /// The probed functions that its calls come to, one of them each.
    pub to: Vec<String>,
}

/// One function on its way into the plan.
struct Candidate {
    function: Function,
    /// `None`: it cannot be probed.
    cookie: Option<Cookie>,
    family: String,
    exits: Exits,
}

/// What to probe in a target.
#[derive(Debug)]
pub struct ProbePlan {
    pid: i32,
    memory: Memory,
    hooks: Vec<CustomHook>,
    sites: Vec<ProbeSite>,
    passes_on: Vec<PassesOn>,
    not_covered: Vec<NotCovered>,
    /// Functions on which a breakpoint stands, and their modules.
    held: Vec<(String, String)>,
    inside: Inside,
    /// Code of pools, by number.
    pools: BTreeMap<u8, Inside>,
    /// Start, path and inode of each module there was.
    seen: BTreeSet<(u64, String, u64)>,
    /// Device, inode and offset of each site.
    taken: BTreeSet<(u64, u64, u64)>,
    /// hound's ring is in the target: what differs from the files there is hound's own.
    patched_by_hound: bool,
    /// What is read instead of hound's own patches.
    beneath: Beneath,
}

impl ProbePlan {
    /// Finds the target's allocators and where their functions are probed. Reads only; the target runs on.
    ///
    /// # Errors
    /// A refusal when nothing can be probed, or when one of `hooks` is not found (then similar names are listed).
    pub fn of(pid: i32, hooks: &[CustomHook]) -> Result<Self, Error> {
        Self::over(pid, hooks, Beneath::default())
    }

    /// The same while hound's own patches are still there. They must be gone when the probes are set.
    ///
    /// # Errors
    /// As [`ProbePlan::of`].
    pub fn of_patched(pid: i32, hooks: &[CustomHook]) -> Result<Self, Error> {
        let patches = Beneath::patches(pid, &Memory::open(pid)?)?;
        Self::over(pid, hooks, patches)
    }

    fn over(pid: i32, hooks: &[CustomHook], patches: Beneath) -> Result<Self, Error> {
        let memory = Memory::open(pid)?;
        let maps = mappings(pid)?;
        if is_launched(&maps) {
            return Err(Refusal::Launched.into());
        }
        let mut plan = Self {
            pid,
            memory,
            hooks: hooks.to_vec(),
            sites: Vec::new(),
            passes_on: Vec::new(),
            not_covered: Vec::new(),
            held: Vec::new(),
            inside: Inside::default(),
            pools: BTreeMap::new(),
            seen: BTreeSet::new(),
            taken: BTreeSet::new(),
            patched_by_hound: ring_mapping(&maps).is_some(),
            beneath: patches,
        };
        let modules = modules(pid, &plan.memory, &maps)?;
        let mut unplaced: Vec<&CustomHook> = hooks.iter().collect();
        for module in &modules {
            unplaced.retain(|hook| pools(module, &plan.memory, core::slice::from_ref(hook)).is_empty());
        }
        if let Some(hook) = unplaced.first() {
            return Err(not_found(hook, &modules, &plan.memory).into());
        }
        plan.add(&modules)?;
        plan.check(&modules)?;
        // Modules that come later are read when the patches are gone.
        plan.beneath = Beneath::default();
        Ok(plan)
    }

    /// The same for a child that was forked from this target and runs the same program: it has the same modules at the same places. Probes that
    /// stand in the target stand in the child's copy of its text, too, and would be taken for another tracer's.
    ///
    /// # Errors
    /// When the child may not be read.
    pub fn of_fork(&self, pid: i32) -> Result<Self, Error> {
        Ok(Self {
            pid,
            memory: Memory::open(pid)?,
            hooks: self.hooks.clone(),
            sites: self.sites.clone(),
            passes_on: self.passes_on.clone(),
            not_covered: self.not_covered.clone(),
            held: self.held.clone(),
            inside: self.inside.clone(),
            pools: self.pools.clone(),
            seen: self.seen.clone(),
            taken: self.taken.clone(),
            patched_by_hound: self.patched_by_hound,
            beneath: self.beneath.clone(),
        })
    }

    /// What to probe.
    pub fn sites(&self) -> &[ProbeSite] {
        &self.sites
    }

    /// What is beneath the probes, by the modules' files: for a plan that is made while they are set.
    pub fn beneath(&self) -> Beneath {
        let first = |site: &ProbeSite| {
            let mut byte = [0];
            site.file.read_exact_at(&mut byte, site.offset).ok().map(|()| (site.address, byte.to_vec()))
        };
        Beneath::of(self.sites.iter().filter_map(first))
    }

    /// Functions that are seen through others.
    pub fn passes_on(&self) -> &[PassesOn] {
        &self.passes_on
    }

    /// What will not be seen, and why.
    pub fn not_covered(&self) -> &[NotCovered] {
        &self.not_covered
    }

    /// Whether a call of the function at `entry` was the allocator's own, or came by way of another probed function. `callers`: its return
    /// addresses, the innermost first. Of the heap's functions (`pool` 0) the first tells. Those of a pool nest apart from the heap's, and a
    /// call counts as the pool's own wherever a function of the pool is among its callers.
    pub fn is_inner(&self, pool: u8, entry: u64, callers: &[u64]) -> bool {
        let Some(caller) = callers.first() else { return false };
        if pool == 0 {
            return self.is_inside(*caller) || self.comes_through(entry, *caller);
        }
        let Some(inside) = self.pools.get(&pool) else { return false };
        callers.iter().any(|ip| inside.contains(ip.wrapping_sub(1))) || inside.comes_through(&self.memory, entry, *caller)
    }

    /// Whether a return address lies in an allocator: the call was not the program's.
    pub fn is_inside(&self, return_address: u64) -> bool {
        self.inside.contains(return_address.wrapping_sub(1))
    }

    /// The ranges of code that [`ProbePlan::is_inside`] goes by, sorted, without overlap.
    pub fn inside(&self) -> &[(u64, u64)] {
        self.inside.ranges()
    }

    /// Whether a call of the function at `entry`, with this return address, came by way of another probed function, which has jumped there
    /// (glibc's `realloc` of null to `malloc`). Told by the call instruction; unknown, hence false, where that calls through a register.
    /// Reads the target's code: the answer for an address stays the same as long as its module does.
    pub fn comes_through(&self, entry: u64, return_address: u64) -> bool {
        self.inside.comes_through(&self.memory, entry, return_address)
    }

    /// Looks for modules that were loaded since the plan was made, or since the last call. Returns how many sites are new: the last ones of
    /// [`ProbePlan::sites`]. `complete`: a module that the loader is still at work on is left for the next time, since its own calls of
    /// other modules cannot be followed yet.
    ///
    /// # Errors
    /// When the target is gone.
    pub fn appeared(&mut self, complete: bool) -> Result<usize, Error> {
        let before = self.sites.len();
        let maps = mappings(self.pid)?;
        let mut modules = modules(self.pid, &self.memory, &maps)?;
        if complete {
            modules.retain(|module| module.is_linked(&maps));
        }
        self.add(&modules)?;
        Ok(self.sites.len() - before)
    }

    fn add(&mut self, modules: &[Module]) -> Result<(), Error> {
        let first = self.sites.len();
        let mut candidates: Vec<Candidate> = Vec::new();
        for module in modules {
            let inode = module.file().and_then(|file| file.metadata().ok()).map_or(0, |file| file.ino());
            if self.seen.insert((module.start, module.path.clone(), inode)) {
                self.add_module(module, &mut candidates)?;
            }
        }
        self.leave_out_what_passes_on(first, &candidates);
        Ok(())
    }

    fn add_module(&mut self, module: &Module, candidates: &mut Vec<Candidate>) -> Result<(), Error> {
        let found = families::families(module, &self.memory);
        for (what, why) in families::not_covered(module, &self.memory, &found) {
            self.not_covered.push(NotCovered { module: module.path.clone(), what, why });
        }
        let hooks = self.hooks.clone();
        let pools = pools(module, &self.memory, &hooks);
        if let Some((function, _)) = pools.iter().find(|(_, hook)| hook.role != PoolRole::Free && !hook.nothrow)
            && may_throw(module, &self.memory)
        {
            return Err(Refusal::MayThrow { function: function.name.clone(), module: module.path.clone() }.into());
        }
        let allocators: Vec<&Family> = found.iter().filter(|family| family.functions.iter().any(is_probed)).collect();
        if allocators.is_empty() && pools.is_empty() {
            return Ok(());
        }
        let Some(file) = module.file().and_then(|file| file.try_clone().ok()).map(Arc::new) else {
            let why = "its file cannot be opened, and the kernel sets probes by file".to_owned();
            let names = allocators.iter().map(|family| family.name.clone()).chain(pools.iter().map(|(f, _)| f.name.clone()));
            self.not_covered.extend(names.map(|what| NotCovered { module: module.path.clone(), what, why: why.clone() }));
            return Ok(());
        };
        // Memory is borrowed apart from the plan that grows meanwhile.
        let memory = Memory::open(self.pid)?;
        let beneath = self.beneath.clone();
        let reading = Reading::of(module, &memory, &beneath, false);
        let links = Links::of(&reading, &memory);
        let mut placing = Placing { plan: self, reading: &reading, links: &links, file: &file, candidates, suspects: BTreeSet::new() };
        let functions = allocators.iter().flat_map(|family| &family.functions).filter_map(|f| Some((f, cookie::cookie(f)?)));
        placing.suspect(functions.chain(pools.iter().map(|(f, hook)| (f, cookie::of_pool(f, hook)))))?;
        for family in allocators {
            placing.family(family)?;
        }
        for (function, hook) in &pools {
            let cookie = cookie::of_pool(function, hook);
            match placing.place(function, cookie)? {
                Ok(spot) => {
                    placing.site(function, &format!("pool {}", hook.pool), &spot, hook.role != PoolRole::Free);
                    let range = placing.range(function);
                    let exits = links.exits(&range);
                    let inside = placing.plan.pools.entry(hook.pool).or_default();
                    inside.function(function, &module.path, range, &exits, &links);
                }
                Err(why) => {
                    let (name, similar) = (hook.name.clone(), Vec::new());
                    return Err(match why {
                        Unfit::Breakpoint => Refusal::Breakpoint { function: name, module: module.path.clone() },
                        why => Refusal::NoFunction { name, why: format!("it cannot be probed: {why}"), similar },
                    }
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Takes out the sites (from `first` on) of functions whose calls all come to another site.
    fn leave_out_what_passes_on(&mut self, first: usize, candidates: &[Candidate]) {
        self.inside.resolve_names(&self.sites);
        let mut gone: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut pending: Vec<&Candidate> = candidates.iter().collect();
        loop {
            let before = pending.len();
            pending.retain(|candidate| !self.leave_out(first, candidate, &mut gone));
            if pending.len() == before {
                break;
            }
        }
        for candidate in pending.iter().filter(|candidate| candidate.cookie.is_none()) {
            let (what, module) = (candidate.function.name.clone(), self.inside.module_of(candidate.function.address).to_owned());
            let why = format!("its block is not among its arguments, and it calls no probed function ({})", candidate.family);
            self.not_covered.push(NotCovered { module, what, why });
        }
        // What passed on to a function that was left out after it.
        for passing in &mut self.passes_on {
            if let Some(to) = self.inside.entry_of(&passing.function, &passing.module).and_then(|entry| gone.get(&entry)) {
                passing.to = self.sites.iter().filter(|site| to.contains(&site.entry)).map(|site| site.function.clone()).collect();
            }
        }
        self.inside.finish(&self.sites);
        for inside in self.pools.values_mut() {
            inside.resolve_names(&self.sites);
            inside.finish(&self.sites);
        }
    }

    /// Whether a function needs no site. `gone`: those that were left out before, and where their calls come to.
    fn leave_out(&mut self, first: usize, candidate: &Candidate, gone: &mut BTreeMap<u64, BTreeSet<u64>>) -> bool {
        let entry = candidate.function.address;
        let own = self.sites[first..].iter().position(|site| site.entry == entry).map(|n| n + first);
        let does = candidate.cookie.map(|cookie| cookie.does);
        let probed = |target: u64| self.sites.iter().find(|site| site.entry == target && site.cookie.pool == 0);
        // `None`: some of it is no probed function.
        let leaves = |of: &[links::Leads]| -> Option<BTreeSet<u64>> {
            let targets = of.iter().map(|leads| self.inside.target(leads)).collect::<Option<BTreeSet<u64>>>()?;
            let last = |to: u64| gone.get(&to).cloned().unwrap_or_else(|| BTreeSet::from([to]));
            let all: BTreeSet<u64> = targets.into_iter().flat_map(last).collect();
            all.iter().all(|to| *to != entry && probed(*to).is_some()).then_some(all)
        };
        let passes = candidate.exits.only_passes_on && own.is_some();
        let to = if passes {
            let alike = |all: &BTreeSet<u64>| all.iter().all(|to| probed(*to).is_some_and(|site| Some(site.cookie.does) == does));
            leaves(&candidate.exits.jumps).filter(alike)
        } else if matches!(candidate.function.shape, Shape::Reallocarr | Shape::Text) {
            let all = candidate.exits.calls.iter().chain(&candidate.exits.jumps);
            all.filter_map(|leads| leaves(core::slice::from_ref(leads))).next()
        } else {
            None
        };
        let Some(to) = to else { return false };
        let names = to.iter().filter_map(|to| probed(*to)).map(|site| site.function.clone()).collect();
        let module = self.inside.module_of(entry).to_owned();
        self.passes_on.push(PassesOn { function: candidate.function.name.clone(), module, to: names });
        // Others may pass on to this one.
        for of in gone.values_mut() {
            if of.remove(&entry) {
                of.extend(&to);
            }
        }
        gone.insert(entry, to);
        if !passes {
            self.inside.except(entry);
        }
        if let Some(own) = own {
            self.sites.remove(own);
        }
        true
    }

    fn check(&self, modules: &[Module]) -> Result<(), Error> {
        let allocates = |site: &ProbeSite| Kind::from_u8(site.cookie.kind).is_some_and(|kind| kind.role() == Role::Alloc);
        if self.sites.iter().any(allocates) {
            return Ok(());
        }
        if let Some((function, module)) = self.held.first() {
            return Err(Refusal::Breakpoint { function: function.clone(), module: module.clone() }.into());
        }
        let executable = modules.iter().find(|m| m.is_executable);
        let (why, cure) = match self.not_covered.first() {
            _ if executable.is_some_and(|m| m.has_section(".go.buildinfo")) => {
                ("it is a Go program without C code: the Go runtime's heap is not malloc".into(), "use Go's own pprof".into())
            }
            Some(first) => {
                (format!("{} of {} cannot be probed: {}", first.what, first.module, first.why), "start it with `hound run`".into())
            }
            None if executable.is_some_and(|m| !m.has_interpreter) => (
                "it is linked statically and stripped: nothing says where its allocator is".into(),
                "use a build with symbols (do not strip, or strip only debug information)".to_owned(),
            ),
            None => ("no allocator was found in it".into(), "name its functions with --hook".to_owned()),
        };
        Err(Refusal::NoAllocator { why, cure }.into())
    }
}

fn is_probed(function: &Function) -> bool {
    cookie::cookie(function).is_some()
}

/// One module's functions finding their places.
struct Placing<'a> {
    plan: &'a mut ProbePlan,
    reading: &'a Reading<'a>,
    links: &'a Links<'a>,
    file: &'a Arc<File>,
    candidates: &'a mut Vec<Candidate>,
    /// Functions into whose beginning some code jumps.
    suspects: BTreeSet<u64>,
}

impl Placing<'_> {
    /// Finds the functions into whose beginning other code jumps: in one pass over the module, which may have a hundred megabytes.
    fn suspect<'f>(&mut self, functions: impl Iterator<Item = (&'f Function, Cookie)>) -> Result<(), Error> {
        let mut ranges = Vec::new();
        for (function, cookie) in functions {
            let range = self.range(function);
            let Ok(code) = self.reading.code(range.start, range.end - range.start) else { continue };
            let furthest = spots(range.start, &code, cookie).ok().and_then(|spots| spots.iter().map(|spot| spot.address).max());
            ranges.extend(furthest.filter(|at| *at > range.start).map(|at| Range { start: range.start, end: at + 1 }));
        }
        self.suspects = self.reading.jumps_into(ranges)?.into_iter().map(|(start, _)| start).collect();
        Ok(())
    }

    fn family(&mut self, family: &Family) -> Result<(), Error> {
        let module = self.reading.module.path.clone();
        let mut placed: Vec<(&Function, Spot)> = Vec::new();
        let mut unfit: Vec<(&Function, Unfit)> = Vec::new();
        for function in &family.functions {
            let Some(cookie) = cookie::cookie(function) else { continue };
            match self.place(function, cookie)? {
                Ok(spot) => placed.push((function, spot)),
                Err(why) => unfit.push((function, why)),
            }
        }
        for (function, why) in &unfit {
            if *why == Unfit::Breakpoint {
                self.plan.held.push((function.name.clone(), module.clone()));
            }
        }
        let why_not = |why: &Unfit, plan: &ProbePlan| match why {
            Unfit::Changed if plan.patched_by_hound => "a hound has patched it: `hound detach` first".to_owned(),
            why => why.to_string(),
        };
        // Blocks whose release is not seen would all look leaked: all or nothing.
        let releases = |f: &Function| Kind::from_u8(f.kind).is_some_and(|kind| !matches!(kind.role(), Role::Map | Role::Alloc));
        if let Some((function, why)) = unfit.iter().find(|(function, _)| releases(function)) {
            let why = format!("its {} cannot be probed: {}", function.name, why_not(why, self.plan));
            self.plan.not_covered.push(NotCovered { module, what: family.name.clone(), why });
            return Ok(());
        }
        for (function, why) in &unfit {
            let why = why_not(why, self.plan);
            self.plan.not_covered.push(NotCovered { module: module.clone(), what: function.name.clone(), why });
        }
        for (function, spot) in &placed {
            self.site(function, &family.name, spot, spot.cookie.does != DOES_FREE);
        }
        for function in family.functions.iter().filter(|f| is_probed(f) || f.shape == Shape::Reallocarr) {
            let range = self.range(function);
            let exits = self.links.exits(&range);
            self.plan.inside.function(function, &module, range, &exits, self.links);
            let (function, cookie) = (function.clone(), cookie::cookie(function));
            self.candidates.push(Candidate { function, cookie, family: family.name.clone(), exits });
        }
        if family.owns_module {
            self.plan.inside.whole(self.reading.module.code());
        }
        Ok(())
    }

    fn range(&self, function: &Function) -> core::ops::Range<u64> {
        let by_symbol = function.address..function.address + self.reading.extent(function);
        // An entry of the unwind tables that begins elsewhere is several functions': assembly.
        if function.size > 0 {
            by_symbol
        } else {
            self.links.range(function.address).filter(|r| r.start == function.address).unwrap_or(by_symbol)
        }
    }

    fn place(&self, function: &Function, cookie: Cookie) -> Result<Result<Spot, Unfit>, Error> {
        let range = self.range(function);
        let code = match self.reading.code(range.start, range.end - range.start) {
            Ok(code) => code,
            Err(Error::Gone) => return Err(Error::Gone),
            Err(_) => return Ok(Err(Unfit::Unknown)),
        };
        let mut file = vec![0; code.len().min(COMPARED)];
        if self.reading.module.file_bytes(range.start, &mut file).is_none() {
            return Ok(Err(Unfit::Unknown));
        }
        if let Some(at) = (0..file.len()).find(|at| file[*at] != code[*at]) {
            return Ok(Err(if code[at] == BREAKPOINT { Unfit::Breakpoint } else { Unfit::Changed }));
        }
        self.choose(&range, &code, cookie)
    }

    fn choose(&self, range: &core::ops::Range<u64>, code: &[u8], cookie: Cookie) -> Result<Result<Spot, Unfit>, Error> {
        let spots = match spots(range.start, code, cookie) {
            Ok(spots) => spots,
            Err(why) => return Ok(Err(why)),
        };
        let mut why = Unfit::Unknown;
        for spot in spots {
            let own = no_loop(range.start, code, &spot);
            let between = |(start, _): &&(u64, u64)| range.start < *start && *start <= spot.address;
            let foreign = if spot.address == range.start {
                None
            } else if let Some((at, _)) = self.reading.starts.iter().find(between) {
                Some(Unfit::Symbol { at: *at })
            } else if !self.suspects.contains(&range.start) {
                None
            } else {
                self.reading.jumps_into(vec![Range { start: range.start, end: spot.address + 1 }])?.pop().map(|(_, why)| why)
            };
            match own.err().or(foreign) {
                None => return Ok(Ok(spot)),
                Some(unfit) => why = unfit,
            }
        }
        Ok(Err(why))
    }

    fn site(&mut self, function: &Function, family: &str, spot: &Spot, returns: bool) {
        let module = self.reading.module;
        let Some(offset) = module.file_offset(spot.address) else { return };
        let Ok(identity) = self.file.metadata() else { return };
        // A file that is mapped twice has one probe at each place of it.
        if !self.plan.taken.insert((identity.dev(), identity.ino(), offset)) {
            return;
        }
        self.plan.sites.push(ProbeSite {
            function: function.name.clone(),
            aliases: function.aliases.clone(),
            module: module.path.clone(),
            family: family.to_owned(),
            file: self.file.clone(),
            offset,
            address: spot.address,
            entry: function.address,
            cookie: spot.cookie,
            how: spot.how,
            skips_null: spot.skips_null,
            returns,
            throws: function.shape == Shape::New,
        });
    }
}
