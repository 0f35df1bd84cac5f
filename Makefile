# Everything a developer types. Each target sets up what it needs, so each works in a fresh clone.
#   make test PYTHON=python3.12      choose the interpreter that the virtual environment is made with
#   make test VENV=/tmp/venv         choose where the virtual environment is
#   make demo INPUT=reviews.csv      choose the file that the demo analyses

VENV ?= .venv
PYTHON ?=
ARGS ?=
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

MINIO_VERSION := v0.0.0-20260212201848-7aac2a2c5b7c
CACHE_BIN := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/headrace/bin
MINIO := $(CACHE_BIN)/minio-$(MINIO_VERSION)
VERSITYGW_VERSION := v1.8.0
VERSITYGW := $(CACHE_BIN)/versitygw-$(VERSITYGW_VERSION)

# What has been installed into the virtual environment, and from which pyproject.toml: the file's time says.
INSTALLED_DEMO := $(VENV)/.headrace-demo
INSTALLED_DEV := $(VENV)/.headrace-dev

.DEFAULT_GOAL := list
.PHONY: list venv demo test test-full check format lint types bench reliability minio versitygw clean
.DELETE_ON_ERROR:

list: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(INSTALLED_DEV) ## make .venv with everything that development needs

demo: $(INSTALLED_DEMO) ## run the demo: a reviews file, split, scored and charted
	$(BIN)/headrace demo $(if $(INPUT),--input "$(INPUT)") $(ARGS)

test: $(INSTALLED_DEV) ## run every test but the slow ones
	$(BIN)/python -m pytest -n auto -m "not slow" $(ARGS)

test-full: $(INSTALLED_DEV) ## run every test, at full size
	$(BIN)/python -m pytest -n auto $(ARGS)

check: $(INSTALLED_DEV) ## check format, lint, imports and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(INSTALLED_DEV) ## format the code and sort its imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

lint: check ## the same as check

types: $(INSTALLED_DEV) ## check the public names with pyright, strictly
	$(BIN)/pyright

bench: $(INSTALLED_DEV) ## run the benchmarks and print their ratios
	$(BIN)/python benchmarks/run.py $(ARGS)

reliability: $(INSTALLED_DEV) ## kill a node at every named point, and write what was seen into docs/reliability.md
	RELIABILITY_PAGE=docs/reliability.md $(BIN)/python -m pytest tests/fault/test_crash_matrix.py $(ARGS)

minio: $(MINIO) ## build MinIO from source, once, for the tests that need one
	@echo "MinIO is at $(CACHE_BIN)/minio"

versitygw: $(VERSITYGW) ## build Versity S3 Gateway, once, for the tests that need an S3 without notifications
	@echo "Versity S3 Gateway is at $(CACHE_BIN)/versitygw"

clean: ## remove caches and what was built; the virtual environment and data stay
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find benchmarks functions headrace runtime tests triggers -name __pycache__ -type d -prune -exec rm -rf {} +

# The first interpreter that is new enough and runs: a name on the PATH may be a shim that leads nowhere.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    "$$python" -c 'import ensurepip, venv' 2>/dev/null \
	        || { echo "$$python cannot make virtual environments: on Debian, apt-get install python3-venv" >&2; exit 1; }; \
	    echo "$$python -m venv $(VENV)"; \
	    exec "$$python" -m venv "$(VENV)"; \
	done; \
	echo "no Python 3.11 or newer found$(if $(PYTHON), under the name $(PYTHON)): name one with PYTHON=…" >&2; exit 1

$(INSTALLED_DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test,dev,examples]'
	@touch "$@" "$(INSTALLED_DEMO)"

# An environment for development has all that the demo needs.
$(INSTALLED_DEMO): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[examples]'
	@touch "$@"

# Built in a folder of its own, so that an interrupted build leaves nothing that looks finished.
$(MINIO) $(VERSITYGW):
	@command -v go >/dev/null || { echo "$(@F) has to be built, and that needs Go: see https://go.dev/doc/install" >&2; exit 1; }
	@mkdir -p "$(CACHE_BIN)/building-$(@F)"
	CGO_ENABLED=0 GOBIN="$(CACHE_BIN)/building-$(@F)" go install -trimpath $(PACKAGE)
	@mv "$(CACHE_BIN)/building-$(@F)/$(PROGRAM)" "$@"
	@ln -sfn "$(@F)" "$(CACHE_BIN)/$(PROGRAM)"
	@rmdir "$(CACHE_BIN)/building-$(@F)"

$(MINIO): PROGRAM := minio
$(MINIO): PACKAGE := github.com/minio/minio@$(MINIO_VERSION)
$(VERSITYGW): PROGRAM := versitygw
$(VERSITYGW): PACKAGE := github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW_VERSION)
