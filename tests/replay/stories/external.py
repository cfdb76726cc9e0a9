"""Services from outside the cluster: NodePort, load balancer and external addresses."""

from scapy.layers.inet import TCP
from scapy.packet import Raw

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    POD_A,
    POD_B,
    POD_C,
    PROTOCOLS,
    SCTP_,
    TCP_,
    UDP_,
    V4,
    WORLD,
    service,
)
from model import MASQUERADE, echo_answer, icmp_error, our_error, reset, tunnel, tunnelled
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
LB = {False: "203.0.113.80", True: "2001:db8:99::80"}
PORTS = tuple((proto, 80, 8080, 30080) for proto in ("TCP", "UDP", "SCTP"))
INGRESS = f"""status:
  loadBalancer:
    ingress: [ {{ ip: "{LB[False]}" }}, {{ ip: "{LB[True]}" }} ]"""


def shop(backends, kind="LoadBalancer", more=""):
    text = service("shop", backends, PORTS, VIP[False], VIP[True], kind=kind, more=more)
    return text + ("\n" + INGRESS if kind == "LoadBalancer" else "")


class Way:
    """A frontend that the outside knows."""

    def __init__(self, name, port):
        self.name, self.port = name, port

    def __str__(self):
        return self.name

    def address(self, fam):
        return NODE_A.address(fam.six) if self.name == "NodePort" else LB[fam.six]


WAYS = [Way("NodePort", 30080), Way("load-balancer address", 80)]


def at(fam, who, port):
    return f"[{fam.at(who)}]:{port}" if fam.six else f"{fam.at(who)}:{port}"


@each("A client reaches a local pod by {0} with {1} over {2} and keeps its address", WAYS, PROTOCOLS, FAMILIES)
def local(s, way, proto, fam):
    s.given(WORLD, shop("app: a"))
    front = way.address(fam)
    for _ in range(2):
        s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, front) / proto.opens(44000, way.port))).forwarded(
            POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 63) / proto.opens(44000, 8080))
        )
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / proto.answers(8080, 44000))).forwarded(
            "uplink0", NODE_A.sends(fam.ip(front, fam.outside, 63) / proto.answers(way.port, 44000))
        )
    s.steps[0].service, s.steps[0].backend = f"default/shop:80/{proto}", at(fam, POD_A, 8080)


@each(
    "A client reaches a pod of another node by {0} with {1} over {2} through the overlay address",
    WAYS,
    PROTOCOLS,
    FAMILIES,
)
def remote(s, way, proto, fam):
    s.given(WORLD, shop("app: c"))
    front, overlay = way.address(fam), NODE_A.overlay(fam.six)
    for _ in range(2):
        s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, front) / proto.opens(44000, way.port))).forwarded(
            "uplink0",
            tunnel(
                NODE_A,
                NODE_B,
                lambda view: fam.ip(overlay, POD_C, 63) / proto.opens(view.pick("nat", "sport", *MASQUERADE), 8080),
            ),
        )
        s.send(
            "uplink0",
            lambda view: tunnelled(NODE_B, NODE_A, fam.ip(POD_C, overlay, 63) / proto.answers(8080, view["nat"]))(view),
        ).forwarded("uplink0", NODE_A.sends(fam.ip(front, fam.outside, 62) / proto.answers(way.port, 44000)))
    s.steps[0].service, s.steps[0].backend = f"default/shop:80/{proto}", at(fam, POD_C, 8080)


@each("Two clients of one source port get two fenced ports over {0}", FAMILIES)
def two_clients(s, fam):
    s.given(WORLD, shop("app: c"))
    others = ["2001:db8:7::1", "2001:db8:7::2"] if fam.six else ["198.51.100.1", "198.51.100.2"]
    overlay = NODE_A.overlay(fam.six)
    for client in others:
        s.send("uplink0", NODE_A.hears(fam.ip(client, NODE_A) / TCP_.opens(44000, 30080))).forwarded(
            "uplink0",
            tunnel(
                NODE_A,
                NODE_B,
                lambda view, client=client: (
                    fam.ip(overlay, POD_C, 63) / TCP_.opens(view.pick(f"port of {client}", "sport", *MASQUERADE), 8080)
                ),
            ),
        )
    for client in others:
        s.send(
            "uplink0",
            lambda view, client=client: tunnelled(
                NODE_B, NODE_A, fam.ip(POD_C, overlay, 63) / TCP_.answers(8080, view[f"port of {client}"])
            )(view),
        ).forwarded("uplink0", NODE_A.sends(fam.ip(NODE_A, client, 62) / TCP_.answers(30080, 44000)))


@each("The other node delivers to its pod what came in by a NodePort elsewhere over {0}", FAMILIES)
def other_node(s, fam):
    s.given(WORLD, shop("app: c"), node="node-b")
    overlay = NODE_A.overlay(fam.six)
    s.send("uplink0", tunnelled(NODE_A, NODE_B, fam.ip(overlay, POD_C, 63) / TCP_.opens(41000, 8080))).forwarded(
        POD_C.port, POD_C.gets(fam.ip(overlay, POD_C, 62) / TCP_.opens(41000, 8080))
    )
    s.send(POD_C.port, POD_C.sends(fam.ip(POD_C, overlay) / TCP_.answers(8080, 41000))).forwarded(
        "uplink0", tunnel(NODE_B, NODE_A, fam.ip(POD_C, overlay, 63) / TCP_.answers(8080, 41000))
    )


