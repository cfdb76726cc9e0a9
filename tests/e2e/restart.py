"""Restarts of `sluiced` in the middle of traffic: two nodes, an egress gateway, a host outside, real TCP.

    tests/e2e/run.py --bin-dir target/debug --only restart
"""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import time

from small_cluster import SmallCluster, pod_manifest
from namespaces import wait_until
from probes import Conversation, Refused, Silence, bracket, fetch
from servers import payload
from temporary import TemporaryCluster
from topology import NodeSpec, PodSpec, of_family

NODES = [
    NodeSpec("node-a", ("192.0.2.11", "2001:db8::11"), ("10.244.1.0/24", "fd00:10:244:1::/64")),
    NodeSpec("node-b", ("192.0.2.12", "2001:db8::12"), ("10.244.2.0/24", "fd00:10:244:2::/64")),
]
PODS = [
    PodSpec("shop/client", "node-a", ("10.244.1.10", "fd00:10:244:1::10")),
    PodSpec("shop/web-a", "node-a", ("10.244.1.11", "fd00:10:244:1::11")),
    PodSpec("shop/web-b", "node-b", ("10.244.2.10", "fd00:10:244:2::10")),
    PodSpec("finance/billing", "node-a", ("10.244.1.12", "fd00:10:244:1::12")),
]
GATEWAY = ("192.0.2.1", "2001:db8::1")
OUTSIDE = ("198.51.100.10", "2001:db8:7::10")
SERVICE = ("10.96.0.10", "fd00:10:96::10")
EGRESS = ("192.0.2.50", "2001:db8::50")
NODE_PORT = {"http": 30080, "lines": 30432}
BYTES = 24_000_000
RATE = 2_000_000

CONFIG = """\
node: {name}
source: {{ kind: manifests, path: {run_dir}/cluster }}
ports: {{ uplink: {{ driver: af_xdp, interface: eth0 }} }}
cidrs: {{ pods: [10.244.0.0/16, "fd00:10:244::/56"], services: [10.96.0.0/12, "fd00:10:96::/112"] }}
socket: {run_dir}/{name}/sluiced.sock
state_dir: {run_dir}/{name}/state
"""

OBJECTS = """\
apiVersion: v1
kind: Namespace
metadata: { name: shop, labels: { team: shop } }
---
apiVersion: v1
kind: Namespace
metadata: { name: finance, labels: { team: finance } }
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop }
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  selector: { tier: web }
  ports:
  - { name: http, port: 8080, nodePort: 30080 }
  - { name: lines, port: 5432, nodePort: 30432 }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: default-deny, namespace: shop }
spec: { podSelector: {}, policyTypes: [Ingress, Egress] }
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: web, namespace: shop }
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress: [{ ports: [{ port: 8080, protocol: TCP }, { port: 5432, protocol: TCP }] }]
  egress: [{ ports: [{ port: 8080, protocol: TCP }, { port: 5432, protocol: TCP }] }]
---
apiVersion: sluicegate.dev/v1alpha1
kind: EgressGateway
metadata: { name: partners }
spec:
  namespaceSelector: { matchLabels: { team: finance } }
  egressIPs: [192.0.2.50, "2001:db8::50"]
  gatewayNodes: { matchLabels: { egress: "true" } }
"""


def node_manifest(spec):
    labels = 'labels: { egress: "true" }' if spec.name == "node-b" else "labels: {}"
    cidrs = ", ".join(f'"{cidr}"' for cidr in spec.pod_cidrs)
    addresses = ", ".join(f'{{ type: InternalIP, address: "{a}" }}' for a in spec.addresses)
    return (f"apiVersion: v1\nkind: Node\nmetadata: {{ name: {spec.name}, {labels} }}\n"
            f"spec: {{ podCIDR: {spec.pod_cidrs[0]}, podCIDRs: [{cidrs}] }}\nstatus: {{ addresses: [{addresses}] }}\n---\n")


