//! Addresses for local pods: leases from the node's podCIDRs, one of each family, that survive the process.
//!
//! Owner: the control thread; the clock is passed in. Source: CNI 1.1.0 (ADD is repeatable, DEL may come twice or for
//! another container of the same pod). Invariants: network + 0, network + 1 (the node's own overlay address) and the
//! IPv4 broadcast address are never given; an address is nobody's for [`COOL_DOWN_SECONDS`] after its release, so that
//! no flow of its last owner finds the next one; what was answered is on disk before (written aside, synced, renamed),
//! and what cannot be read back is an error, never a fresh start. Cost: a lease is one pass over the leases and one
//! write of the file.

mod file;
mod pool;

pub use pool::{Pool, Usage, node_pools};

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use self::file::{read_state, write_state};
use crate::model::{Family, NamespacedName};

/// An address rests for this long after its release.
pub const COOL_DOWN_SECONDS: u64 = 60;
/// The file in the state directory.
pub const FILE_NAME: &str = "leases.json";

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// Every address of the family's pools is taken or rests.
    #[error("no free {family} address in {pools}: {size} in all, {in_use} in use, {resting} released too recently")]
    Exhausted {
        /// The family.
        family: Family,
        /// The pools that were tried.
        pools: String,
        /// How many addresses they can give.
        size: u128,
        /// How many of them pods have.
        in_use: usize,
        /// How many were released less than [`COOL_DOWN_SECONDS`] ago.
        resting: usize,
    },
    /// The node has no network to give addresses from.
    #[error("this node has no podCIDR to give addresses from")]
    NoPools,
    /// An address that the Pod object asks for is another pod's.
    #[error("{address} is asked for by {pod}, and {owner} has it")]
    Conflict {
        /// The address.
        address: IpAddr,
        /// Who asks.
        pod: NamespacedName,
        /// Who has it.
        owner: NamespacedName,
    },
    /// An address that the Pod object asks for can be no pod's.
    #[error("{address} is asked for by {pod}: {why}")]
    Unusable {
        /// The address.
        address: IpAddr,
        /// Who asks.
        pod: NamespacedName,
        /// Whose it is.
        why: &'static str,
    },
    /// One container stands for one pod.
    #[error("container {container} is {owner}'s already")]
    OtherPod {
        /// The container.
        container: String,
        /// The pod that has it.
        owner: NamespacedName,
    },
    /// The leases cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not one of ours, or of a later version.
    #[error("{path}: {why}; pods run with these leases, so the file is not replaced")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// What a container has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The pod.
    pub pod: NamespacedName,
    /// The container's id, of the pod's sandbox.
    pub container: String,
    /// Its addresses, at most one of each family where IPAM chose them.
    pub addresses: Vec<IpAddr>,
    /// When it was given, in seconds since 1970.
    pub since: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The pod.
    pub pod: &'a NamespacedName,
    /// The container's id, of the pod's sandbox.
    pub container: &'a str,
    /// `status.podIPs` of the Pod object: exactly these are given where there are any.
    pub fixed: &'a [IpAddr],
    /// Addresses that other Pod objects carry already: never chosen.
    pub reserved: &'a BTreeSet<IpAddr>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    /// By container.
    leases: BTreeMap<String, Lease>,
    /// Released addresses, with the second of their release.
    resting: BTreeMap<IpAddr, u64>,
    /// The offset last given from each network, so that addresses come back as late as possible.
    last: BTreeMap<IpNet, u128>,
}

/// The leases of this node.
#[derive(Debug)]
pub struct Ipam {
    path: PathBuf,
    pools: Vec<Pool>,
    state: State,
}

impl Ipam {
    /// Reads the leases from a state directory, which is made where it is missing.
    pub fn open(state_dir: &Path, pools: Vec<Pool>) -> Result<Ipam, IpamError> {
        let path = state_dir.join(FILE_NAME);
        let failed = |source| IpamError::File { path: path.clone(), source };
        fs::create_dir_all(state_dir).map_err(failed)?;
        let state = match fs::read(&path) {
            Ok(bytes) => read_state(&bytes).map_err(|why| IpamError::Unreadable { path: path.clone(), why })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(failed(error)),
        };
        Ok(Ipam { path, pools, state })
    }

