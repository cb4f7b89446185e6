//! How closely page faults are looked at: as many samples a second as cost nothing to speak of, however fast the target touches memory.

use std::time::{Duration, Instant};

use super::budget::Interval;

/// Samples a second. One costs the target some microseconds.
const SAMPLES: f64 = 200.0;
/// Closest interval that is chosen by itself. What a target begins to touch between two looks must neither fill the ring nor cost much.
const CLOSEST: u64 = 64 << 10;
/// Widest.
const WIDEST: u64 = 1 << 30;
/// It becomes closer in steps of this time, and wider at once.
const STEP: Duration = Duration::from_secs(1);

/// Chooses the interval.
#[derive(Debug)]
pub struct Pace {
    adapted: bool,
    interval: u64,
    last: (Instant, u64),
    step: (Instant, u64),
}

impl Pace {
    /// So many faults were counted until now.
    pub fn new(interval: Interval, now: Instant, faults: u64) -> Self {
        let (adapted, interval) = match interval {
            Interval::Fixed(bytes) => (false, bytes),
            Interval::Adapted => (true, CLOSEST),
        };
        Pace { adapted, interval, last: (now, faults), step: (now, faults) }
    }

    /// Mean bytes between samples.
    pub fn interval(&self) -> u64 {
        self.interval
    }

    /// So many faults were counted until now; gives the interval if it is another one from here on. It follows from faults that were,
    /// never from those it is for: so what a sample stands for is right.
    pub fn counted(&mut self, now: Instant, faults: u64) -> Option<u64> {
        if !self.adapted {
            return None;
        }
        let since = |(at, before): (Instant, u64)| (now.duration_since(at).as_secs_f64(), faults.saturating_sub(before) as f64 * 4096.0);
        let (seconds, bytes) = since(self.last);
        self.last = (now, faults);
        let before = self.interval;
        let samples = bytes / before as f64;
        // A burst between two looks.
        if samples > 8.0 && samples > 4.0 * SAMPLES * seconds {
            self.widen((bytes / (SAMPLES * seconds.max(1e-3))) as u64);
        } else if now.duration_since(self.step.0) >= STEP {
            let (seconds, bytes) = since(self.step);
            self.step = (now, faults);
            let samples = bytes / before as f64;
            if samples > 2.0 * SAMPLES * seconds {
                self.widen(2 * before);
            } else if samples < SAMPLES * seconds / 4.0 {
                self.interval = (before / 2).max(CLOSEST);
            }
        }
        (self.interval != before).then_some(self.interval)
    }

    fn widen(&mut self, interval: u64) {
        // Powers of two: few intervals are as good as many, and are read more easily.
        self.interval = interval.clamp(self.interval, WIDEST).next_power_of_two().min(WIDEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples in a time in which a target faults so often a second.
    fn run(pace: &mut Pace, at: &mut (Instant, u64), seconds: u64, rate: u64) -> f64 {
        let mut samples = 0.0;
        for _ in 0..seconds * 100 {
            at.0 += Duration::from_millis(10);
            at.1 += rate / 100;
            samples += rate as f64 / 100.0 * 4096.0 / pace.interval() as f64;
            pace.counted(at.0, at.1);
        }
        samples
    }

    #[test]
    fn a_burst_is_met_at_once_and_calm_after_it_makes_it_closer_again() {
        let mut at = (Instant::now(), 0);
        let mut pace = Pace::new(Interval::Adapted, at.0, 0);
        let calm = run(&mut pace, &mut at, 10, 244);
        assert!((100.0..200.0).contains(&calm) && pace.interval() == CLOSEST, "{calm} samples of 1 MB/s in 10 s");
        let burst = run(&mut pace, &mut at, 10, 300_000);
        assert!(burst < 10.0 * 3.0 * SAMPLES, "{burst} samples in 10 s of 1.2 GB/s");
        run(&mut pace, &mut at, 20, 244);
        assert_eq!(pace.interval(), CLOSEST);
    }

    #[test]
    fn a_given_interval_is_kept() {
        let mut at = (Instant::now(), 0);
        let mut pace = Pace::new(Interval::Fixed(0), at.0, 0);
        at.1 += 1_000_000;
        assert_eq!((pace.counted(at.0 + Duration::from_millis(10), at.1), pace.interval()), (None, 0));
    }
}
