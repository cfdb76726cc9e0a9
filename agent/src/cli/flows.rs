//! `sluice flows`.

use super::agent::{Agent, with_query};
use super::failure::Done;
use super::output::{Output, table};
use crate::api::report::{DEFAULT_FLOWS, FlowReport, FlowsReport, MAX_FLOWS};
use clap::Args;

/// The flows this node remembers.
#[derive(Args)]
#[command(after_help = "Examples:\n  sluice flows --pod shop/web-0\n  sluice flows --limit 100000 -o json")]
pub struct FlowsArgs {
    /// Only flows of this pod.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = super::pod_name)]
    pod: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_FLOWS as u64,
        value_parser = clap::value_parser!(u64).range(1..=MAX_FLOWS as u64))]
    limit: u64,
}

/// Prints flows.
pub fn run(agent: &Agent, args: FlowsArgs, output: &Output) -> Done {
    let limit = args.limit.to_string();
    let path = with_query("/v1/flows", &[("pod", args.pod.as_deref()), ("limit", Some(&limit))]);
    let report: FlowsReport = agent.get(&path)?;
    output.print(&report, || {
        let head = ["PROTOCOL", "SOURCE", "DESTINATION", "STATE", "IDLE", "POD", "TRANSLATED TO", "WORKER"];
        table(&head, report.flows.iter().map(row))
    })?;
    if report.truncated && output.is_table() {
        eprintln!("sluice: there are more flows; --limit shows more");
    }
    Ok(())
}

fn row(flow: &FlowReport) -> [String; 8] {
    let protocol = match flow.protocol {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    };
    [
        protocol,
        flow.source.clone(),
        flow.destination.clone(),
        flow.state.clone(),
        super::status::duration(flow.idle_seconds),
        flow.pod.clone().unwrap_or_default(),
        translation(flow),
        flow.worker.to_string(),
    ]
}

/// What was changed of the addresses, if anything.
fn translation(flow: &FlowReport) -> String {
    let changed = |is: &str, was: &str, word: &str| (is != was).then(|| format!("{word} {is}"));
    let source = changed(&flow.translated_source, &flow.source, "from");
    let destination = changed(&flow.translated_destination, &flow.destination, "to");
    source.into_iter().chain(destination).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_translated_is_shown_as_translated() {
        let flow = FlowReport {
            protocol: 6,
            source: "10.244.1.5:4000".into(),
            translated_source: "10.244.1.5:4000".into(),
            destination: "10.96.0.10:80".into(),
            translated_destination: "10.244.2.7:8080".into(),
            ..Default::default()
        };
        let row = row(&flow);
        assert_eq!((row[0].as_str(), row[6].as_str()), ("TCP", "to 10.244.2.7:8080"));
    }
}
