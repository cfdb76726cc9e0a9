"""Where a Service can be reached, by whom, and what of a Service that contradicts another is left."""

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    POD_A,
    POD_B,
    POD_C,
    POD_D,
    PROTOCOLS,
    TCP_,
    UDP_,
    V4,
    V6,
    WORLD,
    backs,
    service,
)
from model import our_error, tunnel, tunnelled
from story import each, story

from stories.changes import LB, VIP, bare, endpoints

WAYS = {
    "its NodePort": (lambda fam: NODE_A.address(fam.six), 30080),
    "its load-balancer address": (lambda fam: LB[fam.six], 80),
    "its ClusterIP": (lambda fam: VIP[fam.six], 80),
}


@each("A pod reaches a pod of another node with {0} over {1} by {2}, and keeps its address", PROTOCOLS, FAMILIES, WAYS)
def pod_anyhow(s, proto, fam, way):
    front, port = WAYS[way][0](fam), WAYS[way][1]
    s.given(WORLD, bare(kind="LoadBalancer"), endpoints(POD_C))
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, front) / proto.opens(33000, port))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / proto.opens(33000, 8080))
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / proto.answers(8080, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(front, POD_A, 62) / proto.answers(port, 33000))
    )


@each("A process of the node reaches a pod of another node with {0} over {1} by {2}", PROTOCOLS, FAMILIES, WAYS)
def host_anyhow(s, proto, fam, way):
    front, port, overlay = WAYS[way][0](fam), WAYS[way][1], NODE_A.overlay(fam.six)
    s.given(WORLD, bare(kind="LoadBalancer"), endpoints(POD_C))
    s.send("host", NODE_A.host_sends(fam.ip(overlay, front) / proto.opens(50000, port))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(overlay, POD_C, 63) / proto.opens(50000, 8080))
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, overlay, 63) / proto.answers(8080, 50000))).punted(
        NODE_A.host_gets(fam.ip(front, overlay, 63) / proto.answers(port, 50000))
    )


@each("A process of the node may use all endpoints of a Local Service by {1} over {0}", FAMILIES, list(WAYS)[:2])
def host_to_local_policy(s, fam, way):
    front, port, overlay = WAYS[way][0](fam), WAYS[way][1], NODE_A.overlay(fam.six)
    s.given(WORLD, bare(kind="LoadBalancer", more="  externalTrafficPolicy: Local"), endpoints(POD_C))
    s.send("host", NODE_A.host_sends(fam.ip(overlay, front) / TCP_.opens(50000, port))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(overlay, POD_C, 63) / TCP_.opens(50000, 8080))
    )


@each("An external IP that the configuration allows is reached by a pod and from outside over {0}", FAMILIES)
def external_ip(s, fam):
    addresses = {False: "203.0.113.90", True: "2001:db8:99::90"}
    front = addresses[fam.six]
    text = bare(more='  externalIPs: [ "203.0.113.90", "2001:db8:99::90" ]')
    s.given(WORLD, text, endpoints(POD_B), config="services: { external_ips: true }\n")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, front) / TCP_.opens(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP_.opens(33000, 8080))
    )
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, front) / TCP_.opens(44000, 80))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(fam.outside, POD_B, 63) / TCP_.opens(44000, 8080))
    )


SECOND = "192.168.50.99"


@story("A NodePort answers at the node's addresses in services.node_port_addresses and at no other")
def node_port_addresses(s):
    more = f"  - {{ type: InternalIP, address: {SECOND} }}\n  - {{ type: Hostname, address: node-a }}"
    s.given(
        WORLD.replace("  - { type: Hostname, address: node-a }", more),
        bare(kind="NodePort"),
        endpoints(POD_B),
        config=f"services: {{ node_port_addresses: [ {SECOND}/32 ] }}\n",
    )
    s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, SECOND) / TCP_.opens(44000, 30080))).forwarded(
        POD_B.port, POD_B.gets(V4.ip(V4.outside, POD_B, 63) / TCP_.opens(44000, 8080))
    )
    s.send(POD_B.port, POD_B.sends(V4.ip(POD_B, V4.outside) / TCP_.answers(8080, 44000))).forwarded(
        "uplink0", NODE_A.sends(V4.ip(SECOND, V4.outside, 63) / TCP_.answers(30080, 44000))
    )
    packet = V4.ip(V4.outside, NODE_A) / TCP_.opens(44001, 30080)
    s.send("uplink0", NODE_A.hears(packet)).punted(NODE_A.host_gets(packet))


