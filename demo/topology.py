"""Nodes and pods of a small cluster, made of network namespaces on one machine.

    fabric: a bridge; on it, each with one Ethernet interface `eth0`:
      node…      a Kubernetes node: runs one `sluiced`; its pods are namespaces of their own
      kernel     a node without Sluicegate: a kernel `vxlan` device speaks for it, its one pod hangs on a veth
      outside    a host that is no part of the cluster: the nodes' default gateway, and servers behind it

Pods are attached as a container runtime does it: by executing `sluice-cni`.
"""

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field

from namespaces import CommandFailed, Namespace, Processes, run, wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
VNI = 4096
VXLAN_PORT = 4789
DPDK_DEVICE = "net_af_xdp0,iface=wire0,busy_budget=0"


@dataclass(frozen=True)
class NodeSpec:
    """A node: its name in the cluster, its InternalIPs and the pod networks it owns."""
    name: str
    addresses: tuple
    pod_cidrs: tuple


@dataclass(frozen=True)
class PodSpec:
    """A pod: `namespace/name`, the node it is on and the addresses its Pod object names."""
    key: str
    node: str
    addresses: tuple
    ports: dict = field(default_factory=lambda: {"http": 8080, "lines": 5432, "udp": 8053}, hash=False)

    @property
    def name(self):
        return self.key.split("/")[1]


def family(address):
    return ipaddress.ip_address(address.split("/")[0]).version


def of_family(addresses, version):
    return next(a for a in addresses if family(a) == version)


def first_address(cidr):
    """The overlay address of the node that owns this podCIDR."""
    return str(ipaddress.ip_network(cidr)[1])


def tunnel_mac(node):
    """The MAC of a node's tunnel end: 02:00 and its IPv4 InternalIP."""
    packed = ipaddress.ip_address(of_family(node.addresses, 4)).packed
    return "02:00:" + ":".join(f"{b:02x}" for b in packed)


def on_dpdk(config):
    """A node's configuration with its uplink on DPDK, whose device is the kernel's interface `wire0`."""
    return config.replace("driver: af_xdp", f'driver: dpdk, device: "{DPDK_DEVICE}"')


class Node:
    """A node namespace and its `sluiced`."""

    def __init__(self, cluster, spec, config):
        self.cluster, self.spec, self.name = cluster, spec, spec.name
        self.namespace = Namespace(f"{cluster.prefix}{spec.name}")
        self.config = config
        self.socket = f"{cluster.run_dir}/{spec.name}/sluiced.sock"
        self.process = None

    def start(self, ready_within=20.0, before=()):
        """Starts `sluiced`, by the command `before` where there is one, and waits until `sluice status` says that it is
        ready. Returns the seconds that took."""
        program = self.cluster.program("sluiced")
        self.process = self.cluster.processes.start(f"sluiced-{self.name}", self.namespace, *before, program, "run",
                                                    "--config", self.config)

        def ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"sluiced on {self.name} ended with code {self.process.returncode}:\n"
                                   + self.cluster.processes.log(f"sluiced-{self.name}", last=15))
            return self.sluice("status", check=False).returncode == 0

        return wait_until(f"sluiced on {self.name} ready", ready, ready_within, every=0.05)[1]

    def stop(self):
        """SIGTERM; returns whether that was enough."""
        gentle = self.cluster.processes.end(self.process) if self.process else True
        self.process = None
        return gentle

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.cluster.processes.started.remove(self.process)
        self.process = None

    def cleanup(self, check=True):
        """`sluiced cleanup`, with no agent running."""
        return self.namespace.run(self.cluster.program("sluiced"), "cleanup", "--config", self.config, check=check)

    def sluice(self, *arguments, check=True, timeout=10):
        """Runs the operator's command line against this node's agent."""
        return run(self.cluster.program("sluice"), *arguments, "--socket", self.socket, check=check, timeout=timeout)

    def cpu_seconds(self):
        """Processor time that `sluiced` has used so far, user and system."""
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def api(self, path):
        """`GET path` on the agent's socket, decoded."""
        answer = run("curl", "-sf", "--max-time", "5", "--unix-socket", self.socket, f"http://sluiced{path}")
        return json.loads(answer.stdout)

    def metrics(self):
        """The agent's Prometheus metrics: {"name{label=\"value\",…}": number}."""
        text = self.namespace.run("curl", "-sf", "--max-time", "5", "http://127.0.0.1:9765/metrics").stdout
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in samples}


