"""From pods to the world outside: masquerade, its exceptions and its way back."""

from scapy.packet import Raw

from cluster import FAMILIES, NODE_A, NODE_B, NODE_C, POD_A, POD_B, PROTOCOLS, TCP_, UDP_, V4, V6, WORLD
from model import MASQUERADE, icmp_error
from story import each, story


@each("A pod's {0} over {1} to the outside bears the node's address, and the reply comes back", PROTOCOLS, FAMILIES)
def there_and_back(s, proto, fam):
    s.given(WORLD)
    for _ in range(2):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / proto.opens(33000, 443))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view: fam.ip(NODE_A, fam.outside, 63) / proto.opens(view.pick("nat", "sport", *MASQUERADE), 443)
            ),
        )
        s.send(
            "uplink0", NODE_A.hears(lambda view: fam.ip(fam.outside, NODE_A, 50) / proto.answers(443, view["nat"]))
        ).forwarded(POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 49) / proto.answers(443, 33000)))


@each("Two pods of one source port do not share a masqueraded flow over {0}", FAMILIES)
def two_pods(s, fam):
    s.given(WORLD)
    for pod in (POD_A, POD_B):
        s.send(pod.port, pod.sends(fam.ip(pod, fam.outside) / UDP_.opens(33000, 53))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, pod=pod: (
                    fam.ip(NODE_A, fam.outside, 63) / UDP_.opens(view.pick(pod.name, "sport", *MASQUERADE), 53)
                )
            ),
        )
    for pod in (POD_A, POD_B):
        s.send(
            "uplink0",
            NODE_A.hears(lambda view, pod=pod: fam.ip(fam.outside, NODE_A, 50) / UDP_.answers(53, view[pod.name])),
        ).forwarded(pod.port, pod.gets(fam.ip(fam.outside, pod, 49) / UDP_.answers(53, 33000)))


@each("A pod's ping to the outside is masqueraded by its identifier over {0}", FAMILIES)
def echo(s, fam):
    # READING: which identifiers may be used is left open; it must be one and the same for the flow.
    s.given(WORLD)
    for seq in (1, 2):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / fam.echo(77, seq))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, seq=seq: (
                    fam.ip(NODE_A, fam.outside, 63) / fam.echo(view.pick("ident", "id", 0, 65535), seq)
                )
            ),
        )
        s.send(
            "uplink0",
            NODE_A.hears(lambda view, seq=seq: fam.ip(fam.outside, NODE_A, 50) / fam.echo_reply(view["ident"], seq)),
        ).forwarded(POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 49) / fam.echo_reply(77, seq)))


@story("What masquerade excludes leaves with the pod's own address")
def excluded(s):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, "10.200.0.9") / UDP_.opens(33000, 53))).forwarded(
        "uplink0", NODE_A.sends(V4.ip(POD_A, "10.200.0.9", 63) / UDP_.opens(33000, 53))
    )


@each("With masquerade off a pod's packet leaves with its own address over {0}", FAMILIES)
def disabled(s, fam):
    s.given(WORLD, config="masquerade: { enabled: false }\n")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(33000, 53))).forwarded(
        "uplink0", NODE_A.sends(fam.ip(POD_A, fam.outside, 63) / UDP_.opens(33000, 53))
    )


@story("Masquerade takes its ports and its exceptions from the configuration")
def configured(s):
    s.given(
        WORLD,
        config='masquerade: { enabled: true, exclude: [198.51.100.0/28, "2001:db8:77::/64"], ports: 50048-51071 }\n',
    )
    for fam, near in ((V4, "198.51.100.3"), (V6, "2001:db8:77::3")):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, near) / UDP_.opens(33000, 53))).forwarded(
            "uplink0", NODE_A.sends(fam.ip(POD_A, near, 63) / UDP_.opens(33000, 53))
        )
    for fam in (V4, V6):
        s.send(
            POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside.replace(".9", ".99")) / UDP_.opens(33000, 53))
        ).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, fam=fam: (
                    fam.ip(NODE_A, fam.outside.replace(".9", ".99"), 63)
                    / UDP_.opens(view.pick(None, "sport", 50048, 51071), 53)
                )
            ),
        )


