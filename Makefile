# The project's commands. `make demo` and `make test` each work alone on a fresh clone with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo serve test test-slow crash lint bench bench-search lock clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable '.[cpu,train,import,export,ray,scale,demo,otel,dev]'
	@touch $@

setup: $(READY) ## Install everything into .venv

demo: $(READY) ## Train, export and index the demo once, then serve it on http://127.0.0.1:8000
	$(BIN)/fc7 demo
	$(BIN)/fc7 serve

serve: $(READY) ## Serve what is in FC7_HOME (default ./var)
	$(BIN)/fc7 serve

test: $(READY) ## Run the tests
	$(BIN)/pytest

test-slow: $(READY) ## Run the tests that `make test` leaves out: workers of a cluster that die, codes held against each other
	$(BIN)/pytest -m slow

crash: $(READY) ## Kill a server 200 times under concurrent writes, and look for what it acknowledged
	$(BIN)/python -m tests.crash.kill_rounds --rounds 200

lint: $(READY) ## Check style, formatting, import rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(READY) ## Measure serving: make bench PHOTOGRAPHS=folder-or-tar (needs a quiet machine)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.serving $(PHOTOGRAPHS)

bench-search: $(READY) ## Measure search: make bench-search VECTORS=folder (of .npz or .npy; needs a quiet machine)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.search $(VECTORS)

lock: $(READY) ## Write the exact versions that are installed to constraints/cpu.txt
	@{ echo "# Exact versions for serving and training on a processor (extras: cpu, train, import, export, ray, scale, demo, otel, dev). Made by \`make lock\`."; \
	$(BIN)/pip list --format freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu$$//' | tr A-Z a-z; } > constraints/cpu.txt.new
	mv constraints/cpu.txt.new constraints/cpu.txt

clean: ## Remove the environment and the caches; FC7_HOME stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
