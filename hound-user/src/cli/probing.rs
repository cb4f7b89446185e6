//! Options of sampling from the kernel, wherever it is offered.

use hound_inject::CustomHook;

use super::report::parse_size;
use crate::session::sampling::{Interval, Plan};

/// One per cent of a core.
const BUDGET: f64 = 0.01;
const STACK: u32 = 16 << 10;

/// How the kernel samples.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Probing {
    /// With the kernel's engine: what it may cost the target, in per cent of one core: `0.2%`; `unlimited` observes all of the time
    /// [default: 1%].
    #[arg(long, value_name = "SHARE", value_parser = parse_budget)]
    pub budget: Option<f64>,
    /// With the kernel's engine: most of a thread's stack that is copied with each sample. Deeper stacks are cut, and said to be
    /// [default: 16Ki].
    #[arg(long, value_name = "SIZE", value_parser = parse_stack)]
    pub stack: Option<u32>,
    /// With the kernel's engine: record mmap, munmap, mremap and brk within a budget, too, and not only without one or in mode `faults`.
    /// While it goes on, each system call of every process on the machine takes some 30 ns more.
    #[arg(long, conflicts_with = "no_maps")]
    pub maps: bool,
    /// A function of a pool of the program's own: alloc=NAME(size=N[,count=M]), free=NAME(ptr=N) or realloc=NAME(ptr=N,size=M), arguments
    /// counted from 0; NAME@MODULE looks in one module only; `nothrow` among them says that a function of a C++ program throws no
    /// exception. What a pool hands out is counted beside what it was cut from, never added.
    #[arg(long, value_name = "HOOK")]
    pub hook: Vec<CustomHook>,
}

impl Probing {
    /// Pools, numbered.
    pub fn hooks(&self) -> anyhow::Result<Vec<CustomHook>> {
        let mut hooks = self.hook.clone();
        CustomHook::number(&mut hooks)?;
        Ok(hooks)
    }

    /// How to sample. `interval`: mean bytes between samples, if that is given; `no_maps`: changes of mappings are not wanted.
    pub fn plan(&self, interval: Option<u64>, free_stacks: bool, no_maps: bool, faults_alone: bool) -> Plan {
        let interval = interval.map_or(Interval::Adapted, Interval::Fixed);
        let (budget, stack_bytes) = (self.budget.unwrap_or(BUDGET), self.stack.unwrap_or(STACK));
        // Of other processes nobody has given leave to take time: not where there is a budget. Alone, faults need it to say what was touched.
        let maps = self.maps || !no_maps && (budget.is_infinite() || faults_alone);
        // Faults beside the allocations, whatever their interval: they tell of growth also where allocations are too many to be watched.
        Plan { budget, interval, stack_bytes, free_stacks, allocations: true, faults: Some(Interval::Adapted), maps }
    }
}

/// A share of a core.
fn parse_budget(text: &str) -> Result<f64, String> {
    if text == "unlimited" {
        return Ok(f64::INFINITY);
    }
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let share = number.filter(|per_cent| (0.01..=100.0).contains(per_cent)).map(|per_cent| per_cent / 100.0);
    share.ok_or_else(|| "give a share of one core from 0.01% to 100%, for example 1%, or `unlimited`".into())
}

fn parse_stack(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text)?;
    u32::try_from(bytes).ok().filter(|bytes| (2 << 10..=64 << 10).contains(bytes)).ok_or_else(|| "give a size from 2Ki to 64Ki".into())
}
