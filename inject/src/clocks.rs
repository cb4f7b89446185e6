//! When a thread fell asleep, by the scheduler's own note of it.
//!
//! The moment stands in /proc/PID/task/TID/sched, in the clock of the processor the thread fell asleep on; hound's own thread, moved there for
//! a moment, tells how that clock stands. These clocks differ (by what interrupts and other guests of the host took: 0.7 s after 17 hours
//! were seen), and the scheduler may move a thread that sleeps already: which processor it was, the thread's rseq area tells, which the kernel
//! writes only on the way to user mode. Where it does not, the latest moment that is possible counts.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::memory::Memory;
use crate::trace;

/// The folder in /proc of the thread that asks.
pub(crate) const OWN: &str = "/proc/thread-self";

/// CLOCK_MONOTONIC.
pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// A file of /proc, by one read: several might be of several moments.
fn read(mut file: &File) -> Option<String> {
    let mut bytes = [0; 8192];
    let read = file.read(&mut bytes).ok()?;
    Some(str::from_utf8(bytes.get(..read)?).ok()?.to_owned())
}

/// One of the files in a thread's folder.
fn read_named(thread: &str, name: &str) -> Option<String> {
    read(&File::open(format!("{thread}/{name}")).ok()?)
}

/// What the scheduler tells of a thread.
#[derive(PartialEq, Eq)]
pub(crate) struct Scheduling {
    /// When it last ran, in its processor's clock.
    pub exec_start: Duration,
    /// How often it gave its processor up by itself.
    pub switches: u64,
}

/// Of the thread with this folder in /proc.
pub(crate) fn scheduling(thread: &str) -> Option<Scheduling> {
    let text = read_named(thread, "sched")?;
    let value = |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()));
    // Milliseconds, a dot, six digits.
    let (millis, nanos) = value("se.exec_start")?.split_once('.')?;
    let exec_start = Duration::from_millis(millis.parse().ok()?) + Duration::from_nanos(nanos.parse().ok()?);
    Some(Scheduling { exec_start, switches: value("nr_voluntary_switches")?.parse().ok()? })
}

/// The processor it belongs to.
pub(crate) fn processor(thread: &str) -> Option<usize> {
    let text = read_named(thread, "stat")?;
    // Field 39, counted from the state, which is the third.
    text.rsplit_once(')')?.1.split_whitespace().nth(36)?.parse().ok()
}

/// The processor on which a stopped thread was last in user mode; `None` if it has not told the kernel where to write that (glibc since
/// 2.35 has).
pub(crate) fn last_processor(tid: i32, memory: &Memory) -> Option<usize> {
    const LEAST_INVALID: u32 = 0xffff_fff0; // uninitialised, registration failed
    let area = trace::rseq(tid);
    // struct rseq: cpu_id_start, cpu_id.
    let number = (memory.read_u64(area).ok().filter(|_| area != 0)? >> 32) as u32;
    (number < LEAST_INVALID).then_some(number as usize)
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX / 2)
}

/// How many nanoseconds CLOCK_MONOTONIC is ahead of each processor's clock of running threads.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    offsets: HashMap<usize, i64>,
    /// These are all processors of the machine.
    complete: bool,
}

impl Clocks {
    /// Where there are more processors, only those named are read: each takes some 50 µs.
    const MOST: usize = 16;

    /// Reads them. The clocks hound sees may be a little old, never new: a sleep looks shorter than it was.
    pub(crate) fn read(wanted: &HashSet<usize>) -> Clocks {
        let mut clocks = Clocks::default();
        let own = Pid::from_raw(0);
        let Ok(everywhere) = sched_getaffinity(own) else { return clocks };
        let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten().and_then(|count| usize::try_from(count).ok());
        let all = online.is_some_and(|count| count <= Self::MOST);
        for processor in (0..CpuSet::count()).filter(|cpu| everywhere.is_set(*cpu).unwrap_or(false) && (all || wanted.contains(cpu))) {
            let mut there = CpuSet::new();
            if there.set(processor).and_then(|()| sched_setaffinity(own, &there)).is_err() {
                continue;
            }
            // Brings the scheduler's note of this thread up to date, else it is as old as the last tick.
            std::thread::yield_now();
            let read = scheduling(OWN);
            let now = monotonic();
            if let Some(read) = read {
                clocks.offsets.insert(processor, nanos(now) - nanos(read.exec_start));
            }
        }
        // A failure leaves this thread of hound's on one processor: slower, not wrong.
        let _ = sched_setaffinity(own, &everywhere);
        clocks.complete = online == Some(clocks.offsets.len());
        clocks
    }

    /// The latest moment at which a thread can have fallen asleep that was `seen` asleep, on one of these processors if it is known that it
    /// was on one of them.
    pub(crate) fn latest(&self, processors: Option<[usize; 2]>, exec_start: Duration, seen: Duration) -> Option<Duration> {
        let offsets: Vec<i64> = match processors {
            Some(known) => known.iter().map(|processor| self.offsets.get(processor).copied()).collect::<Option<_>>()?,
            None if self.complete => self.offsets.values().copied().collect(),
            None => return None,
        };
        let since = |offset: i64| u64::try_from(nanos(exec_start) + offset).map(Duration::from_nanos).ok();
        offsets.into_iter().filter_map(since).filter(|since| *since <= seen).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_never_begins_too_early() {
        let second = 1_000_000_000;
        let clocks = Clocks { offsets: [(0, 10 * second), (1, 12 * second), (2, 90 * second)].into(), complete: true };
        let latest = |clocks: &Clocks, processors| clocks.latest(processors, Duration::from_secs(100), Duration::from_secs(120));
        let since = |processors| latest(&clocks, processors).map(|since| since.as_secs());
        assert_eq!(since(Some([0, 0])), Some(110), "its clock is known");
        assert_eq!(since(Some([1, 0])), Some(112), "it was moved, maybe after it fell asleep");
        assert_eq!(since(None), Some(112), "by the third clock it fell asleep after it was seen asleep");
        assert_eq!(since(Some([7, 0])), None, "a clock that is not known");
        assert_eq!(latest(&Clocks { complete: false, ..clocks }, None), None);
    }

    #[test]
    fn this_machine_s_clocks_are_read() {
        let clocks = Clocks::read(&[0].into());
        assert!(clocks.complete || clocks.offsets.contains_key(&0), "{clocks:?}");
        assert!(scheduling(OWN).is_some());
    }
}
