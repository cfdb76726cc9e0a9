//! A cluster with many Services, made of model values: two nodes, one slice for each Service.

use sluice_ctrl::compile::{Knobs, LocalView, Replay};
use sluice_ctrl::config::Config;
use sluice_ctrl::model::{
    Cluster, EgressGateway, Endpoint, EndpointPort, EndpointSlice, Family, IpPool, NamespacedName, Node, PoolUse,
    Protocol, Selector, Service, ServiceKind, ServicePort, TargetPort,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// The cluster, and node-a's view of it.
pub struct World {
    /// The objects.
    pub cluster: Cluster,
    /// The node.
    pub view: LocalView,
    /// Its settings.
    pub knobs: Knobs,
    endpoints: usize,
}

fn node(name: &str, last: u8) -> Node {
    Node {
        name: name.to_owned(),
        labels: Default::default(),
        annotations: Default::default(),
        internal_ips: vec![IpAddr::from([192, 0, 2, last])],
        external_ips: Vec::new(),
        pod_cidrs: vec![format!("10.{last}.0.0/16").parse().unwrap_or_default()],
        vtep_mac: None,
        ready: None,
        leaving: false,
    }
}

fn name(n: usize) -> NamespacedName {
    NamespacedName::new(format!("team-{:02}", n % 50), format!("service-{n:05}"))
}

fn service(n: usize) -> Service {
    Service {
        name: name(n),
        kind: ServiceKind::ClusterIp,
        headless: false,
        cluster_ips: vec![Ipv4Addr::from(0x0a60_0000 + n as u32 + 1).into()],
        ip_families: vec![Family::V4],
        ip_family_policy: None,
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
            app_protocol: None,
        }],
        selector: None,
        external_ips: Vec::new(),
        load_balancer: Vec::new(),
        load_balancer_class: None,
        source_ranges: None,
        external_traffic: Default::default(),
        internal_traffic: Default::default(),
        affinity_seconds: None,
        publish_not_ready: false,
        allocate_node_ports: true,
        health_check_node_port: None,
        distribution: None,
        direct_return: false,
        other_proxy: false,
    }
}

/// The slice of Service `n`; its first endpoint has a number of its own, so that it can be moved.
fn slice(n: usize, endpoints: usize, first: u32) -> EndpointSlice {
    let own = name(n);
    let endpoint = |address: u32, host: &str| Endpoint {
        addresses: vec![Ipv4Addr::from(address).into()],
        ready: true,
        serving: true,
        terminating: false,
        node: Some(host.to_owned()),
        zone: None,
        zone_hints: Default::default(),
        node_hints: Default::default(),
        pod: None,
    };
    let from = 0x6400_0000 + (n * endpoints) as u32;
    let rest = (1..endpoints as u32).map(|e| endpoint(from + e, if e % 2 == 0 { "node-a" } else { "node-b" }));
    EndpointSlice {
        name: NamespacedName::new(own.namespace.clone(), format!("{}-x7k2p", own.name)),
        service: Some(own.name),
        family: Some(Family::V4),
        headless: false,
        endpoints: std::iter::once(endpoint(first, "node-a")).chain(rest).collect(),
        ports: vec![EndpointPort { name: String::new(), protocol: Protocol::Tcp, port: 8080 }],
    }
}

impl World {
    /// So many Services of so many endpoints each.
    pub fn new(services: usize, endpoints: usize) -> World {
        let mut cluster = Cluster::default();
        for own in [node("node-a", 11), node("node-b", 12)] {
            cluster.nodes.insert(own.name.clone(), Arc::new(own));
        }
        for n in 0..services {
            let (service, slice) = (service(n), slice(n, endpoints, 0x6300_0000 + n as u32));
            cluster.services.insert(service.name.clone(), Arc::new(service));
            cluster.endpoint_slices.insert(slice.name.clone(), Arc::new(slice));
        }
        let view = LocalView::derived(&cluster, "node-a", &Replay::default()).unwrap_or_else(|_| unreachable!());
        World { cluster, view, knobs: Knobs::from(&Config::builtin("node-a")), endpoints }
    }

    /// The same beside an egress gateway and a pool of load-balancer addresses.
    pub fn with_addresses_that_move(services: usize, endpoints: usize) -> World {
        let mut world = World::new(services, endpoints);
        let gateway = EgressGateway {
            name: "out".into(),
            pods: Selector::everything(),
            namespaces: Selector::everything(),
            destinations: None,
            excluded: Vec::new(),
            egress_ips: vec![IpAddr::from([192, 0, 2, 50])],
            gateway_nodes: Selector::everything(),
            fail_closed: false,
        };
        let pool = IpPool {
            name: "edge".into(),
            usage: PoolUse::Services,
            cidrs: vec!["192.0.2.64/26".parse().unwrap_or_default()],
            namespaces: None,
        };
        world.cluster.egress_gateways.insert(gateway.name.clone(), Arc::new(gateway));
        world.cluster.ip_pools.insert(pool.name.clone(), Arc::new(pool));
        world
    }

    /// Gives the first endpoint of a Service another address.
    pub fn move_endpoint(&mut self, service: usize, turn: usize) {
        let moved = slice(service, self.endpoints, 0x6200_0000 + turn as u32 % 0xff_ffff);
        self.cluster.endpoint_slices.insert(moved.name.clone(), Arc::new(moved));
    }
}