    /// Gives addresses from these networks from now on; leases from others stay.
    pub fn set_pools(&mut self, pools: Vec<Pool>) {
        self.pools = pools;
    }

    /// The addresses for a container: those it has, those its Pod object asks for, or new ones, one of each family.
    /// `now` is in seconds since 1970.
    pub fn add(&mut self, request: &Request<'_>, now: u64) -> Result<Vec<IpAddr>, IpamError> {
        let mut state = self.state.clone();
        state.wake(now);
        if let Some(lease) = state.leases.get(request.container) {
            if lease.pod != *request.pod {
                let (container, owner) = (lease.container.clone(), lease.pod.clone());
                return Err(IpamError::OtherPod { container, owner });
            }
            if request.fixed.is_empty() || lease.addresses == request.fixed {
                return Ok(lease.addresses.clone());
            }
        }
        let addresses = match request.fixed {
            [] => self.choose(&mut state, request)?,
            fixed => self.take_fixed(&mut state, fixed, request)?,
        };
        state.release(request.container, now);
        for address in &addresses {
            state.resting.remove(address);
        }
        let lease = Lease {
            pod: request.pod.clone(),
            container: request.container.to_owned(),
            addresses: addresses.clone(),
            since: now,
        };
        state.leases.insert(request.container.to_owned(), lease);
        self.commit(state)?;
        Ok(addresses)
    }

    /// Ends a container's lease; none where it has none (a repeated DEL). `now` is in seconds since 1970.
    pub fn release(&mut self, container: &str, now: u64) -> Result<Option<Lease>, IpamError> {
        if !self.state.leases.contains_key(container) {
            return Ok(None);
        }
        let mut state = self.state.clone();
        state.wake(now);
        let lease = state.release(container, now);
        self.commit(state)?;
        Ok(lease)
    }

    /// Ends the leases of all containers but these, and gives them back. `now` is in seconds since 1970.
    pub fn retain(&mut self, containers: &BTreeSet<String>, now: u64) -> Result<Vec<Lease>, IpamError> {
        let mut state = self.state.clone();
        state.wake(now);
        let gone: Vec<String> = state.leases.keys().filter(|c| !containers.contains(*c)).cloned().collect();
        let ended: Vec<Lease> = gone.iter().filter_map(|c| state.release(c, now)).collect();
        if !ended.is_empty() {
            self.commit(state)?;
        }
        Ok(ended)
    }

    /// All leases, in order of containers.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.state.leases.values()
    }

    /// The addresses of each pod; of a pod whose last container is not deleted yet, those of the newest one.
    pub fn addresses_by_pod(&self) -> BTreeMap<NamespacedName, Vec<IpAddr>> {
        let mut leases: Vec<&Lease> = self.leases().collect();
        leases.sort_by_key(|l| l.since);
        leases.into_iter().map(|l| (l.pod.clone(), l.addresses.clone())).collect()
    }

    /// How full each pool is.
    pub fn usage(&self) -> Vec<Usage> {
        let usage = |pool: &Pool| Usage {
            pool: pool.name.clone(),
            net: pool.net,
            size: pool.size(),
            in_use: self.state.in_use(pool),
        };
        self.pools.iter().map(usage).collect()
    }

    fn choose(&self, state: &mut State, request: &Request<'_>) -> Result<Vec<IpAddr>, IpamError> {
        let families: BTreeSet<Family> = self.pools.iter().map(|p| Family::of_net(&p.net)).collect();
        if families.is_empty() {
            return Err(IpamError::NoPools);
        }
        let mut taken: BTreeSet<IpAddr> = state.leases.values().flat_map(|l| l.addresses.iter().copied()).collect();
        taken.extend(state.resting.keys());
        taken.extend(request.reserved);
        let mut addresses = Vec::new();
        for family in families {
            let pools: Vec<&Pool> = self.pools.iter().filter(|p| Family::of_net(&p.net) == family).collect();
            let free = pools.iter().find_map(|pool| Some((pool, state.next_free(pool, &taken)?)));
            let Some((pool, offset)) = free else {
                return Err(IpamError::Exhausted {
                    family,
                    pools: pools.iter().map(|p| format!("{} {}", p.name, p.net)).collect::<Vec<_>>().join(", "),
                    size: pools.iter().fold(0, |sum, p| p.size().saturating_add(sum)),
                    in_use: pools.iter().map(|p| state.in_use(p)).sum(),
                    resting: state.resting.keys().filter(|a| pools.iter().any(|p| p.net.contains(*a))).count(),
                });
            };
            state.last.insert(pool.net, offset);
            addresses.push(pool.address(offset));
        }
        Ok(addresses)
    }

    /// Takes exactly the addresses the Pod object carries. A pod's next container may take them from the last one,
    /// whose DEL is still to come.
    fn take_fixed(&self, state: &mut State, fixed: &[IpAddr], request: &Request<'_>) -> Result<Vec<IpAddr>, IpamError> {
        for address in fixed {
            let pod = request.pod.clone();
            if let Some(pool) = self.pools.iter().find(|p| p.net.contains(address))
                && pool.offset(address).is_none_or(|o| o < 2 || o > pool.last_offset())
            {
                let why = "the network's first two addresses and its broadcast address are no pod's";
                return Err(IpamError::Unusable { address: *address, pod, why });
            }
            let other = |l: &&Lease| l.addresses.contains(address) && l.pod != *request.pod;
            if let Some(owner) = state.leases.values().find(other) {
                return Err(IpamError::Conflict { address: *address, pod, owner: owner.pod.clone() });
            }
        }
        for lease in state.leases.values_mut() {
            lease.addresses.retain(|a| !fixed.contains(a));
        }
        state.leases.retain(|container, lease| container == request.container || !lease.addresses.is_empty());
        Ok(fixed.to_vec())
    }

    /// Makes a state the current one, on disk first.
    fn commit(&mut self, state: State) -> Result<(), IpamError> {
        write_state(&self.path, &state).map_err(|source| IpamError::File { path: self.path.clone(), source })?;
        self.state = state;
        Ok(())
    }
}

