//! The SNAT port ranges that tables need.

use sluice_ctrl::model::Cluster;
use sluice_engine::Shared;
use sluice_tables::Tables;

/// Ports an egress address gives away: all but the well-known ones (`docs/adr/0009`).
const EGRESS_PORTS: (u16, u16) = (1024, 65_535);

/// Makes the SNAT port ranges that these tables need; called before they are published.
pub fn ensure_spaces(shared: &Shared, tables: &Tables) {
    let node = &tables.node;
    for address in node.internal.iter().chain(&node.overlay).flatten() {
        shared.spaces.ensure(*address, tables.settings.snat_ports);
    }
    for address in &tables.egress.addresses {
        shared.spaces.ensure(*address, EGRESS_PORTS);
    }
}

/// Makes the ranges of every egress address there is: flows of an earlier process may bear one that this node is about to
/// carry again, but does not until the nodes have agreed on it.
pub fn ensure_egress(shared: &Shared, cluster: &Cluster) {
    for address in cluster.egress_gateways.values().flat_map(|gateway| &gateway.egress_ips) {
        shared.spaces.ensure((*address).into(), EGRESS_PORTS);
    }
}
