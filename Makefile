# make demo         segment a real scan from one painted slice; the pictures and labelmaps are in demo-output/
# make test         lint, types, import contract and tests: what must hold before a change lands
# make environment  .venv with all that demo and tests need (demo and test make what they need themselves)
# make lint         the quick part of test
# make docs         the documentation's site, in site/
# make bench        seconds and memory per slice, beside the naive schedule
#
# make PYTHON=/path/to/python3.12 ... chooses the Python that .venv is made of (3.10 to 3.12).

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile --quiet --constraint constraints.txt

# Python compiles what is imported when it is imported, and keeps it, whatever the environment says; pip would compile all.
export PYTHONDONTWRITEBYTECODE :=

# Tests of one file run in one process, which makes what they share once; the longest files come first (Testing/conftest.py).
# A process takes 1.5 GB. For one process: WORKERS=
WORKERS ?= --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Asked whether it runs, not whether it is found: a version manager's shim, or a Python without venv, is no use.
PYTHON ?= $(shell for python in python3.12 python3.11 python3.10 python3; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null \
	&& echo $$python && break; done)

.PHONY: demo test environment lint docs bench
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: $(VENV)/.runtime
	$(BIN)/sdfsmis demo --output demo-output

# lint runs beside the tests, and has its say after them.
test: $(VENV)/.testing
	@echo "$(BIN)/python -m pytest $(WORKERS)"; \
	$(MAKE) --no-print-directory lint >$(VENV)/lint.log 2>&1 & lint=$$!; \
	$(BIN)/python -m pytest $(WORKERS); tests=$$?; \
	wait $$lint; lint=$$?; cat $(VENV)/lint.log; \
	test $$tests -eq 0 && test $$lint -eq 0

environment: $(VENV)/.testing

lint: $(VENV)/.testing
	$(BIN)/ruff check .
	PYTHONPATH=SDFSMIS $(BIN)/lint-imports --no-logo
	$(BIN)/mypy

docs: $(VENV)/.documentation
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The site is in site/: open site/index.html, or serve it with $(BIN)/mkdocs serve."

bench: $(VENV)/.runtime
	$(BIN)/sdfsmis bench

# The stamps say what .venv holds; a change of pyproject.toml or constraints.txt brings it up to date.
# torch goes in first, by its pin, so that nothing else can ask for another build of it.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what running needs into $(VENV); the first time this takes a few minutes."
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.testing: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what demo and tests need into $(VENV); the first time this takes a few minutes."
	$(PIP) torch
	$(PIP) --editable '.[demo,train,evaluate,serve,ray,test]'
	@touch $(VENV)/.runtime $@

$(VENV)/.documentation: $(VENV)/.runtime
	@echo "Installing what the documentation needs into $(VENV)."
	$(PIP) --editable '.[docs]'
	@touch $@

$(BIN)/python:
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
		echo "No Python 3.10 to 3.12 with venv was found: install one (on Debian and Ubuntu also python3-venv)," \
			"or name one with make PYTHON=/path/to/python3." >&2; \
		exit 1; \
	fi; \
	"$$python" -m venv $(VENV)
