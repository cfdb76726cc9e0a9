"""End to end on one node: what a container runtime meets. Registered by run.py; each test has a cluster of its own."""

import concurrent.futures
import json
import os
import select
import socket
import statistics
import subprocess
import threading
import time

from small_cluster import SmallCluster, pod_manifest  # first: it sets the path of those below
from namespaces import run, wait_until
from probes import Refused, Silence, datagram, fetch, throughput
from topology import Pod, PodSpec, of_family

TESTS = []


def test(function):
    TESTS.append((function.__name__.replace("_", " "), function))
    return function


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


def strangers(cluster, names):
    """Pods that no object describes, each with a namespace; IPAM gives their addresses."""
    pods = [Pod(cluster, PodSpec(f"default/{name}", "node-a", ())) for name in names]
    for pod in pods:
        cluster.pods[pod.spec.key] = pod
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pod: run("ip", "netns", "add", pod.namespace.name), pods))
    return pods


def timed(work):
    start = time.monotonic()
    result = work()
    return result, time.monotonic() - start


def at_once(pods, verb):
    """One verb for all pods at the same time: the finished processes, and the seconds that each took, from before its start
    to its end. A runtime is not a hundred threads of Python: processes are spawned one after the other without waiting, and
    their ends are seen by descriptor."""
    calls, ends, poll = [], {}, select.epoll()
    for pod in pods:
        program, environment, network = pod.cni_call(verb)
        files = [os.memfd_create(name) for name in ("stdin", "stdout")]
        os.pwrite(files[0], network.encode(), 0)
        calls.append((program, environment, files))

    def watch():
        while len(ends) < len(pods):
            for descriptor, _ in poll.poll():
                ends[descriptor] = time.monotonic()
                poll.unregister(descriptor)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    running = []
    for program, environment, files in calls:
        start = time.monotonic()
        pid = os.posix_spawn(program, [program], environment, file_actions=[(os.POSIX_SPAWN_DUP2, file, at) for at, file in enumerate(files)])
        running.append((start, pid, os.pidfd_open(pid)))
        poll.register(running[-1][2], select.EPOLLIN)
    watcher.join(120)
    expect(not watcher.is_alive(), f"{len(pods) - len(ends)} of {len(pods)} {verb}s do not end")
    done, seconds = [], []
    for (start, pid, descriptor), (program, _, files) in zip(running, calls):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        done.append(subprocess.CompletedProcess([program], code, stdout=os.pread(files[1], 1 << 20, 0).decode()))
        seconds.append(ends[descriptor] - start)
        for file in (*files, descriptor):
            os.close(file)
    poll.close()
    return done, seconds


def shares(seconds):
    ordered = sorted(seconds)
    return statistics.median(ordered), ordered[int(len(ordered) * 0.95)], ordered[-1]


def addresses(added):
    return [ip["address"].split("/")[0] for ip in json.loads(added.stdout)["ips"]]


def in_use(cluster):
    return sum(pool["in_use"] for pool in cluster.node.api("/v1/status")["ipam"])


def exchange(given):
    """Every pod sends a datagram to the next one, in both families; says where none arrived."""
    pods, sockets = list(given), {}
    try:
        for pod in pods:
            with pod.namespace.entered():
                for version, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                    sock = sockets[pod, version] = socket.socket(kind, socket.SOCK_DGRAM)
                    if version == 6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    sock.bind(("", 7777))
        missing = set(sockets)
        for _ in range(3):
            for at, pod in enumerate(pods):
                following = pods[(at + 1) % len(pods)]
                for version in (4, 6):
                    if (following, version) in missing:
                        sockets[pod, version].sendto(b"?", (of_family(given[following], version), 7777))
            poll, by_number = select.poll(), {sockets[key].fileno(): key for key in missing}
            for number in by_number:
                poll.register(number, select.POLLIN)
            end = time.monotonic() + 2
            while missing and time.monotonic() < end:
                for number, _ in poll.poll(100):
                    missing.discard(by_number[number])
                    poll.unregister(number)
        return [f"{pod.name} IPv{version}" for pod, version in missing]
    finally:
        for sock in sockets.values():
            sock.close()


