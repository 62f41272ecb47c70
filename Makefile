# koji-relay. Two commands matter to a newcomer: `make demo` and `make test`.

SHELL := /bin/sh
# A Go that was unpacked where its installation notes say, but is not in PATH yet.
export PATH := $(PATH):/usr/local/go/bin

.DEFAULT_GOAL := help
.PHONY: help demo test unit bench fuzz outage chaos soak build lint fmt packages vendor-archive srpm vulns go-version clean

help: ## what can be made here
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

demo: go-version ## the main job on this machine in half a minute, nothing to install but Go
	@echo "Go downloads and compiles what it needs; the first time takes a minute or two."
	@CGO_ENABLED=0 go build -trimpath -o bin/koji-relay ./cmd/koji-relay
	@bin/koji-relay demo $(ARGS)

test: go-version ## everything that CI runs: format, vet, lint, race tests, Python tests, real servers
	@.ci/test

unit: go-version ## the Go tests that need no server
	go test ./...

bench: go-version ## koji-relay beside ceilings measured in the same run; ARGS=--json
	@.ci/bench $(ARGS)

fuzz: go-version ## every fuzz target for TIME=… (10m)
	@.ci/fuzz $(or $(TIME),10m)

outage: go-version ## measure an outage and draw it: docs/images/outage.svg and .png
	@.ci/outage-plot

chaos: go-version ## two minutes in which everything fails, by the schedule of SEED=…
	@.ci/chaos $(or $(SEED),$(shell od -An -N3 -tu4 /dev/urandom)) $(or $(SECONDS),120)

soak: go-version ## chaos with one new seed after the other for HOURS=… (8)
	@.ci/soak $(or $(HOURS),8)

build: go-version ## bin/koji-relay, as it is shipped: static, the same bytes each time
	packaging/program bin/koji-relay

packages: go-version ## .rpm and .deb of the relay and of the hub plugin, into dist
	@packaging/build
	@ls dist/*.rpm dist/*.deb

vendor-archive: go-version ## the sources of all dependencies, for a build without network, into dist
	@packaging/vendor-archive

srpm: go-version ## the source package for rpmbuild, from the last commit, into dist
	@packaging/srpm

vulns: go-version ## known vulnerabilities in what the program calls; needs Go's database of them
	@.ci/vulns

lint: go-version ## format, vet and staticcheck
	@.ci/lint

fmt: go-version ## format all Go code
	gofmt -w $$(git ls-files '*.go')

go-version:
	@.ci/go-version

clean: ## remove what was built, but keep what was downloaded
	rm -rf bin dist .cache/log
