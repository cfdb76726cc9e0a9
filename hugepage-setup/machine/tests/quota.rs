//! A CPU quota against the running kernel: a process that spins in a control group of its own (`sg-quota-*`) is throttled, and that is
//! read. Where no control group with the CPU controller can be made, the test says so and ends.

use sluice_machine::{Root, limits};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A control group and a process in it; both end with the test.
struct Group {
    folder: PathBuf,
    child: Option<Child>,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The kernel lets go of an ended process a moment later.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A group whose processes get a tenth of a CPU.
fn group() -> Result<Group, String> {
    let name = format!("sg-quota-{}", std::process::id());
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mount = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpu" };
    let group = Group { folder: Path::new(mount).join(name), child: None };
    let failed = |e: std::io::Error| format!("{}: {e}", group.folder.display());
    fs::create_dir(&group.folder).map_err(failed)?;
    let put = |file: &str, text: &str| fs::write(group.folder.join(file), text).map_err(failed);
    match unified {
        true => put("cpu.max", "10000 100000")?,
        false => {
            put("cpu.cfs_period_us", "100000")?;
            put("cpu.cfs_quota_us", "10000")?;
        }
    }
    Ok(group)
}

#[test]
fn a_process_that_uses_its_quota_up_is_seen_to_be_throttled() {
    let mut group = match group() {
        Ok(group) => group,
        Err(why) => return eprintln!("skipped: no control group with the CPU controller can be made here: {why}"),
    };
    let child = group.child.insert(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap());
    let id = child.id().to_string();
    fs::write(group.folder.join("cgroup.procs"), &id).unwrap();
    let throttled = || limits::read(Root::new(Path::new("/")), &id).unwrap().throttled.unwrap_or(0);
    let before = throttled();
    let until = Instant::now() + Duration::from_secs(60);
    while throttled() <= before {
        assert!(Instant::now() < until, "a spinning process with a tenth of a CPU was never throttled");
        std::thread::sleep(Duration::from_millis(50));
    }
}
