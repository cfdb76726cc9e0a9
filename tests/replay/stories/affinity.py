"""`sessionAffinity: ClientIP`: a client keeps its pod, over ports and changes, until it has been silent too long."""

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_C, POD_D, TCP_, UDP_, WORLD, pod
from model import MASQUERADE, tunnel
from story import each

from stories.changes import LB, VIP, WAYS, bare, endpoints

MORE = [pod(f"x{n}", NODE_B, 40 + n) for n in range(12)]
PORTS = (("TCP", 80, 8080, 30080), ("UDP", 80, 8080, 30080), ("TCP", 443, 8080, 30443))


def keeping(seconds=None, kind="LoadBalancer"):
    config = f"\n  sessionAffinityConfig: {{ clientIP: {{ timeoutSeconds: {seconds} }} }}" if seconds else ""
    return bare(kind=kind, ports=PORTS, more="  sessionAffinity: ClientIP" + config)


def serves(*pods):
    return endpoints(*pods, numbers=PORTS)


def asks(s, fam, way, name, among, sport, proto=TCP_, port=None):
    """A new connection by `way` meets the pod that `name` stands for, which must be one of `among`."""
    front = {"pod": VIP, "host": VIP, "balancer": LB}.get(way.kind, {fam.six: NODE_A.address(fam.six)})[fam.six]
    number = port or way.port
    outside = way.kind in ("balancer", "node port")

    def inner(view):
        there = view.choose(name, "dst", [fam.at(each_pod) for each_pod in among])
        source = POD_A if way.kind == "pod" else NODE_A.overlay(fam.six)
        return fam.ip(source, there, 63) / proto.opens(
            view.pick(None, "sport", *MASQUERADE) if outside else sport, 8080
        )

    if way.kind == "pod":
        step = s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, front) / proto.opens(sport, number)))
    elif way.kind == "host":
        step = s.send("host", NODE_A.host_sends(fam.ip(NODE_A.overlay(fam.six), front) / proto.opens(sport, number)))
    else:
        step = s.send("uplink0", NODE_A.hears(fam.ip(fam.outside, front) / proto.opens(sport, number)))
    return step.forwarded("uplink0", tunnel(NODE_A, NODE_B, inner))


@each("With ClientIP affinity fifteen connections of {0} over {1} meet one pod", WAYS, FAMILIES)
def sticks(s, way, fam):
    s.given(WORLD, keeping(), serves(POD_C, POD_D, *MORE))
    for sport in range(33000, 33015):
        asks(s, fam, way, "the pod", [POD_C, POD_D, *MORE], sport)


@each("With ClientIP affinity the ports and protocols of a Service lead a client to one pod over {0}", FAMILIES)
def ports(s, fam):
    s.given(WORLD, keeping(), serves(POD_C, POD_D, *MORE))
    for number, (proto, port) in enumerate(((TCP_, 80), (UDP_, 80), (TCP_, 443), (TCP_, 80), (UDP_, 80))):
        asks(s, fam, WAYS[0], "the pod", [POD_C, POD_D, *MORE], 33000 + number, proto, port)


@each("With ClientIP affinity a client keeps its pod though others join, for {0} over {1}", WAYS, FAMILIES)
def joins(s, way, fam):
    # One pod of the first two serves the client; with twelve more a mere hash would move it, in all likelihood.
    s.given(WORLD, keeping(), serves(POD_C))
    asks(s, fam, way, "the pod", [POD_C], 33000)
    for number in range(1, 12):
        s.change(WORLD, keeping(), serves(POD_C, *MORE[:number]))
        asks(s, fam, way, "the pod", [POD_C], 33000 + number)


@each(
    "With ClientIP affinity a client whose pod goes gets another, and stays there when the first returns, over {0}",
    FAMILIES,
)
def leaves(s, fam):
    s.given(WORLD, keeping(), serves(POD_C))
    asks(s, fam, WAYS[0], "first", [POD_C], 33000)
    s.change(WORLD, keeping(), serves((POD_C, "st"), POD_D))
    asks(s, fam, WAYS[0], "second", [POD_D], 33001)
    s.change(WORLD, keeping(), serves(POD_C, POD_D))
    for sport in range(33002, 33006):
        asks(s, fam, WAYS[0], "second", [POD_D], sport)


@each(
    "Affinity lasts while new connections come within its timeout, and {1} of silence end it, over {0}",
    FAMILIES,
    ["61 s"],
)
def timeout(s, fam, _):
    s.given(WORLD, keeping(60), serves(POD_C))
    asks(s, fam, WAYS[0], "first", [POD_C], 33000)
    # With pod c alone gone from the hash's choice: what the hash would give among many is learned by another Service
    # first, so that the end of affinity is seen as the move to that pod.
    crowd = [POD_C, *MORE]
    s.change(WORLD, keeping(60), serves(*crowd))
    for number in range(1, 4):
        s.wait(59)
        asks(s, fam, WAYS[0], "first", [POD_C], 33000 + number)
    s.wait(61)
    asks(s, fam, WAYS[0], "by hash", crowd, 33010)
    asks(s, fam, WAYS[0], "by hash", crowd, 33011)
    # A Service of the same pods whose affinity begins now chooses by the same hash: affinity had ended indeed.
    s.change(WORLD, keeping(60).replace("name: web", "name: other"), endpoints(*crowd, name="other", numbers=PORTS))
    asks(s, fam, WAYS[0], "by hash", crowd, 33012)


@each("A day is the longest affinity, over {0}", FAMILIES)
def a_day(s, fam):
    s.given(WORLD, keeping(86400), serves(POD_C))
    asks(s, fam, WAYS[0], "first", [POD_C], 33000)
    s.change(WORLD, keeping(86400), serves(POD_C, *MORE))
    s.wait(86_000)
    asks(s, fam, WAYS[0], "first", [POD_C], 33001)


@each(
    "Affinity switched on keeps a client where it was spread before, and switched off spreads it again, over {0}",
    FAMILIES,
)
def switched(s, fam):
    crowd = [POD_C, POD_D]
    plain = bare(kind="LoadBalancer", ports=PORTS)

    def spread(first):
        for sport in range(first, first + 8):
            asks(s, fam, WAYS[0], f"of {sport}", crowd, sport)

    s.given(WORLD, plain, serves(*crowd))
    spread(33000)
    s.change(WORLD, keeping(), serves(*crowd))
    for sport in range(33100, 33108):
        asks(s, fam, WAYS[0], "kept", crowd, sport)
    s.change(WORLD, plain, serves(*crowd))
    spread(33200)
