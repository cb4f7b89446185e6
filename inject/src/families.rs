//! Which allocators stand in which module.
//!
//! A program may call anything `my_malloc`. An allocator is taken for what it is only when a whole family of its functions stands in one
//! module.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use hound_common::attach::{ENTRY_FLAT, ENTRY_GLIBC, NO_ARGUMENT, Shape};
use hound_common::hook::{BEGINNINGS, FILTERING, HOOKS, Kind, Origin, PATCHES, Patch, Places, Role, WATCHED, watched_shape};
use memchr::memmem;

use crate::memory::Memory;
use crate::modules::{Identity, Module, Symbol};

/// A function to patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its symbol.
    pub name: String,
    /// Where it is.
    pub address: u64,
    /// How long, 0 if not known.
    pub size: u64,
    /// Its number in events, 0 for functions that are only watched.
    pub kind: u8,
    /// How it takes its arguments.
    pub shape: Shape,
    /// Where the one is that returns null where this one throws.
    pub nothrow: Option<u64>,
    /// Where its arguments are, for shapes that do not say it.
    pub places: Places,
    /// Bits of `ENTRY_…`.
    pub flags: u8,
    /// Its other names: a patch cannot tell by which of them it was called.
    pub aliases: Vec<String>,
}

impl Function {
    /// One that its shape says all of.
    pub fn new(name: &str, (address, size): (u64, u64), kind: u8, shape: Shape) -> Self {
        Self { name: name.to_owned(), address, size, kind, shape, nothrow: None, places: Places::NONE, flags: 0, aliases: Vec::new() }
    }
}

/// An allocator in a module, or libc's mapping functions.
#[derive(Clone, Debug)]
pub struct Family {
    /// For people.
    pub name: String,
    /// Bits of `ENTRY_…`.
    pub flags: u8,
    /// The allocator has the module to itself: calls from there are its own, not the program's.
    pub owns_module: bool,
    /// Its `malloc_usable_size`, 0 if it has none.
    pub usable_size: u64,
    /// Its functions; each address once.
    pub functions: Vec<Function>,
}

impl Family {
    /// Whether blocks come from it.
    pub fn allocates(&self) -> bool {
        self.functions.iter().any(|function| Kind::from_u8(function.kind).is_some_and(|kind| kind.role() == Role::Alloc))
    }
}

/// Names of functions in a module: address and size.
type Names = HashMap<String, (u64, u64)>;

/// The prefixed functions end so.
const ENDINGS: [&str; 18] = [
    "malloc",
    "calloc",
    "realloc",
    "free",
    "memalign",
    "aligned_alloc",
    "valloc",
    "mallocx",
    "rallocx",
    "xallocx",
    "dallocx",
    "sdallocx",
    "reallocarray",
    "free_sized",
    "free_aligned_sized",
    "mallctl",
    "cfree",
    "malloc_usable_size",
];

/// What marks modules, beside functions to be patched.
const MARKS: [&str; 5] = ["__libc_start_main", "gnu_get_libc_version", "mi_usable_size", "sn_rust_usable_size", PROFILER];
/// A preloaded library with this function is a heap profiler, such as ours: its `malloc` is a way to another one.
const PROFILER: &str = "memory_profiler_override_next_timestamp";

/// mimalloc's functions of one heap begin so.
const HEAPS: &str = "mi_heap_";

/// Longer names are nobody's: the longest that is looked for has 36 bytes, without a prefix.
const LONGEST: usize = 80;

/// Names with addresses as the file has them.
type NamesOfFile = HashMap<Identity, Arc<Names>>;