@each("A {0} without endpoints refuses the outside over {1}", WAYS, FAMILIES)
def refused(s, way, fam):
    s.given(WORLD, shop("app: nobody"))
    refuse_all(s, fam, way.address(fam), way.port)


@each("The wrong port of a load-balancer address is refused to the outside over {0}", FAMILIES)
def wrong_port(s, fam):
    s.given(WORLD, shop("app: a"))
    refuse_all(s, fam, LB[fam.six], 81)


def refuse_all(s, fam, front, port):
    syn = fam.ip(fam.outside, front) / TCP_.opens(44000, port)
    s.send("uplink0", NODE_A.hears(syn)).replied(NODE_A.sends(reset(fam, front, fam.outside, syn)), reason="NoBackend")
    for proto in (UDP_, SCTP_):
        packet = fam.ip(fam.outside, front) / proto.opens(44000, port)
        s.send("uplink0", NODE_A.hears(packet)).replied(
            NODE_A.sends(our_error(fam, NODE_A, fam.outside, "port unreachable", packet)), reason="NoBackend"
        )


@each("A ping to a load-balancer address is answered to the outside over {0}", FAMILIES)
def echo(s, fam):
    s.given(WORLD, shop("app: a"))
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, LB[fam.six]) / fam.echo())).replied(
        NODE_A.sends(echo_answer(fam, LB[fam.six], fam.outside))
    )


LOCAL = "  externalTrafficPolicy: Local"


@each("With externalTrafficPolicy Local the outside gets only local pods by {0} over {1}", WAYS, FAMILIES)
def local_policy(s, way, fam):
    from cluster import backs

    s.given(backs(POD_A, POD_C), shop("tier: back", more=LOCAL))
    for sport in range(44000, 44006):
        s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.address(fam)) / TCP_.opens(sport, way.port))).forwarded(
            POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 63) / TCP_.opens(sport, 8080))
        )


@each("With externalTrafficPolicy Local and no local pod the outside meets silence by {0} over {1}", WAYS, FAMILIES)
def no_local(s, way, fam):
    s.given(WORLD, shop("app: c", more=LOCAL))
    for proto in PROTOCOLS:
        s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.address(fam)) / proto.opens(44000, way.port))).dropped(
            "NoLocalBackend"
        )


# KEP-1669: judged for this node and for the cluster separately.
STATES = {
    "a terminating pod here and a ready one elsewhere": ("terminating", "ready"),
    "a terminating pod elsewhere alone": (None, "terminating"),
    "pods that do not serve": ("gone", "gone"),
}


def ending(fam, here, elsewhere):
    """The slices of the Service `shop` with a pod of this node and one of another, in these states."""
    conditions = {"ready": "ready: true", "terminating": "ready: false, serving: true, terminating: true",
                  "gone": "ready: false, serving: false, terminating: true"}
    both = ((POD_A, "node-a", here), (POD_C, "node-b", elsewhere))
    endpoints = "".join(f'- addresses: [ "{fam.at(pod)}" ]\n  nodeName: {node}\n  conditions: {{ {conditions[state]} }}\n'
                        for pod, node, state in both if state)
    return f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: shop-{str(fam).lower()}, namespace: default, labels: {{ kubernetes.io/service-name: shop }} }}
