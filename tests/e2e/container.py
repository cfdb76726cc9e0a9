"""The agent in a container that is not privileged: `runc` with what the DaemonSet asks for, and no more. Registered by run.py.

The host's root serves as the image; SLUICE_IMAGE_ROOT names an unpacked image in its place (`buildah mount`), whose own `sluiced` is run then.
"""

import json
import os
import shutil
import subprocess
import time

import yaml

from small_cluster import SmallCluster  # first: it sets the path of those below
from namespaces import run, wait_until
from probes import fetch

DAEMONSET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "kustomize", "base", "daemonset.yaml")
IMAGE = os.environ.get("SLUICE_IMAGE_ROOT")
# As containerd's default specification has them.
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
MASKED = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/sys/firmware"]
# The image's root without what is mounted on it.
IN_A_MOUNT_NAMESPACE = "mount --make-rprivate / && mount --make-shared /run/netns && mount --bind {image} {bundle}/rootfs && exec runc --root {bundle}/state run --bundle {bundle} {name}"


def expect(holds, text):
    if not holds:
        raise AssertionError(text)


def asked_for():
    """The agent's container as the manifests have it."""
    with open(DAEMONSET, encoding="utf-8") as file:
        documents = list(yaml.safe_load_all(file))
    pod = next(d for d in documents if d["kind"] == "DaemonSet")["spec"]["template"]["spec"]
    return pod, next(c for c in pod["containers"] if c["name"] == "sluiced")


def specification(cluster, pod, container):
    context = container["securityContext"]
    expect(not context.get("privileged") and context["capabilities"]["drop"] == ["ALL"], f"{context}")
    capabilities = [f"CAP_{name}" for name in context["capabilities"]["add"]]
    mounted = {mount["name"]: mount for mount in container["volumeMounts"]}
    sources = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    expect(sources["proc-sys-net"] == "/proc/sys/net" and sources["netns"] == "/run/netns" and sources["tun"] == "/dev/net/tun", f"{sources}")
    expect(mounted["netns"]["mountPropagation"] == "HostToContainer", f"{mounted['netns']}")

    def bind(source, target, *options):
        return {"type": "bind", "source": source, "destination": target, "options": ["rbind", *(options or ["rw"])]}
    mounts = [
        {"type": "proc", "source": "proc", "destination": "/proc"},
        {"type": "tmpfs", "source": "tmpfs", "destination": "/dev", "options": ["nosuid", "mode=755"]},
        {"type": "sysfs", "source": "sysfs", "destination": "/sys", "options": ["nosuid", "noexec", "nodev", "ro"]},
        bind("/dev/net/tun", "/dev/net/tun"), bind("/dev/shm", "/dev/shm"),
        bind("/run/netns", "/run/netns", "rw", "rslave"),
        bind(cluster.folder, cluster.folder),
        # The chart mounts it below /host; the host's root, which is the image here, has no such folder.
        {"type": "tmpfs", "source": "tmpfs", "destination": "/mnt"},
        bind("/proc/sys/net", "/mnt/proc/sys/net"),
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": context["runAsUser"], "gid": 0}, "cwd": "/", "noNewPrivileges": not context["allowPrivilegeEscalation"],
            "args": ["/usr/local/bin/sluiced" if IMAGE else cluster.program("sluiced"), "run", "--config", cluster.node.config],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SLUICE_PROC_SYS=/mnt/proc/sys"],
            "capabilities": {which: capabilities for which in ("bounding", "effective", "permitted")},
        },
        "root": {"path": "rootfs", "readonly": context["readOnlyRootFilesystem"]},
        "hostname": "node-a", "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")] + [{"type": "network", "path": cluster.node.namespace.path}],
            "readonlyPaths": READ_ONLY, "maskedPaths": MASKED, "resources": {"devices": [{"allow": True, "access": "rwm"}]},
        },
    }


def with_the_daemonsets_capabilities_and_no_more_the_agent_serves_pods_and_comes_back(bin_dir):
    if not shutil.which("runc"):
        raise RuntimeError("no runc; `make setup` installs it")
    pod, container = asked_for()
    with SmallCluster(bin_dir) as cluster:
        bundle = f"{cluster.folder}/bundle"
        os.makedirs(f"{bundle}/rootfs")
        with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
            json.dump(specification(cluster, pod, container), file)
        names = []

        def start():
            names.append(f"sg-e2e-{os.getpid()}-{len(names)}")
            script = IN_A_MOUNT_NAMESPACE.format(image=IMAGE or "/", bundle=bundle, name=names[-1])
            log = open(f"{cluster.logs}/sluiced-node-a.log", "ab")
            process = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            process.title = "runc"
            cluster.processes.started.append(process)

            def ready():
                expect(process.poll() is None, "the container has ended:\n" + cluster.processes.log("sluiced-node-a", last=15))
                return cluster.node.sluice("status", check=False).returncode == 0
            wait_until("the agent in the container ready", ready, 30, every=0.1)
            return process

        def stop(process, signal):
            run("runc", "--root", f"{bundle}/state", "kill", names[-1], signal)
            process.wait(15)
            cluster.processes.started.remove(process)
            run("runc", "--root", f"{bundle}/state", "delete", "--force", names[-1], check=False)
        process = start()
        try:
            for each in cluster.pods.values():
                each.attach()
                each.serve()
            client, server = cluster.pods.values()
            for version in (4, 6):
                expect(fetch(client.namespace, server.address(version), 8080)["server"] == "pod-1", f"IPv{version}")
                expect(fetch(cluster.node.namespace, server.address(version), 8080)["server"] == "pod-1", f"from the node, IPv{version}")
            stop(process, "KILL")
            process = start()
            time.sleep(0.5)
            expect(fetch(client.namespace, server.address(4), 8080)["server"] == "pod-1", "after a kill")
            problems = [p["reason"] for p in cluster.node.api("/v1/status")["problems"]]
            expect(not problems, f"{problems}")
        finally:
            if process.poll() is None:
                stop(process, "TERM")


TESTS = [with_the_daemonsets_capabilities_and_no_more_the_agent_serves_pods_and_comes_back]
