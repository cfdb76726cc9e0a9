"""What the demo promises, one function each, in the order in which they run.

A check gets the running [Demo] and returns a short text about what it saw; that it does not hold is an exception.
`both` runs a check's body for IPv4 and IPv6.
"""

import time
from collections import Counter

import plan
from namespaces import wait_until
from probes import (Conversation, Observer, Refused, Silence, datagram, fetch, fetch_bytes, ping, request, throughput)
from topology import first_address, of_family

CHECKS = []


def check(title):
    def register(function):
        CHECKS.append((title, function))
        return function
    return register


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


def both(body):
    return "; ".join(f"v{version}: {body(version)}" for version in (4, 6))


def silent(what, attempt):
    """`attempt` must get no answer at all."""
    try:
        answer = attempt()
    except Silence:
        return
    raise AssertionError(f"{what} was answered: {answer}")


def reaches(demo, source, target, version):
    """HTTP, UDP and echo from pod to pod; the server must see the client's own address."""
    client, server = demo.pod(source), demo.pod(target)
    address, own = server.address(version), client.address(version)
    seen = fetch(client.namespace, address)
    expect((seen["server"], seen["peer"]) == (server.name, own), f"HTTP {address}: {seen}")
    seen = datagram(client.namespace, address)
    expect((seen["server"], seen["peer"], seen["from"]) == (server.name, own, address), f"UDP {address}: {seen}")
    got = ping(client.namespace, address)
    expect(got >= 2, f"ping {address}: {got} of 3 answers")
    return "TCP UDP ICMP"


@check("pods got the addresses their Pod objects name")
def addresses(demo):
    for pod in demo.pods.values():
        got = tuple(ip["address"].split("/")[0] for ip in demo.results[pod.spec.key]["ips"])
        expect(set(got) == set(pod.spec.addresses), f"{pod.spec.key} got {got}")
    return f"{len(demo.pods)} pods, IPv4 and IPv6"


@check("CNI: CHECK holds, STATUS is ready, ADD again gives the same")
def cni(demo):
    pod = demo.pod("shop/client-a")
    result = demo.results[pod.spec.key]
    for command, config in (("CHECK", {"prevResult": result}), ("STATUS", {}), ("VERSION", {})):
        done = pod.cni(command, **config)
        expect(done.returncode == 0, f"{command}: {done.stdout.strip()}")
    again = pod.attach(version="0.4.0")
    expect([ip["version"] for ip in again["ips"]] in (["4", "6"], ["6", "4"]), f"0.4.0: {again['ips']}")
    return "1.1.0 and 0.4.0"


@check("pod to pod on one node")
def one_node(demo):
    return both(lambda version: reaches(demo, "shop/client-a", "shop/web-0", version))


@check("pod to pod across nodes, both ways")
def across_nodes(demo):
    def body(version):
        reaches(demo, "shop/client-a", "shop/web-1", version)
        return reaches(demo, "shop/client-b", "shop/web-0", version)
    return both(body)


@check("bulk data arrives whole, on one node and across nodes")
def bulk(demo):
    client, size = demo.pod("shop/client-a").namespace, 8_000_000
    for target in ("shop/web-0", "shop/web-1"):
        for version in (4, 6):
            fetch_bytes(client, demo.pod(target).address(version), size)
    return "4 x 8 MB compared byte by byte"


@check("packets larger than the overlay's MTU cross in fragments")
def fragments(demo):
    client, server = demo.pod("shop/client-a"), demo.pod("shop/web-1")

    def body(version):
        got = ping(client.namespace, server.address(version), size=4000)
        expect(got >= 2, f"{got} of 3 answers to 4,000-byte pings")
        seen = datagram(client.namespace, server.address(version), length=5000)
        expect(seen["bytes"] == 5000, f"UDP: {seen}")
        return "4,000-byte ping, 5,000-byte datagram"
    return both(body)


@check("ClusterIP spreads over backends on both nodes")
def cluster_ip(demo):
    client = demo.pod("shop/client-a")

    def body(version):
        address = of_family(plan.WEB, version)
        seen = fetch(client.namespace, address, 80)
        expect(seen["peer"] == client.address(version), f"the client's address is not kept: {seen}")
        spread = Counter(request(client.namespace, address, 80)["server"] for _ in range(60))
        expect(set(spread) == {"web-0", "web-1"} and min(spread.values()) >= 12, f"spread of 60: {dict(spread)}")
        return f"60 connections, web-0 {spread['web-0']}, web-1 {spread['web-1']}"
    return both(body)


