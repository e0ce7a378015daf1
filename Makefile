# The commands that a newcomer needs. Each installs what is missing first, and does nothing twice.

PYTHON ?= python3
BIN := .venv/bin
UP ?=
CHAOS ?=
OVERLOAD ?=

.DEFAULT_GOAL := help
.PHONY: help install up test chaos overload check format bench system-packages

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

install: .venv/installed ## the virtual environment with everything that was tested together

.venv/installed: pyproject.toml constraints.txt .ci/install
	@.ci/install "$(PYTHON)"
	@touch $@

up: install ## the whole system on this machine; UP="--port 9000 --shards 4" passes options on
	@exec $(BIN)/solowire up $(UP)

test: install system-packages ## all tests, real processes and a real named included
	@$(BIN)/pytest $(TEST)

chaos: install ## kills, stops and cuts a running system, and proves that nobody missed anything; CHAOS="--seed 7 --runs 10"
	@$(BIN)/python -m tests.chaos $(CHAOS)

overload: install ## three times too much of everything, and what became of it: docs/overload.md; OVERLOAD="--seconds 60"
	@mkdir -p bench/results; status=0; \
	for page in overload backpressure; do \
		$(BIN)/python -m bench.$$page --out bench/results/$$page.md $(OVERLOAD) || status=$$?; done; \
	cat bench/results/overload.md bench/results/backpressure.md >docs/overload.md; exit $$status

system-packages:
	@.ci/system-packages

check: install ## format, lint, types and layering; takes seconds
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/pytest -q tests/test_layering.py

format: install ## put the sources into the one form
	@$(BIN)/ruff format -q .
	@$(BIN)/ruff check -q --fix .

bench: install ## the figures of docs/performance.md, measured again (some ten minutes)
	@mkdir -p bench/results; status=0; \
	for page in fanout ingest recovery; do $(BIN)/python -m bench.$$page --out bench/results/$$page.md || status=$$?; done; \
	cat bench/results/fanout.md bench/results/ingest.md bench/results/recovery.md >docs/performance.md; exit $$status
