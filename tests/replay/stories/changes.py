"""A Service that changes under its clients: endpoints that come and go, types, labels, addresses."""

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    POD_A,
    POD_B,
    POD_C,
    POD_D,
    SCTP_,
    TCP_,
    UDP_,
    V4,
    WORLD,
    service,
    world,
)
from model import MASQUERADE, our_error, reset, tunnel, tunnelled
from scapy.layers.inet import TCP
from scapy.packet import Raw
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
LB = {False: "203.0.113.80", True: "2001:db8:99::80"}
PORTS = tuple((proto, 80, 8080, 30080) for proto in ("TCP", "UDP", "SCTP"))


def bare(name="web", kind="ClusterIP", more="", ports=PORTS, vips=VIP):
    """A Service without a selector: its endpoints are what the slices say."""
    text = service(name, "", ports, vips[False], vips[True], kind=kind, more=more).replace("  selector: {  }\n", "")
    if kind == "LoadBalancer":
        text += f'\nstatus: {{ loadBalancer: {{ ingress: [ {{ ip: "{LB[False]}" }}, {{ ip: "{LB[True]}" }} ] }} }}'
    return text


def endpoints(*states, name="web", port=8080, labels="", numbers=PORTS):
    """Slices of both families: each state is a pod, or (pod, "r" ready / "s" serving / "t" terminating, hints)."""
    texts = []
    for fam in FAMILIES:
        lines = []
        for state in states:
            who, flags, hints = (*state, "")[:3] if isinstance(state, tuple) else (state, "rs", "")
            has = {word: str(word[0] in flags).lower() for word in ("ready", "serving", "terminating")}
            lines.append(
                f'- {{ addresses: [ "{fam.at(who)}" ], nodeName: {who.node.name}, hints: {{ {hints} }}, conditions: '
                f"{{ ready: {has['ready']}, serving: {has['serving']}, terminating: {has['terminating']} }} }}"
            )
        ports = ", ".join(
            f"{{ name: {proto.lower()}-{number}, protocol: {proto}, port: {port} }}" for proto, number, *_ in numbers
        )
        texts.append(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n"
            f"metadata: {{ name: {name}-{fam.name.lower()}, labels: {{ kubernetes.io/service-name: {name}{labels} }} }}\n"
            f"addressType: {fam}\nports: [ {ports} ]\n"
            + ("endpoints:\n" + "\n".join(lines) if lines else "endpoints: []")
        )
    return "\n---\n".join(texts)


class Way:
    """A kind of client and the address it uses."""

    def __init__(self, name, kind, port):
        self.name, self.kind, self.port = name, kind, port

    def __str__(self):
        return self.name

    def asks(self, s, fam, proto, sport=44000, flags=None):
        packet = proto.opens(sport, self.port) if flags is None else TCP(sport=sport, dport=self.port, **flags)
        if self.kind == "pod":
            return s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / packet))
        if self.kind == "host":
            return s.send("host", NODE_A.host_sends(fam.ip(NODE_A.overlay(fam.six), VIP[fam.six]) / packet))
        front = LB[fam.six] if self.kind == "balancer" else NODE_A.address(fam.six)
        return s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, front) / packet))

    def reaches(self, fam, proto, there, sport=44000, port=8080, flags=None):
        """The frame towards a pod of node B; outside clients bear the overlay address."""

        def inner(view):
            outside = self.kind in ("balancer", "node port")
            source = POD_A if self.kind == "pod" else NODE_A.overlay(fam.six)
            number = view.pick(f"port of {there.name}", "sport", *MASQUERADE) if outside else sport
            packet = proto.opens(number, port) if flags is None else TCP(sport=number, dport=port, **flags)
            return fam.ip(source, there, 63) / packet

        return tunnel(NODE_A, NODE_B, inner)


