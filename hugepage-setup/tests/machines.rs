//! The machines that are written down (`hugepage-setup/machine/fixtures`): their plans as golden files, and VFs, modules, ports and
//! pages applied and undone on them.

mod kernel;

use hugepage_setup::apply::apply;
use hugepage_setup::files;
use hugepage_setup::plan::{Plan, plan};
use hugepage_setup::record::FILE;
use hugepage_setup::undo::undo;
use hugepage_setup::wanted::{Configuration, wanted};
use kernel::Fixture;
use sluice_machine::fixture::{ALL, plant_named};
use sluice_machine::machine::read;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

fn machine(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    plant_named(name, folder.path()).unwrap();
    folder
}

fn program(root: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hugepage-setup"));
    let output = command.arg("--root").arg(root).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// What is asked of each machine.
const ASKED: &[(&str, &[&str])] = &[
    ("two-nodes-mellanox", &["--uplink", "ens5np0", "--vfs", "ens5np0=4", "--vfs", "ens1f0np0=2", "--gigantic", "1=4"]),
    ("intel-vfs", &["--uplink", "ens801f0", "--workers", "2", "--vfs", "ens801f1=8", "--vfs", "0000:18:00.0=6"]),
    ("no-iommu", &["--uplink", "ens801f0", "--workers", "2", "--vfs", "ens801f1=2"]),
    ("virtual-machine", &["--flows", "65536", "--vfs", "eth0=2"]),
    ("fragmented", &["--uplink", "ens801f0", "--workers", "2", "--vfs", "ens801f0=8", "--gigantic", "0=1"]),
];

#[test]
fn the_plans_of_all_machines_are_the_golden_ones() {
    assert_eq!(ASKED.iter().map(|(n, _)| *n).collect::<Vec<_>>(), ALL.iter().map(|(n, _)| *n).collect::<Vec<_>>());
    for (name, arguments) in ASKED {
        let host = machine(name);
        let mut texts = Vec::new();
        for (format, ending) in [("table", "txt"), ("json", "json")] {
            let (code, text) = program(host.path(), &[*arguments, &["-o", format]].concat());
            assert_eq!(code, Some(0), "{name}");
            texts.push((ending, text));
        }
        let (code, text) = program(host.path(), &[*arguments, &["--check"]].concat());
        assert_eq!(code, Some(4), "{name}");
        texts.push(("check", text));
        for (ending, text) in texts {
            let golden = format!("{}/tests/golden/{name}.{ending}", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                fs::write(&golden, &text).unwrap();
            }
            assert_eq!(text, fs::read_to_string(&golden).unwrap(), "{golden}");
        }
    }
}

fn asked(vfs: &[(&str, u32)]) -> Configuration {
    Configuration {
        flows: 65_536,
        workers: Some(1),
        cpus: Vec::new(),
        uplink: None,
        pool_mib: 128,
        gigantic: BTreeMap::from([(0, 3)]),
        vfs: vfs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        vfio: true,
        ports: Some((40_000, 57_343)),
    }
}

fn plan_of(root: &Path, configuration: &Configuration) -> Plan {
    let found = read(root).unwrap();
    plan(&wanted(configuration, &found).unwrap(), &found)
}

/// All files and links below a folder.
fn tree(root: &Path) -> Vec<(String, String)> {
    let (mut all, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let text = match kind {
                k if k.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
                k if k.is_dir() => {
                    folders.push(path);
                    continue;
                }
                _ => fs::read_to_string(&path).unwrap().trim().to_owned(),
            };
            all.push((path.display().to_string(), text));
        }
    }
    all.sort();
    all
}

fn text(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap().trim().to_owned()
}

const PF: &str = "sys/bus/pci/devices/0000:af:00.0/sriov_numvfs";
const PORTS: &str = "proc/sys/net/ipv4/ip_local_reserved_ports";

#[test]
fn vfs_module_ports_and_both_sizes_of_pages_are_applied_and_undone() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    fs::remove_dir_all(root.join("sys/bus/pci/drivers/vfio-pci")).unwrap();
    let before = tree(root);
    let (kernel, asked) = (Fixture { root, most: u64::MAX }, asked(&[("ens5np0", 4)]));
    let outcome = apply(root, &kernel, &plan_of(root, &asked), Some("b"), true).unwrap();
    assert!(outcome.short.is_empty(), "{outcome:?}");
    assert_eq!((text(root, PF).as_str(), text(root, PORTS).as_str()), ("4", "8080,40000-57343"));
    assert!(plan_of(root, &asked).missing().is_empty(), "{:?}", plan_of(root, &asked).missing());
    let unit = text(root, files::UNIT);
    assert!(unit.contains("|| echo 4 > /sys/bus/pci/devices/0000:af:00.0/sriov_numvfs"), "{unit}");
    assert!(unit.contains("hugepages-1048576kB/nr_hugepages)\" -ge 3"), "{unit}");
    assert!(unit.contains("pagesize=1G none /dev/hugepages1G"), "{unit}");
    assert!(text(root, files::MODULES).ends_with("vfio-pci"));
    assert!(text(root, files::SYSCTL).ends_with("net.ipv4.ip_local_reserved_ports = 8080,40000-57343"));
    assert!(apply(root, &kernel, &plan_of(root, &asked), Some("b"), true).unwrap().done.is_empty());
    let outcome = undo(root, &kernel, Some("b")).unwrap();
    assert!(outcome.short.is_empty(), "{outcome:?}");
    assert_eq!(tree(root), before);
}