addressType: {"IPv6" if fam.six else "IPv4"}
ports: [ {{ name: tcp-80, protocol: TCP, port: 8080 }} ]
endpoints:
{endpoints}"""


@each("With externalTrafficPolicy Local and {0} clients of a {1} and pods each get what is left to them over {2}", list(STATES), WAYS, FAMILIES)
def ends(s, case, way, fam):
    bare = shop("", more=LOCAL).replace("  selector: {  }\n", "")
    s.given(WORLD, bare, ending(fam, *STATES[case]))
    front, vip = way.address(fam), VIP[fam.six]
    outside = NODE_A.hears(fam.ip(fam.outside, front) / TCP_.opens(44000, way.port))
    if STATES[case][0] == "terminating":
        s.send("uplink0", outside).forwarded(
            POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 63) / TCP_.opens(44000, 8080))
        )
    elif STATES[case][1] == "terminating":
        s.send("uplink0", outside).dropped("NoLocalBackend")
    else:
        syn = fam.ip(fam.outside, front) / TCP_.opens(44000, way.port)
        s.send("uplink0", outside).replied(NODE_A.sends(reset(fam, front, fam.outside, syn)), reason="NoBackend")
    syn = fam.ip(POD_B, vip) / TCP_.opens(33000, 80)
    inside = s.send(POD_B.port, POD_B.sends(syn))
    if STATES[case][1] == "gone":
        inside.replied(POD_B.gets(reset(fam, vip, POD_B, syn)), reason="NoBackend")
    else:
        inside.forwarded("uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_B, POD_C, 63) / TCP_.opens(33000, 8080)))


@each("loadBalancerSourceRanges hold for pods of the cluster too, over {0}", FAMILIES)
def ranges_inside(s, fam):
    own = f"{fam.at(POD_B)}/{128 if fam.six else 32}"
    s.given(WORLD, shop("app: c", more=f'  loadBalancerSourceRanges: [ "{own}" ]'))
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, LB[fam.six]) / TCP_.opens(33000, 80))).dropped("SourceRangeDeny")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(33001, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(33001, 8080))
    )
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, LB[fam.six]) / TCP_.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_B, POD_C, 63) / TCP_.opens(33000, 8080))
    )


@each("A pod may use all endpoints of a Local Service by its external address over {0}", FAMILIES)
def pod_to_local(s, fam):
    s.given(WORLD, shop("app: c", more=LOCAL))
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, LB[fam.six]) / TCP_.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(33000, 8080))
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / TCP_.answers(8080, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(LB[fam.six], POD_A, 62) / TCP_.answers(80, 33000))
    )


@each("A pod reaches a local pod by its node's NodePort over {0}", FAMILIES)
def pod_to_node_port(s, fam):
    s.given(WORLD, shop("app: b", kind="NodePort"))
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, NODE_A) / TCP_.opens(33000, 30080))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP_.opens(33000, 8080))
    )
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / TCP_.answers(8080, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(NODE_A, POD_A, 63) / TCP_.answers(30080, 33000))
    )


@each("loadBalancerSourceRanges keep others out, but not from the NodePort, over {0}", FAMILIES)
def ranges(s, fam):
    s.given(WORLD, shop("app: a", more='  loadBalancerSourceRanges: [ "203.0.113.0/28", "2001:db8:f::/64" ]'))
    friend = "2001:db8:f::5" if fam.six else "203.0.113.5"
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, LB[fam.six]) / TCP_.opens(44000, 80))).dropped("SourceRangeDeny")
    s.send("uplink0", NODE_A.hears(fam.ip(friend, LB[fam.six]) / TCP_.opens(44000, 80))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(friend, POD_A, 63) / TCP_.opens(44000, 8080))
    )
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, NODE_A) / TCP_.opens(44000, 30080))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 63) / TCP_.opens(44000, 8080))
    )


@story("A load-balancer address of ipMode Proxy is not ours")
def proxy_mode(s):
    text = shop("app: a").replace(f'{{ ip: "{LB[False]}" }}', f'{{ ip: "{LB[False]}", ipMode: Proxy }}')
    s.given(WORLD, text)
    packet = TCP_.opens(33000, 80)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, LB[False]) / packet)).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: V4.ip(NODE_A, LB[False], 63) / TCP_.opens(view.pick("nat", "sport", *MASQUERADE), 80)
        ),
    )


# READING: external IPs are off; whoever may create a Service could take over any address (CVE-2020-8554).
@each("An external IP is no frontend unless it is asked for, over {0}", FAMILIES)
def external_ip(s, fam):
    text = service(
        "shop",
        "app: b",
        (("TCP", 80, 8080),),
        VIP[False],
        VIP[True],
        more='  externalIPs: [ "203.0.113.90", "2001:db8:99::90" ]',
    )
    s.given(WORLD, text)
    address = "2001:db8:99::90" if fam.six else "203.0.113.90"
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, address) / TCP_.opens(44000, 80))).dropped("NotForUs")


@each("Mid-stream TCP to a NodePort is reset over {0}", FAMILIES)
def mid_stream(s, fam):
    s.given(WORLD, shop("app: c"))
    segment = fam.ip(fam.outside, NODE_A) / TCP(sport=44000, dport=30080, flags="A", seq=500, ack=700) / Raw(b"hello")
    s.send("uplink0", NODE_A.hears(segment)).replied(
        NODE_A.sends(reset(fam, NODE_A, fam.outside, segment)), reason="InvalidState"
    )


@each("A backend's ICMP error reaches the outside client of a NodePort translated in all its parts over {0}", FAMILIES)
def error_back(s, fam):
    s.given(WORLD, shop("app: c"))
    overlay = NODE_A.overlay(fam.six)
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, NODE_A) / UDP_.opens(44000, 30080))).forwarded(
        "uplink0",
        tunnel(
            NODE_A,
            NODE_B,
            lambda view: fam.ip(overlay, POD_C, 63) / UDP_.opens(view.pick("nat", "sport", *MASQUERADE), 8080),
        ),
    )
    s.send(
        "uplink0",
        lambda view: tunnelled(
            NODE_B,
            NODE_A,
            icmp_error(
                fam,
                POD_C,
                overlay,
                "port unreachable",
                fam.ip(overlay, POD_C, 62) / UDP_.opens(view["nat"], 8080),
                ttl=63,
            ),
        )(view),
    ).forwarded(
        "uplink0",
        NODE_A.sends(
            icmp_error(
                fam,
                NODE_A,
                fam.outside,
                "port unreachable",
                fam.ip(fam.outside, NODE_A, 62) / UDP_.opens(44000, 30080),
                ttl=62,
            )
        ),
    )
