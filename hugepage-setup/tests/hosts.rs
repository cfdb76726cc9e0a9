//! Whole hosts as fixture trees, written from the kernel's documentation: plans, checks, applies and undos.

mod kernel;

use hugepage_setup::apply::apply;
use hugepage_setup::files;
use hugepage_setup::plan::{Plan, plan};
use hugepage_setup::record::{FILE, Record};
use hugepage_setup::step::Step;
use hugepage_setup::undo::undo;
use hugepage_setup::wanted::{Configuration, WantedError, wanted};
use kernel::Fixture;
use sluice_machine::machine::read;
use sluice_machine::placement::PlacementError;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const NODE: &str = "sys/devices/system/node";
const SMALL: Configuration = Configuration {
    flows: 65_536,
    workers: None,
    cpus: Vec::new(),
    uplink: None,
    pool_mib: 128,
    gigantic: BTreeMap::new(),
    vfs: BTreeMap::new(),
    vfio: false,
    ports: None,
};

fn put(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A host without NUMA nodes and huge pages: CPUs, TUN, an empty table of mounts.
fn bare(cpus: &str) -> TempDir {
    let host = TempDir::new().unwrap();
    let root = host.path();
    put(root, "proc/meminfo", "MemTotal:       16777216 kB\nMemAvailable:   12582912 kB\n");
    put(root, "proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro\n");
    put(root, "proc/mounts", "tmpfs /dev/shm tmpfs rw 0 0\n");
    put(root, "proc/sys/kernel/random/boot_id", "11111111-2222-3333-4444-555555555555\n");
    put(root, "proc/sys/net/core/bpf_jit_enable", "1\n");
    put(root, "sys/devices/system/cpu/online", cpus);
    put(root, "sys/devices/system/cpu/isolated", "\n");
    put(root, "dev/net/tun", "");
    host
}

fn add_node(root: &Path, id: u32, cpus: &str, free_kib: u64, pages: (u64, u64)) {
    let node = format!("{NODE}/node{id}");
    put(root, &format!("{node}/cpulist"), cpus);
    let text = format!("Node {id} MemTotal:  8388608 kB\nNode {id} MemFree:  {free_kib} kB\n");
    put(root, &format!("{node}/meminfo"), &text);
    put(root, &format!("{node}/hugepages/hugepages-2048kB/nr_hugepages"), &format!("{}\n", pages.0));
    put(root, &format!("{node}/hugepages/hugepages-2048kB/free_hugepages"), &format!("{}\n", pages.1));
}

/// Two nodes of two CPUs and 8 GB each; node 1 has `free_kib` and `pages` (all, free).
fn two_nodes(free_kib: u64, pages: (u64, u64)) -> TempDir {
    let host = bare("0-3\n");
    put(host.path(), "proc/meminfo", "MemTotal: 16777216 kB\nHugepagesize:    2048 kB\n");
    add_node(host.path(), 0, "0-1\n", 6 << 20, (0, 0));
    add_node(host.path(), 1, "2-3\n", free_kib, pages);
    host
}

fn plan_of(root: &Path, configuration: &Configuration) -> Plan {
    let found = read(root).unwrap();
    plan(&wanted(configuration, &found).unwrap(), &found)
}

fn pages(root: &Path, node: u32) -> u64 {
    let file = format!("{NODE}/node{node}/hugepages/hugepages-2048kB/nr_hugepages");
    fs::read_to_string(root.join(file)).unwrap().trim().parse().unwrap()
}

fn sets(plan: &Plan) -> Vec<(u32, u64, u64)> {
    let set = |step: &Step| match step {
        Step::SetPages { node, from, to, .. } => Some((*node, *from, *to)),
        _ => None,
    };
    plan.steps.iter().filter_map(set).collect()
}

/// All files below a folder with their content.
fn tree(root: &Path) -> Vec<(String, String)> {
    let (mut all, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => all.push((
                    entry.path().display().to_string(),
                    fs::read_to_string(entry.path()).unwrap_or_default().trim().to_owned(),
                )),
            }
        }
    }
    all.sort();
    all
}

// 65,536 flows: 2 × 1 page of buckets, 4 and 8 pages of entries; the pool takes 64 pages.
const TABLES: u64 = 14;
const POOL: u64 = 64;

