//! `cargo xtask test`: set up, build, run every test, and end with totals and with what was not tested.

use crate::setup::{self, Purpose};
use crate::skips::Summary;
use crate::{Verdict, compile, exec, place};
use anyhow::{Context, Result};
use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

/// With this variable set, tests fail where they would skip (except for what this kind of machine does not have).
pub const NO_SKIP: &str = "HOUND_NO_SKIP";

/// `cargo xtask test [-- ARGS]`.
pub fn task(args: &[String]) -> Result<Verdict> {
    setup::ensure(&[Purpose::Test])?;
    compile::build()?;
    compile::build_for_tests()?;
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
    command.args(["test", "--no-fail-fast"]).args(args);
    command.current_dir(place::workspace()).env("HOUND_BIN_DIR", place::binaries());
    eprintln!("+ {}", exec::shown(&command));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().context("cargo's output is not piped")?;
    let stderr = child.stderr.take().context("cargo's messages are not piped")?;
    let mut summary = thread::scope(|scope| {
        let messages = scope.spawn(|| summed(stderr, io::stderr()));
        let mut summary = summed(stdout, io::stdout())?;
        summary.add(messages.join().ok().context("reading cargo's messages panicked")??);
        anyhow::Ok(summary)
    })?;
    summary.skipped.sort();
    Ok((child.wait().context("cannot wait for cargo")?, summary))
}

/// Passes every line on and sums them up.
fn summed(from: impl Read, mut to: impl Write) -> Result<Summary> {
    let mut summary = Summary::default();
    for line in BufReader::new(from).split(b'\n') {
        let line = line.context("cannot read what the tests print")?;
        let line = String::from_utf8_lossy(&line);
        summary.line(&line);
        writeln!(to, "{line}").context("cannot pass on what the tests print")?;
    }
    Ok(summary)
}
