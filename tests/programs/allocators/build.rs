//! Compiles the C part for the allocator that is to be linked.

fn main() {
    let has = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    let family = match (has("MIMALLOC"), has("SNMALLOC_RS")) {
        (true, _) => "FAMILY_MIMALLOC",
        (_, true) => "FAMILY_SNMALLOC",
        _ => "FAMILY_JEMALLOC",
    };
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
