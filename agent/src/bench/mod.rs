//! `sluice bench pipeline`: the real pipeline in memory, no sockets, on a cluster compiled from real objects.
//!
//! Method: flows are opened by handshakes; then every flow sends once per pass, in shuffled order, which is the worst case
//! for caches. Figures are thread CPU time, the median of several windows, with the spread beside it. Turning the worker
//! (polling, expiry, counters) is part of the figure; making frames is not.

mod cluster;
mod lane;
mod machine;
mod packets;
mod rig;
mod scenario;

pub use scenario::Scenario;

use crate::cli::output::Format;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets::NOTHING};
use rig::{Rig, Spent};
use serde::Serialize;

/// Windows a figure is the median of.
const WINDOWS: usize = 7;
/// Packets of a window at least, so that one interruption does not decide it.
const WINDOW: u64 = 1 << 18;

/// Benchmarks of this machine.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs packets through the whole pipeline in memory and says what one costs.
    Pipeline(Options),
}

/// What to measure.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example:\n  sluice bench pipeline --scenario clusterip --flows 100000 -o json")]
pub struct Options {
    /// Way through the pipeline.
    #[arg(long, value_enum)]
    pub scenario: Scenario,
    /// Flows; each sends once per pass, in shuffled order.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub flows: u32,
    /// Packets to measure; default: seven windows of at least 262144 packets and one pass each.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub packets: Option<u64>,
    /// Bytes of the inner frame, with the Ethernet header, without the frame check sequence; `mix` has its own sizes.
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u16).range(64..=1514))]
    pub frame: u16,
    /// Workers, each on a thread and CPU of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Every packet is a flow's first.
    #[arg(long)]
    pub new: bool,
    /// Address family of the packets inside the overlay.
    #[arg(long, value_name = "4|6", default_value_t = 4, value_parser = clap::value_parser!(u8).range(4..=6))]
    pub family: u8,
    /// Rules of the policy that selects the pods, in each direction.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub rules: u32,
    /// Services; flows to Services are spread over all of them.
    #[arg(long, value_name = "N", default_value_t = cluster::SERVICES, value_parser = clap::value_parser!(u32).range(1..=i64::from(cluster::MOST_SERVICES)))]
    pub services: u32,
}

/// What was measured. Times are thread CPU time unless they say otherwise.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Way through the pipeline.
    pub scenario: Scenario,
    /// Address family inside the overlay.
    pub family: u8,
    /// Flows.
    pub flows: u32,
    /// Packets measured.
    pub packets: u64,
    /// Bytes of the inner frame.
    pub frame_bytes: u16,
    /// Workers.
    pub workers: u16,
    /// Whether every packet was a flow's first.
    pub new: bool,
    /// Rules of the pods' policy, in each direction.
    pub rules: u32,
    /// Services.
    pub services: u32,
    /// Nanoseconds of thread CPU time for a packet: the median of the windows.
    pub ns_per_packet: f64,
    /// The fastest and the slowest window.
    pub ns_per_packet_range: [f64; 2],
    /// Nanoseconds of wall time for a packet: median of the windows.
    pub wall_ns_per_packet: f64,
    /// Million packets a second of all workers together, from thread CPU time for one worker, from wall time for several.
    pub mpps: f64,
    /// Ticks of the time-stamp counter for a packet; it counts while the thread is descheduled and is no core cycle.
    pub cycles_per_packet: Option<f64>,
    /// Bytes of flow table for a connection in it, both directions.
    pub bytes_per_flow: Option<f64>,
    /// Flows opened a second by one worker: the cost of first packets alone.
    pub new_flows_per_second: Option<f64>,
    /// Allocations for a packet; null if this program does not count them.
    pub allocations_per_packet: Option<f64>,
    /// Windows that the medians are of.
    pub windows: usize,
    /// Processor.
    pub cpu: String,
    /// Pages of the flow tables: `2M` if they were reserved, else `4K` with what the kernel joined by itself.
    pub pages: String,
    /// Bytes of the whole process on pages that the kernel joined to 2 MB.
    pub transparent_huge_bytes: u64,
    /// Generation of the tables.
    pub generation: u64,
    /// Load of the machine over 1, 5 and 15 minutes, taken before.
    pub load_average: Option<[f64; 3]>,
}

/// Runs the benchmark that the arguments ask for and prints its report.
pub fn main(args: &BenchArgs, format: Format) -> Result<()> {
    let What::Pipeline(options) = &args.what;
    let report = run(options)?;
    match format {
        Format::Json => println!("{}", serde_json::to_string(&report)?),
        Format::Yaml => print!("{}", serde_yaml_ng::to_string(&report)?),
        Format::Table | Format::Dot | Format::Svg => println!("{}", table(&report)?),
    }
    Ok(())
}

