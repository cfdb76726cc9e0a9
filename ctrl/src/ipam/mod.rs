//! Addresses for local pods: leases from the node's podCIDRs and from IPPools, one of each family, that survive the process.
//!
//! Owner: the control thread; the clock is passed in. Source: CNI 1.1.0 (ADD is repeatable, DEL may come twice or for
//! another container of the same pod). Invariants: network + 0, network + 1 (the node's own overlay address) and the
//! IPv4 broadcast address are never given; an address is nobody's for [`COOL_DOWN_SECONDS`] after its release, so that
//! no flow of its last owner finds the next one; what was answered is on disk before (written aside, synced, renamed),
//! and what cannot be read back is an error, never a fresh start. Cost: a lease is one pass over the leases, and one
//! write of the file for all that are asked for together.

mod choice;
mod error;
mod file;
mod pool;
mod state;

pub use choice::{ADDRESS_ANNOTATION, BadWish, Choice, POOL_ANNOTATION, addresses, all_pools, choose};
pub use error::IpamError;
pub use pool::{Pool, Share, Usage, node_pools};

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use self::file::{read_state, write_state};
use self::state::State;
use crate::model::NamespacedName;

/// An address rests for this long after its release.
pub const COOL_DOWN_SECONDS: u64 = 60;
/// The file in the state directory.
pub const FILE_NAME: &str = "leases.json";

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
    /// Addresses that the pod asks for, at most one of each family; they must lie in `pools`.
    pub wanted: &'a [IpAddr],
    /// Networks to choose from; a family's are tried in this order.
    pub pools: &'a [Pool],
    /// Addresses that other Pod objects carry already: never chosen.
    pub reserved: &'a BTreeSet<IpAddr>,
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

    /// The networks whose use [`usage`](Self::usage) tells; leases from others stay.
    pub fn set_pools(&mut self, pools: Vec<Pool>) {
        self.pools = pools;
    }

    /// The addresses for a container: those it has, those its Pod object carries, those it asks for, or new ones, one of
    /// each family. `now` is in seconds since 1970.
    pub fn add(&mut self, request: &Request<'_>, now: u64) -> Result<Vec<IpAddr>, IpamError> {
        self.add_all(std::slice::from_ref(request), now)?.pop().unwrap_or(Err(IpamError::NoPools))
    }

    /// The addresses for several containers, with one write of the file; an error of the whole is one of the file.
    pub fn add_all(
        &mut self,
        requests: &[Request<'_>],
        now: u64,
    ) -> Result<Vec<Result<Vec<IpAddr>, IpamError>>, IpamError> {
        let mut state = self.state.clone();
        state.wake(now);
        let given = requests.iter().map(|request| state.give(request, now)).collect();
        if state != self.state {
            self.commit(state)?;
        }
        Ok(given)
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

    /// Ends the leases of several containers with one write of the file; those that have none are fine.
    pub fn release_all<'a>(
        &mut self,
        containers: impl IntoIterator<Item = &'a str>,
        now: u64,
    ) -> Result<(), IpamError> {
        let mut state = self.state.clone();
        state.wake(now);
        let ended = containers.into_iter().filter_map(|container| state.release(container, now)).count();
        if ended > 0 { self.commit(state) } else { Ok(()) }
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

    /// Makes a state the current one, on disk first.
    fn commit(&mut self, state: State) -> Result<(), IpamError> {
        write_state(&self.path, &state).map_err(|source| IpamError::File { path: self.path.clone(), source })?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn pod(name: &str) -> NamespacedName {
        NamespacedName::new("default", name)
    }

    fn pools(nets: &[&str]) -> Vec<Pool> {
        node_pools(&nets.iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>())
    }

    pub(super) struct Fixture {
        pub(super) dir: tempfile::TempDir,
        pub(super) ipam: Ipam,
        pub(super) pools: Vec<Pool>,
    }

    pub(super) static NOBODY: BTreeSet<IpAddr> = BTreeSet::new();

    pub(super) fn ask<'a>(pod: &'a NamespacedName, container: &'a str, pools: &'a [Pool]) -> Request<'a> {
        Request { pod, container, fixed: &[], wanted: &[], pools, reserved: &NOBODY }
    }

    pub(super) fn ipam(nets: &[&str]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let pools = pools(nets);
        let ipam = Ipam::open(dir.path(), pools.clone()).unwrap();
        Fixture { dir, ipam, pools }
    }

    impl Fixture {
        pub(super) fn add(
            &mut self,
            name: &str,
            container: &str,
            fixed: &[&str],
            now: u64,
        ) -> Result<Vec<String>, String> {
            let name = pod(name);
            let fixed: Vec<IpAddr> = fixed.iter().map(|a| a.parse().unwrap()).collect();
            let request = Request { fixed: &fixed, ..ask(&name, container, &self.pools) };
            let given = self.ipam.add(&request, now).map_err(|e| e.to_string())?;
            Ok(given.iter().map(IpAddr::to_string).collect())
        }
    }

    #[test]
    fn a_pods_newest_container_speaks_for_it() {
        let mut f = ipam(&["10.244.1.0/24"]);
        f.add("a", "z-first", &[], 1).unwrap();
        let second = f.add("a", "b-second", &[], 2).unwrap();
        assert_eq!(f.ipam.addresses_by_pod()[&pod("a")][0].to_string(), second[0]);
    }

    #[test]
    fn several_leases_are_one_write_and_one_that_fails_costs_only_itself() {
        let mut f = ipam(&["10.244.1.0/29"]);
        let (a, b) = (pod("a"), pod("b"));
        let pools = f.pools.clone();
        let requests: Vec<Request<'_>> = ["c1", "c2", "c3", "c4", "c5", "c6"].map(|c| ask(&a, c, &pools)).to_vec();
        let given = f.ipam.add_all(&requests, 0).unwrap();
        assert_eq!(given.iter().filter(|g| g.is_ok()).count(), 5);
        assert!(matches!(given[5], Err(IpamError::Exhausted { .. })));
        let mixed = [ask(&a, "c1", &pools), ask(&b, "c2", &pools)];
        let given = f.ipam.add_all(&mixed, 0).unwrap();
        assert!(given[0].is_ok() && matches!(given[1], Err(IpamError::OtherPod { .. })));
        assert_eq!(Ipam::open(f.dir.path(), vec![]).unwrap().leases().count(), 5);
    }

    #[test]
    fn a_thousand_adds_that_never_came_to_an_end_leave_no_address_behind() {
        let mut f = ipam(&["10.244.1.0/24", "fd00::/64"]);
        f.add("keeper", "kept", &[], 0).unwrap();
        let mut now = 0;
        for round in 0..5 {
            for i in 0..200 {
                f.add("crashed", &format!("r{round}-{i}"), &[], now).unwrap();
            }
            // The process dies and comes back; what has no attachment is given back.
            f.ipam = Ipam::open(f.dir.path(), f.pools.clone()).unwrap();
            f.ipam.retain(&BTreeSet::from(["kept".to_owned()]), now).unwrap();
            now += COOL_DOWN_SECONDS;
        }
        assert_eq!(f.ipam.usage().iter().map(|u| u.in_use).collect::<Vec<_>>(), [1, 1]);
        let all: Vec<_> = (0..252).map(|i| f.add("next", &format!("n{i}"), &[], now)).collect();
        assert!(all.iter().all(Result::is_ok), "every other address is free again");
    }

    #[test]
    fn a_shared_pool_gives_a_node_its_own_part_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("n.yaml"),
            "{apiVersion: v1, kind: Node, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: b}}\n---\n\
             {apiVersion: sluicegate.dev/v1alpha1, kind: IPPool, metadata: {name: edge}, spec: {use: pods, cidrs: [10.60.0.0/26], \
             namespaceSelector: {}}}",
        )
        .unwrap();
        let snapshot = crate::source::ManifestSource::new(dir.path()).unwrap().snapshot();
        let (cluster, _) = crate::model::Cluster::build(&snapshot.objects, &crate::import::Defaults::default());
        let mut given: Vec<BTreeSet<IpAddr>> = Vec::new();
        for node in ["a", "b"] {
            let choice = choose(&cluster, node, &pod("x")).unwrap();
            let mut f = ipam(&[]);
            f.pools = choice.pools;
            let size = f.pools[0].size();
            let mut mine = BTreeSet::new();
            for i in 0..size {
                mine.insert(f.add("x", &format!("c{i}"), &[], 0).unwrap()[0].parse().unwrap());
            }
            assert!(f.add("x", "one-more", &[], 0).unwrap_err().contains("edge 10.60.0.0/26"));
            given.push(mine);
        }
        assert_eq!(given[0].len() + given[1].len(), 61);
        assert!(given[0].is_disjoint(&given[1]));
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
                let reopened = Ipam::open(f.dir.path(), f.pools.clone()).unwrap();
                prop_assert_eq!(&reopened.state.leases, &f.ipam.state.leases);
            }
        }
    }
}
