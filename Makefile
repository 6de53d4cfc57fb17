# Two commands are the whole set-up on a fresh machine: make demo, make test.
# What has logic is a Go program: tools/cmd/bx and lab/cmd.

# -trimpath everywhere, so that all builds share one cache.
export GOFLAGS := $(strip $(filter-out -trimpath,$(shell go env GOFLAGS)) -trimpath)
BX := GOWORK=off go -C tools run ./cmd/bx

.PHONY: help
help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: ## Two robots behind NATs meet through a hub and move a file; DEMO_SECONDS bounds it.
	@$(BX) setup
	@go run ./lab/cmd/demo

.PHONY: test
test: ## Everything that must hold: unit, race, lint, namespaces, release rehearsal.
	@$(BX) test

.PHONY: build fips
build: ## Build every module, and the two binaries into .bin.
	@$(BX) build
	@go build -o .bin/ ./edge/cmd/bauxite ./dispatch/cmd/bauxite-dispatch

fips: ## Build the two binaries for FIPS 140-3 into .bin/fips; see docs/security.md.
	@GOFIPS140=v1.0.0 go build -tags bauxite_fips -o .bin/fips/ ./edge/cmd/bauxite ./dispatch/cmd/bauxite-dispatch

.PHONY: unit
unit: ## Unit tests without the race detector.
	@$(BX) unit

.PHONY: race
race: ## Unit tests with the race detector.
	@$(BX) race

.PHONY: e2e
e2e: ## Tests of the built binaries in network namespaces.
	@$(BX) e2e

.PHONY: lint
lint: ## Linters of Go and of the wire contracts; installs them into .bin.
	@$(BX) lint

.PHONY: generate
generate: ## Write the stubs of proto/ and the queries of dispatch anew.
	@$(BX) generate

.PHONY: check
check: ## Stubs are current; each module is tidy, builds and vets by itself; cross-builds.
	@$(BX) generate -check
	@$(BX) tidycheck
	@$(BX) crossbuild

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZ_SECONDS each (default 30).
	@$(BX) fuzz

.PHONY: rehearse
rehearse: ## Rehearse a release of HEAD, offline.
	@$(BX) rehearse

.PHONY: vuln
vuln: ## Known vulnerabilities that the binaries reach; needs the network.
	@$(BX) vuln -require

.PHONY: package
package: ## Debian packages of the hub, amd64 and arm64, into dist.
	@$(BX) package

.PHONY: chaos
chaos: ## Kill the hub under load CHAOS_KILLS times (default 1000); CHAOS_SEED repeats a plan.
	@go run ./lab/cmd/chaos

.PHONY: lab bench
lab: ## Paths beside other tunnels, 30 minutes; writes docs/benchmarks/paths.md; LAB_FLAGS adds flags.
	@$(BX) setup && go run ./lab/cmd/paths -out docs/benchmarks/paths.md $(LAB_FLAGS)
bench: ## Latency beside other tunnels, 6 hours; writes docs/benchmarks/latency.md; LAB_FLAGS adds flags.
	@$(BX) setup && go run ./lab/cmd/latency -out docs/benchmarks/latency.md $(LAB_FLAGS)
