# Everything a newcomer or a contributor runs. Needs Python 3.11 or newer with pip, and nothing else.

PYTHON  ?= python3
WORKERS ?= 2
BIN     := .venv/bin
PIP     := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint format docs clean

help:
	@echo "make demo    install into .venv and run the main job on the bundled model"
	@echo "make test    lint, types and tests"
	@echo "make lint    lint and types only"
	@echo "make format  format and mend what can be mended"
	@echo "make docs    write the generated parts of the documentation"
	@echo "make clean   remove .venv, caches and build outputs"

demo: .venv/.installed
	@$(BIN)/ramify demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.installed-dev
	$(BIN)/python -m ramify.docs

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ramify needs Python 3.11 or newer; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing ramify into .venv (the first time takes some minutes, most of them for torch)"
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing ramify and the developers' tools into .venv (the first time takes some minutes)"
	@$(PIP) -e ".[dev]"
	@touch .venv/.installed $@
