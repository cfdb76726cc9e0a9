"""One node that follows an API server: the tests' own, a process in the node's namespace, over real HTTP."""

import json
import os
import time

from small_cluster import NODE, SmallCluster  # first: it sets the path
from namespaces import wait_until
from probes import Refused, Silence, fetch

PORT = 6443
TAINT = "sluicegate.dev/agent-not-ready"
SERVICE_IP, SERVICE_IP6 = "10.96.0.10", "fd00:10:96::10"

CONFIG = """\
node: node-a
source: {{ kind: kubernetes, kubeconfig: {run_dir}/kubeconfig }}
ports:
  uplink: {{ driver: af_xdp, interface: eth0 }}
cidrs: {{ pods: [10.244.0.0/16, "fd00:10:244::/56"], services: [10.96.0.0/12, "fd00:10:96::/112"] }}
socket: {run_dir}/node-a/sluiced.sock
state_dir: {run_dir}/node-a/state
cni: {{ install: never }}
"""


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


def node_object():
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"podCIDR": NODE.pod_cidrs[0], "podCIDRs": list(NODE.pod_cidrs), "taints": [{"key": TAINT, "effect": "NoSchedule"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in NODE.addresses],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    }


def pod_object(name, addresses=()):
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"default-{name}", "labels": {"app": name}},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "c"}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                   "podIPs": [{"ip": address} for address in addresses]},
    }


def service_objects(addresses, name="web", cluster_ips=(SERVICE_IP, SERVICE_IP6)):
    """A Service and its slices, one for each family; without addresses the slices are empty."""
    meta = {"namespace": "default", "labels": {"kubernetes.io/service-name": name}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
               "spec": {"clusterIP": cluster_ips[0], "clusterIPs": list(cluster_ips), "ports": [{"port": 80, "targetPort": 8080}]}}
    slices = []
    for family, kind in ((4, "IPv4"), (6, "IPv6")):
        own = [a for a in addresses if (":" in a) == (family == 6)]
        slices.append({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": f"{name}-{family}", **meta},
                       "addressType": kind, "ports": [{"port": 8080}],
                       "endpoints": [{"addresses": [a], "nodeName": "node-a", "conditions": {"ready": True}} for a in own]})
    return [service, *slices]


class KubernetesNode(SmallCluster):
    """A node, some pods without addresses of their own, and an API server."""

    server = None

    def make(self):
        super().make()
        with open(self.node.config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(run_dir=self.run_dir))
        with open(f"{self.run_dir}/kubeconfig", "w", encoding="utf-8") as file:
            json.dump({"apiVersion": "v1", "kind": "Config", "current-context": "x",
                       "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{PORT}"}}],
                       "users": [{"name": "x", "user": {}}],
                       "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x", "namespace": "kube-system"}}]}, file)
        self.node.namespace.ip("link", "set", "lo", "up")
        self.start_server([node_object(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}])
        return self

    def start_server(self, objects):
        path = f"{self.run_dir}/objects.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(objects, file)
        self.server = self.processes.start("apiserver", self.node.namespace, self.program("fake-apiserver"),
                                           "--listen", f"127.0.0.1:{PORT}", "--objects", path)
        wait_until("the API server answers", lambda: self.ask("/api/v1/nodes", check=False) is not None, 10)

    def stop_server(self):
        self.processes.end(self.server)

    def ask(self, path, body=None, check=True):
        """GET, or POST of a body, to the API server."""
        send = ["--data-binary", json.dumps(body), "-H", "Content-Type: application/json"] if body is not None else []
        done = self.node.namespace.run("curl", "-sf", "--max-time", "5", *send, f"http://127.0.0.1:{PORT}{path}", check=check)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout else None

    def apply(self, *objects):
        self.ask("/fake/apply", list(objects))

    def add(self, name):
        """What scheduler, kubelet and runtime do: the object, ADD, the addresses into the object. Returns the addresses."""
        pod = self.pods[f"default/{name}"]
        self.apply(pod_object(name))
        result = pod.attach()
        addresses = [entry["address"].split("/")[0] for entry in result["ips"]]
        self.apply(pod_object(name, addresses))
        pod.serve()
        return addresses

    def problems(self):
        problems = self.node.api("/v1/status")["problems"]
        return [" ".join(str(p.get(part) or "") for part in ("object", "field", "reason")) for p in problems]

    def readyz(self):
        done = self.node.namespace.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:9765/readyz", check=False)
        return done.stdout


