# What a developer types. Each target says what it is doing; `make help` lists them.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo tour dev dev-stop test lint peers sdk-test sdk-lock bench generate drift controlplane packages

step = @printf '\n== %s\n' "$(1)"

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

demo: ## a guided tour on a real control plane; cleans up. KUBECONFIG=… (and REMIT_ADDRESS=…) for a control plane of your own
	@$(if $(filter command line,$(origin KUBECONFIG)),REMIT_DEMO_KUBECONFIG='$(KUBECONFIG)') hack/demo.sh

tour: ## the laptop tour of README.md, as it is written there; npx downloads its peers
	@hack/tour.sh

dev: ## control plane and operator in the foreground, .dev/env to be sourced; DETACH=1 returns when ready
	@hack/dev.sh $(if $(filter-out 0,$(DETACH)),start,run)

dev-stop: ## ends what `make dev DETACH=1` left running
	@hack/dev.sh stop

test: lint packages controlplane peers ## everything: format, lints, unit, property and integration tests, generated files
	$(call step,Tests. The integration tests start a control plane of their own)
	cargo test --no-fail-fast
	$(call step,The tools of hack/)
	cd hack/controlplane && GOFLAGS= go vet . && GOFLAGS= go test .
	cd hack/gitops && GOFLAGS= go vet . && GOFLAGS= go test -count=1 .
	@$(MAKE) --no-print-directory sdk-test drift

sdk-test: ## the Python and TypeScript packages, with the real frameworks from PyPI and npm
	$(call step,The packages of sdk/)
	@hack/sdk.sh test

sdk-lock:
	$(call step,Lock files of sdk/)
	@hack/sdk.sh lock

lint:
	$(call step,Format and lints)
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

packages:
	$(call step,Debian's packages: PostgreSQL and cvc5)
	@hack/packages.sh postgresql cvc5

controlplane: ## builds kube-apiserver, kube-controller-manager, kubectl, etcd and helm, where this machine does not have them
	$(call step,Control plane)
	hack/controlplane/run build

peers: ## installs the official MCP servers and SDKs that the tests talk to (npm and pip; Node.js 20, Python 3 with venv)
	$(call step,MCP peers)
	hack/peers.sh

bench: controlplane ## checks, propagation, rollback, 1,000 tenants, MCP proxy, hook and start-up, beside the same without Remit where there is such a thing
	$(call step,Benchmarks: a release build comes first and takes minutes)
	cargo bench

generate: ## writes crds/ and what else is generated
	cargo run --quiet -- generate

drift:
	$(call step,Generated files are what the code generates)
	cargo run --quiet -- generate --check
