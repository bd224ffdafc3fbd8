# megopt: everything a fresh clone needs. Only Python 3.11+, git and make must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test check test-all clean

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## create .venv with everything, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "megopt needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[rl,live,profile,cluster,wireless,dev]'
	@touch $(STAMP)

demo: $(STAMP) ## the main job: a table and an energy-delay figure, then a trained policy on the same curve
	$(BIN)/megopt tradeoff
	$(BIN)/megopt train num_steps=40000 folder=outputs/demo/cvpo
	$(BIN)/megopt tradeoff policy=[optimal,learned] policy.learned.checkpoint=outputs/demo/cvpo/agent

check: $(STAMP) ## style, types, import direction and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not heavy"

test: $(STAMP) ## all tests but the heaviest
	$(BIN)/python -m pytest -q -n 2 -m "not heavy"

test-all: $(STAMP) ## all tests
	$(BIN)/python -m pytest -q -n 2

clean: ## remove what was built here
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
