"""One node, some pods, manifests written by the test: the topology that the end-to-end tests share."""

import ipaddress
import os
import sys
import tempfile

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "demo")
sys.path.insert(0, DEMO)

from temporary import TemporaryCluster  # noqa: E402 (after the path is set)
from topology import NodeSpec, PodSpec  # noqa: E402 (after the path is set)

PREFIX = "sg-e2e-"
NODE = NodeSpec("node-a", ("192.0.2.11", "2001:db8::11"), ("10.244.1.0/24", "fd00:10:244:1::/64"))
GATEWAY = ("192.0.2.1", "2001:db8::1")

CONFIG = """\
node: node-a
source: {{ kind: manifests, path: {run_dir}/cluster }}
ports:
  uplink: {{ driver: af_xdp, interface: {interface} }}
cidrs: {{ pods: [10.244.0.0/16, "fd00:10:244::/56"], services: [10.96.0.0/12, "fd00:10:96::/112"] }}
socket: {run_dir}/node-a/sluiced.sock
state_dir: {run_dir}/node-a/state
{more}"""

NODE_MANIFEST = """\
apiVersion: v1
kind: Node
metadata: { name: node-a }
spec: { podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"] }
status: { addresses: [{ type: InternalIP, address: 192.0.2.11 }, { type: InternalIP, address: "2001:db8::11" }] }
---
apiVersion: v1
kind: Namespace
metadata: { name: default }
"""


def pod_manifest(spec):
    namespace, name = spec.key.split("/")
    addresses = ", ".join(f'{{ ip: "{address}" }}' for address in spec.addresses)
    return f"""\
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {namespace}, labels: {{ app: {name} }} }}
spec: {{ nodeName: {spec.node}, containers: [{{ name: c, image: c }}] }}
status:
  phase: Running
  conditions: [{{ type: Ready, status: "True" }}]
  podIP: {spec.addresses[0]}
  podIPs: [{addresses}]
"""


def pods(count):
    """So many pods on the node: default/pod-0, default/pod-1, …"""
    v4, v6 = (ipaddress.ip_network(cidr) for cidr in NODE.pod_cidrs)
    first = 10 if count < 200 else 4
    return [PodSpec(f"default/pod-{i}", "node-a", (str(v4[first + i]), str(v6[first + i]))) for i in range(count)]


class SmallCluster(TemporaryCluster):
    """A node and `count` pods. As a context it is made on entering and taken down on leaving."""

    def __init__(self, bin_dir, count=2):
        self.folder = tempfile.mkdtemp(prefix="sg-e2e-")
        run_dir = f"{self.folder}/run"
        config = f"{self.folder}/node-a.yaml"
        super().__init__(PREFIX, run_dir, bin_dir, [NODE], pods(count), {"node-a": config})
        self.manifests = f"{run_dir}/cluster"
        self.node = self.nodes["node-a"]
        self.configure()

    def configure(self, interface="eth0", more=""):
        """Writes the node's configuration; the next start reads it."""
        with open(self.node.config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(run_dir=self.run_dir, interface=interface, more=more))

    def write(self, file, text):
        """Writes a manifest whole: aside, then renamed."""
        with open(f"{self.manifests}/.{file}.new", "w", encoding="utf-8") as new:
            new.write(text)
        os.rename(f"{self.manifests}/.{file}.new", f"{self.manifests}/{file}")

    def __enter__(self):
        try:
            return self.make()
        except BaseException:
            self.__exit__(None)
            raise

    def make(self):
        self.remove_namespaces()
        self.make_fabric()
        self.add_outside(GATEWAY, ())
        os.makedirs(self.manifests)
        self.write("node.yaml", NODE_MANIFEST)
        for pod in self.pods.values():
            self.write(f"{pod.name}.yaml", pod_manifest(pod.spec))
        return self

    def up(self):
        """Starts the agent, attaches every pod and starts its server."""
        self.node.start()
        for pod in self.pods.values():
            pod.attach()
            pod.serve()
        return self
