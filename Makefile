# Sluicegate. `make help` lists the targets; each sets up what it needs on a fresh Debian or Ubuntu, as root.

PREFIX  ?= /usr/local
CNI_BIN ?= /opt/cni/bin
DESTDIR ?=
PYTHON  ?= /usr/bin/python3
TARGET  := $(or $(CARGO_TARGET_DIR),target)
PROGRAMS := sluiced sluice hugepage-setup
export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
export PYTHON
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint fmt bench bench-tap bench-compare bench-control bench-dpdk image install clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

setup: ## install Debian packages and, where missing, Rust
	@scripts/setup.sh

build: setup ## the programs, optimised, in target/release
	cargo build --release --workspace --bins

demo: build ## two nodes and six pods on this machine, real traffic, every promise checked
	@$(PYTHON) demo/run.py --bin-dir $(TARGET)/release $(DEMO_ARGS)

test: setup ## every test: format, lints, unit, property, replay, end to end, documentation
	@scripts/test.sh

lint: setup ## clippy, warnings are errors
	cargo clippy --workspace --all-targets -- -D warnings

fmt: setup ## format the sources
	cargo fmt --all

bench: setup ## criterion
	cargo bench --workspace --benches

bench-tap: build ## TCP between two pods of a node, beside the kernel routing the same
	@$(PYTHON) tests/e2e/bench_tap.py --bin-dir $(TARGET)/release

bench-compare: build ## packets, TCP, connections and latency beside the kernel and dpdk-testpmd (BENCH_ARGS="--rounds 5")
	@scripts/setup.sh bench
	@$(PYTHON) benches/compare/run.py --bin-dir $(TARGET)/release --out $(TARGET)/bench-compare $(BENCH_ARGS)

bench-dpdk: build ## our DPDK driver beside dpdk-testpmd on the same devices
	@scripts/setup.sh dpdk
	@scripts/setup.sh bench
	cargo bench -p sluice-dpdk --features dpdk --bench forward --no-run
	@$(PYTHON) benches/compare/dpdk.py

image: ## container image (IMAGE=NAME), by docker, podman or buildah
	@scripts/image.sh

bench-control: build ## 10,000 Services and 100,000 endpoints from an API server: start, one change, memory
	@$(PYTHON) tests/e2e/bench_control.py --bin-dir $(TARGET)/release

# A program that is running cannot be written over, only renamed over.
install: build ## programs into PREFIX/bin, the CNI plugin into CNI_BIN
	@set -e; put() { install -D -m 0755 "$(TARGET)/release/$$1" "$(DESTDIR)$$2/.$$1.new"; \
	  mv -f "$(DESTDIR)$$2/.$$1.new" "$(DESTDIR)$$2/$$1"; echo "$(DESTDIR)$$2/$$1"; }; \
	for program in $(PROGRAMS); do put $$program "$(PREFIX)/bin"; done; put sluice-cni "$(CNI_BIN)"

clean: ## remove what was built
	cargo clean
