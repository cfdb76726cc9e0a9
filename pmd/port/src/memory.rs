//! Memory from the kernel: regions that are present in full, large zeroed tables of plain data, and tables that lie in a
//! file and outlive the process.
//!
//! 2 MB pages where there are any. Owner: whoever holds the [`Mapped`]; it behaves like a boxed slice. Zero bytes must be a
//! valid value of the element type, which `zerocopy::FromZeros` guarantees; of a file's, any bytes (`FromBytes`).

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, fallocate, fstat};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

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

/// Maps `bytes` of zeroed private memory, every page of it present, on transparent 2 MB pages as far as the kernel has any:
/// for where none are reserved. The mapping begins on a 2 MB border, or the first page could not be a large one. It is not
/// inherited over `fork`: a device may be writing into it, and a child that makes it copy-on-write would part the two.
pub(crate) fn map_joined(bytes: usize) -> Result<NonNull<u8>, Errno> {
    let whole = bytes.checked_add(HUGE_PAGE).ok_or(Errno::NOMEM)?;
    // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
    let start = unsafe {
        mmap_anonymous(
            core::ptr::null_mut(),
            whole,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?
    .cast::<u8>();
    let skip = start.align_offset(HUGE_PAGE);
    let base = start.wrapping_add(skip);
    for (at, len) in [(start, skip), (base.wrapping_add(bytes), HUGE_PAGE - skip)] {
        if len > 0 {
            // SAFETY: what lies in front of and behind the part that is kept, of which no address leaves this function;
            // `bytes` is a multiple of the page size, so both are whole pages.
            let _ = unsafe { munmap(at.cast(), len) };
        }
    }
    // SAFETY: the range is the mapping just made; the advice changes no content.
    unsafe {
        let _ = madvise(base.cast(), bytes, Advice::LinuxHugepage);
        let _ = madvise(base.cast(), bytes, Advice::LinuxDontFork);
    }
    // SAFETY: as above; populating changes no byte.
    match unsafe { madvise(base.cast(), bytes, Advice::LinuxPopulateWrite) } {
        Ok(()) | Err(Errno::INVAL) => NonNull::new(base).ok_or(Errno::NOMEM),
        Err(why) => {
            // SAFETY: the mapping just made, of which no address has left this function.
            let _ = unsafe { munmap(base.cast(), bytes) };
            Err(why)
        }
    }
}

/// A mapped slice of `T`, zero at first; one that lies in a file begins with what is there, and grows.
pub struct Mapped<T> {
    base: NonNull<T>,
    /// Elements that have memory.
    len: usize,
    /// Elements there can be.
    room: usize,
    bytes: usize,
    huge: bool,
    file: Option<(OwnedFd, u64)>,
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
            return Ok(Mapped { base: base.cast(), len, room: len, bytes, huge: true, file: None });
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
        Ok(Mapped { base, len, room: len, bytes, huge: false, file: None })
    }

    /// Elements there can be; more than the slice's length only for one that lies in a file.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Sees to it that at least `len` elements have memory. `false`: there is none, or no room; nothing has changed.
    /// Memory is taken from the file system here and now, so that no later access finds it full (which would be a SIGBUS).
    pub fn reserve(&mut self, len: usize) -> bool {
        if len <= self.len {
            return true;
        }
        let Some((file, offset)) = self.file.as_ref().filter(|_| len <= self.room) else { return false };
        let size = size_of::<T>();
        let (from, more) = (self.len * size, (len - self.len) * size);
        if fallocate(file, FallocateFlags::empty(), offset + from as u64, more as u64).is_err() {
            return false;
        }
        // Present at once; where the kernel is too old for this, pages come as they are touched.
        let page = from / 4096 * 4096;
        // SAFETY: the range is within the mapping, and the file has memory for all of it; populating changes no byte.
        let _ = unsafe {
            madvise(self.base.as_ptr().cast::<u8>().add(page).cast(), from + more - page, Advice::LinuxPopulateWrite)
        };
        self.len = len;
        true
    }

    /// Whether it got explicit 2 MB pages.
    pub fn huge_pages(&self) -> bool {
        self.huge
    }

    /// Makes every page present, so that no later access faults (benchmarks; start-up of busy nodes). Best effort.
    pub fn prefault(&mut self) {
        let bytes = if self.file.is_some() { self.len * size_of::<T>() } else { self.bytes };
        // SAFETY: the range is our mapping; populating it changes no byte.
        let _ = unsafe { madvise(self.base.as_ptr().cast(), bytes, Advice::LinuxPopulateWrite) };
    }
}

impl<T: FromBytes + IntoBytes> Mapped<T> {
    /// Maps up to `room` elements of a file that begin `offset` bytes into it (a multiple of the file system's page size).
    /// Its length is what the file holds already; [`reserve`](Self::reserve) adds to it. The file must be this process's
    /// alone: nobody else may write to it, or cut it, while it is mapped.
    pub fn in_file(file: OwnedFd, offset: u64, room: usize) -> Result<Self, crate::PoolError> {
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0) };
        let error = |bytes, source| crate::PoolError::Map { bytes, source };
        let held = fstat(&file).map_err(|e| error(0, e))?;
        let page = usize::try_from(held.st_blksize).unwrap_or(4096).max(4096);
        let bytes = room.max(1).checked_mul(size_of::<T>()).and_then(|b| b.checked_next_multiple_of(page));
        let bytes = bytes.filter(|&b| isize::try_from(b).is_ok()).ok_or(error(usize::MAX, Errno::NOMEM))?;
        let held = usize::try_from(held.st_size).unwrap_or(0).saturating_sub(usize::try_from(offset).unwrap_or(0));
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing in this process; that no other
        // process writes to the file is this function's condition.
        let address = unsafe {
            mmap(
                core::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                offset,
            )
        };
        let address = address.map_err(|source| error(bytes, source))?;
        // SAFETY: the range was mapped above and belongs to us; the advice changes no content.
        let _ = unsafe { madvise(address, bytes, Advice::LinuxHugepage) };
        let base = NonNull::new(address.cast::<T>()).ok_or(error(bytes, Errno::NOMEM))?;
        let mut mapped = Mapped { base, len: 0, room, bytes, huge: page > 4096, file: Some((file, offset)) };
        // Holes are filled: reading one would take memory that may not be there.
        mapped.reserve((held / size_of::<T>()).min(room));
        Ok(mapped)
    }
}