class Pod:
    """A pod's namespace, its attachment by CNI and its server."""

    def __init__(self, cluster, spec):
        self.cluster, self.spec, self.name = cluster, spec, spec.name
        self.namespace = Namespace(f"{cluster.prefix}pod-{spec.name}")
        self.server = None

    @property
    def node(self):
        return self.cluster.nodes[self.spec.node]

    def address(self, version):
        return of_family(self.spec.addresses, version)

    def cni_call(self, command, version="1.1.0", **config):
        """What a runtime hands to the plugin: its path, its environment, its standard input."""
        namespace, name = self.spec.key.split("/")
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"{self.cluster.prefix}{namespace}-{name}",
            "CNI_NETNS": self.namespace.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": self.cluster.bin_dir,
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={namespace}-{name}",
        }
        network = {"cniVersion": version, "name": "sluicegate", "type": "sluice-cni", "socket": self.node.socket, **config}
        return self.cluster.program("sluice-cni"), environment, json.dumps(network)

    def cni(self, command, version="1.1.0", **config):
        """Executes `sluice-cni` as a runtime would. Returns the finished process."""
        program, environment, network = self.cni_call(command, version, **config)
        return run(program, stdin=network, check=False, env=environment)

    def attach(self, version="1.1.0"):
        """CNI ADD; returns its result."""
        done = self.cni("ADD", version)
        if done.returncode != 0:
            raise RuntimeError(f"ADD of {self.spec.key}: {done.stdout.strip() or done.stderr.strip()}")
        return json.loads(done.stdout)

    def detach(self):
        """CNI DEL; returns the finished process."""
        return self.cni("DEL")

    def serve(self):
        self.server = self.cluster.serve(self.name, self.namespace, **self.spec.ports)


