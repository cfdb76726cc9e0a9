//! One packet: a descriptor that owns a chain of fixed-size chunks of the frame pool.
//!
//! ```text
//! chunk (4096 bytes)
//! 0        16              256 (HEADROOM)      data+len                4096
//! ├─ Link ─┼── headroom ───┼── data ───────────┼── tailroom ───────────┤
//!          ▲ TX metadata and pushed headers grow leftwards from data
//! ```
//! `Link` (next chunk, offset, length) is only read for chained frames, so a single-chunk packet costs no extra
//! cache line. Owner: whichever thread holds the `Frame`; it is `Send`, never shared.

use core::ptr::NonNull;

/// Bytes of one chunk. AF_XDP accepts 2048 or 4096; the larger holds a 1500-byte frame with room to spare and
/// keeps a 64 KB segment in 17 chunks.
pub const CHUNK: usize = 4096;
/// Offset of received data in a chunk: what the kernel leaves free in front of AF_XDP data (XDP_PACKET_HEADROOM).
pub const HEADROOM: usize = 256;
/// Bytes at the start of a chunk that belong to the chain link.
pub const LINK_BYTES: usize = 16;
/// "No next chunk".
const NONE: u32 = u32::MAX;

/// What is known of the innermost transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    /// As on a wire: complete, not verified, the endpoint's business.
    #[default]
    None,
    /// The field holds the pseudo-header sum only; the sum over `start..` is still to be folded in at
    /// `start + offset`. Both in bytes; `start` counts from the first byte of the frame.
    Partial {
        /// First byte covered by the sum, from the start of the frame.
        start: u16,
        /// Position of the checksum field, from `start`.
        offset: u16,
    },
    /// A device that cannot tell (veth): partial if the field equals the pseudo-header sum, else complete.
    Unknown,
    /// Verified by the device.
    Verified,
}

/// Which segmentation a frame longer than the MTU asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum GsoKind {
    /// An ordinary packet.
    #[default]
    None,
    /// TCP over IPv4 (innermost).
    Tcp4,
    /// TCP over IPv6 (innermost).
    Tcp6,
    /// UDP datagrams of equal size (UDP_SEGMENT), either family.
    Udp,
}

/// Segmentation request of a frame: kind and payload bytes per segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Gso {
    /// Kind of segmentation.
    pub kind: GsoKind,
    /// Transport payload bytes in each segment but the last; 0 for [`GsoKind::None`].
    pub size: u16,
}

/// Chain link, kept in the first bytes of every chunk but read only when a frame has more than one.
#[derive(Clone, Copy)]
#[repr(C)]
struct Link {
    next: u32,
    offset: u16,
    len: u16,
    /// Last chunk of the chain; kept in the head only, so that appending does not walk.
    tail: u32,
    spare: u32,
}
const _: () = assert!(size_of::<Link>() == LINK_BYTES);

/// An owned packet. Not `Clone`: a frame has one owner, and dropping it without giving it back leaks its chunks,
/// which the pool's count shows (`FramePool::outstanding`).
#[must_use = "a frame must be sent or given back to the pool"]
pub struct Frame {
    base: NonNull<u8>,
    index: u32,
    next: u32,
    total: u32,
    offset: u16,
    len: u16,
    segments: u16,
    /// Port the frame came in on (`PortId.0`).
    pub port: u16,
    /// State of the innermost transport checksum.
    pub checksum: Checksum,
    /// Segmentation request.
    pub gso: Gso,
}

// SAFETY: a Frame is the only owner of the chunks it names (the pool hands each index out once), so moving it to
// another thread moves that exclusive ownership with it.
unsafe impl Send for Frame {}

impl core::fmt::Debug for Frame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Frame")
            .field("index", &self.index)
            .field("len", &self.total)
            .field("segments", &self.segments)
            .field("checksum", &self.checksum)
            .field("gso", &self.gso)
            .finish()
    }
}

