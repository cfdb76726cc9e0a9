"""End to end on one node: bare VFs for pods. Registered by run.py; each test has a cluster of its own.

What is real: the agent, CNI, namespaces, the moves of interfaces between them. What stands in: the PCI bus is a folder, the
fixture `two-nodes-mellanox` (its files are written, no kernel is behind them), and ends of veth pairs of the same names and MACs
are the VFs' interfaces. No SR-IOV hardware is touched; what a driver does when it is bound anew is not shown here.
"""

import json
import os

from small_cluster import SmallCluster, pod_manifest  # first: it sets the path of those below
from namespaces import wait_until
from probes import fetch

TESTS = []
HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURE = os.path.join(HERE, "..", "..", "hugepage-setup", "machine", "fixtures", "two-nodes-mellanox.tree")
PF = "ens1f0np0"
# Address, interface, MAC; as the fixture has them.
VFS = [("0000:3b:00.2", "ens1f0v0", "0e:00:00:00:00:01"), ("0000:3b:00.3", "ens1f0v1", "0e:00:00:00:00:02")]


def test(function):
    TESTS.append((function.__name__.replace("_", " "), function))
    return function


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


def plant(root):
    """The machine that the fixture writes down (the format is told in hugepage-setup/machine/src/fixture.rs)."""
    folder = ""
    for line in open(FIXTURE, encoding="utf-8").read().splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("@ "):
            folder = line[2:].strip("/")
            continue
        link, arrow, target = line.partition(" -> ")
        name, equals, content = line.partition(" =")
        path = os.path.join(root, folder, (link if arrow else name).strip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if arrow:
            os.symlink(os.path.join(root, target.strip("/")), path)
        elif equals:
            with open(path, "w", encoding="utf-8") as file:
                file.write(content.strip().replace("\\n", "\n") + "\n")
        else:
            os.makedirs(path, exist_ok=True)


class Bare(SmallCluster):
    """Two pods; the first asks for a bare VF."""

    def __init__(self, bin_dir, wanted="any", bare_pods="[default]"):
        super().__init__(bin_dir)
        self.root, self.wanted = f"{self.folder}/host", wanted
        plant(self.root)
        self.configure(more=f"vfs: {{ devices: [{PF}], bare_pods: {bare_pods}, root: {self.root} }}\n")

    def make(self):
        super().make()
        for _, name, mac in VFS:
            self.node.namespace.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
            self.node.namespace.ip("link", "set", name, "address", mac, "mtu", "1500")
        self.ask("pod-0", self.wanted)
        return self

    def ask(self, name, wanted):
        manifest = pod_manifest(self.pods[f"default/{name}"].spec)
        annotated = manifest.replace("labels: {", f'annotations: {{ sluicegate.dev/vf: "{wanted}" }}, labels: {{')
        self.write(f"{name}.yaml", annotated)

    def vfs(self):
        return {vf["address"]: vf for vf in json.loads(self.node.sluice("vfs", "-o", "json").stdout)}


def link(namespace, name):
    """An interface as `ip -j` tells it; none where there is none."""
    done = namespace.ip("-j", "address", "show", "dev", name, check=False)
    return json.loads(done.stdout)[0] if done.returncode == 0 else None


@test
def a_pod_has_a_bare_vf_beside_its_port_and_gives_it_back_clean(bin_dir):
    with Bare(bin_dir) as cluster:
        cluster.up()
        node, pod, other = cluster.node.namespace, cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        address, name, mac = VFS[0]
        inside = link(pod.namespace, "vf0")
        expect(inside and inside["address"] == mac and link(node, name) is None, f"{inside}")
        expect(link(other.namespace, "vf0") is None, "a pod that did not ask has a VF")
        # The pod's port is what it was: policy and Services go on with it.
        expect(fetch(pod.namespace, other.address(4))["peer"] == pod.address(4), "the pod's own port")
        said = cluster.vfs()[address]
        expect((said["state"], said["enforced"]) == ("pod", False) and "default/pod-0" in said["owner"], f"{said}")
        expect(cluster.vfs()[VFS[1][0]]["state"] == "free", f"{cluster.vfs()}")
        expect("(unenforced)" in cluster.node.sluice("vfs").stdout, "the table says unenforced")
        pods = {p["name"]: p for p in json.loads(cluster.node.sluice("pods", "-o", "json").stdout)}
        expect(pods["default/pod-0"]["unenforced"] == "vf0" and pods["default/pod-1"]["unenforced"] is None, f"{pods}")
        status = cluster.node.sluice("status").stdout
        expect("default/pod-0: its VF vf0 is unenforced" in status, status)
        expect(cluster.node.metrics()['sluicegate_vfs{state="pod"}'] == 1, "the metric")
        added = json.loads(pod.cni("ADD").stdout)
        expect(added["interfaces"][-1]["pciID"] == address and pod.cni("CHECK", prevResult=added).returncode == 0, f"{added}")
        # A killed agent finds the claim again and gives nobody else this VF.
        cluster.node.kill()
        cluster.node.start()
        expect(cluster.vfs()[address]["state"] == "pod", f"{cluster.vfs()}")
        # What the pod does to it is gone when it is back.
        pod.namespace.ip("link", "set", "vf0", "address", "de:ad:be:ef:00:01", "mtu", "1300", "up")
        pod.namespace.ip("address", "add", "203.0.113.9/24", "dev", "vf0")
        expect(pod.detach().returncode == 0, "DEL")
        home = link(node, name)
        expect(home and (home["address"], home["mtu"]) == (mac, 1500) and "UP" not in home["flags"], f"{home}")
        expect(not home["addr_info"] and link(pod.namespace, "vf0") is None, f"{home}")
        expect(cluster.vfs()[address]["state"] == "free", f"{cluster.vfs()}")
        with open(f"{cluster.root}/sys/bus/pci/drivers/mlx5_core/unbind", encoding="ascii") as unbind:
            expect(unbind.read().strip() == address, "the driver was told to let go and take it anew")
        expect(not os.path.exists(f"{cluster.root}/var/lib/sluicegate/vfs.json"), "a claim is left")


@test
def a_bare_vf_is_refused_by_name_where_it_may_not_be(bin_dir):
    with Bare(bin_dir, bare_pods="[]") as cluster:
        cluster.node.start()
        refused = cluster.pods["default/pod-0"].cni("ADD")
        expect(refused.returncode != 0 and "vfs.bare_pods" in refused.stdout, refused.stdout)
    with Bare(bin_dir, wanted=VFS[0][0]) as cluster:
        cluster.node.start()
        first, second = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        first.attach()
        cluster.ask("pod-1", VFS[0][0])

        def refused():
            done = second.cni("ADD")
            if done.returncode == 0:
                second.detach()
            return done if done.returncode != 0 and "sandbox" in done.stdout else None
        said, _ = wait_until("the second pod is refused its VF", refused, 10)
        expect("default/pod-0" in said.stdout, said.stdout)
        status = cluster.node.sluice("status").stdout
        expect("Pod/default/pod-1" in status, f"the refusal stands in the status: {status}")
        # Whoever carries the default route is never given away.
        cluster.node.namespace.ip("link", "set", VFS[1][1], "up")
        cluster.node.namespace.ip("route", "add", "default", "dev", VFS[1][1], "metric", "500")
        cluster.ask("pod-1", VFS[1][0])

        def kept():
            done = second.cni("ADD")
            if done.returncode == 0:
                second.detach()
            return "default route" in done.stdout
        wait_until("the VF with the default route is kept", kept, 10)


@test
def cleanup_brings_bare_vfs_home(bin_dir):
    with Bare(bin_dir, wanted=PF) as cluster:
        cluster.up()
        node, pod = cluster.node.namespace, cluster.pods["default/pod-0"].namespace
        expect(link(pod, "vf0"), "the pod has its VF")
        expect(cluster.node.stop(), "SIGTERM did not end sluiced")
        expect(link(pod, "vf0"), "a stop leaves pods what they have")
        for _ in range(2):
            cluster.node.cleanup()
        address, name, mac = VFS[0]
        home = link(node, name)
        expect(home and home["address"] == mac and link(pod, "vf0") is None, f"{home}")
        expect(not os.path.exists(f"{cluster.root}/var/lib/sluicegate/vfs.json"), "a claim is left")
