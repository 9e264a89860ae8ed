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
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# ---- set-up -------------------------------------------------------------------------------------

$(UV): requirements/bootstrap.txt
	@command -v python3.11 >/dev/null || { echo "quire needs Python 3.11 (python3.11 was not found on PATH); install it and run make again" >&2; exit 1; }
	python3.11 -m venv $(CACHE)/uv-tool
	$(CACHE)/uv-tool/bin/pip install --quiet --require-hashes -r $<
	@touch $@

.venv/.installed: $(UV) requirements/dev.txt pyproject.toml
	@command -v g++ >/dev/null || { echo "quire's CPU kernels need a C++17 compiler (g++ was not found on PATH); install g++ and run make again" >&2; exit 1; }
	[ -x $(PY) ] || $(UV) venv --quiet --python python3.11 .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(PY) --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

venv: .venv/.installed ## the development environment in .venv, from the lock file
	@$(PY) kernels/quire_kernels/build.py >/dev/null

lock: $(UV) ## write requirements/*.txt anew from pyproject.toml
	for set in "operator --extra operator --extra gateway" "engine --extra engine" "dev --extra dev"; do \
	  set -- $$set; out=requirements/$$1.txt; shift; \
	  $(UV) pip compile --quiet pyproject.toml "$$@" --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --generate-hashes --no-emit-index-url --no-header -o $$out; \
	done
	echo 'uv>=0.13.8' | $(UV) pip compile --quiet - --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate -o requirements/bootstrap.txt
	echo 'hatchling>=1.27' | $(UV) pip compile --quiet - --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --no-annotate -o requirements/build.txt

# Many tests start processes, and where no bytecode is written each compiles our modules anew.
unexport PYTHONDONTWRITEBYTECODE

# ---- quality ------------------------------------------------------------------------------------

lint: venv ## ruff, formatting, types, import walls, C++ format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/clang-format --dry-run --Werror $$(git ls-files 'kernels/*.h' 'kernels/*.cpp')

format: venv ## let ruff put the code in order
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	.venv/bin/clang-format -i $$(git ls-files 'kernels/*.h' 'kernels/*.cpp')

proto: venv ## write the operator's gRPC messages anew from their .proto
	cd operator/quire_operator && ../../$(PY) -m grpc_tools.protoc -I . --python_out=. --pyi_out=. externalscaler.proto

unit: venv model ## every test that needs no cluster
	$(PY) -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not interpreter and not gpu and not histories"
	$(PY) -m pytest tests/operator -m histories

model: venv
	@$(PY) -m quire_cluster.model

e2e: images addons ## the tests on a real cluster (brought up when none is)
	$(CLUSTER) exec -- $(PY) -m pytest tests/e2e --timeout 600 --durations 15

# The end-to-end run stands last, so that pytest's closing line is the last one; a cluster that was not
# there before is taken down after it, without a word.
test: lint unit ## lint, types, unit tests, then end to end on the real cluster
	@was_up=$$($(CLUSTER) status >/dev/null 2>&1 && echo yes || echo no); \
	status=0; $(MAKE) --no-print-directory e2e || status=$$?; \
	[ $$was_up = yes ] || $(CLUSTER) down >/dev/null 2>&1 || status=$$?; \
	exit $$status

# ---- cluster ------------------------------------------------------------------------------------

cluster-up: venv ## a real Kubernetes on this machine (or QUIRE_KUBECONFIG, or kind)
	$(CLUSTER) up

cluster-down: venv ## end it and remove its data; what was built stays cached
	$(CLUSTER) down

cluster-status: venv ## what runs
	$(CLUSTER) status

images: cluster-up model ## build the two images and push them where the cluster pulls
	$(CLUSTER) images

addons: cluster-up ## KEDA and Prometheus, which the tests of scaling need (9 minutes, once)
	$(CLUSTER) addons

shell: venv ## a shell with kubectl and helm, inside the cluster's network
	$(CLUSTER) shell

demo: images ## cluster up, chart in, one apply, a streamed answer, a burst that scales
	$(CLUSTER) exec -- $(PY) -m quire_cluster.demo

bench: venv model ## measure: writes tests/bench/results
	$(PY) tests/bench/bench_engine.py
	$(PY) tests/bench/bench_kernels.py
	$(PY) tests/bench/bench_chunks.py
	$(PY) tests/bench/bench_startup.py
	$(MAKE) bench-servers

bench-servers: venv model ## measure the HTTP servers at rising request rates
	$(PY) tests/bench/bench_servers.py

bench-serving: venv model ## measure what the API process costs and what paging gives
	$(PY) tests/bench/bench_api.py
	$(PY) tests/bench/bench_paging.py

soak: venv ## 10,000 requests of every kind at one server: nothing lost, nothing leaked
	$(PY) tests/bench/soak.py

bench-service: images ## measure apply to first token on the cluster
	$(CLUSTER) exec -- $(PY) tests/bench/bench_service.py

bench-scaling: images ## measure a round of the scaling loop over 1,000 simulated services
	$(CLUSTER) tool kwok >/dev/null
	$(CLUSTER) exec -- $(PY) tests/bench/bench_scaling.py

.PHONY: help venv lock lint format proto unit model e2e test cluster-up cluster-down cluster-status images addons shell demo bench bench-servers bench-serving soak bench-service bench-scaling

simulate: venv ## replay the scenarios of operator/docs through the scaler and draw them anew
	for scenario in operator/docs/scenarios/*.yaml; do \
	  echo "== $$scenario"; \
	  .venv/bin/kubectl-quire simulate $$scenario --out operator/docs/$$(basename $$scenario .yaml).png; \
	done

.PHONY: simulate
