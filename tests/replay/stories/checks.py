"""Broken packets: each kind with its reason."""

import struct

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from cluster import FAMILIES, GATEWAY_MAC, NODE_A, NODE_B, POD_A, POD_B, POD_C, TCP_, UDP_, V4, V6, WORLD
from model import tunnelled
from story import Padded, each, story


def raw(l3):
    return POD_A.sends(Raw(bytes(l3)))


def ether(data, kind):
    return Ether(src=POD_A.mac, dst=GATEWAY_MAC, type=kind) / Raw(data)


def patched(packet, at, new):
    data = bytearray(bytes(packet))
    data[at : at + len(new)] = new
    return bytes(data)


def resummed(data):
    """An IPv4 packet with a header checksum that is right for its 20 bytes whatever they say."""
    from frames import ones_sum

    data = bytearray(data)
    data[10:12] = b"\0\0"
    data[10:12] = struct.pack("!H", ones_sum(bytes(data[: max(20, (data[0] & 15) * 4)])))
    return bytes(data)


FOUR = V4.ip(POD_A, POD_B) / UDP_.opens(33000, 53)
SIX = V6.ip(POD_A, POD_B) / UDP_.opens(33000, 53)
LENGTH = len(bytes(FOUR))
BROKEN_4 = {
    "a header cut short": bytes(FOUR)[:16],
    "no header at all": b"",
    "an IHL of four": resummed(patched(FOUR, 0, b"\x44")),
    "an IHL beyond the packet": patched(FOUR, 0, b"\x4f"),
    "the version of IPv6": resummed(patched(FOUR, 0, b"\x65")),
    "a total length below the header's": resummed(patched(FOUR, 2, struct.pack("!H", 19))),
    "a total length beyond the frame": resummed(patched(FOUR, 2, struct.pack("!H", LENGTH + 1))),
    "its UDP header cut short": resummed(patched(FOUR, 2, struct.pack("!H", 24)))[:24],
    "its TCP header cut short": bytes(IP(src=POD_A.v4, dst=POD_B.v4, proto=6) / Raw(bytes(TCP_.opens(1, 2))[:12])),
    "a TCP data offset of four": bytes(V4.ip(POD_A, POD_B) / TCP(sport=1, dport=2, dataofs=4)),
}
BROKEN_6 = {
    "a header cut short": bytes(SIX)[:39],
    "the version of IPv4": patched(SIX, 0, b"\x45"),
    "a payload length beyond the frame": patched(SIX, 4, struct.pack("!H", len(bytes(SIX)) - 40 + 1)),
    "its UDP header cut short": patched(bytes(SIX)[:44], 4, struct.pack("!H", 4)),
}


@each("An IPv4 packet with {0} is Malformed", BROKEN_4)
def malformed_4(s, what):
    s.given(WORLD)
    s.send(POD_A.port, ether(BROKEN_4[what], 0x0800), broken=True).dropped("Malformed")


@each("An IPv6 packet with {0} is Malformed", BROKEN_6)
def malformed_6(s, what):
    s.given(WORLD)
    s.send(POD_A.port, ether(BROKEN_6[what], 0x86DD), broken=True).dropped("Malformed")


@story("A frame shorter than an Ethernet header is Malformed")
def runt(s):
    s.given(WORLD)
    s.send(POD_A.port, bytes(10), broken=True).dropped("Malformed")


@story("A tunnel packet that ends inside the inner frame is Malformed")
def cut_tunnel(s):
    s.given(WORLD)
    whole = tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A) / UDP_.opens(33000, 53))

    def cut(view, keep):
        frame = whole(view)
        inner = bytes(frame[Raw].load)[:keep]
        return (
            frame[Ether].__class__(src=frame.src, dst=frame.dst)
            / IP(src=NODE_B.v4, dst=NODE_A.v4, flags="DF")
            / UDP(sport=50123, dport=4789, chksum=0)
            / Raw(inner)
        )

    for keep in (4, 8, 15, 22, 30, 41):
        s.send("uplink0", lambda view, keep=keep: cut(view, keep), broken=True).dropped("Malformed")


@story("A wrong IPv4 header checksum is BadChecksum, from a pod and inside the tunnel")
def bad_checksum(s):
    s.given(WORLD)
    good = bytes(FOUR)
    s.send(POD_A.port, ether(patched(good, 10, bytes([good[10] ^ 1])), 0x0800), broken=True).dropped("BadChecksum")

    def inner(view):
        frame = bytes(tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A) / UDP_.opens(33000, 53))(view))
        at = 14 + 20 + 8 + 8 + 14 + 10
        return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]

    s.send("uplink0", inner, broken=True).dropped("BadChecksum")

    def outer(view):
        frame = bytes(tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A) / UDP_.opens(33000, 53))(view))
        return frame[:24] + bytes([frame[24] ^ 1]) + frame[25:]

    s.send("uplink0", outer, broken=True).dropped("BadChecksum")


@each("A wrong transport checksum is none of our business over {0}", FAMILIES)
def transport(s, fam):
    s.given(WORLD)
    for wrong in (UDP(sport=1, dport=2, chksum=0x1111) / Raw(b"x"), TCP(sport=1, dport=2, flags="S", chksum=0x2222)):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / wrong), broken=True).forwarded(
            POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / wrong)
        )


@each("TCP flags that make no sense are InvalidState over {0}", FAMILIES)
def flags(s, fam):
    s.given(WORLD)
    for index, bits in enumerate(("SF", "SR", "", "SFA", "SRA", "FSPU")):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / TCP(sport=33000 + index, dport=80, flags=bits))).dropped(
            "InvalidState"
        )


@each("Ethernet padding behind the packet does no harm over {0}", FAMILIES)
def padding(s, fam):
    # READING: whether the padding is passed on is left open.
    s.given(WORLD)
    packet = UDP(sport=33000, dport=53) / Raw(b"x")
    s.send(POD_A.port, lambda view: bytes(POD_A.sends(fam.ip(POD_A, POD_B) / packet)(view)) + bytes(17)).forwarded(
        POD_B.port, lambda view: Padded(POD_B.gets(fam.ip(POD_A, POD_B, 63) / packet)(view))
    )
