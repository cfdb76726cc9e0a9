//! The one way to lay a header type over bytes.
//!
//! Owner thread: any. Invariant: a reference handed out lies wholly inside the slice it was asked from, so no field
//! access can panic. Cost: one bounds check.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A fixed-size header: any bytes are a value of it, at any alignment.
pub trait Header: FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + Sized {
    /// Bytes on the wire.
    const LEN: usize = size_of::<Self>();

    /// The header at `offset` of `bytes`; `None` if `bytes` ends before the header does.
    #[inline]
    fn at(bytes: &[u8], offset: usize) -> Option<&Self> {
        Self::ref_from_prefix(bytes.get(offset..)?).ok().map(|(header, _)| header)
    }

    /// The header at `offset` of `bytes`, to change in place; `None` if `bytes` ends before the header does.
    #[inline]
    fn at_mut(bytes: &mut [u8], offset: usize) -> Option<&mut Self> {
        Self::mut_from_prefix(bytes.get_mut(offset..)?).ok().map(|(header, _)| header)
    }

    /// Writes the header at `offset` of `out` and returns the offset behind it; `None`, and nothing written, if it
    /// does not fit.
    #[inline]
    fn put(&self, out: &mut [u8], offset: usize) -> Option<usize> {
        self.write_to_prefix(out.get_mut(offset..)?).ok()?;
        Some(offset + Self::LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::UdpHeader;

    #[test]
    fn a_header_that_would_reach_past_the_end_is_none() {
        let bytes = [0u8; 10];
        assert!(UdpHeader::at(&bytes, 2).is_some());
        assert!(UdpHeader::at(&bytes, 3).is_none());
        assert!(UdpHeader::at(&bytes, usize::MAX).is_none());
        assert_eq!(UdpHeader::default().put(&mut [0u8; 9], 1), Some(9));
        assert_eq!(UdpHeader::default().put(&mut [0u8; 9], 2), None);
    }
}