@check("a reply carries the Service's address")
def reply_address(demo):
    def body(version):
        address = of_family(plan.WEB, version)
        for _ in range(6):
            seen = datagram(demo.pod("shop/client-b").namespace, address, 53)
            expect(seen["from"] == address, f"asked {address}, answered from {seen['from']}")
        return "UDP"
    return both(body)


@check("a pod reaches itself through its Service (hairpin)")
def hairpin(demo):
    pod = demo.pod("shop/web-0")

    def body(version):
        servers = Counter(request(pod.namespace, of_family(plan.WEB, version), 80)["server"] for _ in range(24))
        expect(servers["web-0"] > 0 and servers["web-1"] > 0, f"answers came from {dict(servers)}")
        return f"{servers['web-0']} of 24 came back to itself"
    return both(body)


@check("a Service without endpoints refuses at once")
def no_endpoints(demo):
    def body(version):
        start = time.monotonic()
        try:
            seen = request(demo.pod("shop/client-a").namespace, of_family(plan.EMPTY, version), 80)
        except Refused:
            return f"refused after {1000 * (time.monotonic() - start):.0f} ms"
        raise AssertionError(f"answered: {seen}")
    return both(body)


@check("a denied pair stays silent; the drop is counted and names what decided")
def denied(demo):
    client, server, node = demo.pod("shop/client-a"), demo.pod("shop/db-0"), demo.nodes["node-b"]

    def body(version):
        before = demo.drops(node).get("PolicyDeny", 0)
        with Observer(node) as observer:
            address = server.address(version)
            silent("TCP", lambda: Conversation(client.namespace, address, patience=1.0).ask())
            expect(ping(client.namespace, address, count=2) == 0, "ping was answered")
            event = observer.events(3, lambda e: e.get("reason") == "PolicyDeny" and e.get("policy"))
        expect(event, "no event with reason PolicyDeny and a policy")
        counted, _ = wait_until("the drop counted", lambda: demo.drops(node).get("PolicyDeny", 0) - before, 3)
        return f"{counted:.0f} drops, decided by {event['policy']}"
    return both(body)


@check("a cluster-wide rule denies by name")
def cluster_policy(demo):
    client, server, node = demo.pod("shop/client-b"), demo.pod("finance/billing"), demo.nodes["node-a"]

    def body(version):
        with Observer(node) as observer:
            silent("HTTP", lambda: fetch(client.namespace, server.address(version), patience=1.0))
            event = observer.events(3, lambda e: e.get("reason") == "PolicyDeny" and e.get("policy"))
        name = (event or {}).get("policy")
        expect(name == "ClusterNetworkPolicy/finance-is-private#no-shop", f"decided by {name}")
        return name
    return both(body)


@check("an allowed pair of the same namespace talks")
def allowed(demo):
    pod, server = demo.pod("shop/web-0"), demo.pod("shop/db-0")

    def body(version):
        for address in (server.address(version), of_family(plan.DB, version)):
            with Conversation(pod.namespace, address) as talk:
                expect(talk.ask()["peer"] == pod.address(version), "another client address")
        return "web-0 to db-0, by pod and by Service"
    return both(body)


@check("sluice policy check says the same, offline")
def policy_check(demo):
    for source, verdict in (("shop/web-0", "allow"), ("shop/client-a", "deny")):
        demo.offline("policy", "check", "--manifests", demo.manifests, "--from", source, "--to", "shop/db-0", "--port", "5432",
                     "--proto", "tcp", "--expect", verdict)
    return "web-0 allow, client-a deny"


@check("to the outside: masqueraded as the node")
def masquerade(demo):
    def body(version):
        outside = of_family(plan.OUTSIDE, version)
        for source in ("shop/client-a", "shop/client-b"):
            pod = demo.pod(source)
            own = of_family(pod.node.spec.addresses, version)
            for seen in (fetch(pod.namespace, outside), datagram(pod.namespace, outside)):
                expect(seen["peer"] == own, f"{source} was seen as {seen['peer']}, not {own}")
            expect(ping(pod.namespace, outside) >= 2, f"{source}: ping {outside}")
        fetch_bytes(demo.pod("shop/client-a").namespace, outside, 4_000_000)
        return f"seen as {own}"
    return both(body)