#[test]
fn pages_go_to_the_nodes_of_the_workers_and_the_pool_to_the_first() {
    let host = two_nodes(6 << 20, (10, 4));
    let plan = plan_of(host.path(), &SMALL);
    // Workers on CPUs 1, 2 and 3; six of node 1's ten pages are someone else's.
    assert_eq!(sets(&plan), [(0, 0, POOL + TABLES), (1, 10, 10 + 2 * TABLES - 4)]);
    assert!(plan.shortfalls.is_empty() && plan.lacks.is_empty());
    assert!(plan.steps.iter().any(|s| matches!(s, Step::Advice { what, .. } if what.contains("isolcpus=1-3 "))));
}

#[test]
fn a_host_that_has_enough_needs_no_step_and_more_is_never_lowered() {
    let host = two_nodes(6 << 20, (5000, 5000));
    add_node(host.path(), 0, "0-1\n", 6 << 20, (POOL + TABLES, POOL + TABLES));
    put(host.path(), "proc/mounts", "hugetlbfs /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n");
    let plan = plan_of(host.path(), &SMALL);
    assert!(sets(&plan).is_empty() && plan.missing().is_empty());
}

#[test]
fn pages_that_a_running_sluiced_holds_count_for_it() {
    let host = two_nodes(6 << 20, (2 * TABLES, 0));
    put(host.path(), "proc/77/comm", "sluiced\n");
    let map = "7f00 default file=/anon_hugepage\\040(deleted) huge anon=28 dirty=28 N1=28 kernelpagesize_kB=2048\n";
    put(host.path(), "proc/77/numa_maps", map);
    assert_eq!(sets(&plan_of(host.path(), &SMALL)), [(0, 0, POOL + TABLES)]);
    put(host.path(), "proc/77/comm", "other\n");
    assert_eq!(sets(&plan_of(host.path(), &SMALL)).len(), 2);
}

#[test]
fn a_kernel_without_huge_pages_is_named_with_the_command_and_gets_no_step() {
    let host = bare("0-1\n");
    let plan = plan_of(host.path(), &SMALL);
    assert!(plan.steps.iter().all(|s| matches!(s, Step::Advice { .. })));
    assert!(plan.missing()[0].what.contains("CONFIG_HUGETLBFS"));
}

#[test]
fn a_default_size_other_than_2_mb_is_named() {
    let host = two_nodes(6 << 20, (0, 0));
    put(host.path(), "proc/meminfo", "Hugepagesize:    1048576 kB\n");
    assert!(plan_of(host.path(), &SMALL).missing()[0].command.contains("default_hugepagesz=2M"));
}

#[test]
fn too_little_memory_is_a_shortfall_that_says_what_is_free_where() {
    // 8 GB × 1/20 stays; 10 pages are above that.
    let host = two_nodes(8_388_608 / 20 + 10 * 2048 + 7, (0, 0));
    let plan = plan_of(host.path(), &SMALL);
    assert_eq!(sets(&plan)[1], (1, 0, 10));
    let short = &plan.shortfalls[0];
    assert_eq!((short.node, short.wanted, short.possible), (1, 2 * TABLES, 10));
    assert_eq!(short.elsewhere[0].node, 0);
    assert!(short.elsewhere[0].possible_pages > 2000);
    assert_eq!(plan.missing().len(), 4);
}

#[test]
fn more_workers_than_cpus_are_refused() {
    let host = two_nodes(6 << 20, (0, 0));
    let found = read(host.path()).unwrap();
    let asked = Configuration { workers: Some(4), ..SMALL };
    let expected = WantedError::Placement(PlacementError::TooFew { workers: 4, cpus: 3 });
    assert_eq!(wanted(&asked, &found), Err(expected));
}

#[test]
fn an_undo_leaves_the_host_as_the_apply_found_it() {
    for systemd in [false, true] {
        let host = two_nodes(6 << 20, (10, 4));
        let root = host.path();
        let kernel = Fixture { root, most: u64::MAX };
        let before = tree(root);
        let outcome = apply(root, &kernel, &plan_of(root, &SMALL), Some("b"), systemd).unwrap();
        assert!(outcome.short.is_empty(), "{outcome:?}");
        assert_eq!((pages(root, 0), pages(root, 1)), (POOL + TABLES, 10 + 2 * TABLES - 4));
        assert!(plan_of(root, &SMALL).missing().is_empty());
        assert_eq!(root.join(files::UNIT).exists(), systemd);
        assert_eq!(outcome.notes[0].starts_with("persistent"), systemd);
        assert!(!root.join(files::MODULES).exists() && !root.join(files::SYSCTL).exists());
        // A second apply finds nothing to do and forgets nothing.
        assert!(apply(root, &kernel, &plan_of(root, &SMALL), Some("b"), systemd).unwrap().done.is_empty());
        undo(root, &kernel, Some("b")).unwrap();
        assert_eq!(tree(root), before);
        assert!(!root.join("dev/hugepages").exists());
    }
}

