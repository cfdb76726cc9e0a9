//! Tables as text: one line per fact, sorted, so that two generations with equal content print the same bytes.
//!
//! Owner: the control thread, on request. Invariant: the generation number is not part of it, being a count of
//! publications and no content. Maglev tables appear as size and digest, everything else in full.

use crate::address::Address;
use crate::hops::HopKind;
use crate::policy::{Decision, PolicySet, PortIntervals, RuleId};
use crate::services::{BackendSet, Frontend};
use crate::stable_hash::stable_hash;
use crate::{Prefix, Tables};
use std::fmt::{Display, Write};

impl Tables {
    /// All content as text, byte-identical for equal content.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_dump(&mut out);
        out
    }

    fn write_dump(&self, out: &mut String) -> std::fmt::Result {
        self.dump_settings(out)?;
        self.dump_node(out)?;
        self.dump_pods(out)?;
        self.dump_routes(out)?;
        self.dump_services(out)?;
        self.dump_direct(out)?;
        self.dump_policy(out)?;
        self.dump_egress(out)
    }

    fn dump_settings(&self, out: &mut String) -> std::fmt::Result {
        let s = &self.settings;
        writeln!(out, "[settings]")?;
        writeln!(out, "vxlan vni={} port={}", s.vni, s.vxlan_port)?;
        writeln!(out, "policy reject={}", s.reject)?;
        let exclude = prefixes(&s.masquerade_exclude.entries());
        writeln!(out, "masquerade={} ports={}-{} exclude={exclude}", s.masquerade, s.snat_ports.0, s.snat_ports.1)?;
        writeln!(out, "snat_blocks_per_source={}", s.snat_blocks_per_source)?;
        writeln!(out, "node_ports={}-{}", s.node_ports.0, s.node_ports.1)?;
        let t = &s.timeouts;
        writeln!(
            out,
            "timeouts tcp={}/{}/{} udp={}/{} icmp={} sctp={} other={}",
            t.tcp_handshake, t.tcp_established, t.tcp_closing, t.udp, t.udp_stream, t.icmp, t.sctp_established, t.other
        )
    }

    fn dump_node(&self, out: &mut String) -> std::fmt::Result {
        let n = &self.node;
        writeln!(out, "[node] {}", n.name)?;
        writeln!(out, "internal={} overlay={}", list(n.internal.iter().flatten()), list(n.overlay.iter().flatten()))?;
        writeln!(out, "node_port_addresses={}", list(&n.node_port_addresses))?;
        writeln!(out, "uplink port={} mac={} mtu={}", n.uplink, mac(&n.uplink_mac), n.uplink_mtu)?;
        writeln!(out, "host port={} mac={} pod_mtu={}", n.host, mac(&n.host_mac), n.pod_mtu)?;
        writeln!(out, "[hops]")?;
        for (id, hop) in self.hops.iter().enumerate() {
            let bytes = hex(&hop.header[..usize::from(hop.header_len).min(hop.header.len())]);
            let kind = match hop.kind {
                HopKind::Pod => "pod",
                HopKind::Host => "host",
                HopKind::Tunnel if hop.gateway => "gateway",
                HopKind::Tunnel => "tunnel",
                HopKind::Uplink => "uplink",
                HopKind::Unresolved => "unresolved",
            };
            writeln!(out, "{id} {kind} port={} mtu={} version={:08x} header={bytes}", hop.port, hop.mtu, hop.version)?;
        }
        Ok(())
    }

    fn dump_direct(&self, out: &mut String) -> std::fmt::Result {
        for key in self.direct.frontends() {
            writeln!(out, "direct {} {}/{}", key.address, key.protocol, key.port)?;
        }
        for (tag, plain, hop) in self.direct.ways() {
            writeln!(out, "direct tag={} hop={} for={}", mac(&tag.mac()), hop.0, plain.0)?;
        }
        Ok(())
    }

    fn dump_pods(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "[pods]")?;
        for pod in self.pods.iter() {
            let version = self.pods.versions().get(usize::from(pod.port)).copied().unwrap_or(0);
            let set = |s: Option<crate::PolicySetId>| s.map_or("-".to_owned(), |s| s.0.to_string());
            writeln!(
                out,
                "{} port={} worker={} mac={} addresses={} extra={} ingress={} egress={} hop={} version={version:08x}",
                pod.name,
                pod.port,
                pod.worker,
                mac(&pod.mac),
                list(&pod.addresses),
                list(&pod.extra_sources),
                set(pod.ingress),
                set(pod.egress),
                pod.hop.0
            )?;
        }
        Ok(())
    }

    fn dump_routes(&self, out: &mut String) -> std::fmt::Result {
        let r = &self.routes;
        writeln!(out, "[routes]")?;
        for (prefix, route) in r.cluster.entries() {
            writeln!(out, "{prefix} {route:?}")?;
        }
        writeln!(out, "on_link={}", prefixes(&r.on_link.entries()))?;
        for (address, hop) in sorted(&r.neighbours) {
            writeln!(out, "neighbour {address} hop={}", hop.0)?;
        }
        writeln!(out, "gateways={:?}", r.gateways.map(|g| g.map(|h| h.0)))?;
        for (address, peer) in sorted(&r.peers) {
            let sources = list(&peer.sources);
            writeln!(
                out,
                "peer {address} {} hop={} gateway={} sources={sources}",
                peer.name, peer.hop.0, peer.gateway
            )?;
        }
        Ok(())
    }

    fn dump_services(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "[services]")?;
        let mut frontends: Vec<_> = self.services.shards.iter().flat_map(|s| s.frontends.iter()).collect();
        frontends.sort_unstable_by_key(|(key, _)| **key);
        for (key, frontend) in frontends {
            write!(out, "{} {} ", protocol(key.protocol), socket(key.address, key.port))?;
            frontend.write(out)?;
        }
        let mut addresses: Vec<_> = self.services.shards.iter().flat_map(|s| s.addresses.iter()).collect();
        addresses.sort_unstable_by_key(|(address, _)| **address);
        for (address, kind) in addresses {
            writeln!(out, "address {address} {kind:?}")?;
        }
        for (slot, version) in self.services.versions.iter().enumerate().filter(|(_, v)| **v != 0) {
            writeln!(out, "slot {slot} version={version:08x}")?;
        }
        Ok(())
    }

    fn dump_policy(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "[identities]")?;
        for (address, id) in sorted(&*self.identities.exact) {
            writeln!(out, "{address} {}", id.0)?;
        }
        for (prefix, id) in self.identities.prefixes.entries() {
            writeln!(out, "{prefix} {}", id.0)?;
        }
        writeln!(out, "[policy]")?;
        for (id, set) in self.policy.sets.iter().enumerate() {
            self.dump_set(&format!("set {id}"), set, out)?;
        }
        Ok(())
    }

    fn dump_set(&self, name: &str, set: &PolicySet, out: &mut String) -> std::fmt::Result {
        for (at, members) in set.broad.iter().enumerate() {
            let mut members: Vec<u32> = members.iter().map(|id| id.0).collect();
            members.sort_unstable();
            writeln!(out, "{name} broad {at} {}", list(&members))?;
        }
        writeln!(out, "{name} breadth {}", list(&set.by_breadth))?;
        for (identity, map) in sorted(&set.by_identity) {
            writeln!(out, "{name} identity={} map={map}", identity.0)?;
        }
        for (id, map) in set.maps.iter().enumerate() {
            for (protocol, intervals) in [("tcp", &map.tcp), ("udp", &map.udp), ("sctp", &map.sctp)] {
                writeln!(out, "{name} map {id} {protocol} {}", self.intervals(intervals))?;
            }
            writeln!(out, "{name} map {id} other {}", self.decision(&map.other))?;
        }
        for (at, rule) in set.domains.iter().enumerate() {
            let names: Vec<_> = rule.names.iter().map(|id| self.policy.domains.text(*id).unwrap_or("?")).collect();
            writeln!(out, "{name} domains {at} {}", names.join(","))?;
            self.dump_set(&format!("{name} domains {at}"), &rule.set, out)?;
        }
        Ok(())
    }

    fn intervals(&self, intervals: &PortIntervals) -> String {
        let each: Vec<_> = intervals.iter().map(|(from, d)| format!("{from}:{}", self.decision(d))).collect();
        each.join(" ")
    }

    fn decision(&self, decision: &Decision) -> String {
        if decision.rule == RuleId::OTHER {
            return "other".to_owned();
        }
        let verdict = match (decision.allow, decision.audit) {
            (true, true) => "audit",
            (true, false) => "allow",
            (false, _) => "deny",
        };
        match self.policy.name(decision.rule) {
            Some(name) if decision.rule != RuleId::NONE => format!("{verdict}({name})"),
            _ => verdict.to_owned(),
        }
    }

    fn dump_egress(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "[egress]")?;
        writeln!(out, "addresses={}", list(&self.egress.addresses))?;
        let mut announced: Vec<_> = self.egress.announced.iter().collect();
        announced.sort_unstable();
        writeln!(out, "announced={}", list(announced))?;
        for (pod, rules) in sorted(&self.egress.rules) {
            for rule in rules {
                let to = match &rule.destinations {
                    None => "outside".to_owned(),
                    Some(map) => {
                        let each =
                            map.entries().into_iter().map(|(p, yes)| format!("{}{p}", if *yes { "" } else { "!" }));
                        each.collect::<Vec<_>>().join(",")
                    }
                };
                let not = prefixes(&rule.excluded.entries());
                writeln!(out, "{pod} {} to={to} not={not} path={:?} as={}", rule.name, rule.path, rule.address)?;
            }
        }
        Ok(())
    }
}

