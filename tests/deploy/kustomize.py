"""As much of kustomize as deploy/kustomize uses: resources, a namespace, strategic merge patches from files.

Only for machines without `kustomize` or `kubectl`; where one of them is there, run.py holds this against it.
"""
import pathlib

import yaml

# Lists that Kubernetes merges by a key (patchMergeKey in its API types); all others are replaced.
KEYS = {"containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace"}


def documents(path):
    return [d for d in yaml.safe_load_all(path.read_text()) if d]


def merge(base, patch, name=None):
    if isinstance(base, dict) and isinstance(patch, dict):
        out = dict(base)
        for key, value in patch.items():
            if value is None:
                out.pop(key, None)
            else:
                out[key] = merge(out[key], value, key) if key in out else value
        return out
    key = KEYS.get(name)
    if isinstance(base, list) and isinstance(patch, list) and key:
        # New elements come first, as in kustomize.
        known = {item[key]: item for item in base}
        fresh = [item for item in patch if item[key] not in known]
        changed = {item[key]: merge(known[item[key]], item) for item in patch if item[key] in known}
        return fresh + [changed.get(item[key], item) for item in base]
    return patch


def identity(obj):
    return obj["apiVersion"], obj["kind"], obj["metadata"]["name"]


def build(folder):
    folder = pathlib.Path(folder)
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(plan) - {"apiVersion", "kind", "namespace", "resources", "patches"}
    if unknown:
        raise SystemExit(f"{folder}: kustomization.yaml uses {sorted(unknown)}, which this renderer does not know")
    objects = []
    for name in plan.get("resources", []):
        path = folder / name
        objects += build(path) if path.is_dir() else documents(path)
    for entry in plan.get("patches", []):
        for patch in documents(folder / entry["path"]):
            at = [i for i, obj in enumerate(objects) if identity(obj) == identity(patch)]
            if len(at) != 1:
                raise SystemExit(f"{folder / entry['path']}: {identity(patch)} matches {len(at)} objects, not one")
            objects[at[0]] = merge(objects[at[0]], patch)
    if "namespace" in plan:
        for obj in objects:
            if obj["kind"] not in CLUSTER_WIDE:
                obj["metadata"]["namespace"] = plan["namespace"]
    return objects