@test
def a_hundred_adds_at_once_and_250_pods_that_talk(bin_dir):
    with SmallCluster(bin_dir, count=0) as cluster:
        cluster.node.start()
        alone = strangers(cluster, [f"alone-{i}" for i in range(20)])
        done, single = zip(*[(added[0], seconds[0]) for added, seconds in (at_once([pod], "ADD") for pod in alone)])
        given = {pod: addresses(added) for pod, added in zip(alone, done)}
        together = strangers(cluster, [f"many-{i}" for i in range(100)])
        start = time.monotonic()
        done, seconds = at_once(together, "ADD")
        all_took = time.monotonic() - start
        failed = [added.stdout for added in done if added.returncode != 0]
        expect(not failed, f"{len(failed)} of 100 ADDs failed: {failed[:2]}")
        given.update({pod: addresses(added) for pod, added in zip(together, done)})
        for title, times in (("one after the other", single), ("100 at once", seconds)):
            median, p95, most = shares(times)
            print(f"     ADD {title}: median {median * 1e3:.0f} ms, p95 {p95 * 1e3:.0f} ms, longest {most * 1e3:.0f} ms")
        print(f"     100 ADDs at once: all done in {all_took:.2f} s (load {os.getloadavg()[0]:.1f})")
        expect(all_took < 10, f"100 ADDs took {all_took:.1f} s")
        rest = strangers(cluster, [f"rest-{i}" for i in range(130)])
        done, _ = at_once(rest, "ADD")
        given.update({pod: addresses(added) for pod, added in zip(rest, done)})
        everyone = [address for both in given.values() for address in both]
        expect(len(given) == 250 and len(set(everyone)) == 500, f"{len(given)} pods, {len(set(everyone))} addresses")
        expect(in_use(cluster) == 500, f"{in_use(cluster)} leases")
        silent = exchange(given)
        expect(not silent, f"nothing arrived at {len(silent)}: {silent[:5]}")
        start = time.monotonic()
        done, _ = at_once(list(given), "DEL")
        print(f"     250 DELs at once: all done in {time.monotonic() - start:.2f} s")
        expect(all(gone.returncode == 0 for gone in done), "a DEL failed")
        expect(in_use(cluster) == 0, f"{in_use(cluster)} leases after the last DEL")
        expect("eth0" not in together[0].namespace.ip("-o", "link", "show").stdout, "a pod kept its interface")


@test
def adds_that_a_kill_cuts_off_leave_neither_addresses_nor_ports(bin_dir):
    with SmallCluster(bin_dir, count=0) as cluster:
        cluster.node.start()
        for around in range(4):
            pods = strangers(cluster, [f"cut-{around}-{i}" for i in range(25)])
            with concurrent.futures.ThreadPoolExecutor(len(pods)) as pool:
                adds = [pool.submit(pod.cni, "ADD", timeoutSeconds=5) for pod in pods]
                time.sleep(0.02 + 0.03 * around)
                cluster.node.kill()
                answers = [add.result() for add in adds]
            # The runtime's sandboxes are gone with the ADDs that failed; it sends no DEL, as after a crash of its own.
            for pod, answer in zip(pods, answers):
                if answer.returncode != 0:
                    pod.namespace.delete()
                    del cluster.pods[pod.spec.key]
            cluster.node.start()
        kept = len(cluster.pods)
        expect(in_use(cluster) == 2 * kept, f"{in_use(cluster)} leases for {kept} pods of two addresses")
        expect(len(cluster.node.api("/v1/pods")) == kept, "a port without a pod")
        print(f"     {kept} of 100 ADDs were done before a kill")


@test
def a_client_of_the_socket_that_says_garbage_half_or_nothing_holds_up_no_pod(bin_dir):
    with SmallCluster(bin_dir, count=1) as cluster:
        cluster.node.start()
        says = [b"", b"POST /v1/cni/add HTTP/1.1\r\nContent-Le", b"\0\1\2garbage\r\n\r\n",
                b"POST /v1/cni/add HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{\"cni_ver",
                b"GET /v1/status HTTP/1.1\r\n"]
        held = []
        for at in range(400):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(2)
            sock.connect(cluster.node.socket)
            try:
                sock.sendall(says[at % len(says)])
            except OSError:
                pass  # cut already: that is an answer, too
            held.append(sock)
        pod = cluster.pods["default/pod-0"]
        _, took = timed(pod.attach)
        expect(took < 5, f"the ADD waited {took:.1f} s")
        print(f"     ADD beside 400 such clients: {took * 1e3:.0f} ms")
        for sock in held:
            sock.close()
        expect(pod.detach().returncode == 0, "DEL failed")


def edit(cluster, key, change):
    """Rewrites a pod's manifest."""
    pod = cluster.pods[key]
    cluster.write(f"{pod.name}.yaml", change(pod_manifest(pod.spec)))


