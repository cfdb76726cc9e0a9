#!/usr/bin/env python3
"""The control plane at size: a real `sluiced` follows the tests' API server; cold start, one endpoint's way to the workers, memory.

    make bench-control    (tests/e2e/bench_control.py --bin-dir target/release [--services 10000] [--endpoints 10] [--changes 400] [--pods])

Latencies are taken twice: inside (`sluicegate_programming_seconds`, from the watch event to every worker) and from outside
(from before the write to the API server until `GET /v1/generation` says that it is applied everywhere), which adds both HTTP servers.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import kubernetes_node as k8s  # noqa: E402
from namespaces import wait_until  # noqa: E402


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


def ask(connection, path, body=None):
    connection.request("POST" if body is not None else "GET", path, body=None if body is None else json.dumps(body))
    return json.loads(connection.getresponse().read())


class LoadedNode(k8s.KubernetesNode):
    """A node whose API server has made up so many objects."""

    def __init__(self, bin_dir, options):
        super().__init__(bin_dir, count=0)
        self.options = options

    def start_server(self, objects):
        path = f"{self.run_dir}/objects.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(objects, file)
        o = self.options
        size = ["--services", o.services, "--endpoints", o.endpoints, "--nodes", o.nodes, *(["--pods"] if o.pods else [])]
        self.server = self.processes.start("apiserver", self.node.namespace, self.program("fake-apiserver"),
                                           "--listen", f"127.0.0.1:{k8s.PORT}", "--objects", path, *size)
        wait_until("the API server answers", lambda: self.ask("/api/v1/namespaces", check=False) is not None, 120)


def memory(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        status = dict(line.split(":", 1) for line in file if ":" in line)
    return {name: int(fields[name].split()[0]) / 1024 for name in ("Rss", "Anonymous")} | {"Peak": int(status["VmHWM"].split()[0]) / 1024}


def buckets(node):
    found = {}
    for name, value in node.metrics().items():
        if name.startswith("sluicegate_programming_seconds_bucket"):
            found[float(name.split('le="')[1].split('"')[0].replace("+Inf", "inf"))] = value
    return found


def quantile(before, after, share):
    """The upper bound of the bucket that holds this share of what came in between."""
    new = {bound: after[bound] - before.get(bound, 0) for bound in sorted(after)}
    total = max(new.values())
    return next(bound for bound, count in new.items() if count >= share * total)


def slice_object(service, endpoints, nodes, change):
    """The slice of a Service, its last endpoint at another address for each change."""
    first = service * endpoints
    addresses = [0x0a800000 + 256 + n for n in range(first, first + endpoints)]
    addresses[-1] = 0x0ac00000 + change
    dotted = [".".join(str(a >> shift & 255) for shift in (24, 16, 8, 0)) for a in addresses]
    return {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"svc-{service:05}-x", "namespace": "load", "labels": {"kubernetes.io/service-name": f"svc-{service:05}"}},
            "endpoints": [{"addresses": [a], "nodeName": f"node-{n % max(nodes, 1):04}", "conditions": {"ready": True}} for n, a in enumerate(dotted)],
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]}


def change_all(node, server, count, make, pause):
    """Writes changes one after the other; seconds from each write to its generation in force everywhere."""
    agent, took = UnixConnection(node.socket), []
    for number in range(count):
        at = ask(agent, "/v1/generation")["applied"]
        body = make(number)
        start = time.perf_counter()
        ask(server, "/fake/apply", body)
        while ask(agent, "/v1/generation")["applied"] == at:
            if time.perf_counter() - start > 10:
                raise TimeoutError(f"change {number} is not applied")
        took.append(time.perf_counter() - start)
        time.sleep(pause)
    return took


def show(title, took, before, after):
    took = sorted(took)
    cut = lambda share: 1000 * took[min(len(took) - 1, int(share * len(took)))]  # noqa: E731
    inside = [1000 * quantile(before, after, share) for share in (0.5, 0.99)]
    print(f"{title}: event to every worker p50 <= {inside[0]:.2g} ms, p99 <= {inside[1]:.2g} ms; "
          f"seen from outside p50 {cut(0.5):.2f}, p99 {cut(0.99):.2f}, worst {1000 * took[-1]:.2f} ms ({len(took)} changes)", flush=True)
    return {"inside_p50_ms": inside[0], "inside_p99_ms": inside[1], "outside_p50_ms": cut(0.5), "outside_p99_ms": cut(0.99)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", required=True)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--changes", type=int, default=400)
    parser.add_argument("--pods", action="store_true", help="a Pod object for every endpoint, too")
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    with LoadedNode(options.bin_dir, options) as cluster:
        node, starts = cluster.node, []
        for _ in range(options.starts):
            for saved in ("objects.jsonl",):
                path = f"{cluster.run_dir}/node-a/state/{saved}"
                if os.path.exists(path):
                    os.remove(path)
            begin = time.perf_counter()
            node.start(ready_within=120)
            wait_until("every Service", lambda: node.api("/v1/status")["services"] == options.services, 120, every=0.01)
            starts.append(time.perf_counter() - begin)
            if len(starts) < options.starts:
                node.kill()
        print(f"cold start to programmed: median {statistics.median(starts):.2f} s of {len(starts)} "
              f"({options.services} Services, {options.services * options.endpoints} endpoints, {options.nodes} nodes, "
              f"{options.services * options.endpoints if options.pods else 0} pods)", flush=True)
        time.sleep(1.5)
        with node.namespace.entered():
            server = http.client.HTTPConnection("127.0.0.1", k8s.PORT, timeout=10)
            server.connect()
        endpoint = lambda n: slice_object(n * 7919 % options.services, options.endpoints, options.nodes, n)  # noqa: E731
        before = buckets(node)
        took = change_all(node, server, options.changes, endpoint, 0.01)
        result = {"endpoint": show("one endpoint", took, before, buckets(node))}
        pod = lambda n: k8s.pod_object(f"extra-{n % 10}", [f"10.244.9.{n % 200}"]) | {"spec": {"nodeName": "node-0001"}}  # noqa: E731
        before = buckets(node)
        took = change_all(node, server, max(20, options.changes // 10), pod, 0.02)
        result["pod"] = show("one pod elsewhere (everything is compiled)", took, before, buckets(node))
        used = memory(node.process.pid)
        print(f"memory of sluiced: {used['Rss']:.0f} MB resident, {used['Anonymous']:.0f} MB of it anonymous, peak {used['Peak']:.0f} MB "
              "(frame pool and flow tables included)")
        result |= {"cold_start_s": statistics.median(starts), "memory_mb": used}
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
