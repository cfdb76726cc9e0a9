"""The well-known behaviours of NetworkPolicy, one by one: three namespaces of three pods, who reaches whom on which port.

Namespaces x and y live on node-a, z on node-b. A probe goes to the target's own Service where the source's node is
replayed, so that policy sees the packet after Service translation; from z it arrives through the tunnel, translated. Who
is not isolated passes without a policy being named.
"""

from cluster import FAMILIES, NODE_A, NODE_B, SCTP_, TCP_, UDP_, Pod, pod, service
from model import tunnel, tunnelled
from story import each

SPACES, NAMES = "xyz", "abc"
PORTS = ", ".join(
    f"{{ name: serve-{port}-{proto.lower()}, containerPort: {port}, protocol: {proto} }}"
    for port in (80, 81)
    for proto in ("TCP", "UDP", "SCTP")
)
PODS = {
    f"{ns}/{name}": pod(
        name,
        NODE_B if ns == "z" else NODE_A,
        20 + 10 * SPACES.index(ns) + NAMES.index(name),
        namespace=ns,
        labels=f"pod: {name}",
        ports=PORTS,
    )
    for ns in SPACES
    for name in NAMES
}
ALL = list(PODS.values())


def vip(target, six):
    return ("fd00:10:96::1:" if six else "10.96.1.") + target.v4.rpartition(".")[2]


def world():
    spaces = [f"apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {ns}, labels: {{ ns: {ns} }} }}" for ns in SPACES]
    lists = [[proto, port, port] for port in (80, 81, 82, 8000, 8010, 7999, 8011) for proto in ("TCP", "UDP", "SCTP")]
    # A Service's selector sees its own namespace only.
    services = [
        service(f"s-{p.name}", f"pod: {p.name}", lists, vip(p, False), vip(p, True), namespace=p.namespace) for p in ALL
    ]
    return "\n---\n".join([*spaces, NODE_A.yaml(), NODE_B.yaml(), *(p.yaml() for p in ALL), *services])


WORLD = world()


def policy(name, selects, rules, namespace="x"):
    return (
        f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: {name}, namespace: {namespace} }}\n"
        f"spec:\n  podSelector: {selects}\n{rules.rstrip()}\n"
    )


def labelled(*names):
    """A selector of pods by name, with one value as a label, with several as an expression."""
    if len(names) == 1:
        return f"{{ matchLabels: {{ pod: {names[0]} }} }}"
    return f"{{ matchExpressions: [ {{ key: pod, operator: In, values: [{', '.join(names)}] }} ] }}"


def space(ns):
    return f"{{ matchLabels: {{ kubernetes.io/metadata.name: {ns} }} }}"


def not_space(ns):
    return f"{{ matchExpressions: [ {{ key: kubernetes.io/metadata.name, operator: NotIn, values: [{ns}] }} ] }}"


XA = labelled("a")
DENY_IN = policy("deny-in", "{}", "  policyTypes: [Ingress]")


def ingress(peers, ports="", name="rule", selects=XA):
    """A policy in x with one ingress rule."""
    rule = ([f"from: [ {peers} ]"] if peers else []) + ([f"ports: [ {ports} ]"] if ports else [])
    return policy(name, selects, "  ingress: [ { " + ", ".join(rule) + " } ]" if rule else "  ingress: [ {} ]")


def probe(s, src: Pod, dst: Pod, port, fam, proto, passes, sport, **named):
    opens = proto.opens(sport, port)
    if src.node is NODE_A:
        step = s.send(src.port, src.sends(fam.ip(src, vip(dst, fam.six)) / opens))
        ttl = 63
    else:
        step = s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(src, dst, 63) / opens))
        ttl = 62
    if not passes:
        step.dropped("PolicyDeny", policy="isolation")
    elif dst.node is NODE_A:
        step.forwarded(dst.port, dst.gets(fam.ip(src, dst, ttl) / opens), **named)
    else:
        step.forwarded("uplink0", tunnel(NODE_A, NODE_B, fam.ip(src, dst, ttl) / opens), **named)


