//! A Rust program whose global allocator is snmalloc, linked statically.

// Linked for its library; the C part calls it the way the crate does.
use snmalloc_rs as _;

fn main() {
    std::process::exit(hound_allocators::serve());
}
