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
        let ns = (u128::from(ticks.saturating_sub(self.from)) * u128::from(self.rate)) >> 32;
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
        match lines.last_mut() {
            Some(last) if last.from == line.from => *last = line,
            _ => lines.push(line),
        }
    }

    /// Nanoseconds since the capture began; what was before it is 0.
    pub fn ns(&self, ticks: u64) -> u64 {
        self.span(ticks).ns(ticks)
    }

    /// The line that holds at this moment.
    pub fn span(&self, ticks: u64) -> Span {
        let after = self.lines.partition_point(|line| line.from <= ticks);
        let next = self.lines.get(after);
        Span {
            line: self.lines[after.saturating_sub(1)],
            until: next.map_or(u64::MAX, |next| next.from),
            // Rounding must not carry a line past the start of the next one.
            most_ns: next.map_or(u64::MAX, |next| next.from_ns),
        }
    }
}

/// One line and where it ends: what a run of events needs, without searching for each.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    line: Line,
    until: u64,
    most_ns: u64,
}

impl Span {
    /// Whether it holds at this moment, given that the moments asked for ascend.
    #[inline(always)]
    pub fn covers(&self, ticks: u64) -> bool {
        ticks < self.until
    }

    /// Nanoseconds since the capture began.
    #[inline(always)]
    pub fn ns(&self, ticks: u64) -> u64 {
        self.line.ns(ticks).min(self.most_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(ticks: u64, monotonic_ns: u64) -> Calibration {
        Calibration { ticks, monotonic_ns, realtime_ns: 0 }
    }

    #[test]
    fn calibration_pairs_replace_the_nominal_rate() {
        let start = pair(1_000, 500);
        let session = SessionInfo { ticks_per_second: 1_000_000_000, start, ..SessionInfo::default() };
        let clock = TickClock::new(&session, &[pair(1_000 + 4_000_000, 500 + 2_000_000)]);
        assert_eq!(clock.ns(1_000), 0);
        assert_eq!(clock.ns(1_000 + 2_000_000), 1_000_000);
        assert_eq!(clock.ns(1_000 + 8_000_000), 4_000_000);
        assert_eq!(clock.ns(7), 0);
    }

    proptest! {
        #[test]
        fn time_never_goes_back(pairs in proptest::collection::vec((0u64..1 << 40, 0u64..1 << 40), 0..8), mut ticks in proptest::collection::vec(any::<u64>(), 2..50)) {
            let mut pairs: Vec<_> = pairs.into_iter().map(|(t, n)| pair(t, n)).collect();
            pairs.sort_by_key(|p| p.ticks);
            let session = SessionInfo { ticks_per_second: 3_000_000_000, ..SessionInfo::default() };
            let clock = TickClock::new(&session, &pairs);
            ticks.extend(pairs.iter().flat_map(|p| [p.ticks, p.ticks.saturating_sub(1), p.ticks + 1]));
            ticks.sort_unstable();
            for two in ticks.windows(2) {
                prop_assert!(clock.ns(two[0]) <= clock.ns(two[1]), "{two:?}");
            }
        }
    }
}
