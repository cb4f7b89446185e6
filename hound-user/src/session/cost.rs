//! What recording costs, estimated while it goes on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hound_common::ring::OPTION_FREE_STACKS;
use procfs::process::Process;

use super::recording::Recording;

/// What an event costs the target, in nanoseconds: half of what is added to a pair of malloc and free, the mean of the four kinds of call
/// path at depth 30 in `docs/overhead.md`. Measured there, not in the target: which kind of path it has, and what misses its caches cost,
/// moves this by a factor of two and more either way. So what comes of it is an estimate, and is to be called one.
const EVENT_NS: f64 = 22.7;
/// Likewise, with stacks of frees.
const EVENT_WITH_FREE_STACKS_NS: f64 = 40.9;
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
        let free_stacks = recording.ring().is_some_and(|ring| ring.control().options.load(Ordering::Relaxed) & OPTION_FREE_STACKS != 0);
        let event = if free_stacks { EVENT_WITH_FREE_STACKS_NS } else { EVENT_NS };
        self.overhead = share(fresh * event, processor.saturating_sub(self.last.2) as f64);
        self.last = (now, events, processor);
    }

    /// Events a second.
    pub fn events_per_second(&self) -> f64 {
        self.events_per_second
    }

    /// Recording's part of the target's processor time, as a share of what is left without it. An estimate.
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

    /// Who measures anew and finds other figures has to change these here, too.
    #[test]
    fn an_event_costs_what_the_page_on_overhead_says() {
        let page = include_str!("../../../docs/overhead.md");
        let shapes = [
            "the same path, 30",
            "three alternating leaf frames, 30",
            "a frame near the root alternates, 30",
            "the path is popped and pushed anew, 30",
        ];
        let mut sums = [0.0; 2];
        for shape in shapes {
            let row = page.lines().find_map(|line| line.strip_prefix(&format!("| {shape} |"))).expect("the table has this row");
            let columns: Vec<f64> = row.split('|').filter_map(|column| column.trim().parse().ok()).collect();
            // No profiler; added without stacks of frees; the same, patched; added with them; sampled; added by another.
            sums = [sums[0] + columns[1], sums[1] + columns[3]];
        }
        for (sum, constant) in sums.into_iter().zip([EVENT_NS, EVENT_WITH_FREE_STACKS_NS]) {
            let event = sum / shapes.len() as f64 / 2.0;
            assert!((event / constant).ln().abs() < 1.5_f64.ln(), "an event costs {event} ns, not {constant}");
        }
    }

    #[test]
    fn kills_are_counted_somewhere() {
        assert!(memory_kills(std::process::id()).is_some());
    }
}
