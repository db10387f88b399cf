# Thin on purpose: what happens is in pyproject.toml, notebooks/build.py and the tests.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help lab test colab notebooks bench

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

lab: .venv/lab  ## install the course on first use and open it in JupyterLab
	@$(BIN)/python -m d2lres lab

test: .venv/dev  ## run every test and every cell of every notebook
	@$(BIN)/python -m pytest

colab: .venv/dev  ## run every notebook alone, in a replica of Colab (minutes)
	@D2LRES_COLAB=all $(BIN)/python -m pytest tests/test_colab.py -rA

notebooks: .venv/dev  ## build and execute all notebooks, or CHAPTER=01
	@$(BIN)/python notebooks/build.py $(CHAPTER)

bench: .venv/dev  ## measure the README's table anew, 40 minutes on an idle machine
	@$(BIN)/python assets/benchmark.py

# Each stamp is newer than what it was installed from: a second call installs nothing.
.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "The course needs Python 3.10 to 3.13, and $(PYTHON) is another: try make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/lab: pyproject.toml constraints.txt | .venv/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[course]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/lab
