# Everything runs from .venv, which each target makes and reuses by itself:
# nothing needs to be installed but Python 3.10 or later and make.
#
# A stamp file in .venv stands for each set of packages, so that a target installs only
# what it needs and installs again only when pyproject.toml has changed.

PYTHON ?= python3
VENV   := .venv
# The other distribution of the same name, for comparison only: it owns the same import
# name, so it can never share an environment with this one.
PEER   := .venv-peer
# The oldest Dask that the adapter supports; the bound in pyproject.toml is the same.
OLDEST_DASK := 2025.7.0
OLDEST      := .venv-oldest

PY  := $(VENV)/bin/python
# Twice quiet: errors only.
PIP := $(PY) -m pip install -qq --disable-pip-version-check

# A server for tests and benchmarks; installed if there is none.
REDIS = PROXYSTORE_REDIS_SERVER="$$(PYTHON=$(PY) tools/redis-server.sh $(VENV)/.redis)"

# Parsl starts its helper programs by name.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# A notice about the successor of mkdocs-material, which every build would print.
export NO_MKDOCS_2_WARNING := 1

# pip must not run twice at once in one environment.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo notebook notebooks lab test test-oldest slurm test-slurm lint format types bench docs clean FORCE

help:  ## List the targets
	@echo "make TARGET  (each makes and reuses $(VENV) by itself; PYTHON=python3.12 picks another Python)"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

demo: $(VENV)/.demo  ## Run a real analysis under Dask and Parsl, plain and with proxystore (QUICK=1: a smaller one)
	@echo "demo: all-to-all RMSD of three protein transition paths, plain and by reference"
	@$(PY) examples/md_rmsd/main.py $(if $(QUICK),--quick) $(ARGS)

notebook: $(VENV)/.notebook  ## Run a notebook, and write its page: N=03 (or another number), build/03_dask.html
	@echo "notebook: $(or $(N),03), which takes less than a minute"
	@$(REDIS) $(PY) tools/notebook.py --html build notebooks/$(or $(N),03)_*.ipynb

# JUPYTER_PREFER_ENV_PATH: the kernel of .venv, not one of the same name that the user has.
lab: $(VENV)/.lab  ## Open the notebooks in JupyterLab
	@cd notebooks && JUPYTER_PREFER_ENV_PATH=1 ../$(PY) -m jupyter lab $(ARGS)

test: $(VENV)/.test  ## Run the test suite (ARGS="-k name" and the like go to pytest)
	@echo "test: pytest $(ARGS)"
	@$(REDIS) $(PY) -m pytest -m "not slurm and not notebook" $(ARGS)

# Not part of `test`, which runs the first one only: they take minutes.
notebooks: $(VENV)/.test  ## Run all notebooks, on this machine and, where `make slurm` was possible, on a cluster
	@echo "notebooks: pytest $(ARGS)"
	@$(REDIS) $(PY) -m pytest -m notebook tests/test_notebooks.py tests/hpc/test_notebooks.py $(ARGS)

# With bokeh, which .venv does not have.
test-oldest: $(OLDEST)/.test  ## Run the tests of the Dask adapter with the oldest Dask that it supports
	@echo "test-oldest: pytest tests/dask $(ARGS), dask and distributed $(OLDEST_DASK)"
	@$(OLDEST)/bin/python -m pytest tests/dask $(ARGS)

# Not part of `test`: nobody who only runs the tests wants a batch system installed.
slurm: $(VENV)/.made  ## Install Slurm for the tests that start a cluster (as root, with apt-get; CI does it)
	@echo "slurm: tools/slurm.py install"
	@$(PY) tools/slurm.py install

test-slurm: $(VENV)/.test  ## Run the tests that start a Slurm cluster of two nodes; skipped without Slurm
	@echo "test-slurm: pytest -m slurm $(ARGS)"
	@$(REDIS) $(PY) -m pytest -m "slurm and not notebook" tests/hpc $(ARGS)

lint: $(VENV)/.lint  ## Check formatting and lint rules; changes nothing
	@echo "lint: ruff format --check, ruff check"
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

format: $(VENV)/.lint  ## Format, and fix what ruff can fix by itself
	@echo "format: ruff check --fix, ruff format"
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

types: $(VENV)/.types  ## Type-check the packages (mypy --strict)
	@echo "types: mypy --strict on src and integrations"
	@$(PY) -m mypy $(ARGS)

