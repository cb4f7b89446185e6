//! Which clock a ring uses, and what its ticks are worth.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::time::Duration;

use hound_common::ring::{CLOCK_MONOTONIC, CLOCK_TSC};
use nix::time::{ClockId, clock_gettime};

use crate::capture::{Calibration, Clock};

/// The clock for a new ring: the TSC if it runs at one rate in all states and the kernel itself has not given it up.
pub fn choose() -> u32 {
    let invariant = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0;
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let claimed = flags.lines().find(|l| l.starts_with("flags")).is_some_and(|l| l.contains(" constant_tsc") && l.contains(" nonstop_tsc"));
    let source = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    // The paravirtual clocks of KVM, Xen and Hyper-V are computed from the TSC too.
    let trusted = ["tsc", "kvm-clock", "xen", "hyperv_clocksource_tsc_page"].contains(&source.trim());
    if (invariant || claimed) && trusted { CLOCK_TSC } else { CLOCK_MONOTONIC }
}

/// The capture's word for a ring's clock.
pub fn kind(clock: u32) -> Clock {
    if clock == CLOCK_MONOTONIC { Clock::Monotonic } else { Clock::Tsc }
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Now, in ticks of this clock.
pub fn ticks(clock: Clock) -> u64 {
    match clock {
        Clock::Monotonic => nanoseconds(ClockId::CLOCK_MONOTONIC),
        Clock::Tsc => tsc(),
    }
}

#[expect(unsafe_code, reason = "reads the time-stamp counter")]
fn tsc() -> u64 {
    // SAFETY: every x86-64 has it.
    unsafe { _rdtsc() }
}

/// One moment on all three clocks. The narrowest of several tries: between the two tick reads lies what the others can be off by.
pub fn calibrate(clock: Clock) -> Calibration {
    let mut best = Calibration::default();
    let mut width = u64::MAX;
    for _ in 0..8 {
        let before = ticks(clock);
        let monotonic_ns = nanoseconds(ClockId::CLOCK_MONOTONIC);
        let realtime_ns = nanoseconds(ClockId::CLOCK_REALTIME);
        let after = ticks(clock);
        if after.wrapping_sub(before) < width {
            width = after.wrapping_sub(before);
            best = Calibration { ticks: before + width / 2, monotonic_ns, realtime_ns };
        }
    }
    best
}

/// Ticks a second, measured over a few milliseconds: good to some 10 ppm, later pairs refine it.
pub fn rate(clock: Clock, start: &Calibration) -> u64 {
    if clock == Clock::Monotonic {
        return 1_000_000_000;
    }
    std::thread::sleep(Duration::from_millis(2));
    let now = calibrate(clock);
    let (ticks, ns) = (now.ticks - start.ticks, now.monotonic_ns - start.monotonic_ns);
    u64::try_from(u128::from(ticks) * 1_000_000_000 / u128::from(ns.max(1))).unwrap_or(u64::MAX)
}