@check("a selected pod leaves with its egress gateway's address")
def egress_gateway(demo):
    pod = demo.pod("finance/billing")

    def body(version):
        outside, wanted = of_family(plan.OUTSIDE, version), of_family(plan.EGRESS, version)
        for seen in (fetch(pod.namespace, outside), datagram(pod.namespace, outside)):
            expect(seen["peer"] == wanted, f"seen as {seen['peer']}, not {wanted}")
        fetch_bytes(pod.namespace, outside, 4_000_000)
        return f"seen as {wanted}"
    return both(body)


@check("NodePort from outside, backends on this node and on the other")
def node_port(demo):
    def body(version):
        source, node = of_family(plan.OUTSIDE, version), plan.NODES[0]
        target = of_family(node.addresses, version)
        overlay = first_address(node.pod_cidrs[0 if version == 4 else 1])
        wanted = {"web-0": source, "web-1": overlay}
        seen = {}
        for _ in range(40):
            answer = fetch(demo.outside, target, plan.NODE_PORT, source=source)
            seen[answer["server"]] = answer["peer"]
            if len(seen) == 2:
                break
        expect(seen == wanted, f"seen {seen}, wanted {wanted}")
        expect(datagram(demo.outside, target, plan.NODE_PORT_UDP)["from"] == target, "UDP from another address")
        return "client kept when local, SNAT when not"
    return both(body)


@check("the node's own process reaches Services and pods")
def from_node(demo):
    def body(version):
        for node in demo.nodes.values():
            for address, port in [(of_family(plan.WEB, version), 80), *((demo.pod(key).address(version), 8080)
                                                                        for key in ("shop/web-0", "shop/web-1"))]:
                fetch(node.namespace, address, port)
        return "Service, local pod, remote pod"
    return both(body)


@check("pods reach their own node and the other one")
def to_node(demo):
    def body(version):
        pod = demo.pod("shop/client-a")
        for spec in plan.NODES:
            got = ping(pod.namespace, of_family(spec.addresses, version))
            expect(got >= 2, f"{spec.name}: {got} of 3 answers")
        return "ICMP"
    return both(body)


@check("a node with a kernel vxlan device is a node like any other")
def kernel_peer(demo):
    def body(version):
        far = of_family(plan.KERNEL_POD, version)
        for source in ("shop/client-a", "shop/client-b"):
            seen = fetch(demo.pod(source).namespace, far)
            expect(seen["peer"] == demo.pod(source).address(version), f"from {source}: {seen}")
        for target in ("shop/web-0", "shop/web-1"):
            seen = fetch(demo.kernel_pod, demo.pod(target).address(version))
            expect(seen["peer"] == far, f"to {target}: {seen}")
        fetch_bytes(demo.pod("shop/client-a").namespace, far, 4_000_000)
        fetch_bytes(demo.kernel_pod, demo.pod("shop/web-0").address(version), 4_000_000)
        expect(ping(demo.kernel_pod, demo.pod("shop/web-1").address(version)) >= 2, "ping")
        return "both ways, 4 MB each"
    return both(body)


@check("an endpoint added to a YAML file is live in under a second")
def live_endpoint(demo):
    client = demo.pod("shop/client-a").namespace

    def servers():
        return {request(client, plan.LIVE, 80)["server"] for _ in range(6)}
    expect(servers() == {"web-0"}, "before the edit")
    demo.edit("live-endpoints.yaml")
    _, took = wait_until("the new endpoint", lambda: "web-1" in servers(), 3)
    expect(took < 1.0, f"took {took:.2f} s")
    demo.edit("live-endpoints.yaml", back=True)

    def settled():
        try:
            return servers() == {"web-0"}
        except Refused:
            return False  # One that was on its way to the endpoint that goes is cut.
    _, gone = wait_until("the endpoint gone", settled, 3)
    return f"{1000 * took:.0f} ms there, {1000 * gone:.0f} ms gone"


