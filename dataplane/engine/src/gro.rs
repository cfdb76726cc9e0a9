//! Receive coalescing towards pods: consecutive TCP segments of one flow become one frame, as a NIC's GRO would make.
//!
//! A pod's kernel takes a 64 KB segment at the cost of a 1,500-byte one. Only what segmentation would split into the same
//! packets again is merged: same headers but sequence, checksums, lengths and IP identification; every segment's checksum
//! is verified before its field is given up. Cost: a look at the last few frames of the lane.

use sluice_port::{Burst, Checksum, Frame, Gso, GsoKind};
use sluice_wire::checksum::{Sum, SumWalk};

/// Frames at the end of a lane that are looked at for the flow's last segment.
const LOOK_BACK: usize = 8;
/// Longest IP packet a merged frame may be.
const LONGEST: usize = 65_535;
/// Segments whose payload is shorter are not worth a chain link.
const SHORTEST: usize = 256;
/// Segments in one frame (a chunk each; a TAP takes a limited number of vectors).
const MOST: usize = 48;
const L3: usize = 14;
const TCP: u8 = 6;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Offsets and lengths of a plain TCP segment.
#[derive(Clone, Copy)]
struct Segment {
    v4: bool,
    l4: usize,
    header: usize,
    payload: usize,
    sequence: u32,
    flags: u8,
}

fn read(frame: &Frame) -> Option<Segment> {
    let head = frame.head();
    let (v4, l4, total) = match head.get(12..15)? {
        [0x08, 0x00, 0x45] => {
            let fragment = head.get(20..22)?;
            if fragment[0] & 0x3f != 0 || fragment[1] != 0 || head.get(23) != Some(&TCP) {
                return None;
            }
            (true, L3 + 20, usize::from(u16::from_be_bytes([head[16], head[17]])))
        }
        [0x86, 0xdd, _] => {
            if head.get(20) != Some(&TCP) {
                return None;
            }
            (false, L3 + 40, 40 + usize::from(u16::from_be_bytes([head[18], head[19]])))
        }
        _ => return None,
    };
    let tcp = head.get(l4..l4 + 20)?;
    let header = l4 + usize::from(tcp[12] >> 4) * 4;
    if header > head.len() || L3 + total != frame.len() || header > frame.len() {
        return None;
    }
    Some(Segment {
        v4,
        l4,
        header,
        payload: frame.len() - header,
        sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
        flags: tcp[13],
    })
}

fn pseudo(head: &[u8], s: &Segment, length: usize) -> Sum {
    let addresses = if s.v4 { &head[L3 + 12..L3 + 20] } else { &head[L3 + 8..L3 + 40] };
    Sum::bytes(addresses).add_u16(u16::from(TCP)).add_u32(length as u32)
}

fn checksum_holds(frame: &Frame, s: &Segment) -> bool {
    if matches!(frame.checksum, Checksum::Partial { .. } | Checksum::Verified) {
        return true;
    }
    let mut walk = SumWalk::from(pseudo(frame.head(), s, frame.len() - s.l4));
    let mut first = true;
    frame.for_each_segment(|bytes| {
        walk.push(if first { &bytes[s.l4..] } else { bytes });
        first = false;
    });
    walk.sum().verifies()
}

