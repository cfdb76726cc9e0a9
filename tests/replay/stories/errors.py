"""ICMP errors: ours, and those of others about flows that we translate."""

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_B, POD_C, PROTOCOLS, TCP_, UDP_, WORLD, service
from model import MASQUERADE, icmp_error, our_error, tunnel, tunnelled
from story import each

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
WEB = service("web", "app: c", (("TCP", 80, 8080), ("UDP", 80, 8080), ("SCTP", 80, 8080)), VIP[False], VIP[True])
NEAR = service("near", "app: b", (("UDP", 80, 8080),), VIP[False], VIP[True])


@each("A pod's packet whose TTL ends here is answered from the overlay address, {0} over {1}", PROTOCOLS, FAMILIES)
def ttl(s, proto, fam):
    s.given(WORLD)
    for there in (POD_C, POD_B, fam.outside):
        packet = fam.ip(POD_A, there, 1) / proto.opens(33000, 80)
        s.send(POD_A.port, POD_A.sends(packet)).replied(
            POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "time exceeded", packet)), reason="TtlExpired"
        )


@each("A pod's packet to a ClusterIP whose TTL ends here is quoted as the pod sent it over {0}", FAMILIES)
def ttl_service(s, fam):
    s.given(WORLD, WEB)
    packet = fam.ip(POD_A, VIP[fam.six], 1) / UDP_.opens(33000, 80)
    s.send(POD_A.port, POD_A.sends(packet)).replied(
        POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "time exceeded", packet)), reason="TtlExpired"
    )


@each("A packet out of the tunnel whose TTL ends here is answered through the tunnel over {0}", FAMILIES)
def ttl_tunnel(s, fam):
    s.given(WORLD)
    packet = fam.ip(POD_C, POD_A, 1) / UDP_.opens(33000, 80)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, packet)).replied(
        tunnel(NODE_A, NODE_B, our_error(fam, NODE_A.overlay(fam.six), POD_C, "time exceeded", packet)),
        reason="TtlExpired",
    )


@each("An outside client's packet whose TTL ends here is answered from the InternalIP over {0}", FAMILIES)
def ttl_outside(s, fam):
    s.given(WORLD, service("web", "app: a", (("UDP", 80, 8080, 30080),), VIP[False], VIP[True], kind="NodePort"))
    packet = fam.ip(fam.outside, NODE_A, 1) / UDP_.opens(44000, 30080)
    s.send("uplink0", NODE_A.hears(packet)).replied(
        NODE_A.sends(our_error(fam, NODE_A, fam.outside, "time exceeded", packet)), reason="TtlExpired"
    )


@each("No error is sent about an error over {0}", FAMILIES)
def no_error_about_error(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / UDP_.opens(33000, 53))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 53))
    )
    s.send(
        POD_B.port,
        POD_B.sends(
            icmp_error(fam, POD_B, POD_A, "port unreachable", fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 53), ttl=1)
        ),
    ).dropped("TtlExpired")


@each("A pod's port unreachable reaches the pod that asked, on one node over {0}", FAMILIES)
def plain(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / UDP_.opens(33000, 53))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 53))
    )
    quoted = fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 53)
    s.send(POD_B.port, POD_B.sends(icmp_error(fam, POD_B, POD_A, "port unreachable", quoted))).forwarded(
        POD_A.port, POD_A.gets(icmp_error(fam, POD_B, POD_A, "port unreachable", quoted, ttl=63))
    )


@each("A local backend's error about a ClusterIP flow speaks of the ClusterIP over {0}", FAMILIES)
def service_local(s, fam):
    # READING: the error's own source, being the backend, becomes the ClusterIP like any reply's.
    s.given(WORLD, NEAR)
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / UDP_.opens(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 8080))
    )
    s.send(
        POD_B.port,
        POD_B.sends(
            icmp_error(fam, POD_B, POD_A, "port unreachable", fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 8080))
        ),
    ).forwarded(
        POD_A.port,
        POD_A.gets(
            icmp_error(fam, vip, POD_A, "port unreachable", fam.ip(POD_A, vip, 63) / UDP_.opens(33000, 80), ttl=63)
        ),
    )


@each(
    "A remote backend's {0} about a ClusterIP flow speaks of the ClusterIP over {1}",
    ["port unreachable", "time exceeded", "too big"],
    FAMILIES,
)
def service_remote(s, what, fam):
    s.given(WORLD, WEB)
    vip, mtu = VIP[fam.six], 1300 if what == "too big" else 0
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / UDP_.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / UDP_.opens(33000, 8080))
    )
    s.send(
        "uplink0",
        tunnelled(
            NODE_B,
            NODE_A,
            icmp_error(fam, POD_C, POD_A, what, fam.ip(POD_A, POD_C, 61) / UDP_.opens(33000, 8080), mtu=mtu, ttl=63),
        ),
    ).forwarded(
        POD_A.port,
        POD_A.gets(icmp_error(fam, vip, POD_A, what, fam.ip(POD_A, vip, 61) / UDP_.opens(33000, 80), mtu=mtu, ttl=62)),
    )


@each("Another node's own error about a ClusterIP flow reaches the pod over {0}", FAMILIES)
def service_router(s, fam):
    # READING: the source of an error that a router on the way made may stay or become the ClusterIP.
    s.given(WORLD, WEB)
    vip, router = VIP[fam.six], NODE_B.overlay(fam.six)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP_.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(33000, 8080))
    )
    s.send(
        "uplink0",
        tunnelled(
            NODE_B,
            NODE_A,
            icmp_error(fam, router, POD_A, "time exceeded", fam.ip(POD_A, POD_C, 1) / TCP_.opens(33000, 8080), ttl=63),
        ),
    ).forwarded(
        POD_A.port,
        lambda view: POD_A.gets(
            icmp_error(
                fam,
                view.choose("router", "src", [router, vip]),
                POD_A,
                "time exceeded",
                fam.ip(POD_A, vip, 1) / TCP_.opens(33000, 80),
                ttl=62,
            )
        )(view),
    )


@each("A client's error about a reply finds the backend over {0}", FAMILIES)
def from_client(s, fam):
    s.given(WORLD, NEAR)
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / UDP_.opens(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 8080))
    )
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / UDP_.answers(8080, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 63) / UDP_.answers(80, 33000))
    )
    s.send(
        POD_A.port,
        POD_A.sends(icmp_error(fam, POD_A, vip, "port unreachable", fam.ip(vip, POD_A, 63) / UDP_.answers(80, 33000))),
    ).forwarded(
        POD_B.port,
        POD_B.gets(
            icmp_error(
                fam, POD_A, POD_B, "port unreachable", fam.ip(POD_B, POD_A, 63) / UDP_.answers(8080, 33000), ttl=63
            )
        ),
    )


@each("An error that quotes only eight bytes of TCP is translated over {0}", FAMILIES)
def short_quote(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / TCP_.opens(33000, 443))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(NODE_A, fam.outside, 63) / TCP_.opens(view.pick("nat", "sport", *MASQUERADE), 443)
        ),
    )
    size = (40 if fam.six else 20) + 8
    s.send(
        "uplink0",
        NODE_A.hears(
            icmp_error(
                fam,
                fam.outside_router,
                NODE_A,
                "time exceeded",
                lambda view: bytes(fam.ip(NODE_A, fam.outside, 1) / TCP_.opens(view["nat"], 443))[:size],
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
                "time exceeded",
                bytes(fam.ip(POD_A, fam.outside, 1) / TCP_.opens(33000, 443))[:size],
                ttl=49,
            )
        ),
    )
