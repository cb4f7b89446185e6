//! A Rust program whose global allocator is jemalloc, linked statically with a prefix.

// Linked for its library; the C part calls it the way the crate does.
use tikv_jemallocator as _;

fn main() {
    std::process::exit(hound_allocators::serve());
}
