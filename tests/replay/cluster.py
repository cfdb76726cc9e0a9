"""The cluster that the stories play in: nodes, pods, address families, protocols, and the objects that describe them.

MACs and next hops follow from the contract alone. READING marks a choice where it leaves several.
"""

import ipaddress

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck
from scapy.packet import Raw

from story import Masked, build

GATEWAY_MAC = "02:00:a9:fe:01:01"


def mac_of(v4, v6=None):
    """The MAC rule: 02:00 and the four bytes of the IPv4 address, the last four of the IPv6 address without one."""
    packed = ipaddress.ip_address(v4 or v6).packed[-4:]
    return "02:00:" + ":".join(f"{byte:02x}" for byte in packed)


def is6(address):
    return ":" in str(address)


class Node:
    """A node with its InternalIPs and podCIDRs, either family may be missing."""

    def __init__(self, name, v4, v6, pods4, pods6, labels="", annotations="", vtep=None):
        self.name, self.v4, self.v6, self.pods4, self.pods6 = name, v4, v6, pods4, pods6
        self.labels, self.annotations, self.vtep = labels, annotations, vtep

    @property
    def mac(self):
        """Of the uplink, and of the tunnel unless the annotation says another."""
        return mac_of(self.v4, self.v6)

    def address(self, six):
        return self.v6 if six else self.v4

    def overlay(self, six):
        """The overlay address: the first after the podCIDR's network address."""
        return str(ipaddress.ip_network(self.pods6 if six else self.pods4)[1])

    def gateway(self, six):
        """The default gateway: the first address of the node's /24 or /64."""
        length = 64 if six else 24
        return str(ipaddress.ip_interface(f"{self.address(six)}/{length}").network[1])

    def next_hop_mac(self, dst):
        """Where a packet to `dst` goes on the uplink: straight there on the own subnet, else to the gateway."""
        six = is6(dst)
        length = 64 if six else 24
        near = ipaddress.ip_address(dst) in ipaddress.ip_interface(f"{self.address(six)}/{length}").network
        if not near:
            return mac_of(self.gateway(six))
        # READING: a neighbour that is a node of the cluster has the one MAC of its uplink for both families.
        known = {address: node.mac for node in NODES for address in (node.v4, node.v6) if address}
        return known.get(str(dst)) or mac_of(dst)

    def sends(self, l3):
        """A frame that leaves the uplink without the tunnel."""

        def made(view):
            packet = build(l3, view)
            return Ether(src=self.mac, dst=self.next_hop_mac(packet.dst)) / packet

        return made

    def hears(self, l3):
        """A frame from the network outside that arrives on the uplink."""

        def made(view):
            packet = build(l3, view)
            return Ether(src=mac_of(self.gateway(is6(packet.dst))), dst=self.mac) / packet

        return made

    def host_sends(self, l3):
        """A frame from the node's own network stack."""
        return lambda view: Ether(src=mac_of(self.overlay(False)), dst=GATEWAY_MAC) / build(l3, view)

    def host_gets(self, l3):
        """A punted frame. READING: its two MACs are not looked at, everything from the ethertype on is."""
        return lambda view: Masked(Ether(src=GATEWAY_MAC, dst=mac_of(self.overlay(False))) / build(l3, view), (0, 12))

    def yaml(self):
        cidrs = [cidr for cidr in (self.pods4, self.pods6) if cidr]
        lines = [f'  - {{ type: InternalIP, address: "{ip}" }}' for ip in (self.v4, self.v6) if ip]
        quoted = ", ".join(f'"{cidr}"' for cidr in cidrs)
        notes = f", annotations: {{ {self.annotations} }}" if self.annotations else ""
        return (
            f"apiVersion: v1\nkind: Node\nmetadata: {{ name: {self.name}, labels: {{ kubernetes.io/hostname: "
            f"{self.name}{', ' + self.labels if self.labels else ''} }}{notes} }}\n"
            f'spec: {{ podCIDR: "{cidrs[0]}", podCIDRs: [{quoted}] }}\nstatus:\n  addresses:\n'
            + "\n".join(lines)
            + f"\n  - {{ type: Hostname, address: {self.name} }}"
        )


