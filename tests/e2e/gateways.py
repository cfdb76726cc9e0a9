#!/usr/bin/env python3
"""Three nodes on one segment: gateways that die under traffic, addresses that move, with real sockets.

    tests/e2e/gateways.py --bin-dir target/debug [--only REGEX]

node-a has the pods, node-b and node-c are egress gateways, all three may announce load-balancer addresses. The last line
is `N passed, N failed`; the exit code is 0 only if none failed.
"""

import argparse
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "demo"))

from namespaces import wait_until  # noqa: E402 (after the path is set)
from probes import fetch  # noqa: E402
from servers import payload  # noqa: E402
from temporary import TemporaryCluster  # noqa: E402
from topology import NodeSpec, PodSpec  # noqa: E402

PREFIX = "sg-gw-"
NODES = [NodeSpec(f"node-{x}", (f"192.0.2.{n}", f"2001:db8::{n}"), (f"10.244.{n}.0/24", f"fd00:10:244:{n}::/64"))
         for x, n in (("a", 11), ("b", 12), ("c", 13))]
PODS = [PodSpec(f"default/pod-{i}", "node-a", (f"10.244.11.{10 + i}", f"fd00:10:244:11::{10 + i}")) for i in range(6)]
PODS.append(PodSpec("default/web-b", "node-b", ("10.244.12.10", "fd00:10:244:12::10")))
SEGMENT = ("192.0.2.1", "2001:db8::1")
WORLD = ("198.51.100.10", "2001:db8:7::10")
EGRESS = {"192.0.2.50", "192.0.2.51", "192.0.2.52", "2001:db8::50", "2001:db8::51"}
VIP, VIP6 = "192.0.2.80", "2001:db8::80"
GATEWAYS = ("node-b", "node-c")

CONFIG = """\
node: {node}
source: {{ kind: manifests, path: {run_dir}/cluster }}
ports:
  uplink: {{ driver: af_xdp, interface: eth0 }}
cidrs: {{ pods: [10.244.0.0/16, "fd00:10:244::/56"], services: [10.96.0.0/12, "fd00:10:96::/112"] }}
flows: {{ max: 16384 }}
socket: {run_dir}/{node}/sluiced.sock
state_dir: {run_dir}/{node}/state
"""
NODE = """\
apiVersion: v1
kind: Node
metadata: {{ name: {name}, labels: {{ egress: "{gateway}" }} }}
spec: {{ podCIDR: {cidrs[0]}, podCIDRs: [{cidrs[0]}, "{cidrs[1]}"] }}
status: {{ addresses: [{{ type: InternalIP, address: {ips[0]} }}, {{ type: InternalIP, address: "{ips[1]}" }}] }}
---
"""
POD = """\
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: default, labels: {{ app: {app} }} }}
spec: {{ nodeName: {node}, containers: [{{ name: c, image: c }}] }}
status:
  phase: Running
  conditions: [{{ type: Ready, status: "True" }}]
  podIP: {ips[0]}
  podIPs: [{{ ip: {ips[0]} }}, {{ ip: "{ips[1]}" }}]
---
"""
GATEWAY = f"""\
apiVersion: sluicegate.dev/v1alpha1
kind: EgressGateway
metadata: {{ name: partners }}
spec:
  podSelector: {{ matchLabels: {{ app: client }} }}
  egressIPs: [{", ".join(sorted(f'"{ip}"' for ip in EGRESS))}]
  gatewayNodes: {{ matchLabels: {{ egress: "yes" }} }}
"""
BALANCER = f"""\
apiVersion: sluicegate.dev/v1alpha1
kind: IPPool
metadata: {{ name: edge }}
spec: {{ use: services, cidrs: [{VIP}/32, "{VIP6}/128"] }}
---
apiVersion: v1
kind: Service
metadata: {{ name: web, namespace: default }}
spec: {{ type: LoadBalancer, ipFamilyPolicy: PreferDualStack, selector: {{ app: client }}, ports: [{{ port: 80, targetPort: 8080 }}] }}
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata: {{ name: somebody-elses, namespace: metallb-system }}
spec: {{ addresses: [192.0.2.200-192.0.2.210] }}
"""

TESTS = []


def test(function):
    TESTS.append((function.__name__.replace("_", " "), function))
    return function


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


