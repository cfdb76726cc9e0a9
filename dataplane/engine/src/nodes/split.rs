//! One large packet becomes several that fit: TCP and UDP segmentation where a port cannot do it, IPv4 fragmentation where a
//! sender allows it.
//!
//! Source: RFC 9293 §3.7.1, RFC 791 §3.2. Payload is copied once, summed while it is in cache; headers are written per piece
//! with full checksums.

use crate::item::{Fate, Item};
use crate::pipeline::Pipeline;
use crate::reason::{Reason, Stage};
use core::ops::Range;
use sluice_port::{CHUNK, Frame, HEADROOM, PoolCache};
use sluice_tables::hops::Hop;
use sluice_wire::Layers;
use sluice_wire::checksum::{Sum, SumWalk};
use sluice_wire::fragment::Fragments;
use sluice_wire::segment::Segments;

const ETHERNET: usize = 14;
/// Longest headers in front of a piece: Ethernet, IP with options or extensions, TCP with options.
const HEADERS: usize = 256;

impl Pipeline {
    /// Sends a frame with a segmentation request as segments.
    #[cold]
    pub(crate) fn segment(&mut self, item: &mut Item, hop: &Hop) {
        let Some((layers, headers, skip)) = self.large(item) else { return };
        let size = item.frame.gso.size;
        let Some(split) = headers.get(..layers.payload()).and_then(|_| Segments::new(&headers, &layers, size)) else {
            return item.drop(Reason::Malformed, Stage::Send);
        };
        let n = split.header_len();
        for i in 0..split.count() {
            let mut header = [0u8; HEADERS];
            let made = gather(&mut self.cache, &item.frame, skip, split.payload(i), n, |sum| {
                split.write(i, sum, &mut header)?;
                Some(header)
            });
            let Some(frame) = made else { return item.drop(Reason::TxFull, Stage::Send) };
            let total = (frame.len() - ETHERNET) as u16;
            self.send_made(frame, ETHERNET as u16, item, total, hop);
        }
        item.meta.fate = Fate::Consumed;
    }

    /// Sends an IPv4 packet that is too long for its way, and may be fragmented, as fragments.
    #[cold]
    pub(crate) fn fragment_out(&mut self, item: &mut Item, hop: &Hop) {
        sluice_port::complete_checksum(&mut item.frame);
        let Some((layers, headers, skip)) = self.large(item) else { return };
        let Some(split) = Fragments::new(&headers, &layers, hop.mtu) else {
            return item.drop(Reason::TooBig, Stage::Send);
        };
        for i in 0..split.count() {
            let mut header = [0u8; HEADERS];
            let Some(n) = split.write(i, &mut header) else { return item.drop(Reason::TooBig, Stage::Send) };
            let made = gather(&mut self.cache, &item.frame, skip, split.payload(i), n, |_| Some(header));
            let Some(frame) = made else { return item.drop(Reason::TxFull, Stage::Send) };
            let total = (frame.len() - ETHERNET) as u16;
            self.send_made(frame, ETHERNET as u16, item, total, hop);
        }
        item.meta.fate = Fate::Consumed;
    }

    /// Parse of the (inner) packet, a copy of its headers, and how many bytes lie in front of its Ethernet header.
    fn large(&self, item: &mut Item) -> Option<(Layers, [u8; CHUNK], usize)> {
        let skip = usize::from(item.meta.l3).checked_sub(ETHERNET)?;
        let head = item.frame.head().get(skip..)?;
        let layers = Layers::parse(head, item.frame.len() - skip).ok();
        let mut copy = [0u8; CHUNK];
        let n = head.len().min(CHUNK);
        copy[..n].copy_from_slice(&head[..n]);
        match layers {
            Some(layers) => Some((layers, copy, skip)),
            None => {
                item.drop(Reason::Malformed, Stage::Send);
                None
            }
        }
    }
}

/// A frame of `n` header bytes, which `headers` gives for the payload's sum, and the payload: bytes `range` of `from`, counted
/// behind its first `skip` bytes.
fn gather(
    cache: &mut PoolCache,
    from: &Frame,
    skip: usize,
    range: Range<usize>,
    n: usize,
    headers: impl FnOnce(Sum) -> Option<[u8; HEADERS]>,
) -> Option<Frame> {
    const ROOM: usize = CHUNK - HEADROOM;
    let mut first = cache.alloc()?;
    let payload = range.len();
    let part = payload.min(ROOM - n);
    let mut walk = SumWalk::from(Sum::ZERO);
    let start = skip + range.start;
    if let Some(room) = first.reset(n + part) {
        copy_range(from, start, &mut room[n..], &mut walk);
    }
    let mut done = part;
    while done < payload {
        let Some(mut next) = cache.alloc() else {
            cache.free(first);
            return None;
        };
        let part = (payload - done).min(ROOM);
        if let Some(room) = next.reset(part) {
            copy_range(from, start + done, room, &mut walk);
        }
        done += part;
        first.append(next);
    }
    let Some(header) = headers(walk.sum()) else {
        cache.free(first);
        return None;
    };
    first.head_mut()[..n].copy_from_slice(&header[..n]);
    Some(first)
}

/// Copies `out.len()` bytes of a chain from `start` on, summing them.
fn copy_range(from: &Frame, start: usize, out: &mut [u8], walk: &mut SumWalk) {
    let (mut at, mut done) = (0, 0);
    from.for_each_segment(|bytes| {
        let skip = start.saturating_sub(at).min(bytes.len());
        let take = (bytes.len() - skip).min(out.len() - done);
        if take > 0 {
            out[done..done + take].copy_from_slice(&bytes[skip..skip + take]);
            walk.push(&bytes[skip..skip + take]);
            done += take;
        }
        at += bytes.len();
    });
}
