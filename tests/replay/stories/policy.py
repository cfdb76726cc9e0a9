"""NetworkPolicy: who is isolated, which rule lets through, what is named."""

from cluster import (
    FAMILIES,
    NODE_A,
    NODE_B,
    POD_A,
    POD_B,
    POD_C,
    POD_D,
    POD_E,
    PROTOCOLS,
    SCTP_,
    TCP_,
    UDP_,
    V4,
    WORLD,
    service,
)
from model import tunnel, tunnelled
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}


def policy(name, selects, rules, namespace="default"):
    return (
        f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: {namespace} }}\n"
        f"spec:\n  podSelector: {selects}\n{rules.rstrip()}\n"
    )


A = "{ matchLabels: { app: a } }"
B = "{ matchLabels: { app: b } }"
DENY_INGRESS = policy("deny", "{}", "  policyTypes: [Ingress]")
DENY_EGRESS = policy("deny-out", "{}", "  policyTypes: [Egress]")


def go(s, src, dst, packet, fam=V4, **named):
    """A packet between two pods of node-a that passes."""
    return s.send(src.port, src.sends(fam.ip(src, dst) / packet)).forwarded(
        dst.port, dst.gets(fam.ip(src, dst, 63) / packet), **named
    )


def stop(s, src, dst, packet, fam=V4, **named):
    """A packet between two pods of node-a that does not."""
    return s.send(src.port, src.sends(fam.ip(src, dst) / packet)).dropped("PolicyDeny", **named)


def arrive(s, packet, src, fam=V4, allow=None, **named):
    """A packet to pod a from a pod of node-b."""
    step = s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(src, POD_A, 63) / packet))
    if allow:
        return step.forwarded(POD_A.port, POD_A.gets(fam.ip(src, POD_A, 62) / packet), **named)
    return step.dropped("PolicyDeny", **named)


@each("Default-deny ingress stops {0} over {1}, from here and from elsewhere, by isolation", PROTOCOLS, FAMILIES)
def deny_ingress(s, proto, fam):
    s.given(WORLD, DENY_INGRESS)
    stop(s, POD_B, POD_A, proto.opens(33000, 80), fam, policy="isolation")
    arrive(s, proto.opens(33000, 80), POD_C, fam, policy="isolation")
    arrive(s, proto.opens(33000, 80), POD_E, fam, policy="isolation")


@each("Default-deny ingress stops pings over {0}", FAMILIES)
def deny_echo(s, fam):
    s.given(WORLD, DENY_INGRESS)
    stop(s, POD_B, POD_A, fam.echo(), fam, policy="isolation")


@each("Default-deny egress stops what the pod begins, also to the outside, over {0}", FAMILIES)
def deny_egress(s, fam):
    s.given(WORLD, DENY_EGRESS)
    for proto in PROTOCOLS:
        stop(s, POD_A, POD_B, proto.opens(33000, 80), fam, policy="isolation")
        for there in (POD_C, fam.outside):
            s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / proto.opens(33000, 80))).dropped(
                "PolicyDeny", policy="isolation"
            )


@each("Default-deny egress lets replies through, for {0} over {1}", PROTOCOLS, FAMILIES)
def deny_egress_replies(s, proto, fam):
    s.given(WORLD, DENY_EGRESS)
    arrive(s, proto.opens(33000, 80), POD_E, fam, allow=True)  # the other namespace is not selected
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_E) / proto.answers(80, 33000))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_E, 63) / proto.answers(80, 33000))
    )


@each("Default-deny ingress lets replies through, for {0} over {1}", PROTOCOLS, FAMILIES)
def deny_ingress_replies(s, proto, fam):
    s.given(WORLD, DENY_INGRESS)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_E) / proto.opens(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_E, 63) / proto.opens(33000, 80)), policy=None
    )
    arrive(s, proto.answers(80, 33000), POD_E, fam, allow=True)


FROM_B = policy(
    "from-b",
    A,
    """
  ingress:
  - from: [ { podSelector: { matchLabels: { app: b } } } ]
    ports: [ { protocol: TCP, port: 80 } ]
""",
)


@each("A policy lets one pod in to one port, and is named, over {0}", FAMILIES)
def allow(s, fam):
    s.given(WORLD, FROM_B)
    go(s, POD_B, POD_A, TCP_.opens(33000, 80), fam, policy="NetworkPolicy/default/from-b")
    stop(s, POD_B, POD_A, TCP_.opens(33000, 81), fam, policy="isolation")
    stop(s, POD_B, POD_A, UDP_.opens(33000, 80), fam, policy="isolation")
    stop(s, POD_B, POD_A, SCTP_.opens(33000, 80), fam, policy="isolation")
    arrive(s, TCP_.opens(33000, 80), POD_C, fam, policy="isolation")
    go(s, POD_A, POD_B, TCP_.opens(34000, 80), fam, policy=None)


