# `make demo` and `make test` work on a fresh clone: each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

.PHONY: demo test test-all test-ecosystem lint clean

demo: $(INSTALLED)
	$(BIN)/fxhash demo

# pytest comes last, so that its closing line is the last thing printed.
test: lint
	@$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint
	@$(BIN)/python -m pytest -n 2

# Models of timm and Hugging Face, which `make test` skips where they aren't installed.
test-ecosystem: $(INSTALLED)
	$(BIN)/pip install --quiet torch torchvision -e ".[ecosystem]"
	@$(BIN)/python -m pytest -n 2 tests/ecosystem

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch and torchvision are named together, so that the resolver picks a pair that fits.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch torchvision -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
