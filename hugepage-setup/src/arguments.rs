//! The command line, and what it asks for together with a configuration file of `sluiced`.

use clap::{Parser, ValueEnum};
use hugepage_setup::wanted::Configuration;
use sluice_ctrl::config::{Config, UplinkDriver, Workers};
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  hugepage-setup                                what this host needs for sluiced's defaults
  hugepage-setup --config /etc/sluicegate/sluiced.yaml     ... for this configuration
  hugepage-setup --flows 262144 --workers 4     ... for a smaller one
  hugepage-setup --vfs ens1f0=4 --gigantic 0=4  ... with four VFs, and four 1 GB pages on node 0 for DPDK pods
  hugepage-setup -o json                        the same for programs
  hugepage-setup --check                        exit code 4 names each missing thing and its command
  hugepage-setup --apply                        do it, and make it last
  hugepage-setup --apply --root /host           from an init container that sees the host at /host
  hugepage-setup --undo                         take back exactly what --apply did

Exit codes: 0 done; 1 a change failed or came about in part; 2 bad arguments; 4 the host lacks something.";

/// Gives a host the huge pages, VFs and settings that sluiced needs, on the NUMA nodes where it needs them.
#[derive(Debug, Parser)]
#[command(name = "hugepage-setup", version, after_help = EXAMPLES)]
pub struct Arguments {
    /// Print the plan and change nothing (the default)
    #[arg(long, group = "mode")]
    pub dry_run: bool,
    /// Verify that nothing is missing
    #[arg(long, group = "mode")]
    pub check: bool,
    /// Carry the plan out
    #[arg(long, group = "mode")]
    pub apply: bool,
    /// Take back what --apply did
    #[arg(long, group = "mode")]
    pub undo: bool,
    /// Configuration of sluiced: flows.max, workers, ports.uplink, masquerade.ports
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Connections each worker remembers: sluiced's `flows.max` [default: 1048576]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1024..=1 << 28))]
    pub flows: Option<u64>,
    /// Workers [default: as `workers: auto` places them]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// The uplink's interface or PCI address: workers and pool go to its NUMA node
    #[arg(long, value_name = "NAME")]
    pub uplink: Option<String>,
    /// The frame pool, in MiB: 32,768 frames of 4 KiB
    #[arg(long, value_name = "MIB", default_value_t = 128, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub pool_mb: u64,
    /// 1 GB pages on a node, for DPDK pods; may be repeated
    #[arg(long, value_name = "NODE=N", value_parser = pair::<u32, u64>)]
    pub gigantic: Vec<(u32, u64)>,
    /// VFs of a PF, by its interface or PCI address; may be repeated
    #[arg(long, value_name = "PF=N", value_parser = pair::<String, u32>)]
    pub vfs: Vec<(String, u32)>,
    /// Prepare for VFIO whether or not VFs are asked for
    #[arg(long)]
    pub vfio: bool,
    /// With --apply: exit code 0 even where something came about in part or is missing, which is printed all the same
    #[arg(long, requires = "apply")]
    pub best_effort: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Format,
    /// The host's root folder
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// `KEY=NUMBER`; a PCI address holds no `=`.
fn pair<K: std::str::FromStr, N: std::str::FromStr>(text: &str) -> Result<(K, N), String> {
    let expected = || "expected NAME=NUMBER".to_owned();
    let (key, number) = text.rsplit_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(expected)?;
    Ok((key.parse().map_err(|_| expected())?, number.parse().map_err(|_| expected())?))
}

impl Arguments {
    /// What is asked for: flags before the file, the file before defaults.
    pub fn configuration(&self) -> Result<Configuration, String> {
        let file = self.config.as_deref().map(Config::load).transpose().map_err(|e| e.to_string())?;
        let config = file.clone().unwrap_or_else(|| Config::builtin("node"));
        let cpus = match (&config.workers, self.workers) {
            (Workers::Cpus(list), None) => list.iter().copied().map(u32::from).collect(),
            _ => Vec::new(),
        };
        let device = config.ports.uplink.device.clone();
        let of_file = file.as_ref().map(|c| device.clone().unwrap_or_else(|| c.ports.uplink.interface.clone()));
        let dpdk = config.ports.uplink.driver == UplinkDriver::Dpdk;
        Ok(Configuration {
            flows: self.flows.unwrap_or(config.flows.max.into()),
            workers: self.workers,
            cpus,
            uplink: self.uplink.clone().or(of_file),
            pool_mib: self.pool_mb,
            gigantic: self.gigantic.iter().copied().collect(),
            vfs: self.vfs.iter().cloned().collect(),
            vfio: self.vfio || (dpdk && device.is_some_and(|d| sluice_machine::pci::is_address(&d))),
            ports: config.masquerade.enabled.then(|| (config.masquerade.ports.first(), config.masquerade.ports.last())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pf_is_named_by_interface_or_address() {
        assert_eq!(pair::<String, u32>("0000:3b:00.0=4"), Ok(("0000:3b:00.0".to_owned(), 4)));
        assert_eq!(pair::<u32, u64>("1=8"), Ok((1, 8)));
        for bad in ["ens1", "=4", "ens1=x", "ens1=-1"] {
            assert!(pair::<String, u32>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sluiced.yaml");
        std::fs::write(&file, "workers: 2-3\nflows: { max: 5000 }\nports: { uplink: { interface: ens1f0 } }\n")
            .unwrap();
        let parse = |more: &[&str]| {
            let mut line = vec!["hugepage-setup", "--config", file.to_str().unwrap()];
            line.extend(more);
            Arguments::parse_from(line).configuration().unwrap()
        };
        let read = parse(&[]);
        assert_eq!((read.flows, &read.cpus[..], read.uplink.as_deref()), (5000, &[2, 3][..], Some("ens1f0")));
        let over = parse(&["--flows", "6000", "--workers", "1", "--uplink", "ens2"]);
        assert_eq!((over.flows, over.workers, over.cpus.len()), (6000, Some(1), 0));
        assert_eq!(over.uplink.as_deref(), Some("ens2"));
        let none = Arguments::parse_from(["hugepage-setup"]).configuration().unwrap();
        assert_eq!((none.flows, none.uplink, none.ports), (1_048_576, None, Some((40_000, 57_343))));
    }
}
