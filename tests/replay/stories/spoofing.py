"""Who may say that a packet comes from where: on the uplink, in the tunnel, towards policy."""

from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    NODE_C,
    POD_A,
    POD_B,
    POD_C,
    POD_D,
    PROTOCOLS,
    TCP_,
    UDP_,
    V4,
    V6,
    WORLD,
    service,
)
from model import tunnel, tunnelled
from stories.egress import BY_B, PARTNERS
from stories.policy import DENY_INGRESS, A, policy
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
WEB = service("web", "app: a", (("TCP", 80, 8080, 30080),), VIP[False], VIP[True], kind="NodePort")


@each("A pod's address on the uplink does not pass for the pod over {0}", FAMILIES)
def pod_outside(s, fam):
    # READING: the contract checks sources in the tunnel and on pod ports; a pod's or our own address from outside is as
    # false, and policy must not be fooled by it. No reason is prescribed.
    s.given(WORLD, WEB, policy("from-b", A, "  ingress: [ { from: [ { podSelector: {} } ] } ]"))
    for source in (POD_B, POD_C):
        s.send("uplink0", NODE_A.hears(fam.ip(source, NODE_A) / TCP_.opens(44000, 30080))).goes_nowhere()


@each("The node's own address on the uplink does not pass for the node over {0}", FAMILIES)
def node_outside(s, fam):
    s.given(WORLD, WEB, DENY_INGRESS)
    for source in (NODE_A.address(fam.six), NODE_A.overlay(fam.six)):
        s.send("uplink0", NODE_A.hears(fam.ip(source, NODE_A) / TCP_.opens(44000, 30080))).goes_nowhere()


@each("The node's own addresses in the tunnel do not pass for the node over {0}", FAMILIES)
def node_in_tunnel(s, fam):
    s.given(WORLD, DENY_INGRESS)
    for source in (NODE_A.address(fam.six), NODE_A.overlay(fam.six)):
        s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(source, POD_A, 63) / TCP_.opens(44000, 80))).dropped(
            "SourceSpoofed"
        )


@each("Another node's InternalIP is no friend of policy over {0}", FAMILIES)
def other_node(s, fam):
    s.given(WORLD, DENY_INGRESS)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(NODE_B, POD_A, 63) / TCP_.opens(44000, 80))).dropped(
        "PolicyDeny", policy="isolation"
    )


@each("A node that is no gateway may not send in the name of the outside over {0}", FAMILIES)
def no_gateway(s, fam):
    s.given(BY_B, PARTNERS)
    s.send("uplink0", tunnelled(NODE_C, NODE_A, fam.ip(fam.outside, POD_A, 63) / UDP_.answers(53, 33000))).dropped(
        "SourceSpoofed"
    )


@each("Replies to questions nobody asked meet policy like anything else over {0}", FAMILIES)
def unasked(s, fam):
    s.given(WORLD, DENY_INGRESS)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / UDP_.answers(53, 33000))).dropped(
        "PolicyDeny", policy="isolation"
    )
    # READING: an unasked echo reply and mid-stream TCP are PolicyDeny or InvalidState.
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / fam.echo_reply())).dropped(
        {"PolicyDeny", "InvalidState"}
    )
    s.send(
        "uplink0",
        tunnelled(
            NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / TCP(sport=80, dport=33000, flags="PA", seq=1, ack=1) / Raw(b"x")
        ),
    ).dropped({"PolicyDeny", "InvalidState"})


@each("A reply with other ports is no reply over {0}", FAMILIES)
def other_ports(s, fam):
    s.given(WORLD, DENY_INGRESS)
    from cluster import POD_E
    from model import tunnel

    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_E) / UDP_.opens(33000, 53))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_E, 63) / UDP_.opens(33000, 53))
    )
    for sport, dport in ((54, 33000), (53, 33001)):
        s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_E, POD_A, 63) / UDP_.answers(sport, dport))).dropped(
            "PolicyDeny", policy="isolation"
        )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_D, POD_A, 63) / UDP_.answers(53, 33000))).dropped(
        "PolicyDeny", policy="isolation"
    )


@story("What is not IP inside the tunnel goes nowhere")
def arp_in_tunnel(s):
    s.given(WORLD)
    inner = bytes(Ether(src=NODE_B.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=POD_C.v4, pdst=POD_A.v4, hwsrc=NODE_B.mac))

    def made(view):
        frame = tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_A) / UDP_.opens(1, 2))(view)
        frame[Raw].load = bytes(frame[Raw].load)[:8] + inner
        return Ether(
            bytes(
                Ether(src=frame.src, dst=frame.dst)
                / frame.payload.__class__(src=NODE_B.v4, dst=NODE_A.v4, flags="DF")
                / UDP(sport=50123, dport=4789, chksum=0)
                / Raw(frame[Raw].load)
            )
        )

    s.send("uplink0", made).goes_nowhere()


@story("An IPv6 packet with a fragment header that is whole is translated like any other")
def atomic(s):
    s.given(WORLD, service("dns", "app: b", (("UDP", 53, 5353),), VIP[False], VIP[True]))

    def packet(dst, dport, ttl):
        return (
            V6.ip(POD_A, dst, ttl, nh=44)
            / IPv6ExtHdrFragment(nh=17, offset=0, m=0, id=9)
            / UDP(bytes(segment(dst, dport)))
        )

    def segment(dst, dport):
        return bytes((V6.ip(POD_A, dst) / UDP(sport=33000, dport=dport) / Raw(b"whole")))[40:]

    s.send(POD_A.port, POD_A.sends(packet(VIP[True], 53, 64))).forwarded(
        POD_B.port, POD_B.gets(packet(POD_B, 5353, 63))
    )