impl Frontend {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        write!(out, "{} {:?} slot={}", self.name, self.kind, self.slot)?;
        write!(out, " internal={} external={}", backends(&self.internal), backends(&self.external))?;
        let mut alive: Vec<_> = self.alive.iter().copied().collect();
        alive.sort_unstable();
        write!(out, " alive={}", list(alive.into_iter().map(|(a, p)| socket(a, p))))?;
        let flags = [
            (self.internal_local_empty, "internal_local_empty"),
            (self.external_local_empty, "external_local_empty"),
            (self.external_local, "external_local"),
        ];
        for (_, name) in flags.iter().filter(|(set, _)| *set) {
            write!(out, " {name}")?;
        }
        if let Some(affinity) = self.affinity {
            write!(out, " affinity={}s", affinity.seconds)?;
        }
        if self.direct {
            write!(out, " direct")?;
        }
        if let Some(ranges) = &self.source_ranges {
            write!(out, " from={}", prefixes(&ranges.entries()))?;
        }
        writeln!(out)
    }
}

fn backends(set: &BackendSet) -> String {
    let each =
        list(set.backends.iter().map(|b| format!("{}{}", socket(b.address, b.port), if b.local { "*" } else { "" })));
    format!("{each}/{}:{:08x}", set.maglev.len(), stable_hash(&set.maglev) as u32)
}

