# sandnet: every target works on a fresh Debian with Go, and installs what else
# it needs (packaging/deps.sh). `make help` lists the targets.
SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c

GO      ?= go
PREFIX  ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
DATE    ?= $(shell git log -1 --format=%cs 2>/dev/null || date -u +%F)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)

# A clone that belongs to somebody else (CI) has no readable VCS status.
export GOFLAGS := $(filter-out -buildvcs=%,$(GOFLAGS)) -buildvcs=false

# Static, stripped, and without the CLI library's manual page generator.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -tags urfave_cli_no_docs -ldflags "-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)"
# The linter's own dependencies stay out of sandnet's go.mod.
LINTER  := $(GO) tool -modfile=packaging/tools.mod staticcheck
TIMEOUT ?= 8m
FUZZTIME ?= 10s

.PHONY: help deps build run test bench lint golden fuzz man install clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

deps: ## install from Debian what run, test and bench need, if it is missing
	@packaging/deps.sh run test bench

build: ## build bin/sandnet
	@mkdir -p bin
	$(BUILD) -o bin/sandnet ./cmd/sandnet

run: build ## build, then show sandnet at work in a private test network
	@packaging/deps.sh run
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/labhttp ./tests/cmd/labhttp
	@tests/demo.sh

test: lint ## everything CI checks: lint, unit, end to end, crash matrix, fuzz targets; as root
	@packaging/deps.sh test
	@# One package after another: the BPF programs that reserve host ports are the whole machine's.
	$(GO) test -count=1 -p 1 -timeout $(TIMEOUT) ./...
	@GO=$(GO) packaging/fuzz.sh $(FUZZTIME)

bench: ## measure against the floor in one run; the table goes to bin/bench.md
	@packaging/deps.sh bench
	@mkdir -p bin
	@# State lives on a tmpfs, as /run does.
	TMPDIR=/dev/shm $(GO) test -run '^$$' -bench . -benchtime 1x -timeout 20m ./tests/bench -args -markdown=$(CURDIR)/bin/bench.md

lint: ## gofmt, vet and staticcheck, on the ordinary and the crash build
	@bad=$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)); [ -z "$$bad" ] || { echo "gofmt -w $$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags crashpoints ./...
	$(LINTER) ./...
	$(LINTER) -tags crashpoints ./internal/... ./cmd/...

golden: ## rewrite the golden files; read the diff before you commit it
	$(GO) test -count=1 $$(grep -rl --include='*_test.go' 'flag.Bool("update"' . | xargs -r -n1 dirname | sort -u) -update

fuzz: ## run every fuzz target for FUZZTIME (10s), one on each processor
	@GO=$(GO) packaging/fuzz.sh $(FUZZTIME)

man: build ## write the manual pages to bin/man
	@rm -rf bin/man
	bin/sandnet __tree | $(GO) run ./packaging/man -o bin/man -version $(VERSION) -date $(DATE)

install: build man ## install program, manual pages and completions below PREFIX (/usr/local)
	install -D -m 0755 bin/sandnet $(DESTDIR)$(PREFIX)/sbin/sandnet
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0644 bin/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -D -m 0644 cmd/sandnet/completion/sandnet.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/sandnet
	install -D -m 0644 cmd/sandnet/completion/sandnet.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_sandnet
	install -D -m 0644 cmd/sandnet/completion/sandnet.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/sandnet.fish

clean: ## remove what make built
	rm -rf bin
