"""ClusterNetworkPolicy: the tiers around NetworkPolicy, first match, names."""

from cluster import POD_A, POD_B, TCP_, WORLD
from stories.policy import DENY_INGRESS, go, policy, stop
from story import story


def cluster(name, tier, priority, rules, subject="{ namespaces: {} }"):
    return (
        f"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{ name: {name} }}\n"
        f"spec:\n  tier: {tier}\n  priority: {priority}\n  subject: {subject}\n  ingress:\n{rules.strip(chr(10))}\n"
    )


EVERYBODY = "from: [ { namespaces: {} } ]"
PORT_80 = "protocols: [ { tcp: { destinationPort: { number: 80 } } } ]"
ALLOW_ALL = policy("open", "{}", "  ingress: [ {} ]")


@story("An Admin Deny comes before a NetworkPolicy, and its rule is named")
def admin_deny(s):
    s.given(
        WORLD, ALLOW_ALL, cluster("guard", "Admin", 10, f"  - {{ name: no-web, action: Deny, {EVERYBODY}, {PORT_80} }}")
    )
    stop(s, POD_B, POD_A, TCP_.opens(33000, 80), policy="ClusterNetworkPolicy/guard#no-web")
    go(s, POD_B, POD_A, TCP_.opens(33000, 81), policy="NetworkPolicy/default/open")


@story("An Admin Accept comes before isolation, and an unnamed rule is called by its place")
def admin_accept(s):
    # READING: places count from 0, as in the contract's `ingress[2]`.
    other = "from: [ { namespaces: { matchLabels: { kubernetes.io/metadata.name: other } } } ]"
    s.given(
        WORLD,
        DENY_INGRESS,
        cluster(
            "pass", "Admin", 10, f"  - {{ action: Deny, {other} }}\n  - {{ action: Accept, {EVERYBODY}, {PORT_80} }}"
        ),
    )
    go(s, POD_B, POD_A, TCP_.opens(33000, 80), policy="ClusterNetworkPolicy/pass#ingress[1]")
    stop(s, POD_B, POD_A, TCP_.opens(33000, 81), policy="isolation")


@story("The lower priority number and the earlier rule win")
def order(s):
    s.given(
        WORLD,
        cluster("late", "Admin", 20, f"  - {{ name: a, action: Accept, {EVERYBODY} }}"),
        cluster(
            "early",
            "Admin",
            5,
            f"  - {{ name: web, action: Accept, {EVERYBODY}, {PORT_80} }}\n"
            f"  - {{ name: rest, action: Deny, {EVERYBODY} }}",
        ),
    )
    go(s, POD_B, POD_A, TCP_.opens(33000, 80), policy="ClusterNetworkPolicy/early#web")
    stop(s, POD_B, POD_A, TCP_.opens(33000, 81), policy="ClusterNetworkPolicy/early#rest")


@story("Pass goes on to NetworkPolicy, and Baseline comes last")
def passes(s):
    s.given(
        WORLD,
        policy("web-only", "{ matchLabels: { app: b } }", "  ingress: [ { ports: [ { port: 80 } ] } ]"),
        cluster("skip", "Admin", 1, f"  - {{ name: on, action: Pass, {EVERYBODY} }}"),
        cluster("never", "Admin", 2, f"  - {{ name: off, action: Deny, {EVERYBODY} }}"),
        cluster("base", "Baseline", 1, f"  - {{ name: floor, action: Deny, {EVERYBODY} }}"),
    )
    go(s, POD_A, POD_B, TCP_.opens(33000, 80), policy="NetworkPolicy/default/web-only")
    stop(s, POD_A, POD_B, TCP_.opens(33000, 81), policy="isolation")
    stop(s, POD_B, POD_A, TCP_.opens(33000, 80), policy="ClusterNetworkPolicy/base#floor")


@story("An unknown peer in an Admin Deny denies all to what the policy selects")
def unknown_peer(s):
    s.given(
        WORLD,
        cluster(
            "odd",
            "Admin",
            1,
            "  - { name: odd, action: Deny, from: [ { shinyNewPeer: {} } ] }",
            "{ pods: { namespaceSelector: {}, podSelector: { matchLabels: { app: a } } } }",
        ),
    )
    stop(s, POD_B, POD_A, TCP_.opens(33000, 80))
    go(s, POD_A, POD_B, TCP_.opens(33000, 80))
