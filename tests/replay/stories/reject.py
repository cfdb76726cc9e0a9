"""Reject mode: a denied packet is answered, in the right name and on the right way."""

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_B, POD_C, SCTP_, TCP_, UDP_, WORLD, service
from model import our_error, reset, tunnel, tunnelled
from stories.policy import DENY_EGRESS, DENY_INGRESS, VIP, stop
from story import each

REJECT = "policy: { default_action: reject }\n"


@each("In reject mode a denied packet of a local pod is answered over {0}", FAMILIES)
def reject_local(s, fam):
    s.given(WORLD, DENY_INGRESS, config=REJECT)
    syn = fam.ip(POD_B, POD_A) / TCP_.opens(33000, 80)
    s.send(POD_B.port, POD_B.sends(syn)).replied(
        POD_B.gets(reset(fam, POD_A, POD_B, syn)), reason="PolicyDeny", policy="isolation"
    )
    for proto in (UDP_, SCTP_):
        packet = fam.ip(POD_B, POD_A) / proto.opens(33000, 80)
        s.send(POD_B.port, POD_B.sends(packet)).replied(
            POD_B.gets(our_error(fam, NODE_A.overlay(fam.six), POD_B, "prohibited", packet)),
            reason="PolicyDeny",
            policy="isolation",
        )
    stop(s, POD_B, POD_A, fam.echo(), fam, policy="isolation")


@each("In reject mode a denied packet from another node is answered through the tunnel over {0}", FAMILIES)
def reject_remote(s, fam):
    s.given(WORLD, DENY_INGRESS, config=REJECT)
    syn = fam.ip(POD_C, POD_A, 63) / TCP_.opens(33000, 80)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, syn)).replied(
        tunnel(NODE_A, NODE_B, reset(fam, POD_A, POD_C, syn)), reason="PolicyDeny", policy="isolation"
    )
    packet = fam.ip(POD_C, POD_A, 63) / UDP_.opens(33000, 80)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, packet)).replied(
        tunnel(NODE_A, NODE_B, our_error(fam, NODE_A.overlay(fam.six), POD_C, "prohibited", packet)),
        reason="PolicyDeny",
        policy="isolation",
    )


@each("In reject mode egress through a Service is refused in the ClusterIP's name over {0}", FAMILIES)
def reject_service(s, fam):
    s.given(
        WORLD,
        DENY_EGRESS,
        service("web", "app: c", (("TCP", 80, 8080), ("UDP", 80, 8080)), VIP[False], VIP[True]),
        config=REJECT,
    )
    vip = VIP[fam.six]
    syn = fam.ip(POD_A, vip) / TCP_.opens(33000, 80)
    s.send(POD_A.port, POD_A.sends(syn)).replied(
        POD_A.gets(reset(fam, vip, POD_A, syn)), reason="PolicyDeny", policy="isolation"
    )
    packet = fam.ip(POD_A, vip) / UDP_.opens(33000, 80)
    s.send(POD_A.port, POD_A.sends(packet)).replied(
        POD_A.gets(our_error(fam, NODE_A.overlay(fam.six), POD_A, "prohibited", packet)),
        reason="PolicyDeny",
        policy="isolation",
    )
