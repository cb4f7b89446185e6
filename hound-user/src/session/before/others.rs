//! Allocators whose blocks cannot be told from outside, and why.

use std::path::Path;

use object::{Object, ObjectSymbol};

use super::Heap;
use super::memory::{Area, What};

/// Symbols looked at in the executable: an allocator linked into it is among them, if it was not stripped.
const SYMBOLS_AT_MOST: usize = 1 << 21;

struct Known {
    name: &'static str,
    /// How the file names of its library begin.
    files: &'static [&'static str],
    /// A function that stands for it, by the end of its name: builds put a prefix before it.
    symbols: &'static [&'static str],
    why: &'static str,
}

const KNOWN: [Known; 4] = [
    Known {
        name: "jemalloc",
        files: &["libjemalloc"],
        symbols: &["mallctlnametomib"],
        why: "its extents are reached through structures whose layout is private to each build, and asking its mallctl would run code in the target",
    },
    Known {
        name: "tcmalloc",
        files: &["libtcmalloc"],
        symbols: &["tc_malloc_skip_new_handler", "TCMalloc_Internal_GetStats", "MallocExtension_Internal_GetStats"],
        why: "spans and per-thread or per-CPU caches have a layout private to each build, and a block in a cache looks like one in use",
    },
    Known {
        name: "mimalloc",
        files: &["libmimalloc"],
        symbols: &["mi_heap_visit_blocks"],
        why: "its pages are owned by threads that change them without a lock, and their layout is private to each build",
    },
    Known {
        name: "musl",
        files: &["ld-musl-", "libc.musl-"],
        symbols: &["__malloc_donate"],
        why: "its group metadata lie in secret places and have no exported root; a block's header alone does not say that it is in use",
    },
];

/// The allocators found by the name of a loaded library or by a symbol of the executable.
pub fn look(pid: u32, areas: &[Area]) -> Vec<Heap> {
    let paths: Vec<&Path> =
        areas.iter().filter_map(|area| if let What::Code(path) = &area.what { Some(path.as_path()) } else { None }).collect();
    let symbols = symbols(pid);
    let is_there = |known: &&Known| {
        let named = |path: &&Path| {
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            known.files.iter().any(|file| name.starts_with(file))
        };
        paths.iter().any(named) || known.symbols.iter().any(|symbol| symbols.iter().any(|found| found.ends_with(symbol)))
    };
    KNOWN.iter().filter(is_there).map(|known| Heap::NotSound { allocator: known.name.into(), why: known.why.into() }).collect()
}

/// Those of the executable's function names that stand for an allocator.
fn symbols(pid: u32) -> Vec<String> {
    let found = || -> Option<Vec<String>> {
        let file = std::fs::File::open(format!("/proc/{pid}/exe")).ok()?;
        // Only the pages that the tables lie on are read: an executable may have gigabytes of debug information.
        let cache = object::ReadCache::new(file);
        let file = object::File::parse(&cache).ok()?;
        let names = file.dynamic_symbols().chain(file.symbols()).take(SYMBOLS_AT_MOST);
        let defined = names.filter(|symbol| symbol.is_definition()).filter_map(|symbol| symbol.name().ok());
        let telling = |name: &&str| KNOWN.iter().flat_map(|known| known.symbols).any(|symbol| name.ends_with(symbol));
        Some(defined.filter(telling).map(str::to_owned).collect())
    };
    found().unwrap_or_default()
}
