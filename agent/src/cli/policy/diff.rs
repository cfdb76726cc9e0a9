//! `sluice policy diff`: every pair of pods whose verdict an edit changes.
//!
//! Ports asked about are those that policies, containers or Services of either side name, and one that nobody names, which
//! stands for all others. Pairs are of pods that both sides have; a pair is asked in each family both pods have, and
//! counts as denied where one family is. Cost: pods² × ports lookups in compiled tables.

use super::Proto;
use super::rehearsal::Rehearsal;
use super::verdict::Verdict;
use crate::cli::failure::{Done, Failure};
use crate::cli::output::{Output, table};
use clap::Args;
use serde::Serialize;
use sluice_ctrl::model::{Cluster, ClusterRule, Family, NamespacedName, PolicyRule, PortMatch, TargetPort};
use sluice_tables::{Address, Tables};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

/// Shows every pair of pods whose verdict an edit changes.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  sluice policy diff before/ after/\n  sluice policy diff before/ after/ --exit-code   # code 1 where something changes"
)]
pub struct DiffArgs {
    /// Folder of manifests before.
    #[arg(value_name = "OLD_DIR")]
    old: PathBuf,
    /// Folder of manifests after.
    #[arg(value_name = "NEW_DIR")]
    new: PathBuf,
    /// End with code 1 where a verdict changes.
    #[arg(long)]
    exit_code: bool,
}

/// What is asked of each pair: a protocol, and a port or all that nobody names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Probe {
    proto: Proto,
    /// The port that is looked up.
    port: u16,
    /// It stands for all ports that nobody names.
    other: bool,
}

/// A verdict that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The source pod.
    pub from: String,
    /// The destination pod.
    pub to: String,
    /// Protocol.
    pub proto: Proto,
    /// The port; none for all ports that nobody names, and for ICMP.
    pub port: Option<u16>,
    /// The verdict before.
    pub old: Verdict,
    /// The verdict after.
    pub new: Verdict,
    /// What decided before.
    pub old_decided_by: Option<String>,
    /// What decides after.
    pub new_decided_by: Option<String>,
}

/// What an edit changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Verdicts that change, by source, destination and port.
    pub changes: Vec<Change>,
    /// Pods that only the new side has.
    pub pods_added: Vec<String>,
    /// Pods that only the old side has.
    pub pods_removed: Vec<String>,
}

/// Prints the difference.
pub fn run(args: &DiffArgs, output: &Output) -> Done {
    let (old, new) = (Rehearsal::read(&args.old)?, Rehearsal::read(&args.new)?);
    for (folder, side) in [(&args.old, &old), (&args.new, &new)] {
        side.notes.iter().for_each(|note| eprintln!("sluice: {}: {note}", folder.display()));
    }
    let difference = compare(&old, &new)?;
    output.print(&difference, || text(&difference))?;
    match difference.changes.len() {
        0 => Ok(()),
        count if args.exit_code => Err(Failure::untrue(format_args!("{count} verdicts change"))),
        _ => Ok(()),
    }
}

/// Compares two clusters.
pub fn compare(old: &Rehearsal, new: &Rehearsal) -> Result<Difference, Failure> {
    let probes = probes(&[&old.cluster, &new.cluster]);
    let (before, after) = (pods(old)?, pods(new)?);
    let only = |of: &BTreeMap<&NamespacedName, Standing>, not: &BTreeMap<&NamespacedName, Standing>| {
        of.keys().filter(|name| !not.contains_key(**name)).map(ToString::to_string).collect()
    };
    let mut difference =
        Difference { changes: Vec::new(), pods_added: only(&after, &before), pods_removed: only(&before, &after) };
    let both: Vec<_> =
        before.iter().filter_map(|(name, standing)| Some((*name, standing, after.get(*name)?))).collect();
    for (from, from_old, from_new) in &both {
        for (to, to_old, to_new) in &both {
            if from == to {
                continue;
            }
            for probe in &probes {
                let (was, is) = (judge(from_old, to_old, probe), judge(from_new, to_new, probe));
                let (Some(was), Some(is)) = (was, is) else { continue };
                if was.0 != is.0 {
                    difference.changes.push(Change {
                        from: from.to_string(),
                        to: to.to_string(),
                        proto: probe.proto,
                        port: (!probe.other && probe.proto != Proto::Icmp).then_some(probe.port),
                        old: was.0,
                        new: is.0,
                        old_decided_by: was.1.map(|name| name.to_string()),
                        new_decided_by: is.1.map(|name| name.to_string()),
                    });
                }
            }
        }
    }
    Ok(difference)
}

/// A pod on its node.
struct Standing {
    tables: Rc<Tables>,
    pod: Arc<sluice_tables::Pod>,
}

fn pods(rehearsal: &Rehearsal) -> Result<BTreeMap<&NamespacedName, Standing>, Failure> {
    let mut all = BTreeMap::new();
    let mut by_name: BTreeMap<String, BTreeMap<Arc<str>, Arc<sluice_tables::Pod>>> = BTreeMap::new();
    for (name, pod) in &rehearsal.cluster.pods {
        let Some(node) = pod.node.as_ref().filter(|_| !pod.is_finished() && !pod.host_network) else { continue };
        let tables = rehearsal.tables(node)?;
        let here = by_name
            .entry(node.clone())
            .or_insert_with(|| tables.pods.iter().map(|pod| (pod.name.clone(), pod.clone())).collect());
        if let Some(local) = here.get(name.to_string().as_str()) {
            all.insert(name, Standing { pod: local.clone(), tables });
        }
    }
    Ok(all)
}

