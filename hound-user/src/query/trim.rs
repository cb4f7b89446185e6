//! Where a site starts: the first frame that is not the allocator's or a wrapper that only passes a request on to it.
//!
//! The choice is for showing and for grouping by function; every report can show full stacks.

use crate::symbols::Frame;

/// How many innermost frames of a call path belong to allocation itself. Never all of them.
pub fn site_start(frames: &[Frame<'_>]) -> usize {
    let start = frames.iter().take_while(|frame| is_wrapper(frame)).count();
    if start == frames.len() { 0 } else { start }
}

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

fn is_wrapper(frame: &Frame<'_>) -> bool {
    let module = frame.module.rsplit('/').next().unwrap_or("");
    if module.starts_with("libhound.so") || EXACT.contains(&frame.function) {
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
    fn a_site_starts_at_the_first_frame_that_is_no_allocator() {
        assert_eq!(start(&["session_table::insert", "main"]), 0);
        let cpp = "std::__new_allocator<int>::allocate(unsigned long, void const*)";
        assert_eq!(start(&["operator new(unsigned long)", cpp, "std::vector<int>::push_back(int const&)", "main"]), 2);
        assert_eq!(start(&["alloc::alloc::alloc", "<alloc::raw_vec::RawVec<T,A>>::grow_one", "app::load", "main"]), 2);
        assert_eq!(start(&["malloc", "operator new(unsigned long)"]), 0);
    }
}
