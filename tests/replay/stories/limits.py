"""What is finite: SNAT ports, flows, time; and packets that belong to nobody."""

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_RS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_B, POD_C, POD_E, TCP_, UDP_, V4, WORLD, service
from model import MASQUERADE, icmp_error, tunnel, tunnelled
from stories.policy import DENY_INGRESS
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}


@each(
    "When all ports towards one server are taken it is SnatPortsExhausted, another server is still reached, over {0}",
    FAMILIES,
)
def ports_exhausted(s, fam):
    s.given(WORLD, config="masquerade: { enabled: true, ports: 40000-40063 }\n")
    names = [f"port of {sport}" for sport in range(33000, 33064)]
    for sport in range(33000, 33064):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(sport, 53))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, sport=sport: (
                    fam.ip(NODE_A, fam.outside, 63)
                    / UDP_.opens(view.pick(f"port of {sport}", "sport", 40000, 40063, unlike=names), 53)
                )
            ),
        )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(33064, 53))).dropped("SnatPortsExhausted")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside_router) / UDP_.opens(33065, 53))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(NODE_A, fam.outside_router, 63) / UDP_.opens(view.pick(None, "sport", 40000, 40063), 53)
        ),
    )
    s.wait(35)  # the old flows are over, their ports free again
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(33066, 53))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(NODE_A, fam.outside, 63) / UDP_.opens(view.pick(None, "sport", 40000, 40063), 53)
        ),
    )


@each("Many flows of one pod to one server never share a port over {0}", FAMILIES)
def distinct(s, fam):
    s.given(WORLD)
    names = [f"port of {sport}" for sport in range(33000, 33200)]
    for sport in range(33000, 33200):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(sport, 53))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view, sport=sport: (
                    fam.ip(NODE_A, fam.outside, 63)
                    / UDP_.opens(view.pick(f"port of {sport}", "sport", *MASQUERADE, unlike=names), 53)
                )
            ),
        )


@story("A full flow table refuses a new flow, with FlowTableFull, and gives up none of its streams")
def table_full(s):
    # READING: a flow between a local and a remote pod is one flow, so 1,024 of them fit in a table of 1,024.
    s.given(WORLD, config="flows: { max: 1024 }\n")
    asked, told = UDP(sport=33000, dport=53) / Raw(b"?"), UDP(sport=53, dport=33000) / Raw(b"!")

    def exchange(sport):
        there, back = asked.copy(), told.copy()
        there.sport = back.dport = sport
        for packet in ("there", "back", "there"):
            if packet == "there":
                s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_C) / there)).forwarded(
                    "uplink0", tunnel(NODE_A, NODE_B, V4.ip(POD_A, POD_C, 63) / there)
                )
            else:
                s.send("uplink0", tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A, 63) / back)).forwarded(
                    POD_A.port, POD_A.gets(V4.ip(POD_C, POD_A, 62) / back)
                )

    for sport in range(20000, 21024):
        exchange(sport)
    asked.sport = 30000
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_C) / asked)).dropped("FlowTableFull")
    for sport in (20000, 20500, 21023):
        exchange(sport)


@each("A TCP connection that is set up stays for a day without a packet, over {0}", FAMILIES)
def established(s, fam):
    established_story(s, fam, 23 * 3600, True)


@each("A TCP connection that is set up is gone after a day without a packet, over {0}", FAMILIES)
def established_gone(s, fam):
    established_story(s, fam, 25 * 3600, False)


def established_story(s, fam, idle, alive):
    s.given(WORLD, service("web", "app: b", (("TCP", 80, 8080),), VIP[False], VIP[True]))
    vip = VIP[fam.six]
    for flags, seq, ack, there in (("S", 99, 0, True), ("SA", 499, 100, False), ("A", 100, 500, True)):
        if there:
            s.send(
                POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP(sport=33000, dport=80, flags=flags, seq=seq, ack=ack))
            ).forwarded(
                POD_B.port,
                POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP(sport=33000, dport=8080, flags=flags, seq=seq, ack=ack)),
            )
        else:
            s.send(
                POD_B.port,
                POD_B.sends(fam.ip(POD_B, POD_A) / TCP(sport=8080, dport=33000, flags=flags, seq=seq, ack=ack)),
            ).forwarded(
                POD_A.port,
                POD_A.gets(fam.ip(vip, POD_A, 63) / TCP(sport=80, dport=33000, flags=flags, seq=seq, ack=ack)),
            )
    s.wait(idle)
    late = dict(flags="PA", seq=500, ack=100)
    src, sport = (vip, 80) if alive else (POD_B, 8080)
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / TCP(sport=8080, dport=33000, **late) / Raw(b"x"))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(src, POD_A, 63) / TCP(sport=sport, dport=33000, **late) / Raw(b"x"))
    )


