//! A Rust program whose global allocator is mimalloc, linked statically.

// Linked for its library; the C part calls it the way the crate does.
use mimalloc as _;

fn main() {
    std::process::exit(hound_allocators::serve());
}