class Gateways(TemporaryCluster):
    """The three nodes; as a context they are made and taken down."""

    def __init__(self, bin_dir):
        self.folder = tempfile.mkdtemp(prefix="sg-gw-")
        run_dir = f"{self.folder}/run"
        configs = {node.name: f"{self.folder}/{node.name}.yaml" for node in NODES}
        super().__init__(PREFIX, run_dir, bin_dir, NODES, PODS, configs)
        for node in NODES:
            with open(configs[node.name], "w", encoding="utf-8") as file:
                file.write(CONFIG.format(node=node.name, run_dir=run_dir))

    def write(self, file, text):
        folder = f"{self.run_dir}/cluster"
        with open(f"{folder}/.{file}.new", "w", encoding="utf-8") as new:
            new.write(text)
        os.rename(f"{folder}/.{file}.new", f"{folder}/{file}")

    def write_nodes(self, gateways):
        say = {True: "yes", False: "no"}
        self.write("nodes.yaml", "".join(NODE.format(name=n.name, gateway=say[n.name in gateways], cidrs=n.pod_cidrs,
                                                     ips=n.addresses) for n in NODES))

    def __enter__(self):
        try:
            self.remove_namespaces()
            self.make_fabric()
            self.add_outside(SEGMENT, WORLD)
            os.makedirs(f"{self.run_dir}/cluster")
            self.write_nodes(GATEWAYS)
            self.write("pods.yaml", "".join(
                POD.format(name=p.name, node=p.node, ips=p.addresses, app="client" if p.node == "node-a" else "web")
                for p in PODS))
            self.write("gateway.yaml", GATEWAY)
            self.write("balancer.yaml", BALANCER)
            for node in self.nodes.values():
                node.start()
            for pod in self.pods.values():
                pod.attach()
                pod.serve()
            self.serve("world", self.outside, addresses=WORLD, http=8080, lines=5432, udp=8053)
            wait_until("every address has a node", lambda: len(self.holders()) == len(EGRESS), 8, every=0.1)
            return self
        except BaseException:
            self.__exit__(True)
            raise

    def clients(self):
        return [pod for pod in self.pods.values() if pod.spec.node == "node-a"]

    def mac(self, node):
        return json.loads(self.nodes[node].namespace.ip("-j", "link", "show", "eth0").stdout)[0]["address"]

    def answers(self, address, within=0.4):
        """The MACs that answer when the outside host asks by ARP who has an IPv4 address."""
        own, broadcast = bytes.fromhex(self.outside_mac().replace(":", "")), b"\xff" * 6
        sender, target = (socket.inet_aton(a) for a in (SEGMENT[0], address))
        request = (broadcast + own + b"\x08\x06" + b"\x00\x01\x08\x00\x06\x04\x00\x01" + own + sender + bytes(6) + target)
        found = set()
        with self.outside.entered():
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
            raw.bind(("eth0", 0x0806))
        with raw:
            raw.send(request)
            until = time.monotonic() + within
            while (left := until - time.monotonic()) > 0:
                raw.settimeout(left)
                try:
                    frame = raw.recv(128)
                except TimeoutError:
                    break
                if frame[20:22] == b"\x00\x02" and frame[28:32] == target and frame[:6] == own:
                    found.add(frame[22:28].hex(":"))
        return found

    def outside_mac(self):
        return json.loads(self.outside.ip("-j", "link", "show", "eth0").stdout)[0]["address"]

    def neighbours(self):
        """The outside host's neighbour table: {address: MAC}."""
        found = json.loads(self.outside.ip("-j", "neighbour", "show", "dev", "eth0").stdout or "[]")
        return {entry["dst"]: entry["lladdr"] for entry in found if "lladdr" in entry}

    def holders(self):
        """Which running node says that it carries which egress address."""
        found = {}
        for node in self.nodes.values():
            if node.process:
                for address in node.api("/v1/status")["carried_addresses"]:
                    if address in EGRESS:
                        found[address] = node.name
        return found