def reaches(pod, address, port=80):
    try:
        return fetch(pod.namespace, address, port=port, patience=1.0) is not None
    except (Silence, Refused, OSError, AssertionError):
        return False
    except Exception:  # whatever curl or the probe says: no answer
        return False


def a_node_follows_the_api_server_and_goes_on_without_it(bin_dir):
    with KubernetesNode(bin_dir) as cluster:
        cluster.node.start()
        wait_until("ready", lambda: cluster.readyz() == "200", 5)
        wait_until("the taint is gone", lambda: not cluster.ask("/api/v1/nodes/node-a")["spec"].get("taints"), 5)
        node = cluster.ask("/api/v1/nodes/node-a")
        network = [c for c in node["status"]["conditions"] if c["type"] == "NetworkUnavailable"]
        expect(network and network[0]["status"] == "False", f"{node['status']}")

        stranger = cluster.pods["default/pod-0"].cni("ADD")
        expect(stranger.returncode == 11 or '"code":11' in stranger.stdout.replace(" ", ""),
               f"a pod that the API server has not shown: {stranger.returncode} {stranger.stdout}")

        client = cluster.pods["default/pod-0"]
        cluster.add("pod-0")
        backend = cluster.add("pod-1")
        cluster.apply(*service_objects([]))
        expect(not reaches(client, SERVICE_IP), "a Service without endpoints answers")
        # The watch event, and nothing else, makes it answer.
        cluster.apply(*service_objects(backend)[1:])
        for address in (SERVICE_IP, SERVICE_IP6):
            wait_until(f"{address} forwards", lambda a=address: reaches(client, a), 3)

        # Another proxy's Service is none of ours, from one event to the next.
        label = service_objects(backend)[0]
        label["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "other"}
        cluster.apply(label)
        wait_until("the other proxy's Service", lambda: not reaches(client, SERVICE_IP), 3)
        cluster.apply(service_objects(backend)[0])
        wait_until("ours again", lambda: reaches(client, SERVICE_IP), 3)

        # The API server goes: traffic does not.
        time.sleep(11)  # the last good state is written at most every ten seconds
        cluster.stop_server()
        wait_until("the status says so", lambda: any("cannot be reached" in p for p in cluster.problems()), 20)
        expect(reaches(client, SERVICE_IP) and reaches(client, SERVICE_IP6), "traffic stopped with the API server")
        expect(cluster.readyz() == "200", "liveness and readiness follow the API server")

        # A start without it: the last good state, and the status says so.
        cluster.node.kill()
        cluster.node.start()
        wait_until("the Service forwards after a start without an API server", lambda: reaches(client, SERVICE_IP), 5)
        expect(any("last good state" in p for p in cluster.problems()), f"{cluster.problems()}")
        expect(cluster.readyz() == "503", "ready without an API server")

        # It comes back with one endpoint less.
        cluster.start_server([node_object(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}},
                              pod_object("pod-0"), pod_object("pod-1", backend), *service_objects([])])
        wait_until("the new state is in force", lambda: not reaches(client, SERVICE_IP), 20)
        wait_until("ready again", lambda: cluster.readyz() == "200", 5)
        expect(not any("last good state" in p for p in cluster.problems()), f"{cluster.problems()}")


