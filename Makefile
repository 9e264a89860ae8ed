# `make help` lists the verbs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CACHE ?= $(HOME)/.cache/quire
UV    := $(CACHE)/uv-tool/bin/uv
PY    := .venv/bin/python
CLUSTER := $(PY) -m quire_cluster
export UV_CACHE_DIR := $(CACHE)/uv

help: ## list these verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---- set-up -------------------------------------------------------------------------------------

$(UV): requirements/bootstrap.txt
	@command -v python3.11 >/dev/null || { echo "quire needs Python 3.11 (python3.11 was not found on PATH); install it and run make again" >&2; exit 1; }
	python3.11 -m venv $(CACHE)/uv-tool
	$(CACHE)/uv-tool/bin/pip install --quiet --require-hashes -r $<
	@touch $@

.venv/.installed: $(UV) requirements/dev.txt pyproject.toml
	@command -v g++ >/dev/null || { echo "quire's CPU kernels need a C++17 compiler (g++ was not found on PATH); install g++ and run make again" >&2; exit 1; }
	[ -x $(PY) ] || $(UV) venv --quiet --python python3.11 .venv
	$(UV) pip sync --quiet --python $(PY) --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

venv: .venv/.installed ## the development environment in .venv, from the lock file

lock: $(UV) ## write requirements/*.txt anew from pyproject.toml
	for set in "operator --extra operator --extra gateway" "engine --extra engine" "dev --extra dev"; do \
	  set -- $$set; out=requirements/$$1.txt; shift; \
	  $(UV) pip compile --quiet pyproject.toml "$$@" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header -o $$out; \
	done
	echo 'uv>=0.13.8' | $(UV) pip compile --quiet - --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate -o requirements/bootstrap.txt

.PHONY: help venv lock
