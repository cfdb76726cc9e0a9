//! CPUs that the kubelet's CPU manager has given away: its checkpoint, `/var/lib/kubelet/cpu_manager_state`.
//!
//! Source: kubelet's `cm/cpumanager/state` (version 2 of the checkpoint), policy `static`: containers of Guaranteed pods with whole
//! CPUs get CPUs of their own, everybody else shares `defaultCpuSet`. Under policy `none` nobody has CPUs of their own.

use crate::list;
use crate::root::{ReadError, Root};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the kubelet keeps it.
pub const FILE: &str = "var/lib/kubelet/cpu_manager_state";

/// CPUs of one container's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exclusive {
    /// UID of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// Its CPUs.
    pub cpus: Vec<u32>,
}

/// What the CPU manager has decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KubeletCpus {
    /// `static` or `none`.
    pub policy: String,
    /// CPUs that all other containers share.
    pub shared: Vec<u32>,
    /// CPUs that belong to one container each.
    pub exclusive: Vec<Exclusive>,
}

#[derive(Deserialize)]
struct Checkpoint {
    #[serde(rename = "policyName")]
    policy: String,
    #[serde(rename = "defaultCpuSet", default)]
    shared: String,
    #[serde(default)]
    entries: Option<BTreeMap<String, BTreeMap<String, String>>>,
}

/// Reads the checkpoint; none where no kubelet has written one.
pub fn read(root: Root<'_>) -> Result<Option<KubeletCpus>, ReadError> {
    root.parsed(FILE, "the kubelet's CPU manager checkpoint", parse)
}

fn parse(text: &str) -> Option<KubeletCpus> {
    let checkpoint: Checkpoint = serde_json::from_str(text).ok()?;
    let mut exclusive = Vec::new();
    for (pod, containers) in checkpoint.entries.unwrap_or_default() {
        for (container, cpus) in containers {
            exclusive.push(Exclusive { pod: pod.clone(), container, cpus: list::parse(&cpus)? });
        }
    }
    Some(KubeletCpus { policy: checkpoint.policy, shared: list::parse(&checkpoint.shared)?, exclusive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_cpus_are_told_by_pod_and_container() {
        let text = r#"{"policyName":"static","defaultCpuSet":"0,4-7","entries":{"u-1":{"app":"1-2","side":"3"}},"checksum":1}"#;
        let found = parse(text).unwrap();
        assert_eq!((found.policy.as_str(), &found.shared), ("static", &vec![0, 4, 5, 6, 7]));
        assert_eq!(found.exclusive[1], Exclusive { pod: "u-1".into(), container: "side".into(), cpus: vec![3] });
        let none = parse(r#"{"policyName":"none","defaultCpuSet":"","checksum":1}"#).unwrap();
        assert!(none.exclusive.is_empty() && none.shared.is_empty());
        assert!(parse("{").is_none());
    }
}