@story("A bare podSelector means the policy's own namespace")
def own_namespace(s):
    impostor = POD_E.yaml().replace("labels: { app: e }", "labels: { app: b }")
    s.given(WORLD.replace(POD_E.yaml(), impostor), FROM_B)
    arrive(s, TCP_.opens(33000, 80), POD_E, policy="isolation")


PORTS = policy(
    "ports",
    A,
    """
  ingress:
  - ports:
    - { protocol: TCP, port: 8000, endPort: 8010 }
    - { protocol: UDP }
    - { port: web }
    - { protocol: SCTP, port: 90 }
""",
)


@each("Port ranges, named ports and whole protocols are what they say over {0}", FAMILIES)
def ports(s, fam):
    named = POD_A.yaml().replace("ports: [  ]", "ports: [ { name: web, containerPort: 7070, protocol: TCP } ]")
    s.given(WORLD.replace(POD_A.yaml(), named), PORTS)
    for proto, port, passes in (
        (TCP_, 7999, 0),
        (TCP_, 8000, 1),
        (TCP_, 8010, 1),
        (TCP_, 8011, 0),
        (UDP_, 1, 1),
        (UDP_, 65535, 1),
        (TCP_, 7070, 1),
        (SCTP_, 7070, 0),
        (SCTP_, 90, 1),
        (TCP_, 90, 0),
    ):
        step = go if passes else stop
        step(
            s,
            POD_B,
            POD_A,
            proto.opens(33000 + port % 100, port),
            fam,
            policy="NetworkPolicy/default/ports" if passes else "isolation",
        )


@story("A named port of an egress rule is looked up on the destination")
def named_egress(s):
    named = POD_B.yaml().replace("ports: [  ]", "ports: [ { name: web, containerPort: 7070, protocol: TCP } ]")
    s.given(
        WORLD.replace(POD_B.yaml(), named),
        policy("out", A, "  policyTypes: [Egress]\n  egress: [ { ports: [ { port: web } ] } ]"),
    )
    go(s, POD_A, POD_B, TCP_.opens(33000, 7070), policy="NetworkPolicy/default/out")
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_C) / TCP_.opens(33000, 7070))).dropped(
        "PolicyDeny", policy="isolation"
    )


BLOCK = policy(
    "block",
    A,
    """
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: { cidr: 10.244.0.0/16, except: [10.244.2.11/32] }
    - ipBlock: { cidr: "fd00:10:244::/56", except: ["fd00:10:244:2::b/128"] }
""",
)


@each("ipBlock and except judge the pod behind a Service, not the ClusterIP, over {0}", FAMILIES)
def ip_block(s, fam):
    s.given(
        WORLD,
        BLOCK,
        service("web", "app: c", (("TCP", 80, 8080),), VIP[False], VIP[True]),
        service("not", "app: d", (("TCP", 80, 8080),), "10.96.0.11", "fd00:10:96::b"),
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / TCP_.opens(33000, 80))).forwarded(
        "uplink0",
        tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / TCP_.opens(33000, 8080)),
        policy="NetworkPolicy/default/block",
        service="default/web:80/TCP",
    )
    other = "fd00:10:96::b" if fam.six else "10.96.0.11"
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, other) / TCP_.opens(33001, 80))).dropped(
        "PolicyDeny", policy="isolation"
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / TCP_.opens(33001, 80))).dropped(
        "PolicyDeny", policy="isolation"
    )


@story("An except of one rule does not take what another rule gives")
def except_is_no_deny(s):
    s.given(
        WORLD,
        BLOCK,
        policy("more", A, "  policyTypes: [Egress]\n  egress: [ { to: [ { ipBlock: { cidr: 10.244.2.11/32 } } ] } ]"),
    )
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_D) / UDP_.opens(33000, 53))).forwarded(
        "uplink0",
        tunnel(NODE_A, NODE_B, V4.ip(POD_A, POD_D, 63) / UDP_.opens(33000, 53)),
        policy="NetworkPolicy/default/more",
    )


@each("namespaceSelector alone, with podSelector, and NotIn over {0}", FAMILIES)
def namespaces(s, fam):
    s.given(
        WORLD,
        policy("blue", A, "  ingress: [ { from: [ { namespaceSelector: { matchLabels: { team: blue } } } ] } ]"),
        policy(
            "both",
            B,
            """
  ingress:
  - from:
    - namespaceSelector:
        matchExpressions: [ { key: kubernetes.io/metadata.name, operator: NotIn, values: [default] } ]
      podSelector: { matchLabels: { app: e } }
""",
        ),
    )
    arrive(s, TCP_.opens(33000, 80), POD_E, fam, allow=True, policy="NetworkPolicy/default/blue")
    arrive(s, TCP_.opens(33000, 80), POD_C, fam, policy="isolation")
    packet = TCP_.opens(33000, 80)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_E, POD_B, 63) / packet)).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_E, POD_B, 62) / packet), policy="NetworkPolicy/default/both"
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_B, 63) / packet)).dropped(
        "PolicyDeny", policy="isolation"
    )