@each("A NodePort does not answer at ClusterIPs or load-balancer addresses over {0}", FAMILIES)
def node_port_elsewhere(s, fam):
    s.given(WORLD, bare(kind="LoadBalancer"), endpoints(POD_B))
    for front in (VIP[fam.six], LB[fam.six]):
        packet = fam.ip(POD_A, front) / UDP_.opens(33000, 30080)
        s.send(POD_A.port, POD_A.sends(packet)).replied(
            POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "port unreachable", packet)), reason="NoBackend"
        )


@story("A load balancer without node ports is reached by its address alone")
def no_node_ports(s):
    text = bare(kind="LoadBalancer", more="  allocateLoadBalancerNodePorts: false", ports=(("TCP", 80, 8080),))
    s.given(WORLD, text, endpoints(POD_B, numbers=(("TCP", 80, 8080),)))
    s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, LB[False]) / TCP_.opens(44000, 80))).forwarded(
        POD_B.port, POD_B.gets(V4.ip(V4.outside, POD_B, 63) / TCP_.opens(44000, 8080))
    )
    packet = V4.ip(V4.outside, NODE_A) / TCP_.opens(44001, 30080)
    s.send("uplink0", NODE_A.hears(packet)).punted(NODE_A.host_gets(packet))


@story("Of two Services with one NodePort the first by name has it, and the other keeps its ClusterIP")
def one_node_port(s):
    other = bare("aaa", kind="NodePort", vips={False: "10.96.0.77", True: "fd00:10:96::77"})
    s.given(WORLD, bare(kind="NodePort"), endpoints(POD_C), other, endpoints(POD_B, name="aaa"))
    s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, NODE_A) / TCP_.opens(44000, 30080))).forwarded(
        POD_B.port,
        POD_B.gets(V4.ip(V4.outside, POD_B, 63) / TCP_.opens(44000, 8080)),
        service="default/aaa:80/TCP",
    )
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / TCP_.opens(33000, 80))).forwarded(
        "uplink0",
        tunnel(NODE_A, NODE_B, V4.ip(POD_A, POD_C, 63) / TCP_.opens(33000, 8080)),
        service="default/web:80/TCP",
    )


@each(
    "A load-balancer address that a pod has stays the pod's over {0}, and the Service's other addresses answer",
    FAMILIES,
)
def stolen(s, fam):
    text = bare(kind="LoadBalancer").replace(LB[False], POD_D.v4).replace(LB[True], POD_D.v6)
    s.given(WORLD, text, endpoints(POD_B))
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_D) / TCP_.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_D, 63) / TCP_.opens(33000, 80)), service=None
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(33001, 80))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP_.opens(33001, 8080))
    )


@story("A named target port leads to the number that each pod gives it")
def named_per_pod(s):
    documents = backs(POD_C, POD_D).split("\n---\n")
    for pod, number in ((POD_C, 7070), (POD_D, 9090)):
        at = next(n for n, text in enumerate(documents) if f"kind: Pod\nmetadata: {{ name: {pod.name}," in text)
        named = f"ports: [ {{ name: http, containerPort: {number}, protocol: TCP }} ]"
        documents[at] = documents[at].replace("ports: [  ]", named)
    world = "\n---\n".join(documents)
    s.given(world, service("web", "tier: back", (("TCP", 80, "http"),), VIP[False], VIP[True]))
    both = {f"{POD_C.v4}:7070": (POD_C, 7070), f"{POD_D.v4}:9090": (POD_D, 9090)}
    for sport in range(33000, 33012):

        def inner(view, sport=sport):
            there, number = both.get(view.backend, (POD_C, 7070))
            return V4.ip(POD_A, there, 63) / TCP_.opens(sport, number)

        s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / TCP_.opens(sport, 80))).forwarded(
            "uplink0", tunnel(NODE_A, NODE_B, inner), backend=set(both)
        )


@each("Pods that are not ready are reached over {0} where the Service publishes them", FAMILIES)
def not_ready(s, fam):
    down = POD_C.yaml().replace('status: "True"', 'status: "False"')
    text = service(
        "web", "app: c", (("TCP", 80, 8080),), VIP[False], VIP[True], more="  publishNotReadyAddresses: true"
    )
    s.given(WORLD.replace(POD_C.yaml(), down), text)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(33000, 8080))
    )


