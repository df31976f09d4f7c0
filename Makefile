# Everything is created inside the checkout: the environment in .venv, all caches in .cache.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

export XDG_CACHE_HOME := $(CURDIR)/.cache
export HF_HOME := $(CURDIR)/.cache/huggingface
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/.cache/inductor
export PIP_NO_CACHE_DIR := 1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test check format lint types docs clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.installed ## create .venv with the tested versions

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "==> Setting up .venv with the versions in constraints.txt (minutes, the first time only)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
	@echo "==> .venv is ready"

quickstart: setup ## train, prune, test and report on the built-in corpus, no download
	@echo "==> Training a small BERT from scratch, pruning it to 80 % and measuring both"
	@$(BIN)/lightning-compress fit --config configs/quickstart.yaml

test: setup ## run the tests in two processes
	@echo "==> Running the tests"
	@mkdir -p .cache
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --basetemp=.cache/pytest $(ARGS)

format: setup ## format the code and apply automatic fixes
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lint: setup ## check format and lint
	@echo "==> Checking format and lint"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: setup ## check the types
	@echo "==> Checking the types"
	@$(BIN)/mypy

docs: setup ## update the generated lists and build the documentation into site/
	@echo "==> Building the documentation"
	@$(BIN)/python -c 'import mkdocs' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m mkdocs build --quiet

check: lint types test ## everything that must pass before a change lands

clean: ## remove the environment and the caches, keep the logs
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache *.egg-info build site
