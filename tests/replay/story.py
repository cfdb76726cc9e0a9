"""What a story is: objects, packets in, and for each packet what must come of it.

A story's expected frames are built by hand with scapy. Where the contract leaves a field free (the outer source
port, a SNAT port) the builder asks its `View` for it: `view.pick(name, field, low, high)` reads the field from the
frame under test, holds it to the range and to the value the same name had before, and the rest of the frame, checksums
included, is then built around it and compared byte for byte. A packet that needs a picked value (the reply to a
masqueraded flow) is a callable too: the story is replayed up to there, the value learned, and replayed further.
That is sound because a replay is deterministic, which every story checks as well.
"""

import ipaddress
from collections import Counter

from frames import difference, layers, wrong_checksums

REASONS = set(
    "Malformed BadChecksum SourceSpoofed PolicyDeny NoBackend NoLocalBackend SourceRangeDeny NoRoute NoNeighbour "
    "TtlExpired TooBig FlowTableFull SnatPortsExhausted InvalidState UnknownVni UnknownTunnelPeer UnsupportedProtocol "
    "FragmentTimeout FragmentLimit TxFull HandoffFull NotForUs".split()
)
VERDICTS = {"forwarded", "dropped", "replied", "punted", "held"}
FIELDS = {"n", "port", "verdict", "reason", "tx", "policy", "service", "backend"}
ANY = object()  # an expectation the contract does not pin down
SOME = object()  # any value but null
STORIES = []


class Mismatch(Exception):
    """Something in the output is not what the story says; the text is for a human."""


class Unbound(Exception):
    """A packet needs a value that has not been picked yet."""


class View:
    """What an expected frame may look at: the frame under test, and the values picked so far."""

    def __init__(self, bound, got=None, backend=None):
        self.bound, self.got, self.backend = bound, got, backend

    def __getitem__(self, name):
        if name not in self.bound:
            raise Unbound(name)
        return self.bound[name]

    def pick(self, name, where, low, high, ideal=None, unlike=()):
        """The number at `where` in the frame under test, between `low` and `high`, always the same for one `name`.

        `name` None: range only. `unlike`: names whose values it must not have. Without a frame under test: what was
        picked before, else `ideal`, else the lowest that is allowed.
        """
        taken = {self.bound[other] for other in unlike if other != name and other in self.bound}
        if self.got is None:
            free = low if ideal is None else ideal
            while free in taken:
                free += 1
            value = self.bound.get(name, free)
        else:
            value = field(self.got, where)
            if not low <= value <= high:
                raise Mismatch(f"{where} is {value}, outside {low}-{high}")
            if value in taken:
                raise Mismatch(f"{where} is {value}, which another flow to the same place has already")
        return self._bind(name, where, value)

    def choose(self, name, where, values):
        """As `pick`, for a field that may hold one of `values`."""
        if self.got is None:
            value = self.bound.get(name, values[0])
        else:
            value = field(self.got, where)
            if value not in values:
                raise Mismatch(f"{where} is {value}, not one of {', '.join(map(str, values))}")
        return self._bind(name, where, value)

    def _bind(self, name, where, value):
        if name is not None and self.bound.setdefault(name, value) != value:
            raise Mismatch(f"{where} is {value}, but was {self.bound[name]} before (it must stay the same: {name})")
        return value


def number(data, at, size):
    if at + size > len(data):
        raise Mismatch(f"the frame ends before byte {at + size}")
    return int.from_bytes(data[at : at + size], "big")


