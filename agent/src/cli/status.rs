//! `sluice status`.

use super::agent::Agent;
use super::failure::{Done, Failure};
use super::output::{Output, table, yes};
use crate::api::report::{State, StatusReport};

/// Prints how the node is. Exit code 0 as soon as packets are handled, degraded or not; 1 before.
pub fn run(agent: &Agent, output: &Output) -> Done {
    let status: StatusReport = agent.get("/v1/status")?;
    output.print(&status, || text(&status))?;
    match status.state {
        State::Ready | State::Degraded => Ok(()),
        State::Starting => Err(Failure::untrue("not ready yet: the agent is starting")),
    }
}

fn text(status: &StatusReport) -> String {
    let mut facts = vec![
        ("Node", status.node.clone()),
        ("Version", status.version.clone()),
        ("State", status.state.name().to_owned()),
        ("Uptime", duration(status.uptime_seconds)),
        ("Generation", generation(status)),
        ("Cluster", format!("{} pods here, {} Services, {} policies", status.pods, status.services, status.policies)),
        ("Flows", share(status.flows, status.flows_capacity)),
        ("Frames", frames(status)),
    ];
    for pool in &status.ipam {
        facts.push(("Addresses", format!("{} ({}): {}", pool.pool, pool.family, share(pool.in_use, pool.addresses))));
    }
    if !status.wanted_neighbours.is_empty() {
        let list: Vec<String> = status.wanted_neighbours.iter().map(ToString::to_string).collect();
        facts.push(("Neighbours", format!("waiting for the MAC address of {}", list.join(", "))));
    }
    if !status.carried_addresses.is_empty() {
        let list: Vec<String> = status.carried_addresses.iter().map(ToString::to_string).collect();
        facts.push(("Carries", list.join(", ")));
    }
    facts.extend(status.notes.iter().map(|note| ("Note", note.clone())));
    if !status.ignored_objects.is_empty() {
        let list: Vec<String> = status.ignored_objects.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        facts.push(("Not read", list.join(", ")));
    }
    let mut text = String::new();
    for (name, value) in facts {
        text.push_str(&format!("{name:<12}{value}\n"));
    }
    let word = if status.state.is_up() { State::Degraded.name() } else { "Problem" };
    for problem in &status.problems {
        text.push_str(&format!("{word:<12}{problem}\n"));
    }
    if !status.workers.is_empty() {
        text.push('\n');
        let rows = status.workers.iter().map(|worker| {
            let cpu = worker.cpu.map_or("any".to_owned(), |cpu| cpu.to_string());
            let busy = format!("{:.1} %", 100.0 * worker.busy_ratio);
            let node = worker.numa_node.map_or(String::new(), |n| n.to_string());
            let node = if worker.cross_numa { format!("{node} (uplink's is another)") } else { node };
            [worker.id.to_string(), cpu, node, yes(worker.alive), busy]
        });
        text.push_str(&table(&["WORKER", "CPU", "NODE", "ALIVE", "BUSY"], rows));
    }
    if !status.ports.is_empty() {
        text.push('\n');
        let rows = status.ports.iter().map(|port| {
            let lost = port.rx_missed + port.tx_full + port.tx_errors;
            let counts = [port.rx_packets, port.tx_packets, lost].map(|n| n.to_string());
            let [rx, tx, lost] = counts;
            let texts = [&port.name, &port.interface, &port.driver, &port.mode].map(Clone::clone);
            texts.into_iter().chain([rx, tx, lost, port.reason.clone()])
        });
        text.push_str(&table(&["PORT", "INTERFACE", "DRIVER", "MODE", "RX", "TX", "LOST", "REASON"], rows));
    }
    text
}

fn generation(status: &StatusReport) -> String {
    match (status.generation, status.applied_generation) {
        (0, _) => "none yet".to_owned(),
        (published, applied) if published == applied => format!("{published}, applied by every worker"),
        (published, applied) => format!("{published}, every worker runs on {applied} at least"),
    }
}

fn frames(status: &StatusReport) -> String {
    let pages = if status.pool.huge_pages { "huge pages" } else { "normal pages" };
    format!("{} of {} free, on {pages}", status.pool.free, status.pool.frames)
}

fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => part.to_string(),
        _ => format!("{part} of {whole} ({:.1} %)", 100.0 * part as f64 / whole as f64),
    }
}

/// `3d 4h`, `4h 5m`, `5m 6s` or `6s`.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::problem::Problem;

    #[test]
    fn a_healthy_node_does_not_say_degraded_and_an_ill_one_says_where() {
        let mut status =
            StatusReport { state: State::Ready, generation: 3, applied_generation: 3, ..Default::default() };
        assert!(!text(&status).contains("Degraded"));
        status.state = State::Degraded;
        status.problems = vec![Problem {
            file: Some("cluster/broken.yaml".into()),
            line: Some(3),
            ..Problem::plain("expected a mapping")
        }];
        assert!(text(&status).contains("Degraded    cluster/broken.yaml:3: expected a mapping\n"));
    }

    #[test]
    fn times_are_told_with_their_two_largest_units() {
        assert_eq!([5, 65, 3_700, 90_000].map(duration), ["5s", "1m 5s", "1h 1m", "1d 1h"]);
    }
}