class Asker:
    """Sends a datagram from each pod every 20 ms and notes what the world saw; a new source port each time, or one for ever."""

    def __init__(self, pods, version, fresh):
        self.seen, self.stop, self.lock = {pod.name: [] for pod in pods}, threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self.ask, args=(pod, version, fresh), daemon=True) for pod in pods]
        for thread in self.threads:
            thread.start()

    def ask(self, pod, version, fresh):
        world = WORLD[0] if version == 4 else WORLD[1]
        kind = socket.AF_INET if version == 4 else socket.AF_INET6
        with pod.namespace.entered():
            make = lambda: socket.socket(kind, socket.SOCK_DGRAM)  # noqa: E731
            one = make()
            while not self.stop.is_set():
                if fresh:
                    one.close()
                    one = make()
                one.settimeout(0.02)
                at = time.monotonic()
                try:
                    one.sendto(b"?", (world, 8053))
                    answer = json.loads(one.recv(2048))
                    with self.lock:
                        self.seen[pod.name].append((at, answer["peer"]))
                    time.sleep(0.02)
                except (TimeoutError, OSError):
                    pass
            one.close()

    def addresses(self, pod, since=0.0):
        with self.lock:
            return [address for at, address in self.seen[pod] if at >= since]

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(2)
        return self.seen

    @staticmethod
    def longest_gap(told, start, end):
        times = [start, *[at for at, _ in told if start <= at <= end], end]
        return max(b - a for a, b in zip(times, times[1:]))


@test
def a_gateway_that_dies_is_replaced_in_under_a_second_and_only_its_pods_move(cluster):
    before = cluster.holders()
    expect(set(before) == EGRESS and set(before.values()) == set(GATEWAYS), f"{before}")
    asker, steady = Asker(cluster.clients(), 4, fresh=True), Asker(cluster.clients()[:3], 6, fresh=False)
    time.sleep(0.6)
    pods = {pod.name: asker.addresses(pod.name)[-1] for pod in cluster.clients()}
    victim = before[pods["pod-0"]]
    cluster.nodes[victim].kill()
    killed = time.monotonic()
    time.sleep(2.0)
    end = time.monotonic()
    told, told6 = asker.end(), steady.end()
    for name, address in pods.items():
        gap = Asker.longest_gap(told[name], killed, end)
        after = set(asker.addresses(name, killed))
        expect(after == {address}, f"{name} keeps its address {address}: {after}")
        limit = 1.0 if before[address] == victim else 0.3
        expect(gap < limit, f"{name} by {before[address]}: silent for {gap:.2f} s after {victim} was killed")
    for name, seen in told6.items():
        gap = Asker.longest_gap(seen, killed, end)
        expect(gap < 1.2, f"{name}, one UDP socket over IPv6: silent for {gap:.2f} s")
    after = cluster.holders()
    other = next(node for node in GATEWAYS if node != victim)
    expect(all(after[address] == other for address in EGRESS), f"all with {other}: {after}")
    for address in EGRESS & set(cluster.neighbours()):
        expect(cluster.neighbours()[address] == cluster.mac(other), f"{address} in the world's neighbour table")

    # It comes back, and takes nothing away from flows that go well.
    keeper = Asker(cluster.clients(), 4, fresh=False)
    cluster.nodes[victim].start()
    time.sleep(1.5)
    start = time.monotonic()
    time.sleep(1.0)
    for name, seen in keeper.end().items():
        gap = Asker.longest_gap(seen, start, start + 1.0)
        expect(gap < 0.3, f"{name}: silent for {gap:.2f} s after {victim} came back")
    expect(cluster.holders() == after, "whoever comes back takes nothing away")


@test
def a_long_transfer_through_a_gateway_that_is_killed_completes_without_a_reset(cluster):
    """Every pod downloads 4 MB at 1 MB/s and holds a conversation; one of the two gateways is killed meanwhile."""
    length, results = 4 << 20, {}
    holders = cluster.holders()
    victim = "node-b" if "node-b" in holders.values() else "node-c"

    def download(pod, version):
        world = WORLD[0] if version == 4 else f"[{WORLD[1]}]"
        done = pod.namespace.run("curl", "-sS", "--limit-rate", "1M", "--max-time", 20, "-o",
                                 f"{cluster.folder}/{pod.name}-{version}", f"http://{world}:8080/bytes/{length}", check=False)
        results[(pod.name, version)] = done.stderr.strip() if done.returncode else None

    talks = []
    for pod in cluster.clients():
        with pod.namespace.entered():
            one = socket.create_connection((WORLD[0], 5432), 2)
        one.sendall(b"hello\n")
        talks.append((pod.name, one, json.loads(one.makefile().readline())))
    threads = [threading.Thread(target=download, args=(pod, version)) for pod in cluster.clients()[:4] for version in (4, 6)]
    for thread in threads:
        thread.start()
    time.sleep(1.2)
    cluster.nodes[victim].kill()
    for thread in threads:
        thread.join(25)
    through = [name for name, _, said in talks if holders[said["peer"]] == victim]
    for name, one, said in talks:
        one.settimeout(5)
        one.sendall(b"still there?\n")
        again = json.loads(one.makefile().readline())
        expect((again["peer"], again["port"], again["line"]) == (said["peer"], said["port"], 2), f"{name}: {said} {again}")
        one.close()
    expect(through, f"nobody went through {victim}: {talks}")
    expect(all(error is None for error in results.values()), f"{results}")
    for name, version in results:
        with open(f"{cluster.folder}/{name}-{version}", "rb") as file:
            expect(file.read() == payload(length), f"{name} over IPv{version}: other bytes than were sent")
    cluster.nodes[victim].start()
    wait_until("every address has a node", lambda: len(cluster.holders()) == len(EGRESS), 5, every=0.1)


