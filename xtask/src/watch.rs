//! Running a target, alone or under a profiler, and watching the target itself from outside in the same way in every case.
//!
//! A profiler's command may start before the target (a shell script around it) and end long after it (an interpreter, a
//! report). What a user of the target waits for is the target, so its end is what is timed: it is found among the
//! command's descendants by the file it executes, and the kernel's pidfd tells the moment of its death. Its peak memory
//! is read from `/proc` until then.

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a command may take to start its target.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long one run may take.
const RUN_LIMIT: Duration = Duration::from_secs(300);

/// One run.
pub struct Watched {
    /// From the start of the command to the end of the target.
    pub to_target_end: Duration,
    /// The target's largest resident size, in bytes, shared pages included.
    pub peak_bytes: u64,
    /// Processor time of the command and all it started.
    pub cpu: Duration,
    /// What was written to standard output.
    pub stdout: String,
}

/// Runs `command` and watches the descendant (or the command itself) that executes `target`. Output goes to files in `scratch`.
pub fn watch(command: &mut Command, target: &Path, scratch: &Path) -> Result<Watched> {
    let target = fs::canonicalize(target).with_context(|| format!("there is no {}", target.display()))?;
    let (stdout, stderr) = (scratch.join("stdout"), scratch.join("stderr"));
    let create = |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
    command.stdin(Stdio::null()).stdout(create(&stdout)?).stderr(create(&stderr)?);

    let cpu_before = children_cpu()?;
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let seen = follow(&mut child, &target, start);
    if seen.is_err() {
        stop_all(child.id()); // what a broken run left behind must not disturb the next one
    }
    let ended = child.wait().context("cannot wait for the command")?;
    let said = fs::read_to_string(&stderr).unwrap_or_default();
    let (to_target_end, peak_bytes) = seen.with_context(|| match said.trim() {
        "" => "it said nothing".to_owned(),
        words => format!("it said: {words}"),
    })?;
    if !ended.success() {
        bail!("{} failed ({ended}): {}", command.get_program().display(), said.trim());
    }
    let cpu = children_cpu()?.saturating_sub(cpu_before);
    let stdout = fs::read_to_string(&stdout).context("cannot read what the target printed")?;
    Ok(Watched { to_target_end, peak_bytes, cpu, stdout })
}

/// Waits for the target's end; returns when that was and its peak memory.
fn follow(child: &mut Child, target: &Path, start: Instant) -> Result<(Duration, u64)> {
    let (pid, pidfd) = loop {
        if let Some(found) = executing(child.id(), target) {
            break found;
        }
        if let Some(ended) = child.try_wait().context("cannot wait for the command")? {
            bail!("the command ended ({ended}) before its target {} was seen", target.display());
        }
        if start.elapsed() > START_LIMIT {
            bail!("the target {} was not started within {} s", target.display(), START_LIMIT.as_secs());
        }
        thread::sleep(Duration::from_micros(500)); // there is nothing to wait on until the process is known
    };
    let mut peak = 0;
    loop {
        peak = peak_of(pid).unwrap_or(0).max(peak);
        if died(&pidfd, Duration::from_millis(10))? {
            return Ok((start.elapsed(), peak));
        }
        if start.elapsed() > RUN_LIMIT {
            bail!("the target {} ran for more than {} s", target.display(), RUN_LIMIT.as_secs());
        }
    }
}

/// Waits up to `limit` for the process's end.
fn died(pidfd: &OwnedFd, limit: Duration) -> Result<bool> {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("cannot wait for the target"),
    }
}

/// The process below and including `root` that executes `target`.
fn executing(root: u32, target: &Path) -> Option<(u32, OwnedFd)> {
    let raw = i32::try_from(root).ok().and_then(Pid::from_raw)?;
    // The descriptor first: if the process ends in between and its number is used again, the look at its file already fails or is right.
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
    if fs::read_link(format!("/proc/{root}/exe")).is_ok_and(|exe| exe == target) {
        return Some((root, pidfd));
    }
    children(root).into_iter().find_map(|child| executing(child, target))
}

/// Kills a process that this task started, and what that started.
fn stop_all(root: u32) {
    let below = children(root);
    if let Some(pid) = i32::try_from(root).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL); // it may have ended by itself
    }
    below.into_iter().for_each(stop_all);
}

/// The children of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// The largest resident size of a process so far; none once it has ended.
fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Processor time of all waited-for children of this process, and theirs: fields 16 and 17 of `stat`, in clock ticks of 10 ms.
fn children_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Vec<u64> = after_name.split_whitespace().skip(13).take(2).filter_map(|field| field.parse().ok()).collect();
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place;

    #[test]
    fn the_target_is_found_below_a_shell_and_its_end_is_not_the_shells() {
        let scratch = place::scratch("test-watch-below").unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "/bin/sleep 0.2; echo done; /usr/bin/timeout 0.3 /usr/bin/tail -f /dev/null; true"]);
        let start = Instant::now();
        let seen = watch(&mut command, Path::new("/bin/sleep"), &scratch).unwrap();
        assert_eq!(seen.stdout, "done\n");
        assert!(seen.to_target_end >= Duration::from_millis(200), "{:?}", seen.to_target_end);
        assert!(start.elapsed() > seen.to_target_end + Duration::from_millis(100));
        assert!(seen.peak_bytes > 100_000, "{}", seen.peak_bytes);
    }

    #[test]
    fn a_command_that_never_starts_its_target_is_an_error_that_quotes_it() {
        let scratch = place::scratch("test-watch-never").unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo no such thing >&2; exit 3"]);
        let error = watch(&mut command, Path::new("/bin/sleep"), &scratch).err().expect("it must fail");
        assert!(format!("{error:#}").contains("no such thing"), "{error:#}");
    }
}