@test
def host_ports_are_reached_from_outside_from_pods_and_from_the_node_itself(bin_dir):
    ports = ('ports: [{ containerPort: 8080, hostPort: 18080 }, { containerPort: 8053, protocol: UDP, hostPort: 18053 }, '
             '{ containerPort: 8080, hostPort: 18081, hostIP: 192.0.2.11 }, '
             '{ containerPort: 8080, hostPort: 18081, hostIP: 127.0.0.1 }]')
    with SmallCluster(bin_dir) as cluster:
        edit(cluster, "default/pod-1", lambda text: text.replace("image: c }", f"image: c, {ports} }}"))
        cluster.up()
        server, client, node = cluster.pods["default/pod-1"], cluster.pods["default/pod-0"], cluster.node.namespace
        for version in (4, 6):
            own = of_family(cluster.node.spec.addresses, version)
            seen = fetch(cluster.outside, own, 18080)
            outside = of_family(("192.0.2.1", "2001:db8::1"), version)
            expect(seen["server"] == "pod-1" and seen["peer"] == outside, f"from outside: {seen}")
            expect(fetch(client.namespace, own, 18080)["server"] == "pod-1", "from a pod")
            expect(fetch(node, own, 18080)["server"] == "pod-1", "from the node")
            expect(datagram(cluster.outside, own, 18053)["server"] == "pod-1", "UDP from outside")
            expect(datagram(node, own, 18053)["server"] == "pod-1", "UDP from the node")
        for port in (18080, 18081):
            expect(fetch(node, "127.0.0.1", port)["server"] == "pod-1", f"from the node's loopback, port {port}")
        expect(fetch(cluster.outside, "192.0.2.11", 18081)["server"] == "pod-1", "hostIP from outside")
        # Ports that the runtime asks for, and that go with the pod.
        client.detach()
        asked = {"portMappings": [{"hostPort": 18090, "containerPort": 8080, "protocol": "tcp", "hostIP": ""}]}
        done = client.cni("ADD", runtimeConfig=asked)
        expect(done.returncode == 0, done.stdout)
        wait_until("the pod's server", lambda: answers(cluster.outside, "192.0.2.11", 18090), 5)
        expect(fetch(node, "127.0.0.1", 18090)["server"] == "pod-0", "asked for by the runtime")
        expect(client.detach().returncode == 0, "DEL failed")
        expect(not answers(cluster.outside, "192.0.2.11", 18090), "the port answers after the pod has gone")
        expect(not answers(node, "127.0.0.1", 18090), "the node's port answers after the pod has gone")
        wrong = client.cni("ADD", runtimeConfig={"portMappings": [{"hostPort": 99999, "containerPort": 1}]})
        expect(json.loads(wrong.stdout)["code"] == 7, wrong.stdout)
        del server


def answers(namespace, address, port):
    try:
        fetch(namespace, address, port, patience=1)
        return True
    except (Refused, Silence, OSError):
        return False


@test
def node_ports_are_reached_from_the_node_itself(bin_dir):
    service = """\
apiVersion: v1
kind: Service
metadata: { name: web, namespace: default }
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: { app: pod-1 }
  ports: [{ name: http, port: 80, targetPort: 8080, nodePort: 30080 }, { name: dns, port: 53, targetPort: 8053, protocol: UDP, nodePort: 30053 }]
"""
    with SmallCluster(bin_dir) as cluster:
        cluster.write("web.yaml", service)
        cluster.up()
        node = cluster.node.namespace
        for version in (4, 6):
            own = of_family(cluster.node.spec.addresses, version)
            expect(fetch(node, own, 30080)["server"] == "pod-1", f"{own} port 30080")
            expect(datagram(node, own, 30053)["server"] == "pod-1", f"{own} port 30053, UDP")
            expect(fetch(cluster.outside, own, 30080)["server"] == "pod-1", "from outside")
        os.remove(f"{cluster.manifests}/web.yaml")
        wait_until("the node port gone", lambda: not answers(node, "192.0.2.11", 30080), 5)
        left = node.run("nft", "list", "ruleset").stdout
        expect("sluicegate" not in left, f"redirects without a port: {left}")