class Pod:
    """A running, ready pod with one address of each family."""

    def __init__(self, name, node, v4, v6, namespace="default", labels="", ports="", phase="Running", ready=True):
        self.name, self.node, self.v4, self.v6, self.namespace = name, node, v4, v6, namespace
        self.labels, self.ports, self.phase, self.ready = labels or f"app: {name}", ports, phase, ready

    @property
    def port(self):
        """Its port in a replay."""
        return f"pod:{self.namespace}/{self.name}"

    @property
    def mac(self):
        return mac_of(self.v4, self.v6)

    def address(self, six):
        return self.v6 if six else self.v4

    def sends(self, l3, dst=GATEWAY_MAC):
        """A frame from the pod."""
        return lambda view: Ether(src=self.mac, dst=dst) / build(l3, view)

    def gets(self, l3):
        """A frame to the pod."""
        return lambda view: Ether(src=GATEWAY_MAC, dst=self.mac) / build(l3, view)

    def yaml(self):
        ips = ", ".join(f'{{ ip: "{ip}" }}' for ip in (self.v4, self.v6) if ip)
        return (
            f"apiVersion: v1\nkind: Pod\nmetadata: {{ name: {self.name}, namespace: {self.namespace}, "
            f"labels: {{ {self.labels} }} }}\nspec:\n  nodeName: {self.node.name}\n"
            f"  containers: [ {{ name: main, image: none, ports: [ {self.ports} ] }} ]\n"
            f'status:\n  phase: {self.phase}\n  podIP: "{self.v4 or self.v6}"\n  podIPs: [ {ips} ]\n'
            f'  conditions: [ {{ type: Ready, status: "{self.ready}" }} ]'
        )


class Family:
    """IPv4 or IPv6, so that one story is told for both."""

    def __init__(self, six):
        self.six = six
        self.name = "IPv6" if six else "IPv4"
        self.outside = "2001:db8:7::9" if six else "198.51.100.9"
        self.outside_router = "2001:db8:7::fe" if six else "198.51.100.254"
        self.pod_gateway = "fe80::1" if six else "169.254.1.1"
        self.icmp_name = "ICMPv6" if six else "ICMP"

    def __str__(self):
        return self.name

    def at(self, who):
        """The address of a pod, of a node (its InternalIP), or the text itself."""
        return who if isinstance(who, str) else who.address(self.six)

    def ip(self, src, dst, ttl=64, tos=0, **fields):
        """An IP header; for IPv4 an identification that is not zero, so that a rewritten one is seen."""
        src, dst = self.at(src), self.at(dst)
        if self.six:
            return IPv6(src=src, dst=dst, hlim=ttl, tc=tos, fl=0x1ABCD, **fields)
        return IP(src=src, dst=dst, ttl=ttl, tos=tos, id=0x1234, **fields)

    def echo(self, ident=77, seq=1, data=b"are you there?"):
        return (
            ICMPv6EchoRequest(id=ident, seq=seq, data=data) if self.six else ICMP(type=8, id=ident, seq=seq) / Raw(data)
        )

    def echo_reply(self, ident=77, seq=1, data=b"are you there?"):
        return (
            ICMPv6EchoReply(id=ident, seq=seq, data=data) if self.six else ICMP(type=0, id=ident, seq=seq) / Raw(data)
        )


