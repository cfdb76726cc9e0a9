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
//!
//! Invariants, for every chunk of a frame: `LINK_BYTES <= offset` and `offset + len <= CHUNK`; all chunks of a chain
//! come from one pool. Cost: every method but `append`, `split_rest` and the walks touches only the descriptor.

pub use crate::offload::{Checksum, Gso, GsoKind};
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

/// Where data should begin in a chunk if its place can be chosen: [`HEADROOM`] and 0 to 15 pairs of cache lines.
///
/// Chunks lie a page apart, so data at one offset of each would share one set of the first-level cache (8 to 12 lines) and 32
/// of the second: the headers of a batch of 64 push each other out. The second term spreads chunks that are a multiple of 16
/// apart, which large pages would leave in the same sets of the second level.
#[inline]
pub const fn staggered(index: u32) -> usize {
    HEADROOM + (index.wrapping_add(index >> 5) & 15) as usize * 128
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
    /// - `base` is what [`FramePool::chunk`](crate::FramePool::chunk) gives for `index`: a chunk of [`CHUNK`]
    ///   initialised bytes at position `index` of a page-aligned region that stays mapped while frames of it exist,
    ///   reached through a pointer that may access the whole region (a chain is walked from its first chunk);
    /// - no other `Frame`, cache or device names the chunk;
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
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.total as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Bytes in the first chunk.
    #[inline(always)]
    pub fn head_len(&self) -> usize {
        usize::from(self.len)
    }

    /// Number of chunks.
    #[inline]
    pub fn segments(&self) -> usize {
        usize::from(self.segments)
    }

    /// Free bytes in front of the data.
    #[inline(always)]
    pub fn headroom(&self) -> usize {
        usize::from(self.offset) - LINK_BYTES
    }

    /// Free bytes behind the data of the first chunk.
    #[inline]
    pub fn tailroom(&self) -> usize {
        CHUNK - usize::from(self.offset) - usize::from(self.len)
    }

    /// The first chunk's bytes: all headers are here.
    #[inline(always)]
    pub fn head(&self) -> &[u8] {
        // SAFETY: offset + len <= CHUNK (kept by every method) and this Frame owns the chunk.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr().add(usize::from(self.offset)), usize::from(self.len)) }
    }

    /// The first chunk's bytes, writable.
    #[inline(always)]
    pub fn head_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `head`, and `&mut self` makes the access exclusive.
        unsafe {
            core::slice::from_raw_parts_mut(self.base.as_ptr().add(usize::from(self.offset)), usize::from(self.len))
        }
    }

    /// Address of the first data byte, for prefetching.
    #[inline(always)]
    pub fn data_ptr(&self) -> *const u8 {
        self.base.as_ptr().wrapping_add(usize::from(self.offset))
    }

    /// Puts `n` bytes in front of the data and returns the whole new head, the pushed bytes first; their content is
    /// what was there before.
    /// `None` if the headroom is too small; the frame is then unchanged. A partial checksum's start moves along.
    #[inline(always)]
    pub fn push(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.headroom() {
            return None;
        }
        self.offset -= n as u16;
        self.len += n as u16;
        self.total += n as u32;
        if let Checksum::Partial { start, .. } = &mut self.checksum {
            *start = start.saturating_add(n as u16);
        }
        Some(self.head_mut())
    }

    /// Takes `n` bytes off the front. `false` if the first chunk has fewer; the frame is then unchanged. A partial
    /// checksum's start moves along; what it covers must stay in the frame.
    #[inline(always)]
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

    /// Cuts a single-chunk packet down to `keep` bytes from `strip` on and puts `n` bytes in front of them, as `pull`,
    /// `truncate` and `push` would one after the other, with one look at the descriptor. Returns the new head, the pushed bytes
    /// first; their content is what was there before. `None` if the frame is chained or has not the bytes or the room; it is
    /// then unchanged.
    #[inline(always)]
    pub fn rewrap(&mut self, strip: usize, keep: usize, n: usize) -> Option<&mut [u8]> {
        if self.segments != 1 || strip + keep > self.head_len() || n > self.headroom() + strip {
            return None;
        }
        self.offset = (usize::from(self.offset) + strip - n) as u16;
        self.len = (n + keep) as u16;
        self.total = (n + keep) as u32;
        if let Checksum::Partial { start, .. } = &mut self.checksum {
            *start = start.saturating_sub(strip as u16).saturating_add(n as u16);
        }
        Some(self.head_mut())
    }

    /// `N` bytes at `at` of the first chunk; `None` if it has not so many.
    #[inline(always)]
    pub fn peek<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        if at + N > self.head_len() {
            return None;
        }
        // SAFETY: at + N lies in this chunk's data, which this Frame owns (as in `head`).
        Some(unsafe { &*self.base.as_ptr().add(usize::from(self.offset) + at).cast::<[u8; N]>() })
    }

    /// [`rewrap`](Self::rewrap) with lengths known beforehand: `H` bytes go in front of what lies at `strip`, of which `keep` stay
    /// in the packet. Returns both, the second with `P` bytes, more than `keep` perhaps (a datagram that is shorter than what its
    /// receiver looks at). `None`, with nothing changed, where `rewrap` says so and if the chunk has not `P` bytes from `strip` on.
    /// A partial checksum is not for it: its start stays.
    #[inline(always)]
    pub fn rewrap_fixed<const H: usize, const P: usize>(
        &mut self,
        strip: usize,
        keep: usize,
    ) -> Option<(&mut [u8; H], &mut [u8; P])> {
        let at = usize::from(self.offset) + strip;
        if (self.segments != 1) | (strip + keep.max(P) > self.head_len()) | (at < H + LINK_BYTES) {
            return None;
        }
        self.offset = (at - H) as u16;
        self.len = (H + keep) as u16;
        self.total = (H + keep) as u32;
        // SAFETY: `at` is at least H + LINK_BYTES, so the H bytes in front of it are behind the chain link; the P bytes from it on
        // were data of this chunk a moment ago. Both lie in the chunk that this Frame owns, do not overlap, and `&mut self` makes
        // the access exclusive.
        unsafe {
            let packet = self.base.as_ptr().add(at);
            Some((&mut *packet.sub(H).cast::<[u8; H]>(), &mut *packet.cast::<[u8; P]>()))
        }
    }

    /// Whether it asks nothing of the device: no segmentation, and the checksum is complete.
    #[inline(always)]
    pub fn is_bare(&self) -> bool {
        (self.gso.kind == GsoKind::None) & !matches!(self.checksum, Checksum::Partial { .. })
    }

    /// Sets a single-chunk frame's data to `len` bytes from [`HEADROOM`] and clears its checksum and segmentation
    /// state (the port stays: an answer built in place still knows where the question came from); returns the bytes,
    /// whose content is what was there before. `None` if the frame is chained or `len` does not fit.
    pub fn reset(&mut self, len: usize) -> Option<&mut [u8]> {
        self.reset_at(HEADROOM, len)
    }

    /// The same with the data from `offset`, for instance where [`staggered`] says.
    pub fn reset_at(&mut self, offset: usize, len: usize) -> Option<&mut [u8]> {
        if self.segments != 1 || !(LINK_BYTES..=CHUNK).contains(&offset) || len > CHUNK - offset {
            return None;
        }
        self.offset = offset as u16;
        self.len = len as u16;
        self.total = len as u32;
        self.checksum = Checksum::None;
        self.gso = Gso::default();
        Some(self.head_mut())
    }

    /// Shortens the packet to `len` bytes. Only for single-chunk frames; `false` if it is chained or shorter.
    #[inline]
    pub fn truncate(&mut self, len: usize) -> bool {
        if self.segments != 1 || len > self.head_len() {
            return false;
        }
        self.len = len as u16;
        self.total = len as u32;
        true
    }

    /// Appends another frame's chunks behind this one's data. Metadata of `tail` is forgotten.
    ///
    /// # Panics
    /// If `tail` is of another pool, or the chain would have more than 65,535 chunks: a link is a chunk number, so
    /// following one into a foreign region would be a wild write.
    pub fn append(&mut self, tail: Frame) {
        assert!(self.region() == tail.region(), "a chain of chunks from two pools");
        let Some(segments) = self.segments.checked_add(tail.segments) else {
            panic!("a chain of more than {} chunks", u16::MAX)
        };
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
        self.segments = segments;
        self.total += tail.total;
    }

    /// Where this frame's region starts: equal for two frames exactly if they are of one pool, as regions are never
    /// unmapped and so never share an address.
    #[inline]
    pub(crate) fn region(&self) -> *const u8 {
        self.base.as_ptr().wrapping_sub(self.index as usize * CHUNK)
    }

    #[inline]
    fn chunk(&self, index: u32) -> *mut u8 {
        let distance = (i64::from(index) - i64::from(self.index)) as isize * CHUNK as isize;
        self.base.as_ptr().wrapping_offset(distance)
    }

    #[inline]
    fn link(&self, index: u32) -> Link {
        // SAFETY: `index` belongs to this frame's chain, whose chunks lie in one region CHUNK bytes apart (from_raw's
        // contract, checked by `append`), so the address is in bounds and ours alone; the region is page-aligned, so a
        // chunk's start is aligned for Link; any bytes are a valid Link.
        unsafe { self.chunk(index).cast::<Link>().read() }
    }

    #[inline]
    fn set_link(&mut self, index: u32, link: Link) {
        // SAFETY: as in `link`; `&mut self` owns the chain, and `append` owns the frame it takes over. Data begins
        // behind LINK_BYTES, so no slice of it overlaps.
        unsafe { self.chunk(index).cast::<Link>().write(link) }
    }

    /// Calls `f` with each chunk's bytes, in order.
    pub fn for_each_segment(&self, mut f: impl FnMut(&[u8])) {
        f(self.head());
        let mut at = self.next;
        while at != NONE {
            let link = self.link(at);
            // SAFETY: the link was written by `append` from a frame that kept offset + len <= CHUNK, and the chunk
            // belongs to this chain.
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

    /// Copies the whole packet into the front of `out`; returns the bytes copied.
    ///
    /// # Panics
    /// If `out` is shorter than [`len`](Self::len).
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

    /// Splits the chain: the first chunk stays, the rest comes back as a frame of its own with the same port and no
    /// checksum or segmentation state. `None` for a single chunk.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{FramePool, PoolCache, PoolOptions};
    use proptest::prelude::*;
    use std::sync::{Arc, LazyLock};

    static POOL: LazyLock<Arc<FramePool>> =
        LazyLock::new(|| FramePool::new(PoolOptions { frames: 4096, huge_pages: false }).unwrap());

    fn chain(cache: &mut PoolCache, parts: &[&[u8]]) -> Frame {
        let mut frame = cache.alloc_copy(parts[0]).unwrap();
        for part in &parts[1..] {
            frame.append(cache.alloc_copy(part).unwrap());
        }
        frame
    }

    fn parts_of(frame: &Frame) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        frame.for_each_segment(|s| parts.push(s.to_vec()));
        parts
    }

    #[test]
    fn a_frame_is_five_words_so_that_a_burst_of_64_is_40_lines() {
        assert_eq!(size_of::<Frame>(), 40);
    }

    #[test]
    fn headers_pushed_and_pulled_move_the_checksum_start() {
        let mut cache = POOL.cache();
        let mut frame = cache.alloc_copy(&[7; 60]).unwrap();
        frame.checksum = Checksum::Partial { start: 34, offset: 16 };
        frame.push(50).unwrap()[..50].fill(1);
        assert_eq!(frame.checksum, Checksum::Partial { start: 84, offset: 16 });
        assert!(frame.pull(50));
        assert_eq!(frame.checksum, Checksum::Partial { start: 34, offset: 16 });
        assert_eq!(frame.head(), [7; 60]);
        cache.free(frame);
    }

    #[test]
    fn a_refused_push_pull_truncate_or_reset_changes_nothing() {
        let mut cache = POOL.cache();
        let mut frame = chain(&mut cache, &[&[1; 60], &[2; 10]]);
        assert!(frame.push(HEADROOM - LINK_BYTES + 1).is_none());
        assert!(!frame.pull(61));
        assert!(!frame.truncate(5));
        assert!(frame.reset(5).is_none());
        assert_eq!((parts_of(&frame), frame.len()), (vec![vec![1; 60], vec![2; 10]], 70));
        let rest = frame.split_rest().unwrap();
        assert!(!frame.truncate(61));
        assert!(frame.reset(CHUNK - HEADROOM + 1).is_none());
        assert_eq!((frame.head(), rest.head()), (&[1; 60][..], &[2; 10][..]));
        cache.free(rest);
        cache.free(frame);
    }

    proptest! {
        #[test]
        fn a_rewrap_is_a_pull_a_truncate_and_a_push(
            len in 0usize..200, strip in 0usize..220, keep in 0usize..220, n in 0usize..500, partial in any::<bool>()
        ) {
            let mut cache = POOL.cache();
            let bytes: Vec<u8> = (0..len).map(|b| b as u8).collect();
            let make = |cache: &mut PoolCache| {
                let mut frame = cache.alloc_copy(&bytes).unwrap();
                // What a partial sum covers stays in the frame.
                frame.checksum =
                    if partial { Checksum::Partial { start: strip as u16 + 20, offset: 16 } } else { Checksum::None };
                frame
            };
            let (mut one, mut three) = (make(&mut cache), make(&mut cache));
            let at_once = one.rewrap(strip, keep, n).map(|head| head[n..].to_vec());
            let fits = strip + keep <= len && n <= HEADROOM - LINK_BYTES + strip;
            let by_steps = (fits && three.pull(strip) && three.truncate(keep))
                .then(|| three.push(n).map(|head| head[n..].to_vec()))
                .flatten();
            prop_assert_eq!(&at_once, &by_steps);
            prop_assert_eq!((one.offset(), one.len(), one.head_len()), (three.offset(), three.len(), three.head_len()));
            prop_assert_eq!(one.checksum, three.checksum);
            cache.free(one);
            cache.free(three);
        }
    }

    proptest! {
        #[test]
        fn a_fixed_rewrap_is_a_rewrap(len in 0usize..200, strip in 0usize..220, keep in 0usize..220, pushes in 0usize..300) {
            let mut cache = POOL.cache();
            let bytes: Vec<u8> = (0..len).map(|b| b as u8).collect();
            let make = |cache: &mut PoolCache| {
                let mut frame = cache.alloc_copy(&bytes).unwrap();
                let pushes = pushes.min(HEADROOM - LINK_BYTES);
                frame.push(pushes).unwrap()[..pushes].fill(7);
                frame
            };
            let (mut fixed, mut free) = (make(&mut cache), make(&mut cache));
            let (before, enough) = (fixed.to_vec(), strip + 40 <= fixed.len());
            match fixed.rewrap_fixed::<64, 40>(strip, keep) {
                Some((header, packet)) => {
                    prop_assert!(enough);
                    prop_assert_eq!(&packet[..], &before[strip..strip + 40]);
                    header.fill(0xee);
                    packet.fill(0xdd);
                    let head = free.rewrap(strip, keep, 64).unwrap();
                    head[..64].fill(0xee);
                    head[64..64 + keep.min(40)].fill(0xdd);
                    prop_assert_eq!(fixed.to_vec(), free.to_vec());
                    prop_assert_eq!(fixed.offset(), free.offset());
                }
                None => {
                    prop_assert!(!enough || free.rewrap(strip, keep, 64).is_none());
                    prop_assert_eq!(fixed.to_vec(), before);
                }
            }
            cache.free(fixed);
            cache.free(free);
        }

        #[test]
        fn a_peek_is_a_part_of_the_head(len in 0usize..80, at in 0usize..80) {
            let mut cache = POOL.cache();
            let bytes: Vec<u8> = (0..len).map(|b| b as u8).collect();
            let frame = cache.alloc_copy(&bytes).unwrap();
            prop_assert_eq!(frame.peek::<20>(at).map(|b| &b[..]), bytes.get(at..at + 20));
            cache.free(frame);
        }
    }

    #[test]
    fn staggered_data_lies_in_sixteen_places_that_all_leave_room_for_a_packet() {
        let places: std::collections::HashSet<usize> = (0..1000).map(staggered).collect();
        assert_eq!(places.len(), 16);
        assert!(places.iter().all(|at| *at >= HEADROOM && at + 1800 <= CHUNK && at % 128 == 0));
        // Neighbours in the pool, and chunks that large pages put in the same sets of the second-level cache.
        for step in [1, 32] {
            let run: std::collections::HashSet<usize> = (0..16).map(|n| staggered(n * step)).collect();
            assert_eq!(run.len(), 16, "step {step}");
        }
    }

    #[test]
    fn a_full_push_stops_at_the_chain_link() {
        let mut cache = POOL.cache();
        let mut frame = chain(&mut cache, &[&[1; 60], &[2; 10], &[3; 10]]);
        frame.push(HEADROOM - LINK_BYTES).unwrap().fill(0xff);
        assert_eq!((frame.offset(), frame.headroom()), (LINK_BYTES, 0));
        frame.append(cache.alloc_copy(&[4; 10]).unwrap());
        assert_eq!(parts_of(&frame)[1..], [vec![2; 10], vec![3; 10], vec![4; 10]]);
        cache.free(frame);
    }

    #[test]
    fn descriptors_name_each_chunk_once_in_order() {
        let mut cache = POOL.cache();
        let parts: Vec<Frame> = (1..=4).map(|n| cache.alloc_copy(&vec![n; usize::from(n)]).unwrap()).collect();
        let expected: Vec<_> = parts.iter().map(|f| (f.index(), HEADROOM as u16, f.len() as u16)).collect();
        let mut frame = parts.into_iter().reduce(|mut a, b| {
            a.append(b);
            a
        });
        let frame = frame.take().unwrap();
        let mut seen = Vec::new();
        frame.for_each_descriptor(|index, offset, len| seen.push((index, offset, len)));
        assert_eq!(seen, expected);
        cache.free(frame);
    }

    #[test]
    #[should_panic(expected = "two pools")]
    fn chunks_of_two_pools_do_not_chain() {
        let other = FramePool::new(PoolOptions { frames: 64, huge_pages: false }).unwrap();
        let mut frame = POOL.cache().alloc().unwrap();
        frame.append(other.cache().alloc().unwrap());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Pull(usize),
        Truncate(usize),
        Append(Vec<Vec<u8>>),
        Split,
        /// Splits the rest off and appends it again.
        Rejoin,
        Overwrite(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = prop::collection::vec(any::<u8>(), 0..80);
        prop_oneof![
            (0usize..300).prop_map(Step::Push),
            (0usize..300).prop_map(Step::Pull),
            (0usize..100).prop_map(Step::Truncate),
            prop::collection::vec(bytes, 1..4).prop_map(Step::Append),
            Just(Step::Split),
            Just(Step::Rejoin),
            any::<u8>().prop_map(Step::Overwrite),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_behaves_as_a_list_of_vectors(
            first in prop::collection::vec(any::<u8>(), 0..CHUNK - HEADROOM),
            steps in prop::collection::vec(step(), 0..40),
        ) {
            let mut cache = POOL.cache();
            let mut frame = cache.alloc_copy(&first).unwrap();
            let mut model = vec![first];
            let mut room = HEADROOM - LINK_BYTES;
            for step in steps {
                match step {
                    Step::Push(n) => {
                        let pushed = frame.push(n);
                        prop_assert_eq!(pushed.is_some(), n <= room);
                        if let Some(head) = pushed {
                            head[..n].fill(n as u8);
                            model[0].splice(..0, vec![n as u8; n]);
                            room -= n;
                        }
                    }
                    Step::Pull(n) => {
                        prop_assert_eq!(frame.pull(n), n <= model[0].len());
                        if n <= model[0].len() {
                            model[0].drain(..n);
                            room += n;
                        }
                    }
                    Step::Truncate(n) => {
                        let may = model.len() == 1 && n <= model[0].len();
                        prop_assert_eq!(frame.truncate(n), may);
                        if may {
                            model[0].truncate(n);
                        }
                    }
                    Step::Append(parts) => {
                        let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
                        frame.append(chain(&mut cache, &slices));
                        model.extend(parts);
                    }
                    Step::Split => {
                        let rest = frame.split_rest();
                        prop_assert_eq!(rest.as_ref().map(parts_of), (model.len() > 1).then(|| model[1..].to_vec()));
                        if let Some(rest) = rest {
                            prop_assert_eq!(rest.segments(), model.len() - 1);
                            cache.free(rest);
                        }
                        model.truncate(1);
                    }
                    Step::Rejoin => {
                        if let Some(rest) = frame.split_rest() {
                            frame.append(rest);
                        }
                    }
                    Step::Overwrite(byte) => {
                        frame.head_mut().fill(byte);
                        model[0].fill(byte);
                    }
                }
                prop_assert_eq!(&parts_of(&frame), &model);
                prop_assert_eq!(frame.segments(), model.len());
                prop_assert_eq!(frame.head_len(), model[0].len());
                prop_assert_eq!((frame.headroom(), frame.tailroom()), (room, CHUNK - LINK_BYTES - room - model[0].len()));
            }
            let whole = model.concat();
            prop_assert_eq!(frame.len(), whole.len());
            prop_assert_eq!(frame.is_empty(), whole.is_empty());
            prop_assert_eq!(&frame.to_vec(), &whole);
            let mut out = vec![0xee; whole.len() + 3];
            prop_assert_eq!(frame.copy_to(&mut out), whole.len());
            prop_assert_eq!(&out[..whole.len()], &whole);
            prop_assert_eq!(&out[whole.len()..], &[0xee; 3]);
            cache.free(frame);
        }
    }
}
