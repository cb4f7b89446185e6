//! A Rust program with jemalloc linked statically by the `jemallocator` crate; the C part calls it the way the crate does.

use jemallocator as _;

unsafe extern "C" {
    fn attach_family_main() -> i32;
}

fn main() {
    // SAFETY: a C function without preconditions.
    let status = unsafe { attach_family_main() };
    std::process::exit(status);
}
