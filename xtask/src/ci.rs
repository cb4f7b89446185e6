//! `cargo xtask ci`: what `.ci/run` does.

use crate::{Verdict, compile, ebpf, test};
use anyhow::{Context, Result};
use std::env;
use std::process::Command;

/// Format and lints first, for they are quick; then the programs for the kernel; then all tests, with skips turned into failures.
pub fn task() -> Result<Verdict> {
    compile::cargo(&["fmt", "--check"]).context("run `cargo fmt`")?;
    compile::cargo(&["fmt", "--check", "--manifest-path", "hound-ebpf/Cargo.toml"]).context("run `cargo fmt` in hound-ebpf")?;
    compile::cargo(&["clippy", "--all-targets", "--", "--deny", "warnings"])?;
    compile::cargo(&["clippy", "--package", "hound-user", "--features", "death", "--", "--deny", "warnings"])?;
    // Without --all-targets: the library has no test harness, for it has no standard library.
    compile::cargo(&["clippy", "--profile", "preload", "--package", "hound-preload", "--", "--deny", "warnings"])?;
    // The committed object against its source: seconds where the linker is in the cache, two minutes on a fresh machine.
    if ebpf::check()? == Verdict::Bad {
        return Ok(Verdict::Bad);
    }
    tests()
}

/// In a process of its own, whose environment says that nothing may be skipped.
fn tests() -> Result<Verdict> {
    let this = env::current_exe().context("cannot find this program")?;
    let ended = crate::exec::status(Command::new(this).arg("test").env(test::NO_SKIP, "1"))?;
    Ok(if ended.success() { Verdict::Good } else { Verdict::Bad })
}
