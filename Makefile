# The verbs, the same here and in CI. `make help` lists them.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
HOST_PYTHON ?= python3
# The two ONNX Runtime packages overwrite each other: cpu or gpu, never both.
DEVICE ?= cpu
DATA ?=
SEED ?= 1
PART ?= jobs

.PHONY: help install lint check test chaos bench serve demo clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | expand -t 12

install: $(STAMP) ## make .venv with everything, from the pinned set

# torch first and exactly: any looser requirement may bring gigabytes of another build.
$(STAMP): pyproject.toml constraints.txt
	$(HOST_PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(PY) || $(HOST_PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,$(DEVICE),embedded,demo,dev]'
	touch $(STAMP)

lint: $(STAMP) ## format the code and mend what can be mended
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

check: $(STAMP) ## format, lint, types and import contracts, without changing anything
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test: $(STAMP) ## all tiers: unit, architecture, conformance, integration, e2e, chaos
	$(PY) -m pytest -n 2 --dist loadfile

chaos: $(STAMP) ## the reliability promises under faults (an hour; writes docs/, SEED=1, PART=serving)
	OMP_NUM_THREADS=1 $(PY) -m tests.chaos --part $(PART) --seed $(SEED) --write docs/reliability.md

bench: $(STAMP) ## training speed beside the stock Trainer (minutes; writes docs/)
	$(PY) -m benchmarks.training --write docs/training-speed.md

serve: $(STAMP) ## run the whole service on 127.0.0.1:8000
	$(VENV)/bin/modelwright up

demo: $(STAMP) ## the main job on real text: upload, train, predict (DATA=my.jsonl for your own)
	$(PY) -m demo $(if $(DATA),--data '$(DATA)')

clean: ## remove the environment and caches; data under var/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
