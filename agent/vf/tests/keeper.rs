//! Devices of fixture machines taken and given back, and everything that can be wrong with one.

mod kernel;

use kernel::{FakeBus, FakeLinks};
use sluice_machine::devices::Method;
use sluice_machine::fixture::plant_named;
use sluice_vf::naming::Allocated;
use sluice_vf::{Allowed, Keeper, Owner, State, Use, VfError};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

fn machine(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    plant_named(name, folder.path()).unwrap();
    folder
}

fn keeper_of(root: &Path, node: &str, names: &[&str], bus: FakeBus) -> Keeper {
    let names = names.iter().map(|n| (*n).to_owned()).collect();
    Keeper::new(root, Box::new(bus), node, Allowed { names, allocated: Vec::new() }).unwrap()
}

fn keeper(root: &Path, names: &[&str]) -> Keeper {
    keeper_of(root, "node-a", names, FakeBus::new(root))
}

fn pod(container: &str) -> Owner {
    let (node, pod, ifname) = ("node-a".to_owned(), "shop/web-0".to_owned(), "vf0".to_owned());
    Owner::Pod { node, pod, container: container.to_owned(), ifname }
}

fn routes(names: &[&str]) -> Use {
    Use { default_routes: names.iter().map(|n| (*n).to_owned()).collect(), uplink: None }
}

/// Devices and their state below a root, as text.
fn state(root: &Path) -> String {
    format!("{:#?}", sluice_machine::pci::read(sluice_machine::Root::new(root)).unwrap())
}

fn write(root: &Path, file: &str, text: &str) {
    fs::write(root.join(file), format!("{text}\n")).unwrap();
}

fn relink(root: &Path, device: &str, driver: Option<&str>) {
    let link = root.join("sys/bus/pci/devices").join(device).join("driver");
    let _ = fs::remove_file(&link);
    if let Some(driver) = driver {
        std::os::unix::fs::symlink(root.join("sys/bus/pci/drivers").join(driver), link).unwrap();
    }
}

const VF0: &str = "0000:3b:00.2";
const VF1: &str = "0000:3b:00.3";

#[test]
fn a_pods_vf_comes_back_as_it_went_whatever_the_pod_did_to_it() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let before = state(root);
    let mut bus = FakeBus::new(root);
    bus.random_mac = Some("ee:ee:ee:ee:ee:ee".into());
    let (keeper, links) = (keeper_of(root, "node-a", &["ens1f0np0"], bus), FakeLinks { root: root.to_owned() });
    let claim = keeper.reserve("any", pod("c1"), &Use::default()).unwrap();
    assert_eq!((claim.address.as_str(), &claim.state), (VF0, &State::Taking));
    links.send(&claim);
    keeper.held("c1").unwrap();
    write(root, "pods/c1/address", "de:ad:00:00:00:00");
    write(root, "pods/c1/mtu", "9000");
    assert_eq!(keeper.claim_of("c1").unwrap().unwrap().state, State::Held);
    keeper.give_back("c1", &links).unwrap();
    assert_eq!(state(root), before);
    assert!(keeper.own_claims().unwrap().is_empty());
    keeper.give_back("c1", &links).unwrap();
}

#[test]
fn only_the_token_that_has_a_vf_gives_it_back() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let (keeper, links) = (keeper(root, &["ens1f0np0"]), FakeLinks { root: root.to_owned() });
    let old = keeper.reserve("ens1f0np0", pod("old"), &Use::default()).unwrap();
    links.send(&old);
    keeper.held("old").unwrap();
    let new = keeper.reserve("ens1f0np0", pod("new"), &Use::default()).unwrap();
    assert_eq!((old.address.as_str(), new.address.as_str()), (VF0, VF1));
    assert_eq!(keeper.reserve("any", pod("new"), &Use::default()).unwrap().address, VF1);
    // A late DEL of another sandbox of the same pod, and of another node's agent.
    keeper.give_back("older", &links).unwrap();
    keeper_of(root, "node-b", &["ens1f0np0"], FakeBus::new(root)).give_back("new", &links).unwrap();
    assert_eq!(keeper.own_claims().unwrap().len(), 2);
    let full = keeper.reserve("any", pod("third"), &Use::default()).unwrap_err();
    assert!(matches!(full, VfError::NoneFree { .. }), "{full}");
    assert!(full.to_string().contains("sandbox old"), "{full}");
}

