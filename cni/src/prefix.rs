//! An IP address with a prefix length, as CNI results write it: `10.244.1.2/32`, `fd00::2/128`.
//!
//! Unlike a network, it keeps the host bits. Invariant: the length fits the family.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address and the number of leading bits that name its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// The text is not an address, a slash and a prefix length that fits it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an address with a prefix length, such as 10.244.1.2/32")]
pub struct BadPrefix(String);

impl Prefix {
    /// `address/length`, or none where `length` is longer than the address.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(address)).then_some(Self { address, length })
    }

    /// The address alone with its whole length: `/32` or `/128`.
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: bits(address) }
    }

    /// The address with its host bits.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    pub fn length(&self) -> u8 {
        self.length
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let parsed = text.split_once('/').and_then(|(address, length)| {
            let canonical = length.bytes().all(|b| b.is_ascii_digit());
            Prefix::new(address.parse().ok()?, length.parse().ok().filter(|_| canonical)?)
        });
        parsed.ok_or_else(|| BadPrefix(text.to_owned()))
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_that_do_not_fit_the_family_are_refused() {
        for bad in ["10.0.0.1/33", "fd00::1/129", "10.0.0.1", "10.0.0.1/", "10.0.0.1/+8", "/8", "x/8", "10.0.0.1/8/8"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        assert_eq!(Prefix::host("fd00::1".parse().unwrap()).to_string(), "fd00::1/128");
    }

    proptest! {
        #[test]
        fn text_and_value_round_trip(address: IpAddr, length in 0u8..=128) {
            if let Some(prefix) = Prefix::new(address, length) {
                prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
                let json = serde_json::to_string(&prefix).unwrap();
                prop_assert_eq!(serde_json::from_str::<Prefix>(&json).unwrap(), prefix);
            } else {
                prop_assert!(length > 32 && address.is_ipv4());
            }
        }
    }
}
