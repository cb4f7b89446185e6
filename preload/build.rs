//! How libhound.so is linked: nothing needed, nothing started, everything bound at load.

fn main() {
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-Wl,-soname,libhound.so",
        // Each part of the file is mapped once, and addresses are places in the file: perf takes a probe's address for its place, and the
        // kernel finds a probe's counter of listeners in the first writable mapping of its place.
        "-Wl,-z,separate-loadable-segments",
        "-Wl,-z,now",
        "-Wl,-z,relro",
        "-Wl,--gc-sections",
        "-Wl,--eh-frame-hdr",
        "-Wl,--build-id",
    ] {
        println!("cargo:rustc-cdylib-link-arg={arg}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
