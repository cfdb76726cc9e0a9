"""Pod to pod: on one node, through the tunnel, and out of the tunnel again."""

from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from cluster import (
    FAMILIES,
    NODE_6,
    NODE_A,
    NODE_B,
    NODE_C,
    POD_A,
    POD_B,
    POD_C,
    POD_D,
    POD_F,
    POD_SIX,
    PROTOCOLS,
    UDP_,
    V4,
    V6,
    WORLD,
    Node,
    Pod,
    mac_of,
)
from model import tunnel, tunnelled
from story import each, story


@each("Two pods of one node talk {0} over {1}, and the TTL falls once", PROTOCOLS, FAMILIES)
def local(s, proto, fam):
    s.given(WORLD)
    question, answer = proto.opens(33000, 8080), proto.answers(8080, 33000)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / question)).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / question)
    )
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / answer)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_B, POD_A, 63) / answer)
    )


@each("A pod pings a pod of its own node over {0}", FAMILIES)
def local_echo(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / fam.echo())).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / fam.echo())
    )
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / fam.echo_reply())).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_B, POD_A, 63) / fam.echo_reply())
    )


@each("A pod talks {0} over {1} to a pod of another node through the tunnel", PROTOCOLS, FAMILIES)
def remote(s, proto, fam):
    s.given(WORLD)
    question, answer = proto.opens(33000, 8080), proto.answers(8080, 33000)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_C) / question)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / question)
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / answer)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_C, POD_A, 62) / answer)
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_C) / question)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / question)
    )


@each("A pod's flow begins on another node and arrives with {0} over {1}", PROTOCOLS, FAMILIES)
def arrives(s, proto, fam):
    s.given(WORLD)
    question, answer = proto.opens(33000, 8080), proto.answers(8080, 33000)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / question)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_C, POD_A, 62) / question)
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_C) / answer)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / answer)
    )


@each("A pod pings a pod of another node over {0}", FAMILIES)
def remote_echo(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_C) / fam.echo())).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / fam.echo())
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / fam.echo_reply())).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_C, POD_A, 62) / fam.echo_reply())
    )


@each("A node of another subnet is reached through the gateway's MAC, {0} inside", FAMILIES)
def far(s, fam):
    s.given(WORLD)
    question = UDP_.opens(33000, 53)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_F) / question)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_C, fam.ip(POD_A, POD_F, 63) / question)
    )


@story("--gateway names the next hop for what leaves the subnet")
def gateway(s):
    s.given(WORLD, args=["--gateway", "192.168.50.254"])
    question = UDP_.opens(33000, 53)

    def frame(view):
        made = tunnel(NODE_A, NODE_C, V4.ip(POD_A, POD_F, 63) / question)(view)
        made[Ether].dst = mac_of("192.168.50.254")
        return made

    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_F) / question)).forwarded("uplink0", frame)


@each("Towards a node without an IPv4 InternalIP the underlay is IPv6, {0} inside", FAMILIES)
def six(s, fam):
    s.given(WORLD)
    question, answer = UDP_.opens(33000, 53), UDP_.answers(53, 33000)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_SIX) / question)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_6, fam.ip(POD_A, POD_SIX, 63) / question)
    )
    s.send("uplink0", tunnelled(NODE_6, NODE_A, fam.ip(POD_SIX, POD_A, 63) / answer)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_SIX, POD_A, 62) / answer)
    )


@story("Over an IPv6 underlay the outer UDP checksum may be zero on arrival")
def six_zero(s):
    s.given(WORLD)
    question = UDP_.opens(33000, 53)
    s.send("uplink0", tunnelled(NODE_6, NODE_A, V4.ip(POD_SIX, POD_A, 63) / question, chksum=0), broken=True).forwarded(
        POD_A.port, POD_A.gets(V4.ip(POD_SIX, POD_A, 62) / question)
    )


@story("Over an IPv4 underlay a right outer UDP checksum is taken, a wrong one is not")
def four_checksum(s):
    s.given(WORLD)
    question = UDP_.opens(33000, 53)
    inner = V4.ip(POD_C, POD_A, 63) / question

    def right(view):
        frame = tunnelled(NODE_B, NODE_A, inner)(view)
        frame[UDP].chksum = None
        return frame

    s.send("uplink0", right).forwarded(POD_A.port, POD_A.gets(V4.ip(POD_C, POD_A, 62) / question))
    # READING: "on arrival zero or right" makes any other value a BadChecksum (or Malformed).
    s.send("uplink0", tunnelled(NODE_B, NODE_A, inner, chksum=0x1234), broken=True).dropped(
        {"BadChecksum", "Malformed"}
    )


