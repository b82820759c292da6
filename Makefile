# One entrance: `make` lists what there is. Set-up happens by itself, in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SCAN ?=
NAME ?= cubes
# The tests run in two processes, of one thread each: for two cores.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-slow check format bench clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Each set of extras leaves a stamp; it is installed again when the pins or the project change.
$(VENV)/.extras-%: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

setup: $(VENV)/.extras-dev ## everything for development, into .venv

demo: $(VENV)/.extras-service,worker ## the main job on a real scan: make demo [SCAN=path]
	$(BIN)/tomotrain demo $(if $(SCAN),--scan "$(SCAN)")

up: $(VENV)/.extras-service,worker,clinical ## the embedded stack until Ctrl-C: API and dashboard on 127.0.0.1:8000
	$(BIN)/tomotrain up

test: $(VENV)/.extras-test ## the tests, under ten minutes on two cores
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.extras-test ## the long ones: faults, scale
	$(BIN)/python -m pytest -m slow --timeout 1800

check: $(VENV)/.extras-dev ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.extras-dev ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.extras-test,bench ## one benchmark: make bench NAME=cubes
	$(BIN)/python -m benchmarks $(NAME)

clean: ## remove caches and the virtual environment
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
