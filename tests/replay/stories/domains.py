"""domainNames of ClusterNetworkPolicy: what a pod was told in DNS answers opens what its rules name, and nothing else."""

from scapy.layers.dns import DNS, DNSQR, DNSRR
from scapy.layers.inet import TCP, UDP
from scapy.packet import Raw

from cluster import FAMILIES, NODE_A, NODE_B, POD_A, POD_B, POD_C, TCP_, UDP_, V4, WORLD, service
from model import tunnel, tunnelled
from story import each, story

VIP = {False: "10.96.0.10", True: "fd00:10:96::a"}
PLAIN = "masquerade: { enabled: false }\n"
ONLY_A = "{ pods: { podSelector: { matchLabels: { app: a } } } }"


def names(*rules, priority=10, name="names", tier="Admin"):
    """Accept rules by name, DNS to pods, and nothing else."""
    accept = "".join(f"  - {rule}\n" for rule in rules)
    return (
        f"apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{ name: {name} }}\n"
        f"spec:\n  tier: {tier}\n  priority: {priority}\n  subject: {ONLY_A}\n  egress:\n"
        "  - { name: dns, action: Accept, to: [ { namespaces: {} } ], protocols: [ { udp: { destinationPort: { number: 53 } } },"
        " { tcp: { destinationPort: { number: 53 } } } ] }\n"
        f"{accept}"
        '  - { name: rest, action: Deny, to: [ { networks: [ "0.0.0.0/0", "::/0" ] } ] }\n'
    )


HTTPS = "protocols: [ { tcp: { destinationPort: { number: 443 } } } ]"
WEB = f"{{ name: web, action: Accept, to: [ {{ domainNames: [ '*.example.org' ] }} ], {HTTPS} }}"


def question(fam, name="www.example.org", id=7):
    return DNS(id=id, rd=1, qd=DNSQR(qname=name, qtype="AAAA" if fam.six else "A"))


def answer(fam, address=None, name="www.example.org", id=7, ttl=60, more=None):
    kind = "AAAA" if fam.six else "A"
    record = DNSRR(rrname=name, type=kind, ttl=ttl, rdata=address or fam.outside)
    asked = DNSQR(qname=name, qtype=kind)
    return DNS(id=id, qr=1, rd=1, ra=1, qd=asked, an=more or record)


def ask(s, fam, message=None, sport=33000, server=POD_B):
    packet = fam.ip(POD_A, server) / UDP(sport=sport, dport=53) / (message or question(fam))
    through = fam.ip(POD_A, server, 63) / UDP(sport=sport, dport=53) / (message or question(fam))
    s.send(POD_A.port, POD_A.sends(packet)).forwarded(server.port, server.gets(through))


def tell(s, fam, message=None, dport=33000, server=POD_B):
    message = message or answer(fam)
    packet = fam.ip(server, POD_A) / UDP(sport=53, dport=dport) / message
    through = fam.ip(server, POD_A, 63) / UDP(sport=53, dport=dport) / message
    s.send(server.port, server.sends(packet)).forwarded(POD_A.port, POD_A.gets(through))


def try_to(s, fam, opened, there=None, sport=40000, dport=443, proto=TCP_):
    there = there or fam.outside
    step = s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, there) / proto.opens(sport, dport)))
    if opened:
        step.forwarded("uplink0", NODE_A.sends(fam.ip(POD_A, there, 63) / proto.opens(sport, dport)), policy=opened)
    else:
        step.dropped("PolicyDeny", policy="ClusterNetworkPolicy/names#rest")


NAMED = "ClusterNetworkPolicy/names#web"


@each("The first packet after the answer passes, and before it nothing does, over {0}", FAMILIES)
def first_packet(s, fam):
    s.given(WORLD, names(WEB), config=PLAIN)
    try_to(s, fam, None)
    ask(s, fam)
    try_to(s, fam, None)
    tell(s, fam)
    try_to(s, fam, NAMED, sport=40001)
    try_to(s, fam, None, sport=40002, dport=80)
    # The other pod was told nothing, and nobody limits it.
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, fam.outside) / TCP_.opens(40000, 443))).forwarded(
        "uplink0", NODE_A.sends(fam.ip(POD_B, fam.outside, 63) / TCP_.opens(40000, 443)), policy=None
    )