/// Runs the benchmark.
pub fn run(options: &Options) -> Result<Report> {
    if options.family == 5 {
        bail!("--family is 4 or 6");
    }
    let most = options.scenario.most_flows(options.services);
    if options.flows > most {
        bail!("--flows: {most} different ones are the most of this scenario");
    }
    let load_average = machine::load();
    if let Some(cpu) = machine::cpus().first() {
        machine::pin(*cpu);
    }
    let bed = cluster::build(options.rules, options.services, options.workers)?;
    let v6 = options.family == 6;
    let flows = options.flows as usize;
    let mut rig = Rig::new(&bed, options.scenario, flows, usize::from(options.frame), v6, options.workers)?;
    let (mut shots, first_cost) =
        if options.new { (rig.first_packets(options.flows)?, None) } else { established(&mut rig, options.flows)? };
    shuffle(&mut shots);
    if !options.new {
        // Few flows fill a round by sending often, or batches would not be full.
        shots = shots.repeat((rig::ROUND / flows).max(1));
    }
    let repeats = shots.len() / flows;
    let denied = (0..options.flows).filter(|n| !options.scenario.of(*n).0.makes_flows()).count() * repeats;

    let pass = shots.len() as u64;
    let passes = match options.packets {
        Some(packets) => packets.div_ceil(pass * WINDOWS as u64),
        None => WINDOW.div_ceil(pass),
    };
    let windows = options.packets.map_or(WINDOWS, |packets| (packets.div_ceil(pass) as usize).min(WINDOWS));
    // One pass first: caches, branch predictors, the frames' pages.
    rig.pass(&shots)?;
    let mut spent = Vec::new();
    let mut table = (0, 0, false);
    for _ in 0..windows {
        let mut window = Spent::default();
        for _ in 0..passes {
            if options.new {
                rig.forget_all();
            }
            let before = rig.dropped();
            window.add(&rig.pass(&shots)?);
            let dropped = rig.dropped() - before;
            if dropped != denied as u64 {
                bail!("{dropped} packets were dropped where {denied} had to be: the figure would mean nothing");
            }
            table = rig.flow_tables();
        }
        spent.push(window);
    }
    let counting = sluice_port::alloc::is_counting();
    let packets: u64 = spent.iter().map(|w| w.packets).sum();
    let per_packet = |part: fn(&Spent) -> u64| median(spent.iter().map(|w| part(w) as f64 / w.packets as f64));
    let ns = per_packet(|w| w.cpu);
    let wall = per_packet(|w| w.wall);
    let all = spent.iter().map(|w| w.cpu as f64 / w.packets as f64);
    let first = if options.new { Some(ns) } else { first_cost.map(|c: Spent| c.cpu as f64 / c.packets as f64) };
    let (len, bytes, huge) = table;
    Ok(Report {
        scenario: options.scenario,
        family: options.family,
        flows: options.flows,
        packets,
        frame_bytes: options.frame,
        workers: options.workers,
        new: options.new,
        rules: options.rules,
        services: options.services,
        ns_per_packet: rounded(ns),
        ns_per_packet_range: [rounded(all.clone().fold(f64::INFINITY, f64::min)), rounded(all.fold(0.0, f64::max))],
        wall_ns_per_packet: rounded(wall),
        mpps: rounded(1000.0 / if options.workers > 1 { wall } else { ns }),
        cycles_per_packet: spent
            .iter()
            .all(|w| w.ticks.is_some())
            .then(|| rounded(per_packet(|w| w.ticks.unwrap_or_default()))),
        bytes_per_flow: (len > 0).then(|| rounded(bytes as f64 / len as f64)),
        new_flows_per_second: first.filter(|_| options.scenario.makes_flows()).map(|ns| (1e9 / ns).round()),
        allocations_per_packet: counting
            .then(|| spent.iter().map(|w| w.allocations).sum::<u64>() as f64 / packets as f64),
        windows,
        cpu: machine::cpu_name(),
        pages: if huge { "2M" } else { "4K" }.to_owned(),
        transparent_huge_bytes: machine::transparent_huge_bytes(),
        generation: bed.tables.generation,
        load_average,
    })
}

type Shots = Vec<(u16, packets::Shot)>;

fn established(rig: &mut Rig, flows: u32) -> Result<(Shots, Option<Spent>)> {
    let (shots, cost) = rig.establish(flows)?;
    Ok((shots, Some(cost)))
}

/// The same order in every run.
fn shuffle<T>(list: &mut [T]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..list.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        list.swap(at, (state % (at as u64 + 1)) as usize);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn table(report: &Report) -> Result<Table> {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    if let serde_json::Value::Object(fields) = serde_json::to_value(report)? {
        for (name, value) in fields {
            table.add_row([name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)]);
        }
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    fn options(scenario: Scenario) -> Options {
        Options {
            scenario,
            flows: 200,
            packets: Some(400),
            frame: 64,
            workers: 1,
            new: false,
            family: 4,
            rules: 10,
            services: cluster::SERVICES,
        }
    }

    #[test]
    fn every_scenario_runs_in_both_families_with_one_worker_and_with_two() {
        for scenario in Scenario::value_variants() {
            for (family, workers) in [(4, 1), (6, 1), (4, 2)] {
                let report = run(&Options { family, workers, ..options(*scenario) });
                let report = report.unwrap_or_else(|e| panic!("{scenario:?} {family} {workers}: {e:#}"));
                assert!(report.packets >= 400 && report.ns_per_packet > 0.0);
            }
        }
    }

    #[test]
    fn first_packets_alone_can_be_measured() {
        for family in [4, 6] {
            let report = run(&Options { new: true, family, ..options(Scenario::Clusterip) }).unwrap();
            assert!(report.new_flows_per_second.is_some_and(|n| n > 0.0));
        }
    }

    #[test]
    fn more_flows_than_a_scenario_has_are_refused() {
        assert!(run(&Options { flows: 2_000_001, ..options(Scenario::Nodeport) }).is_err());
    }
}
