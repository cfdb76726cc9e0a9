#!/usr/bin/env python3
"""DPDK end to end: programs in pods over memif and vhost-user behind Services and policy, and an uplink on DPDK.

    tests/e2e/dpdk.py --bin-dir target/debug [--only REGEX]

`sluiced` must have been built with the feature `dpdk`. The last line is `N passed, N failed`; the exit code is 0 only if none
failed, 4 if this machine cannot run them.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from small_cluster import GATEWAY, NODE, SmallCluster, pod_manifest  # noqa: E402
from namespaces import wait_until  # noqa: E402
from probes import fetch  # noqa: E402
from topology import Pod, PodSpec, family, of_family, on_dpdk  # noqa: E402

TESTS = []
VIPS = ("10.96.0.50", "fd00:10:96::50")
FAST = PodSpec("default/fast", "node-a", ("10.244.1.77", "fd00:10:244:1::77"))

SERVICE = """\
apiVersion: v1
kind: Service
metadata: { name: fast, namespace: default }
spec:
  clusterIP: 10.96.0.50
  clusterIPs: [10.96.0.50, "fd00:10:96::50"]
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  selector: { app: fast }
  ports: [{ name: echo, port: 9000, targetPort: 7, protocol: UDP }]
"""

POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: fast, namespace: default }
spec:
  podSelector: { matchLabels: { app: fast } }
  policyTypes: [Ingress, Egress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: pod-0 } } }], ports: [{ protocol: UDP, port: 7 }] }]
"""


def test(function):
    TESTS.append((function.__name__.replace("_", " "), function))
    return function


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


