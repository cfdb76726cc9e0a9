#!/usr/bin/env python3
"""Tells every story to `sluice replay` and reports, one line each; see README.md."""

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
TOPICS = (
    "overlay neighbours services changes affinity direct exposure backends intake external policy netpol_suite "
    "netpol_directions netpol_changes netpol_fields reject tiers tiers_egress "
    "domains audit spoofing egress "
    "masquerade errors "
    "checks size fragments flows limits host host_ports cli"
).split()


def find_scapy():
    """Makes scapy importable, by another interpreter if this one lacks it; ends with exit code 4 if there is none."""
    try:
        import scapy  # noqa: F401
    except ImportError:
        here = os.path.realpath(sys.executable)
        for other in (os.path.join(HERE, ".venv/bin/python"), "/usr/bin/python3"):
            # The variable keeps two interpreters without scapy from calling each other for ever.
            if os.path.exists(other) and os.path.realpath(other) != here and "REPLAY_STORIES" not in os.environ:
                os.environ["REPLAY_STORIES"] = "1"
                os.execv(other, [other, *sys.argv])
        print("scapy is missing: apt-get install python3-scapy", file=sys.stderr)
        sys.exit(4)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sluice", metavar="PATH", help="the program under test")
    parser.add_argument("--only", metavar="REGEX", help="only stories whose topic and title match")
    parser.add_argument("--list", action="store_true", help="print the titles")
    parser.add_argument("--dry", action="store_true", help="check the stories themselves, without a program")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failed stories and say where they are")
    parser.add_argument("--export", metavar="DIR", help="write every story's objects and input captures to DIR")
    parser.add_argument("--parallel", metavar="N", type=int, default=os.cpu_count(), help="stories at a time")
    options = parser.parse_args()
    if not (options.sluice or options.list or options.dry or options.export):
        parser.error("--sluice PATH, --list, --dry or --export DIR is needed")
    if options.sluice:
        options.sluice = os.path.abspath(options.sluice)
        if not os.access(options.sluice, os.X_OK):
            parser.error(f"{options.sluice} is not a program")
    return options


def load(pattern):
    """All stories of all topics, filled in, whose `topic: title` matches."""
    import importlib

    from story import STORIES

    for topic in TOPICS:
        importlib.import_module(f"stories.{topic}")
    chosen = []
    for item in STORIES:
        item.topic = item.source.rpartition(".")[2]
        if re.search(pattern or "", f"{item.topic}: {item.title}"):
            item.fill(item)
            chosen.append(item)
    titles = [f"{item.topic}: {item.title}" for item in chosen]
    twice = {title for title in titles if titles.count(title) > 1}
    if twice:
        raise SystemExit(f"two stories have one title: {sorted(twice)}")
    return chosen


def slug(item):
    return re.sub(r"[^a-z0-9]+", "-", f"{item.topic} {item.title}".lower()).strip("-")[:100]


def tell_one(job):
    """One story in its own folder: returns (problems, folder kept or None)."""
    item, options = job
    from checks import weaknesses
    from program import Ideal, Sluice, tell

    folder = tempfile.mkdtemp(prefix="sg-story-")
    problems = []
    try:
        if options.dry:
            problems += weaknesses(item, folder)
            if item.steps:
                problems += tell(Ideal(), item, folder)
        elif item.steps:
            problems += tell(Sluice(options.sluice), item, folder)
        else:
            problems += item.check(Sluice(options.sluice), folder)
    except Exception:  # a story that trips must not hide the others
        problems.append(traceback.format_exc())
    if problems and options.keep:
        return problems, folder
    shutil.rmtree(folder, ignore_errors=True)
    return problems, None


def export(stories, directory):
    """Writes every story as files. Packets that depend on a chosen port are written with the ideal program's choice."""
    from program import Ideal, known_frames, write_folder

    for item in stories:
        if not item.steps:
            continue
        bound, frames = {}, []
        while len(frames) < len(item.steps):
            frames = known_frames(item, bound)
            bound = item.judge(len(frames), Ideal().replay(item, frames, None, None))[1]
        folder = os.path.join(directory, item.topic, slug(item))
        write_folder(item, frames, folder)
        with open(os.path.join(folder, "story.txt"), "w", encoding="utf-8") as file:
            file.write(f"{item.title}\nnode {item.node}{' ' + ' '.join(item.args) if item.args else ''}\n")
            for index, step in enumerate(item.steps):
                ways = {port: len(out) for port, out in (step.out or {}).items()}
                file.write(f"{index} {step.port} -> {' or '.join(sorted(step.verdicts))} {ways or ''}\n")


def main():
    find_scapy()
    options = arguments()
    stories = load(options.only)
    if options.list:
        for item in stories:
            print(f"{item.topic}: {item.title}")
        return 0
    if options.export:
        export(stories, options.export)
    if not (options.sluice or options.dry):
        return 0
    failed = 0
    publish(stories)  # before the fork
    with multiprocessing.get_context("fork").Pool(max(1, options.parallel)) as pool:
        pending = [(item, pool.apply_async(tell_by_index, (index, options))) for index, item in enumerate(stories)]
        for item, answer in pending:
            problems, folder = answer.get()
            failed += bool(problems)
            print(f"{'FAIL' if problems else 'ok  '} {item.topic}: {item.title}", flush=True)
            for problem in problems:
                print("       " + problem.rstrip().replace("\n", "\n       "))
            if folder:
                print(f"       kept in {folder}")
    print(f"{len(stories) - failed} passed, {failed} failed")
    return 1 if failed else 0


CURRENT = []


def publish(stories):
    """Stories hold functions, which do not travel between processes: the children find them by index instead."""
    CURRENT[:] = stories


def tell_by_index(index, options):
    return tell_one((CURRENT[index], options))


if __name__ == "__main__":
    sys.exit(main())
