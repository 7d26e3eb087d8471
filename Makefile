# `make demo` and `make test` do all the set-up, on a machine with Python 3.11 or newer, git and make.

PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
TARGETS := decoder bundle event_log feature_builder
SECONDS := 600
INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo test soak fuzz lint format clean

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/'

demo: $(VENV)/.installed-run  ## install, then simulate, train, register and score a small world
	$(VENV)/bin/recsys demo

test: $(VENV)/.installed-dev  ## install, then run every test (ARGS="-k metrics" for some)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

soak: $(VENV)/.installed-dev  ## run the tests that take minutes of load
	$(VENV)/bin/python -m pytest -m soak

fuzz: $(VENV)/.installed-fuzz  ## fuzz what reads foreign bytes (SECONDS=600 a target, TARGETS="decoder bundle" for some)
	for target in $(TARGETS); do \
		$(VENV)/bin/python -m tests.fuzz.run $$target --seconds $(SECONDS) || exit 1; done

lint: $(VENV)/.installed-dev  ## check format, style, types and the direction of imports
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev  ## rewrite the sources in the house format
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:  ## remove what was installed or built; the home .recsys/ with its models stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find recsys features pipelines serving tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone, so that a CPU build that pip is configured to find wins over a larger one.
$(VENV)/.installed-torch: constraints.txt | $(VENV)/bin/python
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.installed-run: pyproject.toml constraints.txt $(VENV)/.installed-torch
	$(INSTALL) -e ".[train,serve]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.installed-torch
	$(INSTALL) -e ".[dev]"
	@touch $(VENV)/.installed-run $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	$(INSTALL) -e ".[fuzz]"
	@touch $@
