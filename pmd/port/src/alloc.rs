//! An allocator that counts, for benches and tests that hold the packet path to its promise of no allocation.
//!
//! A program opts in: `#[global_allocator] static ALLOCATOR: Counting = Counting;`. Owner: each thread counts its own
//! calls, so a worker's figure is not disturbed by others. Cost: one thread-local addition per allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, with every call that asks for memory counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting;

fn count() {
    // A thread that is ending has no counter left; nobody asks it either.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: every call is passed on to `System` unchanged, which upholds the contract of GlobalAlloc; the counter is a
// thread-local without destructor and initialiser, so counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are System's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are System's; `at` came from System through this allocator.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are System's; `at` came from System through this allocator.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Allocations this thread has made so far; stays 0 in a program that does not use [`Counting`].
pub fn allocations() -> u64 {
    CALLS.with(Cell::get)
}

/// Whether this program counts.
pub fn is_counting() -> bool {
    let before = allocations();
    drop(std::hint::black_box(Box::new(0u8)));
    allocations() != before
}
