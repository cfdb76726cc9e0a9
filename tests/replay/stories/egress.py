"""Egress gateways, from the pod's node and from the gateway."""

from cluster import FAMILIES, NODE_6, NODE_A, NODE_B, NODE_C, POD_A, POD_B, PROTOCOLS, TCP_, UDP_, WORLD, Node, world
from model import EGRESS_PORTS, MASQUERADE, icmp_error, tunnel, tunnelled
from stories.neighbours import advertises, asks, solicits, tells
from story import each, story

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
