//! Who has which address: leases, addresses that rest, and how the next one is chosen. Pure: the clock is passed in, and the
//! caller keeps it on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::{COOL_DOWN_SECONDS, IpamError, Lease, Pool, Request};
use crate::model::Family;

/// A released address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rest {
    /// The second of its release.
    pub(super) since: u64,
    /// Whose it was; empty where that is not known.
    pub(super) pod: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// By container.
    pub(super) leases: BTreeMap<String, Lease>,
    /// Released addresses.
    pub(super) resting: BTreeMap<IpAddr, Rest>,
    /// The offset last given from each network, so that addresses come back as late as possible.
    pub(super) last: BTreeMap<IpNet, u128>,
}

impl State {
    /// Addresses that rested long enough are free. A clock that went back does not make them rest for ever.
    pub(super) fn wake(&mut self, now: u64) {
        self.resting.retain(|_, rest| {
            rest.since = rest.since.min(now);
            now - rest.since < COOL_DOWN_SECONDS
        });
    }

    pub(super) fn give(&mut self, request: &Request<'_>, now: u64) -> Result<Vec<IpAddr>, IpamError> {
        if let Some(lease) = self.leases.get(request.container) {
            if lease.pod != *request.pod {
                let (container, owner) = (lease.container.clone(), lease.pod.clone());
                return Err(IpamError::OtherPod { container, owner });
            }
            if request.fixed.is_empty() || lease.addresses == request.fixed {
                return Ok(lease.addresses.clone());
            }
        }
        let addresses = match request.fixed {
            [] => self.choose(request)?,
            fixed => {
                self.check_fixed(fixed, request)?;
                self.take_over(fixed, request);
                fixed.to_vec()
            }
        };
        self.release(request.container, now);
        for address in &addresses {
            self.resting.remove(address);
        }
        let lease = Lease {
            pod: request.pod.clone(),
            container: request.container.to_owned(),
            addresses: addresses.clone(),
            since: now,
        };
        self.leases.insert(request.container.to_owned(), lease);
        Ok(addresses)
    }

    fn choose(&mut self, request: &Request<'_>) -> Result<Vec<IpAddr>, IpamError> {
        let families: BTreeSet<Family> = request.pools.iter().map(|p| Family::of_net(&p.net)).collect();
        if families.is_empty() {
            return Err(IpamError::NoPools);
        }
        for address in request.wanted {
            self.check_wanted(*address, request)?;
        }
        let mut taken: BTreeSet<IpAddr> = self.leases.values().flat_map(|l| l.addresses.iter().copied()).collect();
        taken.extend(self.resting.keys());
        taken.extend(request.reserved);
        let mut addresses = Vec::new();
        for family in families {
            if let Some(wanted) = request.wanted.iter().find(|a| Family::of(a) == family) {
                addresses.push(*wanted);
                continue;
            }
            let pools: Vec<&Pool> = request.pools.iter().filter(|p| Family::of_net(&p.net) == family).collect();
            let free = pools.iter().find_map(|pool| Some((pool, self.next_free(pool, &taken)?)));
            let Some((pool, offset)) = free else {
                return Err(IpamError::Exhausted {
                    family,
                    pools: pools.iter().map(|p| format!("{} {}", p.name, p.net)).collect::<Vec<_>>().join(", "),
                    size: pools.iter().fold(0, |sum, p| p.size().saturating_add(sum)),
                    in_use: pools.iter().map(|p| self.in_use(p)).sum(),
                    resting: self.resting.keys().filter(|a| pools.iter().any(|p| p.net.contains(*a))).count(),
                });
            };
            self.last.insert(pool.net, offset);
            addresses.push(pool.address(offset));
        }
        self.take_over(request.wanted, request);
        Ok(addresses)
    }

