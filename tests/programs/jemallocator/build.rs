//! Compiles the C part.

fn main() {
    println!("cargo::rerun-if-changed=../attach_family.c");
    println!("cargo::rerun-if-changed=../oracle.h");
    cc::Build::new()
        .file("../attach_family.c")
        .define("FAMILY_JEMALLOC", None)
        .flag("-fno-builtin")
        .opt_level(2)
        .debug(true)
        .link_lib_modifier("+whole-archive")
        .compile("attach_family");
}
