#!/usr/bin/env python3
"""End to end on one node: what an operator meets besides traffic. Each test has a cluster of its own.

    tests/e2e/run.py --bin-dir target/debug [--only REGEX]

The last line is `N passed, N failed`; the exit code is 0 only if none failed, 4 if this machine cannot run them.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cni  # noqa: E402
import container  # noqa: E402
import kubernetes_node  # noqa: E402
import leases  # noqa: E402
from node_state import difference, inventory  # noqa: E402
from small_cluster import SmallCluster, pod_manifest  # noqa: E402
import restart  # noqa: E402
import vfs  # noqa: E402
from namespaces import wait_until  # noqa: E402
from probes import Conversation, fetch  # noqa: E402
from topology import PodSpec, of_family  # noqa: E402

TESTS = []


def test(function):
    TESTS.append((function.__name__.replace("_", " "), function))
    return function


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


def talk(cluster, source="default/pod-0", target="default/pod-1"):
    """HTTP between two pods in both families."""
    client, server = cluster.pods[source], cluster.pods[target]
    for version in (4, 6):
        seen = fetch(client.namespace, server.address(version))
        expect(seen["peer"] == client.address(version), f"{seen}")


@test
def a_file_that_does_not_parse_is_named_with_its_line_and_stops_nothing(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        cluster.write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: { name: web\nspec: {}\n")

        def degraded():
            done = cluster.node.sluice("status")
            return done.stdout if "Degraded" in done.stdout else None
        said, _ = wait_until("status says Degraded", degraded, 3)
        expect("broken.yaml" in said and re.search(r"broken\.yaml:\d|line \d", said), f"file and line: {said}")
        talk(cluster)
        os.remove(f"{cluster.manifests}/broken.yaml")
        wait_until("status is well again", lambda: "Degraded" not in cluster.node.sluice("status").stdout, 3)


@test
def a_broken_edit_keeps_what_the_file_gave_last(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        deny = ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: deny, namespace: default }\n"
                "spec: { podSelector: { matchLabels: { app: pod-1 } }, policyTypes: [Ingress] }\n")
        cluster.write("deny.yaml", deny)
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]

        def denied():
            done = client.namespace.run("curl", "-s", "--max-time", "0.5", f"http://{server.address(4)}:8080/", check=False)
            return done.returncode == 28
        wait_until("the policy in force", denied, 5)
        cluster.write("deny.yaml", deny + "  nonsense: [\n")
        wait_until("status says Degraded", lambda: "Degraded" in cluster.node.sluice("status").stdout, 3)
        expect(denied(), "the policy went with the file's syntax")


@test
def cleanup_leaves_the_node_as_it_was_and_may_be_repeated(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        namespaces = [cluster.node.namespace, cluster.pods["default/pod-0"].namespace]
        before = [inventory(namespaces[0]), namespaces[1].ip("-o", "link", "show").stdout]
        files = set(everything_below(cluster.run_dir))
        cluster.up()
        talk(cluster)
        expect(cluster.node.stop(), "SIGTERM did not end sluiced")
        # A DEL that nobody will work off.
        expect(cluster.pods["default/pod-1"].cni("DEL").returncode == 0, "a DEL without an agent")
        for _ in range(2):
            cluster.node.cleanup()
            changed = difference(before[0], inventory(namespaces[0]))
            expect(not changed, f"the node changed:\n{changed}")
        expect(namespaces[1].ip("-o", "link", "show").stdout == before[1], "the pod kept its interface")
        expect(not os.path.exists(cluster.node.socket), "the socket is still there")
        left = {path for path in everything_below(cluster.run_dir) if "/logs" not in path} - files
        expect(not left, f"files are left: {left}")


def everything_below(folder):
    for path, folders, files in os.walk(folder):
        yield from (f"{path}/{name}" for name in [*folders, *files])


@test
def what_a_kill_leaves_the_next_start_takes_over_and_cleanup_removes(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        before = inventory(cluster.node.namespace)
        cluster.up()
        for _ in range(3):
            cluster.node.kill()
            cluster.node.start()
            wait_until("pods talk again", lambda: answers(cluster), 5)
        talk(cluster)
        cluster.node.kill()
        cluster.node.cleanup()
        changed = difference(before, inventory(cluster.node.namespace))
        expect(not changed, f"the node changed:\n{changed}")


def answers(cluster):
    try:
        talk(cluster)
        return True
    except Exception:  # whatever it is, it is not an answer
        return False


@test
def a_stop_and_a_start_keep_pods_and_connections(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        connections = [Conversation(client.namespace, server.address(version)) for version in (4, 6)]
        for connection in connections:
            connection.ask()
        expect(cluster.node.stop(), "SIGTERM did not end sluiced")
        cluster.node.start()
        for connection in connections:
            expect(connection.ask(patience=5.0)["line"] == 2, "the connection is another one")
            connection.close()


NAMED = """\
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: { name: named }
spec:
  tier: Admin
  priority: 1
  subject: { pods: { podSelector: { matchLabels: { app: pod-0 } } } }
  egress:
  - { name: dns, action: Accept, to: [{ namespaces: {} }], protocols: [{ udp: { destinationPort: { number: 53 } } }] }
  - { name: web, action: Accept, to: [{ domainNames: ["*.example.org"] }] }
  - { name: rest, action: Deny, to: [{ networks: ["0.0.0.0/0", "::/0"] }] }
