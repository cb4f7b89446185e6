//! How libhound.so is linked: nothing needed, nothing started, everything bound at load.

fn main() {
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-Wl,-soname,libhound.so",
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
