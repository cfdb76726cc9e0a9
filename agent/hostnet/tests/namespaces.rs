//! The crate against the running kernel, in network namespaces of its own (`sg-hn-*`), with a veth end or a TAP device as
//! the pod's interface. Without root each test says so and ends.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice_hostnet::*;

/// A namespace that is gone when the test ends, however it ends.
struct Space {
    name: String,
    ns: Netns,
}

impl Space {
    /// None, and a printed reason, when the test may not make namespaces.
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() || !capabilities_missing().is_empty() {
            eprintln!("skipped: needs root, lacks {:?}", capabilities_missing());
            return None;
        }
        let name = format!("sg-hn-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let ns = Netns::open(Path::new(&format!("/run/netns/{name}"))).unwrap();
        Some(Self { name, ns })
    }

    fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.name))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn addresses(text: &[&str]) -> Vec<IpAddr> {
    text.iter().map(|address| address.parse().unwrap()).collect()
}

fn nets(text: &[&str]) -> Vec<IpNet> {
    text.iter().map(|net| net.parse().unwrap()).collect()
}

/// A node and a pod with a veth pair between them: `host0` and `eth0`.
fn node_and_pod() -> Option<(Space, Space)> {
    let (node, pod) = (Space::new()?, Space::new()?);
    veth_into(&node.ns, "host0", &pod.ns, "eth0", 2).unwrap();
    Some((node, pod))
}

const MAC: [u8; 6] = [2, 0, 10, 244, 0, 5];

fn pod_interface(addresses: &[IpAddr]) -> PodInterface<'_> {
    PodInterface { name: "eth0", mac: MAC, mtu: 1430, addresses }
}

#[test]
fn work_inside_a_namespace_leaves_the_caller_where_it_was() {
    let Some(space) = Space::new() else { return };
    let before = Netns::current().unwrap().inode();
    let inside = space.ns.run(|| Netns::current().unwrap().inode()).unwrap();
    assert_eq!(inside, space.ns.inode());
    assert_ne!(inside, before);
    assert_eq!(Netns::current().unwrap().inode(), before);
}

#[test]
fn a_file_whose_namespace_is_gone_is_refused_by_name() {
    let Some(space) = Space::new() else { return };
    let path = format!("/run/netns/{}-left", space.name);
    std::fs::write(&path, "").unwrap();
    let refused = Netns::open(Path::new(&path));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(refused, Err(HostError::NotANamespace { .. })), "{refused:?}");
}

#[test]
fn a_pod_has_address_route_and_gateway_at_once_and_again() {
    let Some((_node, pod)) = node_and_pod() else { return };
    let own = addresses(&["10.244.0.5", "fd00:10:244::5"]);
    for round in 0..3 {
        configure_pod(&pod.ns, &pod_interface(&own)).unwrap();
        // Usable at once: a socket binds to each address and the routing gives it as the source.
        for (address, elsewhere) in [("10.244.0.5", "192.0.2.1:9"), ("fd00:10:244::5", "[2001:db8::1]:9")] {
            let source = pod.ns.run(|| {
                let socket = UdpSocket::bind((address.parse::<IpAddr>().unwrap(), 0)).unwrap();
                socket.connect(elsewhere).unwrap();
                socket.local_addr().unwrap().ip()
            });
            assert_eq!(source.unwrap().to_string(), address, "round {round}");
        }
        let eth0 = interface(&pod.ns, "eth0").unwrap().unwrap();
        assert_eq!((eth0.mac, eth0.mtu, eth0.up, eth0.kind.as_deref()), (MAC, 1430, true, Some("veth")));
        assert_eq!(eth0.addresses, nets(&["10.244.0.5/32", "fd00:10:244::5/128"]), "no link-local address");
        assert!(interface(&pod.ns, "lo").unwrap().unwrap().up);
        let gateways = default_gateways(&pod.ns, "eth0").unwrap();
        assert_eq!(gateways, [Some("169.254.1.1".parse().unwrap()), Some("fe80::1".parse().unwrap())]);
        let mut known = neighbours(&pod.ns, "eth0").unwrap();
        known.sort_by_key(|neighbour| neighbour.address);
        let expected = [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()];
        assert_eq!(known, expected.map(|address| Neighbour { address, mac: GATEWAY_MAC }));
        assert_eq!(pod.ip("-4 route show").lines().count(), 2);
    }
    assert!(!pod.ip("-6 address show dev eth0").contains("tentative"));
}

