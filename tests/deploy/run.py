#!/usr/bin/env python3
"""Renders what deploy/ ships and checks it: the chart, the kustomize base and overlays, the CRDs.

With `helm`, `kustomize` or `kubectl` on the PATH these render; without them our own renderers do, and that is said.
`--write` makes the kustomize base anew from the chart.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jsonschema
import yaml

import kustomize

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/sluicegate"
BASE = ROOT / "deploy/kustomize/base"
OVERLAYS = ROOT / "deploy/kustomize/overlays"
CRDS = ROOT / "deploy/crds"
# Which file of the base holds which kinds.
FILES = {
    "serviceaccount.yaml": {"ServiceAccount"},
    "rbac.yaml": {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
    "config.yaml": {"ConfigMap"},
    "daemonset.yaml": {"DaemonSet"},
}
# Of Helm alone: no business of those who do not use it.
HELM_LABELS = {"helm.sh/chart", "app.kubernetes.io/managed-by"}
passed, failed = [], []


def check(title, holds, detail=""):
    (passed if holds else failed).append(title)
    print(f"{'ok  ' if holds else 'FAIL'} {title}" + (f": {detail}" if detail and not holds else ""))


def run(*command, **more):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **more)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(str(c) for c in command)}: {done.stderr.strip()}")
    return done.stdout


class Chart:
    """Renders the chart with Helm, or with Go's templates, which Helm is made of."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.helm = shutil.which("helm")
        if self.helm:
            print(f"chart: rendered by {self.helm}")
            return
        print("chart: no helm here; rendered by tests/deploy/render.go (Go's text/template with sprig)")
        self.renderer = scratch / "render"
        env = dict(os.environ, GO111MODULE="off", GOPATH="/usr/share/gocode", GOFLAGS="", GOCACHE=str(scratch / "cache"))
        run("go", "build", "-o", self.renderer, ROOT / "tests/deploy/render.go", env=env)

    def render(self, values=None):
        files = []
        if values:
            path = self.scratch / "values.yaml"
            path.write_text(yaml.safe_dump(values))
            files = [path]
        if self.helm:
            more = [x for f in files for x in ("-f", f)]
            text = run(self.helm, "template", "sluicegate", CHART, "-n", "kube-system", *more)
        else:
            text = run(self.renderer, CHART, "sluicegate", "kube-system", *files)
        return [d for d in yaml.safe_load_all(text) if d]


def without_helm(value):
    """The same object without Helm's labels and without the checksum that only Helm needs."""
    if isinstance(value, dict):
        drop = HELM_LABELS | {"checksum/config"}
        out = {k: without_helm(v) for k, v in value.items() if k not in drop}
        return {k: v for k, v in out.items() if k != "annotations" or v}
    return [without_helm(v) for v in value] if isinstance(value, list) else value


def only(objects, kind):
    found = [o for o in objects if o["kind"] == kind]
    if len(found) != 1:
        raise SystemExit(f"{len(found)} objects of kind {kind}, not one")
    return found[0]


def check_daemonset(title, objects):
    pod = only(objects, "DaemonSet")["spec"]["template"]["spec"]
    volumes = {v["name"] for v in pod["volumes"]}
    containers = pod.get("initContainers", []) + pod["containers"]
    mounts = {m["name"] for c in containers for m in c.get("volumeMounts", [])}
    check(f"{title}: every mount has its volume and every volume its mount", mounts == volumes, str(mounts ^ volumes))
    check(f"{title}: the node's own network, and its resolver", pod["hostNetwork"] and pod["dnsPolicy"] == "Default")
    check(f"{title}: system-node-critical", pod["priorityClassName"] == "system-node-critical")
    agent = next(c for c in pod["containers"] if c["name"] == "sluiced")
    security = agent["securityContext"]
    lacking = {"NET_ADMIN", "NET_RAW", "BPF", "SYS_ADMIN", "IPC_LOCK"} - set(security["capabilities"]["add"])
    check(f"{title}: capabilities, not privileged", not security.get("privileged") and not lacking, str(lacking))
    privileged = {c["name"] for c in containers if c["securityContext"].get("privileged")}
    check(f"{title}: nothing is privileged but what writes to /sys", privileged <= {"hugepage-setup"}, str(privileged))
    paths = {agent[p]["httpGet"]["path"] for p in ("livenessProbe", "startupProbe")}
    check(f"{title}: liveness asks the process alone", paths == {"/healthz"}, str(paths))
    check(f"{title}: readiness asks whether pods can be served", agent["readinessProbe"]["httpGet"]["path"] == "/readyz")


