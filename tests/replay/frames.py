"""Reads frames by hand: where each header lies, whether every checksum in it is right, how two frames differ.

Independent of scapy's dissectors, so that a mistake in a story's own packets shows up before it is blamed on the
program under test.
"""

import struct

VXLAN_PORT = 4789
TCP, UDP, ICMP, ICMP6, SCTP, FRAGMENT6 = 6, 17, 1, 58, 132, 44
SKIPPED6 = {0, 43, 60}  # hop-by-hop, routing and destination options are walked over


def ones_sum(data):
    """The Internet checksum of `data` (RFC 1071); 0 where `data` holds its own right checksum."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data):
    """CRC32c (RFC 9260 appendix A), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Layer3:
    """One IP packet inside a frame: offsets into the frame, and the fields that finding them needed."""

    def __init__(self, data, at):
        self.at = at
        self.version = data[at] >> 4
        if self.version == 4:
            self.header = (data[at] & 15) * 4
            self.end = min(len(data), at + struct.unpack("!H", data[at + 2 : at + 4])[0])
            word = struct.unpack("!H", data[at + 6 : at + 8])[0]
            self.fragment = bool(word & 0x3FFF)
            self.later = bool(word & 0x1FFF)
            self.proto = data[at + 9]
            self.src, self.dst = data[at + 12 : at + 16], data[at + 16 : at + 20]
            self.l4 = at + self.header
        else:
            self.end = min(len(data), at + 40 + struct.unpack("!H", data[at + 4 : at + 6])[0])
            self.fragment = self.later = False
            self.proto, self.l4 = data[at + 6], at + 40
            self.src, self.dst = data[at + 8 : at + 24], data[at + 24 : at + 40]
            while self.proto in SKIPPED6 or self.proto == FRAGMENT6:
                if self.proto == FRAGMENT6:
                    word = struct.unpack("!H", data[self.l4 + 2 : self.l4 + 4])[0]
                    self.fragment, self.later = bool(word & 0xFFF9), bool(word & 0xFFF8)
                    size = 8
                else:
                    size = 8 + 8 * data[self.l4 + 1]
                self.proto, self.l4 = data[self.l4], self.l4 + size
            self.header = self.l4 - at

    def quoted(self, data):
        """The packet that an ICMP error carries, or None."""
        kind = data[self.l4] if self.l4 < len(data) else None
        errors = {ICMP: (3, 4, 5, 11, 12), ICMP6: (1, 2, 3, 4)}.get(self.proto, ())
        if self.later or kind not in errors or self.l4 + 28 > len(data):
            return None
        return Layer3(data, self.l4 + 8)


def layers(data):
    """The IP packets of frame `data`, outermost first: [packet] or [underlay, inner]."""
    found, at = [], 0
    while len(data) >= at + 34 and data[at + 12 : at + 14] in (b"\x08\x00", b"\x86\xdd"):
        found.append(Layer3(data, at + 14))
        last = found[-1]
        if last.proto != UDP or last.later or data[last.l4 + 2 : last.l4 + 4] != struct.pack("!H", VXLAN_PORT):
            break
        at = last.l4 + 16
    return found


def wrong_checksums(data):
    """What is wrong with the checksums of frame `data`, as a list of sentences; empty when all are right."""
    wrong = []
    stack = layers(data)
    for depth, packet in enumerate(stack):
        name = "inner" if depth else "outer" if len(stack) > 1 else "packet's"
        if packet.version == 4 and ones_sum(data[packet.at : packet.l4]):
            wrong.append(f"the {name} IPv4 header checksum is wrong")
        if packet.fragment:
            continue
        segment = data[packet.l4 : packet.end]
        pseudo = packet.src + packet.dst + struct.pack("!IHBB", len(segment), 0, 0, packet.proto)
        if packet.proto == TCP and ones_sum(pseudo + segment):
            wrong.append(f"the {name} TCP checksum is wrong")
        if packet.proto == UDP:
            if segment[6:8] == b"\0\0":
                if packet.version == 6:
                    wrong.append(f"the {name} UDP checksum over IPv6 is zero")
            elif ones_sum(pseudo + segment):
                wrong.append(f"the {name} UDP checksum is wrong")
        if packet.proto == ICMP and ones_sum(segment):
            wrong.append(f"the {name} ICMP checksum is wrong")
        if packet.proto == ICMP6 and ones_sum(pseudo + segment):
            wrong.append(f"the {name} ICMPv6 checksum is wrong")
        if packet.proto == SCTP and len(segment) >= 12:
            if crc32c(segment[:8] + bytes(4) + segment[12:]) != struct.unpack("<I", segment[8:12])[0]:
                wrong.append(f"the {name} SCTP CRC32c is wrong")
        quote = packet.quoted(data)
        if quote and quote.version == 4 and ones_sum(data[quote.at : quote.l4]):
            wrong.append("the IPv4 header checksum of the quoted packet is wrong")
    return wrong


def hexdump(data, marks=frozenset()):
    """`data` as lines of hex; bytes whose index is in `marks` stand in brackets."""
    lines = []
    for at in range(0, len(data), 16):
        cells = [f"[{data[i]:02x}]" if i in marks else f" {data[i]:02x} " for i in range(at, min(at + 16, len(data)))]
        lines.append(f"{at:04x} " + "".join(cells))
    return "\n".join(lines)


def difference(expected, got):
    """Both frames as hex with the differing bytes marked, and as one line each in words."""
    from scapy.layers.l2 import Ether

    shorter = min(len(expected), len(got))
    marks = {i for i in range(shorter) if expected[i] != got[i]} | set(range(shorter, max(len(expected), len(got))))
    lines = []
    for title, data in (("expected", expected), ("got", got)):
        try:
            words = Ether(data).summary() if data else "nothing"
        except Exception as error:  # a dissector that stumbles must not hide the bytes
            words = f"scapy cannot read it: {error}"
        lines += [f"{title} ({len(data)} bytes): {words}", hexdump(data, marks)]
    return "\n".join(lines)