#[test]
fn a_pod_of_one_family_gets_nothing_of_the_other() {
    let Some((_node, pod)) = node_and_pod() else { return };
    let own = addresses(&["10.244.0.5"]);
    configure_pod(&pod.ns, &pod_interface(&own)).unwrap();
    assert_eq!(default_gateways(&pod.ns, "eth0").unwrap(), [Some(GATEWAY_V4.into()), None]);
    assert!(!pod.ip("-6 route show").contains("eth0"));
    let own = addresses(&["fd00:10:244::5"]);
    configure_pod(&pod.ns, &pod_interface(&own)).unwrap();
    assert_eq!(default_gateways(&pod.ns, "eth0").unwrap(), [None, Some(GATEWAY_V6.into())]);
    assert_eq!(interface(&pod.ns, "eth0").unwrap().unwrap().addresses, nets(&["fd00:10:244::5/128"]));
    assert!(pod.ip("-4 route show").is_empty());
}

#[test]
fn a_pod_answers_a_neighbour_solicitation_from_the_gateway() {
    let Some((node, pod)) = node_and_pod() else { return };
    let own = addresses(&["10.244.0.5", "fd00:10:244::5"]);
    configure_pod(&pod.ns, &pod_interface(&own)).unwrap();
    // The node's end plays the gateway, with the gateway's own MAC and addresses.
    node.ip("link set host0 address 02:00:a9:fe:01:01");
    node.ip("address add 169.254.1.1/32 dev host0");
    node.ip("address add fe80::1/64 dev host0 nodad");
    for own in own {
        node.ip(&format!("route add {own} dev host0"));
        solicit(&node.ns, "host0", own).unwrap();
        let answer = wait_for(|| neighbours(&node.ns, "host0").unwrap().into_iter().find(|n| n.address == own));
        assert_eq!(answer, Some(Neighbour { address: own, mac: MAC }));
    }
}

#[test]
fn a_pod_that_has_another_default_route_keeps_it_and_the_error_names_it() {
    let Some((node, pod)) = node_and_pod() else { return };
    veth_into(&node.ns, "host1", &pod.ns, "eth1", 1).unwrap();
    pod.ip("link set eth1 up");
    pod.ip("address add 192.0.2.2/24 dev eth1");
    pod.ip("route add default via 192.0.2.1 dev eth1");
    let own = addresses(&["10.244.0.5"]);
    let error = configure_pod(&pod.ns, &pod_interface(&own)).unwrap_err();
    assert!(error.to_string().contains("ip route del 0.0.0.0/0"), "{error}");
    assert!(pod.ip("route show default").contains("192.0.2.1"));
}

#[test]
fn ipv6_that_was_switched_off_in_the_sandbox_is_switched_on() {
    let Some((_node, pod)) = node_and_pod() else { return };
    set_sysctl(&pod.ns, "net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
    let own = addresses(&["fd00:10:244::5"]);
    configure_pod(&pod.ns, &pod_interface(&own)).unwrap();
    assert_eq!(sysctl(&pod.ns, "net/ipv6/conf/eth0/disable_ipv6").unwrap(), "0");
}

#[test]
fn a_tap_device_is_configured_like_any_other() {
    let Some(pod) = Space::new() else { return };
    pod.ip("tuntap add dev eth0 mode tap");
    let own = addresses(&["10.244.0.5", "fd00:10:244::5"]);
    configure_pod(&pod.ns, &pod_interface(&own)).unwrap();
    let eth0 = interface(&pod.ns, "eth0").unwrap().unwrap();
    assert_eq!((eth0.mac, eth0.kind.as_deref(), eth0.addresses.len()), (MAC, Some("tun"), 2));
    assert!(delete_link(&pod.ns, "eth0").unwrap());
    assert!(!delete_link(&pod.ns, "eth0").unwrap());
}

#[test]
fn an_absent_interface_is_named_with_its_namespace() {
    let Some(pod) = Space::new() else { return };
    let own = addresses(&["10.244.0.5"]);
    let text = configure_pod(&pod.ns, &pod_interface(&own)).unwrap_err().to_string();
    assert!(text.contains("no interface eth0") && text.contains(&pod.name), "{text}");
    assert!(default_gateways(&pod.ns, "eth0").is_err() && neighbours(&pod.ns, "eth0").is_err());
}

fn host_interface<'a>(addresses: &'a [IpAddr], routes: &'a [IpNet], exclude: &'a [IpNet]) -> HostInterface<'a> {
    HostInterface { name: "sluice0", mac: [2, 0, 10, 0, 0, 1], mtu: 1430, addresses, routes, exclude }
}

