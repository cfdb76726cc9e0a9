"""Direct return: a pod on another node answers a client outside by itself, and sees the client's own address."""

import struct

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_C, POD_D, PROTOCOLS, TCP_, UDP_, V4, WORLD
from model import MASQUERADE, icmp_error, reset, tunnel, tunnelled
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from story import each, story

from stories.changes import LB, VIP, bare, endpoints

MASK = (1 << 64) - 1


def tag(address, proto, port):
    """The inner source MAC of a frontend, computed here anew: FNV-1a 64, fmix64, the upper 40 bits behind 06."""
    import ipaddress

    packed = ipaddress.ip_address(address).packed
    data = packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed
    number = {"TCP": 6, "UDP": 17, "SCTP": 132}[proto.name]
    value = 0xCBF29CE484222325
    for byte in data + struct.pack("!BH", number, port):
        value = (value ^ byte) * 0x100000001B3 & MASK
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & MASK
    value ^= value >> 33
    return "06:" + ":".join(f"{byte:02x}" for byte in (value >> 24).to_bytes(5, "big"))


def through(mac, l3):
    """As `tunnel`, but that the inner source MAC is the tag's."""

    def made(view):
        frame = tunnel(NODE_A, NODE_B, l3)(view)
        return Ether(retag(bytes(frame), mac))

    return made


def arrives(mac, l3, **fields):
    """As `tunnelled`, with a tag."""
    return lambda view: Ether(retag(bytes(tunnelled(NODE_A, NODE_B, l3, **fields)(view)), mac))


def retag(frame, mac):
    at = 14 + 20 + 8 + 8 + 6
    return frame[:at] + bytes.fromhex(mac.replace(":", "")) + frame[at + 6 :]


class Way:
    """A frontend that the outside knows: what is asked, and what its tag is made of."""

    def __init__(self, name, port):
        self.name, self.port = name, port

    def __str__(self):
        return self.name

    def front(self, fam):
        return NODE_A.address(fam.six) if self.name == "NodePort" else LB[fam.six]

    def mac(self, fam, proto):
        unspecified = "::" if fam.six else "0.0.0.0"
        return tag(unspecified if self.name == "NodePort" else LB[fam.six], proto, self.port)


WAYS = [Way("NodePort", 30080), Way("load-balancer address", 80)]


def direct(kind="LoadBalancer", more="", on="true"):
    return bare(kind=kind, more=more).replace(
        "name: web, namespace: default",
        f'name: web, namespace: default, annotations: {{ sluicegate.dev/direct-return: "{on}" }}',
    )


@each(
    "{0} over {1} by a {2} with direct return goes to the pod's node with the client's address, and not a byte is added",
    PROTOCOLS,
    FAMILIES,
    WAYS,
)
def asked(s, proto, fam, way):
    s.given(WORLD, direct(), endpoints(POD_C))
    for _ in range(2):
        s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.front(fam)) / proto.opens(44000, way.port))).forwarded(
            "uplink0", through(way.mac(fam, proto), fam.ip(fam.outside, POD_C, 63) / proto.opens(44000, 8080))
        )


@each(
    "{0} over {1} that was asked for by a {2} elsewhere is answered to the client by the pod's node, from the address that was asked",
    PROTOCOLS,
    FAMILIES,
    WAYS,
)
def answered(s, proto, fam, way):
    s.given(WORLD, direct(), endpoints(POD_C), node="node-b")
    for _ in range(2):
        s.send(
            "uplink0", arrives(way.mac(fam, proto), fam.ip(fam.outside, POD_C, 63) / proto.opens(44000, 8080))
        ).forwarded(POD_C.port, POD_C.gets(fam.ip(fam.outside, POD_C, 62) / proto.opens(44000, 8080)))
        s.send(POD_C.port, POD_C.sends(fam.ip(POD_C, fam.outside) / proto.answers(8080, 44000))).forwarded(
            "uplink0", NODE_B.sends(fam.ip(way.front(fam), fam.outside, 63) / proto.answers(way.port, 44000))
        )


@each("Policy of the pod sees the client outside behind direct return over {0}", FAMILIES)
def policed(s, fam):
    way = WAYS[1]
    allowed = f"{fam.outside}/{'128' if fam.six else '32'}"
    other = "2001:db8:7::77" if fam.six else "198.51.100.77"
    policy = f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{ name: friends, namespace: default }}
spec:
  podSelector: {{ matchLabels: {{ app: c }} }}
  ingress: [ {{ from: [ {{ ipBlock: {{ cidr: "{allowed}" }} }} ] }} ]
