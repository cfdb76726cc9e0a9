"""Size: the pod MTU, fragmentation before the tunnel, and the clamped MSS."""

from scapy.layers.inet import TCP, UDP
from scapy.packet import Raw

from cluster import FAMILIES, NODE_6, NODE_A, NODE_B, POD_A, POD_C, POD_SIX, V4, V6, WORLD, service, world
from model import fragments_of, our_error, tunnel, tunnelled
from story import each, story


def big(fam, there, length, **fields):
    """A UDP packet from pod a of `length` bytes, IP header included."""
    head = 48 if fam.six else 28
    return fam.ip(POD_A, there, **fields) / UDP(sport=33000, dport=53) / Raw((b"sluicegate" * 200)[: length - head])


def sizes(fam, there):
    node = NODE_6 if there is POD_SIX else NODE_B
    return node, 1430 if there is POD_SIX else 1450


TARGETS = {"an IPv4 underlay": POD_C, "an IPv6 underlay": POD_SIX}


@each("An {0} packet that just fits {1} goes through whole", FAMILIES, TARGETS)
def fits(s, fam, name):
    s.given(WORLD)
    there = TARGETS[name]
    node, mtu = sizes(fam, there)
    flags = {} if fam.six else {"flags": "DF"}
    s.send(POD_A.port, POD_A.sends(big(fam, there, mtu, **flags))).forwarded(
        "uplink0", tunnel(NODE_A, node, big(fam, there, mtu, ttl=63, **flags))
    )


@each("An {0} packet that is one byte too long for {1} is TooBig, with the MTU", FAMILIES, TARGETS)
def too_big(s, fam, name):
    s.given(WORLD)
    there = TARGETS[name]
    node, mtu = sizes(fam, there)
    flags = {} if fam.six else {"flags": "DF"}
    packet = big(fam, there, mtu + 1, **flags)
    s.send(POD_A.port, POD_A.sends(packet)).replied(
        POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "too big", packet, mtu)), reason="TooBig"
    )


@each("An IPv4 packet without DF that is too long for {0} is cut before the tunnel", TARGETS)
def cut(s, name):
    s.given(WORLD)
    there = TARGETS[name]
    node, mtu = sizes(V4, there)
    for length in (mtu + 1, 1480, 1500):
        whole = big(V4, there, length, ttl=63)
        s.send(POD_A.port, POD_A.sends(big(V4, there, length))).forwarded(
            "uplink0", fragments_of(whole.__class__(bytes(whole)), mtu, lambda l3: tunnel(NODE_A, node, l3))
        )


@story("A packet to a ClusterIP that is too long is quoted as the pod sent it")
def service_too_big(s):
    s.given(WORLD, service("web", "app: c", (("UDP", 53, 5353),), "10.96.0.10", "fd00:10:96::a"))
    for fam, vip in ((V4, "10.96.0.10"), (V6, "fd00:10:96::a")):
        packet = big(fam, vip, 1451, **({} if fam.six else {"flags": "DF"}))
        s.send(POD_A.port, POD_A.sends(packet)).replied(
            POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "too big", packet, 1450)), reason="TooBig"
        )


def syn(sport, dport, mss, flags="S", ack=0):
    return TCP(
        sport=sport,
        dport=dport,
        flags=flags,
        seq=1,
        ack=ack,
        options=[("MSS", mss), ("SAckOK", b""), ("NOP", None), ("WScale", 7)],
    )


@each("The MSS of {0} SYN and SYN-ACK is lowered to fit {1}, both ways", FAMILIES, TARGETS)
def clamp(s, fam, name):
    # READING: with both kinds of underlay in one cluster the smaller MTU may hold for all; so they are kept apart.
    there = TARGETS[name]
    node, mtu = sizes(fam, there)
    s.given(world(nodes=[NODE_A, node], pods=[POD_A, there]))
    limit = mtu - (60 if fam.six else 40)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / syn(33000, 80, 1460))).forwarded(
        "uplink0", tunnel(NODE_A, node, fam.ip(POD_A, there, 63) / syn(33000, 80, limit))
    )
    s.send("uplink0", tunnelled(node, NODE_A, fam.ip(there, POD_A, 63) / syn(80, 33000, 1460, "SA", 2))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(there, POD_A, 62) / syn(80, 33000, limit, "SA", 2))
    )
    s.send("uplink0", tunnelled(node, NODE_A, fam.ip(there, POD_A, 63) / syn(34000, 80, 1460))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(there, POD_A, 62) / syn(34000, 80, limit))
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / syn(80, 34000, 1460, "SA", 2))).forwarded(
        "uplink0", tunnel(NODE_A, node, fam.ip(POD_A, there, 63) / syn(80, 34000, limit, "SA", 2))
    )


@each("A small MSS stays as it is, and only a SYN is looked at, over {0}", FAMILIES)
def no_clamp(s, fam):
    s.given(WORLD)
    for packet in (syn(33000, 80, 536), syn(33000, 80, 1460, "A", 2)):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_C) / packet)).forwarded(
            "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / packet)
        )
