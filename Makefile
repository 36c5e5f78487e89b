# Everything a checkout needs, from Python and make alone:
#
#   make demo                 the example project, live in the terminal
#   make test                 the test suite, on every database and broker found on this machine
#   make lint                 style, format and types
#   make bench                what it costs, measured beside what it is compared with
#   make test ARGS='-k lease' extra arguments for pytest (the demo, the benchmark)
#   PYTHON=python3.12 make test
#
# The virtual environment is made on first use and kept up to date with pyproject.toml.

PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
ARGS ?=
# Files of tests run beside each other, in the order of their names: the long ones of acceptance begin. One after the
# other: make test ARGS='-n 0'.
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench lint format clean

help:
	@sed -n '/^#   /s/^#   //p' Makefile

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "celery_durable needs Python 3.10 or newer; '$(PYTHON)' is not. Name one: PYTHON=python3.12 make ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make a virtual environment: its modules venv and ensurepip are missing." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv. Or name another Python: PYTHON=python3.12 make ..." >&2; exit 1; }
	@echo "Setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -e $(VENV)/.gitignore || echo '*' > $(VENV)/.gitignore
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: $(READY)
	@$(BIN)/python -m example_project.demo $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

bench: $(VENV)/.ready-bench
	@$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.ready-bench: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if ls tests/typing/*.py >/dev/null 2>&1; then set -x; $(BIN)/mypy tests/typing; fi

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) benchmarks/peers/.environments .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
