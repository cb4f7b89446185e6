//! How sampling goes, in figures and in words.

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Time observed and time passed, in seconds.
    pub observed: f64,
    /// Time passed.
    pub passed: f64,
    /// What the probes have cost the target, in seconds of a core, by what a hit costs on this machine.
    pub cost: f64,
    /// Probe hits.
    pub hits: u64,
    /// Allocations recorded.
    pub samples: u64,
    /// Page faults recorded, and how many there were.
    pub faults: (u64, u64),
    /// Windows.
    pub windows: u64,
    /// Samples lost.
    pub lost: u64,
    /// Mean bytes between samples, now.
    pub interval: u64,
    /// Where there may be several processes: how many are sampled, how many have been, and how many ended before hound could look at them.
    pub processes: Option<(usize, u32, u64)>,
    /// Why sampling has ended by itself.
    pub failed: Option<String>,
    /// What is recorded of what was loaded meanwhile, one line each.
    pub covered: Vec<String>,
    /// What is not, one line each.
    pub missed: Vec<String>,
    /// The kernel has killed the target for want of memory.
    pub killed_for_memory: bool,
    /// The target, sampled alone, is another program by now.
    pub replaced: bool,
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lost = |f: &mut std::fmt::Formatter<'_>| match self.lost {
            0 => write!(f, ", nothing lost"),
            lost => write!(f, ", {lost} LOST"),
        };
        if let Some((now, been, missed)) = self.processes {
            write!(f, "{now} of {been} processes there, ")?;
            if missed > 0 {
                write!(f, "{missed} more were gone before they could be looked at, ")?;
            }
        }
        let (faults, of) = self.faults;
        if self.windows == 0 {
            write!(f, "{faults} of {of} page faults recorded")?;
            return lost(f);
        }
        let passed = self.passed.max(1e-9);
        let (share, cost) = (100.0 * self.observed / passed, 100.0 * self.cost / passed);
        write!(f, "{} samples, {share:.1} % of the time observed in {} windows", self.samples, self.windows)?;
        write!(f, ", cost in the target {cost:.2} % of a core (by {} hits)", self.hits)?;
        if of > 0 {
            write!(f, ", {faults} of {of} page faults recorded")?;
        }
        lost(f)
    }
}