@each("A SYN that nobody answers is forgotten after a minute over {0}", FAMILIES)
def handshake(s, fam):
    s.given(WORLD, service("web", "app: b", (("TCP", 80, 8080),), VIP[False], VIP[True]))
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP_.opens(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP_.opens(33000, 8080))
    )
    s.wait(70)
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / TCP_.answers(8080, 33000))).dropped("InvalidState")


@each("A masqueraded ping is closed to the outside after thirty seconds over {0}", FAMILIES)
def echo(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / fam.echo())).forwarded(
        "uplink0",
        NODE_A.sends(lambda view: fam.ip(NODE_A, fam.outside, 63) / fam.echo(view.pick("id", "id", 0, 65535))),
    )
    s.wait(35)
    s.send(
        "uplink0", NODE_A.hears(lambda view: fam.ip(fam.outside, NODE_A, 50) / fam.echo_reply(view["id"]))
    ).goes_nowhere()


@each("A SYN on a closed connection's addresses begins a new one over {0}", FAMILIES)
def reuse(s, fam):
    s.given(WORLD, service("web", "app: b", (("TCP", 80, 8080),), VIP[False], VIP[True]))
    vip = VIP[fam.six]
    for base in (1000, 900000):
        for flags, seq, ack, there in (
            ("S", base, 0, 1),
            ("SA", base + 50, base + 1, 0),
            ("A", base + 1, base + 51, 1),
            ("FA", base + 1, base + 51, 1),
            ("FA", base + 51, base + 2, 0),
            ("A", base + 2, base + 52, 1),
        ):
            segment = dict(flags=flags, seq=seq, ack=ack)
            if there:
                s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP(sport=33000, dport=80, **segment))).forwarded(
                    POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP(sport=33000, dport=8080, **segment))
                )
            else:
                s.send(
                    POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / TCP(sport=8080, dport=33000, **segment))
                ).forwarded(POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 63) / TCP(sport=80, dport=33000, **segment)))
        s.wait(2)


@each("An ICMP error about an allowed flow passes default-deny ingress over {0}", FAMILIES)
def related(s, fam):
    s.given(WORLD, DENY_INGRESS)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_E) / UDP_.opens(33000, 53))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_E, 63) / UDP_.opens(33000, 53))
    )
    quoted = fam.ip(POD_A, POD_E, 62) / UDP_.opens(33000, 53)
    s.send(
        "uplink0", tunnelled(NODE_B, NODE_A, icmp_error(fam, POD_E, POD_A, "port unreachable", quoted, ttl=63))
    ).forwarded(POD_A.port, POD_A.gets(icmp_error(fam, POD_E, POD_A, "port unreachable", quoted, ttl=62)))


@each("An ICMP error about no flow does not pass default-deny ingress over {0}", FAMILIES)
def unrelated(s, fam):
    s.given(WORLD, DENY_INGRESS)
    quoted = fam.ip(POD_A, POD_E, 62) / UDP_.opens(33000, 53)
    # READING: PolicyDeny or InvalidState, the contract does not say; it must not arrive.
    s.send(
        "uplink0", tunnelled(NODE_B, NODE_A, icmp_error(fam, POD_E, POD_A, "port unreachable", quoted, ttl=63))
    ).dropped()


@story("Multicast, broadcast and unspecified sources of a pod go nowhere")
def nowhere(s):
    # READING: a pod's kernel sends such things unasked (router solicitation, mDNS, DHCP); no verdict is prescribed.
    s.given(WORLD)
    for mac, packet in (
        ("ff:ff:ff:ff:ff:ff", IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / Raw(b"dhcp")),
        (
            "01:00:5e:00:00:fb",
            IP(src=POD_A.v4, dst="224.0.0.251", ttl=255) / UDP(sport=5353, dport=5353) / Raw(b"mdns"),
        ),
        ("33:33:00:00:00:02", IPv6(src="fe80::aff:fef4:10a", dst="ff02::2", hlim=255) / ICMPv6ND_RS()),
        ("02:00:a9:fe:01:01", IP(src="0.0.0.0", dst=POD_B.v4) / UDP(sport=1, dport=2) / Raw(b"x")),
    ):
        s.send(POD_A.port, Ether(src=POD_A.mac, dst=mac) / packet).goes_nowhere()


@each(
    "A destination that no router may forward to does not leave the node: {0}",
    ["127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.251", "::1", "::", "fe80::99", "ff0e::1"],
)
def martian(s, there):
    # READING: RFC 1122 section 3.2.1.3 and RFC 4291 section 2.5.6; the contract names no verdict.
    s.given(WORLD)
    fam = FAMILIES[":" in there]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / UDP_.opens(33000, 53))).goes_nowhere()
