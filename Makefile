# make demo      migrate a process on this machine and watch it
# make test      all tests; ARGS="-k name -x" goes to pytest
# make bench     speed beside references, and build/bench.json; ARGS="--quick --rows pipe-window,unix"
# make faults    200 random moments of dumps at which daemons, criu and its script are killed and the link is cut
# make model     10^5 random operations on the cache's memory, beside a model of it; ARGS="-x" goes to pytest
# make soak      ten minutes of dumps with faults: descriptors and memory must stay flat; ARGS="--seconds 60"
# make check     ruff, mypy, and the generated protobuf modules against their sources
# make docs      the documentation as HTML: build/docs/index.html
# make manual    write the manual pages and completions again
# make deb       a package for this Debian: build/criu-relay_*.deb
# make try-deb   a new user's first hour in a clean root: systemd, that package, the commands of the pages, removal
# make proto     generate those modules again
# make format    ruff's formatting
# make clean     remove what these made
#
# Each sets up what it needs by itself: a virtual environment in build/venv and, for root, CRIU in build/criu.
# PYTHON=... takes another interpreter (3.11 or newer).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
ARGS ?=
BIN := build/venv/bin
PROTO := $(wildcard proto/criu_relay/wire/*.proto)
CODE := criu_relay twisted/plugins tests bench docs setup.py scripts/demo
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iproto $(PROTO)

.PHONY: help demo test bench faults model soak check docs manual deb try-deb proto format clean build/criu

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 17

build/venv/.test build/venv/.dev: build/venv/.%: pyproject.toml setup.py scripts/make-venv
	@PYTHON='$(PYTHON)' scripts/make-venv build/venv $*

build/criu:
	@if [[ $$(id -u) == 0 ]]; then scripts/install-criu build/criu; \
	else echo "not root: without CRIU, what needs it is left out"; fi

demo: build/venv/.test
	@$(MAKE) --no-print-directory build/criu || true
	@$(BIN)/python scripts/demo $(ARGS)

test: build/venv/.test build/criu
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal $(ARGS)

bench: build/venv/.test
	@$(MAKE) --no-print-directory build/criu || true
	@$(BIN)/python -m bench $(ARGS)

faults: build/venv/.test build/criu
	FAULTS_CUTS=100 $(BIN)/python -m pytest -q tests/link/test_cuts.py
	$(BIN)/python -m tests.support.moments --out build/faults.json $(ARGS)

model: build/venv/.test
	MODEL_OPERATIONS=100000 $(BIN)/python -m pytest -q tests/store/test_model.py $(ARGS)

soak: build/venv/.test build/criu
	$(BIN)/python -m tests.support.soak $(ARGS)

check: build/venv/.dev
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/mypy
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PROTOC) --python_out="$$fresh" --pyi_out="$$fresh"; \
	mkdir "$$fresh/committed"; cp criu_relay/wire/*_pb2.py criu_relay/wire/*_pb2.pyi "$$fresh/committed"; \
	diff -ru "$$fresh/committed" "$$fresh/criu_relay/wire" || \
	{ echo "generated modules are not what proto/ gives: run make proto" >&2; exit 1; }
	@echo "check: all well"

manual: build/venv/.test
	$(BIN)/python docs/make_manual.py

deb: build/venv/.test
	@PYTHON=$(BIN)/python scripts/make-deb build

try-deb: deb
	@scripts/try-deb build/criu-relay_*.deb

docs: build/venv/.dev
	$(BIN)/python -m sphinx -b html -q -W --keep-going --fresh-env -j auto docs build/docs
	@echo "docs: build/docs/index.html"

proto: build/venv/.dev
	$(PROTOC) --python_out=. --pyi_out=.

format: build/venv/.dev
	$(BIN)/ruff format $(wildcard $(CODE))
	$(BIN)/ruff check --fix $(wildcard $(CODE))

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