class Cluster:
    """Everything that is made, in the order in which it is made, and taken down in the other one.

    `configs` maps a node's name to its configuration file, which must say `socket: RUN_DIR/NODE/sluiced.sock`.
    """

    def __init__(self, prefix, run_dir, bin_dir, nodes, pods, configs):
        self.prefix, self.run_dir, self.bin_dir = prefix, run_dir, os.path.abspath(bin_dir)
        self.logs = f"{run_dir}/logs"
        self.fabric, self.outside = Namespace(f"{prefix}fabric"), Namespace(f"{prefix}outside")
        self.kernel, self.kernel_pod = Namespace(f"{prefix}kernel"), Namespace(f"{prefix}kernel-pod")
        self.nodes = {spec.name: Node(self, spec, configs[spec.name]) for spec in nodes}
        self.pods = {spec.key: Pod(self, spec) for spec in pods}
        self.processes = Processes(self.logs)

    def program(self, name):
        path = f"{self.bin_dir}/{name}"
        if not os.access(path, os.X_OK):
            raise FileNotFoundError(f"{path} is missing: run `make build`, or say --bin-dir")
        return path

    def namespaces(self):
        own = [n.namespace for n in self.nodes.values()] + [p.namespace for p in self.pods.values()]
        return [*own, self.kernel_pod, self.kernel, self.outside, self.fabric]

    # What is made.

    def make_fabric(self):
        """The folders, the segment with its nodes, and a namespace per pod."""
        os.makedirs(self.logs, exist_ok=True)
        self.fabric.create()
        # A bridge that asks for multicast listeners would delay the first neighbour solicitations.
        self.fabric.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        self.fabric.ip("link", "set", "br0", "up")
        for node in self.nodes.values():
            os.makedirs(os.path.dirname(node.socket), exist_ok=True)
            self.join_segment(node.namespace, node.spec.addresses)
        for pod in self.pods.values():
            pod.namespace.create()

    def join_segment(self, namespace, addresses):
        """Makes a namespace with an `eth0` on the segment, in its /24 and /64."""
        namespace.create()
        number = len(self.fabric.ip("-o", "link", "show").stdout.splitlines())
        self.fabric.ip("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        self.fabric.ip("link", "set", f"port{number}", "master", "br0", "up")
        for address in addresses:
            length = 24 if family(address) == 4 else 64
            namespace.ip("address", "add", f"{address}/{length}", "dev", "eth0", *no_dad(address))
        namespace.ip("link", "set", "eth0", "up")

    def join_segment_by_dpdk(self, namespace, addresses):
        """As [`join_segment`] for a node whose uplink is DPDK's: the device is `wire0`, and `eth0`, with the addresses, is the
        TAP that its kernel gets in its place."""
        Cluster.join_segment(self, namespace, ())
        namespace.ip("link", "set", "eth0", "down")
        namespace.ip("link", "set", "eth0", "name", "wire0")
        namespace.sysctl("net.ipv6.conf.wire0.disable_ipv6", 1)
        namespace.ip("link", "set", "wire0", "up")
        namespace.ip("tuntap", "add", "eth0", "mode", "tap")
        for address in addresses:
            length = 24 if family(address) == 4 else 64
            namespace.ip("address", "add", f"{address}/{length}", "dev", "eth0", *no_dad(address))
        namespace.ip("link", "set", "eth0", "up")

    def add_outside(self, segment, hosts):
        """The host outside: `segment` are its addresses as the nodes' gateway, `hosts` those that it serves on."""
        self.join_segment(self.outside, segment)
        for host in hosts:
            self.outside.ip("address", "add", host, "dev", "lo", *no_dad(host))
        for node in self.nodes.values():
            for gateway in segment:
                node.namespace.ip("route", "add", "default", "via", gateway)

    def add_kernel_node(self, spec, mac, pod_addresses):
        """A node whose overlay is a kernel `vxlan` device with the MAC `mac`, and its pod."""
        node, pod = self.kernel, self.kernel_pod
        self.join_segment(node, spec.addresses)
        pod.create()
        node.sysctl("net.ipv4.ip_forward", 1)
        node.sysctl("net.ipv6.conf.all.forwarding", 1)
        node.ip("link", "add", "overlay", "address", mac, "type", "vxlan", "id", VNI, "dstport", VXLAN_PORT, "local",
                of_family(spec.addresses, 4), "nolearning")
        node.ip("link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
        for cidr in spec.pod_cidrs:
            own = first_address(cidr)
            node.ip("address", "add", own, "dev", "overlay", *no_dad(own))
        for device in ("overlay", "pod0"):
            node.ip("link", "set", device, "up")
        node.ip("address", "add", "fe80::1/64", "dev", "pod0", "nodad")
        node.ip("address", "add", "169.254.1.1/32", "dev", "pod0")
        for address in pod_addresses:
            node.ip("route", "add", address, "dev", "pod0")
            pod.ip("address", "add", address, "dev", "eth0", *no_dad(address))
        # The way to the far pods is the overlay's, so the pod's packets must fit in it.
        pod.ip("link", "set", "eth0", "mtu", "1450", "up")
        pod.ip("route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
        pod.ip("route", "add", "default", "via", "169.254.1.1", "dev", "eth0")
        pod.ip("route", "add", "default", "via", "fe80::1", "dev", "eth0")
        for peer in self.nodes.values():
            far, lladdr = peer.spec, tunnel_mac(peer.spec)
            node.run("bridge", "fdb", "append", lladdr, "dev", "overlay", "dst", of_family(far.addresses, 4))
            for cidr in far.pod_cidrs:
                via = first_address(cidr)
                node.ip("neighbour", "add", via, "lladdr", lladdr, "dev", "overlay", "nud", "permanent")
                node.ip("route", "add", cidr, "via", via, "dev", "overlay", "onlink")

    def serve(self, name, namespace, addresses=(), **ports):
        """Starts a server of `servers.py` and waits until it listens."""
        arguments = [part for port, number in ports.items() for part in (f"--{port}", number)]
        arguments += [part for address in addresses for part in ("--address", address)]
        process = self.processes.start(f"server-{name}", namespace, sys.executable, f"{HERE}/servers.py", "--name", name,
                                       *arguments)
        listening = f":{ports['http']} "
        wait_until(f"server {name}", lambda: listening in namespace.run("ss", "-ltnH").stdout, 10, every=0.05)
        return process

    # What is taken down.

    def take_down(self, with_agent=True):
        """Ends every process and removes every namespace and file; says what stood in the way, and may be repeated."""
        trouble = []
        for node in self.nodes.values():
            if node.process and not node.stop():
                trouble.append(f"sluiced on {node.name} did not end on SIGTERM")
        self.processes.end_all()
        for node in self.nodes.values():
            if with_agent and node.namespace.exists():
                try:
                    node.cleanup()
                except (CommandFailed, OSError, subprocess.TimeoutExpired) as error:
                    trouble.append(str(error))
        self.remove_namespaces()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        return trouble

    def remove_namespaces(self):
        for namespace in self.namespaces():
            if namespace.exists():
                # Left over from a run that was killed: its servers still hold the namespace.
                for pid in namespace.pids():
                    run("kill", "-9", pid, check=False)
                namespace.delete()


def no_dad(address):
    """IPv6 addresses that we give are ours; nobody need be asked."""
    return ["nodad"] if family(address) == 6 else []