@each("A pod that talks to another node's InternalIP is masqueraded over {0}", FAMILIES)
def other_node(s, fam):
    s.given(WORLD)
    for node in (NODE_B, NODE_C):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, node) / TCP_.opens(33000, 22))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, node=node: (
                    fam.ip(NODE_A, node, 63) / TCP_.opens(view.pick(node.name, "sport", *MASQUERADE), 22)
                )
            ),
        )
    s.send("uplink0", NODE_A.hears(lambda view: fam.ip(NODE_B, NODE_A) / TCP_.answers(22, view["node-b"]))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(NODE_B, POD_A, 63) / TCP_.answers(22, 33000))
    )


@each("A neighbour on the node's own subnet is reached without the gateway over {0}", FAMILIES)
def on_link(s, fam):
    s.given(WORLD)
    near = "2001:db8:50::77" if fam.six else "192.168.50.77"
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, near) / UDP_.opens(33000, 53))).forwarded(
        "uplink0",
        NODE_A.sends(lambda view: fam.ip(NODE_A, near, 63) / UDP_.opens(view.pick("nat", "sport", *MASQUERADE), 53)),
    )


@each("Nobody outside reaches a pod through a masqueraded port that is not its peer's over {0}", FAMILIES)
def stranger(s, fam):
    # READING: endpoint-dependent mapping; the contract names no verdict for the stranger, only the pod must not see it.
    s.given(WORLD)
    stranger = "2001:db8:8::66" if fam.six else "198.51.100.66"
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(33000, 53))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(NODE_A, fam.outside, 63) / UDP_.opens(view.pick("nat", "sport", *MASQUERADE), 53)
        ),
    )
    s.send(
        "uplink0", NODE_A.hears(lambda view: fam.ip(stranger, NODE_A, 50) / UDP_.answers(53, view["nat"]))
    ).goes_nowhere()


@each("A protocol without ports is not let out un-SNATed over {0}", FAMILIES)
def no_ports(s, fam):
    # READING: fail closed; masquerade needs a port or an identifier, so it is UnsupportedProtocol.
    s.given(WORLD)
    number = {"nh": 47} if fam.six else {"proto": 47}
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside, **number) / Raw(bytes(16)))).dropped(
        "UnsupportedProtocol"
    )


@each(
    "A {0} error from the path outside reaches the pod translated in all its parts over {1}",
    ["time exceeded", "port unreachable", "too big"],
    FAMILIES,
)
def errors(s, what, fam):
    s.given(WORLD)
    mtu = 1400 if what == "too big" else 0
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(33000, 443))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(NODE_A, fam.outside, 63) / UDP_.opens(view.pick("nat", "sport", *MASQUERADE), 443)
        ),
    )
    s.send(
        "uplink0",
        NODE_A.hears(
            icmp_error(
                fam,
                fam.outside_router,
                NODE_A,
                what,
                lambda view: fam.ip(NODE_A, fam.outside, 3) / UDP_.opens(view["nat"], 443),
                mtu=mtu,
                ttl=50,
            )
        ),
    ).forwarded(
        POD_A.port,
        POD_A.gets(
            icmp_error(
                fam,
                fam.outside_router,
                POD_A,
                what,
                fam.ip(POD_A, fam.outside, 3) / UDP_.opens(33000, 443),
                mtu=mtu,
                ttl=49,
            )
        ),
    )


@each("An ICMP error about a masqueraded ping finds its pod over {0}", FAMILIES)
def echo_error(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / fam.echo(77, 1))).forwarded(
        "uplink0",
        NODE_A.sends(lambda view: fam.ip(NODE_A, fam.outside, 63) / fam.echo(view.pick("ident", "id", 0, 65535), 1)),
    )
    s.send(
        "uplink0",
        NODE_A.hears(
            icmp_error(
                fam,
                fam.outside_router,
                NODE_A,
                "time exceeded",
                lambda view: fam.ip(NODE_A, fam.outside, 1) / fam.echo(view["ident"], 1),
                ttl=50,
            )
        ),
    ).forwarded(
        POD_A.port,
        POD_A.gets(
            icmp_error(
                fam, fam.outside_router, POD_A, "time exceeded", fam.ip(POD_A, fam.outside, 1) / fam.echo(77, 1), ttl=49
            )
        ),
    )


@each("An ICMP error about a flow that we do not know reaches no pod over {0}", FAMILIES)
def unknown_error(s, fam):
    s.given(WORLD)
    s.send(
        "uplink0",
        NODE_A.hears(
            icmp_error(
                fam,
                fam.outside_router,
                NODE_A,
                "time exceeded",
                fam.ip(NODE_A, fam.outside, 1) / UDP_.opens(45000, 443),
                ttl=50,
            )
        ),
    ).goes_nowhere()
