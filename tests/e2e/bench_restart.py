#!/usr/bin/env python3
"""How long nothing is forwarded when `sluiced` is killed and started again, with many pods and many flows.

    tests/e2e/bench_restart.py --bin-dir target/release [--pods 250] [--flows 1000000] [--rounds 5]

Pods send one datagram to each of many ports outside, which makes the flows; a probe asks a server outside every
millisecond. A round is: kill -9, start, and the time from the exec of the new process to the first answer. Prints a line
for each round with the agent's own account of its steps, then medians.
"""

import argparse
import os
import re
import select
import socket
import statistics
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from small_cluster import GATEWAY, SmallCluster  # noqa: E402

FIRST_PORT = 10_000


class Probe:
    """Asks every millisecond and remembers when answers came."""

    def __init__(self, namespace, address, port):
        with namespace.entered():
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.connect((address, port))
        self.sock.setblocking(False)
        self.answers, self.on = [], True
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while self.on:
            try:
                self.sock.send(b"?")
            except OSError:
                pass
            if select.select([self.sock], [], [], 0.001)[0]:
                try:
                    self.sock.recv(2048)
                    self.answers.append(time.monotonic())
                except OSError:
                    pass

    def first_after(self, moment, patience):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            found = next((at for at in self.answers[-2000:] if at > moment), None)
            if found:
                return found
            time.sleep(0.002)
        raise TimeoutError("no answer after the restart")


def fill(cluster, pods, flows, address):
    """One datagram from each pod to each of so many ports."""
    each = -(-flows // len(pods))
    for pod in pods:
        with pod.namespace.entered():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for n in range(each):
            for _ in range(100):
                try:
                    sock.sendto(b"x", (address, FIRST_PORT + n))
                    break
                except OSError:
                    time.sleep(0.001)
            if n % 250 == 0:
                time.sleep(0.002)
        sock.close()
    time.sleep(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", required=True)
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--flows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cluster = SmallCluster(options.bin_dir, count=options.pods)
    outside = "198.51.100.10"
    with cluster:
        cluster.outside.ip("address", "add", outside, "dev", "lo")
        # The host outside says nothing about ports that nobody listens on.
        cluster.outside.run("nft", "-f", "-", stdin="table ip q { chain o { type filter hook output priority 0; "
                            "icmp type destination-unreachable drop; }; }\n")
        cluster.configure(more="flows: { timeouts: { udp: 2h, udp_stream: 2h } }\n")
        started = time.monotonic()
        cluster.node.start()
        pods = list(cluster.pods.values())
        for pod in pods:
            pod.attach()
        cluster.serve("outside", cluster.outside, addresses=[outside], http=8080, udp=8053)
        print(f"{len(pods)} pods attached in {time.monotonic() - started:.1f} s", flush=True)
        probe = Probe(pods[0].namespace, outside, 8053)
        started = time.monotonic()
        fill(cluster, pods, options.flows, outside)
        held = cluster.node.metrics()["sluicegate_flows"]
        print(f"{held:.0f} flows in {time.monotonic() - started:.1f} s", flush=True)
        gaps, silences = [], []
        for round_number in range(1, options.rounds + 1):
            time.sleep(1)
            before = probe.answers[-1]
            cluster.node.kill()
            begin = time.monotonic()
            cluster.node.start()
            first = probe.first_after(begin, 20)
            gaps.append(1e3 * (first - begin))
            silences.append(1e3 * (first - before))
            time.sleep(1)
            kept = cluster.node.metrics()["sluicegate_flows"]
            log = cluster.processes.log("sluiced-node-a")
            steps = re.findall(r'packets pass .*?ms=(\d+).*?steps="([^"]*)"', re.sub(r"\x1b\[[0-9;]*m", "", log))
            print(f"round {round_number}: first packet {gaps[-1]:.0f} ms after the exec, {silences[-1]:.0f} ms without an answer; "
                  f"{kept:.0f} flows; {steps[-1] if steps else ''}", flush=True)
        probe.on = False
        print(f"median of {len(gaps)}: {statistics.median(gaps):.0f} ms from the exec to the first packet "
              f"({min(gaps):.0f} to {max(gaps):.0f}); {statistics.median(silences):.0f} ms without an answer")


if __name__ == "__main__":
    main()
