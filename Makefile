# Two commands set everything up: `make demo` and `make test`. They need Python >= 3.11 with venv, make and pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
SETS := sets/demo

.PHONY: demo test docs lint clean
.DELETE_ON_ERROR:

# Installed once, and again when the dependencies change. The marker is written last.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Train a generator and three experts on the bundled digits; draw sets, plain and with refined latents (few steps are enough for
# images this small); score them beside real images; measure what the generator covers; write the report.
demo: $(VENV)/installed
	rm -rf $(RUN) $(SETS)
	$(BIN)/dim train --recipe digits-dim --out $(RUN)
	$(BIN)/dim sample $(RUN) --ipc 50 --format generator --out $(SETS)/refined --refine.steps 40 --refine.student-steps 10
	for ipc in 1 10 50; do $(BIN)/dim sample $(SETS)/refined --ipc $$ipc --out $(SETS)/refined-$$ipc || exit 1; done
	for ipc in 1 10; do $(BIN)/dim sample $(RUN) --ipc $$ipc --out $(SETS)/plain-$$ipc --policy.steps || exit 1; done
	$(BIN)/dim evaluate $(SETS)/refined-1 $(SETS)/refined-10 $(SETS)/refined-50 $(SETS)/plain-1 $(SETS)/plain-10 $(RUN) --ipc 10 \
	  --track stream --controls random oracle --seeds 3 --json $(RUN)/scores.json
	$(BIN)/dim coverage $(RUN)
	$(BIN)/dim compare $(RUN)/scores.json --picture $(RUN)/accuracy.png > /dev/null
	@echo
	@echo "Accuracy against images per class: $(RUN)/accuracy.png. The run's page: $(RUN)/report.html. What to try next:"
	@echo "  $(BIN)/dim train YOUR-FOLDER --minutes 30                # your own images, in class folders"
	@echo "  $(BIN)/dim sample $(RUN) --ipc 100 --policy.steps --out $(SETS)/100    # a set of any size"
	@echo "  $(BIN)/dim evaluate $(SETS)/refined-10 --students resnet18 --controls random    # another architecture"

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

# The pages of docs/ as a site, in build/site; a warning is an error.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(RUN) $(SETS) build dist *.egg-info
