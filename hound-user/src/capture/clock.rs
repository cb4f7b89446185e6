//! From ticks to nanoseconds since the capture began, by straight lines between calibration pairs.

use super::session::{Calibration, Clock, SessionInfo};

/// The conversion. Monotonic: events keep their order.
#[derive(Clone, Debug)]
pub struct TickClock {
    /// Ascending; never empty.
    lines: Vec<Line>,
}

/// `ns = from_ns + (ticks - from) * rate / 2^32` from `from` on.
#[derive(Clone, Copy, Debug)]
struct Line {
    from: u64,
    from_ns: u64,
    rate: u64,
}

impl Line {
    fn ns(&self, ticks: u64) -> u64 {
        let ns = u128::from(ticks.saturating_sub(self.from)) * u128::from(self.rate) >> 32;
        self.from_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

impl TickClock {
    /// The clock of a capture. Pairs that go backwards are left out.
    pub fn new(session: &SessionInfo, pairs: &[Calibration]) -> Self {
        let nominal = match session.clock {
            Clock::Monotonic => 1_000_000_000,
            Clock::Tsc => session.ticks_per_second.max(1),
        };
        let nominal_rate = (1_000_000_000u128 << 32) / u128::from(nominal);
        let start = session.start;
        let mut lines = vec![Line { from: start.ticks, from_ns: 0, rate: nominal_rate.min(u128::from(u64::MAX)) as u64 }];
        if session.clock == Clock::Tsc {
            let mut before = start;
            for pair in pairs {
                // Short lines are all noise: a pair is read some 50 ns apart.
                let long_enough = pair.monotonic_ns >= before.monotonic_ns.saturating_add(1_000_000);
                if pair.ticks > before.ticks && long_enough {
                    Self::append(&mut lines, before, *pair, start);
                    before = *pair;
                }
            }
        }
        TickClock { lines }
    }

    fn append(lines: &mut Vec<Line>, from: Calibration, to: Calibration, start: Calibration) {
        let rate = (u128::from(to.monotonic_ns - from.monotonic_ns) << 32) / u128::from(to.ticks - from.ticks);
        let line = Line {
            from: from.ticks,
            from_ns: from.monotonic_ns.saturating_sub(start.monotonic_ns),
            rate: rate.min(u128::from(u64::MAX)) as u64,
        };
        if let Some(last) = lines.last_mut() {
            if last.from == line.from {
                *last = line;
                return;
            }
        }
        lines.push(line);
    }

    /// Nanoseconds since the capture began; what was before it is 0.
    pub fn ns(&self, ticks: u64) -> u64 {
        let after = self.lines.partition_point(|line| line.from <= ticks);
        let line = &self.lines[after.saturating_sub(1)];
        let ns = line.ns(ticks);
        // Rounding must not carry a line past the start of the next one.
        self.lines.get(after).map_or(ns, |next| ns.min(next.from_ns))
    }
}