#[test]
fn a_vf_that_cannot_be_made_anew_is_given_to_nobody_until_it_is_mended() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let mut bus = FakeBus::new(root);
    let whole = keeper(root, &[VF0]);
    let links = FakeLinks { root: root.to_owned() };
    bus.broken = vec!["mlx5_core".into()];
    let broken = keeper_of(root, "node-a", &[VF0], bus);
    links.send(&broken.reserve(VF0, pod("c1"), &Use::default()).unwrap());
    broken.give_back("c1", &links).unwrap_err();
    let claim = broken.claim_of("c1").unwrap().unwrap();
    assert!(matches!(claim.state, State::Dirty { .. }), "{claim:?}");
    let refused = broken.reserve(VF0, pod("c2"), &Use::default()).unwrap_err();
    assert!(matches!(refused, VfError::Dirty { .. }), "{refused}");
    assert_eq!(broken.list(&Use::default()).unwrap().1.len(), 1);
    assert_eq!(broken.clean(&links, |_| true).unwrap().len(), 1);
    // A pod that still lives keeps its claim; once it is gone and the driver works, the VF is free.
    assert!(whole.clean(&links, |_| false).unwrap().is_empty());
    assert_eq!(whole.own_claims().unwrap().len(), 1);
    assert!(whole.clean(&links, |_| true).unwrap().is_empty());
    whole.reserve(VF0, pod("c2"), &Use::default()).unwrap();
}

#[test]
fn a_vf_that_was_pulled_is_told_and_its_claim_ends_with_its_pod() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let (keeper, links) = (keeper(root, &["ens1f0np0"]), FakeLinks { root: root.to_owned() });
    keeper.reserve(VF1, pod("c1"), &Use::default()).unwrap();
    fs::remove_file(root.join("sys/bus/pci/devices").join(VF1)).unwrap();
    fs::remove_file(root.join("sys/bus/pci/devices/0000:3b:00.0/virtfn1")).unwrap();
    let (_, problems) = keeper.list(&Use::default()).unwrap();
    assert!(matches!(&problems[..], [VfError::Gone { address, .. }] if address == VF1), "{problems:?}");
    keeper.give_back("c1", &links).unwrap();
    assert!(keeper.own_claims().unwrap().is_empty());
    let gone = keeper.reserve(VF1, pod("c2"), &Use::default()).unwrap_err();
    assert!(matches!(gone, VfError::Gone { .. }) && gone.to_string().contains("pci/rescan"), "{gone}");
}

#[test]
fn an_intel_vf_goes_to_vfio_and_back() {
    let host = machine("intel-vfs");
    let root = host.path();
    let before = state(root);
    let (keeper, links) = (keeper(root, &["ens801f0"]), FakeLinks { root: root.to_owned() });
    let (device, method) = keeper.take_uplink("ens801f0v0", &Use::default()).unwrap();
    assert_eq!((method, device.driver.as_deref()), (Method::VfioPci, Some("vfio-pci")));
    assert_eq!((device.driver_override.as_deref(), device.interfaces.len()), (Some("vfio-pci"), 0));
    // A restart finds what it has; another node's agent does not get it.
    keeper.take_uplink("0000:18:01.0", &Use::default()).unwrap();
    let other = keeper_of(root, "node-b", &["ens801f0"], FakeBus::new(root));
    let taken = other.take_uplink("0000:18:01.0", &Use::default()).unwrap_err();
    assert!(matches!(&taken, VfError::Claimed { owner, .. } if owner == "the uplink of node-a"), "{taken}");
    assert!(keeper.give_back_all(&links).unwrap().is_empty());
    assert_eq!(state(root), before);
}

#[test]
fn a_mellanox_vf_stays_on_its_kernel_driver() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let (keeper, links) = (keeper(root, &[VF0]), FakeLinks { root: root.to_owned() });
    let before = state(root);
    let (device, method) = keeper.take_uplink(VF0, &Use::default()).unwrap();
    assert_eq!((method, device.driver.as_deref()), (Method::Bifurcated, Some("mlx5_core")));
    assert_eq!(state(root), before);
    assert!(keeper.give_back_all(&links).unwrap().is_empty());
    assert_eq!(state(root), before);
    relink(root, VF0, Some("vfio-pci"));
    let error = keeper.take_uplink(VF0, &Use::default()).unwrap_err();
    assert!(matches!(&error, VfError::WrongDriver { expected, .. } if expected == "mlx5_core"), "{error}");
}

