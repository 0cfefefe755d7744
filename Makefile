# Two commands do all set-up on a machine with only Python (3.11 or newer), make and a package index: make run, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test soak check docs bench clean

run: $(VENV)/.installed
	$(BIN)/floco compare configs/rotated-digits.toml -a floco,fedavg,fedavg+ft --seeds 1

# At most ten minutes on two quiet cores. A file is one process's: its fixtures are made once.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# What takes long, and sees no fault that `make test` does not: an hour, before a release.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak --timeout 7200

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, into build/site; needs no network but for the installation.
docs: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Speed and memory against yardsticks: a quarter of an hour on two quiet cores, results in benchmarks/results.
bench: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/bench.py

# The stamps make a second call install nothing, and a change of what is needed install again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