#[test]
fn the_host_routes_pods_and_services_only_and_follows_a_change() {
    let Some(node) = Space::new() else { return };
    node.ip("link set lo up");
    node.ip("tuntap add dev sluice0 mode tap");
    node.ip("tuntap add dev uplink0 mode tap");
    node.ip("link set uplink0 up");
    node.ip("address add 192.0.2.10/24 dev uplink0");
    node.ip("route add default via 192.0.2.1 dev uplink0");
    let own = addresses(&["10.244.1.1", "fd00:10:244:1::1"]);
    let routes = nets(&["10.244.0.0/16", "10.96.0.0/12", "fd00:10:244::/56", "0.0.0.0/0"]);
    for _ in 0..2 {
        configure_host(&node.ns, &host_interface(&own, &routes[..3], &[])).unwrap();
        assert_eq!(default_gateways(&node.ns, "sluice0").unwrap(), [None, None]);
        assert_eq!(default_gateways(&node.ns, "uplink0").unwrap()[0], Some("192.0.2.1".parse().unwrap()));
        let way = node.ip("route get 10.97.0.1");
        assert!(way.contains("dev sluice0 src 10.244.1.1"), "{way}");
        let way = node.ip("route get fd00:10:244:7::9");
        assert!(way.contains("dev sluice0") && way.contains("src fd00:10:244:1::1"), "{way}");
        assert_eq!(sysctl(&node.ns, "net/ipv4/conf/sluice0/rp_filter").unwrap(), "2");
    }
    // A hole, a dropped prefix and another address; never a default route even if asked.
    let own = addresses(&["10.244.2.1"]);
    let hole = nets(&["10.244.9.0/24"]);
    configure_host(&node.ns, &host_interface(&own, &routes[..1], &hole)).unwrap();
    assert!(node.ip("route get 10.244.9.9").contains("via 192.0.2.1 dev uplink0"));
    assert!(node.ip("route get 10.244.8.9").contains("dev sluice0 src 10.244.2.1"));
    assert!(node.ip("route get 10.97.0.1").contains("dev uplink0"));
    assert!(!node.ip("-6 route show").contains("sluice0"));
    configure_host(&node.ns, &host_interface(&own, &routes[3..], &[])).unwrap();
    assert_eq!(node.ip("-4 route show proto 83").lines().count(), 1, "the gateway alone");
}

#[test]
fn a_route_that_somebody_else_made_is_not_replaced() {
    let Some(node) = Space::new() else { return };
    node.ip("tuntap add dev sluice0 mode tap");
    node.ip("tuntap add dev other0 mode tap");
    node.ip("link set other0 up");
    node.ip("route add 10.244.0.0/16 dev other0");
    let (own, routes) = (addresses(&["10.244.1.1"]), nets(&["10.244.0.0/16"]));
    let refused = configure_host(&node.ns, &host_interface(&own, &routes, &[]));
    assert!(matches!(refused, Err(HostError::RouteTaken { .. })), "{refused:?}");
    assert!(node.ip("route show 10.244.0.0/16").contains("other0"));
}

#[test]
fn a_veth_pair_has_its_queues_and_a_taken_name_is_an_error() {
    let Some((node, pod)) = node_and_pod() else { return };
    for (space, name) in [(&node, "host0"), (&pod, "eth0")] {
        let detail = space.ip(&format!("-d link show {name}"));
        assert!(detail.contains("numtxqueues 2 numrxqueues 2"), "{detail}");
    }
    assert!(interface(&node.ns, "host0").unwrap().unwrap().up);
    let error = veth_into(&node.ns, "host0", &pod.ns, "eth1", 1).unwrap_err().to_string();
    assert!(error.contains("host0") && error.contains("exists"), "{error}");
    assert_eq!(interface(&pod.ns, "eth1").unwrap(), None);
}

#[test]
fn an_interface_goes_to_another_namespace_and_comes_home_as_it_was() {
    // An end of a veth pair stands in for a VF's interface: the kernel moves both alike.
    let (Some(node), Some(pod)) = (Space::new(), Space::new()) else { return };
    node.ip("link add vf7 type veth peer name far7");
    node.ip("link set vf7 address 02:00:00:00:00:07 mtu 1400 up");
    node.ip("address add 192.0.2.7/24 dev vf7");
    move_link(&node.ns, "vf7", &pod.ns, "vf0").unwrap();
    assert_eq!(interface(&node.ns, "vf7").unwrap(), None);
    let there = interface(&pod.ns, "vf0").unwrap().unwrap();
    assert_eq!((there.mac, there.mtu, there.up), ([2, 0, 0, 0, 0, 7], 1400, false));
    assert!(there.addresses.is_empty());
    pod.ip("link set vf0 address 02:00:00:00:00:99 mtu 1300 up");
    // A name that is taken is refused before anything moves.
    node.ip("link add vf7 type veth peer name other7");
    let refused = move_link(&pod.ns, "vf0", &node.ns, "vf7").unwrap_err();
    assert!(matches!(refused, HostError::NameTaken { .. }), "{refused}");
    node.ip("link del vf7");
    move_link(&pod.ns, "vf0", &node.ns, "back").unwrap();
    settle_link(&node.ns, "back", "vf7", [2, 0, 0, 0, 0, 7], 1400).unwrap();
    let home = interface(&node.ns, "vf7").unwrap().unwrap();
    assert_eq!((home.mac, home.mtu, home.up), ([2, 0, 0, 0, 0, 7], 1400, false));
}

