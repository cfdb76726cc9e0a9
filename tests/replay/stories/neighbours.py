"""ARP and neighbour discovery, and the gateway's own addresses."""

import struct

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from cluster import FAMILIES, GATEWAY_MAC, POD_A, WORLD
from frames import layers
from model import echo_answer
from story import Mismatch, each, story

BROADCAST = "ff:ff:ff:ff:ff:ff"


def asks(mac, address, target, dst=BROADCAST):
    return Ether(src=mac, dst=dst) / ARP(op=1, hwsrc=mac, psrc=address, hwdst="00:00:00:00:00:00", pdst=target)


def tells(mac, address, to_mac, to):
    return Ether(src=mac, dst=to_mac) / ARP(op=2, hwsrc=mac, psrc=address, hwdst=to_mac, pdst=to)


def solicits(mac, address, target, unicast=None):
    """A neighbour solicitation, to the solicited-node group or to `unicast`, a MAC."""
    tail = target_bytes(target)[-3:]
    group = "ff02::1:ff" + tail[:1].hex() + ":" + tail[1:].hex()
    dst = target if unicast else group
    return (
        Ether(src=mac, dst=unicast or "33:33:ff:" + ":".join(f"{byte:02x}" for byte in tail))
        / IPv6(src=address, dst=dst, hlim=255)
        / ICMPv6ND_NS(tgt=target)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac)
    )


def target_bytes(address):
    import ipaddress

    return ipaddress.ip_address(address).packed


def advertises(mac, target, to_mac, to):
    """The solicited answer. READING: whether it calls itself a router and overrides is left open."""

    def made(view):
        flags = 0b110 << 29
        if view.got is not None:
            at = layers(view.got)[-1].l4
            flags = struct.unpack("!I", view.got[at + 4 : at + 8])[0] & (0b111 << 29)
            if not flags & (1 << 30):
                raise Mismatch("the advertisement does not say that it was solicited")
        return (
            Ether(src=mac, dst=to_mac)
            / IPv6(src=target, dst=to, hlim=255)
            / ICMPv6ND_NA(tgt=target, R=flags >> 31 & 1, S=1, O=flags >> 29 & 1)
            / ICMPv6NDOptDstLLAddr(lladdr=mac)
        )

    return made


@story("A pod that asks for 169.254.1.1 by ARP gets the gateway's MAC")
def arp(s):
    s.given(WORLD)
    s.send(POD_A.port, asks(POD_A.mac, POD_A.v4, "169.254.1.1")).replied(
        tells(GATEWAY_MAC, "169.254.1.1", POD_A.mac, POD_A.v4)
    )
    s.send(POD_A.port, asks(POD_A.mac, POD_A.v4, "169.254.1.1", dst=GATEWAY_MAC)).replied(
        tells(GATEWAY_MAC, "169.254.1.1", POD_A.mac, POD_A.v4)
    )


@story("A pod that solicits fe80::1 gets the gateway's MAC")
def nd(s):
    s.given(WORLD)
    for unicast in (None, GATEWAY_MAC):
        s.send(POD_A.port, solicits(POD_A.mac, POD_A.v6, "fe80::1", unicast)).replied(
            advertises(GATEWAY_MAC, "fe80::1", POD_A.mac, POD_A.v6)
        )


@story("A pod that solicits fe80::1 from its link-local address gets an answer too")
def nd_link_local(s):
    # READING: a kernel that confirms its gateway does it from the link-local address; the source check lets it.
    s.given(WORLD)
    link_local = "fe80::aff:fef4:10a"  # EUI-64 of 02:00:0a:f4:01:0a
    s.send(POD_A.port, solicits(POD_A.mac, link_local, "fe80::1")).replied(
        advertises(GATEWAY_MAC, "fe80::1", POD_A.mac, link_local)
    )


@each("A ping to the gateway's own {0} address is answered", FAMILIES)
def echo(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.pod_gateway) / fam.echo())).replied(
        POD_A.gets(echo_answer(fam, fam.pod_gateway, POD_A))
    )


@story("A pod's ARP is not answered with another pod's address as its own")
def arp_spoofed(s):
    # READING: no reason is prescribed, but nothing may be told to a pod that lies about itself.
    s.given(WORLD)
    s.send(POD_A.port, asks(POD_A.mac, "10.244.1.11", "169.254.1.1")).goes_nowhere()
