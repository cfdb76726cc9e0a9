"""The command line of `sluice replay`: what ends with exit code 2 and a message, and what does not."""

import os

from cluster import POD_A, POD_C, UDP_, V4, WORLD
from program import write_folder
from story import STORIES, Story


def command(title, code):
    """A story that is one call of the program: the function changes its arguments."""

    def register(function):
        made = Story(title, function.__module__)
        made.fill = lambda story: None
        made.check = lambda program, folder: check(program, folder, function, code)
        STORIES.append(made)
        return function

    return register


def check(program, folder, change, code):
    plain = Story("", "")
    plain.given(WORLD)
    plain.send(POD_A.port, POD_A.sends(V4.ip(POD_A, POD_C) / UDP_.opens(33000, 53)))
    frame = bytes(plain.steps[0].packet(None))
    inputs = write_folder(plain, [frame], folder)
    out = os.path.join(folder, "out")
    os.makedirs(out)
    arguments = change(folder, [*program.arguments(plain, folder), *inputs, "--out", out])
    got, _, errors = program.call(arguments)
    problems = [] if got == code else [f"exit code {got}, expected {code}: {errors.strip()[-500:]}"]
    if code and not errors.strip():
        problems.append("no message on standard error")
    if "panicked" in errors:
        problems.append(f"a panic: {errors.strip()[-500:]}")
    return problems


def with_config(folder, arguments, text):
    path = os.path.join(folder, "config.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return [*arguments, "--config", path]


def with_manifest(folder, text):
    with open(os.path.join(folder, "objects", "more.yaml"), "w", encoding="utf-8") as file:
        file.write(text)


def with_capture(folder, arguments, data):
    path = os.path.join(folder, "bad.pcap")
    with open(path, "wb") as file:
        file.write(data)
    return [*arguments, "--rx", f"uplink0={path}"]


@command("A right call ends with 0", 0)
def right(folder, arguments):
    return arguments


@command("An unknown node ends with 2", 2)
def unknown_node(folder, arguments):
    return ["node-z" if item == "node-a" else item for item in arguments]


@command("An unknown port ends with 2", 2)
def unknown_port(folder, arguments):
    return [item.replace("pod:default/a=", "uplink7=") for item in arguments]


@command("A pod that does not exist is an unknown port", 2)
def unknown_pod(folder, arguments):
    return [item.replace("pod:default/a=", "pod:default/zebra=") for item in arguments]


@command("A pod of another node is an unknown port", 2)
def far_pod(folder, arguments):
    return [item.replace("pod:default/a=", "pod:default/c=") for item in arguments]


@command("An unknown option ends with 2", 2)
def unknown_option(folder, arguments):
    return [*arguments, "--shiny"]


@command("An unknown configuration field ends with 2", 2)
def unknown_field(folder, arguments):
    return with_config(folder, arguments, "vxlan: { vni: 4096, shiny: yes }\n")


@command("A configuration that is no YAML ends with 2", 2)
def broken_config(folder, arguments):
    return with_config(folder, arguments, "vxlan: {\n")


@command("A configuration file that is not there ends with 2", 2)
def missing_config(folder, arguments):
    return [*arguments, "--config", os.path.join(folder, "nowhere.yaml")]


@command("A configuration with all its fields ends with 0", 0)
def full_config(folder, arguments):
    return with_config(
        folder,
        arguments,
        """
node: node-a
source: { kind: kubernetes }
ports:
  uplink: { driver: af_xdp, interface: eth0, queues: auto, mode: auto }
  pods: { driver: auto }
  host: { interface: sluice0 }
workers: auto
idle: adaptive
vxlan: { vni: 4096, port: 4789 }
cidrs: { pods: [10.244.0.0/16, "fd00:10:244::/56"], services: [10.96.0.0/12, "fd00:10:96::/112"] }
masquerade: { enabled: true, exclude: [10.0.0.0/8], ports: 40000-57343 }
node_ports: 30000-32767
flows:
  max: 1048576
  timeouts:
    { tcp_established: 24h, tcp_handshake: 60s, tcp_closing: 120s, udp: 30s, udp_stream: 180s, icmp: 30s,
      sctp_established: 24h, other: 60s }
policy: { default_action: drop }
socket: /run/sluicegate/sluiced.sock
state_dir: /var/lib/sluicegate/node-a
metrics: 127.0.0.1:9765
""",
    )


@command("A capture that is not there ends with 2", 2)
def missing_capture(folder, arguments):
    return [item if not item.startswith("pod:") else "pod:default/a=/nowhere.pcap" for item in arguments]


@command("A capture that is none ends with 2", 2)
def no_capture(folder, arguments):
    return with_capture(folder, arguments, b"this is not a capture at all, only a line of text\n")


@command("A capture that is cut short ends with 2", 2)
def cut_capture(folder, arguments):
    with open(os.path.join(folder, "in.pod_default_a.pcap"), "rb") as file:
        return with_capture(folder, arguments, file.read()[:-5])


@command("A folder of objects that is not there ends with 2", 2)
def missing_objects(folder, arguments):
    return [os.path.join(folder, "nowhere") if item.endswith("objects") else item for item in arguments]


@command("A call without --node ends with 2", 2)
def no_node(folder, arguments):
    at = arguments.index("--node")
    return arguments[:at] + arguments[at + 2 :]


@command("A number of workers that is none ends with 2", 2)
def no_workers(folder, arguments):
    return [*arguments, "--workers", "some"]


@command("A kind that we do not read is no error", 0)
def foreign_kind(folder, arguments):
    with_manifest(
        folder, "apiVersion: example.com/v1\nkind: Gadget\nmetadata: { name: x }\nspec: { anything: [goes] }\n"
    )
    return arguments


@command("An object that fails closed is no reason to exit", 0)
def strange_object(folder, arguments):
    with_manifest(
        folder,
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: odd, namespace: default }\n"
        "spec: { podSelector: {}, shiny: 1 }\n",
    )
    return arguments


@command("An empty capture is fine", 0)
def empty_capture(folder, arguments):
    import capture

    path = os.path.join(folder, "empty.pcap")
    capture.write(path, [])
    return [*arguments, "--rx", f"uplink0={path}"]
