//! How much a script may take: steps, time, memory.

use super::fault::{Refusal, refused};
use rhai::Engine;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What a script may take. None: as much as there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Limits {
    /// Operations of the engine.
    pub operations: Option<u64>,
    /// How long it may run.
    pub time: Option<Duration>,
    /// Bytes that lists, pictures and printed text may take together. What variables hold is bounded beside, in numbers of elements.
    pub memory: Option<usize>,
}

impl Limits {
    /// For scripts of people whom nobody knows.
    pub fn sandbox() -> Self {
        Limits { operations: Some(20_000_000), time: Some(Duration::from_secs(30)), memory: Some(256 << 20) }
    }

    /// Sets what the engine looks after itself.
    pub fn apply(&self, engine: &mut Engine) {
        // Deeper than any script is written, and less than the stack of a thread holds.
        engine.set_max_expr_depths(128, 64).set_max_call_levels(48);
        let Some(operations) = self.operations else { return };
        engine.set_max_operations(operations).set_max_variables(128).set_max_functions(256);
        engine.set_max_string_size(1 << 20).set_max_array_size(20_000).set_max_map_size(5_000);
    }
}

/// What a script has taken.
#[derive(Clone, Debug)]
pub struct Meter(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    limits: Limits,
    bytes: AtomicUsize,
    until: Option<Instant>,
}

/// Bytes that are given back when whatever holds them goes.
#[derive(Debug)]
pub struct Share {
    of: Arc<Taken>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Meter {
    /// Begins now.
    pub fn new(limits: Limits) -> Self {
        let until = limits.time.and_then(|time| Instant::now().checked_add(time));
        Meter(Arc::new(Taken { limits, bytes: AtomicUsize::new(0), until }))
    }

    /// As much as there is.
    pub fn unlimited() -> Self {
        Meter::new(Limits::default())
    }

    /// Notes that so many bytes are held.
    ///
    /// # Errors
    /// If that is too much.
    pub fn take(&self, bytes: usize) -> Result<Share, Refusal> {
        let held = self.0.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let share = Share { of: self.0.clone(), bytes };
        match self.0.limits.memory {
            Some(most) if held > most => refused(format!("the script takes more than {} of memory", crate::view::bytes(most as u64))),
            _ => Ok(share),
        }
    }

    /// Whether there is time left.
    ///
    /// # Errors
    /// If there is none.
    pub fn must_have_time(&self) -> Result<(), Refusal> {
        if self.is_late() { refused(self.late()) } else { Ok(()) }
    }

    /// Whether the time is over.
    pub fn is_late(&self) -> bool {
        self.0.until.is_some_and(|until| Instant::now() >= until)
    }

    /// What is said then.
    pub fn late(&self) -> String {
        let time = self.0.limits.time.unwrap_or_default();
        format!("the script takes longer than {}", crate::view::duration(time.as_nanos() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_may_be_taken_again() {
        let meter = Meter::new(Limits { memory: Some(100), ..Limits::default() });
        let first = meter.take(60).unwrap();
        assert!(meter.take(60).unwrap_err().to_string().contains("more than 100 B of memory"));
        drop(first);
        assert!(meter.take(60).is_ok());
    }
}
