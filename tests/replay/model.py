"""An independent model of what the contract says about bytes: the tunnel, our own answers and refusals, fragments.

Everything here follows from the contract alone. READING marks a choice where it leaves several.
"""

import ipaddress
import struct

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from frames import Layer3, layers, ones_sum
from story import Group, Mismatch, View, build, compare

VNI, VXLAN_PORT = 4096, 4789
MASQUERADE = (40000, 57343)
OUTER_PORTS = (49152, 65535)
EGRESS_PORTS = (1024, 65535)


def underlay_six(here, there):
    """IPv4 where both nodes have an IPv4 InternalIP, else IPv6."""
    return not (here.v4 and there.v4)


def flow_name(frame):
    """A name for the flow of the innermost packet, or None where the outer port need not repeat."""
    packet = layers(frame)[-1]
    if packet.later or packet.quoted(frame) or packet.proto not in (6, 17, 132):
        return None  # READING: whether later fragments and ICMP errors share the flow's outer port is left open
    return ("outer", packet.src, packet.dst, packet.proto, frame[packet.l4 : packet.l4 + 4])


def tunnel(here, there, l3, vtep=None):
    """An expected frame that leaves `here` through the tunnel to `there`.

    Exact but for the outer source port (one for each flow, in range), the outer IPv4 identification and the outer
    IPv6 flow label, of which the contract says nothing.
    """

    def made(view):
        packet = build(l3, view)
        inner = Ether(src=here.mac, dst=vtep or there.mac) / packet
        six = underlay_six(here, there)
        src, dst = here.address(six), there.address(six)
        sport = view.pick(flow_name(bytes(inner)), "outer.sport", *OUTER_PORTS)
        tos = packet.tc if isinstance(packet, IPv6) else packet.tos
        if six:
            ip = IPv6(src=src, dst=dst, hlim=64, tc=tos, fl=view.pick(None, "outer.flow", 0, 0xFFFFF))
            udp = UDP(sport=sport, dport=VXLAN_PORT)
        else:
            ip = IP(src=src, dst=dst, ttl=64, tos=tos, flags="DF", id=view.pick(None, "outer.ip.id", 0, 0xFFFF))
            udp = UDP(sport=sport, dport=VXLAN_PORT, chksum=0)
        return (
            Ether(src=here.mac, dst=here.next_hop_mac(dst))
            / ip
            / udp
            / Raw(struct.pack("!II", 0x08000000, VNI << 8) + bytes(inner))
        )

    return made


def tunnelled(here, there, l3, vni=VNI, src=None, tos=None, sport=50123, flags=0x08, chksum=None, ttl=60):
    """A frame that arrives at `there` through the tunnel from `here`; by default as a right peer would send it."""

    def made(view):
        packet = build(l3, view)
        inner = bytes(Ether(src=here.mac, dst=there.mac) / packet)
        six = underlay_six(here, there)
        outer_tos = tos if tos is not None else packet.tc if isinstance(packet, IPv6) else packet.tos
        source, target = src or here.address(six), there.address(six)
        ip = (
            IPv6(src=source, dst=target, hlim=ttl, tc=outer_tos)
            if six
            else IP(src=source, dst=target, ttl=ttl, tos=outer_tos, flags="DF")
        )
        if chksum is not None:
            udp = UDP(sport=sport, dport=VXLAN_PORT, chksum=chksum)
        else:
            udp = UDP(sport=sport, dport=VXLAN_PORT) if six else UDP(sport=sport, dport=VXLAN_PORT, chksum=0)
        return (
            Ether(src=there.next_hop_mac(source), dst=there.mac)
            / ip
            / udp
            / Raw(struct.pack("!II", flags << 24, vni << 8) + inner)
        )

    return made


def own(view, packet, *fields):
    """Takes over the named header fields of a packet that Sluicegate itself makes, which the contract leaves open."""
    six = isinstance(packet, IPv6)
    names = {"ttl": "hlim", "tos": "tc", "flow": "fl"} if six else {"ip.id": "id", "ip.flags": "flags"}
    limits = {"ttl": (1, 255), "tos": (0, 255), "ip.id": (0, 65535), "ip.flags": (0, 7), "flow": (0, 0xFFFFF)}
    for where in fields or limits:
        if six and where.startswith("ip.") or not six and where == "flow":
            continue
        value = view.pick(None, where, *limits[where], ideal=64 if where == "ttl" else None)
        setattr(packet, names.get(where, where), value)
    return packet


def ours(fam, src, dst, payload):
    """A packet that Sluicegate makes: addresses and payload are exact, TTL, TOS, identification and DF are free."""
    return lambda view: own(view, fam.ip(src, dst) / payload)


def echo_answer(fam, src, dst, **fields):
    return ours(fam, src, dst, fam.echo_reply(**fields))


# What we refuse with: (ICMP type, code), (ICMPv6 type, code).
REFUSALS = {
    "port unreachable": ((3, 3), (1, 4)),
    "prohibited": ((3, 13), (1, 1)),
    "time exceeded": ((11, 0), (3, 0)),
    "too big": ((3, 4), (2, 0)),
}