@each("A pod's packet with another MAC goes nowhere, whatever its address, over {0}", FAMILIES)
def other_mac(s, fam):
    s.given(WORLD)

    def forged(view):
        frame = POD_A.sends(fam.ip(POD_A, POD_B) / UDP_.opens(33000, 53))(view)
        frame.src = POD_B.mac
        return frame

    s.send(POD_A.port, forged).dropped("SourceSpoofed")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_B, POD_C) / UDP_.opens(33000, 53))).dropped("SourceSpoofed")


@each(
    "A packet of an established {0} flow with another MAC goes nowhere, and the flow goes on without it, over {1}",
    PROTOCOLS,
    FAMILIES,
)
def other_mac_later(s, proto, fam):
    s.given(WORLD)
    question, answer = proto.opens(33000, 53), proto.answers(53, 33000)

    def asks(forged=False):
        def made(view):
            frame = POD_A.sends(fam.ip(POD_A, POD_B) / question)(view)
            if forged:
                frame.src = POD_C.mac
            return frame

        return s.send(POD_A.port, made)

    def passes(step):
        step.forwarded(POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / question))

    passes(asks())
    asks(forged=True).dropped("SourceSpoofed")
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / answer)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_B, POD_A, 63) / answer)
    )
    for _ in range(2):
        asks(forged=True).dropped("SourceSpoofed")
        if proto is not TCP_:  # a second SYN on a connection that is there is answered elsewhere
            passes(asks())


@each("A ping under another MAC goes nowhere, also when the pod has pinged before, over {0}", FAMILIES)
def other_mac_ping(s, fam):
    s.given(WORLD)
    for forged in (False, True):

        def made(view, forged=forged):
            frame = POD_A.sends(fam.ip(POD_A, POD_B) / fam.echo())(view)
            frame.src = POD_C.mac if forged else frame.src
            return frame

        step = s.send(POD_A.port, made)
        if forged:
            step.dropped("SourceSpoofed")
        else:
            step.forwarded(POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / fam.echo()))


@each("A source that the annotation no longer allows is refused with its flow's next packet, over {0}", FAMILIES)
def extra_source_taken(s, fam):
    note = 'annotations: { sluicegate.dev/allowed-source-prefixes: "203.0.113.0/28, 2001:db8:99::/64" }, labels: { app: a }'
    annotated = POD_A.yaml().replace("labels: { app: a }", note)
    config = "masquerade: { enabled: false }\n"
    s.given(WORLD.replace(POD_A.yaml(), annotated), config=config)
    mine = "2001:db8:99::7" if fam.six else "203.0.113.7"
    packet = UDP_.opens(33000, 53)
    for _ in range(2):
        s.send(POD_A.port, POD_A.sends(fam.ip(mine, POD_C) / packet)).forwarded(
            "uplink0", tunnel(NODE_A, NODE_B, fam.ip(mine, POD_C, 63) / packet)
        )
    s.change(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(mine, POD_C) / packet)).dropped("SourceSpoofed")


@story("A pod may not speak for another one in ARP or neighbour discovery")
def neighbours(s):
    s.given(WORLD)
    everybody = "ff:ff:ff:ff:ff:ff"
    for mac, address, link in ((POD_A.mac, POD_B.v4, POD_A.mac), (POD_B.mac, POD_A.v4, POD_A.mac), (POD_A.mac, POD_A.v4, POD_B.mac)):
        s.send(
            POD_A.port,
            lambda view, mac=mac, address=address, link=link: (
                Ether(src=link, dst=everybody) / ARP(hwsrc=mac, psrc=address, pdst="169.254.1.1")
            ),
        ).dropped("SourceSpoofed")
    for source, link in ((POD_B.v6, POD_A.mac), (POD_A.v6, POD_B.mac)):
        s.send(
            POD_A.port,
            lambda view, source=source, link=link: (
                Ether(src=POD_A.mac, dst="33:33:ff:00:00:01")
                / IPv6(src=source, dst="ff02::1:ff00:1", hlim=255)
                / ICMPv6ND_NS(tgt="fe80::1")
                / ICMPv6NDOptSrcLLAddr(lladdr=link)
            ),
        ).dropped("SourceSpoofed")


@each("An annotation lets a pod use further sources, and never somebody else's, over {0}", FAMILIES)
def extra_sources(s, fam):
    note = 'annotations: { sluicegate.dev/allowed-source-prefixes: "%s" }, labels: { app: a }'
    allowed = "203.0.113.0/28, 2001:db8:99::/64, 10.244.1.0/24, fd00:10:244:1::/64, 10.96.0.0/16, 0.0.0.0/0, nonsense"
    annotated = POD_A.yaml().replace("labels: { app: a }", note % allowed)
    s.given(WORLD.replace(POD_A.yaml(), annotated), config="masquerade: { enabled: false }\n")
    mine, other = ("2001:db8:99::7", "2001:db8:98::7") if fam.six else ("203.0.113.7", "203.0.113.17")
    s.send(POD_A.port, POD_A.sends(fam.ip(mine, POD_C) / UDP_.opens(33000, 53))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(mine, POD_C, 63) / UDP_.opens(33000, 53))
    )
    for source in (other, POD_B, "fd00:10:96::a" if fam.six else "10.96.0.10"):
        s.send(POD_A.port, POD_A.sends(fam.ip(source, POD_C) / UDP_.opens(33001, 53))).dropped("SourceSpoofed")