@test
def established_flows_stay_when_a_gateway_is_added(cluster):
    holders = cluster.holders()
    sockets = []
    for pod in cluster.clients():
        with pod.namespace.entered():
            one = socket.create_connection((WORLD[0], 5432), 2)
        one.sendall(b"hello\n")
        sockets.append((pod.name, one, json.loads(one.makefile().readline())["peer"]))
    generation = cluster.nodes["node-a"].api("/v1/generation")["applied"]
    cluster.write_nodes(("node-a", *GATEWAYS))
    wait_until("node-a is a gateway", lambda: cluster.nodes["node-a"].api("/v1/generation")["applied"] > generation, 3)
    time.sleep(1.0)
    for name, one, peer in sockets:
        one.settimeout(2)
        one.sendall(b"again\n")
        again = json.loads(one.makefile().readline())
        expect(again["peer"] == peer and again["line"] == 2, f"{name}: {again}")
        one.close()
    expect(cluster.holders() == holders, "a gateway that joins takes no address away")
    cluster.write_nodes(GATEWAYS)
    wait_until("node-a carries nothing", lambda: "node-a" not in cluster.holders().values(), 3)


@test
def a_gateway_that_is_told_to_end_hands_over_at_once(cluster):
    asker = Asker(cluster.clients(), 4, fresh=True)
    time.sleep(0.4)
    victim = cluster.holders()[asker.addresses("pod-0")[-1]]
    at = time.monotonic()
    cluster.nodes[victim].stop()
    time.sleep(1.5)
    told = asker.end()
    gaps = {name: Asker.longest_gap(seen, at, at + 1.5) for name, seen in told.items()}
    expect(max(gaps.values()) < 0.6, f"{gaps}")
    cluster.nodes[victim].start()
    wait_until("every address has a node", lambda: len(cluster.holders()) == len(EGRESS), 5, every=0.1)


@test
def a_load_balancer_address_is_answered_for_by_one_node_and_moves_in_under_two_seconds(cluster):
    answering = cluster.answers(VIP)
    expect(len(answering) == 1 and answering <= {cluster.mac(node) for node in cluster.nodes}, f"one node answers: {answering}")
    took = move(cluster, VIP)
    expect(took < 2.0, f"took {took:.2f} s")
    expect(len(cluster.answers(VIP)) == 1, "one node answers")


@test
def an_ipv6_load_balancer_address_moves_as_well(cluster):
    took = move(cluster, VIP6)
    expect(took < 2.0, f"took {took:.2f} s")


def move(cluster, address):
    """Kills the node that carries a load-balancer address. Returns the seconds until another serves it."""
    def carriers():
        running = [node for node in cluster.nodes.values() if node.process]
        return [node.name for node in running if address in node.api("/v1/status")["carried_addresses"]]

    wait_until("one node carries it", lambda: len(carriers()) == 1, 8, every=0.1)
    seen = fetch(cluster.outside, address, port=80)
    expect(seen["server"].startswith("pod-"), f"{seen}")
    if carriers() == ["node-a"]:
        # The backends' own node must go on; the test is about the address.
        cluster.nodes["node-a"].stop()
        cluster.nodes["node-a"].start()
        wait_until("it has moved", lambda: carriers() not in ([], ["node-a"]), 5)
    holder = carriers()[0]
    fetch(cluster.outside, address, port=80)
    cluster.nodes[holder].kill()
    killed = time.monotonic()

    def served():
        try:
            return fetch(cluster.outside, address, port=80, patience=0.2)
        except Exception:  # noqa: BLE001 (refused, silent: not yet)
            return None
    wait_until("another node serves the address", served, 8)
    took = time.monotonic() - killed
    expect(cluster.mac(holder) != cluster.neighbours()[address], "and says so on the segment")
    cluster.nodes[holder].start()
    return took


