//! Clocks for benchmark reports: the processor's time-stamp counter and a thread's CPU time.

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

/// CPU time of the calling thread, in nanoseconds: time in which it was descheduled does not count. By way of the C library,
/// because the vDSO that other crates look up themselves is not there under valgrind.
pub fn thread_cpu() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which is ours; every Linux has this clock, and a failure would leave it zero.
    let _ = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    #[test]
    fn work_takes_cpu_time() {
        let before = super::thread_cpu();
        let mut sum = 0u64;
        while super::thread_cpu() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(super::thread_cpu() > before);
    }
}
