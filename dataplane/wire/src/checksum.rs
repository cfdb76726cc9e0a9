//! The Internet checksum: full sums, pseudo-headers, and exact incremental updates.
//!
//! Source: RFC 1071 (sum), RFC 1624 equation 3 (update), RFC 768 (UDP's zero), RFC 8200 §8.1 (IPv6 pseudo-header).
//! Owner thread: any; values only.
//!
//! Sums are numbers modulo 65535, and 16 bits write the class of zero in two ways. Two facts keep both paths exact:
//! - a sum over bytes that are not all zero folds to 1..=0xffff, never to 0, so a computed field is never 0xffff;
//! - adding anything to such a sum with end-around carry stays in 1..=0xffff.
//!
//! So starting from `!field` (equation 3) an update gives bit for bit what summing the new bytes gives, provided the
//! old field was right; one that was wrong by some amount stays wrong by it. [`Delta`] keeps its own zero as 0, so that
//! changing nothing changes no bit, not even in a field that carries 0xffff.
//!
//! Cost: [`Sum::bytes`] about one cycle per 16 bytes where the compiler vectorises; a [`Delta`] is a few adds.

use crate::protocol::Protocol;

/// Adds with end-around carry: 0 only if both are 0.
#[inline]
const fn carry_add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// A running sum of 16-bit big-endian words. Sums of parts add up to the sum of the whole, in any order, as long as
/// each part starts at an even offset; [`SumWalk`] takes parts that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed yet.
    pub const ZERO: Self = Self(0);

    /// The sum of `bytes`; an odd last byte counts as if a zero byte followed (RFC 1071 §1).
    #[inline]
    pub fn bytes(bytes: &[u8]) -> Self {
        // Words of the machine's own order: the sum comes out byte-swapped and is swapped back once (RFC 1071 §2.B).
        // 2^32 additions of 32 bits fit 64.
        let (chunks, tail) = bytes.as_chunks::<4>();
        let mut sum = 0u64;
        for chunk in chunks {
            sum += u64::from(u32::from_ne_bytes(*chunk));
        }
        let mut last = [0u8; 4];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        sum += u64::from(u32::from_ne_bytes(last));
        Self(u64::from(u16::from_be(Self(sum).fold())))
    }

    /// Adds one word.
    #[inline]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds two words.
    #[inline]
    pub const fn add_u32(self, words: u32) -> Self {
        Self(self.0 + words as u64)
    }

    /// The sum of both.
    #[inline]
    pub const fn combine(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The 16-bit sum, not complemented: what a partial checksum field holds. 0 only if all words were 0.
    #[inline]
    pub const fn fold(self) -> u16 {
        let mut sum = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum = (sum >> 16) + (sum & 0xffff);
        sum as u16
    }

    /// The checksum field for this sum, of every protocol but UDP.
    #[inline]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }

    /// The checksum field for this sum in UDP, where 0 would say "none" (RFC 768).
    #[inline]
    pub const fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            field => field,
        }
    }

    /// Whether a sum that includes the checksum field itself is right.
    #[inline]
    pub const fn verifies(self) -> bool {
        self.fold() == 0xffff
    }

    /// The pseudo-header of IPv4 (RFC 9293 §3.1): `length` is that of transport header and payload, bytes.
    #[inline]
    pub const fn pseudo_ipv4(source: [u8; 4], destination: [u8; 4], protocol: Protocol, length: u32) -> Self {
        Self::ZERO
            .add_u32(u32::from_be_bytes(source))
            .add_u32(u32::from_be_bytes(destination))
            .add_u16(protocol.0 as u16)
            .add_u32(length)
    }

    /// The pseudo-header of IPv6 (RFC 8200 §8.1): `length` is that of transport header and payload, bytes.
    #[inline]
    pub fn pseudo_ipv6(source: &[u8; 16], destination: &[u8; 16], protocol: Protocol, length: u32) -> Self {
        words16(source).combine(words16(destination)).add_u16(u16::from(protocol.0)).add_u32(length)
    }
}

/// The eight words of an IPv6 address, cheaper than [`Sum::bytes`] for the fixed size.
#[inline]
fn words16(address: &[u8; 16]) -> Sum {
    let value = u128::from_be_bytes(*address);
    Sum::ZERO
        .add_u32((value >> 96) as u32)
        .add_u32((value >> 64) as u32)
        .add_u32((value >> 32) as u32)
        .add_u32(value as u32)
}

/// A sum over bytes that come in pieces of any length, such as the chunks of a chained frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct SumWalk {
    sum: Sum,
    odd: bool,
}

