# penstock. `make demo` needs nothing but Python 3.11+ and a package index; everything lands in .venv.
#
#   make demo    raw text → tokens → a small trained model, interrupted and resumed
#   make test    the test suite; CI=true adds the slow tests
#   make check   format, lint, types, layers, documentation
#   make bench   every benchmark, one after another
#   make docs    build the documentation into site/
#
# Arguments of the demo: make demo ARGS="--corpus FILE.jsonl --tokenizer PATH"

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean
.DELETE_ON_ERROR:

# The first Python on the path that is new enough; PYTHON=… overrides it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
# An advertisement of the theme's, on every build.
export NO_MKDOCS_2_WARNING := 1
# A failed install leaves no stamp, so the next call tries again.
INSTALL = $(BIN)/python -m pip install -qq --constraint constraints.txt --build-constraint constraints.txt

help:
	@sed -n '3,9s/^# \{0,1\}//p' Makefile

demo: .venv/.run
	$(BIN)/penstock demo $(ARGS)

# One thread per test process: two of them already fill the two cores that the suite is made for.
test: .venv/.dev .venv/.servers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 $(if $(filter true,$(CI)),,-m "not slow") $(ARGS)

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict

bench: .venv/.dev
	@for file in $(filter-out %/side_by_side.py,$(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

docs: .venv/.dev
	$(BIN)/mkdocs build --strict
	@echo "site/index.html"

clean:
	rm -rf .venv site build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

.venv/.pip:
	@test -n "$(PYTHON)" || { echo "penstock needs Python 3.11 or newer; none is on the path. Install one, or say PYTHON=/path/to/python."; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install -qq --constraint constraints.txt --upgrade pip
	@touch $@

.venv/.run: .venv/.pip pyproject.toml constraints.txt
	@echo "installing penstock and what it needs into .venv"
	$(INSTALL) --editable '.[text,plot,hf]'
	@touch $@

.venv/.dev: .venv/.run
	@echo "installing what tests, checks and documentation need into .venv"
	$(INSTALL) --editable '.[image,audio,video,latents,lightning,bigquery]' --group test --group check --group docs
	@touch $@

# Servers that tests talk to, where they can be had: nginx and sshd as root on Debian, Azurite where there is npm.
# What is missing is no failure: its tests are skipped and say what they need. RUNLEVEL=1 keeps services from starting.
.venv/.servers: .venv/.dev
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! { command -v nginx && command -v sshd; } > /dev/null; then \
		echo "installing nginx and sshd for tests"; \
		export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive; \
		install="apt-get install -y -qq --no-install-recommends nginx-light openssh-server"; \
		{ $$install || { apt-get update -qq && $$install; }; } > /dev/null 2>&1 || echo "  they can't be installed here"; \
	fi
	@if command -v npm > /dev/null && [ ! -x .venv/npm/node_modules/.bin/azurite-blob ]; then \
		echo "installing Azurite for tests"; \
		npm install --silent --no-audit --no-fund --prefix .venv/npm azurite@3.37.0 > /dev/null 2>&1 || echo "  it can't be installed here"; \
	fi
	@touch $@
