# Everything runs in a virtual environment beside the project, made on first use.
# Needed on the machine: Python 3.11, 3.12 or 3.13, and make.
#
#   make VENV=/elsewhere test    another environment       make PYTHON=python3.12 test    another Python
#   make WORKERS=8 test          more test processes       make DEMO=elsewhere demo       another demo folder
#   make COVERAGE=yes test       coverage also on Python 3.11, where measuring it takes about a third longer

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
WORKERS ?= 2
DEMO ?= demo
DEMO_PRETRAINING ?= 240
DEMO_STEPS ?= 400
DEMO_LABELS ?= 4
# half precision where the processor computes in it
DEMO_PRECISION ?= $(shell grep -q avx512_bf16 /proc/cpuinfo 2>/dev/null && echo bf16 || echo fp32)
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

# Python 3.12 and newer measure coverage at little cost (sys.monitoring); Python 3.11 measures it when asked
COVERAGE ?= $(shell $(BIN)/python -c 'import sys; print("yes" if sys.version_info >= (3, 12) else "no")')
CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
MEASURE = $(if $(filter yes,$(COVERAGE)),--cov --cov-report=term:skip-covered)

test: $(INSTALLED) ## run the tests (CPU, without the slow ones)
	@echo "== tests, $(WORKERS) processes$(if $(MEASURE),, (coverage: make test COVERAGE=yes))"
	@OMP_NUM_THREADS=1 $(if $(MEASURE),COVERAGE_CORE=$(CORE)) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(MEASURE)

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
# 8 mm voxels, crops of 32 voxels and a quarter of the recipe's weights: two cores without half precision are enough.
FINETUNE = $(MEDSSL) finetune --config segment_3d_small --store $(DEMO)/store --pretrained $(DEMO)/pretrained \
	--labels $(DEMO_LABELS) --data.view.size 32,32,32 --training.steps $(DEMO_STEPS) \
	--training.output.validate_every 50 --training.output.picture_every 100 --optimizer.learning_rate 5e-3 \
	--training.precision $(DEMO_PRECISION)
EVALUATE = $(MEDSSL) evaluate --index $(DEMO)/index/scans.sqlite

demo: $(INSTALLED) ## phantoms -> index -> store -> SparK -> few labels, and without SparK -> scores -> one page
	@echo "== 1. synthetic patients, some as NIfTI, some as DICOM series, a third with labels"
	@$(MEDSSL) phantoms $(DEMO)/scans --count 60 --labeled 20
	@(umask 077; test -f $(DEMO)/key || printf '%064d\n' 0 > $(DEMO)/key)
	@echo "== 2. the index: what is there, who is who, what is a label"
	@$(MEDSSL) index $(DEMO)/scans --index $(DEMO)/index/scans.sqlite --files.key $(DEMO)/key --files.modality MR \
		--subject '(PHANTOM-[0-9]+)' --label.masks images=labels --label.split train=0.55,val=0.15,test=0.3 \
		--label.class_names 0=background,1=liver,2=spleen,3=kidneys
	@echo "== 3. the store: oriented, 8 mm voxels, in chunks"
	@$(MEDSSL) cache $(DEMO)/index/scans.sqlite $(DEMO)/store --preprocess mr --preprocess.spacing_mm 8,8,8
	@echo "== 4. pretraining with SparK, no labels: a residual encoder fills in what is hidden from it"
	@$(MEDSSL) pretrain --config spark_3d_small --store $(DEMO)/store --run $(DEMO)/pretrained \
		--encoder.channels 8,16,32,64 --objective.view.size 32,32,32 --training.steps $(DEMO_PRETRAINING) --training.batch_size 2 \
		--training.precision $(DEMO_PRECISION) --training.output.picture_every 80
	@echo "== 5. fine-tuning with the labels of $(DEMO_LABELS) patients"
	@$(FINETUNE) --run $(DEMO)/finetuned
	@echo "== 6. its baseline: the same from random weights"
	@$(FINETUNE) --run $(DEMO)/scratch --from-scratch
	@echo "== 7. both on patients that neither has seen, on the scans' own grids"
	@$(EVALUATE) $(DEMO)/finetuned --out $(DEMO)/scores/finetuned
	@$(EVALUATE) $(DEMO)/scratch --out $(DEMO)/scores/scratch
	@echo "== 8. one page"
	@$(MEDSSL) report $(DEMO)/report.html "pretrained=$(DEMO)/scores/finetuned" "from scratch=$(DEMO)/scores/scratch" \
		"fine-tuned after SparK=$(DEMO)/finetuned" "fine-tuned from scratch=$(DEMO)/scratch" "SparK=$(DEMO)/pretrained" \
		--heading "medssl demo: $(DEMO_LABELS) labeled synthetic patients"
	@echo "== done; open $(DEMO)/report.html in a browser"

clean: ## remove the demo, built documentation and caches (not the environment)
	rm -rf $(DEMO) docs/_build build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find medssl tests -name __pycache__ -type d -prune -exec rm -rf {} +