def objects_that_make_no_sense_cost_what_they_touch_and_are_told(bin_dir):
    with KubernetesNode(bin_dir) as cluster:
        cluster.ask("/fake/faults", {"absent": ["clusternetworkpolicies"]})
        cluster.node.start()
        client = cluster.pods["default/pod-0"]
        cluster.add("pod-0")
        backend = cluster.add("pod-1")
        cluster.apply(*service_objects(backend))
        wait_until("the Service forwards", lambda: reaches(client, SERVICE_IP), 3)
        expect("ClusterNetworkPolicy" in cluster.node.sluice("status").stdout, "no line about the missing CRD")
        bad_port = service_objects(backend, "bad-port", ("10.96.0.20", "fd00:10:96::20"))[0]
        bad_port["spec"]["ports"] = [{"port": 70000}, {"name": "good", "port": 81, "targetPort": 8080}]
        twin = service_objects(backend, "webtwin")[0]
        stray = pod_object("stray", ["203.0.113.77"])
        stray["spec"]["nodeName"] = "node-a"
        policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "odd", "namespace": "default"},
                  "spec": {"podSelector": {"matchLabels": {"app": "pod-1"}}, "policyTypes": ["Ingress"],
                           "ingress": [{"from": [{"serviceAccountSelector": {}}]}]}}
        gateway = {"apiVersion": "sluicegate.dev/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "odd"},
                   "spec": {"egressIPs": ["192.0.2.50"], "gatewayNodes": {}, "podSelector": {"matchLabels": {"app": "nobody"}}, "colour": "red"}}
        zero = service_objects(backend, "zero-port", ("10.96.0.21", "fd00:10:96::21"))[0]
        zero["spec"]["ports"] = [{"name": "none", "port": 0}, {"name": "good", "port": 81, "targetPort": 8080}]
        # Two Services on one node port; the first by name has it, the other keeps its cluster address.
        twins = [service_objects(backend, f"np-{x}", (f"10.96.0.3{n}", f"fd00:10:96::3{n}")) for x, n in (("a", 1), ("b", 2))]
        for service in (twins[0][0], twins[1][0]):
            service["spec"].update(type="NodePort", ports=[{"port": 80, "targetPort": 8080, "nodePort": 30080}])
        on_pod = service_objects(backend, "vip-of-a-pod", ("10.96.0.41", "fd00:10:96::41"))
        on_pod[0]["spec"]["type"] = "LoadBalancer"
        on_pod[0]["status"] = {"loadBalancer": {"ingress": [{"ip": backend[0]}]}}
        nowhere = {"apiVersion": "sluicegate.dev/v1alpha1", "kind": "EgressGateway", "metadata": {"name": "nowhere"},
                   "spec": {"egressIPs": ["192.0.2.60"], "gatewayNodes": {"matchLabels": {"egress": "nobody"}},
                            "podSelector": {"matchLabels": {"app": "nobody"}}}}
        cluster.apply(bad_port, twin, stray, gateway, zero, *twins[0], *twins[1], *on_pod, nowhere)
        said = {}

        def told(name, kind):
            events = cluster.ask("/api/v1/events")["items"]
            said[name] = [e["message"] for e in events if e["involvedObject"]["name"] == name and e["involvedObject"]["kind"] == kind]
            return said[name]
        for name, kind in (("bad-port", "Service"), ("webtwin", "Service"), ("odd", "EgressGateway"), ("stray", "Pod"),
                           ("zero-port", "Service"), ("np-b", "Service"), ("vip-of-a-pod", "Service"), ("nowhere", "EgressGateway")):
            wait_until(f"an event about {name}", lambda n=name, k=kind: told(n, k), 20)
        expect("70000" in said["bad-port"][0] and "no pod network" in said["stray"][0], f"{said}")
        expect("default/web already" in said["webtwin"][0], f"{said}")
        expect("spec.ports[0].port" in said["zero-port"][0], f"{said}")
        expect("node port 30080 belongs to Service default/np-a" in said["np-b"][0], f"{said}")
        expect("is a pod's address" in said["vip-of-a-pod"][0] and "selects no node" in said["nowhere"][0], f"{said}")
        expect(not told("np-a", "Service"), "the first by name has the node port")
        listed = cluster.problems()
        for name in ("zero-port", "np-b", "vip-of-a-pod", "nowhere"):
            expect(any(name in p for p in listed), f"sluice status says nothing of {name}: {listed}")
        expect(reaches(client, SERVICE_IP), "the good Service went with the bad one")
        for address in ("10.96.0.31", "10.96.0.32", "10.96.0.41"):
            expect(reaches(client, address), f"{address}: what is left of the object is programmed")
        expect(reaches(client, NODE.addresses[0], 30080), "the node port leads to the first")

        def conditions():
            status = cluster.ask("/apis/sluicegate.dev/v1alpha1/egressgateways/odd").get("status", {})
            return {c["type"]: c["status"] for c in status.get("conditions", [])}
        wait_until("the gateway's conditions", lambda: conditions().get("Accepted") == "False", 20)
        # A peer of a type we do not know admits nobody to the pods it selects.
        cluster.apply(policy)
        wait_until("closed", lambda: not reaches(client, SERVICE_IP), 5)
        wait_until("an event about the policy", lambda: told("odd", "NetworkPolicy"), 20)
        wait_until("listed", lambda: any("serviceAccountSelector" in p for p in cluster.problems()), 3)


