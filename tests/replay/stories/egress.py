"""Egress gateways, from the pod's node and from the gateway."""

from cluster import (
    FAMILIES,
    NODE_6,
    NODE_A,
    NODE_B,
    NODE_C,
    POD_A,
    POD_B,
    PROTOCOLS,
    TCP_,
    UDP_,
    V4,
    WORLD,
    Node,
    Pod,
    service,
    world,
)
from model import EGRESS_PORTS, MASQUERADE, icmp_error, tunnel, tunnelled
from stories.neighbours import advertises, asks, solicits, tells
from story import Mismatch, each, story

GATEWAY_B = Node("node-b", NODE_B.v4, NODE_B.v6, NODE_B.pods4, NODE_B.pods6, labels='egress: "true"')
GATEWAY_A = Node("node-a", NODE_A.v4, NODE_A.v6, NODE_A.pods4, NODE_A.pods6, labels='egress: "true"')
BY_B = world(nodes=[NODE_A, GATEWAY_B, NODE_C, NODE_6])
BY_A = world(nodes=[GATEWAY_A, NODE_B, NODE_C, NODE_6])
EGRESS_IP = {False: "192.0.2.50", True: "2001:db8::50"}
PARTNERS = """
apiVersion: sluicegate.dev/v1alpha1
kind: EgressGateway
metadata: { name: partners }
spec:
  podSelector: { matchLabels: { app: a } }
  namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: default } }
  destinationCIDRs: [198.51.100.0/24, "2001:db8:7::/48"]
  excludedCIDRs: [198.51.100.7/32, "2001:db8:7::7/128"]
  egressIPs: [192.0.2.50, "2001:db8::50"]
  gatewayNodes: { matchLabels: { egress: "true" } }
"""


@each("The pod's node sends {0} over {1} to the gateway and delivers the reply", PROTOCOLS, FAMILIES)
def pods_node(s, proto, fam):
    s.given(BY_B, PARTNERS)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / proto.opens(33000, 443))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, fam.outside, 63) / proto.opens(33000, 443))
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(fam.outside, POD_A, 49) / proto.answers(443, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 48) / proto.answers(443, 33000))
    )


@each(
    "The gateway gives {0} over {1} the egress address and sends the reply back through the tunnel", PROTOCOLS, FAMILIES
)
def gateway(s, proto, fam):
    s.given(BY_B, PARTNERS, node="node-b")
    address = EGRESS_IP[fam.six]
    for _ in range(2):
        s.send(
            "uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_A, fam.outside, 63) / proto.opens(33000, 443))
        ).forwarded(
            "uplink0",
            NODE_B.sends(
                lambda view: (
                    fam.ip(address, fam.outside, 62) / proto.opens(view.pick("nat", "sport", *EGRESS_PORTS), 443)
                )
            ),
        )
        s.send(
            "uplink0", NODE_B.hears(lambda view: fam.ip(fam.outside, address, 50) / proto.answers(443, view["nat"]))
        ).forwarded("uplink0", tunnel(NODE_B, NODE_A, fam.ip(fam.outside, POD_A, 49) / proto.answers(443, 33000)))


@each("A ping goes out by the gateway over {0}", FAMILIES)
def gateway_echo(s, fam):
    s.given(BY_B, PARTNERS, node="node-b")
    address = EGRESS_IP[fam.six]
    s.send("uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_A, fam.outside, 63) / fam.echo())).forwarded(
        "uplink0",
        NODE_B.sends(lambda view: fam.ip(address, fam.outside, 62) / fam.echo(view.pick("id", "id", 0, 65535))),
    )
    s.send(
        "uplink0", NODE_B.hears(lambda view: fam.ip(fam.outside, address, 50) / fam.echo_reply(view["id"]))
    ).forwarded("uplink0", tunnel(NODE_B, NODE_A, fam.ip(fam.outside, POD_A, 49) / fam.echo_reply()))


@each("A pod on the gateway itself leaves with the egress address over {0}", FAMILIES)
def on_gateway(s, fam):
    s.given(BY_A, PARTNERS)
    address = EGRESS_IP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / TCP_.opens(33000, 443))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(address, fam.outside, 63) / TCP_.opens(view.pick("nat", "sport", *EGRESS_PORTS), 443)
        ),
    )
    s.send(
        "uplink0", NODE_A.hears(lambda view: fam.ip(fam.outside, address, 50) / TCP_.answers(443, view["nat"]))
    ).forwarded(POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 49) / TCP_.answers(443, 33000)))


