//! `sluice observe`: what becomes of packets, as it happens.

use super::agent::{Agent, with_query};
use super::failure::{Done, Failure};
use super::output::Output;
use crate::api::report::ObserveEvent;
use clap::Args;

/// Verdicts that events can have.
const VERDICTS: [&str; 5] = ["forwarded", "dropped", "replied", "punted", "held"];

/// What becomes of packets, as it happens; ends with Ctrl-C.
#[derive(Args)]
#[command(after_help = "Examples:\n  sluice observe --verdict dropped\n  sluice observe --pod shop/web-0 -o json\n  \
    sluice observe --reason PolicyDeny --count 1")]
pub struct ObserveArgs {
    /// Only packets with this verdict.
    #[arg(long, value_name = "VERDICT", value_parser = clap::builder::PossibleValuesParser::new(VERDICTS), ignore_case = true)]
    verdict: Option<String>,
    /// Only packets from this pod.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = super::pod_name)]
    pod: Option<String>,
    /// Only packets with this reason, such as PolicyDeny.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Option<String>,
    /// End after so many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn reason(text: &str) -> Result<String, String> {
    let known = sluice_engine::reason::Reason::ALL.map(sluice_engine::reason::Reason::name);
    match known.iter().find(|name| name.eq_ignore_ascii_case(text)) {
        Some(name) => Ok((*name).to_owned()),
        None => Err(format!("expected one of {}", known.join(", "))),
    }
}

/// Prints events until the agent ends, the reader goes, or enough were seen.
pub fn run(agent: &Agent, args: ObserveArgs, output: &Output) -> Done {
    let filter =
        [("verdict", args.verdict.as_deref()), ("pod", args.pod.as_deref()), ("reason", args.reason.as_deref())];
    let lines = agent.lines(&with_query("/v1/observe", &filter))?;
    let mut seen = 0;
    for line in lines {
        let line = line.map_err(|error| agent.failed(error))?;
        let event: ObserveEvent = serde_json::from_str(&line)
            .map_err(|error| Failure::unreachable(format_args!("the agent sent an event that is none: {error}")))?;
        if event.lost > 0 {
            eprintln!("sluice: {} events were lost: they came faster than they were read", event.lost);
        }
        output.line(&event, || text(&event))?;
        seen += 1;
        if args.count == Some(seen) {
            return Ok(());
        }
    }
    Err(Failure::unreachable("the agent ended the stream of events"))
}

fn text(event: &ObserveEvent) -> String {
    let seconds = event.time.max(0.0);
    let of_day = seconds as u64 % 86_400;
    let (hours, minutes) = (of_day / 3600, of_day / 60 % 60);
    let mut text = format!("{hours:02}:{minutes:02}:{:06.3}Z {}", seconds % 60.0, event.verdict);
    if let Some(reason) = &event.reason {
        text.push(' ');
        text.push_str(reason);
    }
    let known =
        [("at", &event.stage), ("policy", &event.policy), ("service", &event.service), ("backend", &event.backend)];
    text.push_str(&format!(" from {}", event.port));
    for (word, value) in known {
        if let Some(value) = value {
            text.push_str(&format!(" {word} {value}"));
        }
    }
    if !event.packet.is_empty() {
        text.push_str(&format!(": {}", event.packet));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_with_what_decided() {
        let event = ObserveEvent {
            time: 3_723.5,
            port: "pod:shop/client".into(),
            verdict: "dropped".into(),
            reason: Some("PolicyDeny".into()),
            stage: Some("ingress".into()),
            policy: Some("NetworkPolicy/shop/db".into()),
            packet: "10.244.1.20:40000 > 10.244.2.9:5432 TCP SYN".into(),
            ..Default::default()
        };
        assert_eq!(
            text(&event),
            "01:02:03.500Z dropped PolicyDeny from pod:shop/client at ingress policy NetworkPolicy/shop/db: \
             10.244.1.20:40000 > 10.244.2.9:5432 TCP SYN"
        );
    }

    #[test]
    fn reasons_are_known_by_name() {
        assert_eq!(reason("policydeny").unwrap(), "PolicyDeny");
        assert!(reason("Bored").unwrap_err().contains("NoRoute"));
    }
}