class TwoNodes(TemporaryCluster):
    """Two nodes and a host outside, on manifests of their own."""

    def __init__(self, bin_dir):
        self.folder = tempfile.mkdtemp(prefix="sg-e2r-")
        run_dir = f"{self.folder}/run"
        configs = {spec.name: f"{self.folder}/{spec.name}.yaml" for spec in NODES}
        super().__init__("sg-e2r-", run_dir, bin_dir, NODES, PODS, configs)
        for spec in NODES:
            with open(configs[spec.name], "w", encoding="utf-8") as file:
                file.write(CONFIG.format(run_dir=run_dir, name=spec.name))

    def __enter__(self):
        try:
            self.remove_namespaces()
            self.make_fabric()
            self.add_outside(GATEWAY, OUTSIDE)
            os.makedirs(f"{self.run_dir}/cluster")
            pods = "---\n".join(pod_manifest(pod.spec).replace("labels: {", "labels: { tier: web,")
                                if pod.name.startswith("web") else pod_manifest(pod.spec) for pod in self.pods.values())
            with open(f"{self.run_dir}/cluster/all.yaml", "w", encoding="utf-8") as file:
                file.write("".join(node_manifest(spec) for spec in NODES) + OBJECTS + "---\n" + pods)
            for node in self.nodes.values():
                node.start()
            for pod in self.pods.values():
                pod.attach()
                pod.serve()
            self.serve("outside", self.outside, addresses=OUTSIDE, http=8080, lines=5432)
            return self
        except BaseException:
            self.__exit__(True)
            raise

    def everywhere(self):
        """The namespaces of nodes, pods and the host outside."""
        own = [*self.nodes.values(), *self.pods.values()]
        return {thing.name: thing.namespace for thing in own} | {"outside": self.outside}


def tcp_counter(namespace, name):
    """One number of a namespace's kernel (/proc/net/snmp)."""
    lines = [line.split() for line in namespace.run("cat", "/proc/net/snmp").stdout.splitlines() if line.startswith("Tcp:")]
    return int(lines[1][lines[0].index(name)])


class Transfer:
    """A slow download that lasts over restarts; every byte is compared at the end."""

    def __init__(self, namespace, address, port):
        url = f"http://{bracket(address)}:{port}/bytes/{BYTES}"
        command = namespace.command("curl", "-sS", "--max-time", 90, "--limit-rate", RATE, "-o", "-", url)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.body, self.thread = b"", threading.Thread(target=self.collect, daemon=True)
        self.thread.start()

    def collect(self):
        self.body, self.said = self.process.communicate()

    def problem(self):
        """None, or what went wrong."""
        self.thread.join()
        if self.process.returncode:
            return f"curl ended with {self.process.returncode} after {len(self.body)} bytes: {self.said.decode().strip()}"
        return None if self.body == payload(BYTES) else f"{len(self.body)} bytes of {BYTES} came, or other ones"


class Watch:
    """Looks at every packet that reaches a host outside: none may bear an address from inside."""

    def __init__(self, namespace):
        with namespace.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.bind(("eth0", 0))
        self.socket.settimeout(0.2)
        self.seen, self.leaked, self.on = 0, [], True
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()

    def look(self):
        while self.on:
            with contextlib.suppress(OSError):
                frame, (_, _, kind, *_) = self.socket.recvfrom(128)
                if kind == socket.PACKET_OUTGOING:
                    continue
                self.seen += 1
                v4 = frame[12:14] == b"\x08\x00" and frame[26:28] == bytes([10, 244])
                v6 = frame[12:14] == b"\x86\xdd" and frame[22:27] == bytes([0xfd, 0, 0, 0x10, 2])
                if v4 or v6:
                    self.leaked.append(frame[:64].hex())

    def stop(self):
        self.on = False
        self.thread.join()
        self.socket.close()


def conversations(cluster):
    """What runs over the restarts, by name: (namespace, address, ports)."""
    pod, plain = cluster.pods, {"http": 8080, "lines": 5432}
    ways = {}
    for version in (4, 6):
        client = pod["shop/client"].namespace
        ways[f"through the ClusterIP, IPv{version}"] = (client, of_family(SERVICE, version), plain)
        ways[f"pod to pod across nodes, IPv{version}"] = (client, pod["shop/web-b"].address(version), plain)
        ways[f"pod to pod on one node, IPv{version}"] = (client, pod["shop/web-a"].address(version), plain)
        ways[f"masqueraded, IPv{version}"] = (client, of_family(OUTSIDE, version), plain)
        ways[f"by the egress gateway, IPv{version}"] = (pod["finance/billing"].namespace, of_family(OUTSIDE, version), plain)
        ways[f"NodePort from outside, IPv{version}"] = (cluster.outside, of_family(NODES[0].addresses, version), NODE_PORT)
    return ways


