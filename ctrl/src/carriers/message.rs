//! What nodes tell each other through the overlay, many times a second: that they are there, what they heard last, and what
//! they carry.
//!
//! One UDP datagram of at most [`Message::MOST`] bytes; integers in network order. A node that carries much says it in
//! parts. The receiver believes the sender's name only if the datagram's source is that node's overlay address, which no
//! pod and no stranger can have there (docs/architecture.md, "came honestly").
//!
//! ```text
//! "SLG1"  kind 1  part 2  parts 2  names-hash 8  sent 8  echo 8  count 2  ( family 1, address 4 or 16, term 8 )*
//! ```

use std::net::IpAddr;

/// An address that a node says it carries, and since which term: each node that takes an address over counts one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// Its term.
    pub term: u64,
}

/// One datagram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The sender ends.
    pub leaving: bool,
    /// Number of this part, from 0, and of all parts.
    pub part: (u16, u16),
    /// Hash of all that the sender carries: parts of one telling.
    pub version: u64,
    /// The sender's clock in nanoseconds, to be echoed.
    pub sent: u64,
    /// The last `sent` that the sender heard from the receiver; 0: nothing.
    pub echo: u64,
    /// What the sender carries, this part of it.
    pub claims: Vec<Claim>,
}

const MAGIC: &[u8; 4] = b"SLG1";
const HEAD: usize = 4 + 1 + 2 + 2 + 8 + 8 + 8 + 2;

impl Message {
    /// Longest datagram: fits every overlay.
    pub const MOST: usize = 1200;
    /// Claims that fit into one part.
    pub const CLAIMS: usize = (Self::MOST - HEAD) / 25;

    /// The bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.claims.len() * 25);
        out.extend(MAGIC);
        out.push(u8::from(self.leaving));
        out.extend(self.part.0.to_be_bytes());
        out.extend(self.part.1.to_be_bytes());
        for word in [self.version, self.sent, self.echo] {
            out.extend(word.to_be_bytes());
        }
        out.extend((self.claims.len() as u16).to_be_bytes());
        for claim in &self.claims {
            match claim.address {
                IpAddr::V4(a) => {
                    out.push(4);
                    out.extend(a.octets());
                }
                IpAddr::V6(a) => {
                    out.push(6);
                    out.extend(a.octets());
                }
            }
            out.extend(claim.term.to_be_bytes());
        }
        out
    }

    /// From bytes; none if they are not exactly a message.
    pub fn read(bytes: &[u8]) -> Option<Message> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let leaving = match take::<1>(&mut rest)? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let part = (u16::from_be_bytes(take(&mut rest)?), u16::from_be_bytes(take(&mut rest)?));
        let mut word = || Some(u64::from_be_bytes(take(&mut rest)?));
        let (version, sent, echo) = (word()?, word()?, word()?);
        let count = u16::from_be_bytes(take(&mut rest)?);
        if part.0 >= part.1 || usize::from(count) > Self::CLAIMS {
            return None;
        }
        let mut claims = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let address = match take::<1>(&mut rest)? {
                [4] => IpAddr::from(take::<4>(&mut rest)?),
                [6] => IpAddr::from(take::<16>(&mut rest)?),
                _ => return None,
            };
            claims.push(Claim { address, term: u64::from_be_bytes(take(&mut rest)?) });
        }
        rest.is_empty().then_some(Message { leaving, part, version, sent, echo, claims })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_claim() -> impl Strategy<Value = Claim> {
        let address = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        (address, any::<u64>()).prop_map(|(address, term)| Claim { address, term })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_fits(
            claims in prop::collection::vec(any_claim(), 0..=Message::CLAIMS),
            words in any::<(u64, u64, u64)>(), leaving in any::<bool>(), part in 0..9u16, more in 1..9u16,
        ) {
            let (version, sent, echo) = words;
            let message = Message { leaving, part: (part, part + more), version, sent, echo, claims };
            let bytes = message.write();
            prop_assert!(bytes.len() <= Message::MOST);
            prop_assert_eq!(Message::read(&bytes), Some(message));
            prop_assert_eq!(Message::read(&bytes[..bytes.len() - 1]), None);
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
            let bytes = if magic { [MAGIC.as_slice(), &bytes].concat() } else { bytes };
            let _ = Message::read(&bytes);
        }
    }
}
