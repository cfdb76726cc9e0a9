//! DNS messages that a TCP stream brings in several segments (RFC 7766 §8), put together as they pass.
//!
//! Owner: one worker, for the pods it owns. Segments are only looked at, never held: one that comes out of order loses the
//! message it belongs to, which then teaches nothing. Invariants: fixed room, reserved at start: [`STREAMS`] unfinished
//! messages of a worker, [`ROOM`] bytes of each; of a longer message its beginning is heard, where the answers stand. A place
//! that two streams want is the later one's. Times are nanoseconds of the worker's clock.
//! Cost: one copy of the bytes of a message that a segment does not hold whole.

use sluice_tables::stable_hash::mix;

/// Unfinished messages of a worker.
const STREAMS: usize = 64;
/// Bytes of a message that are kept, its length included; a power of two.
pub(crate) const ROOM: usize = 4096;
/// How long the rest of a message is waited for.
const WAIT: u64 = 10_000_000_000;
/// So many bytes back are a segment that was seen before; more is another connection.
const SEEN: u32 = 1 << 20;

/// One direction of a connection: the pod, its port, and whether it is what the pod hears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Of {
    pub zone: u16,
    pub port: u16,
    pub reply: bool,
}

/// What is known of one stream between two segments.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    of: Of,
    /// Sequence number of the byte that comes next.
    next: u32,
    /// Bytes that are kept of the message, its length first.
    have: usize,
    /// Bytes that still belong to a message of which enough was heard.
    skip: usize,
    /// When its last segment came; 0: nobody's.
    at: u64,
}

/// Unfinished messages.
#[derive(Debug)]
pub(crate) struct Streams {
    places: Box<[Place]>,
    bytes: Box<[u8]>,
}

impl Default for Streams {
    fn default() -> Self {
        Streams { places: vec![Place::default(); STREAMS].into(), bytes: vec![0; STREAMS * ROOM].into() }
    }
}

impl Streams {
    /// Without room, to stand in for one that is lent.
    pub fn nothing() -> Self {
        Streams { places: Box::new([]), bytes: Box::new([]) }
    }

    /// Takes the bytes of a segment, which come in `pieces`, and has every message heard that they complete.
    pub fn segment(
        &mut self,
        of: Of,
        sequence: u32,
        now: u64,
        pieces: impl FnOnce(&mut dyn FnMut(&[u8])),
        mut hear: impl FnMut(&[u8]),
    ) {
        let key = u64::from(of.zone) << 32 | u64::from(of.port) << 16 | u64::from(of.reply);
        let at = mix(key) as usize % STREAMS;
        let (Some(kept), Some(bytes)) = (self.places.get_mut(at), self.bytes.get_mut(at * ROOM..(at + 1) * ROOM))
        else {
            return;
        };
        let known = kept.of == of && kept.at != 0 && now.saturating_sub(kept.at) <= WAIT;
        if known && (1..SEEN).contains(&kept.next.wrapping_sub(sequence)) {
            return;
        }
        // Where nothing is known of what came before, a segment begins with a message.
        let mut place = if known && kept.next == sequence { *kept } else { Place { of, ..Place::default() } };
        let mut length = 0u32;
        pieces(&mut |piece| {
            length = length.wrapping_add(piece.len() as u32);
            place.feed(bytes, piece, &mut hear);
        });
        place.next = sequence.wrapping_add(length);
        let unfinished = place.have > 0 || place.skip > 0;
        place.at = if unfinished { now.max(1) } else { 0 };
        // Whoever is in the middle of a message keeps the place from those who need none.
        if unfinished || kept.of == of {
            *kept = place;
        }
    }
}