def connections_go_on_over_kills_and_stops(bin_dir, expect):
    with TwoNodes(bin_dir) as cluster:
        ways = conversations(cluster)
        resets = {name: [tcp_counter(ns, n) for n in ("OutRsts", "EstabResets")] for name, ns in cluster.everywhere().items()}
        watch = Watch(cluster.outside)
        talks = {what: Conversation(ns, address, ports["lines"], patience=5) for what, (ns, address, ports) in ways.items()}
        first = {what: talk.ask(patience=5) for what, talk in talks.items()}
        expect(first["by the egress gateway, IPv4"]["peer"] == EGRESS[0], f"{first['by the egress gateway, IPv4']}")
        expect(first["masqueraded, IPv4"]["peer"] == NODES[0].addresses[0], f"{first['masqueraded, IPv4']}")
        transfers = {what: Transfer(ns, address, ports["http"]) for what, (ns, address, ports) in ways.items()}
        asked = 1
        for name, how in [("node-a", "kill"), ("node-b", "kill"), ("node-a", "stop"), ("node-b", "stop"), ("node-a", "kill")]:
            time.sleep(0.4)
            node = cluster.nodes[name]
            node.kill() if how == "kill" else expect(node.stop(), "SIGTERM did not end sluiced")
            # Packets meet the node while nobody is there.
            for talk in talks.values():
                talk.sock.sendall(b"?\n")
            time.sleep(0.3)
            node.start()
            for what, talk in talks.items():
                for _ in range(2):
                    # The line that was sent into the gap, and one more.
                    try:
                        asked_now = talk.ask(patience=30) if _ else read(talk, 30)
                    except (OSError, Silence, Refused) as error:
                        raise AssertionError(f"{what}, {how} of {name}: {type(error).__name__}: {error}") from None
                    before = first[what]
                    same = all(asked_now[key] == before[key] for key in ("server", "peer", "port", "local"))
                    expect(same, f"{what}, {how} of {name}: {before}, then {asked_now}")
                expect(asked_now["line"] == asked + 2, f"{what}: {asked_now}")
            asked += 2
        for what, transfer in transfers.items():
            problem = transfer.problem()
            expect(problem is None, f"{what}: {problem}")
        for talk in talks.values():
            talk.close()
        watch.stop()
        expect(watch.seen > 1000, f"only {watch.seen} packets were seen outside")
        expect(not watch.leaked, f"{len(watch.leaked)} packets left without SNAT, such as {watch.leaked[:1]}")
        now = {name: [tcp_counter(ns, n) for n in ("OutRsts", "EstabResets")] for name, ns in cluster.everywhere().items()}
        expect(now == resets, f"resets: {resets}, then {now}")


def read(talk, patience):
    """The answer to a line that was sent before."""
    talk.sock.settimeout(patience)
    while b"\n" not in talk.rest:
        more = talk.sock.recv(65536)
        if not more:
            raise ConnectionError("the connection was closed")
        talk.rest += more
    line, talk.rest = talk.rest.split(b"\n", 1)
    return json.loads(line)


def tables_of_another_version_are_refused_in_one_line(bin_dir, expect):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        with Conversation(client.namespace, server.address(4)) as talk:
            talk.ask()
        cluster.node.kill()
        with open(f"{cluster.run_dir}/node-a/state/host.json", encoding="utf-8") as file:
            folder = json.load(file)["flow_tables"]
        names = sorted(os.listdir(folder))
        expect("v4-0" in names and "v6-0" in names, f"{folder}: {names}")
        for name in names:
            with open(f"{folder}/{name}", "r+b") as table:
                # The fingerprint of the layout, behind eight bytes of magic.
                table.seek(8)
                table.write(bytes(8))
        cluster.node.start()
        said = [line for line in cluster.processes.log("sluiced-node-a").splitlines() if "another version of sluiced" in line]
        expect(len(said) == 2 and "starting without its flows" in said[0], f"one line for each family: {said}")
        for version in (4, 6):
            with Conversation(client.namespace, server.address(version)) as talk:
                talk.ask()
        expect(cluster.node.stop(), "SIGTERM did not end sluiced")
        cluster.node.cleanup()
        expect(not os.path.exists(folder), f"{folder} is still there")