@test
def a_pod_is_held_to_its_bandwidth_both_ways_and_a_live_edit_counts(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        limit = "annotations: { kubernetes.io/ingress-bandwidth: 40M, kubernetes.io/egress-bandwidth: 20M }, labels:"
        edit(cluster, "default/pod-1", lambda text: text.replace("labels:", limit))
        cluster.up()
        free, held = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        for server, client, megabits, way in ((held, free, 40, "towards"), (free, held, 20, "from")):
            got = throughput(cluster.processes, server.namespace, client.namespace, server.address(4), 3) / 1e6
            print(f"     {way} the pod: {got:.1f} of {megabits} Mbit/s")
            expect(0.6 * megabits < got < 1.35 * megabits, f"{got:.1f} Mbit/s, {megabits} asked for")
        edit(cluster, "default/pod-1", lambda text: text)

        def fast():
            return throughput(cluster.processes, held.namespace, free.namespace, held.address(4), 1) > 120e6
        wait_until("the limit gone", fast, 20)


POOL = """\
apiVersion: sluicegate.dev/v1alpha1
kind: IPPool
metadata: { name: edge }
spec: { use: pods, cidrs: [10.60.0.0/29], namespaceSelector: { matchLabels: { team: edge } } }
---
apiVersion: v1
kind: Namespace
metadata: { name: edge, labels: { team: edge } }
---
apiVersion: v1
kind: Pod
metadata: { name: fixed, namespace: edge, annotations: { sluicegate.dev/ip: 10.60.0.4 } }
spec: { nodeName: node-a, containers: [{ name: c, image: c }] }
"""


@test
def pods_get_addresses_of_pools_and_an_empty_pool_is_said_in_every_way(bin_dir):
    with SmallCluster(bin_dir, count=1) as cluster:
        cluster.write("pool.yaml", POOL)
        cluster.up()
        pods = []
        for name in ["fixed", *(f"p{i}" for i in range(5))]:
            pod = Pod(cluster, PodSpec(f"edge/{name}", "node-a", ()))
            cluster.pods[pod.spec.key] = pod
            pod.namespace.create()
            pods.append(pod)
        given = [addresses(pod.cni("ADD")) for pod in pods[:5]]
        expect(of_family(given[0], 4) == "10.60.0.4", f"{given[0]}")
        expect({of_family(g, 4) for g in given} == {f"10.60.0.{n}" for n in range(2, 7)}, f"{given}")
        expect(all(of_family(g, 6).startswith("fd00:10:244:1:") for g in given), "IPv6 is the node's")
        pods[1].serve()
        for title, source in (("a pod", cluster.pods["default/pod-0"].namespace), ("the node", cluster.node.namespace)):
            expect(answers(source, of_family(given[1], 4), 8080), f"a pool's address is not reached from {title}")
        refused = pods[5].cni("ADD")
        error = json.loads(refused.stdout)
        expect(error["code"] == 11 and "no free ipv4 address in edge 10.60.0.0/29" in error["details"], refused.stdout)
        status = cluster.node.api("/v1/status")
        expect(any(p["object"] == "Pod/edge/p4" and "no free ipv4" in p["reason"] for p in status["problems"]),
               f"{status['problems']}")
        metrics = cluster.node.metrics()
        for name in ("addresses", "addresses_in_use"):
            expect(metrics[f'sluicegate_ipam_{name}{{pool="edge",family="IPv4"}}'] == 5, f"{name}: {metrics}")
        expect(metrics['sluicegate_ipam_exhausted_total{family="IPv4"}'] == 1, f"{metrics}")
        expect(pods[1].detach().returncode == 0, "DEL failed")
        error = json.loads(pods[5].cni("ADD").stdout)
        expect("1 released too recently" in error["details"], f"an address is used again within a minute: {error}")


@test
def what_is_on_the_host_for_the_runtime_comes_when_the_node_is_ready_and_goes_with_a_cleanup(bin_dir):
    with SmallCluster(bin_dir, count=1) as cluster:
        folder = cluster.folder
        cluster.configure(more=f"cni: {{ install: always, conf_dir: {folder}/net.d, bin_dir: {folder}/bin }}\n")
        cluster.up()
        conflist = f"{folder}/net.d/10-sluicegate.conflist"
        wait_until("the configuration", lambda: os.path.exists(conflist), 5)
        with open(conflist, encoding="utf-8") as file:
            network = json.load(file)
        plugin = {**network["plugins"][0], "name": network["name"], "cniVersion": network["cniVersion"]}
        pod = cluster.pods["default/pod-0"]
        pod.detach()
        environment = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "by-conflist", "CNI_NETNS": pod.namespace.path,
                       "CNI_IFNAME": "eth0", "CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-0"}
        done = run(f"{folder}/bin/sluice-cni", stdin=json.dumps(plugin), check=False, env=environment)
        expect(done.returncode == 0, done.stdout)
        expect(cluster.node.stop() and os.path.exists(conflist), "the configuration went with a stop")
        cluster.node.cleanup()
        expect(not os.path.exists(f"{folder}/net.d") and not os.path.exists(f"{folder}/bin"), "something was left")


