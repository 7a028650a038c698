# Two commands: `make demo` (the main job, end to end) and `make test`. Both set up .venv by themselves.
# On a machine without a GPU, a CPU build of torch saves gigabytes:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
VERL := .venv-verl
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt

.PHONY: demo test coverage check format clean verl-check

demo: $(VENV)/core
	$(BIN)/gradalign demo --out runs/demo

test: check
	$(BIN)/python -m pytest -n auto --dist worksteal --durations=10

coverage: check
	$(BIN)/python -m pytest -n auto --dist worksteal --cov=gradalign --cov-report=term

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# verl wants an older transformers than the rest: an environment of its own.
verl-check: $(VERL)/made
	$(VERL)/bin/python scripts/check_verl.py --out benchmarks/verl.json

$(VERL)/made: pyproject.toml
	$(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) torch==2.13.0
	$(VERL)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e '.[verl]'
	touch $@

clean:
	rm -rf $(VENV) $(VERL) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[report,train]'
	touch $@

$(VENV)/test: $(VENV)/core
	$(PIP) -e '.[test]'
	touch $@
