//! The VXLAN header.
//!
//! ```text
//! 0       1          4     7          8
//! │ flags │ reserved │ VNI │ reserved │ inner Ethernet frame …
//! ```
//! Source: RFC 7348 §5. Owner thread: any. Invariant: reserved bits are sent as zero and ignored when received.
//! Cost: fields are read in place.

use crate::header::Header;
use core::fmt;
use zerocopy::network_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A VXLAN network identifier: 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// `None` if `value` needs more than 24 bits.
    #[inline]
    pub const fn new(value: u32) -> Option<Self> {
        if value < 1 << 24 { Some(Self(value)) } else { None }
    }

    /// The identifier as a number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The 8 bytes between the outer UDP header and the inner frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct VxlanHeader {
    /// Flags in the upper eight bits, reserved below.
    pub flags_reserved: U32,
    /// VNI in the upper 24 bits, reserved below.
    pub vni_reserved: U32,
}

impl Header for VxlanHeader {}
const _: () = assert!(VxlanHeader::LEN == 8);

impl VxlanHeader {
    /// The UDP port IANA gave to VXLAN.
    pub const PORT: u16 = 4789;
    /// The one flag: the VNI field is valid.
    const VNI_VALID: u32 = 0x0800_0000;

    /// The header of a frame in network `vni`.
    #[inline]
    pub const fn new(vni: Vni) -> Self {
        Self { flags_reserved: U32::new(Self::VNI_VALID), vni_reserved: U32::new(vni.0 << 8) }
    }

    /// The network the inner frame belongs to; `None` if the header does not say that it names one.
    #[inline]
    pub fn vni(&self) -> Option<Vni> {
        (self.flags_reserved.get() & Self::VNI_VALID != 0).then_some(Vni(self.vni_reserved.get() >> 8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_header_has_the_flag_the_vni_and_zeros() {
        let header = VxlanHeader::new(Vni::new(4096).unwrap());
        assert_eq!(header.as_bytes(), [0x08, 0, 0, 0, 0x00, 0x10, 0x00, 0]);
        assert_eq!(header.vni(), Vni::new(4096));
    }

    #[test]
    fn reserved_bits_are_ignored_on_receive() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0x12, 0x34, 0x56, 0xff];
        assert_eq!(VxlanHeader::at(&bytes, 0).unwrap().vni(), Vni::new(0x123456));
    }

    #[test]
    fn without_the_flag_there_is_no_vni() {
        let bytes = [0xf7, 0, 0, 0, 0x12, 0x34, 0x56, 0];
        assert_eq!(VxlanHeader::at(&bytes, 0).unwrap().vni(), None);
        assert_eq!(Vni::new(1 << 24), None);
    }
}
