"""ClusterNetworkPolicy: peers and ports of egress rules, subjects, and both ends at once."""

from cluster import FAMILIES, NODE_A, NODE_B, NODE_C, POD_A, POD_B, POD_C, POD_D, POD_E, TCP_, UDP_, WORLD
from model import tunnel
from stories.policy import go, policy, stop
from story import each

PLAIN = "masquerade: { enabled: false }\n"
ONLY_A = "{ pods: { podSelector: { matchLabels: { app: a } } } }"


def egress(name, tier, priority, rules, subject=ONLY_A):
    return (
        f"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{ name: {name} }}\n"
        f"spec:\n  tier: {tier}\n  priority: {priority}\n  subject: {subject}\n  egress:\n"
        + "".join(f"  - {rule}\n" for rule in rules)
    )


REST = '{ name: rest, action: Deny, to: [ { networks: [ "0.0.0.0/0", "::/0" ] } ] }'
CLOSED = "ClusterNetworkPolicy/out#rest"


def send(s, fam, there, packet, passes):
    """A packet of pod a to an address or a pod of another node."""
    step = s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / packet))
    if not passes:
        step.dropped("PolicyDeny", policy=CLOSED)
    elif there in (POD_C, POD_D, POD_E):
        step.forwarded("uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, there, 63) / packet), policy=passes)
    else:
        step.forwarded("uplink0", NODE_A.sends(fam.ip(POD_A, there, 63) / packet), policy=passes)


@each("An egress rule by networks lets to them and to nobody around them, over {0}", FAMILIES)
def networks(s, fam):
    net, near = ('"2001:db8:7::/64"', "2001:db8:8::1") if fam.six else ('"198.51.100.0/24"', "198.51.101.1")
    s.given(WORLD, egress("out", "Admin", 1, [f"{{ name: net, action: Accept, to: [ {{ networks: [ {net} ] }} ] }}", REST]), config=PLAIN)
    send(s, fam, fam.outside, TCP_.opens(33000, 443), "ClusterNetworkPolicy/out#net")
    send(s, fam, near, TCP_.opens(33001, 443), False)
    send(s, fam, POD_C, TCP_.opens(33002, 443), False)


@each("An egress rule by nodes lets to nodes with the labels, and not to the pods on them, over {0}", FAMILIES)
def nodes(s, fam):
    chosen = "{ name: nodes, action: Accept, to: [ { nodes: { matchLabels: { kubernetes.io/hostname: node-b } } } ] }"
    s.given(WORLD, egress("out", "Admin", 1, [chosen, REST]), config=PLAIN)
    packet = TCP_.opens(33000, 10250)
    there = NODE_B.address(fam.six)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / packet)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, there, 63) / packet), policy="ClusterNetworkPolicy/out#nodes"
    )
    send(s, fam, POD_C, TCP_.opens(33001, 10250), False)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, NODE_C.address(fam.six)) / TCP_.opens(33002, 10250))).dropped(
        "PolicyDeny", policy=CLOSED
    )


@each("An egress rule by pods and namespaces, ports by number, range and name, over {0}", FAMILIES)
def pods_and_ports(s, fam):
    named = POD_C.yaml().replace("ports: [  ]", "ports: [ { name: web, containerPort: 7070, protocol: TCP } ]")
    assert named != POD_C.yaml()
    rules = [
        "{ name: own, action: Accept, to: [ { pods: { namespaceSelector: {}, podSelector: { matchLabels: { app: c } } } } ],"
        " protocols: [ { tcp: { destinationPort: { number: 80 } } }, { udp: { destinationPort: { range: { start: 9000, end: 9010 } } } },"
        " { destinationNamedPort: web } ] }",
        "{ name: other, action: Accept, to: [ { namespaces: { matchLabels: { team: blue } } } ] }",
        REST,
    ]
    s.given(WORLD.replace(POD_C.yaml(), named), egress("out", "Admin", 1, rules))
    own = "ClusterNetworkPolicy/out#own"
    for n, (packet, port, passes) in enumerate(
        (
            (TCP_, 80, own),
            (TCP_, 81, False),
            (UDP_, 80, False),
            (UDP_, 8999, False),
            (UDP_, 9000, own),
            (UDP_, 9010, own),
            (UDP_, 9011, False),
            (TCP_, 7070, own),
            (UDP_, 7070, False),
        )
    ):
        send(s, fam, POD_C, packet.opens(33000 + n, port), passes)
    send(s, fam, POD_D, TCP_.opens(34000, 80), False)
    send(s, fam, POD_E, UDP_.opens(34001, 1), "ClusterNetworkPolicy/out#other")


@each("A subject is picked by namespaces and by pods, and nobody else is bound, over {0}", FAMILIES)
def subjects(s, fam):
    deny = [REST]
    blue = "{ namespaces: { matchLabels: { team: blue } } }"
    s.given(WORLD, egress("out", "Admin", 1, deny), egress("blue", "Admin", 2, deny, subject=blue))
    send(s, fam, POD_C, TCP_.opens(33000, 80), False)
    packet = TCP_.opens(33001, 80)
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_C) / packet)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_B, POD_C, 63) / packet), policy=None
    )


@each("Egress tiers stand around NetworkPolicy as ingress tiers do, over {0}", FAMILIES)
def around(s, fam):
    port = "protocols: [ {{ tcp: {{ destinationPort: {{ number: {0} }} }} }} ]"
    anywhere = "to: [ { namespaces: {} } ]"
    admin = [
        f"{{ name: on, action: Pass, {anywhere}, {port.format(80)} }}",
        f"{{ name: never, action: Deny, {anywhere}, {port.format(81)} }}",
        f"{{ name: always, action: Accept, {anywhere}, {port.format(82)} }}",
    ]
    floor = egress("floor", "Baseline", 1, [f"{{ name: shut, action: Deny, {anywhere} }}"], subject="{ namespaces: {} }")
    out = policy("out", "{ matchLabels: { app: a } }", "  policyTypes: [Egress]\n  egress: [ { ports: [ { port: 80 }, { port: 81 } ] } ]")
    s.given(WORLD, egress("top", "Admin", 1, admin), floor, out)
    go(s, POD_A, POD_B, TCP_.opens(33000, 80), fam, policy="NetworkPolicy/default/out")
    stop(s, POD_A, POD_B, TCP_.opens(33001, 81), fam, policy="ClusterNetworkPolicy/top#never")
    go(s, POD_A, POD_B, TCP_.opens(33002, 82), fam, policy="ClusterNetworkPolicy/top#always")
    stop(s, POD_A, POD_B, TCP_.opens(33003, 83), fam, policy="isolation")
    stop(s, POD_B, POD_A, TCP_.opens(33004, 80), fam, policy="ClusterNetworkPolicy/floor#shut")
