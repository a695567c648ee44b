# make test and make demo are all that a reader needs; each does its own set-up from a bare Python 3.11 or later.

PYTHON ?= $(shell for v in python3.13 python3.12 python3.11 python3.14 python3; do \
	$$v -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$v && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# The tests take from milliseconds to a minute each: who has done his share takes from the other's.
PYTEST_ARGS ?= -n auto --dist worksteal
# Where it is set, pytest rewrites the asserts of all plugins anew in each inner run: two thirds of a run with all of them.
unexport PYTHONDONTWRITEBYTECODE
COMPAT_VENV ?= .venv-compat
COMPAT_READY = $(COMPAT_VENV)/.ready

BENCH ?=

.PHONY: help test bench compat compat-docs compat-docs-check fuzz demo demo-live lint types docs docs-check check clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or say make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev --editable ".[all]"
	@touch $@

test: $(READY)  ## run the whole suite (PYTEST_ARGS="-k pool" for a part of it)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

$(COMPAT_READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed: install it, or say make PYTHON=/path/to/python"; exit 1; }
	@echo "setting up $(COMPAT_VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(COMPAT_VENV)
	@$(COMPAT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(COMPAT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --group compat --editable ".[all]"
	@touch $@

COMPAT_ARGS ?= -n auto --dist worksteal tests/compat

compat: $(COMPAT_READY)  ## whole suites with SQLAlchemy, asyncpg and so on, plugin off and on (in .venv-compat)
	$(COMPAT_VENV)/bin/python -m pytest $(COMPAT_ARGS)

COMPAT_PAGES = docs/other-drivers.md docs/sqlalchemy.md

compat-docs: $(COMPAT_READY)  ## paste fresh output into the pages about other libraries
	$(COMPAT_VENV)/bin/python docs/examples.py $(COMPAT_PAGES)

compat-docs-check: $(COMPAT_READY)  ## fail if the output in those pages is stale
	$(COMPAT_VENV)/bin/python docs/examples.py --check $(COMPAT_PAGES)

FUZZ ?= 2000

fuzz: $(READY)  ## many more random sequences than in the suite (FUZZ=2000 examples in each world)
	PGLEAK_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n 2 tests/test_stateful.py

bench: $(COMPAT_READY)  ## what a check costs, how fast a server is there, beside its peers (some minutes; leave the machine alone)
	$(COMPAT_VENV)/bin/python -m benchmarks --write $(BENCH)

demo: $(READY)  ## run the demo: first the correct applications, then the leaky ones with their failures
	$(BIN)/python -m demo_app.run_demo

demo-live: $(READY)  ## the demo as it runs in production: served by uvicorn, with the same findings as in process
	$(BIN)/python -m demo_app.run_live

lint: $(READY)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

docs: $(READY)  ## paste fresh output into README.md and docs/
	$(BIN)/python docs/examples.py

docs-check: $(READY)  ## fail if the output in README.md or docs/ is stale
	$(BIN)/python docs/examples.py --check

check: lint types docs-check test demo demo-live compat compat-docs-check  ## everything

clean:  ## remove what make has made
	rm -rf .venv .venv-compat build dist .mypy_cache .pytest_cache .ruff_cache
