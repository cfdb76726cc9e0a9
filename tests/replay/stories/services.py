"""ClusterIP Services: translation there and back, refusals, hairpin, affinity, traffic policies."""

from scapy.layers.inet import TCP, UDP
from scapy.packet import Raw

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    POD_A,
    POD_B,
    POD_C,
    POD_D,
    PROTOCOLS,
    SCTP_,
    TCP_,
    UDP_,
    V4,
    WORLD,
    backs,
    service,
)
from model import echo_answer, our_error, reset, tunnel, tunnelled
from story import ANY, each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
ALL = tuple((proto, 80, 8080) for proto in ("TCP", "UDP", "SCTP"))


def web(backends, ports=ALL, **more):
    return service("web", backends, ports, VIP[False], VIP[True], **more)


def at(fam, who, port):
    address = fam.at(who)
    return f"[{address}]:{port}" if fam.six else f"{address}:{port}"


@each(
    "{0} over {1} to a ClusterIP reaches the pod behind it on another node, and its reply bears the ClusterIP",
    PROTOCOLS,
    FAMILIES,
)
def remote(s, proto, fam):
    s.given(WORLD, web("app: c"))
    vip = VIP[fam.six]
    named = dict(service=f"default/web:80/{proto}", backend=at(fam, POD_C, 8080))
    for _ in range(2):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / proto.opens(33000, 80))).forwarded(
            "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / proto.opens(33000, 8080)), **named
        )
        named = {}
        s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / proto.answers(8080, 33000))).forwarded(
            POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 62) / proto.answers(80, 33000))
        )


@each(
    "{0} over {1} to a ClusterIP reaches the pod behind it on the same node, and its reply bears the ClusterIP",
    PROTOCOLS,
    FAMILIES,
)
def local(s, proto, fam):
    s.given(WORLD, web("app: b"))
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / proto.opens(33000, 80))).forwarded(
        POD_B.port,
        POD_B.gets(fam.ip(POD_A, POD_B, 63) / proto.opens(33000, 8080)),
        service=f"default/web:80/{proto}",
        backend=at(fam, POD_B, 8080),
    )
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / proto.answers(8080, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 63) / proto.answers(80, 33000))
    )


@each("One of several pods is chosen for {0} over {1}, and the flow stays with it", PROTOCOLS, FAMILIES)
def several(s, proto, fam):
    s.given(backs(POD_C, POD_D), web("tier: back"))
    vip = VIP[fam.six]
    both = {at(fam, pod, 8080): pod for pod in (POD_C, POD_D)}
    for sport in range(33000, 33008):

        def inner(view, sport=sport):
            there = (
                fam.at(POD_C)
                if view.got is None
                else view.choose(f"backend of {sport}", "dst", [fam.at(pod) for pod in both.values()])
            )
            if view.backend in both and fam.at(both[view.backend]) != there:
                there = fam.at(both[view.backend])
            return fam.ip(POD_A, there, 63) / proto.opens(sport, 8080)

        step = s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / proto.opens(sport, 80)))
        step.forwarded("uplink0", tunnel(NODE_A, NODE_B, inner), service=f"default/web:80/{proto}", backend=set(both))
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / proto.opens(sport, 80))).forwarded(
            "uplink0", tunnel(NODE_A, NODE_B, inner)
        )


@each("The wrong port of a ClusterIP is refused over {0}", FAMILIES)
def wrong_port(s, fam):
    s.given(WORLD, web("app: c"))
    refused_all(s, fam, 81)


@each("A ClusterIP without endpoints refuses over {0}", FAMILIES)
def no_endpoints(s, fam):
    s.given(WORLD, web("app: nobody"))
    refused_all(s, fam, 80, **{"service": ANY})


def refused_all(s, fam, port, **named):
    vip = VIP[fam.six]
    syn = fam.ip(POD_A, vip) / TCP_.opens(33000, port)
    s.send(POD_A.port, POD_A.sends(syn)).replied(POD_A.gets(reset(fam, vip, POD_A, syn)), reason="NoBackend", **named)
    for proto in (UDP_, SCTP_):
        packet = fam.ip(POD_A, vip) / proto.opens(33000, port)
        s.send(POD_A.port, POD_A.sends(packet)).replied(
            POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "port unreachable", packet)),
            reason="NoBackend",
            **named,
        )


