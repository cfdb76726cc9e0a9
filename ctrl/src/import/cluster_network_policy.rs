//! policy.networking.k8s.io/v1alpha2 `ClusterNetworkPolicy`: strict, because what is left out of a policy is open.
//!
//! A rule whose peers or other fields are not understood fails closed as the API asks: an Accept matches nothing, a Deny
//! or Pass denies everything. A rule whose action is not understood, or rules that are no list, turn their direction into
//! one that denies everything for the policy's subject; a mistake outside the rules does so to both directions, and a
//! tier that is not understood counts as Admin, so that nothing else can open what this closes.

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
        let field = spec.get(key);
        let rules = rules(&field, peers, egress, report);
        *closed = !understood || rules.as_ref().is_none_or(|(_, whole)| !whole);
        rules.map(|(rules, _)| rules).filter(|_| understood).unwrap_or_else(|| vec![ClusterRule::deny_everything()])
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

/// Most rules of a direction, and peers, protocols, networks and domain names of a rule (the API's limits).
const MOST: usize = 25;

fn at_most(field: &At<'_>, got: usize) -> Result<(), Problem> {
    if got <= MOST { Ok(()) } else { Err(field.problem(format!("{got} entries, the limit is {MOST}"))) }
}

/// The rules of a direction and whether all of them were understood; none where they cannot be told apart or ordered.
fn rules(field: &At<'_>, peers_key: &str, egress: bool, report: &mut Report) -> Option<(Vec<ClusterRule>, bool)> {
    let entries = report.strict(field.list())?;
    report.strict(at_most(field, entries.len()))?;
    let (mut rules, mut whole) = (Vec::new(), true);
    for entry in &entries {
        let action = report.strict(action(entry))?;
        let name = entry.get("name").text().ok().flatten().filter(|n| !n.is_empty()).map(str::to_owned);
        match report.strict(rule(entry, peers_key, egress, action)) {
            Some((peers, ports)) => rules.push(ClusterRule { name, action, peers: Some(peers), ports }),
            None => {
                whole = false;
                rules.push(ClusterRule::closed(name, action));
            }
        }
    }
    Some((rules, whole))
}

fn action(entry: &At<'_>) -> Result<RuleAction, Problem> {
    let field = entry.get("action");
    match field.required_text()? {
        "Accept" => Ok(RuleAction::Accept),
        "Deny" => Ok(RuleAction::Deny),
        "Pass" => Ok(RuleAction::Pass),
        other => Err(field.problem(format!("expected Accept, Deny or Pass, found {other:?}"))),
    }
}

type Matches = (Vec<ClusterPeer>, Option<Vec<PortMatch>>);

fn rule(entry: &At<'_>, peers_key: &str, egress: bool, action: RuleAction) -> Result<Matches, Problem> {
    entry.only(&["name", "action", peers_key, "protocols"])?;
    entry.get("name").text()?;
    let peers_field = entry.get(peers_key);
    let list = peers_field.list()?;
    at_most(&peers_field, list.len())?;
    let mut peers = Vec::new();
    for peer_field in &list {
        let peer = peer(peer_field, egress)?;
        if matches!(peer, ClusterPeer::Domains(_)) && action != RuleAction::Accept {
            return Err(peer_field.get("domainNames").problem("is for Accept rules only"));
        }
        peers.push(peer);
    }
    if peers.is_empty() {
        return Err(peers_field.problem("must name at least one peer"));
    }
    let ports = ports(&entry.get("protocols"))?;
    let by_name = ports.iter().flatten().any(|p| matches!(p, PortMatch::Named(..)));
    if by_name && peers.iter().any(|p| !matches!(p, ClusterPeer::Pods { .. })) {
        return Err(entry.get("protocols").problem("nodes, networks and domain names have no named ports"));
    }
    Ok((peers, ports))
}

fn peer(field: &At<'_>, egress: bool) -> Result<ClusterPeer, Problem> {
    let known: &[&str] =
        if egress { &["namespaces", "pods", "nodes", "networks", "domainNames"] } else { &["namespaces", "pods"] };
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
        "networks" => ClusterPeer::Networks(several(&field.get("networks"), |network| network.network())?),
        _ => ClusterPeer::Domains(several(&field.get("domainNames"), domain_name)?),
    })
}

