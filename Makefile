# Every target installs into .venv first where that is needed; nothing else is asked of the machine
# but Python 3.11, 3.12 or 3.13: `make PYTHON=python3.12` where python3 is another one.
PYTHON ?= python3
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0
# Packages are compiled when they are first imported, and not again in each process: that is some 5 s of each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo two-machines test test-long lint bench docs install clean

demo: .venv/demo
	$(BIN)/python main.py -m strategy=fedavg,oqfl clients.total=100

# A server and three devices that share no files and no memory: docs/DEPLOY.md.
two-machines: .venv/demo
	$(BIN)/python -m benchmarks.two_machines $(OVERRIDES)

test: lint
	$(BIN)/pytest -m "not long" --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations=25

test-long: lint
	$(BIN)/pytest --durations=25

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The benchmarks that need no data of the user's; `binary`, `privacy` and `steps` do (docs/BINARIZED.md). On two
# busy cores all but the last two take 17 minutes, and `sweep` some 10 to 20.
bench: .venv/dev
	@$(BIN)/python -m benchmarks.machine
	@for name in $(BENCHMARKS); do echo; echo "benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done
BENCHMARKS := wire codec quant evaluation networks fleet hierarchical split remote clock scale sweep engine

# The pages of this repository and the API, in site/.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo site/index.html

install: .venv/dev

# Installed anew when pyproject.toml changes.
.venv/demo: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable .
	touch $@

.venv/dev: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable ".[dev]"
	touch $@ .venv/demo

.venv/docs: pyproject.toml
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --editable ".[docs]"
	touch $@

CHECK_PYTHON = found=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	case "$$found" in 3.11|3.12|3.13) ;; *) \
	echo "PYTHON=$(PYTHON): is $${found:-missing}; 3.11, 3.12 or 3.13 is needed," \
	"such as make PYTHON=python3.12" >&2; exit 1;; esac

clean:
	rm -rf .venv build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