def reach(s, fam, port, allows, proto=TCP_, by=None):
    """Everybody to x/a and x/b, x/a to everybody, and a pair that no policy of x knows: `allows(src, dst)` says who
    passes; `by` names the policy where the target is x/a."""
    xa, xb = PODS["x/a"], PODS["x/b"]
    pairs = [(src, dst) for dst in (xa, xb) for src in ALL if src is not dst]
    pairs += [(xa, dst) for dst in ALL if dst not in (xa, xb)]
    pairs += [(PODS["y/a"], PODS["y/b"]), (PODS["y/b"], PODS["z/c"])]
    for src, dst in pairs:
        s.counted = getattr(s, "counted", 20000) + 1
        named = {"policy": by} if by and dst is xa else {}
        probe(s, src, dst, port, fam, proto, allows(src, dst), s.counted, **named)


def to_xa(*who):
    """Only these reach x/a; all others are free. `y` means all pods of y, `x/b` one pod."""
    return lambda src, dst: dst is not PODS["x/a"] or src.namespace in who or f"{src.namespace}/{src.name}" in who


def into_x(*who):
    """Only these reach pods of x; all others are free."""
    return lambda src, dst: dst.namespace != "x" or src.namespace in who or f"{src.namespace}/{src.name}" in who


RULE = "NetworkPolicy/x/rule"


# 1
@each("Default-deny ingress closes a namespace, also to itself, and nothing else, over {0}", FAMILIES)
def deny_ingress(s, fam):
    s.given(WORLD, DENY_IN)
    reach(s, fam, 80, into_x())


# 2
@each("Default-deny of both directions closes a namespace both ways over {0}", FAMILIES)
def deny_both(s, fam):
    s.given(WORLD, policy("deny", "{}", "  policyTypes: [Ingress, Egress]"))
    reach(s, fam, 80, lambda src, dst: "x" not in (src.namespace, dst.namespace))


# 3
@each("A bare podSelector is the policy's own namespace: a namesake elsewhere stays out, over {0}", FAMILIES)
def own_namespace(s, fam):
    s.given(WORLD, ingress(f"{{ podSelector: {labelled('b')} }}"))
    reach(s, fam, 80, to_xa("x/b"), by=RULE)


# 4
@each("A second policy adds to default-deny: all pods of all namespaces reach one pod, over {0}", FAMILIES)
def adds_up(s, fam):
    s.given(WORLD, DENY_IN, ingress("{ namespaceSelector: {}, podSelector: {} }"))
    reach(s, fam, 80, lambda src, dst: dst.namespace != "x" or dst is PODS["x/a"], by=RULE)


# 5
@each("An empty namespaceSelector is every namespace, the own one too, over {0}", FAMILIES)
def every_namespace(s, fam):
    s.given(WORLD, ingress("{ namespaceSelector: {} }"))
    reach(s, fam, 80, to_xa("x", "y", "z"), by=RULE)


# 6
@each("A namespaceSelector by the automatic name label lets that namespace in over {0}", FAMILIES)
def one_namespace(s, fam):
    s.given(WORLD, ingress(f"{{ namespaceSelector: {space('y')} }}"))
    reach(s, fam, 80, to_xa("y"), by=RULE)


# 7
@each("A pod expression In is as good as a label over {0}", FAMILIES)
def pod_expression(s, fam):
    s.given(WORLD, ingress("{ podSelector: { matchExpressions: [ { key: pod, operator: In, values: [b] } ] } }"))
    reach(s, fam, 80, to_xa("x/b"), by=RULE)


# 8
@each("A namespace expression In is as good as a label over {0}", FAMILIES)
def namespace_expression(s, fam):
    wanted = "{ matchExpressions: [ { key: kubernetes.io/metadata.name, operator: In, values: [y] } ] }"
    s.given(WORLD, ingress(f"{{ namespaceSelector: {wanted} }}"))
    reach(s, fam, 80, to_xa("y"), by=RULE)


