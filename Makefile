# What a person runs. Everything is built with one profile, so that a machine compiles the dependencies once.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Build output stays out of the clone, so that clones share it and a clean clone is not a cold build.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/quorate/target

CARGO ?= cargo
QUORATE := $(CARGO_TARGET_DIR)/release/quorate

# make demo ARGS='--nodes 5 --dir /tmp/q'
ARGS ?=
# make bench-failover N=30 PATRONI_N=0 T=10; make faults N=50 SEED=7
N ?=
PATRONI_N ?=
T ?=
SEED ?=
# make model BOUND=medium
BOUND ?= small
# make sim SEEDS=100 FROM=1
SEEDS ?= 100
FROM ?= 1

.PHONY: help setup build demo test test-unit test-integration model sim fuzz lint faults bench-failover bench-proxy

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## find or install what the demo and the tests need: PostgreSQL, a C compiler, drivers of several languages
	@scripts/setup --drivers

build: ## compile the daemon
	@scripts/setup --build-only
	$(CARGO) build --release --workspace --bin quorate

demo: ## four nodes on this machine; Ctrl-C ends them (ARGS='--nodes 5 --dir DIR --fresh')
	@scripts/setup --no-python
	$(CARGO) build --release --workspace --bin quorate
	@echo; exec $(QUORATE) demo $(ARGS)

test: ## everything: unit tests of all crates, one cluster after another, and beside them the model, fuzzing and fresh seeds
	@scripts/test

test-unit: ## unit tests only
	@scripts/test unit

test-integration: ## the cluster tests only (TEST=lose_node for one of them)
	@scripts/test integration $(TEST)

model: ## model checking of the decisions: every state up to a bound, then the mutants (BOUND=small, medium, large)
	$(CARGO) build --release --workspace --bin model
	@$(CARGO_TARGET_DIR)/release/model --bound $(BOUND) $(ARGS)

sim: ## SEEDS whole clusters under faults, each from one number (SEEDS=100 FROM=1 ARGS='--jobs 2')
	@scripts/setup --build-only
	$(CARGO) build --release --workspace --bin sim
	$(CARGO_TARGET_DIR)/release/sim --seeds $(SEEDS) --from $(FROM) $(ARGS)

fuzz: ## what clients may send, by fuzzing, each target from a fresh seed (T=60: seconds together)
	@scripts/setup --build-only --fuzz
	@scripts/fuzz $(T)

lint: ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path proxy/fuzz/Cargo.toml
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

faults: ## N random faults against a real cluster, with a ledger of what clients were told (N=20 SEED=7 ARGS=--long-records)
	@scripts/setup --no-python
	$(CARGO) build --release --workspace --bins
	$(CARGO_TARGET_DIR)/release/faults $(if $(N),--count $(N)) $(if $(SEED),--seed $(SEED)) $(ARGS)

# A run that is written down has everything in it.
bench-failover: PATRONI_ROUNDS = $(or $(PATRONI_N),$(if $(N),0,10))
bench-failover: ## a report: failovers beside Patroni, pgbench beside plain PostgreSQL, to docs/FAILOVER.md (N=30: Quorate alone, only shown)
	@scripts/setup --no-python $(if $(filter-out 0,$(PATRONI_ROUNDS)),--bench)
	$(CARGO) build --release --workspace --bins
	$(CARGO_TARGET_DIR)/release/bench-failover $(if $(N),--rounds $(N)) --patroni-rounds $(PATRONI_ROUNDS) \
		$(if $(T),--seconds $(T),$(if $(N),,--seconds 5 --repeats 9)) $(if $(N),,--document docs/FAILOVER.md) $(ARGS)

bench-proxy: ## a report: queries by Quorate, PgBouncer and HAProxy, written to docs/PROXY.md (T=3: seconds a run)
	@scripts/setup --no-python --proxies
	$(CARGO) build --release --workspace --bins
	$(CARGO_TARGET_DIR)/release/bench-proxy $(if $(T),--seconds $(T),--document docs/PROXY.md) $(ARGS)
