//! Tables of a small dual-stack node: pods a, b and c, one tunnel peer, two Services whose backends are on the peer, and
//! policy sets that a test may give to a pod.

use sluice_tables::hops::TunnelSpec;
use sluice_tables::node::GATEWAY_MAC;
use sluice_tables::policy::{PolicySet, PortMap, RuleNames};
use sluice_tables::routes::TunnelPeer;
use sluice_tables::services::{FrontendKind, SHARDS, Shard, VERSION_SLOTS, shard_of};
use sluice_tables::{
    Address, Backend, BackendSet, Decision, Frontend, FrontendKey, Hop, HopId, HopKind, Hops, LocalNode, Lpm, Pod,
    Pods, Policy, PolicySetId, Prefix, Route, Routes, Services, Settings, Tables, Timeouts,
};
use std::net::IpAddr;
use std::sync::Arc;

/// Port numbers.
pub const UPLINK: u16 = 1;
pub const HOST: u16 = 2;
pub const POD_A: u16 = 3;
pub const POD_B: u16 = 4;
pub const POD_C: u16 = 5;
/// Every port.
pub const PORTS: [u16; 5] = [UPLINK, HOST, POD_A, POD_B, POD_C];
/// Version slots of the Services 10.96.0.1:80 and 10.96.0.2:80.
pub const SERVICE_SLOTS: [u16; 2] = [7, 8];

/// An address from its text.
pub fn ip(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

fn prefix(text: &str, len: u8) -> Prefix {
    Prefix::new(ip(text), len).expect("a prefix")
}

/// What a test may change.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Number of workers: pod a is on the first, b on the second, c on the third, as far as there are so many.
    pub workers: u16,
    /// Policy version of pod a and whether its egress is denied.
    pub policy: (u32, bool),
    /// Versions of the two Services.
    pub services: [u32; 2],
    /// Whether Services have their first backend.
    pub first_backend: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Wish { workers: 1, policy: (1, false), services: [1, 1], first_backend: true }
    }
}

fn policy() -> Policy {
    let names = RuleNames::new(["NetworkPolicy/default/p".into()]);
    let map = |allow| {
        let decision = Decision { allow, audit: false, rule: names.number("NetworkPolicy/default/p") };
        let all = vec![(0, decision)];
        PortMap { tcp: all.clone(), udp: all.clone(), sctp: all, other: decision }
    };
    let set = |map| Arc::new(PolicySet { maps: [map].iter().collect(), by_breadth: vec![0], ..PolicySet::default() });
    Policy { sets: vec![set(map(true)), set(map(false))], names: Arc::new(names), ..Policy::default() }
}

fn services(wish: &Wish) -> Services {
    let mut shards = vec![Shard::default(); SHARDS];
    for (n, slot) in (1..).zip(SERVICE_SLOTS) {
        for v6 in [false, true] {
            let address = ip(&if v6 { format!("fd00:96::{n}") } else { format!("10.96.0.{n}") });
            let backend = |last: u8| Backend {
                address: ip(&if v6 { format!("fd00:2::{last}") } else { format!("10.244.2.{last}") }),
                port: 8080,
                local: false,
            };
            let backends = if wish.first_backend { vec![backend(n), backend(n + 10)] } else { vec![backend(n + 10)] };
            let alive = backends.iter().map(|b| (b.address, b.port)).collect();
            let set = Arc::new(BackendSet::new(backends).expect("few backends"));
            let key = FrontendKey { address, protocol: 6, port: 80 };
            let frontend = Frontend {
                name: format!("default/s{n}:80/TCP").into(),
                slot,
                kind: FrontendKind::ClusterIp,
                internal: Arc::clone(&set),
                external: set,
                alive: Arc::new(alive),
                internal_local_empty: false,
                external_local_empty: false,
                external_local: false,
                affinity: None,
                direct: false,
                source_ranges: None,
            };
            let shard = &mut shards[shard_of(&key)];
            shard.addresses.insert(address, FrontendKind::ClusterIp);
            shard.frontends.insert(key, frontend);
        }
    }
    let mut versions = vec![0; VERSION_SLOTS];
    for (slot, version) in SERVICE_SLOTS.into_iter().zip(wish.services) {
        versions[usize::from(slot)] = version;
    }
    Services { shards: shards.into_iter().map(Arc::new).collect(), versions: Arc::new(versions) }
}

