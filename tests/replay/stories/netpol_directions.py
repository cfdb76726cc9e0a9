"""The well-known behaviours of NetworkPolicy, continued: egress, both directions together, blocks of addresses.

The cluster, the probes and the numbers are those of `netpol_suite`.
"""

from cluster import FAMILIES, NODE_A, NODE_B, PROTOCOLS, TCP_
from model import tunnel, tunnelled
from stories.netpol_suite import (
    PODS,
    WORLD,
    XA,
    ingress,
    labelled,
    policy,
    probe,
    reach,
    space,
    to_xa,
)
from story import each

PORT_80 = "[ { protocol: TCP, port: 80 } ]"
X_A, X_B, Y_A, Y_B = (PODS[name] for name in ("x/a", "x/b", "y/a", "y/b"))


def egress(rules, name="out", selects=XA):
    """A policy in x that isolates egress; `rules` are its list."""
    return policy(name, selects, f"  policyTypes: [Egress]\n  egress: [ {rules} ]")


def out_of_xa(*who):
    """x/a reaches only these; all others are free. `y` means all pods of y, `x/b` one pod."""
    return lambda src, dst: src is not X_A or dst.namespace in who or f"{dst.namespace}/{dst.name}" in who


def host(pod, six):
    return f'"{pod.address(six)}/{128 if six else 32}"'


# 29
@each("Egress deny of one pod stops what it begins and nobody else, and its answers pass, for {0} over {1}", PROTOCOLS, FAMILIES)
def egress_of_one(s, proto, fam):
    s.given(WORLD, egress(""))
    reach(s, fam, 80, out_of_xa(), proto)
    # The other node's pod asks, and the closed pod answers.
    z = PODS["z/a"]
    question, answer = proto.opens(33000, 80), proto.answers(80, 33000)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(z, X_A, 63) / question)).forwarded(
        X_A.port, X_A.gets(fam.ip(z, X_A, 62) / question)
    )
    s.send(X_A.port, X_A.sends(fam.ip(X_A, z) / answer)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(X_A, z, 63) / answer)
    )


# 30
@each("Egress deny of a namespace stops its pods from each other too, and leaves the way in open, over {0}", FAMILIES)
def egress_of_namespace(s, fam):
    s.given(WORLD, egress("", selects="{}"))
    reach(s, fam, 80, lambda src, dst: src.namespace != "x")


# 31
@each("One policy limits whom a pod hears and on which port it speaks, each by itself, over {0}", FAMILIES)
def two_directions(s, fam):
    rules = (
        f"  policyTypes: [Ingress, Egress]\n  ingress: [ {{ from: [ {{ podSelector: {labelled('b')} }} ] }} ]\n"
        f"  egress: [ {{ ports: {PORT_80} }} ]"
    )
    s.given(WORLD, policy("both", XA, rules))
    from_b = to_xa("x/b")
    reach(s, fam, 80, from_b)
    reach(s, fam, 81, lambda src, dst: from_b(src, dst) and src is not X_A)


# 32
@each("Where one end allows and the other does not, the packet is stopped, over {0}", FAMILIES)
def both_ends(s, fam):
    to_ya = f"{{ to: [ {{ namespaceSelector: {space('y')}, podSelector: {labelled('a')} }} ] }}"
    from_xa = f"  ingress: [ {{ from: [ {{ namespaceSelector: {space('x')}, podSelector: {labelled('a')} }} ] }} ]"
    s.given(
        WORLD,
        egress(to_ya),
        policy("in-a", labelled("a"), from_xa, namespace="y"),
        policy("in-b", labelled("b"), from_xa, namespace="y"),
    )
    closed = (Y_A, Y_B)
    for n, (src, dst) in enumerate((src, dst) for dst in closed for src in PODS.values() if src is not dst):
        probe(s, src, dst, 80, fam, TCP_, (src, dst) == (X_A, Y_A), 34000 + n)


