//! `sluice counters` and `sluice generation`.

use super::agent::Agent;
use super::failure::Done;
use super::output::{Output, table};
use crate::api::report::{CounterReport, GenerationReport};
use clap::Args;

/// Everything counted since the agent's start.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  sluice counters\n  sluice counters --all\n  sluice counters -o json | jq .drops.PolicyDeny"
)]
pub struct CountersArgs {
    /// Show counters that stand at 0 too.
    #[arg(long)]
    all: bool,
}

/// Prints counters; those at 0 only where asked for.
pub fn run(agent: &Agent, args: &CountersArgs, output: &Output) -> Done {
    let report: CounterReport = agent.get("/v1/counters")?;
    output.print(&report, || {
        let rows = rows(&report).into_iter().filter(|(_, value)| args.all || *value > 0);
        table(&["COUNTER", "VALUE"], rows.map(|(name, value)| [name, value.to_string()]))
    })
}

fn rows(report: &CounterReport) -> Vec<(String, u64)> {
    let mut rows: Vec<(String, u64)> = [
        ("received", report.received),
        ("sent", report.sent),
        ("punted", report.punted),
        ("dropped", report.dropped),
        ("replies", report.replies),
        ("handed_over", report.handed_over),
        ("held", report.held),
        ("flows_created", report.flows_created),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for (reason, stages) in &report.drops {
        rows.extend(stages.iter().map(|(stage, count)| (format!("drops/{reason}/{stage}"), *count)));
    }
    for (verdict, directions) in &report.policy_verdicts {
        let each =
            directions.iter().map(|(direction, count)| (format!("policy_verdicts/{verdict}/{direction}"), *count));
        rows.extend(each);
    }
    rows.extend(report.domain_answers.iter().map(|(result, count)| (format!("domain_answers/{result}"), *count)));
    let results = report.service_connections.iter();
    rows.extend(results.map(|(result, count)| (format!("service_connections/{result}"), *count)));
    let addresses = report.snat_ports_in_use.iter();
    rows.extend(addresses.map(|(address, count)| (format!("snat_ports_in_use/{address}"), *count)));
    for port in &report.ports {
        let name = |what: &str| format!("ports/{}/{what}", port.port);
        rows.push((name("rx_packets"), port.rx_packets));
        rows.push((name("rx_bytes"), port.rx_bytes));
        rows.push((name("tx_packets"), port.tx_packets));
        rows.push((name("tx_bytes"), port.tx_bytes));
    }
    rows
}

/// Prints the tables' generations.
pub fn generation(agent: &Agent, output: &Output) -> Done {
    let report: GenerationReport = agent.get("/v1/generation")?;
    output.print(&report, || {
        let first = [("published".to_owned(), report.published), ("applied".to_owned(), report.applied)];
        let workers = report.workers.iter().enumerate().map(|(id, generation)| (format!("worker {id}"), *generation));
        let rows = first.into_iter().chain(workers);
        table(&["TABLES", "GENERATION"], rows.map(|(name, generation)| [name, generation.to_string()]))
    })
}