impl Frame {
    /// Makes the owner of chunk `index`, whose memory starts at `base`, holding `len` bytes at `offset`.
    ///
    /// # Safety
    /// - `base` points to a chunk of [`CHUNK`] bytes at position `index` of a pool's region that is never unmapped
    ///   while frames of it exist, and neighbours of the same region lie `CHUNK` bytes apart;
    /// - no other `Frame` names the chunk;
    /// - `LINK_BYTES <= offset` and `offset + len <= CHUNK`.
    pub unsafe fn from_raw(base: NonNull<u8>, index: u32, offset: u16, len: u16) -> Self {
        debug_assert!(usize::from(offset) >= LINK_BYTES && usize::from(offset) + usize::from(len) <= CHUNK);
        Frame {
            base,
            index,
            next: NONE,
            total: u32::from(len),
            offset,
            len,
            segments: 1,
            port: 0,
            checksum: Checksum::None,
            gso: Gso::default(),
        }
    }

    /// Number of the first chunk in its pool.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Offset of the first data byte in the first chunk.
    #[inline]
    pub fn offset(&self) -> usize {
        usize::from(self.offset)
    }

    /// Bytes of the whole packet, over all chunks.
    #[inline]
    pub fn len(&self) -> usize {
        self.total as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Bytes in the first chunk.
    #[inline]
    pub fn head_len(&self) -> usize {
        usize::from(self.len)
    }

    /// Number of chunks.
    #[inline]
    pub fn segments(&self) -> usize {
        usize::from(self.segments)
    }

    /// Free bytes in front of the data.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.offset) - LINK_BYTES
    }

    /// Free bytes behind the data of the first chunk.
    #[inline]
    pub fn tailroom(&self) -> usize {
        CHUNK - usize::from(self.offset) - usize::from(self.len)
    }

    /// The first chunk's bytes: all headers are here.
    #[inline]
    pub fn head(&self) -> &[u8] {
        // SAFETY: offset + len <= CHUNK (kept by every method) and this Frame owns the chunk.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr().add(usize::from(self.offset)), usize::from(self.len)) }
    }

