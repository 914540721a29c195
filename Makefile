# Two commands, always true: `make up` takes upstream source to a running workload cluster, `make test` passes.
SHELL := /bin/bash
.DEFAULT_GOAL := help
RELEASE ?= v1.35.1
# A file of `ckp dist export`: `make up FROM=release.ckp KEYRING=keys.gpg` builds nothing and needs no network.
FROM ?=
KEYRING ?=
WORKERS ?= 2
# How many hosts carry the management cluster: 1, 3 or 5.
MANAGEMENT ?= 1
SEEDS ?= 50
# Options of `ckp conformance run`.
CONFORMANCE ?=
PYTEST ?= .venv/bin/python -m pytest
# Two tests at a time or more, a file of tests in one process; what boots the lab runs one after the other.
PARALLEL ?= -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

.PHONY: help setup setup-test up down status build build-test lint unit contract fuzz chaos component lab e2e airgap lab-chaos test test-all conformance \
    bench bench-dist bench-hub bench-site bench-upgrade bench-upgrade-checks clean-cache

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/:.*?## /\t/' | expand -t 14

setup: ## Install what the project needs on this machine
	@CKP_FROM='$(FROM)' packaging/setup/setup.sh

setup-test: ## Install what the tests need as well
	@packaging/setup/setup.sh test

up: setup ## From upstream source to a running workload cluster (RELEASE=v1.35.1 WORKERS=2 MANAGEMENT=1 FROM=file)
	@./ckp up --release $(RELEASE) --workers $(WORKERS) --management $(MANAGEMENT) $(if $(FROM),--from '$(FROM)') $(if $(KEYRING),--keyring '$(KEYRING)')

down: setup ## Remove lab hosts, bridge, mounts and processes; keep the caches
	@./ckp down

status: setup ## Show the lab
	@./ckp lab status

build: setup ## Build the release into the cache
	@./ckp dist build $(RELEASE) --profile lab

build-test: setup-test ## Build the release and the programs that only the tests use
	@./ckp dist build $(RELEASE) --profile lab --test-tools

lint: setup-test ## ruff, mypy --strict, import-linter, shell, forbidden hosts
	@tests/lint.sh

unit: setup-test ## Rules and small parts
	@$(PYTEST) -q $(PARALLEL) tests/unit

contract: setup-test ## The contract tables
	@$(PYTEST) -q tests/contract

fuzz: setup-test ## What verifies reads whatever it is given
	@$(PYTEST) -q tests/fuzz

chaos: setup-test ## Hosts under a random schedule of faults, by seed (SEEDS=50, SEEDS=51-80, SEEDS=7,)
	@CKP_CHAOS_SEEDS='$(SEEDS)' $(PYTEST) -q $(PARALLEL) --dist=load tests/chaos

component: setup-test ## Against programs of the build: kube-apiserver, etcd, registry, cosign, apt, dnf
	@$(PYTEST) -q $(PARALLEL) tests/component

lab: setup-test ## The lab's own hosts, and hosts with a firewall
	@$(PYTEST) -v tests/e2e -m lab

e2e: setup-test ## The main job and what can go wrong in it, on lab hosts
	@$(PYTEST) -v tests/e2e

conformance: setup ## All conformance tests on the lab's cluster; brings it up first (RELEASE=v1.35.1 CONFORMANCE='--quick')
	@./ckp up --release $(RELEASE) --workers $(WORKERS) --management $(MANAGEMENT)
	@./ckp conformance run --cluster demo --output build/conformance $(CONFORMANCE)

airgap: setup-test ## The main job from one file, without a network
	@$(PYTEST) -v tests/e2e/test_5_airgap.py

lab-chaos: setup-test ## The main job under real faults, by seed (CKP_LAB_CHAOS_SEEDS=1-3)
	@$(PYTEST) -v tests/e2e/test_3_lab_chaos.py

test: setup-test ## Lint and all suites but what is marked `long` (docs/how-to/tests.md)
	@.venv/bin/python -m tests.suite

test-all: setup-test ## Lint and all suites
	@.venv/bin/python -m tests.suite --all

bench: bench-dist bench-hub bench-site ## Measure all; writes docs/benchmarks.md, -distribution.md, -hub.md and -site.md
	@PYTHONPATH=src .venv/bin/python -m tests.bench

bench-dist: setup-test ## Measure the making of a release; writes docs/benchmarks-distribution.md (COMPONENTS=all for each cold)
	@PYTHONPATH=src .venv/bin/python -m tests.bench_dist $(COMPONENTS)

bench-site: setup-test ## Applying, backup and restore of a site on a lab host; writes docs/benchmarks-site.md
	@PYTHONPATH=src .venv/bin/python -m tests.bench_site

bench-hub: setup-test ## Two thousand agents on one hub; writes docs/benchmarks-hub.md (AGENTS=2000 STORM=10000)
	@PYTHONPATH=src .venv/bin/python -m tests.load $(if $(AGENTS),--agents $(AGENTS)) $(if $(STORM),--storm $(STORM))

bench-upgrade: setup-test ## A cluster's upgrade by one minor in the lab; writes docs/benchmarks-upgrade.md
	@PYTHONPATH=src .venv/bin/python -m tests.bench_upgrade

bench-upgrade-checks: setup-test ## How long the checks before an upgrade take, for 100 nodes and 2,000 pods on simulators
	@PYTHONPATH=src .venv/bin/python -m tests.bench_upgrade_checks

clean-cache: ## Drop the build cache
	rm -rf "$${CKP_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/ckp}"
