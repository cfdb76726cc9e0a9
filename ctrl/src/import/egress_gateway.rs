//! sluicegate.dev/v1alpha1 `EgressGateway`: strict, because a pod that escapes its gateway leaves with a wrong source.
//!
//! A gateway that is not understood keeps what it selects as far as that was understood (as wide as it may be where it
//! was not), and has neither node nor address: the selected traffic does not leave.

use ipnet::IpNet;

use super::{At, Problem, Report, envelope};
use crate::model::{EgressGateway, Selector};
use crate::source::Kind;

/// Imports a gateway; always gives one, closed where it was not understood.
pub(super) fn import(name: String, root: &At<'_>, report: &mut Report) -> EgressGateway {
    let spec = root.get("spec");
    let mut understood = report.strict(envelope(root, Kind::EgressGateway)).is_some();
    let known = ["podSelector", "namespaceSelector", "destinationCIDRs", "excludedCIDRs", "egressIPs", "gatewayNodes"];
    understood &= report.strict(spec.only(&known)).is_some();

    let mut selector = |key| {
        let selector = report.strict(spec.get(key).selector());
        understood &= selector.is_some();
        selector.flatten().unwrap_or_else(Selector::everything)
    };
    let (pods, namespaces) = (selector("podSelector"), selector("namespaceSelector"));
    let destinations = report.strict(networks(&spec.get("destinationCIDRs")));
    let excluded = report.strict(networks(&spec.get("excludedCIDRs")));
    let addresses = report.strict(addresses(&spec.get("egressIPs")));
    let nodes = report.strict(gateway_nodes(&spec.get("gatewayNodes")));
    understood &= destinations.is_some() && excluded.is_some() && addresses.is_some() && nodes.is_some();
    EgressGateway {
        name,
        pods,
        namespaces,
        destinations: destinations.flatten(),
        excluded: excluded.flatten().unwrap_or_default(),
        egress_ips: addresses.filter(|_| understood).unwrap_or_default(),
        gateway_nodes: nodes.filter(|_| understood).unwrap_or_else(Selector::nothing),
        fail_closed: !understood,
    }
}

/// None where the list is missing or empty.
fn networks(field: &At<'_>) -> Result<Option<Vec<IpNet>>, Problem> {
    let mut networks = Vec::new();
    for entry in field.list()? {
        networks.push(entry.network()?);
    }
    Ok((!networks.is_empty()).then_some(networks))
}

fn addresses(field: &At<'_>) -> Result<Vec<std::net::IpAddr>, Problem> {
    let mut addresses = Vec::new();
    for entry in field.list()? {
        let address = entry.address()?.ok_or_else(|| entry.problem("expected an IP address"))?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            return Err(entry.problem(format!("{address} cannot be the source of a packet")));
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(field.problem("must name at least one address"));
    }
    Ok(addresses)
}

fn gateway_nodes(field: &At<'_>) -> Result<Selector, Problem> {
    field.selector()?.ok_or_else(|| field.problem("must be given; {} selects every node"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};
    use crate::model::Family;

    const HEAD: &str = "apiVersion: sluicegate.dev/v1alpha1, kind: EgressGateway, metadata: {name: g}";

    #[test]
    fn a_gateway_is_read_whole() {
        let cluster = cluster(
            r#"
apiVersion: sluicegate.dev/v1alpha1
kind: EgressGateway
metadata: { name: partners }
spec:
  podSelector: { matchLabels: { app: billing } }
  namespaceSelector: { matchLabels: { team: finance } }
  destinationCIDRs: [198.51.100.0/24, "2001:db8:7::/48"]
  excludedCIDRs: [198.51.100.7/32]
  egressIPs: [192.0.2.50, "2001:db8::50", 192.0.2.51]
  gatewayNodes: { matchLabels: { egress: "true" } }
"#,
        );
        let gateway = &cluster.egress_gateways["partners"];
        assert_eq!(gateway.destinations.as_ref().map(Vec::len), Some(2));
        assert_eq!(gateway.excluded, vec!["198.51.100.7/32".parse::<IpNet>().unwrap()]);
        assert_eq!(gateway.addresses(Family::V4).count(), 2);
        assert_eq!(gateway.addresses(Family::V6).count(), 1);
        assert!(!gateway.fail_closed && !gateway.pods.is_everything() && !gateway.namespaces.is_everything());
    }

    #[test]
    fn selectors_and_destinations_left_out_mean_everything() {
        let cluster = cluster(&format!("{{{HEAD}, spec: {{egressIPs: [192.0.2.50], gatewayNodes: {{}}}}}}"));
        let gateway = &cluster.egress_gateways["g"];
        assert!(gateway.pods.is_everything() && gateway.namespaces.is_everything());
        assert_eq!(gateway.destinations, None);
    }

    #[test]
    fn a_gateway_that_is_not_understood_has_no_way_out() {
        for (wrong, field) in [
            ("egressIPs: [192.0.2.50], gatewayNodes: {}, bandwidth: 1", "spec.bandwidth"),
            ("egressIPs: [192.0.2.500], gatewayNodes: {}", "spec.egressIPs[0]"),
            ("egressIPs: [], gatewayNodes: {}", "spec.egressIPs"),
            ("egressIPs: [0.0.0.0], gatewayNodes: {}", "spec.egressIPs[0]"),
            ("egressIPs: [192.0.2.50]", "spec.gatewayNodes"),
            ("egressIPs: [192.0.2.50], gatewayNodes: {}, destinationCIDRs: [x]", "spec.destinationCIDRs[0]"),
            ("egressIPs: [192.0.2.50], gatewayNodes: {}, namespaceSelector: {team: a}", "spec.namespaceSelector.team"),
        ] {
            let (cluster, problems) =
                cluster_and_problems(&format!("{{{HEAD}, spec: {{podSelector: {{matchLabels: {{a: b}}}}, {wrong}}}}}"));
            let gateway = &cluster.egress_gateways["g"];
            assert!(gateway.fail_closed && gateway.egress_ips.is_empty(), "{wrong}");
            assert_eq!(gateway.gateway_nodes, Selector::nothing(), "{wrong}");
            assert!(!gateway.pods.is_everything(), "what was understood still selects");
            assert!(problems.len() == 1 && problems[0].starts_with(&format!("{field}: ")), "{problems:?}");
        }
    }
}