@each("A resolver behind a Service on another node is heard as well, over {0}", FAMILIES)
def service_resolver(s, fam):
    s.given(WORLD, names(WEB), service("dns", "app: c", (("UDP", 53, 53),), VIP[False], VIP[True]), config=PLAIN)
    query = UDP(sport=33000, dport=53) / question(fam)
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, VIP[fam.six]) / query)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_A, POD_C, 63) / query)
    )
    reply = UDP(sport=53, dport=33000) / answer(fam)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_A, 63) / reply)).forwarded(
        POD_A.port, POD_A.gets(fam.ip(VIP[fam.six], POD_A, 62) / reply)
    )
    try_to(s, fam, NAMED)


@each("Exact names match themselves alone and wildcards what is below, over {0}", FAMILIES)
def matching(s, fam):
    exact = f"{{ name: web, action: Accept, to: [ {{ domainNames: [ 'Example.ORG.' ] }} ], {HTTPS} }}"
    s.given(WORLD, names(exact), config=PLAIN)
    for n, (name, passes) in enumerate((("www.example.org", 0), ("my-example.org", 0), ("eXample.org", 1))):
        ask(s, fam, question(fam, name, n), 33000 + n)
        tell(s, fam, answer(fam, name=name, id=n), 33000 + n)
        try_to(s, fam, NAMED if passes else None, sport=40000 + n)


@each("Aliases are followed from the name that was asked for, over {0}", FAMILIES)
def aliases(s, fam):
    s.given(WORLD, names(WEB), config=PLAIN)
    other = "2001:db8:7::66" if fam.six else "198.51.100.66"
    kind = "AAAA" if fam.six else "A"
    chain = (
        DNSRR(rrname="www.example.org", type="CNAME", ttl=600, rdata="edge.cdn.net")
        / DNSRR(rrname="edge.cdn.net", type=kind, ttl=60, rdata=fam.outside)
        / DNSRR(rrname="stranger.cdn.net", type=kind, ttl=60, rdata=other)
    )
    ask(s, fam)
    tell(s, fam, answer(fam, more=chain))
    try_to(s, fam, NAMED)
    try_to(s, fam, None, there=other, sport=40001)


@each("An answer that nobody asked for teaches nothing, over {0}", FAMILIES)
def unasked(s, fam):
    s.given(WORLD, names(WEB), config=PLAIN)
    ask(s, fam, question(fam, id=7))
    tell(s, fam, answer(fam, id=8))
    try_to(s, fam, None)
    tell(s, fam, answer(fam, name="ftp.example.org", id=7))
    try_to(s, fam, None, sport=40001)
    tell(s, fam)
    try_to(s, fam, NAMED, sport=40002)
    # The question is answered: a second answer may not add to it.
    other = "2001:db8:7::66" if fam.six else "198.51.100.66"
    tell(s, fam, answer(fam, other))
    try_to(s, fam, None, there=other, sport=40003)


@each("What another pod is told opens nothing here, over {0}", FAMILIES)
def others(s, fam):
    s.given(WORLD, names(WEB), config=PLAIN)
    query = UDP(sport=33000, dport=53) / question(fam)
    s.send(POD_B.port, POD_B.sends(fam.ip(POD_B, POD_C) / query)).forwarded(
        "uplink0", tunnel(NODE_A, NODE_B, fam.ip(POD_B, POD_C, 63) / query)
    )
    reply = UDP(sport=53, dport=33000) / answer(fam)
    s.send("uplink0", tunnelled(NODE_B, NODE_A, fam.ip(POD_C, POD_B, 63) / reply)).forwarded(
        POD_B.port, POD_B.gets(fam.ip(POD_C, POD_B, 62) / reply)
    )
    try_to(s, fam, None)


@each("An address lives for its time, with a floor, and its connections longer, over {0}", FAMILIES)
def time_to_live(s, fam):
    s.given(WORLD, names(WEB), config=PLAIN)
    ask(s, fam)
    tell(s, fam, answer(fam, ttl=1))
    s.wait(20)
    try_to(s, fam, NAMED)
    s.wait(20)
    try_to(s, fam, None, sport=40001)
    more = TCP(sport=40000, dport=443, flags="PA", seq=2, ack=2) / Raw(b"still here")
    s.send(POD_A.port, POD_A.sends(fam.ip(POD_A, fam.outside) / more)).forwarded(
        "uplink0", NODE_A.sends(fam.ip(POD_A, fam.outside, 63) / more), policy=NAMED
    )