    /// An address that a pod asks for lies in its pools, is nobody else's and has rested. Its own it may have back at once.
    fn check_wanted(&self, address: IpAddr, request: &Request<'_>) -> Result<(), IpamError> {
        let pod = request.pod.clone();
        if !request.pools.iter().any(|p| p.may_be_a_pods(&address)) {
            return Err(IpamError::Unusable { address, pod, why: "it lies in no pool that this pod may use" });
        }
        if request.reserved.contains(&address) {
            return Err(IpamError::Unusable { address, pod, why: "another Pod object carries it" });
        }
        self.check_owner(address, request)?;
        match self.resting.get(&address) {
            Some(rest) if rest.pod != request.pod.to_string() => {
                Err(IpamError::Resting { address, pod, owner: rest.pod.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The addresses that the Pod object carries are not the node's own and nobody else's.
    fn check_fixed(&self, fixed: &[IpAddr], request: &Request<'_>) -> Result<(), IpamError> {
        for address in fixed {
            if let Some(pool) = request.pools.iter().find(|p| p.net.contains(address))
                && !pool.may_be_a_pods(address)
            {
                let why = "the network's first two addresses and its broadcast address are no pod's";
                return Err(IpamError::Unusable { address: *address, pod: request.pod.clone(), why });
            }
            self.check_owner(*address, request)?;
        }
        Ok(())
    }

    fn check_owner(&self, address: IpAddr, request: &Request<'_>) -> Result<(), IpamError> {
        let other = |l: &&Lease| l.addresses.contains(&address) && l.pod != *request.pod;
        match self.leases.values().find(other) {
            Some(owner) => Err(IpamError::Conflict { address, pod: request.pod.clone(), owner: owner.pod.clone() }),
            None => Ok(()),
        }
    }

    /// A pod's next container takes addresses from the last one, whose DEL is still to come.
    fn take_over(&mut self, addresses: &[IpAddr], request: &Request<'_>) {
        for lease in self.leases.values_mut() {
            lease.addresses.retain(|a| !addresses.contains(a));
        }
        self.leases.retain(|container, lease| container == request.container || !lease.addresses.is_empty());
    }

    pub(super) fn release(&mut self, container: &str, now: u64) -> Option<Lease> {
        let lease = self.leases.remove(container)?;
        let rest = Rest { since: now, pod: lease.pod.to_string() };
        self.resting.extend(lease.addresses.iter().map(|a| (*a, rest.clone())));
        Some(lease)
    }

    pub(super) fn in_use(&self, pool: &Pool) -> usize {
        self.leases.values().flat_map(|l| &l.addresses).filter(|a| pool.net.contains(*a)).count()
    }

    /// The first free offset after the one given last, round the whole pool.
    fn next_free(&self, pool: &Pool, taken: &BTreeSet<IpAddr>) -> Option<u128> {
        let size = pool.span();
        let start = self.last.get(&pool.net).map_or(0, |last| last.saturating_sub(1));
        (0..pool.tries(taken.len()))
            .map(|i| 2 + (start % size + i) % size)
            .find(|offset| pool.gives(*offset) && !taken.contains(&pool.address(*offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Usage;
    use super::super::tests::{ask, ipam, pod};
    use super::*;

    #[test]
    fn each_family_gives_one_address_and_never_the_nodes() {
        let mut f = ipam(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(f.add("a", "c1", &[], 0).unwrap(), ["10.244.1.2", "fd00:10:244:1::2"]);
        assert_eq!(f.add("b", "c2", &[], 0).unwrap(), ["10.244.1.3", "fd00:10:244:1::3"]);
        assert_eq!(f.add("a", "c1", &[], 9).unwrap(), ["10.244.1.2", "fd00:10:244:1::2"], "ADD may be repeated");
        assert!(f.add("b", "c1", &[], 9).unwrap_err().contains("c1 is default/a's already"));
    }

    #[test]
    fn a_full_pool_is_a_clear_error_and_gives_nothing_of_the_other_family() {
        let mut f = ipam(&["10.244.1.0/29", "fd00::/64"]);
        for i in 0..5 {
            assert_eq!(f.add("a", &format!("c{i}"), &[], 0).unwrap()[0], format!("10.244.1.{}", i + 2));
        }
        let error = f.add("a", "c9", &[], 0).unwrap_err();
        assert_eq!(error, "no free ipv4 address in node 10.244.1.0/29: 5 in all, 5 in use, 0 released too recently");
        f.ipam.release("c0", 100).unwrap();
        assert!(f.add("a", "c9", &[], 159).unwrap_err().ends_with("4 in use, 1 released too recently"));
        assert_eq!(f.add("a", "c9", &[], 160).unwrap(), ["10.244.1.2", "fd00::7"]);
        assert_eq!(
            f.ipam.usage()[0],
            Usage { pool: "node".into(), net: "10.244.1.0/29".parse().unwrap(), size: 5, in_use: 5 }
        );
    }

    #[test]
    fn networks_too_small_for_pods_give_none() {
        for net in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/128", "fd00::/127"] {
            let mut f = ipam(&[net]);
            assert!(f.add("a", "c", &[], 0).unwrap_err().contains(": 0 in all"), "{net}");
        }
        assert_eq!(ipam(&["10.0.0.0/30"]).add("a", "c", &[], 0).unwrap(), ["10.0.0.2"]);
        assert_eq!(ipam(&["::/0"]).add("a", "c", &[], 0).unwrap(), ["::2"]);
        assert!(ipam(&[]).add("a", "c", &[], 0).unwrap_err().contains("no podCIDR"));
    }

    #[test]
    fn a_pod_object_gets_exactly_its_addresses() {
        let mut f = ipam(&["10.244.1.0/24"]);
        assert_eq!(f.add("a", "c1", &["10.244.1.9", "2001:db8::9"], 0).unwrap(), ["10.244.1.9", "2001:db8::9"]);
        assert!(f.add("b", "c2", &["10.244.1.9"], 0).unwrap_err().contains("default/a has it"));
        for own in ["10.244.1.0", "10.244.1.1", "10.244.1.255"] {
            assert!(f.add("b", "c2", &[own], 0).unwrap_err().contains("no pod's"), "{own}");
        }
        // The pod's next container takes over; the late DEL of the first one then changes nothing.
        assert!(f.add("a", "c3", &["10.244.1.9", "2001:db8::9"], 0).is_ok());
        assert_eq!(f.ipam.release("c1", 1).unwrap(), None);
        assert_eq!(f.ipam.addresses_by_pod()[&pod("a")].len(), 2);
        // An address that was just released is its own pod's at once.
        f.ipam.release("c3", 2).unwrap();
        assert!(f.add("a", "c4", &["10.244.1.9"], 2).is_ok());
    }

    #[test]
    fn addresses_of_other_pod_objects_are_not_chosen() {
        let mut f = ipam(&["10.244.1.0/24"]);
        let reserved = BTreeSet::from(["10.244.1.2".parse().unwrap(), "10.244.1.3".parse().unwrap()]);
        let name = pod("a");
        let request = Request { reserved: &reserved, ..ask(&name, "c", &f.pools) };
        assert_eq!(f.ipam.add(&request, 0).unwrap(), ["10.244.1.4".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_pod_gets_the_address_it_asks_for_unless_somebody_has_or_had_it() {
        let mut f = ipam(&["10.244.1.0/24", "fd00::/64"]);
        let (a, b) = (pod("a"), pod("b"));
        let nine: [IpAddr; 1] = ["10.244.1.9".parse().unwrap()];
        let pools = f.pools.clone();
        let wants = |pod, container| Request { wanted: &nine, ..ask(pod, container, &pools) };
        let given = f.ipam.add(&wants(&a, "c1"), 0).unwrap();
        assert_eq!(given, [nine[0], "fd00::2".parse().unwrap()], "the other family is chosen");
        let said = |result: Result<_, IpamError>| result.unwrap_err().to_string();
        assert!(said(f.ipam.add(&wants(&b, "c2"), 0)).contains("default/a has it"));
        // The pod's next sandbox takes it over; once released it is its own pod's at once and another's after a minute.
        assert_eq!(f.ipam.add(&wants(&a, "c3"), 1).unwrap()[0], nine[0]);
        f.ipam.release("c3", 10).unwrap();
        assert!(said(f.ipam.add(&wants(&b, "c2"), 69)).contains("gave it back"));
        assert_eq!(f.ipam.add(&wants(&a, "c4"), 11).unwrap()[0], nine[0]);
        f.ipam.release("c4", 20).unwrap();
        assert_eq!(f.ipam.add(&wants(&b, "c2"), 80).unwrap()[0], nine[0]);
        for (address, why) in [("10.9.9.9", "no pool"), ("10.244.1.1", "no pool"), ("10.244.1.255", "no pool")] {
            let wanted = [address.parse().unwrap()];
            let request = Request { wanted: &wanted, ..ask(&b, "c9", &pools) };
            assert!(said(f.ipam.add(&request, 0)).contains(why), "{address}");
        }
        let reserved = BTreeSet::from(["10.244.1.77".parse().unwrap()]);
        let wanted = ["10.244.1.77".parse().unwrap()];
        let request = Request { wanted: &wanted, reserved: &reserved, ..ask(&b, "c9", &pools) };
        assert!(said(f.ipam.add(&request, 0)).contains("another Pod object carries it"));
    }
}
