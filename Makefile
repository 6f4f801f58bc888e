# `make demo` and `make test` work on a fresh clone: each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
BIN := $(VENV)/bin

# The ends of what pyproject.toml promises, each installed in an environment of its own.
OLDEST_PYTHON ?= python3.10
OLDEST_TORCH := "torch==2.6.*" "torchvision==0.21.*"
NEWEST_PYTHON ?= python3.13
NEWEST_TORCH := torch torchvision

.PHONY: demo docs test test-all test-ecosystem test-browser test-versions test-oldest test-newest lint clean

demo: $(INSTALLED)
	$(BIN)/fxhash demo

# The pages of docs/ as a site in build/site, with the API reference; a test of `make test` builds them too.
# Not with --quiet, which hides warnings from --strict too.
docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# pytest comes last, so that its closing line is the last thing printed.
test: lint
	@$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: lint
	@$(BIN)/python -m pytest -n 2

# Models of timm and Hugging Face, which `make test` skips where they aren't installed.
test-ecosystem: $(INSTALLED)
	$(BIN)/pip install --quiet torch torchvision -e ".[ecosystem]"
	@$(BIN)/python -m pytest -n 2 tests/ecosystem

# Pages of runs in headless Chromium, which must be installed: Debian's, or the one that the variable CHROME names.
test-browser: $(INSTALLED)
	npm ci --prefix web --ignore-scripts
	@$(BIN)/python -m pytest tests/browser

# The quick tests with the oldest and the newest Python and torch; `make -k` runs the second after a failure too.
test-versions: test-oldest test-newest

test-oldest test-newest: test-%: $(VENV)-%/.installed
	@$(VENV)-$*/bin/python -m pytest -n 2 -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(INSTALLED): INTERPRETER = $(PYTHON)
$(VENV)-oldest/.installed: INTERPRETER = $(OLDEST_PYTHON)
$(VENV)-newest/.installed: INTERPRETER = $(NEWEST_PYTHON)

# torch and torchvision are named together, so that the resolver picks a pair that fits.
TORCH = $(NEWEST_TORCH)
$(VENV)-oldest/.installed: TORCH = $(OLDEST_TORCH)

$(INSTALLED) $(VENV)-oldest/.installed $(VENV)-newest/.installed: %/.installed: pyproject.toml
	$(INTERPRETER) -m venv $*
	$*/bin/pip install --quiet $(TORCH) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
