//! How much of the time a target is looked at from the kernel, and how closely, so that it costs no more than it may.
//!
//! A probe costs the target a trap at every call, sampled or not. So the probes are there in *windows*: each *period* of time has one window
//! of a length that is fixed before the period begins. The pauses between windows are drawn at random, by the law that has no memory: however
//! long ago a block was sampled, its end falls into a window with one and the same probability, and what is seen of ends says what is not.
//! A period reaches from the middle of one pause to the middle of the next. What is seen in the window stands for the period, weighted by its
//! length over the window's; nothing that happens inside may change either, or the weights were wrong. The next lengths follow from what the
//! windows before have cost.
//!
//! Where the whole time can be paid for, the window is the whole period and the probes stay where they are. Such a period ends at once when
//! the target becomes too busy for that: it was seen whole up to then.
//!
//! Within a window the trap is paid for anyway, so the interval between samples follows the calls: as many samples as hound may look at.

use std::time::Duration;

/// What the target may be slowed down, as a share of one core, and what a probe costs it here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Share of a core. Infinite: no limit, the probes stay.
    pub share: f64,
    /// Cost of one hit of a probe, in seconds, as measured on this machine.
    pub hit: f64,
    /// Cost of one sample beyond that: copying the stack, the return probe.
    pub sample: f64,
    /// Cost of setting the probes and taking them out again, in the target.
    pub opening: f64,
}

/// How samples are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// Always at this mean number of bytes; 0: every call.
    Fixed(u64),
    /// As the calls allow.
    Adapted,
}

/// One period and its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// How long it is.
    pub length: Duration,
    /// When in it the window opens.
    pub opens: Duration,
    /// How long the window is.
    pub window: Duration,
    /// How long periods of this window are on average.
    pub usual: Duration,
    /// Mean interval between samples in bytes; 0: every call.
    pub interval: u64,
}

impl Period {
    /// Whether the probes stay all the time.
    pub fn is_whole(&self) -> bool {
        self.window == self.length
    }
}

/// What was seen in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// How long it was open, in seconds.
    pub seconds: f64,
    /// Probe hits.
    pub hits: u64,
    /// Samples.
    pub samples: u64,
}

/// Usual length of a period; shorter where its window would be too long. Growth is told from many windows, so they must not be rare.
const PERIOD: f64 = 1.0;
/// The longest pause between windows, in mean ones before they are cut to this.
const LONGEST_PAUSE: f64 = 4.0;
/// Longest a period is stretched, on average, for a target that is too busy for even the shortest window of the usual one.
const LONGEST_PERIOD: f64 = 60.0;
/// Shortest window: what setting and removing the probes takes must be small beside it.
const SHORTEST_WINDOW: f64 = 0.004;
/// Longest window that does not fill its period: what happens in it is paid for before anything can be changed.
const LONGEST_WINDOW: f64 = 0.1;
/// A whole period is given up when it has cost so many times its budget.
const TOLERANCE: f64 = 1.25;
/// Samples hound looks at in a second, on average over all time.
const SAMPLES: f64 = 300.0;
/// Samples take at most this part of what a window costs.
const SAMPLING_PART: f64 = 0.25;
/// Closest interval that is chosen by itself.
const CLOSEST: f64 = 512.0;
/// Widest.
const WIDEST: f64 = (1_u64 << 30) as f64;
/// Interval before anything is known.
const FIRST: f64 = 524_288.0;

/// Decides on periods.
#[derive(Clone, Debug)]
pub struct Planner {
    budget: Budget,
    interval: Interval,
    /// Mean interval for the next window, if it is adapted.
    chosen: f64,
    /// Cost in seconds of a core for each second that the probes are there; the higher of the last window's and what is remembered of those
    /// before.
    load: Option<f64>,
    /// Seconds of cost beyond the budget so far, not yet made up for by longer periods.
    debt: f64,
    /// What it costs to open a window in one process.
    opening: f64,
    /// The part of the pause since the last window that belongs to the next period, in seconds; none if the probes stay.
    pause: Option<f64>,
    random: u64,
}

impl Planner {
    /// Nothing is known of the target yet. `seed` draws the windows' places.
    pub fn new(budget: Budget, interval: Interval, seed: u64) -> Self {
        let opening = budget.opening;
        Planner { budget, interval, chosen: FIRST, load: None, debt: 0.0, opening, pause: None, random: seed | 1 }
    }

    /// So many processes are observed from here on: a window is opened in each of them.
    pub fn opens_in(&mut self, processes: usize) {
        self.budget.opening = self.opening * processes.max(1) as f64;
    }