def echoes(namespace, address, port, count, wait=2.0):
    """Sends `count` datagrams one after the other; how many came back as they were sent."""
    back = 0
    with namespace.entered():
        client = socket.socket(socket.AF_INET if family(address) == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    with client:
        client.settimeout(wait)
        client.connect((address, port))
        for n in range(count):
            text = f"datagram {n} {'x' * (n % 1300)}".encode()
            client.send(text)
            try:
                back += client.recv(2000) == text
            except (TimeoutError, ConnectionRefusedError):
                pass
    return back


class FastCluster(SmallCluster):
    """Two ordinary pods and one whose program is `dpdk-testpmd`, which sends every packet back to where it came from."""

    def __init__(self, bin_dir, kind):
        super().__init__(bin_dir)
        self.kind, self.program_of_pod = kind, None
        self.pods[FAST.key] = Pod(self, FAST)

    @property
    def fast(self):
        return self.pods[FAST.key]

    def make(self):
        super().make()
        annotated = pod_manifest(FAST).replace("labels:", f"annotations: {{ sluicegate.dev/port-driver: {self.kind} }}, labels:")
        self.write("fast.yaml", annotated)
        self.write("service.yaml", SERVICE)
        return self

    def up(self):
        self.node.start()
        for pod in self.pods.values():
            if pod is not self.fast:
                pod.attach()
        return self

    def attach_fast(self):
        """CNI ADD of the fast pod, with a device-info file as Multus asks for one; gives its result and that file's text."""
        self.info = f"{self.run_dir}/devinfo/fast-net1.json"
        done = self.fast.cni("ADD", runtimeConfig={"CNIDeviceInfoFile": self.info})
        expect(done.returncode == 0, f"ADD: {done.stdout or done.stderr}")
        with open(self.info, encoding="utf-8") as file:
            return json.loads(done.stdout), json.load(file)

    def start_program(self, path):
        """The program in the pod, connected to its socket."""
        mac = "02:00:0a:f4:01:4d"
        device = {
            "memif": f"net_memif0,role=client,id=0,socket={path.removeprefix('@')},socket-abstract=yes,mac={mac}",
            "vhost-user": f"net_virtio_user0,path={path},queues=1,mac={mac}",
        }[self.kind]
        self.program_of_pod = self.processes.start(
            "testpmd", self.fast.namespace, "dpdk-testpmd", "--lcores", "(0,1)@(0-1)", "--no-huge", "-m", "128", "--no-pci",
            "--no-telemetry", f"--file-prefix=sg-testpmd-{os.getpid()}", f"--vdev={device}", "--",
            "--forward-mode=5tswap", "--auto-start", "--total-num-mbufs=4096", "--stats-period=1")
        # The first answer says that the two have found each other.
        wait_until(f"a program behind {self.kind}",
                   lambda: self.runs() and echoes(self.pods["default/pod-0"].namespace, FAST.addresses[0], 7, 1, 0.5), 30)

    def runs(self):
        if self.program_of_pod.poll() is not None:
            raise RuntimeError("testpmd ended:\n" + self.processes.log("testpmd", last=15))
        return True

    def packets(self, direction):
        return self.node.metrics()[f'sluicegate_packets_total{{port="pod:default/fast",direction="{direction}"}}']

    def drops(self, reason):
        return sum(value for name, value in self.node.metrics().items()
                   if name.startswith("sluicegate_drops_total") and f'reason="{reason}"' in name)

    def free_frames(self):
        return self.node.api("/v1/status")["pool"]["free"]


def behind_a_service_with_policy(bin_dir, kind):
    with FastCluster(bin_dir, kind) as cluster:
        cluster.up()
        client, other = (cluster.pods[f"default/pod-{n}"].namespace for n in (0, 1))
        result, info = cluster.attach_fast()
        interface = result["interfaces"][0]
        path = interface["socketPath"]
        expect(info["type"] == kind and info[kind]["path"] == path, f"{info} {path}")
        cluster.start_program(path)
        port = next(p for p in cluster.node.api("/v1/status")["ports"] if p["name"] == "pod:default/fast")
        expect(port["driver"] == "dpdk", f"{port}")

        # Behind its Service, both families, both ways, counted.
        before = cluster.packets("rx"), cluster.packets("tx")
        for address in VIPS:
            expect(echoes(client, address, 9000, 100) == 100, f"answers by {address}")
            expect(echoes(other, address, 9000, 10) == 10, f"answers by {address} without a policy")
        for direction, old in zip(("rx", "tx"), before):
            grown = cluster.packets(direction) - old
            expect(grown >= 220, f"220 datagrams each way, {direction} counted {grown}")

        # With a policy: one may, the other may not.
        cluster.write("policy.yaml", POLICY)
        wait_until("the policy in force", lambda: echoes(other, VIPS[0], 9000, 1, 0.3) == 0, 10)
        denied = cluster.drops("PolicyDeny")
        for address in VIPS:
            expect(echoes(client, address, 9000, 20) == 20, f"an allowed pod, {address}")
            expect(echoes(other, address, 9000, 3, 0.3) == 0, f"a denied pod, {address}")
        expect(cluster.drops("PolicyDeny") >= denied + 6, "what was denied is counted")

        # The program ends in the middle of a burst: the agent and the other pods go on, and it may come back.
        with client.entered():
            burst = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with burst:
            for n in range(400):
                burst.sendto(b"x" * 200, (VIPS[0], 9000))
                if n == 200:
                    cluster.program_of_pod.kill()
        cluster.program_of_pod.wait()
        cluster.processes.started.remove(cluster.program_of_pod)
        cluster.pods["default/pod-1"].serve()
        fetch(client, cluster.pods["default/pod-1"].address(4))
        expect(cluster.node.sluice("status").returncode == 0, "the agent is well")
        cluster.start_program(path)
        expect(echoes(client, VIPS[0], 9000, 50) == 50, "answers of the program that came back")

        # It goes, and everything it had comes back.
        cluster.processes.end(cluster.program_of_pod)
        gone = cluster.fast.detach()
        expect(gone.returncode == 0, f"DEL: {gone.stdout}")
        expect(not os.path.exists(cluster.info), "the device-info file goes with the pod")
        free = cluster.free_frames()
        for _ in range(3):
            cluster.attach_fast()
            expect(cluster.fast.detach().returncode == 0, "DEL")
        wait_until("every frame is back", lambda: cluster.free_frames() >= free - 192, 5)


@test
def a_memif_program_behind_a_service_with_policy(bin_dir):
    behind_a_service_with_policy(bin_dir, "memif")


@test
def a_vhost_user_program_behind_a_service_with_policy(bin_dir):
    behind_a_service_with_policy(bin_dir, "vhost-user")


class DpdkUplink(SmallCluster):
    """A node whose network interface is DPDK's; the kernel has a TAP with the node's addresses in its place."""

    def join_segment(self, namespace, addresses):
        if namespace.name != self.node.namespace.name:
            super().join_segment(namespace, addresses)
            # Nobody tells DPDK which checksums the kernel left to a device.
            namespace.run("ethtool", "-K", "eth0", "tx", "off")
            return
        self.join_segment_by_dpdk(namespace, addresses)

    def configure(self, interface="eth0", more=""):
        super().configure(interface, more)
        with open(self.node.config, encoding="utf-8") as file:
            text = file.read()
        with open(self.node.config, "w", encoding="utf-8") as file:
            file.write(on_dpdk(text))


NODE_PORT = """\
apiVersion: v1
kind: Service
metadata: { name: web, namespace: default }
spec:
  type: NodePort
  clusterIP: 10.96.0.60
  selector: { app: pod-0 }
  ports: [{ name: http, port: 80, targetPort: 8080, nodePort: 30080, protocol: TCP }]
"""


@test
def an_uplink_on_dpdk_carries_pods_and_leaves_the_node_its_own(bin_dir):
    with DpdkUplink(bin_dir) as cluster:
        cluster.write("service.yaml", NODE_PORT)
        cluster.serve("outside", cluster.outside, GATEWAY, http=8080, udp=8053)
        cluster.up()
        node, pod = cluster.node.namespace, cluster.pods["default/pod-0"].namespace
        uplink = next(p for p in cluster.node.api("/v1/status")["ports"] if p["name"] == "uplink0")
        expect(uplink["driver"] == "dpdk" and "net_af_xdp" in uplink["mode"], f"{uplink}")
        # The kernel's own, both ways and both families: through the TAP.
        for address in NODE.addresses:
            cluster.outside.run("ping", "-c", "3", "-W", "2", address)
        for address in GATEWAY:
            node.run("ping", "-c", "3", "-W", "2", address)
            seen = fetch(node, address)
            expect(seen["peer"] == of_family(NODE.addresses, family(address)), f"the node speaks as itself: {seen}")
        # Pods to the world, behind the node's address; the world to a pod, by a NodePort.
        for address in GATEWAY:
            seen = fetch(pod, address)
            expect(seen["peer"] == of_family(NODE.addresses, family(address)), f"masqueraded: {seen}")
        fetch(cluster.outside, NODE.addresses[0], 30080)
        device = cluster.node.metrics()
        passed = device['sluicegate_device_total{port="uplink0",counter="exceptions_to_kernel"}']
        sent = device['sluicegate_device_total{port="uplink0",counter="exceptions_from_kernel"}']
        copied = device['sluicegate_copied_packets_total{port="uplink0",direction="tx"}']
        expect(passed >= 6 and sent >= 6 and copied > 0, f"exceptions {passed} {sent}, copied {copied}")
        # A restart finds everything as it was.
        cluster.node.stop()
        cluster.node.start()
        for address in GATEWAY:
            fetch(pod, address)
            fetch(node, address)


@test
def a_sluiced_with_a_wrong_device_says_what_is_wrong(bin_dir):
    with DpdkUplink(bin_dir) as cluster:
        for device, said in (
            ("0000:ff:1f.7", "is no network device of this host"),
            ("net_af_xdp0,iface=sg-none", "net_af_xdp0"),
            ("eth9", "names no DPDK device"),
        ):
            with open(cluster.node.config, encoding="utf-8") as file:
                text = re.sub(r'device: "[^"]*"', f'device: "{device}"', file.read())
            with open(cluster.node.config, "w", encoding="utf-8") as file:
                file.write(text)
            done = cluster.node.namespace.run(cluster.program("sluiced"), "run", "--config", cluster.node.config, check=False)
            expect(done.returncode == 4 and said in done.stderr, f"{device}: {done.returncode} {done.stderr[-500:]}")


def stop_on_signal(number, _frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", required=True, help="where sluiced, sluice and sluice-cni are")
    parser.add_argument("--only", metavar="REGEX", default="", help="the tests whose title matches")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("these tests make network namespaces and need root")
        return 4
    missing = [tool for tool in ("dpdk-testpmd", "ethtool", "curl", "ping") if not shutil.which(tool)]
    if missing:
        print(f"missing: {', '.join(missing)}; apt install dpdk-dev ethtool curl iputils-ping")
        return 4
    signal.signal(signal.SIGTERM, stop_on_signal)
    passed, failed = 0, 0
    for title, function in TESTS:
        if not re.search(options.only, title):
            continue
        start = time.monotonic()
        try:
            function(options.bin_dir)
        except Exception as error:
            failed += 1
            print(f"FAIL {title}: {type(error).__name__}: {error}", flush=True)
        else:
            passed += 1
            print(f"ok   {title} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
