# Every target sets up what it needs first; once that is done it costs a tenth of a second.
PY := .venv/bin/python
WORKERS ?= 2
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test lint types format bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Install the locked environment into .venv (PYTHON=python3.11 chooses the interpreter)
	@scripts/setup.sh

PROMPT ?= a man <|image|> and a woman <|image|> on the beach
REFERENCES ?= data/mini/samples/man.png,data/mini/samples/woman.png

reproduce: setup ## Train, evaluate and report the mini benchmarks (CHECKPOINT=... evaluates another model)
	$(PY) -m fastcomposer.cli.prepare data=avatars
	$(PY) -m fastcomposer.cli.train experiment=mini
	$(PY) -m fastcomposer.cli.generate 'prompt="$(PROMPT)"' 'references=[$(REFERENCES)]' \
		$(if $(CHECKPOINT),'checkpoint="$(CHECKPOINT)"')

test: export OMP_NUM_THREADS = 1
test: lint types ## Lint, check types and run the fast tests (ARGS="-k prompt" is passed to pytest)
	$(PY) -m pytest -n $(WORKERS) -m "not slow and not gpu" $(ARGS)

lint: setup ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: setup ## Check types
	$(PY) -m mypy

format: setup ## Format the code and mend what the linter can mend by itself
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## Measure speed and memory
	$(PY) -m fastcomposer.cli.bench

lock: ## Resolve the dependencies anew and write requirements.lock (Linux)
	@scripts/setup.sh lock

clean: ## Remove .venv and caches (outputs, data and the shared environment stay)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
	find src tests scripts -type d -name __pycache__ -prune -exec rm -rf {} +
