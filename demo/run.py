#!/usr/bin/env python3
"""The demo: two nodes and six pods on this machine, a `sluiced` per node, real traffic, every promise checked.

    make demo                          build, run, clean up; exit code 0 only if every check holds
    demo/run.py --only 'NodePort'      the checks whose title matches
    demo/run.py --uplink dpdk          the same with uplinks on DPDK, over its net_af_xdp
    demo/run.py --keep                 leave it running afterwards, and say how to look around
    demo/run.py --clean                take down what --keep left
"""

import argparse
import os
import re
import shutil
import signal
import socket
import sys
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import baseline
import checks
import plan
from namespaces import run
from topology import HERE, Cluster, on_dpdk

TOOLS = ("ip", "bridge", "nsenter", "setsid", "curl", "ping", "iperf3", "ss", "sysctl")


class Demo(Cluster):
    """The demo's cluster, running."""

    def __init__(self, bin_dir, uplink="af_xdp"):
        self.uplink = uplink
        folder = f"{plan.RUN_DIR}/config" if uplink == "dpdk" else HERE
        configs = {node.name: f"{folder}/{node.name}.yaml" for node in plan.NODES}
        super().__init__("sg-", plan.RUN_DIR, bin_dir, plan.NODES, plan.PODS, configs)
        self.manifests = f"{plan.RUN_DIR}/cluster"
        self.results, self.speeds = {}, {}

    def join_segment(self, namespace, addresses):
        if self.uplink != "dpdk":
            super().join_segment(namespace, addresses)
        elif namespace in [node.namespace for node in self.nodes.values()]:
            self.join_segment_by_dpdk(namespace, addresses)
        else:
            super().join_segment(namespace, addresses)
            # Nobody tells DPDK which checksums a kernel left to its device.
            namespace.run("ethtool", "-K", "eth0", "tx", "off")

    def write_configs(self):
        """The nodes' configurations with DPDK for the uplink."""
        for node in self.nodes.values():
            os.makedirs(os.path.dirname(node.config), exist_ok=True)
            with open(f"{HERE}/{node.name}.yaml", encoding="utf-8") as file:
                text = on_dpdk(file.read())
            with open(node.config, "w", encoding="utf-8") as file:
                file.write(text)

    def namespaces(self):
        return [*super().namespaces(), *baseline.namespaces(self.prefix)]

    def bring_up(self, say):
        for program in ("sluiced", "sluice", "sluice-cni"):
            self.program(program)
        say("two nodes, a kernel node and a host outside on one segment")
        self.make_fabric()
        if self.uplink == "dpdk":
            self.write_configs()
        shutil.copytree(f"{HERE}/cluster", self.manifests)
        self.add_outside(plan.GATEWAY, plan.OUTSIDE)
        self.add_kernel_node(plan.KERNEL, plan.KERNEL_MAC, plan.KERNEL_POD)
        self.serve("outside", self.outside, plan.OUTSIDE, http=8080, udp=8053)
        self.serve("legacy", self.kernel_pod, http=8080)
        for node in self.nodes.values():
            say(f"sluiced on {node.name}: ready after {node.start():.2f} s")
        start = time.monotonic()
        for pod in self.pods.values():
            self.results[pod.spec.key] = pod.attach()
        each = (time.monotonic() - start) / len(self.pods)
        say(f"{len(self.pods)} pods attached by CNI, {1000 * each:.0f} ms each")
        for pod in self.pods.values():
            pod.serve()

    def pod(self, key):
        return self.pods[key]

    def drops(self, node):
        """Drops of a node so far by reason."""
        counts = {}
        for name, value in node.metrics().items():
            found = re.match(r'sluicegate_drops_total\{.*reason="(\w+)"', name)
            if found:
                counts[found[1]] = counts.get(found[1], 0) + value
        return counts

    def edit(self, file, back=False):
        """Puts another text in the place of a manifest, as an editor does: written aside, renamed."""
        source = f"{HERE}/{'cluster' if back else 'edits'}/{file}"
        shutil.copyfile(source, f"{self.manifests}/.{file}.new")
        os.rename(f"{self.manifests}/.{file}.new", f"{self.manifests}/{file}")

    def offline(self, *arguments):
        return run(self.program("sluice"), *arguments)

    def kernel_speed(self):
        return baseline.kernel_routing(self.prefix, self.processes)


