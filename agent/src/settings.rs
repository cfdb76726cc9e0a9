//! The SNAT port ranges that tables need.

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