def check_config(title, objects, sluiced):
    text = only(objects, "ConfigMap")["data"]["sluiced.yaml"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        done = subprocess.run([sluiced, "check", "--config", file.name], capture_output=True, text=True)
    check(f"{title}: sluiced takes the configuration", done.returncode == 0, done.stderr.strip())


def check_rbac(title, objects):
    rules = [r for o in objects if o["kind"] in ("ClusterRole", "Role") for r in o["rules"]]
    words = {w for r in rules for part in ("apiGroups", "resources", "verbs") for w in r[part]}
    check(f"{title}: no wildcard in RBAC", "*" not in words)
    writes = {
        (resource, verb)
        for o in objects if o["kind"] == "ClusterRole"
        for r in o["rules"] for resource in r["resources"] for verb in r["verbs"]
        if verb not in ("get", "list", "watch")
    }
    allowed = {
        ("clusternetworkpolicies/status", "patch"), ("egressgateways/status", "patch"), ("ippools/status", "patch"),
        ("nodes/status", "patch"), ("nodes", "patch"), ("events", "create"), ("events", "patch"), ("services/status", "patch"),
    }
    check(f"{title}: writes are status, events and the node's taint alone", writes <= allowed, str(writes - allowed))
    own = [r for o in objects if o["kind"] == "Role" for r in o["rules"]]
    leases = [sorted(r["verbs"]) for r in own if r["resources"] == ["leases"]]
    check(f"{title}: in its own namespace the agent may touch Leases alone, and not watch them",
          len(own) == 1 and leases == [["create", "delete", "get", "list", "update"]], str(own))
    secrets = [r for r in rules if {"secrets", "configmaps"} & set(r["resources"])]
    check(f"{title}: no Secret and no ConfigMap is read through the API", not secrets)


def check_values(chart):
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    validator = jsonschema.Draft7Validator(schema)
    errors = [e.message for e in validator.iter_errors(defaults)]
    check("values: the defaults satisfy the schema", not errors, "; ".join(errors))
    for wrong in ({"imgae": {}}, {"apiServer": {"port": 0}}, {"image": {"digest": "sha256:abc"}}, {"cni": {"binDir": "opt"}}):
        bad = {**defaults, **{k: {**defaults.get(k, {}), **v} for k, v in wrong.items()}}
        check(f"values: {json.dumps(wrong)} is refused", not validator.is_valid(bad))
    described = set(schema["properties"]) - {"global"}
    check("values: the schema knows exactly the values there are", described == set(defaults), str(described ^ set(defaults)))
    rich = chart.render({
        "image": {"digest": "sha256:" + "a" * 64},
        "apiServer": {"host": "192.0.2.1", "port": 6443},
        "hugepages": {"setup": True, "setupArgs": ["--vfs", "ens1f0np0=4"], "size2Mi": "512Mi"},
        "vfs": {"enabled": True},
        "prometheus": {"podMonitor": {"enabled": True, "labels": {"release": "prom"}}},
        "extraEnv": [{"name": "A", "value": "b"}],
        "imagePullSecrets": [{"name": "pull"}],
    })
    check_daemonset("chart with everything", rich)
    agent = only(rich, "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    env = {e["name"]: e.get("value") for e in agent["env"]}
    check("values: apiServer.host goes before the ClusterIP",
          (env.get("KUBERNETES_SERVICE_HOST"), env.get("KUBERNETES_SERVICE_PORT")) == ("192.0.2.1", "6443"))
    check("values: hugepages are a limit, memory stays one",
          agent["resources"]["limits"] == {"hugepages-2Mi": "512Mi", "memory": "2Gi"}, str(agent["resources"]))
    setup = [c for c in only(rich, "DaemonSet")["spec"]["template"]["spec"]["initContainers"] if c["name"] == "hugepage-setup"][0]
    check("values: hugepage-setup knows the configuration and what more it is asked for",
          "--config" in setup["command"] and setup["args"] == ["--vfs", "ens1f0np0=4"], str(setup))
    mounts = {m["mountPath"] for m in agent["volumeMounts"]}
    check("values: vfs.enabled mounts the host's /sys and the ledger", {"/host/sys", "/host/var/lib/sluicegate"} <= mounts, str(mounts))
    check("values: a digest goes before the tag", agent["image"].endswith("@sha256:" + "a" * 64))
    check("values: the PodMonitor finds the metrics port", only(rich, "PodMonitor") and agent["ports"][0]["name"] == "metrics")
    bare = chart.render({"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "own"}})
    check("values: without RBAC and account none is made", {o["kind"] for o in bare} == {"ConfigMap", "DaemonSet"})


def base_files(objects):
    out = {}
    for name, kinds in FILES.items():
        docs = [without_helm(o) for o in objects if o["kind"] in kinds]
        head = "# Made from the chart by `python3 tests/deploy/run.py --write`; edit the chart instead.\n"
        out[name] = head + yaml.safe_dump_all(docs, sort_keys=False, width=120)
    return out


def check_kustomize(sluiced):
    tool = shutil.which("kustomize") and ["kustomize", "build"] or shutil.which("kubectl") and ["kubectl", "kustomize"]
    print(f"kustomize: {' '.join(tool) if tool else 'no kustomize or kubectl here; rendered by tests/deploy/kustomize.py'}")
    for folder in [BASE, *sorted(p for p in OVERLAYS.iterdir() if p.is_dir())]:
        title = f"kustomize {folder.name}"
        objects = kustomize.build(folder)
        if tool:
            theirs = [d for d in yaml.safe_load_all(run(*tool, folder)) if d]
            by_name = lambda objs: sorted(objs, key=lambda o: (o["kind"], o["metadata"]["name"]))
            check(f"{title}: our renderer and {tool[0]} agree", by_name(theirs) == by_name(objects))
        check_daemonset(title, objects)
        check_rbac(title, objects)
        check_config(title, objects, sluiced)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin-dir", default=ROOT / "target/debug", type=pathlib.Path)
    parser.add_argument("--write", action="store_true", help="make the kustomize base anew from the chart")
    args = parser.parse_args()
    sluiced = args.bin_dir / "sluiced"
    with tempfile.TemporaryDirectory(prefix="sg-deploy-") as scratch:
        chart = Chart(pathlib.Path(scratch))
        objects = chart.render()
        wanted = base_files(objects)
        if args.write:
            for name, text in wanted.items():
                (BASE / name).write_text(text)
            for path in CRDS.glob("*.yaml"):
                (CHART / "crds").mkdir(exist_ok=True)
                shutil.copy(path, CHART / "crds" / path.name)
        check_daemonset("chart", objects)
        check_rbac("chart", objects)
        check_config("chart", objects, sluiced)
        check_values(chart)
        stale = [name for name, text in wanted.items() if not (BASE / name).exists() or (BASE / name).read_text() != text]
        check("kustomize base is what the chart gives", not stale, f"{stale}: run with --write")
        check_kustomize(sluiced)
        for path in sorted(CRDS.glob("*.yaml")):
            copy = CHART / "crds" / path.name
            check(f"the chart ships {path.name}", copy.exists() and copy.read_text() == path.read_text(),
                  "run with --write" )
    print(f"\n{len(passed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
