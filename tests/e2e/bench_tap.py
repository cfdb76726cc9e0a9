#!/usr/bin/env python3
"""TCP between two pods of a node, beside the kernel routing the same stream; rounds in turn, medians.

    make bench-tap        (tests/e2e/bench_tap.py --bin-dir target/release [--rounds 5] [--seconds 3])
"""

import argparse
import os
import statistics
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from small_cluster import PREFIX, SmallCluster  # noqa: E402
from baseline import kernel_routing  # noqa: E402
from probes import throughput  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    ours, kernel = [], []
    with SmallCluster(options.bin_dir) as cluster:
        cluster.up()
        client, server = cluster.pods.values()
        for number in range(options.rounds):
            ours.append(throughput(cluster.processes, server.namespace, client.namespace, server.address(4), options.seconds))
            kernel.append(kernel_routing(PREFIX, cluster.processes, options.seconds))
            print(f"round {number + 1}: pod to pod {ours[-1] / 1e9:5.2f}, kernel routing {kernel[-1] / 1e9:5.2f} Gbit/s", flush=True)
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="ascii") as file:
        congestion = file.read().strip()
    medians = statistics.median(ours), statistics.median(kernel)
    print(f"median: pod to pod {medians[0] / 1e9:.2f}, kernel routing {medians[1] / 1e9:.2f} Gbit/s, "
          f"ratio {medians[0] / medians[1]:.2f} (one stream, {congestion}, load {os.getloadavg()[0]:.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
