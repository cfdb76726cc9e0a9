//! policy.networking.k8s.io/v1alpha2 `ClusterNetworkPolicy`: strict, because what is left out of a policy is open.
//!
//! A rule that is not understood (an unknown field, peer or action; domain names, which are not supported) turns its
//! direction into one that denies everything for the policy's subject; a mistake outside the rules does so to both
//! directions, and a tier that is not understood counts as Admin, so that nothing else can open what this closes.

use super::value::is_port_name;
use super::{At, Problem, Report, audit, envelope};
use crate::model::{
    ClusterNetworkPolicy, ClusterPeer, ClusterRule, FailClosed, PortMatch, PortRange, Protocol, RuleAction, Selector,
    Subject, Tier,
};
use crate::source::Kind;

/// Imports a policy; always gives one, closed where it was not understood.
pub(super) fn import(name: String, root: &At<'_>, report: &mut Report) -> ClusterNetworkPolicy {
    let spec = root.get("spec");
    let mut understood = report.strict(envelope(root, Kind::ClusterNetworkPolicy)).is_some();
    understood &= report.strict(spec.only(&["tier", "priority", "subject", "ingress", "egress"])).is_some();

    let tier = report.strict(tier(&spec.get("tier")));
    let priority = report.strict(priority(&spec.get("priority")));
    let (subject, subject_understood) = subject(&spec.get("subject"), report);
    understood &= tier.is_some() && priority.is_some() && subject_understood;

    let mut fail_closed = FailClosed::default();
    let mut direction = |key, peers, egress, closed: &mut bool| {
        let rules = report.strict(rules(&spec.get(key), peers, egress));
        *closed = !understood || rules.is_none();
        rules.filter(|_| understood).unwrap_or_else(|| vec![ClusterRule::deny_everything()])
    };
    let ingress = direction("ingress", "from", false, &mut fail_closed.ingress);
    let egress = direction("egress", "to", true, &mut fail_closed.egress);
    ClusterNetworkPolicy {
        name,
        tier: tier.unwrap_or(Tier::Admin),
        priority: priority.unwrap_or(0),
        subject,
        ingress,
        egress,
        fail_closed,
        audit: audit(root, report),
    }
}

fn tier(field: &At<'_>) -> Result<Tier, Problem> {
    match field.required_text()? {
        "Admin" => Ok(Tier::Admin),
        "Baseline" => Ok(Tier::Baseline),
        other => Err(field.problem(format!("expected Admin or Baseline, found {other:?}"))),
    }
}

fn priority(field: &At<'_>) -> Result<u16, Problem> {
    let priority = field.integer(0, 1000)?.ok_or_else(|| field.problem("must be given"))?;
    u16::try_from(priority).map_err(|_| field.problem("must be from 0 to 1000"))
}

/// The subject, as wide as what was understood of it allows, and whether all of it was.
fn subject(field: &At<'_>, report: &mut Report) -> (Subject, bool) {
    let mut subject = Subject { namespaces: Selector::everything(), pods: Selector::everything() };
    let mut understood = report.strict(exactly_one(field, &["namespaces", "pods"])).is_some();
    let (namespaces, pods) = (field.get("namespaces"), field.get("pods"));
    if !understood {
        return (subject, false);
    }
    let mut read = |field: &At<'_>, into: &mut Selector| match report.strict(field.selector()) {
        Some(selector) => *into = selector.unwrap_or_else(Selector::everything),
        None => understood = false,
    };
    if pods.is_absent() {
        read(&namespaces, &mut subject.namespaces);
    } else {
        read(&pods.get("namespaceSelector"), &mut subject.namespaces);
        read(&pods.get("podSelector"), &mut subject.pods);
        understood &= report.strict(pods.only(&["namespaceSelector", "podSelector"])).is_some();
    }
    (subject, understood)
}

/// The one field that is set, where exactly one of these must be.
fn exactly_one<'a>(field: &At<'a>, known: &[&str]) -> Result<&'a str, Problem> {
    field.only(known)?;
    match field.set_fields()[..] {
        [one] => Ok(one),
        _ => Err(field.problem(format!("must name exactly one of {}", known.join(", ")))),
    }
}

fn rules(field: &At<'_>, peers_key: &str, egress: bool) -> Result<Vec<ClusterRule>, Problem> {
    let mut rules = Vec::new();
    for entry in field.list()? {
        entry.only(&["name", "action", peers_key, "protocols"])?;
        let action_field = entry.get("action");
        let action = match action_field.required_text()? {
            "Accept" => RuleAction::Accept,
            "Deny" => RuleAction::Deny,
            "Pass" => RuleAction::Pass,
            other => return Err(action_field.problem(format!("expected Accept, Deny or Pass, found {other:?}"))),
        };
        let peers_field = entry.get(peers_key);
        let mut peers = Vec::new();
        for peer_field in peers_field.list()? {
            peers.push(peer(&peer_field, egress)?);
        }
        if peers.is_empty() {
            return Err(peers_field.problem("must name at least one peer"));
        }
        let ports = ports(&entry.get("protocols"))?;
        let by_name = ports.iter().flatten().any(|p| matches!(p, PortMatch::Named(..)));
        if by_name && peers.iter().any(|p| !matches!(p, ClusterPeer::Pods { .. })) {
            return Err(entry.get("protocols").problem("nodes and networks have no named ports"));
        }
        let name = entry.get("name").text()?.filter(|n| !n.is_empty()).map(str::to_owned);
        rules.push(ClusterRule { name, action, peers: Some(peers), ports });
    }
    Ok(rules)
}

