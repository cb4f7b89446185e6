//! Attaching to a running program and leaving it: how long the target stands still, how soon the first event is there, what it costs
//! meanwhile against launch mode on the same program, and what is left of it afterwards.

use super::bounds::Bound;
use super::figures::{median, shown, table};
use super::{Plan, Section};
use crate::{exec, place, programs};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long the rate of operations is measured each time.
const WINDOW: Duration = Duration::from_millis(1500);
/// How long the target runs if nobody ends it: longer than a round takes.
const TARGET_SECONDS: &str = "60";
/// How long hound may take to attach or to end.
const LIMIT: Duration = Duration::from_secs(30);

/// A target: threads, nanoseconds of work an operation, microseconds of sleep after every 32 operations.
struct Load {
    name: &'static str,
    threads: usize,
    work_ns: u32,
    pause_us: u32,
}

const LOADS: [Load; 5] = [
    Load { name: "1 thread, malloc and free in a loop", threads: 1, work_ns: 0, pause_us: 0 },
    Load { name: "1 thread, 1 µs of work an operation", threads: 1, work_ns: 1000, pause_us: 0 },
    Load { name: "100 threads that sleep most of the time", threads: 100, work_ns: 200, pause_us: 5000 },
    Load { name: "100 threads for two cores, 1 µs of work", threads: 100, work_ns: 1000, pause_us: 2000 },
    Load { name: "100 threads that never sleep, 1 µs of work", threads: 100, work_ns: 1000, pause_us: 0 },
];

/// What one round has shown.
struct Round {
    to_attached_ms: f64,
    attach_stall_ms: f64,
    detach_stall_ms: f64,
    /// The target's own longest wait between two looks at the clock, with nobody there, and while it was attached to and detached from.
    own_wait_ms: [f64; 2],
    /// Operations a second before, while attached, after, and under `hound run`.
    rates: [f64; 4],
}

/// Measures every load.
pub fn measure(plan: &Plan) -> Result<Section> {
    let program = programs::compiled("attached.cpp", "attached", &[])?;
    let mut bounds = Vec::new();
    let mut rows = Vec::new();
    for load in &LOADS {
        let rounds: Vec<Round> = (0..plan.runs).map(|_| round(plan, &program, load)).collect::<Result<_>>()?;
        let worst = |figure: fn(&Round) -> f64| rounds.iter().map(figure).fold(0.0, f64::max);
        let middle = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
        let slowdown = middle(|round| round.rates[3] / round.rates[1]);
        let after = middle(|round| round.rates[2] / round.rates[0]);
        let stall = worst(|round| round.attach_stall_ms.max(round.detach_stall_ms));
        let (must, aim) = if load.threads == 1 { (20.0, 3.0) } else { (50.0, 10.0) };
        bounds.push(Bound::new(format!("longest stall of {} rounds: {} (ms)", plan.runs, load.name), stall, must, aim));
        if load.threads == 1 {
            bounds.push(Bound::new(format!("`attach` typed to recording: {} (ms)", load.name), worst(|r| r.to_attached_ms), 500.0, 150.0));
            bounds.push(Bound::new(format!("time an operation, attached against launched: {} (ratio)", load.name), slowdown, 1.15, 1.0));
            bounds.push(Bound::new(format!("throughput before against after: {} (ratio)", load.name), 1.0 / after, 1.0 / 0.99, 1.0));
        }
        let mut cells = vec![load.name.to_owned()];
        cells.extend(
            [
                middle(|round| round.to_attached_ms),
                middle(|round| round.attach_stall_ms),
                middle(|round| round.detach_stall_ms),
                middle(|round| round.own_wait_ms[0]),
                middle(|round| round.own_wait_ms[1]),
                middle(|round| round.rates[0] / round.rates[1]),
                middle(|round| round.rates[0] / round.rates[3]),
                after,
            ]
            .map(shown),
        );
        rows.push(cells);
    }
    let headings = [
        "target",
        "to recording (ms)",
        "stall at attach (ms)",
        "at detach (ms)",
        "longest wait it sees alone (ms)",
        "and attached to (ms)",
        "slowdown attached",
        "launched",
        "throughput after / before",
    ];
    Ok(Section { name: "attach", title: "Attaching to a running program", bounds, detail: table(&headings, &rows) })
}

