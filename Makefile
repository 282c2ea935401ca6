# Commands of the project. `make demo` and `make test` each work on a fresh clone with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Parallel processes of the tests.
WORKERS ?= 2
PYTEST := $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal
# Otherwise each process that the tests start would compile fc7 again (0.3 s).
unexport PYTHONDONTWRITEBYTECODE
GPU_VENV := .venv-gpu
GPU_READY := $(GPU_VENV)/.ready

.PHONY: help setup demo serve test test-slow test-wheel test-javascript gpu-check coverage crash lint format bench bench-search docs lock clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): pyproject.toml client/pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable ./client --editable '.[cpu,train,import,export,ray,scale,demo,otel,heic,map,mcp,dev]'
	@touch $@

$(GPU_READY): pyproject.toml constraints/cpu.txt constraints/gpu.txt
	$(PYTHON) -m venv $(GPU_VENV)
	grep -v '^nvidia-' constraints/gpu.txt > $(GPU_VENV)/constraints.txt  # torch requires its own versions of the CUDA libraries
	$(GPU_VENV)/bin/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --constraint $(GPU_VENV)/constraints.txt --editable '.[gpu,train,dev]'
	@touch $@

setup: $(READY) ## Install everything into .venv

demo: $(READY) ## Train, export and index the demo, then serve it on http://127.0.0.1:8000
	$(BIN)/fc7 demo
	$(BIN)/fc7 serve

serve: $(READY) ## Serve the models in FC7_HOME (default ./var)
	$(BIN)/fc7 serve

test: $(READY) ## Run the tests
	$(PYTEST)

test-slow: $(READY) ## Run the slow tests that `make test` leaves out
	$(BIN)/pytest -m slow

test-wheel: $(READY) ## Build fc7 and fc7-client, install them into a clean environment and serve
	$(BIN)/pytest -m wheel tests/test_wheel.py

test-javascript: $(READY) ## Generate types of the API, compile the JavaScript example and run it (needs npm)
	$(BIN)/pytest -m javascript tests/client/test_javascript.py

gpu-check: ## Check everything that runs on an NVIDIA GPU, and print a table of results
	@$(PYTHON) tests/gpu/driver.py
	@$(MAKE) --no-print-directory $(GPU_READY)
	$(GPU_VENV)/bin/python -m tests.gpu

coverage: $(READY) ## Run the tests and report the lines that they do not execute
	$(PYTEST) --cov --cov-report=term

crash: $(READY) ## Kill a server 200 times under concurrent writes and verify every acknowledged write
	$(BIN)/python -m tests.crash.kill_rounds --rounds 200

lint: $(READY) ## Check style, formatting, import rules and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(READY) ## Format the code and sort the imports
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Benchmark serving: make bench PHOTOGRAPHS=folder-or-tar (needs an idle machine)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.serving $(PHOTOGRAPHS)

bench-search: $(READY) ## Benchmark search: make bench-search VECTORS=folder (.npz or .npy files; needs an idle machine)
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable '.[bench]'
	$(BIN)/python -m benchmarks.search $(VECTORS)

docs: $(READY) ## Build the documentation as a site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lock: $(READY) ## Write the installed versions to constraints/cpu.txt
	$(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints/cpu.txt --editable '.[bench]'
	@{ echo "# Exact versions for serving and training on a CPU (all extras but gpu). Made by \`make lock\`."; \
	$(BIN)/pip list --format freeze --exclude-editable --exclude pip --exclude setuptools \
	| sed 's/+cpu==/==/; s/+cpu$$//' | tr A-Z_ a-z- | LC_ALL=C sort -t= -k1,1; } > constraints/cpu.txt.new
	mv constraints/cpu.txt.new constraints/cpu.txt

clean: ## Remove the environment and caches, but not FC7_HOME
	rm -rf $(VENV) $(GPU_VENV) build .coverage* *.egg-info client/build client/*.egg-info client/javascript/node_modules .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
