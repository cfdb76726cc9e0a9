"""Fragments: they follow their first, wait for it, and are forgotten in time."""

from scapy.layers.inet import UDP
from scapy.packet import Raw

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_B, POD_C, V4, WORLD, service
from model import MASQUERADE, tunnel, tunnelled
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
WEB = service("web", "app: c", (("UDP", 53, 5353),), VIP[False], VIP[True])
DATA = b"0123456789abcdef" * 100


def cut(fam, src, dst, sport, dport, ttl=64, ident=0x4321, at=(0, 800, 1200)):
    """A UDP packet of 1608 bytes of transport, cut at the given offsets."""
    from scapy.layers.inet6 import IPv6ExtHdrFragment

    whole = fam.ip(src, dst) / UDP(sport=sport, dport=dport) / Raw(DATA)
    body = bytes(whole.__class__(bytes(whole)).payload)
    pieces = []
    for start, end in zip(at, [*at[1:], len(body)]):
        more = end < len(body)
        if fam.six:
            header = fam.ip(src, dst, ttl, nh=44) / IPv6ExtHdrFragment(nh=17, offset=start // 8, m=int(more), id=ident)
        else:
            header = fam.ip(src, dst, ttl, proto=17)
            header.id, header.flags, header.frag = ident, "MF" if more else 0, start // 8
        pieces.append(header / Raw(body[start:end]))
    return pieces


@each("Fragments in order follow their first through the tunnel over {0}", FAMILIES)
def in_order(s, fam):
    s.given(WORLD)
    for piece, out in zip(cut(fam, POD_A, POD_C, 33000, 53), cut(fam, POD_A, POD_C, 33000, 53, 63)):
        s.send(POD_A.port, POD_A.sends(piece)).forwarded("uplink0", tunnel(NODE_A, NODE_B, out))


@each("Fragments out of the tunnel reach the pod over {0}", FAMILIES)
def arriving(s, fam):
    s.given(WORLD)
    for piece, out in zip(cut(fam, POD_C, POD_A, 33000, 53, 63), cut(fam, POD_C, POD_A, 33000, 53, 62)):
        s.send("uplink0", tunnelled(NODE_B, NODE_A, piece)).forwarded(POD_A.port, POD_A.gets(out))


@each("All fragments of a packet to a ClusterIP reach the same pod over {0}", FAMILIES)
def to_service(s, fam):
    s.given(WORLD, WEB)
    vip = VIP[fam.six]
    for piece, out in zip(cut(fam, POD_A, vip, 33000, 53), cut(fam, POD_A, POD_C, 33000, 5353, 63)):
        s.send(POD_A.port, POD_A.sends(piece)).forwarded("uplink0", tunnel(NODE_A, NODE_B, out))
    for piece, out in zip(cut(fam, POD_C, POD_A, 5353, 33000, 63), cut(fam, vip, POD_A, 53, 33000, 62)):
        s.send("uplink0", tunnelled(NODE_B, NODE_A, piece)).forwarded(POD_A.port, POD_A.gets(out))


@each("Fragments that come before their first are held and leave with it over {0}", FAMILIES)
def out_of_order(s, fam):
    s.given(WORLD, WEB)
    vip = VIP[fam.six]
    first, second, third = cut(fam, POD_A, vip, 33000, 53)
    out = [tunnel(NODE_A, NODE_B, piece) for piece in cut(fam, POD_A, POD_C, 33000, 5353, 63)]
    s.send(POD_A.port, POD_A.sends(second)).held()
    s.send(POD_A.port, POD_A.sends(first)).forwarded("uplink0", out[0], out[1])
    s.send(POD_A.port, POD_A.sends(third)).forwarded("uplink0", out[2])


@each("Masqueraded fragments all bear the node's address over {0}", FAMILIES)
def masqueraded(s, fam):
    s.given(WORLD)
    for index, piece in enumerate(cut(fam, POD_A, fam.outside, 33000, 53)):
        s.send(POD_A.port, POD_A.sends(piece)).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, index=index: cut(
                    fam,
                    NODE_A,
                    fam.outside,
                    view.pick("nat", "sport", *MASQUERADE) if index == 0 else view["nat"],
                    53,
                    63,
                )[index]
            ),
        )


