#!/usr/bin/env bash
# Installs what building, testing and the demo need: Debian packages and, where cargo is missing, a Rust toolchain.
# Quick when everything is there. Needs root only if something has to be installed.
set -euo pipefail
cd "$(dirname "$0")/.."

# What we look for -> the Debian package that brings it. A word with a slash is a file, any other is a command.
wanted='
cc build-essential
make make
git git
curl curl
pkg-config pkg-config
m4 m4
clang clang
llvm-strip llvm
/usr/include/libelf.h libelf-dev
/usr/include/zlib.h zlib1g-dev
ip iproute2
nsenter util-linux
ping iputils-ping
iperf3 iperf3
tcpdump tcpdump
nft nftables
containerd containerd
ctr containerd
runc runc
busybox busybox-static
ethtool ethtool
valgrind valgrind
/usr/bin/python3 python3
/usr/lib/python3/dist-packages/scapy python3-scapy
/usr/lib/python3/dist-packages/yaml python3-yaml
/usr/lib/python3/dist-packages/jsonschema python3-jsonschema
go golang-go
/usr/share/gocode/src/github.com/Masterminds/sprig golang-github-masterminds-sprig-dev
/etc/ssl/certs/ca-certificates.crt ca-certificates
'

# `setup.sh bench`: also what the comparison needs.
if [ "${1:-}" = bench ]; then
    wanted="$wanted
dpdk-testpmd dpdk-dev
/usr/lib/python3/dist-packages/matplotlib python3-matplotlib
"
fi

# `setup.sh dpdk`: also what the feature `dpdk` and its tests need, where the distribution has it.
if [ "${1:-}" = dpdk ]; then
    if [ ! -e /usr/share/doc/libdpdk-dev ] && ! apt-cache show libdpdk-dev >/dev/null 2>&1; then
        echo "setup: this distribution has no DPDK (libdpdk-dev); what needs it is left out"
        exit 0
    fi
    wanted="$wanted
/usr/share/doc/libdpdk-dev libdpdk-dev
/usr/share/doc/libclang-dev libclang-dev
dpdk-testpmd dpdk-dev
"
fi

# Root's tools are not always on the path of a plain shell.
export PATH="$HOME/.cargo/bin:$PATH:/usr/sbin:/sbin"

missing=()
while read -r what package; do
    [ -n "$what" ] || continue
    case $what in
        */*) [ -e "$what" ] || missing+=("$package") ;;
        *) command -v "$what" >/dev/null || command -v "$what-14" >/dev/null || missing+=("$package") ;;
    esac
done <<<"$wanted"

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: this is no Debian or Ubuntu. Install what these packages bring, then run again: ${missing[*]}" >&2
        exit 4
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "setup: not root. Run: sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
        exit 4
    fi
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The oldest toolchain that builds this workspace stands in Cargo.toml.
rust=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
if ! command -v cargo >/dev/null; then
    echo "setup: installing Rust $rust"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
        sh -s -- -y --quiet --no-modify-path --profile minimal --component rustfmt,clippy --default-toolchain "$rust"
fi
have=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n%s\n' "$rust" "$have" | sort -V | head -n1)" != "$rust" ]; then
    echo "setup: Rust $have is older than $rust. Run: rustup toolchain install $rust && rustup default $rust" >&2
    exit 4
fi
for part in fmt clippy; do
    cargo "$part" --version >/dev/null 2>&1 || rustup component add "$([ $part = fmt ] && echo rustfmt || echo clippy)"
done
