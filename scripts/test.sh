#!/usr/bin/env bash
# Every test, in the order in which a failure is cheapest to find. Goes on after a failure, so that one run shows all;
# exits 1 if anything failed. Each step is announced and timed.
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
python=${PYTHON:-/usr/bin/python3}
summary=()
failed=0

step() {
    local title=$1 start=$SECONDS outcome=passed
    shift
    printf '\n=== %s: %s\n' "$title" "$*"
    "$@" || { outcome=FAILED; failed=1; }
    summary+=("$(printf '%-22s %-6s %5d s' "$title" "$outcome" $((SECONDS - start)))")
    printf '=== %s %s after %d s\n' "$title" "$outcome" $((SECONDS - start))
}

step "format" cargo fmt --all --check
step "lints" cargo clippy --workspace --all-targets -- -D warnings
step "unit and property" cargo test --workspace --no-fail-fast
step "programs" cargo build --workspace --bins
step "replay stories" "$python" tests/replay/run.py --sluice "$target/debug/sluice"
step "instructions" "$python" benches/instructions.py --sluice "$target/debug/sluice" --profile debug
step "end to end" "$python" tests/e2e/run.py --bin-dir "$target/debug"
step "deployment" "$python" tests/deploy/run.py --bin-dir "$target/debug"
step "gateways" "$python" tests/e2e/gateways.py --bin-dir "$target/debug"
step "dpdk packages" scripts/setup.sh dpdk
if pkg-config --exists libdpdk; then
    with="--features sluice-agent/dpdk,sluice-dpdk/dpdk"
    step "dpdk lints" cargo clippy --workspace --all-targets $with -- -D warnings
    step "dpdk" cargo test -p sluice-dpdk --features dpdk
    step "dpdk programs" cargo build --workspace --bins $with
    step "dpdk end to end" "$python" tests/e2e/dpdk.py --bin-dir "$target/debug"
else
    printf '\n=== dpdk: SKIPPED, this distribution has no libdpdk\n'
    summary+=("dpdk                   SKIPPED: no libdpdk")
fi
step "documentation" env RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --document-private-items --quiet

printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
exit $failed
