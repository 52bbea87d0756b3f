# Every target sets up what it needs: a fresh clone needs Python 3.11+, make and the package index, nothing else.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PIP_FLAGS := --quiet --disable-pip-version-check
# The newest Python that really runs (a version manager's shim may stand on PATH for one that is not installed).
FIND_PYTHON := for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow coverage verify fix proto docs bench record-sim test-peers mutants cases clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/.python:
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
	  echo "raftstate needs Python 3.11 or newer with venv and ensurepip, and none was found on PATH."; \
	  echo "Install one and run make again, for example: apt-get install python3 python3-venv   (macOS: brew install python@3.13)"; \
	  exit 1; fi; \
	echo "creating $(VENV) with $$python ($$($$python -V 2>&1))"; \
	rm -rf $(VENV) && $$python -m venv $(VENV) && touch $@

$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing raftstate into $(VENV)"
	@$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing what the tests and checks need"
	@$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.dev  ## Make .venv with everything that development needs.

demo: $(VENV)/.run  ## Run the main job: a resumable workflow on three nodes, with its leader and its worker killed.
	@$(BIN)/raftstate demo

test: $(VENV)/.dev  ## Run the tests (those marked slow left out).
	@$(PY) -m pytest -n 2 --dist loadfile -m 'not slow' -q

test-slow: $(VENV)/.dev  ## Run the long ones: many kill rounds, all crash images.
	@$(PY) -m pytest -m slow -q

# Without what is drawn at random and without etcd's transcripts: so that whatever the core can do is done by a test
# that says what is expected of it, and the result is the same wherever this runs.
coverage: $(VENV)/.dev  ## Show that the tests of the core reach every branch of it.
	@$(BIN)/coverage run -m pytest -q -m 'not hypothesis' tests/core tests/transcripts \
	  --ignore tests/core/test_random_schedules.py --ignore tests/transcripts/test_transcripts.py
	@$(BIN)/coverage report

test-peers: $(VENV)/.dev  ## Install pysyncobj beside, and play the schedules on it that are played on raftstate.
	@$(PY) -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[peers]'
	@$(PY) -m pytest -q tests/peers

cases: $(VENV)/.dev  ## List the eighty-six cases, each with the tests that guard against it.
	@$(PY) -m tests.cases

mutants: $(VENV)/.dev  ## Put each known bug back in, one at a time, and see that the checks catch it (an hour).
	@$(PY) -m tests.mutants

verify: $(VENV)/.dev  ## Lint, types and what is generated and stale; changes no tracked file.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(PY) proto/generate.py --check
	@$(PY) docs/generate.py --check

fix: $(VENV)/.dev  ## Format, and mend what the linter can.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

proto: $(VENV)/.dev  ## Generate raftstate/pb from proto/.
	@$(PY) proto/generate.py

MINUTES ?= 60
record-sim: $(VENV)/.dev  ## Simulate for MINUTES (60), and add the run to chaos/ledger/sim.jsonl.
	@$(PY) -m chaos sim --seeds 1000000 --minutes $(MINUTES) --ledger chaos/ledger/sim.jsonl

docs: $(VENV)/.dev  ## Generate the reference of settings, metrics and errors in docs/.
	@$(PY) docs/generate.py

bench: $(VENV)/.dev  ## Measure writes against three durable local nodes.
	@$(PY) -m bench write --concurrency 1,64,256,1024 --seconds 5

clean:  ## Remove .venv and everything generated that is not tracked.
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