bench: $(VENV)/.test  ## Measure against plain Dask, plain Parsl and the other proxystore; print ratios
	@$(MAKE) --silent --no-print-directory $(PEER)/.ready || { rm -rf $(PEER); \
	  echo "bench: the other distribution cannot be installed here: running without its column"; }
	@echo "bench: benchmarks/run.py $(ARGS)"
	@PROXYSTORE_PEER_PYTHON="$$(ls $(CURDIR)/$(PEER)/bin/python 2>/dev/null)" $(REDIS) $(PY) benchmarks/run.py $(ARGS)

docs: $(VENV)/.docs  ## Build the documentation into site/ (SERVE=1: serve it on localhost)
	@echo "docs: mkdocs $(if $(SERVE),serve,build --strict)"
	@$(PY) -m mkdocs $(if $(SERVE),serve,--quiet build --strict)
	@$(if $(SERVE),,echo "docs: open site/index.html (with a search: make docs SERVE=1)")

clean:  ## Remove all environments and everything that was built
	@echo "clean: $(VENV), $(OLDEST), $(PEER), caches, site/, dist/, build/"
	@rm -rf $(VENV) $(OLDEST) $(PEER) site dist build runinfo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- environments ----------------------------------------------------------------------

$(VENV)/.demo: EXTRAS := dask,parsl,examples
$(VENV)/.demo: $(VENV)/.made pyproject.toml
$(VENV)/.notebook $(VENV)/.lab: EXTRAS := all
$(VENV)/.notebook: GROUPS := notebook
$(VENV)/.lab: GROUPS := lab
$(VENV)/.notebook $(VENV)/.lab: $(VENV)/.made pyproject.toml
$(VENV)/.test: EXTRAS := all
$(VENV)/.test: GROUPS := test
$(VENV)/.test: $(VENV)/.made pyproject.toml
$(VENV)/.types: EXTRAS := all
# mypy reads the optional packages too (pandas, polars).
$(VENV)/.types: GROUPS := test types
$(VENV)/.types: $(VENV)/.made pyproject.toml

$(VENV)/.demo $(VENV)/.notebook $(VENV)/.lab $(VENV)/.test $(VENV)/.types:
	@echo "Installing proxystore[$(EXTRAS)]$(if $(GROUPS), and what it takes to run $(@:$(VENV)/.%=%)) into $(VENV) ..."
	@$(PIP) --editable '.[$(EXTRAS)]' $(GROUPS:%=--group %)
	@touch $@

# Neither needs the packages themselves: ruff and mkdocstrings read source.
$(VENV)/.lint $(VENV)/.docs: $(VENV)/.made pyproject.toml
	@echo "Installing what it takes to run $(@:$(VENV)/.%=%) into $(VENV) ..."
	@$(PIP) --group $(@:$(VENV)/.%=%)
	@touch $@

# Looked at each time; made again when its Python is gone or not the one asked for, or when
# the checkout has moved. The file changes only then, and so do the stamps that depend on it.
$(VENV)/.made $(OLDEST)/.made: FORCE
	@tools/venv.sh $(@D) $(PYTHON) $(if $(filter file,$(origin PYTHON)),"",asked)

$(OLDEST)/.test: $(OLDEST)/.made pyproject.toml
	@echo "Installing proxystore[dask] with dask $(OLDEST_DASK), and what it takes to run its tests, into $(OLDEST) ..."
	@$(OLDEST)/bin/python -m pip install -qq --disable-pip-version-check --editable '.[dask]' --group test \
	  dask==$(OLDEST_DASK) distributed==$(OLDEST_DASK) bokeh
	@touch $@

# The frameworks in the versions that .venv has, so that only the adapters differ.
$(PEER)/.ready: benchmarks/peer-requirements.txt
	@echo "Installing the other distribution, for comparison, into $(PEER) ..."
	@$(PY) -m venv --clear $(PEER)
	@$(PY) -m pip freeze --exclude-editable \
	  | grep -E '^(cloudpickle|dask|distributed|numpy|parsl)==' > $(PEER)/constraints.txt
	@$(PEER)/bin/python -m pip install -qq --disable-pip-version-check \
	  --requirement benchmarks/peer-requirements.txt --constraint $(PEER)/constraints.txt
	@touch $@
