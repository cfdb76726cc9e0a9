//! Large zeroed tables of plain data: 2 MB pages where there are any, touched lazily.
//!
//! Owner: whoever holds the [`Mapped`]; it behaves like a boxed slice. Zero bytes must be a valid value of the element
//! type, which `zerocopy::FromZeros` guarantees.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use zerocopy::FromZeros;

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
    /// Maps `len` elements; with `huge`, 2 MB pages are tried first and transparent ones advised otherwise.
    pub fn zeroed(len: usize, huge: bool) -> Result<Self, crate::PoolError> {
        const PAGE: usize = 2 << 20;
        assert!(align_of::<T>() <= 4096, "a page is the strictest alignment a mapping gives");
        let bytes = (len.max(1) * size_of::<T>()).next_multiple_of(if huge { PAGE } else { 4096 });
        let map = |extra: MapFlags| {
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
            unsafe {
                mmap_anonymous(
                    core::ptr::null_mut(),
                    bytes,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::NORESERVE | extra,
                )
            }
        };
        let large = if huge { map(MapFlags::HUGETLB).ok() } else { None };
        let (address, got_huge) = match large {
            Some(address) => (address, true),
            None => {
                let address = map(MapFlags::empty()).map_err(|source| crate::PoolError::Map { bytes, source })?;
                if huge {
                    // SAFETY: the range was mapped above and belongs to us; the advice changes no content.
                    let _ = unsafe { rustix::mm::madvise(address, bytes, rustix::mm::Advice::LinuxHugepage) };
                }
                (address, false)
            }
        };
        let base = NonNull::new(address.cast::<T>())
            .ok_or(crate::PoolError::Map { bytes, source: rustix::io::Errno::NOMEM })?;
        Ok(Mapped { base, len, bytes, huge: got_huge })
    }

    /// Whether it got explicit 2 MB pages.
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// Writes to every page, so that no later access faults (benchmarks; start-up of busy nodes).
    pub fn prefault(&mut self) {
        let step = 4096 / size_of::<T>().clamp(1, 4096);
        for at in (0..self.len).step_by(step.max(1)) {
            // SAFETY: `at` < len; a volatile write of the value just read changes nothing but makes the page present.
            unsafe {
                let cell = self.base.as_ptr().add(at).cast::<u8>();
                cell.write_volatile(cell.read_volatile());
            }
        }
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