# 9
@each("Two entries of a from list are either-or over {0}", FAMILIES)
def either_or(s, fam):
    s.given(WORLD, ingress(f"{{ namespaceSelector: {not_space('x')} }}, {{ podSelector: {labelled('b')} }}"))
    reach(s, fam, 80, to_xa("y", "z", "x/b"), by=RULE)


# 10
@each("Both selectors of one entry must hold over {0}", FAMILIES)
def both_hold(s, fam):
    s.given(WORLD, ingress(f"{{ namespaceSelector: {not_space('x')}, podSelector: {labelled('b')} }}"))
    reach(s, fam, 80, to_xa("y/b", "z/b"), by=RULE)


# 11
@each("Both selectors with several values must hold over {0}", FAMILIES)
def both_hold_values(s, fam):
    s.given(WORLD, ingress(f"{{ namespaceSelector: {not_space('x')}, podSelector: {labelled('b', 'c')} }}"))
    reach(s, fam, 80, to_xa("y/b", "y/c", "z/b", "z/c"), by=RULE)


# 12
@each("Two pod selectors of one list let either in over {0}", FAMILIES)
def two_selectors(s, fam):
    s.given(WORLD, ingress(f"{{ podSelector: {labelled('b')} }}, {{ podSelector: {labelled('c')} }}"))
    reach(s, fam, 80, to_xa("x/b", "x/c"), by=RULE)


# 13
@each("One pod of one other namespace is let in, its namesakes are not, over {0}", FAMILIES)
def one_pod_elsewhere(s, fam):
    s.given(WORLD, ingress(f"{{ namespaceSelector: {space('y')}, podSelector: {labelled('a')} }}"))
    reach(s, fam, 80, to_xa("y/a"), by=RULE)


# 14
@each("Egress by NotIn of the name label closes that namespace alone over {0}", FAMILIES)
def egress_not_in(s, fam):
    to = f"{{ namespaceSelector: {not_space('y')} }}"
    s.given(WORLD, policy("rule", XA, f"  policyTypes: [Egress]\n  egress: [ {{ to: [ {to} ] }} ]"))
    reach(s, fam, 80, lambda src, dst: src is not PODS["x/a"] or dst.namespace != "y")


# 15
@each("An empty podSelector as peer is the whole own namespace and nobody else over {0}", FAMILIES)
def same_namespace(s, fam):
    s.given(WORLD, ingress("{ podSelector: {} }", selects="{}"))
    reach(s, fam, 80, into_x("x"), by=RULE)


FROM_Y = f"{{ namespaceSelector: {space('y')} }}"
Y_81 = ingress(FROM_Y, "{ protocol: TCP, port: 81 }", name="y-81")
Y_80 = ingress(FROM_Y, "{ protocol: TCP, port: 80 }", name="y-80")


# 16, 17
@each("A port that one namespace may use is closed to others, and all other ports to everybody, over {0}", FAMILIES)
def one_port(s, fam):
    s.given(WORLD, Y_81)
    reach(s, fam, 81, to_xa("y"), by="NetworkPolicy/x/y-81")
    reach(s, fam, 80, to_xa())


# 17
@each("A second policy opens a second port and leaves the first as it was, over {0}", FAMILIES)
def stacked(s, fam):
    s.given(WORLD, Y_81, Y_80)
    reach(s, fam, 81, to_xa("y"), by="NetworkPolicy/x/y-81")
    reach(s, fam, 80, to_xa("y"), by="NetworkPolicy/x/y-80")


# 18
@each("One empty rule lets everybody in on every port over {0}", FAMILIES)
def allow_all(s, fam):
    s.given(WORLD, DENY_IN, ingress("", selects="{}"))
    for port in (80, 81):
        reach(s, fam, port, lambda src, dst: True, by=RULE)


# 19
@each("A named port without protocol and peers is TCP for everybody, by the target's own name, over {0}", FAMILIES)
def named_port(s, fam):
    s.given(WORLD, ingress("", "{ port: serve-81-tcp }", selects="{}"))
    reach(s, fam, 81, lambda src, dst: True, by=RULE)
    reach(s, fam, 80, into_x())