WAYS = [
    Way("a pod at a ClusterIP", "pod", 80),
    Way("the node at a ClusterIP", "host", 80),
    Way("a client at a load-balancer address", "balancer", 80),
    Way("a client at a NodePort", "node port", 30080),
]


@each(
    "A {0} flow of {1} over {2} moves to another pod with its next packet when its pod goes",
    (UDP_, SCTP_),
    WAYS,
    FAMILIES,
)
def moves(s, proto, way, fam):
    s.given(WORLD, bare(kind="LoadBalancer"), endpoints(POD_C))
    for _ in range(2):
        way.asks(s, fam, proto).forwarded("uplink0", way.reaches(fam, proto, POD_C))
    s.change(WORLD, bare(kind="LoadBalancer"), endpoints(POD_D))
    for _ in range(2):
        way.asks(s, fam, proto).forwarded("uplink0", way.reaches(fam, proto, POD_D))


@each("A UDP flow of {0} over {1} follows a changed target port with its next packet", WAYS, FAMILIES)
def target_port(s, way, fam):
    s.given(WORLD, bare(kind="LoadBalancer"), endpoints(POD_C))
    way.asks(s, fam, UDP_).forwarded("uplink0", way.reaches(fam, UDP_, POD_C))
    s.change(WORLD, bare(kind="LoadBalancer"), endpoints(POD_C, port=9090))
    way.asks(s, fam, UDP_).forwarded(
        "uplink0",
        tunnel(
            NODE_A,
            NODE_B,
            lambda view: (
                fam.ip(POD_A if way.kind == "pod" else NODE_A.overlay(fam.six), POD_C, 63)
                / UDP_.opens(
                    view.pick("new port", "sport", *MASQUERADE) if way.kind in ("balancer", "node port") else 44000,
                    9090,
                )
            ),
        ),
    )


@each("A UDP flow that lost its pod and has no other is refused over {0}, and served again when a pod comes", FAMILIES)
def comes_back(s, fam):
    way = WAYS[0]
    s.given(WORLD, bare(), endpoints(POD_C))
    way.asks(s, fam, UDP_).forwarded("uplink0", way.reaches(fam, UDP_, POD_C))
    s.change(WORLD, bare(), endpoints((POD_C, "")))
    # The pod is still there, though not ready: what it serves already it may go on serving.
    way.asks(s, fam, UDP_).forwarded("uplink0", way.reaches(fam, UDP_, POD_C))
    s.change(WORLD, bare(), endpoints())
    packet = fam.ip(POD_A, VIP[fam.six]) / UDP_.opens(44000, 80)
    way.asks(s, fam, UDP_).replied(
        POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "port unreachable", packet)), reason="NoBackend"
    )
    s.change(WORLD, bare(), endpoints(POD_D))
    way.asks(s, fam, UDP_).forwarded("uplink0", way.reaches(fam, UDP_, POD_D))


@each(
    "A client that sends UDP all the time is refused over {0} while the only pod is not ready, and served when it is",
    FAMILIES,
)
def becomes_ready(s, fam):
    way = WAYS[0]
    s.given(WORLD, bare(), endpoints((POD_C, "")))
    packet = fam.ip(POD_A, VIP[fam.six]) / UDP_.opens(44000, 80)
    for _ in range(3):
        way.asks(s, fam, UDP_).replied(
            POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "port unreachable", packet)), reason="NoBackend"
        )
    s.change(WORLD, bare(), endpoints(POD_C))
    way.asks(s, fam, UDP_).forwarded("uplink0", way.reaches(fam, UDP_, POD_C))


def shakes_hands(s, fam, vip=VIP, there=POD_C, sport=44000):
    """A TCP connection from pod a through a ClusterIP, set up and confirmed."""
    syn = TCP(sport=sport, dport=80, flags="S", seq=99)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip[fam.six]) / syn)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, there, 63) / TCP(sport=sport, dport=8080, flags="S", seq=99))
    )
    answer = dict(flags="SA", seq=499, ack=100)
    s.send(
        "uplink0", tunnelled(NODE_B, NODE_A, fam.ip(there, POD_A, 63) / TCP(sport=8080, dport=sport, **answer))
    ).forwarded(POD_A.port, POD_A.gets(fam.ip(vip[fam.six], POD_A, 62) / TCP(sport=80, dport=sport, **answer)))