def pool_object(name, *cidrs):
    return {"apiVersion": "sluicegate.dev/v1alpha1", "kind": "IPPool", "metadata": {"name": name},
            "spec": {"use": "pods", "cidrs": list(cidrs), "namespaceSelector": {}}}


def an_empty_pool_is_an_event_of_the_pod_and_of_the_pool_and_is_counted(bin_dir):
    with KubernetesNode(bin_dir) as cluster:
        cluster.apply(pool_object("tiny", "10.60.0.0/30"))
        cluster.node.start()
        cluster.add("pod-0")
        cluster.apply(pod_object("pod-1"))
        for _ in range(3):  # kubelet tries again and again
            refused = cluster.pods["default/pod-1"].cni("ADD")
            error = json.loads(refused.stdout)
            expect(error["code"] == 11 and "no free ipv4 address in tiny 10.60.0.0/30: 1 in all, 1 in use" in error["details"], refused.stdout)

        def told(kind, name):
            events = cluster.ask("/api/v1/events")["items"]
            return [e for e in events if (e["involvedObject"]["kind"], e["involvedObject"]["name"]) == (kind, name)]
        for kind, name, reason in (("Pod", "pod-1", "NoFreeAddress"), ("IPPool", "tiny", "AddressesExhausted")):
            wait_until(f"an event about {kind} {name}", lambda k=kind, n=name: told(k, n), 20)
            events = told(kind, name)
            expect(len(events) == 1 and events[0]["reason"] == reason and events[0]["type"] == "Warning", f"{events}")
            expect("10.60.0.0/30" in events[0]["message"] and "node-a" in events[0]["message"], f"{events}")
        metrics = cluster.node.metrics()
        expect(metrics['sluicegate_ipam_exhausted_total{family="IPv4"}'] == 3, f"{metrics}")
        expect(metrics['sluicegate_ipam_exhausted_total{family="IPv6"}'] == 0, f"{metrics}")


def the_api_server_of_a_kubeconfig_is_watched_over_by_the_dead_mans_switch(bin_dir):
    with KubernetesNode(bin_dir) as cluster:
        server = f"192.0.2.1:{PORT}"
        cluster.stop_server()
        cluster.processes.start("apiserver-outside", cluster.outside, cluster.program("fake-apiserver"),
                                "--listen", server, "--objects", f"{cluster.run_dir}/objects.json")
        wait_until("the API server listens", lambda: f":{PORT} " in cluster.outside.run("ss", "-ltnH").stdout, 10)
        for path, old, new in ((f"{cluster.run_dir}/kubeconfig", f"127.0.0.1:{PORT}", server),
                               # The cluster's ranges swallow the API server's address: the host's way to it leads to us.
                               (cluster.node.config, "pods: [10.244.0.0/16,", "pods: [10.244.0.0/16, 192.0.2.1/32,")):
            with open(path, encoding="utf-8") as file:
                text = file.read()
            expect(old in text, f"{path}: {text}")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text.replace(old, new))
        with open(cluster.node.config, "a", encoding="utf-8") as file:
            file.write("guard: { after: 2s }\n")
        node = cluster.node.namespace
        cluster.node.start()
        expect("xdp" in node.ip("link", "show", "eth0").stdout, "the uplink is not ours")
        wait_until("the uplink put back", lambda: "xdp" not in node.ip("link", "show", "eth0").stdout, 15)
        wait_until("status says so", lambda: f"{server} was not reachable" in cluster.node.sluice("status", check=False).stdout, 5)
        expect("sluice0" not in node.ip("route", "show").stdout, "the host's routes are left")


ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# A mount namespace of its own, as a container has, with the account's files where kubelet puts them.
IN_A_POD = "mount -t tmpfs none /var/run/secrets && mkdir -p {account} && mount --bind {files} {account} && exec \"$@\""