fn names(module: &Module, memory: &Memory) -> Names {
    // Where many processes are looked into, they have the same libraries; and some of those have hundreds of thousands of symbols.
    static KNOWN: LazyLock<Mutex<NamesOfFile>> = LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let moved = |names: &Names, by: u64| names.iter().map(|(name, (at, size))| (name.clone(), (at.wrapping_add(by), *size))).collect();
    let identity = module.identity();
    if let Some(names) = identity.and_then(|identity| known().get(&identity).cloned()) {
        return moved(&names, module.bias);
    }
    let names = names_among(|is_wanted, see| module.each_wanted(memory, LONGEST, is_wanted, see));
    if let Some(identity) = identity.filter(|_| module.has_tables()) {
        known().insert(identity, Arc::new(moved(&names, module.bias.wrapping_neg())));
    }
    names
}

fn names_among(each_function: impl FnOnce(&dyn Fn(&[u8]) -> bool, &mut dyn FnMut(Symbol<'_>))) -> Names {
    let mut exact: HashSet<&str> = PATCHES.iter().map(|p| p.symbol).chain(HOOKS.iter().map(|h| h.symbol)).collect();
    exact.extend(WATCHED.iter().chain(BEGINNINGS).chain(FILTERING).chain(&MARKS));
    // By the last letter first: a large library has hundreds of thousands of names.
    let mut by_last: Vec<Vec<&str>> = vec![Vec::new(); 256];
    let last = |name: &[u8]| usize::from(name.last().copied().unwrap_or_default());
    for name in ENDINGS.iter().chain(&exact) {
        by_last[last(name.as_bytes())].push(name);
    }
    let of_heaps = memmem::Finder::new(HEAPS);
    // What is looked for may be the end of a longer string: tables share those.
    let is_wanted = |end: &[u8]| by_last[last(end)].iter().any(|name| end.ends_with(name.as_bytes())) || of_heaps.find(end).is_some();
    let mut names = Names::new();
    each_function(&is_wanted, &mut |Symbol { name, address, size }| {
        let ends = || ENDINGS.iter().any(|ending| name.ends_with(ending));
        if exact.contains(name) || ends() || name.starts_with(HEAPS) {
            let known = names.entry(name.to_owned()).or_insert((address, size));
            if known.0 == address {
                known.1 = known.1.max(size);
            }
        }
    });
    names
}

/// Everything in a module that hound can patch.
pub fn families(module: &Module, memory: &Memory) -> Vec<Family> {
    families_of(&names(module, memory), module)
}

/// An executable's file, before anything is mapped of it.
pub struct Executable(Module);

impl Executable {
    /// Nothing if it is no ELF file.
    pub fn open(path: &Path) -> Option<Self> {
        Module::of_file(path).map(Self)
    }

    /// The allocators that are linked into it, by their names for people: no library that is loaded before others gets between them and the
    /// program.
    pub fn allocators(&self) -> Vec<String> {
        let found = families_of(&names_among(|is_wanted, see| self.0.each_wanted_of_file(LONGEST, is_wanted, see)), &self.0);
        found.into_iter().filter(Family::allocates).map(|family| family.name).collect()
    }

    /// Whether it imports or exports one of these names.
    pub fn has_dynamic_name(&self, names: &[&str]) -> bool {
        self.0.has_dynamic_name(names)
    }
}

fn families_of(names: &Names, module: &Module) -> Vec<Family> {
    let has = |name: &str| names.contains_key(name);
    let is_libc = has("__libc_start_main");
    let is_glibc = is_libc && is_glibc(names);
    // Until glibc 2.31 its loader exports a small allocator for itself, which no program calls once libc is there.
    if module.is_loader && !is_libc || !module.is_executable && has(PROFILER) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut taken = BTreeSet::new();
    let mut add = |name: String, flags: u8, owns_module: bool, usable: &str, list: Vec<Function>| {
        let usable_size = names.get(usable).map_or(0, |(address, _)| *address);
        let mut functions: Vec<Function> = Vec::new();
        for function in list {
            if taken.insert(function.address) {
                functions.push(function);
            } else if let Some(known) = functions.iter_mut().find(|f| f.address == function.address && f.name != function.name) {
                known.aliases.push(function.name);
            }
        }
        if !functions.is_empty() {
            found.push(Family { name, flags, owns_module, usable_size, functions });
        }
    };
    for prefix in prefixes(names) {
        let is_glibc = is_glibc && prefix.is_empty();
        let name = label(names, &prefix, module, is_libc);
        let of_executable = module.is_executable || is_libc;
        let mut list = c_functions(names, &prefix);
        if is_jemalloc(names, &prefix) {
            list.extend(listed(names, Origin::Jemalloc, &prefix));
        }
        if prefix.is_empty() {
            for (origin, wanted) in [
                (Origin::Glibc, is_glibc || !is_libc),
                (Origin::Tcmalloc, has("tc_malloc") || has("sdallocx")),
                (Origin::Operator, !is_libc && has("_Znwm")),
            ] {
                if wanted {
                    list.extend(listed(names, origin, ""));
                }
            }
        }
        let flat = if is_glibc || is_jemalloc(names, &prefix) || is_tcmalloc(names, &prefix) { ENTRY_FLAT } else { 0 };
        add(name, flat | if is_glibc { ENTRY_GLIBC } else { 0 }, !of_executable, &format!("{prefix}malloc_usable_size"), list);
    }
    if has("mi_malloc") && has("mi_free") && (has("mi_realloc") || has("mi_realloc_aligned")) {
        add("mimalloc".into(), 0, !module.is_executable, "mi_usable_size", listed(names, Origin::Mimalloc, ""));
    }
    if ["alloc", "realloc", "dealloc"].iter().all(|name| names.contains_key(&format!("sn_rust_{name}"))) {
        let usable = if has("sn_malloc_usable_size") { "sn_malloc_usable_size" } else { "sn_rust_usable_size" };
        add("snmalloc".into(), 0, !module.is_executable, usable, listed(names, Origin::Snmalloc, ""));
    }
    if has("tc_malloc") && has("tc_free") && has("tc_realloc") && !has("malloc") {
        add("tcmalloc".into(), 0, !module.is_executable, "", listed(names, Origin::Tcmalloc, ""));
    }
    if is_libc {
        let libc = if is_glibc { "glibc" } else { "musl" };
        add(format!("{libc}: mappings"), 0, !module.is_executable, "", mapping_functions(names));
        add(format!("{libc}: exec"), 0, false, "", watched(names, |shape| shape == Shape::Exec));
        add(format!("{libc}: fork"), 0, false, "", function(names, "fork", 0, Shape::Fork).into_iter().collect());
        let filtering = FILTERING.iter().zip([Shape::Prctl, Shape::Syscall]).filter_map(|(name, shape)| function(names, name, 0, shape));
        add(format!("{libc}: filters"), 0, false, "", filtering.collect());
    }
    if !is_libc && has("tc_malloc") && ["mmap", "munmap", "mremap"].iter().all(|name| has(name)) {
        add("tcmalloc: mappings".into(), 0, !module.is_executable, "", mapping_functions(names));
    }
    if has("__register_frame") && has("__deregister_frame") {
        add("unwinder".into(), 0, false, "", watched(names, |shape| shape != Shape::Exec));
    }
    found
}

/// glibc rather than musl. Of a static executable only what it uses is left: memalign comes with malloc.
fn is_glibc(names: &Names) -> bool {
    names.contains_key("gnu_get_libc_version") || names.contains_key("__libc_memalign")
}

/// The prefixes under which a family stands in the module: none, and jemalloc's if it has one.
fn prefixes(names: &Names) -> Vec<String> {
    let mut prefixes: BTreeSet<String> = BTreeSet::new();
    // Of a libc that is linked in, only what the program uses is there.
    let of_libc = || ["__libc_start_main", "malloc", "free"].iter().all(|name| names.contains_key(*name));
    if is_whole(names, "") || of_libc() {
        prefixes.insert(String::new());
    }
    // Where unused functions were left out (Rust's crates, linked with --gc-sections), `malloc` itself may be missing.
    for name in names.keys() {
        let Some(prefix) = name.strip_suffix("mallocx").or_else(|| name.strip_suffix("mallctl")) else { continue };
        if is_jemalloc(names, prefix) {
            prefixes.insert(prefix.to_owned());
        }
    }
    prefixes.into_iter().collect()
}

fn is_whole(names: &Names, prefix: &str) -> bool {
    ["malloc", "calloc", "realloc", "free"].iter().all(|name| names.contains_key(&format!("{prefix}{name}")))
}

fn is_jemalloc(names: &Names, prefix: &str) -> bool {
    let has = |name: &str| names.contains_key(&format!("{prefix}{name}"));
    let allocates = has("mallocx") && (has("malloc") || has("calloc"));
    let extended = allocates && (has("rallocx") || has("realloc")) && (has("sdallocx") || has("dallocx"));
    extended || is_whole(names, prefix) && has("mallctl")
}

/// gperftools' allocator: its `malloc` is another name of its `tc_malloc`, and not a function of somebody else's that calls that.
fn is_tcmalloc(names: &Names, prefix: &str) -> bool {
    let at = |name: &str| names.get(name).map(|(address, _)| *address);
    prefix.is_empty() && at("tc_malloc").is_some() && at("tc_malloc") == at("malloc") && at("tc_calloc") == at("calloc")
}

fn label(names: &Names, prefix: &str, module: &Module, is_libc: bool) -> String {
    let has = |name: &str| names.contains_key(name);
    if is_jemalloc(names, prefix) {
        return if prefix.is_empty() { "jemalloc".into() } else { format!("jemalloc ({prefix})") };
    }
    let known = [(has("tc_malloc"), "tcmalloc"), (has("mi_malloc"), "mimalloc"), (is_libc && is_glibc(names), "glibc"), (is_libc, "musl")];
    match known.iter().find(|(yes, _)| *yes) {
        Some((_, name)) => (*name).to_owned(),
        None if module.is_executable => "exported by the executable".into(),
        None => format!("malloc of {}", module.name()),
    }
}

fn c_functions(names: &Names, prefix: &str) -> Vec<Function> {
    let hooks = HOOKS.iter().filter(|hook| hook.role != Role::Map);
    hooks.filter_map(|hook| function(names, &format!("{prefix}{}", hook.symbol), hook.kind as u8, hook.shape)).collect()
}

fn mapping_functions(names: &Names) -> Vec<Function> {
    let hooks = HOOKS.iter().filter(|hook| hook.role == Role::Map);
    hooks.filter_map(|hook| function(names, hook.symbol, hook.kind as u8, hook.shape)).collect()
}

fn watched(names: &Names, wanted: impl Fn(Shape) -> bool) -> Vec<Function> {
    let shapes = WATCHED.iter().filter_map(|name| Some((*name, watched_shape(name)?)));
    let found = shapes.filter(|(_, shape)| wanted(*shape)).filter_map(|(name, shape)| function(names, name, 0, shape));
    found.map(|function| Function { places: Places { block: environment_of(&function.name), ..Places::NONE }, ..function }).collect()
}

/// Which argument is the environment of the program that a function begins. The others of its kind call one of these.
fn environment_of(name: &str) -> u8 {
    match name {
        "execve" | "fexecve" => 2,
        "execveat" => 3,
        _ => NO_ARGUMENT,
    }
}

fn listed(names: &Names, origin: Origin, prefix: &str) -> Vec<Function> {
    PATCHES.iter().filter(|patch| patch.origin == origin).filter_map(|patch| listed_function(names, patch, prefix)).collect()
}

fn listed_function(names: &Names, patch: &Patch, prefix: &str) -> Option<Function> {
    let mut function = function(names, &format!("{prefix}{}", patch.symbol), patch.kind as u8, patch.shape)?;
    // Without its other half a throwing operator is called like any function: where the half is missing the operator cannot fail
    // otherwise than by throwing through our frame, which has no unwind rules. It is left out then.
    if let Some(nothrow) = patch.nothrow {
        function.nothrow = Some(names.get(nothrow)?.0);
    }
    function.places = patch.places;
    function.flags = patch.flags;
    Some(function)
}

fn function(names: &Names, name: &str, kind: u8, shape: Shape) -> Option<Function> {
    Some(Function::new(name, *names.get(name)?, kind, shape))
}

/// What allocates in the module and cannot be patched because nothing says where it is, or how it takes its arguments.
pub fn not_covered(module: &Module, memory: &Memory, found: &[Family]) -> Vec<(String, String)> {
    let mut missing = Vec::new();
    let named = |name: &str| found.iter().any(|family| family.name.starts_with(name));
    let messages = if module.is_executable { module.mentions([b"<jemalloc>", b"mimalloc: ", b"tcmalloc: "]) } else { [false; 3] };
    for (name, is_mentioned) in ["jemalloc", "mimalloc", "tcmalloc"].into_iter().zip(messages) {
        if is_mentioned && !named(name) {
            missing.push((
                name.to_owned(),
                "it is linked in, but its symbols are stripped or incomplete: hound cannot tell where it is".to_owned(),
            ));
        }
    }
    if found.is_empty() {
        return missing;
    }
    let names = names(module, memory);
    let is_found = |name: &str| names.get(name).is_some_and(|(at, _)| found.iter().any(|f| f.functions.iter().any(|f| f.address == *at)));
    let lists = |patch: &&Patch| match patch.origin {
        Origin::Mimalloc => named("mimalloc"),
        Origin::Snmalloc => named("snmalloc"),
        Origin::Tcmalloc => named("tcmalloc"),
        Origin::Operator => found.iter().any(|f| f.functions.iter().any(|f| f.kind == Kind::Delete as u8)),
        Origin::Glibc | Origin::Jemalloc => false,
    };
    let throwing = PATCHES.iter().filter(|patch| patch.nothrow.is_some() && lists(patch));
    for patch in throwing.filter(|patch| names.contains_key(patch.symbol) && !is_found(patch.symbol)) {
        let why = format!("it may throw, and {}, to be called in its place, is not there", patch.nothrow.unwrap_or_default());
        missing.push((patch.symbol.to_owned(), why));
    }
    if named("mimalloc") {
        let known = |name: &str| PATCHES.iter().any(|patch| patch.symbol == name);
        let allocates = |name: &&str| name.starts_with("mi_") && name.ends_with("alloc") && !name.starts_with("mi_heap_alloc");
        let mut unknown: Vec<&str> = names.keys().map(String::as_str).filter(allocates).filter(|name| !known(name)).collect();
        unknown.sort_unstable();
        if !unknown.is_empty() {
            missing.push((unknown.join(", "), "hound has no hook for their arguments".to_owned()));
        }
    }
    missing
}

/// The kind of a custom pool's function.
pub fn pool_kind(role: crate::custom::PoolRole) -> (Kind, Shape) {
    match role {
        crate::custom::PoolRole::Alloc => (Kind::PoolAlloc, Shape::PoolAlloc),
        crate::custom::PoolRole::Free => (Kind::PoolFree, Shape::PoolFree),
        crate::custom::PoolRole::Realloc => (Kind::PoolRealloc, Shape::PoolRealloc),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malloc_that_calls_tcmallocs_is_not_taken_for_it() {
        let names = |malloc: u64| {
            let list = [("malloc", malloc), ("tc_malloc", 0x100), ("calloc", 0x200), ("tc_calloc", 0x200)];
            list.into_iter().map(|(name, at)| (name.to_owned(), (at, 16))).collect::<Names>()
        };
        assert!(is_tcmalloc(&names(0x100), ""));
        assert!(!is_tcmalloc(&names(0x300), ""));
        assert!(!is_tcmalloc(&names(0x100), "je_"));
        assert!(!is_tcmalloc(&Names::new(), ""));
    }
}