def speaks(fam, vip=VIP, sport=44000, port=80):
    return dict(sport=sport, dport=port, flags="PA", seq=100, ack=500)


def goes_on(s, fam, vip=VIP, there=POD_C, sport=44000):
    said = speaks(fam, vip, sport)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip[fam.six]) / TCP(**said) / Raw(b"hello"))).forwarded(
        "uplink0",
        tunnel(NODE_A, NODE_B, fam.ip(POD_A, there, 63) / TCP(**{**said, "dport": 8080}) / Raw(b"hello")),
    )


def is_cut(s, fam, vip=VIP, sport=44000, reason="NoBackend"):
    segment = fam.ip(POD_A, vip[fam.six]) / TCP(**speaks(fam, vip, sport)) / Raw(b"hello")
    s.send(POD_A.port, POD_A.sends(segment)).replied(
        POD_A.gets(reset(fam, vip[fam.six], POD_A, segment)), reason=reason
    )


@each("A TCP connection to a pod that is terminating lives on over {0}, and a new one goes to another pod", FAMILIES)
def terminating(s, fam):
    s.given(WORLD, bare(), endpoints(POD_C))
    shakes_hands(s, fam)
    goes_on(s, fam)
    s.change(WORLD, bare(), endpoints((POD_C, "st"), POD_D))
    goes_on(s, fam)
    WAYS[0].asks(s, fam, TCP_, sport=44001).forwarded("uplink0", WAYS[0].reaches(fam, TCP_, POD_D, sport=44001))


@each("A TCP connection to a pod that has vanished is reset over {0} with its next packet", FAMILIES)
def vanished(s, fam):
    s.given(WORLD, bare(), endpoints(POD_C))
    shakes_hands(s, fam)
    goes_on(s, fam)
    s.change(WORLD, bare(), endpoints(POD_D))
    is_cut(s, fam)
    WAYS[0].asks(s, fam, TCP_).forwarded("uplink0", WAYS[0].reaches(fam, TCP_, POD_D))


@each("A TCP connection from outside to a pod that has vanished is reset over {0}", FAMILIES)
def vanished_outside(s, fam):
    way = WAYS[2]
    s.given(WORLD, bare(kind="LoadBalancer"), endpoints(POD_C))
    way.asks(s, fam, TCP_).forwarded("uplink0", way.reaches(fam, TCP_, POD_C))
    overlay = NODE_A.overlay(fam.six)
    s.send(
        "uplink0",
        lambda view: tunnelled(NODE_B, NODE_A, fam.ip(POD_C, overlay, 63) / TCP_.answers(8080, view["port of c"]))(
            view
        ),
    ).forwarded("uplink0", NODE_A.sends(fam.ip(LB[fam.six], fam.outside, 62) / TCP_.answers(80, 44000)))
    s.change(WORLD, bare(kind="LoadBalancer"), endpoints(POD_D))
    segment = fam.ip(fam.outside, LB[fam.six]) / TCP(sport=44000, dport=80, flags="A", seq=1001, ack=9001)
    s.send("uplink0", NODE_A.hears(segment)).replied(
        NODE_A.sends(reset(fam, LB[fam.six], fam.outside, segment)), reason="NoBackend"
    )


@each("A change of traffic policy or of topology leaves established connections alone over {0}", FAMILIES)
def policy_change(s, fam):
    s.given(WORLD, bare(), endpoints(POD_C))
    shakes_hands(s, fam)
    s.change(WORLD, bare(more="  internalTrafficPolicy: Local"), endpoints(POD_C, POD_B))
    goes_on(s, fam)
    near = "forNodes: [ { name: node-a } ]"
    s.change(WORLD, bare(), endpoints((POD_C, "rs", "forNodes: [ { name: node-b } ]"), (POD_B, "rs", near)))
    goes_on(s, fam)


