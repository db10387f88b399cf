# Thin on purpose: what happens is in pyproject.toml, notebooks/build.py and the tests.
PYTHON ?= python3
BIN := .venv/bin
# Two files at a time, each with one thread, in the order of pyproject.toml: the longest first.
PARALLEL := --numprocesses=2 --dist=loadscope --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help lab test check colab notebooks site bench

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

lab: .venv/lab  ## install the course on first use and open it in JupyterLab
	@$(BIN)/python -m d2lres lab

test: .venv/dev  ## run every test and every cell of every notebook, or TESTS="tests/test_data.py"
	@$(BIN)/python -m pytest $(PARALLEL) $(TESTS)

check: .venv/dev  ## check style, types and the rules of notebooks, in seconds
	@$(BIN)/python -m pytest --quiet tests/test_style.py tests/test_notebooks.py

colab: .venv/dev  ## run every notebook alone, in a replica of Colab (minutes)
	@D2LRES_COLAB=all $(BIN)/python -m pytest tests/test_colab.py -rA

notebooks: .venv/dev  ## build and execute all notebooks, or CHAPTER=01
	@$(BIN)/python notebooks/build.py $(CHAPTER)

site: .venv/site  ## build the web edition: open build/site/index.html
	@$(BIN)/python site/build.py

bench: .venv/dev  ## measure the benchmarks anew, 20 minutes on an idle machine
	@$(BIN)/python assets/make_benchmarks.py

# Each stamp is newer than what it was installed from: a second call installs nothing.
.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "The course needs Python 3.10 to 3.13, and $(PYTHON) is another: try make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

# uv installs in seconds what takes pip minutes, but reads nothing of pip's configuration: where that
# names another index or a proxy, and wherever uv fails, pip installs.
OPTIONS = --quiet --constraint constraints.txt --editable '.[$(1)]'
define install
@echo "Installing the course and what it needs into .venv"
@{ ! $(BIN)/python -m pip config list | grep -qE '[.](index-url|no-index|proxy)=' && \
  $(BIN)/python -m pip install --quiet --constraint constraints.txt uv && \
  $(BIN)/python -m uv pip install --python $(BIN)/python $(OPTIONS); } || \
  $(BIN)/python -m pip install $(OPTIONS)
endef

.venv/lab: pyproject.toml constraints.txt | .venv/python
	$(call install,course)
	@touch $@

.venv/site: pyproject.toml constraints.txt | .venv/python
	$(call install,site)
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/python
	$(call install,dev)
	@touch $@ .venv/lab .venv/site
