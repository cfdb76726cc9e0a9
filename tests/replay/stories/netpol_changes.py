"""The well-known behaviours of NetworkPolicy, continued: policies, labels and namespaces that change under the traffic.

The cluster, the probes and the numbers are those of `netpol_suite`. Beside new flows, each story sends the next packet of
a flow that had begun before the change.
"""

from cluster import FAMILIES, UDP_
from stories.netpol_suite import DENY_IN, PODS, WORLD, XA, ingress, labelled, policy, reach, to_xa
from story import each

X_A, X_B, X_C, Y_A = (PODS[name] for name in ("x/a", "x/b", "x/c", "y/a"))


def ask(s, fam, src, passes, sport=45000, dst=X_A):
    """The next packet of one UDP flow between two pods of this node."""
    packet = UDP_.opens(sport, 80)
    step = s.send(src.port, src.sends(fam.ip(src, dst) / packet))
    if passes:
        step.forwarded(dst.port, dst.gets(fam.ip(src, dst, 63) / packet))
    else:
        step.dropped("PolicyDeny", policy="isolation")


def relabelled(pod, labels):
    """The cluster with other labels of one pod."""
    text = pod.yaml()
    return WORLD.replace(text, text.replace(f"labels: {{ {pod.labels} }}", f"labels: {{ {labels} }}"))


# 36
@each("A policy that is edited from allow to deny cuts what it allowed with its next packet, over {0}", FAMILIES)
def edited(s, fam):
    s.given(WORLD, ingress(""))
    ask(s, fam, X_B, True)
    reach(s, fam, 81, lambda src, dst: True)
    s.change(WORLD, policy("rule", XA, "  policyTypes: [Ingress]"))
    ask(s, fam, X_B, False)
    reach(s, fam, 81, to_xa())


# 37
@each("A namespace that gains the label of a policy is let in from then on, over {0}", FAMILIES)
def namespace_gains(s, fam):
    wanted = ingress("{ namespaceSelector: { matchLabels: { team: blue } } }")
    s.given(WORLD, wanted)
    ask(s, fam, Y_A, False)
    reach(s, fam, 80, to_xa())
    blue = WORLD.replace("metadata: { name: y, labels: { ns: y } }", "metadata: { name: y, labels: { ns: y, team: blue } }")
    s.change(blue, wanted)
    ask(s, fam, Y_A, True)
    reach(s, fam, 80, to_xa("y"))
    s.change(WORLD, wanted)
    ask(s, fam, Y_A, False)


# 38
@each("A pod that has one of two labels asked for is let in when it gains the other, over {0}", FAMILIES)
def pod_gains(s, fam):
    wanted = ingress("{ podSelector: { matchLabels: { pod: b, role: client } } }")
    s.given(WORLD, wanted)
    ask(s, fam, X_B, False)
    reach(s, fam, 80, to_xa())
    s.change(relabelled(X_B, "pod: b, role: client"), wanted)
    ask(s, fam, X_B, True)
    reach(s, fam, 80, to_xa("x/b"))
    s.change(WORLD, wanted)
    ask(s, fam, X_B, False)


# 39
@each("A pod that gains the label of a deny policy is closed with the next packet, over {0}", FAMILIES)
def target_gains(s, fam):
    deny = policy("rule", "{ matchLabels: { sealed: really } }", "  policyTypes: [Ingress]")
    s.given(WORLD, deny)
    ask(s, fam, X_B, True)
    reach(s, fam, 80, lambda src, dst: True)
    s.change(relabelled(X_A, "pod: a, sealed: really"), deny)
    ask(s, fam, X_B, False)
    reach(s, fam, 80, to_xa())
    s.change(WORLD, deny)
    ask(s, fam, X_B, True)


# 40
@each("When all policies are deleted everybody reaches everybody, over {0}", FAMILIES)
def all_deleted(s, fam):
    s.given(WORLD, DENY_IN, policy("out", "{}", "  policyTypes: [Egress]", namespace="y"))
    ask(s, fam, X_B, False)
    reach(s, fam, 80, lambda src, dst: dst.namespace != "x" and src.namespace != "y")
    s.change(WORLD)
    ask(s, fam, X_B, True)
    reach(s, fam, 80, lambda src, dst: True)


@each("A label that no policy asks for changes nothing, over {0}", FAMILIES)
def label_without_meaning(s, fam):
    wanted = ingress(f"{{ podSelector: {labelled('b')} }}")
    s.given(WORLD, wanted)
    ask(s, fam, X_B, True)
    ask(s, fam, X_C, False, 45001)
    s.change(relabelled(X_B, "pod: b, version: v2"), wanted)
    ask(s, fam, X_B, True)
    ask(s, fam, X_C, False, 45001)


@each("An address that goes from one pod to another takes none of the first one's rights along, over {0}", FAMILIES)
def shared_address(s, fam):
    wanted = ingress(f"{{ podSelector: {labelled('b')} }}")
    s.given(WORLD, wanted)
    ask(s, fam, X_B, True)
    # The pod behind the port and its address is another one now: new name, other labels.
    text = X_B.yaml()
    heir = text.replace("metadata: { name: b,", "metadata: { name: bb,").replace("labels: { pod: b }", "labels: { pod: bb }")
    s.change(WORLD.replace(text, heir), wanted)
    packet = UDP_.opens(45000, 80)
    s.send("pod:x/bb", X_B.sends(fam.ip(X_B, X_A) / packet)).dropped("PolicyDeny", policy="isolation")
