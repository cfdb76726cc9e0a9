#!/usr/bin/env python3
"""Counts the instructions that the pipeline spends on a packet and compares them with the stored history.

A count does not depend on the machine's load or clock, so a test may hold to it where a time would flicker. Each scenario runs
twice under callgrind, with few packets and with more; only what Worker::turn does is counted, and the difference of the two
runs divided by the difference in packets is the figure: set-up and warm-up cancel out.

  benches/instructions.py --sluice target/debug/sluice --profile debug            # exit 1 if a scenario rose by over 10 %
  benches/instructions.py --sluice target/release/sluice --profile release --record "why it changed"
"""
import argparse, json, re, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

HISTORY = Path(__file__).resolve().parent / "instructions.json"
TOLERANCE = 0.10
FLOWS = 256
COLLECT = "sluice_engine::worker::Worker::turn*"
# name -> arguments of `sluice bench pipeline`, packets of the short and of the long run (rounded up to whole passes).
ESTABLISHED, FIRST = (8_000, 40_000), (2_048, 8_192)
SCENARIOS = {
    "reply": (["--scenario", "reply", "--flows", str(FLOWS)], ESTABLISHED),
    "clusterip": (["--scenario", "clusterip", "--flows", str(FLOWS)], ESTABLISHED),
    "reply over IPv6": (["--scenario", "reply", "--flows", str(FLOWS), "--family", "6"], ESTABLISHED),
    "local": (["--scenario", "local", "--flows", str(FLOWS)], ESTABLISHED),
    "clusterip, first packets": (["--scenario", "clusterip", "--flows", "1024", "--new"], FIRST),
}


def run(sluice, arguments, packets, folder):
    """Instructions inside Worker::turn, and packets measured."""
    out = Path(folder) / f"{abs(hash((tuple(arguments), packets)))}.out"
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--collect-atstart=no",
               f"--toggle-collect={COLLECT}", sluice, "bench", "pipeline", *arguments,
               "--packets", str(packets), "--rules", "10", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    counted = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not counted:
        sys.exit(f"instructions: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return int(counted.group(1)), json.loads(done.stdout)["packets"]


def count(sluice, name, folder):
    arguments, (few, many) = SCENARIOS[name]
    (i1, p1), (i2, p2) = (run(sluice, arguments, packets, folder) for packets in (few, many))
    if i1 == 0 or i2 <= i1 or p2 <= p1:
        sys.exit(f"instructions: {name}: {i1} and {i2} instructions for {p1} and {p2} packets make no figure")
    return round((i2 - i1) / (p2 - p1), 1)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sluice", required=True, help="the program to measure")
    options.add_argument("--profile", required=True, choices=["debug", "release"], help="how it was built")
    options.add_argument("--record", metavar="WHY", help="append the figures to the history")
    options = options.parse_args()
    history = json.loads(HISTORY.read_text()) if HISTORY.exists() else []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        now = dict(zip(SCENARIOS, pool.map(lambda name: count(options.sluice, name, folder), SCENARIOS)))
    last = next((entry for entry in reversed(history) if entry["profile"] == options.profile), None)
    worse = []
    print(f"{'instructions per packet':28} {'now':>8} {'stored':>8}")
    for name, value in now.items():
        stored = last and last["instructions"].get(name)
        change = f"{value / stored - 1:+.1%}" if stored else "new"
        print(f"{name:28} {value:8.1f} {stored or 0:8.1f}  {change}")
        if stored and value > stored * (1 + TOLERANCE):
            worse.append(name)
    if options.record:
        rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.split()[1]
        history.append({"date": str(date.today()), "why": options.record, "profile": options.profile, "rustc": rustc,
                        "instructions": now})
        HISTORY.write_text("[\n" + ",\n".join("  " + json.dumps(entry) for entry in history) + "\n]\n")
        return 0
    if last is None:
        print(f"instructions: no stored figures for the {options.profile} profile; record some", file=sys.stderr)
        return 1
    if worse:
        print(f"instructions: more than {TOLERANCE:.0%} over what is stored: {', '.join(worse)}. Win it back, or store the "
              "new figures with --record and the reason.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
