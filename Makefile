# `make repro` runs the pipeline, `make test` the tests; both create the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Threads that wait spin for some 10 us, then sleep: without spinning a quiet machine evaluated 8 % slower, with OpenMP's
# default short operations took four times as long beside other work.
ENV := PATH="$(CURDIR)/$(BIN):$$PATH" DO_NOT_TRACK=1 GOMP_SPINCOUNT=10000

.PHONY: repro table test test-slow test-newest lint docs clean

repro: $(VENV)/.installed
	@$(ENV) python -m stages.check
	@$(ENV) ZPRUNER_ENDS_LATER=1 python -m warm dvc repro
	@$(ENV) python -m stages.report --table

table: $(VENV)/.installed
	@$(ENV) python -m stages.report --table

test: lint
	@$(ENV) python -m pytest -q -n 2 --dist loadgroup -m "not slow"

test-slow: $(VENV)/.installed
	@$(ENV) python -m pytest -q -m slow

# The loader's hooks of the newest transformers that pyproject.toml admits; it lies beside the environment's own.
test-newest: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/newest "transformers<6"
	@$(ENV) PYTHONPATH="$(CURDIR)/$(VENV)/newest" python -m pytest -q -m "not slow" tests/packed/test_loading.py tests/packed/test_stack.py

lint: $(VENV)/.installed
	@$(ENV) ruff format --check --quiet .
	@$(ENV) ruff check --quiet .
	@$(ENV) mypy
	@$(ENV) lint-imports --no-logo

# Strict: a broken link, reference or heading fails. The pages are in docs/_build/html.
docs: $(VENV)/.docs
	@$(ENV) python -m typer zpruner.cli utils docs --name zpruner --title Commands --output docs/reference/commands.md >/dev/null
	@$(ENV) python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@$(ENV) python -m pytest -q -m "not slow" tests/docs
	@echo docs/_build/html/index.html

$(VENV)/.docs: $(VENV)/.installed docs/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -r docs/requirements.lock
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache docs/_build

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than Python 3.11. Run: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
