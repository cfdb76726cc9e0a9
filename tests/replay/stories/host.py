"""The node itself: what is punted to it, what it sends."""

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_B, POD_C, PROTOCOLS, TCP_, WORLD, service
from model import tunnel, tunnelled
from story import each

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}


def both(fam):
    """The node's two addresses of a family."""
    return NODE_A.address(fam.six), NODE_A.overlay(fam.six)


@each("A pod's {0} over {1} to its own node is punted as it is", PROTOCOLS, FAMILIES)
def pod_to_host(s, proto, fam):
    s.given(WORLD)
    # Two pods: with several workers they are not both on the host's.
    for pod in (POD_A, POD_B):
        for index, address in enumerate(both(fam)):
            packet = fam.ip(pod, address, 33) / proto.opens(33000 + index, 22)
            s.send(pod.port, pod.sends(packet)).punted(NODE_A.host_gets(packet))
            answer = proto.answers(22, 33000 + index)
            s.send("host", NODE_A.host_sends(fam.ip(address, pod) / answer)).forwarded(
                pod.port, pod.gets(fam.ip(address, pod, 63) / answer)
            )


@each("A pod's ping to its own node is punted over {0}, even with a TTL of one", FAMILIES)
def echo(s, fam):
    s.given(WORLD)
    for address in both(fam):
        packet = fam.ip(POD_A, address, 1) / fam.echo()
        s.send(POD_A.port, POD_A.sends(packet)).punted(NODE_A.host_gets(packet))


@each("What arrives on the uplink for the node itself is punted as it is over {0}", FAMILIES)
def uplink_to_host(s, fam):
    s.given(WORLD)
    packet = fam.ip(fam.outside, NODE_A, 7) / TCP_.opens(44000, 22)
    s.send("uplink0", NODE_A.hears(packet)).punted(NODE_A.host_gets(packet))


@each("A remote pod's packet to our overlay address comes out of the tunnel and is punted over {0}", FAMILIES)
def tunnel_to_host(s, fam):
    s.given(WORLD)
    packet = fam.ip(POD_C, NODE_A.overlay(fam.six), 63) / TCP_.opens(33000, 10250)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, packet)).punted(NODE_A.host_gets(packet))


@each(
    "The node reaches a local pod with {0} over {1} from both its addresses, and the pod answers", PROTOCOLS, FAMILIES
)
def host_to_pod(s, proto, fam):
    s.given(WORLD)
    for index, address in enumerate(both(fam)):
        question = proto.opens(50000 + index, 8080)
        s.send("host", NODE_A.host_sends(fam.ip(address, POD_A) / question)).forwarded(
            POD_A.port, POD_A.gets(fam.ip(address, POD_A, 63) / question)
        )
        answer = fam.ip(POD_A, address) / proto.answers(8080, 50000 + index)
        s.send(POD_A.port, POD_A.sends(answer)).punted(NODE_A.host_gets(answer))


@each("The node reaches a pod of another node with {0} over {1} through the tunnel", PROTOCOLS, FAMILIES)
def host_to_remote(s, proto, fam):
    s.given(WORLD)
    overlay = NODE_A.overlay(fam.six)
    s.send("host", NODE_A.host_sends(fam.ip(overlay, POD_C) / proto.opens(50000, 8080))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(overlay, POD_C, 63) / proto.opens(50000, 8080))
    )
    answer = fam.ip(POD_C, overlay, 63) / proto.answers(8080, 50000)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, answer)).punted(NODE_A.host_gets(answer))


@each("A pod reaches another node by its overlay address through the tunnel over {0}", FAMILIES)
def pod_to_other_overlay(s, fam):
    s.given(WORLD)
    there = NODE_B.overlay(fam.six)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / TCP_.opens(33000, 10250))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, there, 63) / TCP_.opens(33000, 10250))
    )


@each("The node uses a ClusterIP whose pod is local with {0} over {1}", PROTOCOLS, FAMILIES)
def host_to_service_local(s, proto, fam):
    s.given(WORLD, service("web", "app: a", ((proto.name, 80, 8080),), VIP[False], VIP[True]))
    overlay, vip = NODE_A.overlay(fam.six), VIP[fam.six]
    s.send("host", NODE_A.host_sends(fam.ip(overlay, vip) / proto.opens(50000, 80))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(overlay, POD_A, 63) / proto.opens(50000, 8080)), service=f"default/web:80/{proto}"
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, overlay, 64) / proto.answers(8080, 50000))).punted(
        NODE_A.host_gets(fam.ip(vip, overlay, 64) / proto.answers(80, 50000))
    )


@each("The node uses a ClusterIP whose pod is elsewhere with {0} over {1}", PROTOCOLS, FAMILIES)
def host_to_service_remote(s, proto, fam):
    s.given(WORLD, service("web", "app: c", ((proto.name, 80, 8080),), VIP[False], VIP[True]))
    overlay, vip = NODE_A.overlay(fam.six), VIP[fam.six]
    s.send("host", NODE_A.host_sends(fam.ip(overlay, vip) / proto.opens(50000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(overlay, POD_C, 63) / proto.opens(50000, 8080))
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, overlay, 63) / proto.answers(8080, 50000))).punted(
        NODE_A.host_gets(fam.ip(vip, overlay, 63) / proto.answers(80, 50000))
    )


@each("A pod reaches another pod's node ports and the host's own ports stay apart over {0}", FAMILIES)
def node_port_range(s, fam):
    # READING: a port of the NodePort range that no Service has is the host's business.
    s.given(WORLD, service("web", "app: a", (("TCP", 80, 8080, 30080),), VIP[False], VIP[True], kind="NodePort"))
    packet = fam.ip(fam.outside, NODE_A) / TCP_.opens(44000, 30081)
    s.send("uplink0", NODE_A.hears(packet)).punted(NODE_A.host_gets(packet))