@story("A peer with the vtep-mac annotation gets that MAC inside the tunnel")
def vtep(s):
    foreign = Node(
        "node-x",
        "192.168.50.30",
        "2001:db8:50::30",
        "10.244.30.0/24",
        "fd00:10:244:30::/64",
        annotations='sluicegate.dev/vtep-mac: "5e:11:22:33:44:55"',
    )
    there = Pod("x", foreign, "10.244.30.10", "fd00:10:244:30::10")
    s.given(WORLD, foreign.yaml(), there.yaml())
    question = UDP_.opens(33000, 53)
    for fam in FAMILIES:
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / question)).forwarded(
            "uplink0", tunnel(NODE_A, foreign, fam.ip(POD_A, there, 63) / question, vtep="5e:11:22:33:44:55")
        )


@story("DSCP and ECN are copied to the outer header, of whichever family")
def encap_tos(s):
    s.given(WORLD)
    for fam in FAMILIES:
        for index, tos in enumerate((0x00, 0x01, 0x02, 0x03, 0xB8, 0xBA, 0x2B)):
            packet = UDP_.opens(33000 + index, 53)
            s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_C, tos=tos) / packet)).forwarded(
                "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63, tos=tos) / packet)
            )
            s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_SIX, tos=tos) / packet)).forwarded(
                "uplink0", tunnel(NODE_A, NODE_6, fam.ip(POD_A, POD_SIX, 63, tos=tos) / packet)
            )


# RFC 6040 figure 4: (inner, outer) -> what leaves, None for a drop. 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE.
DECAP = {
    (0, 0): 0,
    (0, 2): 0,
    (0, 1): 0,
    (0, 3): None,
    (2, 0): 2,
    (2, 2): 2,
    (2, 1): 1,
    (2, 3): 3,
    (1, 0): 1,
    (1, 2): 1,
    (1, 1): 1,
    (1, 3): 3,
    (3, 0): 3,
    (3, 2): 3,
    (3, 1): 3,
    (3, 3): 3,
}


@each("ECN marks of the underlay reach the pod as RFC 6040 says, {0} inside", FAMILIES)
def decap_ecn(s, fam):
    s.given(WORLD)
    for index, ((inner, outer), leaves) in enumerate(DECAP.items()):
        packet = UDP_.opens(33000 + index, 53)
        step = s.send(
            "uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63, tos=0x48 | inner) / packet, tos=0x48 | outer)
        )
        if leaves is None:
            step.dropped()  # READING: the contract names no reason for it
        else:
            step.forwarded(POD_A.port, POD_A.gets(fam.ip(POD_C, POD_A, 62, tos=0x48 | leaves) / packet))


@story("Another VNI is UnknownVni")
def unknown_vni(s):
    s.given(WORLD)
    for vni in (0, 5, 4097, 0xFFFFFF):
        s.send("uplink0", tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A) / UDP_.opens(1, 2), vni=vni)).dropped(
            "UnknownVni"
        )


@story("A configured VNI and port take the place of the default ones")
def configured_vni(s):
    s.given(WORLD, config="vxlan: { vni: 77, port: 4789 }\n")
    packet = UDP_.opens(33000, 53)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A, 63) / packet, vni=77)).forwarded(
        POD_A.port, POD_A.gets(V4.ip(POD_C, POD_A, 62) / packet)
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A, 63) / packet)).dropped("UnknownVni")


@story("A tunnel packet without the VNI flag is dropped")
def no_vni_flag(s):
    s.given(WORLD)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A) / UDP_.opens(1, 2), flags=0)).dropped(
        {"Malformed", "UnknownVni"}
    )


@story("A tunnel packet from an address that is no node's is UnknownTunnelPeer")
def unknown_peer(s):
    s.given(WORLD)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A) / UDP_.opens(1, 2), src="192.168.50.99")).dropped(
        "UnknownTunnelPeer"
    )
    s.send(
        "uplink0", tunnelled(NODE_6, NODE_A, V4.ip(POD_SIX, POD_A) / UDP_.opens(1, 2), src="2001:db8:50::99")
    ).dropped("UnknownTunnelPeer")


@each("A node may only send for its own pods and addresses over {0}", FAMILIES)
def inner_spoofed(s, fam):
    s.given(WORLD)
    nobody = "fd00:10:244:2::77" if fam.six else "10.244.2.77"
    for index, source in enumerate((POD_F, POD_B, fam.outside, NODE_C.address(fam.six), NODE_A.overlay(fam.six))):
        s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(source, POD_A, 63) / UDP_.opens(100 + index, 53))).dropped(
            "SourceSpoofed"
        )
    for source in (nobody, NODE_B.overlay(fam.six), NODE_B.address(fam.six)):
        packet = UDP_.opens(33000, 53)
        s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(source, POD_A, 63) / packet)).forwarded(
            POD_A.port, POD_A.gets(fam.ip(source, POD_A, 62) / packet)
        )


