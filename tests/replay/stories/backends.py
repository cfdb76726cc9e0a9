"""What stands behind a Service besides a plain pod: the node, another node, the world; and odd packets on the way."""

from scapy.layers.inet import UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.packet import Raw

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    POD_A,
    POD_B,
    POD_C,
    TCP_,
    UDP_,
    V4,
    V6,
    WORLD,
    Pod,
    service,
)
from frames import layers
from model import MASQUERADE, tunnel
from story import each, story

VIP = {False: "10.96.0.1", True: "fd00:10:96::1"}


def apart(fam, address, node=None):
    """A Service `api` without a selector, and one slice with one address."""
    name = f"\n  nodeName: {node}" if node else ""
    bare = service("api", "", (("TCP", 443, 6443),), VIP[False], VIP[True]).replace("  selector: {  }\n", "")
    return (
        bare,
        f"""
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: api-1, namespace: default, labels: {{ kubernetes.io/service-name: api }} }}
addressType: {fam}
ports: [ {{ name: tcp-443, protocol: TCP, port: 6443 }} ]
endpoints:
- addresses: [ "{address}" ]{name}
  conditions: {{ ready: true }}
""",
    )


@each("A ClusterIP whose endpoint is another node is reached without the tunnel, masqueraded, over {0}", FAMILIES)
def other_node(s, fam):
    s.given(WORLD, *apart(fam, fam.at(NODE_B), "node-b"))
    vip = VIP[fam.six]
    for _ in range(2):
        s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP_.opens(33000, 443))).forwarded(
            "uplink0",
            NODE_A.sends(
                lambda view: fam.ip(NODE_A, NODE_B, 63) / TCP_.opens(view.pick("nat", "sport", *MASQUERADE), 6443)
            ),
        )
        s.send(
            "uplink0", NODE_A.hears(lambda view: fam.ip(NODE_B, NODE_A) / TCP_.answers(6443, view["nat"]))
        ).forwarded(POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 63) / TCP_.answers(443, 33000)))


@each("A ClusterIP whose endpoint is the pod's own node is punted to it, and its answer comes back, over {0}", FAMILIES)
def own_node(s, fam):
    s.given(WORLD, *apart(fam, fam.at(NODE_A), "node-a"))
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP_.opens(33000, 443))).punted(
        NODE_A.host_gets(fam.ip(POD_A, NODE_A, 64) / TCP_.opens(33000, 6443))
    )
    s.send("host", NODE_A.host_sends(fam.ip(NODE_A, POD_A) / TCP_.answers(6443, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 63) / TCP_.answers(443, 33000))
    )


@each("A ClusterIP whose endpoint is outside the cluster is translated and masqueraded over {0}", FAMILIES)
def outside(s, fam):
    s.given(WORLD, *apart(fam, fam.outside))
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP_.opens(33000, 443))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(NODE_A, fam.outside, 63) / TCP_.opens(view.pick("nat", "sport", *MASQUERADE), 6443)
        ),
    )
    s.send(
        "uplink0", NODE_A.hears(lambda view: fam.ip(fam.outside, NODE_A, 50) / TCP_.answers(6443, view["nat"]))
    ).forwarded(POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 49) / TCP_.answers(443, 33000)))


@story("An IPv4 packet with options and an IPv6 packet with extension headers find the port of a Service")
def options(s):
    vips = {False: "10.96.0.10", True: "fd00:10:96::a"}
    s.given(WORLD, service("dns", "app: b", (("UDP", 53, 5353),), vips[False], vips[True]))
    nops = dict(options=[IPOption_NOP()] * 8)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, vips[False], **nops) / UDP_.opens(33000, 53))).forwarded(
        POD_B.port, POD_B.gets(V4.ip(POD_A, POD_B, 63, **nops) / UDP_.opens(33000, 5353))
    )
    s.send(POD_A.port, POD_A.sends(V6.ip(POD_A, vips[True]) / IPv6ExtHdrDestOpt() / UDP_.opens(33000, 53))).forwarded(
        POD_B.port, POD_B.gets(V6.ip(POD_A, POD_B, 63) / IPv6ExtHdrDestOpt() / UDP_.opens(33000, 5353))
    )