type Judged<'a> = (Verdict, Option<&'a Arc<str>>);

/// The verdict over all families that both pods have; none where they have none in common.
fn judge<'a>(from: &'a Standing, to: &'a Standing, probe: &Probe) -> Option<Judged<'a>> {
    let mut verdict = None;
    for family in [Family::V4, Family::V6] {
        let v4 = family == Family::V4;
        let of = |standing: &Standing| -> Option<Address> {
            standing.pod.addresses.iter().copied().find(|address| address.is_v4() == v4)
        };
        let (Some(source), Some(destination)) = (of(from), of(to)) else { continue };
        let number = probe.proto.number(family);
        let ask = |at: &'a Standing, set, peer| {
            at.tables.policy.decide(set, at.tables.identities.of(peer), number, probe.port)
        };
        let egress = ask(from, from.pod.egress, destination);
        let ingress = ask(to, to.pod.ingress, source);
        let name = |at: &'a Standing, rule| at.tables.policy.name(rule);
        if !egress.allow {
            return Some((Verdict::Deny, name(from, egress.rule)));
        }
        if !ingress.allow {
            return Some((Verdict::Deny, name(to, ingress.rule)));
        }
        verdict = verdict.or_else(|| Some((Verdict::Allow, name(to, ingress.rule).or(name(from, egress.rule)))));
    }
    verdict
}

/// What to ask about, from what the clusters name.
fn probes(clusters: &[&Cluster]) -> Vec<Probe> {
    let mut named: BTreeSet<u16> = BTreeSet::new();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for cluster in clusters {
        let containers = cluster.pods.values().flat_map(|pod| &pod.ports).map(|port| port.port);
        named.extend(containers);
        for port in cluster.services.values().flat_map(|service| &service.ports) {
            if let TargetPort::Number(number) = port.target {
                named.insert(number);
            }
        }
        named.extend(cluster.endpoint_slices.values().flat_map(|slice| &slice.ports).map(|port| port.port));
        let policies = cluster.network_policies.values();
        let rules = policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
        let ports = rules.filter_map(|rule: &PolicyRule| rule.ports.as_ref()).flatten();
        let wide =
            cluster.cluster_network_policies.values().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
        let wide = wide.filter_map(|rule: &ClusterRule| rule.ports.as_ref()).flatten();
        for port in ports.chain(wide) {
            if let PortMatch::Range(_, range) = port {
                named.extend([range.first(), range.last()]);
                ranges.push((range.first(), range.last()));
            }
        }
    }
    // Inside a range, every stretch between two named ports is asked about by its first port.
    let inside = |port: u16| ranges.iter().any(|(first, last)| (*first..=*last).contains(&port));
    let stretches: Vec<u16> =
        named.iter().filter_map(|port| port.checked_add(1)).filter(|port| inside(*port)).collect();
    named.extend(stretches);
    // Any port outside all ranges is treated like every other such port.
    let free =
        |port: &u16| !named.contains(port) && !ranges.iter().any(|(first, last)| (*first..=*last).contains(port));
    let other = (1..=u16::MAX).rev().find(free);
    let mut probes = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp, Proto::Sctp] {
        probes.extend(named.iter().map(|port| Probe { proto, port: *port, other: false }));
        probes.extend(other.map(|port| Probe { proto, port, other: true }));
    }
    probes.push(Probe { proto: Proto::Icmp, port: 0, other: false });
    probes
}

/// A table in which ports that change alike share a line.
fn text(difference: &Difference) -> String {
    let mut lines: Vec<(&Change, Vec<String>)> = Vec::new();
    for change in &difference.changes {
        let port = match (change.proto, change.port) {
            (Proto::Icmp, _) => "icmp".to_owned(),
            (proto, Some(port)) => format!("{}/{port}", proto.name()),
            (proto, None) => format!("{}/other", proto.name()),
        };
        let alike = |known: &Change| {
            let key = |c: &Change| (c.old, c.new, c.old_decided_by.clone(), c.new_decided_by.clone());
            known.from == change.from && known.to == change.to && key(known) == key(change)
        };
        match lines.iter_mut().rev().take(8).find(|(known, _)| alike(known)) {
            Some((_, ports)) => ports.push(port),
            None => lines.push((change, vec![port])),
        }
    }
    let mut text = String::new();
    if lines.is_empty() {
        text.push_str("no verdict changes\n");
    } else {
        let by = |name: &Option<String>| name.clone().unwrap_or_else(|| "no policy".to_owned());
        let rows = lines.iter().map(|(change, ports)| {
            let verdict = format!("{} -> {}", change.old.name(), change.new.name());
            let decided = format!("{} -> {}", by(&change.old_decided_by), by(&change.new_decided_by));
            [change.from.clone(), change.to.clone(), ports.join(" "), verdict, decided]
        });
        text.push_str(&table(&["FROM", "TO", "PORTS", "VERDICT", "DECIDED BY"], rows));
    }
    for (word, pods) in [("added", &difference.pods_added), ("removed", &difference.pods_removed)] {
        if !pods.is_empty() {
            text.push_str(&format!("pods {word}, not compared: {}\n", pods.join(", ")));
        }
    }
    text
}
