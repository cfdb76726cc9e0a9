//! The kernel's AF_XDP numbers and structs that rustix does not have yet.
//!
//! Source: `include/uapi/linux/if_xdp.h`. Stable ABI, so spelled out here instead of depending on the build host's
//! headers, which may be older than the kernel the program runs on.

use sluice_port::{CHUNK, frame::LINK_BYTES};

/// Descriptor option: the packet continues in the next descriptor (Linux 6.6).
pub(crate) const XDP_PKT_CONTD: u32 = 1 << 0;
/// Descriptor option: a [`TxMetadata`] stands in front of the data (Linux 6.8).
pub(crate) const XDP_TX_METADATA: u32 = 1 << 1;
/// UMEM flag: `tx_metadata_len` is set (Linux 6.11; 6.8 to 6.10 take the length without the flag and refuse the flag).
pub(crate) const XDP_UMEM_TX_METADATA_LEN: u32 = 1 << 2;
/// [`TxMetadata::flags`]: complete the checksum.
pub(crate) const XDP_TXMD_FLAGS_CHECKSUM: u64 = 1 << 1;
/// Ring flag: the kernel sleeps until told that there is work.
pub(crate) const XDP_RING_NEED_WAKEUP: u32 = 1 << 0;
/// Packets one `sendto` sends in copy mode (TX_BATCH_SIZE in net/xdp/xsk.c).
pub(crate) const TX_BATCH: u32 = 32;
/// Descriptors of one packet in copy mode: the first becomes the skb's head, the others its fragments
/// (MAX_SKB_FRAGS). A longer packet would be dropped by the kernel without a completion.
pub(crate) const COPY_MAX_SEGMENTS: usize = 18;

/// What the kernel does for a packet on its way out (`struct xsk_tx_metadata`), directly in front of its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct TxMetadata {
    pub flags: u64,
    /// First byte of the sum, counted from the descriptor's address.
    pub csum_start: u16,
    /// Position of the checksum field, from `csum_start`.
    pub csum_offset: u16,
    pub spare: u32,
    pub launch_time: u64,
}
/// Bytes in front of every sent chunk's data that the kernel reserves once a UMEM has metadata.
pub(crate) const TX_METADATA_LEN: usize = size_of::<TxMetadata>();
const _: () = assert!(TX_METADATA_LEN == 24);

/// One RX or TX descriptor (`struct xdp_desc`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Desc {
    /// Byte offset of the data in the UMEM.
    pub addr: u64,
    /// Bytes of data in this chunk.
    pub len: u32,
    /// `XDP_PKT_CONTD`, `XDP_TX_METADATA`.
    pub options: u32,
}
const _: () = assert!(size_of::<Desc>() == 16);

impl Desc {
    pub(crate) fn new(index: u32, offset: u16, len: u16, options: u32) -> Self {
        Desc { addr: index as u64 * CHUNK as u64 + u64::from(offset), len: u32::from(len), options }
    }

    /// Chunk, offset and length, or `None` if the data would not lie within one chunk behind its link.
    pub(crate) fn place(&self) -> Option<(u32, u16, u16)> {
        let index = u32::try_from(self.addr / CHUNK as u64).ok()?;
        let offset = (self.addr % CHUNK as u64) as usize;
        (offset >= LINK_BYTES && offset + self.len as usize <= CHUNK).then_some((index, offset as u16, self.len as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_names_chunk_offset_and_length() {
        assert_eq!(Desc::new(3, 256, 1500, 0).place(), Some((3, 256, 1500)));
    }

    #[test]
    fn a_descriptor_that_leaves_its_chunk_is_refused() {
        assert_eq!(Desc { addr: 4000, len: 97, options: 0 }.place(), None);
        assert_eq!(Desc { addr: 4000, len: 96, options: 0 }.place(), Some((0, 4000, 96)));
        assert_eq!(Desc { addr: 8, len: 1, options: 0 }.place(), None, "the link is not data");
        assert_eq!(Desc { addr: u64::MAX, len: 1, options: 0 }.place(), None);
        assert_eq!(Desc { addr: 256, len: u32::MAX, options: 0 }.place(), None);
    }
}
