//! Memory from the kernel: regions that are present in full, and large zeroed tables of plain data.
//!
//! 2 MB pages where there are any. Owner: whoever holds the [`Mapped`]; it behaves like a boxed slice. Zero bytes must be a
//! valid value of the element type, which `zerocopy::FromZeros` guarantees.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::FromZeros;

/// Size of the pages that `MAP_HUGETLB` gives by default on x86-64 and AArch64, in bytes.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// Maps `bytes` of zeroed memory, every page of it present; `flags` say whether shared or private and which pages.
///
/// 2 MB pages must come this way: whether there are enough is only certain once each was touched. An unreserved mapping
/// (`MAP_NORESERVE`) succeeds without any, and a hugetlb cgroup limit (a pod's `hugepages-2Mi`) is charged at first touch;
/// in both cases the answer is a SIGBUS in the middle of the run.
pub(crate) fn map_present(bytes: usize, flags: MapFlags) -> Result<NonNull<u8>, Errno> {
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
    let address = unsafe {
        mmap_anonymous(core::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags | MapFlags::POPULATE)
    }?;
    // MAP_POPULATE hides failures; MADV_POPULATE_WRITE reports them. Kernels before 5.14 do not know it and say EINVAL.
    // SAFETY: the range is the mapping just made; populating it changes no byte.
    match unsafe { madvise(address, bytes, Advice::LinuxPopulateWrite) } {
        Ok(()) | Err(Errno::INVAL) => NonNull::new(address.cast()).ok_or(Errno::NOMEM),
        Err(why) => {
            // SAFETY: the mapping just made, of which no address has left this function.
            let _ = unsafe { munmap(address, bytes) };
            Err(why)
        }
    }
}

/// A mapped slice of `T`, zero at first.
pub struct Mapped<T> {
    base: NonNull<T>,
    len: usize,
    bytes: usize,
    huge: bool,
}

// SAFETY: Mapped owns its mapping exclusively, like Box<[T]>.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: shared access gives only `&[T]`.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T: FromZeros> Mapped<T> {
    /// Maps `len` elements. With `huge`, 2 MB pages are tried first, all of them at once; else, and where there are too
    /// few, pages come as they are touched, transparent large ones where the kernel gives them.
    pub fn zeroed(len: usize, huge: bool) -> Result<Self, crate::PoolError> {
        const { assert!(align_of::<T>() <= 4096, "a page is the strictest alignment a mapping gives") };
        let page = if huge { HUGE_PAGE } else { 4096 };
        let bytes = len.max(1).checked_mul(size_of::<T>().max(1)).and_then(|b| b.checked_next_multiple_of(page));
        let error = |bytes, source| crate::PoolError::Map { bytes, source };
        // A slice is at most isize::MAX bytes long.
        let bytes = bytes.filter(|&b| isize::try_from(b).is_ok()).ok_or(error(usize::MAX, Errno::NOMEM))?;
        if huge && let Ok(base) = map_present(bytes, MapFlags::PRIVATE | MapFlags::HUGETLB) {
            return Ok(Mapped { base: base.cast(), len, bytes, huge: true });
        }
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            mmap_anonymous(
                core::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let address = address.map_err(|source| error(bytes, source))?;
        if huge {
            // SAFETY: the range was mapped above and belongs to us; the advice changes no content.
            let _ = unsafe { madvise(address, bytes, Advice::LinuxHugepage) };
        }
        let base = NonNull::new(address.cast::<T>()).ok_or(error(bytes, Errno::NOMEM))?;
        Ok(Mapped { base, len, bytes, huge: false })
    }

    /// Whether it got explicit 2 MB pages.
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// Makes every page present, so that no later access faults (benchmarks; start-up of busy nodes). Best effort.
    pub fn prefault(&mut self) {
        // SAFETY: the range is our mapping; populating it changes no byte.
        let _ = unsafe { madvise(self.base.as_ptr().cast(), self.bytes, Advice::LinuxPopulateWrite) };
    }
}

impl<T> Deref for Mapped<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds `len` elements, all of which were valid when zeroed and written only as `T`.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Mapped<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes it exclusive.
        unsafe { core::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no slice of it can outlive `self`. Elements are plain data without drop glue.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_overflows_is_refused() {
        for len in [usize::MAX, usize::MAX / 8 + 2, isize::MAX as usize / 8 + 1] {
            assert!(matches!(Mapped::<u64>::zeroed(len, true), Err(crate::PoolError::Map { .. })));
        }
    }

    #[test]
    fn a_mapped_slice_starts_zeroed_and_keeps_what_is_written() {
        for huge in [false, true] {
            let mut table = Mapped::<u64>::zeroed(100_000, huge).unwrap();
            assert!(table.iter().all(|v| *v == 0));
            table[99_999] = 7;
            table.prefault();
            assert_eq!((table.len(), table[99_999], table[0]), (100_000, 7, 0));
        }
    }
}
