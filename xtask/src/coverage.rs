//! `cargo xtask coverage`: which share of the program counters of real binaries the unwind rows cover.

use crate::setup::{self, Purpose};
use crate::{Verdict, compile, exec, place};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// The standard set where no files are named: the C and C++ libraries, python, and hound itself as a large Rust binary.
fn standard_set() -> Result<Vec<PathBuf>> {
    setup::ensure(&[Purpose::Test])?;
    compile::build()?;
    let libraries = PathBuf::from("/usr/lib/x86_64-linux-gnu");
    let candidates = ["libc.so.6", "libstdc++.so.6", "libpython3.11.so.1.0"].map(|name| libraries.join(name));
    let mut files: Vec<PathBuf> = candidates.into_iter().filter(|file| file.exists()).collect();
    files.extend([PathBuf::from("/usr/bin/python3"), place::hound()]);
    Ok(files)
}

/// `cargo xtask coverage [FILES]`.
pub fn task(files: &[PathBuf]) -> Result<Verdict> {
    let files = if files.is_empty() { standard_set()? } else { files.to_vec() };
    if let Some(missing) = files.iter().find(|file| !file.is_file()) {
        bail!("there is no file {}", missing.display());
    }
    let mut command = Command::new(place::cargo());
    command.args(["run", "--release", "--package", "hound-unwind", "--example", "coverage", "--"]).args(&files);
    exec::run(command.current_dir(place::workspace()))?;
    Ok(Verdict::Good)
}
