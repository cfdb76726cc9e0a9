"""Checks the stories themselves: are their packets right, their objects readable, their expectations sharp?"""

from frames import wrong_checksums
from program import Ideal, first, known_frames
from story import Group, View, build, plain


class Liar(Ideal):
    """Does what the story says, but for one thing."""

    def __init__(self, lie):
        self.lie = lie

    def replay(self, story, frames, folder, name, extra=()):
        result = super().replay(story, frames, folder, name, extra)
        self.lie(result)
        return result


def lies(story, result):
    """Ways in which `result` could be wrong, as (sentence, function that makes it so)."""
    for port, frames in result.outputs.items():

        def lose(other, port=port):
            del other.outputs[port][-1]

        def flip(other, port=port):
            when, data = other.outputs[port][-1]
            other.outputs[port][-1] = (when, data[:-1] + bytes([data[-1] ^ 0x10]))

        def late(other, port=port):
            when, data = other.outputs[port][-1]
            other.outputs[port][-1] = (when + 1, data)

        if frames:
            yield f"the last frame of {port} is lost", lose
            yield f"the last byte of {port} is another", flip
            yield f"the last frame of {port} bears another time", late

    def stray(other):
        other.outputs.setdefault("stray", []).append((story.steps[-1].at, bytes(60)))

    def verdict(other):
        other.verdicts[-1]["verdict"] = "held" if other.verdicts[-1]["verdict"] != "held" else "punted"

    def tx(other):
        other.verdicts[-1]["tx"] = ["nowhere"]

    yield "a frame leaves on a port that the story does not name", stray
    yield "the last verdict is another", verdict
    yield "the last line names another port", tx


def believed_lies(story):
    """Wrong outputs that the story would accept; there should be none."""
    frames, bound = [], {}
    while len(frames) < len(story.steps):
        frames = known_frames(story, bound)
        result = Ideal().replay(story, frames, None, None)
        problems, bound = story.judge(len(frames), result)
        if problems:
            return problems
    told = list(lies(story, result))
    if len(story.steps) > 500:
        del told[3:]  # a long story is told seldom
    return [
        f"it does not notice when {what}"
        for what, lie in told
        if not story.judge(len(frames), Liar(lie).replay(story, frames, None, None))[0]
    ]


def weaknesses(story, folder):
    """What is wrong with a story, as a list of sentences."""
    problems, bound = [], {}
    if not story.steps:
        return [] if hasattr(story, "check") else ["it has no packets"]
    for index, step in enumerate(story.steps):
        if step.verdicts is None:
            problems.append(f"packet {index} has no expectation")
            continue
        frame = bytes(build(step.packet, View(bound)))
        if not step.broken:
            problems += [f"packet {index}, input: {text}" for text in wrong_checksums(frame)]
        for port, expected in (step.out or {}).items():
            for item in expected:
                view = View(bound, None, first(step.backend))
                frames = item.ideal(view) if isinstance(item, Group) else [plain(build(item, view))]
                if step.broken:
                    continue
                problems += [
                    f"packet {index}, expected on {port}: {text}" for f in frames for text in wrong_checksums(f)
                ]
    problems += believed_lies(story)
    try:
        import yaml
    except ImportError:
        return problems
    for text in [
        story.manifest(),
        *(story.manifest(o) for _, o in story.changes),
        *([story.config] if story.config else []),
    ]:
        try:
            documents = [item for item in yaml.safe_load_all(text) if item is not None]
        except yaml.YAMLError as error:
            problems.append(f"objects are not YAML: {error}")
            continue
        if text is not story.config:
            problems += [f"an object has no kind: {item}" for item in documents if "kind" not in item]
    return problems
