//! The processor's time-stamp counter, for benchmark reports.

/// Reads the time-stamp counter; `None` on processors without one that user code may read. It counts at a fixed rate,
/// not in core cycles, and a thread that is not running goes on counting.
#[inline]
pub fn ticks() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC reads a register and nothing else; Linux leaves it enabled for user code.
    return Some(unsafe { core::arch::x86_64::_rdtsc() });
    #[cfg(not(target_arch = "x86_64"))]
    None
}