def as_in_a_pod_the_api_server_is_reached_by_https_with_the_service_accounts_files(bin_dir):
    made = not os.path.exists("/var/run/secrets")
    os.makedirs("/var/run/secrets", exist_ok=True)
    try:
        with KubernetesNode(bin_dir) as cluster:
            follow_as_in_a_pod(cluster)
    finally:
        if made:
            os.rmdir("/var/run/secrets")


def follow_as_in_a_pod(cluster):
    cluster.stop_server()
    files = f"{cluster.folder}/account"
    os.mkdir(files)
    for name, text in (("token", "first"), ("namespace", "kube-system")):
        with open(f"{files}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    cluster.processes.start("apiserver-tls", cluster.node.namespace, cluster.program("fake-apiserver"), "--listen", f"127.0.0.1:{PORT}",
                            "--objects", f"{cluster.run_dir}/objects.json", "--ca-file", f"{files}/ca.crt", "--token", "first")
    with open(cluster.node.config, encoding="utf-8") as file:
        text = file.read()
    with open(cluster.node.config, "w", encoding="utf-8") as file:
        file.write(text.replace(f", kubeconfig: {cluster.run_dir}/kubeconfig", ""))

    def ask(path, body=None, token="first"):
        send = ["--data-binary", json.dumps(body)] if body is not None else []
        return cluster.node.namespace.run("curl", "-sf", "--max-time", "5", "--cacert", f"{files}/ca.crt", "-H", f"Authorization: Bearer {token}",
                                          *send, f"https://127.0.0.1:{PORT}{path}", check=False).stdout
    wait_until("the API server answers", lambda: ask("/api/v1/nodes"), 10)
    cluster.node.start(before=("unshare", "-m", "env", "KUBERNETES_SERVICE_HOST=127.0.0.1", f"KUBERNETES_SERVICE_PORT={PORT}",
                               "sh", "-c", IN_A_POD.format(account=ACCOUNT, files=files), "sh"))
    wait_until("ready", lambda: cluster.readyz() == "200", 10)
    wait_until("the taint is gone", lambda: not json.loads(ask("/api/v1/nodes/node-a"))["spec"].get("taints"), 10)
    # The token is exchanged, as kubelet does every hour.
    ask("/fake/faults", {"tokens": ["second"], "cut_after": 0})
    ask("/fake/apply", service_objects(["10.244.1.9"]))
    wait_until("refused", lambda: any("refuses our credentials" in p for p in cluster.problems()), 30)
    ask("/fake/faults", {"tokens": ["second"]})
    with open(f"{files}/token.new", "w", encoding="utf-8") as file:
        file.write("second")
    os.rename(f"{files}/token.new", f"{files}/token")
    wait_until("the Service of after the exchange", lambda: cluster.node.api("/v1/status")["services"] == 1, 60)
    wait_until("well again", lambda: not any("API server" in p for p in cluster.problems()), 60)


TESTS = [an_empty_pool_is_an_event_of_the_pod_and_of_the_pool_and_is_counted,
         the_api_server_of_a_kubeconfig_is_watched_over_by_the_dead_mans_switch,
         as_in_a_pod_the_api_server_is_reached_by_https_with_the_service_accounts_files,
         a_node_follows_the_api_server_and_goes_on_without_it, objects_that_make_no_sense_cost_what_they_touch_and_are_told]