@story("Addresses with leading zeros are decimal, and blanks around a source range are nothing")
def leading_zeros(s):
    text = bare(kind="LoadBalancer", more='  loadBalancerSourceRanges: [ "  198.51.100.0/24  " ]')
    text = text.replace('"10.96.0.10"', '"10.096.000.010"').replace(LB[False], "203.000.113.080")
    slices = endpoints(POD_B).replace(POD_B.v4, "010.244.001.011")
    s.given(WORLD, text, slices)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, "10.96.0.10") / TCP_.opens(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63) / TCP_.opens(33000, 8080))
    )
    s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, "203.0.113.80") / TCP_.opens(44000, 80))).forwarded(
        POD_B.port, POD_B.gets(V4.ip(V4.outside, POD_B, 63) / TCP_.opens(44000, 8080))
    )


@story("A Service of one family is nobody's in the other")
def one_family(s):
    s.given(WORLD, service("six", "app: b", (("TCP", 80, 8080),), None, VIP[True]))
    s.send(POD_A.port, POD_A.sends(V6.ip(POD_A, VIP[True]) / TCP_.opens(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(V6.ip(POD_A, POD_B, 63) / TCP_.opens(33000, 8080))
    )
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / TCP_.opens(33000, 80))).dropped("NoRoute")


@each("Two Services of the same pods both work over {0}", FAMILIES)
def same_pods(s, fam):
    vips = [VIP, {False: "10.96.0.11", True: "fd00:10:96::b"}]
    s.given(
        WORLD, *(service(f"s{n}", "app: b", (("TCP", 80 + n, 8080),), v[False], v[True]) for n, v in enumerate(vips))
    )
    for n, vip in enumerate(vips):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip[fam.six]) / TCP_.opens(33000 + n, 80 + n))).forwarded(
            POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP_.opens(33000 + n, 8080))
        )


@each("The same client port reaches one pod by two Services at once with {0} over {1}", PROTOCOLS, FAMILIES)
def same_client_port(s, proto, fam):
    vips = [VIP, {False: "10.96.0.11", True: "fd00:10:96::b"}]
    s.given(
        WORLD, *(service(f"s{n}", "app: c", ((proto.name, 80, 8080),), v[False], v[True]) for n, v in enumerate(vips))
    )
    first, second = (vip[fam.six] for vip in vips)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, first) / proto.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / proto.opens(33000, 8080))
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, second) / proto.opens(33000, 80))).forwarded(
        "uplink0",
        tunnel(
            NODE_A,
            NODE_B,
            lambda view: fam.ip(POD_A, POD_C, 63) / proto.opens(view.pick("other port", "sport", 1024, 65535), 8080),
        ),
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / proto.answers(8080, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(first, POD_A, 62) / proto.answers(80, 33000))
    )
    s.send(
        "uplink0",
        lambda view: tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / proto.answers(8080, view["other port"]))(
            view
        ),
    ).forwarded(POD_A.port, POD_A.gets(fam.ip(second, POD_A, 62) / proto.answers(80, 33000)))


ZONES = {"node-a": "east", "node-b": "west", "node-c": "west"}


def in_zones(text):
    for node, zone in ZONES.items():
        label = f"kubernetes.io/hostname: {node}"
        text = text.replace(label, f"{label}, topology.kubernetes.io/zone: {zone}")
    return text


@each(
    "With trafficDistribution {0} a client is sent to a pod that is near, while there is one, over {1}",
    ["PreferClose", "PreferSameZone", "PreferSameNode"],
    FAMILIES,
)
def distribution(s, wanted, fam):
    def asks(first, there):
        for sport in range(first, first + 6):
            sent = s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(sport, 80)))
            if there is POD_B:
                sent.forwarded(POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP_.opens(sport, 8080)))
            else:
                sent.forwarded("uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(sport, 8080)))

    text = service(
        "web", "tier: back", (("TCP", 80, 8080),), VIP[False], VIP[True], more=f"  trafficDistribution: {wanted}"
    )
    s.given(in_zones(backs(POD_B, POD_C)), text)
    asks(33000, POD_B)
    s.change(in_zones(backs(POD_C)), text)
    asks(33100, POD_C)
    s.change(in_zones(backs(POD_B, POD_C)), text)
    asks(33200, POD_B)