impl State {
    /// Addresses that rested long enough are free. A clock that went back does not make them rest for ever.
    fn wake(&mut self, now: u64) {
        self.resting.retain(|_, since| {
            *since = (*since).min(now);
            now - *since < COOL_DOWN_SECONDS
        });
    }

    fn release(&mut self, container: &str, now: u64) -> Option<Lease> {
        let lease = self.leases.remove(container)?;
        self.resting.extend(lease.addresses.iter().map(|a| (*a, now)));
        Some(lease)
    }

    fn in_use(&self, pool: &Pool) -> usize {
        self.leases.values().flat_map(|l| &l.addresses).filter(|a| pool.net.contains(*a)).count()
    }

    /// The first free offset after the one given last, round the whole pool.
    fn next_free(&self, pool: &Pool, taken: &BTreeSet<IpAddr>) -> Option<u128> {
        let size = pool.size();
        let start = self.last.get(&pool.net).map_or(0, |last| last.saturating_sub(1));
        // Among one more place than there are addresses taken, one is free.
        let tries = size.min(taken.len() as u128 + 1);
        (0..tries).map(|i| 2 + (start % size + i) % size).find(|offset| !taken.contains(&pool.address(*offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(name: &str) -> NamespacedName {
        NamespacedName::new("default", name)
    }

    fn pools(nets: &[&str]) -> Vec<Pool> {
        node_pools(&nets.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>())
    }

    struct Fixture {
        dir: tempfile::TempDir,
        ipam: Ipam,
    }

    fn ipam(nets: &[&str]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let ipam = Ipam::open(dir.path(), pools(nets)).unwrap();
        Fixture { dir, ipam }
    }

    impl Fixture {
        fn add(&mut self, name: &str, container: &str, fixed: &[&str], now: u64) -> Result<Vec<String>, String> {
            let fixed: Vec<IpAddr> = fixed.iter().map(|a| a.parse().unwrap()).collect();
            let request = Request { pod: &pod(name), container, fixed: &fixed, reserved: &BTreeSet::new() };
            let given = self.ipam.add(&request, now).map_err(|e| e.to_string())?;
            Ok(given.iter().map(IpAddr::to_string).collect())
        }
    }

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
    fn a_pods_newest_container_speaks_for_it() {
        let mut f = ipam(&["10.244.1.0/24"]);
        f.add("a", "z-first", &[], 1).unwrap();
        let second = f.add("a", "b-second", &[], 2).unwrap();
        assert_eq!(f.ipam.addresses_by_pod()[&pod("a")][0].to_string(), second[0]);
    }

    #[test]
    fn addresses_of_other_pod_objects_are_not_chosen() {
        let mut f = ipam(&["10.244.1.0/24"]);
        let reserved = BTreeSet::from(["10.244.1.2".parse().unwrap(), "10.244.1.3".parse().unwrap()]);
        let request = Request { pod: &pod("a"), container: "c", fixed: &[], reserved: &reserved };
        assert_eq!(f.ipam.add(&request, 0).unwrap(), ["10.244.1.4".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn leases_and_rest_survive_the_process() {
        let mut f = ipam(&["10.244.1.0/29"]);
        f.add("a", "c1", &[], 0).unwrap();
        f.add("b", "c2", &[], 0).unwrap();
        f.ipam.release("c1", 10).unwrap();
        // A write that was cut off leaves its file aside and nothing else.
        fs::write(f.dir.path().join("leases.json.new"), "{").unwrap();
        f.ipam = Ipam::open(f.dir.path(), pools(&["10.244.1.0/29"])).unwrap();
        assert_eq!(f.ipam.leases().map(|l| l.container.as_str()).collect::<Vec<_>>(), ["c2"]);
        let given: Vec<_> = (0..3).map(|i| f.add("c", &format!("d{i}"), &[], 20).unwrap().remove(0)).collect();
        assert_eq!(given, ["10.244.1.4", "10.244.1.5", "10.244.1.6"]);
        assert!(f.add("c", "d3", &[], 20).is_err());
        assert_eq!(f.add("c", "d3", &[], 70).unwrap(), ["10.244.1.2"]);
    }

    #[test]
    fn what_cannot_be_read_back_is_an_error_and_stays() {
        let f = ipam(&["10.244.1.0/29"]);
        for (text, part) in [("{", "EOF"), (r#"{"version": 2}"#, "version 2"), (r#"{"version": 1}"#, "missing field")] {
            fs::write(f.dir.path().join(FILE_NAME), text).unwrap();
            let error = Ipam::open(f.dir.path(), vec![]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert_eq!(fs::read_to_string(f.dir.path().join(FILE_NAME)).unwrap(), text);
        }
    }

    #[test]
    fn a_lease_that_cannot_be_written_was_not_given() {
        let mut f = ipam(&["10.244.1.0/29"]);
        fs::remove_dir_all(f.dir.path()).unwrap();
        assert!(f.add("a", "c1", &[], 0).is_err());
        assert_eq!(f.ipam.leases().count(), 0);
    }

    #[test]
    fn containers_that_are_no_more_lose_their_leases() {
        let mut f = ipam(&["10.244.1.0/24"]);
        f.add("a", "c1", &[], 0).unwrap();
        f.add("b", "c2", &[], 0).unwrap();
        let ended = f.ipam.retain(&BTreeSet::from(["c2".to_owned()]), 0).unwrap();
        assert_eq!(ended.iter().map(|l| l.container.as_str()).collect::<Vec<_>>(), ["c1"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_address_has_two_owners_or_comes_back_too_soon(
            steps in prop::collection::vec((0u8..12, any::<bool>(), 0u64..40), 1..60)
        ) {
            let mut f = ipam(&["10.244.1.0/28", "fd00::/124"]);
            let mut released: BTreeMap<String, u64> = BTreeMap::new();
            let mut now = 1000;
            for (n, add, passed) in steps {
                now += passed;
                let container = format!("c{n}");
                let had = f.ipam.leases().any(|l| l.container == container);
                if add {
                    if let Ok(given) = f.add(&format!("p{n}"), &container, &[], now) && !had {
                        for address in given {
                            let long_ago = released.get(&address).is_none_or(|at| now - at >= COOL_DOWN_SECONDS);
                            prop_assert!(long_ago, "{} came back too soon", address);
                        }
                    }
                } else if let Some(lease) = f.ipam.release(&container, now).unwrap() {
                    released.extend(lease.addresses.iter().map(|a| (a.to_string(), now)));
                }
                let all: Vec<IpAddr> = f.ipam.leases().flat_map(|l| l.addresses.clone()).collect();
                prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
                let reopened = Ipam::open(f.dir.path(), f.ipam.pools.clone()).unwrap();
                prop_assert_eq!(&reopened.state.leases, &f.ipam.state.leases);
            }
        }
    }
}