fn round(plan: &Plan, program: &Path, load: &Load) -> Result<Round> {
    let target = Running::start(Command::new(program), plan, load)?;
    let window = WINDOW / u32::try_from(plan.shrink.min(5)).unwrap_or(1);
    let before = target.rate(window)?;
    let alone_ms = target.longest_wait_ms()?;
    let capture = plan.scratch.join("attached.hound");
    let mut hound = Command::new(place::hound());
    hound.args(["attach", "--mode", "full", "--no-free-stacks", "-o"]).arg(&capture).args(["-p", &target.child.id().to_string()]);
    let started = Instant::now();
    let said = plan.scratch.join("attached.said");
    let create = |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
    let hound = hound.stdin(Stdio::null()).stdout(Stdio::null()).stderr(create(&said)?).spawn().context("cannot start hound")?;
    let mut hound = Ending(hound);
    let to_attached_ms = loop {
        if fs::read_to_string(&said).unwrap_or_default().contains("attached to") {
            break started.elapsed().as_secs_f64() * 1e3;
        }
        if started.elapsed() > LIMIT || hound.0.try_wait().context("cannot wait for hound")?.is_some() {
            bail!("hound did not attach: {}", fs::read_to_string(&said).unwrap_or_default().trim());
        }
        thread::sleep(Duration::from_micros(200)); // well under what is measured
    };
    let attached = target.rate(window)?;
    exec::output(Command::new(place::hound()).args(["detach", "-p", &target.child.id().to_string()]))?;
    exec::ended(&mut hound.0, "hound", LIMIT)?;
    let attached_wait_ms = target.longest_wait_ms()?;
    let after = target.rate(window)?;
    drop(target);

    let mut launched = Command::new(place::hound());
    launched.args(["run", "--quiet", "--no-free-stacks", "-o"]).arg(&capture).arg("--").arg(program);
    let launched = Running::start(launched, plan, load)?;
    let under_hound = launched.rate(window)?;
    drop(launched);
    let _ = fs::remove_file(&capture); // made anew each time
    let said = fs::read_to_string(&said).context("cannot read what hound said")?;
    Ok(Round {
        to_attached_ms,
        attach_stall_ms: figure(&said, "longest stall ")?,
        detach_stall_ms: figure(&said, "(stall ")?,
        own_wait_ms: [alone_ms, attached_wait_ms],
        rates: [before, attached, after, under_hound],
    })
}

/// The number after these words.
fn figure(said: &str, after: &str) -> Result<f64> {
    let number = said.split_once(after).and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("hound did not say its '{}': {}", after.trim(), said.trim()))
}

/// A child that does not outlive the measurement.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended by itself
        let _ = self.0.wait();
    }
}

/// The target under way, and the file it notes its operations in.
struct Running {
    child: Child,
    notes: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // hound passes the signal on to what it has launched, and completes its capture.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = exec::ended(&mut self.child, "the target", LIMIT);
    }
}

impl Running {
    fn start(mut command: Command, plan: &Plan, load: &Load) -> Result<Running> {
        let notes = plan.scratch.join("attached.notes");
        let _ = fs::remove_file(&notes); // of the round before
        command.arg(&notes).args([load.threads.to_string(), load.work_ns.to_string(), load.pause_us.to_string()]).arg(TARGET_SECONDS);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start the target")?;
        let running = Running { child, notes };
        let deadline = Instant::now() + LIMIT;
        while running.words().map_or(0, |words| words.iter().step_by(2).filter(|done| **done > 0).count()) < load.threads {
            if Instant::now() > deadline {
                bail!("the target's threads have not begun within {} s", LIMIT.as_secs());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(running)
    }

    fn words(&self) -> Result<Vec<u64>> {
        let bytes = fs::read(&self.notes).with_context(|| format!("cannot read {}", self.notes.display()))?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// Operations a second over a while.
    fn rate(&self, window: Duration) -> Result<f64> {
        let done = |words: Vec<u64>| words.iter().step_by(2).sum::<u64>();
        let (start, before) = (Instant::now(), done(self.words()?));
        thread::sleep(window);
        let after = done(self.words()?);
        Ok((after - before) as f64 / start.elapsed().as_secs_f64())
    }

    /// The longest wait that any thread has noted, in milliseconds; from here on they begin anew.
    fn longest_wait_ms(&self) -> Result<f64> {
        let words = self.words()?;
        let longest = words.iter().skip(1).step_by(2).copied().max().unwrap_or(0);
        let file = File::options().write(true).open(&self.notes).context("cannot open the target's notes")?;
        for slot in 0..words.len() / 2 {
            file.write_all_at(&[0; 8], slot as u64 * 16 + 8).context("cannot write to the target's notes")?;
        }
        Ok(longest as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_behind_the_words() {
        let said = "hound: attached to 7 in 38 ms: 21 functions, 4 threads, longest stall 3.5 ms\nhound: detached from 7 (stall 0.3 ms)\n";
        assert_eq!((figure(said, "longest stall ").unwrap(), figure(said, "(stall ").unwrap()), (3.5, 0.3));
        assert!(figure("hound: cannot", "(stall ").is_err());
    }
}