"""


def serve_names(cluster, server):
    """Answers questions for names from a pod; the command that asks one."""
    resolver = [sys.executable, f"{os.path.dirname(os.path.abspath(__file__))}/resolver.py"]
    cluster.processes.start("resolver", server.namespace, *resolver, "serve", *server.spec.addresses)
    listening = lambda: len(server.namespace.run("ss", "-lunH", "sport", "=", ":53").stdout.splitlines()) == 2
    wait_until("the resolver", listening, 5)
    return resolver


@test
def a_domain_name_opens_with_its_answer_and_stays_open_over_a_kill(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.write("named.yaml", NAMED)
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        resolver = serve_names(cluster, server)

        def get(version):
            address = server.address(version)
            url = f"http://{'[' + address + ']' if version == 6 else address}:8080/"
            return client.namespace.run("curl", "-s", "--max-time", "0.5", url, check=False).returncode
        for version in (4, 6):
            expect(get(version) == 28, "open before anybody asked")
            told = client.namespace.run(*resolver, "ask", server.address(version), "www.example.org").stdout.strip()
            expect(told == server.address(version), f"the resolver says {told}")
            # One try: the first packet after the answer must not be lost, or half a second does not do.
            expect(get(version) == 0, "closed after the answer")
        learned = f"{os.path.dirname(cluster.node.socket)}/state/domains.json"

        def kept():
            text = open(learned, encoding="utf-8").read() if os.path.exists(learned) else ""
            return all(f'"{address}"' in text for address in server.spec.addresses)
        wait_until("what was learned is on disk", kept, 5)
        cluster.node.kill()
        cluster.node.start()
        for version in (4, 6):
            wait_until("open after a kill, without asking", lambda: get(version) == 0, 5)


@test
def a_connection_is_cut_by_the_policy_that_forbids_it_and_no_other(bin_dir):
    with SmallCluster(bin_dir, count=3) as cluster:
        cluster.up()
        client, server, other = (cluster.pods[f"default/pod-{n}"] for n in range(3))
        cut = [Conversation(client.namespace, server.address(version)) for version in (4, 6)]
        kept = [Conversation(client.namespace, other.address(version)) for version in (4, 6)]
        for connection in cut + kept:
            connection.ask()
        cluster.write("deny.yaml", "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
                      "metadata: { name: deny, namespace: default }\n"
                      "spec: { podSelector: { matchLabels: { app: pod-1 } }, policyTypes: [Ingress] }\n")

        def silent(connection):
            try:
                connection.ask(patience=0.5)
                return False
            except Exception:  # a time-out or an end: not an answer
                return True
        for connection in cut:
            wait_until("the connection cut", lambda: silent(connection), 5)
        for connection in kept:
            expect(connection.ask()["line"] == 2, "another connection was harmed")
            connection.close()


@test
def policies_over_the_limit_are_told_with_the_one_that_has_most_and_open_nothing(bin_dir):
    deny = ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: guard, namespace: default }\n"
            "spec: { podSelector: { matchLabels: { app: pod-1 } }, policyTypes: [Ingress] }\n")
    blocks = ", ".join(f'{{ ipBlock: {{ cidr: "100.64.{n}.0/24" }} }}' for n in range(40))
    wide = ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: { name: wide, namespace: default }\n"
            f"spec: {{ podSelector: {{ matchLabels: {{ app: pod-0 }} }}, policyTypes: [Ingress], ingress: [{{ from: [{blocks}] }}] }}\n")
    with SmallCluster(bin_dir) as cluster:
        cluster.configure(more="policy: { listed_peers: 30 }\n")
        cluster.write("guard.yaml", deny)
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]

        def reached():
            return client.namespace.run("curl", "-s", "--max-time", "0.5", f"http://{server.address(4)}:8080/",
                                        check=False).returncode == 0
        expect(not reached(), "the policy is not in force")
        # One edit that opens the pod and cannot be compiled: nothing of it may come into force.
        cluster.write("guard.yaml", deny.replace("policyTypes: [Ingress]", "ingress: [{}]") + "---\n" + wide)

        def told():
            said = cluster.node.sluice("status").stdout
            return said if "NetworkPolicy/default/wide" in said else None
        said, _ = wait_until("status names the policy", told, 5)
        expect("Degraded" in said and "policy.listed_peers is 30" in said, said)
        for _ in range(4):
            expect(not reached(), "a policy that cannot be compiled has opened a pod")
        os.remove(f"{cluster.manifests}/guard.yaml")
        wait_until("status is well again", lambda: "Degraded" not in cluster.node.sluice("status").stdout, 5)
        wait_until("open without policies", reached, 5)


@test
def an_interface_that_is_not_there_ends_the_start_with_code_4_and_its_name(bin_dir):
    with SmallCluster(bin_dir, count=0) as cluster:
        cluster.configure(interface="eth9")
        done = cluster.node.namespace.run(cluster.program("sluiced"), "run", "--config", cluster.node.config, check=False)
        expect(done.returncode == 4, f"exit code {done.returncode}: {done.stderr}")
        expect("eth9" in done.stderr, f"does not name the interface: {done.stderr}")


@test
def a_missing_capability_ends_the_start_with_code_4_and_the_mend(bin_dir):
    with SmallCluster(bin_dir, count=0) as cluster:
        command = ["setpriv", "--bounding-set=-net_admin", "--", cluster.program("sluiced"), "run", "--config"]
        done = cluster.node.namespace.run(*command, cluster.node.config, check=False)
        expect(done.returncode == 4, f"exit code {done.returncode}: {done.stderr}")
        expect("CAP_NET_ADMIN" in done.stderr, f"does not name the capability: {done.stderr}")


@test
def an_unknown_field_of_the_configuration_is_refused_by_name(bin_dir):
    with SmallCluster(bin_dir, count=0) as cluster:
        cluster.configure(more="wrokers: 2\n")
        done = cluster.node.namespace.run(cluster.program("sluiced"), "run", "--config", cluster.node.config, check=False)
        expect(done.returncode == 2 and "wrokers" in done.stderr, f"exit code {done.returncode}: {done.stderr}")


@test
def a_second_agent_on_the_same_socket_is_refused_and_harms_nothing(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        done = cluster.node.namespace.run(cluster.program("sluiced"), "run", "--config", cluster.node.config, check=False)
        expect(done.returncode not in (0, 101), f"exit code {done.returncode}: {done.stderr}")
        expect(cluster.node.sluice("status", check=False).returncode == 0, "the first agent lost its socket")
        talk(cluster)


@test
def the_command_line_says_with_code_3_that_no_agent_is_there(bin_dir):
    with SmallCluster(bin_dir, count=0) as cluster:
        done = cluster.node.sluice("status", check=False)
        expect(done.returncode == 3 and cluster.node.socket in done.stderr, f"{done.returncode}: {done.stderr}")


@test
def a_pod_deleted_while_the_agent_is_away_is_gone_after_its_next_start(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        cluster.node.stop()
        done = cluster.pods["default/pod-0"].detach()
        expect(done.returncode == 0, done.stdout)
        notes = f"{os.path.dirname(cluster.node.socket)}/pending-del"
        expect(len(os.listdir(notes)) == 1, "the DEL is not noted")
        cluster.node.start()
        wait_until("the note worked off", lambda: not os.listdir(notes), 5)
        links = cluster.pods["default/pod-0"].namespace.ip("-o", "link", "show").stdout
        expect("eth0" not in links, f"the pod kept its interface: {links}")
        cluster.pods["default/pod-0"].attach()
        talk(cluster)


@test
def a_pod_without_an_object_gets_an_address_that_a_restart_remembers(bin_dir):
    with SmallCluster(bin_dir, count=1) as cluster:
        cluster.up()
        spec = PodSpec("default/stranger", "node-a", ())
        pod = type(cluster.pods["default/pod-0"])(cluster, spec)
        cluster.pods[spec.key] = pod
        pod.namespace.create()
        given = [ip["address"].split("/")[0] for ip in pod.attach()["ips"]]
        expect(of_family(given, 4).startswith("10.244.1.") and of_family(given, 6).startswith("fd00:10:244:1:"), f"{given}")
        expect(not set(given) & set(cluster.pods["default/pod-0"].spec.addresses), "an address that is taken")
        pod.serve()
        cluster.node.kill()
        cluster.node.start()
        again = [ip["address"].split("/")[0] for ip in pod.attach()["ips"]]
        expect(set(again) == set(given), f"{given}, after the restart {again}")
        for version in (4, 6):
            fetch(cluster.pods["default/pod-0"].namespace, of_family(given, version))


@test
def a_pod_on_a_veth_pair_talks_to_one_on_a_tap_device_and_comes_back_after_a_kill(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        asked = pod_manifest(cluster.pods["default/pod-0"].spec).replace(
            "labels:", 'annotations: { sluicegate.dev/port-driver: af_xdp }, labels:')
        cluster.write("pod-0.yaml", asked)
        before = inventory(cluster.node.namespace)
        cluster.up()
        ports = cluster.node.sluice("status").stdout
        expect(any("pod:default/pod-0" in line and "af_xdp" in line for line in ports.splitlines()), ports)
        talk(cluster)
        talk(cluster, "default/pod-1", "default/pod-0")
        cluster.node.kill()
        cluster.node.start()
        wait_until("pods talk again", lambda: answers(cluster), 5)
        talk(cluster, "default/pod-1", "default/pod-0")
        expect(cluster.node.stop(), "SIGTERM did not end sluiced")
        cluster.node.cleanup()
        changed = difference(before, inventory(cluster.node.namespace))
        expect(not changed, f"the node changed:\n{changed}")


@test
def a_candidate_policy_is_tried_on_live_flows_and_touches_none(bin_dir):
    def policy(name, selects):
        return ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
                f"metadata: {{ name: {name}, namespace: default }}\n"
                f"spec: {{ podSelector: {selects}, policyTypes: [Ingress] }}\n")

    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        connections = [Conversation(client.namespace, server.address(version)) for version in (4, 6)]
        for connection in connections:
            connection.ask()
        candidate = f"{cluster.folder}/candidate.yaml"
        with open(candidate, "w") as file:
            file.write(policy("deny", "{ matchLabels: { app: pod-1 } }"))
        done = cluster.node.sluice("policy", "try", candidate, "--for", "3s", "-o", "json", "--expect", "none",
                                   check=False)
        expect(done.returncode == 1, f"{done.returncode}: {done.stderr}")
        report = json.loads(done.stdout)
        expect(report["done"] and not report["problems"], f"{report}")
        found = [c for c in report["changes"] if c["from"] == "default/pod-0" and c["to"] == "default/pod-1"]
        expect(len(found) == 2 and all(c["flows"] >= 1 for c in found), f"both families: {report}")
        expect(all((c["now"], c["then"], c["then_decided_by"]) == ("allow", "deny", "isolation") for c in found), f"{found}")
        for connection in connections:
            expect(connection.ask()["line"] == 2, "the trial touched a connection")
            connection.close()
        talk(cluster)
        # The other way round: what is denied now and would be allowed.
        cluster.write("deny.yaml", policy("deny", "{ matchLabels: { app: pod-1 } }"))

        def denied():
            return client.namespace.run("curl", "-s", "--max-time", "0.5", f"http://{server.address(4)}:8080/",
                                        check=False).returncode == 28
        wait_until("the policy in force", denied, 5)
        with open(candidate, "w") as file:
            file.write(policy("deny", "{ matchLabels: { app: nobody } }"))
        trial = subprocess.Popen([cluster.program("sluice"), "--socket", cluster.node.socket, "policy", "try", candidate,
                                  "--for", "1h", "-o", "json"], stdout=subprocess.PIPE, text=True)
        # The first may come before a slow machine has begun with the trial.
        time.sleep(1)
        for _ in range(6):
            expect(denied(), "the trial lets through what is denied")
        trial.send_signal(signal.SIGINT)
        out, _ = trial.communicate(timeout=10)
        expect(trial.returncode == 0, f"Ctrl-C ends a trial with 0, not {trial.returncode}")
        found = [c for c in json.loads(out)["changes"] if (c["now"], c["then"], c["port"]) == ("deny", "allow", 8080)]
        expect(found and found[0]["packets"] >= 3 and found[0]["now_decided_by"] == "isolation", f"{out}")


@test
def a_candidate_with_domain_names_is_judged_by_what_pods_have_learned(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.write("named.yaml", NAMED)
        cluster.up()
        client, server = cluster.pods["default/pod-0"], cluster.pods["default/pod-1"]
        resolver = serve_names(cluster, server)
        address = server.address(4)
        client.namespace.run(*resolver, "ask", address, "www.example.org")
        connection = Conversation(client.namespace, address)
        connection.ask()
        candidate = f"{cluster.folder}/candidate.yaml"

        def tried(text, *more):
            with open(candidate, "w", encoding="utf-8") as file:
                file.write(text)
            done = cluster.node.sluice("policy", "try", candidate, "--for", "2s", "-o", "json", *more)
            report = json.loads(done.stdout)
            return report, [c for c in report["changes"] if c["proto"] == "tcp" and c["direction"] == "egress"]
        report, changes = tried(NAMED)
        expect(not changes and not report["problems"], f"the enforced set against itself: {report}")
        report, changes = tried(NAMED.replace("*.example.org", "api.example.net"))
        expect(any("api.example.net" in problem for problem in report["problems"]), f"{report}")
        expect([(c["now"], c["then"]) for c in changes] == [("allow", "deny")], f"{report}")
        expect(changes[0]["now_decided_by"] == "ClusterNetworkPolicy/named#web", f"{changes}")
        report, changes = tried(NAMED.replace("*.example.org", "api.example.net"), "--dns", f"api.example.net={address}")
        expect(not changes and not report["problems"], f"with the address said: {report}")
        connection.close()


@test
def an_idle_node_with_six_pods_costs_next_to_no_processor(bin_dir):
    with SmallCluster(bin_dir, count=6) as cluster:
        cluster.up()
        talk(cluster)
        time.sleep(2)
        start, used = time.monotonic(), cluster.node.cpu_seconds()
        time.sleep(6)
        share = (cluster.node.cpu_seconds() - used) / (time.monotonic() - start)
        print(f"     {100 * share:.1f} % of one CPU")
        expect(share < 0.03, f"{100 * share:.1f} % of one CPU, idle")


BALANCED = """\
apiVersion: v1
kind: Service
metadata: {{ name: shop, namespace: default }}
spec:
  type: LoadBalancer
  externalTrafficPolicy: {policy}
  healthCheckNodePort: {port}
  clusterIP: 10.96.0.80
  selector: {{ app: {app} }}
  ports: [ {{ port: 80, targetPort: 8080, nodePort: 30080 }} ]