def field(data, where):
    """The value of a field, named as in `View.pick`; without `outer.` or `quote.` it is the innermost packet's."""
    stack = layers(data)
    if not stack:
        raise Mismatch(f"no IP packet where {where} was wanted (ethertype {data[12:14].hex()})")
    packet = stack[-1]
    if where.startswith("outer."):
        packet, where = stack[0], where.removeprefix("outer.")
    elif where.startswith("quote."):
        packet, where = packet.quoted(data), where.removeprefix("quote.")
        if packet is None:
            raise Mismatch("no quoted packet where an ICMP error was wanted")
    v4 = packet.version == 4
    if where == "src":
        return str(ipaddress.ip_address(packet.src))
    if where == "dst":
        return str(ipaddress.ip_address(packet.dst))
    if where == "length":
        return min(packet.end, stack[-1].end) - packet.at
    if where == "tos":
        return data[packet.at + 1] if v4 else number(data, packet.at, 2) >> 4 & 0xFF
    if where == "ip.flags":
        return data[packet.at + 6] >> 5 if v4 else 0
    if where == "ip.id":
        return number(data, packet.at + 4, 2) if v4 else 0
    if where == "flow":
        return 0 if v4 else number(data, packet.at, 4) & 0xFFFFF
    offset, size = {
        "ttl": (packet.at + (8 if v4 else 7), 1),
        "sport": (packet.l4, 2),
        "dport": (packet.l4 + 2, 2),
        "id": (packet.l4 + 4, 2),
        "window": (packet.l4 + 14, 2),
    }[where]
    return number(data, offset, size)


class Masked:
    """An expected frame of which some bytes are not looked at."""

    def __init__(self, packet, *free):
        self.packet, self.free = packet, free


class Padded:
    """An expected frame that may be followed by zero bytes (Ethernet padding)."""

    def __init__(self, packet):
        self.packet = packet


def build(expected, view):
    """The bytes of an expected or input frame: a scapy packet, bytes, or a callable that makes one from a view."""
    while callable(expected):
        expected = expected(view)
    return expected


def plain(frame):
    return bytes(frame.packet if isinstance(frame, (Masked, Padded)) else frame)


def compare(expected, got, checksums=True):
    """Raises `Mismatch` where `got` is not the `expected` frame."""
    want, seen = plain(expected), got
    if isinstance(expected, Padded) and len(got) > len(want) and not any(got[len(want) :]):
        seen = got[: len(want)]
    if isinstance(expected, Masked):
        for start, end in expected.free:
            seen = seen[:start] + want[start:end] + seen[end:]
    if want != seen:
        wrong = [f"  ({text} in what we got)" for text in safely(wrong_checksums, got)] if checksums else []
        raise Mismatch("\n".join(["frame differs", *wrong, difference(want, seen)]))


def safely(function, data):
    try:
        return function(data)
    except (IndexError, Mismatch):
        return ["the frame is cut short"]


class Step:
    """One input packet and what must come of it. The expectation methods return the step, to be read as a sentence."""

    def __init__(self, story, port, packet, at, broken):
        self.story, self.port, self.packet, self.at, self.broken = story, port, packet, at, broken
        self.verdicts, self.reasons, self.out = None, ANY, {}
        self.policy = self.service = self.backend = ANY
        self.audited = None

    def _expect(self, verdicts, reasons, policy=ANY, service=ANY, backend=ANY):
        self.verdicts, self.reasons = {verdicts} if isinstance(verdicts, str) else set(verdicts), reasons
        self.policy, self.service, self.backend = policy, service, backend
        return self

    def forwarded(self, port, *frames, **named):
        """Sent on by `port` as `frames`, in this order; one of them may be a `Group` that stands for all."""
        self.out = {port: list(frames)}
        return self._expect("forwarded", None, **named)

    def replied(self, *frames, reason=None, port=None, **named):
        """We answered it ourselves, by default on the port it came from."""
        self.out = {port or self.port: list(frames)}
        return self._expect("replied", reason, **named)

    def punted(self, *frames, **named):
        """Given to the host."""
        self.out = {"host": list(frames)}
        return self._expect("punted", None, **named)

    def dropped(self, reason=SOME, **named):
        """Dropped with `reason`, which may be a set of reasons where the contract does not decide."""
        self.out = {}
        return self._expect("dropped", reason, **named)

    def held(self, **named):
        """A fragment kept until its first arrives."""
        self.out = {}
        return self._expect("held", None, **named)

    def goes_nowhere(self):
        """Dropped or punted: the contract only says where it must not go."""
        self.out = None
        return self._expect({"dropped", "punted"}, ANY)