@check("a policy edit: allowed in under a second, forbidden cut, others untouched")
def live_policy(demo):
    web, client, server = demo.pod("shop/web-0"), demo.pod("shop/client-a"), demo.pod("shop/db-0")
    kept = {v: Conversation(web.namespace, server.address(v)) for v in (4, 6)}
    for talk in kept.values():
        talk.ask()

    def connect(version):
        try:
            talk = Conversation(client.namespace, server.address(version), patience=0.1)
            talk.ask()
            return talk
        except Silence:
            return None
    demo.edit("db-policy.yaml")
    cut, took = {}, 0.0
    for version in (4, 6):
        cut[version], waited = wait_until("the client allowed", lambda v=version: connect(v), 3)
        took += waited
    expect(took < 1.0, f"allowed only after {took:.2f} s")
    demo.edit("db-policy.yaml", back=True)
    start = time.monotonic()

    def is_cut(talk):
        try:
            talk.ask(patience=0.25)
            return False
        except (Silence, Refused):
            return True
    for talk in cut.values():
        wait_until("the forbidden connection cut", lambda t=talk: is_cut(t), 3)
    ended = time.monotonic() - start
    expect(ended < 1.5, f"cut only after {ended:.2f} s, of which 0.5 s are our own waiting")
    lines = {v: talk.ask()["line"] for v, talk in kept.items()}
    expect(lines == {4: 2, 6: 2}, f"the established connections: {lines}")
    for talk in [*kept.values(), *cut.values()]:
        talk.close()
    return f"allowed after {1000 * took:.0f} ms, cut within {1000 * ended:.0f} ms, web's connections live"


@check("a pod's DEL takes its interface away, and again is no error")
def delete(demo):
    pod = demo.pod("shop/client-b")
    for _ in range(2):
        done = pod.detach()
        expect(done.returncode == 0, done.stdout.strip())
    expect("eth0" not in pod.namespace.ip("-o", "link", "show").stdout, "eth0 is still there")
    demo.results[pod.spec.key] = pod.attach()
    return both(lambda version: reaches(demo, "shop/client-b", "shop/web-0", version))


@check("TCP throughput")
def speed(demo):
    client, node = demo.pod("shop/client-a"), demo.pod("shop/web-0")
    far = demo.pod("shop/web-1")
    for title, server in (("pod to pod, one node", node), ("pod to pod, across nodes", far)):
        demo.speeds[title] = throughput(demo.processes, server.namespace, client.namespace, server.address(4))
    demo.speeds["kernel routing, no Sluicegate"] = demo.kernel_speed()
    return ", ".join(f"{title} {bits / 1e9:.2f} Gbit/s" for title, bits in demo.speeds.items())


@check("kill -9 of sluiced: pods and connections come back with the next start")
def killed(demo):
    node, client, web = demo.nodes["node-a"], demo.pod("shop/client-a"), demo.pod("shop/web-0")
    talks = [Conversation(web.namespace, demo.pod("shop/db-0").address(v)) for v in (4, 6)]
    for talk in talks:
        talk.ask()
    node.kill()
    took = node.start()
    for version in (4, 6):
        wait_until("pods back", lambda v=version: answers(client, demo.pod("shop/web-1").address(v)), 5)
        reaches(demo, "shop/client-a", "shop/web-1", version)
        reaches(demo, "shop/client-b", "shop/web-0", version)
    lines = [talk.ask(patience=5.0)["line"] for talk in talks]
    expect(lines == [2, 2], f"established connections: {lines}")
    for talk in talks:
        talk.close()
    return f"ready after {took:.2f} s, {len(talks)} connections live on"


def answers(client, address):
    try:
        return bool(request(client.namespace, address, patience=0.5))
    except (Silence, Refused):
        return False


def total(metrics, name, label=""):
    """The sum of a metric's samples whose labels contain `label`."""
    return sum(value for sample, value in metrics.items() if sample.split("{")[0] == name and label in sample)


def describe(demo):
    """The closing table, as rows of (what, where, figure)."""
    rows = []
    for node in demo.nodes.values():
        metrics = node.metrics()
        for direction in ("rx", "tx"):
            packets = total(metrics, "sluicegate_packets_total", f'direction="{direction}"')
            rows.append((f"packets {direction}", node.name, f"{packets:,.0f}"))
        rows.append(("flows now", node.name, f"{total(metrics, 'sluicegate_flows'):,.0f}"))
        for reason, count in sorted(demo.drops(node).items()):
            if count:
                rows.append((f"drops {reason}", node.name, f"{count:,.0f}"))
    for title, bits in demo.speeds.items():
        rows.append(("TCP, one stream", title, f"{bits / 1e9:.2f} Gbit/s"))
    kernel = demo.speeds.get("kernel routing, no Sluicegate")
    if kernel:
        rows.append(("TCP, ratio", "one node / kernel routing", f"{demo.speeds['pod to pod, one node'] / kernel:.2f}"))
    return rows