@test
def the_uplink_is_put_back_when_what_must_stay_reachable_is_not_and_taken_again_later(bin_dir):
    with SmallCluster(bin_dir, count=0) as cluster:
        cluster.configure(more="guard: { check: '192.0.2.1:6443', after: 2s }\n")
        node = cluster.node.namespace

        def is_ours():
            return "xdp" in node.ip("link", "show", "eth0").stdout

        def serve():
            process = cluster.processes.start("api", cluster.outside, "/usr/bin/python3", "-m", "http.server", "6443")
            wait_until("the fake API server", lambda: ":6443 " in cluster.outside.run("ss", "-ltnH").stdout, 5)
            return process
        # Not reachable before either: not our doing. Reachable, and gone later: not our doing.
        for api in (None, serve()):
            cluster.node.start()
            time.sleep(0.5)
            if api:
                cluster.processes.end(api)
            time.sleep(3)
            expect(is_ours() and cluster.node.sluice("status").returncode == 0, "put back although nothing was cut off")
            cluster.node.stop()
        # The cluster's ranges swallow the API server's address: the host's way to it leads to us.
        serve()
        with open(cluster.node.config, encoding="utf-8") as file:
            text = file.read()
        with open(cluster.node.config, "w", encoding="utf-8") as file:
            file.write(text.replace("pods: [10.244.0.0/16,", "pods: [10.244.0.0/16, 192.0.2.1/32,"))
        cluster.node.start()
        expect(is_ours() and "192.0.2.1 via" in node.ip("route", "show").stdout, "the trap is not set")
        wait_until("the uplink put back", lambda: not is_ours(), 8)
        wait_until("status says so", lambda: "put back" in cluster.node.sluice("status", check=False).stdout, 3)
        routes = node.ip("route", "show").stdout + node.ip("-6", "route", "show").stdout
        expect("sluice0" not in routes, f"routes are left: {routes}")
        expect("192.0.2.1:6443" in cluster.node.sluice("status", check=False).stdout, "does not say what was not reachable")
        fetch(node, "192.0.2.1", 6443)
        wait_until("the uplink taken again", is_ours, 8)
        wait_until("the uplink put back again", lambda: not is_ours(), 8)


CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{folder}/containerd.sock"
[ttrpc]
  address = "{folder}/containerd.ttrpc.sock"