class Group:
    """Stands for all frames of a step on one port: `check(frames, view)` returns problems, `ideal(view)` frames."""

    def __init__(self, check, ideal):
        self.check, self.ideal = check, ideal


class Story:
    """A title that reads as a sentence, the objects, and the steps."""

    def __init__(self, title, source):
        self.title, self.source = title, source
        self.node, self.objects, self.config, self.args = "node-a", [], None, []
        self.steps, self.now, self.twice = [], 1_700_000_000_000_000, False
        self.changes = []  # (number of the first packet that meets them, objects)

    def given(self, *objects, node=None, config=None, args=()):
        """The cluster's objects (YAML texts), and the node, configuration file and further arguments of the replay."""
        self.objects += objects
        self.node = node or self.node
        self.config = config or self.config
        self.args += args

    def change(self, *objects):
        """From here on the cluster is these objects, and no others."""
        self.changes.append((len(self.steps), objects))

    def wait(self, seconds):
        """Lets this much of the packets' own time pass."""
        self.now += round(seconds * 1_000_000)

    def send(self, port, packet, broken=False, together=False):
        """A frame arrives on `port`, a millisecond after the last one (or at its very time: `together`).

        `broken` says that its checksums or lengths are wrong on purpose.
        """
        if not together:
            self.now += 1000
        step = Step(self, port, packet, self.now, broken)
        self.steps.append(step)
        return step

    def ports(self):
        """The input ports in the order of their first packet."""
        return list(dict.fromkeys(step.port for step in self.steps))

    def manifest(self, objects=None):
        """All objects as one multi-document text."""
        return "\n---\n".join(text.strip() for text in (self.objects if objects is None else objects)) + "\n"

    def has(self, *kinds):
        texts = [*self.objects, *(text for _, objects in self.changes for text in objects)]
        return any(f"kind: {kind}" in text for text in texts for kind in kinds)

    def judge(self, count, result):
        """Compares the first `count` steps with `result`; returns (problems, picked values)."""
        problems, bound, shared = [], {}, self._shared_times()
        taken = {port: dict.fromkeys((when for when, _ in frames), 0) for port, frames in result.outputs.items()}
        if len(result.verdicts) != count:
            return [f"{count} packets went in, verdicts.jsonl has {len(result.verdicts)} lines"], bound
        for port, frames in result.outputs.items():
            times = [when for when, _ in frames]
            if times != sorted(times):
                problems.append(f"{port}: frames are not in the order of the packets that caused them")
            for when in set(times) - {step.at for step in self.steps[:count]}:
                problems.append(f"{port}: a frame bears the time {when} µs, which no input packet has")
        for index, step in enumerate(self.steps[:count]):
            for problem in self._judge_step(index, step, result, taken, shared, bound):
                problems.append(f"packet {index} ({step.port}): {problem}")
        for port, counts in taken.items():
            for when, count in counts.items():
                left = len(result.by_time()[port, when]) - count
                if count and left or not count and when in shared:
                    problems.append(f"{port}: {left} frames more than the packets of {when} µs should have caused")
        return problems, bound

    def _shared_times(self):
        """Times that more than one packet has: only there frames are told apart by counting."""
        return {when for when, count in Counter(step.at for step in self.steps).items() if count > 1}

    def _judge_step(self, index, step, result, taken, shared_times, bound):
        line = result.verdicts[index]
        if missing := FIELDS - line.keys():
            yield f"its verdict line lacks {', '.join(sorted(missing))}"
            return
        yield from self._judge_line(index, step, line)
        sent = {}
        sent_at = result.by_time()
        shared = step.at in shared_times
        for port in result.outputs:
            mine = sent_at.get((port, step.at), [])
            if shared and mine:
                start = taken[port][step.at]
                mine = mine[start : start + len((step.out or {}).get(port, []))]
                taken[port][step.at] += len(mine)
            if mine:
                sent[port] = mine
        if sorted(line["tx"]) != sorted(sent):
            yield f"tx says {sorted(line['tx'])}, the captures have frames on {sorted(sent)}"
        if step.out is None:
            for port in sorted(set(sent) - {"host"}):
                yield f"{len(sent[port])} frames left on {port}, where none may"
            return
        for port in sorted(set(sent) | set(step.out)):
            got, expected = sent.get(port, []), step.out.get(port, [])
            if len(expected) == 1 and isinstance(expected[0], Group):
                yield from expected[0].check(got, View(bound, None, line["backend"]))
                continue
            if len(got) != len(expected):
                yield f"{len(got)} frames left on {port}, expected {len(expected)}"
                for data in got[len(expected) :]:
                    yield f"one more on {port}:\n{difference(b'', data)}"
            for want, data in zip(expected, got):
                try:
                    compare(build(want, View(bound, data, line["backend"])), data, not step.broken)
                except Unbound as error:
                    yield f"nothing to compare with: {error} was never seen"
                except Mismatch as error:
                    yield f"on {port}: {error}"

    def _judge_line(self, index, step, line):
        if (line["n"], line["port"]) != (index, step.port):
            yield f"its line is n={line['n']} port={line['port']}, expected n={index} port={step.port}"
        if line["verdict"] not in VERDICTS or line["reason"] not in REASONS | {None}:
            yield f"verdict {line['verdict']!r} or reason {line['reason']!r} is not in the contract's lists"
        if (line["verdict"] == "dropped") and line["reason"] is None:
            yield "dropped without a reason"
        if len(set(line["tx"])) != len(line["tx"]):
            yield f"tx names a port twice: {line['tx']}"
        if line["verdict"] not in step.verdicts:
            wanted = " or ".join(sorted(step.verdicts))
            yield f"verdict is {line['verdict']} ({line['reason']}), expected {wanted} ({said(step.reasons)})"
        elif not fits(step.reasons, line["reason"]):
            yield f"reason is {line['reason']}, expected {said(step.reasons)}"
        expected = {"policy": step.policy, "service": step.service, "backend": step.backend}
        if not self.has("NetworkPolicy", "ClusterNetworkPolicy"):
            expected["policy"] = None
        if not self.has("Service"):
            expected["service"] = expected["backend"] = None
        audited = line.get("policy_verdict") == "audit-deny"
        if step.audited is not None and audited != step.audited:
            yield f"policy_verdict is {line.get('policy_verdict')!r}, audited: {step.audited}"
        for name, wanted in expected.items():
            if not fits(wanted, line[name]):
                yield f"{name} is {line[name]!r}, expected {said(wanted)}"


def fits(wanted, value):
    if wanted is ANY:
        return True
    if wanted is SOME:
        return value is not None
    return value in wanted if isinstance(wanted, (set, frozenset, tuple, list)) else value == wanted


def said(wanted):
    if wanted is ANY:
        return "anything"
    if wanted is SOME:
        return "any but null"
    return (
        " or ".join(map(str, sorted(wanted, key=str)))
        if isinstance(wanted, (set, frozenset, tuple, list))
        else str(wanted)
    )


def story(title):
    """Makes a story of a function that fills it in."""

    def register(function):
        made = Story(title, function.__module__)
        made.fill = function
        STORIES.append(made)
        return function

    return register


def each(title, *axes):
    """One story per combination: `title` is formatted with the items of `axes`, which the function gets in order.

    >>> @each("{0} crosses over {1}", PROTOCOLS, FAMILIES)
    """

    def register(function):
        combinations = [()]
        for axis in axes:
            combinations = [before + (item,) for before in combinations for item in axis]
        for combination in combinations:
            made = Story(title.format(*combination), function.__module__)
            made.fill = lambda story, c=combination: function(story, *c)
            STORIES.append(made)
        return function

    return register