    /// The next period.
    pub fn next(&mut self) -> Period {
        let interval = match self.interval {
            Interval::Fixed(bytes) => bytes,
            Interval::Adapted => self.chosen as u64,
        };
        let whole = |length: f64| {
            let length = Duration::from_secs_f64(length);
            Period { length, opens: Duration::ZERO, window: length, usual: length, interval }
        };
        if self.budget.share.is_infinite() {
            return whole(PERIOD);
        }
        let before = self.pause.take();
        // The first window finds out how busy the target is, and is as short as can be.
        let load = self.load.unwrap_or(FIRST_LOAD).min(MOST_LOAD);
        let debt = self.debt.max(0.0);
        if self.load.is_some() && load <= self.budget.share && debt <= self.budget.share * PERIOD {
            return whole(PERIOD);
        }
        // What the window's time costs, with what it costs to open one.
        let cost = |window: f64| window * load + self.budget.opening;
        let affordable = (self.budget.share * PERIOD - debt - self.budget.opening) / load;
        let window = affordable.clamp(SHORTEST_WINDOW, LONGEST_WINDOW);
        let usual = ((cost(window) + debt) / self.budget.share).clamp(1.05 * window, LONGEST_PERIOD);
        let opens = before.unwrap_or_else(|| self.draw_pause(usual - window) / 2.0);
        let after = self.draw_pause(usual - window) / 2.0;
        self.pause = Some(after);
        let [length, opens, window, usual] = [opens + window + after, opens, window, usual].map(Duration::from_secs_f64);
        Period { length, opens, window, usual, interval }
    }

    /// Whether a window that fills its period has to be closed now, because the target has become too busy for it. For others the answer is
    /// no: their lengths are promised.
    pub fn is_too_much(&self, period: &Period, seen: &Seen) -> bool {
        period.is_whole() && self.cost(seen) > TOLERANCE * self.budget.share * period.length.as_secs_f64() + self.budget.opening
    }

    /// What it has cost the target, in seconds of a core.
    pub fn cost(&self, seen: &Seen) -> f64 {
        seen.hits as f64 * self.budget.hit + seen.samples as f64 * self.budget.sample
    }

    /// What the last period came to: it lasted so many seconds in all.
    pub fn learn(&mut self, period: &Period, lasted: f64, seen: &Seen) {
        // A short pause is luck and no debt: were it made up for, the pauses would have a memory.
        let lasted = if period.is_whole() { lasted } else { period.usual.as_secs_f64() };
        let cost = self.cost(seen) + if period.is_whole() { 0.0 } else { self.budget.opening };
        if self.budget.share.is_finite() {
            self.debt = (self.debt + cost - self.budget.share * lasted).max(0.0);
        }
        if seen.seconds <= 0.0 {
            return;
        }
        let load = self.cost(seen) / seen.seconds;
        // Up at once, down slowly: a pause between two bursts must not open the probes for good.
        self.load = Some(self.load.map_or(load, |known| load.max(known * 0.7 + load * 0.3)));
        if period.interval == 0 {
            return;
        }
        // As many samples as hound may look at in this time, and as many as the target may be charged for.
        let wanted = (SAMPLES * lasted).min(seen.hits as f64 * self.budget.hit * SAMPLING_PART / self.budget.sample.max(1e-9)).max(1.0);
        let wider = (seen.samples as f64 + 0.5) / (wanted + 0.5);
        // One window says little where there are few samples: the interval follows in steps.
        self.chosen = (period.interval as f64 * wider.clamp(0.25, 8.0)).clamp(CLOSEST, WIDEST);
    }

    /// The next pause between windows, in seconds: exponential with this mean, none too long.
    fn draw_pause(&mut self, mean: f64) -> f64 {
        // What is cut off is added in scale.
        let cut = (-LONGEST_PAUSE).exp();
        let scale = 1.0 - LONGEST_PAUSE * cut / (1.0 - cut);
        -(1.0 - self.draw() * (1.0 - cut)).ln() * mean / scale
    }