impl SumWalk {
    /// Starts at an even offset with what is summed already (a pseudo-header, or [`Sum::ZERO`]).
    #[inline]
    pub const fn from(sum: Sum) -> Self {
        Self { sum, odd: false }
    }

    /// Adds the next piece.
    #[inline]
    pub fn push(&mut self, piece: &[u8]) {
        let word = Sum::bytes(piece).fold();
        // A piece that starts at an odd offset has its bytes in the other half of each word (RFC 1071 §2.B).
        self.sum = self.sum.add_u16(if self.odd { word.swap_bytes() } else { word });
        self.odd ^= piece.len() % 2 == 1;
    }

    /// The sum of all pieces.
    #[inline]
    pub const fn sum(self) -> Sum {
        self.sum
    }
}

/// What a change of some words does to a checksum over them. Deltas of several changes combine in any order, and the
/// delta of undoing a change is its negation, so one flow needs one delta for both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Delta(u16);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// Zero has one form here, 0, so that equal deltas are equal and `NONE` moves no bit.
    #[inline]
    const fn canonical(sum: u16) -> Self {
        if sum == 0xffff { Self(0) } else { Self(sum) }
    }

    /// One word changes. For a field at an odd offset of what is summed, swap the bytes of both.
    #[inline]
    pub const fn u16(old: u16, new: u16) -> Self {
        Self::canonical(carry_add(!old, new))
    }

    /// Two words change, such as an IPv4 address or a pair of ports.
    #[inline]
    pub const fn u32(old: u32, new: u32) -> Self {
        Self::canonical(Sum((!old) as u64 + new as u64).fold())
    }

    /// An IPv4 address changes.
    #[inline]
    pub const fn ipv4(old: [u8; 4], new: [u8; 4]) -> Self {
        Self::u32(u32::from_be_bytes(old), u32::from_be_bytes(new))
    }

    /// An IPv6 address changes.
    #[inline]
    pub fn ipv6(old: &[u8; 16], new: &[u8; 16]) -> Self {
        Self::canonical(carry_add(!words16(old).fold(), words16(new).fold()))
    }

    /// Bytes at an even offset change from a sum of `old` to a sum of `new`.
    #[inline]
    pub const fn sums(old: Sum, new: Sum) -> Self {
        Self::canonical(carry_add(!old.fold(), new.fold()))
    }

    /// Both changes.
    #[inline]
    pub const fn combine(self, other: Self) -> Self {
        Self::canonical(carry_add(self.0, other.0))
    }

    /// The change back.
    #[inline]
    pub const fn negate(self) -> Self {
        Self::canonical(!self.0)
    }

    /// A complete checksum field after the change: IPv4 header, TCP, ICMP. Equation 3 of RFC 1624.
    #[inline]
    pub const fn apply(self, field: u16) -> u16 {
        !carry_add(!field, self.0)
    }

    /// A complete UDP checksum field after the change: 0 ("none") stays 0, and what comes out as 0 is sent as 0xffff.
    #[inline]
    pub const fn apply_udp(self, field: u16) -> u16 {
        if field == 0 {
            return 0;
        }
        match self.apply(field) {
            0 => 0xffff,
            new => new,
        }
    }

    /// A partial field, which holds the pseudo-header's sum not complemented, after a change **of the pseudo-header**:
    /// addresses, never ports or anything else behind it, which whoever completes the sum will read anyway.
    #[inline]
    pub const fn apply_partial(self, field: u16) -> u16 {
        carry_add(field, self.0)
    }

    /// The delta as 16 bits, to keep in a table; equal deltas have equal bits.
    #[inline]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// The delta that [`to_bits`](Self::to_bits) gave.
    #[inline]
    pub const fn from_bits(bits: u16) -> Self {
        Self::canonical(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written: word by word, carry folded at once.
    fn slow_sum(bytes: &[u8]) -> u16 {
        bytes.chunks(2).fold(0u32, |sum, pair| {
            let word = u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b));
            let sum = sum + word;
            (sum & 0xffff) + (sum >> 16)
        }) as u16
    }

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::bytes(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::bytes(&bytes).finish(), !0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_that_broke_rfc_1141_comes_out_as_zero() {
        // HC = 0xdd2f, m = 0x5555 becomes m' = 0x3285: the right answer is 0x0000, not 0xffff.
        assert_eq!(Delta::u16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn zero_bytes_sum_to_zero_and_anything_else_does_not() {
        assert_eq!(Sum::bytes(&[0; 40]).fold(), 0);
        assert_eq!(Sum::bytes(&[0xff; 40]).fold(), 0xffff);
        assert_eq!(Sum::bytes(&[]).fold(), 0);
    }

    #[test]
    fn udp_without_a_checksum_stays_without_and_zero_is_sent_as_ffff() {
        assert_eq!(Delta::u16(1, 2).apply_udp(0), 0);
        let field = 0x1234;
        let to_zero = Delta::u16(0, field);
        assert_eq!(to_zero.apply(field), 0);
        assert_eq!(to_zero.apply_udp(field), 0xffff);
    }

    #[test]
    fn no_change_moves_no_bit_in_either_form_of_zero() {
        for field in [0, 1, 0x7fff, 0xfffe, 0xffff] {
            for same in [0, 1, 0x8000, 0xffff] {
                assert_eq!(Delta::u16(same, same), Delta::NONE);
                assert_eq!(Delta::u16(same, same).apply(field), field);
                assert_eq!(Delta::u16(same, same).apply_partial(field), field);
            }
        }
        assert_eq!(Delta::u16(0, 0xffff), Delta::NONE, "both are zero modulo 65535");
        assert_eq!(Delta::NONE.negate(), Delta::NONE);
    }

    #[test]
    fn folding_survives_the_largest_sum() {
        assert_eq!(Sum(u64::MAX).fold(), 0xffff);
        assert_eq!(Sum(0xffff_ffff_0000_0001).fold(), 1);
    }

    /// Words that lie in the corners as often as anywhere else.
    fn word() -> impl Strategy<Value = u16> {
        prop_oneof![Just(0u16), Just(1), Just(0x7fff), Just(0xfffe), Just(0xffff), any::<u16>()]
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_slow_sum(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::bytes(&bytes).fold(), slow_sum(&bytes));
        }

        #[test]
        fn pieces_of_any_length_sum_to_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(0usize..40, 0..8),
        ) {
            let mut walk = SumWalk::from(Sum::ZERO);
            let mut rest = &bytes[..];
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                walk.push(piece);
                rest = tail;
            }
            walk.push(rest);
            prop_assert_eq!(walk.sum().fold(), slow_sum(&bytes));
        }

        #[test]
        fn an_update_is_what_summing_again_gives(
            mut words in prop::collection::vec(word(), 2..20), at in any::<prop::sample::Index>(), new in word(),
        ) {
            let at = at.index(words.len() - 1) + 1;
            words[0] = 0x4500; // a version nibble or a protocol number: what we sum is never all zero
            let total = |words: &[u16]| words.iter().fold(Sum::ZERO, |sum, w| sum.add_u16(*w));
            let (before, old) = (total(&words), words[at]);
            words[at] = new;
            let after = total(&words);
            let delta = Delta::u16(old, new);
            prop_assert_eq!(delta.apply(before.finish()), after.finish());
            prop_assert_eq!(delta.apply_partial(before.fold()), after.fold());
            prop_assert_eq!(delta.apply_udp(before.finish_udp()), after.finish_udp());
            prop_assert_eq!(delta.negate().apply(after.finish()), before.finish());
            prop_assert_eq!(Delta::sums(before, after), delta);
        }

        #[test]
        fn deltas_of_several_fields_combine_in_any_order(
            old4 in any::<[u8; 4]>(), new4 in any::<[u8; 4]>(), old6 in any::<[u8; 16]>(), new6 in any::<[u8; 16]>(),
            ports in any::<(u16, u16)>(),
        ) {
            let sum = |a: &[u8], b: &[u8], port: u16| {
                Sum::bytes(a).combine(Sum::bytes(b)).add_u16(port).add_u16(6)
            };
            let (before, after) = (sum(&old4, &old6, ports.0), sum(&new4, &new6, ports.1));
            let parts = [Delta::ipv4(old4, new4), Delta::ipv6(&old6, &new6), Delta::u16(ports.0, ports.1)];
            let forward = parts.iter().fold(Delta::NONE, |all, part| all.combine(*part));
            let backward = parts.iter().rev().fold(Delta::NONE, |all, part| part.combine(all));
            prop_assert_eq!(forward, backward);
            prop_assert_eq!(forward.apply(before.finish()), after.finish());
            prop_assert_eq!(Delta::from_bits(forward.to_bits()), forward);
        }

        #[test]
        fn a_wrong_field_stays_wrong_and_by_the_same_amount(field in any::<u16>(), old in word(), new in word()) {
            let delta = Delta::u16(old, new);
            let back = delta.negate().apply(delta.apply(field));
            // 0x0000 and 0xffff are the same number here.
            prop_assert_eq!(u32::from(back) % 0xffff, u32::from(field) % 0xffff);
        }
    }
}