def crc32c(data):
    """RFC 9260 appendix A, bit by bit."""
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return (crc ^ 0xffffffff).to_bytes(4, "little")


def sctp(source, destination, tag, chunk):
    """A packet with one chunk: INIT (1) or INIT ACK (2) of the initiate tag 0x01020304."""
    body = bytes([chunk, 0]) + (20).to_bytes(2, "big") + bytes.fromhex("01020304 00010000 000a 000a 00000001")
    ports = source.to_bytes(2, "big") + destination.to_bytes(2, "big")
    whole = ports + tag.to_bytes(4, "big") + bytes(4) + body
    return whole[:8] + crc32c(whole) + body


def raw(namespace, kind, protocol, address=None):
    with namespace.entered():
        one = socket.socket(kind, socket.SOCK_RAW, protocol)
    if address:
        one.bind((address, 0))
    one.settimeout(3)
    return one


def packet(one, kind):
    """The next packet's payload and its source."""
    data, peer = one.recvfrom(2048)
    return (data[(data[0] & 15) * 4:] if kind == socket.AF_INET else data), peer[0].split("%")[0]


@test
def sctp_and_icmp_leave_under_the_egress_address_in_both_families(cluster):
    """Kernels without SCTP are common: raw sockets carry INIT and INIT ACK, real packets with their CRC32c."""
    if "SCTP" not in open("/proc/net/protocols", encoding="ascii").read():
        print("     this kernel has no SCTP: an association is not tried, its first two packets are", flush=True)
    for kind, world, echo in ((socket.AF_INET, WORLD[0], 1), (socket.AF_INET6, WORLD[1], 58)):
        for at, pod in enumerate(cluster.clients()):
            port = 5000 + at
            with raw(cluster.outside, kind, 132, world) as there, raw(pod.namespace, kind, 132) as here:
                here.sendto(sctp(port, 3868, 0, 1), (world, 0))
                seen, peer = packet(there, kind)
                expect(peer in EGRESS, f"{pod.name}: INIT came from {peer}")
                expect(seen[8:12] == crc32c(seen[:8] + bytes(4) + seen[12:]), "the CRC32c is right after translation")
                there.sendto(sctp(3868, int.from_bytes(seen[:2], "big"), 0x01020304, 2), (peer, 0))
                answer, source = packet(here, kind)
                expect(source == world and answer[2:4] == port.to_bytes(2, "big") and answer[12] == 2, f"{source} {answer.hex()}")
                expect(answer[8:12] == crc32c(answer[:8] + bytes(4) + answer[12:]), "and on its way back")
            with raw(cluster.outside, kind, echo, world) as there:
                done = pod.namespace.run("ping", "-c", 1, "-W", 2, world, check=False)
                expect(done.returncode == 0, f"{pod.name}: {done.stdout}")
                requests = (8, 128)
                seen, peer = packet(there, kind)
                while seen[0] not in requests:
                    seen, peer = packet(there, kind)
                expect(peer in EGRESS, f"{pod.name}: the echo request came from {peer}")


@test
def ports_are_written_down_by_the_block(cluster):
    for pod in cluster.clients():
        for _ in range(5):
            fetch(pod.namespace, WORLD[0])
    wait_until("the log names blocks", lambda: "SNAT block" in "".join(
        cluster.processes.log(f"sluiced-{node}") for node in cluster.nodes), 3)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for node in cluster.nodes
             for line in cluster.processes.log(f"sluiced-{node}").splitlines() if "SNAT block" in line]
    leased = [line for line in lines if 'event="leased"' in line and "source=10.244.11.10 " in line]
    expect(leased and 'pod="default/pod-0"' in leased[0] and re.search(r'ports="\d+-\d+"', leased[0]), f"{lines[:3]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", default="target/release")
    parser.add_argument("--only", metavar="REGEX", default="")
    options = parser.parse_args()
    wanted = [(name, function) for name, function in TESTS if re.search(options.only, name)]
    if not wanted:
        parser.error(f"--only {options.only}: no such test")
    failed = 0
    with Gateways(options.bin_dir) as cluster:
        for name, function in wanted:
            start = time.monotonic()
            try:
                function(cluster)
                print(f"ok   {name} ({time.monotonic() - start:.1f} s)", flush=True)
            except Exception as error:  # noqa: BLE001 (a test that fails fails alone)
                failed += 1
                print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(wanted) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