#[test]
fn the_port_with_the_default_route_is_never_taken_nor_what_carries_it() {
    let host = machine("intel-vfs");
    let keeper = keeper(host.path(), &["ens801f0", "ens801f1"]);
    for (name, route) in
        [("ens801f0", "bond0"), ("ens801f0", "ens801f0"), ("ens801f1", "ens801f1"), ("ens801f0v0", "ens801f0v0")]
    {
        let error = keeper.take_uplink(name, &routes(&[route])).unwrap_err();
        assert!(matches!(&error, VfError::DefaultRoute { interface, .. } if interface == route), "{error}");
    }
    let error = keeper.reserve("ens801f0v0", pod("c"), &routes(&["ens801f0v0"])).unwrap_err();
    assert!(error.to_string().contains("default route"), "{error}");
    let uplink = Use { default_routes: BTreeSet::new(), uplink: Some("ens801f0v0".into()) };
    assert!(matches!(keeper.reserve("ens801f0v0", pod("c"), &uplink).unwrap_err(), VfError::NoneFree { .. }));
    assert!(keeper.own_claims().unwrap().is_empty());
}

#[test]
fn a_bind_that_does_not_arrive_is_put_back_and_leaves_no_claim() {
    let host = machine("intel-vfs");
    let root = host.path();
    let before = state(root);
    let mut bus = FakeBus::new(root);
    bus.broken = vec!["vfio-pci".into()];
    let keeper = keeper_of(root, "node-a", &["ens801f0"], bus);
    let error = keeper.take_uplink("ens801f0v0", &Use::default()).unwrap_err();
    assert!(matches!(&error, VfError::WrongDriver { expected, .. } if expected == "vfio-pci"), "{error}");
    assert_eq!(state(root), before);
    assert!(keeper.own_claims().unwrap().is_empty());
}

#[test]
fn every_wrong_device_has_its_error_and_the_command_that_mends_it() {
    let none = Use::default();
    let error = |machine_name: &str, change: &dyn Fn(&Path), name: &str| {
        let host = machine(machine_name);
        change(host.path());
        keeper(host.path(), &["any"]).take_uplink(name, &none).unwrap_err()
    };
    let same = |_: &Path| {};
    let found = [
        error("no-iommu", &same, "ens801f0v0"),
        error("intel-vfs", &|r| fs::remove_dir_all(r.join("sys/bus/pci/drivers/vfio-pci")).unwrap(), "0000:18:01.0"),
        error("two-nodes-mellanox", &|r| relink(r, VF0, Some("vfio-pci")), VF0),
        error("two-nodes-mellanox", &|r| relink(r, VF0, None), VF0),
        error("two-nodes-mellanox", &same, "eno1"),
        error(
            "intel-vfs",
            &|r| fs::create_dir_all(r.join("sys/kernel/iommu_groups/32/devices/0000:18:00.1")).unwrap(),
            "0000:18:01.0",
        ),
        error("two-nodes-mellanox", &same, "eth7"),
        error("intel-vfs", &same, "0000:18:01.1"),
        error("intel-vfs", &same, "ens801f0"),
    ];
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(matches!(found[0], VfError::NoIommu { .. }) && texts[0].contains("intel_iommu=on"), "{}", texts[0]);
    assert!(matches!(found[1], VfError::NoVfio) && texts[1].contains("`modprobe vfio-pci`"), "{}", texts[1]);
    assert!(matches!(found[2], VfError::Busy { .. }) && texts[2].contains("drivers/vfio-pci/unbind"), "{}", texts[2]);
    assert!(matches!(found[3], VfError::WrongDriver { .. }) && texts[3].contains("mlx5_core/bind"), "{}", texts[3]);
    assert!(matches!(found[4], VfError::NotInTable { .. }) && texts[4].contains("8086:1521"), "{}", texts[4]);
    assert!(matches!(found[5], VfError::SharedGroup { .. }) && texts[5].contains("driver/unbind"), "{}", texts[5]);
    assert!(matches!(found[6], VfError::Unknown { .. }) && texts[6].contains("`hugepage-setup`"), "{}", texts[6]);
    assert!(matches!(found[7], VfError::Busy { .. }), "{}", texts[7]);
    assert!(matches!(found[8], VfError::Busy { .. }) && texts[8].contains("nomaster"), "{}", texts[8]);
}

