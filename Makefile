# Every target installs into .venv first where that is needed; nothing else is asked of the machine
# but Python 3.11.
PYTHON ?= python3.11
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: demo test test-long lint bench install clean

demo: .venv/demo
	$(BIN)/python main.py -m strategy=fedavg,oqfl clients.total=100

test: lint
	$(BIN)/pytest -m "not long" --numprocesses 2 --dist loadfile

test-long: lint
	$(BIN)/pytest

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python -m benchmarks.quant
	$(BIN)/python -m benchmarks.engine

install: .venv/dev

# Installed anew when pyproject.toml changes.
.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@ .venv/demo

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
