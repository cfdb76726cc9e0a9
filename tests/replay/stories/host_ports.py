"""Ports of the node that lead to one pod, and pods whose addresses are not the node's own."""

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    NODE_C,
    POD_A,
    POD_B,
    POD_C,
    PROTOCOLS,
    TCP_,
    UDP_,
    V4,
    V6,
    Pod,
    pod,
    world,
)
from model import tunnel, tunnelled
from story import each, story

OPEN = ", ".join(f"{{ containerPort: 8080, hostPort: 18080, protocol: {proto} }}" for proto in ("TCP", "UDP", "SCTP"))
SERVER = pod("a", NODE_A, 10, ports=OPEN)
SHUT = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: shut, namespace: default }
spec: { podSelector: { matchLabels: { app: a } }, policyTypes: [Ingress] }
"""
POOL = """
apiVersion: sluicegate.dev/v1alpha1
kind: IPPool
metadata: { name: edge }
spec: { use: pods, cidrs: [10.60.0.0/24, "fd60::/64"], namespaceSelector: {} }
"""
GUEST = Pod("guest", NODE_B, "10.60.0.9", "fd60::9")


def with_server(*more):
    return world(pods=[SERVER, POD_B, POD_C, *more])


@each("A client outside reaches a pod by its host port with {0} over {1} and keeps its address", PROTOCOLS, FAMILIES)
def outside(s, proto, fam):
    s.given(with_server())
    for _ in range(2):
        s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, NODE_A) / proto.opens(44000, 18080))).forwarded(
            SERVER.port, SERVER.gets(fam.ip(fam.outside, SERVER, 63) / proto.opens(44000, 8080))
        )
        s.send(SERVER.port, SERVER.sends(fam.ip(SERVER, fam.outside) / proto.answers(8080, 44000))).forwarded(
            "uplink0", NODE_A.sends(fam.ip(NODE_A, fam.outside, 63) / proto.answers(18080, 44000))
        )


@each("A pod of the node reaches another one by its host port with {0} over {1}", PROTOCOLS, FAMILIES)
def from_a_pod(s, proto, fam):
    s.given(with_server())
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, NODE_A) / proto.opens(44000, 18080))).forwarded(
        SERVER.port, SERVER.gets(fam.ip(POD_B, SERVER, 63) / proto.opens(44000, 8080))
    )
    s.send(SERVER.port, SERVER.sends(fam.ip(SERVER, POD_B) / proto.answers(8080, 44000))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(NODE_A, POD_B, 63) / proto.answers(18080, 44000))
    )


@each("Policy of the pod applies to its host port over {0}", FAMILIES)
def policy_applies(s, fam):
    s.given(with_server(), SHUT)
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, NODE_A) / TCP_.opens(44000, 18080))).dropped(
        "PolicyDeny", policy="isolation"
    )


@each("A port of the node that no pod has is the host's over {0}", FAMILIES)
def not_ours(s, fam):
    s.given(with_server())
    for proto, port in ((TCP_, 18081), (UDP_, 18081)):
        packet = fam.ip(fam.outside, NODE_A) / proto.opens(44000, port)
        s.send("uplink0", NODE_A.hears(packet)).punted(NODE_A.host_gets(packet))


@story("A host port with a hostIP is on that address alone, and another pod may have the port elsewhere")
def host_ip(s):
    bound = pod("a", NODE_A, 10, ports='{ containerPort: 8080, hostPort: 18080, hostIP: "192.168.50.11" }')
    other = pod("b", NODE_A, 11, ports='{ containerPort: 9090, hostPort: 18080, hostIP: "2001:db8:50::11" }')
    s.given(world(pods=[bound, other, POD_C]))
    for fam, server, port in ((V4, bound, 8080), (V6, other, 9090)):
        s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, NODE_A) / TCP_.opens(44000, 18080))).forwarded(
            server.port, server.gets(fam.ip(fam.outside, server, 63) / TCP_.opens(44000, port))
        )


@story("One port for three protocols is three pods' business")
def three_protocols(s):
    servers = [
        pod(name, NODE_A, last, ports=f"{{ containerPort: 8080, hostPort: 18080, protocol: {proto} }}")
        for name, last, proto in (("a", 10, "TCP"), ("b", 11, "UDP"), ("g", 12, "SCTP"))
    ]
    s.given(world(pods=[*servers, POD_C]))
    for server, proto in zip(servers, PROTOCOLS):
        s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, NODE_A) / proto.opens(44000, 18080))).forwarded(
            server.port, server.gets(V4.ip(V4.outside, server, 63) / proto.opens(44000, 8080))
        )


@story("Two pods that want one port: the first by name has it")
def two_claims(s):
    one, two = (pod(name, NODE_A, last, ports="{ containerPort: 8080, hostPort: 18080 }") for name, last in (("a", 10), ("b", 11)))
    s.given(world(pods=[two, one, POD_C]))
    s.send("uplink0", NODE_A.hears(V4.ip(V4.outside, NODE_A) / TCP_.opens(44000, 18080))).forwarded(
        one.port, one.gets(V4.ip(V4.outside, one, 63) / TCP_.opens(44000, 8080))
    )


@each("A pod with an address of a pool is reached on its node with {0} over {1}", PROTOCOLS, FAMILIES)
def guest(s, proto, fam):
    s.given(world(pods=[POD_A, POD_C, GUEST]), POOL)
    question, answer = proto.opens(33000, 8080), proto.answers(8080, 33000)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, GUEST) / question)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, GUEST, 63) / question)
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(GUEST, POD_A, 63) / answer)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(GUEST, POD_A, 62) / answer)
    )


@each("A pod with an address of a pool may open a connection from its node and from no other over {0}", FAMILIES)
def guest_source(s, fam):
    s.given(world(pods=[POD_A, POD_C, GUEST]), POOL)
    question = fam.ip(GUEST, POD_A, 63) / UDP_.opens(33000, 53)
    s.send("uplink0", tunnelled(NODE_C, NODE_A, question)).dropped("SourceSpoofed")
    s.send("uplink0", tunnelled(NODE_B, NODE_A, question)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(GUEST, POD_A, 62) / UDP_.opens(33000, 53))
    )


@each("An address of a pool that no pod has goes nowhere over {0}", FAMILIES)
def nobody(s, fam):
    s.given(world(pods=[POD_A, POD_C, GUEST]), POOL)
    free = "fd60::77" if fam.six else "10.60.0.77"
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, free) / UDP_.opens(33000, 53))).dropped("NoRoute")
