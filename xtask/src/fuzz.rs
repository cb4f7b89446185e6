//! `cargo xtask fuzz`: every fuzz target for a bounded time.
//!
//! Fuzzing needs a nightly toolchain and cargo-fuzz, which nothing else here does; therefore it is no part of `ci`.
//! What fuzzing finds becomes an ordinary test with the input written out.

use crate::{Verdict, exec, place};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs;
use std::process::{Command, Stdio};

/// The options of `cargo xtask fuzz`.
#[derive(Args)]
pub struct Options {
    /// The targets to run (all of them without a name)
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Runs the targets one after the other; the first crash ends the task.
pub fn task(options: &Options) -> Result<Verdict> {
    let known = targets()?;
    let chosen = if options.targets.is_empty() { &known } else { &options.targets };
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target {unknown}; there are: {}", known.join(", "));
    }
    let ready = Command::new("cargo").args(["+nightly", "fuzz", "--version"]).stdin(Stdio::null()).output();
    if !ready.is_ok_and(|asked| asked.status.success()) {
        bail!("fuzzing needs cargo-fuzz and a nightly toolchain: rustup toolchain install nightly && cargo install cargo-fuzz");
    }
    for target in chosen {
        // Plain "cargo": the one that runs this task belongs to one toolchain and does not know of others.
        let mut command = Command::new("cargo");
        command.args(["+nightly", "fuzz", "run", target, "--", "-rss_limit_mb=4096"]).arg(format!("-max_total_time={}", options.seconds));
        if !exec::status(command.current_dir(place::workspace().join("tests")).env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO"))?
            .success()
        {
            println!("fuzz: {target} found a failing input; its place is printed above");
            return Ok(Verdict::Bad);
        }
    }
    println!("fuzz: {} ran for {} s each and found nothing", chosen.join(", "), options.seconds);
    Ok(Verdict::Good)
}

fn targets() -> Result<Vec<String>> {
    let folder = place::workspace().join("tests/fuzz/fuzz_targets");
    let files = fs::read_dir(&folder).with_context(|| format!("there are no fuzz targets in {}", folder.display()))?;
    let mut names: Vec<String> =
        files.flatten().filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".rs")?.to_owned())).collect();
    names.sort();
    Ok(names)
}