"""
# `ctr --cni` knows two fixed folders; each call sees its own there, and the host keeps what it has.
OWN_FOLDERS = "mount --make-rprivate / && mount --bind {folder}/net.d /etc/cni/net.d && mount --bind {folder}/bin /opt/cni/bin && exec \"$@\""


class Containerd:
    """A containerd of its own, and `ctr` with the CNI folders that the agent filled."""

    def __init__(self, cluster):
        self.cluster, self.folder = cluster, cluster.folder
        self.made = [path for path in ("/etc/cni", "/etc/cni/net.d", "/opt/cni", "/opt/cni/bin") if not os.path.exists(path)]
        for path in self.made:
            os.mkdir(path)
        with open(f"{self.folder}/containerd.toml", "w", encoding="utf-8") as file:
            file.write(CONTAINERD.format(folder=self.folder))
        root = self.rootfs = f"{self.folder}/rootfs"
        for path in ("bin", "proc", "sys", "dev", "etc", "www"):
            os.makedirs(f"{root}/{path}")
        with open("/bin/busybox" if os.path.exists("/bin/busybox") else "/usr/bin/busybox", "rb") as file:
            program = file.read()
        with open(f"{root}/bin/busybox", "wb") as file:
            file.write(program)
        os.chmod(f"{root}/bin/busybox", 0o755)
        with open(f"{root}/www/index.html", "w", encoding="utf-8") as file:
            file.write("from a container\n")
        self.process = cluster.processes.start("containerd", cluster.node.namespace, "containerd", "-c",
                                               f"{self.folder}/containerd.toml")
        wait_until("containerd", lambda: self.ctr("version", check=False).returncode == 0, 15, every=0.1)

    def ctr(self, *arguments, check=True):
        own = OWN_FOLDERS.format(folder=self.folder)
        return run("unshare", "-m", "sh", "-c", own, "sh", "ctr", "-a", f"{self.folder}/containerd.sock", *arguments,
                   check=check, timeout=60)

    def run(self, name, *command, detached=False, check=True):
        how = ["-d"] if detached else ["--rm"]
        return self.ctr("run", "--cni", *how, "--rootfs", self.rootfs, name, "/bin/busybox", *command, check=check)

    def end(self):
        for name in self.ctr("task", "ls", "-q", check=False).stdout.split():
            self.ctr("task", "kill", "-s", "SIGKILL", name, check=False)
            wait_until(f"{name} ended", lambda name=name: "RUNNING" not in self.ctr("task", "ls", check=False).stdout, 10)
            self.ctr("task", "rm", name, check=False)
        self.cluster.processes.end(self.process)
        for path in reversed(self.made):
            os.rmdir(path)


@test
def containers_of_containerd_and_runc_get_their_ports_by_the_plugin(bin_dir):
    with SmallCluster(bin_dir, count=1) as cluster:
        folder = cluster.folder
        cluster.configure(more=f"cni: {{ install: always, conf_dir: {folder}/net.d, bin_dir: {folder}/bin }}\n")
        cluster.up()
        wait_until("the configuration", lambda: os.path.exists(f"{folder}/net.d/10-sluicegate.conflist"), 5)
        containerd = Containerd(cluster)
        try:
            containerd.run("server", "httpd", "-f", "-p", "8080", "-h", "/www", detached=True)
            ports = cluster.node.api("/v1/pods")
            server = next((p for p in ports if p["name"] == "cni/default-server"), None)
            expect(server, f"no port for the container: {ports}")
            for version in (4, 6):
                address = of_family(server["addresses"], version)
                url = f"http://[{address}]:8080/" if version == 6 else f"http://{address}:8080/"
                said = containerd.run(f"client-{version}", "wget", "-q", "-O", "-", url).stdout
                expect(said == "from a container\n", f"{url}: {said!r}")
            expect(b"from a container" in fetch(cluster.pods["default/pod-0"].namespace, of_family(server["addresses"], 4)),
                   "a pod does not reach the container")
            inside = containerd.run("looks", "ip", "-o", "address", "show", "dev", "eth0").stdout
            expect("10.244.1." in inside and "fd00:10:244:1:" in inside, inside)
            wait_until("the clients' ports gone", lambda: len(cluster.node.api("/v1/pods")) == 2, 5)
            # The agent away: a container cannot start, and one that ends is cleaned up at the next start.
            cluster.node.kill()
            failed = containerd.run("too-early", "true", check=False)
            expect(failed.returncode != 0 and "sluiced cannot be reached" in failed.stderr, failed.stderr)
            cluster.node.start()
            expect(containerd.run("again", "ip", "link").returncode == 0, "no container after the agent's start")
        finally:
            containerd.end()
        # Nobody sent a DEL for the server; its namespace is gone, and so are its port and its addresses.
        cluster.node.kill()
        cluster.node.start()
        left = [p["name"] for p in cluster.node.api("/v1/pods")]
        expect(left == ["default/pod-0"] and in_use(cluster) == 2, f"{left}, {in_use(cluster)} leases")


def code(done):
    expect(done.returncode == 1, f"exit code {done.returncode}: {done.stdout}")
    return json.loads(done.stdout)["code"]


@test
def every_verb_and_every_error_of_the_specification(bin_dir):
    with SmallCluster(bin_dir, count=2) as cluster:
        pod, other = cluster.pods.values()
        plugin = cluster.program("sluice-cni")
        expect(code(pod.cni("STATUS")) == 51, "STATUS with the agent away")
        expect(code(pod.cni("ADD")) == 11, "ADD with the agent away")
        expect(pod.cni("DEL").returncode == 0, "DEL with the agent away")
        cluster.node.start()
        for version in ("0.4.0", "1.0.0", "1.1.0"):
            added = pod.cni("ADD", version)
            expect(added.returncode == 0, added.stdout)
            result = json.loads(added.stdout)
            inside = result["interfaces"][-1]
            expect(result["cniVersion"] == version and inside["sandbox"] == pod.namespace.path, f"{result}")
            expect(inside["name"] == "eth0" and inside["mac"] == "02:00:0a:f4:01:0a", f"{result}")
            expect(("mtu" in inside) == (version == "1.1.0") and ("version" in result["ips"][0]) == (version == "0.4.0"), f"{result}")
            checked = pod.cni("CHECK", version, prevResult=result)
            expect(checked.returncode == 0, checked.stdout)
        expect(addresses(pod.cni("ADD")) == list(pod.spec.addresses), "a repeated ADD gives something else")
        # CHECK finds what is not as ADD left it.
        strange = json.loads(json.dumps(result).replace("10.244.1.10", "10.244.1.99"))
        expect(code(pod.cni("CHECK", prevResult=strange)) == 5, "CHECK with another address")
        pod.namespace.ip("address", "del", "10.244.1.10/32", "dev", "eth0")
        expect(code(pod.cni("CHECK", prevResult=result)) == 5, "CHECK without the address")
        expect(code(other.cni("CHECK", prevResult=result)) == 3, "CHECK of an unknown container")
        expect(code(pod.cni("CHECK")) == 7, "CHECK without prevResult")
        # What the runtime hands over is wrong.
        expect(code(pod.cni("ADD", "0.3.1")) == 1 and code(pod.cni("GC", "1.0.0")) == 1, "versions")
        expect(code(pod.cni("ADD", name="")) == 7 and code(pod.cni("GC")) == 7, "configurations")
        expect(code(other.cni("ADD", runtimeConfig={"mac": "01:00:00:00:00:01"})) == 7, "a capability")
        whole = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": other.namespace.path, "CNI_IFNAME": "eth0"}
        config = json.dumps({"cniVersion": "1.1.0", "name": "n", "type": "sluice-cni", "socket": cluster.node.socket})
        for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"):
            lacking = {key: value for key, value in whole.items() if key != name}
            expect(code(run(plugin, stdin=config, check=False, env=lacking)) == 4, f"without {name}")
        expect(code(run(plugin, stdin=config, check=False, env={**whole, "CNI_NETNS": "/etc/passwd"})) == 4, "no namespace")
        expect(code(run(plugin, stdin=config, check=False, env={**whole, "CNI_ARGS": "K8S_POD_NAMESPACE=x"})) == 4, "half a pod")
        expect(code(run(plugin, stdin="{", check=False, env=whole)) == 6, "no JSON")
        spoken = json.loads(run(plugin, stdin=config, env={"CNI_COMMAND": "VERSION"}).stdout)
        expect(spoken["supportedVersions"] == ["0.4.0", "1.0.0", "1.1.0"], f"{spoken}")
        # STATUS, and a node that is not ready.
        expect(pod.cni("STATUS").returncode == 0, "STATUS")
        os.rename(f"{cluster.manifests}/node.yaml", f"{cluster.folder}/node.yaml")
        wait_until("the node gone from the cluster", lambda: pod.cni("STATUS").returncode == 1, 5)
        expect(code(pod.cni("STATUS")) == 50 and code(other.cni("ADD")) == 11, "a node that is not ready")
        os.rename(f"{cluster.folder}/node.yaml", f"{cluster.manifests}/node.yaml")
        wait_until("the node back", lambda: pod.cni("STATUS").returncode == 0, 5)
        # DEL: twice, and after the namespace has gone.
        expect(pod.cni("DEL").returncode == 0 and pod.cni("DEL").returncode == 0, "DEL twice")
        expect(other.cni("ADD").returncode == 0, "ADD of the other pod")
        run("ip", "netns", "del", other.namespace.name)
        expect(other.cni("DEL").returncode == 0 and in_use(cluster) == 0, "DEL after the namespace")
        other.namespace.create()
        # What the runtime asks for: an address and a MAC. The other end of a veth pair is in the result.
        bare = Pod(cluster, PodSpec("default/bare", "node-a", ()))
        cluster.pods[bare.spec.key] = bare
        bare.namespace.create()
        asked = {"ips": ["10.244.1.77/24"], "mac": "c2:11:22:33:44:55"}
        expect(code(bare.cni("ADD", runtimeConfig={"ips": ["10.99.0.1"]})) == 7, "an address of no pool")
        added = json.loads(bare.cni("ADD", runtimeConfig=asked).stdout)
        expect(added["interfaces"][-1]["mac"] == asked["mac"] and "10.244.1.77/32" in [ip["address"] for ip in added["ips"]], f"{added}")
        expect(asked["mac"] in bare.namespace.ip("link", "show", "eth0").stdout, "the interface has another MAC")
        edit(cluster, "default/pod-0", lambda text: text.replace("labels:", "annotations: { sluicegate.dev/port-driver: af_xdp }, labels:"))
        wait_until("the annotation read", lambda: has_host_end(pod), 5)
        # GC: what is not listed goes, also when it was asked for while the agent was away.
        valid = [{"containerID": f"{cluster.prefix}default-pod-0", "ifname": "eth0"}]
        expect(pod.cni("GC", **{"cni.dev/valid-attachments": valid}).returncode == 0, "GC")
        expect([p["name"] for p in cluster.node.api("/v1/pods")] == ["default/pod-0"], "GC left something")
        cluster.node.kill()
        expect(pod.cni("GC", **{"cni.dev/valid-attachments": []}).returncode == 0, "GC with the agent away")
        cluster.node.start()
        wait_until("the noted GC done", lambda: not cluster.node.api("/v1/pods") and in_use(cluster) == 0, 5)


def has_host_end(pod):
    """Adds the pod anew; whether the result names two interfaces, the first on the host."""
    pod.cni("DEL")
    interfaces = json.loads(pod.cni("ADD").stdout)["interfaces"]
    return len(interfaces) == 2 and "sandbox" not in interfaces[0] and len(interfaces[0]["mac"]) == 17


API_SERVER = """\
apiVersion: v1
kind: Service
metadata: { name: kubernetes, namespace: default }
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, "fd00:10:96::1"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports: [{ name: https, port: 443, targetPort: 8080 }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: kubernetes, namespace: default, labels: { kubernetes.io/service-name: kubernetes } }
addressType: IPv4
endpoints: [{ addresses: [192.0.2.1], conditions: { ready: true } }]
ports: [{ name: https, port: 8080, protocol: TCP }]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: kubernetes-6, namespace: default, labels: { kubernetes.io/service-name: kubernetes } }
addressType: IPv6
endpoints: [{ addresses: ["2001:db8::1"], conditions: { ready: true } }]
ports: [{ name: https, port: 8080, protocol: TCP }]
---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: default }
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  selector: { app: pod-1 }
  ports: [{ name: http, port: 80, targetPort: 8080 }, { name: dns, port: 53, targetPort: 8053, protocol: UDP }]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: closed, namespace: default }