@each("A protocol that the Service does not have is refused over {0}", FAMILIES)
def wrong_protocol(s, fam):
    s.given(WORLD, web("app: c", ports=(("TCP", 80, 8080),)))
    packet = fam.ip(POD_A, VIP[fam.six]) / UDP_.opens(33000, 80)
    s.send(POD_A.port, POD_A.sends(packet)).replied(
        POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "port unreachable", packet)), reason="NoBackend"
    )


@each("An address of the service range that nobody owns is NoRoute over {0}", FAMILIES)
def unowned(s, fam):
    s.given(WORLD, web("app: c"))
    nobody = "fd00:10:96::99" if fam.six else "10.96.0.99"
    for proto in PROTOCOLS:
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, nobody) / proto.opens(33000, 80))).dropped("NoRoute")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, nobody) / fam.echo())).dropped("NoRoute")


@each("A ping to a ClusterIP is answered over {0}", FAMILIES)
def echo(s, fam):
    s.given(WORLD, web("app: c"))
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / fam.echo(9, 3))).replied(
        POD_A.gets(echo_answer(fam, vip, POD_A, ident=9, seq=3))
    )


@each("A pod reaches itself through its own Service with {0} over {1}", PROTOCOLS, FAMILIES)
def hairpin(s, proto, fam):
    # READING: the masquerade address of a hairpin is not in the contract; it must be one of the node's or the gateway's
    # or the ClusterIP, and the answer to it must come back as from the ClusterIP.
    s.given(WORLD, web("app: a"))
    vip = VIP[fam.six]
    sources = [NODE_A.overlay(fam.six), NODE_A.address(fam.six), vip, fam.pod_gateway]

    def turned(view):
        src = view.choose("hairpin source", "src", sources)
        return fam.ip(src, POD_A, 63) / proto.opens(view.pick("hairpin port", "sport", 1024, 65535), 8080)

    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / proto.opens(33000, 80))).forwarded(
        POD_A.port, POD_A.gets(turned), service=f"default/web:80/{proto}", backend=at(fam, POD_A, 8080)
    )
    s.send(
        POD_A.port,
        POD_A.sends(lambda view: fam.ip(POD_A, view["hairpin source"]) / proto.answers(8080, view["hairpin port"])),
    ).forwarded(POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 63) / proto.answers(80, 33000)))


@story("UDP, TCP and SCTP of one port number are three mappings")
def three(s):
    s.given(WORLD, web("app: b", ports=(("TCP", 80, 8001), ("UDP", 80, 8002), ("SCTP", 80, 8003))))
    for proto, target in zip(PROTOCOLS, (8001, 8002, 8003)):
        s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / proto.opens(33000, 80))).forwarded(
            POD_B.port,
            POD_B.gets(V4.ip(POD_A, POD_B, 63) / proto.opens(33000, target)),
            service=f"default/web:80/{proto}",
            backend=f"10.244.1.11:{target}",
        )


@story("A UDP checksum of zero stays zero through a Service")
def zero_udp(s):
    # READING: zero means that the sender computed none; translation does not invent one.
    s.given(WORLD, web("app: b"))
    s.send(
        POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / UDP(sport=33000, dport=80, chksum=0) / Raw(b"x"))
    ).forwarded(POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63) / UDP(sport=33000, dport=8080, chksum=0) / Raw(b"x")))


@each("A wrong transport checksum stays wrong through a Service over {0}", FAMILIES)
def wrong_stays_wrong(s, fam):
    s.given(WORLD, web("app: b"))
    for proto, layer, number in ((TCP_, TCP, 0), (UDP_, UDP, 1)):

        def frame(view, layer=layer, proto=proto):
            right = POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / proto.opens(33000, 80))(view)
            wrong = right.__class__(bytes(right))
            wrong[layer].chksum ^= 0x0101
            return wrong

        s.send(POD_A.port, frame, broken=True).forwarded(POD_B.port, still_wrong(fam, proto, layer))


def still_wrong(fam, proto, layer):
    """The right frame, but for a transport checksum that must be anything but right."""
    from frames import wrong_checksums
    from story import Mismatch

    def made(view):
        right = POD_B.gets(fam.ip(POD_A, POD_B, 63) / proto.opens(33000, 8080))(view)
        right = right.__class__(bytes(right))
        if view.got is None:
            right[layer].chksum ^= 0x0101
        else:
            if not any(layer.__name__ in text for text in wrong_checksums(view.got)):
                raise Mismatch("a wrong checksum was made right")
            right[layer].chksum = right.__class__(view.got)[layer].chksum
        return right

    return made