def icmp_bytes(fam, src, dst, kind, code, rest, body):
    """An ICMP message with a right checksum."""
    head = struct.pack("!BBHI", kind, code, 0, rest)
    data = head + body
    if fam.six:
        pseudo = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
        data_sum = ones_sum(pseudo + struct.pack("!II", len(data), 58) + data)
    else:
        data_sum = ones_sum(data)
    return head[:2] + struct.pack("!H", data_sum) + head[4:] + body


def icmp_error(fam, src, dst, what, quoted, mtu=0, ttl=64, **fields):
    """An ICMP error that somebody sends, exact in every byte: `quoted` is the whole of what it quotes."""

    def made(view):
        kind, code = REFUSALS[what][fam.six]
        source, target = fam.at(src), fam.at(dst)
        body = icmp_bytes(fam, source, target, kind, code, mtu, bytes(build(quoted, view)))
        number = {"nh": 58} if fam.six else {"proto": 1}
        return fam.ip(source, target, ttl, **number, **fields) / Raw(body)

    return made


def our_error(fam, src, dst, what, original, mtu=0):
    """An ICMP error that Sluicegate makes about `original`, as its sender sent it.

    It may quote as much of it as it likes, but the header and eight bytes at least (RFC 792, RFC 4443) and no more
    than 576 or 1280 bytes of packet in all (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
    """

    def made(view):
        whole = bytes(build(original, view))
        head = 40 if fam.six else (whole[0] & 15) * 4
        least, most = min(len(whole), head + 8), min(len(whole), 1280 - 48 if fam.six else 576 - 28)
        size = view.pick(None, "quote.length", 0, 65535, ideal=least) if view.got is None else quote_size(view.got)
        size = max(least, min(size, most))
        quote = bytearray(whole[:size])
        # READING: the quoted TTL is what arrived, or what forwarding had already made of it.
        at = 7 if fam.six else 8
        seen = view.choose(None, "quote.ttl", [whole[at], max(0, whole[at] - 1)])
        if seen != whole[at]:
            quote[at] = seen
            if not fam.six:
                quote[10:12] = b"\0\0"
                quote[10:12] = struct.pack("!H", ones_sum(bytes(quote[:head])))
        return own(view, icmp_error(fam, src, dst, what, bytes(quote), mtu)(view))

    return made


def quote_size(frame):
    """How many bytes of another packet the ICMP error in `frame` carries (Ethernet padding not counted)."""
    packet = layers(frame)[-1]
    return packet.end - packet.l4 - 8


def reset(fam, src, dst, of):
    """The TCP reset that answers segment `of` (RFC 9293 section 3.10.7.1); the window is free as well."""

    def made(view):
        segment = of[TCP]
        length = len(bytes(segment.payload)) + ("S" in segment.flags) + ("F" in segment.flags)
        window = view.pick(None, "window", 0, 65535)
        if "A" in segment.flags:
            answer = TCP(sport=segment.dport, dport=segment.sport, flags="R", seq=segment.ack, ack=0, window=window)
        else:
            answer = TCP(
                sport=segment.dport, dport=segment.sport, flags="RA", seq=0, ack=segment.seq + length, window=window
            )
        return own(view, fam.ip(src, dst) / answer)

    return made


def inner_packets(frames):
    """The innermost IP packet of each frame, as bytes."""
    packets = []
    for data in frames:
        packet = layers(data)[-1]
        packets.append(data[packet.at : packet.end])
    return packets


def fragments_of(whole, mtu, wrap):
    """All frames of a step: together they are IPv4 packet `whole` cut to `mtu`, each wrapped as `wrap(l3)` says.

    Where the cuts lie is free.
    """

    def ideal(view):
        size = (mtu - 20) // 8 * 8
        data = bytes(whole.payload)
        return [
            bytes(build(wrap(piece(whole, data, at, min(size, len(data) - at))), view))
            for at in range(0, len(data), size)
        ]

    def check(frames, view):
        data, seen, problems = bytes(whole.payload), [], []
        for index, frame in enumerate(frames):
            found = Layer3(frame, layers(frame)[-1].at)
            offset = (int.from_bytes(frame[found.at + 6 : found.at + 8], "big") & 0x1FFF) * 8
            length = found.end - found.l4
            seen.append((offset, offset + length))
            if found.end - found.at > mtu:
                problems.append(f"fragment {index} has {found.end - found.at} bytes, more than {mtu}")
            try:
                wanted = build(wrap(piece(whole, data, offset, length)), View(view.bound, frame, view.backend))
                compare(wanted, frame)
            except Mismatch as error:
                problems.append(f"fragment {index}: {error}")
        covered = 0
        for start, end in sorted(seen):
            if start != covered:
                problems.append(f"fragments do not join at byte {covered}: {sorted(seen)}")
                break
            covered = end
        if covered != len(data) or len(seen) < 2:
            problems.append(f"fragments cover {covered} of {len(data)} bytes: {sorted(seen)}")
        return problems

    return Group(check, ideal)


def piece(whole, data, at, length):
    """The IPv4 fragment of `whole` that holds `length` bytes of its payload from `at`."""
    header = whole.copy()
    header.remove_payload()
    header.len, header.chksum = None, None
    header.proto = whole.proto if whole.proto else bytes(whole)[9]
    header.flags = "MF" if at + length < len(data) else 0
    header.frag = at // 8
    return header / Raw(data[at : at + length])