@each("An overlapping fragment is Malformed over {0}", FAMILIES)
def overlap(s, fam):
    s.given(WORLD)
    first = cut(fam, POD_A, POD_B, 33000, 53)[0]
    out = cut(fam, POD_A, POD_B, 33000, 53, 63)[0]
    s.send(POD_A.port, POD_A.sends(first)).forwarded(POD_B.port, POD_B.gets(out))
    s.send(POD_A.port, POD_A.sends(cut(fam, POD_A, POD_B, 33000, 53, at=(0, 792, 1200))[1])).dropped("Malformed")


@each("A first fragment too small for its ports is Malformed over {0}", FAMILIES)
def tiny(s, fam):
    # READING: without the whole transport header nothing may be decided about the packet.
    s.given(WORLD)
    from scapy.layers.inet import TCP
    from scapy.layers.inet6 import IPv6ExtHdrFragment

    half = bytes(TCP(sport=33000, dport=80, flags="S"))[:8]
    if fam.six:
        packet = fam.ip(POD_A, POD_B, nh=44) / IPv6ExtHdrFragment(nh=6, offset=0, m=1, id=7) / Raw(half)
    else:
        packet = fam.ip(POD_A, POD_B, proto=6, flags="MF") / Raw(half)
    s.send(POD_A.port, POD_A.sends(packet)).dropped("Malformed")


@each("A held fragment is forgotten after thirty seconds over {0}", FAMILIES)
def timeout(s, fam):
    s.given(WORLD)
    first, second, _ = cut(fam, POD_A, POD_B, 33000, 53)
    out = cut(fam, POD_A, POD_B, 33000, 53, 63)
    s.send(POD_A.port, POD_A.sends(second)).held()
    s.wait(35)
    s.send(POD_A.port, POD_A.sends(first)).forwarded(POD_B.port, POD_B.gets(out[0]))


@story("A node holds 1,024 fragments and no more")
def limit(s):
    s.given(WORLD)
    for ident in range(1024):
        s.send(POD_A.port, POD_A.sends(cut(V4, POD_A, POD_B, 33000, 53, ident=ident)[1])).held()
    s.send(POD_A.port, POD_A.sends(cut(V4, POD_A, POD_B, 33000, 53, ident=1024)[1])).dropped("FragmentLimit")


@each("A later fragment whose TTL ends here is not answered over {0}", FAMILIES)
def ttl(s, fam):
    s.given(WORLD)
    first = cut(fam, POD_A, POD_C, 33000, 53)[0]
    s.send(POD_A.port, POD_A.sends(first)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, cut(fam, POD_A, POD_C, 33000, 53, 63)[0])
    )
    s.send(POD_A.port, POD_A.sends(cut(fam, POD_A, POD_C, 33000, 53, 1)[1])).dropped("TtlExpired")


@each("Fragments of an answer from outside find the pod, also when the first comes late, over {0}", FAMILIES)
def answer_from_outside(s, fam):
    s.given(WORLD)
    question = UDP(sport=33000, dport=53) / Raw(b"a question")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / question)).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: (
                fam.ip(NODE_A, fam.outside, 63)
                / UDP(sport=view.pick("nat", "sport", *MASQUERADE), dport=53)
                / Raw(b"a question")
            )
        ),
    )

    def comes(index):
        return NODE_A.hears(lambda view: cut(fam, fam.outside, NODE_A, 53, view["nat"], 50)[index])

    out = [POD_A.gets(piece) for piece in cut(fam, fam.outside, POD_A, 53, 33000, 49)]
    s.send("uplink0", comes(1)).held()
    s.send("uplink0", comes(0)).forwarded(POD_A.port, out[0], out[1])
    s.send("uplink0", comes(2)).forwarded(POD_A.port, out[2])


@each("Fragments of a NodePort client reach a pod of another node over {0}", FAMILIES)
def node_port(s, fam):
    s.given(WORLD, service("web", "app: c", (("UDP", 53, 5353, 30053),), VIP[False], VIP[True], kind="NodePort"))
    for index, piece in enumerate(cut(fam, fam.outside, NODE_A, 44000, 30053)):
        s.send("uplink0", NODE_A.hears(piece)).forwarded(
            "uplink0",
            tunnel(
                NODE_A,
                NODE_B,
                lambda view, index=index: cut(
                    fam,
                    NODE_A.overlay(fam.six),
                    POD_C,
                    view.pick("nat", "sport", *MASQUERADE) if index == 0 else view["nat"],
                    5353,
                    63,
                )[index],
            ),
        )