class Protocol:
    """TCP, UDP or SCTP: what opens a flow, what answers, what follows."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name

    def opens(self, sport, dport):
        """The first packet of a flow."""
        if self.name == "TCP":
            return TCP(sport=sport, dport=dport, flags="S", seq=1000, window=64240)
        if self.name == "UDP":
            return UDP(sport=sport, dport=dport) / Raw(b"a question")
        return SCTP(sport=sport, dport=dport, tag=0) / SCTPChunkInit(
            init_tag=7, a_rwnd=65536, n_out_streams=1, n_in_streams=1, init_tsn=1
        )

    def answers(self, sport, dport):
        """The first packet of the other side."""
        if self.name == "TCP":
            return TCP(sport=sport, dport=dport, flags="SA", seq=9000, ack=1001, window=65160)
        if self.name == "UDP":
            return UDP(sport=sport, dport=dport) / Raw(b"the answer to it")
        return SCTP(sport=sport, dport=dport, tag=7) / SCTPChunkInitAck(
            init_tag=8, a_rwnd=65536, n_out_streams=1, n_in_streams=1, init_tsn=1
        )


FAMILIES = V4, V6 = Family(False), Family(True)
PROTOCOLS = TCP_, UDP_, SCTP_ = Protocol("TCP"), Protocol("UDP"), Protocol("SCTP")

NODE_A = Node("node-a", "192.168.50.11", "2001:db8:50::11", "10.244.1.0/24", "fd00:10:244:1::/64")
NODE_B = Node("node-b", "192.168.50.12", "2001:db8:50::12", "10.244.2.0/24", "fd00:10:244:2::/64")
NODE_C = Node("node-c", "192.168.60.13", "2001:db8:60::13", "10.244.3.0/24", "fd00:10:244:3::/64")
NODE_6 = Node("node-six", None, "2001:db8:50::16", "10.244.6.0/24", "fd00:10:244:6::/64")
NODES = [NODE_A, NODE_B, NODE_C, NODE_6]


def pod(name, node, last, **more):
    net4, net6 = node.pods4.split("/")[0], node.pods6.split("/")[0]
    return Pod(name, node, net4.removesuffix("0") + str(last), f"{net6}{last:x}", **more)


POD_A, POD_B = pod("a", NODE_A, 10), pod("b", NODE_A, 11)
POD_C, POD_D = pod("c", NODE_B, 10), pod("d", NODE_B, 11)
POD_E = pod("e", NODE_B, 12, namespace="other")
POD_F = pod("f", NODE_C, 10)
POD_SIX = pod("six", NODE_6, 10)
NAMESPACES = """
apiVersion: v1
kind: Namespace
metadata: { name: default }
---
apiVersion: v1
kind: Namespace
metadata: { name: other, labels: { team: blue } }
"""
PODS = [POD_A, POD_B, POD_C, POD_D, POD_E, POD_F, POD_SIX]


def world(labels=None, nodes=NODES, pods=None):
    """Namespaces, nodes and pods; `labels` adds labels to pods: {POD_C: "tier: back"}."""
    texts = [NAMESPACES.strip(), *(node.yaml() for node in nodes)]
    for each in pods or PODS:
        text = each.yaml()
        if each in (labels or {}):
            text = text.replace(f"labels: {{ {each.labels} }}", f"labels: {{ {each.labels}, {labels[each]} }}")
        texts.append(text)
    return "\n---\n".join(texts)


WORLD = world()


def backs(*pods):
    """The world with these pods labelled `tier: back`, for a Service with several endpoints."""
    return world({each: "tier: back" for each in pods})


def service(
    name, backends, ports=(("TCP", 80, 8080),), v4=None, v6=None, kind="ClusterIP", more="", namespace="default"
):
    """A Service with the addresses given; `ports` are (protocol, port, targetPort[, nodePort])."""
    ips = ", ".join(f'"{ip}"' for ip in (v4, v6) if ip)
    families = ", ".join(family for family, ip in (("IPv4", v4), ("IPv6", v6)) if ip)
    lines = []
    for proto, port, target, *node_port in ports:
        extra = f", nodePort: {node_port[0]}" if node_port else ""
        lines.append(
            f"  - {{ name: {proto.lower()}-{port}, protocol: {proto}, port: {port}, targetPort: {target}{extra} }}"
        )
    policy = "RequireDualStack" if v4 and v6 else "SingleStack"
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace} }}\nspec:\n  type: {kind}\n"
        f'  clusterIP: "{v4 or v6}"\n  clusterIPs: [{ips}]\n  ipFamilies: [{families}]\n'
        f"  ipFamilyPolicy: {policy}\n  selector: {{ {backends} }}\n  ports:\n"
        + "\n".join(lines)
        + (f"\n{more.rstrip()}" if more else "")
    )
