"""Two nodes and an API server: load-balancer addresses that are given, written, fenced by Leases and moved, with real sockets.

The API server is the tests' own, in the namespace of the host outside; both nodes reach it over the segment. What is cut is cut
on the bridge between them.
"""

import json
import os
import tempfile
import time

from namespaces import wait_until
from probes import fetch
from temporary import TemporaryCluster
from topology import NodeSpec, PodSpec

import gateways
from kubernetes_node import expect

PREFIX = "sg-ls-"
NODES = [NodeSpec(f"node-{x}", (f"192.0.2.{n}", f"2001:db8::{n}"), (f"10.244.{n}.0/24", f"fd00:10:244:{n}::/64"))
         for x, n in (("a", 11), ("b", 12))]
PODS = [PodSpec(f"default/web-{x}", f"node-{x}", ()) for x, n in (("a", 11), ("b", 12))]
API = ("192.0.2.1", 6443)
SEGMENT = (API[0], "2001:db8::1")
VIP, VIP6 = "192.0.2.80", "2001:db8::80"
SERVICE = "/api/v1/namespaces/default/services/web"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/sluicegate-address-{VIP}"

CONFIG = """\
node: {node}
source: {{ kind: kubernetes, kubeconfig: {run_dir}/kubeconfig }}
ports:
  uplink: {{ driver: af_xdp, interface: eth0 }}
cidrs: {{ pods: [10.244.0.0/16, "fd00:10:244::/56"], services: [10.96.0.0/12, "fd00:10:96::/112"] }}
flows: {{ max: 16384 }}
guard: {{ check: off }}
socket: {run_dir}/{node}/sluiced.sock
state_dir: {run_dir}/{node}/state
cni: {{ install: never }}
"""


def objects():
    nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": n.name},
              "spec": {"podCIDR": n.pod_cidrs[0], "podCIDRs": list(n.pod_cidrs)},
              "status": {"addresses": [{"type": "InternalIP", "address": a} for a in n.addresses]}} for n in NODES]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
               "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:10:96::10"],
                        "ports": [{"port": 80, "targetPort": 8080}]}}
    pool = {"apiVersion": "sluicegate.dev/v1alpha1", "kind": "IPPool", "metadata": {"name": "edge"},
            "spec": {"use": "services", "cidrs": [f"{VIP}/32", f"{VIP6}/128"]}}
    return [*nodes, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, service, pool]


