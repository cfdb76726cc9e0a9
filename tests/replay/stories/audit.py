"""Audit: what an audited policy alone would deny passes and is told with its name; everything else stays as it is."""

from cluster import FAMILIES, POD_A, POD_B, SCTP_, TCP_, UDP_, WORLD
from stories.policy import DENY_INGRESS, A, go, policy, stop
from stories.tiers import EVERYBODY, PORT_80, cluster
from story import each, story

AUDIT = ", annotations: { sluicegate.dev/enforcement: audit } }"


def audited(text):
    """The same policy, audited."""
    head, _, rest = text.partition(" }\n")
    return head + AUDIT + "\n" + rest


WEB = policy("web", A, "  ingress: [ { ports: [ { port: 80 } ] } ]")


def passes(s, packet, fam, name, audit):
    step = go(s, POD_B, POD_A, packet, fam, policy=name)
    step.audited = audit


@each("An audited NetworkPolicy denies nothing and names itself where it would have, over {0}", FAMILIES)
def namespaced(s, fam):
    s.given(WORLD, audited(WEB))
    passes(s, TCP_.opens(33000, 80), fam, "NetworkPolicy/default/web", False)
    for proto in (TCP_, UDP_, SCTP_):
        passes(s, proto.opens(33001, 81), fam, "NetworkPolicy/default/web", True)
    passes(s, fam.echo(), fam, "NetworkPolicy/default/web", True)


@each("Later packets of a flow that passes by audit are told as well, over {0}", FAMILIES)
def later(s, fam):
    s.given(WORLD, audited(WEB))
    for _ in range(3):
        passes(s, UDP_.opens(33001, 81), fam, "NetworkPolicy/default/web", True)


@each("Another policy that is enforced still denies, and what the audited one allows counts, over {0}", FAMILIES)
def beside(s, fam):
    s.given(WORLD, audited(WEB), DENY_INGRESS)
    passes(s, TCP_.opens(33000, 80), fam, "NetworkPolicy/default/web", False)
    stop(s, POD_B, POD_A, TCP_.opens(33000, 81), fam, policy="isolation")


@each("An audited Admin rule that denies is told, and the tiers below decide, over {0}", FAMILIES)
def tiers(s, fam):
    guard = cluster("guard", "Admin", 1, f"  - {{ name: no-web, action: Deny, {EVERYBODY}, {PORT_80} }}")
    s.given(WORLD, audited(guard), policy("open", "{}", "  ingress: [ { ports: [ { port: 80 }, { port: 81 } ] } ]"))
    passes(s, TCP_.opens(33000, 80), fam, "ClusterNetworkPolicy/guard#no-web", True)
    passes(s, TCP_.opens(33000, 81), fam, "NetworkPolicy/default/open", False)
    stop(s, POD_B, POD_A, TCP_.opens(33000, 82), fam, policy="isolation")


@story("Switching from audit to enforce cuts what the policy denies with its next packet, and nothing else")
def switching(s):
    from cluster import V4

    s.given(WORLD, audited(WEB))
    passes(s, UDP_.opens(33000, 81), V4, "NetworkPolicy/default/web", True)
    passes(s, TCP_.opens(33000, 80), V4, "NetworkPolicy/default/web", False)
    s.change(WORLD, WEB)
    stop(s, POD_B, POD_A, UDP_.opens(33000, 81), policy="isolation")
    passes(s, TCP_.opens(33000, 80), V4, "NetworkPolicy/default/web", False)
    s.change(WORLD, audited(WEB))
    passes(s, UDP_.opens(33000, 81), V4, "NetworkPolicy/default/web", True)
