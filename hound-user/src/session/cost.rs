//! What recording costs, estimated while it goes on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use procfs::process::Process;

use super::recording::Recording;

/// What an event costs the target, in nanoseconds: between those of one call path and of changing ones in `docs/overhead.md`. The stack's
/// depth and caches move it by a factor of two either way.
const EVENT_NS: f64 = 25.0;
/// Shorter measurements say nothing: the kernel counts processor time in ticks of 10 ms.
const SHORTEST: Duration = Duration::from_millis(400);

/// Rates since the last measurement.
#[derive(Debug)]
pub struct Cost {
    pid: u32,
    last: (Instant, u64, u64),
    events_per_second: f64,
    overhead: Option<f64>,
}

impl Cost {
    /// Begins to measure.
    pub fn new(pid: u32) -> Self {
        Cost { pid, last: (Instant::now(), 0, processor_ns(pid).unwrap_or(0)), events_per_second: 0.0, overhead: None }
    }

    /// Measures, if it is time.
    pub fn measure(&mut self, recording: &Recording) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.last.0);
        if elapsed < SHORTEST {
            return;
        }
        let (events, processor) = (recording.progress.events.load(Ordering::Relaxed), processor_ns(self.pid).unwrap_or(self.last.2));
        let fresh = events.saturating_sub(self.last.1) as f64;
        self.events_per_second = fresh / elapsed.as_secs_f64();
        self.overhead = share(fresh * EVENT_NS, processor.saturating_sub(self.last.2) as f64);
        self.last = (now, events, processor);
    }

    /// Events a second.
    pub fn events_per_second(&self) -> f64 {
        self.events_per_second
    }

    /// Recording's part of the target's processor time, as a share of what is left without it.
    pub fn overhead(&self) -> Option<f64> {
        self.overhead
    }
}

/// `ours` of `all`, as a share of the rest. `None` where the target used too little to say.
fn share(ours: f64, all: f64) -> Option<f64> {
    const LEAST_NS: f64 = 20e6;
    // An estimate above the whole is an estimate too high.
    let ours = ours.min(all * 0.95);
    (all >= LEAST_NS).then(|| ours / (all - ours))
}

fn processor_ns(pid: u32) -> Option<u64> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some((stat.utime + stat.stime) * 1_000_000_000 / procfs::ticks_per_second())
}

/// How often the kernel has killed for want of memory in a process's control group (or, without one, on this machine).
pub fn memory_kills(pid: u32) -> Option<u64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let unified = groups.lines().find_map(|line| line.strip_prefix("0::"));
    let own = unified.and_then(|group| std::fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.events")).ok());
    let text = own.or_else(|| std::fs::read_to_string("/proc/vmstat").ok())?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_a_share_of_what_the_program_needs_without_hound() {
        assert_eq!(share(50e6, 150e6), Some(0.5));
        assert_eq!(share(0.0, 1e9), Some(0.0));
        assert_eq!(share(1e6, 1e6), None, "too little to say");
        assert!(share(9e9, 1e9).is_some_and(|share| share.is_finite() && share > 1.0));
    }

    #[test]
    fn kills_are_counted_somewhere() {
        assert!(memory_kills(std::process::id()).is_some());
    }
}
