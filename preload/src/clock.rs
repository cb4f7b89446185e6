//! Time stamps: the TSC where hound found it trustworthy, else the vDSO's monotonic clock.
//!
//! Both stamps of a block are plain `rdtsc`. A stamp may then be taken before older loads of the same thread have finished, so that
//! a hand-over between cores can come out inverted by well under a microsecond; readers repair that by legality (only what is alive can be
//! freed). Ordering the stamps here (`rdtscp`, or a fence before) costs 9 ns each on a virtual machine, as much as an allocation.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::elf;

/// The vDSO's clock_gettime; 0 = use the TSC.
static VDSO_CLOCK: AtomicUsize = AtomicUsize::new(0);

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

/// Now, in ticks of the ring's clock.
#[inline(always)]
pub fn now() -> u64 {
    let vdso = VDSO_CLOCK.load(Ordering::Relaxed);
    if vdso != 0 { monotonic(vdso) } else { ticks() }
}

/// Whether the ring's clock is the TSC.
pub fn is_tsc() -> bool {
    VDSO_CLOCK.load(Ordering::Relaxed) == 0
}

/// Now by the TSC.
#[inline(always)]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 has rdtsc. (One that forbids itself the TSC is no longer recorded: `filters`.)
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cold]
#[inline(never)]
fn monotonic(vdso: usize) -> u64 {
    const CLOCK_MONOTONIC: i32 = 1;
    // SAFETY: the address of __vdso_clock_gettime, which has this signature.
    let clock_gettime = unsafe { core::mem::transmute::<usize, extern "C" fn(i32, *mut Timespec) -> i32>(vdso) };
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    clock_gettime(CLOCK_MONOTONIC, &mut time);
    (time.seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(time.nanoseconds as u64)
}

/// Whether the processor says that its TSC runs at one rate in all states.
pub fn is_tsc_invariant() -> bool {
    const POWER: u32 = 0x8000_0007;
    const INVARIANT: u32 = 1 << 8;
    core::arch::x86_64::__cpuid(0x8000_0000).eax >= POWER && core::arch::x86_64::__cpuid(POWER).edx & INVARIANT != 0
}

/// Uses this `__vdso_clock_gettime` from now on, or the TSC if it is 0.
pub fn use_function(clock_gettime: u64) {
    VDSO_CLOCK.store(clock_gettime as usize, Ordering::Relaxed);
}

/// Uses no clock from now on: all stamps are 0. (The vDSO's reads the TSC, too.)
pub fn use_none() {
    extern "C" fn none(_clock: i32, _time: *mut Timespec) -> i32 {
        0
    }
    VDSO_CLOCK.store(none as *const () as usize, Ordering::Relaxed);
}

/// Uses the vDSO's clock from now on. False if the loader shows no vDSO with one.
pub fn use_monotonic() -> bool {
    let found = elf::modules().find_map(|m| m.function(c"__vdso_clock_gettime"));
    VDSO_CLOCK.store(found.unwrap_or(0), Ordering::Relaxed);
    found.is_some()
}
