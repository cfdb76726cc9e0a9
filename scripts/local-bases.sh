#!/usr/bin/env bash
# Makes the two images that deploy/Dockerfile starts from where no registry can be reached: Debian by debootstrap, and on it
# the Rust toolchain of this machine. Then: RUST_IMAGE=localhost/rust-local BASE_IMAGE=localhost/debian-local make image
set -euo pipefail
suite=${SUITE:-bookworm}
mirror=${MIRROR:-http://deb.debian.org/debian}
for program in buildah debootstrap; do
    command -v $program >/dev/null || { echo "local-bases: no $program. Run: apt-get install -y buildah debootstrap" >&2; exit 4; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

debootstrap --variant=minbase "$suite" "$folder/root" "$mirror" >/dev/null
base=$(buildah from scratch)
buildah add --quiet "$base" "$folder/root" / >/dev/null
buildah config --cmd /bin/bash "$base"
buildah commit --quiet "$base" localhost/debian-local
buildah rm "$base" >/dev/null

toolchain=$(rustc --print sysroot)
rust=$(buildah from --pull-never localhost/debian-local)
buildah copy --quiet "$rust" "$toolchain" /usr/local/rust >/dev/null
buildah config --env PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --env CARGO_HOME=/usr/local/cargo "$rust"
buildah commit --quiet "$rust" localhost/rust-local
buildah rm "$rust" >/dev/null
