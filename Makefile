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
DEMO_STEPS ?= 150
BIN := $(VENV)/bin
MEDSSL := $(BIN)/medssl
INSTALLED := $(VENV)/.medssl-test
DOCS_INSTALLED := $(VENV)/.medssl-docs

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
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

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

# The key of an institution is secret; that of synthetic patients need not be, and makes every demo split alike.
demo: $(INSTALLED) ## phantoms -> index -> store -> SparK pretraining, in ./demo
	@echo "== 1. synthetic patients, some as NIfTI, some as DICOM series, a few with labels"
	@$(MEDSSL) phantoms $(DEMO)/scans
	@(umask 077; test -f $(DEMO)/key || printf '%064d\n' 0 > $(DEMO)/key)
	@echo "== 2. the index: what is there, who is who, what is a label"
	@$(MEDSSL) index $(DEMO)/scans --index $(DEMO)/index/scans.sqlite --files.key $(DEMO)/key --files.modality MR \
		--subject '(PHANTOM-[0-9]+)' --labels.masks images=labels \
		--labels.class_names 0=background,1=liver,2=spleen,3=kidneys
	@echo "== 3. the store: oriented, 4 mm voxels, in chunks"
	@$(MEDSSL) cache $(DEMO)/index/scans.sqlite $(DEMO)/store --preprocess mr --preprocess.spacing_mm '[4,4,4]'
	@echo "== 4. pretraining with SparK: a residual encoder fills in what is hidden from it"
	@$(MEDSSL) pretrain --config spark_3d_small --store $(DEMO)/store --run $(DEMO)/run \
		--objective.view.size '[40,40,40]' --training.steps $(DEMO_STEPS) \
		--training.output.picture_every 50
	@echo "== done; made in $(DEMO):"
	@echo "  encoder and card    $(DEMO)/run/encoder.safetensors, $(DEMO)/run/card.json"
	@echo "  loss over time      $(DEMO)/run/metrics.jsonl"
	@echo "  input, mask, reconstruction:  $$(ls $(DEMO)/run/pictures/*.png | tail -n 1)"

clean: ## remove the demo, built documentation and caches (not the environment)
	rm -rf $(DEMO) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find medssl tests -name __pycache__ -type d -prune -exec rm -rf {} +