@each("Both ends must agree: egress here and ingress there over {0}", FAMILIES)
def both_ends(s, fam):
    s.given(
        WORLD,
        policy("out", A, "  policyTypes: [Egress]\n  egress: [ { ports: [ { port: 80 }, { port: 81 } ] } ]"),
        policy("in", B, "  ingress: [ { ports: [ { port: 81 }, { port: 82 } ] } ]"),
    )
    stop(s, POD_A, POD_B, TCP_.opens(33000, 80), fam, policy="isolation")
    # READING: where an egress and an ingress policy both let a packet through, either may be named.
    go(s, POD_A, POD_B, TCP_.opens(33001, 81), fam, policy={"NetworkPolicy/default/out", "NetworkPolicy/default/in"})
    stop(s, POD_A, POD_B, TCP_.opens(33002, 82), fam, policy="isolation")


@each("The source address that policy sees through a Service is the pod's over {0}", FAMILIES)
def through_service(s, fam):
    s.given(
        WORLD,
        FROM_B.replace("port: 80", "port: 8080"),
        service("web", "app: a", (("TCP", 80, 8080),), VIP[False], VIP[True]),
    )
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, VIP[fam.six]) / TCP_.opens(33000, 80))).forwarded(
        POD_A.port,
        POD_A.gets(fam.ip(POD_B, POD_A, 63) / TCP_.opens(33000, 8080)),
        policy="NetworkPolicy/default/from-b",
    )


@each("The node always reaches its own pods over {0}", FAMILIES)
def own_node(s, fam):
    s.given(WORLD, DENY_INGRESS, DENY_EGRESS)
    for index, address in enumerate((NODE_A.address(fam.six), NODE_A.overlay(fam.six))):
        for proto in PROTOCOLS:
            question, answer = proto.opens(50000 + index, 8080), proto.answers(8080, 50000 + index)
            s.send("host", NODE_A.host_sends(fam.ip(address, POD_A) / question)).forwarded(
                POD_A.port, POD_A.gets(fam.ip(address, POD_A, 63) / question)
            )
            back = fam.ip(POD_A, address) / answer
            s.send(POD_A.port, POD_A.sends(back)).punted(NODE_A.host_gets(back))


@each("An outside client of a NodePort is judged by its own address over {0}", FAMILIES)
def outside(s, fam):
    s.given(
        WORLD,
        service("web", "app: a", (("TCP", 80, 8080, 30080),), VIP[False], VIP[True], kind="NodePort"),
        policy(
            "clients",
            A,
            """
  ingress:
  - from: [ { ipBlock: { cidr: 198.51.100.0/24 } }, { ipBlock: { cidr: "2001:db8:7::/64" } } ]
""",
        ),
    )
    stranger = "2001:db8:8::1" if fam.six else "203.0.113.1"
    packet = TCP_.opens(44000, 30080)
    s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, NODE_A) / packet)).forwarded(
        POD_A.port,
        POD_A.gets(fam.ip(fam.outside, POD_A, 63) / TCP_.opens(44000, 8080)),
        policy="NetworkPolicy/default/clients",
    )
    s.send("uplink0", NODE_A.hears(fam.ip(stranger, NODE_A) / packet)).dropped("PolicyDeny", policy="isolation")


UNKNOWN = ("spec field", "peer field", "rule field")


@each("A policy with an unknown {0} fails closed for what it selects", UNKNOWN)
def fail_closed(s, what):
    rules = {
        "spec field": "  shinyNewField: yes\n  ingress: [ { from: [ { podSelector: {} } ] } ]",
        "peer field": "  ingress: [ { from: [ { shinyNewSelector: {} } ] } ]",
        "rule field": "  ingress: [ { from: [ { podSelector: {} } ], shinyNewField: 1 } ]",
    }[what]
    s.given(WORLD, policy("strange", A, rules))
    stop(s, POD_B, POD_A, TCP_.opens(33000, 80))
    # READING: whether it also isolates egress depends on the field, so pod a's own flows are not judged here.
    packet = TCP_.opens(33001, 80)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, V4.ip(POD_C, POD_B, 63) / packet)).forwarded(
        POD_B.port, POD_B.gets(V4.ip(POD_C, POD_B, 62) / packet), policy=None
    )


@story("A policy list as kubectl writes it is read like single documents")
def as_list(s):
    import textwrap

    body = textwrap.indent(DENY_INGRESS.strip(), "  ")
    s.given(WORLD, "apiVersion: v1\nkind: List\nitems:\n-" + body[1:])
    stop(s, POD_B, POD_A, TCP_.opens(33000, 80), policy="isolation")
