//! `cargo xtask build`: the `hound` binary and `libhound.so` for release, side by side.
//!
//! The library has its own profile (no unwinding runtime, one codegen unit), so cargo puts it into another directory;
//! hound looks for it beside itself. A library that asks anything of the process it is loaded into is refused here,
//! before it can harm one.

use crate::{Verdict, artefact, exec, place};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

/// `cargo xtask build`.
pub fn task() -> Result<Verdict> {
    build()?;
    println!("build: {} and libhound.so beside it", place::hound().display());
    Ok(Verdict::Good)
}

/// Builds both artefacts and examines the library.
pub fn build() -> Result<()> {
    cargo(&["build", "--release", "--package", "hound-user", "--bin", "hound"])?;
    cargo(&["build", "--profile", "preload", "--package", "hound-preload"])?;
    let built = place::target().join("preload/libhound.so");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let faults = artefact::faults(&bytes).with_context(|| format!("cannot examine {}", built.display()))?;
    if !faults.is_empty() {
        bail!("{} must not be loaded into any process: {}", built.display(), faults.join("; "));
    }
    install(&bytes, &place::binaries().join("libhound.so"))
}

/// Builds what only tests need: the hound that dies where it is told to. A binary of its own, so that the feature is in no other.
pub fn build_for_tests() -> Result<()> {
    cargo(&["build", "--release", "--package", "hound-user", "--features", "death", "--bin", "hound-death"])
}

/// Runs cargo in the workspace, in sight of the user.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    exec::run(Command::new(place::cargo()).args(arguments).current_dir(place::workspace()))
}

/// Puts the library in place by a rename: a process that has the old one mapped keeps it, and no one ever sees half of the new one.
fn install(bytes: &[u8], to: &Path) -> Result<()> {
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let part = to.with_extension("so.part");
    fs::write(&part, bytes).and_then(|()| fs::rename(&part, to)).with_context(|| format!("cannot write {}", to.display()))
}