@each("A ClusterIP that another Service takes over starts clean over {0}", FAMILIES)
def taken_over(s, fam):
    s.given(WORLD, bare("old"), endpoints(POD_C, name="old"))
    shakes_hands(s, fam)
    WAYS[0].asks(s, fam, UDP_).forwarded("uplink0", WAYS[0].reaches(fam, UDP_, POD_C))
    s.change(WORLD, bare("new"), endpoints(POD_D, name="new"))
    WAYS[0].asks(s, fam, UDP_).forwarded("uplink0", WAYS[0].reaches(fam, UDP_, POD_D), service="default/new:80/UDP")
    is_cut(s, fam)
    WAYS[0].asks(s, fam, TCP_).forwarded("uplink0", WAYS[0].reaches(fam, TCP_, POD_D), service="default/new:80/TCP")


@story("A Service goes from type to type and answers as each of them, and as ExternalName not at all")
def types(s):
    def node_port(step, works):
        packet = V4.ip(V4.outside, NODE_A) / TCP_.opens(step, 30080)
        sent = s.send("uplink0", NODE_A.hears(packet))
        sent.punted(NODE_A.host_gets(packet)) if not works else sent.forwarded(
            POD_B.port, POD_B.gets(V4.ip(V4.outside, POD_B, 63) / TCP_.opens(step, 8080))
        )

    def balancer(step, works):
        sent = s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, LB[False]) / TCP_.opens(step, 80)))
        sent.dropped("NotForUs") if not works else sent.forwarded(
            POD_B.port, POD_B.gets(V4.ip(V4.outside, POD_B, 63) / TCP_.opens(step, 8080))
        )

    def cluster_ip(step, works):
        sent = s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / TCP_.opens(step, 80)))
        sent.dropped("NoRoute") if not works else sent.forwarded(
            POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63) / TCP_.opens(step, 8080))
        )

    kinds = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "NodePort", "ClusterIP")
    for number, kind in enumerate(kinds):
        made = bare(kind=kind)
        if kind == "ExternalName":
            made = "apiVersion: v1\nkind: Service\nmetadata: { name: web }\nspec: { type: ExternalName, externalName: a.example }"
        if number == 0:
            s.given(WORLD, made, endpoints(POD_B))
        else:
            s.change(WORLD, made, endpoints(POD_B))
        base = 40000 + 10 * number
        cluster_ip(base, kind != "ExternalName")
        node_port(base + 1, kind in ("NodePort", "LoadBalancer"))
        balancer(base + 2, kind == "LoadBalancer")


@story("The label of another proxy turns a Service off, and its removal on")
def other_proxy(s):
    foreign = bare().replace(
        "name: web, namespace: default", 'name: web, labels: { service.kubernetes.io/service-proxy-name: "" }'
    )
    ask = POD_A.sends(V4.ip(POD_A, VIP[False]) / UDP_.opens(44000, 80))
    gets = POD_B.gets(V4.ip(POD_A, POD_B, 63) / UDP_.opens(44000, 8080))
    s.given(WORLD, bare(), endpoints(POD_B))
    s.send(POD_A.port, ask).forwarded(POD_B.port, gets)
    s.change(WORLD, foreign, endpoints(POD_B))
    s.send(POD_A.port, ask).dropped("NoRoute")
    s.change(WORLD, bare(), endpoints(POD_B))
    s.send(POD_A.port, ask).forwarded(POD_B.port, gets)


