//! Protocol states as seen from outside, and the idle time each allows.
//!
//! TCP follows RFC 9293 as far as a middlebox can see it: flags only, no windows, so that a flow picked up in the middle
//! and one that changed its path live on. UDP becomes a stream once both sides have spoken and the first speaks again.

use sluice_tables::Timeouts;

/// State of a connection, kept in both of its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// The entry is free.
    Free = 0,
    /// First packet seen, no answer (UDP, ICMP, SCTP, others).
    New = 1,
    /// Answered once (UDP).
    Replied = 2,
    /// Both sides speak (UDP stream, SCTP association, answered ICMP).
    Stream = 3,
    /// SYN seen.
    SynSent = 4,
    /// SYN-ACK seen.
    SynReceived = 5,
    /// Handshake complete, or picked up in the middle.
    Established = 6,
    /// The first side has sent FIN.
    FinOriginal = 7,
    /// The other side has sent FIN.
    FinReply = 8,
    /// Both have, or one has reset.
    Closed = 9,
    /// A policy forbids a flow that was allowed before. It is remembered as long as packets come, so that the far end's
    /// retransmissions cannot pass for the beginning of a flow the other way.
    Denied = 10,
}

/// TCP flag bits.
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// Acknowledgement.
    pub const ACK: u8 = 16;
}

impl State {
    /// From the byte in an entry.
    #[inline]
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => State::New,
            2 => State::Replied,
            3 => State::Stream,
            4 => State::SynSent,
            5 => State::SynReceived,
            6 => State::Established,
            7 => State::FinOriginal,
            8 => State::FinReply,
            9 => State::Closed,
            10 => State::Denied,
            _ => State::Free,
        }
    }

    /// Name for `sluice flows`.
    pub fn name(self) -> &'static str {
        match self {
            State::Free => "free",
            State::New => "new",
            State::Replied => "replied",
            State::Stream => "stream",
            State::SynSent => "syn-sent",
            State::SynReceived => "syn-received",
            State::Established => "established",
            State::FinOriginal => "fin-original",
            State::FinReply => "fin-reply",
            State::Closed => "closed",
            State::Denied => "denied",
        }
    }

    /// State of a flow made by this first packet.
    pub fn first(protocol: u8, tcp_flags: u8) -> Self {
        match protocol {
            6 if tcp_flags & flags::RST != 0 => State::Closed,
            6 if tcp_flags & flags::SYN != 0 => State::SynSent,
            6 if tcp_flags & flags::FIN != 0 => State::FinOriginal,
            6 => State::Established,
            _ => State::New,
        }
    }

    /// Whether a segment with these flags neither opens, ends nor resets its connection.
    #[inline(always)]
    pub fn goes_on(tcp_flags: u8) -> bool {
        tcp_flags & (flags::SYN | flags::FIN | flags::RST) == 0
    }

    /// Whether packets of this state and these flags change nothing: the fast path's question.
    #[inline(always)]
    pub fn is_steady(byte: u8, tcp_flags: u8) -> bool {
        (byte == State::Established as u8 || byte == State::Stream as u8) && Self::goes_on(tcp_flags)
    }

    /// The state after a packet; `original` says whether it goes the first packet's way.
    pub fn after(self, protocol: u8, tcp_flags: u8, original: bool) -> Self {
        use State::*;
        if protocol != 6 {
            return match (self, original) {
                (New, false) => Replied,
                // Only UDP waits for the first side to speak again; echo and associations are two-way once answered.
                (Replied, true) => Stream,
                (state, _) => state,
            };
        }
        if tcp_flags & flags::RST != 0 {
            return Closed;
        }
        if tcp_flags & flags::SYN != 0 {
            return match (self, tcp_flags & flags::ACK != 0, original) {
                (SynSent, true, false) => SynReceived,
                (state, _, _) => state,
            };
        }
        if tcp_flags & flags::FIN != 0 {
            return match (self, original) {
                (FinReply | Closed, true) | (FinOriginal | Closed, false) => Closed,
                (_, true) => FinOriginal,
                (_, false) => FinReply,
            };
        }
        match (self, original) {
            (SynReceived, true) => Established,
            (state, _) => state,
        }
    }

    /// Idle seconds this state allows.
    #[inline]
    pub fn timeout(self, protocol: u8, t: &Timeouts) -> u32 {
        match (protocol, self) {
            (6, State::Established) => t.tcp_established,
            (6, State::SynSent | State::SynReceived) => t.tcp_handshake,
            (6, _) => t.tcp_closing,
            (17, State::Stream) => t.udp_stream,
            (17, _) => t.udp,
            (1 | 58, _) => t.icmp,
            (132, State::Replied | State::Stream) => t.sctp_established,
            _ => t.other,
        }
    }

    /// Whether a full table may take this flow's place: half-open and closing ones, never established ones.
    pub fn may_be_evicted(self, protocol: u8) -> bool {
        match self {
            State::Established | State::Stream => false,
            State::Replied => protocol == 17,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcp_connection_opens_and_closes() {
        let mut s = State::first(6, flags::SYN);
        for (flag, original, want) in [
            (flags::SYN | flags::ACK, false, State::SynReceived),
            (flags::ACK, true, State::Established),
            (flags::ACK | flags::PSH, false, State::Established),
            (flags::FIN | flags::ACK, true, State::FinOriginal),
            (flags::ACK, false, State::FinOriginal),
            (flags::FIN | flags::ACK, false, State::Closed),
        ] {
            s = s.after(6, flag, original);
            assert_eq!(s, want);
        }
    }

    #[test]
    fn a_udp_flow_is_a_stream_when_the_first_side_speaks_again() {
        let s = State::first(17, 0);
        assert_eq!(s.after(17, 0, true), State::New);
        let replied = s.after(17, 0, false);
        assert_eq!((replied, replied.after(17, 0, false)), (State::Replied, State::Replied));
        assert_eq!(replied.after(17, 0, true), State::Stream);
    }

    #[test]
    fn a_reset_closes_from_any_state() {
        for byte in 4..=9 {
            assert_eq!(State::from_byte(byte).after(6, flags::RST, false), State::Closed);
        }
    }
}
