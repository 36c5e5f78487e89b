# Everything a checkout needs, from Python and make alone:
#
#   make demo                 the example project, live in the terminal
#   make test                 the test suite, on every database and broker found on this machine
#   make lint                 style, format, the way of imports, and types
#   make docs                 the manual, as HTML and Markdown, in build/docs
#   make bench                what it costs, measured beside what it is compared with
#   make test ARGS='-k lease' extra arguments for pytest (the demo, the benchmark)
#   make lock                 write the versions of .venv to requirements/, for make setup LOCKED=1
#   PYTHON=python3.12 make test
#
# The virtual environment is made on first use and kept up to date with pyproject.toml.

PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
ARGS ?=
# Set: install the very versions that were written down, not the newest.
LOCKED ?=
# Files of tests run beside each other, in the order of their names: the long ones of acceptance begin. One after the
# other: make test ARGS='-n 0'.
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder

LOCK = requirements/dev-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test docs bench lint format clean

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
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev \
	  $(if $(LOCKED),--constraint $(LOCK))
	@touch $@

lock: $(READY)
	@mkdir -p requirements
	@$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable | grep -E '^[A-Za-z0-9._-]+==[^ ]+$$' > $(LOCK)
	@echo $(LOCK)

demo: $(READY)
	@$(BIN)/python -m example_project.demo $(ARGS)

test: $(READY)
	@# Hundreds of workers start, each of which would compile what it imports where Python is told to keep nothing.
	@$(BIN)/python -m compileall -q celery_durable tests
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

docs: $(READY)
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet --builder html docs build/docs
	@echo "build/docs/index.html"

bench: $(VENV)/.ready-bench
	@$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.ready-bench: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy
	@if ls tests/typing/*.py >/dev/null 2>&1; then set -x; $(BIN)/mypy tests/typing; fi

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) benchmarks/peers/.environments .tox .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