spec: { podSelector: { matchLabels: { app: pod-1 } }, policyTypes: [Ingress] }
"""


@test
def the_node_reaches_pods_services_and_the_api_server_and_keeps_its_own_network(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.write("services.yaml", API_SERVER)
        cluster.serve("api", cluster.outside, http=8080)
        cluster.serve("ssh", cluster.node.namespace, http=2222)
        cluster.up()
        node, pod = cluster.node.namespace, cluster.pods["default/pod-0"].namespace
        for version in (4, 6):
            server = cluster.pods["default/pod-1"].address(version)
            vip, api = of_family(("10.96.0.10", "fd00:10:96::10"), version), of_family(("10.96.0.1", "fd00:10:96::1"), version)
            own, outside = of_family(cluster.node.spec.addresses, version), of_family(("192.0.2.1", "2001:db8::1"), version)
            # As a kubelet's probe, with a policy that lets nobody in; a pod finds it closed.
            expect(fetch(node, server)["server"] == "pod-1", "the node's probe of a pod")
            expect(fetch(node, vip, 80)["server"] == "pod-1", "a Service from the node")
            expect(datagram(node, vip, 53)["server"] == "pod-1", "a Service from the node, UDP")
            expect(not answers(pod, server, 8080), "the policy lets a pod in")
            # The API server by its cluster address, from the node and from a pod, without kube-proxy.
            expect(fetch(node, api, 443)["server"] == "api", "the API server from the node")
            seen = fetch(pod, api, 443)
            expect(seen["server"] == "api" and seen["peer"] == own, f"the API server from a pod: {seen}")
            # The kernel keeps what is not ours: the way in and the way out by the interface we are attached to.
            expect(fetch(cluster.outside, own, 2222)["server"] == "ssh", "a service of the node itself from outside")
            expect(fetch(node, outside, 8080)["server"] == "api", "the outside from the node")
            # A pod reaches the node, and a process on the node's network answers it.
            expect(fetch(pod, own, 2222)["server"] == "ssh", "the node from a pod")
        expect("dev eth0" in node.ip("route", "show", "default").stdout, "the default route moved")


GATED = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: gate, namespace: default }
spec:
  podSelector: { matchLabels: { app: pod-1 } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { app: pod-0 } } }] }]
"""


