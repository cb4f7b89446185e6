//! `cargo xtask torture`: hound attached to and detached from a program that tortures itself, at random moments, for as long as one likes.
//!
//! The program (`tests/programs/attach_torture.cpp`) checks itself all along and says at its end what was wrong. Some visits end with
//! hound's death: the next one must repair what it left. A stall is what hound says it was.
//!
//! A hound that is killed in the moment in which it stops threads leaves those with EINTR whose call the kernel does not make again by itself
//! (signal(7)): from outside nothing can be done about that. The program counts it apart; no more may come than threads for each kill, and
//! none at all without kills.

use crate::{Verdict, compile, exec, json, place, setup};
use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long hound may take to attach, to detach, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the program may take to end after its time: it waits for the longest of its calls.
const PROGRAM_PATIENCE: Duration = Duration::from_secs(120);

/// How far behind its time a call of the program may end, without the time its thread waits for a processor or is stopped: one of 5 s that were
/// started anew would be later. For a socket's own timeout, which begins anew where hound is killed (docs/safety.md), the program itself allows more.
const LATE_MS: f64 = 2500.0;
/// The longest of the program's calls: the time of some begins anew where hound was killed (docs/safety.md).
const LONGEST_MS: f64 = 5000.0;

/// Options of `cargo xtask torture`.
#[derive(Args)]
pub struct Options {
    /// How long; 2 if it is not said. With --cycles: for how long at most
    #[arg(long)]
    minutes: Option<f64>,
    /// Of the random moments, and of the program
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads of the program
    #[arg(long, default_value_t = 32)]
    threads: u32,
    /// Never kill hound
    #[arg(long)]
    spare: bool,
    /// Instead: attach to and detach from a busy program of 32 threads so often, and look for what is left in it
    #[arg(long, conflicts_with_all = ["seed", "threads", "spare"])]
    cycles: Option<u32>,
}

impl Options {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.minutes.unwrap_or(2.0) * 60.0)
    }
}

/// What has been done so far.
#[derive(Default)]
struct Tally {
    cycles: u64,
    unloaded: u64,
    killed: u64,
    gave_up: u64,
    failures: Vec<String>,
    stalls_ms: Vec<f64>,
}

/// `cargo xtask torture`.
pub fn task(options: &Options) -> Result<Verdict> {
    setup::ensure(&[setup::Purpose::Test])?;
    if !rustix::process::geteuid().is_root() {
        bail!("torture attaches to a process of its own, stops it and kills hound on it: run it as root");
    }
    compile::build()?;
    if let Some(cycles) = options.cycles {
        let mut command = Command::new(place::cargo());
        command.args(["test", "-p", "hound-tests", "--test", "attach_cycles", "--", "--nocapture", "--test-threads=1"]);
        command.current_dir(place::workspace()).env("HOUND_BIN_DIR", place::binaries()).env("HOUND_CYCLES", cycles.to_string());
        if options.minutes.is_some() {
            command.env("HOUND_CYCLES_SECONDS", options.time().as_secs().to_string());
        }
        return Ok(if exec::status(&mut command)?.success() { Verdict::Good } else { Verdict::Bad });
    }
    let files = place::scratch("torture")?;
    let program = compiled("attach_torture.cpp", "attach_torture", &["g++", "-std=c++17", "-pthread"])?;
    let library = compiled("attach_library.c", "attach_library.so", &["gcc", "-fPIC", "-shared"])?;
    let time = options.time();
    let (stdout, stderr) = (files.join("program.stdout"), files.join("program.stderr"));
    let mut command = Command::new(program);
    command.args(["--seconds", &time.as_secs().to_string(), "--threads", &options.threads.to_string()]);
    command.args(["--seed", &options.seed.to_string(), "--late-ms", &LATE_MS.to_string(), "--library"]).arg(library);
    let mut program = spawned(&mut command, &stdout, &stderr)?;
    let tally = tortured(&mut program, options, &files, time);
    if tally.is_err() {
        let _ = program.kill(); // nothing of the torture may stay
    }
    let ended = exec::ended(&mut program, "the program", PROGRAM_PATIENCE)?;
    judge(&tally?, ended.success(), &read(&stdout), &read(&stderr), options)
}

/// Cycles until the time is over or the program ends.
fn tortured(program: &mut Child, options: &Options, files: &Path, time: Duration) -> Result<Tally> {
    let (mut tally, mut random) = (Tally::default(), Random(options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1));
    let stdout = files.join("program.stdout");
    awaited("the program is ready", || read(&stdout).contains("ready"))?;
    let start = Instant::now();
    while start.elapsed() + Duration::from_secs(3) < time {
        if let Some(ended) = program.try_wait().context("cannot wait for the program")? {
            tally.failures.push(format!("the program ended in cycle {} ({ended})", tally.cycles));
            break;
        }
        thread::sleep(Duration::from_millis(random.below(300))); // the moment is random on purpose
        if let Err(error) = cycle(program.id(), files, options.spare, &mut random, &mut tally) {
            tally.failures.push(format!("cycle {}: {error:#}", tally.cycles));
            if tally.failures.len() > 20 {
                break;
            }
        }
        tally.cycles += 1;
    }
    Ok(tally)
}

