//! Where a site starts and ends for a person. It starts at the first frame that is not the allocator's or a wrapper that only passes a request on to it,
//! and ends at `main` or the thread's function: what calls those is the same for every program.
//!
//! The choice is for showing and for grouping by function; every report can show full stacks.

use crate::symbols::{Frame, KERNEL};

/// How many innermost frames of a call path belong to allocation itself. Never all of them.
pub fn site_start(frames: &[Frame<'_>]) -> usize {
    let start = frames.iter().take_while(|frame| is_wrapper(frame)).count();
    if start == frames.len() { 0 } else { start }
}

/// Where the frames end that a program's author would call theirs. Never before [`site_start`] plus one.
pub fn site_end(frames: &[Frame<'_>]) -> usize {
    let below = |frame: &&Frame<'_>| BELOW_MAIN.contains(&frame.function) || frame.function.starts_with("__libc_start_main");
    let end = frames.len() - frames.iter().rev().take_while(below).count();
    end.max(site_start(frames) + 1).min(frames.len())
}

const BELOW_MAIN: &[&str] = &["_start", "__libc_start_call_main", "start_thread", "clone3", "clone", "__clone", "__clone3"];

/// Prefixes of functions that only hand a request on.
const PREFIXES: &[&str] = &[
    // C++
    "operator new",
    "__gnu_cxx::new_allocator<",
    "__gnu_cxx::malloc_allocator<",
    "__gnu_cxx::__alloc_traits<",
    "std::__new_allocator<",
    "std::allocator<",
    "std::allocator_traits<",
    "std::__allocate_guarded",
    "std::pmr::",
    // Rust
    "alloc::",
    "<alloc::",
    "__rust_alloc",
    "__rust_realloc",
    "__rustc::__rust_",
    "__rdl_",
    "__rustc::__rdl_",
    "__rg_",
    "std::alloc::",
    "<std::alloc::System",
    "std::sys::alloc::",
    "<T as alloc::",
    "<I as alloc::",
];

/// libc's own entry points, met where the hook sits below them or where one calls another.
const EXACT: &[&str] =
    &["malloc", "calloc", "realloc", "reallocarray", "posix_memalign", "aligned_alloc", "memalign", "valloc", "pvalloc", "__libc_malloc"];

/// What touches memory for its caller, in an allocator or a libc, under one of many names: `__memset_avx2_unaligned_erms`.
const INNER: &[&str] =
    &["_int_malloc", "_int_realloc", "_int_memalign", "sysmalloc", "sysmalloc_mmap", "tcache_init", "__libc_calloc", "__libc_realloc"];
const FILLING: &[&str] = &["memset", "memcpy", "memmove", "mempcpy", "bzero"];

/// Prefixes of the kernel's own: slabs, pages, per-CPU memory.
const IN_THE_KERNEL: &[&str] = &[
    "kmalloc",
    "__kmalloc",
    "___kmalloc",
    "kvmalloc",
    "__kvmalloc",
    "krealloc",
    "kmemdup",
    "kstrdup",
    "kmem_cache_alloc",
    "__kmem_cache_alloc",
    "slab_post_alloc",
    "alloc_pages",
    "__alloc_pages",
    "alloc_frozen_pages",
    "__alloc_frozen_pages",
    "___alloc_pages",
    "folio_alloc",
    "__folio_alloc",
    "vma_alloc_folio",
    "get_free_pages",
    "__get_free_pages",
    "get_zeroed_page",
    "pcpu_alloc",
    "__alloc_percpu",
];

fn is_wrapper(frame: &Frame<'_>) -> bool {
    let module = frame.module.rsplit('/').next().unwrap_or("");
    if frame.module == KERNEL {
        return IN_THE_KERNEL.iter().any(|prefix| frame.function.starts_with(prefix));
    }
    if module.starts_with("libhound.so") || EXACT.contains(&frame.function) || INNER.contains(&frame.function) {
        return true;
    }
    let bare = frame.function.trim_start_matches('_');
    let is_variant = |rest: &str| rest.is_empty() || ["_avx", "_sse", "_erms", "_unaligned", "_evex"].iter().any(|of| rest.starts_with(of));
    if FILLING.iter().any(|name| bare.strip_prefix(name).is_some_and(is_variant)) {
        return true;
    }
    // The return type of a template function comes first in a C++ name: "std::pair<…> std::allocator<…>::allocate()" is not met, for
    // allocators' members are no templates. So a prefix is enough.
    PREFIXES.iter().any(|prefix| frame.function.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(functions: &[&str]) -> usize {
        let frame = |function: &&'static str| Frame { function, location: None, module: "/bin/x", inlined: false };
        let functions: Vec<&'static str> = functions.iter().map(|name| &*name.to_string().leak()).collect();
        site_start(&functions.iter().map(frame).collect::<Vec<_>>())
    }

    #[test]
    fn a_site_ends_at_main() {
        let frame = |function| Frame { function, location: None, module: "/bin/x", inlined: false };
        let stack = ["f", "main", "__libc_start_call_main", "__libc_start_main_impl", "_start"].map(frame);
        assert_eq!((site_end(&stack), site_end(&stack[2..]), site_end(&[])), (2, 1, 0));
    }

    #[test]
    fn a_site_starts_at_the_first_frame_that_is_no_allocator() {
        assert_eq!(start(&["session_table::insert", "main"]), 0);
        let cpp = "std::__new_allocator<int>::allocate(unsigned long, void const*)";
        assert_eq!(start(&["operator new(unsigned long)", cpp, "std::vector<int>::push_back(int const&)", "main"]), 2);
        assert_eq!(start(&["alloc::alloc::alloc", "<alloc::raw_vec::RawVec<T,A>>::grow_one", "app::load", "main"]), 2);
        assert_eq!(start(&["malloc", "operator new(unsigned long)"]), 0);
        assert_eq!(start(&["__memset_avx2_unaligned_erms", "fill", "main"]), 1);
        assert_eq!(start(&["sysmalloc", "_int_malloc", "malloc", "load", "main"]), 3);
        assert_eq!(start(&["memcpy_all", "main"]), 0);
    }
}