#[test]
fn a_partial_allocation_is_reported_and_undone_by_what_was_given() {
    let host = two_nodes(6 << 20, (0, 0));
    let root = host.path();
    let kernel = Fixture { root, most: 20 };
    let outcome = apply(root, &kernel, &plan_of(root, &SMALL), None, false).unwrap();
    assert_eq!(outcome.short.len(), 2);
    assert!(outcome.short[0].contains("gave 20 of 78 2 MB pages"));
    undo(root, &kernel, None).unwrap();
    assert_eq!((pages(root, 0), pages(root, 1)), (0, 0));
}

#[test]
fn an_undo_leaves_pages_that_others_added_and_pages_in_use() {
    let host = two_nodes(6 << 20, (0, 0));
    let root = host.path();
    let kernel = Fixture { root, most: u64::MAX };
    apply(root, &kernel, &plan_of(root, &SMALL), None, false).unwrap();
    add_node(root, 0, "0-1\n", 6 << 20, (POOL + TABLES + 100, POOL + TABLES + 100));
    add_node(root, 1, "2-3\n", 6 << 20, (2 * TABLES, 8));
    let outcome = undo(root, &kernel, None).unwrap();
    assert_eq!((pages(root, 0), pages(root, 1)), (100, 20));
    assert_eq!(outcome.short.len(), 1);
    // What was in use is ours still, and goes once it is free.
    add_node(root, 1, "2-3\n", 6 << 20, (20, 20));
    undo(root, &kernel, None).unwrap();
    assert_eq!((pages(root, 0), pages(root, 1)), (100, 0));
    assert!(!root.join(FILE).exists());
}

#[test]
fn a_record_of_an_earlier_boot_without_a_unit_takes_nothing() {
    let host = two_nodes(6 << 20, (0, 0));
    let root = host.path();
    let kernel = Fixture { root, most: u64::MAX };
    apply(root, &kernel, &plan_of(root, &SMALL), Some("a"), false).unwrap();
    undo(root, &kernel, Some("b")).unwrap();
    assert_eq!(pages(root, 0), POOL + TABLES);
    assert!(Record::load(root, Some("b")).unwrap().is_empty());
}

#[test]
fn a_unit_of_someone_else_is_not_overwritten() {
    let host = two_nodes(6 << 20, (0, 0));
    put(host.path(), files::UNIT, "[Unit]\n");
    let kernel = Fixture { root: host.path(), most: u64::MAX };
    let error = apply(host.path(), &kernel, &plan_of(host.path(), &SMALL), None, true).unwrap_err();
    assert!(error.to_string().contains("was not written by hugepage-setup"));
    assert_eq!(fs::read_to_string(host.path().join(files::UNIT)).unwrap(), "[Unit]\n");
    assert_eq!(pages(host.path(), 0), 0);
}

fn program(root: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hugepage-setup"));
    let output = command.args(["--flows", "65536", "--root"]).arg(root).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_check_exits_4_with_the_exact_command() {
    let host = two_nodes(6 << 20, (0, 0));
    let (code, text) = program(host.path(), &["--check"]);
    assert_eq!(code, Some(4));
    assert!(text.contains("\n    echo 78 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages\n"));
    assert_eq!(program(host.path(), &["--check", "--apply"]).0, Some(2));
    assert_eq!(program(host.path(), &["--workers", "9"]).0, Some(2));
    assert_eq!(program(host.path(), &["--vfs", "ens9=2"]).0, Some(2));
    assert_eq!(program(host.path(), &["--gigantic", "7=2"]).0, Some(2));
}

#[test]
fn a_record_of_the_version_before_is_undone() {
    let host = two_nodes(6 << 20, (0, 0));
    let root = host.path();
    let kernel = Fixture { root, most: u64::MAX };
    put(root, "proc/mounts", "none /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n");
    fs::create_dir_all(root.join("dev/hugepages")).unwrap();
    let mount = r#"{"boot":"b","pages":[],"mount":{"target":"/dev/hugepages","made_folder":true},"unit":false}"#;
    put(root, FILE, mount);
    let outcome = undo(root, &kernel, Some("b")).unwrap();
    assert_eq!(outcome.done, ["/dev/hugepages unmounted"]);
    assert!(!root.join("dev/hugepages").exists() && !root.join(FILE).exists());
}