def a_flow_that_was_forbidden_while_nobody_was_there_dies(bin_dir, expect):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        talks = [Conversation(client.namespace, server.address(version)) for version in (4, 6)]
        for talk in talks:
            talk.ask()
        cluster.node.kill()
        cluster.write("deny.yaml", (
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: deny, namespace: default }\n"
            "spec: { podSelector: { matchLabels: { app: pod-1 } }, policyTypes: [Ingress] }\n"))
        cluster.node.start()
        for talk in talks:
            try:
                answer = talk.ask(patience=2)
            except Silence:
                answer = None
            expect(answer is None, f"forbidden, and answered {answer}")
            talk.close()


def with_other_workers_and_another_size_flows_move(bin_dir, expect):
    with SmallCluster(bin_dir) as cluster:
        cluster.configure(more="workers: '0'\nflows: { max: 4096 }\n")
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        talks = [Conversation(client.namespace, server.address(version)) for version in (4, 6)]
        for lines, more in enumerate(["workers: '0,0'\nflows: { max: 2048 }\n", "workers: '0'\nflows: { max: 8192 }\n"], 1):
            for talk in talks:
                talk.ask()
            before = len(cluster.node.api("/v1/flows")["flows"])
            expect(before >= 2, f"{before} flows")
            cluster.node.kill()
            cluster.configure(more=more)
            cluster.node.start()
            after = len(cluster.node.api("/v1/flows")["flows"])
            expect(after >= before, f"{before} flows, {after} after the restart with {more!r}")
        for talk in talks:
            expect(talk.ask(patience=5)["line"] == lines + 1, "the connection is another one")
            talk.close()


STICKY = """\
apiVersion: v1
kind: Service
metadata: {{ name: sticky, namespace: default }}
spec:
  clusterIP: 10.96.0.20
  clusterIPs: [10.96.0.20, "fd00:10:96::20"]
  sessionAffinity: ClientIP
  ports: [{{ port: 80, targetPort: 8080 }}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: sticky-4, namespace: default, labels: {{ kubernetes.io/service-name: sticky }} }}
addressType: IPv4
ports: [{{ port: 8080 }}]
endpoints: [{v4}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: sticky-6, namespace: default, labels: {{ kubernetes.io/service-name: sticky }} }}
addressType: IPv6
ports: [{{ port: 8080 }}]
endpoints: [{v6}]
"""


def a_client_keeps_its_backend_over_a_kill(bin_dir, expect):
    """Five clients in both families met the only backend; four more join, the agent is killed: by hash alone most would move."""
    with SmallCluster(bin_dir, count=6) as cluster:
        pods = list(cluster.pods.values())

        def backends(some):
            endpoints = lambda version: ", ".join(f'{{ addresses: ["{pod.address(version)}"], nodeName: node-a }}' for pod in some)  # noqa: E731
            cluster.write("sticky.yaml", STICKY.format(v4=endpoints(4), v6=endpoints(6)))

        def given():
            clients = [pods[0], *pods[2:]]
            return {fetch(pod.namespace, address, port=80)["server"] for pod in clients for address in ("10.96.0.20", "fd00:10:96::20")}

        backends(pods[1:2])
        cluster.up()
        expect(given() == {"pod-1"}, f"the only backend: {given()}")
        generation = cluster.node.api("/v1/generation")["applied"]
        backends(pods[1:])
        wait_until("the others have joined", lambda: cluster.node.api("/v1/generation")["applied"] > generation, 5)
        expect(given() == {"pod-1"}, f"clients stay: {given()}")
        cluster.node.kill()
        cluster.node.start()
        expect(given() == {"pod-1"}, f"and after the kill: {given()}")


ALL = [a_client_keeps_its_backend_over_a_kill, connections_go_on_over_kills_and_stops, tables_of_another_version_are_refused_in_one_line,
       a_flow_that_was_forbidden_while_nobody_was_there_dies, with_other_workers_and_another_size_flows_move]
