# make demo | test | check | bench | bench-gpu | setup | clean. Each does the set-up it needs; a second time that is instant.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench bench-gpu clean
MAKEFLAGS += --no-print-directory

UV_VERSION := 0.13.9
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.cudd-setup
DEMO_HOME := $(CURDIR)/demo
# Any Python 3.11 to 3.13: `make demo PYTHON=/path/to/python3.12` chooses one.
PYTHON ?=

export UV_NO_PROGRESS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where this is set, as in many containers, every command compiles all that it imports: 15 s.
unexport PYTHONDONTWRITEBYTECODE

help:
	@echo "make demo       distil the handwritten digits, a few minutes on two cores; results in demo/"
	@echo "make test       run the tests"
	@echo "make check      format, lint, types and import contracts"
	@echo "make bench      speed, memory and start-up on this CPU, under ten minutes; figures in bench/"
	@echo "make bench-gpu  what is claimed of a GPU, on this one; figures in bench/gpu/"
	@echo "make setup      only the set-up: .venv with everything pinned in constraints.txt"
	@echo "make clean      remove demo/, bench/, build output and caches (.venv stays)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@usable='import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	if ! .venv/bin/python -c 'import pip' 2>/dev/null; then \
	    python=""; \
	    for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	        if "$$candidate" -c "$$usable" 2>/dev/null; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "set-up: needs Python 3.11, 3.12 or 3.13 with venv; found none of $(or $(PYTHON),python3 python3.13 python3.12 python3.11)." >&2; \
	        echo "        Install one (Debian, Ubuntu: apt install python3-venv), or: make PYTHON=/path/to/python3" >&2; \
	        exit 1; \
	    fi; \
	    echo "set-up: virtual environment in .venv ($$("$$python" --version))"; \
	    "$$python" -m venv .venv; \
	fi
	@if [ "$$($(BIN)/uv --version 2>/dev/null | cut -d' ' -f2)" != "$(UV_VERSION)" ]; then \
	    echo "set-up: installer (uv $(UV_VERSION))"; \
	    $(BIN)/python -m pip install -qq uv==$(UV_VERSION); \
	fi
	@echo "set-up: packages as pinned in constraints.txt (several GB the first time)"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@echo "demo: distilling handwritten digits, home in demo/"
	@CUDD_HOME="$(DEMO_HOME)" $(BIN)/cudd distill digits --summary demo/summary.json

test: $(STAMP)
	@echo "test: pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	@echo "check: format"
	@$(BIN)/ruff format --quiet --check . || { echo "        put right by: .venv/bin/ruff format ." >&2; exit 1; }
	@echo "check: lint"
	@$(BIN)/ruff check --quiet .
	@echo "check: types"
	@$(BIN)/mypy --no-error-summary
	@echo "check: import contracts"
	@out=$$($(BIN)/lint-imports) || { echo "$$out"; exit 1; }

# One thread, as the tasks of the CPU recipes have; docs/performance.md says what each claims.
bench: $(STAMP)
	@$(BIN)/python benchmarks/synthesis.py --seconds 15 --case convnet3:100 --case convnet3:10 --json bench/synthesis.json
	@$(BIN)/python benchmarks/synthesis.py --seconds 15 --case resnet18:100 --no-reference --json bench/synthesis-resnet18.json
	@$(BIN)/python benchmarks/training.py --seconds 10 --case convnet3:16 --case resnet18:16 --json bench/training.json
	@$(BIN)/python benchmarks/labels.py --seconds 8 --json bench/labels.json
	@$(BIN)/python benchmarks/scaling.py --rounds 2 --json bench/scaling.json --plot bench/scaling.png
	@$(BIN)/python benchmarks/memory.py --json bench/memory.json
	@$(BIN)/python benchmarks/startup.py --rounds 2 --json bench/startup.json
	@$(BIN)/python benchmarks/profiles.py --json bench/profiles.json

# In the order of their worth where a card is lent for minutes.
ON_GPU := --device cuda --amp bf16
bench-gpu: $(STAMP)
	@$(BIN)/python benchmarks/labels.py $(ON_GPU) --seconds 10 --json bench/gpu/labels.json
	@$(BIN)/python benchmarks/training.py $(ON_GPU) --seconds 10 --json bench/gpu/training.json
	@$(BIN)/python benchmarks/synthesis.py $(ON_GPU) --seconds 10 --json bench/gpu/synthesis.json
	@$(BIN)/python benchmarks/lanes.py $(ON_GPU) --seconds 10 --steps 500 --json bench/gpu/lanes.json

clean:
	@if [ -d demo ] && [ -x $(BIN)/cudd ]; then CUDD_HOME="$(DEMO_HOME)" $(BIN)/cudd ui --stop --force || true; fi
	@rm -rf demo bench build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find cudd_core tasks flows tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: demo/, bench/, build output and caches removed; .venv kept (rm -rf .venv removes it)"
