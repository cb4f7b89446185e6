//! What the figures were measured on.

use crate::exec;
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;
use std::thread;

/// One line: date, processor, cores, memory, kernel, commit.
pub fn description() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("unknown processor", |(_, model)| model);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    let date = exec::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let commit =
        exec::output(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=10"])).unwrap_or_else(|_| "unknown".to_owned());
    Ok(format!(
        "{}, {model}, {cores} cores, {} GiB, Linux {}, commit {}",
        date.trim(),
        kib.unwrap_or(0).div_ceil(1 << 20),
        kernel.trim(),
        commit.trim()
    ))
}
