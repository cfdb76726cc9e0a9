"""What Services and EndpointSlices may look like: joined, doubled, hinted, foreign, half empty."""

from cluster import NODE_A, NODE_B, POD_A, POD_B, POD_C, POD_D, TCP_, V4, WORLD, service, world
from model import reset, tunnel
from story import Mismatch, each, story

VIP, VIP6 = "10.96.0.10", "fd00:10:96::a"
BARE = service("web", "", (("TCP", 80, 8080),), VIP, VIP6).replace("  selector: {  }\n", "")


def slice_of(name, *endpoints, port=8080, family="IPv4", labels="", conditions="{ ready: true }"):
    """An EndpointSlice of Service `web`; an endpoint is (address, node, further text)."""
    lines = []
    for address, node, *more in endpoints:
        lines.append(f'- addresses: [ "{address}" ]\n  nodeName: {node}\n  conditions: {conditions}' + "".join(more))
    return (
        f"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{ name: {name}, namespace: default, "
        f"labels: {{ kubernetes.io/service-name: web{labels} }} }}\naddressType: {family}\n"
        f"ports: [ {{ name: tcp-80, protocol: TCP, port: {port} }} ]\nendpoints:\n" + "\n".join(lines)
    )


def all_reach(s, *allowed, flows=8, both=False):
    """Several new flows to the Service, each to one of the `allowed` pods of node-b; with `both` none may be idle.

    Twenty-four flows that a fair hash leaves on one of two pods are one chance in eight million.
    """
    names = [pod.v4 for pod in allowed]
    last = 33000 + flows - 1

    def chosen(view, sport):
        if view.got is None and both:  # the ideal program takes turns
            view.bound.setdefault(f"pod of {sport}", names[sport % len(names)])
        address = view.choose(f"pod of {sport}", "dst", names)
        idle = set(names) - {view.bound.get(f"pod of {port}") for port in range(33000, last + 1)}
        if both and sport == last and idle:
            raise Mismatch(f"none of {flows} flows reached {', '.join(idle)}")
        return address

    for sport in range(33000, last + 1):
        s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP) / TCP_.opens(sport, 80))).forwarded(
            "uplink0",
            tunnel(
                NODE_A,
                NODE_B,
                lambda view, sport=sport: V4.ip(POD_A, chosen(view, sport), 63) / TCP_.opens(sport, 8080),
            ),
            backend={f"{name}:8080" for name in names},
        )


def refused(s):
    syn = V4.ip(POD_A, VIP) / TCP_.opens(33000, 80)
    s.send(POD_A.port, POD_A.sends(syn)).replied(POD_A.gets(reset(V4, VIP, POD_A, syn)), reason="NoBackend")


@story("Endpoints of several slices are one set")
def joined(s):
    s.given(WORLD, BARE, slice_of("web-1", (POD_C.v4, "node-b")), slice_of("web-2", (POD_D.v4, "node-b")))
    all_reach(s, POD_C, POD_D)


@story("An endpoint that two slices name counts as ready if one says so")
def doubled(s):
    s.given(
        WORLD,
        BARE,
        slice_of("web-1", (POD_C.v4, "node-b")),
        slice_of("web-2", (POD_C.v4, "node-b"), conditions="{ ready: false, serving: false }"),
    )
    all_reach(s, POD_C)


@story("Conditions that are not there mean ready")
def no_conditions(s):
    s.given(WORLD, BARE, slice_of("web-1", (POD_C.v4, "node-b"), conditions="{}"))
    all_reach(s, POD_C)


@story("Slices of another family, of names, and those of headless Services are not used")
def foreign(s):
    s.given(
        WORLD,
        BARE,
        slice_of("web-1", ("fd00:10:244:2::a", "node-b"), family="IPv6"),
        slice_of("web-2", ("web.example.com", "node-b"), family="FQDN"),
        slice_of("web-3", (POD_D.v4, "node-b"), labels=', service.kubernetes.io/headless: ""'),
    )
    refused(s)