@each("An address of our podCIDR that no pod has is NoRoute over {0}", FAMILIES)
def nobody_here(s, fam):
    s.given(WORLD)
    nobody = "fd00:10:244:1::77" if fam.six else "10.244.1.77"
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, nobody) / UDP_.opens(33000, 53))).dropped("NoRoute")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, nobody) / UDP_.opens(33000, 53))).dropped("NoRoute")


@each("An address of the pod network that no node's podCIDR covers is NoRoute over {0}", FAMILIES)
def nobody_anywhere(s, fam):
    s.given(WORLD)
    nobody = "fd00:10:244:ee::77" if fam.six else "10.244.99.77"
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, nobody) / UDP_.opens(33000, 53))).dropped("NoRoute")


@each("A finished pod owns no address over {0}", FAMILIES)
def finished(s, fam):
    done = Pod("done", NODE_A, "10.244.1.60", "fd00:10:244:1::60", phase="Succeeded", ready=False)
    failed = Pod("failed", NODE_A, "10.244.1.61", "fd00:10:244:1::61", phase="Failed", ready=False)
    s.given(WORLD, done.yaml(), failed.yaml())
    for gone in (done, failed):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, gone) / UDP_.opens(33000, 53))).dropped("NoRoute")


@each("Pod traffic that arrives on the uplink without the tunnel is NotForUs over {0}", FAMILIES)
def native(s, fam):
    s.given(WORLD)
    s.send("uplink0", NODE_A.hears(fam.ip(POD_C, POD_A) / UDP_.opens(33000, 53))).dropped("NotForUs")
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, POD_A) / PROTOCOLS[0].opens(33000, 80))).dropped("NotForUs")


@each("A pod that uses another source address is SourceSpoofed over {0}", FAMILIES)
def spoofed(s, fam):
    s.given(WORLD)
    for source in (POD_B, POD_C, fam.outside, NODE_A, NODE_A.overlay(fam.six)):
        s.send(POD_A.port, POD_A.sends(fam.ip(source, POD_D) / UDP_.opens(33000, 53))).dropped("SourceSpoofed")


@each("A pod's frame to another MAC than the gateway's is NotForUs over {0}", FAMILIES)
def other_mac(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / UDP_.opens(33000, 53), dst=POD_B.mac)).dropped("NotForUs")


@story("IPv4 options and IPv6 extension headers go through untouched")
def options(s):
    s.given(WORLD)
    from scapy.layers.inet import IPOption_NOP

    nops = dict(options=[IPOption_NOP()] * 4)
    packet = UDP_.opens(33000, 53)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_B, **nops) / packet)).forwarded(
        POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63, **nops) / packet)
    )
    s.send(POD_A.port, POD_A.sends(V6.ip(POD_A, POD_B) / IPv6ExtHdrDestOpt() / packet)).forwarded(
        POD_B.port, POD_B.gets(V6.ip(POD_A, POD_B, 63) / IPv6ExtHdrDestOpt() / packet)
    )


@story("A protocol without ports goes from pod to pod")
def other_protocol(s):
    # READING: flows.timeouts has `other`, so GRE and its like are flows; UnsupportedProtocol is for what needs ports.
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_B, proto=47) / Raw(bytes(16)))).forwarded(
        POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63, proto=47) / Raw(bytes(16)))
    )
    s.send(POD_A.port, POD_A.sends(V6.ip(POD_A, POD_C, nh=47) / Raw(bytes(16)))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, V6.ip(POD_A, POD_C, 63, nh=47) / Raw(bytes(16)))
    )


@story("A pod's frame that is neither IP nor ARP is UnsupportedProtocol")
def other_ethertype(s):
    s.given(WORLD)
    s.send(
        POD_A.port, Ether(src=POD_A.mac, dst="02:00:a9:fe:01:01", type=0x88B5) / Raw(bytes(46)), broken=True
    ).dropped("UnsupportedProtocol")


@story("Packets of two ports at one time are taken in the order of the arguments")
def ties(s):
    s.given(WORLD)
    one, two = UDP_.opens(33000, 53), UDP_.opens(33001, 53)
    s.send(POD_B.port, POD_B.sends(V4.ip(POD_B, POD_C) / one)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, V4.ip(POD_B, POD_C, 63) / one)
    )
    s.send(POD_B.port, POD_B.sends(V4.ip(POD_B, POD_C) / two)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, V4.ip(POD_B, POD_C, 63) / two)
    )
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_C) / one), together=True).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, V4.ip(POD_A, POD_C, 63) / one)
    )
