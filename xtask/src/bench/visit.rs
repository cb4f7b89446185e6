//! A program that notes its own pace, and a session of hound's on it that is begun and ended while it runs: what a profiler costs is told by
//! the program itself, before, meanwhile and after.

use crate::exec::Ending;
use crate::{exec, place};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take to begin or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// A program under way that notes in a file, as 64-bit words: what it has done, the nanoseconds of processor time it took, and one word more.
pub struct Pacing {
    child: Ending,
    notes: PathBuf,
}

/// How a program went on over a while.
#[derive(Clone, Copy)]
pub struct Pace {
    /// Operations a second.
    pub rate: f64,
    /// Nanoseconds of processor time an operation.
    pub cpu_ns: f64,
}

impl Pacing {
    /// Starts `command` with a file for its notes as the first argument, then `arguments`, and waits until it has done something.
    pub fn start(mut command: Command, arguments: &[&str], scratch: &Path) -> Result<Self> {
        let notes = scratch.join("notes");
        let _ = fs::remove_file(&notes); // of one before
        command.arg(&notes).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut pacing = Self { child: Ending(child.with_context(|| format!("cannot start {}", exec::shown(&command)))?), notes };
        let deadline = Instant::now() + LIMIT;
        while pacing.words().map_or(0, |words| words[0]) == 0 {
            ensure!(Instant::now() < deadline, "{} has done nothing yet", exec::shown(&command));
            if let Some(status) = pacing.child.0.try_wait().context("cannot wait for the target")? {
                bail!("{} ended ({status})", exec::shown(&command));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(pacing)
    }

    /// Its process; of a launched one, its launcher's.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    fn words(&self) -> Result<[u64; 3]> {
        let bytes = fs::read(&self.notes).with_context(|| format!("cannot read {}", self.notes.display()))?;
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        words.try_into().ok().context("the target has not noted all of its words")
    }

    /// Its pace over a while.
    pub fn pace(&self, window: Duration) -> Result<Pace> {
        let (start, before) = (Instant::now(), self.words()?);
        thread::sleep(window);
        let (took, after) = (start.elapsed(), self.words()?);
        let done = (after[0] - before[0]) as f64;
        Ok(Pace { rate: done / took.as_secs_f64(), cpu_ns: (after[1] - before[1]) as f64 / done })
    }

    /// The third word.
    pub fn extra(&self) -> Result<u64> {
        Ok(self.words()?[2])
    }

    /// Sets the third word to 0.
    pub fn forget_extra(&self) -> Result<()> {
        let file = File::options().write(true).open(&self.notes).context("cannot open the target's notes")?;
        file.write_all_at(&[0; 8], 16).context("cannot write to the target's notes")
    }
}

/// A session of hound's in the foreground.
pub struct Visit {
    hound: Ending,
    pid: u32,
    said: PathBuf,
    told: PathBuf,
    /// Where the capture is.
    pub capture: PathBuf,
    began: Instant,
}

impl Visit {
    /// `hound attach -p PID` with these arguments; returns when it records.
    pub fn begin(pid: u32, arguments: &[&str], scratch: &Path) -> Result<Self> {
        let mut visit = Self::start(pid, arguments, scratch)?;
        while !visit.said().contains("attached to") {
            if visit.began.elapsed() > LIMIT || visit.hound.0.try_wait().context("cannot wait for hound")?.is_some() {
                bail!("hound did not attach: {}", visit.said().trim());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(visit)
    }

    fn start(pid: u32, arguments: &[&str], scratch: &Path) -> Result<Self> {
        let [said, told, capture] = ["visit.said", "visit.told", "visit.hound"].map(|name| scratch.join(name));
        let create = |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
        let mut hound = Command::new(place::hound());
        hound.args(["attach", "--quiet", "-p", &pid.to_string(), "-o"]).arg(&capture).args(arguments);
        let began = Instant::now();
        let hound = hound.stdin(Stdio::null()).stdout(create(&told)?).stderr(create(&said)?).spawn().context("cannot start hound")?;
        Ok(Self { hound: Ending(hound), pid, said, told, capture, began })
    }

    /// Since `hound attach` was typed.
    pub fn since(&self) -> Duration {
        self.began.elapsed()
    }

    /// What it has said on standard error.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// What it has shown on standard output.
    pub fn told(&self) -> String {
        fs::read_to_string(&self.told).unwrap_or_default()
    }

    /// Seconds of processor time that it and the children it waited for have used.
    pub fn cpu_s(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.hound.0.id())).context("cannot read hound's times")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let times = fields.get(11..15).context("hound's times are not in its stat")?;
        let ticks: f64 = times.iter().filter_map(|time| time.parse::<f64>().ok()).sum();
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    /// `hound mode -p PID MODE`.
    pub fn mode(&self, mode: &str) -> Result<()> {
        exec::output(Command::new(place::hound()).args(["mode", "-p", &self.pid.to_string(), mode])).map(|_| ())
    }

    /// Detaches, and returns what was said in all.
    pub fn end(mut self) -> Result<String> {
        exec::output(Command::new(place::hound()).args(["detach", "-p", &self.pid.to_string()]))?;
        exec::ended(&mut self.hound.0, "hound", LIMIT)?;
        Ok(self.said())
    }
}

/// The number after `before` in what hound said, up to `after`.
pub fn figure(said: &str, before: &str, after: &str) -> Result<f64> {
    let number = said.rsplit_once(before).and_then(|(_, rest)| rest.split_once(after)).and_then(|(number, _)| number.trim().parse().ok());
    number.with_context(|| format!("hound did not say '{before}…{after}': {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_between_the_words() {
        let said =
            "hound: detached from 7: 756 samples, 1.4 % of the time observed in 8 windows, cost in the target 0.37 % of a core (by 3 hits)";
        assert_eq!(figure(said, "samples, ", " % of the time").unwrap(), 1.4);
        assert_eq!(figure(said, "cost in the target ", " %").unwrap(), 0.37);
        assert!(figure("hound: cannot", "cost in the target ", " %").is_err());
    }
}
