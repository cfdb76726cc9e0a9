//! What only the operator can do: kernel command lines, firmware, another kernel. Pure.
//!
//! *Lacks* fail a check; *advice* never does.

use crate::step::{Missing, Step};
use crate::wanted::Wanted;
use sluice_machine::Machine;
use sluice_machine::devices::kind;
use sluice_machine::list::ranges;
use sluice_machine::machine::PAGE_KIB;

/// The command that adds words to the kernel's command line where GRUB starts it.
fn at_boot(words: &str) -> String {
    format!("sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{words} /' /etc/default/grub && update-grub && reboot")
}

/// What the host lacks and no step provides.
pub fn lacks(wanted: &Wanted, found: &Machine) -> Vec<Missing> {
    let mut lacks = Vec::new();
    let mut lack = |what: &str, command: &str| {
        lacks.push(Missing { what: what.to_owned(), command: command.to_owned() });
    };
    if found.default_page_kib.is_none() || found.nodes.iter().all(|n| n.pages.is_none()) {
        lack(
            "2 MB pages in this kernel (CONFIG_HUGETLBFS)",
            "grep HUGETLB /boot/config-$(uname -r)  # boot one with =y",
        );
    } else if let Some(kib) = found.default_page_kib.filter(|&kib| kib != PAGE_KIB) {
        lack(
            &format!("2 MB as the default huge page size: it is {kib} KiB, and sluiced maps the default size"),
            "sed -i 's/default_hugepagesz=[^ \"]*/default_hugepagesz=2M/' /etc/default/grub && update-grub && reboot",
        );
    }
    for node in wanted.nodes.iter().filter(|n| n.gigantic > 0) {
        if found.nodes.iter().any(|n| n.id == node.node && n.gigantic.is_none()) {
            lack("1 GB pages on this CPU", "grep -c pdpe1gb /proc/cpuinfo  # 0: ask for 2 MB pages instead");
            break;
        }
    }
    if !found.tun {
        lack("/dev/net/tun, for pods on TAP ports", "modprobe tun");
    }
    if wanted.vfio && found.iommu_groups == 0 {
        let words = match found.devices.iter().any(|d| d.vendor == 0x8086) {
            true => "intel_iommu=on iommu=pt",
            false => "iommu=pt",
        };
        lack(
            "an IOMMU, which VFIO needs: enable VT-d or AMD-Vi in the firmware, and it on the kernel's command line",
            &at_boot(words),
        );
    }
    lacks
}

/// Advice.
pub fn steps(wanted: &Wanted, found: &Machine) -> Vec<Step> {
    let mut all = Vec::new();
    let mut advise = |what: String, gains: &str| all.push(Step::Advice { what, gains: gains.to_owned() });
    if found.bpf_jit == Some(0) {
        advise("sysctl -w net.core.bpf_jit_enable=1".to_owned(), "the uplink's XDP program runs compiled");
    }
    let mut cpus: Vec<u32> = wanted.nodes.iter().flat_map(|w| w.workers.iter().copied()).collect();
    cpus.sort_unstable();
    if cpus.iter().any(|cpu| !found.isolated.contains(cpu)) && found.online.len() > 1 {
        let list = ranges(&cpus);
        advise(
            format!("kernel command line: isolcpus={list} nohz_full={list} rcu_nocbs={list}"),
            "workers are not preempted; nothing else can use these CPUs, so only with `idle: busy`",
        );
    }
    if found.kubelet.as_ref().is_some_and(|k| k.policy == "static") {
        advise(
            format!("kubelet's configuration: reservedSystemCPUs: \"{}\" and strict-cpu-reservation", ranges(&cpus)),
            "the CPU manager gives workers' CPUs to no container",
        );
    }
    if found.nodes.iter().any(|n| n.gigantic.as_ref().is_some_and(|p| p.total == 0))
        && wanted.nodes.iter().all(|n| n.gigantic == 0)
    {
        advise(
            "kernel command line: hugepagesz=1G hugepages=N, or --gigantic NODE=N early after boot".to_owned(),
            "1 GB pages for DPDK pods, which only boot finds reliably; sluiced uses 2 MB pages",
        );
    }
    let known = |pf: &str| found.device(pf).is_some_and(|d| kind(d.vendor, d.device).is_some());
    for vfs in wanted.vfs.iter().filter(|v| v.method.is_none() && !known(&v.pf)) {
        advise(
            format!("{}: this device is not in the table of userspace drivers", vfs.pf),
            "its VFs can be handed to pods as kernel interfaces; sluiced binds them to no other driver",
        );
    }
    for problem in &wanted.problems {
        advise(problem.clone(), "workers at full speed");
    }
    all
}