impl<T> Deref for Mapped<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping has memory for `len` elements, all of which were valid when mapped (zero, or any bytes for
        // what lies in a file) and are written only as `T`.
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

    fn scratch(name: &str) -> OwnedFd {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        let path = format!("/dev/shm/sg-mapped-{}-{name}", std::process::id());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn what_lies_in_a_file_is_there_again_when_it_is_mapped_anew() {
        let file = scratch("again");
        let mut table = Mapped::<u64>::in_file(file.try_clone().unwrap(), 4096, 100_000).unwrap();
        assert_eq!((table.len(), table.room()), (0, 100_000));
        assert!(table.reserve(50_000) && !table.reserve(100_001));
        assert!(table.iter().all(|v| *v == 0));
        table[49_999] = 7;
        drop(table);
        let again = Mapped::<u64>::in_file(file.try_clone().unwrap(), 4096, 100_000).unwrap();
        assert_eq!((again.len(), again[49_999]), (50_000, 7));
        let shorter = Mapped::<u64>::in_file(file, 4096, 10).unwrap();
        assert_eq!((shorter.len(), shorter.room()), (10, 10));
    }

    #[test]
    fn without_room_in_the_file_system_nothing_grows_and_nothing_faults() {
        // No file system has an exbibyte.
        let mut table = Mapped::<u64>::in_file(scratch("full"), 0, 1 << 40).unwrap();
        assert!(!table.reserve(1 << 40));
        assert_eq!(table.len(), 0);
        assert!(table.reserve(1000));
        table[999] = 1;
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