def summing_to_zero(l3, sport, dport):
    """A UDP packet whose checksum is the special case: it computes to zero and is sent as 0xffff."""
    first = bytes(l3 / UDP(sport=sport, dport=dport) / Raw(b"\0\0"))
    found = layers(bytes(14 - 2) + (b"\x86\xdd" if first[0] >> 4 == 6 else b"\x08\x00") + first)[0]
    at = found.l4 - 14 + 6
    return l3 / UDP(sport=sport, dport=dport) / Raw(first[at : at + 2])


@each("A UDP checksum that comes out as zero is sent as 0xffff over {0}", FAMILIES)
def zero_sum(s, fam):
    vip = "fd00:10:96::a" if fam.six else "10.96.0.10"
    s.given(WORLD, service("dns", "app: b", (("UDP", 53, 5353),), "10.96.0.10", "fd00:10:96::a"))
    out = summing_to_zero(fam.ip(POD_A, POD_B, 63), 33000, 5353)
    assert out.__class__(bytes(out))[UDP].chksum == 0xFFFF
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / UDP(sport=33000, dport=53) / Raw(out[Raw].load))).forwarded(
        POD_B.port, POD_B.gets(out)
    )
    into = summing_to_zero(fam.ip(POD_A, vip), 33001, 53)
    s.send(POD_A.port, POD_A.sends(into)).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / UDP(sport=33001, dport=5353) / Raw(into[Raw].load))
    )


@story("A pod with IPv6 alone has a MAC of its IPv6 address, one with IPv4 alone of that")
def single_stack(s):
    six = Pod("only-six", NODE_A, None, "fd00:10:244:1::1234:5678")
    four = Pod("only-four", NODE_A, "10.244.1.99", None)
    s.given(WORLD, six.yaml(), four.yaml())
    s.send(POD_A.port, POD_A.sends(V6.ip(POD_A, six) / UDP_.opens(33000, 53))).forwarded(
        six.port, six.gets(V6.ip(POD_A, six, 63) / UDP_.opens(33000, 53))
    )
    s.send(six.port, six.sends(V6.ip(six, POD_C) / UDP_.opens(33000, 53))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, V6.ip(six, POD_C, 63) / UDP_.opens(33000, 53))
    )
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, four) / UDP_.opens(33000, 53))).forwarded(
        four.port, four.gets(V4.ip(POD_A, four, 63) / UDP_.opens(33000, 53))
    )


TERMINATING = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: web-t, namespace: default, labels: {{ kubernetes.io/service-name: web }} }}
addressType: IPv4
ports: [ {{ name: tcp-80, protocol: TCP, port: 8080 }} ]
endpoints:
- addresses: [ "10.244.2.10" ]
  nodeName: node-b
  conditions: {{ ready: false, serving: true, terminating: true }}
- addresses: [ "10.244.2.11" ]
  nodeName: node-b
  conditions: {{ ready: {ready}, serving: {ready}, terminating: false }}
"""


@each("A serving, terminating endpoint is used only when none is ready, here {0}", ["one is ready", "none is ready"])
def terminating(s, which):
    ready = which == "one is ready"
    bare = service("web", "", (("TCP", 80, 8080),), "10.96.0.10").replace("  selector: {  }\n", "")
    s.given(WORLD, bare, TERMINATING.format(ready=str(ready).lower()))
    there = "10.244.2.11" if ready else "10.244.2.10"
    for sport in range(33000, 33005):
        s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, "10.96.0.10") / TCP_.opens(sport, 80))).forwarded(
            "uplink0",
            tunnel(NODE_A, NODE_B, V4.ip(POD_A, there, 63) / TCP_.opens(sport, 8080)),
            backend=f"{there}:8080",
        )