class Report:
    """Lines on a terminal or in a log."""

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.passed, self.failed = 0, []

    def say(self, text=""):
        print(text, flush=True)

    def mark(self, good):
        if self.terminal:
            return "\x1b[32m✔\x1b[0m" if good else "\x1b[31m✘\x1b[0m"
        return "ok  " if good else "FAIL"

    def check(self, title, function, demo):
        start = time.monotonic()
        try:
            text, good = function(demo), True
            self.passed += 1
        except KeyboardInterrupt:
            raise
        except Exception as error:
            text, good = f"{type(error).__name__}: {error}", False
            self.failed.append(title)
        self.say(f"{self.mark(good)} {title}  ({text}; {time.monotonic() - start:.1f} s)")

    def table(self, rows):
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for what, where, figure in rows:
            self.say(f"  {what:<{widths[0]}}  {where:<{widths[1]}}  {figure:>{widths[2]}}")

    def logs(self, demo):
        for node in demo.nodes.values():
            self.say(f"\n--- last lines of {demo.logs}/sluiced-{node.name}.log")
            self.say(demo.processes.log(f"sluiced-{node.name}", last=25) or "(empty)")


def stop_on_signal(number, _frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


def look_around(demo, report):
    node, pod = demo.nodes["node-a"], demo.pod("shop/client-a")
    report.say(f"""
It is still running. To look around:
  {demo.bin_dir}/sluice status --socket {node.socket}
  {demo.bin_dir}/sluice flows --socket {node.socket}
  curl -N --unix-socket {node.socket} http://sluiced/v1/observe
  ip netns exec {pod.namespace.name} curl http://{plan.WEB[0]}/
  $EDITOR {demo.manifests}/db-policy.yaml      # live when saved
  less {demo.logs}/sluiced-node-a.log
To take it down: {sys.argv[0]} --clean --bin-dir {demo.bin_dir}""")


def run_checks(demo, report, only):
    chosen = [(title, function) for title, function in checks.CHECKS if re.search(only, title, re.IGNORECASE)]
    if not chosen:
        raise ValueError(f"no check's title matches {only!r}")
    for title, function in chosen:
        report.check(title, function, demo)
    report.say()
    report.table(checks.describe(demo))


def preflight(report):
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if os.geteuid() != 0:
        report.say("The demo makes network namespaces and needs root.")
    elif missing:
        report.say(f"Missing on this machine: {', '.join(missing)}. `make setup` installs them.")
    else:
        return True
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", default=f"{HERE}/../target/release", help="where sluiced, sluice, sluice-cni are")
    parser.add_argument("--only", metavar="REGEX", default="", help="the checks whose title matches")
    parser.add_argument("--uplink", choices=("af_xdp", "dpdk"), default="af_xdp",
                        help="what drives the nodes' uplinks; dpdk needs programs built with that feature")
    parser.add_argument("--keep", action="store_true", help="leave it running")
    parser.add_argument("--clean", action="store_true", help="only take down what an earlier run left")
    options = parser.parse_args()
    report = Report()
    if not preflight(report):
        return 4
    # A name that ends with this process, however it ends.
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind("\0sluicegate-demo")
    except OSError:
        report.say("Another demo is running on this machine.")
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop_on_signal)
    demo, start, code = Demo(options.bin_dir, options.uplink), time.monotonic(), 1
    demo.take_down(with_agent=False)
    if options.clean:
        return 0
    try:
        demo.bring_up(report.say)
        report.say()
        run_checks(demo, report, options.only)
        code = 1 if report.failed else 0
    except FileNotFoundError as error:
        report.say(f"{report.mark(False)} {error}")
        code = 4
    except KeyboardInterrupt as why:
        report.say(f"\nstopped ({why or 'interrupt'})")
        code = 130
    except Exception as error:
        report.say(f"{report.mark(False)} {type(error).__name__}: {error}")
        traceback.print_exc(limit=-3)
        code = 1
    finally:
        # Whoever is impatient now would leave namespaces behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if code in (1,) and demo.nodes["node-a"].namespace.exists():
            report.logs(demo)
        if options.keep and code in (0, 1):
            look_around(demo, report)
        else:
            for trouble in demo.take_down(with_agent=code != 4):
                report.say(f"{report.mark(False)} cleaning up: {trouble}")
                code = code or 1
    report.say(f"\n{report.passed} passed, {len(report.failed)} failed, {time.monotonic() - start:.0f} s")
    for title in report.failed:
        report.say(f"  failed: {title}")
    return code


if __name__ == "__main__":
    sys.exit(main())
