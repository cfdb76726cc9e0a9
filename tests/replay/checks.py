"""Checks the stories themselves: are their packets right, their objects readable, their expectations sharp?"""

from frames import wrong_checksums
from story import Group, View, build, plain


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
                view = View(bound, None, None if not isinstance(step.backend, (str, set)) else sorted([step.backend] if isinstance(step.backend, str) else step.backend)[0])
                frames = item.ideal(view) if isinstance(item, Group) else [plain(build(item, view))]
                if step.broken:
                    continue
                problems += [f"packet {index}, expected on {port}: {text}" for f in frames for text in wrong_checksums(f)]
    try:
        import yaml
    except ImportError:
        return problems
    for text in [story.manifest(), *([story.config] if story.config else [])]:
        try:
            documents = [item for item in yaml.safe_load_all(text) if item is not None]
        except yaml.YAMLError as error:
            problems.append(f"objects are not YAML: {error}")
            continue
        if text is not story.config:
            problems += [f"an object has no kind: {item}" for item in documents if "kind" not in item]
    return problems