# 33
@each("Egress to one pod of one namespace reaches it, and neither its neighbours nor its namesakes, over {0}", FAMILIES)
def egress_to_one(s, fam):
    s.given(WORLD, egress(f"{{ to: [ {{ namespaceSelector: {space('y')}, podSelector: {labelled('a')} }} ] }}"))
    reach(s, fam, 80, out_of_xa("y/a"))


# 34
@each("A pod that may say all and hear nothing gets its answers and no questions, for {0} over {1}", PROTOCOLS, FAMILIES)
def speaks_only(s, proto, fam):
    s.given(WORLD, egress("{}"), policy("deny-in", XA, "  policyTypes: [Ingress]"))
    question, answer = proto.opens(33000, 80), proto.answers(80, 33000)
    s.send(X_A.port, X_A.sends(fam.ip(X_A, X_B) / question)).forwarded(
        X_B.port, X_B.gets(fam.ip(X_A, X_B, 63) / question)
    )
    s.send(X_B.port, X_B.sends(fam.ip(X_B, X_A) / answer)).forwarded(X_A.port, X_A.gets(fam.ip(X_B, X_A, 63) / answer))
    probe(s, X_B, X_A, 80, fam, proto, False, 33001)


# 35
@each("A second policy that allows all opens the port that the first one closes, on the way in, over {0}", FAMILIES)
def opened_in(s, fam):
    only = ingress("", "{ protocol: TCP, port: 80 }", name="only-80")
    s.given(WORLD, only)
    reach(s, fam, 80, lambda src, dst: True, by="NetworkPolicy/x/only-80")
    reach(s, fam, 81, to_xa())
    s.change(WORLD, only, ingress("", name="open"))
    reach(s, fam, 81, lambda src, dst: True, by="NetworkPolicy/x/open")


# 35
@each("A second policy that allows all opens the port that the first one closes, on the way out, over {0}", FAMILIES)
def opened_out(s, fam):
    only = egress(f"{{ ports: {PORT_80} }}", name="only-80")
    s.given(WORLD, only)
    reach(s, fam, 80, lambda src, dst: True)
    reach(s, fam, 81, out_of_xa())
    s.change(WORLD, only, egress("{}", name="open"))
    reach(s, fam, 81, lambda src, dst: True)


# 41
@each("A block of one address lets a pod reach that pod behind its Service and nobody else, over {0}", FAMILIES)
def one_address(s, fam):
    s.given(WORLD, egress(f"{{ to: [ {{ ipBlock: {{ cidr: {host(Y_B, fam.six)} }} }} ] }}"))
    reach(s, fam, 80, out_of_xa("y/b"))


def wide(six):
    return '"fd00::/16"' if six else "10.0.0.0/8"


# 42
@each("A block with an exception reaches all of the block but the exception, over {0}", FAMILIES)
def excepted(s, fam):
    block = f"cidr: {wide(fam.six)}, except: [ {host(X_B, fam.six)} ]"
    s.given(WORLD, egress(f"{{ to: [ {{ ipBlock: {{ {block} }} }} ] }}"))
    reach(s, fam, 80, lambda src, dst: src is not X_A or dst is not X_B)


# 43
@each("What a rule excepts another policy may still give, and what replaces them counts alone, over {0}", FAMILIES)
def excepted_and_given(s, fam):
    block = f"cidr: {wide(fam.six)}, except: [ {host(X_B, fam.six)} ]"
    hole = egress(f"{{ to: [ {{ ipBlock: {{ {block} }} }} ] }}")
    plain = f"{{ to: [ {{ ipBlock: {{ cidr: {host(X_B, fam.six)} }} }} ] }}"
    s.given(WORLD, hole, egress(plain, name="given"))
    reach(s, fam, 80, lambda src, dst: True)
    s.change(WORLD, egress(plain))
    reach(s, fam, 80, out_of_xa("x/b"))
