//! The privileges that the agent needs, checked before the first thing fails for want of one.
//!
//! Source: `capabilities(7)`. `CAP_BPF` exists since Linux 5.8; before it, and still, `CAP_SYS_ADMIN` covers it.

use rustix::thread::{CapabilitySet, capabilities};

/// The capabilities that the calling thread lacks, by name: `CAP_NET_ADMIN` (interfaces, routes), `CAP_NET_RAW` (AF_XDP
/// and packet sockets), `CAP_BPF` (XDP programs), `CAP_SYS_ADMIN` (entering pods' namespaces). Empty means all are there.
pub fn capabilities_missing() -> Vec<&'static str> {
    // capget of the own thread fails only where a sandbox forbids it: then nothing can be relied on.
    missing(capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective))
}

fn missing(effective: CapabilitySet) -> Vec<&'static str> {
    let needed = [
        ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
        ("CAP_NET_RAW", CapabilitySet::NET_RAW),
        ("CAP_BPF", CapabilitySet::BPF | CapabilitySet::SYS_ADMIN),
        ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    ];
    needed.into_iter().filter(|(_, any_of)| !effective.intersects(*any_of)).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_missing_from_an_empty_set_and_none_from_a_full_one() {
        assert_eq!(missing(CapabilitySet::empty()), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_SYS_ADMIN"]);
        assert!(missing(CapabilitySet::all()).is_empty());
    }

    #[test]
    fn sys_admin_stands_in_for_bpf_but_not_the_other_way() {
        assert_eq!(missing(CapabilitySet::SYS_ADMIN), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert_eq!(missing(CapabilitySet::BPF), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
    }
}