@each("An unready pod is not chosen over {0}", FAMILIES)
def unready(s, fam):
    down = POD_D.yaml().replace('status: "True"', 'status: "False"').replace("app: d", "app: c")
    s.given(WORLD.replace(POD_D.yaml(), down), web("app: c"))
    for sport in range(33000, 33006):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(sport, 80))).forwarded(
            "uplink0",
            tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(sport, 8080)),
            backend=at(fam, POD_C, 8080),
        )


SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: web-x, namespace: default, labels: {{ kubernetes.io/service-name: web }} }}
addressType: {family}
ports: [ {{ name: tcp-80, protocol: TCP, port: 9090 }} ]
endpoints:
- addresses: [ "{address}" ]
  nodeName: node-b
  conditions: {{ ready: true, serving: true, terminating: false }}
"""


@each("An EndpointSlice that is there is taken as it is over {0}", FAMILIES)
def slices(s, fam):
    bare = service("web", "", (("TCP", 80, 8080),), VIP[False], VIP[True]).replace("  selector: {  }\n", "")
    s.given(WORLD, bare, SLICE.format(family=fam, address=fam.at(POD_D)))
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(33000, 80))).forwarded(
        "uplink0",
        tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_D, 63) / TCP_.opens(33000, 9090)),
        service="default/web:80/TCP",
        backend=at(fam, POD_D, 9090),
    )


@story("A named targetPort is looked up on the pod")
def named_target(s):
    named = POD_B.yaml().replace("ports: [  ]", "ports: [ { name: http, containerPort: 7070, protocol: TCP } ]")
    s.given(WORLD.replace(POD_B.yaml(), named), web("app: b", ports=(("TCP", 80, "http"),)))
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / TCP_.opens(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63) / TCP_.opens(33000, 7070)), backend="10.244.1.11:7070"
    )


@each("ClientIP affinity keeps a client with its pod over {0}", FAMILIES)
def affinity(s, fam):
    s.given(backs(POD_C, POD_D), web("tier: back", more="  sessionAffinity: ClientIP"))
    both = [fam.at(POD_C), fam.at(POD_D)]
    for sport in range(33000, 33012):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(sport, 80))).forwarded(
            "uplink0",
            tunnel(
                NODE_A,
                NODE_B,
                lambda view, sport=sport: (
                    fam.ip(POD_A, view.choose("the pod", "dst", both), 63) / TCP_.opens(sport, 8080)
                ),
            ),
        )


@story("With internalTrafficPolicy Local only local pods are used, and without one it is NoLocalBackend")
def internal_local(s):
    local = "  internalTrafficPolicy: Local"
    s.given(
        backs(POD_B, POD_C),
        web("tier: back", more=local),
        service("far", "app: d", (("TCP", 80, 8080),), "10.96.0.20", more=local),
    )
    for sport in range(33000, 33006):
        s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / TCP_.opens(sport, 80))).forwarded(
            POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63) / TCP_.opens(sport, 8080)), backend="10.244.1.11:8080"
        )
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, "10.96.0.20") / TCP_.opens(33000, 80))).dropped("NoLocalBackend")


@story("A headless Service and one for another proxy are left alone")
def not_ours(s):
    foreign = web("app: b").replace(
        "name: web, namespace: default",
        "name: web, namespace: default, labels: { service.kubernetes.io/service-proxy-name: x }",
    )
    s.given(WORLD, foreign)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP[False]) / TCP_.opens(33000, 80))).dropped("NoRoute", service=None)


@each("Mid-stream TCP to a ClusterIP is reset over {0}", FAMILIES)
def mid_stream(s, fam):
    s.given(WORLD, web("app: c"))
    vip = VIP[fam.six]
    segment = fam.ip(POD_A, vip) / TCP(sport=33000, dport=80, flags="PA", seq=500, ack=700, window=500) / Raw(b"hello")
    s.send(POD_A.port, POD_A.sends(segment)).replied(POD_A.gets(reset(fam, vip, POD_A, segment)), reason="InvalidState")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP(sport=33001, dport=80, flags="R", seq=500))).dropped(
        "InvalidState"
    )