@story("The label of headless Services on its slices leaves a Service without endpoints")
def headless_slices(s):
    s.given(WORLD, bare(), endpoints(POD_B))
    packet = V4.ip(POD_A, VIP[False]) / UDP_.opens(44000, 80)
    s.send(POD_A.port, POD_A.sends(packet)).forwarded(
        POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63) / UDP_.opens(44000, 8080))
    )
    s.change(WORLD, bare(), endpoints(POD_B, labels=', service.kubernetes.io/headless: ""'))
    s.send(POD_A.port, POD_A.sends(packet)).replied(
        POD_A.gets(our_error(V4, NODE_A.overlay(False), POD_A, "port unreachable", packet)), reason="NoBackend"
    )


@each("Three Services come and go in turn over {0}, and the others do not notice", FAMILIES)
def up_and_down(s, fam):
    vips = [{False: f"10.96.0.{20 + n}", True: f"fd00:10:96::{20 + n}"} for n in range(3)]

    def of(*numbers):
        return [
            text
            for n in numbers
            for text in (
                bare(f"s{n}", vips=vips[n], ports=PORTS[:1]),
                endpoints(POD_C, name=f"s{n}", numbers=PORTS[:1]),
            )
        ]

    def check(sport, *alive):
        for n in range(3):
            sent = s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vips[n][fam.six]) / TCP_.opens(sport + n, 80)))
            if n in alive:
                sent.forwarded(
                    "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(sport + n, 8080))
                )
            else:
                sent.dropped("NoRoute")

    s.given(WORLD, *of(0, 1))
    check(33000, 0, 1)
    shakes_hands(s, fam, vips[1], sport=44000)
    s.change(WORLD, *of(1))
    check(33010, 1)
    goes_on(s, fam, vips[1])
    s.change(WORLD, *of(1, 2))
    check(33020, 1, 2)
    goes_on(s, fam, vips[1])
    s.change(WORLD, *of(0, 1, 2))
    check(33030, 0, 1, 2)
    goes_on(s, fam, vips[1])


@each("loadBalancerSourceRanges are changed, widened to all and taken away under the clients over {0}", FAMILIES)
def ranges(s, fam):
    all_there_is = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]
    own = ["2001:db8:7::/64", "198.51.100.0/24"]
    scenes = [
        (own, True),
        (["203.0.113.0/28", "2001:db8:f::/64"], False),
        (all_there_is, True),
        (["10.0.0.1/32"], False),
        ([], True),
    ]
    for number, (allowed, passes) in enumerate(scenes):
        quoted = ", ".join(f'" {net} "' for net in allowed)
        objects = (WORLD, bare(kind="LoadBalancer", more=f"  loadBalancerSourceRanges: [ {quoted} ]"), endpoints(POD_A))
        s.given(*objects) if number == 0 else s.change(*objects)
        sport = 44000 + number
        sent = s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, LB[fam.six]) / TCP_.opens(sport, 80)))
        if passes:
            sent.forwarded(POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 63) / TCP_.opens(sport, 8080)))
        else:
            sent.dropped("SourceRangeDeny")


def zoned(zone):
    """The world with node A in this zone."""
    label = f"topology.kubernetes.io/zone: {zone}"
    return world().replace("kubernetes.io/hostname: node-a", f"kubernetes.io/hostname: node-a, {label}")


@each("A node that changes its zone uses the endpoints of its new zone over {0}", FAMILIES)
def zone_change(s, fam):
    hinted = endpoints((POD_C, "rs", "forZones: [ { name: east } ]"), (POD_D, "rs", "forZones: [ { name: west } ]"))
    for number, (zone, there) in enumerate((("east", POD_C), ("west", POD_D), ("east", POD_C))):
        objects = (zoned(zone), bare(), hinted)
        s.given(*objects) if number == 0 else s.change(*objects)
        for sport in range(33000 + 10 * number, 33006 + 10 * number):
            WAYS[0].asks(s, fam, TCP_, sport=sport).forwarded("uplink0", WAYS[0].reaches(fam, TCP_, there, sport=sport))