    /// The first chunk's bytes, writable.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `head`, and `&mut self` makes the access exclusive.
        unsafe {
            core::slice::from_raw_parts_mut(self.base.as_ptr().add(usize::from(self.offset)), usize::from(self.len))
        }
    }

    /// Address of the first data byte, for prefetching.
    #[inline]
    pub fn data_ptr(&self) -> *const u8 {
        self.base.as_ptr().wrapping_add(usize::from(self.offset))
    }

    /// Puts `n` bytes in front of the data and returns the new head. Their content is what was there before.
    /// `None` if the headroom is too small; the frame is then unchanged. A partial checksum's start moves along.
    #[inline]
    pub fn push(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.headroom() || self.head_len() + n > CHUNK {
            return None;
        }
        self.offset -= n as u16;
        self.len += n as u16;
        self.total += n as u32;
        if let Checksum::Partial { start, .. } = &mut self.checksum {
            *start += n as u16;
        }
        Some(self.head_mut())
    }

    /// Takes `n` bytes off the front. `false` if the first chunk has fewer; the frame is then unchanged.
    #[inline]
    pub fn pull(&mut self, n: usize) -> bool {
        if n > self.head_len() {
            return false;
        }
        self.offset += n as u16;
        self.len -= n as u16;
        self.total -= n as u32;
        if let Checksum::Partial { start, .. } = &mut self.checksum {
            *start = start.saturating_sub(n as u16);
        }
        true
    }

    /// Sets a single-chunk frame's data to `len` bytes from [`HEADROOM`] and clears its metadata; returns the bytes.
    /// `None` if the frame is chained or `len` does not fit.
    pub fn reset(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.segments != 1 || len > CHUNK - HEADROOM {
            return None;
        }
        self.offset = HEADROOM as u16;
        self.len = len as u16;
        self.total = len as u32;
        self.checksum = Checksum::None;
        self.gso = Gso::default();
        Some(self.head_mut())
    }

    /// Shortens the packet to `len` bytes. Only for single-chunk frames; `false` if it is chained or shorter.
    pub fn truncate(&mut self, len: usize) -> bool {
        if self.segments != 1 || len > self.head_len() {
            return false;
        }
        self.len = len as u16;
        self.total = len as u32;
        true
    }

    /// Appends another frame's chunks behind this one's data. Metadata of `tail` is forgotten.
    pub fn append(&mut self, tail: Frame) {
        let last = if tail.segments == 1 { tail.index } else { tail.link(tail.index).tail };
        self.set_link(tail.index, Link { next: tail.next, offset: tail.offset, len: tail.len, tail: 0, spare: 0 });
        if self.segments == 1 {
            self.next = tail.index;
        } else {
            let own_last = self.link(self.index).tail;
            let link = self.link(own_last);
            self.set_link(own_last, Link { next: tail.index, ..link });
        }
        self.set_link(self.index, Link { next: 0, offset: 0, len: 0, tail: last, spare: 0 });
        self.segments += tail.segments;
        self.total += tail.total;
    }

    #[inline]
    fn chunk(&self, index: u32) -> *mut u8 {
        let distance = (i64::from(index) - i64::from(self.index)) as isize * CHUNK as isize;
        self.base.as_ptr().wrapping_offset(distance)
    }

    #[inline]
    fn link(&self, index: u32) -> Link {
        // SAFETY: `index` belongs to this frame's chain, whose chunks lie in the same region CHUNK bytes apart
        // (from_raw's contract); the region is page-aligned, so a chunk's start is aligned for Link.
        unsafe { self.chunk(index).cast::<Link>().read() }
    }

    #[inline]
    fn set_link(&mut self, index: u32, link: Link) {
        // SAFETY: as in `link`; `&mut self` owns the chain, and `append` owns the frame it takes over.
        unsafe { self.chunk(index).cast::<Link>().write(link) }
    }

    /// Calls `f` with each chunk's bytes, in order.
    pub fn for_each_segment(&self, mut f: impl FnMut(&[u8])) {
        f(self.head());
        let mut at = self.next;
        while at != NONE {
            let link = self.link(at);
            // SAFETY: the link was written by `append` from a frame that kept offset + len <= CHUNK.
            f(unsafe {
                core::slice::from_raw_parts(self.chunk(at).add(usize::from(link.offset)), usize::from(link.len))
            });
            at = link.next;
        }
    }

    /// `(chunk index, offset, length)` of each chunk, in order: what a driver's descriptors need.
    pub fn for_each_descriptor(&self, mut f: impl FnMut(u32, u16, u16)) {
        f(self.index, self.offset, self.len);
        let mut at = self.next;
        while at != NONE {
            let link = self.link(at);
            f(at, link.offset, link.len);
            at = link.next;
        }
    }

    /// Copies the whole packet into `out`, which must be at least [`len`](Self::len) long; returns the bytes copied.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let mut at = 0;
        self.for_each_segment(|s| {
            out[at..at + s.len()].copy_from_slice(s);
            at += s.len();
        });
        at
    }

    /// The whole packet as a vector, for tests, captures and traces.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut v = Vec::with_capacity(self.len());
        self.for_each_segment(|s| v.extend_from_slice(s));
        v
    }

    /// Splits the chain: the first chunk stays, the rest comes back as a frame of its own.
    pub fn split_rest(&mut self) -> Option<Frame> {
        if self.next == NONE {
            return None;
        }
        let (at, link) = (self.next, self.link(self.next));
        let tail = self.link(self.index).tail;
        let mut rest = Frame {
            // SAFETY: a chunk address inside a mapped region is never null.
            base: unsafe { NonNull::new_unchecked(self.chunk(at)) },
            index: at,
            next: link.next,
            total: self.total - u32::from(self.len),
            offset: link.offset,
            len: link.len,
            segments: self.segments - 1,
            port: self.port,
            checksum: Checksum::None,
            gso: Gso::default(),
        };
        if rest.segments > 1 {
            rest.set_link(at, Link { next: 0, offset: 0, len: 0, tail, spare: 0 });
        }
        self.next = NONE;
        self.segments = 1;
        self.total = u32::from(self.len);
        Some(rest)
    }
}
