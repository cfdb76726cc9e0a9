"""Flows: what begins one, how long it lasts, what follows it."""

from scapy.layers.inet import TCP
from scapy.packet import Raw

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_B, POD_C, TCP_, UDP_, V4, WORLD, service
from model import MASQUERADE, tunnel, tunnelled
from stories.policy import DENY_INGRESS
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
DNS = service("dns", "app: b", (("UDP", 53, 5353), ("TCP", 53, 5353)), VIP[False], VIP[True])


def ask(s, fam):
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / UDP_.opens(33000, 53))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / UDP_.opens(33000, 5353))
    )


def answer(s, fam, alive=True):
    """The backend's answer: translated while the flow lives, a flow of its own after that."""
    src, sport = (VIP[fam.six], 53) if alive else (POD_B, 5353)
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / UDP_.answers(5353, 33000))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(src, POD_A, 63) / UDP_.answers(sport, 33000))
    )


@each("A UDP flow without an answer lives thirty seconds over {0}", FAMILIES)
def udp_alive(s, fam):
    s.given(WORLD, DNS)
    ask(s, fam)
    s.wait(25)
    answer(s, fam)


@each("A UDP flow without an answer is gone after thirty seconds over {0}", FAMILIES)
def udp_gone(s, fam):
    s.given(WORLD, DNS)
    ask(s, fam)
    s.wait(35)
    answer(s, fam, alive=False)


@each("One question and one answer do not make a stream over {0}", FAMILIES)
def udp_single(s, fam):
    s.given(WORLD, DNS)
    ask(s, fam)
    answer(s, fam)
    s.wait(35)
    answer(s, fam, alive=False)


@each("A UDP stream lives 180 seconds over {0}", FAMILIES)
def stream_alive(s, fam):
    s.given(WORLD, DNS)
    ask(s, fam)
    answer(s, fam)
    ask(s, fam)
    s.wait(170)
    answer(s, fam)


@each("A UDP stream is gone after 180 seconds over {0}", FAMILIES)
def stream_gone(s, fam):
    s.given(WORLD, DNS)
    ask(s, fam)
    answer(s, fam)
    ask(s, fam)
    s.wait(190)
    answer(s, fam, alive=False)


@story("Every packet of a UDP flow gives it a new lease")
def refreshed(s):
    s.given(WORLD, DNS)
    ask(s, V4)
    for _ in range(4):
        s.wait(20)
        ask(s, V4)
    s.wait(20)
    answer(s, V4)


@story("The UDP timeout is what the configuration says")
def configured(s):
    s.given(WORLD, DNS, config="flows: { timeouts: { udp: 5s } }\n")
    ask(s, V4)
    s.wait(8)
    answer(s, V4, alive=False)


@each("A masqueraded UDP flow lives thirty seconds and is then closed to the outside over {0}", FAMILIES)
def masqueraded(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(33000, 53))).forwarded(
        "uplink0",
        NODE_A.sends(
            lambda view: fam.ip(NODE_A, fam.outside, 63) / UDP_.opens(view.pick("nat", "sport", *MASQUERADE), 53)
        ),
    )
    s.wait(25)
    s.send(
        "uplink0", NODE_A.hears(lambda view: fam.ip(fam.outside, NODE_A, 50) / UDP_.answers(53, view["nat"]))
    ).forwarded(POD_A.port, POD_A.gets(fam.ip(fam.outside, POD_A, 49) / UDP_.answers(53, 33000)))
    s.wait(35)
    s.send(
        "uplink0", NODE_A.hears(lambda view: fam.ip(fam.outside, NODE_A, 50) / UDP_.answers(53, view["nat"]))
    ).goes_nowhere()


def data(sport, dport, flags="PA", seq=5000, ack=7000):
    return TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack) / Raw(b"data")


@each("Mid-stream TCP between pods is picked up over {0}", FAMILIES)
def picked_up(s, fam):
    s.given(WORLD)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / data(33000, 80))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / data(33000, 80))
    )
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_C) / data(33000, 80))).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / data(33000, 80))
    )
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / data(34000, 80))).forwarded(
        POD_A.port, POD_A.gets(fam.ip(POD_C, POD_A, 62) / data(34000, 80))
    )


@each("Mid-stream TCP that policy forbids is not picked up over {0}", FAMILIES)
def not_picked_up(s, fam):
    s.given(WORLD, DENY_INGRESS)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / data(33000, 80))).dropped("PolicyDeny", policy="isolation")


@each("A SYN-ACK that answers nothing is InvalidState over {0}", FAMILIES)
def syn_ack(s, fam):
    s.given(WORLD)
    packet = TCP_.answers(80, 33000)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, POD_B) / packet)).dropped("InvalidState")
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / packet)).dropped("InvalidState")


@each("A whole TCP connection through a ClusterIP, from SYN to the last ACK, over {0}", FAMILIES)
def connection(s, fam):
    s.given(WORLD, service("web", "app: c", (("TCP", 80, 8080),), VIP[False], VIP[True]))
    vip = VIP[fam.six]
    for direction, flags, seq, ack, load in (
        (">", "S", 99, 0, b""),
        ("<", "SA", 499, 100, b""),
        (">", "A", 100, 500, b""),
        (">", "PA", 100, 500, b"GET"),
        ("<", "A", 500, 103, b""),
        ("<", "PA", 500, 103, b"200 OK"),
        (">", "A", 103, 506, b""),
        ("<", "FA", 506, 103, b""),
        (">", "A", 103, 507, b""),
        (">", "FA", 103, 507, b""),
        ("<", "A", 507, 104, b""),
    ):

        def made(sport, dport, flags=flags, seq=seq, ack=ack, load=load):
            return TCP(sport=sport, dport=dport, flags=flags, seq=seq, ack=ack) / Raw(load)

        if direction == ">":
            s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / made(33000, 80))).forwarded(
                "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / made(33000, 8080))
            )
        else:
            s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / made(8080, 33000))).forwarded(
                POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 62) / made(80, 33000))
            )


@each("A reset from the backend reaches the client in the ClusterIP's name over {0}", FAMILIES)
def backend_reset(s, fam):
    s.given(WORLD, DNS)
    vip = VIP[fam.six]
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, vip) / TCP_.opens(33000, 53))).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_A, POD_B, 63) / TCP_.opens(33000, 5353))
    )
    s.send(
        POD_B.port, POD_B.sends(fam.ip(POD_B, POD_A) / TCP(sport=5353, dport=33000, flags="RA", seq=0, ack=1001))
    ).forwarded(
        POD_A.port, POD_A.gets(fam.ip(vip, POD_A, 63) / TCP(sport=53, dport=33000, flags="RA", seq=0, ack=1001))
    )


@story("The same input gives the same bytes twice")
def deterministic(s):
    s.given(WORLD, DNS)
    s.twice = True
    for fam in FAMILIES:
        for sport in range(33000, 33020):
            s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / UDP_.opens(sport, 53))).forwarded(
                "uplink0",
                NODE_A.sends(
                    lambda view, fam=fam, sport=sport: (
                        fam.ip(NODE_A, fam.outside, 63)
                        / UDP_.opens(view.pick(f"{fam}{sport}", "sport", *MASQUERADE), 53)
                    )
                ),
            )
        ask(s, fam)
        answer(s, fam)