@test
def a_new_pods_first_packets_meet_its_rules(bin_dir):
    with SmallCluster(bin_dir, count=3) as cluster:
        cluster.write("gate.yaml", GATED)
        cluster.node.start()
        friend, server, stranger = cluster.pods.values()
        friend.attach()
        stranger.attach()

        def udp(pod, port):
            with pod.namespace.entered():
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("", port))
            sock.setblocking(False)
            return sock
        listens, good, bad = udp(server, 7000), udp(friend, 7001), udp(stranger, 7002)
        address, heard, ended = (server.address(4), 7000), [], []
        # The stranger never stops; whatever gets through came before the rules.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            def shout():
                while not ended:
                    for _ in range(20):
                        try:
                            bad.sendto(b"bad", address)
                        except OSError:
                            pass  # its own queue is full
                    time.sleep(0.0005)
            shouting = pool.submit(shout)
            try:
                for number in range(25):
                    server.attach()
                    good.sendto(b"good %d" % number, address)
                    end = time.monotonic() + 2
                    while b"good %d" % number not in heard and time.monotonic() < end:
                        if select.select([listens], [], [], 0.1)[0]:
                            heard.append(listens.recv(100))
                    expect(b"good %d" % number in heard, f"the first packet after ADD {number} was lost")
                    server.detach()
            finally:
                ended.append(True)
                shouting.result()
        expect(b"bad" not in heard, f"{heard.count(b'bad')} packets passed a new pod unfiltered")
        for sock in (listens, good, bad):
            sock.close()