# 20
@each("A named port with a peer needs both over {0}", FAMILIES)
def named_port_peer(s, fam):
    s.given(WORLD, ingress(FROM_Y, "{ port: serve-80-tcp }"))
    reach(s, fam, 80, to_xa("y"), by=RULE)
    reach(s, fam, 81, to_xa())


# 21
@each("A named port of an egress rule is looked up on the destination over {0}", FAMILIES)
def named_port_egress(s, fam):
    # One target calls another number so; there the name means that one.
    renamed = PODS["y/b"].yaml()
    other = renamed.replace("serve-80-tcp", "was-80-tcp").replace("serve-81-tcp", "serve-80-tcp")
    rules = "  policyTypes: [Egress]\n  egress: [ { ports: [ { port: serve-80-tcp } ] } ]"
    s.given(WORLD.replace(renamed, other), policy("rule", "{}", rules))
    reach(s, fam, 80, lambda src, dst: src.namespace != "x" or dst is not PODS["y/b"])
    reach(s, fam, 81, lambda src, dst: src.namespace != "x" or dst is PODS["y/b"])


# 22
@each("A rule with a protocol and no port is all ports of that protocol over {0}", FAMILIES)
def protocol_only(s, fam):
    s.given(WORLD, ingress("", "{ protocol: TCP }"))
    reach(s, fam, 80, lambda src, dst: True, by=RULE)
    reach(s, fam, 82, lambda src, dst: True, by=RULE)
    reach(s, fam, 80, to_xa(), UDP_)


# 23
@each("A rule for SCTP is never read as TCP over {0}", FAMILIES)
def sctp_is_not_tcp(s, fam):
    s.given(WORLD, DENY_IN, ingress("", "{ protocol: SCTP, port: 81 }"))
    reach(s, fam, 81, into_x(), TCP_)
    reach(s, fam, 81, lambda src, dst: dst.namespace != "x" or dst is PODS["x/a"], SCTP_, by=RULE)


# 24, 25
@each("A policy that allows {0} alone isolates for TCP too, over {1}", (SCTP_, UDP_), FAMILIES)
def other_protocol_isolates(s, proto, fam):
    s.given(WORLD, ingress("", f"{{ protocol: {proto}, port: 80 }}"))
    reach(s, fam, 81, to_xa(), TCP_)
    reach(s, fam, 80, to_xa(), TCP_)
    reach(s, fam, 80, to_xa("x", "y", "z"), proto, by=RULE)


# 26, 27
@each("Default-deny ingress holds for {0} over {1}", (UDP_, SCTP_), FAMILIES)
def deny_ingress_of(s, proto, fam):
    s.given(WORLD, DENY_IN)
    reach(s, fam, 80, into_x(), proto)


# 26, 27
@each("A namespace on one port is let in by {0} over {1}", (UDP_, SCTP_), FAMILIES)
def one_port_of(s, proto, fam):
    s.given(WORLD, ingress(FROM_Y, f"{{ protocol: {proto}, port: 81 }}"))
    reach(s, fam, 81, to_xa("y"), proto, by=RULE)
    reach(s, fam, 80, to_xa(), proto)


# 26, 27
@each("One pod of one other namespace is let in by {0} over {1}", (UDP_, SCTP_), FAMILIES)
def one_pod_of(s, proto, fam):
    s.given(WORLD, ingress(f"{{ namespaceSelector: {space('y')}, podSelector: {labelled('a')} }}"))
    reach(s, fam, 80, to_xa("y/a"), proto, by=RULE)


# 28
@each("A range of ports holds both its ends and nothing past them, for {0} over {1}", (TCP_, UDP_, SCTP_), FAMILIES)
def ranges(s, proto, fam):
    s.given(WORLD, ingress("", f"{{ protocol: {proto}, port: 8000, endPort: 8010 }}"))
    for port, passes in ((7999, False), (8000, True), (8010, True), (8011, False)):
        reach(s, fam, port, lambda src, dst, passes=passes: passes or dst is not PODS["x/a"], proto)