#[test]
fn what_nobody_allowed_is_not_taken() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let none = keeper(root, &[]);
    for wanted in [VF0, "ens1f0np0"] {
        let error = none.reserve(wanted, pod("c"), &Use::default()).unwrap_err();
        assert!(matches!(error, VfError::NotAllowed { .. }) && error.to_string().contains("vfs.devices"), "{error}");
    }
    assert!(none.reserve("any", pod("c"), &Use::default()).unwrap_err().to_string().contains("hugepage-setup --vfs"));
    assert!(matches!(none.reserve("ens5np0", pod("c"), &Use::default()), Err(VfError::NotVf { .. })));
    // What a device plugin allocated under a resource's name is allowed by that name.
    let (address, resource) = (VF1.to_owned(), "PCIDEVICE_NVIDIA_COM_MLX5".to_owned());
    let allocated = vec![Allocated { address, resource, node: None, told_by: String::new() }];
    let names = vec!["nvidia.com/mlx5".to_owned()];
    let given = Keeper::new(root, Box::new(FakeBus::new(root)), "node-a", Allowed { names, allocated }).unwrap();
    assert_eq!(given.reserve("any", pod("c"), &Use::default()).unwrap().address, VF1);
}

#[test]
fn a_vf_without_an_interface_is_no_pods() {
    let host = machine("intel-vfs");
    let keeper = keeper(host.path(), &["ens801f0"]);
    let error = keeper.reserve("0000:18:01.2", pod("c"), &Use::default()).unwrap_err();
    assert!(matches!(&error, VfError::WrongDriver { expected, .. } if expected == "iavf"), "{error}");
    fs::remove_dir_all(host.path().join("sys/bus/pci/devices/0000:18:01.0/net")).unwrap();
    let error = keeper.reserve("0000:18:01.0", pod("c"), &Use::default()).unwrap_err();
    assert!(error.to_string().contains("another network namespace"), "{error}");
}

#[test]
fn a_list_says_of_every_vf_who_has_it_and_why_it_is_not_free() {
    let host = machine("intel-vfs");
    let keeper = keeper(host.path(), &["ens801f0"]);
    keeper.reserve("0000:18:01.0", pod("c"), &Use::default()).unwrap();
    let (list, problems) = keeper.list(&Use::default()).unwrap();
    assert!(problems.is_empty());
    let of = |address: &str| list.iter().find(|l| l.device.address == address).unwrap();
    assert_eq!(list.len(), 3);
    assert_eq!(of("0000:18:01.0").claim.as_ref().map(|c| c.owner.token()), Some("c"));
    assert!(of("0000:18:01.1").unfit.as_ref().unwrap().contains("vfio-pci"));
    assert_eq!((of("0000:18:01.2").unfit.as_deref(), of("0000:18:01.2").method), (None, Some(Method::VfioPci)));
}

#[test]
fn no_vf_ever_has_two_owners_however_many_come_and_go_at_once() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let bus = FakeBus::new(root);
    let had = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (bus, had) = (bus.clone(), &had);
            scope.spawn(move || {
                let node = if thread % 2 == 0 { "node-a" } else { "node-b" };
                let keeper = keeper_of(root, node, &["ens1f0np0"], bus);
                for turn in 0..25 {
                    let token = format!("{thread}-{turn}");
                    let owner = Owner::Pod {
                        node: node.into(),
                        pod: "a/b".into(),
                        container: token.clone(),
                        ifname: "vf0".into(),
                    };
                    let Ok(claim) = keeper.reserve("any", owner, &Use::default()) else { continue };
                    // The only one who may write here; a second owner would find it there.
                    let mark = root.join(claim.address.replace(':', "_"));
                    let mut fresh = fs::OpenOptions::new();
                    fresh.write(true).create_new(true).open(&mark).expect("nobody else has this VF");
                    fs::remove_file(mark).unwrap();
                    keeper.give_back(&token, &Still).unwrap();
                    had.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert!(keeper(root, &["ens1f0np0"]).own_claims().unwrap().is_empty());
    assert!(had.load(Ordering::Relaxed) > 20, "{had:?} of 100 got a VF");
}

/// Interfaces that never went anywhere.
struct Still;

impl sluice_vf::Links for Still {
    fn bring_home(&self, _: &sluice_vf::Claim) -> Result<(), String> {
        Ok(())
    }

    fn settle(&self, _: &str, _: &sluice_vf::Before) -> Result<(), String> {
        Ok(())
    }
}