@each("Excluded and other destinations and other pods are masqueraded as ever over {0}", FAMILIES)
def not_selected(s, fam):
    s.given(BY_B, PARTNERS)
    excluded, other = ("2001:db8:7::7", "2001:db8:ff::1") if fam.six else ("198.51.100.7", "203.0.113.1")
    for pod, there in ((POD_A, excluded), (POD_A, other), (POD_B, fam.outside)):
        s.send(pod.port, pod.sends(fam.ip(pod, there) / UDP_.opens(33000, 53))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, there=there: (
                    fam.ip(NODE_A, there, 63) / UDP_.opens(view.pick(None, "sport", *MASQUERADE), 53)
                )
            ),
        )


@each("Traffic inside the cluster never takes the gateway over {0}", FAMILIES)
def inside(s, fam):
    everything = PARTNERS.replace('  destinationCIDRs: [198.51.100.0/24, "2001:db8:7::/48"]\n', "")
    s.given(BY_B, everything)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / UDP_.opens(33000, 53))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 53))
    )
    there = "2001:db8:ff::1" if fam.six else "203.0.113.1"
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / UDP_.opens(33000, 53))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, there, 63) / UDP_.opens(33000, 53))
    )


@each("The gateway drops what a pod sends that no EgressGateway selects over {0}", FAMILIES)
def unselected(s, fam):
    s.given(BY_B, PARTNERS, node="node-b")  # READING: no reason is prescribed
    s.send("uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_B, fam.outside, 63) / UDP_.opens(33000, 53))).dropped()


@each("Without a gateway node a selected pod's packet is NoRoute over {0}", FAMILIES)
def no_gateway(s, fam):
    s.given(WORLD, PARTNERS)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(33000, 53))).dropped("NoRoute")


@story("The gateway answers ARP and neighbour discovery for its egress addresses")
def neighbours(s):
    s.given(BY_B, PARTNERS, node="node-b")
    router, router6 = "02:00:c0:a8:32:01", "02:00:00:00:00:01"
    s.send("uplink0", asks(router, "192.168.50.1", "192.0.2.50")).replied(
        tells(NODE_B.mac, "192.0.2.50", router, "192.168.50.1")
    )
    s.send("uplink0", solicits(router6, "2001:db8:50::1", "2001:db8::50")).replied(
        advertises(NODE_B.mac, "2001:db8::50", router6, "2001:db8:50::1")
    )


@story("A node that is no gateway does not answer for egress addresses")
def no_neighbours(s):
    s.given(BY_B, PARTNERS)
    s.send("uplink0", asks("02:00:c0:a8:32:01", "192.168.50.1", "192.0.2.50")).goes_nowhere()
    s.send("uplink0", solicits("02:00:00:00:00:01", "2001:db8:50::1", "2001:db8::50")).goes_nowhere()


@each("With two gateways and two addresses a pod keeps to one gateway over {0}", FAMILIES)
def spread(s, fam):
    c = Node("node-c", NODE_C.v4, NODE_C.v6, NODE_C.pods4, NODE_C.pods6, labels='egress: "true"')
    s.given(
        world(nodes=[NODE_A, GATEWAY_B, c, NODE_6]),
        PARTNERS.replace("egressIPs: [192.0.2.50,", "egressIPs: [192.0.2.50, 192.0.2.51,"),
    )

    def by_either(inner):
        def made(view):
            there = view.choose("gateway", "outer.dst", [NODE_B.v4, NODE_C.v4])
            return tunnel(NODE_A, NODE_B if there == NODE_B.v4 else NODE_C, inner)(view)

        return made

    for sport in range(33000, 33008):
        packet = UDP_.opens(sport, 53)
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / packet)).forwarded(
            "uplink0", by_either(fam.ip(POD_A, fam.outside, 63) / packet)
        )


@each("An ICMP error from outside finds its pod through the gateway over {0}", FAMILIES)
def errors(s, fam):
    s.given(BY_B, PARTNERS, node="node-b")
    address = EGRESS_IP[fam.six]
    s.send("uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_A, fam.outside, 63) / UDP_.opens(33000, 443))).forwarded(
        "uplink0",
        NODE_B.sends(
            lambda view: fam.ip(address, fam.outside, 62) / UDP_.opens(view.pick("nat", "sport", *EGRESS_PORTS), 443)
        ),
    )
    s.send(
        "uplink0",
        NODE_B.hears(
            icmp_error(
                fam,
                fam.outside_router,
                address,
                "time exceeded",
                lambda view: fam.ip(address, fam.outside, 1) / UDP_.opens(view["nat"], 443),
                ttl=50,
            )
        ),
    ).forwarded(
        "uplink0",
        tunnel(
            NODE_B,
            NODE_A,
            icmp_error(
                fam,
                fam.outside_router,
                POD_A,
                "time exceeded",
                fam.ip(POD_A, fam.outside, 1) / UDP_.opens(33000, 443),
                ttl=49,
            ),
        ),
    )


