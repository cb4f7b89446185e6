//! Compiles the C part for the allocator that is to be linked.

fn main() {
    let family = if std::env::var_os("CARGO_FEATURE_MIMALLOC").is_some() { "FAMILY_MIMALLOC" } else { "FAMILY_JEMALLOC" };
    println!("cargo::rerun-if-changed=../attach_family.c");
    println!("cargo::rerun-if-changed=../oracle.h");
    cc::Build::new()
        .file("../attach_family.c")
        .define(family, None)
        .flag("-fno-builtin")
        .opt_level(2)
        .debug(true)
        .link_lib_modifier("+whole-archive")
        .compile("attach_family");
}
