# Two commands, always true: `make up` takes upstream source to a running managed cluster, `make test` passes all tests.
SHELL := /bin/bash
.DEFAULT_GOAL := help
RELEASE ?= v1.35.1
# A file of `ckp dist export`: `make up FROM=release.ckp KEYRING=keys.gpg` builds nothing and needs no network.
FROM ?=
KEYRING ?=
WORKERS ?= 2
SEEDS ?= 50
PYTEST ?= .venv/bin/python -m pytest

.PHONY: help setup setup-test up down status lint unit chaos component contract e2e test bench bench-dist bench-hub build clean-cache

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | sed -E 's/:.*?## /\t/' | expand -t 14

setup: ## Install what the project needs on this machine
	@CKP_FROM='$(FROM)' packaging/setup/setup.sh

setup-test: ## Install what the tests need as well
	@packaging/setup/setup.sh test

up: setup ## From upstream source to a running managed cluster (RELEASE=v1.35.1 WORKERS=2 FROM=file)
	@./ckp up --release $(RELEASE) --workers $(WORKERS) $(if $(FROM),--from '$(FROM)') $(if $(KEYRING),--keyring '$(KEYRING)')

down: setup ## Remove lab hosts, bridge, mounts and processes; keep the caches
	@./ckp down

status: setup ## Show the lab
	@./ckp lab status

build: setup ## Build the release into the cache
	@./ckp dist build $(RELEASE) --profile lab

lint: setup-test ## ruff, mypy --strict, import-linter, shell and forbidden words
	@tests/lint.sh

unit: setup-test ## Rules and small parts
	@$(PYTEST) -q tests/unit

chaos: setup-test ## Hosts under a random schedule of faults, by seed (SEEDS=50, SEEDS=51-80, SEEDS=7,)
	@CKP_CHAOS_SEEDS='$(SEEDS)' $(PYTEST) -q tests/chaos

component: setup-test ## Against a real kube-apiserver and etcd from the build
	@$(PYTEST) -q tests/component

contract: setup-test ## The contract tables
	@$(PYTEST) -q tests/contract

e2e: setup-test ## The main job and what can go wrong in it, on lab hosts
	@$(PYTEST) -v tests/e2e

test: setup-test lint build ## All tests
	@$(PYTEST) -v --durations=15 tests/unit tests/contract tests/fuzz tests/chaos tests/component tests/e2e

bench: bench-dist bench-hub ## Measure all; writes docs/benchmarks.md, -distribution.md and -hub.md
	@PYTHONPATH=src .venv/bin/python -m tests.bench

bench-dist: setup-test ## Measure the making of a release; writes docs/benchmarks-distribution.md (COMPONENTS=all for each cold)
	@PYTHONPATH=src .venv/bin/python -m tests.bench_dist $(COMPONENTS)

bench-hub: setup-test ## Two thousand agents on one hub; writes docs/benchmarks-hub.md (AGENTS=2000 STORM=10000)
	@PYTHONPATH=src .venv/bin/python -m tests.load $(if $(AGENTS),--agents $(AGENTS)) $(if $(STORM),--storm $(STORM))

clean-cache: ## Drop the build cache
	rm -rf "$${CKP_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/ckp}"
