//! What watching the kernel's memory costs on this machine: measured on system calls of hound's own, before anything is recorded.

use std::time::Duration;

use hound_common::kernel::{KMEM_ALLOC_HITS, KMEM_COUNTERS, KMEM_FREE_HITS, KMEM_OTHERS, KMEM_SAMPLES};

use crate::session::kernel::{KernelError, KernelMemory, KernelMemoryOptions};

/// Pipes that one round makes and closes: some milliseconds.
const PIPES: u32 = 400;
/// Rounds; the fastest counts, as whatever else runs can only slow one down.
const ROUNDS: usize = 6;
/// Nothing is sampled.
const NEVER: u64 = 1 << 46;

/// In seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// One allocation that is looked at.
    pub allocation: f64,
    /// One release, or an allocation of somebody else's.
    pub other: f64,
    /// One sample, beyond the hit.
    pub sample: f64,
}

impl Price {
    /// What all that was counted has cost.
    pub fn of(&self, counters: &[u64; KMEM_COUNTERS as usize]) -> f64 {
        let number = |which: u32| counters[which as usize] as f64;
        self.allocation * number(KMEM_ALLOC_HITS)
            + self.other * (number(KMEM_FREE_HITS) + number(KMEM_OTHERS))
            + self.sample * number(KMEM_SAMPLES)
    }
}

/// Watches these kinds, and measures what that costs this thread. Recording begins by the next [`KernelMemory::set`].
///
/// # Errors
/// If they cannot be watched.
pub fn watch_and_measure(programs: &mut KernelMemory, kinds: &[u32], options: &KernelMemoryOptions) -> Result<Price, KernelError> {
    let own = KernelMemoryOptions { pid: Some(std::process::id()), hound: 0, interval: NEVER, ..*options };
    programs.set(&own)?;
    let alone = fastest();
    programs.watch(kinds)?;
    let count = |programs: &KernelMemory, which: u32| programs.counters().map(|counters| counters[which as usize]);
    let before = count(programs, KMEM_ALLOC_HITS)?;
    let watched = fastest();
    // Of this process only; and all that a pipe takes is released again.
    let per_round = ((count(programs, KMEM_ALLOC_HITS)? - before) as f64 / ROUNDS as f64).max(1.0);
    // Not asked for: what is left is what a release costs, too.
    programs.set(&KernelMemoryOptions { hound: std::process::id(), ..own })?;
    let other = ((fastest() - alone) / (2.0 * per_round)).max(0.0);
    let allocation = ((watched - alone) / per_round - other).max(0.0);
    programs.set(&KernelMemoryOptions { interval: 0, ..own })?;
    let before = count(programs, KMEM_SAMPLES)?;
    let sampled = round();
    let sample = (sampled - watched).max(0.0) / (count(programs, KMEM_SAMPLES)? - before).max(1) as f64;
    programs.set(&own)?;
    while programs.read(&mut |_, _| {}) > 0 {}
    Ok(Price { allocation, other, sample })
}

fn fastest() -> f64 {
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

/// Seconds of this thread's processor time.
fn round() -> f64 {
    let before = cpu();
    for _ in 0..PIPES {
        drop(nix::unistd::pipe());
    }
    (cpu() - before).as_secs_f64()
}

fn cpu() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