fn peer(field: &At<'_>, egress: bool) -> Result<ClusterPeer, Problem> {
    let known: &[&str] = if egress { &["namespaces", "pods", "nodes", "networks"] } else { &["namespaces", "pods"] };
    let everything = |selector: Option<Selector>| selector.unwrap_or_else(Selector::everything);
    Ok(match exactly_one(field, known)? {
        "namespaces" => ClusterPeer::Pods {
            namespaces: everything(field.get("namespaces").selector()?),
            pods: Selector::everything(),
        },
        "pods" => {
            let pods = field.get("pods");
            pods.only(&["namespaceSelector", "podSelector"])?;
            ClusterPeer::Pods {
                namespaces: everything(pods.get("namespaceSelector").selector()?),
                pods: everything(pods.get("podSelector").selector()?),
            }
        }
        "nodes" => ClusterPeer::Nodes(everything(field.get("nodes").selector()?)),
        _ => {
            let networks_field = field.get("networks");
            let mut networks = Vec::new();
            for entry in networks_field.list()? {
                networks.push(entry.network()?);
            }
            if networks.is_empty() {
                return Err(networks_field.problem("must name at least one network"));
            }
            ClusterPeer::Networks(networks)
        }
    })
}

/// None where the field is missing: every protocol. A list that is there names at least one.
fn ports(field: &At<'_>) -> Result<Option<Vec<PortMatch>>, Problem> {
    let Some(entries) = field.items()? else { return Ok(None) };
    let mut ports = Vec::new();
    for entry in &entries {
        ports.push(match exactly_one(entry, &["tcp", "udp", "sctp", "destinationNamedPort"])? {
            "tcp" => protocol_ports(Protocol::Tcp, &entry.get("tcp"))?,
            "udp" => protocol_ports(Protocol::Udp, &entry.get("udp"))?,
            "sctp" => protocol_ports(Protocol::Sctp, &entry.get("sctp"))?,
            _ => {
                let name = entry.get("destinationNamedPort");
                let text = name.required_text()?;
                if !is_port_name(text) {
                    return Err(name.problem(format!("expected a port name, found {text:?}")));
                }
                PortMatch::Named(None, text.to_owned())
            }
        });
    }
    if ports.is_empty() {
        return Err(field.problem("must name at least one protocol, or be left out"));
    }
    Ok(Some(ports))
}