/// Merges `frame` into the flow's last segment in `lane` if they are consecutive; gives it back otherwise.
pub fn coalesce(lane: &mut Burst, mut frame: Frame) -> Option<Frame> {
    if lane.is_empty() {
        return Some(frame);
    }
    let Some(new) = read(&frame) else { return Some(frame) };
    if new.payload < SHORTEST || new.flags & !(ACK | PSH) != 0 || new.flags & ACK == 0 || frame.segments() > 2 {
        return Some(frame);
    }
    let from = lane.len().saturating_sub(LOOK_BACK);
    let Some(at) = (from..lane.len()).rev().find(|at| same_flow(lane[*at].head(), frame.head(), new.l4)) else {
        return Some(frame);
    };
    let last = &lane[at];
    let Some(old) = read(last) else { return Some(frame) };
    if !continues(last, &old, &frame, &new) || !checksum_holds(&frame, &new) {
        return Some(frame);
    }
    if last.gso.kind == GsoKind::None && !checksum_holds(last, &old) {
        return Some(frame);
    }
    let target = &mut lane[at];
    if target.gso.kind == GsoKind::None {
        let kind = if old.v4 { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
        target.gso = Gso { kind, size: old.payload as u16 };
    }
    if !frame.pull(new.header) {
        return Some(frame);
    }
    target.append(frame);
    finish(target, &old, new.flags);
    None
}

/// Same addresses, ports and Ethernet header.
fn same_flow(a: &[u8], b: &[u8], l4: usize) -> bool {
    let end = l4 + 4;
    let addresses = if l4 == L3 + 20 { L3 + 12..end } else { L3 + 8..end };
    a.len() >= end && b.len() >= end && a[..L3] == b[..L3] && a[addresses.clone()] == b[addresses]
}

/// Whether `frame` is what segmentation would give as the next segment of `last`.
fn continues(last: &Frame, old: &Segment, frame: &Frame, new: &Segment) -> bool {
    let (a, b) = (last.head(), frame.head());
    let size = if last.gso.kind == GsoKind::None { old.payload } else { usize::from(last.gso.size) };
    // A short or pushed segment ends a run.
    let open = old.payload.is_multiple_of(size.max(1)) && old.flags & PSH == 0 && size >= SHORTEST;
    // TTL, TOS, DF; acknowledgement and window; options (timestamps) must agree.
    let network =
        if old.v4 { a[15] == b[15] && a[20..23] == b[20..23] } else { a[14..18] == b[14..18] && a[21] == b[21] };
    let transport = a[old.l4 + 8..old.l4 + 12] == b[new.l4 + 8..new.l4 + 12]
        && a[old.l4 + 14..old.l4 + 16] == b[new.l4 + 14..new.l4 + 16]
        && a[old.l4 + 20..old.header] == b[new.l4 + 20..new.header];
    open && network
        && transport
        && old.flags & !PSH == new.flags & !PSH
        && old.header == new.header
        && new.payload <= size
        && old.sequence.wrapping_add(old.payload as u32) == new.sequence
        && last.len() - L3 + new.payload <= LONGEST
        && last.segments() < MOST
}

/// Lengths, flags and the partial checksum of a grown frame.
fn finish(frame: &mut Frame, s: &Segment, flags: u8) {
    let total = frame.len() - L3;
    let sum = pseudo(frame.head(), s, frame.len() - s.l4).fold();
    let head = frame.head_mut();
    if s.v4 {
        head[16..18].copy_from_slice(&(total as u16).to_be_bytes());
        head[24..26].fill(0);
        let header = Sum::bytes(&head[L3..L3 + 20]).finish();
        head[24..26].copy_from_slice(&header.to_be_bytes());
    } else {
        head[18..20].copy_from_slice(&((total - 40) as u16).to_be_bytes());
    }
    head[s.l4 + 13] |= flags & PSH;
    head[s.l4 + 16..s.l4 + 18].copy_from_slice(&sum.to_be_bytes());
    frame.checksum = Checksum::Partial { start: s.l4 as u16, offset: 16 };
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_port::{FramePool, PoolCache, PoolOptions};

    fn segment(cache: &mut PoolCache, sequence: u32, payload: usize, flags: u8, id: u16) -> Frame {
        let mut bytes = vec![0u8; L3 + 40 + payload];
        bytes[12..14].copy_from_slice(&[8, 0]);
        bytes[14] = 0x45;
        bytes[16..18].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
        bytes[18..20].copy_from_slice(&id.to_be_bytes());
        bytes[20] = 0x40;
        bytes[22] = 63;
        bytes[23] = TCP;
        bytes[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let header = Sum::bytes(&bytes[14..34]).finish();
        bytes[24..26].copy_from_slice(&header.to_be_bytes());
        bytes[34..38].copy_from_slice(&[0x30, 0x39, 0, 80]);
        bytes[38..42].copy_from_slice(&sequence.to_be_bytes());
        bytes[46] = 0x50;
        bytes[47] = flags;
        bytes[54..].iter_mut().enumerate().for_each(|(i, b)| *b = (sequence as usize + i) as u8);
        let s = Segment { v4: true, l4: 34, header: 54, payload, sequence, flags };
        let sum = pseudo(&bytes, &s, 20 + payload).combine(Sum::bytes(&bytes[34..])).finish();
        bytes[50..52].copy_from_slice(&sum.to_be_bytes());
        cache.alloc_copy(&bytes).unwrap()
    }

    fn cache() -> PoolCache {
        FramePool::new(PoolOptions { frames: 256, huge_pages: false }).unwrap().cache()
    }

    #[test]
    fn consecutive_segments_become_one_frame_with_the_payload_in_order() {
        let mut c = cache();
        let mut lane = vec![segment(&mut c, 1000, 1000, ACK, 1)];
        let second = segment(&mut c, 2000, 1000, ACK, 2);
        assert!(coalesce(&mut lane, second).is_none());
        let third = segment(&mut c, 3000, 500, ACK | PSH, 3);
        assert!(coalesce(&mut lane, third).is_none());
        assert_eq!(lane.len(), 1);
        let merged = &lane[0];
        assert_eq!((merged.gso.size, merged.gso.kind, merged.len()), (1000, GsoKind::Tcp4, 54 + 2500));
        let bytes = merged.to_vec();
        assert!(bytes[54..].iter().enumerate().all(|(i, b)| *b == (1000 + i) as u8));
        assert_eq!(bytes[47], ACK | PSH);
        assert!(Sum::bytes(&bytes[14..34]).verifies());
        // The short segment ended the run.
        let fourth = segment(&mut c, 3500, 1000, ACK, 4);
        assert!(coalesce(&mut lane, fourth).is_some());
    }

    #[test]
    fn a_gap_a_fin_and_a_wrong_checksum_are_left_alone() {
        let mut c = cache();
        let mut lane = vec![segment(&mut c, 1000, 1000, ACK, 1)];
        let gap = segment(&mut c, 2001, 1000, ACK, 2);
        assert!(coalesce(&mut lane, gap).is_some());
        let fin = segment(&mut c, 2000, 1000, ACK | 1, 2);
        assert!(coalesce(&mut lane, fin).is_some());
        let mut wrong = segment(&mut c, 2000, 1000, ACK, 2);
        wrong.head_mut()[60] ^= 1;
        assert!(coalesce(&mut lane, wrong).is_some());
        assert_eq!(lane[0].gso.kind, GsoKind::None);
    }
}
