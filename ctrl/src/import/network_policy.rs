//! networking.k8s.io/v1 `NetworkPolicy`: strict, because what is left out of a policy is open.
//!
//! A field, peer, port or selector that is not understood closes the direction it stands in; one outside the rules
//! closes all directions the policy speaks of, and both where the policy does not say which.

use serde_json::Value;

use super::value::is_port_name;
use super::{At, Problem, Report, audit, envelope};
use crate::model::{
    FailClosed, Family, IpBlock, NamespaceScope, NamespacedName, NetworkPolicy, Peer, PolicyRule, PortMatch, PortRange,
    Selector,
};
use crate::source::Kind;

/// Imports a policy; always gives one, closed where it was not understood.
pub(super) fn import(name: NamespacedName, root: &At<'_>, report: &mut Report) -> NetworkPolicy {
    let spec = root.get("spec");
    let mut understood = report.strict(envelope(root, Kind::NetworkPolicy)).is_some();
    understood &= report.strict(spec.only(&["podSelector", "policyTypes", "ingress", "egress"])).is_some();

    // A selector that is not understood may mean any pod of the namespace.
    let selector = report.strict(spec.get("podSelector").selector());
    understood &= selector.is_some();
    let pods = selector.flatten().unwrap_or_else(Selector::everything);

    let types = report.strict(policy_types(&spec));
    understood &= types.is_some();
    let explicit = types.as_ref().is_some_and(|t| t.explicit);
    let types = types.unwrap_or(Types { ingress: true, egress: true, explicit: false });
    let both = !understood && !explicit;
    let mut fail_closed = FailClosed::default();
    let mut direction = |declared: bool, key, peers, closed: &mut bool| {
        let rules = rules(&spec.get(key), peers);
        if !(declared || both) {
            // Rules of a direction the policy does not speak of do nothing; a mistake in them is still worth a word.
            report.field(rules);
            return None;
        }
        let rules = report.strict(rules);
        *closed = !understood || rules.is_none();
        Some(rules.filter(|_| understood).unwrap_or_default())
    };
    let ingress = direction(types.ingress, "ingress", "from", &mut fail_closed.ingress);
    let egress = direction(types.egress, "egress", "to", &mut fail_closed.egress);
    NetworkPolicy { name, pods, ingress, egress, fail_closed, audit: audit(root, report) }
}

struct Types {
    ingress: bool,
    egress: bool,
    explicit: bool,
}

/// Missing or empty `policyTypes` means Ingress, and Egress where there are egress rules.
fn policy_types(spec: &At<'_>) -> Result<Types, Problem> {
    let field = spec.get("policyTypes");
    let list = field.list()?;
    if list.is_empty() {
        let egress = spec.get("egress");
        let egress = !egress.is_absent() && egress.value().as_array().is_none_or(|rules| !rules.is_empty());
        return Ok(Types { ingress: true, egress, explicit: false });
    }
    let mut types = Types { ingress: false, egress: false, explicit: true };
    for entry in list {
        match entry.required_text()? {
            "Ingress" => types.ingress = true,
            "Egress" => types.egress = true,
            other => return Err(entry.problem(format!("expected Ingress or Egress, found {other:?}"))),
        }
    }
    Ok(types)
}

fn rules(field: &At<'_>, peers_key: &str) -> Result<Vec<PolicyRule>, Problem> {
    let mut rules = Vec::new();
    for entry in field.list()? {
        entry.only(&[peers_key, "ports"])?;
        let mut peers = Vec::new();
        for peer_field in entry.get(peers_key).list()? {
            peers.push(peer(&peer_field)?);
        }
        let mut ports = Vec::new();
        for port_field in entry.get("ports").list()? {
            ports.push(port(&port_field)?);
        }
        // An empty list is the same as none: every peer, every port.
        rules.push(PolicyRule {
            peers: (!peers.is_empty()).then_some(peers),
            ports: (!ports.is_empty()).then_some(ports),
        });
    }
    Ok(rules)
}

