#!/usr/bin/env python3
"""Sluicegate beside the kernel and dpdk-testpmd: one topology, one generator, contenders in turn, medians and spread.

    make bench-compare          (benches/compare/run.py --bin-dir target/release [--rounds 5] [--services 10,1000,10000])

Writes results.json, results.md and results.png to --out. Client and generator run on CPU 0, a polling forwarder on CPU 1;
the kernel forwards in the context of whoever sends, so its small-packet figure shares CPU 0 with the generator.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from contenders import Kernel, Sluicegate, Testpmd, SERVER_PORT, TCP_PORT, UDP_PORT  # noqa: E402
from namespaces import CommandFailed, run  # noqa: E402
from probes import throughput  # noqa: E402

MEASURES = {
    "small_pps": ("small packets, 64 B, at most 0.1 % lost", "packets/s", True),
    "tcp_bps": ("TCP, one stream", "bit/s", True),
    "connections": ("new TCP connections", "1/s", True),
    "rtt_p50_us": ("UDP round trip, p50", "µs", False),
    "rtt_p99_us": ("UDP round trip, p99", "µs", False),
    "rtt_p99_9_us": ("UDP round trip, p99.9", "µs", False),
}


def pktgen(options, namespace, *arguments, timeout=60):
    program = f"{os.path.abspath(options.bin_dir)}/pktgen"
    # A session of its own is a scheduling group of its own.
    done = run("setsid", "-w", "taskset", "-c", "0", *namespace.command(program, *arguments), timeout=timeout)
    return json.loads(done.stdout)


def measure(options, contender):
    """One turn of one contender."""
    out = {}
    server = contender.processes.start("serve", contender.backend, "taskset", "-c", "0",
                                       f"{os.path.abspath(options.bin_dir)}/pktgen", "serve", "--port", SERVER_PORT)
    try:
        time.sleep(0.2)
        vips = contender.vips
        direct = not contender.services
        if "small_pps" in options.measures:
            found = pktgen(options, contender.client, "search", "--dev", "eth0", "--from", contender.client_ip, "--to", ",".join(vips),
                           "--to-mac", contender.to_mac, "--port", UDP_PORT, "--flows", 1000, "--seconds", 0.4,
                           "--sink-netns", contender.backend.path, "--sink-dev", "eth0")
            out["small_pps"] = found["pps"]
            out["overload_pps"] = found["overload"]["received_pps"]
        if "connections" in options.measures:
            port = SERVER_PORT if direct else TCP_PORT
            found = pktgen(options, contender.client, "connect", "--to", ",".join(f"{v}:{port}" for v in vips), "--seconds", options.seconds)
            if found["failed"]:
                raise RuntimeError(f"{contender.name}: {found['failed']} connections failed")
            out["connections"] = found["connections_per_second"]
            out["client_us_per_connection"] = found["client_us_per_connection"]
        if "rtt" in options.measures:
            found = pktgen(options, contender.client, "rtt", "--to", f"{vips[0]}:{SERVER_PORT}", "--seconds", options.seconds)
            out.update({f"rtt_{q}_us": found[f"{q}_us"] for q in ("p50", "p99", "p99_9")}, rtt_lost=found["lost"])
        if "tcp_bps" in options.measures:
            out["tcp_bps"] = throughput(contender.processes, contender.backend, contender.client, vips[0], options.seconds)
    finally:
        contender.processes.end(server)
    return out


def cpu_name():
    with open("/proc/cpuinfo", encoding="ascii") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown")


def spread(values):
    return statistics.median(values), min(values), max(values)


def short(value, unit):
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit != "µs" and value >= factor:
            return f"{value / factor:.2f} {letter}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def table(results):
    """The medians as Markdown, a section a measure, with the ratio to the kernel's nftables of the same number of Services."""
    lines = []
    for key, (title, unit, _) in MEASURES.items():
        rows = [(name, count, [r[key] for r in rounds if key in r]) for (name, count), rounds in results.items()]
        rows = [row for row in rows if row[2]]
        if not rows:
            continue
        lines += [f"### {title} ({unit})", "", "| Contender | Services | median | lowest | highest | of kernel nftables |", "|---|---|---|---|---|---|"]
        base = {count: statistics.median(values) for name, count, values in rows if name == "kernel, nftables"}
        for name, count, values in rows:
            mid, low, high = spread(values)
            of = base.get(count) or base.get(min(base, default=None))
            lines.append(f"| {name} | {count or '–'} | {short(mid, unit)} | {short(low, unit)} | {short(high, unit)} | "
                         f"{mid / of:.2f} |" if of else f"| {name} | {count or '–'} | {short(mid, unit)} | {short(low, unit)} | {short(high, unit)} | |")
        lines.append("")
    return "\n".join(lines)


