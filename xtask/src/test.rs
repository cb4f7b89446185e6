//! `cargo xtask test`: set up, build, run every test, and end with totals and with what was not tested.

use crate::setup::{self, Purpose};
use crate::skips::Summary;
use crate::{Verdict, compile, exec, place};
use anyhow::{Context, Result};
use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

/// With this variable set, tests fail where they would skip (except for what this kind of machine does not have).
pub const NO_SKIP: &str = "HOUND_NO_SKIP";

/// `cargo xtask test [-- ARGS]`.
pub fn task(args: &[String]) -> Result<Verdict> {
    setup::ensure(&[Purpose::Test])?;
    compile::build()?;
    let (ended, summary) = run(args)?;

    println!("\ntest: {} passed, {} failed, {} ignored", summary.passed, summary.failed, summary.ignored);
    for line in summary.skipped.iter().chain(&summary.absent) {
        println!("test: {line}");
    }
    let all_ran = summary.skipped.is_empty();
    if all_ran {
        println!("test: nothing was skipped");
    }
    let skips_fail = env::var_os(NO_SKIP).is_some_and(|value| value != "0");
    let good = ended.success() && summary.failed == 0 && (all_ran || !skips_fail);
    println!("test: {}", if good { "passed" } else { "FAILED" });
    Ok(if good { Verdict::Good } else { Verdict::Bad })
}

/// Runs `cargo test` over the default members with the release artefacts named in `HOUND_BIN_DIR`.
fn run(args: &[String]) -> Result<(ExitStatus, Summary)> {
    let mut command = Command::new(place::cargo());
    command.args(["test", "--no-fail-fast"]).args(with_output_shown(args));
    command.current_dir(place::workspace()).env("HOUND_BIN_DIR", place::binaries());
    eprintln!("+ {}", exec::shown(&command));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo's output is not piped")?;
    let mut summary = Summary::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        if summary.line(&line) {
            println!("{line}");
        }
    }
    Ok((child.wait().context("cannot wait for cargo")?, summary))
}

/// The arguments with `--show-output` among those meant for the test programs.
fn with_output_shown(args: &[String]) -> Vec<String> {
    let mut all = args.to_vec();
    if !all.iter().any(|arg| arg == "--") {
        all.push("--".to_owned());
    }
    all.push("--show-output".to_owned());
    all
}