# What a gateway does for many, whatever the number of workers.

PARTNERS_3 = PARTNERS.replace(
    'egressIPs: [192.0.2.50, "2001:db8::50"]',
    'egressIPs: [192.0.2.50, 192.0.2.51, 192.0.2.52, "2001:db8::50", "2001:db8::51"]',
)
GATEWAY_C = Node("node-c", NODE_C.v4, NODE_C.v6, NODE_C.pods4, NODE_C.pods6, labels='egress: "true"')
TWO = world(nodes=[NODE_A, GATEWAY_B, GATEWAY_C, NODE_6])


@each("One port of an egress address serves {0} to many destinations at once over {1}", PROTOCOLS, FAMILIES)
def one_port_many(s, proto, fam):
    # 64 ports are a block, and a pod gets no second one while the first has room for the destination.
    s.given(BY_B, PARTNERS, node="node-b")
    address = EGRESS_IP[fam.six]
    block = {}

    def in_block(view, name):
        port = view.pick(name, "sport", *EGRESS_PORTS)
        if view.got is not None and block.setdefault(proto.name + fam.name, (port - 1024) // 64) != (port - 1024) // 64:
            raise Mismatch(f"port {port} is of another block")
        return port

    for last in range(20, 90):
        there = f"2001:db8:7::{last}" if fam.six else f"198.51.100.{last}"
        s.send(
            "uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_A, there, 63) / proto.opens(33000, 443))
        ).forwarded(
            "uplink0",
            NODE_B.sends(
                lambda view, there=there: (
                    fam.ip(address, there, 62) / proto.opens(in_block(view, f"to {there}"), 443)
                )
            ),
        )


@each("When every port of an egress address is taken the next {0} flow is SnatPortsExhausted over {1}", [UDP_, TCP_], FAMILIES)
def exhausted(s, proto, fam):
    s.given(BY_B, PARTNERS, node="node-b", config="masquerade: { blocks_per_source: 1 }\n")
    address, names = EGRESS_IP[fam.six], [f"port {n}" for n in range(64)]
    for n, name in enumerate(names):
        s.send(
            "uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_A, fam.outside, 63) / proto.opens(33000 + n, 443))
        ).forwarded(
            "uplink0",
            NODE_B.sends(
                lambda view, n=n, name=name: (
                    fam.ip(address, fam.outside, 62)
                    / proto.opens(view.pick(name, "sport", *EGRESS_PORTS, ideal=2048 + n, unlike=names), 443)
                )
            ),
        )
    s.send(
        "uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_A, fam.outside, 63) / proto.opens(34000, 443))
    ).dropped("SnatPortsExhausted")


@each("Pods are spread over both gateways, and each keeps to one over {0}", FAMILIES)
def spread_over_two(s, fam):
    pods = [Pod(f"p{n}", NODE_A, f"10.244.1.{n}", f"fd00:10:244:1::{n:x}", labels="app: a") for n in range(40, 72)]
    s.given(world(nodes=[NODE_A, GATEWAY_B, GATEWAY_C, NODE_6], pods=pods), PARTNERS_3)
    used = set()

    def by_either(pod, inner):
        def made(view):
            there = view.choose(pod.name, "outer.dst", [NODE_B.v4, NODE_C.v4])
            if view.got is not None:
                used.add(there)
                if pod is pods[-1] and len(used) < 2:
                    raise Mismatch(f"all {len(pods)} pods leave through {there}")
            return tunnel(NODE_A, NODE_B if there == NODE_B.v4 else NODE_C, inner)(view)

        return made

    for pod in pods:
        for sport in (33000, 33001):
            packet = UDP_.opens(sport, 53)
            s.send(pod.port, pod.sends(fam.ip(pod, fam.outside) / packet)).forwarded(
                "uplink0", by_either(pod, fam.ip(pod, fam.outside, 63) / packet)
            )


@each("An egress address that is {0} is refused and the rest of the gateway works over {1}",
      ["a pod's", "another node's", "a Service's"], FAMILIES)
def bad_address(s, what, fam):
    taken = {
        "a pod's": POD_B.address(fam.six),
        "another node's": NODE_C.address(fam.six),
        "a Service's": "fd00:10:96::9" if fam.six else "10.96.0.9",
    }[what]
    good = EGRESS_IP[fam.six]
    gateway = PARTNERS.replace('egressIPs: [192.0.2.50, "2001:db8::50"]', f'egressIPs: ["{taken}", "{good}"]')
    extra = service("web", "app: b", v4="10.96.0.9", v6="fd00:10:96::9")
    s.given(BY_B, gateway, extra, node="node-b")
    s.send("uplink0", tunnelled(NODE_A, NODE_B, fam.ip(POD_A, fam.outside, 63) / UDP_.opens(33000, 443))).forwarded(
        "uplink0",
        NODE_B.sends(
            lambda view: fam.ip(good, fam.outside, 62) / UDP_.opens(view.pick("nat", "sport", *EGRESS_PORTS), 443)
        ),
    )


@story("A later gateway by name takes no pod and no address away from an earlier one")
def overlapping(s):
    other = PARTNERS.replace("name: partners", "name: zz-later").replace("192.0.2.50", "192.0.2.99")
    s.given(BY_B, PARTNERS, other, node="node-b")
    s.send("uplink0", tunnelled(NODE_A, NODE_B, V4.ip(POD_A, V4.outside, 63) / UDP_.opens(33000, 443))).forwarded(
        "uplink0",
        NODE_B.sends(
            lambda view: V4.ip("192.0.2.50", V4.outside, 62) / UDP_.opens(view.pick("n", "sport", *EGRESS_PORTS), 443)
        ),
    )


# Load-balancer addresses out of our pools are announced like egress addresses.

VIP = {False: "192.168.50.80", True: "2001:db8:50::80"}
POOL = """
apiVersion: sluicegate.dev/v1alpha1
kind: IPPool
metadata: { name: edge }
spec: { use: services, cidrs: [192.168.50.80/32, "2001:db8:50::80/128"] }
"""


def balanced(policy="Cluster", backend="app: f", ingress=True):
    status = 'status: { loadBalancer: { ingress: [{ ip: 192.168.50.80 }, { ip: "2001:db8:50::80" }] } }'
    return service(
        "edge", backend, v4="10.96.0.9", v6="fd00:10:96::9", kind="LoadBalancer",
        more=f"  externalTrafficPolicy: {policy}\n" + (status if ingress else ""),
    )


def asked(s, node, answers):
    """One ARP request and one solicitation on the node's uplink."""
    router, router6 = "02:00:c0:a8:32:01", "02:00:00:00:00:01"
    arp = s.send("uplink0", asks(router, "192.168.50.1", VIP[False]))
    nd = s.send("uplink0", solicits(router6, "2001:db8:50::1", VIP[True]))
    if answers:
        arp.replied(tells(node.mac, VIP[False], router, "192.168.50.1"))
        nd.replied(advertises(node.mac, VIP[True], router6, "2001:db8:50::1"))
    else:
        arp.goes_nowhere()
        nd.goes_nowhere()


@each("With the policy Local a node {0} answers for the address or does not", ["with an endpoint", "without one"])
def local_policy(s, case):
    with_endpoint = case == "with an endpoint"
    s.given(WORLD, POOL, balanced("Local", backend="app: f"), node="node-c" if with_endpoint else "node-b")
    asked(s, NODE_C if with_endpoint else NODE_B, with_endpoint)


@each("A Service without an address gets one out of the pool, and its one node answers, policy Local, over {0}", FAMILIES)
def given_an_address(s, fam):
    s.given(WORLD, POOL, balanced("Local", backend="app: f", ingress=False), node="node-c")
    asked(s, NODE_C, True)


@story("An address that is out of nobody's pool is somebody else's to announce")
def not_ours(s):
    s.given(WORLD, POOL.replace("80/32", "90/32").replace("::80/", "::90/"), balanced("Local"), node="node-c")
    asked(s, NODE_C, False)


@story("MetalLB's objects are left alone")
def metallb(s):
    pool = """
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: { name: theirs, namespace: metallb-system }
spec: { addresses: [192.168.50.80-192.168.50.90] }
"""
    s.given(WORLD, pool, balanced("Local"), node="node-c")
    asked(s, NODE_C, False)
