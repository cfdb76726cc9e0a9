//! `--apply` and `--undo` against the kernel that runs this test: its 2 MB pages are raised and put back.
//!
//! The root folder is a temporary one in which `sys` and `proc` are the machine's own, so that record and files stay out of the way.
//! Needs root, as all of `make test` does.

use hugepage_setup::apply::{Running, apply};
use hugepage_setup::plan::plan;
use hugepage_setup::step::Step;
use hugepage_setup::undo::undo;
use hugepage_setup::wanted::{NodeWanted, Wanted};
use sluice_machine::machine::{Machine, read};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Pages to ask for beyond those that are free: 16 MB.
const MORE: u64 = 8;

fn total(machine: &Machine, node: u32) -> u64 {
    machine.nodes.iter().find(|n| n.id == node).unwrap().pages.as_ref().unwrap().total
}

/// Puts everything back even where the test fails half-way.
struct Back<'a>(&'a Path, Option<String>);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let _ = undo(self.0, &Running, self.1.as_deref());
    }
}

#[test]
fn pages_of_this_machine_are_raised_and_put_back() {
    assert!(rustix::process::geteuid().is_root(), "this test sets the machine's huge pages: run it as root");
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for own in ["sys", "proc"] {
        symlink(format!("/{own}"), root.join(own)).unwrap();
    }
    let found = read(root).unwrap();
    let Some(node) = found.nodes.iter().find(|n| n.pages.is_some()) else {
        panic!("this kernel has no 2 MB pages (CONFIG_HUGETLBFS): nothing can be applied here");
    };
    let pages = node.pages.as_ref().unwrap();
    let need = NodeWanted { node: node.id, pool_pages: pages.free + pages.sluiced + MORE, ..NodeWanted::default() };
    let wanted = Wanted { nodes: vec![need], ..Wanted::default() };
    let plan = plan(&wanted, &found);
    let asked = plan.steps.iter().any(|s| matches!(s, Step::SetPages { to, .. } if *to == pages.total + MORE));
    assert!(asked, "{plan:?}");
    let _back = Back(root, found.boot.clone());
    let outcome = apply(root, &Running, &plan, found.boot.as_deref(), false).unwrap();
    let raised = read(root).unwrap();
    let gained = total(&raised, node.id).saturating_sub(pages.total);
    if gained < MORE {
        eprintln!("the kernel refuses {} of {MORE} pages: {:?}", MORE - gained, outcome.short);
        assert!(outcome.short.iter().any(|s| s.contains("the kernel gave")), "{outcome:?}");
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let ours = root.join("dev/hugepages");
    let mounted = plan.steps.iter().any(|s| matches!(s, Step::Mount { .. }));
    assert_eq!(mounts.contains(ours.to_str().unwrap()), mounted, "{outcome:?}");
    let undone = undo(root, &Running, found.boot.as_deref()).unwrap();
    assert!(undone.short.is_empty(), "{undone:?}");
    assert_eq!(total(&read(root).unwrap(), node.id), pages.total);
    assert!(!fs::read_to_string("/proc/mounts").unwrap().contains(root.to_str().unwrap()));
}