@story("A slice whose port has no number gives no endpoint")
def no_port(s):
    s.given(
        WORLD,
        BARE,
        slice_of("web-1", (POD_C.v4, "node-b")).replace(
            "{ name: tcp-80, protocol: TCP, port: 8080 }", "{ name: tcp-80, protocol: TCP }"
        ),
    )
    refused(s)


@story("One address with two ports is two endpoints")
def two_ports(s):
    s.given(
        WORLD,
        BARE,
        slice_of("web-1", (POD_C.v4, "node-b"), port=8080),
        slice_of("web-2", (POD_C.v4, "node-b"), port=9090),
    )
    for sport in range(33000, 33006):
        s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP) / TCP_.opens(sport, 80))).forwarded(
            "uplink0",
            tunnel(
                NODE_A,
                NODE_B,
                lambda view, sport=sport: (
                    V4.ip(POD_A, POD_C, 63) / TCP_.opens(sport, view.choose(f"port of {sport}", "dport", [8080, 9090]))
                ),
            ),
            backend={"10.244.2.10:8080", "10.244.2.10:9090"},
        )


@story("A ready pod's publishNotReadyAddresses makes no difference, an unready one's does")
def not_ready(s):
    down = world().replace(POD_C.yaml(), POD_C.yaml().replace('status: "True"', 'status: "False"'))
    s.given(down, service("web", "app: c", (("TCP", 80, 8080),), VIP, VIP6, more="  publishNotReadyAddresses: true"))
    all_reach(s, POD_C)


def zoned(*endpoints):
    east = world().replace(
        "kubernetes.io/hostname: node-a", "kubernetes.io/hostname: node-a, topology.kubernetes.io/zone: east"
    )
    return east, BARE, slice_of("web-1", *endpoints)


def hint(*zones):
    return "\n  hints: { forZones: [ " + ", ".join(f"{{ name: {zone} }}" for zone in zones) + " ] }"


@story("Zone hints keep traffic in the node's zone")
def zone(s):
    s.given(*zoned((POD_C.v4, "node-b", hint("west")), (POD_D.v4, "node-b", hint("east", "north"))))
    all_reach(s, POD_D)


@each("Zone hints are ignored when {0}", ["one endpoint has none", "none names the node's zone"])
def no_zone(s, why):
    other = "" if why == "one endpoint has none" else hint("north")
    first = hint("east") if why == "one endpoint has none" else hint("west")
    s.given(*zoned((POD_C.v4, "node-b", first), (POD_D.v4, "node-b", other)))
    all_reach(s, POD_C, POD_D, flows=24, both=True)


@story("An ExternalName Service with a stale clusterIP is nobody's")
def external_name(s):
    text = service("web", "app: c", (("TCP", 80, 8080),), VIP, kind="ExternalName", more="  externalName: example.com")
    s.given(WORLD, text)
    s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, VIP) / TCP_.opens(33000, 80))).dropped("NoRoute")


@story("A Service without a clusterIP is given one, and other Services keep theirs")
def given_address(s):
    # READING: which address it gets is not prescribed; it must not disturb those that are written down.
    s.given(
        WORLD,
        "apiVersion: v1\nkind: Service\nmetadata: { name: aaa, namespace: default }\n"
        "spec: { selector: { app: d }, ports: [ { port: 80 } ] }",
        service("web", "app: c", (("TCP", 80, 8080),), VIP, VIP6),
    )
    all_reach(s, POD_C)


@story("Two Services of one selector both work")
def two_services(s):
    s.given(
        WORLD,
        service("web", "app: b", (("TCP", 80, 8080),), VIP, VIP6),
        service("web2", "app: b", (("TCP", 81, 8080),), "10.96.0.11", "fd00:10:96::b"),
    )
    for index, (vip, port, name) in enumerate(((VIP, 80, "web"), ("10.96.0.11", 81, "web2"))):
        s.send(POD_A.port, POD_A.sends(V4.ip(POD_A, vip) / TCP_.opens(33000 + index, port))).forwarded(
            POD_B.port,
            POD_B.gets(V4.ip(POD_A, POD_B, 63) / TCP_.opens(33000 + index, 8080)),
            service=f"default/{name}:{port}/TCP",
        )
