//! `sluice replay`: its arguments; the work is [`crate::replay`]'s.

use super::failure::{Done, Failure};
use crate::replay;
use clap::Args;
use std::net::IpAddr;
use std::path::PathBuf;

/// Runs captures through the pipeline of a node, offline: no machine is touched, the clock is the packets' own.
#[derive(Args)]
#[command(
    after_help = "Example:\n  sluice replay --manifests cluster/ --node node-a --rx pod:shop/web-0=in.pcap --out out/\n\
    writes out/PORT.pcap for each port that sent something, and out/verdicts.jsonl."
)]
pub struct ReplayArgs {
    /// Folder of Kubernetes manifests.
    #[arg(long, value_name = "DIR")]
    manifests: PathBuf,
    /// Node whose pipeline the packets pass.
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Configuration file of sluiced.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A port and the capture it receives; PORT is uplink0, host or pod:NAMESPACE/NAME. Repeat for more ports.
    #[arg(long = "rx", value_name = "PORT=FILE", required = true, value_parser = port_and_file)]
    inputs: Vec<(String, PathBuf)>,
    /// Folder for the results.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of workers; the results do not depend on it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Next hop towards the outside, once per family; default: the first address of the node's /24 or /64.
    #[arg(long = "gateway", value_name = "IP")]
    gateways: Vec<IpAddr>,
    /// From packet N on (counted from 0, all inputs merged) the cluster is what this folder says. Repeat in order.
    #[arg(long = "change", value_name = "N=DIR", value_parser = packet_and_folder)]
    changes: Vec<(usize, PathBuf)>,
}

fn packet_and_folder(text: &str) -> Result<(usize, PathBuf), String> {
    let (packet, folder) = text.split_once('=').filter(|(_, folder)| !folder.is_empty()).ok_or("expected N=DIR")?;
    Ok((packet.parse().map_err(|_| "expected N=DIR, N a number".to_owned())?, folder.into()))
}

fn port_and_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((port, file)) if !port.is_empty() && !file.is_empty() => Ok((port.to_owned(), file.into())),
        _ => Err("expected PORT=FILE".to_owned()),
    }
}

/// Runs the replay; whatever stands in its way is an input that does not fit.
pub fn run(args: ReplayArgs) -> Done {
    let packets = replay::run(&replay::Options {
        manifests: args.manifests,
        node: args.node,
        config: args.config,
        inputs: args.inputs,
        out: args.out,
        workers: args.workers,
        gateways: args.gateways,
        changes: args.changes,
    })
    .map_err(|error| Failure::usage(format_args!("{error:#}")))?;
    eprintln!("sluice: {packets} packets replayed");
    Ok(())
}