fn peer(field: &At<'_>) -> Result<Peer, Problem> {
    field.only(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let pods = field.get("podSelector").selector()?;
    let namespaces = field.get("namespaceSelector").selector()?;
    let block = field.get("ipBlock");
    if !block.is_absent() {
        if pods.is_some() || namespaces.is_some() {
            return Err(block.problem("stands alone: no selector beside it"));
        }
        return ip_block(&block).map(Peer::Block);
    }
    if pods.is_none() && namespaces.is_none() {
        return Err(field.problem("must name podSelector, namespaceSelector or ipBlock"));
    }
    Ok(Peer::Pods {
        namespaces: namespaces.map_or(NamespaceScope::Own, NamespaceScope::Selected),
        pods: pods.unwrap_or_else(Selector::everything),
    })
}

fn ip_block(field: &At<'_>) -> Result<IpBlock, Problem> {
    field.only(&["cidr", "except"])?;
    let cidr = field.get("cidr").network()?;
    let mut except = Vec::new();
    for entry in field.get("except").list()? {
        let hole = entry.network()?;
        let inside = Family::of_net(&hole) == Family::of_net(&cidr) && cidr.contains(&hole) && hole != cidr;
        if !inside {
            return Err(entry.problem(format!("{hole} is not a part of {cidr}")));
        }
        except.push(hole);
    }
    Ok(IpBlock { cidr, except })
}

fn port(field: &At<'_>) -> Result<PortMatch, Problem> {
    field.only(&["protocol", "port", "endPort"])?;
    let protocol = field.get("protocol").protocol()?;
    let (port, end) = (field.get("port"), field.get("endPort"));
    if let Value::String(name) = port.value() {
        if !end.is_absent() {
            return Err(end.problem("needs a numeric port"));
        }
        if !is_port_name(name) {
            return Err(port.problem(format!("expected a number or a port name, found {name:?}")));
        }
        return Ok(PortMatch::Named(Some(protocol), name.clone()));
    }
    match (port.port()?, end.port()?) {
        (None, None) => Ok(PortMatch::Protocol(protocol)),
        (None, Some(_)) => Err(end.problem("needs a port")),
        (Some(first), last) => PortRange::new(first, last.unwrap_or(first))
            .map(|range| PortMatch::Range(protocol, range))
            .ok_or_else(|| end.problem(format!("must not be below port {first}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};
    use crate::model::{Labels, Protocol};

    const HEAD: &str = "apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: x}";

    fn policy(spec: &str) -> NetworkPolicy {
        let cluster = cluster(&format!("{{{HEAD}, spec: {spec}}}"));
        (*cluster.network_policies[&NamespacedName::new("x", "p")]).clone()
    }

    fn closed(spec: &str) -> (NetworkPolicy, Vec<String>) {
        let (cluster, problems) = cluster_and_problems(&format!("{{{HEAD}, spec: {spec}}}"));
        ((*cluster.network_policies[&NamespacedName::new("x", "p")]).clone(), problems)
    }

    fn any() -> PolicyRule {
        PolicyRule { peers: None, ports: None }
    }

    #[test]
    fn a_policy_may_ask_to_be_audited_and_a_word_we_do_not_know_leaves_it_enforced() {
        let read = |value: &str| {
            let head =
                HEAD.replace("name: p", &format!("name: p, annotations: {{sluicegate.dev/enforcement: {value}}}"));
            let (cluster, problems) = cluster_and_problems(&format!("{{{head}, spec: {{podSelector: {{}}}}}}"));
            (cluster.network_policies[&NamespacedName::new("x", "p")].audit, problems.len())
        };
        assert_eq!(read("audit"), (true, 0));
        assert_eq!(read("enforce"), (false, 0));
        assert_eq!(read("Audit"), (false, 1));
        assert!(!policy("{podSelector: {}}").audit);
    }

    #[test]
    fn types_default_to_ingress_and_to_egress_where_it_has_rules() {
        let shape = |spec: &str| {
            let policy = policy(spec);
            (policy.ingress.map(|r| r.len()), policy.egress.map(|r| r.len()))
        };
        assert_eq!(shape("{podSelector: {}}"), (Some(0), None));
        assert_eq!(shape("{podSelector: {}, ingress: [], egress: []}"), (Some(0), None));
        assert_eq!(shape("{podSelector: {}, ingress: null, policyTypes: []}"), (Some(0), None));
        assert_eq!(shape("{podSelector: {}, egress: [{}]}"), (Some(0), Some(1)));
        assert_eq!(shape("{podSelector: {}, policyTypes: [Egress]}"), (None, Some(0)));
        assert_eq!(shape("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}"), (None, Some(0)));
        assert_eq!(shape("{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}]}"), (Some(1), Some(0)));
    }

    #[test]
    fn empty_and_missing_peers_and_ports_match_everything() {
        for rule in ["{}", "{from: [], ports: []}", "{from: null, ports: null}"] {
            assert_eq!(policy(&format!("{{ingress: [{rule}]}}")).ingress, Some(vec![any()]), "{rule}");
        }
        assert!(policy("{}").pods.is_everything());
        assert!(policy("{podSelector: null}").pods.is_everything());
    }

    #[test]
    fn a_bare_pod_selector_means_the_policys_own_namespace() {
        let rules = policy(
            "{ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}, {namespaceSelector: {}}, \
             {namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {}}]}]}",
        );
        let peers = rules.ingress.unwrap().remove(0).peers.unwrap();
        let labels = Labels::from([("pod".to_owned(), "b".to_owned())]);
        assert_eq!(peers[0], Peer::Pods { namespaces: NamespaceScope::Own, pods: Selector::labels(&labels) });
        assert_eq!(
            peers[1],
            Peer::Pods { namespaces: NamespaceScope::Selected(Selector::everything()), pods: Selector::everything() }
        );
        assert!(matches!(&peers[2], Peer::Pods { namespaces: NamespaceScope::Selected(s), .. } if !s.is_everything()));
    }

    #[test]
    fn ports_are_numbers_ranges_names_or_whole_protocols() {
        let rules = policy(
            "{ingress: [{ports: [{port: 80}, {protocol: UDP, port: 53}, {port: 8000, endPort: 8010, protocol: SCTP}, {port: http}, {protocol: TCP}]}]}",
        );
        let range = |a, b| PortRange::new(a, b).unwrap();
        assert_eq!(
            rules.ingress.unwrap()[0].ports.as_deref().unwrap(),
            [
                PortMatch::Range(Protocol::Tcp, range(80, 80)),
                PortMatch::Range(Protocol::Udp, range(53, 53)),
                PortMatch::Range(Protocol::Sctp, range(8000, 8010)),
                PortMatch::Named(Some(Protocol::Tcp), "http".into()),
                PortMatch::Protocol(Protocol::Tcp),
            ]
        );
    }

    #[test]
    fn blocks_have_holes_and_lose_their_host_bits() {
        let rules = policy(
            "{egress: [{to: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.9.0.1/16]}}, {ipBlock: {cidr: '::/0', except: [fd00::/8]}}]}]}",
        );
        let peers = rules.egress.unwrap().remove(0).peers.unwrap();
        let block = |cidr: &str, hole: &str| {
            Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except: vec![hole.parse().unwrap()] })
        };
        assert_eq!(peers, [block("10.0.0.0/8", "10.9.0.0/16"), block("::/0", "fd00::/8")]);
    }

    #[test]
    fn a_rule_that_is_not_understood_closes_its_direction_and_no_other() {
        for rule in [
            "{from: [{podSelecto: {}}]}",
            "{from: [{}]}",
            "{from: [{serviceAccounts: {}}]}",
            "{from: [{ipBlock: {cidr: nonsense}}]}",
            "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}",
            "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}",
            "{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}",
            "{from: everything}",
            "{to: []}",
            "{ports: [{port: 0}]}",
            "{ports: [{port: '80'}]}",
            "{ports: [{port: 90, endPort: 80}]}",
            "{ports: [{endPort: 80}]}",
            "{ports: [{port: http, endPort: 80}]}",
            "{ports: [{protocol: ICMP}]}",
            "{ports: [{protocol: TCP, icmpType: 8}]}",
            "7",
        ] {
            let spec = format!(
                "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Ingress, Egress], ingress: [{{}}, {rule}], egress: [{{}}]}}"
            );
            let (policy, problems) = closed(&spec);
            assert_eq!(policy.ingress, Some(vec![]), "{rule}");
            assert_eq!(policy.egress, Some(vec![any()]), "{rule}");
            assert_eq!(policy.fail_closed, FailClosed { ingress: true, egress: false }, "{rule}");
            assert!(!policy.pods.is_everything());
            assert_eq!(problems.len(), 1, "{rule}: {problems:?}");
            assert!(problems[0].ends_with("(denies what it selects)"), "{problems:?}");
        }
    }

    #[test]
    fn an_unknown_field_beside_the_rules_closes_what_the_policy_speaks_of() {
        let (policy, problems) = closed("{podSelector: {}, policyTypes: [Ingress], ingress: [{}], tier: 1}");
        assert_eq!((policy.ingress, policy.egress), (Some(vec![]), None));
        assert_eq!(problems, ["spec.tier: unknown field (denies what it selects)"]);
        // Without policyTypes the unknown field may be a mistyped direction.
        let (policy, problems) = closed("{podSelector: {}, ingress: [{}], egres: [{}]}");
        assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
        assert_eq!(problems, ["spec.egres: unknown field, did you mean egress? (denies what it selects)"]);
    }

    #[test]
    fn a_selector_that_is_not_understood_closes_the_whole_namespace() {
        let (policy, _) = closed("{podSelector: {matchFields: {}}, ingress: [{}]}");
        assert!(policy.pods.is_everything());
        assert_eq!(policy.ingress, Some(vec![]));
        assert!(policy.fail_closed.any());
    }

    #[test]
    fn unknown_types_and_versions_close_both_directions() {
        let (policy, _) = closed("{podSelector: {}, policyTypes: [Ingress, Forward], ingress: [{}]}");
        assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
        let (cluster, problems) = cluster_and_problems(
            "{apiVersion: networking.k8s.io/v2, kind: NetworkPolicy, metadata: {name: p}, spec: {ingress: [{}], policyTypes: [Ingress, Egress]}}",
        );
        let policy = &cluster.network_policies[&NamespacedName::new("default", "p")];
        assert_eq!((&policy.ingress, &policy.egress), (&Some(vec![]), &Some(vec![])));
        assert_eq!(problems, ["apiVersion: only version v1 is understood (denies what it selects)"]);
    }

    #[test]
    fn a_mistake_in_rules_that_do_nothing_is_reported_and_closes_nothing() {
        let (policy, problems) =
            closed("{podSelector: {}, policyTypes: [Ingress], ingress: [{}], egress: [{too: []}]}");
        assert_eq!((policy.ingress, policy.egress), (Some(vec![any()]), None));
        assert_eq!(policy.fail_closed, FailClosed::default());
        assert_eq!(problems.len(), 1);
        assert!(problems[0].ends_with("(field ignored)"), "{problems:?}");
    }
}
