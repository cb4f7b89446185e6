//! How to sample, and what that costs.

use super::Interval;
use crate::session::kernel::Mapped;

/// How to sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// What it may cost the target, as a share of a core; infinite: no limit.
    pub budget: f64,
    /// How closely.
    pub interval: Interval,
    /// Most of a stack that is copied, in bytes.
    pub stack_bytes: u32,
    /// Record where sampled blocks are released.
    pub free_stacks: bool,
    /// Probe what allocates. Else only page faults are sampled.
    pub allocations: bool,
    /// How closely to sample page faults: who touches memory first. Nothing: not at all.
    pub faults: Option<Interval>,
    /// Record each mmap, munmap, mremap and brk.
    pub maps: bool,
}

impl Plan {
    /// The same for page faults alone. What is mapped is told as well, or hound would often be too late to see what was touched.
    pub fn of_faults(self) -> Self {
        Plan { allocations: false, faults: Some(self.interval), ..self }
    }

    /// What is told of changes of mappings. They are all told and not drawn by chance, so that their number is what they cost.
    pub(super) fn mapped(&self) -> Mapped {
        /// What telling one costs, with its stack, in seconds: EBPF programs at both ends, and a copy of 16 KiB.
        const COST: f64 = 6e-6;
        /// Of the budget.
        const PART: f64 = 0.25;
        match self.maps {
            false => Mapped::Code,
            true if self.budget.is_infinite() => Mapped::All,
            true => Mapped::AtMost((self.budget * PART / COST) as u64),
        }
    }
}

/// What probes cost here, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// One hit.
    pub hit: f64,
    /// One sample, beyond the hits.
    pub sample: f64,
    /// Setting the probes and taking them out.
    pub opening: f64,
    /// Measured on a process with a seccomp filter, which has survived it.
    pub filtered: bool,
}
