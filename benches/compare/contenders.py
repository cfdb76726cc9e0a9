"""The forwarders that are compared. Each has a client and a backend namespace, and the same Services.

    client -- forwarder -- backend
"""

import ipaddress
import os
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "e2e"))

from small_cluster import PREFIX as _, SmallCluster, pod_manifest  # noqa: E402,F401
from namespaces import Namespace, Processes, run, wait_until  # noqa: E402
from topology import Cluster, NodeSpec, PodSpec, of_family  # noqa: E402,F401

TCP_PORT, UDP_PORT, SERVER_PORT = 80, 9, 8080
SAMPLE = 200          # ClusterIPs that are used, however many there are
GATEWAY_MAC = "02:00:a9:fe:01:01"


def cluster_ip(number):
    """The ClusterIP of Service `number`, inside 10.96.0.0/12."""
    return str(ipaddress.ip_address("10.97.0.0") + number + 1)


def used(count):
    """The ClusterIPs that are used: spread over all there are."""
    step = max(1, count // SAMPLE)
    return [cluster_ip(n) for n in range(0, count, step)][:SAMPLE]


def services_yaml(count, backend):
    """So many Services, each with a TCP and a UDP port and one endpoint."""
    for n in range(count):
        name, ip = f"svc-{n}", cluster_ip(n)
        yield f"""\
apiVersion: v1
kind: Service
metadata: {{ name: {name}, namespace: default }}
spec:
  clusterIP: {ip}
  clusterIPs: [{ip}]
  ports:
  - {{ name: tcp, port: {TCP_PORT}, protocol: TCP, targetPort: {SERVER_PORT} }}
  - {{ name: udp, port: {UDP_PORT}, protocol: UDP, targetPort: {UDP_PORT} }}
  - {{ name: echo, port: {SERVER_PORT}, protocol: UDP, targetPort: {SERVER_PORT} }}
  - {{ name: iperf, port: 5201, protocol: TCP, targetPort: 5201 }}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: {name}-1, namespace: default, labels: {{ kubernetes.io/service-name: {name} }} }}
addressType: IPv4
endpoints: [{{ addresses: [{backend}], conditions: {{ ready: true }}, nodeName: node-a }}]
ports:
- {{ name: tcp, port: {SERVER_PORT}, protocol: TCP }}
- {{ name: udp, port: {UDP_PORT}, protocol: UDP }}
- {{ name: echo, port: {SERVER_PORT}, protocol: UDP }}
- {{ name: iperf, port: 5201, protocol: TCP }}
---
"""


def nft_rules(count, backend, pods):
    """The same Services as kube-proxy's nftables mode programs them: a verdict map over address, protocol and port, a chain for
    each Service port and one for its endpoint, masquerade by mark."""
    ports = [("tcp", TCP_PORT, SERVER_PORT), ("udp", UDP_PORT, UDP_PORT), ("udp", SERVER_PORT, SERVER_PORT),
             ("tcp", 5201, 5201)]
    chains, elements = [], []
    for n in range(count):
        for proto, port, target in ports:
            name = f"{n}-{proto}-{port}"
            chains.append(f"chain endpoint-{name} {{ ip saddr {backend} jump mark-for-masquerade; "
                          f"meta l4proto {proto} dnat to {backend}:{target}; }}")
            chains.append(f"chain service-{name} {{ ip saddr != {pods} jump mark-for-masquerade; "
                          f"numgen random mod 1 vmap {{ 0 : goto endpoint-{name} }}; }}")
            elements.append(f"{cluster_ip(n)} . {proto} . {port} : goto service-{name}")
    return "\n".join([
        "table ip services {",
        "chain mark-for-masquerade { meta mark set meta mark or 0x4000; }",
        *chains,
        "map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = {",
        ",\n".join(elements), "} }",
        "chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }",
        "chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }",
        "chain nat-output { type nat hook output priority -100; jump services; }",
        "chain nat-postrouting { type nat hook postrouting priority srcnat; meta mark and 0x4000 == 0 return; "
        "meta mark set meta mark xor 0x4000; masquerade fully-random; }",
        "}", ""])


class Sluicegate:
    """Both pods on one node, attached by CNI; on TAP devices or on veth pairs with AF_XDP."""
    services = True

    def __init__(self, bin_dir, driver, idle="adaptive"):
        self.name = {"tap": "Sluicegate, TAP", "af_xdp": "Sluicegate, AF_XDP veth"}[driver]
        self.cluster = SmallCluster(bin_dir)
        prefix = f"sg-cmp-{driver.replace('_', '')}-"
        # Both variants live side by side.
        for holder in [*self.cluster.namespaces()]:
            holder.name = holder.name.replace(PREFIX_OF_SMALL, prefix)
            holder.path = f"/run/netns/{holder.name}"
        self.cluster.prefix = prefix
        self.cluster.configure(more=f"ports: {{ uplink: {{ driver: af_xdp, interface: eth0 }}, pods: {{ driver: {driver} }} }}\nidle: {idle}\n")
        text = open(self.cluster.node.config, encoding="utf-8").read()
        # One `ports` section: the driver of pods goes into it.
        text = text.replace("ports:\n  uplink: { driver: af_xdp, interface: eth0 }\n", "", 1)
        open(self.cluster.node.config, "w", encoding="utf-8").write(text)

    def up(self):
        self.cluster.make()
        self.cluster.node.start()
        client, backend = self.cluster.pods.values()
        client.attach()
        backend.attach()
        self.client, self.backend = client.namespace, backend.namespace
        self.client_ip, self.backend_ip = client.address(4), backend.address(4)
        self.to_mac, self.processes = GATEWAY_MAC, self.cluster.processes
        return self

    def program(self, count):
        before = self.cluster.node.api("/v1/generation")
        self.cluster.write("services.yaml", "".join(services_yaml(count, self.backend_ip)))
        wait_until("Services programmed", lambda: self.cluster.node.api("/v1/generation") != before, 120, every=0.1)
        self.vips = used(count)

    def begin(self):
        pass

    def end(self):
        pass

    def down(self):
        self.cluster.__exit__(None)


PREFIX_OF_SMALL = _


class Kernel:
    """A router namespace; with Services it has the nftables rules, without it just forwards."""

    def __init__(self, services):
        self.services = services
        self.name = "kernel, nftables" if services else "kernel, forwarding"
        self.prefix = f"sg-cmp-k{'n' if services else 'f'}-"
        self.router, self.client, self.backend = (Namespace(f"{self.prefix}{n}") for n in ("router", "client", "backend"))
        self.logs = tempfile.mkdtemp(prefix="sg-cmp-")
        self.processes = Processes(self.logs)

    def up(self):
        self.down()
        for namespace in (self.router, self.client, self.backend):
            namespace.create()
        self.router.sysctl("net.ipv4.ip_forward", 1)
        for number, end in ((1, self.client), (2, self.backend)):
            self.router.ip("link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", end.name)
            self.router.ip("address", "add", f"10.244.{number}.1/24", "dev", f"to{number}")
            self.router.ip("link", "set", f"to{number}", "up")
            end.ip("address", "add", f"10.244.{number}.2/24", "dev", "eth0")
            end.ip("link", "set", "eth0", "up")
            end.ip("route", "add", "default", "via", f"10.244.{number}.1")
            # Frames that the generator puts into a veth arrive only at a peer that polls.
            self.router.run("ethtool", "-K", f"to{number}", "gro", "on")
        self.client_ip, self.backend_ip = "10.244.1.2", "10.244.2.2"
        self.to_mac = mac_of(self.router, "to1")
        self.vips = [self.backend_ip]
        self.client.run("ping", "-c1", "-W2", self.backend_ip)
        return self

    def program(self, count):
        if not self.services:
            return
        self.router.run("nft", "delete", "table", "ip", "services", check=False)
        self.router.run("nft", "-f", "-", stdin=nft_rules(count, self.backend_ip, "10.244.0.0/16"), timeout=300)
        self.vips = used(count)

    def begin(self):
        pass

    def end(self):
        pass

    def down(self):
        self.processes.end_all()
        for namespace in (self.client, self.backend, self.router):
            for pid in namespace.pids() if namespace.exists() else []:
                run("kill", "-9", pid, check=False)
            namespace.delete()


class Testpmd(Kernel):
    """`dpdk-testpmd` over AF_XDP in io mode between two veth pairs: it touches nothing, so it is the ceiling."""

    def __init__(self):
        super().__init__(False)
        self.name = "dpdk-testpmd io, AF_XDP"
        self.prefix = "sg-cmp-pmd-"
        self.router, self.client, self.backend = (Namespace(f"{self.prefix}{n}") for n in ("router", "client", "backend"))
        self.process = None

    def up(self):
        self.down()
        for namespace in (self.router, self.client, self.backend):
            namespace.create()
        for number, end in ((1, self.client), (2, self.backend)):
            self.router.ip("link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0", "netns", end.name)
            self.router.ip("link", "set", f"to{number}", "up")
            end.ip("address", "add", f"10.244.1.{number + 1}/24", "dev", "eth0")
            end.ip("link", "set", "eth0", "up")
            # A socket cannot complete a checksum that the sender left to the device.
            end.run("ethtool", "-K", "eth0", "tx", "off")
        self.client_ip, self.backend_ip = "10.244.1.2", "10.244.1.3"
        self.vips, self.to_mac = [self.backend_ip], mac_of(self.backend, "eth0")
        return self

    def begin(self):
        """It spins: it runs only in its own turn."""
        if self.process:
            self.process.send_signal(signal.SIGCONT)
            return
        # Its console ends at the end of input.
        self.process = self.processes.start("testpmd", self.router, "sh", "-c",
                                            "tail -f /dev/null | exec dpdk-testpmd -l 0,1 --no-pci --no-huge -m 256 --file-prefix sgcmp "
                                            "--vdev=net_af_xdp0,iface=to1,busy_budget=0 --vdev=net_af_xdp1,iface=to2,busy_budget=0 "
                                            "-- --auto-start --forward-mode=io --stats-period 3600 --total-num-mbufs=16384")
        wait_until("testpmd forwards", lambda: self.client.run("ping", "-c1", "-W1", self.backend_ip, check=False).returncode == 0,
                   20)

    def end(self):
        # The whole pipeline of the shell is one session.
        if self.process:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(5)
            except Exception:  # noqa: BLE001
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            if self.process in self.processes.started:
                self.processes.started.remove(self.process)
            self.process = None

    def down(self):
        self.end()
        super().down()


def mac_of(namespace, device):
    words = namespace.ip("-o", "link", "show", device).stdout.split()
    return words[words.index("link/ether") + 1]