status: {{ loadBalancer: {{ ingress: [ {{ ip: 203.0.113.80 }} ] }} }}
"""


def asked(namespace, url):
    """The head and body of an answer, or None where nobody listens."""
    done = namespace.run("curl", "-s", "-i", "--max-time", "2", url, check=False)
    return done.stdout if done.returncode == 0 else None


@test
def a_health_check_node_port_says_how_many_pods_are_here_and_lives_with_its_service(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        client = cluster.pods["default/pod-0"].namespace
        url = "http://192.0.2.11:31000/healthz"
        cluster.write("shop.yaml", BALANCED.format(policy="Local", port=31000, app="pod-1"))
        for who in (cluster.node.namespace, cluster.outside, client):
            said, _ = wait_until("200", lambda: text if (text := asked(who, url)) and " 200 " in text else None, 5)
            expect("X-Load-Balancing-Endpoint-Weight: 1".lower() in said.lower(), said)
            expect('"localEndpoints":1' in said and '"name":"shop"' in said and "nosniff" in said, said)
        cluster.write("shop.yaml", BALANCED.format(policy="Local", port=31000, app="nobody"))
        wait_until("503", lambda: " 503 " in (asked(cluster.outside, url) or ""), 5)
        cluster.write("shop.yaml", BALANCED.format(policy="Cluster", port=31000, app="pod-1"))
        wait_until("the port closed", lambda: asked(cluster.outside, url) is None, 5)
        cluster.write("shop.yaml", BALANCED.format(policy="Local", port=31000, app="pod-1"))
        wait_until("200 again", lambda: " 200 " in (asked(cluster.outside, url) or ""), 5)


@test
def a_health_check_node_port_that_is_taken_is_a_problem_of_its_service_until_it_is_free(bin_dir):
    with SmallCluster(bin_dir, count=1) as cluster:
        cluster.up()
        other = cluster.processes.start("other", cluster.node.namespace, sys.executable, "-m", "http.server", "31000")
        wait_until("the other program", lambda: asked(cluster.node.namespace, "http://192.0.2.11:31000/"), 5)
        cluster.write("shop.yaml", BALANCED.format(policy="Local", port=31000, app="pod-0"))

        def told():
            said = cluster.node.sluice("status").stdout
            return said if "healthCheckNodePort" in said and "31000" in said else None
        wait_until("status names Service and port", told, 5)
        cluster.processes.end(other)
        url = "http://192.0.2.11:31000/"
        wait_until("our answer", lambda: "localEndpoints" in (asked(cluster.node.namespace, url) or ""), 5)
        wait_until("no problem left", lambda: not told(), 5)


@test
def a_process_of_the_node_reaches_a_load_balancer_address_and_a_cluster_ip(bin_dir):
    with SmallCluster(bin_dir) as cluster:
        cluster.up()
        cluster.write("shop.yaml", BALANCED.format(policy="Local", port=31000, app="pod-1"))
        for url in ("http://10.96.0.80/", "http://203.0.113.80/"):
            wait_until(url, lambda: " 200 " in (asked(cluster.node.namespace, url) or ""), 5)


for kubernetes_test in [*kubernetes_node.TESTS, *container.TESTS, *leases.TESTS]:
    test(kubernetes_test)
for body in restart.ALL:
    TESTS.append((f"restart: {body.__name__.replace('_', ' ')}", lambda bin_dir, body=body: body(bin_dir, expect)))


def raise_interrupt(number, _frame):
    raise KeyboardInterrupt(signal.Signals(number).name)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin-dir", required=True)
    parser.add_argument("--only", metavar="REGEX", default="")
    options = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("ip"):
        print("These tests make network namespaces: they need root, and iproute2 (`make setup`).", file=sys.stderr)
        return 4
    absent = [name for name in ("sluiced", "sluice", "sluice-cni", "fake-apiserver") if not os.access(f"{options.bin_dir}/{name}", os.X_OK)]
    if absent:
        print(f"Missing in {options.bin_dir}: {', '.join(absent)}. `cargo build --workspace --bins` makes them.", file=sys.stderr)
        return 4
    signal.signal(signal.SIGTERM, raise_interrupt)
    chosen = [(title, body) for title, body in [*TESTS, *cni.TESTS, *vfs.TESTS] if re.search(options.only, title)]
    passed = failed = 0
    for title, body in chosen:
        start = time.monotonic()
        try:
            body(options.bin_dir)
            outcome, passed = "ok  ", passed + 1
        except Exception as error:
            outcome, failed = "FAIL", failed + 1
            print(f"     {type(error).__name__}: {error}")
        print(f"{outcome} {title} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