/// The tables.
pub fn tables(wish: &Wish) -> Tables {
    let pod_mac = |n: u8| [0x02, 0, 10, 244, 1, n];
    let (uplink_mac, peer_mac) = ([0x02, 0, 192, 0, 2, 10], [0x02, 0, 192, 0, 2, 12]);
    let mut hops = vec![
        Hop::ethernet(HopKind::Host, HOST, 1450, [2, 0, 0, 0, 0, 1], GATEWAY_MAC),
        Hop::ethernet(HopKind::Uplink, UPLINK, 1500, [0x02, 0, 192, 0, 2, 1], uplink_mac),
        Hop::tunnel(&TunnelSpec {
            port: UPLINK,
            mtu: 1450,
            outer_macs: (peer_mac, uplink_mac),
            outer_addresses: (ip("192.0.2.12"), ip("192.0.2.10")),
            vxlan_port: 4789,
            vni: 4096,
            inner_macs: (peer_mac, uplink_mac),
        }),
    ];
    let mut pods = Vec::new();
    for (n, (name, port)) in [("a", POD_A), ("b", POD_B), ("c", POD_C)].into_iter().enumerate() {
        let last = 5 + n as u8;
        hops.push(Hop::ethernet(HopKind::Pod, port, 1450, pod_mac(last), GATEWAY_MAC));
        let (version, denied) = if port == POD_A { wish.policy } else { (1, false) };
        let pod = Pod {
            name: format!("default/{name}").into(),
            port,
            worker: (n as u16).min(wish.workers - 1),
            mac: pod_mac(last),
            addresses: vec![ip(&format!("10.244.1.{last}")), ip(&format!("fd00:1::{last}"))],
            extra_sources: Vec::new(),
            ingress: None,
            egress: Some(PolicySetId(u32::from(denied))),
            hop: HopId(hops.len() as u16 - 1),
        };
        pods.push((Arc::new(pod), version));
    }
    let peer = TunnelPeer {
        name: "node-b".to_owned(),
        hop: HopId(2),
        sources: vec![prefix("10.244.2.0", 24), prefix("fd00:2::", 64)],
        internal: [Some(ip("192.0.2.12")), None],
        gateway: false,
    };
    Tables {
        generation: 1,
        settings: Arc::new(Settings {
            vni: 4096,
            vxlan_port: 4789,
            reject: false,
            masquerade: true,
            masquerade_exclude: Lpm::default(),
            snat_ports: (40_000, 57_343),
            snat_blocks_per_source: 64,
            node_ports: (30_000, 32_767),
            timeouts: Timeouts::default(),
        }),
        node: Arc::new(LocalNode {
            name: "node-a".to_owned(),
            internal: [Some(ip("192.0.2.10")), Some(ip("2001:db8::10"))],
            node_port_addresses: vec![ip("192.0.2.10"), ip("2001:db8::10")],
            overlay: [Some(ip("10.244.1.1")), Some(ip("fd00:1::1"))],
            uplink_mac,
            uplink: UPLINK,
            host: HOST,
            host_mac: [2, 0, 0, 0, 0, 1],
            uplink_mtu: 1500,
            pod_mtu: 1450,
        }),
        pods: Arc::new(Pods::new(pods)),
        routes: Arc::new(Routes {
            cluster: Lpm::from_entries([
                (prefix("10.244.2.0", 24), Route::Tunnel(HopId(2))),
                (prefix("fd00:2::", 64), Route::Tunnel(HopId(2))),
            ]),
            on_link: Lpm::from_entries([(prefix("192.0.2.0", 24), ()), (prefix("2001:db8::", 64), ())]),
            gateways: [Some(HopId(1)), Some(HopId(1))],
            peers: [(ip("192.0.2.12"), peer)].into_iter().collect(),
            ..Routes::default()
        }),
        hops: Arc::new(Hops::new(hops)),
        services: services(wish),
        direct: Arc::default(),
        identities: Arc::default(),
        policy: Arc::new(policy()),
        egress: Arc::default(),
    }
}
