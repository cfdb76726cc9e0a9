//! Hands out the frames of a burst one by one, each moved once, from where it lies to where it goes.
//!
//! `Vec::drain` gives them through an `Option`, whose niche lies in the frame: each is then taken apart, asked and put
//! together again, 40 instructions a frame where moving it takes 10. Owner: whoever holds the burst.

use crate::frame::Frame;
use crate::port::Burst;

/// The first frames of a burst, in their order. What is not taken stays in the burst, in its order.
pub struct Dealer<'a> {
    burst: &'a mut Burst,
    /// Frames already handed out: they are no longer the burst's.
    next: usize,
    end: usize,
}

impl<'a> Dealer<'a> {
    /// Of the first `n` frames, or all if there are fewer.
    pub fn new(burst: &'a mut Burst, n: usize) -> Self {
        let end = n.min(burst.len());
        Dealer { burst, next: 0, end }
    }

    /// Frames that are left.
    #[inline(always)]
    pub fn left(&self) -> usize {
        self.end - self.next
    }

    /// The next frame.
    ///
    /// # Panics
    /// If none is left.
    #[inline(always)]
    pub fn take(&mut self) -> Frame {
        assert!(self.next < self.end, "a dealer has no frame left");
        // SAFETY: next < end <= the burst's length, so the element is there and initialised; `next` moves past it before
        // anything else happens, and `drop` takes everything before `next` out of the burst without touching it, so it is
        // read once.
        let frame = unsafe { self.burst.as_ptr().add(self.next).read() };
        self.next += 1;
        frame
    }
}

impl Drop for Dealer<'_> {
    fn drop(&mut self) {
        let left = self.burst.len() - self.next;
        let base = self.burst.as_mut_ptr();
        // SAFETY: the frames before `next` have been moved out and must not be seen again: the length is 0 while the rest
        // moves to the front, all inside the vector's allocation, and then is what was moved.
        unsafe {
            self.burst.set_len(0);
            if self.next > 0 {
                core::ptr::copy(base.add(self.next), base, left);
            }
            self.burst.set_len(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{FramePool, PoolOptions};

    #[test]
    fn what_is_dealt_is_gone_and_the_rest_stays_in_order() {
        let pool = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let mut cache = pool.cache();
        let mut burst: Burst = (0..10u8).map(|n| cache.alloc_copy(&[n]).unwrap()).collect();
        let first = |frame: &Frame| frame.head()[0];
        let mut dealer = Dealer::new(&mut burst, 6);
        for n in 0..4 {
            assert_eq!(dealer.left(), 6 - usize::from(n));
            let frame = dealer.take();
            assert_eq!(first(&frame), n);
            cache.free(frame);
        }
        drop(dealer);
        assert_eq!(burst.iter().map(first).collect::<Vec<_>>(), [4, 5, 6, 7, 8, 9]);
        drop(Dealer::new(&mut burst, 3));
        assert_eq!((burst.len(), Dealer::new(&mut burst, 99).left()), (6, 6));
        burst.drain(..).for_each(|frame| cache.free(frame));
        cache.account();
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    #[should_panic(expected = "no frame left")]
    fn more_than_there_are_is_a_panic() {
        let mut burst = Burst::new();
        drop(Dealer::new(&mut burst, 1).take());
    }
}
