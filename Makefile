# `make demo` and `make test` are all the set-up there is: both build .venv on first use. Tests run in a
# process per core; a file stays in one, because its tests share what takes long to make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-web lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "PYTHON=... names the interpreter that .venv is built from (>= 3.11; now: $(PYTHON))."

demo: $(VENV)/.installed  ## install into .venv, then run spatext-demo
	$(BIN)/spatext-demo

test: lint  ## install into .venv with the developer tools, then run every check and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --durations=15

test-web: $(VENV)/.installed-web  ## use the page in a real Chromium; screenshots in outputs/web
	$(BIN)/python -m pytest -q tests/web

lint: $(VENV)/.installed-dev  ## ruff, mypy and the import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Runs (outputs/, multirun/), data and .venv are the user's: they stay.
clean:  ## remove build outputs and caches; leaves runs, data and .venv
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is not a Python >= 3.11; name one, as in: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) lacks venv or ensurepip (on Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are written last, so an interrupted installation is taken up again by the next call.
$(VENV)/.installed: setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing spatext and its dependencies into $(VENV): several GB, takes minutes the first time ..."
	$(PIP) install --editable '.[app]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the developer tools into $(VENV) ..."
	$(PIP) install --editable '.[app,retrieval,dev]'
	@touch $@

$(VENV)/.installed-web: $(VENV)/.installed-dev
	$(PIP) install --editable '.[app,retrieval,dev,browser]'
	@touch $@
