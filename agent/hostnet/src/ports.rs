//! The kernel's list of ports that it must not choose for its own sockets: `net.ipv4.ip_local_reserved_ports`.
//!
//! The node's SNAT ports are on the list while the agent lives, so that a local socket and a translated flow never share
//! an address and port. The setting is per namespace and holds for IPv6 too (kernel `ip-sysctl.rst`).

use crate::{HostError, Netns, set_sysctl, sysctl};

const KEY: &str = "net/ipv4/ip_local_reserved_ports";

/// The reserved ports as the kernel writes them: `8080,40000-57343`, or empty.
///
/// # Errors
/// As [`fn@sysctl`].
pub fn reserved_ports(ns: &Netns) -> Result<String, HostError> {
    sysctl(ns, KEY)
}

/// Replaces the reserved ports; `value` in the kernel's form, empty for none.
///
/// # Errors
/// As [`fn@set_sysctl`].
pub fn set_reserved_ports(ns: &Netns, value: &str) -> Result<(), HostError> {
    set_sysctl(ns, KEY, value)
}

/// `current` with the ports `first..=last` added: sorted, overlaps and neighbours joined, parts that are no ports left out.
/// A reversed range adds nothing.
pub fn with_reserved(current: &str, first: u16, last: u16) -> String {
    let mut ranges: Vec<(u16, u16)> = current.split(',').filter_map(parse).collect();
    ranges.push((first, last));
    ranges.retain(|(first, last)| first <= last);
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    let written: Vec<String> = joined
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    written.join(",")
}

fn parse(part: &str) -> Option<(u16, u16)> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ports(text: &str) -> BTreeSet<u16> {
        text.split(',').filter_map(parse).flat_map(|(first, last)| first..=last).collect()
    }

    #[test]
    fn ranges_join_and_stay_sorted() {
        assert_eq!(with_reserved("", 40000, 57343), "40000-57343");
        assert_eq!(with_reserved("8080,50000-60000\n", 40000, 57343), "8080,40000-60000");
        assert_eq!(with_reserved("57344", 40000, 57343), "40000-57344");
        assert_eq!(with_reserved("9,x,7-3", 65535, 65535), "9,65535");
        assert_eq!(with_reserved("1-65535", 5, 5), "1-65535");
        assert_eq!(with_reserved("7", 9, 8), "7");
    }

    proptest! {
        #[test]
        fn the_list_holds_exactly_the_union(
            ranges in proptest::collection::vec((any::<u16>(), 0u16..300), 0..6), first: u16, more in 0u16..2000,
        ) {
            let current: Vec<String> = ranges.iter().map(|&(f, m)| format!("{f}-{}", f.saturating_add(m))).collect();
            let current = current.join(",");
            let last = first.saturating_add(more);
            let merged = with_reserved(&current, first, last);
            let mut expected = ports(&current);
            expected.extend(first..=last);
            prop_assert_eq!(ports(&merged), expected);
            let again = with_reserved(&merged, first, last);
            prop_assert_eq!(again, merged, "adding twice changes nothing");
        }
    }
}