@story("A connection by name outlives its address and a change of policies, and ends with its rule")
def life(s):
    s.given(WORLD, names(WEB), config=PLAIN)
    ask(s, V4)
    tell(s, V4, answer(V4, ttl=1))
    try_to(s, V4, NAMED)

    def go_on(seq, passes):
        more = TCP(sport=40000, dport=443, flags="PA", seq=seq, ack=2) / Raw(b"more")
        step = s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, V4.outside) / more))
        if passes:
            step.forwarded("uplink0", NODE_A.sends(V4.ip(POD_A, V4.outside, 63) / more), policy=NAMED)
        else:
            step.dropped("PolicyDeny", policy="ClusterNetworkPolicy/names#rest")

    s.wait(40)
    go_on(2, True)
    s.change(WORLD, names(WEB, "{ name: more, action: Accept, to: [ { networks: [ 203.0.113.0/24 ] } ] }"))
    go_on(3, True)
    try_to(s, V4, None, sport=40001)
    s.change(WORLD, names())
    go_on(4, False)


@each("DNS over TCP is heard, over {0}", FAMILIES)
def over_tcp(s, fam):
    s.given(WORLD, names(WEB), config=PLAIN)

    def segment(forward, flags, seq, ack, message=None):
        ports = {"sport": 33000, "dport": 53} if forward else {"sport": 53, "dport": 33000}
        body = bytes(message) if message else b""
        data = Raw(len(body).to_bytes(2, "big") + body) if message else None
        tcp = TCP(flags=flags, seq=seq, ack=ack, **ports)
        here, there = (POD_A, POD_B) if forward else (POD_B, POD_A)
        packet = tcp / data if data else tcp
        s.send(here.port, here.sends(fam.ip(here, there) / packet)).forwarded(
            there.port, there.gets(fam.ip(here, there, 63) / packet)
        )

    segment(True, "A", 1, 1)
    segment(False, "A", 1, 1)
    segment(True, "PA", 1, 1, question(fam))
    segment(False, "PA", 1, 40, answer(fam))
    try_to(s, fam, NAMED)


@each("A DNS answer that comes in several segments is heard with its last one, over {0}", FAMILIES)
def over_segments(s, fam):
    s.given(WORLD, names(WEB), config=PLAIN)

    def stream(message):
        body = bytes(message)
        return len(body).to_bytes(2, "big") + body

    def segment(forward, seq, data, sport=33000):
        ports = {"sport": sport, "dport": 53} if forward else {"sport": 53, "dport": sport}
        here, there = (POD_A, POD_B) if forward else (POD_B, POD_A)
        packet = TCP(flags="PA", seq=seq, ack=1, **ports) / Raw(data)
        s.send(here.port, here.sends(fam.ip(here, there) / packet)).forwarded(
            there.port, there.gets(fam.ip(here, there, 63) / packet)
        )

    # The question's length comes by itself, as some resolvers send it; the answer in three pieces, one of them twice.
    asked, told = stream(question(fam)), stream(answer(fam))
    segment(True, 1, asked[:2])
    segment(True, 3, asked[2:])
    segment(False, 1, told[:1])
    segment(False, 2, told[1:30])
    segment(False, 2, told[1:30])
    try_to(s, fam, None)
    segment(False, 31, told[30:])
    try_to(s, fam, NAMED, sport=40001)
    # Of another connection a piece is missing: its address stays closed.
    other = "2001:db8:7::66" if fam.six else "198.51.100.66"
    told = stream(answer(fam, other, id=8))
    segment(True, 1, stream(question(fam, id=8)), sport=33001)
    segment(False, 1, told[:20], sport=33001)
    segment(False, 41, told[40:], sport=33001)
    try_to(s, fam, None, there=other, sport=40002)


@story("Bytes that are no DNS pass as they came and teach nothing")
def hostile(s):
    s.given(WORLD, names(WEB), config=PLAIN)
    ask(s, V4)
    head = bytes(answer(V4))
    for bad in (b"", b"\x00\x07", head[:12], head[:20] + b"\xc0\x14" * 40, head[:-3], b"\xff" * 200):
        tell(s, V4, Raw(bad))
    try_to(s, V4, None)


@story("A domain rule in the Baseline tier stands back where a NetworkPolicy isolates the pod")
def baseline(s):
    out = (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: out, namespace: default }\n"
        "spec:\n  podSelector: { matchLabels: { app: a } }\n  policyTypes: [Egress]\n"
        "  egress: [ { ports: [ { port: 53, protocol: UDP } ] } ]\n"
    )
    s.given(WORLD, names(WEB, tier="Baseline"), out, config=PLAIN)
    ask(s, V4)
    tell(s, V4)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, V4.outside) / TCP_.opens(40000, 443))).dropped(
        "PolicyDeny", policy="isolation"
    )
    s.change(WORLD, names(WEB, tier="Baseline"))
    ask(s, V4, sport=33001)
    tell(s, V4, dport=33001)
    try_to(s, V4, NAMED, sport=40001)
