#!/usr/bin/env bash
# Builds the container image with what is here: docker, podman or buildah. IMAGE names it; RUST_IMAGE and BASE_IMAGE
# replace the images it is built from; scripts/local-bases.sh makes two where no registry can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n1)
image=${IMAGE:-ghcr.io/sluicegate/sluicegate:$version}
args=(-f deploy/Dockerfile -t "$image")
for name in RUST_IMAGE BASE_IMAGE; do
    [ -z "${!name:-}" ] || args+=(--build-arg "$name=${!name}")
done
if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    docker build "${args[@]}" .
elif command -v podman >/dev/null; then
    podman build "${args[@]}" .
elif command -v buildah >/dev/null; then
    buildah build "${args[@]}" .
else
    echo "image: no docker, podman or buildah that works. Run: apt-get install -y buildah" >&2
    exit 4
fi
echo "$image"