def plot(results, path, head):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [k for k in ("small_pps", "tcp_bps", "connections", "rtt_p50_us") if any(k in r for rs in results.values() for r in rs)]
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(10, 1.2 + 2.9 * len(shown)))
    axes = [axes] if len(shown) == 1 else list(axes)
    names = list(dict.fromkeys(name for name, _ in results))
    # Colours that colour-blind readers tell apart (Okabe and Ito).
    colours = dict(zip(names, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#777777")))
    for axis, key in zip(axes, shown):
        title, unit, more_is_better = MEASURES[key]
        rows = [(n, c, [r[key] for r in rs if key in r]) for (n, c), rs in results.items()]
        rows = [row for row in rows if row[2]][::-1]
        mids = [statistics.median(v) for _, _, v in rows]
        axis.barh([f"{n}" + (f", {c:,} Services" if c else "") for n, c, _ in rows], mids, color=[colours[n] for n, _, _ in rows],
                  xerr=[[m - min(v) for m, (_, _, v) in zip(mids, rows)], [max(v) - m for m, (_, _, v) in zip(mids, rows)]],
                  error_kw={"ecolor": "#333333", "capsize": 2, "elinewidth": 1})
        for at, value in enumerate(mids):
            axis.text(0, at, f" {short(value, unit)}", va="center", ha="left", color="white", fontsize=8, fontweight="bold")
        axis.set_title(f"{title} ({unit}; {'more' if more_is_better else 'less'} is better)", loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.suptitle(head, fontsize=9, x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path, dpi=110)
    figure.savefig(path.replace(".png", ".svg"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--services", default="10,1000,10000", help="numbers of Services, each a pass of its own")
    parser.add_argument("--contenders", default="", help="only those whose name contains one of these words")
    parser.add_argument("--measures", default="small_pps,tcp_bps,connections,rtt")
    parser.add_argument("--idle", default="busy", choices=("busy", "adaptive"), help="how Sluicegate's workers idle")
    parser.add_argument("--out", default="target/bench-compare")
    options = parser.parse_args()
    options.measures = options.measures.split(",")
    options.seconds = int(options.seconds)
    counts = [int(n) for n in options.services.split(",")]
    everyone = [Sluicegate(options.bin_dir, "tap", options.idle), Sluicegate(options.bin_dir, "af_xdp", options.idle), Kernel(True), Kernel(False)]
    if shutil.which("dpdk-testpmd"):
        everyone.append(Testpmd())
    else:
        print("dpdk-testpmd is not here (apt-get install -y dpdk): the ceiling is missing from the table", flush=True)
    words = [w for w in options.contenders.split(",") if w]
    everyone = [c for c in everyone if not words or any(w in c.name for w in words)]
    results, up = {}, []
    began = time.strftime("%Y-%m-%d %H:%M")
    try:
        for contender in everyone:
            contender.up()
            up.append(contender)
        for at, count in enumerate(counts):
            for contender in everyone:
                if contender.services:
                    contender.program(count)
            turns = [c for c in everyone if c.services or at == 0]
            for number in range(options.rounds):
                # Each round begins with another contender.
                for contender in turns[number % len(turns):] + turns[:number % len(turns)]:
                    contender.begin()
                    try:
                        got = measure(options, contender)
                    finally:
                        contender.end()
                    got["load"] = os.getloadavg()[0]
                    results.setdefault((contender.name, count if contender.services else 0), []).append(got)
                    said = ", ".join(f"{k} {short(v, 'µs' if k.endswith('us') else '')}" for k, v in got.items())
                    print(f"{count} Services, round {number + 1}, {contender.name}: {said}", flush=True)
    finally:
        for contender in up:
            try:
                contender.down()
            except (CommandFailed, OSError) as error:
                print(f"taking down {contender.name}: {error}")
    order = {c.name: n for n, c in enumerate(everyone)}
    results = dict(sorted(results.items(), key=lambda item: (order[item[0][0]], item[0][1])))
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="ascii") as file:
        congestion = file.read().strip()
    loads = [r["load"] for rs in results.values() for r in rs]
    head = (f"{began}, {cpu_name()}, {os.cpu_count()} CPUs, Linux {platform.release()}, {options.rounds} rounds, MTU 1500, TCP {congestion}, "
            f"idle: {options.idle}, load {min(loads):.1f} to {max(loads):.1f}")
    os.makedirs(options.out, exist_ok=True)
    with open(f"{options.out}/results.json", "w", encoding="utf-8") as file:
        json.dump({"machine": head, "results": [{"contender": n, "services": c, "rounds": rs} for (n, c), rs in results.items()]}, file, indent=1)
    text = f"{head}\n\n{table(results)}"
    with open(f"{options.out}/results.md", "w", encoding="utf-8") as file:
        file.write(text)
    print(f"\n{text}")
    try:
        plot(results, f"{options.out}/results.png", head)
        print(f"{options.out}/results.{{json,md,png,svg}}")
    except ImportError:
        print(f"{options.out}/results.{{json,md}}; no plot without matplotlib: apt-get install -y python3-matplotlib")
    return 0


if __name__ == "__main__":
    sys.exit(main())
