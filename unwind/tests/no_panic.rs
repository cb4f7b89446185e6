//! The step contains no panic at all: compiled by itself with a panic handler that calls a missing function, it links.
//!
//! (What `evaluate` adds cannot be shown like this, since gimli asserts its own invariants; see damaged_sections.rs.)

use std::path::Path;
use std::process::{Command, Output};

/// A library of the stepping modules and `function`, which fails to link if a panic remains after optimisation.
fn link(name: &str, function: &str) -> Output {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules = ["end", "row", "step"].map(|module| format!("#[path = \"{}/{module}.rs\"] mod {module};", sources.display()));
    let root = format!(
        "#![no_std]
        {}
        pub use {{end::*, row::*, step::*}};
        unsafe extern \"C\" {{ safe fn a_panic_is_reachable() -> !; }}
        #[panic_handler] fn panicked(_: &core::panic::PanicInfo) -> ! {{ a_panic_is_reachable() }}
        fn read(at: u64) -> Option<u64> {{ (at > 4096).then(|| unsafe {{ *(at as *const u64) }}) }}
        {function}",
        modules.join("\n")
    );
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = directory.join(format!("{name}.rs"));
    std::fs::write(&source, root).expect("cargo's directory for temporary files is writable");
    Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition=2024", "--crate-type=cdylib", "-Copt-level=3", "-Cpanic=abort", "-Clink-arg=-nostdlib"])
        .args(["-Clink-arg=-Wl,-z,defs", "--cap-lints=allow", "-o"])
        .args([directory.join(format!("lib{name}.so")), source])
        .output()
        .expect("rustc compiled this test, so it runs")
}

#[test]
fn stepping_links_without_a_panic_handler() {
    let function = "
        #[unsafe(no_mangle)] extern \"C\" fn fast(bits: &[u64; 2], regs: &mut Regs) -> bool {
            matches!(step(Row::from_bits(*bits), regs, read), Stepped::Frame { .. })
        }
        #[unsafe(no_mangle)] extern \"C\" fn full(bits: &[u64; 2], regs: &mut FullRegs) -> bool {
            matches!(step_full(Row::from_bits(*bits), regs, read), Stepped::Frame { .. })
        }";
    let output = link("without_panic", function);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_step_with_a_panic_in_it_does_not_link() {
    let function = "
        #[unsafe(no_mangle)] extern \"C\" fn fast(bits: &[u64; 2], regs: &mut Regs, words: &[u64; 9]) -> bool {
            matches!(step(Row::from_bits(*bits), regs, |at| Some(words[at as usize])), Stepped::Frame { .. })
        }";
    let output = link("with_panic", function);
    assert!(!output.status.success(), "or the other test shows nothing");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("a_panic_is_reachable"), "{error}");
}