#[test]
fn an_undo_keeps_vfs_that_somebody_uses_and_ports_that_others_added() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let (kernel, asked) = (Fixture { root, most: u64::MAX }, asked(&[("ens5np0", 2)]));
    apply(root, &kernel, &plan_of(root, &asked), Some("b"), false).unwrap();
    fs::write(root.join(PORTS), "443,8080,40000-57343\n").unwrap();
    // One VF's interface went into a pod.
    let net = root.join("sys/bus/pci/devices/0000:af:10.1/net/vf1");
    fs::rename(&net, root.join("elsewhere")).unwrap();
    let outcome = undo(root, &kernel, Some("b")).unwrap();
    assert_eq!(outcome.short.len(), 1);
    assert!(outcome.short[0].contains("0000:af:10.1 has its interface in another network namespace"), "{outcome:?}");
    assert_eq!((text(root, PF).as_str(), text(root, PORTS).as_str()), ("2", "443,8080"));
    fs::rename(root.join("elsewhere"), &net).unwrap();
    assert!(undo(root, &kernel, Some("b")).unwrap().short.is_empty());
    assert_eq!(text(root, PF), "0");
    assert!(!root.join(FILE).exists());
}

#[test]
fn a_pf_that_has_vfs_keeps_them_and_the_way_to_more_is_named() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let plan = plan_of(root, &asked(&[("ens1f0np0", 4)]));
    let missing = plan.missing();
    let more = missing.iter().find(|m| m.what.starts_with("2 more VFs of ens1f0np0")).unwrap();
    assert!(more.command.contains("echo 0 > /sys/bus/pci/devices/0000:3b:00.0/sriov_numvfs && echo 4 >"), "{more:?}");
    let outcome = apply(root, &Fixture { root, most: u64::MAX }, &plan, None, false).unwrap();
    assert!(!outcome.done.iter().any(|d| d.contains("VFs")));
    assert_eq!(text(root, "sys/bus/pci/devices/0000:3b:00.0/sriov_numvfs"), "2");
}

#[test]
fn without_an_iommu_the_check_names_the_kernel_option() {
    let host = machine("no-iommu");
    let (code, text) = program(host.path(), &["--check", "--flows", "65536", "--workers", "1", "--vfs", "ens801f1=2"]);
    assert_eq!(code, Some(4));
    assert!(text.contains("intel_iommu=on iommu=pt"), "{text}");
    assert!(text.contains("missing: kernel module vfio-pci\n    modprobe vfio-pci\n"), "{text}");
}

/// The program itself writes to a tree, where plain files stand in for the kernel's.
#[test]
fn an_init_container_ends_well_with_what_could_be_had() {
    let host = machine("no-iommu");
    let root = host.path();
    fs::create_dir_all(root.join("sys/bus/pci/drivers/vfio-pci")).unwrap();
    fs::write(root.join("proc/mounts"), "h /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n").unwrap();
    let asked = ["--flows", "65536", "--workers", "1", "--vfio", "--apply"];
    assert_eq!(program(root, &asked).0, Some(4));
    assert_eq!(text(root, "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"), "78");
    let (code, said) = program(root, &[&asked[..], &["--best-effort"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(program(root, &["--best-effort"]).0, Some(2));
}

#[test]
fn a_step_that_fails_is_said_and_the_others_are_done() {
    let host = machine("two-nodes-mellanox");
    let root = host.path();
    let asked = asked(&[("ens5np0", 4)]);
    let plan = plan_of(root, &asked);
    fs::write(root.join("sys/bus/pci/devices/0000:af:00.0/sriov_totalvfs"), "2\n").unwrap();
    let outcome = apply(root, &Fixture { root, most: u64::MAX }, &plan, None, false).unwrap();
    assert_eq!(outcome.short.len(), 1);
    assert!(outcome.short[0].contains("sriov_numvfs"), "{outcome:?}");
    assert_eq!(text(root, PORTS), "8080,40000-57343");
}
