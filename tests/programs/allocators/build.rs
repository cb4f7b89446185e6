//! Compiles the C part for the allocator that is to be linked.

fn main() {
    let family = if std::env::var_os("CARGO_FEATURE_MIMALLOC").is_some() { "FAMILY_MIMALLOC" } else { "FAMILY_JEMALLOC" };
    println!("cargo::rerun-if-changed=../attach_family.c");
    println!("cargo::rerun-if-changed=../mode_switching.c");
    println!("cargo::rerun-if-changed=../oracle.h");
    for (name, main) in [("attach_family", None), ("mode_switching", Some("switching_main"))] {
        let mut build = cc::Build::new();
        if let Some(main) = main {
            build.define("main", main);
        }
        build.file(format!("../{name}.c")).define(family, None).flag("-fno-builtin").opt_level(2).debug(true);
        build.link_lib_modifier("+whole-archive").compile(name);
    }
}
