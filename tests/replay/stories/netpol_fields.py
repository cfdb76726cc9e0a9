"""NetworkPolicy: what fields mean that are empty or not there, and who a selector can mean.

The cluster, the probes and the numbers are those of `netpol_suite`.
"""

from cluster import FAMILIES, NODE_A, NODE_B, TCP_, UDP_
from model import tunnelled
from stories.netpol_suite import ALL, PODS, RULE, WORLD, XA, ingress, labelled, policy, probe, reach, to_xa
from story import each

X_A, X_B = PODS["x/a"], PODS["x/b"]


def out_of_xa(src, _dst):
    return src is not X_A


EMPTY = ("a rule without anything", "an empty list of peers", "an empty list of ports", "both lists empty")


@each("In an ingress policy {0} is everybody on every port, over {1}", EMPTY, FAMILIES)
def empty_is_all(s, what, fam):
    rule = dict(zip(EMPTY, ("{}", "{ from: [] }", "{ ports: [] }", "{ from: [], ports: [] }")))[what]
    s.given(WORLD, policy("rule", XA, f"  ingress: [ {rule} ]"))
    reach(s, fam, 80, lambda src, dst: True, by=RULE)
    reach(s, fam, 81, lambda src, dst: True, UDP_, by=RULE)


NO_RULES = ("no list of rules", "an empty list of rules")


@each("An ingress policy with {0} lets nobody in, over {1}", NO_RULES, FAMILIES)
def no_rule_is_nobody(s, what, fam):
    s.given(WORLD, policy("rule", XA, "  ingress: []" if what == NO_RULES[1] else "  policyTypes: [Ingress]"))
    reach(s, fam, 80, to_xa())


@each("Without policyTypes a policy isolates ingress, and egress only where it has egress rules, over {0}", FAMILIES)
def types_by_default(s, fam):
    s.given(WORLD, policy("rule", XA, "  ingress: [ {} ]"))
    reach(s, fam, 80, lambda src, dst: True)
    s.change(WORLD, policy("rule", XA, "  egress: [ { ports: [ { port: 81 } ] } ]"))
    closed = to_xa()
    reach(s, fam, 80, lambda src, dst: closed(src, dst) and out_of_xa(src, dst))
    reach(s, fam, 81, closed)
    s.change(WORLD, policy("rule", XA, "  egress: []"))
    reach(s, fam, 80, closed)


@each("Rules of a direction that policyTypes leaves out count for nothing, over {0}", FAMILIES)
def types_said(s, fam):
    s.given(WORLD, policy("rule", XA, "  policyTypes: [Egress]\n  ingress: []\n  egress: [ { ports: [ { port: 81 } ] } ]"))
    reach(s, fam, 80, out_of_xa)
    reach(s, fam, 81, lambda src, dst: True)


@each("A policy that selects nobody changes nothing, over {0}", FAMILIES)
def without_effect(s, fam):
    nobody = policy("nobody", "{ matchLabels: { pod: z } }", "  policyTypes: [Ingress, Egress]")
    elsewhere = policy("elsewhere", "{}", "  policyTypes: [Ingress, Egress]", namespace="empty")
    s.given(WORLD, nobody, elsewhere)
    reach(s, fam, 80, lambda src, dst: True, by=None)


KEYS = (
    ("Exists", "{ key: pod, operator: Exists }", lambda name: True),
    ("DoesNotExist", "{ key: pod, operator: DoesNotExist }", lambda name: False),
    ("NotIn", "{ key: pod, operator: NotIn, values: [b] }", lambda name: name != "b"),
    ("NotIn of a key that nobody has", "{ key: zone, operator: NotIn, values: [b] }", lambda name: True),
)


class Key:
    def __init__(self, row):
        self.name, self.text, self.holds = row

    def __str__(self):
        return self.name


@each("A pod expression {0} picks whom it says, over {1}", [Key(row) for row in KEYS], FAMILIES)
def expressions(s, key, fam):
    s.given(WORLD, ingress(f"{{ podSelector: {{ matchExpressions: [ {key.text} ] }} }}"))
    reach(s, fam, 80, lambda src, dst: dst is not X_A or src.namespace == "x" and key.holds(src.name))


@each("All expressions and labels of one selector must hold, over {0}", FAMILIES)
def all_must_hold(s, fam):
    both = "{ matchLabels: { pod: b }, matchExpressions: [ { key: pod, operator: In, values: [a, b, c] } ] }"
    s.given(WORLD, ingress(f"{{ podSelector: {both} }}"))
    reach(s, fam, 80, to_xa("x/b"), by=RULE)


def on_host_network(s, fam, rule, passes):
    """A pod of z that lives on its node's network speaks to x/a with its node's address."""
    z = PODS["z/b"]
    text = z.yaml()
    address = NODE_B.address(fam.six)
    hosted = text.replace("  nodeName:", "  hostNetwork: true\n  nodeName:").replace(z.v4, NODE_B.v4).replace(z.v6, NODE_B.v6)
    assert hosted != text
    s.given(WORLD.replace(text, hosted), rule)
    packet = TCP_.opens(33000, 80)
    step = s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(address, X_A, 63) / packet))
    if passes:
        step.forwarded(X_A.port, X_A.gets(fam.ip(address, X_A, 62) / packet), policy=RULE)
    else:
        step.dropped("PolicyDeny", policy="isolation")


@each("A pod on its node's network is no pod to a selector, over {0}", FAMILIES)
def host_network_selector(s, fam):
    on_host_network(s, fam, ingress("{ namespaceSelector: {}, podSelector: {} }"), False)


@each("A pod on its node's network is its node's address to a block, over {0}", FAMILIES)
def host_network_block(s, fam):
    block = f"{NODE_B.address(fam.six)}/{128 if fam.six else 32}"
    on_host_network(s, fam, ingress(f'{{ ipBlock: {{ cidr: "{block}" }} }}'), True)


@each("Policies of both directions and any number add up, whichever is written first, over {0}", FAMILIES)
def any_number(s, fam):
    single = [ingress(f"{{ podSelector: {labelled(name)} }}", f"{{ port: {port} }}", name=f"from-{name}-{port}")
              for name, port in (("b", 80), ("c", 81), ("b", 82))]
    s.given(WORLD, *reversed(single))
    for n, src in enumerate(p for p in ALL if p is not X_A):
        for port, name in ((80, "b"), (81, "c"), (82, "b")):
            passes = src.namespace == "x" and src.name == name
            by = {"policy": f"NetworkPolicy/x/from-{name}-{port}"} if passes else {}
            probe(s, src, X_A, port, fam, TCP_, passes, 35000 + 10 * n + port - 80, **by)