/// A list with one entry at least and [`MOST`] at most.
fn several<T>(field: &At<'_>, read: impl for<'a> Fn(&At<'a>) -> Result<T, Problem>) -> Result<Vec<T>, Problem> {
    let list = field.list()?;
    at_most(field, list.len())?;
    if list.is_empty() {
        return Err(field.problem("must name at least one"));
    }
    list.iter().map(read).collect()
}

/// A domain name by the API's rule, lower case and without a dot at its end.
fn domain_name(field: &At<'_>) -> Result<String, Problem> {
    let text = field.required_text()?;
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let rest = name.strip_prefix("*.").unwrap_or(&name);
    let label = |label: &str| {
        label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    let is_name = rest.contains('.') && rest.split('.').all(label) && sluice_tables::domains::to_wire(rest).is_some();
    if is_name {
        Ok(name)
    } else {
        Err(field.problem(format!("expected a domain name such as *.example.org, found {text:?}")))
    }
}

/// None where the field is missing: every protocol. A list that is there names at least one.
fn ports(field: &At<'_>) -> Result<Option<Vec<PortMatch>>, Problem> {
    let Some(entries) = field.items()? else { return Ok(None) };
    at_most(field, entries.len())?;
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

    const NOT_UNDERSTOOD: [&str; 20] = [
        "to: [{}]",
        "to: []",
        "to: [{shinyNewPeer: {}}]",
        "to: [{namespaces: {}}, {shinyNewPeer: {}}]",
        "to: [{domainNames: []}]",
        "to: [{domainNames: [example]}]",
        "to: [{domainNames: ['www.*.org']}]",
        "to: [{domainNames: ['*example.org']}]",
        "to: [{namespaces: {}, pods: {}}]",
        "to: [{networks: []}]",
        "to: [{networks: [x]}]",
        "to: [{namespaces: {matchLabel: {}}}]",
        "to: [{namespaces: {}}], log: true",
        "to: [{namespaces: {}}], protocols: []",
        "to: [{namespaces: {}}], protocols: [{tcp: {}}]",
        "to: [{namespaces: {}}], protocols: [{icmp: {}}]",
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 9, end: 1}}}}]",
        "to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1, range: {}}}}]",
        "to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: http}]",
        "to: [{domainNames: [example.org]}], protocols: [{destinationNamedPort: http}]",
    ];

    fn with_egress(rules: &str) -> (ClusterNetworkPolicy, Vec<String>) {
        closed(&format!(
            "{{tier: Admin, priority: 1, subject: {{namespaces: {{matchLabels: {{a: b}}}}}}, egress: [{rules}], \
             ingress: [{{action: Accept, from: [{{namespaces: {{}}}}]}}]}}"
        ))
    }

    #[test]
    fn a_rule_that_is_not_understood_accepts_nothing_or_denies_everything() {
        for rule in NOT_UNDERSTOOD {
            for (action, expected) in [
                (
                    "Accept",
                    ClusterRule {
                        action: RuleAction::Accept,
                        peers: Some(vec![]),
                        name: Some("x".into()),
                        ports: None,
                    },
                ),
                ("Deny", ClusterRule { action: RuleAction::Deny, peers: None, name: Some("x".into()), ports: None }),
                ("Pass", ClusterRule { action: RuleAction::Deny, peers: None, name: Some("x".into()), ports: None }),
            ] {
                let other = "{action: Accept, to: [{nodes: {}}]}";
                let (policy, problems) = with_egress(&format!("{{name: x, action: {action}, {rule}}}, {other}"));
                assert_eq!(policy.egress[0], expected, "{action}: {rule}");
                assert_eq!(policy.egress[1].peers, Some(vec![ClusterPeer::Nodes(Selector::everything())]), "{rule}");
                assert_eq!(policy.ingress[0].action, RuleAction::Accept, "{rule}");
                assert_eq!(policy.fail_closed, FailClosed { ingress: false, egress: true }, "{rule}");
                assert!(!policy.subject.namespaces.is_everything());
                assert_eq!(problems.len(), 1, "{rule}: {problems:?}");
            }
        }
    }

    #[test]
    fn rules_that_cannot_be_ordered_deny_their_direction_and_no_other() {
        let many = vec!["{action: Accept, to: [{namespaces: {}}]}"; 26].join(", ");
        for rules in ["{action: Allow, to: [{namespaces: {}}]}", "{to: [{namespaces: {}}]}", "7", &many] {
            let (policy, problems) = with_egress(rules);
            assert_eq!(policy.egress, [ClusterRule::deny_everything()], "{rules}");
            assert_eq!(policy.ingress[0].action, RuleAction::Accept);
            assert_eq!(policy.fail_closed, FailClosed { ingress: false, egress: true });
            assert_eq!(problems.len(), 1, "{problems:?}");
        }
    }

    #[test]
    fn domain_names_are_for_egress_accept_rules_and_lose_case_and_last_dot() {
        let (policy, problems) =
            with_egress("{action: Accept, to: [{domainNames: ['*.Example.ORG.', kubernetes.io]}]}");
        let names = vec!["*.example.org".to_owned(), "kubernetes.io".to_owned()];
        assert_eq!((policy.egress[0].peers.clone(), problems.len()), (Some(vec![ClusterPeer::Domains(names)]), 0));
        let (policy, problems) = with_egress("{action: Deny, to: [{domainNames: [example.org]}]}");
        assert_eq!((policy.egress[0].action, &policy.egress[0].peers), (RuleAction::Deny, &None));
        assert!(problems[0].contains("Accept rules only"), "{problems:?}");
        let (policy, _) = closed(
            "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{domainNames: [a.b]}]}]}",
        );
        assert_eq!(policy.ingress[0].peers, Some(vec![]));
    }

    #[test]
    fn nodes_and_networks_are_no_peers_of_ingress() {
        let (policy, _) = closed(
            "{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{networks: [10.0.0.0/8]}]}]}",
        );
        assert_eq!(policy.ingress, [ClusterRule::closed(None, RuleAction::Accept)]);
        assert!(policy.egress.is_empty() && policy.fail_closed.ingress);
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
