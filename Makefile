# Two commands set everything up: `make demo` and `make test`. They need Python >= 3.11 with venv, make and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
SETS := sets/demo

.PHONY: demo test lint clean
.DELETE_ON_ERROR:

# Installed once, and again when the dependencies change. The marker is written last.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Train a generator on the bundled digits, emit sets at IPC 1, 10 and 50, score them beside controls, measure what it covers,
# write the report.
demo: $(VENV)/installed
	rm -rf $(RUN) $(SETS)
	$(BIN)/dim train --recipe digits-dim --out $(RUN)
	for ipc in 1 10 50; do $(BIN)/dim sample $(RUN) --ipc $$ipc --out $(SETS)/ipc-$$ipc || exit 1; done
	$(BIN)/dim evaluate $(SETS)/ipc-1 $(SETS)/ipc-10 $(SETS)/ipc-50 $(RUN) --ipc 10 --track stream \
	  --controls random oracle full --seeds 3 --json $(RUN)/scores.json
	$(BIN)/dim coverage $(RUN)

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(RUN) $(SETS) build dist *.egg-info
