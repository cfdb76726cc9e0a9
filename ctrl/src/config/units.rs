//! The values of the configuration that are written as words: durations, ranges of ports, lists of CPUs, counts.
//!
//! Owner: the control thread. Durations are whole seconds with a unit (`90s`, `30m`, `24h`, `7d`), port ranges are
//! `first-last`, CPU lists as in the kernel (`2-5,8`).

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::model::PortRange;

/// A count that may be left to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    /// As many as there are workers and the interface has.
    #[default]
    Auto,
    /// This many.
    Count(u16),
}

/// The CPUs that workers are pinned to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// Every CPU but the control thread's, where there is more than one.
    #[default]
    Auto,
    /// These CPUs.
    Cpus(BTreeSet<u16>),
}

/// Reads a value from text or from a whole number.
struct Words<T> {
    expected: &'static str,
    read: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for Words<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(|why| E::custom(format_args!("{text:?} {why}, expected {}", self.expected)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// A timeout in whole seconds, at least one; written as a number with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u32);

impl Seconds {
    /// As the standard library's type.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = text[..digits].parse().map_err(|_| "has no number".to_owned())?;
        let unit = match &text[digits..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "" => return Err("has no unit".to_owned()),
            _ => return Err("has an unknown unit".to_owned()),
        };
        match number.checked_mul(unit).and_then(|n| u32::try_from(n).ok()) {
            Some(0) => Err("is no time at all".to_owned()),
            Some(seconds) => Ok(Seconds(seconds)),
            None => Err("is too long".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "a duration such as 90s, 30m or 24h", read: str::parse })
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}s", self.0))
    }
}

fn parse_range(text: &str) -> Result<PortRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |t: &str| t.trim().parse::<u16>().map_err(|_| "is not a range of ports".to_owned());
    PortRange::new(port(first)?, port(last)?).ok_or_else(|| "ends before it starts".to_owned())
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "ports such as 30000-32767", read: parse_range })
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn parse_workers(text: &str) -> Result<Workers, String> {
    if text == "auto" {
        return Ok(Workers::Auto);
    }
    let mut cpus = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let cpu = |t: &str| t.trim().parse::<u16>().ok().filter(|n| *n < 4096);
        match (cpu(first), cpu(last)) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            _ => return Err(format!("has {part:?}, which is no CPU")),
        }
    }
    Ok(Workers::Cpus(cpus))
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "auto or CPUs such as 2-5,8", read: parse_workers })
    }
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Workers::Auto => serializer.serialize_str("auto"),
            Workers::Cpus(cpus) => {
                let cpus: Vec<String> = cpus.iter().map(u16::to_string).collect();
                serializer.serialize_str(&cpus.join(","))
            }
        }
    }
}

fn parse_queues(text: &str) -> Result<Queues, String> {
    if text == "auto" {
        return Ok(Queues::Auto);
    }
    let count = text.parse::<u16>().ok().filter(|n| (1..=256).contains(n));
    count.map(Queues::Count).ok_or_else(|| "is no count of queues".to_owned())
}

impl<'de> Deserialize<'de> for Queues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "auto or a number from 1 to 256", read: parse_queues })
    }
}

impl Serialize for Queues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Queues::Auto => serializer.serialize_str("auto"),
            Queues::Count(count) => serializer.serialize_u16(*count),
        }
    }
}

/// The ranges of the defaults, which are in order.
pub(super) fn port_range(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap_or_else(|| unreachable!("{first} is not above {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_seconds_with_a_unit() {
        assert_eq!("90s".parse(), Ok(Seconds(90)));
        assert_eq!("7d".parse(), Ok(Seconds(604_800)));
        for (text, why) in [
            ("90", "has no unit"),
            ("s", "has no number"),
            ("-1s", "has no number"),
            ("1w", "has an unknown unit"),
            ("0h", "is no time at all"),
            ("9999999999d", "is too long"),
            ("99999999999999999999999s", "has no number"),
        ] {
            assert_eq!(text.parse::<Seconds>(), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn cpu_lists_are_written_as_the_kernel_does() {
        assert_eq!(parse_workers("0-2, 7"), Ok(Workers::Cpus([0, 1, 2, 7].into())));
        assert_eq!(parse_workers("auto"), Ok(Workers::Auto));
        for bad in ["", "a", "2-", "3-1", "1,,2", "99999"] {
            assert!(parse_workers(bad).is_err(), "{bad:?}");
        }
    }
}