fn protocol_ports(protocol: Protocol, field: &At<'_>) -> Result<PortMatch, Problem> {
    field.only(&["destinationPort"])?;
    let port = field.get("destinationPort");
    if port.is_absent() {
        return Err(port.problem("must be given"));
    }
    let range = match exactly_one(&port, &["number", "range"])? {
        "number" => port.get("number").port()?.and_then(|n| PortRange::new(n, n)),
        _ => {
            let range = port.get("range");
            range.only(&["start", "end"])?;
            let (start, end) = (range.get("start").port()?, range.get("end").port()?);
            start.zip(end).and_then(|(start, end)| PortRange::new(start, end))
        }
    };
    let range = range.ok_or_else(|| port.problem("expected a range with start, and end not below it"))?;
    Ok(PortMatch::Range(protocol, range))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};

    const HEAD: &str = "apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: p}";

    fn policy(spec: &str) -> ClusterNetworkPolicy {
        (*cluster(&format!("{{{HEAD}, spec: {spec}}}")).cluster_network_policies["p"]).clone()
    }

    fn closed(spec: &str) -> (ClusterNetworkPolicy, Vec<String>) {
        let (cluster, problems) = cluster_and_problems(&format!("{{{HEAD}, spec: {spec}}}"));
        ((*cluster.cluster_network_policies["p"]).clone(), problems)
    }

    #[test]
    fn a_policy_is_read_whole() {
        let policy = policy(
            "{tier: Baseline, priority: 7, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: db}}}}, \
             ingress: [{name: mon, action: Accept, from: [{namespaces: {matchLabels: {team: mon}}}], \
               protocols: [{tcp: {destinationPort: {number: 9090}}}, {sctp: {destinationPort: {range: {start: 1, end: 9}}}}, {destinationNamedPort: http}]}, \
               {action: Deny, from: [{pods: {podSelector: {}}}]}], \
             egress: [{action: Pass, to: [{nodes: {}}, {networks: [10.0.0.1/8, '::/0']}]}]}",
        );
        assert_eq!((policy.tier, policy.priority), (Tier::Baseline, 7));
        assert!(policy.subject.namespaces.is_everything() && !policy.subject.pods.is_everything());
        let range = |a, b| PortRange::new(a, b).unwrap();
        assert_eq!(policy.ingress[0].name.as_deref(), Some("mon"));
        assert_eq!(
            policy.ingress[0].ports.as_deref().unwrap(),
            [
                PortMatch::Range(Protocol::Tcp, range(9090, 9090)),
                PortMatch::Range(Protocol::Sctp, range(1, 9)),
                PortMatch::Named(None, "http".into()),
            ]
        );
        assert_eq!((policy.ingress[1].action, &policy.ingress[1].ports), (RuleAction::Deny, &None));
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()];
        assert_eq!(
            policy.egress[0].peers.as_deref().unwrap(),
            [ClusterPeer::Nodes(Selector::everything()), ClusterPeer::Networks(networks)]
        );
        assert!(!policy.fail_closed.any());
    }

    #[test]
    fn directions_without_rules_are_left_alone() {
        let policy = policy("{tier: Admin, priority: 0, subject: {namespaces: {}}, ingress: []}");
        assert!(policy.ingress.is_empty() && policy.egress.is_empty());
        assert!(policy.subject.namespaces.is_everything() && policy.subject.pods.is_everything());
    }

    #[test]
    fn a_rule_that_is_not_understood_denies_its_direction_and_no_other() {
        for rule in [
            "{action: Accept, to: [{}]}",
            "{action: Accept, to: []}",
            "{action: Accept}",
            "{action: Allow, to: [{namespaces: {}}]}",
            "{to: [{namespaces: {}}]}",
            "{action: Accept, to: [{domainNames: [example.com]}]}",
            "{action: Accept, to: [{namespaces: {}, pods: {}}]}",
            "{action: Accept, to: [{networks: []}]}",
            "{action: Accept, to: [{networks: [x]}]}",
            "{action: Accept, to: [{namespaces: {matchLabel: {}}}]}",
            "{action: Accept, to: [{namespaces: {}}], log: true}",
            "{action: Accept, to: [{namespaces: {}}], protocols: []}",
            "{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {}}]}",
            "{action: Accept, to: [{namespaces: {}}], protocols: [{icmp: {}}]}",
            "{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 1}}}}]}",
            "{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {}}}}]}",
            "{action: Accept, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]}",
        ] {
            let (policy, problems) = closed(&format!(
                "{{tier: Admin, priority: 1, subject: {{namespaces: {{matchLabels: {{a: b}}}}}}, egress: [{rule}], \
                 ingress: [{{action: Accept, from: [{{namespaces: {{}}}}]}}]}}"
            ));
            assert_eq!(policy.egress, [ClusterRule::deny_everything()], "{rule}");
            assert_eq!(policy.ingress[0].action, RuleAction::Accept, "{rule}");
            assert_eq!(policy.fail_closed, FailClosed { ingress: false, egress: true }, "{rule}");
            assert!(!policy.subject.namespaces.is_everything());
            assert_eq!(problems.len(), 1, "{rule}: {problems:?}");
        }
    }

    #[test]
    fn nodes_and_networks_are_no_peers_of_ingress() {
        let (policy, _) = closed(
            "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{networks: [10.0.0.0/8]}]}]}",
        );
        assert_eq!(policy.ingress, [ClusterRule::deny_everything()]);
        assert!(policy.egress.is_empty());
    }

    #[test]
    fn what_cannot_be_placed_denies_both_directions_first_of_all() {
        for (spec, field) in [
            ("{tier: Network, priority: 1, subject: {namespaces: {matchLabels: {a: b}}}}", "spec.tier"),
            ("{tier: Baseline, priority: 1001, subject: {namespaces: {matchLabels: {a: b}}}}", "spec.priority"),
            ("{tier: Baseline, priority: 1, subject: {namespaces: {matchLabels: {a: b}}}, ingres: []}", "spec.ingres"),
        ] {
            let (policy, problems) = closed(spec);
            assert_eq!(policy.ingress, [ClusterRule::deny_everything()], "{spec}");
            assert_eq!(policy.egress, [ClusterRule::deny_everything()], "{spec}");
            assert!(!policy.subject.namespaces.is_everything());
            assert!(problems[0].starts_with(field), "{problems:?}");
        }
        let (policy, _) = closed("{tier: Network, priority: 1, subject: {namespaces: {}}}");
        assert_eq!(policy.tier, Tier::Admin);
    }

    #[test]
    fn a_subject_half_understood_is_as_wide_as_the_understood_half() {
        let (policy, _) = closed(
            "{tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {x: y}}}}",
        );
        assert!(!policy.subject.namespaces.is_everything() && policy.subject.pods.is_everything());
        assert_eq!(policy.fail_closed, FailClosed { ingress: true, egress: true });
        let (policy, _) = closed("{tier: Admin, priority: 1, subject: {}}");
        assert!(policy.subject.namespaces.is_everything() && policy.fail_closed.any());
    }
}
