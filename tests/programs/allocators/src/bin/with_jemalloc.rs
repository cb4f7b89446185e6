//! A Rust program whose global allocator is jemalloc, linked statically with a prefix.

// Linked for its library; the C part calls it the way the crate does.
use tikv_jemallocator as _;

/// What it does is said by its first argument: `switching`, or nothing.
fn main() {
    let switching = std::env::args().nth(1).is_some_and(|what| what == "switching");
    std::process::exit(if switching { hound_allocators::keep_and_drop() } else { hound_allocators::serve() });
}