/// One visit: it ends by detaching, by detaching with `--unload`, or by hound's death at a random moment.
fn cycle(pid: u32, files: &Path, spare: bool, random: &mut Random, tally: &mut Tally) -> Result<()> {
    let (capture, said) = (files.join("capture.hound"), files.join("hound.stderr"));
    let _ = fs::remove_file(&capture); // of the cycle before
    let pid = pid.to_string();
    let mut command = Command::new(place::hound());
    // What is passed over goes other ways than what is recorded.
    let mode: &[&str] = if random.below(2) == 0 { &["--mode", "full"] } else { &["--mode", "sampled", "--engine", "library"] };
    command.args(["attach", "-p", &pid]).args(mode).arg("-o").arg(&capture);
    let mut hound = spawned(&mut command, &files.join("hound.stdout"), &said)?;
    let how = if spare { 2 + random.below(8) } else { random.below(10) };
    if how == 0 {
        thread::sleep(Duration::from_millis(random.below(600))); // while it attaches, or a little later
        return killed(&mut hound, tally);
    }
    let attached = awaited("hound has attached", || read(&said).contains("attached to") || !matches!(hound.try_wait(), Ok(None)));
    if attached.is_err() || !matches!(hound.try_wait(), Ok(None)) {
        let _ = hound.kill(); // it may have ended by itself
        let _ = hound.wait();
        // Threads may not come to rest in time where others want the processors: nothing has changed then.
        if read(&said).contains("gave up, and undid what was begun") {
            tally.gave_up += 1;
            return Ok(());
        }
        bail!("hound did not attach: {}", read(&said).trim());
    }
    thread::sleep(Duration::from_millis(random.below(400)));
    if how == 1 {
        return killed(&mut hound, tally);
    }
    let mut detach = Command::new(place::hound());
    detach.args(["detach", "-p", &pid]);
    if how < 5 {
        detach.arg("--unload");
        tally.unloaded += 1;
    }
    let detached = exec::output(&mut detach);
    let ended = exec::ended(&mut hound, "hound attach", PATIENCE)?;
    let said = read(&said);
    tally.stalls_ms.extend(stalls(&said));
    detached?;
    if !ended.success() {
        bail!("hound attach ended with {ended}: {}", said.trim());
    }
    exec::output(Command::new(place::hound()).arg("check").arg(&capture)).map(drop)
}

fn killed(hound: &mut Child, tally: &mut Tally) -> Result<()> {
    tally.killed += 1;
    if let Some(pid) = i32::try_from(hound.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL); // it may have ended by itself
    }
    hound.wait().context("cannot wait for hound").map(drop)
}

/// The milliseconds of every `stall N.N ms` in what hound said.
fn stalls(said: &str) -> impl Iterator<Item = f64> {
    said.split("stall ").skip(1).filter_map(|rest| rest.split_once(" ms")?.0.parse().ok())
}

fn judge(tally: &Tally, success: bool, stdout: &str, stderr: &str, options: &Options) -> Result<Verdict> {
    let last = stdout.lines().last().unwrap_or_default();
    println!("torture: {} s, {} threads, seed {}", options.time().as_secs(), options.threads, options.seed);
    let Tally { cycles, unloaded, killed, gave_up, .. } = tally;
    println!("torture: {cycles} cycles ({unloaded} unloaded, {killed} ended by hound's death, {gave_up} attempts given up)");
    let mut stalls = tally.stalls_ms.clone();
    stalls.sort_by(f64::total_cmp);
    let at = |n: usize| stalls.get(n).copied().unwrap_or(0.0);
    let (median, longest) = (at(stalls.len() / 2), at(stalls.len().saturating_sub(1)));
    println!("torture: {} stalls as hound says: median {median:.2} ms, longest {longest:.2} ms", stalls.len());
    println!("torture: the program says: {last}");
    tally.failures.iter().for_each(|failure| println!("torture: FAILED: {failure}"));
    stderr.lines().take(20).for_each(|line| println!("torture: the program: {line}"));
    let told = |what: &str| json::parse(last).and_then(|told| json::number(&told, &[what])).unwrap_or(u64::MAX);
    let broken_off = told("eintr_foreign") <= tally.killed * u64::from(options.threads);
    // A call of that length may have seen three visits of two stalls each.
    let allowed = LATE_MS + 6.0 * longest + if *killed > 0 { LONGEST_MS } else { 0.0 };
    let in_time =
        json::parse(last).is_ok_and(|told| told.get("latest_ms").and_then(|late| late.as_f64()).is_some_and(|late| late <= allowed));
    println!("torture: the latest call may have been late by {allowed:.0} ms");
    let good = success && in_time && tally.failures.is_empty() && *cycles > *gave_up && told("failures") == 0 && broken_off;
    println!("torture: {}", if good { "passed" } else { "FAILED" });
    Ok(if good { Verdict::Good } else { Verdict::Bad })
}

/// Compiles a program of the tests; always anew, for its headers are many and it takes seconds.
fn compiled(source: &str, name: &str, compiler: &[&str]) -> Result<PathBuf> {
    let to = place::kept("programs")?.join(name);
    let from = place::workspace().join("tests/programs").join(source);
    let (program, flags) = compiler.split_first().context("invariant: a compiler has a name")?;
    exec::run(Command::new(program).args(flags).args(["-O2", "-g", "-fno-builtin", "-o"]).arg(&to).arg(from))?;
    Ok(to)
}

fn spawned(command: &mut Command, stdout: &Path, stderr: &Path) -> Result<Child> {
    let create = |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
    let child = command.stdin(Stdio::null()).stdout(create(stdout)?).stderr(create(stderr)?).spawn();
    child.with_context(|| format!("cannot start {}", exec::shown(command)))
}

fn awaited(what: &str, mut so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        if Instant::now() > deadline {
            bail!("waited {} s until {what}", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// xorshift64: the same moments for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_read_and_other_times_are_not() {
        let said = "hound: attached to 12: 3 functions, longest stall 1.5 ms\nattached after 59 s of running; longest stall 0.3 ms at the attach\n";
        assert_eq!(stalls(said).collect::<Vec<_>>(), [1.5, 0.3]);
    }
}