def pod_object(spec, addresses=()):
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": spec.name, "namespace": "default", "uid": f"default-{spec.name}", "labels": {"app": "web"}},
            "spec": {"nodeName": spec.node, "containers": [{"name": "c", "image": "c"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": a} for a in addresses]}}


def slices(backends):
    """Of the Service, one for each family; `backends` are nodes with their pods' addresses."""
    return [{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": f"IPv{version}",
             "metadata": {"name": f"web-{version}", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
             "ports": [{"port": 8080}], "endpoints": [{"addresses": [addresses[at]], "nodeName": node} for node, addresses in backends]}
            for at, version in enumerate((4, 6))]


class TwoNodes(TemporaryCluster):
    """As a context they are made and taken down."""

    def __init__(self, bin_dir):
        self.folder = tempfile.mkdtemp(prefix="sg-ls-")
        configs = {node.name: f"{self.folder}/{node.name}.yaml" for node in NODES}
        super().__init__(PREFIX, f"{self.folder}/run", bin_dir, NODES, PODS, configs)
        for name, path in configs.items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(CONFIG.format(node=name, run_dir=self.run_dir))

    answers, mac, outside_mac = gateways.Gateways.answers, gateways.Gateways.mac, gateways.Gateways.outside_mac

    def __enter__(self):
        try:
            self.remove_namespaces()
            self.make_fabric()
            self.add_outside(SEGMENT, ())
            with open(f"{self.run_dir}/kubeconfig", "w", encoding="utf-8") as file:
                json.dump({"apiVersion": "v1", "kind": "Config", "current-context": "x", "users": [{"name": "x", "user": {}}],
                           "clusters": [{"name": "x", "cluster": {"server": f"http://{API[0]}:{API[1]}"}}],
                           "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x", "namespace": "kube-system"}}]}, file)
            with open(f"{self.run_dir}/objects.json", "w", encoding="utf-8") as file:
                json.dump(objects(), file)
            self.server = self.processes.start("apiserver", self.outside, self.program("fake-apiserver"),
                                               "--listen", f"{API[0]}:{API[1]}", "--objects", f"{self.run_dir}/objects.json")
            wait_until("the API server answers", lambda: self.ask("/api/v1/nodes") is not None, 10)
            for node in self.nodes.values():
                node.start()
            backends = []
            for pod in self.pods.values():
                # What scheduler, kubelet and runtime do: the object, ADD, the addresses into the object.
                self.ask("/fake/apply", [pod_object(pod.spec)])
                addresses = [entry["address"].split("/")[0] for entry in pod.attach()["ips"]]
                self.ask("/fake/apply", [pod_object(pod.spec, addresses)])
                backends.append((pod.spec.node, addresses))
                pod.serve()
            self.ask("/fake/apply", slices(backends))
            return self
        except BaseException:
            self.__exit__(True)
            raise

    def ask(self, path, body=None):
        send = ["--data-binary", json.dumps(body), "-H", "Content-Type: application/json"] if body is not None else []
        done = self.outside.run("curl", "-sf", "--max-time", "5", *send, f"http://{API[0]}:{API[1]}{path}", check=False)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else None

    def cut(self, *rules):
        """Drops on the bridge what these nft matches say, and nothing else."""
        self.fabric.run("nft", "delete table bridge cut", check=False)
        if rules:
            body = "".join(f"add rule bridge cut c {rule} drop\n" for rule in rules)
            self.fabric.run("nft", "-f", "-", stdin=f"add table bridge cut\nadd chain bridge cut c {{ type filter hook forward priority 0; }}\n{body}")

    def holder(self, within=0.15):
        """The nodes that answer when the segment asks who has the address."""
        names = {self.mac(name): name for name in self.nodes}
        return {names[mac] for mac in self.answers(VIP, within)}

    def one_holder(self, patience=10):
        wait_until("one node answers for the address", lambda: len(self.holder()) == 1, patience)
        return next(iter(self.holder()))

    def served(self, address):
        try:
            return fetch(self.outside, address, port=80, patience=0.3)
        except Exception:  # noqa: BLE001 (refused, silent: not yet)
            return None


def never_two(cluster, seconds):
    """At no time do two nodes answer."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answering = cluster.holder()
        expect(len(answering) <= 1, f"two answer: {answering}")


def an_address_out_of_a_pool_is_written_fenced_by_its_lease_and_moved(bin_dir):
    with TwoNodes(bin_dir) as cluster:
        ingress = lambda: [i["ip"] for i in cluster.ask(SERVICE).get("status", {}).get("loadBalancer", {}).get("ingress", [])]  # noqa: E731
        wait_until("the Service has its addresses", lambda: ingress() == [VIP, VIP6], 30)
        holder = cluster.one_holder()
        wait_until("both are served", lambda: cluster.served(VIP) and cluster.served(VIP6), 10)
        lease = cluster.ask(LEASE)
        expect(lease["spec"]["holderIdentity"] == holder, f"{holder}: {lease['spec']}")

        # A node that dies: its session runs out, the other takes over. How fast is said, and held to by the election's own test
        # (`ctrl/src/carriers/election/tests.rs`): this machine may be busy with anything.
        victim = cluster.one_holder()
        other = next(name for name in cluster.nodes if name != victim)
        killed = time.monotonic()
        cluster.nodes[victim].kill()
        wait_until("the other serves both", lambda: cluster.served(VIP) and cluster.served(VIP6), 20)
        print(f"     taken over in {time.monotonic() - killed:.2f} s", flush=True)
        expect(cluster.holder() <= {other}, "the other answers, and it alone")
        wait_until("the Lease names it", lambda: cluster.ask(LEASE)["spec"]["holderIdentity"] == other, 10)
        cluster.nodes[victim].start()
        never_two(cluster, 3)

        # Parted, and both reach the API server: without Leases both would answer before long.
        cluster.cut("udp dport 4789")
        never_two(cluster, 4)
        holder = cluster.one_holder()
        other = next(name for name in cluster.nodes if name != holder)

        # The holder reaches nobody: it stops, then the other begins.
        address = next(n.addresses[0] for n in NODES if n.name == holder)
        cluster.cut("udp dport 4789", f"ip saddr {address} tcp dport {API[1]}")
        never_two(cluster, 5)
        wait_until("the other has taken over", lambda: cluster.holder() == {other}, 10)
        expect(cluster.ask(LEASE)["spec"]["holderIdentity"] == other, "and the Lease says so")
        cluster.cut()
        never_two(cluster, 3)

        # In touch with each other they do without the API server.
        wait_until("one node answers", lambda: len(cluster.holder()) == 1, 10)
        cluster.processes.end(cluster.server)
        never_two(cluster, 4)
        wait_until("both are served without the API server", lambda: cluster.served(VIP) and cluster.served(VIP6), 10)


TESTS = [an_address_out_of_a_pool_is_written_fenced_by_its_lease_and_moved]
