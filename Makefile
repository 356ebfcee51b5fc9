# Everything runs in a virtual environment beside the project, made on first use.
# Needed on the machine: Python 3.11, 3.12 or 3.13, and make.
#
#   make VENV=/elsewhere test    another environment       make PYTHON=python3.12 test    another Python
#   make WORKERS=8 test          more test processes       make DEMO=elsewhere demo       another demo folder

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
WORKERS ?= 2
DEMO ?= demo
BIN := $(VENV)/bin
MEDSSL := $(BIN)/medssl
INSTALLED := $(VENV)/.medssl-test
DOCS_INSTALLED := $(VENV)/.medssl-docs

# one process a core: the processes of the tests are the parallel part
export OMP_NUM_THREADS ?= 1

SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && { echo $$python; break; }; done)

.PHONY: help demo test check docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; say which: make PYTHON=... $(MAKECMDGOALS)"; exit 2; }
	@echo "== new virtual environment $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "== installing medssl and its test tools into $(VENV) (once; torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	@echo "== installing the documentation tools into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@

test: $(INSTALLED) ## run the tests (CPU, without the slow ones)
	@echo "== tests, $(WORKERS) processes"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(INSTALLED) ## style, types, floors, sizes, news fragments
	@echo "== ruff"; $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== mypy"; $(BIN)/mypy
	@echo "== import-linter"; $(BIN)/lint-imports
	@echo "== sizes and names"; $(BIN)/python -m pytest -q tests/test_house.py
	@echo "== towncrier"; $(BIN)/towncrier build --draft --version next > /dev/null && echo "news fragments are well formed"

docs: $(DOCS_INSTALLED) ## build the documentation into docs/_build
	@echo "== sphinx"
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build
	@echo "docs/_build/index.html"

demo: $(INSTALLED) ## phantoms -> index -> store -> SparK pretraining, in ./demo
	@echo "DEMO"

clean: ## remove the demo, built documentation and caches (not the environment)
	rm -rf $(DEMO) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find medssl tests -name __pycache__ -type d -prune -exec rm -rf {} +
