#!/usr/bin/env python3
"""Our DPDK driver and `dpdk-testpmd` on the same devices, one after the other, pinned to the same core.

    benches/compare/dpdk.py [--rounds N] [--core N]

net_null makes packets of nothing and takes what it is given; what is left is the cost of driver and frame handling. testpmd runs in io
mode with its usual bursts of 32; the same program's packets a second are read from its own counters, over a window after it
has settled. Prints a table and the load the machine had.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

sys.dont_write_bytecode = True
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def ours(core):
    """The benchmark's JSON."""
    done = subprocess.run(["cargo", "bench", "-q", "-p", "sluice-dpdk", "--features", "dpdk", "--bench", "forward", "--no-run",
                           "--message-format=json"], cwd=ROOT, capture_output=True, text=True, check=True)
    artifacts = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    program = next(a["executable"] for a in artifacts if a.get("executable") and a["target"]["name"] == "forward")
    said = subprocess.run(["taskset", "-c", str(core), program, "--bench"], capture_output=True, text=True, check=True).stdout
    return json.loads(said)


def testpmd(core, devices, mode, seconds=4):
    """Nanoseconds per forwarded packet of `dpdk-testpmd` on these devices."""
    other = 0 if core else 1
    huge = any(int(open(f"/sys/kernel/mm/hugepages/{size}/free_hugepages", encoding="ascii").read()) > 16
               for size in os.listdir("/sys/kernel/mm/hugepages"))
    memory = ["--in-memory"] if huge else ["--no-huge", "-m", "256"]
    command = ["dpdk-testpmd", f"--lcores=0@{other},1@{core}", *memory, "--no-pci", "--no-telemetry",
               f"--file-prefix=sg-bench-{os.getpid()}", *[f"--vdev={device}" for device in devices], "--", "--auto-start",
               f"--forward-mode={mode}", "--stats-period=1", "--total-num-mbufs=16384"]
    if mode == "io" and len(devices) == 1:
        # A ring is empty at first.
        command.append("--tx-first")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
    time.sleep(seconds)
    process.terminate()
    text, _ = process.communicate(timeout=20)
    rates = [int(rate) for rate in re.findall(r"Rx-pps:\s+(\d+)", text)]
    # Of each report as many as there are ports; the first reports and the last are not whole seconds.
    each = [sum(rates[at:at + len(devices)]) for at in range(0, len(rates), len(devices))][1:-1]
    if not each or not statistics.median(each):
        raise RuntimeError(f"testpmd counted nothing:\n{text[-1500:]}")
    return 1e9 / statistics.median(each)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=1)
    options = parser.parse_args()
    mine, theirs = [], {"net_null_io": [], "net_ring_io": []}
    load = os.getloadavg()[0]
    for _ in range(options.rounds):
        mine.append(ours(options.core))
        theirs["net_null_io"].append(testpmd(options.core, ["net_null0", "net_null1"], "io"))
        theirs["net_ring_io"].append(testpmd(options.core, ["net_ring0"], "io"))
    print(f"{mine[0]['dpdk']}, huge pages {mine[0]['huge_pages']}, load at the start {load:.2f}, {options.rounds} rounds\n")
    print(f"{'':<14} {'ours':>10} {'testpmd':>10} {'ratio':>7} {'allocations':>12}")
    for name in ("net_null_io", "net_ring_io", "idle_port"):
        own = statistics.median(round_[name]["ns"] for round_ in mine)
        allocations = sum(round_[name]["allocations"] for round_ in mine)
        other = statistics.median(theirs[name]) if name in theirs else None
        beside = f"{other:>8.1f}ns {other / own:>7.2f}" if other else f"{'':>10} {'':>7}"
        print(f"{name:<14} {own:>8.1f}ns {beside} {allocations:>12}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