#[test]
fn interfaces_with_a_default_route_of_either_family_are_found() {
    let Some(space) = Space::new() else { return };
    assert!(default_route_interfaces(&space.ns).unwrap().is_empty());
    for (one, other) in [("dev0", "dev1"), ("dev2", "dev3")] {
        space.ip(&format!("link add {one} type veth peer name {other}"));
        space.ip(&format!("link set {one} up"));
        space.ip(&format!("link set {other} up"));
    }
    space.ip("route add default dev dev0");
    space.ip("route add 10.0.0.0/8 dev dev3");
    space.ip("-6 route add default dev dev1");
    space.ip("route add default metric 9 nexthop dev dev2 nexthop dev dev0");
    let names: Vec<String> = default_route_interfaces(&space.ns).unwrap().into_iter().collect();
    assert_eq!(names, ["dev0", "dev1", "dev2"]);
}

#[test]
fn reserved_ports_are_read_merged_written_and_cleared() {
    let Some(node) = Space::new() else { return };
    assert_eq!(reserved_ports(&node.ns).unwrap(), "");
    set_reserved_ports(&node.ns, "8080").unwrap();
    let merged = with_reserved(&reserved_ports(&node.ns).unwrap(), 40000, 57343);
    set_reserved_ports(&node.ns, &merged).unwrap();
    assert_eq!(reserved_ports(&node.ns).unwrap(), "8080,40000-57343");
    set_reserved_ports(&node.ns, "").unwrap();
    assert_eq!(reserved_ports(&node.ns).unwrap(), "");
    assert!(matches!(set_reserved_ports(&node.ns, "x"), Err(HostError::Sysctl { .. })));
}

#[test]
fn a_solicited_neighbour_appears_and_the_watch_tells() {
    let Some((node, peer)) = node_and_pod() else { return };
    node.ip("address add 192.0.2.1/24 dev host0");
    // host0 is silent: without a link-local address the kernel asks in IPv6 only for a packet's sake.
    node.ip("address add 2001:db8::1/64 dev host0 nodad");
    peer.ip("address add 192.0.2.2/24 dev eth0");
    peer.ip("address add 2001:db8::2/64 dev eth0 nodad");
    peer.ip("link set eth0 up");
    let mac = interface(&peer.ns, "eth0").unwrap().unwrap().mac;
    std::thread::sleep(Duration::from_millis(100)); // the link's own events are over
    let (tell, told) = mpsc::channel();
    let watch = watch_neighbours(&node.ns, "host0", move || _ = tell.send(Instant::now())).unwrap();
    for address in addresses(&["192.0.2.2", "2001:db8::2"]) {
        solicit(&node.ns, "host0", address).unwrap();
        told.recv_timeout(Duration::from_secs(5)).expect("the watch tells of the new neighbour");
        let found = wait_for(|| neighbours(&node.ns, "host0").unwrap().into_iter().find(|n| n.address == address));
        assert_eq!(found, Some(Neighbour { address, mac }));
    }
    drop(watch);
    assert!(told.iter().count() < 20, "the channel ends with the watch, and a burst is one call");
}

#[test]
fn a_change_of_address_route_or_link_is_told_and_another_interfaces_is_not() {
    let Some((node, _peer)) = node_and_pod() else { return };
    node.ip("tuntap add dev other0 mode tap");
    std::thread::sleep(Duration::from_millis(100));
    let (tell, told) = mpsc::channel();
    let _watch = watch_neighbours(&node.ns, "host0", move || _ = tell.send(())).unwrap();
    let quiet = |told: &mpsc::Receiver<()>| while told.recv_timeout(Duration::from_millis(200)).is_ok() {};
    quiet(&told);
    for change in
        ["address add 192.0.2.1/24 dev host0", "route add 198.51.100.0/24 dev host0", "link set host0 mtu 1400"]
    {
        node.ip(change);
        told.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{change} is told"));
        quiet(&told);
    }
    node.ip("link set other0 mtu 1400");
    assert!(told.recv_timeout(Duration::from_millis(200)).is_err());
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match look() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            found => return found,
        }
    }
}