    /// Uniform in [0, 1).
    fn draw(&mut self) -> f64 {
        // xorshift64* (Vigna, 2016).
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Cores' worth of traps that the first window is reckoned with.
const FIRST_LOAD: f64 = 1.0;
/// Most that any is.
const MOST_LOAD: f64 = 64.0;

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { share: 0.01, hit: 0.75e-6, sample: 6e-6, opening: 100e-6 };

    /// A target that hits the probes so often in a second, and allocates so many bytes a hit; runs for so long.
    fn run(planner: &mut Planner, seconds: f64, rate: impl Fn(f64) -> f64, bytes: f64) -> (f64, f64, u64, Vec<Period>) {
        let (mut at, mut cost, mut observed, mut samples, mut periods) = (0.0, 0.0, 0.0, 0, Vec::new());
        while at < seconds {
            let period = planner.next();
            let (length, window) = (period.length.as_secs_f64(), period.window.as_secs_f64());
            // A window is looked at every ten milliseconds.
            let mut seen = Seen::default();
            let opened = at + period.opens.as_secs_f64();
            let mut lasted = length;
            while seen.seconds < window {
                let step = (window - seen.seconds).min(0.01);
                let hits = rate(opened + seen.seconds) * step;
                seen.hits += hits as u64;
                seen.samples += if period.interval == 0 { hits as u64 } else { (hits / 2.0 * bytes / period.interval as f64) as u64 };
                seen.seconds += step;
                if planner.is_too_much(&period, &seen) {
                    lasted = seen.seconds;
                    break;
                }
            }
            cost += planner.cost(&seen) + if period.is_whole() { 0.0 } else { BUDGET.opening };
            observed += seen.seconds;
            samples += seen.samples;
            planner.learn(&period, lasted, &seen);
            periods.push(period);
            at += lasted;
        }
        (cost / at, observed / at, samples, periods)
    }

    fn planner() -> Planner {
        Planner::new(BUDGET, Interval::Adapted, 42)
    }

    #[test]
    fn a_calm_target_is_watched_all_the_time() {
        let (cost, observed, samples, periods) = run(&mut planner(), 100.0, |_| 2000.0, 1000.0);
        assert!(cost <= 0.01 && observed > 0.95, "{cost} {observed}");
        assert!(samples > 5_000, "{samples} samples in 100 s");
        assert!(periods.last().is_some_and(Period::is_whole));
    }

    #[test]
    fn the_budget_holds_however_busy_the_target_is() {
        for rate in [20_000.0, 200_000.0, 1_000_000.0, 4_000_000.0, 20_000_000.0] {
            let (cost, observed, samples, _) = run(&mut planner(), 200.0, |_| rate, 100.0);
            assert!(cost <= 0.0115, "{rate}: {cost}");
            assert!(cost >= 0.004 || observed > 0.95, "{rate}: {cost} is less than may be spent, {observed} observed");
            assert!(samples > 1000, "{rate}: {samples}");
        }
    }

    #[test]
    fn a_burst_ends_the_period_that_had_no_limit_and_is_made_up_for() {
        let burst = |at: f64| if (50.0..60.0).contains(&(at % 100.0)) { 2_000_000.0 } else { 1000.0 };
        let (cost, observed, _, periods) = run(&mut planner(), 1000.0, burst, 100.0);
        assert!(cost <= 0.0125, "{cost}");
        assert!(observed > 0.3, "{observed}");
        assert!(periods.iter().any(|period| !period.is_whole()) && periods.iter().any(Period::is_whole));
    }

    #[test]
    fn pauses_between_windows_have_no_memory() {
        let mut planner = planner();
        let (_, _, _, periods) = run(&mut planner, 4000.0, |_| 500_000.0, 100.0);
        let windows: Vec<&Period> = periods.iter().filter(|period| !period.is_whole()).collect();
        let pauses = windows.windows(2).map(|pair| (pair[0].length - pair[0].opens - pair[0].window + pair[1].opens).as_secs_f64());
        let usual = windows.iter().map(|period| (period.usual - period.window).as_secs_f64()).sum::<f64>() / windows.len() as f64;
        let pauses: Vec<f64> = pauses.map(|pause| pause / usual).collect();
        assert!(pauses.len() > 1000);
        let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
        assert!((mean - 1.0).abs() < 0.1, "{mean}");
        // Of those that last as long, as many end in the next third of a mean one, however long that is.
        for waited in [0.0, 0.3, 0.6, 1.0, 1.5, 2.0] {
            let last = |longer: f64| pauses.iter().filter(|pause| **pause >= longer).count() as f64;
            let ended = 1.0 - last(waited + 1.0 / 3.0) / last(waited);
            assert!((ended - 0.28).abs() < 0.09, "{ended} of those that lasted {waited}");
        }
    }

    #[test]
    fn without_a_limit_the_probes_stay_and_a_given_interval_is_kept() {
        let mut planner = Planner::new(Budget { share: f64::INFINITY, ..BUDGET }, Interval::Fixed(0), 1);
        let (_, observed, _, periods) = run(&mut planner, 20.0, |_| 5_000_000.0, 100.0);
        assert!(observed >= 1.0 - 1e-9 && periods.iter().all(|period| period.is_whole() && period.interval == 0));
    }
}
