//! Asks the processor for memory before it is needed.
#![expect(unsafe_code, reason = "a hint to the processor, which no safe function gives")]

/// Has the cache fetch the line that this begins in.
#[inline(always)]
pub(super) fn fetch<T>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint about memory that is there; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}
