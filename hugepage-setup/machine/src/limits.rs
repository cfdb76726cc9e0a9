//! What the kernel lets this process have of the machine: its cpuset, and whether its CPU quota has held it back.
//!
//! Source: cgroup-v2.rst (`cpuset.cpus.effective`, `cpu.stat`), cgroup-v1/cpusets.rst, `/proc/PID/cgroup` (cgroups(7)). A
//! controller may be enabled in an ancestor only, and a pod's quota may bind above its container's: cpusets are looked for
//! upwards, throttled periods are those of the process's own group and all above it.

use crate::root::{ReadError, Root};
use serde::Serialize;

/// Limits of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// CPUs it may run on; none where no cpuset says.
    pub cpuset: Option<Vec<u32>>,
    /// Periods in which its groups were stopped because their CPU quota was used up; none where there is no quota to count.
    pub throttled: Option<u64>,
}

/// Limits of a process, `self` or a number.
pub fn read(root: Root<'_>, process: &str) -> Result<Limits, ReadError> {
    let groups = root.text(&format!("proc/{process}/cgroup"))?.unwrap_or_default();
    let mut limits = Limits::default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        if path.contains("..") {
            // A group above what this process can see.
            continue;
        }
        let has = |name: &str| controllers.split(',').any(|c| c == name);
        let unified = controllers.is_empty();
        let mount = |name: &str| match unified {
            true if root.has("sys/fs/cgroup/cgroup.controllers") => "sys/fs/cgroup".to_owned(),
            true => "sys/fs/cgroup/unified".to_owned(),
            false => format!("sys/fs/cgroup/{name}"),
        };
        if unified || has("cpuset") {
            let file = if unified { "cpuset.cpus.effective" } else { "cpuset.effective_cpus" };
            for folder in upwards(&mount("cpuset"), path) {
                let cpus = root.list(&format!("{folder}/{file}"))?;
                if !cpus.is_empty() {
                    limits.cpuset = Some(cpus);
                    break;
                }
            }
        }
        if unified || has("cpu") {
            for folder in upwards(&mount("cpu"), path) {
                let stat = root.text(&format!("{folder}/cpu.stat"))?.unwrap_or_default();
                let count = stat.lines().find_map(|l| l.strip_prefix("nr_throttled ")?.trim().parse::<u64>().ok());
                if let Some(count) = count {
                    *limits.throttled.get_or_insert(0) += count;
                }
            }
        }
    }
    Ok(limits)
}

/// A group's folder and those above it, up to the mount.
fn upwards(mount: &str, path: &str) -> Vec<String> {
    let mut all = vec![format!("{mount}{}", path.trim_end_matches('/'))];
    while let Some((above, _)) = all.last().filter(|f| f.len() > mount.len()).and_then(|f| f.rsplit_once('/')) {
        let above = above.to_owned();
        all.push(above);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::plant;

    fn limits_of(tree: &str) -> Limits {
        let folder = tempfile::tempdir().unwrap();
        plant(tree, folder.path()).unwrap();
        read(Root::new(folder.path()), "self").unwrap()
    }

    #[test]
    fn a_cpuset_may_stand_above_and_throttling_is_counted_on_every_level() {
        let found = limits_of(
            "proc/self/cgroup = 0::/kubepods.slice/pod1/c1\n\
             @ sys/fs/cgroup\n\
             cgroup.controllers = cpu cpuset\n\
             kubepods.slice/cpuset.cpus.effective = 2-5\n\
             kubepods.slice/pod1/cpu.stat = usage_usec 5\\nnr_periods 9\\nnr_throttled 4\n\
             kubepods.slice/pod1/c1/cpu.stat = usage_usec 5\\nnr_periods 9\\nnr_throttled 3\n\
             kubepods.slice/pod1/c1/cpuset.cpus.effective =\n",
        );
        assert_eq!(found, Limits { cpuset: Some(vec![2, 3, 4, 5]), throttled: Some(7) });
    }

    #[test]
    fn the_first_version_of_control_groups_is_read_too() {
        let found = limits_of(
            "proc/self/cgroup = 4:cpuset:/a\\n3:cpu,cpuacct:/a\\n0::/a\n\
             @ sys/fs/cgroup\n\
             cpuset/a/cpuset.effective_cpus = 0-1\n\
             cpu/a/cpu.stat = nr_periods 1\\nnr_throttled 0\n",
        );
        assert_eq!(found, Limits { cpuset: Some(vec![0, 1]), throttled: Some(0) });
    }

    #[test]
    fn this_process_has_readable_limits() {
        read(Root::new(std::path::Path::new("/")), "self").unwrap();
        assert_eq!(limits_of("proc/self/cgroup = 0::/\n"), Limits::default());
    }
}