"""
    s.given(WORLD, direct(), endpoints(POD_C), policy, node="node-b")
    mac = way.mac(fam, TCP_)
    s.send("uplink0", arrives(mac, fam.ip(fam.outside, POD_C, 63) / TCP_.opens(44000, 8080))).forwarded(
        POD_C.port, POD_C.gets(fam.ip(fam.outside, POD_C, 62) / TCP_.opens(44000, 8080))
    )
    s.send("uplink0", arrives(mac, fam.ip(other, POD_C, 63) / TCP_.opens(44000, 8080))).dropped("PolicyDeny")


@each("A packet from outside through the overlay with a tag that nobody knows is spoofed over {0}", FAMILIES)
def unknown_tag(s, fam):
    s.given(WORLD, direct(on="false"), endpoints(POD_C), node="node-b")
    s.send(
        "uplink0", arrives(WAYS[1].mac(fam, TCP_), fam.ip(fam.outside, POD_C, 63) / TCP_.opens(44000, 8080))
    ).dropped("SourceSpoofed")


@each("A tag does not let an address of the cluster in from a node that has it not, over {0}", FAMILIES)
def inside_source(s, fam):
    s.given(WORLD, direct(), endpoints(POD_C), node="node-b")
    for source in (POD_C, POD_D, NODE_B.overlay(fam.six), VIP[fam.six]):
        s.send(
            "uplink0", arrives(WAYS[1].mac(fam, TCP_), fam.ip(source, POD_C, 63) / TCP_.opens(44000, 8080))
        ).dropped()


@each(
    "The same client port at two addresses of one pod goes directly once, and by way of this node the other time, over {0}",
    FAMILIES,
)
def clash(s, fam):
    s.given(WORLD, direct(), endpoints(POD_C))
    first, second = WAYS[1], WAYS[0]
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, first.front(fam)) / TCP_.opens(44000, first.port))).forwarded(
        "uplink0", through(first.mac(fam, TCP_), fam.ip(fam.outside, POD_C, 63) / TCP_.opens(44000, 8080))
    )
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, second.front(fam)) / TCP_.opens(44000, second.port))).forwarded(
        "uplink0",
        tunnel(
            NODE_A,
            NODE_B,
            lambda view: (
                fam.ip(NODE_A.overlay(fam.six), POD_C, 63) / TCP_.opens(view.pick("nat", "sport", *MASQUERADE), 8080)
            ),
        ),
    )


@each("A connection that this node does not know is taken up by direct return where its pod is, over {0}", FAMILIES)
def taken_up(s, fam):
    # Another node may have seen its beginning: whoever chooses by the same hash chooses the same pod.
    s.given(WORLD, direct(), endpoints(POD_C))
    way = WAYS[1]
    segment = dict(sport=44000, flags="A", seq=1001, ack=9001)
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.front(fam)) / TCP(dport=80, **segment))).forwarded(
        "uplink0", through(way.mac(fam, TCP_), fam.ip(fam.outside, POD_C, 63) / TCP(dport=8080, **segment))
    )


@each("A connection with direct return stays for a day though this node sees one side of it only, over {0}", FAMILIES)
def one_sided(s, fam):
    s.given(WORLD, direct(), endpoints(POD_C))
    way = WAYS[1]

    def goes(there, **segment):
        s.send(
            "uplink0", NODE_A.hears(fam.ip(fam.outside, way.front(fam)) / TCP(sport=44000, dport=80, **segment))
        ).forwarded(
            "uplink0",
            through(way.mac(fam, TCP_), fam.ip(fam.outside, there, 63) / TCP(sport=44000, dport=8080, **segment)),
        )

    goes(POD_C, flags="S", seq=1000)
    goes(POD_C, flags="A", seq=1001, ack=9001)
    # Another pod that is ready makes no difference to what has begun, however long it was silent.
    s.change(WORLD, direct(), endpoints((POD_C, "st"), POD_D))
    s.wait(20 * 3600)
    goes(POD_C, flags="PA", seq=1001, ack=9001)


@each("A connection with direct return whose pod has vanished is reset by the node that was asked over {0}", FAMILIES)
def vanished(s, fam):
    s.given(WORLD, direct(), endpoints(POD_C))
    way = WAYS[1]
    mac = way.mac(fam, TCP_)
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.front(fam)) / TCP_.opens(44000, 80))).forwarded(
        "uplink0", through(mac, fam.ip(fam.outside, POD_C, 63) / TCP_.opens(44000, 8080))
    )
    s.change(WORLD, direct(), endpoints(POD_D))
    segment = fam.ip(fam.outside, way.front(fam)) / TCP(sport=44000, dport=80, flags="A", seq=1001, ack=9001)
    s.send("uplink0", NODE_A.hears(segment)).replied(
        NODE_A.sends(reset(fam, way.front(fam), fam.outside, segment)), reason="NoBackend"
    )


@each("Direct return that is switched off and on again serves new flows as it says over {0}", FAMILIES)
def switched(s, fam):
    way = WAYS[1]
    for number, on in enumerate(("true", "false", "true")):
        objects = (WORLD, direct(on=on), endpoints(POD_C))
        s.given(*objects) if number == 0 else s.change(*objects)
        sport = 44000 + number
        sent = s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.front(fam)) / UDP_.opens(sport, 80)))
        if on == "true":
            sent.forwarded(
                "uplink0", through(way.mac(fam, UDP_), fam.ip(fam.outside, POD_C, 63) / UDP_.opens(sport, 8080))
            )
        else:
            sent.forwarded(
                "uplink0",
                tunnel(
                    NODE_A,
                    NODE_B,
                    lambda view: (
                        fam.ip(NODE_A.overlay(fam.six), POD_C, 63)
                        / UDP_.opens(view.pick(None, "sport", *MASQUERADE), 8080)
                    ),
                ),
            )


@each("With direct return a local pod is reached, and answers, as ever over {0}", FAMILIES)
def local(s, fam):
    s.given(WORLD, direct(), endpoints(POD_A))
    way = WAYS[1]
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.front(fam)) / TCP_.opens(44000, 80))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 63) / TCP_.opens(44000, 8080))
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / TCP_.answers(8080, 44000))).forwarded(
        "uplink0", NODE_A.sends(fam.ip(way.front(fam), fam.outside, 63) / TCP_.answers(80, 44000))
    )


@each("A packet that just fits the overlay goes directly, one byte more is too big, over {0}", FAMILIES)
def size(s, fam):
    from model import our_error
    from scapy.layers.inet import UDP
    from scapy.packet import Raw

    s.given(WORLD, direct(), endpoints(POD_C))
    way = WAYS[1]
    more = {} if fam.six else {"flags": "DF"}
    room = 1450 - (40 if fam.six else 20) - 8
    for size in (room, room + 1):
        packet = fam.ip(fam.outside, way.front(fam), **more) / UDP(sport=44000, dport=80) / Raw(bytes(size))
        sent = s.send("uplink0", NODE_A.hears(packet))
        if size == room:
            sent.forwarded(
                "uplink0",
                through(
                    way.mac(fam, UDP_),
                    fam.ip(fam.outside, POD_C, 63, **more) / UDP(sport=44000, dport=8080) / Raw(bytes(size)),
                ),
            )
        else:
            sent.replied(NODE_A.sends(our_error(fam, NODE_A, fam.outside, "too big", packet, 1450)), reason="TooBig")


@each("An ICMP error about an answer that the pod's node sent directly finds the pod over {0}", FAMILIES)
def error_about_answer(s, fam):
    s.given(WORLD, direct(), endpoints(POD_C))
    way = WAYS[1]
    mac = way.mac(fam, UDP_)
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, way.front(fam)) / UDP_.opens(44000, 80))).forwarded(
        "uplink0", through(mac, fam.ip(fam.outside, POD_C, 63) / UDP_.opens(44000, 8080))
    )
    quoted = fam.ip(way.front(fam), fam.outside, 60) / UDP_.answers(80, 44000)
    s.send("uplink0", NODE_A.hears(icmp_error(fam, fam.outside, way.front(fam), "port unreachable", quoted))).forwarded(
        "uplink0",
        through(
            mac,
            icmp_error(
                fam,
                fam.outside,
                POD_C,
                "port unreachable",
                fam.ip(POD_C, fam.outside, 60) / UDP_.answers(8080, 44000),
                ttl=63,
            ),
        ),
    )


@each("A pod's ICMP error about a client's packet bears the address that was asked over {0}", FAMILIES)
def error_of_pod(s, fam):
    s.given(WORLD, direct(), endpoints(POD_C), node="node-b")
    way = WAYS[1]
    s.send("uplink0", arrives(way.mac(fam, UDP_), fam.ip(fam.outside, POD_C, 63) / UDP_.opens(44000, 8080))).forwarded(
        POD_C.port, POD_C.gets(fam.ip(fam.outside, POD_C, 62) / UDP_.opens(44000, 8080))
    )
    quoted = fam.ip(fam.outside, POD_C, 62) / UDP_.opens(44000, 8080)
    s.send(POD_C.port, POD_C.sends(icmp_error(fam, POD_C, fam.outside, "port unreachable", quoted))).forwarded(
        "uplink0",
        NODE_B.sends(
            icmp_error(
                fam,
                way.front(fam),
                fam.outside,
                "port unreachable",
                fam.ip(fam.outside, way.front(fam), 62) / UDP_.opens(44000, 80),
                ttl=63,
            )
        ),
    )


@story("A value of the annotation for direct return that is neither true nor false is the ordinary way")
def nonsense(s):
    s.given(WORLD, direct(on="yes please"), endpoints(POD_C))
    s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, LB[False]) / UDP_.opens(44000, 80))).forwarded(
        "uplink0",
        tunnel(
            NODE_A,
            NODE_B,
            lambda view: (
                V4.ip(NODE_A.overlay(False), POD_C, 63) / UDP_.opens(view.pick(None, "sport", *MASQUERADE), 8080)
            ),
        ),
    )
