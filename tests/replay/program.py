"""Runs a story through `sluice replay`, or through a program that does exactly what the story says.

The second exists to check the stories themselves: that they are complete, that their packets carry right checksums
and that the comparison accepts the very thing it describes.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass

import capture
from story import ANY, SOME, Group, Unbound, View, build, plain

TIME_LIMIT = 60  # seconds for one replay; a story takes milliseconds


class Failed(Exception):
    """The program did not do its job at all: exit code, time limit, unreadable output."""


@dataclass
class Result:
    """What one replay left behind."""

    verdicts: list
    outputs: dict  # port name -> [(microseconds, frame)]
    files: dict  # file name -> bytes
    index: dict = None

    def by_time(self):
        """The frames of each (port, time), built when first asked for."""
        if self.index is None:
            self.index = {}
            for port, frames in self.outputs.items():
                for when, data in frames:
                    self.index.setdefault((port, when), []).append(data)
        return self.index


def file_name(port):
    return port.replace(":", "_").replace("/", "_") + ".pcap"


def write_folder(story, frames, folder):
    """Writes a story as files that a human can read and `sluice replay` can take: returns the --rx arguments."""
    os.makedirs(os.path.join(folder, "objects"), exist_ok=True)
    with open(os.path.join(folder, "objects", "objects.yaml"), "w", encoding="utf-8") as file:
        file.write(f"# {story.title}\n{story.manifest()}")
    for number, (_, objects) in enumerate(story.changes):
        os.makedirs(os.path.join(folder, f"change-{number}"), exist_ok=True)
        with open(os.path.join(folder, f"change-{number}", "objects.yaml"), "w", encoding="utf-8") as file:
            file.write(f"# {story.title}\n{story.manifest(objects)}")
    if story.config:
        with open(os.path.join(folder, "config.yaml"), "w", encoding="utf-8") as file:
            file.write(story.config)
    arguments = []
    for port in story.ports():
        mine = [(step.at, data) for step, data in zip(story.steps, frames) if step.port == port]
        path = os.path.join(folder, "in." + file_name(port))
        capture.write(path, mine)
        arguments += ["--rx", f"{port}={path}"]
    return arguments


class Sluice:
    """The program under test."""

    def __init__(self, path):
        self.path = path

    def call(self, arguments):
        """Runs the program with `arguments`; returns (exit code, standard output, standard error)."""
        try:
            done = subprocess.run(
                [self.path, *arguments], capture_output=True, text=True, timeout=TIME_LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"no end after {TIME_LIMIT} s") from None
        except OSError as error:
            raise Failed(f"cannot run {self.path}: {error}") from None
        return done.returncode, done.stdout, done.stderr

    def arguments(self, story, folder):
        """What precedes the --rx arguments of a story."""
        made = ["replay", "--manifests", os.path.join(folder, "objects"), "--node", story.node, *story.args]
        for number, (packet, _) in enumerate(story.changes):
            made += ["--change", f"{packet}={os.path.join(folder, f'change-{number}')}"]
        return made + (["--config", os.path.join(folder, "config.yaml")] if story.config else [])

    def replay(self, story, frames, folder, name, extra=()):
        """Replays `frames` (the packets of the first steps); the output goes to `folder`/`name`."""
        out = os.path.join(folder, name)
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        inputs = write_folder(story, frames, folder)
        arguments = [*self.arguments(story, folder), *inputs, "--out", out, *extra]
        code, _, errors = self.call(arguments)
        if code != 0:
            raise Failed(f"exit code {code}: {errors.strip()[-2000:]}")
        return read_result(story, out)


def read_result(story, out):
    """Reads an output folder."""
    files = {}
    for name in sorted(os.listdir(out)):
        with open(os.path.join(out, name), "rb") as file:
            files[name] = file.read()
    if "verdicts.jsonl" not in files:
        raise Failed("no verdicts.jsonl")
    try:
        verdicts = [json.loads(line) for line in files["verdicts.jsonl"].decode().splitlines()]
        ports = {"uplink0", "host", *story.ports(), *(port for line in verdicts for port in line.get("tx", []))}
        names = {file_name(port): port for port in ports}  # a file that no line speaks of keeps its own name
        outputs = {}
        for name in files:
            if name.endswith(".pcap"):
                outputs[names.get(name, name)] = capture.read(os.path.join(out, name))
    except (ValueError, capture.BadCapture) as error:
        raise Failed(str(error)) from None
    return Result(verdicts, outputs, files)


class Ideal:
    """Does what the story says, and so must satisfy it."""

    def replay(self, story, frames, folder, name, extra=()):
        verdicts, outputs, bound = [], {}, {}
        for index, step in enumerate(story.steps[: len(frames)]):
            backend = first(step.backend)
            sent = {}
            for port, expected in (step.out or {}).items():
                for item in expected:
                    view = View(bound, None, backend)
                    if isinstance(item, Group):
                        sent.setdefault(port, []).extend(item.ideal(view))
                    else:
                        sent.setdefault(port, []).append(plain(build(item, view)))
            for port, data in sent.items():
                outputs.setdefault(port, []).extend((step.at, frame) for frame in data)
            verdict = sorted(step.verdicts)[0]
            reason = first(step.reasons) if step.reasons is not SOME else "Malformed"
            verdicts.append(
                {
                    "n": index,
                    "port": step.port,
                    "verdict": verdict,
                    "reason": reason or ("NoRoute" if verdict == "dropped" else None),
                    "tx": sorted(sent),
                    "policy": first(step.policy),
                    **({"policy_verdict": "audit-deny"} if step.audited else {}),
                    "service": first(step.service),
                    "backend": backend,
                }
            )
        return Result(verdicts, outputs, {})


def first(wanted):
    if wanted is ANY:
        return None
    if wanted is SOME:
        return "something"
    return sorted(wanted, key=str)[0] if isinstance(wanted, (set, frozenset, tuple, list)) else wanted


def tell(program, story, folder):
    """Runs `story` from its start to its end; returns the problems as a list of texts, empty when it holds."""
    bound = {}
    try:
        while True:
            frames = known_frames(story, bound)
            result = program.replay(story, frames, folder, "out")
            problems, picked = story.judge(len(frames), result)
            if problems or len(frames) == len(story.steps):
                break
            if not picked.keys() - bound.keys():
                return [f"packet {len(frames)} needs a value that no packet before it shows"]
            bound = picked
        if not problems:
            runs = [("--workers 3", ("--workers", "3"))] + ([("a second run", ())] if story.twice else [])
            for what, extra in runs:
                other = program.replay(story, frames, folder, "out-again", extra)
                changed = [
                    name
                    for name in sorted(result.files.keys() | other.files.keys())
                    if result.files.get(name) != other.files.get(name)
                ]
                if changed:
                    problems.append(f"{what} gives other bytes in {', '.join(changed)}")
    except Failed as error:
        problems = [str(error)]
    return problems


def known_frames(story, bound):
    """The input frames from the first on, as far as picked values allow."""
    frames = []
    for step in story.steps:
        try:
            frames.append(bytes(build(step.packet, View(bound))))
        except Unbound:
            break
    return frames