impl Place {
    fn feed(&mut self, kept: &mut [u8], mut bytes: &[u8], hear: &mut impl FnMut(&[u8])) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            if self.have == 0
                && let Some(length) = bytes.first_chunk()
                && let Some(message) = bytes.get(2..2 + usize::from(u16::from_be_bytes(*length)))
            {
                hear(message);
                bytes = &bytes[2 + message.len()..];
                continue;
            }
            let whole = match (self.have, kept.first_chunk()) {
                (2.., Some(length)) => 2 + usize::from(u16::from_be_bytes(*length)),
                _ => 2,
            };
            let take = (whole.min(ROOM) - self.have).min(bytes.len());
            let Some(into) = kept.get_mut(self.have..self.have + take) else { return };
            into.copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            self.have += take;
            // With both bytes of its length there, the message's end is known.
            let whole = match (self.have, kept.first_chunk()) {
                (2.., Some(length)) => 2 + usize::from(u16::from_be_bytes(*length)),
                _ => continue,
            };
            if self.have == whole.min(ROOM) {
                hear(&kept[2..self.have]);
                (self.skip, self.have) = (whole - self.have, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OF: Of = Of { zone: 7, port: 40_000, reply: true };
    const SECOND: u64 = 1_000_000_000;

    fn stream(messages: &[Vec<u8>]) -> Vec<u8> {
        messages.iter().flat_map(|m| (m.len() as u16).to_be_bytes().into_iter().chain(m.iter().copied())).collect()
    }

    fn take(streams: &mut Streams, of: Of, sequence: u32, now: u64, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        // In two pieces, as a frame of several chunks is.
        let (front, back) = bytes.split_at(bytes.len() / 3);
        let pieces = |each: &mut dyn FnMut(&[u8])| [front, back].into_iter().for_each(each);
        streams.segment(of, sequence, now, pieces, |message| heard.push(message.to_vec()));
        heard
    }

    #[test]
    fn a_message_in_three_segments_is_heard_with_the_last() {
        let mut streams = Streams::default();
        let bytes = stream(&[vec![9; 300]]);
        assert!(take(&mut streams, OF, u32::MAX - 9, SECOND, &bytes[..1]).is_empty());
        assert!(take(&mut streams, OF, u32::MAX - 8, SECOND, &bytes[1..100]).is_empty(), "over the end of the numbers");
        assert_eq!(take(&mut streams, OF, 90, SECOND, &bytes[100..]), [vec![9; 300]]);
    }

    #[test]
    fn what_was_seen_before_adds_nothing_and_what_is_missing_ends_the_message() {
        let mut streams = Streams::default();
        let bytes = stream(&[vec![1; 90], vec![2; 90]]);
        take(&mut streams, OF, 1000, SECOND, &bytes[..40]);
        assert!(take(&mut streams, OF, 1000, SECOND, &bytes[..40]).is_empty());
        assert_eq!(take(&mut streams, OF, 1040, SECOND, &bytes[40..100]), [vec![1; 90]]);
        // The rest of the second is lost on its way; what follows is a message of its own.
        assert_eq!(take(&mut streams, OF, 1184, SECOND, &stream(&[vec![3; 10]])), [vec![3; 10]]);
    }

    #[test]
    fn other_streams_other_directions_and_later_connections_are_told_apart() {
        let mut streams = Streams::default();
        let bytes = stream(&[vec![1; 90]]);
        take(&mut streams, OF, 1000, SECOND, &bytes[..40]);
        for other in [Of { zone: 8, ..OF }, Of { port: 40_001, ..OF }, Of { reply: false, ..OF }] {
            assert!(take(&mut streams, other, 1040, SECOND, &bytes[40..]).is_empty());
        }
        let mut streams = Streams::default();
        take(&mut streams, OF, 1000, SECOND, &bytes[..40]);
        assert!(take(&mut streams, OF, 1040, 12 * SECOND, &bytes[40..]).is_empty(), "too late");
        take(&mut streams, OF, 1000, 20 * SECOND, &bytes[..40]);
        assert_eq!(
            take(&mut streams, OF, 1000u32.wrapping_sub(SEEN), 20 * SECOND, &bytes),
            [vec![1; 90]],
            "a new connection"
        );
    }

    #[test]
    fn of_a_message_longer_than_the_room_the_beginning_is_heard_and_the_next_one_whole() {
        let mut streams = Streams::default();
        let long: Vec<u8> = (0..9000u32).map(|n| n as u8).collect();
        let bytes = stream(&[long.clone(), vec![5; 50]]);
        let mut heard = Vec::new();
        for (at, part) in bytes.chunks(1400).enumerate() {
            heard.extend(take(&mut streams, OF, 1 + at as u32 * 1400, SECOND, part));
        }
        assert_eq!(heard, [long[..ROOM - 2].to_vec(), vec![5; 50]]);
    }

    #[test]
    fn streams_that_need_no_place_do_not_take_one() {
        let mut streams = Streams::default();
        let bytes = stream(&[vec![1; 90]]);
        take(&mut streams, OF, 1000, SECOND, &bytes[..40]);
        for port in 0..1000 {
            assert_eq!(take(&mut streams, Of { port, ..OF }, 5, SECOND, &bytes).len(), 1);
        }
        assert_eq!(take(&mut streams, OF, 1040, SECOND, &bytes[40..]), [vec![1; 90]]);
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6),
            cuts in prop::collection::vec(1..60usize, 1..60),
            start in any::<u32>(),
        ) {
            let bytes = stream(&messages);
            let (mut streams, mut heard, mut at) = (Streams::default(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(bytes.len());
                heard.extend(take(&mut streams, OF, start.wrapping_add(at as u32), SECOND, &bytes[at..end]));
                at = end;
                if at == bytes.len() {
                    break;
                }
            }
            prop_assert_eq!(heard, messages);
        }

        #[test]
        fn any_segments_in_any_order_do_no_harm(
            segments in prop::collection::vec((0..4u16, any::<u32>(), prop::collection::vec(any::<u8>(), 0..5000)), 0..40),
        ) {
            let mut streams = Streams::default();
            for (zone, sequence, bytes) in segments {
                let heard = take(&mut streams, Of { zone, ..OF }, sequence % 10_000, SECOND, &bytes);
                prop_assert!(heard.iter().all(|message| message.len() <= 65_535));
            }
        }
    }
}