fn prefixes<V>(entries: &[(Prefix, V)]) -> String {
    list(entries.iter().map(|(p, _)| p))
}

fn socket(address: Address, port: u16) -> String {
    std::net::SocketAddr::new(address.into(), port).to_string()
}

fn protocol(number: u8) -> String {
    match number {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

fn list<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let each: Vec<_> = items.into_iter().map(|i| i.to_string()).collect();
    format!("[{}]", each.join(","))
}

fn sorted<K: Ord, V>(map: &hashbrown::HashMap<K, V>) -> Vec<(&K, &V)> {
    let mut all: Vec<_> = map.iter().collect();
    all.sort_unstable_by(|a, b| a.0.cmp(b.0));
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn mac(bytes: &[u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Backend, ClientAffinity, FrontendKey, FrontendKind, Shard, shard_of};
    use crate::*;
    use std::sync::Arc;

    fn tables(reversed: bool) -> Tables {
        let mut services = Services::default();
        let mut ports: Vec<u16> = (80..90).collect();
        if reversed {
            ports.reverse();
        }
        for port in ports {
            let key = FrontendKey { address: Address::v4([10, 96, 0, 1]), protocol: 6, port };
            let backend = Backend { address: Address::v4([10, 244, 1, 5]), port: 8080, local: true };
            let set = Arc::new(BackendSet::new(vec![backend]).unwrap());
            let frontend = Frontend {
                name: "default/web:80/TCP".into(),
                slot: 1,
                kind: FrontendKind::ClusterIp,
                internal: set.clone(),
                external: set,
                alive: Arc::new([(backend.address, 8080)].into_iter().collect()),
                internal_local_empty: false,
                external_local_empty: false,
                external_local: false,
                affinity: Some(ClientAffinity { seconds: 10_800, service: 1 }),
                direct: false,
                source_ranges: None,
            };
            let shard: &mut Shard = Arc::make_mut(&mut services.shards[shard_of(&key)]);
            shard.frontends.insert(key, frontend);
            shard.addresses.insert(key.address, FrontendKind::ClusterIp);
        }
        Tables {
            generation: u64::from(reversed),
            settings: Arc::new(Settings {
                vni: 4096,
                vxlan_port: 4789,
                reject: false,
                masquerade: true,
                masquerade_exclude: Default::default(),
                snat_ports: (40_000, 57_343),
                snat_blocks_per_source: 64,
                node_ports: (30_000, 32_767),
                timeouts: Timeouts::default(),
            }),
            node: Arc::new(LocalNode {
                name: "a".into(),
                internal: [Some(Address::v4([192, 0, 2, 1])), None],
                node_port_addresses: vec![Address::v4([192, 0, 2, 1])],
                overlay: [None, None],
                uplink_mac: [2; 6],
                uplink: 0,
                host: 1,
                host_mac: [3; 6],
                uplink_mtu: 1500,
                pod_mtu: 1450,
            }),
            pods: Arc::default(),
            routes: Arc::default(),
            hops: Arc::default(),
            services,
            direct: Arc::default(),
            identities: Arc::default(),
            policy: Arc::default(),
            egress: Arc::default(),
        }
    }

    #[test]
    fn equal_content_prints_the_same_bytes_whatever_the_order_of_building() {
        assert_eq!(tables(false).dump(), tables(true).dump());
    }

    #[test]
    fn a_line_names_the_frontend_its_backends_and_its_service() {
        let dump = tables(false).dump();
        assert!(dump.contains("TCP 10.96.0.1:80 default/web:80/TCP ClusterIp slot=1 internal=[10.244.1.5:8080*]/251:"));
        assert!(dump.contains("address 10.96.0.1 ClusterIp"), "{dump}");
    }
}
