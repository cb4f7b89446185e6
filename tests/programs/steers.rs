//! steers.c in Rust, by the crate.
#[path = "../../preload/api/src/lib.rs"]
#[allow(dead_code, reason = "it uses a part of the crate")]
mod hound_api;

fn block(size: usize) {
    std::hint::black_box(Vec::<u8>::with_capacity(size));
}

fn main() {
    block(2001);
    hound_api::stop();
    block(2002);
    hound_api::start();
    hound_api::set_marker(77);
    block(2003);
    hound_api::sync();
    println!("{}", if hound_api::is_there() { "hound is there" } else { "nobody is there" });
}
